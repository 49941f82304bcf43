"""Turn a folder of recordings into train_metadata.csv and test_metadata.csv, and report on it.

    python prep_splits.py --path_to_ljspech data/LJSpeech-1.1 --path_to_save data/splits
    python prep_splits.py --path_to_ljspech my_voice --report my_voice_report

(--download fetches LJSpeech first.) The folder has LJSpeech's layout, a CSV with a header, or
NAME.txt beside NAME.wav, see corpora/layouts.py. The manifests give the columns
file_path,normalized_transcript,duration: absolute paths and seconds, longest clip first. Every row
is checked before anything is written; bad ones are listed with their line number and stop the run,
unless --skip_bad leaves them out.
Seed and ids alone decide which clips are held out, so the split is the same on every machine.
--val_split_pct holds out more clips, in val_metadata.csv: a validation set that chooses the
checkpoint, beside a test set that nothing looks at. The test set is the same with and without it.
--report measures the recordings, see corpora/report.py; it needs no --path_to_save.
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
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import soundfile
from tqdm import tqdm

from command_line.files import DataError, check_writable, file_errors, path_argument
from command_line.flags import FlagParser
from corpora.layouts import CORPUS_NAME, Clip, check_corpus, describe_problems, read_clips

ARCHIVE_NAME = f"{CORPUS_NAME}.tar.bz2"
LJSPEECH_URL = f"https://data.keithito.com/data/speech/{ARCHIVE_NAME}"
TRIMMED_NAME = "trimmed_wavs"
VAL_NAME = "val_metadata.csv"
INT16_SCALE = 32768  # what soundfile divides 16-bit samples by when it reads floats


def is_corpus(folder: Path) -> bool:
    """True if the folder has LJSpeech's two parts, which is what --download makes."""
    # Unlike Path's methods, these are False for any unusable name.
    return os.path.isfile(folder / "metadata.csv") and os.path.isdir(folder / "wavs")


def drop_bad(clips: list[Clip], skip_bad: bool) -> list[Clip]:
    """List bad rows on stderr and return the others; DataError if there are any to stop for."""
    good = [clip for clip in clips if not clip.problem]
    n_bad = len(clips) - len(good)
    for line in describe_problems(clips):
        print(line, file=sys.stderr)
    if n_bad and not skip_bad:
        raise DataError(f"bad rows: {n_bad}; mend them, or leave them out with --skip_bad.")
    if n_bad and not good:
        raise DataError(f"bad rows: {n_bad}, which is all of them; no clip is left.")
    if n_bad:
        print(f"Bad rows left out: {n_bad}")
    return good


def split_clips(
    clips: list[Clip], seed: int, test_fraction: float, val_fraction: float
) -> dict[str, list[Clip]]:
    """Return the clips of "train", "test" and, unless its fraction is 0, "val", longest first.

    "test" does not depend on val_fraction.

    Raises:
        DataError: if train would be empty.
    """
    n_test = max(1, round(test_fraction * len(clips)))
    n_val = max(1, round(val_fraction * len(clips))) if val_fraction else 0
    if n_test + n_val >= len(clips):
        flags = f"--test_split_pct {test_fraction:g}"
        flags += f" and --val_split_pct {val_fraction:g}" if val_fraction else ""
        leave = "leave" if val_fraction else "leaves"
        raise DataError(f"{flags} of {len(clips)} usable clips {leave} none to train on.")

    # Random generators differ between libraries and their versions; a hash does not.
    ranked = sorted(clips, key=lambda c: hashlib.sha256(f"{seed}:{c.clip_id}".encode()).digest())
    splits = {"train": ranked[n_test + n_val :], "test": ranked[:n_test]}
    if n_val:
        splits["val"] = ranked[n_test : n_test + n_val]
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
    """Say which characters of the transcripts training leaves out or replaces, on stderr."""
    from text.tokenizer import Tokenizer

    texts = [clip.transcript for clip in clips]
    if unknown := Tokenizer().describe_unknown(texts):
        hint = "train_taco.py's --path_to_symbols takes another table"
        print(f"{unknown}; {hint}", file=sys.stderr)
    if folded := Tokenizer().describe_folded(texts):
        hint = "train_taco.py's --extra_symbols adds symbols for them"
        print(f"{folded}; {hint}", file=sys.stderr)


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
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)  # an id may name a folder
        pcm = np.rint(samples[start:end] * INT16_SCALE).clip(-INT16_SCALE, INT16_SCALE - 1)
        soundfile.write(scratch / name, pcm.astype(np.int16), sampling_rate, subtype="PCM_16")
    except Exception as error:  # whatever it is, it is told with the row that it belongs to
        return clip._replace(problem=f"trimming failed: {error}")
    return clip._replace(path=trimmed / name, duration=len(pcm) / sampling_rate)


def trim_clips(clips: list[Clip], trim: Callable[[Clip], Clip]) -> list[Clip]:
    """Call trim on every clip, in parallel; DataError if a process is killed."""
    n_processes = min(os.cpu_count() or 1, 16)  # more of them only wait for the disk
    # A fork could copy a lock that a thread holds. Workers ignore Ctrl-C: the parent hears it too.
    context, ignore = get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(n_processes, context, signal.signal, ignore) as pool:
            results = pool.map(trim, clips, chunksize=16)
            return list(tqdm(results, total=len(clips), desc="trimming", unit="clip", disable=None))
    except BrokenExecutor:
        raise DataError("a trimming process died; was the machine out of memory?") from None


