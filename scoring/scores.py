"""Score alignments and mels: pure functions of tensors.

Focus, coverage and monotonicity show if an alignment is well formed, word_start_errors shows if it
is true, and mel_cepstral_distortion how far a mel is from the recording's.
"""

import re

import numpy as np
import torch
from torch import Tensor

from command_line.files import DataError
from dataset import AudioConfig, to_log_mel
from model import InferenceOutput
from text.tokenizer import Tokenizer

# Training, its pictures and checkpoints, wandb and evaluate.py use these names. Scores without
# "free_running_" are those of a teacher-forced alignment.
ALIGNMENT_SCORES = ("focus", "coverage", "monotonicity")
FREE_RUNNING_SCORES = (
    *(f"free_running_{name}" for name in ALIGNMENT_SCORES),
    "stopped_by_itself",
    "free_running_score",
)
COVERED = 0.5  # frames of attention; a character that gets this much counts as visited
N_CEPSTRA = 13  # c_1 to c_13; c_0 is loudness


def alignment_scores(
    alignments: Tensor, token_lengths: Tensor, mel_lengths: Tensor
) -> dict[str, Tensor]:
    """Score how well formed each alignment (B, T_mel, T_text) is; each score is (B,).

    focus: the mean over frames of the alignment's maximum, 1 is sharp; coverage: the share of
    characters that get at least half a frame of attention; monotonicity: the share of frames at
    which the arg-max does not go back.
    """
    alignments, token_lengths = alignments.float(), token_lengths.to(alignments.device)
    mel_lengths = mel_lengths.to(alignments.device)
    frames = torch.arange(alignments.shape[1], device=alignments.device)
    valid = frames < mel_lengths[:, None]  # (B, T_mel)
    maxima, positions = alignments.max(dim=2)  # (B, T_mel) both
    attention = (alignments * valid[:, :, None]).sum(dim=1)  # (B, T_text)
    forward = (positions.diff(dim=1) >= 0) & valid[:, 1:]
    return {
        "focus": (maxima * valid).sum(dim=1) / mel_lengths,
        "coverage": (attention >= COVERED).sum(dim=1) / token_lengths,
        "monotonicity": forward.sum(dim=1) / (mel_lengths - 1).clamp_min(1),
    }


def free_running_limit(n_frames: int, max_decoder_steps: int) -> int:
    """Limit free running: a voice twice as long as its recording has missed its end anyway."""
    return min(max_decoder_steps, 2 * n_frames + 100)


def free_running_scores(output: InferenceOutput, token_lengths: Tensor) -> dict[str, Tensor]:
    """Score each item's free running by FREE_RUNNING_SCORES, (B,) each.

    The last one, free_running_score, is the product of the others: near 0 when an item does not
    stop, babbles, skips or goes back, and 0.5 to 0.8 when all is well.
    """
    scores = alignment_scores(output.alignments, token_lengths, output.mel_lengths)
    values = [*scores.values(), (~output.reached_limit).float()]
    values.append(torch.stack(values).prod(dim=0))
    return dict(zip(FREE_RUNNING_SCORES, values, strict=True))


def to_cepstra(mel: Tensor, audio_config: AudioConfig) -> np.ndarray:
    """Turn a mel (T_mel, num_mels) into cepstra (T_mel, 13), whose distances are in dB.

    They are c_1 to c_13 of the DCT-II of the natural-log mel, scaled to the amplitudes of its
    cosines, so that the distance between two frames, (10 / ln 10) sqrt(2 sum (c_k - c'_k)^2), is
    the root mean square in dB between two smoothed spectra.
    """
    import scipy.fft

    log_mel = to_log_mel(mel.float().cpu(), audio_config).double().numpy()
    if not np.isfinite(log_mel).all():
        raise DataError("a mel holds values that are not finite: the model is broken")
    cosines = scipy.fft.dct(log_mel, norm="ortho", axis=1)[:, 1 : N_CEPSTRA + 1]
    # An orthonormal transform of n values is sqrt(n / 2) times the cosines' amplitudes.
    return cosines * (20 / np.log(10) / np.sqrt(audio_config.num_mels))


