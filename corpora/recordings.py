"""Find, check, read and trim the recordings of a corpus."""

import os
import re
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import soundfile
from tqdm import tqdm

from command_line.files import write_whole

SUFFIXES = (".wav", ".flac", ".WAV", ".FLAC", ".Wav", ".Flac")  # in the order of trial
AUDIO_SUFFIX = re.compile(  # of any format; a table may name the files before their conversion
    r"(?<=[^/])\.(wave?|flac|mp3|ogg|oga|opus|m4a|mp4|aac|wma|aiff?|webm|amr)\Z", re.IGNORECASE
)
BLOCK_SIZE = 2**18  # samples read at once, so that a long recording needs no more memory
# libsndfile's note on a wav that ends early. A size of 0 or 2^32 - 1 means "unknown".
TRUNCATED = re.compile(r"^data : (?!0 |4294967295 )(\d+) \(should be (\d+)\)", re.MULTILINE)
MAX_LISTED = 10  # bad clips to name on the console

T = TypeVar("T")


class Clip(NamedTuple):
    """A recording and its transcript. The path is absolute once the recording is found."""

    place: str  # where the transcript was found: "metadata.csv line 3"
    clip_id: str  # path of the recording in the folder, without wavs/ and its suffix
    transcript: str
    path: Path = Path()
    duration: float = 0.0  # seconds
    problem: str = ""  # why the clip cannot be used


def describe_problems(clips: list[Clip]) -> list[str]:
    """Describe the first ten bad clips in a line each, and count the others."""
    bad = [clip for clip in clips if clip.problem]
    lines = [f"{clip.place}: {clip.clip_id!r}: {clip.problem}" for clip in bad[:MAX_LISTED]]
    return [*lines, f"and {len(bad) - MAX_LISTED} more"] if len(bad) > MAX_LISTED else lines


def map_clips(function: Callable[[Clip], T], clips: list[Clip], verb: str) -> list[T]:
    """Call a function on each clip, in threads, with a progress bar."""
    with ThreadPoolExecutor() as pool:
        results = pool.map(function, clips)
        return list(tqdm(results, total=len(clips), desc=verb, unit="clip", disable=None))


def remove_suffix(name: str) -> str:
    """Remove .wav or .flac: 'a/b.wav' -> 'a/b'. Other dots belong to the id."""
    return re.sub(r"(?<=[^/])\.(wav|flac)\Z", "", name, flags=re.IGNORECASE)


def list_candidates(name: Path, folder: Path) -> list[Path]:
    """List the places where a recording may be, likeliest first."""
    stem = remove_suffix(str(name))
    names = [str(name)] if stem != str(name) else []
    # macOS may spell an accented letter of a file name as two characters where the table has one.
    for form in (None, "NFC", "NFD"):
        for spelling in (stem, AUDIO_SUFFIX.sub("", stem)):
            spelling = unicodedata.normalize(form, spelling) if form else spelling
            names += [spelling + suffix for suffix in SUFFIXES]
    names = dict.fromkeys(names)
    return [place / name for place in (folder / "wavs", folder) for name in names]


def find_recording(name: Path, folder: Path) -> Path | None:
    """Find the file of a recording, named with or without its suffix."""
    # Unlike Path.is_file, os.path.isfile returns False for any unusable name.
    return next((path for path in list_candidates(name, folder) if os.path.isfile(path)), None)


def inspect_recording(path: Path) -> tuple[float, str]:
    """Return the length of a recording in seconds, and a problem, or "" if there is none."""
    info = soundfile.info(path)
    problem = ""
    if promised := TRUNCATED.search(info.extra_info):
        problem = f"truncated: {promised[2]} bytes of samples instead of {promised[1]} in {path}"
    # The header does not show if a flac is complete, or if a sample is NaN or infinite.
    if info.format == "FLAC" or info.subtype in ("FLOAT", "DOUBLE"):
        blocks = soundfile.blocks(path, BLOCK_SIZE, dtype="float32")
        if not all(np.isfinite(block).all() for block in blocks):
            problem = f"NaN or infinite samples in {path}"
    if info.frames <= 0:
        problem = f"zero-length: no samples in {path}"
    return info.duration, problem


def check_audio(clip: Clip, folder: Path) -> Clip:
    """Find a clip's recording and fill in its path and duration, or a problem."""
    if clip.problem:
        return clip
    path = find_recording(clip.path, folder)
    if path is None:
        problem = f"missing: {list_candidates(clip.path, folder)[0]}"
        if clip.path.suffix and os.path.isfile(folder / clip.path):
            problem = f"neither .wav nor .flac: {folder / clip.path}"
        return clip._replace(problem=problem)
    try:
        duration, problem = inspect_recording(path)
    except (soundfile.SoundFileError, OSError) as error:
        duration, problem = 0.0, f"unreadable: {error}"
    return clip._replace(path=path, duration=duration, problem=problem)


def trim_clip(clip: Clip, folder: Path, trim_db: float) -> Clip:
    """Write folder/ID.wav, 16-bit, without the edges that are trim_db below the clip's peak."""
    import librosa.effects  # takes a second

    path = folder / f"{clip.clip_id}.wav"
    try:
        samples, sampling_rate = soundfile.read(clip.path, always_2d=True)  # (n_samples, channels)
        _, (start, end) = librosa.effects.trim(samples.T, top_db=trim_db)
        pcm = np.rint(samples[start:end] * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
        write_whole(path, lambda new: soundfile.write(new, pcm, sampling_rate, format="WAV"))
    except Exception as error:  # of any kind: it is listed with the clip that it belongs to
        return clip._replace(problem=f"trimming failed: {error}")
    return clip._replace(path=path, duration=len(pcm) / sampling_rate)
