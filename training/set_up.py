"""Set up a run before its first step: data, model, optimizer and loaders, new or resumed."""

import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from command_line.files import DataError, check_writable, read_json, write_text
from command_line.flags import FlagParser
from command_line.main import say, warn
from dataset import AudioConfig, Batch, BatchSampler, TTSCollator, TTSDataset
from fast.decoder import speed_up
from model import Tacotron2
from speech.hub import find_checkpoint
from speech.vocoder import choose_vocoder
from speech.voice import outline_model, read_config, warm_start
from text.espeak import choose_voice
from text.lexicon import read_lexicon
from text.phonemes import load_dictionary
from text.tokenizer import DEFAULT_SYMBOLS, ESPEAK_SYMBOLS, Tokenizer
from training.checkpoints import (
    choose_checkpoint,
    clear_remains,
    copy_weights,
    describe_changed_flags,
    find_checkpoint_folders,
    load_run_state,
    read_flags,
    read_state,
    remove_checkpoint,
)
from training.config import Configs, TrainConfig, make_configs
from training.pictures import remove_pictures
from training.processes import Interrupt, leave_process_group, on_main
from training.progress import Progress
from training.run import Run
from training.state import TrainerState
from training.tracking import Tracking, remove_events
from training.validation import count_free_running_clips

OWNER_FILE = "run.txt"  # beside the pictures: the folder of the run that they are of
VALIDATION_WORKERS = 4  # at most; each reads some 300 clips a second (benchmarks/loader.py)


def set_up(
    accelerator: Accelerator, parser: FlagParser, argv: list[str] | None
) -> tuple[Run, TrainerState]:
    """Set up everything that a run needs, new or resumed.

    Raises:
        DataError: when a manifest or checkpoint cannot be used, or a folder cannot be written to.
    """
    args = parser.parse_args(argv)
    folder = Path(args.working_directory) / args.experiment_name
    resumed = on_main(accelerator, lambda: find_start(folder, args))
    if resumed:
        parser.set_defaults(**read_flags(resumed))
    begun_with = resumed or (args.warm_start and find_checkpoint(args.warm_start))
    if begun_with:
        model_config, audio_config, tokenizer, *_ = read_config(begun_with)
        parser.set_defaults(**asdict(model_config) | asdict(audio_config))
        if not resumed and not tokenizer.language:
            parser.set_defaults(cleaner=tokenizer.cleaner)
        if tokenizer.language and args.phonemes in (None, "espeak"):
            parser.set_defaults(phonemes="espeak", language=tokenizer.language)
    configs = make_configs(parser, parser.parse_args(argv))
    run = build_run(configs, accelerator, begun_with, is_new=resumed is None)
    set_seed(run.config.seed, device_specific=True)  # each process draws its own dropout
    state = resume(run, resumed) if resumed else TrainerState()
    on_main(accelerator, lambda: clear_folders(run, is_new=resumed is None))
    if run.is_main:  # last, when nothing can refuse the run any more
        start_showing(run, state)
    return run, state


def find_start(folder: Path, args: Any) -> Path | None:
    """Find the checkpoint that the run resumes from; None for a new run."""
    check_writable("--save_audio_gen", args.save_audio_gen)
    if args.cache_mels:
        check_writable("--cache_mels", args.cache_mels)
    clear_remains(folder)
    owner = Path(args.save_audio_gen) / args.experiment_name / OWNER_FILE
    other = Path(owner.read_text(encoding="utf-8")) if owner.is_file() else folder.absolute()
    if other != folder.absolute() and find_checkpoint_folders(other):
        raise DataError(
            f"--save_audio_gen {args.save_audio_gen}: {owner.parent} has pictures of the run in "
            f"{other}; give another folder or another --experiment_name"
        )
    return choose_checkpoint(folder, args.resume_from_checkpoint, args.overwrite)


