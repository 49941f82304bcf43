"""What a run shows while it goes: console lines, pictures and sounds, the film.

Files go to --save_audio_gen: loss.png, and for each validation epoch_001_teacher_forced.png,
epoch_001_free_running.png and .wav, and epoch_001.npz, a frame of the film. The film has frames of
the first epoch too, such as epoch_000_step_000025.npz. At the end of a run, also after Ctrl-C, it
is alignment.gif.
"""

import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from command_line.files import DataError, write_whole
from dataset import AudioConfig, Utterance, write_wav
from model import Tacotron2, Tacotron2Output
from scoring.pictures import alignment_film, loss_figure, save_figure, summary_figure
from scoring.scores import ALIGNMENT_SCORES, describe_score, free_running_limit
from speech.vocoder import Vocoder, to_audio
from text.tokenizer import Tokenizer
from training.config import TrainConfig
from training.tracking import Media, Tracking

RUN_FILE = "run.txt"  # the path of the run's folder, from the folder of its pictures
EPOCH_FILES = "epoch_[0-9]*"
FRAME_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?\.npz")
FIRST_FRAMES = 8  # of the film, within the first epoch
# Focus x coverage x monotonicity of teacher forcing. Measured on the demo corpus at batch 16: 0.09
# untrained and at a hopeless learning rate; with guided attention 0.4 by step 50 and 0.5 after its
# release; without it 0.15 to 0.25 until step 550, while the arg-max skips half of the characters,
# and above 0.3 from step 650 on, as it comes to visit most of them.
ALIGNED = 0.25
UNGUIDED_PATIENCE = 10  # in that measurement, guided attention aligned ten times sooner


def choose_pictures_folder(config: TrainConfig, is_new: bool) -> Path:
    """Where a run's pictures and sounds go, so that no run writes over those of another.

    That is --save_audio_gen; where another run has its own there, the folder in it that is named
    after the experiment. RUN_FILE in such a folder says whose it is. Older versions wrote none:
    where there are pictures without it, they may be those of a run that goes on, not of a new one.

    Raises:
        DataError: when both are another run's.
    """
    folders = [Path(config.save_audio_gen), Path(config.save_audio_gen) / config.experiment_name]
    owners = [read_owner(folder) for folder in folders]
    if config.folder.resolve() in owners:
        return folders[owners.index(config.folder.resolve())]
    for folder, owner in zip(folders, owners, strict=True):
        if owner is None and not (is_new and any(folder.glob(EPOCH_FILES))):
            return folder
    raise DataError(
        f"--save_audio_gen {config.save_audio_gen}: this folder and {folders[1].name} in it hold "
        "the pictures of other runs; give another one"
    )


def read_owner(folder: Path) -> Path | None:
    """The folder of the run whose pictures are in this one; None where none has claimed it."""
    try:
        return (folder / os.fsdecode((folder / RUN_FILE).read_bytes())).resolve()
    except (FileNotFoundError, ValueError):
        return None


