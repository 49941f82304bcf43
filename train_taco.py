"""Trains Tacotron 2 by teacher forcing, on one or many GPUs or on a CPU.

    accelerate launch --quiet --num_processes 1 train_taco.py \
        --experiment_name tacotron2 --run_name first \
        --working_directory work_dir --save_audio_gen work_dir/samples \
        --path_to_train_manifest data/train_metadata.csv \
        --path_to_val_manifest data/test_metadata.csv

Without --num_processes it takes every GPU of the machine. `train_taco.sh` shows every flag.
Checkpoints go to WORKING_DIRECTORY/EXPERIMENT_NAME, pictures and sounds of every validation to
SAVE_AUDIO_GEN. The file reads in the order things happen: learning rate, one step, an epoch, what
follows it, the run.
"""

import contextlib
import math
import sys
import time
from itertools import islice
from typing import NoReturn

import torch
from accelerate import PartialState
from torch import Tensor

from command_line.files import DataError
from dataset import Batch
from model import build_padding_mask, tacotron2_loss
from training.checkpoints import TrainerState, enter_epoch, prune_checkpoints, save_checkpoint
from training.config import TrainConfig, parse_args
from training.failures import (
    OutOfMemory,
    describe_out_of_memory,
    refuse_nonfinite,
    scaling_failure,
    take_snapshot,
)
from training.processes import (
    Interrupt,
    Interrupted,
    any_process,
    end_group,
    hold_folder,
    is_interrupted,
    lasting_output,
    raise_together,
    read_groups,
)
from training.reporting import (
    Meter,
    alignment_is_due,
    draw_losses,
    going_on_without,
    make_film,
    missing_alignment,
    print_epoch,
    print_saved,
)
from training.setup import Run, announce, make_accelerator, prepare, set_optimizer
from training.validation import LOSSES, choose_sample, film_first_epoch, is_new_best, judge_epoch


def learning_rate(step: int, epoch: float, config: TrainConfig) -> float:
    """At a step of a (fractional) epoch: a linear rise, constant, then exponential decay."""
    start = config.start_decay_epochs
    start = config.training_epochs / 2 if start is None else start
    progress = (epoch - start) / max(config.training_epochs - start, 1e-9)
    ratio = config.min_learning_rate / config.learning_rate
    warmup = min((step + 1) / max(config.warmup_steps, 1), 1.0)
    return config.learning_rate * warmup * ratio ** min(max(progress, 0.0), 1.0)


def drop_frames(mels: Tensor, mel_lengths: Tensor, rate: float) -> Tensor:
    """Teacher frames (B, T_mel, num_mels), a share of them replaced by the mean of the batch's.

    What the previous frame does not tell, the decoder has to take from the text, so that it
    learns to attend sooner (Liu et al. 2019, arXiv 1909.01145).
    """
    if rate == 0:
        return mels
    padding_mask = build_padding_mask(mel_lengths, mels.shape[1], mels.device)  # (B, T_mel)
    mean = (
        mels.masked_fill(padding_mask[:, :, None], 0.0).sum(dim=(0, 1)) / mel_lengths.sum()
    )  # (num_mels,)
    dropped = torch.rand(mels.shape[:2], device=mels.device) < rate  # (B, T_mel)
    return torch.where(dropped[:, :, None], mean, mels)


def save_and_raise(run: Run, state: TrainerState, error: DataError) -> NoReturn:
    """Ends the run, on every process, with a checkpoint of what came before the error.

    One process of several that runs out of memory ends without one: the others, which would have
    to save with it, wait in the middle of the step, until the launcher ends them.

    Raises:
        DataError: always.
    """
    if isinstance(error, OutOfMemory) and run.accelerator.num_processes > 1:
        raise error
    name = f"checkpoint_{state.epoch}_step_{state.step}"
    try:
        save(run, state, name)
    except DataError as second:
        raise DataError(f"{error}; besides, {second}") from None
    raise DataError(f"{error}; {name} holds the run before it") from None