def check_apart(trimmed: Path, clips: list[Clip]) -> None:
    """DataError if trimmed clips would be put over the recordings themselves."""
    for parent in {clip.path.parent for clip in clips}:
        folder = Path(os.path.realpath(parent))
        if Path(os.path.realpath(trimmed)) in (folder, *folder.parents):
            problem = "is the corpus' own wavs folder"
            raise DataError(f"{trimmed} {problem}; give another --path_to_save.")


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
        raise DataError(f"the archive has an unsafe member, {member.name!r}")
    return tarfile.data_filter(member, folder)


def download_corpus(folder: Path, url: str, sha256: str | None) -> Path:
    """Fetch, check and unpack LJSpeech through torchaudio, unless it is there; return its folder.

    It gets its name only once it is whole. sha256 is for an archive that differs from the
    original, whose checksum torchaudio knows. Raises DataError if anything goes wrong.
    """
    corpus = folder if folder.name == CORPUS_NAME else folder / CORPUS_NAME
    if is_corpus(folder) or is_corpus(corpus):
        return folder if is_corpus(folder) else corpus
    if corpus.exists() and any(corpus.iterdir()):
        raise DataError(f"{corpus} is there but no whole corpus; move it away before --download.")
    if not hasattr(tarfile, "data_filter"):
        raise DataError("--download needs Python 3.10.12, 3.11.4 or newer, to unpack safely.")
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
        raise DataError(f"--download failed, nothing was kept: {error}.") from error
    finally:
        tarfile.TarFile.extraction_filter = default_filter
        shutil.rmtree(scratch, ignore_errors=True)
    return corpus


def make_splits(
    args: argparse.Namespace, clips: list[Clip], scratch: Path
) -> dict[str, list[Clip]]:
    """Trim the clips, write the manifests, return the splits; scratch: for half work."""
    folder = Path(os.path.abspath(args.path_to_save))
    trimmed = folder / TRIMMED_NAME
    clips = drop_bad(clips, args.skip_bad)
    if args.trim_db:
        check_apart(trimmed, clips)
        trim = partial(trim_clip, scratch=scratch, trimmed=trimmed, trim_db=args.trim_db)
        clips = drop_bad(trim_clips(clips, trim), args.skip_bad)

    n_checked = len(clips)
    clips = [clip for clip in clips if args.min_seconds <= clip.duration <= args.max_seconds]
    if args.min_seconds > 0 or args.max_seconds < math.inf:
        print(f"Clips left out by --min_seconds or --max_seconds: {n_checked - len(clips)}")
    if not clips:
        raise DataError(f"--min_seconds and --max_seconds leave no clip of {n_checked}.")
    splits = split_clips(clips, args.seed, args.test_split_pct, args.val_split_pct)
    say_unknown(clips)
    with file_errors():
        if args.trim_db:
            for clip in clips:
                clip.path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / clip.path.relative_to(trimmed), clip.path)
        write_manifests(splits, scratch, folder)
    return splits


def save_splits(args: argparse.Namespace, clips: list[Clip]) -> None:
    """Make the splits in a new or existing path_to_save; a failure takes back what it made."""
    folder = Path(os.path.abspath(args.path_to_save))
    trimmed = folder / TRIMMED_NAME
    new = [path for path in (trimmed, folder, *folder.parents) if not os.path.exists(path)]
    try:
        with file_errors():
            folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(prefix=".prep_splits.", dir=folder)
        with temporary as scratch:
            splits = make_splits(args, clips, Path(scratch))
    except BaseException:
        if trimmed in new:
            shutil.rmtree(trimmed, ignore_errors=True)
        for path in new:
            with suppress(OSError):  # never made, or somebody else's files are in it by now
                path.rmdir()
        raise
    print_table(splits)


def prepare(args: argparse.Namespace) -> None:
    """Read the folder, then write the report and the manifests, whichever are asked for."""
    if args.path_to_save:
        check_writable("--path_to_save", args.path_to_save)
        val_manifest = Path(args.path_to_save) / VAL_NAME
        if not args.val_split_pct and os.path.exists(val_manifest):
            # Its clips may be among those that are trained on now.
            problem = "of an earlier run does not belong to the new manifests"
            raise DataError(f"{val_manifest} {problem}; remove it, or give --val_split_pct.")
    if args.report:
        check_writable("--report", args.report)
    corpus = Path(os.path.abspath(args.path_to_ljspech))
    if args.download:
        corpus = download_corpus(corpus, args.download_url, args.download_sha256)
    check_corpus(corpus)
    clips = read_clips(corpus)
    if args.report:
        from corpora.report import write_report  # numpy, which --help does without

        write_report(clips, Path(args.report))
    if args.path_to_save:
        save_splits(args, clips)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags; argparse exits with code 2 on a mistake."""
    parser = FlagParser(description=__doc__.splitlines()[0])
    corpus_flags, add = ("--path_to_ljspech", "--path_to_ljspeech"), parser.add_argument
    corpus_help = "folder of metadata.csv and wavs/, or of NAME.wav and NAME.txt"
    add(*corpus_flags, type=path_argument, required=True, help=corpus_help)
    add("--path_to_save", type=path_argument, help="folder for the manifests")
    add("--report", type=path_argument, metavar="DIR", help="folder for a report on the recordings")
    add("--test_split_pct", type=float, default=0.01, help="fraction held out (0.01 is 1 %%)")
    add("--val_split_pct", type=float, default=0, help=f"fraction held out for {VAL_NAME} (off)")
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
    held_out = args.test_split_pct + args.val_split_pct
    rules = {
        "--path_to_save or --report is required": args.path_to_save or args.report,
        "--test_split_pct must lie between 0 and 1 (0.01 is 1 %)": 0 < args.test_split_pct < 1,
        "--val_split_pct must lie between 0 and 1 (0.01 is 1 %)": 0 <= args.val_split_pct < 1,
        "--test_split_pct and --val_split_pct must be below 1 together": held_out < 1,
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
