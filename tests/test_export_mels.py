"""export_mels.py: files as HiFi-GAN's fine-tuning reads them, and exports that stop."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import export_mels
from conftest import RATE, SENTENCES, speak
from dataset import AudioConfig, Utterance, load_wav
from export_mels import make_mels
from model import Tacotron2Output
from speech.voice import Voice
from stub_model import StubModel
from test_dataset_audio import hifi_gan_mel
from text.tokenizer import Tokenizer
from world import run

CONFIG = AudioConfig()


@pytest.fixture
def flags(voice, tiny_corpus, tmp_path):
    """Export both manifests to tmp_path / "mels"."""
    manifests = (tiny_corpus.train_manifest, tiny_corpus.test_manifest)
    return [
        *("--checkpoint", voice, "--path_to_manifest", *manifests, "--device", "cpu"),
        *("--output_dir", tmp_path / "mels", "--num_workers", 0, "--batch_size", 4),
    ]


def read_as_hifi_gan(folder: Path, filelist: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read mel and audio of each clip as HiFi-GAN's MelDataset does for fine-tuning."""
    from scipy.io import wavfile

    clips = []
    for line in (folder / filelist).read_text(encoding="utf-8").split("\n"):
        if line:
            name = line.split("|")[0]
            rate, samples = wavfile.read(folder / "wavs" / f"{name}.wav")
            assert rate == RATE and samples.dtype == np.int16 and samples.ndim == 1
            clips.append((np.load(folder / f"{name}.npy"), samples / 32768.0))
    return clips


