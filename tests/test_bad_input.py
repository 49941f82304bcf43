"""Bad input of every kind to every script: one table, the same checks for each row.

A row says which script is run on what, and which words its message must have. Each run must end
with a nonzero exit and one sentence that names the culprit, and must leave every file as it was.
Input that looks odd and must work is in test_odd_input.py; cases for one file's own functions are
in that file's tests. bad_rows.py has what rows are made of,
bad_checkpoints.py those of checkpoints.
"""

import ctypes
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bad_checkpoints import CHECKPOINT_ROWS, CONFIG, WEIGHTS, broken_voice
from bad_rows import Row, add_row, convert, demo, judge, prep, say, train
from test_train_taco import REPO, run_flags
from world import HEADER, PLAIN, TEXT, World, run, snapshot, wav_bytes, with_one

BAD: list[Row] = [*CHECKPOINT_ROWS]
row = partial(add_row, BAD)


# ---- manifests


def manifest(name, content, *says, flag="--path_to_train_manifest"):
    row(
        f"manifest: {name}", train(flag, lambda w: w.manifest(content)),
        "manifest.csv", *says,
    )  # fmt: skip


GOOD_LINE = f"clip.wav,{TEXT},0.55\n"
manifest("column missing", f"file_path,duration\nclip.wav,{TEXT}\n", "normalized_transcript")
manifest("relative path to nothing", HEADER + f"wavs/clip.wav,{TEXT},1\n", "line 2", "clip.wav")
manifest(
    "data set that was moved", HEADER + f"/data/old/clip.wav,{TEXT},1\n" * 3,
    "line 2", "/data/old/clip.wav", "3 of 3", "moved", "prep_splits.py",
)  # fmt: skip
manifest("header only", HEADER, "no clips")
manifest("empty validation set", HEADER, "no clips", flag="--path_to_val_manifest")
manifest("nothing at all", "", "CSV")
manifest("empty text", HEADER + GOOD_LINE + "clip.wav,,1\n", "line 3", "transcript")
manifest("text that is punctuation", HEADER + GOOD_LINE + "clip.wav,?!,1\n", "line 3", "no letter")
manifest("text in another script", HEADER + "clip.wav,你好,1\n", "line 2", "no letter")
manifest("wrong separator", (HEADER + GOOD_LINE).replace(",", "|"), "file_path is missing")
manifest("a comma too many", HEADER + GOOD_LINE + "clip.wav,Come in, now,1\n", "line 3")
manifest("UTF-16", (HEADER + GOOD_LINE).encode("utf-16"), "UTF-8")
manifest("Latin-1", (HEADER + "clip.wav,café,1\n").encode("latin-1"), "UTF-8")
manifest("NUL bytes", HEADER + "clip\0.wav,hello,1\n", "line 2")
manifest("a wav", b"RIFF" + bytes(range(256)), "UTF-8")
manifest("duration that is no number", HEADER + f"clip.wav,{TEXT},long\n", "line 2", "duration")
manifest("duration nan", HEADER + f"clip.wav,{TEXT},nan\n", "line 2", "duration")
manifest("clip shorter than a window", HEADER + f"clip.wav,{TEXT},0.02\n", "line 2", "window")
manifest("a folder for a clip", HEADER + f".,{TEXT},1\n", "line 2", "not a file")
row("manifest: missing", train("--path_to_val_manifest", "none.csv"), "none.csv", "no such")
row(
    "manifest: the wavs folder instead",
    train("--path_to_train_manifest", lambda w: w.corpus.wavs), "wavs", "is a folder",
)  # fmt: skip
row(
    "manifest: metadata.csv instead",
    train("--path_to_train_manifest", lambda w: w.ljspeech() / "metadata.csv"),
    "metadata.csv", "file_path is missing", "prep_splits.py",
)  # fmt: skip
row("manifest: missing, evaluate", judge("--path_to_manifest", "none.csv"), "none.csv", "no such")
row(
    "manifest: a folder, evaluate",
    judge("--path_to_manifest", lambda w: w.corpus.wavs), "wavs", "is a folder",
)  # fmt: skip


