"""Report on recordings before a model is trained on them: prep_splits.py --report DIR.

    python prep_splits.py --path_to_ljspech my_voice --report my_voice_report

It measures length, silence, level and clipping of each clip and the pace of its text. It writes
report.json (the numbers of the table), clips.csv (a row for each clip) and recordings.png.

A frame of 20 ms is silent if it is 40 dB below the clip's loudest frame, as for `--trim_db 40`. A
pair of text and recording looks wrong if the recording is much longer or shorter than is usual for
its text. The usual length is a line, overhead + seconds per letter, fitted to all clips.
"""

import json
import math
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from scipy.stats import theilslopes

from command_line.files import DataError, file_errors, write_whole
from command_line.main import say
from corpora.recordings import MAX_LISTED, Clip, describe_problems, map_clips
from scoring.pictures import histogram_figure, save_figure
from text.tokenizer import Tokenizer

FRAME_SECONDS = 0.02
SILENCE_DB = 40.0  # below the loudest frame
FLOOR_DB = -120.0  # the level of digital silence
FULL_SCALE = 1 - 2**-15  # the largest sample of 16 bits
MIN_CLIPPED = 3  # samples at full scale; a clip that is normalized to its peak has one or two
NO_SOUND_DB = -60.0  # peak of a clip without speech
Z_LIMIT = 3.5  # Iglewicz and Hoaglin's for a z-score of median and MAD
MIN_SPREAD = 0.05  # of log(usual length / length), so that very even clips have no outliers
MIN_CLIPS = 10  # fewer have no spread to speak of
FAR_RATIO = 3.0  # times the usual length, or a third of it, looks wrong at any spread
MAX_OVERHEAD = 1.0  # seconds
MAX_FITTED = 1000  # clips that the line is fitted to
TEXT_WIDTH = 50  # characters of a text that the list shows
# The numbers in the table: column, name, factor.
SHOWN = {
    "seconds": ("length (s)", 1),
    "characters_per_second": ("characters per second", 1),
    "start_silence": ("silence at the start (s)", 1),
    "end_silence": ("silence at the end (s)", 1),
    "longest_pause": ("longest pause inside (s)", 1),
    "inner_silence": ("silence inside (%)", 100),
    "peak_dbfs": ("peak (dBFS)", 1),
    "rms_dbfs": ("level, RMS (dBFS)", 1),
}
DRAWN = ("seconds", "characters_per_second", "rms_dbfs", "inner_silence")
LISTED = ("clip_id", "text", "spoken_seconds", "usual_seconds", "z_score", "why")

Row = dict[str, Any]  # a clip's numbers, by column


def dbfs(amplitude: float) -> float:
    """Convert an amplitude to decibels below full scale (1.0), at least FLOOR_DB."""
    return max(FLOOR_DB, 20 * math.log10(amplitude)) if amplitude > 0 else FLOOR_DB


def measure_silence(powers: np.ndarray, frame_seconds: float, seconds: float) -> Row:
    """Measure silence at the edges and inside, from the mean power of each frame, (n_frames,)."""
    sounding = np.flatnonzero(powers > powers.max() * 10 ** (-SILENCE_DB / 10))
    if not sounding.size:  # all samples are 0
        sounding = np.arange(len(powers))
    pauses = np.diff(sounding) - 1  # silent frames between one that sounds and the next
    first, last = sounding[0], sounding[-1]
    start, end = first * frame_seconds, min((last + 1) * frame_seconds, seconds)
    return {
        "start_silence": start,
        "end_silence": seconds - end,
        "longest_pause": pauses.max(initial=0) * frame_seconds,
        "inner_silence": pauses.sum() / (last - first + 1),  # share of the time between the edges
        "spoken_seconds": end - start,
    }