def save_and_leave(run: Run, state: TrainerState) -> NoReturn:
    """Ends the run, on every process, with a checkpoint, because a signal asked for it.

    Raises:
        Interrupted: always, naming the checkpoint.
        DataError: on every process, when it cannot be written.
    """
    name = f"checkpoint_{state.epoch}_step_{state.step}"
    save(run, state, name)
    finish_pictures(run, state)
    end_group(run.accelerator)
    raise Interrupted(name) from None


def count_frames(run: Run, batches: list[Batch]) -> Tensor:
    """Valid frames in these batches on all processes together, as a tensor on the device."""
    count = float(sum(int(b.mel_lengths.sum()) for b in batches))
    # Filled on the device: copying a number there would wait for all that is queued on it.
    return run.accelerator.reduce(torch.full((), count, device=run.accelerator.device), "sum")


def add_gradients(run: Run, batches: list[Batch], step: int, n_frames: Tensor) -> Tensor:
    """Backpropagates the losses of all `batches` of a step into the parameters' gradients.

    Returns:
        The losses, (len(LOSSES),): this process's share of the means over n_frames, times the
        number of processes.

    Raises:
        torch.cuda.OutOfMemoryError: with a part of the gradients.
    """
    decay = 1.0 - step / max(run.config.guided_attention_steps, 1)
    guided_weight = run.config.guided_attention_weight * max(decay, 0.0)
    totals = torch.zeros(len(LOSSES), device=run.accelerator.device)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last else run.accelerator.no_sync(run.model):
            # Processes average their gradients: each divides by its share of the frames.
            share = n_frames / run.accelerator.num_processes
            batch = batch.to(run.accelerator.device)
            teacher = drop_frames(batch.mels, batch.mel_lengths, run.config.drop_frame_rate)
            output = run.model(batch.tokens, batch.token_lengths, teacher, batch.mel_lengths)
            losses = tacotron2_loss(
                output, batch.mels, batch.token_lengths, batch.mel_lengths, batch.stop_targets,
                guided_weight, run.config.guided_attention_sigma, share,
                run.config.stop_positive_weight,
            )  # fmt: skip
            run.accelerator.backward(losses["loss"])
        totals += torch.stack([losses[name].detach() for name in LOSSES])
    return totals


def train_step(run: Run, batches: list[Batch], step: int) -> tuple[dict[str, float], Tensor, float]:
    """One optimizer step on all of `batches`: losses by name, number of frames, gradient norm.

    The losses are means over the valid frames of all batches on all processes, so that neither
    how many processes there are nor how a batch is cut up changes the gradient. A step that
    --skip_nonfinite or fp16's loss scaling skips has no losses.

    Raises:
        DataError: on every process, when a loss or gradient is not finite, without
            --skip_nonfinite. The run then stands where it stood before the step.
        OutOfMemory: on one process, likewise.
    """
    n_frames = count_frames(run, batches)
    put_back = take_snapshot(run)
    try:
        totals = add_gradients(run, batches, step, n_frames)
    except torch.cuda.OutOfMemoryError:
        totals = None  # only after this block is the memory of the step free
    if totals is None:
        put_back()
        run.optimizer.zero_grad()
        raise describe_out_of_memory(run, batches, step)
    grad_norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.max_grad_norm)
    totals = run.accelerator.reduce(totals, "mean")
    # The one place where the host waits for the device. All processes get the same numbers.
    *losses, grad_norm = torch.cat([totals, grad_norm.reshape(1)]).tolist()
    # With fp16 the scaler itself skips steps whose gradients overflow, and lowers its scale.
    fp16 = run.accelerator.mixed_precision == "fp16"
    finite = math.isfinite(losses[0]) and (fp16 or math.isfinite(grad_norm))
    named_losses = dict(zip(LOSSES, losses, strict=True))
    if not finite:
        put_back()
        refuse_nonfinite(run, batches, step, losses[0])
        if fp16:  # clipping has told the scaler of this step, and it waits for its end
            run.accelerator.scaler.update()
        named_losses = {}
    else:
        run.optimizer.step()
        if run.accelerator.optimizer_step_was_skipped:
            named_losses = {}
    run.optimizer.zero_grad()
    return named_losses, n_frames, grad_norm


