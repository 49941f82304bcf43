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
CONFIG, WEIGHTS, STATE = "config.json", "model.safetensors", "trainer_state.json"


def edit(name: str, **changes):
    """Return what changes fields of a JSON file of a folder."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for field, value in changes.items():
            part, _, field = field.rpartition("__")
            (content[part] if part else content)[field] = value
        (folder / name).write_text(json.dumps(content))

    return change


def cut(name: str, n_bytes: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:n_bytes])


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def spoil_weights(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    name = "encoder.embedding.weight"
    save_file({**state, name: state[name] * np.nan}, folder / WEIGHTS)


VOICES = {  # how to break a folder, and words of the message
    "gone": (shutil.rmtree, "no such checkpoint folder"),
    "config missing": (remove(CONFIG), "config.json is missing"),
    "config truncated": (cut(CONFIG, 100), CONFIG),
    "config nested": (lambda f: (f / CONFIG).write_text("[" * 100_000), CONFIG),
    "config binary": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\0"), CONFIG),
    "newer format": (edit(CONFIG, format_version=2), "format_version 2"),
    "language as a number": (edit(CONFIG, language=3), "must be strings"),
    "lexicon as a list": (edit(CONFIG, lexicon=["a"]), "not a checkpoint's config"),
    "a length as a text": (edit(CONFIG, longest_text="80"), "longest_text is '80'"),
    "contrast of too few": (edit(CONFIG, contrast={"mean": [0], "scale": [1]}), "contrast's mean"),
    "size as a fraction": (edit(CONFIG, attention_dim=8.0), "attention_dim"),
    "size other": (edit(CONFIG, attention_dim=9), "weights do not fit"),
    "a model of 15 GB": (edit(CONFIG, decoder_rnn_embed_dim=16384), "parameters, at most"),
    "windows without end": (edit(CONFIG, audio__n_fft=2**40, audio__window_size=2**40), "--n_fft"),
    "mels that differ": (edit(CONFIG, audio__num_mels=40), "fit each other"),
    "symbols a string": (edit(CONFIG, symbols="x" * 40), "symbols"),
    "field unknown": (edit(CONFIG, zoneout=0.1), "zoneout"),
    "weights missing": (remove(WEIGHTS), "model.safetensors is missing"),
    "weights truncated": (cut(WEIGHTS, 9000), WEIGHTS),
    "weights with NaN": (spoil_weights, WEIGHTS),
}


def broken_voice(breakage):
    def make(w: World) -> Path:
        folder = w.copy_voice()
        breakage(folder)
        return folder

    return make


for name, (breakage, reason) in VOICES.items():
    row(f"checkpoint: {name}", say("--checkpoint", broken_voice(breakage)), "voice", reason)
for script, arrange, flag, name in (
    ("evaluate", judge, "--checkpoint", "gone"),
    ("convert", convert, "--from", "weights truncated"),
    ("warm start", train, "--warm_start", "config truncated"),
    ("warm start", train, "--warm_start", "size as a fraction"),
):
    breakage, reason = VOICES[name]
    row(f"checkpoint: {name}, {script}", arrange(flag, broken_voice(breakage)), "voice", reason)

RUNS = {
    "state missing": (remove(STATE), "no checkpoint there"),
    "history of numbers": (edit(STATE, history=[1, 2]), STATE),
    "config missing": (remove(CONFIG), CONFIG),
    "weights missing": (remove(WEIGHTS), f"{WEIGHTS} is missing"),
    "weights truncated": (cut(WEIGHTS, 9000), WEIGHTS),
    "optimizer missing": (remove("optimizer.bin"), "optimizer.bin"),
    "optimizer truncated": (cut("optimizer.bin", 900), "optimizer.bin"),
    "optimizer empty": (lambda f: torch.save({}, f / "optimizer.bin"), "checkpoint_0"),
    "random state missing": (remove("random_states_0.pkl"), "random_states_0"),
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
    "overwrite: with a warm start that is broken",
    lambda w: (
        w.copy_run(),
        train("--overwrite", "--warm_start", broken_voice(VOICES["weights truncated"][0]))(w),
    )[1],
    *("voice", WEIGHTS),
)
