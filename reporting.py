"""What a run shows while it goes: console lines, pictures and sounds, the film, wandb.

Apart from train_taco.py so that both stay short. Files go to --save_audio_gen:
epoch_N_teacher_forced.png, epoch_N_free_running.png and .wav, epoch_N.npz (what the film is made
from), and at the end alignment.gif and loss.png.
"""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import AudioConfig, Utterance, mel_to_audio
from model import Tacotron2
from plotting import alignment_film, loss_figure, save_figure, summary_figure
from synthesize import write_wav
from tokenizer import Tokenizer

FILM_FRAMES = 40  # at most, in alignment.gif


class Console:
    """Progress of an epoch on the main process: a bar on a terminal, plain lines elsewhere."""

    def __init__(
        self, visible: bool, epoch: int, epochs: int, epoch_step: int, steps_per_epoch: int
    ) -> None:
        self.visible, self.epoch, self.epochs = visible, epoch, epochs
        self.first_step, self.steps_per_epoch = epoch_step, steps_per_epoch
        self.seconds = time.perf_counter()
        self.bar = tqdm(
            total=steps_per_epoch,
            initial=epoch_step,
            desc=f"epoch {epoch + 1}/{epochs}",
            disable=not (visible and sys.stderr.isatty()),
        )

    def show(self, epoch_step: int, losses: dict[str, float], frames_per_second: float) -> None:
        """After step `epoch_step` of this epoch, with the means since the last call."""
        per_step = (time.perf_counter() - self.seconds) / (epoch_step - self.first_step)
        steps_left = (self.epochs - self.epoch) * self.steps_per_epoch - epoch_step
        shown = {name.replace("_loss", ""): f"{value:.3f}" for name, value in losses.items()}
        shown |= {
            "frames/s": f"{frames_per_second:,.0f}",
            "left": str(timedelta(seconds=round(per_step * steps_left))),
        }
        self.bar.set_postfix(shown, refresh=False)
        if self.visible and self.bar.disable:
            line = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"epoch {self.epoch + 1}  step {epoch_step}/{self.steps_per_epoch}  {line}",
                  flush=True)  # fmt: skip


@torch.no_grad()
def draw_sample(
    model: Tacotron2,
    utterance: Utterance,
    audio_config: AudioConfig,
    tokenizer: Tokenizer,
    max_decoder_steps: int,
    folder: str | Path,
    epoch: int,
) -> dict[str, str]:
    """Pictures and wav of one clip, teacher forced and free running.

    Free running is cut at twice the recording's length, so that an untrained model costs little.

    Returns:
        The files' paths: teacher_forced, free_running, audio.
    """
    device = next(model.parameters()).device
    tokens, mel = utterance.tokens[None].to(device), utterance.mel[None].to(device)
    lengths = torch.tensor([tokens.shape[1]]), torch.tensor([mel.shape[1]])
    forced = model(tokens, lengths[0], mel, lengths[1])
    free = model.infer(tokens, lengths[0], min(max_decoder_steps, 2 * mel.shape[1] + 100))
    text, stem = tokenizer.decode(utterance.tokens), f"{folder}/epoch_{epoch}"

    def draw(kind: str, mels: Tensor, alignments: Tensor, title: str) -> str:
        figure = summary_figure(
            utterance.mel, mels[0].float().cpu(), alignments[0].float().cpu(), text,
            audio_config.hop_seconds, title=f"epoch {epoch}, {title}",
        )  # fmt: skip
        save_figure(figure, f"{stem}_{kind}.png")
        return f"{stem}_{kind}.png"

    ending = "reached the limit" if free.reached_limit else "stopped by itself"
    files = {
        "teacher_forced": draw(
            "teacher_forced", forced.mels_after, forced.alignments, "teacher forced"
        ),
        "free_running": draw("free_running", free.mels, free.alignments, f"free running, {ending}"),
        "audio": f"{stem}_free_running.wav",
    }
    wav = mel_to_audio(free.mels[0].float(), audio_config, n_iter=30).cpu()
    write_wav(files["audio"], wav, audio_config.sampling_rate)
    np.savez_compressed(
        f"{stem}.npz",
        alignment=forced.alignments[0].float().cpu().numpy().astype(np.float16),
        mel=forced.mels_after[0].float().cpu().numpy().astype(np.float16),
    )
    return files


def make_film(folder: str | Path, history: list[dict], text: str, hop_seconds: float) -> None:
    """alignment.gif, one validation sentence's alignment over the epochs, and loss.png."""
    folder = Path(folder)
    epochs = [row["epoch"] for row in history]
    epochs = [epoch for epoch in epochs if (folder / f"epoch_{epoch}.npz").is_file()]
    if len(epochs) > FILM_FRAMES:  # alignment appears early: more frames there
        picked = (len(epochs) - 1) * np.linspace(0, 1, FILM_FRAMES) ** 2
        epochs = [epochs[i] for i in sorted(set(picked.round().astype(int)))]
    frames = [np.load(folder / f"epoch_{epoch}.npz") for epoch in epochs]
    if frames:
        alignment_film(
            [frame["alignment"].astype(np.float32) for frame in frames],
            folder / "alignment.gif",
            text=text,
            titles=[f"epoch {epoch}" for epoch in epochs],
            hop_seconds=hop_seconds,
            mels=[frame["mel"].astype(np.float32) for frame in frames],
        )
    save_figure(loss_figure(history), folder / "loss.png")


def start_wandb(project: str, name: str, flags: dict[str, Any], resumed_id: str | None) -> Any:
    """wandb's run, or None with a line on stderr where it cannot be had: training goes on."""
    try:
        import wandb

        resume = "allow" if resumed_id else None
        return wandb.init(project=project, name=name, config=flags, id=resumed_id, resume=resume)
    except Exception as error:
        print(f"train_taco.py: going on without wandb ({error})", file=sys.stderr)
        return None


def log_validation(
    wandb_run: Any, row: dict[str, float], files: dict[str, str], sampling_rate: int
) -> None:
    """One epoch's scores, pictures and sound to wandb."""
    import wandb

    wandb_run.log(
        {
            **{f"epoch/{name}": value for name, value in row.items()},
            "teacher_forced": wandb.Image(files["teacher_forced"]),
            "free_running": wandb.Image(files["free_running"]),
            "audio": wandb.Audio(files["audio"], sample_rate=sampling_rate),
        },
        step=row["step"],
    )
