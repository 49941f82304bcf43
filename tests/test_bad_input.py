"""Bad input of every kind to every script: one table, the same checks for each row.

A row says which script runs on what, and which words its message must have. Each run must exit with
a nonzero code and one sentence that names the culprit, and must leave every file as it was. Input
that looks odd and must work is in test_odd_input.py. bad_rows.py has the command lines of rows,
bad_checkpoints.py the rows of checkpoints.
"""

import ctypes
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bad_checkpoints import CHECKPOINT_ROWS, WEIGHTS, broken_voice
from bad_rows import Row, add_row, convert, demo, judge, prep, say, train
from world import HEADER, PLAIN, TEXT, World, run, snapshot, wav_bytes

BAD: list[Row] = [*CHECKPOINT_ROWS]
row = partial(add_row, BAD)


# ---- manifests


def manifest(name, content, *says, flag="--path_to_train_manifest"):
    arrange = train(flag, lambda w: w.manifest(content))
    row(f"manifest: {name}", arrange, "manifest.csv", *says)


GOOD_LINE = f"clip.wav,{TEXT},0.55\n"
MOVED = HEADER + f"/data/old/clip.wav,{TEXT},1\n" * 3
manifest("data set that was moved", MOVED, "line 2", "/data/old/clip.wav", "3 of 3", "moved")
manifest("empty validation set", HEADER, "no clips", flag="--path_to_val_manifest")
manifest("text in another script", HEADER + "clip.wav,你好,1\n", "line 2", "no letter")
manifest("UTF-16", (HEADER + GOOD_LINE).encode("utf-16"), "UTF-8")
manifest("NUL bytes", HEADER + "clip\0.wav,hello,1\n", "line 2")
manifest("clip shorter than a window", HEADER + f"clip.wav,{TEXT},0.02\n", "line 2", "window")
row("manifest: missing", train("--path_to_val_manifest", "none.csv"), "none.csv", "no such")
row("manifest: a folder", judge("--path_to_manifest", lambda w: w.corpus.wavs), "is a folder")


# ---- recordings: evaluate.py reads them, prep_splits.py checks them


def beside_manifest(content: bytes):
    def make(w: World) -> Path:
        w.file("clip.wav", content)
        return w.file("manifest.csv", HEADER + GOOD_LINE)

    return judge("--path_to_manifest", make)


def in_corpus(content: bytes | None):
    """Of a corpus that has a fourth recording, a folder if there is no content."""

    def make(w: World) -> tuple:
        folder = w.ljspeech(f"bad|{TEXT}|{TEXT}\n")
        path = folder / "wavs/bad.wav"
        path.mkdir() if content is None else path.write_bytes(content)
        return "prep_splits", "--path_to_ljspech", folder, "--path_to_save", w.out

    return make


for name, content, reason in (
    ("truncated in its header", wav_bytes()[:30], ""),
    ("zero samples", wav_bytes(np.zeros(0)), "no samples"),
    ("infinite samples", wav_bytes(np.append(PLAIN, np.inf), subtype="FLOAT"), "NaN or infinite"),
):
    row(f"recording: {name}, prep_splits", in_corpus(content), "line 4: 'bad'", reason)
    row(f"recording: {name}, evaluate", beside_manifest(content), "clip.wav", reason)
row("recording: too short", beside_manifest(wav_bytes(PLAIN[:800])), "clip.wav", "800 samples")
row("recording: a folder", in_corpus(None), "line 4", "bad.wav")


# ---- prep_splits.py and make_demo_corpus.py, more of which is in their own tests

row("metadata: an id of 5,000 letters", prep(rows=f"{'x' * 5000}|a|a\n"), "line 4", "missing")
row("metadata: NUL in an id", prep(rows="a\0b|a|a\n"), "line 4", "plain file")
row("prep: path_to_save empty", prep("--path_to_save", ""), "--path_to_save")
row("prep: min_seconds nan", prep("--min_seconds", "nan"), "--min_seconds")
row("prep: test_split_pct 1", prep("--test_split_pct", "1"), "--test_split_pct")
row("prep: longest below shortest", prep("--min_seconds", 2, "--max_seconds", 1), "--min_seconds")
row("prep: half a hash", prep("--download", "--download_sha256", "abc"), "--download_sha256")
row("prep: neither manifests nor report", lambda w: prep()(w)[:3], "--path_to_save or --report")
row("prep: nothing is long enough", prep("--min_seconds", "100"), "--min_seconds", "no clip")
row("demo: no sentences file", demo("--sentences", "/nowhere.txt"), "/nowhere.txt")
row("demo: voice empty", demo("--voice", ""), "voice")


