"""Draw the pictures, sounds and film of a run, in SAVE_AUDIO_GEN/EXPERIMENT_NAME.

The folder has loss.png, and for each validation epoch_001_teacher_forced.png,
epoch_001_free_running.png and .wav, and epoch_001.npz, a frame of the film. The film also has
frames of the first epoch, such as epoch_000_step_000025.npz. When a run ends, also by a signal,
the frames become alignment.gif.
"""

import re
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from command_line.files import write_whole
from command_line.main import never_fatal, say, warn
from dataset import TTSDataset, Utterance, write_wav
from model import Tacotron2, Tacotron2Output
from scoring.pictures import alignment_film, save_figure, summary_figure
from scoring.scores import free_running_limit
from speech.contrast import sharpen
from speech.vocoder import to_audio
from training.run import Run
from training.state import TrainerState
from training.tracking import Media

EPOCH_FILES = "epoch_[0-9]*"
FRAME_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?\.npz")
FIRST_FRAMES = 8  # frames of the film from the first epoch
SAMPLE_SECONDS = 3.0  # least length of the clip that is shown; a shorter one tells little


def choose_sample(val_set: TTSDataset) -> Utterance:
    """Pick the validation clip that the pictures show.

    Of the clips of at least 3 s, or of all clips if none is that long, it is the one whose length
    is nearest to the median of all.
    """
    frames = np.array(val_set.n_frames)
    distance = np.abs(frames - np.median(frames))
    long_enough = frames >= SAMPLE_SECONDS / val_set.audio_config.hop_seconds
    distance[~long_enough & long_enough.any()] = np.inf
    return val_set[int(distance.argmin())]


def batch_of_one(model: Tacotron2, utterance: Utterance) -> tuple[Tensor, ...]:
    """Make tokens (1, T_text), token_lengths, mels (1, T_mel, num_mels), mel_lengths of a clip."""
    device = next(model.parameters()).device
    tokens, mels = utterance.tokens[None].to(device), utterance.mel[None].to(device)
    return tokens, torch.tensor([tokens.shape[1]]), mels, torch.tensor([mels.shape[1]])


@torch.no_grad()
def draw_sample(run: Run, epoch: int) -> dict[str, Media]:
    """Draw and speak one validation clip, teacher forced and free running.

    Free running is cut at twice the recording's length, so that an untrained model costs little.

    Returns:
        The files by name with their captions: teacher_forced, free_running, spoken, recording.
    """
    utterance, model, config = choose_sample(run.val_set), run.bare_model, run.config
    text, stem = run.tokenizer.decode(utterance.tokens), f"{run.pictures}/epoch_{epoch:03d}"
    batch = batch_of_one(model, utterance)
    forced = model(*batch)
    limit = free_running_limit(len(utterance.mel), config.max_decoder_steps)
    free = model.infer(*batch[:2], limit)
    spoken = sharpen(free.mels[0], run.audio_config, run.contrast)

    def draw(kind: str, mels: Tensor, alignments: Tensor, title: str) -> Media:
        figure = summary_figure(
            utterance.mel,
            mels[0].float().cpu(),
            alignments[0].float().cpu(),
            text,
            run.audio_config.hop_seconds,
            title=f"epoch {epoch}, {title}",
        )
        save_figure(figure, f"{stem}_{kind}.png")
        return Media(f"{stem}_{kind}.png", f"epoch {epoch}, {title}: {text}")

    ending = "reached the limit" if free.reached_limit else "stopped by itself"
    title = f"free running, {ending}"
    media = {
        "teacher_forced": draw(
            "teacher_forced", forced.mels_after, forced.alignments, "teacher forced"
        ),
        "free_running": draw("free_running", spoken[None], free.alignments, title),
        "spoken": Media(f"{stem}_free_running.wav", f"epoch {epoch}, {title}: {text}"),
        "recording": Media(utterance.path, f"recording: {text}"),
    }
    wav = to_audio(spoken, run.audio_config, run.vocoder).cpu()
    write_wav(media["spoken"].path, wav, run.audio_config.sampling_rate)
    write_frame(f"{stem}.npz", forced)
    thin_out(run.pictures, epoch, config.keep_pictures)
    return media


