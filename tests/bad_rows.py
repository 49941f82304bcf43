"""Not a test: a row of the table in test_bad_input.py, and the command lines of rows."""

from collections.abc import Callable
from typing import NamedTuple

from runs import run_flags
from world import World


class Row(NamedTuple):
    name: str
    arrange: Callable[[World], tuple]  # what to run: the script, then its flags
    says: tuple[str, ...]  # words of the message


def add_row(table: list[Row], name: str, arrange: Callable[[World], tuple], *says: str) -> None:
    """One more row at the end of the table."""
    table.append(Row(name, arrange, says))


# ---- what is run: each function gives a row's `arrange`


def prep(*flags, rows=None):
    return lambda w: (
        *("prep_splits", "--path_to_ljspech", w.ljspeech(rows), "--path_to_save", w.out),
        *(flag(w) if callable(flag) else flag for flag in flags),
    )


def demo(*flags):
    return lambda w: (
        *("corpora.make_demo_corpus", "--n_sentences", 2, "--path_to_save", w.out / "demo"),
        *(flag(w) if callable(flag) else flag for flag in flags),
    )


def train(*flags):
    return lambda w: (
        *("train_taco", *run_flags(w.corpus, w.out)),
        *(flag(w) if callable(flag) else flag for flag in flags),
    )


def say(*flags):
    return lambda w: (
        *("synthesize", "--checkpoint", w.voice, "--output_dir", w.out, "--device", "cpu"),
        *("--max_decoder_steps", "4", "--text", "Hello."),
        *(flag(w) if callable(flag) else flag for flag in flags),
    )


def judge(*flags):
    return lambda w: (
        *("evaluate", "--checkpoint", w.voice, "--path_to_manifest", w.corpus.test_manifest),
        *("--output_json", w.out / "report.json", "--device", "cpu", "--max_decoder_steps", "4"),
        *(flag(w) if callable(flag) else flag for flag in flags),
    )


def export(*flags):
    return lambda w: (
        *("export_mels", "--checkpoint", w.voice, "--path_to_manifest", w.corpus.test_manifest),
        *("--output_dir", w.out, "--device", "cpu", "--num_workers", 0),
        *(flag(w) if callable(flag) else flag for flag in flags),
    )


def convert(*flags):
    return lambda w: (
        *("convert_checkpoint", "--from", w.voice, "--to", "nvidia", w.out / "out.pt"),
        *(flag(w) if callable(flag) else flag for flag in flags),
    )
