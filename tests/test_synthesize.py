"""From a checkpoint and text to files, and what happens to a checkpoint that is broken."""

import json
import re
import shutil
from argparse import Namespace
from dataclasses import replace

import librosa
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import conftest
import speech.voice as checkpoints
import synthesize
from command_line.files import DataError
from dataset import AudioConfig, audio_to_mel
from model import Tacotron2
from scoring import pictures
from speech.voice import Voice, load_checkpoint
from stub_model import StubModel, free_running
from synthesize import main
from text.tokenizer import Tokenizer

SMALL = {"character_embed_dim": 16, "encoder_embed_dim": 16, "decoder_rnn_embed_dim": 24}
SMALL |= {"decoder_prenet_dim": 8, "decoder_postnet_n_filters": 8, "attention_dim": 8}


@pytest.fixture
def checkpoint(voice, tmp_path):
    """A copy of the untrained checkpoint that never says stop, for a test to change."""
    return shutil.copytree(voice, tmp_path / "checkpoint")


@pytest.fixture
def no_pictures(monkeypatch):
    """Saves half a second a sentence."""
    monkeypatch.setattr(pictures, "summary_figure", lambda *_: None)
    monkeypatch.setattr(pictures, "save_figure", lambda *_: None)


def speak(checkpoint, output_dir, *flags):
    """Run synthesize.py for 30 frames a sentence, without retries."""
    where = ["--checkpoint", str(checkpoint), "--output_dir", str(output_dir), "--device", "cpu"]
    return main([*where, "--max_decoder_steps", "30", "--n_retries", "0", *flags])


def change_weights(checkpoint, change):
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors")


@pytest.mark.slow
def test_files_of_each_sentence(checkpoint, tmp_path, capsys):
    text_file = tmp_path / "lines.txt"
    text_file.write_text("A second line.\n\n  And a third \u2603 one\r\n", encoding="utf-8")
    out = tmp_path / "out"
    assert speak(checkpoint, out, "--text", "Hello.", "--text_file", str(text_file)) == 2
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"00{i}.{kind}" for i in (1, 2, 3) for kind in ("npy", "png", "txt", "wav")]
    printed = capsys.readouterr().out
    blocks = [block.splitlines() for block in printed.split(f"{out}/")[1:]]
    for i, text in enumerate(("hello.", "a second line.", "and a third  one"), start=1):
        assert Image.open(out / f"00{i}.png").size[0] > 300
        verdict = "did not stop, free-running score 0.00"
        assert blocks[i - 1][:2] == [f"00{i}.wav: 0.35 s, {verdict}", f"    as spoken: {text}"]
        assert (out / f"00{i}.txt").read_text() == f"{text}\n"
        assert "it did not stop, and was cut at the limit of 30 frames" in "".join(blocks[i - 1])
        assert blocks[i - 1][-1] == "    failed in 1 tries"
    assert printed.count("left out") == 1
    assert blocks[2][2].startswith("    warning: left out '\u2603'")


@pytest.mark.usefixtures("no_pictures")
def test_numbers_continue_after_those_in_the_folder(checkpoint, tmp_path):
    out = tmp_path / "out"

    def spoken():
        return {path.stem: path.read_text() for path in sorted(out.glob("*.txt"))}

    speak(checkpoint, out, "--text", "One.", "Two.", "--timings")
    (out / "007.npy").touch()  # of another call
    (out / "2023.txt.bak").touch()
    speak(checkpoint, out, "--text", "Three.")
    assert spoken() == {"001": "one.\n", "002": "two.\n", "008": "three.\n"}
    speak(checkpoint, out, "--text", "Four.", "--overwrite")
    assert spoken() == {"001": "four.\n", "002": "two.\n", "008": "three.\n"}
    timed = {path.name for path in out.iterdir() if path.suffix in (".json", ".srt")}
    assert timed == {"002.json", "002.srt"}  # those of "One." would be read as those of "Four."