def clear_folders(run: Run, is_new: bool) -> None:
    """Make the folder of the pictures; for a new run, remove the files of an earlier one."""
    if is_new:
        for path in find_checkpoint_folders(run.folder):
            remove_checkpoint(path)
        remove_pictures(run.pictures)
        remove_events(run.folder)
    write_text(run.pictures / OWNER_FILE, str(run.folder.absolute()))


def choose_tokenizer(config: TrainConfig, begun_with: Path | None, is_new: bool) -> Tokenizer:
    """Choose the table of symbols: the checkpoint's, --path_to_symbols, or the built-in one.

    --extra_symbols adds its symbols, and --phonemes cmudict those of ARPAbet. --phonemes espeak has
    a table of its own. The checkpoint's lexicon stays, unless it is of letters and this of IPA.

    Raises:
        DataError: when a file cannot be used, or a resumed run lacks symbols that are asked for.
    """
    saved = read_config(begun_with).tokenizer if begun_with else None
    language = config.language or ""
    if not saved or (is_new and bool(saved.language) != bool(language)):
        saved = Tokenizer(ESPEAK_SYMBOLS if language else DEFAULT_SYMBOLS)
    symbols = saved.symbols
    if is_new and (path := config.path_to_symbols):
        symbols = read_json(path, f"--path_to_symbols {path}")
    try:
        cleaner = "basic" if language else config.cleaner
        tokenizer = Tokenizer(symbols, cleaner, language, saved.lexicon)
    except ValueError as error:
        raise DataError(f"--path_to_symbols {config.path_to_symbols}: {error}") from None
    extended = tokenizer.with_characters(config.extra_symbols or "")
    extended = extended.with_phonemes() if config.phonemes == "cmudict" else extended
    if not is_new and extended.vocab_size > tokenizer.vocab_size:
        missing = extended.symbols[tokenizer.vocab_size :]
        flag = "phonemes" if len(missing[-1]) > 1 else "extra_symbols"
        raise DataError(
            f"--{flag}: the symbols of {begun_with} lack {' '.join(missing)[:40]}, and cannot "
            "change in the course of a run; --warm_start takes its weights into a new one"
        )
    if language:
        choose_voice(language)  # refuses one that espeak-ng lacks
    if config.lexicon:
        extended = extended.with_lexicon(read_lexicon(config.lexicon, extended))
    return extended


def make_loader(
    dataset: TTSDataset,
    config: TrainConfig,
    accelerator: Accelerator,
    n_workers: int,
    tail_frames: int = 0,
    **order: Any,
) -> DataLoader:
    """Make a loader of this process's batches, in the order that BatchSampler draws.

    Raises:
        DataError: when there are too few clips for the processes.
    """
    try:
        sampler = BatchSampler(
            dataset.n_frames,
            config.batch_size,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
            **order,
        )
    except DataError as error:
        raise DataError(f"{dataset.manifest}: {error}") from None
    return open_loader(dataset, sampler, n_workers, accelerator.device, tail_frames)


def open_loader(
    dataset: TTSDataset,
    batches: Iterable[list[int]],
    n_workers: int,
    device: torch.device,
    tail_frames: int = 0,
) -> DataLoader:
    """Make a loader of collated batches; its processes live as long as it does."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=TTSCollator(dataset.audio_config, dataset.tokenizer, tail_frames),
        num_workers=n_workers,
        worker_init_fn=leave_process_group,
        persistent_workers=n_workers > 0,
        pin_memory=device.type == "cuda",
        # With its own generator, a loader draws none of training's random numbers.
        generator=torch.Generator(),
    )


def group_batches(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches, one optimizer step each; the last one may be shorter."""
    batches = iter(loader)
    while group := list(islice(batches, size)):
        yield group


