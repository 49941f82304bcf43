"""Steps that fail: not finite, or out of memory. What is put back, and what is said.

Apart from train_taco.py, because what a learner reads there is the step that goes well.
"""

import math
import sys
from collections.abc import Callable

import torch

from command_line.files import DataError
from dataset import Batch
from training.checkpoints import TrainerState
from training.setup import Run

# Of fp16. A scale too high for the gradients is found within some twenty steps; one below 1 would
# make gradients smaller than they are.
MAX_SKIPPED_IN_A_ROW = 50
MIN_LOSS_SCALE = 1.0


class OutOfMemory(DataError):
    """The GPU's memory has run out, on one process."""


def take_snapshot(run: Run) -> Callable[[], None]:
    """Copies what a forward pass changes: random states and the running means of batch norms.

    Returns:
        A function that puts them back, for a step that turns out not to be finite.
    """
    device = run.accelerator.device
    buffers = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
    random_state = torch.get_rng_state()
    cuda_random_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def put_back() -> None:
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.set_rng_state(random_state)
        if cuda_random_state is not None:
            torch.cuda.set_rng_state(cuda_random_state, device)

    return put_back


def describe_out_of_memory(run: Run, batches: list[Batch], step: int) -> OutOfMemory:
    """What the largest batch of a step was like, and which flags make it smaller."""
    batch = max(batches, key=lambda batch: batch.mels.numel())
    config = run.config
    return OutOfMemory(
        f"step {step + 1}: the GPU's memory ran out on {len(batch.texts)} clips of up to "
        f"{batch.mels.shape[1]} frames and {batch.tokens.shape[1]} characters; lower --batch_size, "
        f"now {config.batch_size}, and raise --gradient_accumulation_steps, now "
        f"{config.gradient_accumulation_steps}, which keeps the clips of a step"
    )


def refuse_nonfinite(run: Run, batches: list[Batch], step: int, loss: float) -> None:
    """Ends the run on a step that is not finite, or with --skip_nonfinite says that it is skipped.

    Raises:
        DataError: naming the step and the clips, without --skip_nonfinite.
    """
    paths = ", ".join(path for batch in batches for path in batch.paths)
    what = "gradient" if math.isfinite(loss) else "loss"
    sentence = f"step {step + 1}: the {what} is not finite, with the clips {paths}"
    if not run.config.skip_nonfinite:
        raise DataError(f"{sentence}; --skip_nonfinite skips such steps")
    print(f"{sentence}: skipped", file=sys.stderr)


def scaling_failure(run: Run, state: TrainerState) -> str | None:
    """Why fp16 cannot go on when its loss scaling skips step after step, else None."""
    scaler, n_skipped = run.accelerator.scaler, state.skipped_in_a_row
    if scaler is None or n_skipped == 0:
        return None
    scale = scaler.get_scale()
    if n_skipped < MAX_SKIPPED_IN_A_ROW and scale >= MIN_LOSS_SCALE:
        return None
    return (
        f"step {state.step}: the gradient is not finite in fp16, with the loss scale down to "
        f"{scale:g} and {n_skipped} steps skipped in a row; --mixed_precision bf16 (or no) needs "
        "no loss scale"
    )
