"""Bad input of every kind to every script: one table, the same checks for each row.

A row says which script runs on what, and which words its message must have. Each run must exit with
a nonzero code and one sentence that names the culprit, and must leave every file as it was. Input
that looks odd and must work is in test_odd_input.py. bad_rows.py has the command lines of rows,
bad_checkpoints.py the rows of checkpoints.
"""

import ctypes
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bad_checkpoints import CHECKPOINT_ROWS, WEIGHTS, broken_voice
from bad_rows import Row, add_row, convert, demo, judge, prep, say, train
from conftest import REPO
from world import HEADER, PLAIN, TEXT, World, run, snapshot, wav_bytes, with_one

BAD: list[Row] = [*CHECKPOINT_ROWS]
row = partial(add_row, BAD)


# ---- manifests


def manifest(name, content, *says, flag="--path_to_train_manifest"):
    row(
        f"manifest: {name}",
        train(flag, lambda w: w.manifest(content)),
        "manifest.csv",
        *says,
    )


GOOD_LINE = f"clip.wav,{TEXT},0.55\n"
manifest("column missing", f"file_path,duration\nclip.wav,{TEXT}\n", "normalized_transcript")
manifest(
    "data set that was moved",
    HEADER + f"/data/old/clip.wav,{TEXT},1\n" * 3,
    "line 2",
    "/data/old/clip.wav",
    "3 of 3",
    "moved",
    "prep_splits.py",
)
manifest("empty validation set", HEADER, "no clips", flag="--path_to_val_manifest")
manifest("nothing at all", "", "CSV")
manifest("empty text", HEADER + GOOD_LINE + "clip.wav,,1\n", "line 3", "transcript")
manifest("text in another script", HEADER + "clip.wav,你好,1\n", "line 2", "no letter")
manifest("wrong separator", (HEADER + GOOD_LINE).replace(",", "|"), "file_path is missing")
manifest("a comma too many", HEADER + GOOD_LINE + "clip.wav,Come in, now,1\n", "line 3")
manifest("UTF-16", (HEADER + GOOD_LINE).encode("utf-16"), "UTF-8")
manifest("NUL bytes", HEADER + "clip\0.wav,hello,1\n", "line 2")
manifest("duration nan", HEADER + f"clip.wav,{TEXT},nan\n", "line 2", "duration")
manifest("clip shorter than a window", HEADER + f"clip.wav,{TEXT},0.02\n", "line 2", "window")
manifest("a folder for a clip", HEADER + f".,{TEXT},1\n", "line 2", "not a file")
row("manifest: missing", train("--path_to_val_manifest", "none.csv"), "none.csv", "no such")
row(
    "manifest: a folder, evaluate",
    judge("--path_to_manifest", lambda w: w.corpus.wavs),
    "wavs",
    "is a folder",
)


# ---- recordings: evaluate.py reads them, prep_splits.py checks them


def put(name, *arguments, **options):
    """A recording beside the manifest, as a World method's name and its arguments say."""

    def make(w: World) -> Path:
        w.clip(*arguments, **options) if name == "clip" else w.file("clip.wav", *arguments)
        return w.file("manifest.csv", HEADER + f"clip.wav,{TEXT},0.55\n")

    return make


RECORDINGS = {
    "truncated in its header": (wav_bytes()[:30], "clip"),
    "truncated flac": (wav_bytes(format="FLAC")[:5000], "clip"),
    "zero samples": (wav_bytes(np.zeros(0)), "no samples"),
    "zero bytes": (b"", "clip"),
    "infinite samples": (wav_bytes(with_one(np.inf), subtype="FLOAT"), "NaN or infinite"),
    "html": (b"<!DOCTYPE html><html>404 not found</html>", "clip"),
}


def bad_wavs(content: bytes):
    def make(w: World) -> tuple:
        folder = w.ljspeech(f"bad|{TEXT}|{TEXT}\n")
        (folder / "wavs/bad.wav").write_bytes(content)
        return "prep_splits", "--path_to_ljspech", folder, "--path_to_save", w.out

    return make


for name, (content, reason) in RECORDINGS.items():
    row(
        f"recording: {name}, prep_splits",
        bad_wavs(content),
        "line 4",
        "bad",
        reason.replace("clip", "bad"),
    )
    row(
        f"recording: {name}, evaluate",
        judge("--path_to_manifest", put("file", content)),
        "clip.wav",
        reason,
    )
row(
    "recording: shorter than one window",
    judge("--path_to_manifest", put("clip", PLAIN[:800])),
    "clip.wav",
    "800 samples",
    "window",
)


def folder_for_a_wav(w: World) -> tuple:
    folder = w.ljspeech(f"bad|{TEXT}|{TEXT}\n")
    (folder / "wavs/bad.wav").mkdir()
    return "prep_splits", "--path_to_ljspech", folder, "--path_to_save", w.out


row("recording: a folder", folder_for_a_wav, "line 4", "bad.wav")


# ---- prep_splits.py and make_demo_corpus.py, more of which is in their own tests