def warp(spoken: np.ndarray, recorded: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair the frames of two cepstra, (T, 13) and (T', 13), by dynamic time warping.

    Returns:
        The pairs' frames in `spoken`, those in `recorded`, and their distances in dB: (n,) each.
    """
    from scoring.warping import find_path  # numba is slow to import

    squares = (spoken**2).sum(axis=1)[:, None] + (recorded**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares - 2 * spoken @ recorded.T, 0))  # (T, T')
    i, j = find_path(distances).T
    return i, j, distances[i, j]


def mel_cepstral_distortion(mel: Tensor, reference: Tensor, audio_config: AudioConfig) -> float:
    """Measure the mel-cepstral distortion in dB of a mel (T_mel, num_mels), under time warping.

    The result is the mean distance of `to_cepstra` over the frames that the path pairs with a frame
    of the reference, then over the reference's frames. (A mean over the whole path would fall if a
    model never stops and adds frames that match a silent one, and untrained models would score
    best.) Compare it only with numbers at the same sampling_rate, num_mels, n_fft, window_size,
    hop_size, fmin, fmax and min_db, and not with those of papers, whose cepstra come from other
    analyses.
    """
    _, j, distances = warp(*(to_cepstra(x, audio_config) for x in (mel, reference)))
    return float(np.mean(np.bincount(j, distances) / np.bincount(j)))


def word_start_errors(
    alignment: Tensor, words: list[dict], hop_seconds: float
) -> tuple[list[float], list[float]]:
    """Measure how many seconds too late (or early, < 0) each word but the first starts.

    `words` has each word's "index" (of its first character) and "start" in seconds, in order. The
    first list is for an alignment (T_mel, T_text), whose arg-max reaches a word's first character
    at some frame (the clip's end if it never does); the second for a straight diagonal.
    """
    n_frames, n_text = alignment.shape
    positions = alignment.argmax(dim=1)  # (T_mel,)
    errors, diagonal_errors = [], []
    for word in words[1:]:
        reached = (positions >= word["index"]).nonzero()
        frame = reached[0].item() + 0.5 if len(reached) else n_frames  # the frame's middle
        errors.append(frame * hop_seconds - word["start"])
        diagonal_errors.append(word["index"] / n_text * n_frames * hop_seconds - word["start"])
    return errors, diagonal_errors


def place_words(words: list[dict], text: str, tokens: Tensor, tokenizer: Tokenizer) -> list[dict]:
    """Give the words of a text the places where they begin in its tokens; [] if those are unknown.

    Args:
        words: of word_times.json, with "start" in seconds and "index" in characters of the text.
        tokens: (T_text,) of the text.
    """
    if tokenizer.language:
        return place_in_ipa(words, tokenizer.decode(tokens))
    cleaned = tokenizer.clean(text)
    return words if len(tokens) == len(cleaned) and indices_fit(words, text, cleaned) else []


def place_in_ipa(words: list[dict], ipa: str) -> list[dict]:
    """Move words of a text to where they begin in its IPA; [] if that has more or fewer of them."""
    starts = [word.start() for word in re.finditer(r"[^\s.,;:!?]+", ipa)]
    if len(starts) != len(words):
        return []
    return [word | {"index": start} for word, start in zip(words, starts, strict=True)]


def indices_fit(words: list[dict], text: str, cleaned: str) -> bool:
    """Check that the indices of a text's words count the characters of the cleaned text.

    make_demo_corpus.py counts the text as written, which is as long unless cleaning spells out a
    number or an abbreviation. extras/align_words.py finds its words in the cleaned text.
    """
    forms = (text.lower(), cleaned) if len(text) == len(cleaned) else (cleaned,)
    unnamed = "" if len(text) == len(cleaned) else "?"
    return all(
        any(form.startswith(word.get("word", unnamed).lower(), word["index"]) for form in forms)
        for word in words
    )
