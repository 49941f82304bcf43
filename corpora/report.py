"""A report on recordings, before a model is trained on them: prep_splits.py --report DIR.

    python prep_splits.py --path_to_ljspech my_voice --report my_voice_report

Measures length, silence, level and clipping of each clip and the pace of its text, and lists the
clips whose text does not seem to be what is said. Writes report.json (the numbers of the table),
clips.csv (a row for each clip) and recordings.png (histograms).

Silence is what training would hear as such: frames of 20 ms, mono, that lie 40 dB below the clip's
loudest frame, as `--trim_db 40` has it. A pair looks wrong when its recording is much longer or
shorter than is usual for its text. Short clips are slower, by the beginning and end that they have
like any other, so the usual length is a line, overhead + seconds per letter, fitted to all clips.
"""

import csv
import json
import math
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from command_line.files import DataError, file_errors, write_whole
from corpora.layouts import MAX_LISTED, Clip, describe_problems, read_blocks

FRAME_SECONDS = 0.02
BLOCK_FRAMES = 500  # that are read at once
SILENCE_DB = 40.0  # below the loudest frame
FLOOR_DB = -120.0  # what digital silence is given as
FULL_SCALE = 1 - 2**-15  # the largest sample of 16 bits
MIN_CLIPPED = 3  # samples at full scale; a clip that is normalized to its peak has one or two
NO_SOUND_DB = -60.0  # peak of a clip in which nothing is said
Z_LIMIT = 3.5  # Iglewicz and Hoaglin's for a z-score of median and MAD
MIN_SPREAD = 0.05  # of log(usual length / length), so that very even clips are no outliers
MIN_CLIPS = 10  # fewer have no spread to speak of
FAR_RATIO = 3.0  # so many times the usual length, or its share, is wrong whatever the spread is
MAX_OVERHEAD = 1.0  # seconds
MAX_FITTED = 1000  # clips, of all lengths, that the line is fitted to
TEXT_WIDTH = 50  # characters of a text that the list shows
COLUMNS = (
    "clip_id", "path", "seconds", "sampling_rate", "channels", "start_silence", "end_silence",
    "longest_pause", "inner_silence", "peak_dbfs", "rms_dbfs", "clipped_samples", "characters",
    "letters", "characters_per_second", "spoken_seconds", "usual_seconds", "z_score", "why", "text",
)  # fmt: skip
# What the table and the histograms show: column, name, factor.
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

Row = dict[str, Any]  # a clip's numbers, by column


def dbfs(amplitude: float) -> float:
    """Decibels below full scale (1.0), at least FLOOR_DB."""
    return max(FLOOR_DB, 20 * math.log10(amplitude)) if amplitude > 0 else FLOOR_DB


def silences(powers: np.ndarray, frame_seconds: float, seconds: float) -> Row:
    """Silence at the edges and inside, from the mean power of each frame, (n_frames,)."""
    sounding = np.flatnonzero(powers > powers.max() * 10 ** (-SILENCE_DB / 10))
    if not sounding.size:  # all samples are 0
        sounding = np.arange(len(powers))
    pauses = np.diff(sounding) - 1  # silent frames between one that sounds and the next
    first, last = sounding[0], sounding[-1]
    start, end = first * frame_seconds, min((last + 1) * frame_seconds, seconds)
    return {
        "start_silence": start,
        "end_silence": seconds - end,
        "spoken_seconds": end - start,
        "longest_pause": pauses.max(initial=0) * frame_seconds,
        "inner_silence": pauses.sum() / (last - first + 1),  # share of what is between the edges
    }


def measure(clip: Clip) -> Row:
    """The numbers of a recording; {"why": ...} if it cannot be read. Reads ten seconds at a time.

    Peak and clipping are those of the loudest channel, the rest is of the mean of the channels,
    which is what training reads.
    """
    peak, n_samples, n_clipped, powers = 0.0, 0, 0, []
    try:
        info = soundfile.info(clip.path)
        frame = max(1, round(FRAME_SECONDS * info.samplerate))  # samples
        for block in read_blocks(clip.path, frame * BLOCK_FRAMES):  # (n, channels)
            magnitudes = np.abs(block)
            peak = max(peak, float(magnitudes.max()))
            n_clipped += int((magnitudes >= FULL_SCALE).sum())
            squares = block.mean(axis=1, dtype=np.float64) ** 2  # (n,)
            starts = np.arange(0, len(squares), frame)
            powers.append(np.add.reduceat(squares, starts) / frame)  # of a last, shorter frame less
            n_samples += len(squares)
    except (soundfile.SoundFileError, OSError) as error:
        return {"why": f"unreadable: {error}"}
    if not n_samples:
        return {"why": "no samples can be read"}
    frames = np.concatenate(powers)
    seconds = n_samples / info.samplerate
    return {
        "path": str(clip.path),
        "seconds": seconds,
        "sampling_rate": info.samplerate,
        "channels": info.channels,
        **silences(frames, frame / info.samplerate, seconds),
        "peak_dbfs": dbfs(peak),
        "rms_dbfs": dbfs(math.sqrt(frames.sum() * frame / n_samples)),
        "clipped_samples": n_clipped,
        "why": "",
    }


