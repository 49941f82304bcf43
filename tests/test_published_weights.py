"""Run "Speak without training" of docs/weights.md on stand-ins for the published files.

The published files themselves are too large to come with the tests. The stand-ins have their
names, entries, symbols and file format, but are small and untrained.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

import convert_checkpoint
import synthesize
from conftest import REPO
from convert_checkpoint import peer_name
from model import Tacotron2
from peer_weights import OUR_SIZES, PEER_SIZES
from test_commands import commands_of

PAGE = (REPO / "docs/weights.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## Speak without training\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)[1]
CONVERT, SPEAK = commands_of("\n".join(re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)))
ROWS = re.findall(
    r"^\| (\S+?),?(?: no ending)? \|.*`--from (\w+) (\S+)` \|$", SECTION, re.MULTILINE
)
N_SYMBOLS = {"characters": 38, "phonemes": 96}  # torchaudio's; NVIDIA's are 148
MINIMUM = np.log(1e-5)  # of HiFi-GAN's mels


def write_stand_in(path: Path) -> None:
    """A small untrained file, as the repository that publishes the one of this name writes it."""
    n_symbols = next((n for name, n in N_SYMBOLS.items() if name in path.name), 148)
    torch.manual_seed(0)
    sizes = PEER_SIZES | {"n_symbol": n_symbols, "n_mels": 80}
    state = torchaudio.models.Tacotron2(**sizes).state_dict()
    state["decoder.gate_layer.bias"].fill_(-1.0)
    if path.name.endswith("ljspeech.pth"):  # torchaudio's
        torch.save(state, path)
        return
    names = Tacotron2(OUR_SIZES).state_dict()
    state = {peer_name(name, "nvidia"): state[peer_name(name, "torchaudio")] for name in names}
    if path.name == "model.ckpt":  # SpeechBrain's
        torch.save(state, path)
        return
    content = {"state_dict": state, "iteration": 5, "learning_rate": 1e-3, "optimizer": {}}
    if "pyt_fp32" in path.name:  # what DeepLearningExamples' train.py saves of a parallel model
        state = {f"module.{name}": tensor for name, tensor in state.items()}
        generator = {"cuda_rng_state_all": [torch.zeros(4, dtype=torch.uint8)]}
        content = {"state_dict": state, "epoch": 5, "config": {"n_symbols": 148}, **generator}
    torch.save(content, path, _use_new_zipfile_serialization=False)  # as PyTorch did until 1.6


def run(command: str, *flags: str) -> None:
    """A command of that section, in this process."""
    program, script, *words = shlex.split(command)
    assert program == "python"
    scripts = {"convert_checkpoint.py": convert_checkpoint, "synthesize.py": synthesize}
    scripts[script].main([*words, *flags])


def test_names_are_torchaudios():
    bundles = {
        "CHAR": torchaudio.pipelines.TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH,
        "PHONE": torchaudio.pipelines.TACOTRON2_GRIFFINLIM_PHONE_LJSPEECH,
    }
    for kind, bundle in bundles.items():
        row = f"| {bundle._tacotron2_path} | torchaudio, "
        assert f"TACOTRON2_GRIFFINLIM_{kind}_LJSPEECH" in SECTION.split(row)[1].split("\n")[0]
        other = getattr(torchaudio.pipelines, f"TACOTRON2_WAVERNN_{kind}_LJSPEECH")
        assert "wavernn" in other._tacotron2_path  # which the section warns of


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "converted"), ROWS)
def test_section_speaks_with_each_file(name, layout, converted, tmp_path, monkeypatch, capsys):
    assert name == converted and len(ROWS) == 5
    monkeypatch.chdir(tmp_path)
    write_stand_in(Path(name))
    run(re.sub(r"--from \w+ \S+", f"--from {layout} {name}", CONVERT))
    flags = ["--phonemes"] if "phonemes" in name else []
    run(SPEAK, *flags, "--max_decoder_steps", "60")  # an untrained one may not stop
    said = capsys.readouterr().out
    assert "as spoken: " in said and "left out" not in said
    words = "P R IH1 N T IH0 NG" if flags else "printing, in the only sense"
    assert words in Path("spoken/001.txt").read_text()

    mel = np.load("spoken/001.npy")
    wav, rate = soundfile.read("spoken/001.wav")
    assert mel.dtype == np.float32 and mel.shape[0] == 80 and mel.shape[1] > 0
    assert mel.min() >= MINIMUM - 1e-4
    assert rate == 22050 and len(wav) == 256 * mel.shape[1] and np.abs(wav).max() > 0
