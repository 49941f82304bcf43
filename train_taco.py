"""Trains Tacotron 2 by teacher forcing, on one or many GPUs or on a CPU.

    accelerate launch train_taco.py --experiment_name tacotron2 --run_name first \
        --working_directory work_dir --save_audio_gen work_dir/samples \
        --path_to_train_manifest data/train_metadata.csv \
        --path_to_val_manifest data/test_metadata.csv

`train_taco.sh` shows every flag. Checkpoints go to WORKING_DIRECTORY/EXPERIMENT_NAME, pictures
and sounds of every validation to SAVE_AUDIO_GEN. The file reads in the order things happen:
learning rate, one step, an epoch, what follows it, the run.
"""

import contextlib
import json
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from torch import Tensor

from arguments import check_writable
from checkpoints import (
    TrainerState,
    choose_checkpoint,
    clear_remains,
    find_checkpoint_folders,
    list_changed_flags,
    load_checkpoint_state,
    prune_checkpoints,
    remove_checkpoint,
    save_checkpoint,
    warm_start,
)
from config import Configs, TrainConfig, parse_args
from dataset import Batch, DataError, TTSDataset
from model import Tacotron2
from reporting import (
    Meter,
    alignment_is_due,
    log_validation,
    make_film,
    missing_alignment,
    print_epoch,
    start_wandb,
)
from run_folder import hold_folder, on_main, seen_everywhere
from synthesize import read_config
from tokenizer import Tokenizer
from training_run import (
    LOSSES,
    Interrupt,
    Interrupted,
    Run,
    agree,
    count_frames,
    forward_losses,
    is_interrupted,
    leave,
    make_loader,
    raise_together,
    read_groups,
    remember,
)
from validation import judge_epoch


def learning_rate_factor(epoch: float, config: TrainConfig) -> float:
    """Share of learning_rate at a (fractional) epoch: constant, then exponential decay."""
    start = config.start_decay_epochs
    start = config.training_epochs / 2 if start is None else start
    progress = (epoch - start) / max(config.training_epochs - start, 1e-9)
    return (config.min_learning_rate / config.learning_rate) ** min(max(progress, 0.0), 1.0)


def save_and_raise(run: Run, state: TrainerState, error: DataError) -> NoReturn:
    """Ends the run, on every process, with a checkpoint of what came before the error.

    Raises:
        DataError: always.
    """
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
    leave(run.accelerator)
    raise Interrupted(name) from None


def train_step(run: Run, batches: list[Batch], step: int) -> tuple[dict[str, float], Tensor, float]:
    """One optimizer step on all of `batches`: losses by name, number of frames, gradient norm.

    The losses are means over the valid frames of all batches on all processes, so that neither
    how many processes there are nor how a batch is cut up changes the gradient. With
    --skip_nonfinite, a step that is skipped has no losses.

    Raises:
        DataError: on every process, when a loss or gradient is not finite, without
            --skip_nonfinite. The run then stands where it stood before the step.
    """
    n_frames = count_frames(run, batches)
    decay = 1.0 - step / max(run.config.guided_attention_steps, 1)
    guided_weight = run.config.guided_attention_weight * max(decay, 0.0)
    totals = torch.zeros(len(LOSSES), device=run.accelerator.device)
    put_back = remember(run)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last else run.accelerator.no_sync(run.model):
            # Processes average their gradients: each divides by its share of the frames.
            share = n_frames / run.accelerator.num_processes
            losses = forward_losses(run, batch, share, guided_weight)
            run.accelerator.backward(losses["loss"])
        totals += torch.stack([losses[name].detach() for name in LOSSES])
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
    run.optimizer.zero_grad()
    run.scheduler.step()
    return named_losses, n_frames, grad_norm


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


def train_epoch(run: Run, state: TrainerState, saved_at: float) -> tuple[TrainerState, float]:
    """What is left of an epoch, with the checkpoints that fall due in it.

    Args:
        saved_at: time.monotonic() of the last checkpoint, for --checkpoint_minutes; epochs may
            be shorter than those, so it goes in and comes out.

    Returns:
        The state at the epoch's end, and saved_at.

    Raises:
        Interrupted: when a signal asked for the end, after writing a checkpoint.
        DataError: when a clip cannot be read or a step is not finite, after writing a checkpoint.
    """
    config = run.config
    loader = make_loader(
        run,
        run.train_set,
        seed=config.seed,
        epoch=state.epoch,
        start_batch=state.epoch_step * config.gradient_accumulation_steps,
    )
    meter = Meter(
        run.accelerator, config, run.wandb, state.epoch, state.epoch_step, run.steps_per_epoch
    )
    for batches in read_groups(loader, config.gradient_accumulation_steps):
        minutes = (time.monotonic() - saved_at) / 60
        due = config.checkpoint_minutes is not None and minutes >= config.checkpoint_minutes
        broken = isinstance(batches, DataError)
        stop, due, broken = agree(run, is_interrupted(run), due, broken)
        if stop:
            save_and_leave(run, state)
        if due:
            save(run, state, f"checkpoint_{state.epoch}_step_{state.step}")
            saved_at = time.monotonic()
        try:
            if broken:
                raise_together(run, batches)
            losses, n_frames, grad_norm = train_step(run, batches, state.step)
        except DataError as error:
            save_and_raise(run, state, error)
        sums = state.epoch_losses
        if losses:
            sums = [a + b for a, b in zip(sums, losses.values(), strict=True)]
        state = state._replace(
            epoch_step=state.epoch_step + 1,
            step=state.step + 1,
            epoch_losses=sums,
            epoch_skipped=state.epoch_skipped + (not losses),
        )
        scalars = {"learning_rate": run.scheduler.get_last_lr()[0], "grad_norm": grad_norm}
        meter.update(state.epoch_step, state.step, losses, n_frames, scalars)
    meter.bar.close()
    return state, saved_at


