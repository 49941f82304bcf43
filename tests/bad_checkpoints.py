"""Not a test: the rows of the table in test_bad_input.py that break a checkpoint.

Each breakage is done to a copy of a sound folder, which a script is then run on.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bad_rows import Row, add_row, convert, judge, say, train
from world import World

CHECKPOINT_ROWS: list[Row] = []
row = partial(add_row, CHECKPOINT_ROWS)


def edit_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        (content[part] if part else content)[field] = value
    path.write_text(json.dumps(content))


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


def spoil_weights(path: Path) -> None:
    state = load_file(path)
    name = "encoder.embedding.weight"
    save_file({**state, name: state[name] * np.nan}, path)


CONFIG, WEIGHTS = "config.json", "model.safetensors"
VOICES = {  # how to break a folder, and what is then said
    "gone": (shutil.rmtree, "no such checkpoint folder"),
    "config missing": (lambda f: (f / CONFIG).unlink(), "config.json is missing"),
    "config is a folder": (lambda f: ((f / CONFIG).unlink(), (f / CONFIG).mkdir()), "config.json"),
    "config truncated": (lambda f: cut(f / CONFIG, 100), "config.json"),
    "config nested": (lambda f: (f / CONFIG).write_text("[" * 100_000), "config.json"),
    "config binary": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\0"), "config.json"),
    "newer format": (lambda f: edit_json(f / CONFIG, format_version=2), "format_version 2"),
    "size as a fraction": (lambda f: edit_json(f / CONFIG, attention_dim=8.0), "attention_dim"),
    "size huge": (lambda f: edit_json(f / CONFIG, attention_dim=10**12), "attention_dim"),
    "size other": (lambda f: edit_json(f / CONFIG, attention_dim=9), "weights do not fit"),
    "convolutions without end": (
        lambda f: edit_json(f / CONFIG, decoder_postnet_num_convs=10**9),
        "--decoder_postnet_num_convs",
    ),
    "a model of 15 GB": (
        lambda f: edit_json(f / CONFIG, decoder_rnn_embed_dim=16384),
        "parameters, at most",
    ),
    "kernel even": (lambda f: edit_json(f / CONFIG, encoder_kernel_size=4), "encoder_kernel_size"),
    "windows without end": (
        lambda f: edit_json(f / CONFIG, audio__n_fft=2**40, audio__window_size=2**40),
        "--n_fft",
    ),
    "a frame a sample": (
        lambda f: edit_json(f / CONFIG, audio__n_fft=16384, audio__hop_size=2),
        "64 times --hop_size",
    ),
    "mels that differ": (lambda f: edit_json(f / CONFIG, audio__num_mels=40), "fit each other"),
    "symbols a string": (lambda f: edit_json(f / CONFIG, symbols="x" * 40), "symbols"),
    "symbols of numbers": (lambda f: edit_json(f / CONFIG, symbols=[*range(40)]), "symbols"),
    "field unknown": (lambda f: edit_json(f / CONFIG, zoneout=0.1), "zoneout"),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), "model.safetensors is missing"),
    "weights truncated": (lambda f: cut(f / WEIGHTS, 9000), "model.safetensors"),
    "weights with NaN": (lambda f: spoil_weights(f / WEIGHTS), "model.safetensors"),
}


def broken_voice(breakage):
    def make(w: World) -> Path:
        folder = w.copy_voice()
        breakage(folder)
        return folder

    return make


for name, (breakage, reason) in VOICES.items():
    row(f"checkpoint: {name}", say("--checkpoint", broken_voice(breakage)), "voice", reason)
for name in ("gone", "config truncated", "weights truncated", "size as a fraction"):
    breakage, reason = VOICES[name]
    for script, arrange in (
        ("evaluate", judge("--checkpoint", broken_voice(breakage))),
        ("convert", convert("--from", broken_voice(breakage))),
        ("warm start", train("--warm_start", broken_voice(breakage))),
    ):
        row(f"checkpoint: {name}, {script}", arrange, "voice", reason)

STATE = "trainer_state.json"
RUNS = {
    "state missing": (lambda f: (f / STATE).unlink(), "no checkpoint there"),
    "state truncated": (lambda f: cut(f / STATE, 50), STATE),
    "step of text": (lambda f: edit_json(f / STATE, step="two"), STATE),
    "epoch negative": (lambda f: edit_json(f / STATE, epoch=-1), STATE),
    "history of numbers": (lambda f: edit_json(f / STATE, history=[1, 2]), STATE),
    "config missing": (lambda f: (f / CONFIG).unlink(), CONFIG),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "weights truncated": (lambda f: cut(f / WEIGHTS, 9000), WEIGHTS),
    "weights of text": (lambda f: (f / WEIGHTS).write_text("weights"), WEIGHTS),
    "optimizer missing": (lambda f: (f / "optimizer.bin").unlink(), "optimizer.bin"),
    "optimizer truncated": (lambda f: cut(f / "optimizer.bin", 900), "optimizer.bin"),
    "optimizer empty": (lambda f: torch.save({}, f / "optimizer.bin"), "checkpoint_0"),
    "scheduler of text": (lambda f: (f / "scheduler.bin").write_text("x"), "scheduler.bin"),
    "random state missing": (lambda f: (f / "random_states_0.pkl").unlink(), "random_states_0"),
}


def broken_run(breakage):
    def make(w: World) -> str:
        breakage(w.copy_run())
        return "checkpoint_0"

    return make


for name, (breakage, reason) in RUNS.items():
    row(f"resume: {name}", train("--resume_from_checkpoint", broken_run(breakage)), reason)
row("resume: latest of none", train("--resume_from_checkpoint", "latest"), "no checkpoint in")
row("resume: a voice", train("--resume_from_checkpoint", lambda w: w.voice), "no checkpoint there")
row(
    "resume: a file",
    train("--resume_from_checkpoint", lambda w: w.copy_run() / STATE), "no checkpoint there",
)  # fmt: skip
row("resume: a folder of wavs", train("--resume_from_checkpoint", lambda w: w.corpus.wavs), "wavs")
row(
    "overwrite: with a warm start that is broken",
    lambda w: (
        w.copy_run(),
        train("--overwrite", "--warm_start", broken_voice(VOICES["weights truncated"][0]))(w),
    )[1],
    "voice", "model.safetensors",
)  # fmt: skip
