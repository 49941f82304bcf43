"""Validates after an epoch: losses and alignments by teacher forcing, and free running.

Teacher forcing covers the whole validation set, free running a few clips of it.
"""

import math
import sys

import torch

from command_line.main import never_fatal, say
from dataset import TTSCollator, TTSDataset
from model import tacotron2_loss
from scoring.pictures import loss_figure, save_figure
from scoring.scores import (
    ALIGNMENT_SCORES,
    FREE_RUNNING_SCORES,
    alignment_scores,
    free_running_limit,
    free_running_scores,
)
from training.config import TrainConfig
from training.failures import explain_memory
from training.pictures import draw_sample
from training.progress import alignment_is_due, describe_missing_alignment, print_epoch
from training.run import Run
from training.state import LOSSES, TrainerState
from training.tracking import Media

# Clips that are spoken freely where --free_running_clips is unset. The mean score of the most is
# stable to 0.02, and still more would only take memory.
LEAST_CLIPS, MOST_CLIPS = 16, 256
# What a voice must be able to do in free running. Focus is left out: it is highest where guided
# attention still holds a straight line, and falls as the alignment begins to follow the speech.
RELIABILITY = ("stopped_by_itself", "free_running_coverage", "free_running_monotonicity")
NEAR_TIE = 0.02  # of their product: closer ones may differ by chance


def count_free_running_clips(train_set: TTSDataset, val_set: TTSDataset) -> int:
    """Count the clips that can be spoken freely, in one batch, in a tenth of an epoch's time.

    An epoch takes every frame forwards and backwards, three times the work of forwards alone; in
    free running, every clip goes on until the longest has ended.
    """
    limit = 2 * max(val_set.n_frames) + 100
    affordable = int(0.1 * 3 * sum(train_set.n_frames) / limit)
    return min(max(affordable, LEAST_CLIPS), MOST_CLIPS, len(val_set))


def is_new_best(history: list[dict], best_epoch: int, config: TrainConfig) -> bool:
    """Return True if the last epoch of a history is better than best_epoch (0: there is none).

    The product of RELIABILITY decides. Among epochs within NEAR_TIE of each other and of the
    highest product, the validation loss does, which is far less a matter of chance. Epochs that end
    while attention is still guided do not compete: the straight line that the guide draws has
    near-perfect coverage and monotonicity.
    """
    guided_until = config.guided_attention_steps if config.guided_attention_weight > 0 else 0
    rows = {
        row["epoch"]: row
        for row in history
        if "free_running_score" in row and row["step"] >= guided_until
    }
    products = {n: math.prod(row[name] for name in RELIABILITY) for n, row in rows.items()}
    last = history[-1]["epoch"]
    if last not in rows or best_epoch not in rows:
        return last in rows
    if products[last] > products[best_epoch] + NEAR_TIE:
        return True
    is_near = products[last] >= max(products.values()) - NEAR_TIE
    return is_near and rows[last]["val_loss"] < rows[best_epoch]["val_loss"]


def score_teacher_forced(run: Run) -> dict[str, float]:
    """Average losses and alignment scores over the whole validation set, each clip once."""
    device = run.accelerator.device
    sums = torch.zeros(len(LOSSES) + len(ALIGNMENT_SCORES), device=device)
    weights = torch.zeros(2, device=device)  # frames, clips
    one = torch.ones((), device=device)
    for batch in run.val_loader:
        batch = batch.to(device)
        output = run.model(batch.tokens, batch.token_lengths, batch.mels, batch.mel_lengths)
        losses = tacotron2_loss(
            output,
            batch.mels,
            batch.token_lengths,
            batch.mel_lengths,
            batch.stop_targets,
            n_frames=one,
        )
        scores = alignment_scores(output.alignments, batch.token_lengths, batch.mel_lengths)
        sums += torch.stack(
            [losses[name] for name in LOSSES] + [score.sum() for score in scores.values()]
        )
        weights += torch.tensor([batch.mel_lengths.sum(), len(batch.mel_lengths)]).to(weights)
    sums, weights = (run.accelerator.reduce(x, "sum") for x in (sums, weights))
    sums[: len(LOSSES)] /= weights[0]
    sums[len(LOSSES) :] /= weights[1]
    names = (*(f"val_{name}" for name in LOSSES), *ALIGNMENT_SCORES)
    values = dict(zip(names, sums.tolist(), strict=True))
    del values["val_guided_attention_loss"]
    return values


def score_free_running(run: Run) -> dict[str, float]:
    """Average the scores of free running over clips spread over the validation set."""
    val_set, accelerator = run.val_set, run.accelerator
    n_clips = min(run.config.free_running_clips, len(val_set))
    picked = [round(i * (len(val_set) - 1) / max(n_clips - 1, 1)) for i in range(n_clips)]
    mine = picked[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(len(FREE_RUNNING_SCORES) + 1, device=accelerator.device)  # last: clips
    if mine:
        batch = TTSCollator(val_set.audio_config, val_set.tokenizer)([val_set[i] for i in mine])
        limit = free_running_limit(batch.mels.shape[1], run.config.max_decoder_steps)
        output = run.bare_model.infer(
            batch.tokens.to(accelerator.device), batch.token_lengths, limit
        )
        scores = free_running_scores(output, batch.token_lengths)
        sums = torch.stack([score.sum() for score in scores.values()] + [sums[0] + len(mine)])
    *sums, n_scored = accelerator.reduce(sums, "sum").tolist()
    return {name: x / n_scored for name, x in zip(FREE_RUNNING_SCORES, sums, strict=True)}


def validate(run: Run, epoch: int) -> tuple[dict[str, float], dict[str, Media]]:
    """Score an epoch, and on the main process draw and speak a sample.

    Returns:
        The scores by name, and the pictures and sounds as `draw_sample` names them.
    """
    media: dict[str, Media] = {}
    advice = (
        f"in the validation of epoch {epoch}; lower --free_running_clips, now "
        f"{run.config.free_running_clips}, or --batch_size, now {run.config.batch_size}"
    )
    with run.evaluation(), explain_memory(advice):
        scores = score_teacher_forced(run) | score_free_running(run)
        if run.is_main:
            with never_fatal(f"the pictures and the sound of epoch {epoch}"):
                media = draw_sample(run, epoch)
    return scores, media


def report_epoch(run: Run, state: TrainerState, media: dict[str, Media]) -> None:
    """Print and log the epoch that has just ended, and warn once if there is no alignment."""
    row, is_due = state.history[-1], alignment_is_due(state.step, run.config)
    check = "val_loss" in row and is_due and not state.alignment_checked
    state.alignment_checked = state.alignment_checked or check
    if not run.is_main:
        return
    print_epoch(row)
    if "val_loss" in row:
        with never_fatal("loss.png"):
            save_figure(loss_figure(state.history), run.pictures / "loss.png")
    run.progress.tracking.log_epoch(row, media)
    if check and (warning := describe_missing_alignment(row, run.config)):
        say(warning, file=sys.stderr)
