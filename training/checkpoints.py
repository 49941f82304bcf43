"""Write a run's checkpoints whole or not at all, find them again, and load them without pickles.

`checkpoint_N` (N = completed epochs), `checkpoint_N_step_M` (M = steps in all), `best_checkpoint`
and `final_checkpoint` in the run's folder hold what speaking needs (speech/voice.py), what
accelerate saves (optimizer, scaler, random states of every process) and trainer_state.json.
"""

import json
import math
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from accelerate.utils import load as load_tensors
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file

from command_line.files import DataError, file_errors, flush_to_disk, one_line, put_in_place
from command_line.main import say, warn
from speech.voice import WEIGHTS_FILE, list_differences, write_config
from training.config import TrainConfig
from training.pictures import finish_pictures
from training.processes import any_process, end_processes
from training.run import Run
from training.state import LOSSES, TrainerState

STATE_FILE = "trainer_state.json"
NUMBERED_NAME = re.compile(r"checkpoint_(0|[1-9][0-9]*)(_step_(0|[1-9][0-9]*))?")
CHECKPOINT_NAME = re.compile(rf"{NUMBERED_NAME.pattern}|best_checkpoint|final_checkpoint")
TEMPORARY_PREFIX = ".writing_"
REPLACED_PREFIX = ".writing_replaced_"
SCALER_FILE = "scaler.pt"  # of fp16
RANDOM_STATES_FILE = "random_states_{}.pkl"  # of each process
RANDOM_STATES = {"random_state", "numpy_random_seed", "torch_manual_seed"}
# Flags that only a new run reads, or that name the run's folder.
UNSAVED_FLAGS = (
    "resume_from_checkpoint",
    "overwrite",
    "path_to_symbols",
    "lexicon",
    "warm_start",
    "warm_start_allow_mismatch",
    "working_directory",
    "experiment_name",
)


def copy_weights(models: list, weights: list[dict], folder: str) -> None:
    """Copy each weight into memory of its own before accelerate saves it; a hook of save_state.

    On a GPU cuDNN lays an LSTM's weights side by side in one block, and accelerate saves only the
    first of several tensors that share memory.
    """
    for state in weights:
        for name, tensor in state.items():
            state[name] = tensor.to("cpu", copy=True)


