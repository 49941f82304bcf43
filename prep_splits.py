"""Turn a folder of recordings into train_metadata.csv and test_metadata.csv, and report on it.

    python prep_splits.py --path_to_ljspech data/LJSpeech-1.1 --path_to_save data/splits
    python prep_splits.py --path_to_ljspech my_voice --report my_voice_report

The folder has LJSpeech's layout, a table with other columns, or NAME.txt beside NAME.wav: see
corpora/layouts.py. --download fetches LJSpeech first. The script checks all rows before it writes
anything: it lists bad ones with their line number and stops, unless --skip_bad leaves them out.

The manifests have the columns file_path,normalized_transcript,duration: absolute paths and
seconds, longest clip first. Only the seed, the ids and repeated texts decide which clips are held
out, so the split is the same on every machine. Clips whose words another clip repeats are trained
on. --val_split_pct holds out more clips, on which to choose a checkpoint.
Read a manifest with pandas.read_csv(path, keep_default_na=False), or the text "NA" gets lost.
"""

import argparse
import csv
import hashlib
import math
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from command_line.files import (
    DataError,
    check_writable,
    file_errors,
    path_argument,
    write_whole,
)
from command_line.flags import FlagParser
from command_line.main import say, script
from corpora.download import LJSPEECH_SHA256, LJSPEECH_URL, download_corpus
from corpora.layouts import read_clips
from corpora.lengths import find_misfits
from corpora.recordings import MAX_SECONDS, Clip, describe_problems, describe_remarks, trim_clip

VAL_NAME = "val_metadata.csv"


def leave_out_bad(clips: list[Clip], skip_bad: bool) -> list[Clip]:
    """List the bad rows on stderr and return the others, or stop the run without --skip_bad."""
    good = [clip for clip in clips if not clip.problem]
    n_bad = len(clips) - len(good)
    for line in describe_problems(clips):
        say(line, file=sys.stderr)
    if n_bad and not skip_bad:
        raise DataError(f"bad rows: {n_bad}; mend them, or leave them out with --skip_bad.")
    if not good:
        raise DataError(f"bad rows: {n_bad}, which is all of them; no clip is left.")
    if n_bad:
        say(f"Bad rows left out: {n_bad}")
    return good


def refuse_recordings(folder: Path, clips: list[Clip]) -> None:
    """Raise a DataError if the folder for trimmed copies has recordings that are no such copies."""
    trimmed = Path(os.path.realpath(folder))
    places = {clip.path.parent for clip in clips} | {clip.path for clip in clips}
    for place in map(Path, map(os.path.realpath, places)):
        if trimmed in (place, *place.parents):
            raise DataError(f"{folder} is the corpus' own wavs folder; use another --path_to_save.")
    copies = {str(folder / f"{clip.clip_id}.wav") for clip in clips}
    names = ("train_metadata.csv", "test_metadata.csv", VAL_NAME)  # of an earlier run
    for manifest in filter(os.path.isfile, (folder.parent / name for name in names)):
        with open(manifest, encoding="utf-8", errors="replace", newline="") as file:
            copies |= {row[0] for row in csv.reader(file) if row}
    for path in folder.rglob("*"):
        if path.is_file() and str(path) not in copies:
            raise DataError(f"{path} would be removed; use another --path_to_save.")


def leave_out_lengths(clips: list[Clip], min_seconds: float, max_seconds: float) -> list[Clip]:
    """Return the clips within --min_seconds and --max_seconds."""
    kept = [clip for clip in clips if min_seconds <= clip.duration <= max_seconds]
    if not kept:
        raise DataError(f"--min_seconds and --max_seconds leave no clip of {len(clips)}.")
    if min_seconds > 0 or max_seconds < math.inf:
        say(f"Clips left out by --min_seconds or --max_seconds: {len(clips) - len(kept)}")
    return kept


def spoken_words(text: str) -> str:
    """Reduce a text to what tells its words from others: its letters and figures."""
    return "".join(c for c in text.casefold() if c.isalnum())


