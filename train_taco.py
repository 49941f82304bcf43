"""Train Tacotron 2 by teacher forcing, on one or many GPUs or on a CPU.

    accelerate launch --quiet --num_processes 1 train_taco.py \
        --experiment_name tacotron2 --run_name first \
        --working_directory work_dir --save_audio_gen work_dir/samples \
        --path_to_train_manifest data/train_metadata.csv \
        --path_to_val_manifest data/test_metadata.csv

Without --num_processes accelerate uses every GPU of the machine. `train_taco.sh` shows every flag.
Checkpoints go to WORKING_DIRECTORY/EXPERIMENT_NAME, the pictures and sounds of each validation to
SAVE_AUDIO_GEN/EXPERIMENT_NAME. Read this file from top to bottom: the schedules, one step, one
epoch, the run.
"""

import contextlib
import math
from pathlib import Path

import torch
from torch import Tensor

from command_line.main import say, script
from dataset import Batch
from model import build_padding_mask, tacotron2_loss
from training.checkpoints import checkpoint_is_due, save_checkpoint, stop_if_asked
from training.config import TrainConfig, make_parser
from training.failures import explain_failures, explain_lost_loader
from training.pictures import film_first_epoch, finish_pictures
from training.processes import end_processes, hold_folder, make_accelerator, trim_memory
from training.run import Run
from training.set_up import group_batches, set_up
from training.state import LOSSES, TrainerState
from training.validation import is_new_best, report_epoch, validate


def learning_rate(step: int, epoch: float, config: TrainConfig) -> float:
    """Compute the rate: it rises over steps, stays constant, then decays exponentially over epochs.

    `epoch` has a fraction.
    """
    start = config.start_decay_epochs
    start = config.training_epochs / 2 if start is None else start
    progress = (epoch - start) / max(config.training_epochs - start, 1e-9)
    ratio = config.min_learning_rate / config.learning_rate
    warmup = min((step + 1) / max(config.warmup_steps, 1), 1.0)
    return config.learning_rate * warmup * ratio ** min(max(progress, 0.0), 1.0)


def guided_attention_weight(step: int, config: TrainConfig) -> float:
    """Compute the weight, which falls linearly to 0 at --guided_attention_steps.

    Guided attention is a scaffold until the model aligns by itself.
    """
    if step >= config.guided_attention_steps:
        return 0.0
    return config.guided_attention_weight * (1.0 - step / config.guided_attention_steps)


def drop_frames(mels: Tensor, mel_lengths: Tensor, rate: float) -> Tensor:
    """Replace a share of the teacher frames (B, T_mel, num_mels) by the batch's mean frame.

    The decoder then has to take from the text what the previous frame no longer tells it, and
    learns to attend sooner (Liu et al. 2019, arXiv 1909.01145).
    """
    if rate == 0:
        return mels
    padding_mask = build_padding_mask(mel_lengths, mels.shape[1], mels.device)  # (B, T_mel)
    total = mels.masked_fill(padding_mask[:, :, None], 0.0).sum(dim=(0, 1))  # (num_mels,)
    dropped = torch.rand(mels.shape[:2], device=mels.device) < rate  # (B, T_mel)
    return torch.where(dropped[:, :, None], total / mel_lengths.sum(), mels)


def count_frames(run: Run, batches: list[Batch]) -> Tensor:
    """Count the valid frames in these batches of all processes, as a tensor on the device."""
    count = float(sum(int(batch.mel_lengths.sum()) for batch in batches))
    # Filled on the device: copying a number there would wait for everything queued on it.
    return run.accelerator.reduce(torch.full((), count, device=run.accelerator.device), "sum")


