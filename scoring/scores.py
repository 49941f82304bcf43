"""How good an alignment and a mel are: pure functions of tensors.

Focus, coverage and monotonicity say whether an alignment is well formed, word_start_errors whether
it is true, mel_cepstral_distortion how far a mel is from the recording's.
"""

import numpy as np
import torch
from torch import Tensor

from command_line.files import DataError
from dataset import AudioConfig, to_log_mel
from model import InferenceOutput

# These names are those of training, its pictures and checkpoints, wandb and evaluate.py. Without
# "free_running_", an alignment is teacher forced.
ALIGNMENT_SCORES = ("focus", "coverage", "monotonicity")
FREE_RUNNING_SCORES = (
    *(f"free_running_{name}" for name in ALIGNMENT_SCORES),
    "stopped_by_itself",
    "free_running_score",
)
COVERED = 0.5  # frames' worth of attention that counts a character as visited
GOOD_SCORE = 0.5  # free running, from here on; half of it is fair
N_CEPSTRA = 13  # c_1 to c_13; c_0 is loudness


def alignment_scores(
    alignments: Tensor, token_lengths: Tensor, mel_lengths: Tensor
) -> dict[str, Tensor]:
    """How well formed alignments are, per item; says nothing about whether they are true.

    Args:
        alignments: (B, T_mel, T_text).
        token_lengths, mel_lengths: (B,) int64.

    Returns:
        focus: mean over frames of the alignment's maximum, 1 is sharp; coverage: share of
        characters that get at least half a frame of attention; monotonicity: share of steps on
        which the arg-max does not go back. Each (B,).
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
    """Frames after which free running is cut, for recordings of at most n_frames.

    What speaks for more than twice as long has no right end, and need not be waited for.
    """
    return min(max_decoder_steps, 2 * n_frames + 100)


def free_running_scores(output: InferenceOutput, token_lengths: Tensor) -> dict[str, Tensor]:
    """FREE_RUNNING_SCORES, per item: its alignment's, whether it stopped by itself, one score.

    The score is the product of the others: near 0 when an item does not stop, babbles, skips or
    goes back, 0.5 to 0.8 when all is well.
    """
    scores = alignment_scores(output.alignments, token_lengths, output.mel_lengths)
    values = [*scores.values(), (~output.reached_limit).float()]
    values.append(torch.stack(values).prod(dim=0))
    return dict(zip(FREE_RUNNING_SCORES, values, strict=True))


def describe_score(score: float) -> str:
    """What a free-running score means, in a word, and what it should be where it is not good."""
    if score >= GOOD_SCORE:
        return "good"
    return f"{'fair' if score >= GOOD_SCORE / 2 else 'poor'}: {GOOD_SCORE} to 0.8 is good"


def mel_cepstral_distortion(mel: Tensor, reference: Tensor, audio_config: AudioConfig) -> float:
    """Mel-cepstral distortion in dB of a mel from its reference, under dynamic time warping.

    (10 / ln 10) sqrt(2 sum (c_k - c'_k)^2) over k = 1..13, mean over the frames that the path
    pairs with a frame of the reference, then over the reference's frames. (A mean over the whole
    path falls when a model that never stops adds what fits one silent frame: untrained models
    then score best.) c is the DCT-II of the natural-log mel, scaled to be the amplitudes of its
    cosines, so that the result is the root mean square in dB between two smoothed spectra.
    Comparable at the same sampling_rate, num_mels, n_fft, window_size, hop_size, fmin, fmax and
    min_db; not with figures of papers, whose cepstra come from other analyses.

    Args:
        mel, reference: (T_mel, num_mels) as audio_config scales them, of any two lengths.

    Raises:
        DataError: when a value is not finite.
    """
    import librosa.sequence  # slow to import
    import scipy.fft

    log_mels = [to_log_mel(x.float().cpu(), audio_config).numpy() for x in (mel, reference)]
    if not all(np.isfinite(log_mel).all() for log_mel in log_mels):
        raise DataError("a mel holds values that are not finite: the model is broken")
    # An orthonormal transform of n values is sqrt(n / 2) times the cosines' amplitudes.
    spoken, recorded = (
        scipy.fft.dct(log_mel, norm="ortho", axis=1)[:, 1 : N_CEPSTRA + 1]
        * np.sqrt(2 / audio_config.num_mels)
        for log_mel in log_mels
    )  # (T_mel, 13) each
    at, of = librosa.sequence.dtw(spoken.T, recorded.T)[1].T  # the path's frames in each
    distances = 10 / np.log(10) * np.sqrt(2) * np.linalg.norm(spoken[at] - recorded[of], axis=1)
    return float(np.mean(np.bincount(of, distances) / np.bincount(of)))


def word_start_errors(
    alignment: Tensor, words: list[dict], hop_seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds by which words start too late (positive) or too early, every word but the first.

    Args:
        alignment: (T_mel, T_text) of one utterance, without padding.
        words: {"word", "index" of its first character, "start" in seconds} in order.
        hop_seconds: from one frame to the next.

    Returns:
        The errors of the time at which the alignment's arg-max first reaches each word's first
        character (the clip's end when it never does), and those of a straight diagonal.
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
