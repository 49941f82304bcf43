"""From a checkpoint and text to files, and what happens to a checkpoint that is broken."""

import json
import re
import shutil
from dataclasses import replace

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import conftest
import speech.voice as checkpoints
import synthesize
import train_taco
from command_line.files import DataError
from dataset import AudioConfig, audio_to_mel
from forked_run import draw_nothing
from model import Tacotron2, Tacotron2Config
from scoring import pictures
from scoring.pictures import summary_figure
from speech.voice import Voice, load_checkpoint
from stub_model import StubModel, free_running
from synthesize import main
from test_train_taco import run_flags
from text.tokenizer import Tokenizer

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
    assert names == [f"00{i}.{kind}" for i in (1, 2, 3) for kind in ("npy", "png", "txt", "wav")]
    printed = capsys.readouterr().out
    blocks = [block.splitlines() for block in printed.split(f"{tmp_path / 'out'}/")[1:]]
    for i, said in enumerate(("hello.", "a second line.", "and a third  one"), start=1):
        assert Image.open(tmp_path / "out" / f"00{i}.png").size[0] > 300
        verdict = "did not stop, free-running score 0.00 (poor: 0.5 to 0.8 is good)"
        assert blocks[i - 1][:2] == [f"00{i}.wav: 0.35 s, {verdict}", f"    as spoken: {said}"]
        assert (tmp_path / "out" / f"00{i}.txt").read_text() == f"{said}\n"
        assert "it did not stop, and was cut at the limit of 30 steps" in "".join(blocks[i - 1])
    assert printed.count("left out") == 1
    assert blocks[2][2].startswith("    warning: left out '\u2603'")


def test_numbers_go_on_from_those_in_the_folder(checkpoint, tmp_path):
    out = tmp_path / "out"

    def spoken():
        return {path.stem: path.read_text() for path in sorted(out.glob("*.txt"))}

    speak(checkpoint, out, "--text", "One.", "Two.")
    first = (out / "001.wav").read_bytes()
    (out / "007.npy").touch()  # what is left of another call
    (out / "2023.txt.bak").touch()
    speak(checkpoint, out, "--text", "Three.")
    assert spoken() == {"001": "one.\n", "002": "two.\n", "008": "three.\n"}
    assert (out / "001.wav").read_bytes() == first
    speak(checkpoint, out, "--text", "Four.", "--overwrite")
    assert spoken() == {"001": "four.\n", "002": "two.\n", "008": "three.\n"}
    assert (out / "001.wav").read_bytes() != first


def test_lines_that_cannot_be_spoken_are_named_and_the_others_spoken(checkpoint, tmp_path, capsys):
    text_file = tmp_path / "story.txt"
    lines = "Chapter 2\n***\n\n\u041f\u0440\u0438\nIt rained.\n"
    text_file.write_text(lines, encoding="utf-8")
    speak(checkpoint, tmp_path / "out", "--text_file", str(text_file))
    said = [(tmp_path / "out" / f"00{i}.txt").read_text() for i in (1, 2)]
    assert said == ["chapter two\n", "it rained.\n"]
    assert not (tmp_path / "out" / "003.txt").exists()
    second, fourth = capsys.readouterr().err.splitlines()
    place = f"synthesize.py: --text_file {text_file}, line"
    assert second == f"{place} 2: text has no letter to speak: '***'; the line is left out"
    assert fourth.startswith(f"{place} 4: text has no letter that a symbol stands for, only")