def claim_pictures_folder(folder: Path, run_folder: Path, is_new: bool) -> None:
    """Makes the folder a run's own. What an earlier run of the same name left there goes.

    Raises:
        OSError: when it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_new and read_owner(folder):
        for path in filter(Path.is_file, folder.glob(EPOCH_FILES)):
            path.unlink()
    # Relative, so that both may be moved together.
    relative = os.path.relpath(run_folder.resolve(), folder.resolve())
    (folder / RUN_FILE).write_bytes(os.fsencode(relative))


class Meter:
    """Means over the steps of an epoch since they were last shown.

    The main process shows them, in a bar on a terminal and as plain lines elsewhere, and hands them
    to wandb and TensorBoard.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        tracking: Tracking,
        epoch: int,
        epoch_step: int,
        steps_per_epoch: int,
    ) -> None:
        self.accelerator, self.config, self.tracking = accelerator, config, tracking
        self.epoch, self.steps_per_epoch = epoch, steps_per_epoch
        self.begun_at, self.begun_step = time.perf_counter(), epoch_step
        self.bar = tqdm(
            total=steps_per_epoch,
            initial=epoch_step,
            desc=f"epoch {epoch + 1}/{config.training_epochs}",
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
        )
        self.restart()

    def restart(self) -> None:
        """Begins new means."""
        self.since, self.n_steps = time.perf_counter(), 0
        self.losses: dict[str, float] = {}
        self.n_frames: Tensor | float = 0.0

    def update(
        self,
        epoch_step: int,
        step: int,
        losses: dict[str, float],
        n_frames: Tensor,
        scalars: dict[str, float],
    ) -> None:
        """Takes in one step; shows the means when it is time to. Every process calls this.

        A step that was skipped, on every process, has no losses and no share in the means.
        """
        self.n_steps += bool(losses)
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        self.n_frames = self.n_frames + n_frames
        self.bar.update()
        to_console = step % self.config.console_out_iters == 0
        tracked = self.config.log_wandb or self.config.log_tensorboard
        to_trackers = tracked and step % self.config.wandb_log_iters == 0
        if not (to_console or to_trackers):
            return
        means = {name: total / max(self.n_steps, 1) for name, total in self.losses.items()}
        frames_per_second = float(self.n_frames) / (time.perf_counter() - self.since)
        if to_console and self.accelerator.is_main_process:
            self.show(epoch_step, means, frames_per_second)
        if to_trackers:
            values = {**means, **scalars, "frames_per_second": frames_per_second}
            self.tracking.log_step(values, step, self.epoch + epoch_step / self.steps_per_epoch)
        self.restart()

    def show(self, epoch_step: int, means: dict[str, float], frames_per_second: float) -> None:
        """The line on the console, or what stands behind the bar."""
        per_step = (time.perf_counter() - self.begun_at) / (epoch_step - self.begun_step)
        epochs_left = self.config.training_epochs - self.epoch
        left = timedelta(
            seconds=round(per_step * (epochs_left * self.steps_per_epoch - epoch_step))
        )
        shown = {name.replace("_loss", ""): f"{value:.3f}" for name, value in means.items()}
        shown |= {"frames/s": f"{frames_per_second:,.0f}", "left": str(left)}
        self.bar.set_postfix(shown, refresh=False)
        if self.bar.disable:
            line = "  ".join(f"{name} {value}" for name, value in shown.items())
            place = f"epoch {self.epoch + 1}  step {epoch_step}/{self.steps_per_epoch}"
            print(f"{place}  {line}", flush=True)


def print_epoch(row: dict[str, float], n_skipped: int) -> None:
    """The two lines after an epoch: its losses, and scores if it has some, in aligned columns.

    The first ends with the free-running score and what it means, or with how many steps were
    skipped, if any.
    """
    begin = f"epoch {row['epoch']} done".ljust(14)
    losses = [name for name in ("train_loss", "val_loss") if name in row]
    parts = [begin, *(f"{name} {row[name]:6.3f}" for name in losses)]
    if "free_running_score" in row:
        score = row["free_running_score"]
        parts.append(f"free_running_score {score:.3f} ({describe_score(score)})")
    if n_skipped:
        parts.append(f"skipped_steps {n_skipped}")
    print("  ".join(parts), flush=True)
    if "free_running_score" in row:
        pairs = [f"{n} {row[n]:.3f} / {row[f'free_running_{n}']:.3f}" for n in ALIGNMENT_SCORES]
        stopped = f"stopped_by_itself {row['stopped_by_itself']:.3f}"
        print("  ".join(["forced / free".ljust(len(begin)), *pairs, stopped]), flush=True)


def print_saved(said: str, path: Path) -> None:
    """A line with the path of a checkpoint, above the bar of the epoch if one is shown."""
    tqdm.write(f"{said} {path}")
    sys.stdout.flush()