def synchronize_batch_norm(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """Convert batch norm to take its means and variances over all GPUs together.

    Raises:
        DataError: for several processes on a CPU, where torch cannot do it.
    """
    if accelerator.num_processes == 1:
        return model  # its batch norm already sees the whole batch
    if accelerator.device.type != "cuda":
        raise DataError(
            f"--sync_batch_norm is for GPUs, found {accelerator.num_processes} processes on "
            f"{accelerator.device.type}"
        )
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def open_data(
    config: TrainConfig, audio_config: AudioConfig, tokenizer: Tokenizer
) -> tuple[TTSDataset, TTSDataset]:
    """Open the clips to train on and those to validate on.

    Raises:
        DataError: naming the manifest and what is wrong with it.
    """
    dictionary = load_dictionary() if config.phonemes == "cmudict" else None
    val_dictionary = None if tokenizer.has_letters else dictionary
    cache, train, val = (
        config.cache_mels,
        config.path_to_train_manifest,
        config.path_to_val_manifest,
    )
    train_set = TTSDataset(train, audio_config, tokenizer, dictionary, config.seed, cache)
    val_set = TTSDataset(val, audio_config, tokenizer, val_dictionary, cache_mels=cache)
    return train_set, val_set


def build_model(
    configs: Configs, tokenizer: Tokenizer, accelerator: Accelerator, warm_path: Path | None
) -> torch.nn.Module:
    """Build the model, with fresh weights or those of a warm start.

    Raises:
        DataError: when it is too large, or a warm start cannot be used.
    """
    config = configs.train
    outline_model(configs.model)  # refuses a model that is too large before it takes memory
    set_seed(config.seed)
    model = Tacotron2(configs.model)
    if config.fast_decoder:
        model = speed_up(model)
    if warm_path:
        allow = config.warm_start_allow_mismatch
        differences = warm_start(model, warm_path, configs.audio, tokenizer, allow)
        if accelerator.is_main_process:
            say(f"weights of {config.warm_start}", *(f"  {line}" for line in differences))
    if config.sync_batch_norm:
        model = synchronize_batch_norm(model, accelerator)
    return model


def build_run(
    configs: Configs, accelerator: Accelerator, begun_with: Path | None, is_new: bool
) -> Run:
    """Build a run in the state before the first step of a new one.

    Raises:
        DataError: when a manifest, the symbols, a warm start or a vocoder cannot be used.
    """
    tokenizer = choose_tokenizer(configs.train, begun_with, is_new)
    model_config = replace(
        configs.model, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_token_id
    )
    configs = configs._replace(model=model_config)
    config = configs.train
    train_set, val_set = open_data(config, configs.audio, tokenizer)
    if config.free_running_clips is None:
        n_clips = count_free_running_clips(train_set, val_set)
        config = replace(config, free_running_clips=n_clips)
    model = build_model(configs, tokenizer, accelerator, begun_with if is_new else None)
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=config.learning_rate,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    device, tell = accelerator.device, accelerator.print  # one process tells it
    vocoder = choose_vocoder(config.vocoder, configs.audio, device, tell)
    n_workers = config.num_workers
    order = {"seed": config.seed, "short_first_epochs": config.short_first_epochs}
    tail = config.stop_tail_frames
    train_loader = make_loader(train_set, config, accelerator, n_workers, tail, **order)
    n_workers = min(n_workers, VALIDATION_WORKERS)
    val_loader = make_loader(val_set, config, accelerator, n_workers, shuffle=False)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_save_state_pre_hook(copy_weights)
    return Run(
        config=config,
        audio_config=configs.audio,
        model_config=configs.model,
        tokenizer=tokenizer,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        train_loader=train_loader,
        val_loader=val_loader,
        interrupt=Interrupt(),
        progress=Progress(config, accelerator.is_main_process),
        vocoder=vocoder,
    )


def resume(run: Run, path: Path) -> TrainerState:
    """Restore a run from its checkpoint, and print which settings have changed since.

    With the same layout, the run continues at the exact step. With another one, such as another
    number of processes, it repeats the unfinished epoch from its start.

    Raises:
        DataError: when the checkpoint cannot be used, or not with these flags.
    """
    changed_flags = describe_changed_flags(path, run.flags)
    changed = [*changed_flags.values()]
    state = read_state(path)
    load_run_state(run, path)
    run.contrast = read_config(path).contrast
    for group in run.optimizer.param_groups:
        group.update(eps=run.config.adam_eps, weight_decay=run.config.weight_decay)
    if state.epoch_step and state.layout != run.layout:
        names = [k for k, v in run.layout.items() if state.layout.get(k) != v]
        changed.append(
            f"epoch {state.epoch + 1} begins again: the checkpoint is of its step "
            f"{state.epoch_step}, and the order of clips has changed ({', '.join(names)})"
        )
        state.restart_epoch()
    best = run.folder / "best_checkpoint"
    other_clips = state.val_clips not in (0, run.val_clips)
    if state.best_epoch and (other_clips or "free_running_clips" in changed_flags):
        state.best_epoch = 0
        changed.append(
            f"{best.name} was the best on other clips; the next validated epoch replaces it"
        )
    if state.best_epoch and not holds_epoch(best, state.best_epoch):
        state.best_epoch = 0
        changed.append(f"{best.name} is not this run's; the next validated epoch replaces it")
    if run.is_main:
        where = f"resumed from {path}: epoch {state.epoch}, step {state.step}"
        say(where, *(f"  {line}" for line in changed))
    return state


def holds_epoch(path: Path, epoch: int) -> bool:
    """Return True if the checkpoint at `path` was written at the end of this epoch."""
    try:
        return read_state(path).epoch == epoch
    except DataError:
        return False


def start_showing(run: Run, state: TrainerState) -> None:
    """Start the trackers, describe the run, and warn of characters that have no symbol."""
    facts = describe_run(run)
    run.progress.tracking = Tracking(run.config, facts, state.step, state.wandb_run_id)
    state.wandb_run_id = run.progress.tracking.wandb_run_id
    device, n = run.accelerator.device, run.accelerator.num_processes
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else device.type
    size, accumulated = run.config.batch_size, run.config.gradient_accumulation_steps
    say(
        f"{facts['parameters'] / 1e6:.1f} M parameters, {len(run.train_set):,} clips to train on, "
        f"{len(run.val_set):,} to validate on ({run.config.free_running_clips:,} of them spoken "
        f"freely), {run.steps_per_epoch:,} steps an epoch, "
        f"mixed precision: {run.accelerator.mixed_precision}",
        f"{n} {'process' if n == 1 else 'processes'} ({name}) x {size} clips a batch x "
        f"{accumulated} accumulated = {n * size * accumulated} clips a step",
    )
    is_bf16 = run.accelerator.mixed_precision == "bf16"
    if is_gpu and is_bf16 and torch.cuda.get_device_capability(device) < (8, 0):
        warn(f"{name} emulates bfloat16, slowly: --mixed_precision fp16 is faster on it")
    if both := set(run.train_set.paths) & set(run.val_set.paths):
        warn(f"{len(both)} clips are in both manifests, such as {min(both)}: scores look too good")
    texts = [*run.train_set.texts, *run.val_set.texts]
    if unknown := run.tokenizer.describe_unknown(texts):
        say(unknown, file=sys.stderr)
    if folded := run.tokenizer.describe_folded(texts):
        say(f"{folded}; --extra_symbols adds symbols for them", file=sys.stderr)


def describe_run(run: Run) -> dict[str, Any]:
    """Collect the flags of a run, its numbers of parameters, clips and hours, and versions."""
    facts = {**run.flags, **asdict(run.audio_config), **asdict(run.model_config)}
    facts["parameters"] = sum(p.numel() for p in run.model.parameters())
    for name, clips in (("train", run.train_set), ("val", run.val_set)):
        facts[f"{name}_clips"] = len(clips)
        hours = sum(clips.n_frames) * clips.audio_config.hop_seconds / 3600
        facts[f"{name}_hours"] = round(hours, 3)
    facts["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
    }
    return facts