def test_a_file_given_as_text_is_hinted_at(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text("It rained.")
    speak(checkpoint, tmp_path / "out", "--text", "story.txt", "other.txt")
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "--text_file story.txt speaks the lines" in said.err
    assert "as spoken: story dot t x t" in said.out


def path_over(positions, n_text):
    """An alignment (T_mel, n_text) that is sharp at these characters, one a frame."""
    return torch.nn.functional.one_hot(torch.tensor(positions), n_text).float()


@pytest.mark.parametrize(
    ("positions", "stopped", "score", "faults"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], True, "1.00 (good)", []),
        ([*[0] * 99, 1, 2, 3, 2, 3, 4, 5, 6, 7], True, "0.99 (good)", []),
        ([0, 1, 2, 3, 4, 5, 6, 7], False, "0.00 (poor: 0.5 to 0.8 is good)", ["did not stop"]),
        (
            [0, 1, 2, 5, 6, 7],
            True,
            "0.75 (good)",
            ["2 of 8 characters get no attention, and may not be heard: 'gh'"],
        ),
        (
            [0, 0, 0, 0, 0, 0],
            True,
            "0.12 (poor: 0.5 to 0.8 is good)",
            ["7 of 8 characters get no attention, and may not be heard: 'efghijk'"],
        ),
        (
            [*[0] * 99, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7],
            True,
            "0.99 (good)",
            ["goes back at 1 of 110 steps, furthest at 1.04 s by 4 characters"],
        ),
        (
            [0, 1, 2, 1, 2, 1, 2, 3, 4, 5, 6, 7],
            True,
            "0.82 (good)",
            ["goes back at 2 of 11 steps, furthest at 0.03 s by 1 characters"],
        ),
    ],
)
def test_the_verdict_names_what_looks_wrong(
    tmp_path, monkeypatch, capsys, positions, stopped, score, faults
):
    """One frame is 0.01 s."""
    config, tokenizer = AudioConfig(16000, hop_size=160), Tokenizer()
    mel = torch.full((len(positions), 80), -4.0)
    model = StubModel(None, free_running(mel, path_over(positions, 8), stopped))
    monkeypatch.setattr(synthesize, "load_checkpoint", lambda *_: Voice(model, config, tokenizer))
    speak("any", tmp_path, "--text", "defghijk")
    first, _, *rest = capsys.readouterr().out.splitlines()
    warnings = [line for line in rest if "warning" in line]
    assert first.endswith(f"free-running score {score}")
    assert len(warnings) == len(faults)
    for warning, fault in zip(warnings, faults, strict=True):
        assert warning.startswith("    warning: ") and fault in warning


@pytest.mark.parametrize("mel_scaling", ["scaled_db", "log"])
def test_files_hold_what_is_spoken(tmp_path, monkeypatch, capsys, mel_scaling):
    """A model that repeats a recording: its mel, level and length, in a config of its own."""
    config = AudioConfig(16000, hop_size=200, n_fft=800, window_size=800, mel_scaling=mel_scaling)
    text, tokenizer = "Birds sing at dawn", Tokenizer(["_", *"abcdefghijklmnopqrstuvwxyz "])
    wav = librosa.resample(conftest.speak(text), orig_sr=conftest.RATE, target_sr=16000)
    mel = audio_to_mel(torch.from_numpy(wav).float(), config)
    alignment = torch.rand(len(mel), len(text))
    drawn = []

    def draw(*arguments, **more):
        drawn.append((arguments, more))
        return summary_figure(*arguments, **more)

    monkeypatch.setattr(pictures, "summary_figure", draw)
    voice = Voice(StubModel(None, free_running(mel, alignment)), config, tokenizer)
    monkeypatch.setattr(synthesize, "load_checkpoint", lambda *_: voice)
    speak("any", tmp_path, "--text", text)

    place = f"{tmp_path}/001.wav: {len(mel) * 200 / 16000:.2f} s"
    assert capsys.readouterr().out.startswith(f"{place}, stopped by itself, free-running score ")
    exported = np.load(tmp_path / "001.npy")
    scaled = audio_to_mel(torch.from_numpy(wav).float(), replace(config, mel_scaling="scaled_db"))
    assert exported.dtype == np.float32
    np.testing.assert_allclose(exported, (scaled.numpy().T - 4) / 8 * np.log(1e5), atol=1e-4)
    (arrays, more) = drawn[0]
    assert arrays[0] is None and torch.equal(arrays[1], mel) and torch.equal(arrays[2], alignment)
    assert (*arrays[3:], more) == (text.lower(), {"hop_seconds": 200 / 16000})

    assert soundfile.info(tmp_path / "001.wav").subtype == "PCM_16"
    spoken, rate = soundfile.read(tmp_path / "001.wav", dtype="float32")
    assert rate == 16000 and len(spoken) == 200 * len(mel)
    assert np.std(spoken) == pytest.approx(np.std(wav), rel=0.1)
    again = audio_to_mel(torch.from_numpy(spoken), config)
    loud = scaled > 0  # above -50 dB
    assert (again - mel)[loud].abs().mean() < 0.3 * (mel.max() - mel.min()) / 8  # 3.75 dB


