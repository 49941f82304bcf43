"""Find, check, read and trim the recordings of a corpus."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import soundfile
from tqdm import tqdm

import audio.numba_cache  # noqa: F401 before librosa
from audio.recording import SAMPLING_RATES, find_sample_size, open_recording, read_recording
from command_line.files import DataError, write_whole

SUFFIXES = (".wav", ".flac", ".WAV", ".FLAC", ".Wav", ".Flac")  # in the order of trial
AUDIO_SUFFIX = re.compile(  # of any format; a table may name the files before their conversion
    r"(?<=[^/])\.(wave?|flac|mp3|ogg|oga|opus|m4a|mp4|aac|wma|aiff?|webm|amr)\Z", re.IGNORECASE
)
MIN_SECONDS = 0.05  # of a clip: training's windows last 46 ms by default
MAX_SECONDS = 20.0  # of a clip that trains well
MAX_DIFFERENCE = 0.1  # seconds between a header and the sound behind it
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
    remarks: tuple[str, ...] = ()  # how training reads the recording, where that is odd


def describe_problems(clips: list[Clip]) -> list[str]:
    """Describe the first ten bad clips in a line each, and count the others."""
    bad = [clip for clip in clips if clip.problem]
    lines = [f"{clip.place}: {clip.clip_id!r}: {clip.problem}" for clip in bad[:MAX_LISTED]]
    return [*lines, f"and {len(bad) - MAX_LISTED} more"] if len(bad) > MAX_LISTED else lines


def describe_remarks(clips: list[Clip]) -> list[str]:
    """Say in a line each how training reads odd recordings, with their number and the first."""
    firsts = {remark: clip.clip_id for clip in reversed(clips) for remark in clip.remarks}
    counts = Counter(remark for clip in clips for remark in clip.remarks)
    return [
        f"{remark}: {counts[remark]} of {len(clips)} clips, first {firsts[remark]!r}"
        for remark in sorted(counts)
    ]


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


def inspect_recording(path: Path) -> tuple[float, str, tuple[str, ...]]:
    """Return a recording's length in seconds, a problem or "", and how training reads it if oddly.

    The header tells this of a mono wav of integers. Others are read: a flac, or an mp3 named wav,
    may be incomplete, a float NaN, and channels may cancel each other.
    """
    with open_recording(path) as file:
        if file.frames <= 0:
            return 0.0, f"zero-length: no samples in {path}", ()
        # "should be" is libsndfile's note on a wrong size.
        if "should be" in file.extra_info or file.format == "RF64":
            size = find_sample_size(path)
            if size and size.is_truncated:
                return 0.0, f"truncated: {size} in {path}", ()
        by_header, knows_length = file.frames / file.samplerate, file.seekable()
        is_wav = file.format in ("WAV", "WAVEX", "RF64") and file.samplerate in SAMPLING_RATES
        if is_wav and file.channels == 1 and file.subtype not in ("FLOAT", "DOUBLE"):
            return by_header, "", ()
    recording = read_recording(path)
    seconds = len(recording.wav) / recording.sampling_rate
    if knows_length and abs(seconds - by_header) > MAX_DIFFERENCE:
        problem = f"truncated: {seconds:.2f} s of sound instead of {by_header:.2f} s in {path}"
        return 0.0, problem, ()
    return seconds, "", recording.remarks


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
        duration, problem, remarks = inspect_recording(path)
    except (DataError, soundfile.SoundFileError, OSError) as error:
        duration, problem, remarks = 0.0, f"unreadable: {error}", ()
    problem = problem or describe_brevity(duration)
    return clip._replace(path=path, duration=duration, problem=problem, remarks=remarks)


def describe_brevity(seconds: float) -> str:
    """Return "", or what is wrong with a clip that is too short to train on."""
    return f"lasts {seconds:.3f} s, less than {MIN_SECONDS:g} s" if seconds < MIN_SECONDS else ""


def trim_clip(clip: Clip, folder: Path, trim_db: float) -> Clip:
    """Write folder/ID.wav, 16-bit mono, without the edges that are trim_db below the clip's peak.

    What training reads is trimmed, and a constant offset is no sound.
    """
    import librosa.effects  # takes a second

    path = folder / f"{clip.clip_id}.wav"
    try:
        recording = read_recording(clip.path)
        wav, sampling_rate = recording.wav, recording.sampling_rate
        _, (start, end) = librosa.effects.trim(wav - wav.mean(), top_db=trim_db)
        pcm = np.rint(wav[start:end] * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
        write_whole(path, lambda new: soundfile.write(new, pcm, sampling_rate, format="WAV"))
    except Exception as error:  # of any kind: it is listed with the clip that it belongs to
        return clip._replace(problem=f"trimming failed: {error}")
    seconds = len(pcm) / sampling_rate
    return clip._replace(path=path, duration=seconds, problem=describe_brevity(seconds))
