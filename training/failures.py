"""Turn the failures of a run into one sentence: what failed, where, and what to change."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from command_line.files import DataError
from dataset import Batch
from training.run import Run


@contextmanager
def explain_memory(advice: str) -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into a DataError that ends with `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = str(error).lower()
        known = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
        if not (known or "out of memory" in message or "can't allocate memory" in message):
            raise
        raise DataError(f"memory ran out {advice}") from None


@contextmanager
def explain_lost_loader() -> Iterator[None]:
    """Turn the death of a loader process, which can raise in any line, into a DataError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = "a loader process was killed, or memory ran out"
        raise DataError(f"{reason}; fewer --num_workers need less memory") from None


def explain_failures(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a training step: a failure becomes a DataError that names the step and the clips."""

    @functools.wraps(train_step)
    def explained(run: Run, batches: list[Batch], step: int) -> Any:
        largest = max(batches, key=lambda batch: batch.mels.numel())
        advice = (
            f"in step {step + 1}, on {len(largest.texts)} clips of up to {largest.mels.shape[1]} "
            f"frames and {largest.tokens.shape[1]} characters; lower --batch_size, now "
            f"{run.config.batch_size}, and raise --gradient_accumulation_steps, now "
            f"{run.config.gradient_accumulation_steps}, which keeps the clips of a step"
        )
        with explain_memory(advice):
            try:
                return train_step(run, batches, step)
            except FloatingPointError as error:
                paths = ", ".join(path for batch in batches for path in batch.paths)
                raise DataError(f"step {step + 1}: {error}, with the clips {paths}") from None

    return explained
