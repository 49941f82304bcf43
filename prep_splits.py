"""Turn an LJSpeech folder into train_metadata.csv and test_metadata.csv.

    python prep_splits.py --path_to_ljspech data/LJSpeech-1.1 --path_to_save data/splits

(--download fetches the corpus first.) The folder holds metadata.csv, one `id|raw|normalized` line
per clip, and wavs/ID.wav (or .flac). The manifests give file_path,normalized_transcript,duration:
absolute paths and seconds, longest clip first. Every row is checked before anything is written;
bad ones are listed with their line number and stop the run, unless --skip_bad leaves them out.
Seed and ids alone decide which clips are held out, so the split is the same on every machine.
Read a manifest with pandas.read_csv(path, keep_default_na=False), or the text "NA" gets lost.
"""

import argparse
import csv
import hashlib
import math
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import soundfile
from tqdm import tqdm

from files import DataError, check_writable, file_errors, path_argument

CORPUS_NAME = "LJSpeech-1.1"
ARCHIVE_NAME = f"{CORPUS_NAME}.tar.bz2"
LJSPEECH_URL = f"https://data.keithito.com/data/speech/{ARCHIVE_NAME}"
TRIMMED_NAME = "trimmed_wavs"
# libsndfile's note on a wav that ends early; a size of 0 or 2^32 - 1 only says "unknown".
TRUNCATED = re.compile(r"^data : (?!0 |4294967295 )(\d+) \(should be (\d+)\)", re.MULTILINE)
INT16_SCALE = 32768  # what soundfile divides 16-bit samples by when it reads floats


class PrepError(DataError):
    """A mistake in the input, told to the user as one sentence."""


class Clip(NamedTuple):
    """A row of metadata.csv; path and duration (seconds) are empty until its audio is checked."""

    line_number: int
    clip_id: str
    transcript: str
    path: Path = Path()
    duration: float = 0.0
    problem: str = ""  # why the row cannot be used


def is_corpus(folder: Path) -> bool:
    """True if the folder has LJSpeech's two parts."""
    # Unlike Path's methods, these are False for any unusable name.
    return os.path.isfile(folder / "metadata.csv") and os.path.isdir(folder / "wavs")


def check_corpus(folder: Path) -> None:
    """Raise PrepError, with a hint where to look, if the folder is no corpus."""
    if not is_corpus(folder):
        lacks = "wavs folder" if os.path.isfile(folder / "metadata.csv") else "metadata.csv"
        problem = f"has no {lacks} in it" if os.path.isdir(folder) else "is not a folder"
        near = [path for path in (folder / CORPUS_NAME, folder.parent) if is_corpus(path)]
        hint = f"; did you mean {near[0]}?" if near else "."
        raise PrepError(f"--path_to_ljspech {folder} {problem}{hint}")
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise PrepError(f"--path_to_ljspech {folder} is not UTF-8, as manifests are.") from None


def drop_bad(clips: list[Clip], skip_bad: bool) -> list[Clip]:
    """List bad rows on stderr and return the others; PrepError if there are any to stop for."""
    bad = [clip for clip in clips if clip.problem]
    for clip in bad:
        where = f"metadata.csv line {clip.line_number}: {clip.clip_id!r}"
        print(f"{where}: {clip.problem}", file=sys.stderr)
    if bad and not skip_bad:
        raise PrepError(f"bad rows: {len(bad)}; mend them, or leave them out with --skip_bad.")
    if bad:
        print(f"Bad rows left out: {len(bad)}")
    return [clip for clip in clips if not clip.problem]


def split_clips(clips: list[Clip], seed: int, test_fraction: float) -> dict[str, list[Clip]]:
    """Return the clips of "train" and "test", longest first; PrepError if train would be empty."""
    n_test = max(1, round(test_fraction * len(clips)))
    if n_test >= len(clips):
        taken = f"--test_split_pct {test_fraction:g} of {len(clips)} usable clips"
        raise PrepError(f"{taken} leaves none to train on.")

    # Random generators differ between libraries and their versions; a hash does not.
    ranked = sorted(clips, key=lambda c: hashlib.sha256(f"{seed}:{c.clip_id}".encode()).digest())
    splits = {"train": ranked[n_test:], "test": ranked[:n_test]}
    for split in splits.values():
        split.sort(key=lambda clip: (-clip.duration, clip.clip_id))
    return splits


