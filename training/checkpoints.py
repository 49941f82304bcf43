"""The folder of a training run: its checkpoints, written whole or not at all, and found again.

`checkpoint_N` (N = completed epochs), `checkpoint_N_step_M` (M = steps in all), `best_checkpoint`
and `final_checkpoint` hold what speaking needs (speech/voice.py), what Accelerate saves (optimizer,
scaler, random states of every process) and trainer_state.json. The main process writes all of it.
"""

import json
import math
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils import load as load_tensors
from safetensors import SafetensorError
from safetensors.torch import load_file

from command_line.files import DataError, file_errors, flush_to_disk, put_in_place
from dataset import AudioConfig, BatchSampler
from model import Tacotron2Config
from scoring.scores import ALIGNMENT_SCORES
from speech.voice import WEIGHTS_FILE, list_differences, write_config
from text.tokenizer import Tokenizer
from training.config import MAX_INT, TrainConfig

STATE_FILE = "trainer_state.json"
NUMBERED_NAME = re.compile(r"checkpoint_(0|[1-9][0-9]*)(_step_(0|[1-9][0-9]*))?")
CHECKPOINT_NAME = re.compile(rf"{NUMBERED_NAME.pattern}|best_checkpoint|final_checkpoint")
TEMPORARY_PREFIX = ".writing_"
REPLACED_PREFIX = ".writing_replaced_"
SCALER_FILE = "scaler.pt"  # of fp16
RANDOM_STATES_FILE = "random_states_{}.pkl"  # of each process
RANDOM_STATES = {"random_state", "numpy_random_seed", "torch_manual_seed"}
ORDER_FLAGS = ("seed", "short_first_epochs")  # decide the order of an epoch's clips
OLD_SCORES = {  # as older versions named them in a history
    **{f"val_{name}": name for name in ALIGNMENT_SCORES},
    **{f"free_{name}": f"free_running_{name}" for name in (*ALIGNMENT_SCORES, "score")},
    "free_stopped": "stopped_by_itself",
}
# Flags that only a new run reads, and the one that says what is resumed.
NEW_RUN_FLAGS = (
    "resume_from_checkpoint", "overwrite", "path_to_symbols", "warm_start",
    "warm_start_allow_mismatch",
)  # fmt: skip


class TrainerState(NamedTuple):
    """Where a run stands."""

    epoch: int  # completed epochs
    epoch_step: int  # optimizer steps done in the epoch after them
    step: int  # optimizer steps in all
    epoch_losses: list[float]  # sums over the steps of this epoch
    history: list[dict]  # losses and scores of each completed epoch
    epoch_skipped: int = 0  # steps of this epoch that --skip_nonfinite or loss scaling skipped
    best_epoch: int = 0  # the one whose weights are in best_checkpoint; 0 is none
    wandb_run_id: str | None = None
    alignment_judged: bool = False  # whether a missing alignment has been looked for
    skipped_in_a_row: int = 0  # steps just before this one that were skipped
    epoch_clips: int = 0  # clips seen of this epoch's order, by all processes together
    order_batch_size: int = 0  # clips per batch over all processes that the order was drawn with
    order_checksum: int = 0  # of the clips' lengths that the order was drawn from
    order_recut: bool = False  # whether what was left of the order has been cut anew


def take_apart(models: list, weights: list[dict], folder: str) -> None:
    """Gives each weight its own memory before accelerate saves them; a hook of save_state.

    On a GPU cuDNN lays an LSTM's weights side by side in one memory, and of tensors that share
    their memory accelerate saves the first only.
    """
    for state in weights:
        for name, tensor in state.items():
            state[name] = tensor.to("cpu", copy=True)