def save_checkpoint(run: Run, state: TrainerState, name: str) -> None:
    """Write a checkpoint under a temporary name, then rename it. Every process calls this.

    Raises:
        DataError: when it cannot be written; the checkpoints before it stay.
    """
    path, accelerator = run.folder / name, run.accelerator
    temporary = path.with_name(TEMPORARY_PREFIX + name)
    state.layout, state.val_clips = run.layout, run.val_clips
    try:
        if run.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary), safe_serialization=True)
        accelerator.wait_for_everyone()
        if run.is_main:
            configs = run.model_config, run.audio_config, run.tokenizer
            write_config(temporary, *configs, run.train_set.longest_text, run.contrast)
            content = {**asdict(state), "written_at": choose_time(run.folder)}
            content["train_config"] = run.flags
            (temporary / STATE_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
            for file in [*temporary.iterdir(), temporary]:  # all on the disk before the renaming
                flush_to_disk(file)
            put_in_place(temporary, path, path.with_name(REPLACED_PREFIX + name))
            flush_to_disk(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = one_line(error)
        free = shutil.disk_usage(run.folder).free // 2**20  # torch does not say when a disk is full
        raise DataError(
            f"{path}: the checkpoint cannot be written ({reason}; {free} MiB are free there)"
        ) from None
    run.progress.print_saved(describe_checkpoint(state, name), path)
    if run.is_main:
        prune_checkpoints(run.folder, run.config.keep_checkpoints)
    run.saved_at = time.monotonic()
    accelerator.wait_for_everyone()


def choose_time(folder: Path) -> float:
    """Return the time, or one just after the last checkpoint's where a clock has gone back."""
    before = [read_state_file(path)["written_at"] for path in list_checkpoints(folder)[-1:]]
    return max([time.time(), *(written_at + 1e-3 for written_at in before)])


def describe_checkpoint(state: TrainerState, name: str) -> str:
    """Describe a checkpoint in the words that are printed before its path."""
    if name != "best_checkpoint":
        return "checkpoint:"
    row = state.history[-1]
    match = f"text match {row['text_match']:.3f}, " if "text_match" in row else ""
    return f"best so far: {match}validation loss {row['val_loss']:.3f}, kept in"


def checkpoint_is_due(run: Run) -> bool:
    """Return True on every process when --checkpoint_minutes have passed or a signal has come."""
    minutes = (time.monotonic() - run.saved_at) / 60
    by_the_clock = 0 < run.config.checkpoint_minutes <= minutes
    return any_process(run.accelerator, by_the_clock or run.interrupt.pending)


def stop_if_asked(run: Run, state: TrainerState) -> None:
    """End the run, after a checkpoint, if a signal has asked for it."""
    if not any_process(run.accelerator, run.interrupt.pending):
        return
    finish_pictures(run, state)
    if run.is_main:
        say("stopped, checkpoint written: go on with --resume_from_checkpoint latest")
    end_processes(run.accelerator)
    sys.exit()


@file_errors()
def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; a kill halfway leaves no folder that looks like one."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


@file_errors()
def clear_remains(folder: Path) -> None:
    """Remove checkpoints that a killed run has left half written.

    If it was killed between the two renamings that replace a checkpoint, the old one comes back.
    """
    for remains in list(folder.glob(TEMPORARY_PREFIX + "*")):
        replaced = remains.name.startswith(REPLACED_PREFIX)
        name = remains.name.removeprefix(REPLACED_PREFIX if replaced else TEMPORARY_PREFIX)
        if not CHECKPOINT_NAME.fullmatch(name):
            continue
        if replaced and not (folder / name).exists():
            os.replace(remains, folder / name)
        else:
            shutil.rmtree(remains)


def find_checkpoint_folders(folder: Path) -> list[Path]:
    """List the folders in a run's folder that have a checkpoint's exact name, readable or not."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    paths = [folder / name for name in names if CHECKPOINT_NAME.fullmatch(name)]
    return [p for p in paths if (p / STATE_FILE).is_file() or (p / WEIGHTS_FILE).is_file()]


@file_errors()
def list_checkpoints(folder: Path, warns: bool = False) -> list[Path]:
    """List the checkpoints of a run that can be read, in the order in which they were written."""
    found = []
    for path in find_checkpoint_folders(folder):
        try:
            content = read_state_file(path)
            found.append((content["written_at"], content["step"], path.name, path))
        except DataError as error:
            if warns:
                warn(f"checkpoint skipped: {error}")
    return [path for *_, path in sorted(found)]


def prune_checkpoints(folder: Path, keep: int | None) -> None:
    """Remove all numbered checkpoints but the last `keep`; keep all if that is None.

    Of the checkpoints written within an epoch only the last one stays, whatever `keep` is.
    """
    numbered = [path for path in list_checkpoints(folder) if NUMBERED_NAME.fullmatch(path.name)]
    outdated = [path for path in numbered if "_step_" in path.name][:-1]
    others = [path for path in numbered if path not in outdated]
    for path in outdated + (others[:-keep] if keep else []):
        try:
            remove_checkpoint(path)
        except DataError as error:  # for example NFS keeps a file; the new checkpoint is safe
            warn(f"an old checkpoint stays: {error}")


def find_run_checkpoint(folder: Path, name: str) -> Path | None:
    """Find `latest`, `latest_or_new`, the name of a checkpoint in `folder`, or a path.

    Returns:
        None for `latest_or_new` in a folder that holds no checkpoint.

    Raises:
        DataError: when there is none.
    """
    if name in ("latest", "latest_or_new"):
        latest = next(reversed(list_checkpoints(folder, warns=True)), None)
        is_empty = not find_checkpoint_folders(folder)
        if latest is None and not (is_empty and name == "latest_or_new"):
            what = "no checkpoint in" if is_empty else "no checkpoint that can be read in"
            raise DataError(f"--resume_from_checkpoint {name}: {what} {folder}")
        return latest
    for path in (folder / name, Path(name)):
        if os.path.isfile(path / STATE_FILE):  # unlike Path.is_file, False for any unusable name
            return path
    raise DataError(f"--resume_from_checkpoint {name}: no checkpoint there or in {folder}")


def choose_checkpoint(folder: Path, resume_from: str | None, overwrite: bool) -> Path | None:
    """Choose the checkpoint that a run resumes from; None for a new run.

    Raises:
        DataError: when it does not exist, or when the run's folder holds those of another run.
    """
    found = find_run_checkpoint(folder, resume_from) if resume_from else None
    is_own = found and folder.is_dir() and found.parent.samefile(folder)
    if find_checkpoint_folders(folder) and not is_own and (found or not overwrite):
        raise DataError(
            f"{folder} holds checkpoints already: --resume_from_checkpoint latest continues from "
            "them, another --experiment_name starts a run beside them, and --overwrite would "
            "delete them"
        )
    return found


def read_state_file(path: Path) -> dict[str, Any]:
    """Read trainer_state.json of a checkpoint: TrainerState's fields, written_at, train_config.

    Raises:
        DataError: when it is missing or broken.
    """
    file = path / STATE_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        counts = [content.get(n, 0) for n in ("epoch", "epoch_step", "step", "best_epoch")]
        numbers = [*content["epoch_losses"], content["written_at"]]
        if not (
            all(type(count) is int and count >= 0 for count in counts)
            and all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
            and len(content["epoch_losses"]) == len(LOSSES)
            and all(
                type(row) is dict and {"epoch", "step"} <= row.keys() for row in content["history"]
            )
            and isinstance(content["train_config"], dict)
        ):
            raise ValueError("a value has another type than what training writes")
        flags = content["train_config"]
        if isinstance(flags.get("phonemes"), bool):  # as it was before --phonemes espeak
            flags["phonemes"] = "cmudict" if flags["phonemes"] else None
        flags.setdefault("l1_weight", 0.0)  # squared error alone, as before the flag
        flags.setdefault("stop_tail_frames", 0)
        return content
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None


def read_state(path: Path) -> TrainerState:
    """Read the state of the run that wrote a checkpoint.

    Raises:
        DataError: when trainer_state.json is missing or broken.
    """
    content = read_state_file(path)
    return TrainerState(
        **{f.name: content[f.name] for f in fields(TrainerState) if f.name in content}
    )


def read_flags(path: Path) -> dict[str, Any]:
    """Read the flags that a resumed run takes from its checkpoint, unless they are passed again.

    Raises:
        DataError: when trainer_state.json is broken, or a flag is of another type.
    """
    saved, hints = read_state_file(path)["train_config"], get_type_hints(TrainConfig)
    flags = {k: saved[k] for k in hints if saved.get(k) is not None and k not in UNSAVED_FLAGS}
    for name, value in flags.items():
        if not isinstance(value, hints[name]):
            found = f"{name} is {value!r:.40}"
            raise DataError(f"{path / STATE_FILE}: not the flags of a run ({found})")
    return flags


def describe_changed_flags(path: Path, flags: dict[str, Any]) -> dict[str, str]:
    """Describe, by name, the flags that differ from those of the checkpoint that a run resumes."""
    saved = read_state_file(path)["train_config"]
    return {
        name: f"--{name} was {saved[name]} and is now {value}"
        for name, value in flags.items()
        if name in saved and saved[name] != value and name not in UNSAVED_FLAGS
    } | {
        name: f"--{name} {flags[name]} is not used: the run had begun already"
        for name in ("warm_start", "path_to_symbols")
        if flags.get(name) not in (None, saved.get(name))
    }


def refuse_code(path: Path) -> None:
    """Refuse a checkpoint whose files hold more than plain tensors and numbers, such as code.

    Raises:
        DataError: naming the file that is missing, broken or would need code.
    """
    weights, first_states = path / WEIGHTS_FILE, path / RANDOM_STATES_FILE.format(0)
    for file in (weights, first_states):  # without weights, accelerate would look for a pickle
        if not file.is_file():
            raise DataError(f"{path}: {file.name} is missing")
    pickles = [file for kind in ("*.bin", "*.pkl", "*.pt") for file in path.glob(kind)]
    for file in [weights, *sorted(pickles)]:
        try:
            content = load_file(file) if file == weights else load_tensors(file, map_location="cpu")
        except Exception as error:  # torch raises nearly anything on a broken file
            reason = one_line(error, 120)
            raise DataError(f"{file}: refused, not plain tensors and numbers ({reason})") from None
        # If it cannot use these, accelerate continues silently with other random numbers.
        if file.match(RANDOM_STATES_FILE.format("*")) and not set(content) >= RANDOM_STATES:
            raise DataError(f"{file}: does not hold the states of random generators")


def load_run_state(run: Run, path: Path) -> None:
    """Load weights, optimizer, scaler and the random states of this process from a checkpoint.

    A process without random states in the checkpoint is seeded from --seed and the step.

    Raises:
        DataError: when a file is missing, broken, would need code to be run, or belongs to
            another model, audio or table of symbols.
    """
    differences = list_differences(path, run.model_config, run.audio_config, run.tokenizer)
    if differences:
        raise DataError(f"{path}: cannot be resumed with other settings: {'; '.join(differences)}")
    refuse_code(path)
    set_seed(run.config.seed + read_state_file(path)["step"], device_specific=True)
    scaler = run.accelerator.scaler
    if not (path / SCALER_FILE).is_file():
        run.accelerator.scaler = None  # the checkpoint is of a run without fp16
    try:
        run.accelerator.load_state(str(path))
    except Exception as error:  # files with other content raise nearly anything
        reason = one_line(error)
        raise DataError(f"{path}: cannot be loaded ({reason})") from None
    run.accelerator.scaler = scaler