@explain_failures
def train_step(run: Run, batches: list[Batch], step: int) -> dict[str, float]:
    """Update the weights once, on all `batches`.

    The losses are means over the valid frames of all batches of all processes together, so that
    neither the number of processes nor the way a batch is split up changes the gradient.

    Returns:
        The losses by name, the gradient's norm before clipping (grad_norm), and n_frames.
    """
    config, accelerator = run.config, run.accelerator
    n_frames = count_frames(run, batches)
    totals = torch.zeros(len(LOSSES), device=accelerator.device)
    for batch in batches:  # gradient accumulation
        is_last = batch is batches[-1]  # only then do the processes average their gradients
        with contextlib.nullcontext() if is_last else accelerator.no_sync(run.model):
            batch = batch.to(accelerator.device)
            teacher = drop_frames(batch.mels, batch.mel_lengths, config.drop_frame_rate)
            output = run.model(batch.tokens, batch.token_lengths, teacher, batch.mel_lengths)
            losses = tacotron2_loss(
                output,
                batch.mels,
                batch.token_lengths,
                batch.mel_lengths,
                batch.stop_targets,
                guided_attention_weight=guided_attention_weight(step, config),
                guided_attention_sigma=config.guided_attention_sigma,
                n_frames=n_frames / accelerator.num_processes,
                stop_positive_weight=config.stop_positive_weight,
                l1_weight=config.l1_weight,
                stop_tail_frames=config.stop_tail_frames,
            )
            accelerator.backward(losses["loss"])
        totals += torch.stack([losses[name].detach() for name in LOSSES])
    grad_norm = accelerator.clip_grad_norm_(run.model.parameters(), config.max_grad_norm)
    totals = accelerator.reduce(totals, "mean")
    # The one place where the host waits for the device. All processes get the same numbers.
    numbers = torch.cat([totals, torch.stack([grad_norm, n_frames])]).tolist()
    losses = dict(zip((*LOSSES, "grad_norm", "n_frames"), numbers, strict=True))
    # Under fp16 a gradient may overflow: accelerate skips the update and lowers the loss scale.
    to_check = losses["loss"] if accelerator.scaler else losses["loss"] + losses["grad_norm"]
    if not math.isfinite(to_check):
        raise FloatingPointError("the loss or its gradient is not finite")
    run.optimizer.step()
    run.optimizer.zero_grad()
    return losses


def train_epoch(run: Run, state: TrainerState) -> None:
    """Train to the end of the epoch, and write the checkpoints that fall due within it."""
    config, n_steps = run.config, run.steps_per_epoch
    n_seen = state.epoch_step * config.gradient_accumulation_steps  # batches
    run.train_loader.batch_sampler.set_epoch(state.epoch, n_seen)
    run.train_set.set_epoch(state.epoch)
    run.progress.begin_epoch(state.epoch, state.epoch_step, n_steps)
    for batches in group_batches(run.train_loader, config.gradient_accumulation_steps):
        film_first_epoch(run, state)
        rate = learning_rate(state.step, state.epoch + state.epoch_step / n_steps, config)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        losses = train_step(run, batches, state.step)
        state.count_step(losses, rate)
        run.progress.show(state, losses)
        trim_memory(run.accelerator.device, state.step)
        if checkpoint_is_due(run):  # the time is up, or a signal asks the run to stop
            save_checkpoint(run, state, f"checkpoint_{state.epoch}_step_{state.step}")
            stop_if_asked(run, state)
    run.progress.end_epoch()


def finish_epoch(run: Run, state: TrainerState) -> None:
    """Validate if that is due, report the epoch, and write its checkpoints."""
    config, epoch = run.config, state.epoch + 1
    row = {"epoch": epoch, "step": state.step, **state.mean_losses()}
    media = {}
    if epoch % config.validation_epochs == 0 or epoch == config.training_epochs:
        scores, media = validate(run, epoch)
        row |= scores
    row["learning_rate"] = learning_rate(state.step, epoch, config)
    state.finish_epoch(row)
    report_epoch(run, state, media)
    if is_new_best(state.history, state.best_epoch):
        state.best_epoch = epoch
        save_checkpoint(run, state, "best_checkpoint")
        run.progress.log_best(row)
    if epoch % config.checkpoint_epochs == 0:
        save_checkpoint(run, state, f"checkpoint_{epoch}")


def train(run: Run, state: TrainerState) -> None:
    """Train from the current state to the final checkpoint."""
    epoch = state.epoch + state.epoch_step / run.steps_per_epoch
    before, now = state.learning_rate, learning_rate(state.step, epoch, run.config)
    goes_on = before and state.epoch < run.config.training_epochs
    if goes_on and run.accelerator.is_main_process and not 0.8 < now / before < 1.25:
        say(f"learning rate: {before:.3g} in the last step before this, {now:.3g} from here on")
    while state.epoch < run.config.training_epochs:
        train_epoch(run, state)
        finish_epoch(run, state)
    save_checkpoint(run, state, "final_checkpoint")
    finish_pictures(run, state)
    run.progress.finish()


@script
def main(argv: list[str] | None = None) -> None:
    """Train with these flags (default: the command line's)."""
    parser = make_parser(__doc__.split("\n")[0])
    args = parser.parse_args(argv)
    accelerator = make_accelerator()
    folder = Path(args.working_directory) / args.experiment_name
    with hold_folder(accelerator, folder), explain_lost_loader():
        run, state = set_up(accelerator, parser, argv)
        train(run, state)
        end_processes(accelerator)


if __name__ == "__main__":
    main()