def test_hifi_gan_cuts_mel_and_audio_that_belong_together(flags, tmp_path, capsys):
    """The mel of a cut of 32 frames of the audio is the cut of the mel, except at the edges."""
    assert run("export_mels", *flags, "--source", "recording", capsys=capsys) == (0, "")
    rng, frames_per_segment = np.random.default_rng(0), math.ceil(8192 / 256)
    clips = [*read_as_hifi_gan(tmp_path / "mels", "train.txt")]
    clips += read_as_hifi_gan(tmp_path / "mels", "test.txt")
    assert len(clips) == len(SENTENCES)
    lines = (tmp_path / "mels" / "test.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"tiny-{i:02d}|{SENTENCES[i]}" for i in (9, 10, 11)]
    for mel, audio in clips:
        assert mel.dtype == np.float32 and mel.shape == (80, len(audio) // 256)
        assert mel.flags.c_contiguous and len(audio) >= 8192
        start = rng.integers(0, mel.shape[1] - frames_per_segment)  # randint(0, that - 1)
        segment = audio[start * 256 : (start + frames_per_segment) * 256]
        assert len(segment) == 8192
        own, expected = mel[:, start:][:, :frames_per_segment], hifi_gan_mel(segment).T
        # Samples of 16 bits against those of the recording, which had 16 bits.
        np.testing.assert_allclose(own[:, 2:-2], expected[:, 2:-2], rtol=0, atol=2e-2)


def test_make_mels_cuts_the_padding_and_clamps():
    config, tokenizer = AudioConfig(mel_scaling="log"), Tokenizer()
    true = [torch.zeros(5, 80), torch.zeros(3, 80)]
    made = torch.rand(2, 5, 80) - 1.0
    made[0, 2, 7] = -1000.0
    output = Tacotron2Output(torch.zeros(2, 5, 80), made, torch.zeros(2, 5), torch.zeros(2, 5, 6))
    model = StubModel(output, None)
    texts = ("Hello.", "Go!")
    utterances = [
        Utterance(tokenizer.encode(text), mel, text, "x.wav")
        for text, mel in zip(texts, true, strict=True)
    ]
    with pytest.warns(UserWarning, match="clamped"):
        first, second = make_mels(Voice(model, config, tokenizer), utterances, "teacher_forced")
    ((_, (tokens, token_lengths, mels, mel_lengths)),) = model.calls
    assert tokens.shape == (2, 6) and token_lengths.tolist() == [6, 3]
    assert mel_lengths.tolist() == [5, 3] and (mels[1, 3:] == config.silence).all()
    assert first[2, 7] == config.silence and torch.equal(second, made[1, :3])
    own = make_mels(Voice(model, config, tokenizer), utterances, "recording")
    assert own[0] is true[0] and len(model.calls) == 1


def test_clips_no_longer_than_a_segment_are_not_listed(flags, tmp_path, capsys):
    """HiFi-GAN draws from 0 to frames - 33, and Python's randint(0, -1) is an error.

    The recordings are stereo FLACs of half the rate, and become wavs that HiFi-GAN reads.
    """
    lines = ["file_path,normalized_transcript,duration"]
    for name, n in (("short", 8192 + 255), ("long", 8192 + 256)):
        stereo = np.stack([speak("Come in now")[: n // 2]] * 2, axis=1)
        soundfile.write(tmp_path / f"{name}.flac", stereo, RATE // 2, subtype="PCM_24")
        lines.append(f'{name}.flac,"Come in, now",{n / RATE}')
    (tmp_path / "two.csv").write_text("\n".join(lines))
    flags += ["--path_to_manifest", tmp_path / "two.csv", "--source", "recording"]
    export_mels.main([str(flag) for flag in flags])
    assert (tmp_path / "mels" / "two.txt").read_text() == "long|Come in, now\n"
    said = capsys.readouterr().out
    assert "1 of 2 clips; 1 are not longer than 8192 samples" in said
    assert np.load(tmp_path / "mels" / "short.npy").shape == (80, 32)
    ((mel, audio),) = read_as_hifi_gan(tmp_path / "mels", "two.txt")
    np.testing.assert_allclose(audio, load_wav(tmp_path / "long.flac", RATE), rtol=0, atol=4e-5)
    assert mel.shape[1] == len(audio) // 256


def test_a_second_call_makes_what_is_missing_and_nothing_else(flags, tmp_path, capsys):
    flags += ["--source", "recording"]
    run("export_mels", *flags, capsys=capsys)
    folder = tmp_path / "mels"
    expected = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    kept = (folder / "tiny-03.npy").stat().st_mtime_ns
    for name in ("tiny-01.npy", "wavs/tiny-02.wav", "train.txt"):
        (folder / name).unlink()
    (folder / "tiny-00.npy").write_bytes(b"")  # as after a power failure
    (folder / "tiny-04.npy").write_bytes(expected["tiny-04.npy"][:-9])
    assert run("export_mels", *flags, capsys=capsys) == (0, "")
    again = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert again == expected and (folder / "tiny-03.npy").stat().st_mtime_ns == kept


def test_mels_of_recordings_that_changed_are_made_anew(flags, tiny_corpus, tmp_path, capsys):
    """Trimmed since, or of another corpus with the same names."""
    manifest = pd.read_csv(tiny_corpus.test_manifest)
    samples, rate = soundfile.read(manifest["file_path"][0])
    manifest.loc[0, "file_path"] = path = str(tmp_path / Path(manifest["file_path"][0]).name)
    lengths = []
    for n_samples in (len(samples), len(samples) - 2000):
        soundfile.write(path, samples[:n_samples], rate)
        manifest.loc[0, "duration"] = n_samples / rate
        manifest.to_csv(tmp_path / "changed.csv", index=False)
        more = ["--path_to_manifest", tmp_path / "changed.csv", "--source", "recording"]
        assert run("export_mels", *flags, *more, capsys=capsys) == (0, "")
        lengths.append(len(soundfile.read(tmp_path / "mels/wavs" / Path(path).name)[0]))
    assert lengths == [len(samples), len(samples) - 2000]


def test_a_clip_that_cannot_be_read_ends_it_and_the_next_call_continues(
    flags, tiny_corpus, tmp_path, capsys
):
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"RIFF")
    frame = pd.read_csv(tiny_corpus.test_manifest)
    last = frame["duration"].idxmin()  # the longest comes first
    whole = frame.loc[last, "file_path"]
    frame.loc[last, "file_path"] = str(clip)
    frame.to_csv(tmp_path / "a.csv", index=False)
    flags += ["--path_to_manifest", tmp_path / "a.csv", "--batch_size", 1]
    assert f"{clip}: cannot be read as audio" in refused(capsys, *flags, "--num_workers", 2)
    assert len(list((tmp_path / "mels").glob("*.npy"))) == 2
    shutil.copy(whole, clip)
    assert run("export_mels", *flags, capsys=capsys) == (0, "")
    assert len((tmp_path / "mels" / "a.txt").read_text().splitlines()) == 3


def refused(capsys, *flags) -> str:
    code, said = run("export_mels", *flags, capsys=capsys)
    assert code == 1 and said.startswith("export_mels.py: ") and said.count("\n") == 1, said
    return said


def test_a_folder_of_other_mels_is_refused(flags, capsys):
    run("export_mels", *flags, "--source", "recording", capsys=capsys)
    said = refused(capsys, *flags)
    assert "--output_dir" in said and "'recording'" in said and "'teacher_forced'" in said


@pytest.mark.parametrize("name", ["wavs/mine.wav", "test.txt"])
def test_a_folder_with_files_of_the_users_is_refused(flags, tmp_path, capsys, name):
    mine = tmp_path / "mels" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert f"has {Path(name).parts[0]} already" in refused(capsys, *flags)
    assert mine.read_text() == "mine" and len([*(tmp_path / "mels").rglob("*")]) < 3


def test_mels_of_other_audio_settings_are_refused(voice, flags, tmp_path, capsys):
    run("export_mels", *flags, capsys=capsys)
    other = shutil.copytree(voice, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["audio"]["min_db"] = -60.0
    (other / "config.json").write_text(json.dumps(config))
    assert "audio_sha256" in refused(capsys, *flags, "--checkpoint", other)


def test_a_folder_of_mels_with_another_contrast_is_refused(voice, flags, tmp_path, capsys):
    run("export_mels", *flags, capsys=capsys)
    other = shutil.copytree(voice, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    contrast = {"mean": [0.0] * 80, "scale": [1.5] * 80}
    (other / "config.json").write_text(json.dumps(config | {"contrast": contrast}))
    assert "contrast_sha256" in refused(capsys, *flags, "--checkpoint", other)


def test_names_that_a_filelist_cannot_tell_apart_are_refused(flags, tiny_corpus, tmp_path, capsys):
    frame = pd.read_csv(tiny_corpus.test_manifest)
    for name, reason in (("tiny-09.wav", "the same name"), ("a|b.wav", "a filelist cannot hold")):
        other = tmp_path / name
        shutil.copy(frame["file_path"][0], other)
        rows = pd.concat([frame, frame[:1].assign(file_path=str(other))])
        rows.to_csv(tmp_path / "a.csv", index=False)
        said = refused(capsys, *flags, "--path_to_manifest", tmp_path / "a.csv")
        assert str(other) in said and reason in said
    assert not (tmp_path / "mels").exists()
