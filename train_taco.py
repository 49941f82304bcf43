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
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader

from checkpoints import read_config, warm_start
from config import MAX_WORKERS, Configs, TrainConfig, parse_args
from dataset import AudioConfig, Batch, BatchSampler, TTSCollator, TTSDataset
from fast_decoder import speed_up
from files import DataError, check_writable, file_errors, read_json
from model import Tacotron2, Tacotron2Config, tacotron2_loss
from processes import (
    Interrupt,
    Interrupted,
    any_process,
    end_group,
    hold_folder,
    is_interrupted,
    on_main,
    raise_together,
    read_groups,
    refuse_sharding,
    seen_everywhere,
)
from reporting import (
    Meter,
    alignment_is_due,
    log_validation,
    make_film,
    missing_alignment,
    print_epoch,
    start_wandb,
)
from resuming import (
    RANDOM_STATES_FILE,
    STATE_FILE,
    TrainerState,
    check_place,
    choose_checkpoint,
    clear_remains,
    enter_epoch,
    find_checkpoint_folders,
    list_changed_flags,
    load_checkpoint_state,
    prune_checkpoints,
    read_state,
    remove_checkpoint,
    save_checkpoint,
)
from tokenizer import Tokenizer
from validation import LOSSES, choose_sample, judge_epoch

