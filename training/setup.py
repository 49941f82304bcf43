"""A run before its first step: data, model, optimizer and loaders, new or as a checkpoint has them.

`prepare` makes the Run and the TrainerState that train_taco.py's steps and epochs work with. Apart
from it, because what a learner reads is the step and the epoch.
"""

import json
import sys
import zlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader

from command_line.files import DataError, check_writable, file_errors, read_json
from dataset import AudioConfig, BatchSampler, TTSCollator, TTSDataset
from fast.decoder import speed_up
from model import Tacotron2, Tacotron2Config
from speech.hub import find_checkpoint
from speech.vocoder import Vocoder, load_vocoder
from speech.voice import outline_model, read_config, warm_start
from text.phonemes import load_dictionary
from text.tokenizer import Tokenizer
from training.checkpoints import (
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
    read_flags,
    read_state,
    remove_checkpoint,
)
from training.config import MAX_WORKERS, Configs, TrainConfig
from training.processes import Interrupt, on_main, raise_together, refuse_sharding, seen_everywhere
from training.reporting import choose_pictures_folder, claim_pictures_folder
from training.tracking import Tracking, clear_events, describe_run, start_tracking
from training.validation import LOSSES, count_free_running_clips

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
    tracking: Tracking  # has trackers on the main process only
    interrupt: Interrupt | None = None  # None: nobody listens for signals
    pictures: Path | None = None  # folder of pictures and sounds, once it is chosen
    vocoder: Vocoder | None = None  # of the sounds; None for Griffin-Lim

    @property
    def folder(self) -> Path:
        """Of the checkpoints."""
        return self.config.folder

    @property
    def flags(self) -> dict[str, Any]:
        """The flags of the run, with those of the launcher that change what comes out."""
        launcher = {
            "mixed_precision": self.accelerator.mixed_precision,
            "num_processes": self.accelerator.num_processes,
        }
        return {**asdict(self.config), **launcher}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps, the last one perhaps of fewer clips."""
        clips = self.config.batch_size * self.accelerator.num_processes
        n_batches = -(-len(self.train_set) // clips)
        return -(-n_batches // self.config.gradient_accumulation_steps)


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


def open_loader(
    dataset: TTSDataset, batches: Iterable[list[int]], num_workers: int, device: torch.device
) -> DataLoader:
    """Collated batches of these clips, on the way to `device`.

    Its processes start with the first iteration and live as long as the loader does.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=TTSCollator(dataset.audio_config, dataset.tokenizer),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        # Its own generator: making a loader must not move the random numbers of training.
        generator=torch.Generator(),
    )


def make_loader(
    run: Run, dataset: TTSDataset, max_workers: int = MAX_WORKERS, **order: Any
) -> DataLoader:
    """Batches of this process, in the order that BatchSampler draws from `order`.

    Raises:
        DataError: when there are too few clips for the processes.
    """
    try:
        sampler = BatchSampler(
            dataset.n_frames,
            run.config.batch_size,
            num_processes=run.accelerator.num_processes,
            process_index=run.accelerator.process_index,
            **order,
        )
    except DataError as error:
        raise DataError(f"{dataset.manifest}: {error}") from None
    num_workers = min(run.config.num_workers, max_workers)
    return open_loader(dataset, sampler, num_workers, run.accelerator.device)


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


def take_sizes(configs: Configs, path: Path) -> Configs:
    """The sizes and audio settings of a checkpoint, but for those that the command line gives.

    Raises:
        DataError: when it cannot be read, or the flags do not fit it.
    """
    saved_model, saved_audio, _ = read_config(path)
    parts = []
    for own, saved in ((configs.audio, saved_audio), (configs.model, saved_model)):
        given = {name: value for name, value in asdict(own).items() if name in configs.given}
        try:
            parts.append(replace(saved, **given))
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
    return configs._replace(audio=parts[0], model=parts[1])


def take_flags(configs: Configs, resumed: Path) -> Configs:
    """The flags of the run that is resumed, but for those that the command line gives.

    Raises:
        DataError: when they cannot be read, or do not go with those of the command line.
    """
    saved = read_flags(resumed, configs.given)
    try:
        return configs._replace(train=replace(configs.train, **saved))
    except ValueError as error:
        raise DataError(f"{resumed}: {error}") from None