@pytest.mark.usefixtures("no_pictures")
def test_a_paragraph_without_a_letter_is_not_reported_as_spoken(checkpoint, tmp_path, capsys):
    speak(checkpoint, tmp_path / "out", "--text", "It rained.\n\n...\n\n\u263a", "--seed", "1")
    assert "    as spoken: it rained.\n" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_lines_with_nothing_to_speak_are_skipped_with_a_warning(checkpoint, tmp_path, capsys):
    """And a text that names a file is spoken, with a hint. A line of *** is Markdown's."""
    text_file = tmp_path / "story.txt"
    lines = "Chapter 2\n***\n\n?!\n\u041f\u0440\u0438\nIt rained.\n"
    text_file.write_text(lines, encoding="utf-8")
    speak(checkpoint, tmp_path / "out", "--text", str(text_file), "--text_file", str(text_file))
    texts = [path.read_text() for path in sorted((tmp_path / "out").glob("*.txt"))]
    assert len(texts) == 3 and texts[1:] == ["chapter two\n", "it rained.\n"]
    hint, second, fourth = capsys.readouterr().err.splitlines()
    assert f"--text_file {text_file} speaks the lines of that file" in hint
    place = f"--text_file {text_file}"
    reason = "text has no letter to speak: '?!'; the line is skipped"
    assert second.endswith(f": {place}: {reason}")
    assert f"{place}: text has no letter that a symbol stands for, only" in fourth


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "content",
    [
        "s01|It rained.\ns02|It snowed.\n",
        "id\ttext\r\ns01\tIt rained.\r\ns02\tIt snowed.\r\n",
        "file_path,normalized_transcript,duration\n/a/s01.wav,It rained.,1\n/s02.wav,It snowed.,1",
        "wavs/s01.wav|it 1|It rained.\nwavs/s02.wav|it 2|It snowed.\n",
        "s01,It rained.\ns02,It snowed.\n",
        "s01|It rained.\n\ns02|It snowed.\n",
        "| id | text |\n|---|:-:|\n| s01 | It rained. |\n| s02 | It snowed. |\n",
    ],
)
def test_a_table_is_spoken_by_its_text_and_names_the_files(checkpoint, tmp_path, content):
    table, out = tmp_path / "lines.txt", tmp_path / "out"
    table.write_text(content, newline="")
    speak(checkpoint, out, "--text", "One.", "--text_file", str(table))
    spoken = {path.stem: path.read_text() for path in out.glob("*.txt")}
    assert spoken == {"001": "one.\n", "s01": "it rained.\n", "s02": "it snowed.\n"}
    (out / "s01.wav").unlink()
    with pytest.raises(SystemExit, match=r"has s01.npy; --overwrite replaces it"):
        speak(checkpoint, out, "--text_file", str(table))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            '{"audio_filepath": "a.wav", "text": "a"}\n{"audio_filepath": "b.wav", "text": "b"}',
            "JSON",
        ),
        ("utt_001 IT RAINED\nutt_002 IT SNOWED", "'utt_001'"),
        ("s01: It rained.\ns02: It snowed.", "'s01:'"),
        ('( a_1 "It rained." )\n( a_2 "It snowed." )', "Festival"),
        (" \n\n", "nothing to say"),
        ("[00:12.5] It rained.\n[00:13.5] It snowed.", "time stamps"),
        ("1|5\n2|6\n", "not clear; expected columns such as id.text"),
        ("wavs/a.wav\nwavs/b.wav", "names recordings"),
        ("1\n00:00:01,000 --> 00:00:02,000\nIt rained.", "time stamps"),
        ("a/x|It rained.\nb/x|It snowed.", "two texts would be written to x.wav"),
        ("s01|It rained.\ns02|It|snowed.|here\ns03|It thawed.", "line 2: 4 columns"),
    ],
)
def test_lists_that_are_no_sentences_are_refused(checkpoint, tmp_path, content, found):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(SystemExit, match=found):
        speak(checkpoint, tmp_path / "out", "--text_file", str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("content", "spoken"),
    [
        ("1990, it rained.\n1991, it snowed.\n", ["1990, it rained.", "1991, it snowed."]),
        ("Open a.wav, then.\nNow b.wav, too.", ["Open a.wav, then.", "Now b.wav, too."]),
        ("I love song.mp3 a lot.\nIt is\nso.", ["I love song.mp3 a lot.", "It is", "so."]),
        ("Tell me your name, then read the text.\nThen, stop.",
         ["Tell me your name, then read the text.", "Then, stop."]),
        ("Q1, profits rose.\nQ2, they fell.", ["Q1, profits rose.", "Q2, they fell."]),
        ("[Bob]: ...well, no.\n[Anna]: Note: bring milk.\n[1]: https://example.org 'A page'",
         ["[Bob]: ...well, no.", "[Anna]: Note: bring milk."]),
        ("| City | Land |\n|---|---|\n| Rome | Italy |\n", ["City, Land", "Rome, Italy"]),
        ("---\ntitle: x\n---\nIt rained. <!-- a\nb -->\nIt --> snowed.",
         ["It rained.", "It --> snowed."]),
    ],
)  # fmt: skip
def test_sentences_that_look_like_tables_are_spoken(tmp_path, content, spoken):
    (tmp_path / "lines.txt").write_text(content)
    args = Namespace(text=None, text_file=str(tmp_path / "lines.txt"), long_text=None)
    assert [sentence.text for sentence in synthesize.read_sentences(args)] == spoken