def count_step(state: TrainerState, losses: dict[str, float], n_clips: int) -> TrainerState:
    """The state after a step on so many clips of all processes; a skipped one has no losses."""
    sums = state.epoch_losses
    if losses:
        sums = [a + b for a, b in zip(sums, losses.values(), strict=True)]
    return state._replace(
        epoch_step=state.epoch_step + 1,
        epoch_clips=state.epoch_clips + n_clips,
        step=state.step + 1,
        epoch_losses=sums,
        epoch_skipped=state.epoch_skipped + (not losses),
        skipped_in_a_row=0 if losses else state.skipped_in_a_row + 1,
    )


def train_epoch(run: Run, state: TrainerState, saved_at: float) -> tuple[TrainerState, float]:
    """What is left of an epoch, with the checkpoints that fall due in it.

    Args:
        saved_at: time.monotonic() of the last checkpoint, for --checkpoint_minutes; epochs may
            be shorter than those, so it goes in and comes out.

    Returns:
        The state at the epoch's end, and saved_at.

    Raises:
        Interrupted: when a signal asked for the end, after writing a checkpoint.
        DataError: when a clip cannot be read, a step is not finite or fp16 skips step after step,
            after writing a checkpoint.
    """
    config = run.config
    state = enter_epoch(run.train_loader.batch_sampler, state)
    run.train_set.set_epoch(state.epoch)
    batch_sizes = iter(run.train_loader.batch_sampler.batch_sizes)
    n_steps = state.epoch_step + -(-len(run.train_loader) // config.gradient_accumulation_steps)
    meter = Meter(run.accelerator, config, run.tracking, state.epoch, state.epoch_step, n_steps)
    for batches in read_groups(run.train_loader, config.gradient_accumulation_steps):
        minutes = (time.monotonic() - saved_at) / 60
        due = config.checkpoint_minutes is not None and minutes >= config.checkpoint_minutes
        broken = isinstance(batches, DataError)
        stop, due, broken = any_process(run.accelerator, is_interrupted(run.interrupt), due, broken)
        if stop:
            save_and_leave(run, state)
        if due:
            save(run, state, f"checkpoint_{state.epoch}_step_{state.step}")
            saved_at = time.monotonic()
        if state.epoch == 0:
            film_first_epoch(
                run.accelerator, run.model, run.val_set, config, run.pictures,
                state.epoch_step, n_steps,
            )  # fmt: skip
        try:
            if broken:
                raise_together(run.accelerator, batches)
            epoch = state.epoch + state.epoch_clips / len(run.train_set)
            rate = learning_rate(state.step, epoch, config)
            set_optimizer(run, lr=rate)
            losses, n_frames, grad_norm = train_step(run, batches, state.step)
        except DataError as error:
            save_and_raise(run, state, error)
        state = count_step(state, losses, sum(islice(batch_sizes, len(batches))))
        if failure := scaling_failure(run, state):
            save_and_raise(run, state, DataError(failure))
        scalars = {"learning_rate": rate, "grad_norm": grad_norm}
        meter.update(state.epoch_step, state.step, losses, n_frames, scalars)
    meter.bar.close()
    return state, saved_at


def finish_epoch(run: Run, state: TrainerState) -> TrainerState:
    """Validation and pictures where they fall due, and logs, after the last step of an epoch.

    Raises:
        DataError: on every process, when a clip cannot be read.
        Interrupted: on every process, when a signal has come; nothing is written then.
    """
    epoch = state.epoch + 1
    due = epoch % run.config.validation_epochs == 0 or epoch == run.config.training_epochs
    n_steps = max(state.epoch_step - state.epoch_skipped, 1)
    train_means = {
        f"train_{name}": total / n_steps
        for name, total in zip(LOSSES, state.epoch_losses, strict=True)
    }
    scores, media = {}, {}
    if due:
        scores, media = judge_epoch(
            run.accelerator, run.model, run.val_loader, run.config, run.pictures, epoch,
            run.interrupt, run.vocoder,
        )  # fmt: skip
    row = {"epoch": epoch, "step": state.step, **train_means, **scores}
    if run.config.skip_nonfinite or run.accelerator.scaler is not None:
        row["skipped_steps"] = state.epoch_skipped
    row["learning_rate"] = learning_rate(state.step, epoch, run.config)
    history = [*state.history, row]
    if run.accelerator.is_main_process:
        print_epoch(row, state.epoch_skipped)
        if due:
            with going_on_without("loss.png"):
                draw_losses(run.pictures, history)
        run.tracking.log_epoch(row, media)
    judged = state.alignment_judged
    if scores and not judged and alignment_is_due(state.step, run.config):
        judged = True
        warning = missing_alignment(row, run.config)
        if warning and run.accelerator.is_main_process:
            print(warning, file=sys.stderr, flush=True)
    return state._replace(
        alignment_judged=judged,
        epoch=epoch,
        epoch_step=0,
        epoch_clips=0,
        epoch_losses=[0.0] * len(LOSSES),
        epoch_skipped=0,
        history=history,
    )


def save(run: Run, state: TrainerState, name: str, said: str = "checkpoint:") -> None:
    """Writes a checkpoint, says so and where, and removes those beyond --keep_checkpoints.

    Raises:
        DataError: on every process, when it cannot be written.
    """
    save_checkpoint(
        run.accelerator, run.folder / name, state, run.flags,
        run.audio_config, run.model_config, run.tokenizer,
    )  # fmt: skip
    if run.accelerator.is_main_process:
        print_saved(said, run.folder / name)
        if run.config.keep_checkpoints:
            prune_checkpoints(run.folder, run.config.keep_checkpoints)


def finish_pictures(run: Run, state: TrainerState) -> None:
    """The film, on the main process, and where all pictures are."""
    if run.accelerator.is_main_process:
        with going_on_without("the film"):
            text = run.tokenizer.decode(choose_sample(run.val_set).tokens)
            make_film(run.pictures, state.history, text, run.audio_config.hop_seconds)
        print(f"pictures and wavs: {run.pictures}", flush=True)


def train(run: Run, state: TrainerState) -> None:
    """The run from where it stands to `final_checkpoint`.

    Raises:
        DataError: for what the user can mend.
        Interrupted: when a signal ended the run.
    """
    config, accelerator = run.config, run.accelerator
    if accelerator.is_main_process:
        announce(run)
    saved_at = time.monotonic()
    while state.epoch < config.training_epochs:
        state, saved_at = train_epoch(run, state, saved_at)
        try:
            state = finish_epoch(run, state)
        except Interrupted:  # resuming goes on with this validation
            save_and_leave(run, state)
        except DataError as error:
            save_and_raise(run, state, error)
        except torch.cuda.OutOfMemoryError:
            sentence = (
                f"epoch {state.epoch + 1}: the GPU's memory ran out in its validation; lower "
                f"--free_running_clips, now {config.free_running_clips}, or --batch_size, now "
                f"{config.batch_size}"
            )
            save_and_raise(run, state, OutOfMemory(sentence))
        if is_new_best(state.history, state.best_epoch):
            state = state._replace(best_epoch=state.epoch)
            run.tracking.note_best(state.history[-1])
            score, loss = (state.history[-1][k] for k in ("free_running_score", "val_loss"))
            best = f"free-running score {score:.3f}, validation loss {loss:.3f}"
            save(run, state, "best_checkpoint", f"best so far: {best}, kept in")
        if state.epoch % config.checkpoint_epochs == 0:
            save(run, state, f"checkpoint_{state.epoch}")
            saved_at = time.monotonic()
    save(run, state, "final_checkpoint")
    finish_pictures(run, state)
    run.tracking.finish()
    end_group(accelerator)


@lasting_output()
def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    configs = parse_args(argv, __doc__.split("\n")[0])
    try:
        accelerator = make_accelerator()
        interrupt = Interrupt()
        with hold_folder(accelerator, configs.train.folder):
            run, state = prepare(configs, accelerator)
            train(run._replace(interrupt=interrupt), state)
    except Interrupted as stop:
        if PartialState().is_main_process:
            print(f"stopped, {stop} written: go on with --resume_from_checkpoint latest")
    except DataError as error:
        sys.exit(f"train_taco.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