def choose_tokenizer(configs: Configs, resumed: Path | None) -> Tokenizer:
    """The symbols of the run resumed, of --path_to_symbols, of the warm start, or the built-in.

    Those of --extra_symbols are added, and with --phonemes those of ARPAbet unless there are some.
    The cleaner is --cleaner, or the warm start's where that flag is not given.

    Raises:
        DataError: when a file cannot be used, or the run resumed lacks symbols that are asked for.
    """
    config = configs.train
    if resumed:
        tokenizer = Tokenizer(read_config(resumed)[2].symbols, config.cleaner)
        extended = add_symbols(tokenizer, config)
        if extended is not tokenizer:
            lacking = extended.symbols[tokenizer.vocab_size :]
            flag = "phonemes" if len(lacking[-1]) > 1 else "extra_symbols"
            raise DataError(
                f"--{flag}: the symbols of {resumed} lack {' '.join(lacking)[:40]}, and cannot "
                "change in the course of a run; --warm_start takes its weights into a new one"
            )
        return tokenizer
    begun_with = read_config(config.warm_start)[2] if config.warm_start else Tokenizer()
    symbols, cleaner = begun_with.symbols, begun_with.cleaner
    if path := config.path_to_symbols:
        symbols = read_json(path, f"--path_to_symbols {path}")
    if "cleaner" in configs.given:
        cleaner = config.cleaner
    try:
        tokenizer = Tokenizer(symbols, cleaner)
    except ValueError as error:
        raise DataError(f"--path_to_symbols {path}: {error}") from None
    return add_symbols(tokenizer, config)


def add_symbols(tokenizer: Tokenizer, config: TrainConfig) -> Tokenizer:
    """With the symbols of --extra_symbols and --phonemes; itself if it lacks none of them."""
    tokenizer = tokenizer.with_characters(config.extra_symbols or "")
    return tokenizer.with_phonemes() if config.phonemes else tokenizer


def refuse_other_clips(train_set: TTSDataset, val_set: TTSDataset) -> None:
    """A collective call: machines without a shared disk each read a manifest of their own.

    Raises:
        DataError: on every process, when one of them has other lengths or texts.
    """
    content = json.dumps([[clips.n_frames, clips.texts] for clips in (train_set, val_set)])
    found = gather_object([(len(train_set), len(val_set), zlib.crc32(content.encode()))])
    if len(set(found)) > 1:
        sizes = ", ".join(f"{n} and {m}" for n, m, _ in found)
        raise DataError(
            "the manifests differ between the processes, which must have the same clips: clips to "
            f"train and to validate on, by process: {sizes}"
        )


def build_run(configs: Configs, accelerator: Accelerator, resumed: Path | None) -> Run:
    """Data, model, optimizer and learning rate, as they stand before the first step.

    Raises:
        DataError: when a manifest, the symbols or a warm start cannot be used.
    """
    config = configs.train
    if config.warm_start and not resumed:
        config = replace(config, warm_start=str(find_checkpoint(config.warm_start)))
        configs = configs._replace(train=config)
    source = resumed or (Path(config.warm_start) if config.warm_start else None)
    if source:
        configs = take_sizes(configs, source)
    _, audio_config, model_config, _ = configs
    tokenizer = choose_tokenizer(configs, resumed)
    config = replace(config, cleaner=tokenizer.cleaner)
    model_config = replace(model_config, vocab_size=tokenizer.vocab_size)
    dictionary = load_dictionary() if config.phonemes else None
    train_set = TTSDataset(
        config.path_to_train_manifest, audio_config, tokenizer, dictionary, config.seed
    )
    val_set = TTSDataset(
        config.path_to_val_manifest, audio_config, tokenizer,
        None if tokenizer.has_letters else dictionary,
    )  # fmt: skip
    refuse_other_clips(train_set, val_set)
    if config.free_running_clips is None:
        n_clips = count_free_running_clips(train_set, val_set)
        config = replace(config, free_running_clips=n_clips)
    outline_model(model_config)  # refuses what is too large before it takes memory
    set_seed(config.seed)
    model = Tacotron2(model_config)
    if config.fast_decoder:
        model = speed_up(model)
    if config.warm_start and not resumed:
        allow = config.warm_start_allow_mismatch
        differences = warm_start(model, Path(config.warm_start), audio_config, tokenizer, allow)
        accelerator.print(f"weights of {config.warm_start}", *differences, sep="\n  ")
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
        *(model, optimizer, train_set, val_set, None, None, Tracking()),
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    return run._replace(
        model=model,
        optimizer=optimizer,
        train_loader=make_loader(
            run, train_set, seed=config.seed, short_first_epochs=config.short_first_epochs
        ),
        val_loader=make_loader(run, val_set, VALIDATION_WORKERS, shuffle=False),
    )