@pytest.mark.usefixtures("no_pictures")
def test_markup_is_not_spoken(checkpoint, tmp_path, capsys):
    """Neither Markdown's marks nor tags; what only looks like them is."""
    page = tmp_path / "page.md"
    page.write_text(
        "# The *Head*ing\nSee [the docs](https://example.com/a_(b)) &amp; <b>bo</b>ld.\n> quoted\n"
        "- an `item`\n```python\nx = 1\n```\nTitle\n=====\n| a | b |\n|---|:-:|\n| c | d |\n"
        '<speak>So<break time="1s"/>it <emphasis>is</emphasis>.</speak> 5 < 6 > 3, 2*3 #fun\n'
    )
    speak(checkpoint, tmp_path / "out", "--long_text", str(page), "--max_characters", "999")
    spoken = " ".join((tmp_path / "out" / "001.txt").read_text().split())
    assert spoken == (
        "the heading see the docs and bold. quoted an item x equals one title a, b c, d so it is. "
        "five less than six greater than three, two times three hashtag fun"
    )
    said = capsys.readouterr().err
    assert '<b> </b> <speak> <break time="1s"/> <emphasis> and 2 more' in said


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("positions", "score", "fault"),
    [
        ([*[0] * 99, 1, 2, 3, 2, 3, 4, 5, 6, 7], 0.99, None),
        ([0, 1, 2, 5, 6, 7], 0.75, "get no attention, and may not be heard: 'gh'"),
        ([*[0] * 99, *range(1, 6), *range(1, 8)], 0.99, "at 1.04 s by 4 characters"),
    ],
)
def test_the_report_names_what_looks_wrong(tmp_path, monkeypatch, capsys, positions, score, fault):
    """One frame is 0.01 s."""
    config, tokenizer = AudioConfig(16000, hop_size=160), Tokenizer()
    mel = torch.full((len(positions), 80), -4.0)
    alignment = torch.nn.functional.one_hot(torch.tensor(positions), 8).float()
    model = StubModel(None, free_running(mel, alignment))
    monkeypatch.setattr(synthesize, "load_checkpoint", lambda *_: Voice(model, config, tokenizer))
    speak("any", tmp_path, "--text", "defghijk")
    first, _, *rest = capsys.readouterr().out.splitlines()
    warnings = [line for line in rest if line.startswith("    warning: ")]
    assert first.endswith(f"free-running score {score}")
    assert len(warnings) == (fault is not None) and (fault or "") in "".join(warnings)


@pytest.mark.parametrize("mel_scaling", ["scaled_db", "log"])
def test_files_hold_what_is_spoken(tmp_path, monkeypatch, capsys, mel_scaling):
    """A model that repeats a recording: its mel, level and length, in a config of its own."""
    config = AudioConfig(16000, hop_size=200, n_fft=800, window_size=800, mel_scaling=mel_scaling)
    text, tokenizer = "Birds sing at dawn", Tokenizer(["_", *"abcdefghijklmnopqrstuvwxyz "])
    wav = librosa.resample(conftest.speak(text), orig_sr=conftest.RATE, target_sr=16000)
    mel = audio_to_mel(torch.from_numpy(wav).float(), config)
    alignment = torch.rand(len(mel), len(text))
    voice = Voice(StubModel(None, free_running(mel, alignment)), config, tokenizer)
    monkeypatch.setattr(synthesize, "load_checkpoint", lambda *_: voice)
    speak("any", tmp_path, "--text", text)

    place = f"{tmp_path}/001.wav: {len(mel) * 200 / 16000:.2f} s"
    assert capsys.readouterr().out.startswith(f"{place}, stopped by itself, free-running score ")
    exported = np.load(tmp_path / "001.npy")
    scaled = audio_to_mel(torch.from_numpy(wav).float(), replace(config, mel_scaling="scaled_db"))
    assert exported.dtype == np.float32
    np.testing.assert_allclose(exported, (scaled.numpy().T - 4) / 8 * np.log(1e5), atol=1e-4)
    assert soundfile.info(tmp_path / "001.wav").subtype == "PCM_16"
    spoken, rate = soundfile.read(tmp_path / "001.wav", dtype="float32")
    assert rate == 16000 and len(spoken) == 200 * len(mel)
    assert np.std(spoken) == pytest.approx(np.std(wav), rel=0.1)
    again = audio_to_mel(torch.from_numpy(spoken), config)
    loud = scaled > 0  # above -50 dB
    assert (again - mel)[loud].abs().mean() < 0.3 * (mel.max() - mel.min()) / 8  # 3.75 dB