row("metadata: an id of 5,000 letters", prep(rows=f"{'x' * 5000}|a|a\n"), "line 4", "missing")
row("metadata: NUL in an id", prep(rows="a\0b|a|a\n"), "line 4", "plain file")
row("prep: path_to_save empty", prep("--path_to_save", ""), "--path_to_save")
row("prep: seed that is no number", prep("--seed", "x"), "--seed")
row("prep: min_seconds nan", prep("--min_seconds", "nan"), "--min_seconds")
row("prep: neither manifests nor report", lambda w: prep()(w)[:3], "--path_to_save or --report")
row("prep: nothing is long enough", prep("--min_seconds", "100"), "--min_seconds", "no clip")
row("demo: no sentences file", demo("--sentences", "/nowhere.txt"), "/nowhere.txt")
row("demo: sentences are a folder", demo("--sentences", lambda w: w.corpus.wavs), "wavs")
row("demo: voice empty", demo("--n_sentences", "2", "--voice", ""), "voice")


def other_record(record):
    def make(w: World) -> Path:
        w.out.mkdir()
        (w.out / "corpus.json").write_text(record)
        return w.out

    return make


for record in ("{", "[]", '{"arguments": [1]}'):
    row(
        f"demo: corpus.json that holds {record}",
        demo("--n_sentences", "2", "--path_to_save", other_record(record)),
        "out",
    )


# ---- text to speak

for name, text, words in (
    ("blank", " \t\n", "nothing to say"),
    ("only punctuation", "?!...", "no letter"),
    ("only emoji", "🙂🎉", "no letter"),
    ("only control characters", "\x01\x07\x1b", "no letter"),
    ("only another script", "你好世界", "no letter"),
):
    row(f"text: {name}", say("--text", text), words)
row("text: no file", say("--text_file", "/nowhere.txt"), "--text_file", "/nowhere.txt")
row("text: a folder", say("--text_file", lambda w: w.folder), "--text_file", "ünïque")
row("text: Latin-1", say("--text_file", lambda w: w.file("t", b"caf\xe9")), "--text_file", "UTF-8")
row(
    "text: a bad line beside a file",
    say("--text_file", lambda w: w.file("t", "Fine.\n"), "--text", "?!"),
    "no letter",
    "?!",
)
row(
    "text: only bad lines in a file",
    lambda w: (
        *("synthesize", "--checkpoint", w.voice, "--output_dir", w.out, "--device", "cpu"),
        *("--text_file", w.file("t", "\n?!\n...\n")),
    ),
    "nothing to say",
    "line 2",
    "no letter",
    "?!",
)


# ---- flags

for flags, *says in (
    ("--learning_rate nan", "--learning_rate", "nan"),
    ("--min_learning_rate 1", "--min_learning_rate must not exceed --learning_rate"),
    ("--adam_eps 0", "--adam_eps"),
    ("--weight_decay -1", "--weight_decay"),
    ("--max_grad_norm 0", "--max_grad_norm"),
    ("--training_epochs 1e3", "--training_epochs"),
    ("--batch_size 0", "--batch_size"),
    (f"--batch_size {10**30}", "--batch_size"),
    ("--num_workers -1", "--num_workers"),
    (f"--seed {2**32}", "--seed"),
    ("--checkpoint_minutes nan", "--checkpoint_minutes"),
    ("--keep_checkpoints 0", "--keep_checkpoints"),
    ("--fmax 12000", "--fmax"),
    ("--hop_size 2048", "--hop_size"),
    ("--window_size 4096", "--window_size"),
    ("--num_mels 600", "--num_mels", "513"),
    ("--min_db 0", "--min_db"),
    ("--max_scaled_abs 0", "--max_scaled_abs"),
    ("--mel_scaling linear", "--mel_scaling"),
    ("--encoder_kernel_size 4", "--encoder_kernel_size"),
    ("--decoder_dropout_p 1", "--decoder_dropout_p"),
    (f"--decoder_rnn_embed_dim {10**9}", "--decoder_rnn_embed_dim"),
    ("--bathc_size 2", "--bathc_size"),
    ("--log_wandb yes", "yes"),
    ("--run_name a/b", "--run_name"),
    ("--warm_start_allow_mismatch", "--warm_start"),
):
    row(f"train: {flags}", train(*flags.split()), *says)
for flag in ("working_directory", "path_to_train_manifest", "warm_start", "experiment_name"):
    row(f"train: {flag} empty", train(f"--{flag}", ""), f"--{flag}")
for flags, *says in (
    ("--max_decoder_steps 0", "--max_decoder_steps"),
    ("--stop_threshold nan", "--stop_threshold"),
    (f"--seed {10**30}", "--seed"),
    ("--device abacus", "--device", "abacus"),
    ("--device cuda:99", "--device", "cuda:99"),
):
    row(f"synthesize: {flags}", say(*flags.split()), *says)
row("synthesize: checkpoint empty", say("--checkpoint", ""), "--checkpoint")
for flags, *says in (
    ("--batch_size 0", "--batch_size"),
    ("--device abacus", "--device", "abacus"),
    ("--outptu_json x", "--outptu_json"),
):
    row(f"evaluate: {flags}", judge(*flags.split()), *says)
