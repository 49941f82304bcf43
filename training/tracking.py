"""Logs a run to wandb (--log_wandb) and TensorBoard (--log_tensorboard).

Neither is imported unless its flag asks for it. Where one fails, at the start or later, a line on
stderr says so, and the run goes on without it.

Both show the same names:

    train/loss, train/grad_norm, ...     means over --wandb_log_iters steps of training
    train/epoch_loss, ...                means over an epoch
    val/loss, val/focus, ...             teacher forcing on the validation set
    free/free_running_score, ...         free running on the validation set
    media/teacher_forced, ...            pictures, the spoken sample, and its recording
    epoch                                passes over the training set, with a fraction

accelerate's trackers would not do: they log no sound, their TensorBoard one begins another run for
the flags at every start, and what fails in them ends the training.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import accelerate
import torch

from dataset import TTSDataset
from scoring.scores import ALIGNMENT_SCORES, FREE_RUNNING_SCORES
from training.config import TrainConfig

EVENTS_FOLDER = "tensorboard"  # in the run's folder
EVENT_FILES = "events.out.tfevents.*"


class Media(NamedTuple):
    """A picture (.png) or a sound (.wav, .flac), and what it shows."""

    path: str
    caption: str


class Tracker(Protocol):
    """What logs a run. Any method may raise anything."""

    def log(self, values: dict[str, float], step: int, media: dict[str, Media]) -> None:
        """Numbers, and pictures and sounds, by name, of an optimizer step."""

    def note_best(self, values: dict[str, float]) -> None:
        """Numbers, by name, of the best epoch so far."""

    def finish(self) -> None:
        """After the last step of the run."""


class Wandb:
    """A run of wandb, new or, given the id of one, going on.

    WANDB_PROJECT and WANDB_NAME win over `project` and `name`. wandb itself reads the others of
    its environment, WANDB_ENTITY and WANDB_RUN_GROUP among them.

    wandb drops what is logged under a lower step than its last one, as a run would that goes on
    from an older checkpoint. So the optimizer step is a number of its own, `step`, against which
    the charts are drawn, and wandb's step counts on where it has to.
    """

    def __init__(
        self, project: str, name: str, flags: dict[str, Any], resumed_id: str | None
    ) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or project,
            name=os.environ.get("WANDB_NAME") or name,
            config={**flags, "versions": {**flags["versions"], "wandb": wandb.__version__}},
            id=resumed_id,
            resume="allow" if resumed_id else None,
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float], step: int, media: dict[str, Media]) -> None:
        """Numbers, pictures and sounds of a step."""
        shown = {
            name: (self.wandb.Image if path.endswith(".png") else self.wandb.Audio)(
                path, caption=caption
            )
            for name, (path, caption) in media.items()
        }
        wandb_step = max(step, self.run.step)
        self.run.log({"step": step, **values, **shown}, step=wandb_step, commit=True)

    def note_best(self, values: dict[str, float]) -> None:
        """Into the run's summary, which tables of runs show."""
        self.run.summary.update({f"best/{name}": value for name, value in values.items()})

    def finish(self) -> None:
        """Waits until all has been sent."""
        self.run.finish()