# ---- text to speak

for name, text, words in (
    ("blank", " \t\n", "nothing to say"),
    ("only another script", "你好世界", "no letter"),
):
    row(f"text: {name}", say("--text", text), words)
row("text: bytes that are no UTF-8", say("--text", "caf\udce9"), "--text", "UTF-8")
row("text: no file", say("--text_file", "/nowhere.txt"), "--text_file", "/nowhere.txt")
row("text: a folder", say("--text_file", lambda w: w.folder), "--text_file", "ünïque")
row("text: Latin-1", say("--text_file", lambda w: w.file("t", b"caf\xe9")), "--text_file", "UTF-8")


# ---- flags

for script, arrange, flags in (
    ("train", train, "--learning_rate nan, --training_epochs 1e3, --batch_size 0, --run_name a/b"),
    ("train", train, "--fmax 12000, --num_mels 600, --encoder_kernel_size 4, --mel_scaling linear"),
    ("train", train, "--min_learning_rate 1, --drop_frame_rate 1, --checkpoint_minutes -1"),
    ("train", train, f"--seed {2**32}, --decoder_rnn_embed_dim {10**9}, --bathc_size 2"),
    ("train", train, "--num_workers two"),
    ("synthesize", say, f"--max_decoder_steps 0, --stop_threshold nan, --seed {10**30}"),
    ("evaluate", judge, "--batch_size 0, --device abacus, --device cuda:99, --outptu_json x"),
):
    for words in (flag.split() for flag in flags.split(", ")):
        row(f"{script}: {' '.join(words)}", arrange(*words), words[0])
for flag in ("--working_directory", "--path_to_train_manifest", "--warm_start"):
    row(f"train: {flag} empty", train(flag, ""), flag)
for flag in ("--output_json", "--output_csv"):
    row(f"evaluate: {flag} is a folder", judge(flag, lambda w: w.folder), "is a folder")


# ---- symbols and word times

for name, content, reason in (
    ("not JSON", '["a",', "symbols.json: "),
    ("twice", '["<pad>", "a", "a"]', "twice: a"),
    ("no UTF-8", b'["<pad>", "\xe9"]', "UTF-8"),
    ("no letter", '["<pad>", "!"]', "line 2"),
):
    symbols = partial(World.file, name="symbols.json", content=content)
    row(f"symbols: {name}", train("--path_to_symbols", symbols), reason)
for name, content in (
    ("an index that is text", '{"tiny-09": [{"word": "a", "index": "0", "start": 0}]}'),
    ("other clips", '{"nobody": [{"word": "a", "index": 0, "start": 0}]}'),
):
    word_times = partial(World.file, name="words.json", content=content)
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
    for what, flag in (
        ("checkpoints", "--working_directory"),
        ("samples", "--save_audio_gen"),
        ("mels", "--cache_mels"),
    ):
        row(f"write to {place}: train {what}", train(flag, make), "locked", flag)
    row(f"write to {place}: synthesize", say("--output_dir", make), "locked")
    row(f"write to {place}: evaluate", judge("--output_json", inside(make)), "locked")
    row(f"write to {place}: convert", convert("--to", "nvidia", inside(make)), "locked")
    row(f"write to {place}: demo", demo("--path_to_save", inside(make)), "locked")
row(
    "write to a read-only folder: download, before it begins",
    prep("--path_to_ljspech", "/nowhere", "--download", "--path_to_save", read_only),
    "locked",
)


def locked_file(path: Path) -> Path:
    path.chmod(0)
    return path


locked_manifest = lambda w: locked_file(w.manifest(HEADER + GOOD_LINE))  # noqa: E731
row("unreadable: manifest", train("--path_to_train_manifest", locked_manifest), "manifest.csv")
locked_voice = broken_voice(lambda folder: locked_file(folder / WEIGHTS))
row("unreadable: weights", say("--checkpoint", locked_voice), WEIGHTS)


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
