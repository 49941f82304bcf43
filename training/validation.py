"""What a model is worth after an epoch: losses, alignments and pictures.

Teacher forced over the whole validation set, free running over a few clips of it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from command_line.files import DataError
from dataset import TTSCollator, TTSDataset, Utterance
from model import tacotron2_loss
from scoring.scores import (
    ALIGNMENT_SCORES,
    FREE_RUNNING_SCORES,
    alignment_scores,
    free_running_limit,
    free_running_scores,
)
from speech.vocoder import Vocoder
from training.config import TrainConfig
from training.processes import Interrupt, raise_together, read_groups, stop_together, stop_within
from training.reporting import FIRST_FRAMES, draw_frame, draw_sample, going_on_without, thin_out
from training.tracking import Media

LOSSES = ("loss", "mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")


SAMPLE_SECONDS = 3.0  # of the clip that is shown, at least; a shorter one says little
# Spoken freely where --free_running_clips is unset. The mean score of the most is stable to 0.02,
# and still more would only take memory.
LEAST_CLIPS, MOST_CLIPS = 16, 256
# Of free running, what a voice must have; focus is left out, for it is highest where guided
# attention still holds a straight line, and falls as the alignment begins to follow the speech.
RELIABILITY = ("stopped_by_itself", "free_running_coverage", "free_running_monotonicity")
NEAR_TIE = 0.02  # of their product: closer ones may be apart by chance


def count_free_running_clips(train_set: TTSDataset, val_set: TTSDataset) -> int:
    """How many validation clips can be spoken freely, in one batch, in a tenth of an epoch's time.

    An epoch takes every frame forwards and backwards, which is three times the work of forwards
    alone; in free running, every clip goes on until the longest has ended.
    """
    limit = 2 * max(val_set.n_frames) + 100
    affordable = int(0.1 * 3 * sum(train_set.n_frames) / limit)
    return min(max(affordable, LEAST_CLIPS), MOST_CLIPS, len(val_set.n_frames))


def is_new_best(history: list[dict], best_epoch: int) -> bool:
    """Whether the last epoch of a history is better than best_epoch, the one kept; 0: none is.

    The product of RELIABILITY decides. Among epochs within NEAR_TIE of each other and of the
    highest that there was, it is the validation loss, which is far less a matter of chance.
    """
    rows = {row["epoch"]: row for row in history if "free_running_score" in row}
    products = {n: math.prod(row[name] for name in RELIABILITY) for n, row in rows.items()}
    last = history[-1]["epoch"]
    if last not in rows or best_epoch not in rows:
        return last in rows
    if products[last] > products[best_epoch] + NEAR_TIE:
        return True
    is_near = products[last] >= max(products.values()) - NEAR_TIE
    return is_near and rows[last]["val_loss"] < rows[best_epoch]["val_loss"]


def choose_sample(val_set: TTSDataset) -> Utterance:
    """The validation clip that the pictures show: of the median length, if that is 3 s or more.

    Else the nearest to it that is. Only where all are shorter, one of them.
    """
    least = SAMPLE_SECONDS / val_set.audio_config.hop_seconds
    frames = np.array(val_set.n_frames)
    distance = np.abs(frames - np.median(frames))
    distance[(frames < least) & (frames.max() >= least)] = np.inf
    return val_set[int(distance.argmin())]


@torch.no_grad()
def validate(
    accelerator: Accelerator, model: torch.nn.Module, val_loader: DataLoader,
    interrupt: Interrupt | None = None,
) -> dict[str, float]:  # fmt: skip
    """Losses and alignment scores over the whole validation set, each clip counted once.

    Raises:
        DataError: on every process, when one of them cannot read a clip.
        Interrupted: on every process, when a signal has come to one of them.
    """
    model.eval()
    sums = torch.zeros(len(LOSSES) + len(ALIGNMENT_SCORES), device=accelerator.device)
    weights = torch.zeros(2, device=accelerator.device)  # frames, clips
    one = torch.ones((), device=accelerator.device)
    for group in read_groups(val_loader, 1):
        raise_together(accelerator, group)
        stop_together(accelerator, interrupt)
        batch = group[0].to(accelerator.device)
        output = model(*batch[:4])  # tokens, token_lengths, mels, mel_lengths
        losses = tacotron2_loss(
            output, batch.mels, batch.token_lengths, batch.mel_lengths, batch.stop_targets,
            n_frames=one,
        )  # fmt: skip
        scores = alignment_scores(output.alignments, batch.token_lengths, batch.mel_lengths)
        sums += torch.stack(
            [losses[name] for name in LOSSES] + [score.sum() for score in scores.values()]
        )
        weights += torch.tensor([batch.mel_lengths.sum(), len(batch.mel_lengths)]).to(weights)
    sums, weights = (accelerator.reduce(x, "sum") for x in (sums, weights))
    sums[: len(LOSSES)] /= weights[0]
    sums[len(LOSSES) :] /= weights[1]
    model.train()
    names = (*(f"val_{name}" for name in LOSSES), *ALIGNMENT_SCORES)
    values = dict(zip(names, sums.tolist(), strict=True))
    del values["val_guided_attention_loss"]
    return values


@torch.no_grad()
def speak_freely(
    accelerator: Accelerator, model: torch.nn.Module, val_set: TTSDataset, config: TrainConfig,
    interrupt: Interrupt | None = None,
) -> dict[str, float]:  # fmt: skip
    """Scores of free running over clips spread over the validation set, in one batch.

    Raises:
        DataError: on every process, when one of them cannot read a clip.
        Interrupted: on every process, when a signal has come to one of them.
    """
    n_clips = min(config.free_running_clips, len(val_set))
    picked = [round(i * (len(val_set) - 1) / max(n_clips - 1, 1)) for i in range(n_clips)]
    mine = picked[accelerator.process_index :: accelerator.num_processes]
    clips, unread = [], None
    try:
        clips = [val_set[i] for i in mine]
    except DataError as error:
        unread = error
    raise_together(accelerator, unread)
    sums = torch.zeros(
        len(FREE_RUNNING_SCORES) + 1, device=accelerator.device
    )  # the last one: clips
    if mine:
        batch = TTSCollator(val_set.audio_config, val_set.tokenizer)(clips)
        unwrapped = accelerator.unwrap_model(model).eval()
        limit = free_running_limit(batch.mels.shape[1], config.max_decoder_steps)
        tokens = batch.tokens.to(accelerator.device)
        with stop_within(interrupt, unwrapped):
            scores = free_running_scores(
                unwrapped.infer(tokens, batch.token_lengths, limit), batch.token_lengths
            )
            sums = torch.stack([score.sum() for score in scores.values()] + [sums[0] + len(mine)])
        unwrapped.train()
    stop_together(accelerator, interrupt)
    *sums, n_scored = accelerator.reduce(sums, "sum").tolist()
    return dict(zip(FREE_RUNNING_SCORES, (value / n_scored for value in sums), strict=True))


@contextmanager
def same_random_numbers(accelerator: Accelerator, seed: int) -> Iterator[None]:
    """Draws the same random numbers in the block every time, and leaves training's alone."""
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def film_first_epoch(
    accelerator: Accelerator, model: torch.nn.Module, val_set: TTSDataset, config: TrainConfig,
    pictures: Path, step: int, n_steps: int,
) -> None:  # fmt: skip
    """A frame of the film before a step of the first epoch, where one is due; training goes on.

    That is before the first step, and FIRST_FRAMES times in all, as an alignment may be there at
    the end of the first epoch.
    """
    due = step in {i * n_steps // FIRST_FRAMES for i in range(FIRST_FRAMES)}
    if not (due and accelerator.is_main_process):
        return
    try:
        clip = choose_sample(val_set)
    except DataError:  # the validation will end the run with it, on all processes together
        return
    unwrapped = accelerator.unwrap_model(model).eval()
    with same_random_numbers(accelerator, config.seed), going_on_without(f"a frame of step {step}"):
        draw_frame(unwrapped, clip, pictures, step)
    unwrapped.train()


def judge_epoch(
    accelerator: Accelerator, model: torch.nn.Module, val_loader: DataLoader, config: TrainConfig,
    pictures: Path, epoch: int, interrupt: Interrupt | None = None,
    vocoder: Vocoder | None = None,
) -> tuple[dict[str, float], dict[str, Media]]:  # fmt: skip
    """All scores after an epoch, and on the main process its pictures and sound in a folder.

    The same dropout is drawn every time, and training's random numbers are left alone. Where the
    pictures or the sound cannot be written, a line on stderr says so. Files of past epochs beyond
    --keep_pictures are removed.

    Returns:
        The scores by name, and the pictures and sounds as `draw_sample` names them, if written.

    Raises:
        DataError: on every process, when a clip cannot be read.
        Interrupted: on every process, when a signal has come to one of them.
    """
    media, val_set = {}, val_loader.dataset
    with same_random_numbers(accelerator, config.seed):
        scores = validate(accelerator, model, val_loader, interrupt)
        scores |= speak_freely(accelerator, model, val_set, config, interrupt)
        if accelerator.is_main_process:
            unwrapped = accelerator.unwrap_model(model).eval()
            with going_on_without(f"the pictures and the sound of epoch {epoch}"):
                with stop_within(interrupt, unwrapped):
                    media = draw_sample(
                        unwrapped, choose_sample(val_set), val_set.audio_config,
                        val_set.tokenizer, config.max_decoder_steps, pictures, epoch, vocoder,
                    )  # fmt: skip
                thin_out(pictures, epoch, config.keep_pictures)
            unwrapped.train()
        stop_together(accelerator, interrupt)
    return scores, media
