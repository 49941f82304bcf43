"""Tests of audio/mel_cache.py, --cache_mels: mels that are computed once."""

import os

import pytest
import soundfile
import torch

import audio.mel_cache
import dataset
from command_line.files import DataError
from conftest import RATE
from dataset import AudioConfig, TTSDataset
from test_dataset_audio import sine
from text.tokenizer import Tokenizer


def test_training_reads_the_same_mels_from_the_cache_without_the_recordings(
    begin, tmp_path, monkeypatch
):
    plain, _ = begin()
    first, _ = begin("--cache_mels", tmp_path / "mels", "--num_workers", 2)
    for loader in (first.train_loader, first.val_loader):
        for _ in loader:  # two processes write
            pass
    n_clips = len(first.train_set) + len(first.val_set)
    assert len(list((tmp_path / "mels").iterdir())) == n_clips
    again, _ = begin("--cache_mels", tmp_path / "mels")
    expected = [plain.train_set[i].mel for i in range(len(plain.train_set))]
    monkeypatch.setattr(dataset, "load_wav", None)
    assert all(torch.equal(again.train_set[i].mel, mel) for i, mel in enumerate(expected))


@pytest.fixture
def clip(tmp_path):
    """A manifest of one clip, clip.wav beside it, of a tenth of a second."""
    soundfile.write(tmp_path / "clip.wav", sine(440, 0.1, RATE), RATE)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("file_path,normalized_transcript,duration\nclip.wav,hello,0.1\n")
    return manifest


@pytest.mark.parametrize("change", ["recording", "settings", "code", "broken", "half", "renamed"])
def test_a_mel_is_computed_anew_when_something_has_changed(clip, change, monkeypatch):
    folder, wav, config = clip.with_name("mels"), clip.with_name("clip.wav"), AudioConfig()
    old = TTSDataset(clip, config, Tokenizer(), cache_mels=folder)[0].mel
    (file,) = folder.iterdir()
    content = file.read_bytes()
    if change == "recording":  # as long as before
        time = os.stat(wav).st_mtime_ns
        soundfile.write(wav, sine(880, 0.1, RATE), RATE)
        os.utime(wav, ns=(time + 1, time + 1))
    elif change == "settings":
        config = AudioConfig(max_scaled_abs=1.0)
    elif change == "code":
        other = clip.with_name("edited.py")
        other.write_text("def audio_to_mel(): ...")
        monkeypatch.setattr(audio.mel_cache, "CODE", (str(other),))
        monkeypatch.setattr(dataset, "audio_to_mel", lambda wav, config: old + 1)
    elif change == "renamed":  # another recording
        wav = clip.with_name("other.wav")
        soundfile.write(wav, sine(880, 0.1, RATE), RATE)
        clip.write_text(clip.read_text().replace("clip.wav", "other.wav"))
    else:
        file.write_bytes(content[: len(content) // 2] if change == "half" else b"mel")
    expected = TTSDataset(clip, config, Tokenizer())[0].mel
    for _ in range(2):  # computed, then read
        assert torch.equal(
            TTSDataset(clip, config, Tokenizer(), cache_mels=folder)[0].mel, expected
        )
    assert len(list(folder.iterdir())) == 1 + (change == "renamed")  # the stale mel is replaced
    assert change in ("broken", "half") or not torch.equal(expected, old)


def test_a_cached_mel_that_its_manifest_or_the_disk_refuses_ends_in_one_sentence(clip):
    folder = clip.with_name("mels")
    clips = TTSDataset(clip, AudioConfig(), Tokenizer(), cache_mels=folder)
    clips[0]
    clip.write_text(clip.read_text().replace(",0.1", ",0.5"))
    with pytest.raises(DataError, match=r"clip\.wav: lasts 0\.10 s, but .* says 0\.50 s"):
        TTSDataset(clip, AudioConfig(), Tokenizer(), cache_mels=folder)[0]
    blocked = clip.with_name("file")
    blocked.write_text("")
    clips = TTSDataset(clip, AudioConfig(), Tokenizer(), cache_mels=blocked / "mels")
    with pytest.raises(DataError, match=f"^--cache_mels {blocked}/mels: cannot be written to"):
        clips[0]
    clip.with_name("clip.wav").unlink()
    with pytest.raises(DataError, match=r"^\S+clip\.wav: .*"):
        clips[0]