def print_table(splits: dict[str, list[Clip]]) -> None:
    """Print the size of each split and its longest clip."""
    print(f"{'split':<6}{'clips':>8}{'hours':>9}{'characters':>12}{'longest (s)':>13}")
    for name, clips in splits.items():
        hours = sum(clip.duration for clip in clips) / 3600
        characters = sum(len(clip.transcript) for clip in clips)
        print(f"{name:<6}{len(clips):>8}{hours:>9.3f}{characters:>12}{clips[0].duration:>13.2f}")


def say_unknown(clips: list[Clip]) -> None:
    """Say which characters of the transcripts training will leave out, on stderr, if any."""
    from tokenizer import Tokenizer

    unknown = Tokenizer().describe_unknown(clip.transcript for clip in clips)
    if unknown:
        hint = "train_taco.py's --path_to_symbols takes another table"
        print(f"{unknown}; {hint}", file=sys.stderr)


def read_metadata(path: Path) -> list[Clip]:
    """Read metadata.csv, all text untouched; PrepError if it is empty or not UTF-8.

    The file knows no quoting (a lone double quote is text, which trips CSV readers), and only
    "\\n" ends a line (splitlines() would also break at characters such as U+2028).
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        line_number = raw.count(b"\n", 0, error.start) + 1
        raise PrepError(f"{path} is not UTF-8: see line {line_number}.") from error
    if not text:
        raise PrepError(f"{path} is empty.")

    clips = []
    first_lines: dict[str, int] = {}  # id -> the line that has it
    for line_number, line in enumerate(text.split("\n"), start=1):
        columns = line.removesuffix("\r").split("|")
        clip_id, transcript, problem = columns[0], columns[-1], ""
        if len(columns) != 3:
            problem = f"{len(columns)} columns instead of 3 (id|raw|normalized)"
        elif clip_id in ("", ".", "..") or re.search(r"[/\\\0]", clip_id):
            problem = "the id is not a plain file name"
        elif not transcript.strip():
            problem = "empty transcript"
        elif first_lines.setdefault(clip_id, line_number) != line_number:
            problem = f"duplicate id, first on line {first_lines[clip_id]}"
        clips.append(Clip(line_number, clip_id, transcript, problem=problem))
    return clips


def check_audio(clip: Clip, wavs: Path) -> Clip:
    """Add path and duration, from a wav's header or a whole flac, or the problem with it."""
    if clip.problem:
        return clip
    candidates = [wavs / f"{clip.clip_id}{suffix}" for suffix in (".wav", ".flac")]
    path = next((path for path in candidates if os.path.isfile(path)), None)
    if path is None:
        return clip._replace(problem=f"missing: {candidates[0]}")
    try:
        info = soundfile.info(path)
        # What a wav's header cannot tell: whether a flac is whole, and whether floats are numbers.
        read = info.format == "FLAC" or info.subtype in ("FLOAT", "DOUBLE")
        samples = soundfile.read(path)[0] if read else None
    except (soundfile.SoundFileError, OSError) as error:
        return clip._replace(problem=f"unreadable: {error}")
    if info.frames <= 0:
        return clip._replace(problem=f"zero-length: no samples in {path}")
    if read and not math.isfinite(abs(samples).max()):
        return clip._replace(problem=f"NaN or infinite samples in {path}")
    if promised := TRUNCATED.search(info.extra_info):
        missing = f"{promised[2]} bytes of samples instead of {promised[1]}"
        return clip._replace(problem=f"truncated: {missing} in {path}")
    return clip._replace(path=path, duration=info.frames / info.samplerate)


def trim_clip(clip: Clip, scratch: Path, trimmed: Path, trim_db: float) -> Clip:
    """Write scratch/ID.wav, 16-bit, less the edges that lie trim_db below the clip's peak.

    The path that is returned is the one in the trimmed folder, where the file goes at the end.
    """
    import librosa
    import numpy as np

    name = f"{clip.clip_id}.wav"
    try:
        samples, sampling_rate = soundfile.read(clip.path, always_2d=True)  # (n_samples, channels)
        librosa.util.valid_audio(samples.T)  # raises where a sample is NaN, which trim() takes in
        _, (start, end) = librosa.effects.trim(samples.T, top_db=trim_db)
        pcm = np.rint(samples[start:end] * INT16_SCALE).clip(-INT16_SCALE, INT16_SCALE - 1)
        soundfile.write(scratch / name, pcm.astype(np.int16), sampling_rate, subtype="PCM_16")
    except Exception as error:  # whatever it is, it is told with the row that it belongs to
        return clip._replace(problem=f"trimming failed: {error}")
    return clip._replace(path=trimmed / name, duration=len(pcm) / sampling_rate)


