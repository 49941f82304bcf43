"""Log a run to wandb (--log_wandb) and TensorBoard (--log_tensorboard), under the same names.

    train/loss, train/grad_norm, ...     means over the last --wandb_log_iters steps of an epoch
    train/epoch_loss, ...                means over an epoch
    val/loss, val/text_gain, ...         teacher forcing on the validation set
    free/text_match, ...                 free running on the validation set
    media/teacher_forced, ...            pictures, the spoken sample and its recording
    epoch                                passes over the training set, with a fraction

If one of the two fails, the run warns and continues without it. accelerate's own trackers log no
sound, and end the training when they fail.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from command_line.main import warn
from scoring.scores import ALIGNMENT_SCORES, FREE_RUNNING_SCORES
from training.config import TrainConfig

EVENTS_FOLDER = "tensorboard"  # in the run's folder


class Media(NamedTuple):
    """A picture (.png) or a sound (.wav, .flac), and its caption."""

    path: str
    caption: str


class Wandb:
    """A wandb run: a new one, or an earlier one continued by its id.

    WANDB_PROJECT and WANDB_NAME override the names in the flags. wandb drops values that are
    logged under a lower step than its last one, as a run resumed from an older checkpoint would
    log them, so the charts use a number of our own, `step`, as their axis.
    """

    def __init__(self, config: TrainConfig, facts: dict[str, Any], run_id: str | None) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or config.experiment_name,
            name=os.environ.get("WANDB_NAME") or config.run_name,
            config=facts,
            id=run_id,
            resume="allow" if run_id else None,
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float], step: int, media: dict[str, Media]) -> None:
        """Log numbers, pictures and sounds of a step."""
        shown = {}
        for name, (path, caption) in media.items():
            kind = self.wandb.Image if path.endswith(".png") else self.wandb.Audio
            shown[name] = kind(path, caption=caption)
        self.run.log({"step": step, **values, **shown}, step=max(step, self.run.step), commit=True)

    def log_best(self, values: dict[str, float]) -> None:
        """Put the best epoch's numbers into the run's summary, which tables of runs show."""
        self.run.summary.update({f"best/{name}": value for name, value in values.items()})

    def finish(self) -> None:
        """Wait until everything is sent."""
        self.run.finish()


class TensorBoard:
    """Event files in the run's folder; a resumed run discards the steps it will do again."""

    def __init__(self, config: TrainConfig, facts: dict[str, Any], step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            advice = "python -m pip install -r requirements/tensorboard.txt"
            raise ImportError(f"{error}; {advice}") from None

        folder = config.folder / EVENTS_FOLDER
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)
        lines = json.dumps(facts, indent=2).split("\n")
        self.writer.add_text("flags", "\n".join(f"    {line}" for line in lines), step)

    def log(self, values: dict[str, float], step: int, media: dict[str, Media]) -> None:
        """Log numbers, pictures and sounds of a step, and the captions as texts."""
        import soundfile
        from matplotlib.image import imread

        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for name, (path, caption) in media.items():
            self.writer.add_text(name, caption, step)
            if path.endswith(".png"):
                self.writer.add_image(name, imread(path)[..., :3], step, dataformats="HWC")
            else:
                samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
                self.writer.add_audio(name, samples.mean(axis=1)[None], step, rate)
        self.writer.flush()  # so that a run that is killed loses nothing

    def log_best(self, values: dict[str, float]) -> None:
        """Do nothing: TensorBoard has no summary of a run."""

    def finish(self) -> None:
        """Close the event file."""
        self.writer.close()


class Tracking:
    """Logs to each tracker that the flags ask for, and drops one that fails."""

    def __init__(
        self, config: TrainConfig, facts: dict[str, Any], step: int, wandb_run_id: str | None
    ) -> None:
        self.trackers: dict[str, Wandb | TensorBoard] = {}
        self.wandb_run_id = wandb_run_id
        if config.log_wandb:
            self.start("wandb", lambda: Wandb(config, facts, wandb_run_id))
        if config.log_tensorboard:
            self.start("TensorBoard", lambda: TensorBoard(config, facts, step))
        if "wandb" in self.trackers:
            self.wandb_run_id = self.trackers["wandb"].run.id

    def start(self, name: str, make: Callable[[], Wandb | TensorBoard]) -> None:
        """Start a tracker, or warn if that fails."""
        try:
            self.trackers[name] = make()
        except Exception as error:
            warn(f"training continues without {name} ({error or type(error).__name__})")

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of every tracker; drop a tracker that fails, with a warning."""
        for name, tracker in list(self.trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                del self.trackers[name]
                warn(f"training continues without {name} ({error or type(error).__name__})")

    def log_step(self, means: dict[str, float], step: int, epoch: float) -> None:
        """Log the means over the last steps; `epoch` has a fraction."""
        named = {f"train/{name}": value for name, value in means.items()}
        self.call("log", {"epoch": epoch, **named}, step, {})

    def log_epoch(self, row: dict[str, float], media: dict[str, Media]) -> None:
        """Log an epoch's losses, and its scores, pictures and sounds if it was validated."""
        named = {f"media/{name}": medium for name, medium in media.items()}
        self.call("log", {"epoch": row["epoch"], **name_scores(row)}, int(row["step"]), named)

    def log_best(self, row: dict[str, float]) -> None:
        """Log the scores of the epoch whose weights are now in best_checkpoint."""
        scores = {k: v for k, v in name_scores(row).items() if not k.startswith("train/")}
        self.call("log_best", {"epoch": row["epoch"], "step": row["step"], **scores})

    def finish(self) -> None:
        """End every tracker after the last step."""
        self.call("finish")


def name_scores(row: dict[str, float]) -> dict[str, float]:
    """Rename an epoch's numbers from the names of trainer_state.json to those of the charts."""
    named = {}
    for name, value in row.items():
        if name in (*FREE_RUNNING_SCORES, "text_match"):
            named[f"free/{name}"] = value
        elif name in (*ALIGNMENT_SCORES, "text_gain") or name.startswith("val_"):
            named[f"val/{name.removeprefix('val_')}"] = value
        elif name not in ("epoch", "step"):
            named[f"train/epoch_{name.removeprefix('train_')}"] = value
    return named


def remove_events(folder: Path) -> None:
    """Remove what an earlier run in this folder has logged for TensorBoard."""
    for path in (folder / EVENTS_FOLDER).glob("events.out.tfevents.*"):
        path.unlink()