def measure_audio(path: Path) -> Row:
    """Measure the peak of the loudest channel, and the rest on the mean that training reads."""
    samples, sampling_rate = soundfile.read(path, dtype="float32", always_2d=True)
    n_samples, n_channels = samples.shape
    magnitudes, seconds = np.abs(samples), n_samples / sampling_rate
    frame = max(1, round(FRAME_SECONDS * sampling_rate))  # samples
    squares = samples.mean(axis=1, dtype=np.float64) ** 2  # (n_samples,)
    powers = np.add.reduceat(squares, np.arange(0, n_samples, frame)) / frame  # (n_frames,)
    return {
        "path": str(path),
        "seconds": seconds,
        "sampling_rate": sampling_rate,
        "channels": n_channels,
        **measure_silence(powers, frame / sampling_rate, seconds),
        "peak_dbfs": dbfs(float(magnitudes.max())),
        "rms_dbfs": dbfs(math.sqrt(squares.mean())),
        "clipped_samples": int((magnitudes >= FULL_SCALE).sum()),
    }


def count_letters(text: str) -> int:
    """Count letters, figures and their marks; spaces and punctuation take no time of their own."""
    return sum(c.isalnum() or unicodedata.category(c).startswith("M") for c in text)


def measure_clip(clip: Clip, tokenizer: Tokenizer) -> Row:
    """Measure a clip and its text; its `why` is the reason why it cannot be used or looks wrong."""
    row: Row = {"clip_id": clip.clip_id, "text": clip.transcript, "why": clip.problem}
    if clip.problem:
        return row
    try:
        row |= measure_audio(clip.path)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        return row | {"why": f"unreadable: {error}"}
    text = tokenizer.clean(clip.transcript)
    row |= {"characters": len(text), "letters": count_letters(text)}
    row["characters_per_second"] = len(text) / row["spoken_seconds"]
    if row["peak_dbfs"] < NO_SOUND_DB:
        row["why"] = "no sound"
    elif not row["letters"]:
        row["why"] = "no letter to speak"  # training refuses such a text
    return row | {"usual_seconds": None, "z_score": None}


