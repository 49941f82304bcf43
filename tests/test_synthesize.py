"""From a checkpoint and text to files, and what happens to a checkpoint that is broken."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import synthesize
from dataset import AudioConfig, audio_to_mel, scaled_to_log_mel
from synthesize import load_checkpoint, main

SMALL = {
    "character_embed_dim": 16,
    "encoder_embed_dim": 16,
    "decoder_rnn_embed_dim": 24,
    "decoder_prenet_dim": 8,
    "decoder_postnet_n_filters": 8,
    "attention_dim": 8,
}


@pytest.fixture
def checkpoint(voice, tmp_path):
    """Untrained, never saying stop, and the test's own to break."""
    return shutil.copytree(voice, tmp_path / "checkpoint")


def speak(checkpoint, output_dir, *flags):
    main(
        ["--checkpoint", str(checkpoint), "--output_dir", str(output_dir), "--max_decoder_steps",
         "30", "--device", "cpu", *flags]
    )  # fmt: skip


def test_files_of_each_sentence(checkpoint, tmp_path, capsys):
    text_file = tmp_path / "lines.txt"
    text_file.write_text("A second line.\n\n  And a third \u2603 one\r\n", encoding="utf-8")
    speak(checkpoint, tmp_path / "out", "--text", "Hello.", "--text_file", str(text_file))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"00{i}.{kind}" for i in (1, 2, 3) for kind in ("npy", "png", "wav")]
    for i in (1, 2, 3):
        wav, rate = soundfile.read(tmp_path / "out" / f"00{i}.wav")
        assert rate == 22050 and len(wav) == 30 * 256
        mel = np.load(tmp_path / "out" / f"00{i}.npy")
        assert mel.shape == (80, 30) and mel.dtype == np.float32
        assert Image.open(tmp_path / "out" / f"00{i}.png").size[0] > 300
    printed = capsys.readouterr().out
    assert printed.count("cut at the limit of 30 steps") == 3
    assert "left out '\u2603'" in printed


def test_a_sentence_that_stops_is_said_to(checkpoint, tmp_path, capsys):
    weights = load_file(checkpoint / "model.safetensors")
    weights["decoder.stop_projection.bias"].fill_(100.0)
    save_file(weights, checkpoint / "model.safetensors")
    speak(checkpoint, tmp_path / "out", "--text", "Hello.")
    assert "stopped by itself" in capsys.readouterr().out
    assert np.load(tmp_path / "out" / "001.npy").shape == (80, 1)


def test_bfloat16_speaks_nearly_what_float32_speaks(checkpoint, tmp_path):
    speak(checkpoint, tmp_path / "half", "--text", "Hello.", "--dtype", "bfloat16")
    speak(checkpoint, tmp_path / "full", "--text", "Hello.", "--dtype", "float32")
    half, full = (np.load(tmp_path / name / "001.npy") for name in ("half", "full"))
    assert half.dtype == np.float32 and half.shape == full.shape
    difference = np.abs(half - full).max()
    assert 0 < difference < 0.05 * np.abs(full).max()


def test_the_exported_mel_is_the_natural_log_of_the_spoken_one(checkpoint):
    voice = load_checkpoint(checkpoint)
    result = synthesize.synthesize("Hello.", voice, max_decoder_steps=20, seed=1)
    assert result.mel.shape == (20, 80) and result.alignment.shape == (20, 6)
    log_mel = scaled_to_log_mel(result.mel, voice.audio_config)
    floor = np.log(1e-5)
    expected = (result.mel.numpy() + 4) / 8 * -floor + floor
    np.testing.assert_allclose(log_mel.numpy(), expected, atol=1e-4)


def test_a_checkpoint_on_log_mels_speaks_at_the_same_level(checkpoint):
    """The same mel, once scaled and once in logarithms, is the same sound."""
    voice = load_checkpoint(checkpoint)
    log_config = AudioConfig(mel_scaling="log")
    wav = 0.3 * torch.sin(torch.arange(22050) * 2 * np.pi * 440 / 22050)
    spoken = []
    for config in (voice.audio_config, log_config):
        torch.manual_seed(0)
        spoken.append(synthesize.mel_to_audio(audio_to_mel(wav, config), config, n_iter=10))
    torch.testing.assert_close(spoken[0], spoken[1], atol=1e-3, rtol=0)


def test_the_seed_decides(checkpoint):
    voice = load_checkpoint(checkpoint)
    mels = [synthesize.synthesize("Hi.", voice, 10, seed=seed).mel for seed in (1, 1, 2)]
    assert torch.equal(mels[0], mels[1]) and not torch.equal(mels[0], mels[2])


def break_json(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


BREAKAGES = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), "no such checkpoint folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "not json": (lambda f: (f / "config.json").write_text("{"), "not a checkpoint's config"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "not a checkpoint's config"),
    "newer format": (
        lambda f: break_json(f, lambda c: c.update(format_version=2)),
        "format_version 2",
    ),
    "other sizes": (
        lambda f: break_json(f, lambda c: c.update(attention_dim=9)),
        "weights do not fit",
    ),
    "even kernel": (
        lambda f: break_json(f, lambda c: c.update(encoder_kernel_size=4)),
        "--encoder_kernel_size",
    ),
    "unknown field": (lambda f: break_json(f, lambda c: c.update(zoneout=0.1)), "zoneout"),
    "missing field": (lambda f: break_json(f, lambda c: c.pop("attention_dim")), "attention_dim"),
    "no symbols": (lambda f: break_json(f, lambda c: c.pop("symbols")), "symbols"),
    "symbols short": (lambda f: break_json(f, lambda c: c["symbols"].pop()), "do not fit"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:5000]
        ),
        "weights do not fit",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_checkpoint_is_named_in_one_sentence(checkpoint, tmp_path, name):
    breakage, sentence = BREAKAGES[name]
    breakage(checkpoint)
    with pytest.raises(SystemExit) as error:
        speak(checkpoint, tmp_path / "out", "--text", "Hello.")
    message = str(error.value)
    assert message.startswith("synthesize.py: ") and sentence in message and "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--text", "?!"], "no letter"),
        (["--text", " "], "nothing to say"),
        (["--text", "Fine.", "123 \u4f60\u597d", "\u4f60"], "no letter"),
        (["--text_file", "/nowhere/at/all"], "--text_file"),
    ],
)
def test_text_that_cannot_be_spoken(checkpoint, tmp_path, flags, sentence):
    with pytest.raises(SystemExit) as error:
        speak(checkpoint, tmp_path / "out", *flags)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags", [["--max_decoder_steps", "0"], ["--stop_threshold", "1.5"], ["--txt", "x"]]
)
def test_wrong_flags(checkpoint, tmp_path, flags, capsys):
    with pytest.raises(SystemExit) as error:
        main(["--checkpoint", str(checkpoint), "--output_dir", "x", "--text", "a", *flags])
    assert error.value.code == 2 and flags[0] in capsys.readouterr().err
