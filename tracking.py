"""Logs a run to wandb (--log_wandb) and TensorBoard (--log_tensorboard).

Neither is imported unless its flag asks for it. Where one fails, at the start or later, a line on
stderr says so, and the run goes on without it.

accelerate's trackers would not do: they log no sound, their TensorBoard one begins another run for
the flags at every start, and what fails in them ends the training.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from config import TrainConfig

EVENTS_FOLDER = "tensorboard"  # in the run's folder
EVENT_FILES = "events.out.tfevents.*"


class Tracker(Protocol):
    """What logs a run. Any method may raise anything."""

    def log(self, values: dict[str, float], step: int, media: dict[str, str]) -> None:
        """Numbers by name, and PNG and WAV files by name, of an optimizer step."""

    def finish(self) -> None:
        """After the last step of the run."""


class Wandb:
    """A run of wandb, new or, given the id of one, going on.

    WANDB_PROJECT and WANDB_NAME win over `project` and `name`. wandb itself reads the others of
    its environment, WANDB_ENTITY and WANDB_RUN_GROUP among them.
    """

    def __init__(
        self, project: str, name: str, flags: dict[str, Any], resumed_id: str | None
    ) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or project,
            name=os.environ.get("WANDB_NAME") or name,
            config=flags,
            id=resumed_id,
            resume="allow" if resumed_id else None,
        )

    def log(self, values: dict[str, float], step: int, media: dict[str, str]) -> None:
        """Numbers, pictures and sounds of a step."""
        kinds = {".png": self.wandb.Image, ".wav": self.wandb.Audio}
        logged = {name: kinds[Path(path).suffix](path) for name, path in media.items()}
        self.run.log({**values, **logged}, step=step)

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
            raise ImportError(f"{error}; pip install -r requirements-tensorboard.txt") from None

        self.writer = SummaryWriter(str(folder), purge_step=step + 1)
        lines = json.dumps(flags, indent=2).split("\n")
        code_block = "\n".join(f"    {line}" for line in lines)  # in Markdown
        self.writer.add_text("flags", code_block, step)
        self.writer.flush()

    def log(self, values: dict[str, float], step: int, media: dict[str, str]) -> None:
        """Numbers, pictures and sounds of a step."""
        import numpy as np
        import soundfile
        from PIL import Image

        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for name, path in media.items():
            if path.endswith(".png"):
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self.writer.add_image(name, pixels, step, dataformats="HWC")
            else:
                samples, sampling_rate = soundfile.read(path, dtype="float32")
                self.writer.add_audio(name, samples[None], step, sampling_rate)
        self.writer.flush()  # a run that is killed has logged what came before

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

    def log(self, values: dict[str, float], step: int, media: dict[str, str] | None = None) -> None:
        """Numbers by name, and PNG and WAV files by name, of an optimizer step."""
        self.tell_each(lambda tracker: tracker.log(values, step, media or {}))

    def log_epoch(self, row: dict[str, float], files: dict[str, str]) -> None:
        """One epoch's losses, and its scores, pictures and sound if it has some."""
        self.log({f"epoch/{name}": value for name, value in row.items()}, int(row["step"]), files)

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