def trim_clips(clips: list[Clip], trim: Callable[[Clip], Clip]) -> list[Clip]:
    """Call trim on every clip, in parallel; PrepError if a process is killed."""
    n_processes = min(os.cpu_count() or 1, 16)  # more of them only wait for the disk
    # A fork could copy a lock that a thread holds. Workers ignore Ctrl-C: the parent hears it too.
    context, ignore = get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(n_processes, context, signal.signal, ignore) as pool:
            results = pool.map(trim, clips, chunksize=16)
            return list(tqdm(results, total=len(clips), desc="trimming", unit="clip", disable=None))
    except BrokenExecutor:
        raise PrepError("a trimming process died; was the machine out of memory?") from None


def write_manifests(splits: dict[str, list[Clip]], scratch: Path, folder: Path) -> None:
    """Put all manifests in folder, or none: an old train beside a new test list would leak."""
    names = [f"{split}_metadata.csv" for split in splits]
    previous = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    for name, clips in zip(names, splits.values(), strict=True):
        with open(scratch / name, "w", encoding="utf-8", newline="") as file:
            file.write("file_path,normalized_transcript,duration\n")
            # All text is quoted: the default leaves a lone carriage return bare on older Pythons.
            writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
            writer.writerows((str(c.path), c.transcript, round(c.duration, 6)) for c in clips)
            file.flush()
            os.fsync(file.fileno())
    try:
        for name in names:
            os.replace(scratch / name, folder / name)
    except BaseException:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for name, content in previous.items():
            (folder / name).write_bytes(content)
        raise