def save_checkpoint(
    accelerator: Accelerator,
    path: Path,
    state: TrainerState,
    flags: dict[str, Any],
    audio_config: AudioConfig,
    model_config: Tacotron2Config,
    tokenizer: Tokenizer,
) -> None:
    """Writes the folder `path` under a temporary name, then renames it. Every process calls this.

    The main process writes all files, so that machines need not share a disk.

    Raises:
        DataError: on every process, when it cannot be written; nothing of it is left then.
    """
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    main = accelerator.is_main_process
    # accelerate's save_state writes those of the main process.
    random_states = gather_object([] if main else [read_random_states(accelerator)])

    def write_files() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hook = accelerator.register_save_state_pre_hook(take_apart)
        accelerator.save_state(str(temporary), safe_serialization=True)
        hook.remove()
        for index, states in enumerate(random_states, start=1):
            torch.save(states, temporary / f"random_states_{index}.pkl")
        write_config(temporary, model_config, audio_config, tokenizer)
        written_at = {"written_at": next_written_at(path.parent)}
        content = {**state._asdict(), **written_at, "train_config": flags}
        (temporary / STATE_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
        for file in [*temporary.iterdir(), temporary]:  # on the disk before its name says so
            flush_to_disk(file)
        put_in_place(temporary, path, path.with_name(REPLACED_PREFIX + path.name))
        flush_to_disk(path.parent)

    try:
        write_together(accelerator, path, lambda: write_files() if main else None)
    except DataError:
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_random_states(accelerator: Accelerator) -> dict[str, Any]:
    """What accelerate puts into random_states_N.pkl for this process, on a CPU or a GPU."""
    states = {
        "step": accelerator.step,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),  # noqa: NPY002
        "torch_manual_seed": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["torch_cuda_manual_seed"] = torch.cuda.get_rng_state_all()
    return states


def write_together(accelerator: Accelerator, path: Path, write: Callable[[], None]) -> None:
    """Calls `write` on every process.

    Raises:
        DataError: on every process, when one of them could not write.
    """
    reason = ""
    try:
        write()
    except OSError as error:
        reason = str(error) or type(error).__name__
    except (RuntimeError, SafetensorError) as error:  # torch does not say when a disk is full
        free = shutil.disk_usage(path.parent).free // 2**20
        reason = f"{free} MiB are free there; {' '.join(str(error).split())[:200]}"
    failures = torch.tensor(float(bool(reason)), device=accelerator.device)
    if accelerator.reduce(failures, "sum").item():
        reason = reason or "another process failed"
        raise DataError(f"{path}: the checkpoint could not be written ({reason})")


@file_errors()
def remove_checkpoint(path: Path) -> None:
    """Renamed first: killed meanwhile, it leaves no folder that looks like a checkpoint."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


@file_errors()
def clear_remains(folder: Path) -> None:
    """Removes what a killed run has left half written; one process calls this.

    A checkpoint that was to be replaced, and was killed between its two renamings, comes back.
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
    """The folders in a run's folder that have a checkpoint's exact name, readable or not."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    paths = [folder / name for name in names if CHECKPOINT_NAME.fullmatch(name)]
    return [path for path in paths if (path / STATE_FILE).is_file()]


@file_errors()
def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run whose trainer_state.json can be read, the last one written last."""
    found = []
    for path in find_checkpoint_folders(folder):
        with suppress(DataError):  # find_latest names it
            state, _, written_at = read_state_file(path)
            found.append((written_at, state.step, path.name, path))
    return [path for *_, path in sorted(found)]


def next_written_at(folder: Path) -> float:
    """Seconds since 1970 for a checkpoint that is written now.

    Later than that of every other checkpoint of the run, also when the clock has been put back.
    """
    newest = max((read_state_file(path)[2] for path in list_checkpoints(folder)[-1:]), default=0.0)
    return max(time.time(), math.nextafter(newest, math.inf))


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Removes all but the `keep` numbered checkpoints that were written last."""
    numbered = [path for path in list_checkpoints(folder) if NUMBERED_NAME.fullmatch(path.name)]
    for path in numbered[:-keep]:
        remove_checkpoint(path)


def find_latest(folder: Path) -> Path | None:
    """The checkpoint that was written last; None when there is none.

    One whose trainer_state.json is broken is named on stderr and passed over.
    """
    for path in find_checkpoint_folders(folder):
        try:
            read_state(path)
        except DataError as error:
            print(f"train_taco.py: passed over: {error}", file=sys.stderr, flush=True)
    return next(reversed(list_checkpoints(folder)), None)


def find_checkpoint(folder: Path, name: str) -> Path | None:
    """`latest`, `latest_or_new`, the name of a checkpoint in `folder`, or a path.

    Returns:
        None for `latest_or_new` in a folder that holds no checkpoint.

    Raises:
        DataError: when there is none.
    """
    if name in ("latest", "latest_or_new"):
        latest = find_latest(folder)
        none_at_all = latest is None and not find_checkpoint_folders(folder)
        if latest is None and not (none_at_all and name == "latest_or_new"):
            what = "no checkpoint in" if none_at_all else "no checkpoint that can be read in"
            raise DataError(f"--resume_from_checkpoint {name}: {what} {folder}")
        return latest
    for path in (folder / name, Path(name)):
        if os.path.isfile(path / STATE_FILE):  # unlike Path.is_file, False for any unusable name
            return path
    raise DataError(f"--resume_from_checkpoint {name}: no checkpoint there or in {folder}")


def choose_checkpoint(folder: Path, resume_from: str | None, overwrite: bool) -> Path | None:
    """The checkpoint that a run goes on from; None for a run that is new.

    Raises:
        DataError: when it is not there, or when a new run finds checkpoints in its folder.
    """
    if resume_from:
        return find_checkpoint(folder, resume_from)
    if find_checkpoint_folders(folder) and not overwrite:
        raise DataError(
            f"{folder} holds checkpoints already: --resume_from_checkpoint latest goes on with "
            "them, and another --experiment_name begins a run beside them; --overwrite would "
            "remove them"
        )
    return None


def read_state(path: Path) -> tuple[TrainerState, dict]:
    """trainer_state.json of a checkpoint folder: the state, and the flags of the run.

    Raises:
        DataError: when it is missing or broken.
    """
    return read_state_file(path)[:2]


def read_state_file(path: Path) -> tuple[TrainerState, dict, float]:
    """`read_state`, and when the checkpoint was written, in seconds since 1970.

    Raises:
        DataError: when trainer_state.json is missing or broken.
    """
    file = path / STATE_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        train_config = content.pop("train_config")
        # Older versions wrote no time.
        written_at = content.pop("written_at", file.stat().st_mtime)
        state = TrainerState(**rename_scores(content))
        counts = (state.epoch, state.epoch_step, state.step, state.epoch_clips, state.best_epoch)
        counts = (*counts, state.order_batch_size, state.order_checksum)
        numbers = (*state.epoch_losses, written_at)
        if not (
            all(type(count) is int and count >= 0 for count in counts)
            and all(type(number) in (int, float) for number in numbers)
            and math.isfinite(written_at)
            and all(type(row) is dict and "epoch" in row for row in state.history)
            and isinstance(train_config, dict)
        ):
            raise ValueError("a value is of another kind than what is written there")
        return state, train_config, written_at
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError
    ) as error:  # fmt: skip
        raise DataError(f"{file}: cannot be read ({error})") from None


def rename_scores(content: dict[str, Any]) -> dict[str, Any]:
    """trainer_state.json of an older version with the scores of its history as they are now named.

    It had the best epoch's score in the place of its number.
    """
    rows = [{OLD_SCORES.get(k, k): v for k, v in row.items()} for row in content["history"]]
    content = {**content, "history": rows}
    if "best_score" in content:
        best = content.pop("best_score")
        epochs = [row["epoch"] for row in rows if row.get("free_running_score") == best]
        content["best_epoch"] = epochs[0] if epochs else 0
    return content


def read_flags(path: Path, given: Collection[str]) -> dict[str, Any]:
    """The flags that a resumed run takes over from its checkpoint.

    That is, all but those `given` anew, those that only a new run reads, and where the run is.

    Raises:
        DataError: when trainer_state.json is broken, or a flag is of another type.
    """
    saved, hints = read_state(path)[1], get_type_hints(TrainConfig)
    names = hints.keys() - {*given, *NEW_RUN_FLAGS, "working_directory", "experiment_name"}
    flags = {name: saved[name] for name in names if name in saved}
    for name, value in flags.items():
        if not isinstance(value, hints[name]):
            found = f"{name} is {value!r:.40}"
            raise DataError(f"{path / STATE_FILE}: not the flags of a run ({found})")
    return flags


def list_changed_flags(path: Path, flags: dict[str, Any]) -> list[str]:
    """Flags of the run that a checkpoint was written with otherwise, a phrase for each.

    Those of accelerate's launcher are listed too: unlike the others, they are given anew each time.

    Raises:
        DataError: when one decides the order of an epoch that the checkpoint stands within.
    """
    state, saved = read_state(path)
    changed = {
        name: f"--{name} was {saved[name]} and is now {value}"
        for name, value in flags.items()
        if name in saved and saved[name] != value and name not in NEW_RUN_FLAGS
    }
    refused = [changed[name] for name in ORDER_FLAGS if name in changed]
    if state.epoch_step and refused:
        raise DataError(
            f"{path}: stands within an epoch, whose order these flags would change: "
            f"{'; '.join(refused)}"
        )
    return list(changed.values())


def load_checkpoint_state(
    accelerator: Accelerator,
    path: Path,
    audio_config: AudioConfig,
    model_config: Tacotron2Config,
    tokenizer: Tokenizer,
) -> TrainerState:
    """Puts a run back where the checkpoint left it, random numbers of this process included.

    A process that the checkpoint has no random state of keeps the one it has.

    Raises:
        DataError: when a file is missing, broken, would need code to be run, or belongs to
            another model, audio or table of symbols.
    """
    differences = list_differences(path, model_config, audio_config, tokenizer)
    if differences:
        raise DataError(f"{path}: cannot be resumed with other settings: {'; '.join(differences)}")
    if not (path / RANDOM_STATES_FILE.format(0)).is_file():
        raise DataError(f"{path}: {RANDOM_STATES_FILE.format(0)} is missing")
    weights, pickles = path / WEIGHTS_FILE, ("*.bin", "*.pkl", "*.pt")
    if not weights.is_file():  # accelerate would look for a pickle instead
        raise DataError(f"{path}: {WEIGHTS_FILE} is missing")
    for file in sorted([weights, *(file for kind in pickles for file in path.glob(kind))]):
        try:
            content = load_file(file) if file == weights else load_tensors(file, map_location="cpu")
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"{file}: refused, not plain tensors and numbers ({reason})") from None
        # accelerate goes on in silence, with other random numbers, where it cannot use these.
        if file.match(RANDOM_STATES_FILE.format("*")) and not set(content) >= RANDOM_STATES:
            raise DataError(f"{file}: does not hold the states of random generators")
    scaler = accelerator.scaler
    if not (path / SCALER_FILE).is_file():
        accelerator.scaler = None  # of a run without fp16: this one's begins anew
    try:
        accelerator.load_state(str(path))
    except Exception as error:  # whatever files of another content bring up
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be loaded ({reason})") from None
    accelerator.scaler = scaler
    return read_state(path)[0]


def enter_epoch(sampler: BatchSampler, state: TrainerState) -> TrainerState:
    """Sets the sampler to where the run stands in its epoch, and notes the order of the clips.

    An epoch that is begun with other batches over all processes than it goes on with keeps its
    order; the clips that are left of it are cut into batches of the new size.

    Raises:
        DataError: when the clips that are left cannot be dealt to the processes.
    """
    size, begun = sampler.total_batch_size, state.epoch_clips > 0
    state = state._replace(
        order_batch_size=state.order_batch_size if begun else size,
        order_checksum=sampler.checksum,
        order_recut=begun and (state.order_recut or size != state.order_batch_size),
    )
    sampler.set_epoch(state.epoch, state.epoch_clips, state.order_batch_size, state.order_recut)
    return state


def check_place(
    path: Path, state: TrainerState, saved_flags: dict, sampler: BatchSampler, manifest: str
) -> TrainerState:
    """The state of the checkpoint at `path`, its place in the epoch held to the manifest at hand.

    Older checkpoints count the steps of an epoch and not its clips; these follow from the flags
    and the number of processes that they were written with.

    Raises:
        DataError: when it stands within an epoch, and not of this manifest.
    """
    advice = "resume from the end of an epoch"
    if state.epoch_step == 0:
        return state
    if state.epoch_clips:
        if state.order_checksum != sampler.checksum:
            raise DataError(
                f"{path}: stands within an epoch that began with other clips than the "
                f"{len(sampler.lengths)} of {manifest} (their number, order "
                f"or durations differ); {advice}, or with the manifest of then"
            )
        return state
    n_processes = len(list(path.glob(RANDOM_STATES_FILE.format("*"))))
    batch_size, step_batches = (
        saved_flags.get(name) for name in ("batch_size", "gradient_accumulation_steps")
    )
    if not all(type(n) is int and 0 < n <= MAX_INT for n in (batch_size, step_batches)):
        raise DataError(f"{path}: does not say how many clips of its epoch were seen; {advice}")
    sizes = [len(batch) for batch in sampler.draw(state.epoch, batch_size * n_processes)]
    if (state.epoch_step - 1) * step_batches >= len(sizes):
        raise DataError(
            f"{path}: stands at step {state.epoch_step} of an epoch, and those of "
            f"{manifest} have {-(-len(sizes) // step_batches)}; {advice}"
        )
    return state._replace(
        epoch_clips=sum(sizes[: state.epoch_step * step_batches]),
        order_batch_size=batch_size * n_processes,
    )