def split_clips(
    clips: list[Clip], seed: int, test_fraction: float, val_fraction: float
) -> dict[str, list[Clip]]:
    """Split clips into "train", "test" and, unless its fraction is 0, "val", longest first.

    Clips with the same words are trained on while there are others to hold out: a voice is measured
    on sentences that it never heard.
    """
    n_test = max(1, round(test_fraction * len(clips)))
    n_val = max(1, round(val_fraction * len(clips))) if val_fraction else 0
    if n_test + n_val >= len(clips):
        flags = f"--test_split_pct {test_fraction:g} and --val_split_pct {val_fraction:g}"
        raise DataError(f"{flags} of {len(clips)} usable clips leave none to train on.")

    repeated = Counter(spoken_words(clip.transcript) for clip in clips)

    def rank(clip: Clip) -> tuple[bool, bytes]:
        # Random generators differ between libraries and their versions; a hash does not.
        number = hashlib.sha256(f"{seed}:{clip.clip_id}".encode()).digest()
        return repeated[spoken_words(clip.transcript)] > 1, number

    ranked = sorted(clips, key=rank)
    splits = {"train": ranked[n_test + n_val :], "test": ranked[:n_test]}
    if n_val:
        splits["val"] = ranked[n_test : n_test + n_val]
    for split in splits.values():
        split.sort(key=lambda clip: (-clip.duration, clip.clip_id))
    return splits


def warn_unknown(clips: list[Clip]) -> None:
    """Warn on stderr of characters that training will leave out or replace."""
    from text.tokenizer import Tokenizer  # imports torch, which takes seconds

    texts = [clip.transcript for clip in clips]
    if unknown := Tokenizer().describe_unknown(texts):
        say(f"{unknown}; train_taco.py's --path_to_symbols takes another table", file=sys.stderr)
    if folded := Tokenizer().describe_folded(texts):
        say(f"{folded}; train_taco.py's --extra_symbols adds symbols for them", file=sys.stderr)


def warn_odd(clips: list[Clip]) -> None:
    """Name clips on stderr: oddly read, very long, or with a text that is too short or long."""
    from text.tokenizer import Tokenizer  # imports torch, which takes seconds

    lines = describe_remarks(clips)
    long = [clip for clip in clips if clip.duration > MAX_SECONDS]
    if long:
        lines.append(
            f"Clips of more than {MAX_SECONDS:g} s, which take much memory: {len(long)}; cut them, "
            "or leave them out with --max_seconds"
        )
        lines += describe_problems([c._replace(problem=f"{c.duration:.1f} s") for c in long])
    if misfits := find_misfits(clips, Tokenizer().clean):
        lines.append(f"Clips whose text does not fit their length: {len(misfits)}; listen to them")
        lines += describe_problems(misfits)
    for line in lines:
        say(line, file=sys.stderr)


def write_manifests(splits: dict[str, list[Clip]], folder: Path) -> None:
    """Write all manifests, or none: an old train beside a new test list would leak."""
    names = [f"{split}_metadata.csv" for split in splits]
    folder.mkdir(parents=True, exist_ok=True)
    previous = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    with tempfile.TemporaryDirectory(prefix=".prep_splits.", dir=folder) as scratch:
        for name, clips in zip(names, splits.values(), strict=True):
            with open(Path(scratch) / name, "w", encoding="utf-8", newline="") as file:
                file.write("file_path,normalized_transcript,duration\n")
                # Older Pythons leave a lone carriage return bare unless all text is quoted.
                writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
                writer.writerows((str(c.path), c.transcript, round(c.duration, 6)) for c in clips)
        try:
            for name in names:
                os.replace(Path(scratch) / name, folder / name)
        except BaseException:
            for name in names:
                (folder / name).unlink(missing_ok=True)
            for name, content in previous.items():
                (folder / name).write_bytes(content)
            raise