def batch_of_one(model: Tacotron2, utterance: Utterance) -> tuple[Tensor, ...]:
    """tokens (1, T_text), token_lengths, mels (1, T_mel, num_mels), mel_lengths for the model."""
    device = next(model.parameters()).device
    tokens, mels = utterance.tokens[None].to(device), utterance.mel[None].to(device)
    return tokens, torch.tensor([tokens.shape[1]]), mels, torch.tensor([mels.shape[1]])


@torch.no_grad()
def draw_sample(
    model: Tacotron2,
    utterance: Utterance,
    audio_config: AudioConfig,
    tokenizer: Tokenizer,
    max_decoder_steps: int,
    folder: str | Path,
    epoch: int,
    vocoder: Vocoder | None = None,
) -> dict[str, Media]:
    """Pictures and wav of one clip, teacher forced and free running.

    Free running is cut at twice the recording's length, so that an untrained model costs little.

    Returns:
        These files with captions, teacher_forced, free_running and spoken, and the recording.

    Raises:
        OSError: when one cannot be written; nothing half written is left.
    """
    batch = batch_of_one(model, utterance)
    forced = model(*batch)
    free = model.infer(*batch[:2], free_running_limit(len(utterance.mel), max_decoder_steps))
    text, stem = tokenizer.decode(utterance.tokens), f"{folder}/epoch_{epoch:03d}"

    def draw(kind: str, mels: Tensor, alignments: Tensor, title: str) -> Media:
        figure = summary_figure(
            utterance.mel, mels[0].float().cpu(), alignments[0].float().cpu(), text,
            audio_config.hop_seconds, title=f"epoch {epoch}, {title}",
        )  # fmt: skip
        save_figure(figure, f"{stem}_{kind}.png")
        return Media(f"{stem}_{kind}.png", f"epoch {epoch}, {title}: {text}")

    ending = "reached the limit" if free.reached_limit else "stopped by itself"
    freely = f"free running, {ending}"
    media = {
        "teacher_forced": draw(
            "teacher_forced", forced.mels_after, forced.alignments, "teacher forced"
        ),
        "free_running": draw("free_running", free.mels, free.alignments, freely),
        "spoken": Media(f"{stem}_free_running.wav", f"epoch {epoch}, {freely}: {text}"),
        "recording": Media(utterance.path, f"recording: {text}"),
    }
    wav = to_audio(free.mels[0].float(), audio_config, vocoder).cpu()
    write_wav(media["spoken"].path, wav, audio_config.sampling_rate)
    write_frame(f"{stem}.npz", forced)
    return media


@torch.no_grad()
def draw_frame(model: Tacotron2, utterance: Utterance, folder: str | Path, step: int) -> None:
    """A frame of the film within the first epoch, before the step of this number.

    Raises:
        OSError: when it cannot be written.
    """
    write_frame(f"{folder}/epoch_000_step_{step:06d}.npz", model(*batch_of_one(model, utterance)))


def write_frame(path: str | Path, output: Tacotron2Output) -> None:
    """The alignment and the mel of a batch of one clip, as a compressed .npz.

    Raises:
        OSError: when it cannot be written.
    """
    arrays = {"alignment": output.alignments[0], "mel": output.mels_after[0]}
    arrays = {name: x.float().cpu().numpy().astype(np.float16) for name, x in arrays.items()}

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # given a name, savez would add .npz to it
            np.savez_compressed(file, **arrays)

    write_whole(path, write)


def thin_out(folder: Path, epoch: int, n_kept: int) -> None:
    """Removes files of past epochs, up to this one, until those of n_kept epochs are left.

    The first and the last one stay, and more of the early ones, where most happens.

    Raises:
        OSError: when one cannot be removed.
    """
    files: dict[int, list[Path]] = {}
    for path in folder.glob(EPOCH_FILES):
        number = int(re.match(r"epoch_(\d+)", path.name)[1])
        if 0 < number <= epoch:
            files.setdefault(number, []).append(path)
    kept = sorted(files)
    while len(kept) > n_kept:
        # The one whose neighbours are closest, seen as shares of the training so far.
        between = [(kept[i + 1] - kept[i - 1]) / kept[i + 1] for i in range(1, len(kept) - 1)]
        for path in files[kept.pop(1 + between.index(min(between)))]:
            path.unlink()