def refuse_unsafe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile extraction filter: only plain files and folders, only inside the target folder."""
    parts = re.split(r"[/\\]", member.name)
    if not (member.isfile() or member.isdir()) or ".." in parts or not parts[0]:
        raise PrepError(f"the archive has an unsafe member, {member.name!r}")
    return tarfile.data_filter(member, folder)


def download_corpus(folder: Path, url: str, sha256: str | None) -> Path:
    """Fetch, check and unpack LJSpeech through torchaudio, unless it is there; return its folder.

    It gets its name only once it is whole. sha256 is for an archive that differs from the
    original, whose checksum torchaudio knows. Raises PrepError if anything goes wrong.
    """
    corpus = folder if folder.name == CORPUS_NAME else folder / CORPUS_NAME
    if is_corpus(folder) or is_corpus(corpus):
        return folder if is_corpus(folder) else corpus
    if corpus.exists() and any(corpus.iterdir()):
        raise PrepError(f"{corpus} is there but no whole corpus; move it away before --download.")
    if not hasattr(tarfile, "data_filter"):
        raise PrepError("--download needs Python 3.10.12, 3.11.4 or newer, to unpack safely.")
    import torch
    import torchaudio

    scratch = corpus.with_name(f".{CORPUS_NAME}.download")
    default_filter = tarfile.TarFile.extraction_filter
    print(f"Downloading {url} and unpacking it (the original is 2.6 GB and takes minutes)")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        # torchaudio unpacks without a filter of its own, so tarfile's default is what counts.
        tarfile.TarFile.extraction_filter = staticmethod(refuse_unsafe)
        if sha256:
            torch.hub.download_url_to_file(url, str(scratch / ARCHIVE_NAME), sha256.lower())
        torchaudio.datasets.LJSPEECH(scratch, url=url, download=True)
        os.replace(scratch / CORPUS_NAME, corpus)
    except Exception as error:  # network, checksum, archive, disk: many kinds, one sentence
        raise PrepError(f"--download failed, nothing was kept: {error}.") from error
    finally:
        tarfile.TarFile.extraction_filter = default_filter
        shutil.rmtree(scratch, ignore_errors=True)
    return corpus


def make_splits(args: argparse.Namespace, corpus: Path, scratch: Path) -> dict[str, list[Clip]]:
    """Check and trim the clips, write the manifests, return the splits; scratch: for half work."""
    folder = Path(os.path.abspath(args.path_to_save))
    trimmed, wavs = folder / TRIMMED_NAME, corpus / "wavs"
    if os.path.realpath(trimmed) == os.path.realpath(wavs):
        raise PrepError(f"{trimmed} is the corpus' own wavs folder; give another --path_to_save.")

    with file_errors():
        rows = read_metadata(corpus / "metadata.csv")
    with ThreadPoolExecutor() as pool:
        checked = pool.map(partial(check_audio, wavs=wavs), rows)
        clips = list(tqdm(checked, total=len(rows), desc="checking", unit="clip", disable=None))
    clips = drop_bad(clips, args.skip_bad)
    if args.trim_db:
        trim = partial(trim_clip, scratch=scratch, trimmed=trimmed, trim_db=args.trim_db)
        clips = drop_bad(trim_clips(clips, trim), args.skip_bad)

    n_checked = len(clips)
    clips = [clip for clip in clips if args.min_seconds <= clip.duration <= args.max_seconds]
    if args.min_seconds > 0 or args.max_seconds < math.inf:
        print(f"Clips left out by --min_seconds or --max_seconds: {n_checked - len(clips)}")
    if not clips:
        raise PrepError(f"--min_seconds and --max_seconds leave no clip of {n_checked}.")
    splits = split_clips(clips, args.seed, args.test_split_pct)
    say_unknown(clips)
    with file_errors():
        if args.trim_db:
            trimmed.mkdir(exist_ok=True)
            for clip in clips:
                os.replace(scratch / clip.path.name, clip.path)
        write_manifests(splits, scratch, folder)
    return splits


def prepare(args: argparse.Namespace) -> None:
    """Do all the work in a new or existing path_to_save; a failure takes back what it made."""
    paths = (args.path_to_ljspech, args.path_to_save)
    corpus, folder = (Path(os.path.abspath(path)) for path in paths)
    check_writable("--path_to_save", folder)
    if args.download:
        corpus = download_corpus(corpus, args.download_url, args.download_sha256)
    check_corpus(corpus)
    trimmed = folder / TRIMMED_NAME
    new = [path for path in (trimmed, folder, *folder.parents) if not os.path.exists(path)]
    try:
        with file_errors():
            folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(prefix=".prep_splits.", dir=folder)
        with temporary as scratch:
            splits = make_splits(args, corpus, Path(scratch))
    except BaseException:
        if trimmed in new:
            shutil.rmtree(trimmed, ignore_errors=True)
        for path in new:
            with suppress(OSError):  # never made, or somebody else's files are in it by now
                path.rmdir()
        raise
    print_table(splits)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags; argparse exits with code 2 on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    corpus_flags, add = ("--path_to_ljspech", "--path_to_ljspeech"), parser.add_argument
    add(*corpus_flags, type=path_argument, required=True, help="folder of metadata.csv and wavs/")
    add("--path_to_save", type=path_argument, required=True, help="folder for the manifests")
    add("--test_split_pct", type=float, default=0.01, help="fraction held out (0.01 is 1 %%)")
    add("--seed", type=int, default=42, help="another seed holds out other clips")
    add("--skip_bad", action="store_true", help="leave bad rows out instead of stopping")
    add("--trim_db", type=float, help="cut edges this many dB below the peak, in copies (off)")
    add("--min_seconds", type=float, default=0, help="leave out what is shorter once trimmed")
    add("--max_seconds", type=float, default=math.inf, help="leave out what is longer")
    add("--download", action="store_true", help=f"fetch {CORPUS_NAME} if it is not there yet")
    add("--download_url", default=LJSPEECH_URL, help="for a mirror: its URL of the archive")
    add("--download_sha256", help="for a mirror: the archive's SHA-256, if not the original's")
    args = parser.parse_args(argv)

    sha256, url = args.download_sha256, args.download_url
    rules = {
        "--test_split_pct must lie between 0 and 1 (0.01 is 1 %)": 0 < args.test_split_pct < 1,
        "--trim_db must be above 0": args.trim_db is None or 0 < args.trim_db < math.inf,
        "--min_seconds must not exceed --max_seconds": args.min_seconds <= args.max_seconds,
        "--download_url needs --download": args.download or url == LJSPEECH_URL,
        "--download_sha256 needs --download": args.download or sha256 is None,
        f"--download_url must end in /{ARCHIVE_NAME}": url.endswith("/" + ARCHIVE_NAME),
        "--download_sha256 must be 64 hex digits": sha256 is None or len(sha256) == 64,
    }
    for rule, holds in rules.items():
        if not holds:
            parser.error(rule)
    return args


def main(argv: list[str] | None = None) -> None:
    """Run with these flags (default: the command line's); exits with code 1 on bad input."""
    args = parse_args(argv)
    try:
        prepare(args)
    except KeyboardInterrupt:
        sys.exit("\nprep_splits.py: interrupted; no manifest was written.")
    except DataError as error:
        sys.exit(f"prep_splits.py: error: {error}")


if __name__ == "__main__":
    main()
