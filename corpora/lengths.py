"""Compare each clip's length with what is usual for its text, to find texts of other recordings.

The usual length is a line, overhead + seconds per letter, fitted to all clips.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from corpora.recordings import Clip

Z_LIMIT = 3.5  # Iglewicz and Hoaglin's for a z-score of median and MAD
MIN_SPREAD = 0.05  # of log(usual length / length), so that very even clips have no outliers
MIN_CLIPS = 10  # fewer have no spread to speak of
SPLIT_RATIO = 2.0  # times the usual length, or half of it, is named when a corpus is split
FAR_RATIO = 3.0  # times the usual length, or a third of it, looks wrong at any spread
MAX_PACE = 40.0  # letters per second that nobody reaches
MIN_PACE = 0.5  # letters per second, with a pause of PAUSE seconds, that nobody is as slow as
PAUSE = 3.0
MAX_OVERHEAD = 1.0  # seconds
MAX_FITTED = 1000  # clips that the line is fitted to

Row = dict[str, Any]  # a clip's numbers, by column


def count_letters(text: str) -> int:
    """Count letters, figures and their marks; spaces and punctuation take no time of their own."""
    return sum(c.isalnum() or unicodedata.category(c).startswith("M") for c in text)


def fit_usual_lengths(letters: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Estimate the usual length of texts with these numbers of letters, (n_clips,).

    Its line is Theil and Sen's: the median of the slopes between all pairs of clips.
    """
    by_length = np.argsort(letters, kind="stable")
    fitted = by_length[np.linspace(0, len(letters) - 1, min(len(letters), MAX_FITTED)).astype(int)]
    # By how many letters, and seconds, one clip exceeds another
    more = np.subtract.outer(letters[fitted], letters[fitted])
    longer = np.subtract.outer(seconds[fitted], seconds[fitted])
    # By hand: scipy.stats has this, and takes longer to import than LJSpeech takes to check.
    slope = np.median(longer[more > 0] / more[more > 0]) if more.any() else 0
    overhead = np.clip(np.median(seconds - slope * letters), 0, MAX_OVERHEAD)
    overhead = min(overhead, np.median(seconds) / 2)
    slope = np.median((seconds - overhead) / letters)
    return overhead + max(slope, 0.001) * letters


def mark_suspects(rows: list[Row], least_ratio: float = 1.0) -> None:
    """Fill in usual_seconds and z_score of the rows, and why a pair looks wrong.

    An outlier must also be least_ratio times as long as usual, or as short.
    """
    spoken = [row for row in rows if not row["why"]]
    if not spoken:
        return
    seconds = np.array([row["spoken_seconds"] for row in spoken])
    usual = fit_usual_lengths(np.array([row["letters"] for row in spoken]), seconds)
    log_ratios = np.log(usual / seconds)
    log_ratios -= np.median(log_ratios)
    spread = max(1.4826 * np.median(np.abs(log_ratios)), MIN_SPREAD)
    for row, usual_seconds, log_ratio in zip(spoken, usual, log_ratios, strict=True):
        row["usual_seconds"] = float(usual_seconds)
        row["z_score"] = float(log_ratio / spread) if len(spoken) >= MIN_CLIPS else None
        is_outlier = abs(row["z_score"] or 0) > Z_LIMIT and abs(log_ratio) > math.log(least_ratio)
        if is_outlier or abs(log_ratio) > math.log(FAR_RATIO):
            row["why"] = f"the text is too {'long' if log_ratio > 0 else 'short'}"
        elif row["letters"] > MAX_PACE * row["spoken_seconds"]:
            row["why"] = "the text is too long"
        elif row["letters"] < MIN_PACE * (row["spoken_seconds"] - PAUSE):
            row["why"] = "the text is too short"


def find_misfits(clips: list[Clip], clean: Callable[[str], str]) -> list[Clip]:
    """Return the clips whose text is far too short or long for them, with a `problem` that says so.

    Args:
        clean: spells numbers, which are short to write and long to say.
    """
    rows = []
    for clip in clips:
        text = clean(clip.transcript) if re.search(r"\d", clip.transcript) else clip.transcript
        row = {"letters": count_letters(text), "spoken_seconds": clip.duration, "why": ""}
        rows.append(row if row["letters"] else row | {"why": "no letter to speak"})
    mark_suspects(rows, SPLIT_RATIO)
    return [
        clip._replace(problem=f"{row['why']} for {clip.duration:.1f} s: {clip.transcript[:60]!r}")
        for clip, row in zip(clips, rows, strict=True)
        if row["why"]
    ]
