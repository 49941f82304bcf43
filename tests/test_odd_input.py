"""Input that looks odd and must work, held against the numbers of plain input.

Manifests as spreadsheets save them, recordings of every kind, texts, paths and sizes of batches.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

import prep_splits
import train_taco
from dataset import AudioConfig, TTSDataset, audio_to_mel
from runs import run_flags
from speech.voice import read_config
from text.tokenizer import Tokenizer
from world import HEADER, TEXT, run, wav_bytes

STATE = "trainer_state.json"

LINE = f"clip.wav,{TEXT},0.55\n"
MANIFESTS = {
    "byte order mark and CRLF": ("\ufeff" + HEADER + LINE).replace("\n", "\r\n"),
    "blank last lines": HEADER + LINE + "\n\n",
    "quoted": HEADER + f'"clip.wav","{TEXT}","0.55"\n',
    "more columns, other order": (
        f"speaker,duration,normalized_transcript,file_path\n1,0.55,{TEXT},clip.wav\n"
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_looks_odd_works(world, name):
    clip = TTSDataset(world.manifest(MANIFESTS[name]), AudioConfig(), Tokenizer())[0]
    plain = audio_to_mel(
        torch.from_numpy(soundfile.read(clip.path, dtype="float32")[0]), AudioConfig()
    )
    assert torch.equal(clip.mel, plain) and clip.text == TEXT
    assert Tokenizer().decode(clip.tokens) == TEXT.lower()


ODD_RECORDINGS = {  # and how many frames longer they may be
    "mu-law": (wav_bytes(subtype="ULAW"), 0),
    "a flac named wav": (wav_bytes(format="FLAC"), 0),
    "an mp3 named wav": (wav_bytes(format="MP3"), 10),
}


@pytest.mark.parametrize("name", ODD_RECORDINGS)
def test_a_recording_that_looks_odd_works(world, name):
    """Through prep_splits.py and the dataset, to the mel of the plain 16-bit wav."""
    content, more = ODD_RECORDINGS[name]
    corpus = world.ljspeech(f"odd|{TEXT}|{TEXT}\n")
    (corpus / "wavs/odd.wav").write_bytes(content)
    prep_splits.main(["--path_to_ljspech", str(corpus), "--path_to_save", str(world.out)])
    mels = {}
    for split in ("train", "test"):
        for clip in TTSDataset(world.out / f"{split}_metadata.csv", AudioConfig(), Tokenizer()):
            mels[Path(clip.path).stem] = clip.mel
    odd, plain = mels["odd"], mels["clip0"]
    assert 0 <= len(odd) - len(plain) <= more
    if name == "an mp3 named wav":  # the coder delays the sound a little
        odd, plain = odd.mean(dim=0), plain.mean(dim=0)
    odd = odd[: len(plain)]
    loud = plain > 1.0  # softer bins hold the noise of 8 bits
    assert loud.any() and (odd - plain)[loud].abs().mean() < 0.2


def test_odd_texts_are_spoken(world, capsys):
    lines = [
        "Hello. " * 1429,  # 10,003 characters
        "Bell\x07 and\x1b[31m escape\x00 and \u200bnothing.",
        "A party \U0001f389 in 東京.",
        "../../escape /etc/passwd",
    ]
    path = world.file("texts.txt", "\ufeff" + "\r\n".join(lines) + "\r\n\r\n")
    # No --text: every line of the file is one sentence.
    code, said = run(
        *("synthesize", "--checkpoint", f"{world.voice}/", "--output_dir", f"{world.out}/"),
        *("--device", "cpu", "--max_decoder_steps", 4, "--text_file", path),
        *("--max_characters", 20_000, "--n_retries", 0),
        capsys=capsys,
    )
    assert code == 2, f"no sentence ends within 4 steps: {said}"
    names = [f"{i:03d}.{kind}" for i in range(1, 5) for kind in ("npy", "png", "txt", "wav")]
    assert sorted(file.name for file in world.out.iterdir()) == names
    for i in range(1, 5):
        assert soundfile.info(world.out / f"{i:03d}.wav").frames == 4 * 256


@pytest.mark.slow
def test_odd_paths_and_numbers_train(world, capsys, monkeypatch):
    """Spaces, other letters, ~, a last slash, batches larger than the data, one clip to test."""
    monkeypatch.setenv("HOME", str(world.folder))
    clips = [world.clip(name=f"clip {i}.wav") for i in range(3)]
    lines = [f"{clip.name},{TEXT},0.55\r\n" for clip in clips]
    world.file("train ü.csv", "\ufeff" + HEADER + "".join(lines))
    world.file("test.csv", HEADER + lines[0])
    flags = run_flags(world.corpus, world.folder)
    flags += ["--working_directory=~/work dir/", "--save_audio_gen=~/sämples/"]
    flags += ["--path_to_train_manifest=~/train ü.csv", "--path_to_val_manifest=~/test.csv"]
    flags += ["--experiment_name=ein Versüch", "--batch_size=1000", "--training_epochs=1"]
    code, said = run("train_taco", *flags, capsys=capsys)
    assert code == 0, said
    final = world.folder / "work dir/ein Versüch/final_checkpoint"
    assert json.loads((final / STATE).read_text())["step"] == 1
    assert list((world.folder / "sämples").rglob("epoch_001_free_running.wav"))
    resume = ["--resume_from_checkpoint", f"~/work dir/ein Versüch/{final.name}/"]
    code, said = run("train_taco", *flags, "--training_epochs", 2, *resume, capsys=capsys)
    assert code == 0, said
    assert json.loads((final / STATE).read_text())["step"] == 2
    assert not list(Path.cwd().glob("~*"))


@pytest.mark.slow
def test_symbols_beyond_ascii_are_kept_in_any_locale(tmp_path):
    """A machine whose locale is C writes what one with UTF-8 reads."""
    code = (
        "import sys; from speech.voice import write_config; from dataset import AudioConfig; "
        "from model import Tacotron2Config; from text.tokenizer import Tokenizer; "
        "write_config(sys.argv[1], Tacotron2Config(vocab_size=4), AudioConfig(), "
        "Tokenizer(['_', '\\u00e9', '\\u0142', ' ']))"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        env=os.environ | ascii_only,
        cwd=Path(train_taco.__file__).parent,
    )
    assert list(read_config(tmp_path)[2].symbols) == ["_", "é", "ł", " "]
