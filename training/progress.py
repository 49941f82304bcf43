"""Print the means of a run's steps, an epoch's scores, and a warning if it does not speak."""

import sys
import time
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from command_line.main import never_fatal, say
from scoring.scores import ALIGNMENT_SCORES
from scoring.text_match import FAIR, describe_match
from training.config import TrainConfig
from training.state import TrainerState
from training.tracking import Tracking


class Means:
    """Adds up what the steps return, for means over them."""

    def __init__(self) -> None:
        self.since, self.n_steps = time.perf_counter(), 0
        self.sums: dict[str, float] = {}

    def add(self, losses: dict[str, float]) -> None:
        """Add a step."""
        self.n_steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def compute(self) -> dict[str, float]:
        """Return the means, with frames_per_second in place of n_frames."""
        means = {name: total / self.n_steps for name, total in self.sums.items()}
        del means["n_frames"]
        means["frames_per_second"] = self.sums["n_frames"] / (time.perf_counter() - self.since)
        return means


class Progress:
    """Shows the means over the last steps on the console and passes them to the trackers.

    On a terminal they follow a progress bar; elsewhere they are plain lines.
    """

    def __init__(self, config: TrainConfig, is_main: bool) -> None:
        self.config, self.is_main = config, is_main
        self.tracking: Tracking | None = None  # of the main process
        self.bar: tqdm | None = None

    def begin_epoch(self, epoch: int, epoch_step: int, n_steps: int) -> None:
        """Start a bar and new means for an epoch of n_steps, from step epoch_step on."""
        self.epoch, self.n_steps = epoch, n_steps
        self.begun_at, self.begun_step = time.perf_counter(), epoch_step
        self.of_console, self.of_trackers = Means(), Means()
        with never_fatal("the progress bar"):
            self.bar = tqdm(
                total=n_steps,
                initial=epoch_step,
                desc=f"epoch {epoch + 1}/{self.config.training_epochs}",
                disable=not (self.is_main and sys.stderr.isatty()),
            )

    def show(self, state: TrainerState, losses: dict[str, float]) -> None:
        """Add a step to the means; show them every --console_out_iters and --wandb_log_iters.

        Args:
            state: the state after the step.
            losses: the losses that `train_step` returned.
        """
        step, epoch_step = state.step, state.epoch_step
        self.of_console.add(losses)
        self.of_trackers.add(losses)
        if not self.is_main:
            return
        if step % self.config.console_out_iters == 0:
            means, self.of_console = self.of_console.compute(), Means()
            with never_fatal("the progress line"):
                self.print_means(epoch_step, means)
        tracked = self.tracking is not None and bool(self.tracking.trackers)
        if tracked and step % self.config.wandb_log_iters == 0:
            values, self.of_trackers = self.of_trackers.compute(), Means()
            values["learning_rate"] = state.learning_rate
            self.tracking.log_step(values, step, self.epoch + epoch_step / self.n_steps)

    def print_means(self, epoch_step: int, means: dict[str, float]) -> None:
        """Print a line, or advance the bar and update the numbers after it."""
        per_step = (time.perf_counter() - self.begun_at) / (epoch_step - self.begun_step)
        n_left = (self.config.training_epochs - self.epoch) * self.n_steps - epoch_step
        shown = {
            name.replace("_loss", ""): f"{mean:.3f}"
            for name, mean in means.items()
            if name not in ("grad_norm", "frames_per_second")
        }
        shown["frames/s"] = f"{means['frames_per_second']:,.0f}"
        shown["left"] = str(timedelta(seconds=round(per_step * n_left)))
        if self.bar.disable:
            line = "  ".join(f"{name} {value}" for name, value in shown.items())
            say(f"epoch {self.epoch + 1}  step {epoch_step}/{self.n_steps}  {line}")
        else:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(epoch_step - self.bar.n)

    def log_best(self, row: dict[str, float]) -> None:
        """Log the epoch whose weights are now in best_checkpoint."""
        if self.is_main:
            self.tracking.log_best(row)

    def finish(self) -> None:
        """End the trackers after the last step."""
        if self.is_main:
            self.tracking.finish()

    def end_epoch(self) -> None:
        """Close the bar."""
        with never_fatal("the progress bar"):
            self.bar.close()

    def print_saved(self, what: str, path: Path) -> None:
        """Print a checkpoint's path, above the bar if there is one."""
        if self.is_main:
            with never_fatal("the console"):
                tqdm.write(f"{what} {path}")
                sys.stdout.flush()


def print_epoch(row: dict[str, float]) -> None:
    """Print an epoch's losses, and if it was validated its scores, in aligned columns."""
    begin = f"epoch {row['epoch']} done".ljust(14)
    parts = [begin, *(f"{n} {row[n]:6.3f}" for n in ("train_loss", "val_loss") if n in row)]
    if "free_running_score" not in row:
        say("  ".join(parts))
        return
    if "text_match" in row:
        parts.append(f"text_match {row['text_match']:.3f} ({describe_match(row['text_match'])})")
    pairs = [f"{n} {row[n]:.3f} / {row[f'free_running_{n}']:.3f}" for n in ALIGNMENT_SCORES]
    others = ("stopped_by_itself", "free_running_score", "text_gain")
    others = [f"{n} {row[n]:.3f}" for n in others if n in row]
    say("  ".join(parts), "  ".join(["forced / free".ljust(len(begin)), *pairs, *others]))


def warning_is_due(step: int, config: TrainConfig) -> bool:
    """Return True once --alignment_warning_steps have passed after the end of guided attention."""
    if config.alignment_warning_steps == 0:
        return False
    guided = config.guided_attention_steps if config.guided_attention_weight > 0 else 0
    return step >= guided + config.alignment_warning_steps


def describe_missing_speech(row: dict[str, float], config: TrainConfig) -> str | None:
    """Advise what to change when a validation's text match shows that the voice says nothing."""
    if row.get("text_match", 1.0) >= FAIR:
        return None
    guide = "guided attention: --guided_attention_weight 5, now 0"
    if config.guided_attention_weight > 0:
        n_steps = config.guided_attention_steps
        guide = "guided attention for longer where there is no alignment, for less where it is a "
        guide += f"straight line: --guided_attention_steps, now {n_steps}"
    return f"""step {row["step"]}: the voice does not say its texts.
Its text_match is {row["text_match"]:.2f}, and {FAIR} where one understands some of it. The losses
fall all the same, and the alignment may look well. What usually helps:
  a larger batch: --batch_size, now {config.batch_size}, or --gradient_accumulation_steps
  less of the true previous frame: --drop_frame_rate 0.5, now {config.drop_frame_rate:g}
  no silence at the edges of the clips: prep_splits.py --trim_db 40
  a learning rate near 1e-3: --learning_rate, now {config.learning_rate:g}
  {guide}
  short clips first, for longer: --short_first_epochs 2, now {config.short_first_epochs}
  more recordings, or a warm start from another voice: --warm_start"""
