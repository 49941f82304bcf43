"""What a run is worth after an epoch: losses, alignments and pictures.

Teacher forced over the whole validation set, free running over a few clips of it.
"""

import sys

import torch

from dataset import DataError, TTSCollator
from evaluate import ALIGNMENT_SCORES, alignment_scores, free_running_scores
from reporting import draw_sample
from training_run import (
    LOSSES,
    Run,
    forward_losses,
    raise_together,
    read_groups,
    stop_together,
    stop_within,
)


@torch.no_grad()
def validate(run: Run) -> dict[str, float]:
    """Losses and alignment scores over the whole validation set, each clip counted once.

    Raises:
        DataError: on every process, when one of them cannot read a clip.
        Interrupted: on every process, when a signal has come to one of them.
    """
    run.model.eval()
    sums = torch.zeros(len(LOSSES) + len(ALIGNMENT_SCORES), device=run.accelerator.device)
    weights = torch.zeros(2, device=run.accelerator.device)  # frames, clips
    one = torch.ones((), device=run.accelerator.device)
    for group in read_groups(run.val_loader, 1):
        raise_together(run, group)
        stop_together(run)
        batch = group[0]
        losses = forward_losses(run, batch, one, guided_weight=0.0)  # sums over frames
        scores = alignment_scores(
            losses["output"].alignments, batch.token_lengths, batch.mel_lengths
        )
        sums += torch.stack(
            [losses[name] for name in LOSSES] + [score.sum() for score in scores.values()]
        )
        weights += torch.tensor([batch.mel_lengths.sum(), len(batch.mel_lengths)]).to(weights)
    sums, weights = (run.accelerator.reduce(x, "sum") for x in (sums, weights))
    sums[: len(LOSSES)] /= weights[0]
    sums[len(LOSSES) :] /= weights[1]
    run.model.train()
    names = (*LOSSES, *ALIGNMENT_SCORES)
    values = dict(zip(names, sums.tolist(), strict=True))
    return {f"val_{name}": v for name, v in values.items() if name != "guided_attention_loss"}


@torch.no_grad()
def speak_freely(run: Run) -> dict[str, float]:
    """Scores of free running over --free_running_clips clips spread over the validation set.

    Raises:
        DataError: on every process, when one of them cannot read a clip.
        Interrupted: on every process, when a signal has come to one of them.
    """
    n_clips = min(run.config.free_running_clips, len(run.val_set))
    picked = [round(i * (len(run.val_set) - 1) / max(n_clips - 1, 1)) for i in range(n_clips)]
    mine = picked[run.accelerator.process_index :: run.accelerator.num_processes]
    clips, unread = [], None
    try:
        clips = [run.val_set[i] for i in mine]
    except DataError as error:
        unread = error
    raise_together(run, unread)
    names = (*ALIGNMENT_SCORES, "stopped", "score")
    sums = torch.zeros(len(names) + 1, device=run.accelerator.device)  # the last one: clips
    if mine:
        batch = TTSCollator(run.audio_config, run.tokenizer)(clips)
        model = run.accelerator.unwrap_model(run.model).eval()
        limit = min(run.config.max_decoder_steps, 2 * batch.mels.shape[1] + 100)
        tokens = batch.tokens.to(run.accelerator.device)
        with stop_within(run, model):
            scores = free_running_scores(
                model.infer(tokens, batch.token_lengths, limit), batch.token_lengths
            )
            sums = torch.stack([score.sum() for score in scores.values()] + [sums[0] + len(mine)])
        model.train()
    stop_together(run)
    *sums, n_scored = run.accelerator.reduce(sums, "sum").tolist()
    return {f"free_{name}": value / n_scored for name, value in zip(names, sums, strict=True)}


def judge_epoch(run: Run, epoch: int) -> tuple[dict[str, float], dict[str, str]]:
    """All scores after an epoch, and on the main process its pictures and sound.

    The same dropout is drawn every time, and training's random numbers are left alone. Where the
    pictures or the sound cannot be written, a line on stderr says so.

    Returns:
        The scores by name, and the paths of the files as `draw_sample` names them, if written.

    Raises:
        DataError: on every process, when a clip cannot be read.
        Interrupted: on every process, when a signal has come to one of them.
    """
    files = {}
    devices = [run.accelerator.device] if run.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(run.config.seed)
        scores = {**validate(run), **speak_freely(run)}
        if run.accelerator.is_main_process:
            model = run.accelerator.unwrap_model(run.model).eval()
            try:
                with stop_within(run, model):
                    files = draw_sample(
                        model, run.sample, run.audio_config, run.tokenizer,
                        run.config.max_decoder_steps, run.config.save_audio_gen, epoch,
                    )  # fmt: skip
            except (DataError, OSError) as error:
                said = f"the pictures and the sound of epoch {epoch} cannot be written: {error}"
                print(f"train_taco.py: {said}; going on without", file=sys.stderr)
            model.train()
        stop_together(run)
    return scores, files