def print_table(splits: dict[str, list[Clip]]) -> None:
    """Print the size of each split and its longest clip, and one clip with its text."""
    say(f"{'split':<6}{'clips':>8}{'hours':>9}{'characters':>12}{'longest (s)':>13}")
    for name, clips in splits.items():
        hours = sum(clip.duration for clip in clips) / 3600
        characters = sum(len(clip.transcript) for clip in clips)
        say(f"{name:<6}{len(clips):>8}{hours:>9.3f}{characters:>12}{clips[0].duration:>13.2f}")
    example = splits["train"][len(splits["train"]) // 2]
    say(f"for example, {example.path} says {example.transcript[:200]!r}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the flags; exit with code 2 on a mistake."""
    parser = FlagParser(description=__doc__.splitlines()[0])
    add, corpus_flags = parser.add_argument, ("--path_to_ljspech", "--path_to_ljspeech")
    add(*corpus_flags, type=path_argument, required=True, help="folder of recordings and texts")
    add("--path_to_save", type=path_argument, help="folder for the manifests")
    add("--report", type=path_argument, metavar="DIR", help="folder for a report on the recordings")
    add("--file_column", help="column of the table with the recordings: its number or name (found)")
    add("--text_column", help="column of the table with the texts: its number or name (found)")
    add("--test_split_pct", type=float, default=0.01, help="fraction held out (0.01, 1 %%)")
    add("--val_split_pct", type=float, default=0, help=f"fraction held out for {VAL_NAME} (off)")
    add("--seed", type=int, default=42, help="another seed holds out other clips (42)")
    add("--skip_bad", action="store_true", help="leave bad rows out instead of stopping")
    add("--trim_db", type=float, help="cut edges this many dB below the peak, in copies (off)")
    add("--min_seconds", type=float, default=0, help="leave out shorter clips, once trimmed")
    add("--max_seconds", type=float, default=math.inf, help="leave out longer clips")
    add("--download", action="store_true", help="fetch LJSpeech if it is not there yet")
    add("--download_url", default=LJSPEECH_URL, help="with --download: the archive of a mirror")
    add("--download_sha256", default=LJSPEECH_SHA256, help="with --download_url: its SHA-256")
    args = parser.parse_args(argv)
    is_sha256 = re.fullmatch("[0-9A-Fa-f]{64}", args.download_sha256)
    rules = {
        "--path_to_save or --report is required": args.path_to_save or args.report,
        "--test_split_pct must lie between 0 and 1 (0.01 is 1 %)": 0 < args.test_split_pct < 1,
        "--val_split_pct must lie between 0 and 1 (0.01 is 1 %)": 0 <= args.val_split_pct < 1,
        "--trim_db must be above 0": args.trim_db is None or 0 < args.trim_db < math.inf,
        "--min_seconds must not exceed --max_seconds": args.min_seconds <= args.max_seconds,
        "--download_sha256 must be 64 hex digits": is_sha256,
    }
    for rule, holds in rules.items():
        if not holds:
            parser.error(rule)
    return args


def check_outputs(args: argparse.Namespace) -> None:
    """Raise a DataError if the manifests or the report could not be written."""
    if args.report:
        check_writable("--report", args.report)
    if args.path_to_save:
        check_writable("--path_to_save", args.path_to_save)
        val_manifest = Path(args.path_to_save) / VAL_NAME
        if not args.val_split_pct and os.path.exists(val_manifest):
            # Its clips may be among those that the new manifests train on.
            raise DataError(
                f"{val_manifest} is an earlier run's; remove it, or use --val_split_pct."
            )


def save_trimmed_splits(args: argparse.Namespace, clips: list[Clip]) -> None:
    """Trim the clips and save their splits; an error leaves earlier copies and manifests whole."""
    folder = Path(os.path.abspath(args.path_to_save)) / "trimmed_wavs"
    refuse_recordings(folder, clips)

    def write(scratch: Path) -> None:
        bar = tqdm(clips, desc="trimming", unit="clip", disable=None)
        cut = [trim_clip(clip, scratch, args.trim_db) for clip in bar]
        cut = leave_out_bad(cut, args.skip_bad)
        save_splits(args, [x._replace(path=folder / x.path.relative_to(scratch)) for x in cut])

    with file_errors():
        write_whole(folder, write)


def save_splits(args: argparse.Namespace, clips: list[Clip]) -> None:
    """Filter and split the clips, and write the manifests."""
    folder = Path(os.path.abspath(args.path_to_save))
    clips = leave_out_lengths(clips, args.min_seconds, args.max_seconds)
    splits = split_clips(clips, args.seed, args.test_split_pct, args.val_split_pct)
    warn_odd(clips)
    warn_unknown(clips)
    with file_errors():
        write_manifests(splits, folder)
    print_table(splits)


@script
def main(argv: list[str] | None = None) -> None:
    """Prepare the splits, or the report, or both."""
    args = parse_args(argv)
    check_outputs(args)
    folder = Path(os.path.abspath(args.path_to_ljspech))
    if args.download:
        folder = download_corpus(folder, args.download_url, args.download_sha256)
    clips = read_clips(folder, args.file_column, args.text_column)
    if args.report:
        from corpora.report import write_report

        write_report(clips, Path(args.report))
    if args.path_to_save:
        clips = leave_out_bad(clips, args.skip_bad)
        if args.trim_db:
            save_trimmed_splits(args, clips)
        else:
            save_splits(args, clips)


if __name__ == "__main__":
    main()