# Of fp16. A scale too high for the gradients is found within some twenty steps; one below 1 would
# make gradients smaller than they are.
MAX_SKIPPED_IN_A_ROW = 50
MIN_LOSS_SCALE = 1.0
MAX_PARAMETERS = 10**9  # 4 GB in float32
VALIDATION_WORKERS = 4  # at most; each reads some 200 clips a second (benchmarks/loader.py)


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    audio_config: AudioConfig
    model_config: Tacotron2Config
    tokenizer: Tokenizer
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    train_set: TTSDataset
    val_set: TTSDataset
    train_loader: DataLoader  # its BatchSampler goes from epoch to epoch
    val_loader: DataLoader
    wandb: Any  # wandb's run on the main process with --log_wandb, else None
    interrupt: Interrupt | None = None  # None: nobody listens for signals

    @property
    def folder(self) -> Path:
        """Of the checkpoints."""
        return self.config.folder

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps, the last one perhaps of fewer clips."""
        clips = self.config.batch_size * self.accelerator.num_processes
        n_batches = -(-len(self.train_set) // clips)
        return -(-n_batches // self.config.gradient_accumulation_steps)


def make_loader(
    run: Run, dataset: TTSDataset, max_workers: int = MAX_WORKERS, **order: Any
) -> DataLoader:
    """Batches of this process, in the order that BatchSampler draws from `order`.

    Its processes start with the first iteration and live as long as the loader does.
    """
    sampler = BatchSampler(
        dataset.n_frames,
        run.config.batch_size,
        num_processes=run.accelerator.num_processes,
        process_index=run.accelerator.process_index,
        **order,
    )
    num_workers = min(run.config.num_workers, max_workers)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=TTSCollator(run.audio_config, run.tokenizer),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=run.accelerator.device.type == "cuda",
        # Its own generator: making a loader must not move the random numbers of training.
        generator=torch.Generator(),
    )


def learning_rate(epoch: float, config: TrainConfig) -> float:
    """At a (fractional) epoch: constant, then exponential decay."""
    start = config.start_decay_epochs
    start = config.training_epochs / 2 if start is None else start
    progress = (epoch - start) / max(config.training_epochs - start, 1e-9)
    ratio = config.min_learning_rate / config.learning_rate
    return config.learning_rate * ratio ** min(max(progress, 0.0), 1.0)


def set_optimizer(run: Run, **options: float) -> None:
    """Sets lr, eps or weight_decay for all parameters."""
    for group in run.optimizer.param_groups:
        group.update(options)


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
    end_group(run.accelerator)
    raise Interrupted(name) from None


def count_frames(run: Run, batches: list[Batch]) -> Tensor:
    """Valid frames in these batches on all processes together, as a tensor on the device."""
    count = float(sum(int(b.mel_lengths.sum()) for b in batches))
    # Filled on the device: copying a number there would wait for all that is queued on it.
    return run.accelerator.reduce(torch.full((), count, device=run.accelerator.device), "sum")


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


def train_step(run: Run, batches: list[Batch], step: int) -> tuple[dict[str, float], Tensor, float]:
    """One optimizer step on all of `batches`: losses by name, number of frames, gradient norm.

    The losses are means over the valid frames of all batches on all processes, so that neither
    how many processes there are nor how a batch is cut up changes the gradient. A step that
    --skip_nonfinite or fp16's loss scaling skips has no losses.

    Raises:
        DataError: on every process, when a loss or gradient is not finite, without
            --skip_nonfinite. The run then stands where it stood before the step.
    """
    n_frames = count_frames(run, batches)
    decay = 1.0 - step / max(run.config.guided_attention_steps, 1)
    guided_weight = run.config.guided_attention_weight * max(decay, 0.0)
    totals = torch.zeros(len(LOSSES), device=run.accelerator.device)
    put_back = take_snapshot(run)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last else run.accelerator.no_sync(run.model):
            # Processes average their gradients: each divides by its share of the frames.
            share = n_frames / run.accelerator.num_processes
            batch = batch.to(run.accelerator.device)
            output = run.model(*batch[:4])  # tokens, token_lengths, mels, mel_lengths
            losses = tacotron2_loss(
                output, batch.mels, batch.token_lengths, batch.mel_lengths, batch.stop_targets,
                guided_weight, run.config.guided_attention_sigma, share,
            )  # fmt: skip
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
        if run.accelerator.optimizer_step_was_skipped:
            named_losses = {}
    run.optimizer.zero_grad()
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
    batch_sizes = iter(run.train_loader.batch_sampler.batch_sizes)
    n_steps = state.epoch_step + -(-len(run.train_loader) // config.gradient_accumulation_steps)
    meter = Meter(run.accelerator, config, run.wandb, state.epoch, state.epoch_step, n_steps)
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
        try:
            if broken:
                raise_together(run.accelerator, batches)
            rate = learning_rate(state.epoch + state.epoch_clips / len(run.train_set), config)
            set_optimizer(run, lr=rate)
            losses, n_frames, grad_norm = train_step(run, batches, state.step)
        except DataError as error:
            save_and_raise(run, state, error)
        sums = state.epoch_losses
        if losses:
            sums = [a + b for a, b in zip(sums, losses.values(), strict=True)]
        state = state._replace(
            epoch_step=state.epoch_step + 1,
            epoch_clips=state.epoch_clips + sum(islice(batch_sizes, len(batches))),
            step=state.step + 1,
            epoch_losses=sums,
            epoch_skipped=state.epoch_skipped + (not losses),
            skipped_in_a_row=0 if losses else state.skipped_in_a_row + 1,
        )
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
    scores, files = {}, {}
    if due:
        scores, files = judge_epoch(
            run.accelerator, run.model, run.val_loader, run.config, epoch, run.interrupt
        )
    row = {"epoch": epoch, "step": state.step, **train_means, **scores}
    if run.config.skip_nonfinite or run.accelerator.scaler is not None:
        row["skipped_steps"] = state.epoch_skipped
    row["learning_rate"] = learning_rate(epoch, run.config)
    if run.accelerator.is_main_process:
        print_epoch(row, state.epoch_skipped)
        if run.wandb:
            log_validation(run.wandb, row, files, run.audio_config.sampling_rate)
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
        symbols = read_json(path, f"--path_to_symbols {path}")
        try:
            return Tokenizer(symbols)
        except ValueError as error:
            raise DataError(f"--path_to_symbols {path}: {error}") from None
    return read_config(config.warm_start)[2] if config.warm_start else Tokenizer()


def resume(run: Run, path: Path) -> TrainerState:
    """Puts the run back where the checkpoint left it, and says what has changed since.

    Raises:
        DataError: when the checkpoint cannot be used, or not with these flags.
    """
    config, accelerator = run.config, run.accelerator
    changed = list_changed_flags(path, asdict(config))
    state, saved_flags = read_state(path)
    if len(state.epoch_losses) != len(LOSSES):
        raise DataError(f"{path}: trainer_state.json: epoch_losses are not {len(LOSSES)}")
    sampler = run.train_loader.batch_sampler
    state = check_place(path, state, saved_flags, sampler, config.path_to_train_manifest)
    state = enter_epoch(sampler, state)
    # For a process that the checkpoint has no random state of: it had fewer.
    source = np.random.SeedSequence([config.seed, accelerator.process_index, state.step])
    set_seed(int(source.generate_state(1)[0]))
    load_checkpoint_state(accelerator, path, run.audio_config, run.model_config, run.tokenizer)
    set_optimizer(run, eps=config.adam_eps, weight_decay=config.weight_decay)
    if state.order_recut:
        changed.append(
            f"the {sum(sampler.batch_sizes)} clips that are left of the epoch are in batches of "
            f"{sampler.total_batch_size} over all processes; it began with {state.order_batch_size}"
        )
    files = [RANDOM_STATES_FILE.format(i) for i in range(accelerator.num_processes)]
    n_new = sum(not (path / file).is_file() for file in files)
    if n_new:
        changed.append(
            f"random numbers: {n_new} of {len(files)} processes had none there, and draw from "
            "--seed, their own number and the step"
        )
    resumed_at = f"resumed from {path}: epoch {state.epoch}, step {state.step}"
    accelerator.print(resumed_at, *changed, sep="\n  ")
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
    with torch.device("meta"):  # counted before any memory is taken
        n_parameters = sum(p.numel() for p in Tacotron2(model_config).parameters())
    if n_parameters > MAX_PARAMETERS:
        raise DataError(
            f"the sizes make a model of {n_parameters:,} parameters, at most {MAX_PARAMETERS:,} "
            "can be; the defaults have some 28,000,000"
        )
    set_seed(config.seed)
    model = Tacotron2(model_config)
    if config.fast_decoder:
        model = speed_up(model)
    if config.warm_start and not resumed:
        allow = config.warm_start_allow_mismatch
        skipped = warm_start(model, Path(config.warm_start), audio_config, tokenizer, allow)
        accelerator.print(f"weights of {config.warm_start}", *skipped, sep="\n  left out: ")
    if config.sync_batch_norm:
        model = synchronize_batch_norm(model, accelerator)
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=config.learning_rate,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    run = Run(
        *(config, audio_config, model_config, tokenizer, accelerator),
        *(model, optimizer, train_set, val_set, None, None, None),
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    return run._replace(
        model=model,
        optimizer=optimizer,
        train_loader=make_loader(run, train_set, seed=config.seed),
        val_loader=make_loader(run, val_set, VALIDATION_WORKERS, shuffle=False),
    )


def prepare(configs: Configs, accelerator: Accelerator) -> tuple[Run, TrainerState]:
    """Everything a run needs, new or resumed.

    Raises:
        DataError: when a manifest or checkpoint cannot be used, the folder is taken, or one
            cannot be written to.
    """
    config = configs[0]
    folder = config.folder

    def choose() -> Path | None:
        check_writable("--save_audio_gen", config.save_audio_gen)
        clear_remains(folder)
        return choose_checkpoint(folder, config.resume_from_checkpoint, config.overwrite)

    chosen = on_main(accelerator, choose)
    with seen_everywhere(accelerator, chosen, STATE_FILE) as resumed:
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
        with file_errors():
            folder.mkdir(parents=True, exist_ok=True)
            Path(config.save_audio_gen).mkdir(parents=True, exist_ok=True)
    if config.log_wandb and accelerator.is_main_process:
        flags = {name: value for part in configs for name, value in asdict(part).items()}
        wandb_run = start_wandb(config.experiment_name, config.run_name, flags, state.wandb_run_id)
        run = run._replace(wandb=wandb_run)
        state = state._replace(wandb_run_id=run.wandb and run.wandb.id)
    return run, state


def synchronize_batch_norm(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """The model with the means and variances of batch norm taken over all GPUs together.

    Parameters, buffers and their names stay as they are.

    Raises:
        DataError: for several processes on a CPU, where torch cannot do it.
    """
    if accelerator.num_processes == 1:
        print("--sync_batch_norm: one process, whose batch norm sees the whole batch as it is")
        return model
    if accelerator.device.type != "cuda":
        raise DataError(
            f"--sync_batch_norm is for GPUs, found {accelerator.num_processes} processes on "
            f"{accelerator.device.type}"
        )
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def describe_batch(run: Run) -> str:
    """Devices, clips on each and clips of one optimizer step, as one line."""
    device, n = run.accelerator.device, run.accelerator.num_processes
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    size, accumulated = run.config.batch_size, run.config.gradient_accumulation_steps
    return (
        f"{n} {'process' if n == 1 else 'processes'} ({name}) x {size} clips a batch x "
        f"{accumulated} accumulated = {n * size * accumulated} clips a step"
    )


def announce(run: Run) -> None:
    """Says what is about to be trained, on how much, and what of the texts gets lost."""
    n_parameters = sum(p.numel() for p in run.model.parameters())
    print(
        f"{n_parameters / 1e6:.1f} M parameters, {len(run.train_set):,} clips to train on, "
        f"{len(run.val_set):,} to validate on, {run.steps_per_epoch:,} steps an epoch, "
        f"mixed precision: {run.accelerator.mixed_precision}"
    )
    print(describe_batch(run), flush=True)
    unknown = run.tokenizer.describe_unknown([*run.train_set.texts, *run.val_set.texts])
    if unknown:
        print(unknown, file=sys.stderr, flush=True)


def make_accelerator() -> Accelerator:
    """Accelerate's view of the devices and the precision that the launcher chose.

    Raises:
        DataError: when the launcher asks for what this training cannot do.
    """
    refuse_sharding()
    accelerator = Accelerator()
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise DataError(
            "--mixed_precision fp16 needs a GPU: on a CPU nothing scales the loss, and gradients "
            "are lost; use --mixed_precision bf16 or no"
        )
    return accelerator


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
        score = state.history[-1].get("free_score", -1.0)  # an epoch may have no validation
        if score > state.best_score:
            state = state._replace(best_score=score)
            save(run, state, "best_checkpoint")
        if state.epoch % config.checkpoint_epochs == 0:
            save(run, state, f"checkpoint_{state.epoch}")
            saved_at = time.monotonic()
    save(run, state, "final_checkpoint")
    if accelerator.is_main_process:
        try:
            text = run.tokenizer.decode(choose_sample(run.val_set).tokens)
            make_film(config.save_audio_gen, state.history, text, run.audio_config.hop_seconds)
        except (DataError, OSError) as error:
            print(f"train_taco.py: the film cannot be written: {error}", file=sys.stderr)
        print(f"checkpoint: {run.folder / 'final_checkpoint'}")
        print(f"pictures and wavs: {config.save_audio_gen}")
    if run.wandb:
        run.wandb.finish()
    end_group(accelerator)


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    configs = parse_args(argv, __doc__.split("\n")[0])
    try:
        accelerator = make_accelerator()
        interrupt = Interrupt()
        with hold_folder(accelerator, configs[0].folder):
            run, state = prepare(configs, accelerator)
            train(run._replace(interrupt=interrupt), state)
    except Interrupted as stop:
        if PartialState().is_main_process:
            print(f"stopped, {stop} written: go on with --resume_from_checkpoint latest")
    except DataError as error:
        sys.exit(f"train_taco.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