def count_letters(text: str) -> int:
    """Letters, figures and their marks; spaces and punctuation take no time of their own."""
    return sum(c.isalnum() or unicodedata.category(c).startswith("M") for c in text)


def usual_lengths(letters: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """How long a text of so many letters usually is, in seconds; all arrays are (n_clips,).

    Theil and Sen's line, whose slope is the median of the slopes between all pairs of clips: a few
    wrong pairs do not bend it.
    """
    order = np.argsort(letters, kind="stable")
    fitted = order[np.linspace(0, len(order) - 1, min(len(order), MAX_FITTED)).astype(int)]
    i, j = np.triu_indices(len(fitted), k=1)
    run = letters[fitted][j] - letters[fitted][i]
    rise = seconds[fitted][j] - seconds[fitted][i]
    slope = np.median(rise[run > 0] / run[run > 0]) if (run > 0).any() else 0.0
    overhead = np.clip(np.median(seconds - slope * letters), 0, MAX_OVERHEAD)
    overhead = min(overhead, np.median(seconds) / 2)
    slope = np.median((seconds - overhead) / letters)
    return overhead + max(slope, 0.001) * letters


def judge_pairs(rows: list[Row]) -> None:
    """Adds usual_seconds and z_score to the rows, and why a pair looks wrong."""
    for row in rows:
        row["usual_seconds"] = row["z_score"] = None
        if row["peak_dbfs"] < NO_SOUND_DB:
            row["why"] = "no sound"
        elif not row["letters"]:
            row["why"] = "no letter to speak"  # training refuses it
    spoken = [row for row in rows if not row["why"]]
    if not spoken:
        return
    seconds = np.array([row["spoken_seconds"] for row in spoken])
    usual = usual_lengths(np.array([row["letters"] for row in spoken]), seconds)
    log_ratios = np.log(usual / seconds)
    middle = np.median(log_ratios)
    spread = max(1.4826 * np.median(np.abs(log_ratios - middle)), MIN_SPREAD)
    for row, usual_seconds, log_ratio in zip(spoken, usual, log_ratios - middle, strict=True):
        row["usual_seconds"] = float(usual_seconds)
        row["z_score"] = float(log_ratio / spread) if len(spoken) >= MIN_CLIPS else None
        is_outlier = abs(row["z_score"] or 0) > Z_LIMIT
        if is_outlier or abs(log_ratio) > math.log(FAR_RATIO):
            row["why"] = f"the text is too {'long' if log_ratio > 0 else 'short'}"


def measure_clips(clips: list[Clip]) -> tuple[list[Row], list[Clip]]:
    """A row for each clip, in order, and the clips that cannot be used, whose rows are short."""
    from text.tokenizer import Tokenizer  # slow to import

    tokenizer = Tokenizer()
    with ThreadPoolExecutor() as pool:
        found = pool.map(
            lambda clip: {"why": clip.problem} if clip.problem else measure(clip), clips
        )
        found = list(tqdm(found, total=len(clips), desc="measuring", unit="clip", disable=None))
    rows, unusable = [], []
    for clip, numbers in zip(clips, found, strict=True):
        row = {"clip_id": clip.clip_id, "text": clip.transcript, **numbers}
        if row["why"]:
            unusable.append(clip._replace(problem=row["why"]))
        else:
            text = tokenizer.clean(clip.transcript)
            row["characters"], row["letters"] = len(text), count_letters(text)
            row["characters_per_second"] = row["characters"] / row["spoken_seconds"]
        rows.append(row)
    return rows, unusable


def worst_first(rows: list[Row]) -> list[Row]:
    """The pairs that look wrong; those that have no pace at all come first."""

    def how_bad(row: Row) -> float:
        if row["usual_seconds"] is None:
            return math.inf
        return abs(math.log(row["usual_seconds"] / row["spoken_seconds"]))

    return sorted((row for row in rows if row["why"]), key=how_bad, reverse=True)


def summarize(rows: list[Row], unusable: list[Clip], unknown: str) -> dict[str, Any]:
    """The numbers of report.json, from the rows of the clips that could be measured."""
    statistics = {}
    for column in SHOWN:
        values = np.array([row[column] for row in rows], dtype=float)
        names = ("mean", "std", "min", "median", "max")
        statistics[column] = {name: float(getattr(np, name)(values)) for name in names}
    suspects = worst_first(rows)
    columns = ("clip_id", "text", "spoken_seconds", "usual_seconds", "z_score", "why")
    return {
        "clips": len(rows),
        "unusable_clips": len(unusable),
        "hours": sum(row["seconds"] for row in rows) / 3600,
        "sampling_rates": dict(Counter(row["sampling_rate"] for row in rows).most_common()),
        "channels": dict(Counter(row["channels"] for row in rows).most_common()),
        **statistics,
        "clipped_clips": sum(row["clipped_samples"] >= MIN_CLIPPED for row in rows),
        "unknown_characters": unknown,
        "suspects": len(suspects),
        "worst_suspects": [{c: row[c] for c in columns} for row in suspects[:MAX_LISTED]],
        "first_unusable": describe_problems(unusable),
    }


def printable(text: str, width: int) -> str:
    """A text on one line of the terminal, without control characters."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return text if len(text) <= width else f"{text[: width - 3]}..."


def print_report(report: dict[str, Any]) -> None:
    """The report as a table for people."""
    print(f"{report['clips']} clips, {report['hours']:.2f} hours")
    for name, unit in (("sampling_rates", " Hz"), ("channels", "")):
        counts = ", ".join(f"{value}{unit} ({n} clips)" for value, n in report[name].items())
        print(f"{name.replace('_', ' ')}: {counts}")
    print(f"\n{'':<26}{'mean':>9}{'std':>9}{'min':>9}{'median':>9}{'max':>9}")
    for column, (name, factor) in SHOWN.items():
        numbers = "".join(f"{factor * value:>9.2f}" for value in report[column].values())
        print(f"{name:<26}{numbers}")
    print(
        f"\nclipped (at least {MIN_CLIPPED} samples at full scale): {report['clipped_clips']} clips"
    )
    print(report["unknown_characters"] or "every character has a symbol")
    print(f"pairs of text and recording that look wrong: {report['suspects']}")
    if report["suspects"]:
        print(f"  {'id':<24}{'spoken s':>8}{'usual':>8}{'z':>8}  {'why':<22}text")
    for row in report["worst_suspects"]:
        numbers = (row["spoken_seconds"], row["usual_seconds"], row["z_score"])
        numbers = "".join(f"{'-' if x is None else format(x, '.1f'):>8}" for x in numbers)
        text = printable(row["text"], TEXT_WIDTH)
        print(f"  {printable(row['clip_id'], 23):<24}{numbers}  {row['why']:<22}{text}")
    if report["suspects"] > MAX_LISTED:
        print(f"  and {report['suspects'] - MAX_LISTED} more, see clips.csv")
    print(f"clips that cannot be used: {report['unusable_clips']}")
    for line in report["first_unusable"]:
        print(f"  {line}")


def write_table(rows: list[Row], path: Path) -> None:
    """clips.csv: a row for each clip; what could not be measured is empty."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            items = row.items()
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in items})