row("evaluate: output_json is a folder", judge("--output_json", lambda w: w.folder), "is a folder")


# ---- symbols and word times

for name, content, reason in (
    ("missing", None, "No such file"),
    ("not JSON", '["a",', "line 1"),
    ("a number", "7", "list"),
    ("lists", '[["a"], ["b"]]', "strings"),
    ("empty strings", '["<pad>", "a", ""]', "strings"),
    ("empty", "[]", "symbols"),
    ("twice", '["<pad>", "a", "a"]', "twice: a"),
    ("nested too deep", "[" * 100_000, "path_to_symbols"),
    ("no UTF-8", b'["<pad>", "\xe9"]', "UTF-8"),
    ("no letter", '["<pad>", "!"]', "no letter"),
):

    def symbols(w: World, content=content) -> Path:
        return w.folder / "symbols.json" if content is None else w.file("symbols.json", content)

    culprit = "line 2" if name == "no letter" else "symbols.json"
    row(f"symbols: {name}", train("--path_to_symbols", symbols), culprit, reason)

WORDS_OF_NOBODY = '{"nobody": [{"word": "a", "index": 0, "start": 0}]}'
for name, content in (
    ("not JSON", "{"),
    ("words that are no list", '{"tiny-09": 3}'),
    ("a word without its start", '{"tiny-09": [{"word": "a", "index": 0}]}'),
    ("an index that is text", '{"tiny-09": [{"word": "a", "index": "0", "start": 0}]}'),
    ("other clips", WORDS_OF_NOBODY),
):

    def word_times(w: World, content=content) -> Path:
        return w.folder / "words.json" if content is None else w.file("words.json", content)

    row(f"word times: {name}", judge("--word_times", word_times), "--word_times")


# ---- folders that cannot be written to


def read_only(w: World) -> Path:
    folder = w.folder / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    return folder


def inside(make):
    return lambda w: make(w) / "file"


for place, make in (
    ("in a read-only folder", lambda w: read_only(w) / "new/folder"),
    ("a file", lambda w: w.file("locked", "precious")),
):
    row(f"write to {place}: prep_splits", prep("--path_to_save", make), "locked")
    row(f"write to {place}: prep_splits --report", prep("--report", make), "locked", "--report")
    for what, flag in (("checkpoints", "--working_directory"), ("samples", "--save_audio_gen")):
        row(f"write to {place}: train {what}", train(flag, make), "locked", flag)
    row(f"write to {place}: synthesize", say("--output_dir", make), "locked")
    row(f"write to {place}: evaluate", judge("--output_json", inside(make)), "locked")
    row(f"write to {place}: convert", convert("--to", "nvidia", inside(make)), "locked")
    row(
        f"write to {place}: make_demo_corpus",
        demo("--n_sentences", "2", "--path_to_save", inside(make)),
        "locked",
    )
row(
    "write to a read-only folder: download, before it begins",
    prep(
        "--path_to_ljspech",
        lambda w: w.folder / "new",
        "--download",
        "--path_to_save",
        read_only,
    ),
    "locked",
)
row(
    "unreadable: manifest",
    train("--path_to_train_manifest", lambda w: locked_file(w.manifest(HEADER + GOOD_LINE))),
    "manifest.csv",
)
row(
    "unreadable: weights",
    say("--checkpoint", broken_voice(lambda f: locked_file(f / WEIGHTS))),
    WEIGHTS,
)


def locked_file(path: Path) -> Path:
    path.chmod(0)
    return path


# ---- the checks


@pytest.fixture
def permissions():
    """Makes folders' permissions count: root gives up its right to ignore them."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before, changed = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if libc.capget(header, before) != 0:
        pytest.skip("root cannot give up its rights here")
    changed[:] = before[:]
    changed[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH of the effective set
    assert libc.capset(header, changed) == 0
    yield
    assert libc.capset(header, before) == 0


@pytest.mark.parametrize("case", BAD, ids=[case.name.replace(" ", "_") for case in BAD])
def test_bad_input(case, world, capsys, permissions):
    script, *flags = case.arrange(world)
    before = snapshot(world.folder.parent)
    capsys.readouterr()
    code, message = run(script, *flags, capsys=capsys)
    *listed, sentence = message.strip().split("\n")
    assert code in (1, 2), message
    assert code == 2 or sentence.startswith(f"{script.split('.')[-1]}.py: "), message
    # Before the sentence there may only be a usage, or the bad rows of metadata.csv.
    assert code == 2 or all(line.startswith("metadata.csv") for line in listed), message
    assert all(words in (sentence if code == 2 else message) for words in case.says), message
    assert snapshot(world.folder.parent) == before


@pytest.mark.slow
def test_the_command_line_ends_with_one_sentence(world):
    """A shell sees the same as what main() does in this process."""
    before = snapshot(world.folder.parent)
    command = [
        sys.executable,
        REPO / "synthesize.py",
        "--checkpoint",
        "none",
        "--output_dir",
        "out",
    ]
    done = subprocess.run([*command, "--text", "Hello"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch("synthesize.py: .*none.*\n", done.stderr)
    assert snapshot(world.folder.parent) == before