class TensorBoard:
    """Event files in a folder. TensorBoard drops what they hold of steps after `step`.

    A run that goes on from a checkpoint does these steps once more.
    """

    def __init__(self, folder: Path, flags: dict[str, Any], step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(f"{error}; pip install -r requirements/tensorboard.txt") from None

        self.writer = SummaryWriter(str(folder), purge_step=step + 1)
        lines = json.dumps(flags, indent=2).split("\n")
        code_block = "\n".join(f"    {line}" for line in lines)  # in Markdown
        self.writer.add_text("flags", code_block, step)
        self.writer.flush()

    def log(self, values: dict[str, float], step: int, media: dict[str, Media]) -> None:
        """Numbers, pictures and sounds of a step, and as a text each, what they show."""
        import numpy as np
        import soundfile
        from PIL import Image

        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for name, (path, caption) in media.items():
            self.writer.add_text(name, caption, step)
            if path.endswith(".png"):
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self.writer.add_image(name, pixels, step, dataformats="HWC")
            else:
                samples, sampling_rate = soundfile.read(path, dtype="float32", always_2d=True)
                mono = samples.mean(axis=1)  # a recording may have several channels
                self.writer.add_audio(name, mono[None], step, sampling_rate)
        self.writer.flush()  # a run that is killed has logged what came before

    def note_best(self, values: dict[str, float]) -> None:
        """Nothing: TensorBoard shows the curves."""

    def finish(self) -> None:
        """Closes the event file."""
        self.writer.close()


class Tracking:
    """Hands what is logged to each tracker, and leaves out those that fail."""

    def __init__(self) -> None:
        self.trackers: dict[str, Tracker] = {}

    def start(self, name: str, make: Callable[[], Tracker]) -> None:
        """Adds a tracker, where it can be had."""
        try:
            self.trackers[name] = make()
        except Exception as error:
            self.leave_out(name, error)

    def log_step(self, means: dict[str, float], step: int, epoch: float) -> None:
        """Means over the last steps of training; `epoch` has a fraction."""
        named = {f"train/{name}": value for name, value in means.items()}
        self.tell_each(lambda tracker: tracker.log({"epoch": epoch, **named}, step, {}))

    def log_epoch(self, row: dict[str, float], media: dict[str, Media]) -> None:
        """One epoch's losses, and its scores, pictures and sounds if it has some."""
        values = {"epoch": row["epoch"], **name_scores(row)}
        named = {f"media/{name}": medium for name, medium in media.items()}
        self.tell_each(lambda tracker: tracker.log(values, int(row["step"]), named))

    def note_best(self, row: dict[str, float]) -> None:
        """The scores of the epoch whose weights are now in best_checkpoint."""
        scores = {name: v for name, v in name_scores(row).items() if not name.startswith("train/")}
        place = {"epoch": row["epoch"], "step": row["step"]}
        self.tell_each(lambda tracker: tracker.note_best({**place, **scores}))

    def finish(self) -> None:
        """After the last step of the run."""
        self.tell_each(lambda tracker: tracker.finish())

    def tell_each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                action(tracker)
            except Exception as error:
                del self.trackers[name]
                self.leave_out(name, error)

    def leave_out(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"train_taco.py: going on without {name} ({reason})", file=sys.stderr)

    @property
    def wandb_run_id(self) -> str | None:
        """With which a resumed run goes on; None without wandb."""
        tracker = self.trackers.get("wandb")
        return tracker.run.id if isinstance(tracker, Wandb) else None


def name_scores(row: dict[str, float]) -> dict[str, float]:
    """The numbers of an epoch, as trainer_state.json names them, by the names shown here."""
    named = {}
    for name, value in row.items():
        if name in FREE_RUNNING_SCORES:
            named[f"free/{name}"] = value
        elif name in ALIGNMENT_SCORES or name.startswith("val_"):
            named[f"val/{name.removeprefix('val_')}"] = value
        elif name not in ("epoch", "step"):
            named[f"train/epoch_{name.removeprefix('train_')}"] = value
    return named


def describe_run(
    model: torch.nn.Module, train_set: TTSDataset, val_set: TTSDataset
) -> dict[str, Any]:
    """What the flags do not say of a run: parameters, clips, hours and versions."""
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    for name, clips in (("train", train_set), ("val", val_set)):
        facts[f"{name}_clips"] = len(clips)
        hours = sum(clips.n_frames) * clips.audio_config.hop_seconds / 3600
        facts[f"{name}_hours"] = round(hours, 3)
    facts["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
    }
    return facts


def start_tracking(
    config: TrainConfig, flags: dict[str, Any], step: int, wandb_run_id: str | None
) -> Tracking:
    """What the flags ask for, from a step on."""
    tracking = Tracking()
    if config.log_wandb:
        tracking.start(
            "wandb", lambda: Wandb(config.experiment_name, config.run_name, flags, wandb_run_id)
        )
    if config.log_tensorboard:
        folder = config.folder / EVENTS_FOLDER
        tracking.start("TensorBoard", lambda: TensorBoard(folder, flags, step))
    return tracking


def clear_events(folder: Path) -> None:
    """Removes what an earlier run has logged for TensorBoard in this run's folder.

    Raises:
        OSError: when a file cannot be removed.
    """
    for path in (folder / EVENTS_FOLDER).glob(EVENT_FILES):
        path.unlink()