@pytest.mark.usefixtures("no_pictures")
def test_the_stop_threshold_ends_a_sentence(checkpoint, tmp_path, capsys):
    """The stop token's probability is 0.3 at every frame."""

    def change(weights):
        weights["decoder.stop_projection.weight"].zero_()
        weights["decoder.stop_projection.bias"].fill_(np.log(0.3 / 0.7))

    change_weights(checkpoint, change)
    for flags, ending, n_frames in (
        (["--stop_threshold", "0.25"], "stopped by itself", 1),
        (["--stop_threshold", "0.35"], "cut at the limit of 30 frames", 30),
        ([], "cut at the limit of 30 frames", 30),
        (["--max_seconds", "0.1"], "cut at the limit of 9 frames", 9),
    ):
        speak(checkpoint, tmp_path / "out", "--overwrite", "--text", "Hello.", *flags)
        assert ending in capsys.readouterr().out
        assert np.load(tmp_path / "out" / "001.npy").shape == (80, n_frames)


@pytest.mark.usefixtures("no_pictures")
def test_the_seed_decides(checkpoint, tmp_path):
    """On mel and phases, also by the flag; without one, torch's generator goes on."""
    voice = load_checkpoint(checkpoint)
    assert not any(module.training for module in voice.model.modules())
    results = [synthesize.synthesize("Hi.", voice, 10, seed=seed) for seed in (1, 1, 2, None, None)]
    for a, b, equal in ((0, 1, True), (0, 2, False), (3, 4, False)):
        assert torch.equal(results[a].mel, results[b].mel) == equal
        assert torch.equal(results[a].wav, results[b].wav) == equal
    for name in ("a", "b"):
        speak(checkpoint, tmp_path / name, "--text", "Hi.", "--seed", "1")
    first, second = ((tmp_path / name / "001.wav").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_folder_of_save_pretrained_is_refused_with_what_to_do(checkpoint, tmp_path):
    """And what the sentence says works."""
    voice, saved = load_checkpoint(checkpoint), tmp_path / "saved"
    voice.model.save_pretrained(saved)
    with pytest.raises(DataError) as error:
        load_checkpoint(saved)
    sentence = str(error.value)
    assert "neither audio settings nor symbols" in sentence
    call = re.search(r"write_config\(.*\)", sentence)[0]
    known = {"write_config": checkpoints.write_config, "model": voice.model}
    known |= {"audio_config": voice.audio_config, "tokenizer": voice.tokenizer}
    eval(call, known)
    again = load_checkpoint(saved)
    mels = [synthesize.synthesize("Hello.", each, 10, seed=0).mel for each in (voice, again)]
    assert torch.equal(*mels)
    assert Tacotron2.from_pretrained(saved).config == voice.model.config


def test_weights_of_other_shapes_are_refused_before_a_model_takes_memory(checkpoint, monkeypatch):
    """A config.json may ask for 4 GB beside weights of a few kilobytes."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["decoder_rnn_embed_dim"] = 8000
    (checkpoint / "config.json").write_text(json.dumps(config))
    devices = []

    class Watched(Tacotron2):
        def __init__(self, config):
            devices.append(torch.empty(0).device.type)
            super().__init__(config)

    monkeypatch.setattr(checkpoints, "Tacotron2", Watched)
    with pytest.raises(DataError, match=r"decoder\.attention.* not \[.*8000"):
        load_checkpoint(checkpoint)
    assert devices == ["meta"], "tensors on this device have no memory"


@pytest.mark.usefixtures("no_pictures")
def test_bfloat16_speaks_nearly_what_float32_speaks(checkpoint, tmp_path):
    speak(checkpoint, tmp_path / "half", "--text", "Hello.", "--dtype", "bfloat16")
    speak(checkpoint, tmp_path / "full", "--text", "Hello.", "--dtype", "float32")
    half, full = (np.load(tmp_path / name / "001.npy") for name in ("half", "full"))
    assert half.dtype == np.float32 and half.shape == full.shape
    difference = np.abs(half - full).max()
    assert 0 < difference < 0.05 * np.abs(full).max()