def finish_epoch(run: Run, state: TrainerState) -> TrainerState:
    """Validation, pictures and logs after the last step of an epoch.

    Raises:
        DataError: on every process, when a clip cannot be read or a picture not be written.
        Interrupted: on every process, when a signal has come; nothing is written then.
    """
    epoch = state.epoch + 1
    n_steps = max(state.epoch_step - state.epoch_skipped, 1)
    train_means = {
        f"train_{name}": total / n_steps
        for name, total in zip(LOSSES, state.epoch_losses, strict=True)
    }
    scores, files = judge_epoch(run, epoch)
    row = {"epoch": epoch, "step": state.step, **train_means, **scores}
    if run.config.skip_nonfinite:
        row["skipped_steps"] = state.epoch_skipped
    row["learning_rate"] = run.scheduler.get_last_lr()[0]
    if run.accelerator.is_main_process:
        print_epoch(row, state.epoch_skipped)
        if run.wandb:
            log_validation(run.wandb, row, files, run.audio_config.sampling_rate)
    judged = state.alignment_judged
    if not judged and alignment_is_due(state.step, run.config):
        judged = True
        warning = missing_alignment(row, run.config)
        if warning and run.accelerator.is_main_process:
            print(warning, file=sys.stderr, flush=True)
    return state._replace(
        alignment_judged=judged,
        epoch=epoch,
        epoch_step=0,
        epoch_losses=[0.0] * len(LOSSES),
        epoch_skipped=0,
        history=[*state.history, row],
    )


def save(run: Run, state: TrainerState, name: str) -> None:
    """Writes a checkpoint of the run, then removes those beyond --keep_checkpoints.

    Raises:
        DataError: on every process, when it cannot be written.
    """
    save_checkpoint(
        run.accelerator, run.folder / name, state, asdict(run.config),
        run.audio_config, run.model_config, run.tokenizer,
    )  # fmt: skip
    if run.config.keep_checkpoints and run.accelerator.is_main_process:
        prune_checkpoints(run.folder, run.config.keep_checkpoints)


def choose_tokenizer(config: TrainConfig, resumed: Path | None) -> Tokenizer:
    """The symbols of the run resumed, of --path_to_symbols, of the warm start, or the built-in.

    Raises:
        DataError: when a file cannot be used.
    """
    if resumed:
        return read_config(resumed)[2]
    if path := config.path_to_symbols:
        try:
            return Tokenizer(json.loads(Path(path).read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            raise DataError(f"--path_to_symbols {path}: is not UTF-8 text") from None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"--path_to_symbols {path}: {error}") from None
    return read_config(config.warm_start)[2] if config.warm_start else Tokenizer()


def resume(run: Run, path: Path) -> TrainerState:
    """Puts the run back where the checkpoint left it, and says which flags have changed since.

    Raises:
        DataError: when the checkpoint cannot be used, or not with these flags.
    """
    changed = list_changed_flags(path, asdict(run.config))
    state = load_checkpoint_state(
        run.accelerator, path, run.audio_config, run.model_config, run.tokenizer
    )
    resumed_at = f"resumed from {path}: epoch {state.epoch}, step {state.step}"
    run.accelerator.print(resumed_at, *changed, sep="\n  ")
    if len(state.epoch_losses) != len(LOSSES):
        raise DataError(f"{path}: trainer_state.json: epoch_losses are not {len(LOSSES)}")
    return state


def build_run(configs: Configs, accelerator: Accelerator, resumed: Path | None) -> Run:
    """Data, model, optimizer and learning rate, as they stand before the first step.

    Raises:
        DataError: when a manifest, the symbols or a warm start cannot be used.
    """
    config, audio_config, model_config = configs
    tokenizer = choose_tokenizer(config, resumed)
    model_config = replace(model_config, vocab_size=tokenizer.vocab_size)
    train_set = TTSDataset(config.path_to_train_manifest, audio_config, tokenizer)
    val_set = TTSDataset(config.path_to_val_manifest, audio_config, tokenizer)
    set_seed(config.seed)
    model = Tacotron2(model_config)
    if config.warm_start and not resumed:
        allow = config.warm_start_allow_mismatch
        skipped = warm_start(model, Path(config.warm_start), audio_config, tokenizer, allow)
        accelerator.print(f"weights of {config.warm_start}", *skipped, sep="\n  left out: ")
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=config.learning_rate,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    run = Run(
        *(config, audio_config, model_config, tokenizer, accelerator),
        *(model, optimizer, None, train_set, val_set, None),
    )
    for dataset in (train_set, val_set):  # refuses what cannot be dealt to so many processes
        make_loader(run, dataset)
    steps_per_epoch = run.steps_per_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step / steps_per_epoch, config)
    )
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    return run._replace(model=model, optimizer=optimizer, scheduler=scheduler)


