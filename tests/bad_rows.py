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
    table.append(Row(name, arrange, says))


def command(script: str, flags_in: Callable[[World], tuple]) -> Callable:
    """Return a function that adds flags, plain or made in a world, and gives a row's `arrange`."""
    return lambda *more: (
        lambda w: (
            *(script, *flags_in(w)),
            *(flag(w) if callable(flag) else flag for flag in more),
        )
    )


def prep(*flags, rows=None):
    corpus = lambda w: ("--path_to_ljspech", w.ljspeech(rows), "--path_to_save", w.out)  # noqa: E731
    return command("prep_splits", corpus)(*flags)


SPOKEN = ("--device", "cpu", "--max_decoder_steps", "4")
demo = command(
    "corpora.make_demo_corpus", lambda w: ("--n_sentences", 2, "--path_to_save", w.out / "demo")
)
train = command("train_taco", lambda w: run_flags(w.corpus, w.out))
say = command(
    "synthesize",
    lambda w: ("--checkpoint", w.voice, "--output_dir", w.out, *SPOKEN, "--text", "Hello."),
)
judge = command(
    "evaluate",
    lambda w: (
        *("--checkpoint", w.voice, "--path_to_manifest", w.corpus.test_manifest),
        *("--output_json", w.out / "report.json", *SPOKEN),
    ),
)
export = command(
    "export_mels",
    lambda w: (
        *("--checkpoint", w.voice, "--path_to_manifest", w.corpus.test_manifest),
        *("--output_dir", w.out, "--device", "cpu", "--num_workers", 0),
    ),
)
convert = command(
    "convert_checkpoint", lambda w: ("--from", w.voice, "--to", "nvidia", w.out / "o")
)