# ---- recordings: evaluate.py reads them, prep_splits.py checks them


def put(name, *arguments, **options):
    """A recording beside the manifest, as a World method's name and its arguments say."""

    def make(w: World) -> Path:
        w.clip(*arguments, **options) if name == "clip" else w.file("clip.wav", *arguments)
        return w.file("manifest.csv", HEADER + f"clip.wav,{TEXT},0.55\n")

    return make


RECORDINGS = {
    "truncated in its header": (wav_bytes()[:30], "clip"),
    "truncated in its samples": (wav_bytes()[:5000], "truncated"),
    "truncated flac": (wav_bytes(format="FLAC")[:5000], "clip"),
    "zero samples": (wav_bytes(np.zeros(0)), "no samples"),
    "zero bytes": (b"", "clip"),
    "NaN samples": (wav_bytes(with_one(np.nan), subtype="FLOAT"), "NaN"),
    "infinite samples": (wav_bytes(with_one(np.inf), subtype="FLOAT"), "NaN or infinite"),
    "text": (b"I am a recording, honest. " * 99, "clip"),
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
    if reason != "truncated":  # what is there can be read
        row(
            f"recording: {name}, evaluate",
            judge("--path_to_manifest", put("file", content)), "clip.wav", reason,
        )  # fmt: skip
row(
    "recording: shorter than one window",
    judge("--path_to_manifest", put("clip", PLAIN[:800])), "clip.wav", "800 samples", "window",
)  # fmt: skip


def folder_for_a_wav(w: World) -> tuple:
    folder = w.ljspeech(f"bad|{TEXT}|{TEXT}\n")
    (folder / "wavs/bad.wav").mkdir()
    return "prep_splits", "--path_to_ljspech", folder, "--path_to_save", w.out


row("recording: a folder", folder_for_a_wav, "line 4", "bad.wav")


# ---- prep_splits.py

row("metadata: Latin-1", prep(rows="bad|café|café\n".encode("latin-1")), "metadata.csv", "line 4")
row("metadata: wrong separator", prep(rows="bad,text,text\n"), "line 4", "columns")
row("metadata: an id of 5,000 letters", prep(rows=f"{'x' * 5000}|a|a\n"), "line 4", "missing")
row("metadata: an id that leaves the folder", prep(rows="../../x|a|a\n"), "line 4", "plain file")
row("metadata: NUL in an id", prep(rows="a\0b|a|a\n"), "line 4", "plain file")
row("prep: the wavs folder", prep("--path_to_ljspech", lambda w: w.folder / "lj/wavs"), "did you")
row("prep: nothing there", prep("--path_to_ljspech", "/nowhere"), "/nowhere", "not a folder")
row("prep: path_to_save empty", prep("--path_to_save", ""), "--path_to_save")
row("prep: path_to_ljspech empty", prep("--path_to_ljspech", ""), "--path_to_ljspech")
row("prep: unknown flag", prep("--test_split", "0.1"), "--test_split")
row("prep: share of 100 %", prep("--test_split_pct", "1"), "--test_split_pct")
row("prep: share nan", prep("--test_split_pct", "nan"), "--test_split_pct")
row("prep: seed that is no number", prep("--seed", "x"), "--seed")
row("prep: minutes the wrong way round", prep("--min_seconds", "9", "--max_seconds", "1"), "--min_")
row("prep: min_seconds nan", prep("--min_seconds", "nan"), "--min_seconds")
row("prep: negative trimming", prep("--trim_db", "-40"), "--trim_db")
row("prep: neither manifests nor report", lambda w: prep()(w)[:3], "--path_to_save or --report")
row("prep: validation share of 100 %", prep("--val_split_pct", "1"), "--val_split_pct")
row("prep: nothing is long enough", prep("--min_seconds", "100"), "--min_seconds", "no clip")


# ---- corpora/make_demo_corpus.py

row("demo: no sentences file", demo("--sentences", "/nowhere.txt"), "/nowhere.txt")
row("demo: sentences are a folder", demo("--sentences", lambda w: w.corpus.wavs), "wavs")
row("demo: control characters", demo("--sentences", lambda w: w.file("t", "a\x07b")), "line 1")
row("demo: no word", demo("--sentences", lambda w: w.file("t", "?! ...")), "line 1", "no word")
row("demo: no sentence asked for", demo("--n_sentences", "0"), "--n_sentences")
row("demo: unknown voice", demo("--voice", "martian"), "martian")
row("demo: voice empty", demo("--n_sentences", "2", "--voice", ""), "voice")
row("demo: path_to_save empty", demo("--path_to_save", ""), "--path_to_save")
row("demo: unknown flag", demo("--sentence", "x"), "--sentence")


def other_record(record):
    def make(w: World) -> Path:
        w.out.mkdir()
        (w.out / "corpus.json").write_text(record)
        return w.out

    return make


for record in ("{", "[]", '{"arguments": [], "n_clips": 2}', '{"arguments": {}, "n_clips": "two"}'):
    row(
        f"demo: corpus.json that holds {record}",
        demo("--n_sentences", "2", "--path_to_save", other_record(record)), "out",
    )  # fmt: skip


# ---- text to speak

for name, text, words in (
    ("empty", "", "nothing to say"),
    ("blank", " \t\n", "nothing to say"),
    ("only punctuation", "?!...", "no letter"),
    ("only emoji", "🙂🎉", "no letter"),
    ("only control characters", "\x01\x07\x1b", "no letter"),
    ("only another script", "你好世界", "no letter"),
    ("10,000 dots", "." * 10_000, "no letter"),
):
    row(f"text: {name}", say("--text", text), words)
row("text: no file", say("--text_file", "/nowhere.txt"), "--text_file", "/nowhere.txt")
row("text: a folder", say("--text_file", lambda w: w.folder), "--text_file", "ünïque")
row("text: Latin-1", say("--text_file", lambda w: w.file("t", b"caf\xe9")), "--text_file", "UTF-8")
row(
    "text: a bad line beside a file",
    say("--text_file", lambda w: w.file("t", "Fine.\n"), "--text", "?!"), "no letter", "?!",
)  # fmt: skip
row(
    "text: only bad lines in a file",
    lambda w: (
        *("synthesize", "--checkpoint", w.voice, "--output_dir", w.out, "--device", "cpu"),
        *("--text_file", w.file("t", "\n?!\n...\n")),
    ),
    "nothing to say", "line 2", "no letter", "?!",
)  # fmt: skip


# ---- flags

for flags, *says in (
    ("--learning_rate nan", "--learning_rate", "nan"),
    ("--learning_rate inf", "--learning_rate", "inf"),
    ("--learning_rate -1", "--learning_rate"),
    ("--min_learning_rate 1", "--min_learning_rate must not exceed --learning_rate"),
    ("--min_learning_rate 0", "--min_learning_rate"),
    ("--adam_eps 0", "--adam_eps"),
    ("--weight_decay -1", "--weight_decay"),
    ("--weight_decay nan", "--weight_decay"),
    ("--max_grad_norm 0", "--max_grad_norm"),
    ("--training_epochs 0", "--training_epochs"),
    ("--training_epochs 1e3", "--training_epochs"),
    ("--batch_size 0", "--batch_size"),
    ("--batch_size -2", "--batch_size"),
    (f"--batch_size {10**30}", "--batch_size"),
    ("--num_workers -1", "--num_workers"),
    ("--num_workers 1000000", "--num_workers"),
    ("--seed -1", "--seed"),
    (f"--seed {2**32}", "--seed"),
    ("--console_out_iters 0", "--console_out_iters"),
    ("--checkpoint_minutes 0", "--checkpoint_minutes"),
    ("--checkpoint_minutes nan", "--checkpoint_minutes"),
    ("--keep_checkpoints 0", "--keep_checkpoints"),
    ("--fmax 12000", "--fmax"),
    ("--fmin 9000", "--fmin"),
    ("--fmax nan", "--fmax"),
    ("--hop_size 2048", "--hop_size"),
    ("--hop_size 0", "--hop_size"),
    ("--window_size 4096", "--window_size"),
    ("--num_mels 0", "--num_mels"),
    ("--num_mels 600", "--num_mels", "513"),
    ("--min_db 0", "--min_db"),
    ("--min_db nan", "--min_db"),
    ("--max_scaled_abs 0", "--max_scaled_abs"),
    ("--mel_scaling linear", "--mel_scaling"),
    ("--encoder_kernel_size 4", "--encoder_kernel_size"),
    ("--attention_location_kernel_size 30", "--attention_location_kernel_size"),
    ("--decoder_postnet_kernel_size -1", "--decoder_postnet_kernel_size"),
    ("--decoder_dropout_p 1", "--decoder_dropout_p"),
    ("--decoder_dropout_p nan", "--decoder_dropout_p"),
    ("--encoder_embed_dim 15", "--encoder_embed_dim"),
    ("--decoder_prenet_depth 0", "--decoder_prenet_depth"),
    (f"--decoder_rnn_embed_dim {10**9}", "--decoder_rnn_embed_dim"),
    ("--learning_rat 1", "--learning_rat"),
    ("--bathc_size 2", "--bathc_size"),
    ("--log_wandb yes", "yes"),
    ("--experiment_name .", "--experiment_name"),
    ("--run_name a/b", "--run_name"),
    ("--warm_start_allow_mismatch", "--warm_start"),
):
    row(f"train: {flags}", train(*flags.split()), *says)
for flag in ("working_directory", "save_audio_gen", "path_to_train_manifest", "path_to_symbols",
             "warm_start", "resume_from_checkpoint", "experiment_name", "run_name"):  # fmt: skip
    row(f"train: {flag} empty", train(f"--{flag}", ""), f"--{flag}")
for flags, *says in (
    ("--max_decoder_steps 0", "--max_decoder_steps"),
    ("--stop_threshold nan", "--stop_threshold"),
    (f"--seed {10**30}", "--seed"),
    ("--device abacus", "--device", "abacus"),
    ("--device cuda:99", "--device", "cuda:99"),
    ("--chekpoint x", "--chekpoint"),
):
    row(f"synthesize: {flags}", say(*flags.split()), *says)
row("synthesize: output_dir empty", say("--output_dir", ""), "--output_dir")
row("synthesize: checkpoint empty", say("--checkpoint", ""), "--checkpoint")
for flags, *says in (
    ("--batch_size 0", "--batch_size"),
    (f"--seed {10**30}", "--seed"),
    ("--device abacus", "--device", "abacus"),
    ("--max_decoder_steps -1", "--max_decoder_steps"),
    ("--outptu_json x", "--outptu_json"),
):
    row(f"evaluate: {flags}", judge(*flags.split()), *says)
row("evaluate: output_json empty", judge("--output_json", ""), "--output_json")
row("evaluate: output_json is a folder", judge("--output_json", lambda w: w.folder), "is a folder")


# ---- symbols and word times

for name, content, reason in (
    ("missing", None, "No such file"),
    ("not JSON", '["a",', "line 1"),
    ("a number", "7", "list"),
    ("a string", '"abcdefghijklmnopqrstuvwxyz"', "list"),
    ("an object", '{"a": 1, "b": 2}', "list"),
    ("numbers", "[1, 2, 3]", "strings"),
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
    ("missing", None),
    ("not JSON", "{"),
    ("a list", "[]"),
    ("words that are no list", '{"tiny-09": 3}'),
    ("words that are no objects", '{"tiny-09": ["a", "b"]}'),
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


for place, make in (
    ("a read-only folder", read_only),
    ("in a read-only folder", lambda w: read_only(w) / "new/folder"),
    ("a file", lambda w: w.file("locked", "precious")),
    ("below a file", lambda w: w.file("locked", "precious") / "new/folder"),
):
    row(f"write to {place}: prep_splits", prep("--path_to_save", make), "locked")
    row(f"write to {place}: prep_splits --report", prep("--report", make), "locked", "--report")
    for what, flag in (("checkpoints", "--working_directory"), ("samples", "--save_audio_gen")):
        row(f"write to {place}: train {what}", train(flag, make), "locked", flag)
    row(f"write to {place}: synthesize", say("--output_dir", make), "locked")

    def inside(w: World, make=make) -> Path:
        return make(w) / "file"

    row(f"write to {place}: evaluate", judge("--output_json", inside), "locked")
    row(f"write to {place}: convert to a file", convert("--to", "nvidia", inside), "locked")
    row(
        f"write to {place}: make_demo_corpus",
        demo("--n_sentences", "2", "--path_to_save", inside), "locked",
    )  # fmt: skip
row(
    "write to a read-only folder: download, before it begins",
    prep(
        "--path_to_ljspech", lambda w: w.folder / "new", "--download",
        "--path_to_save", read_only,
    ),
    "locked",
)  # fmt: skip
row(
    "unreadable: manifest",
    train("--path_to_train_manifest", lambda w: locked_file(w.manifest(HEADER + GOOD_LINE))),
    "manifest.csv",
)
row(
    "unreadable: weights",
    say("--checkpoint", broken_voice(lambda f: locked_file(f / WEIGHTS))), WEIGHTS,
)  # fmt: skip
row(
    "unreadable: config",
    say("--checkpoint", broken_voice(lambda f: locked_file(f / CONFIG))), CONFIG,
)  # fmt: skip


def locked_file(path: Path) -> Path:
    path.chmod(0)
    return path


# ---- the checks


@pytest.fixture
def permissions():
    """Makes folders' permissions count: root lays down its right to pass over them."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before, changed = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if libc.capget(header, before) != 0:
        pytest.skip("root's rights cannot be laid down here")
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
    code, said = run(script, *flags, capsys=capsys)
    sentence = said.strip().split("\n")[-1]
    assert code in (1, 2), said
    assert sentence.startswith(f"{script}.py: ") or code == 2, said
    # Before the sentence there may only be a usage, or the bad rows of metadata.csv.
    other = [line for line in said.strip().split("\n")[:-1] if not line.startswith("metadata.csv")]
    assert code == 2 or not other, said
    assert "Traceback" not in said
    for words in case.says:
        assert words in (sentence if code == 2 else said)
    assert snapshot(world.folder.parent) == before


@pytest.mark.parametrize(
    ("script", "flags", "culprit"),
    [
        ("train_taco", "--path_to_train_manifest none.csv", "none.csv"),
        ("synthesize", "--checkpoint none --output_dir out --text Hello", "none"),
        ("evaluate", "--checkpoint none --path_to_manifest none.csv", "none"),
        ("make_demo_corpus", "--path_to_save out --sentences none.txt", "none.txt"),
    ],
)
def test_the_command_line_ends_with_one_sentence(world, script, flags, culprit):
    """What main() does in this process, a shell sees too. (The other two: in their own tests.)"""
    flags = flags.split()
    if script == "train_taco":
        flags = run_flags(world.corpus, world.out, *flags)
    before = snapshot(world.folder.parent)
    command = [sys.executable, REPO / f"{script}.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2) and done.stdout == ""
    lines = done.stderr.strip().split("\n")
    assert culprit in lines[-1] and "Traceback" not in done.stderr
    assert lines[-1].startswith(f"{script}.py: ") and (done.returncode == 2 or len(lines) == 1)
    assert snapshot(world.folder.parent) == before
