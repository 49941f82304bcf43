"""Summarize the scores of many clips: means, medians, and bootstrap intervals over clips."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scoring.recognition import count_totals, error_rates
from scoring.scores import ALIGNMENT_SCORES, FREE_RUNNING_SCORES

LENGTH_TOLERANCE = 0.15  # share of the recording's length
N_RESAMPLES = 1000  # of the bootstrap
WORD_ERRORS = ("word_start", "diagonal")  # a list for each clip, in seconds


def make_report(rows: list[dict], seed: int) -> dict[str, Any]:
    """Summarize the rows of all clips, with intervals and counts."""
    numbers = {name for row in rows for name, x in row.items() if isinstance(x, int | float)}
    columns = {name: np.array([row.get(name) for row in rows], dtype=float) for name in numbers}
    for name in WORD_ERRORS:
        if name in rows[0]:
            columns[name] = np.empty(len(rows), dtype=object)  # a list for each clip
            columns[name][:] = [row[name] for row in rows]
    report = {"clips": len(rows), **summarize(columns)}
    if "word_start" in columns:
        report["words"] = sum(map(len, columns["word_start"]))
    if "asr_words" in columns:
        report |= count_totals(columns)
    return {**report, "intervals": make_intervals(columns, seed)}


def summarize(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute means and medians over clips, and the errors over words in milliseconds."""
    is_close = np.abs(columns["length_ratio"] - 1) <= LENGTH_TOLERANCE
    report = {
        "length_within_15_percent": (is_close & (columns["stopped_by_itself"] == 1)).mean(),
        "length_ratio_median": np.median(columns["length_ratio"]),
        **{name: columns[name].mean() for name in (*ALIGNMENT_SCORES, *FREE_RUNNING_SCORES)},
        "mcd_db_mean": columns["mcd_db"].mean(),
        "mcd_db_median": np.median(columns["mcd_db"]),
    }
    for name in WORD_ERRORS:
        if name in columns:
            milliseconds = 1000 * np.abs(np.concatenate(columns[name]))
            if not len(milliseconds):  # the clips drawn have no words
                milliseconds = np.array([np.nan])
            report[f"{name}_median_ms"] = np.median(milliseconds)
            report[f"{name}_p90_ms"] = np.percentile(milliseconds, 90)
    if "text_match" in columns:
        report["text_match"] = columns["text_match"].mean()
    if "asr_words" in columns:
        report |= error_rates(columns)
    report |= {name: x.mean() for name, x in columns.items() if name.endswith("_mos")}
    return {name: float(value) for name, value in report.items()}


def make_intervals(columns: Mapping[str, np.ndarray], seed: int) -> dict[str, list[float]]:
    """Bootstrap 95 % intervals, [low, high], of the numbers of `summarize`.

    Whole clips are drawn with replacement, because the words of one clip are not independent.
    """
    generator, n = np.random.default_rng(seed), len(columns["length_ratio"])
    drawn = []
    for _ in range(N_RESAMPLES):
        picked = generator.integers(n, size=n)
        drawn.append(summarize({name: values[picked] for name, values in columns.items()}))
    return {
        name: np.nanpercentile([report[name] for report in drawn], [2.5, 97.5]).tolist()
        for name in drawn[0]
    }