def prepare(configs: Configs, accelerator: Accelerator) -> tuple[Run, TrainerState]:
    """Everything a run needs, new or resumed.

    Raises:
        DataError: when a manifest or checkpoint cannot be used, or the folder is taken.
    """
    config = configs[0]
    folder = config.folder

    def choose() -> Path | None:
        check_writable("--save_audio_gen", config.save_audio_gen)
        clear_remains(folder)
        return choose_checkpoint(folder, config.resume_from_checkpoint, config.overwrite)

    chosen = on_main(accelerator, choose)
    with seen_everywhere(accelerator, chosen) as resumed:
        run = build_run(configs, accelerator, resumed)
        set_seed(config.seed, device_specific=True)  # each process draws its own dropout
        state = TrainerState(0, 0, 0, epoch_losses=[0.0] * len(LOSSES), history=[])
        if resumed:
            state = resume(run, resumed)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # only now that nothing stands against the run
        if not resumed:
            for path in find_checkpoint_folders(folder):
                remove_checkpoint(path)
        folder.mkdir(parents=True, exist_ok=True)
        Path(config.save_audio_gen).mkdir(parents=True, exist_ok=True)
    if config.log_wandb and accelerator.is_main_process:
        flags = {name: value for part in configs for name, value in asdict(part).items()}
        wandb_run = start_wandb(config.experiment_name, config.run_name, flags, state.wandb_run_id)
        run = run._replace(wandb=wandb_run)
        state = state._replace(wandb_run_id=run.wandb and run.wandb.id)
    return run, state


def train(run: Run, state: TrainerState) -> None:
    """The run from where it stands to `final_checkpoint`.

    Raises:
        DataError: for what the user can mend.
        Interrupted: when a signal ended the run.
    """
    config, accelerator = run.config, run.accelerator
    n_parameters = sum(p.numel() for p in run.model.parameters())
    accelerator.print(
        f"{n_parameters / 1e6:.1f} M parameters, {len(run.train_set):,} clips to train on, "
        f"{len(run.val_set):,} to validate on, {run.steps_per_epoch:,} steps an epoch, "
        f"{accelerator.num_processes} x {accelerator.device.type}, {accelerator.mixed_precision}"
    )
    saved_at = time.monotonic()
    while state.epoch < config.training_epochs:
        state, saved_at = train_epoch(run, state, saved_at)
        try:
            state = finish_epoch(run, state)
        except Interrupted:  # resuming goes on with this validation
            save_and_leave(run, state)
        except DataError as error:
            save_and_raise(run, state, error)
        score = state.history[-1]["free_score"]
        if score > state.best_score:
            state = state._replace(best_score=score)
            save(run, state, "best_checkpoint")
        if state.epoch % config.checkpoint_epochs == 0:
            save(run, state, f"checkpoint_{state.epoch}")
            saved_at = time.monotonic()
    save(run, state, "final_checkpoint")
    if accelerator.is_main_process:
        text = run.tokenizer.decode(run.sample.tokens)
        make_film(config.save_audio_gen, state.history, text, run.audio_config.hop_seconds)
        print(f"checkpoint: {run.folder / 'final_checkpoint'}")
        print(f"pictures and wavs: {config.save_audio_gen}")
    if run.wandb:
        run.wandb.finish()
    leave(accelerator)


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    configs = parse_args(argv, __doc__.split("\n")[0])
    try:
        accelerator = Accelerator(step_scheduler_with_optimizer=False)
        interrupt = Interrupt()
        with hold_folder(accelerator, configs[0].folder):
            run, state = prepare(configs, accelerator)
            train(run._replace(interrupt=interrupt), state)
    except Interrupted as stop:
        if PartialState().is_main_process:
            print(f"stopped, {stop} written: go on with --resume_from_checkpoint latest")
    except (DataError, OSError) as error:
        sys.exit(f"train_taco.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