def film_first_epoch(run: Run, state: TrainerState) -> None:
    """Write a frame of the film before the first step and some later steps of the first epoch.

    The model may already align at the end of the first epoch.
    """
    n_steps = run.steps_per_epoch
    due = state.epoch_step in {i * n_steps // FIRST_FRAMES for i in range(FIRST_FRAMES)}
    if state.epoch > 0 or not due or not run.is_main:
        return
    with run.evaluation(), never_fatal(f"the film's frame of step {state.step}"):
        output = run.bare_model(*batch_of_one(run.bare_model, choose_sample(run.val_set)))
        write_frame(f"{run.pictures}/epoch_000_step_{state.step:06d}.npz", output)


def write_frame(path: str | Path, output: Tacotron2Output) -> None:
    """Write the alignment and the mel of a batch of one clip as a compressed .npz."""
    arrays = {"alignment": output.alignments[0], "mel": output.mels_after[0]}
    arrays = {name: x.float().cpu().numpy().astype(np.float16) for name, x in arrays.items()}

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # given a name, savez would append .npz
            np.savez_compressed(file, **arrays)

    write_whole(path, write)


def thin_out(folder: Path, epoch: int, n_kept: int) -> None:
    """Remove files of past epochs, up to this one, until those of n_kept epochs are left.

    The first and the last epoch stay, and more of the early ones, where most happens.
    """
    files: dict[int, list[Path]] = {}
    for path in folder.glob(EPOCH_FILES):
        number = int(re.match(r"epoch_(\d+)", path.name)[1])
        if 0 < number <= epoch:
            files.setdefault(number, []).append(path)
    kept = sorted(files)
    while len(kept) > n_kept:
        # Drop the epoch whose neighbours are closest, relative to the training so far.
        between = [(kept[i + 1] - kept[i - 1]) / kept[i + 1] for i in range(1, len(kept) - 1)]
        for path in files[kept.pop(1 + between.index(min(between)))]:
            path.unlink()


def remove_pictures(folder: Path) -> None:
    """Remove the pictures and sounds that an earlier run of the same name has left."""
    summaries = (folder / name for name in ("alignment.gif", "loss.png"))
    for path in filter(Path.is_file, [*folder.glob(EPOCH_FILES), *summaries]):
        path.unlink()


def read_frame(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read alignment (T_mel, T_text) and mel (T_mel, num_mels) of a frame; None if it is broken.

    numpy unpickles nothing here, as allow_pickle is off by default.
    """
    try:
        with np.load(path) as content:
            alignment, mel = (content[name].astype(np.float32) for name in ("alignment", "mel"))
        if alignment.ndim == mel.ndim == 2 and len(alignment) == len(mel) > 0:
            return alignment, mel
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        warn(f"the film leaves out {path} ({error})")
    return None


def make_film(folder: Path, history: list[dict], text: str, hop_seconds: float) -> None:
    """Draw alignment.gif: one validation sentence's alignment from before the first step on."""
    validated = {0, *(row["epoch"] for row in history if "free_running_score" in row)}
    names = filter(None, (FRAME_NAME.fullmatch(path.name) for path in folder.iterdir()))
    places = {(int(name[1]), int(name[2] or 0)): folder / name[0] for name in names}
    frames = [
        (f"epoch {epoch}" if epoch else f"step {step}", *frame)
        for (epoch, step), path in sorted(places.items())
        # A run resumed from an earlier checkpoint leaves frames of later epochs in the folder.
        if epoch in validated and (frame := read_frame(path))
    ]
    # Keep the frames of the clip that the last one shows; earlier ones may show another clip.
    frames = [frame for frame in frames if frame[1].shape == frames[-1][1].shape]
    if frames:
        titles, alignments, mels = zip(*frames, strict=True)
        path = folder / "alignment.gif"
        alignment_film(alignments, path, text, titles, hop_seconds, mels=mels)


def finish_pictures(run: Run, state: TrainerState) -> None:
    """Make the film and print where all pictures are."""
    if run.is_main:
        with never_fatal("the film"):
            text = run.tokenizer.decode(choose_sample(run.val_set).tokens)
            make_film(run.pictures, state.history, text, run.audio_config.hop_seconds)
        say(f"pictures and wavs: {run.pictures}")
