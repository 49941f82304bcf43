"""Validate after an epoch: losses and alignments by teacher forcing, and free running.

Teacher forcing covers the whole validation set, free running a few clips of it.
"""

import sys

import torch
from torch import Tensor

from command_line.main import never_fatal, say
from dataset import Batch, TTSCollator, TTSDataset, clamp_mel
from model import Tacotron2Output, tacotron2_loss
from scoring.pictures import loss_figure, save_figure
from scoring.scores import (
    ALIGNMENT_SCORES,
    FREE_RUNNING_SCORES,
    alignment_scores,
    free_running_limit,
    free_running_scores,
)
from scoring.text_match import has_other_texts, text_match
from speech.contrast import compare, sum_cepstra
from training.failures import explain_memory
from training.pictures import draw_sample
from training.progress import describe_missing_speech, print_epoch, warning_is_due
from training.run import Run
from training.state import LOSSES, TrainerState
from training.tracking import Media

# Clips to speak freely if --free_running_clips is unset. With the most, the mean score is stable to
# 0.02; more would only take memory.
LEAST_CLIPS, MOST_CLIPS = 16, 256


def count_free_running_clips(train_set: TTSDataset, val_set: TTSDataset) -> int:
    """Count the clips that can be spoken freely, in one batch, in a tenth of an epoch's time.

    An epoch takes every frame forwards and backwards, three times the work of forwards alone; free
    running takes every clip as far as the longest.
    """
    limit = 2 * max(val_set.n_frames) + 100
    affordable = int(0.1 * 3 * sum(train_set.n_frames) / limit)
    return min(max(affordable, LEAST_CLIPS), MOST_CLIPS, len(val_set))


def is_new_best(history: list[dict], best_epoch: int) -> bool:
    """Return True if the last epoch of a history is better than best_epoch (0: there is none).

    The text match decides. Where two are equal, or the validation set has only one text and thus no
    text match, the validation loss does.
    """
    ranks = {
        row["epoch"]: (row.get("text_match", 0.0), -row["val_loss"])
        for row in history
        if "val_loss" in row
    }
    last = history[-1]["epoch"]
    return last in ranks and (best_epoch not in ranks or ranks[last] > ranks[best_epoch])


def force(run: Run, batch: Batch) -> tuple[Tacotron2Output, dict[str, Tensor]]:
    """Run a batch by teacher forcing; the losses are sums over frames."""
    output = run.model(batch.tokens, batch.token_lengths, batch.mels, batch.mel_lengths)
    one = torch.ones((), device=batch.mels.device)
    inputs = batch.mels, batch.token_lengths, batch.mel_lengths, batch.stop_targets
    return output, tacotron2_loss(output, *inputs, n_frames=one, l1_weight=run.config.l1_weight)


def score_teacher_forced(run: Run) -> dict[str, float]:
    """Average losses and alignment scores over the whole validation set, each clip once.

    text_gain says by which share the mels' loss rises if each clip gets the text of another clip of
    its batch.
    """
    device = run.accelerator.device
    sums = torch.zeros(len(LOSSES) + len(ALIGNMENT_SCORES), device=device)
    weights = torch.zeros(2, device=device)  # frames, clips
    mel_losses = torch.zeros(2, device=device)  # with the clips' own texts, with others
    for batch in run.val_loader:
        batch = batch.to(device)
        output, losses = force(run, batch)
        scores = alignment_scores(output.alignments, batch.token_lengths, batch.mel_lengths)
        sums += torch.stack(
            [losses[name] for name in LOSSES] + [score.sum() for score in scores.values()]
        )
        weights += torch.tensor([batch.mel_lengths.sum(), len(batch.mel_lengths)]).to(weights)
        if len(batch.texts) > 1:
            tokens, token_lengths = (x.roll(1, 0) for x in (batch.tokens, batch.token_lengths))
            swapped = batch._replace(tokens=tokens, token_lengths=token_lengths)
            both = losses, force(run, swapped)[1]
            mel_losses += torch.stack([x["mel_before_loss"] + x["mel_after_loss"] for x in both])
    sums, weights, mel_losses = (
        run.accelerator.reduce(x, "sum") for x in (sums, weights, mel_losses)
    )
    sums[: len(LOSSES)] /= weights[0]
    sums[len(LOSSES) :] /= weights[1]
    names = (*(f"val_{name}" for name in LOSSES), *ALIGNMENT_SCORES)
    values = dict(zip(names, sums.tolist(), strict=True))
    del values["val_guided_attention_loss"]
    own, other = mel_losses.tolist()
    return values | ({"text_gain": other / own - 1} if own else {})


def score_free_running(run: Run) -> dict[str, float]:
    """Average the scores of free running over clips spread over the validation set.

    Also finds the contrast that their mels lack, for the checkpoints that follow.
    """
    val_set, accelerator = run.val_set, run.accelerator
    n_clips = min(run.config.free_running_clips, len(val_set))
    picked = [round(i * (len(val_set) - 1) / max(n_clips - 1, 1)) for i in range(n_clips)]
    mine = picked[accelerator.process_index :: accelerator.num_processes]
    names = (*FREE_RUNNING_SCORES, *(["text_match"] if has_other_texts(val_set) else []))
    sums = torch.zeros(len(names) + 1, device=accelerator.device)  # last: clips
    cepstra = torch.zeros(2, 3, val_set.audio_config.num_mels, device=accelerator.device)
    if mine:
        batch = TTSCollator(val_set.audio_config, val_set.tokenizer)([val_set[i] for i in mine])
        limit = free_running_limit(batch.mels.shape[1], run.config.max_decoder_steps)
        output = run.bare_model.infer(
            batch.tokens.to(accelerator.device), batch.token_lengths, limit
        )
        scores = free_running_scores(output, batch.token_lengths)
        mels = [mel[:n] for mel, n in zip(output.mels, output.mel_lengths, strict=True)]
        recorded = [mel[:n] for mel, n in zip(batch.mels, batch.mel_lengths, strict=True)]
        # What follows where a voice does not stop is not speech.
        pairs = zip(mels, recorded, strict=True)
        clamped = [clamp_mel(mel[: len(own)], val_set.audio_config) for mel, own in pairs]
        cepstra = torch.stack([sum_cepstra(x).to(cepstra) for x in (clamped, recorded)])
        if "text_match" in names:
            matches = [text_match(val_set, *clip) for clip in zip(mine, mels, strict=True)]
            scores["text_match"] = torch.tensor(matches, device=accelerator.device)
        sums = torch.stack([score.sum() for score in scores.values()] + [sums[0] + len(mine)])
    run.contrast = compare(*accelerator.reduce(cepstra, "sum"))
    *sums, n_scored = accelerator.reduce(sums, "sum").tolist()
    return {name: x / n_scored for name, x in zip(names, sums, strict=True)}


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
    """Print and log the epoch that has just ended, and warn once if the voice says nothing."""
    row, is_due = state.history[-1], warning_is_due(state.step, run.config)
    check = "val_loss" in row and is_due and not state.speech_checked
    state.speech_checked = state.speech_checked or check
    if not run.is_main:
        return
    print_epoch(row)
    if "val_loss" in row:
        with never_fatal("loss.png"):
            save_figure(loss_figure(state.history), run.pictures / "loss.png")
    run.progress.tracking.log_epoch(row, media)
    if check and (warning := describe_missing_speech(row, run.config)):
        say(warning, file=sys.stderr)
