"""Tests of dataset.py, the clips: manifests and TTSDataset."""

import csv
from pathlib import Path

import pytest
import soundfile
import torch

from command_line.files import DataError
from conftest import RATE
from dataset import AudioConfig, TTSDataset, audio_to_mel, load_wav, read_manifest
from test_dataset_audio import sine
from text.tokenizer import Tokenizer

HEADER = "file_path,normalized_transcript,duration\n"


@pytest.fixture
def manifest(tmp_path):
    """A function that writes a manifest, beside a clip named clip.wav."""
    soundfile.write(tmp_path / "clip.wav", sine(440, 0.1, RATE), RATE)

    def write(content: str | bytes) -> Path:
        path = tmp_path / "manifest.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "cannot be read as CSV"),
        (HEADER, "holds no clips"),
        ("file_path,duration\nclip.wav,1\n", "column normalized_transcript is missing"),
        ((HEADER + "clip.wav,hello,1\n").replace(",", "|"), "column file_path is missing"),
        (HEADER + "clip.wav,hello, world,1\n", "line 2"),
        (HEADER.encode() + b"clip.wav,caf\xe9,1\n", r"cannot be read as CSV \(it is not UTF-8"),
        (HEADER + "clip.wav,hello,1\nclip.wav,hello,nan\n", "line 3 has no duration"),
        (HEADER + "clip.wav,hello,0\n", "line 2 has no duration above 0"),
        (HEADER + "clip.wav,hello,inf\n", "line 2 has no duration"),
        (HEADER + 'clip.wav,"I will,1\nclip.wav,go",1\n', "line 2 has a quote that does not end"),
        (
            'duration,file_path,normalized_transcript\n1,clip.wav,"I will\n1,clip.wav,go"\n',
            "line 2 has a quote that does not end",
        ),
        (HEADER + "clip.wav,hello,1,\n", "line 2 has more fields than the header"),
        (HEADER + 'clip.wav,"  ",1\n', "line 2 has an empty normalized_transcript"),
        (HEADER + "x" * 5000 + ".wav,hello,1\n", "line 2 names .* which is not a file"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_naming_file_and_reason(
    manifest, content, reason
):
    path = manifest(content)
    with pytest.raises(DataError, match=rf"(?s)^{path}: .*{reason}"):
        read_manifest(path)


def test_paths_are_taken_from_the_manifests_folder_and_absolute_ones_kept(manifest, monkeypatch):
    folder = manifest("").parent
    manifest(HEADER + f"clip.wav,hello,1\n{folder}/clip.wav,hello,1\n")
    monkeypatch.chdir(folder.parent)
    frame = read_manifest(Path(folder.name) / "manifest.csv")
    assert frame["file_path"].tolist() == [str(folder / "clip.wav")] * 2


def test_transcripts_survive_as_they_stand(manifest):
    texts = ["NA", "null", "nan", "1465", "007", "1e5", "True", 'he said "NA", twice', '"']
    texts += ["  spaces  ", "a|b;c", "caf\u00e9 \u2014 \u4e2d", "two\nlines", "#x", "b\\s"]
    path = manifest("")
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = [("file_path", "normalized_transcript", "duration")]
        csv.writer(file).writerows(rows + [("clip.wav", text, 1) for text in texts])
    assert read_manifest(path)["normalized_transcript"].tolist() == texts


def test_dataset_holds_the_clips_of_the_manifest(tiny_corpus):
    clips = TTSDataset(tiny_corpus.train_manifest, AudioConfig(), Tokenizer())
    assert len(clips) == 9
    frame = read_manifest(tiny_corpus.train_manifest)
    for i in (0, 8):
        clip = clips[i]
        assert clip.path == frame["file_path"][i]
        assert clip.text == frame["normalized_transcript"][i]
        assert clip.tokens.tolist() == Tokenizer().encode(clip.text).tolist()
        assert torch.equal(clip.mel, audio_to_mel(load_wav(clip.path, RATE), AudioConfig()))
        assert len(clip.mel) == int(clips.n_frames[i])


def test_dataset_names_the_clip_or_the_line_that_cannot_be_used(manifest):
    path = manifest(HEADER + "clip.wav,hello,0.1\n")
    clips, wav = TTSDataset(path, AudioConfig(), Tokenizer()), path.with_name("clip.wav")
    for seconds, is_read in ((0.19, True), (0.21, False)):
        soundfile.write(wav, sine(440, seconds, RATE), RATE)
        if is_read:
            assert len(clips[0].mel) == 16
        else:
            with pytest.raises(DataError, match=f"^{wav}: lasts 0.21 s, but {path} says 0.10 s"):
                clips[0]
    soundfile.write(wav, sine(440, 0.03, RATE), RATE)
    with pytest.raises(DataError, match=f"^{wav}: .*less than one window"):
        clips[0]
    for row, reason in (("hello,0.04", "0.04 s are less than one window"), ("\u4e2d,1", "")):
        manifest(HEADER + f"clip.wav,hello,1\nclip.wav,{row}\n")
        with pytest.raises(DataError, match=f"^{path}: line 3: .*{reason}"):
            TTSDataset(path, AudioConfig(), Tokenizer())