def log_mel(wav: np.ndarray) -> np.ndarray:
    """librosa's natural-log mel, (80, T_mel), at the default audio settings."""
    padded = np.pad(wav, (1024 - 256) // 2, mode="reflect")
    sizes = {"n_fft": 1024, "hop_length": 256, "n_mels": 80, "fmax": 8000.0}
    mel = librosa.feature.melspectrogram(y=padded, sr=22050, center=False, power=1.0, **sizes)
    return np.log(np.maximum(mel, 1e-5))


def test_a_model_of_log_mels_is_trained_and_speaks_at_its_level(world, monkeypatch):
    """One step on log mels; then, made to hum whatever the text, its checkpoint hums as loudly.

    A model that has learnt nothing yet says about 0, so the losses of its first step are the mean
    of the squared mels.
    """
    draw_nothing(monkeypatch.setattr)
    flags = ["--mel_scaling", "log", "--training_epochs", 1, "--batch_size", 9]
    train_taco.main(run_flags(world.corpus, world.out, *flags))
    final = world.out / "work" / "tiny" / "final_checkpoint"
    losses = json.loads((final / "trainer_state.json").read_text())["history"][0]
    paths = pd.read_csv(world.corpus.train_manifest)["file_path"]
    mels = np.concatenate([log_mel(soundfile.read(path)[0]) for path in paths], axis=1)
    assert losses["train_mel_before_loss"] == pytest.approx(np.mean(mels**2), rel=0.1)

    phase = 2 * np.pi * 210 * np.arange(22050) / 22050
    hum = 0.1 * sum(np.sin(k * phase + k**2) / k for k in range(1, 30))
    target = log_mel(hum).mean(axis=1)
    weights = load_file(final / "model.safetensors")
    of_the_sound = (
        "decoder.mel_projection.",
        "decoder.stop_projection.",
        "postnet.convolutions.4.",
    )
    for name, weight in weights.items():
        if name.startswith(of_the_sound):
            weight.zero_()
    weights["decoder.mel_projection.bias"][:] = torch.from_numpy(target)
    weights["decoder.stop_projection.bias"].fill_(-100.0)
    save_file(weights, final / "model.safetensors")
    speak(final, world.folder / "spoken", "--text", "Hello.", "--max_decoder_steps", "80")
    mel = np.load(world.folder / "spoken" / "001.npy")
    np.testing.assert_allclose(mel, np.tile(target[:, None], 80), atol=1e-4)
    spoken, _ = soundfile.read(world.folder / "spoken" / "001.wav", dtype="float32")
    assert np.std(spoken) == pytest.approx(np.std(hum), rel=0.15)


def test_a_config_is_read_as_it_was_written(tmp_path):
    config = Tacotron2Config(vocab_size=3, num_mels=40)
    audio_config = AudioConfig(num_mels=40, min_db=-80.0, mel_scaling="log")
    checkpoints.write_config(tmp_path, config, audio_config, Tokenizer(["_", "b", "\u00e4"]))
    again = checkpoints.read_config(tmp_path)
    assert again[:2] == (config, audio_config) and again[2].symbols == ("_", "b", "\u00e4")


def test_the_stop_threshold_ends_a_sentence(checkpoint, tmp_path, capsys):
    """The stop token's probability is 0.3 at every frame."""
    weights = load_file(checkpoint / "model.safetensors")
    weights["decoder.stop_projection.weight"].zero_()
    weights["decoder.stop_projection.bias"].fill_(np.log(0.3 / 0.7))
    save_file(weights, checkpoint / "model.safetensors")
    for flags, ending, n_frames in (
        (["--stop_threshold", "0.25"], "stopped by itself", 1),
        (["--stop_threshold", "0.35"], "cut at the limit of 30 steps", 30),
        ([], "cut at the limit of 30 steps", 30),
    ):
        speak(checkpoint, tmp_path / "out", "--overwrite", "--text", "Hello.", *flags)
        assert ending in capsys.readouterr().out
        assert np.load(tmp_path / "out" / "001.npy").shape == (80, n_frames)


def test_bfloat16_speaks_nearly_what_float32_speaks(checkpoint, tmp_path):
    speak(checkpoint, tmp_path / "half", "--text", "Hello.", "--dtype", "bfloat16")
    speak(checkpoint, tmp_path / "full", "--text", "Hello.", "--dtype", "float32")
    half, full = (np.load(tmp_path / name / "001.npy") for name in ("half", "full"))
    assert half.dtype == np.float32 and half.shape == full.shape
    difference = np.abs(half - full).max()
    assert 0 < difference < 0.05 * np.abs(full).max()


def test_a_model_that_has_run_away_is_said_to(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    weights["decoder.mel_projection.bias"][::2] += 1000.0
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.warns(UserWarning, match=r"^1200 of the mel's 2400 values \(50.0%\) are clamped"):
        speak(checkpoint, tmp_path / "out", "--text", "Hello.")
    mel = np.load(tmp_path / "out" / "001.npy")
    assert mel[::2].max() == mel[::2].min() == pytest.approx(np.log(512 * 0.0491), abs=0.01)
    wav, _ = soundfile.read(tmp_path / "out" / "001.wav")
    assert abs(wav.mean()) < 0.01 * wav.std()


def test_the_seed_decides(checkpoint, tmp_path):
    """Of mel and phases, also by the flag; without one, the generator goes on."""
    voice = load_checkpoint(checkpoint)
    assert not any(module.training for module in voice.model.modules())
    mels = [synthesize.synthesize("Hi.", voice, 10, seed=seed).mel for seed in (1, 1, 2)]
    assert torch.equal(mels[0], mels[1]) and not torch.equal(mels[0], mels[2])
    mels = [synthesize.synthesize("Hi.", voice, 10).mel for _ in range(2)]
    assert not torch.equal(*mels)
    files = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        speak(checkpoint, tmp_path / name, "--text", "Hi.", "--seed", seed)
        files.append([(tmp_path / name / f"001.{kind}").read_bytes() for kind in ("npy", "wav")])
    assert files[0] == files[1]
    assert files[0][0] != files[2][0] and files[0][1] != files[2][1]


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
    "one infinite weight": (
        lambda f: save_file(
            {**(weights := load_file(f / "model.safetensors"))}
            | {"decoder.attention.v.weight": weights["decoder.attention.v.weight"] / 0},
            f / "model.safetensors",
        ),
        "decoder.attention.v.weight holds NaN or infinity",
    ),
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


@pytest.mark.parametrize("remedy", ["copy config.json of the checkpoint", "write_config("])
def test_a_folder_of_save_pretrained_is_told_what_it_lacks(checkpoint, tmp_path, remedy):
    """And what the sentence advises works, whichever of the two it is."""
    voice, saved = load_checkpoint(checkpoint), tmp_path / "saved"
    voice.model.save_pretrained(saved)
    with pytest.raises(SystemExit) as error:
        speak(saved, tmp_path / "out", "--text", "Hello.")
    sentence = str(error.value)
    assert sentence.startswith(f"synthesize.py: {saved}") and "\n" not in sentence
    assert "neither audio settings nor symbols" in sentence and remedy in sentence
    if remedy == "write_config(":
        call = re.search(r"write_config\(.*\)", sentence)[0]
        known = {"write_config": checkpoints.write_config, "model": voice.model}
        known |= {"audio_config": voice.audio_config, "tokenizer": voice.tokenizer}
        eval(call, known)
    else:
        shutil.copy(checkpoint / "config.json", saved)
    speak(saved, tmp_path / "out", "--text", "Hello.")
    speak(checkpoint, tmp_path / "expected", "--text", "Hello.")
    mels = [np.load(tmp_path / name / "001.npy") for name in ("out", "expected")]
    assert np.array_equal(*mels)
    assert type(voice.model).from_pretrained(saved).config == voice.model.config


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--text", "?!"], "no letter"),
        (["--text", " "], "nothing to say"),
        (["--text", "Fine.", "123 \u4f60\u597d", "\u4f60"], "only '\u4f60'"),
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


def test_weights_of_other_shapes_are_refused_before_a_model_takes_memory(checkpoint, monkeypatch):
    """A config.json may ask for 4 GB beside weights of a few kilobytes."""
    break_json(checkpoint, lambda c: c.update(decoder_rnn_embed_dim=8000))
    devices = []

    class Watched(Tacotron2):
        def __init__(self, config):
            devices.append(torch.empty(0).device.type)
            super().__init__(config)

    monkeypatch.setattr(checkpoints, "Tacotron2", Watched)
    with pytest.raises(DataError, match=r"decoder\.attention.* not \[.*8000"):
        load_checkpoint(checkpoint)
    assert devices == ["meta"], "this device's tensors have shapes alone"