@contextmanager
def going_on_without(what: str) -> Iterator[None]:
    """For pictures and sounds, without which training goes on: a line on stderr says so."""
    try:
        yield
    except (DataError, OSError) as error:
        said = f"{what} cannot be written: {error}; going on without"
        print(f"train_taco.py: {said}", file=sys.stderr, flush=True)


def read_frame(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Alignment (T_mel, T_text) and mel (T_mel, num_mels) of a frame's file; empty if broken.

    numpy unpickles nothing here, as allow_pickle is off by default.
    """
    try:
        with np.load(path) as content:
            alignment, mel = (content[name].astype(np.float32) for name in ("alignment", "mel"))
        if alignment.ndim == mel.ndim == 2 and len(alignment) == len(mel):
            return alignment, mel
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        print(f"train_taco.py: the film goes without {path} ({error})", file=sys.stderr)
    return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)


def make_film(folder: Path, history: list[dict], text: str, hop_seconds: float) -> None:
    """alignment.gif: one validation sentence's alignment from before the first step on.

    Raises:
        OSError: when it cannot be written.
    """
    validated = {row["epoch"] for row in history if "free_running_score" in row}
    names = filter(None, (FRAME_NAME.fullmatch(path.name) for path in folder.iterdir()))
    places = {(int(name[1]), int(name[2] or 0)): folder / name[0] for name in names}
    frames = [
        (f"epoch {epoch}" if epoch else f"step {step}", *read_frame(path))
        for (epoch, step), path in sorted(places.items())
        # The folder may hold epochs that the run has gone back behind.
        if epoch in {0, *validated}
    ]
    # Those of the clip that the last one shows: it may have been another one before.
    frames = [frame for frame in frames if frame[1].size and frame[1].shape == frames[-1][1].shape]
    if frames:
        titles, alignments, mels = zip(*frames, strict=True)
        path = folder / "alignment.gif"
        alignment_film(alignments, path, text, titles, hop_seconds, mels=mels)


def draw_losses(folder: Path, history: list[dict]) -> None:
    """loss.png, the losses and scores over the epochs.

    Raises:
        OSError: when it cannot be written.
    """
    save_figure(loss_figure(history), folder / "loss.png")


def alignment_is_due(step: int, config: TrainConfig) -> bool:
    """Whether --alignment_warning_steps have passed without guided attention.

    As long as that draws a diagonal, an alignment says nothing. Without it, patience is longer.
    """
    if config.alignment_warning_steps == 0:
        return False
    if config.guided_attention_weight > 0:
        return step >= config.guided_attention_steps + config.alignment_warning_steps
    return step >= UNGUIDED_PATIENCE * config.alignment_warning_steps


def missing_alignment(row: dict[str, float], config: TrainConfig) -> str | None:
    """What to say when the teacher-forced scores of a validation show no alignment, else None."""
    score = math.prod(row[name] for name in ALIGNMENT_SCORES)
    if score >= ALIGNED:
        return None
    guide = "guided attention: --guided_attention_weight 5, now 0"
    if config.guided_attention_weight > 0:
        n_steps = config.guided_attention_steps
        guide = f"guided attention for longer: --guided_attention_steps, now {n_steps}"
    return f"""step {row["step"]}: attention has not begun to align.
Focus x coverage x monotonicity is {score:.2f}, and at least {ALIGNED} once it has. Losses fall
all the same, but the model will not speak. What usually helps:
  a larger batch: --batch_size, now {config.batch_size}, or --gradient_accumulation_steps
  no silence at the edges of the clips: prep_splits.py --trim_db 40
  a learning rate near 1e-3: --learning_rate, now {config.learning_rate:g}
  {guide}
  short clips first, for longer: --short_first_epochs 2, now {config.short_first_epochs}
  less of the true previous frame: --drop_frame_rate 0.1, now {config.drop_frame_rate:g}"""
