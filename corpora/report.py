"""Report on recordings before a model is trained on them: prep_splits.py --report DIR.

    python prep_splits.py --path_to_ljspech my_voice --report my_voice_report

It measures length, silence, level and clipping of each clip and the pace of its text. It writes
report.json (the numbers of the table), clips.csv (a row for each clip) and recordings.png.

A frame of 20 ms is silent if it is 40 dB below the clip's loudest frame, as for `--trim_db 40`. A
pair of text and recording looks wrong if the recording is much longer or shorter than is usual for
its text, see corpora/lengths.py.
"""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audio.recording import FRAME_SECONDS, SILENCE_DB, read_recording
from command_line.files import DataError, file_errors, write_text, write_whole
from command_line.main import say
from corpora.lengths import Row, count_letters, mark_suspects
from corpora.recordings import (
    MAX_LISTED,
    MAX_SECONDS,
    Clip,
    describe_problems,
    describe_remarks,
    map_clips,
)
from scoring.pictures import histogram_figure, save_figure
from text.tokenizer import Tokenizer

FLOOR_DB = -120.0  # the level of digital silence
FULL_SCALE = 1 - 2**-15  # the largest sample of 16 bits
MIN_OFFSET = 0.003  # share of full scale by which the samples of a clip are off centre
MIN_CLIPPED = 3  # samples at full scale; a clip that is normalized to its peak has one or two
NO_SOUND_DB = -60.0  # peak of a clip without speech
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
    """Measure what training reads, less its constant offset, and the clipping of any channel."""
    recording = read_recording(path)
    n_samples, sampling_rate = len(recording.wav), recording.sampling_rate
    seconds, offset = n_samples / sampling_rate, recording.wav.mean(dtype=np.float64)
    frame = max(1, round(FRAME_SECONDS * sampling_rate))  # samples
    wav = recording.wav - offset  # (n_samples,) float64
    powers = np.add.reduceat(wav**2, np.arange(0, n_samples, frame)) / frame  # (n_frames,)
    return {
        "path": str(path),
        "seconds": seconds,
        "sampling_rate": sampling_rate,
        "channels": recording.channels.shape[1],
        **measure_silence(powers, frame / sampling_rate, seconds),
        "peak_dbfs": dbfs(float(np.abs(wav).max())),
        "rms_dbfs": dbfs(math.sqrt(np.square(wav).mean())),
        "offset": float(offset),
        "clipped_samples": int((np.abs(recording.channels) >= FULL_SCALE).sum()),
    }


def measure_clip(clip: Clip, tokenizer: Tokenizer) -> Row:
    """Measure a clip and its text; its `why` is the reason why it cannot be used or looks wrong."""
    row: Row = {"clip_id": clip.clip_id, "text": clip.transcript, "why": clip.problem}
    if clip.problem:
        return row
    try:
        row |= measure_audio(clip.path)
    except DataError as error:
        return row | {"why": f"unreadable: {error}"}
    text = tokenizer.clean(clip.transcript)
    row |= {"characters": len(text), "letters": count_letters(text)}
    row["characters_per_second"] = len(text) / row["spoken_seconds"]
    if row["peak_dbfs"] < NO_SOUND_DB:
        row["why"] = "no sound"
    elif not row["letters"]:
        row["why"] = "no letter to speak"  # training refuses such a text
    return row | {"usual_seconds": None, "z_score": None}


def misfit(row: Row) -> float:
    """Compare a clip's length with the usual one; without a usual length it is infinite."""
    return abs(math.log((row["usual_seconds"] or math.inf) / row["spoken_seconds"]))


def summarize(rows: list[Row], clips: list[Clip], unusable: list[Clip]) -> dict[str, Any]:
    """Compute the numbers of report.json from all clips, and the rows of those measured."""
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
        "clips_with_offset": sum(abs(row["offset"]) >= MIN_OFFSET for row in rows),
        "clips_too_long": sum(row["seconds"] > MAX_SECONDS for row in rows),
        "remarks": describe_remarks(clips),
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
    lines.append(
        f"constant offset (at least {MIN_OFFSET:.1%}): {report['clips_with_offset']} clips"
    )
    lines.append(f"longer than {MAX_SECONDS:g} s: {report['clips_too_long']} clips")
    lines += report["remarks"]
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
    report = summarize(measured, clips, unusable)
    panels = {SHOWN[c][0]: [SHOWN[c][1] * row[c] for row in measured] for c in DRAWN}
    with file_errors():
        write_text(folder / "report.json", json.dumps(report, indent=2))
        table = pd.DataFrame(rows, columns=list(measured[0]), dtype=object)
        write_whole(folder / "clips.csv", partial(table.to_csv, index=False))
        save_figure(histogram_figure(panels), folder / "recordings.png")
    print_report(report)
    say(f"Written to {folder}: report.json, clips.csv, recordings.png")