def open_vocoder(run: Run) -> Vocoder | None:
    """What makes the sounds of --vocoder, on the main process; every process calls this.

    Raises:
        DataError: on every process, when the folder cannot be used.
    """
    vocoder = None
    if run.config.vocoder and run.accelerator.is_main_process:
        try:
            vocoder = load_vocoder(run.config.vocoder, run.audio_config, run.accelerator.device)
        except DataError as error:
            vocoder = error
    raise_together(run.accelerator, vocoder)
    return vocoder


def set_optimizer(run: Run, **options: float) -> None:
    """Sets lr, eps or weight_decay for all parameters."""
    for group in run.optimizer.param_groups:
        group.update(options)


def holds_best(path: Path, state: TrainerState) -> bool:
    """Whether the weights of best_epoch are in `path`; also where no epoch has been the best."""
    if not state.best_epoch:
        return True
    try:
        last = read_state(path)[0].history[-1:]
    except DataError:
        return False
    return last == [row for row in state.history if row["epoch"] == state.best_epoch]


def resume(run: Run, path: Path) -> TrainerState:
    """Puts the run back where the checkpoint left it, and says what has changed since.

    Raises:
        DataError: when the checkpoint cannot be used, or not with these flags.
    """
    config, accelerator = run.config, run.accelerator
    changed = list_changed_flags(path, run.flags)
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
    if not on_main(accelerator, lambda: holds_best(run.folder / "best_checkpoint", state)):
        state = state._replace(best_epoch=0)
        changed.append(
            "best_checkpoint: not this run's, or gone; the next epoch judged replaces it"
        )
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


def prepare(configs: Configs, accelerator: Accelerator) -> tuple[Run, TrainerState]:
    """Everything a run needs, new or resumed.

    Raises:
        DataError: when a manifest or checkpoint cannot be used, the folder is taken, or one
            cannot be written to.
    """
    config = configs.train
    folder = config.folder

    def choose() -> tuple[Path | None, Path]:
        check_writable("--save_audio_gen", config.save_audio_gen)
        clear_remains(folder)
        chosen = choose_checkpoint(folder, config.resume_from_checkpoint, config.overwrite)
        return chosen, choose_pictures_folder(config, is_new=chosen is None)

    chosen, pictures = on_main(accelerator, choose)
    with seen_everywhere(accelerator, chosen, STATE_FILE) as resumed:
        if resumed:
            configs = take_flags(configs, resumed)
            config = configs.train
        run = build_run(configs, accelerator, resumed)
        run = run._replace(pictures=pictures, vocoder=open_vocoder(run))
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
            if resumed is None:
                clear_events(folder)
            folder.mkdir(parents=True, exist_ok=True)
            claim_pictures_folder(pictures, folder, is_new=resumed is None)
    if accelerator.is_main_process:
        flags = {**run.flags, **asdict(run.audio_config), **asdict(run.model_config)}
        flags |= describe_run(run.model, run.train_set, run.val_set)
        tracking = start_tracking(config, flags, state.step, state.wandb_run_id)
        run = run._replace(tracking=tracking)
        state = state._replace(wandb_run_id=tracking.wandb_run_id or state.wandb_run_id)
    return run, state


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
        f"{len(run.val_set):,} to validate on ({run.config.free_running_clips:,} of them spoken "
        f"freely), {run.steps_per_epoch:,} steps an epoch, "
        f"mixed precision: {run.accelerator.mixed_precision}"
    )
    print(describe_batch(run), flush=True)
    texts = [*run.train_set.texts, *run.val_set.texts]
    if unknown := run.tokenizer.describe_unknown(texts):
        print(unknown, file=sys.stderr, flush=True)
    if folded := run.tokenizer.describe_folded(texts):
        hint = "--extra_symbols adds symbols for them"
        print(f"{folded}; {hint}", file=sys.stderr, flush=True)