def fit_usual_lengths(letters: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Estimate the usual length of texts with these numbers of letters, (n_clips,).

    Its line is Theil and Sen's: the median of the slopes between all pairs of clips.
    """
    by_length = np.argsort(letters, kind="stable")
    fitted = by_length[np.linspace(0, len(letters) - 1, min(len(letters), MAX_FITTED)).astype(int)]
    one_length = letters.min() == letters.max()
    slope = 0 if one_length else theilslopes(seconds[fitted], letters[fitted]).slope
    overhead = np.clip(np.median(seconds - slope * letters), 0, MAX_OVERHEAD)
    overhead = min(overhead, np.median(seconds) / 2)
    slope = np.median((seconds - overhead) / letters)
    return overhead + max(slope, 0.001) * letters


def mark_suspects(rows: list[Row]) -> None:
    """Fill in usual_seconds and z_score of the rows, and why a pair looks wrong."""
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
        is_outlier = abs(row["z_score"] or 0) > Z_LIMIT
        if is_outlier or abs(log_ratio) > math.log(FAR_RATIO):
            row["why"] = f"the text is too {'long' if log_ratio > 0 else 'short'}"


def misfit(row: Row) -> float:
    """Compare a clip's length with the usual one; without a usual length it is infinite."""
    return abs(math.log((row["usual_seconds"] or math.inf) / row["spoken_seconds"]))


def summarize(rows: list[Row], unusable: list[Clip]) -> dict[str, Any]:
    """Compute the numbers of report.json from the rows of the clips that could be measured."""
    statistics = {}
    for column in SHOWN:
        values = np.array([row[column] for row in rows], dtype=float)
        names = ("mean", "std", "min", "median", "max")
        statistics[column] = {name: float(getattr(np, name)(values)) for name in names}
    suspects = sorted((row for row in rows if row["why"]), key=misfit, reverse=True)
    return {
        "clips": len(rows),
        "unusable_clips": len(unusable),
        "hours": sum(row["seconds"] for row in rows) / 3600,
        "sampling_rates": dict(Counter(row["sampling_rate"] for row in rows).most_common()),
        "channels": dict(Counter(row["channels"] for row in rows).most_common()),
        **statistics,
        "clipped_clips": sum(row["clipped_samples"] >= MIN_CLIPPED for row in rows),
        "unknown_characters": Tokenizer().describe_unknown(row["text"] for row in rows),
        "suspects": len(suspects),
        "worst_suspects": [{c: row[c] for c in LISTED} for row in suspects[:MAX_LISTED]],
        "first_unusable": describe_problems(unusable),
    }


def make_printable(text: str, width: int) -> str:
    """Fit a text on one line of the terminal, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split())[:width])


def print_report(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    lines = [f"{report['clips']} clips, {report['hours']:.2f} hours"]
    for name, unit in (("sampling_rates", " Hz"), ("channels", "")):
        counts = ", ".join(f"{value}{unit} ({n} clips)" for value, n in report[name].items())
        lines.append(f"{name.replace('_', ' ')}: {counts}")
    lines += ["", f"{'':<26}{'mean':>9}{'std':>9}{'min':>9}{'median':>9}{'max':>9}"]
    for column, (name, factor) in SHOWN.items():
        numbers = "".join(f"{factor * value:>9.2f}" for value in report[column].values())
        lines.append(f"{name:<26}{numbers}")
    n_clipped, n_suspects = report["clipped_clips"], report["suspects"]
    lines += ["", f"clipped (at least {MIN_CLIPPED} samples at full scale): {n_clipped} clips"]
    lines.append(report["unknown_characters"] or "every character has a symbol")
    lines.append(f"pairs of text and recording that look wrong: {n_suspects}")
    if n_suspects:
        lines.append(f"  {'id':<24}{'spoken s':>8}{'usual':>8}{'z':>8}  {'why':<22}text")
    for row in report["worst_suspects"]:
        numbers = (row["spoken_seconds"], row["usual_seconds"], row["z_score"])
        numbers = "".join(f"{'-' if x is None else format(x, '.1f'):>8}" for x in numbers)
        clip_id, text = make_printable(row["clip_id"], 23), make_printable(row["text"], TEXT_WIDTH)
        lines.append(f"  {clip_id:<24}{numbers}  {row['why']:<22}{text}")
    if n_suspects > MAX_LISTED:
        lines.append(f"  and {n_suspects - MAX_LISTED} more, see clips.csv")
    lines.append(f"clips that cannot be used: {report['unusable_clips']}")
    say(*lines, *(f"  {line}" for line in report["first_unusable"]))


def write_report(clips: list[Clip], folder: Path) -> None:
    """Measure the clips, print the report and write it to a folder."""
    rows = map_clips(partial(measure_clip, tokenizer=Tokenizer()), clips, "measuring")
    pairs = list(zip(clips, rows, strict=True))
    measured = [row for row in rows if "seconds" in row]
    unusable = [clip._replace(problem=row["why"]) for clip, row in pairs if "seconds" not in row]
    if not measured:
        first = describe_problems(unusable)[0]
        raise DataError(f"none of the {len(rows)} recordings can be used; the first is {first}.")
    mark_suspects(measured)
    report = summarize(measured, unusable)
    panels = {SHOWN[c][0]: [SHOWN[c][1] * row[c] for row in measured] for c in DRAWN}
    with file_errors():
        text = json.dumps(report, indent=2)
        write_whole(folder / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
        table = pd.DataFrame(rows, columns=list(measured[0]), dtype=object)
        write_whole(folder / "clips.csv", partial(table.to_csv, index=False))
        save_figure(histogram_figure(panels), folder / "recordings.png")
    print_report(report)
    say(f"Written to {folder}: report.json, clips.csv, recordings.png")