def write_report(clips: list[Clip], folder: Path) -> dict[str, Any]:
    """Measures the clips, prints the report, writes it to a folder and returns it.

    Clips with a problem, and those whose samples cannot be read, are listed.

    Raises:
        DataError: if no clip at all can be measured, or a file cannot be written.
    """
    from scoring.pictures import (  # matplotlib and the tokenizer's torch are
        histogram_figure,
        save_figure,
    )
    from text.tokenizer import Tokenizer  # slow to import

    rows, unusable = measure_clips(clips)
    measured = [row for row in rows if "seconds" in row]
    if not measured:
        first = describe_problems(unusable)[0]
        raise DataError(f"none of the {len(rows)} recordings can be used; the first is {first}.")
    judge_pairs(measured)
    unknown = Tokenizer().describe_unknown(row["text"] for row in measured)
    report = summarize(measured, unusable, unknown)
    drawn = ((column, *SHOWN[column]) for column in DRAWN)
    panels = {name: [factor * row[c] for row in measured] for c, name, factor in drawn}
    with file_errors():
        text = json.dumps(report, indent=2)
        write_whole(folder / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
        write_whole(folder / "clips.csv", lambda path: write_table(rows, path))
        save_figure(histogram_figure(panels), folder / "recordings.png")
    print_report(report)
    print(f"Written to {folder}: report.json, clips.csv, recordings.png")
    return report
