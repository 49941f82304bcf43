"""extras/cut_recordings.py: made sounds, and a recognizer that is told what they say."""

import csv
import itertools
import random
import re

import numpy as np
import pytest
import soundfile

import conftest
from conftest import RATE
from corpora.layouts import read_clips
from extras import cut_recordings
from extras.cut_recordings import divide_text
from text.tokenizer import Tokenizer

pytest.importorskip("jiwer", reason="jiwer is not installed (requirements/asr.txt)")
SENTENCES = (  # of 2 to 3 s each, as `speak` says them
    "We saw nine boats on the river this morning.",
    "The big dog, of course, barked at all of them!",
    'My mother said: "Open a window to the garden."',
    "It rained all day - so we stayed at home to read.",
    "Nobody answered, so the house seemed to be empty.",
)
HEARD = (
    "We saw 9 boats on the river this morning.",
    "The big dog of course barked at all of them.",
    "My mother said open the window to the garden.",
    "It rained all day, so we stayed at home to reed.",
    "No body answered. So the house seemed to be empty.",
)


def speak(text, pitch="a"):
    """Speak as `conftest.speak` does, but with one pitch for all letters, as one voice has."""
    return conftest.speak(re.sub("[a-z]", pitch, text.lower()))


class Recognizer:
    """Gives its answers in turn, and is interrupted after `limit` sounds."""

    def __init__(self, answers, limit=1000):
        self.answers, self.limit, self.n_heard = iter(answers), limit, 0

    def transcribe(self, sounds):
        if self.n_heard + len(sounds) > self.limit:
            raise KeyboardInterrupt
        self.n_heard += len(sounds)
        return [next(self.answers) for _ in sounds]


def join(sounds, pause=0.8, noise=1e-4):
    """Join sounds with pauses around them; return all and each one's start and end in seconds."""
    silence = np.zeros(round(pause * RATE))
    parts = [part for sound in sounds for part in (silence, sound)]
    ends = np.cumsum([len(part) for part in parts]) / RATE
    wav = np.concatenate([*parts, silence])
    wav += noise * np.random.default_rng(0).standard_normal(len(wav))
    return wav, list(zip(ends[::2], ends[1::2], strict=True))


def run(folder, wavs, recognizer, *flags):
    """Cut recordings, with a stand-in for the recognizer; return the rows of pieces.csv."""
    for name, wav in wavs.items():
        soundfile.write(folder / name, wav, RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut_recordings, "load_recognizer", lambda *_: recognizer)
        paths = [str(folder / name) for name in wavs]
        flags = ["--asr", "x", "--output_dir", str(folder / "out"), *flags]
        cut_recordings.main(["--recordings", *paths, *flags])
    with open(folder / "out/pieces.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("has_text", [False, True])
def test_a_folder_for_training_comes_out(has_text, tmp_path, capsys):
    wav, times = join([speak(text) for text in SENTENCES])
    texts = SENTENCES + SENTENCES[:2]
    (tmp_path / "text.txt").write_text("\n".join(texts).replace(". ", ".\n\n"), encoding="utf-8")
    flags = ["--text", str(tmp_path / "text.txt")] if has_text else []
    end = round(times[1][1] * RATE) + RATE // 4
    wavs = {"part 1 | one.wav": wav, "two.flac": wav[:end]}  # a bar ends a column
    rows = run(tmp_path, wavs, Recognizer(HEARD + HEARD[:2]), *flags)
    assert "kept: 7 pieces" in capsys.readouterr().out
    clips = read_clips(tmp_path / "out")
    assert [clip.problem for clip in clips] == [""] * 7
    expected = texts if has_text else HEARD + HEARD[:2]
    assert [clip.transcript for clip in clips] == list(expected)
    for clip, row, (start, end) in zip(clips, rows, times + times[:2], strict=True):
        assert start - 0.25 <= float(row["start"]) <= start <= end <= float(row["end"])
        sound, rate = soundfile.read(clip.path)
        assert (rate, soundfile.info(clip.path).subtype) == (RATE, "PCM_16")
        first = round(float(row["start"]) * RATE)
        assert np.abs(sound - wav[first : first + len(sound)]).max() < 2**-14
        assert len(sound) == pytest.approx((float(row["end"]) - float(row["start"])) * RATE, abs=1)


def test_soft_sounds_at_the_edges_of_a_recording_are_kept():
    """The "s" of "Sam" may be too soft to count, so its recording is not cut where it begins."""
    levels = np.full(160, -80.0)  # dB, of 3.2 s
    levels[5:155] = -20.0
    assert cut_recordings.cut(levels).tolist() == [[0.0, 3.2]]


def test_cuts_do_not_drift_where_a_frame_is_no_whole_number_of_samples(tmp_path):
    """At 11,025 Hz, 20 ms are 220.5 samples."""
    rate = 11_025
    tone, pause = np.sin(np.arange(3 * rate)), np.zeros(rate)
    soundfile.write(tmp_path / "talk.wav", np.concatenate([pause, tone] * 40 + [pause]), rate)
    pieces = cut_recordings.write_pieces(tmp_path, [str(tmp_path / "talk.wav")])
    margin = cut_recordings.MARGIN
    assert [x.start for x in pieces] == pytest.approx(
        [4 * i + 1 - margin for i in range(40)], abs=0.04
    )


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(cut_recordings, "BATCH_SIZE", 2)
    wavs = {"talk.wav": join([speak(text) for text in SENTENCES])[0]}
    with pytest.raises(SystemExit):
        run(tmp_path, wavs, Recognizer(HEARD, limit=3))
    assert not (tmp_path / "out/metadata.csv").exists()
    recognizer = Recognizer(HEARD[2:])
    rows = run(tmp_path, wavs, recognizer)
    assert recognizer.n_heard == 3 and [row["text"] for row in rows] == list(HEARD)
    with pytest.raises(SystemExit, match="has metadata"):
        run(tmp_path, wavs, recognizer)


WAV = speak(SENTENCES[0])
TIME = np.arange(len(WAV)) / RATE
NOISE = np.random.default_rng(1).standard_normal(len(WAV))
CHORD = sum(np.sin(2 * np.pi * pitch * TIME) for pitch in (220, 277, 330, 440))
HIGHER = speak(SENTENCES[0], "h")


@pytest.mark.parametrize(
    ("sound", "heard", "why"),
    [
        (WAV, HEARD[0], ""),
        (np.concatenate([WAV] * 8), HEARD[0], "longer than 12 s"),
        (speak("Come in."), "Come in.", "shorter than 2 s"),
        (conftest.speak(SENTENCES[0]) + 0.05 * NOISE, HEARD[0], "noise"),
        (WAV + 0.05 * CHORD, HEARD[0], "music"),
        (0.1 * CHORD, HEARD[0], "music"),
        (HIGHER, HEARD[0], "another voice"),
        (WAV, "...", "no words"),
        (WAV, "Yes.", "the text is too short"),
        (WAV, " ".join(HEARD), "the text is too long"),
    ],
)
def test_pieces_are_left_out_for_a_reason(sound, heard, why, tmp_path):
    """The sound stands between long pauses, after 10 good sentences."""
    good, _ = join([WAV] * 10)
    wav = np.concatenate([good, np.zeros(RATE), sound, np.zeros(2 * RATE)])
    wav += 1e-4 * np.random.default_rng(0).standard_normal(len(wav))
    rows = run(tmp_path, {"talk.wav": wav}, Recognizer([HEARD[0]] * 10 + [heard]))
    assert [row["why"] for row in rows] == [""] * 10 + [why]
    assert len(read_clips(tmp_path / "out")) == 10 + (not why)


def test_words_go_to_the_piece_that_says_them():
    """With a recognizer that mishears a letter of each word, in pieces of any size."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(4, 9))) for _ in range(300)]
    text = " ".join(f"«{word}»," if i % 5 == 0 else word for i, word in enumerate(words))
    edges = [0, *sorted(rng.sample(range(1, 300), 40)), 300]
    heard = [
        " ".join(word[:2] + "x" + word[3:] for word in words[a:b])
        for a, b in itertools.pairwise(edges)
    ]
    divided = divide_text(text, heard, Tokenizer())
    assert " ".join(part for part, _ in divided) == text
    assert [len(part.split()) for part, _ in divided] == [len(part.split()) for part in heard]
    assert not any(is_doubtful for _, is_doubtful in divided)


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("I paid $3.50 - no, 4 - to Dr. Lee.", ["i paid three dollars and fifty cents no",
         "four to doctor lee"], [("I paid $3.50 - no,", False), ("4 - to Dr. Lee.", False)]),
        ("Chapter one. It rained. We left.", ["it rained", "we left"],
         [("It rained.", True), ("We left.", False)]),
        ("It rained. A lot of it. We left.", ["it rained", "we left"],
         [("It rained.", True), ("We left.", True)]),
        ("It rained.", ["read by me", "it rained"], [("", False), ("It rained.", False)]),
        ("I am here. A cat sat.", ["", "\u266a", "i am here", "a cat sat", ""],
         [("", False), ("", False), ("I am here.", False), ("A cat sat.", False), ("", False)]),
    ],
)  # fmt: skip
def test_a_transcript_is_divided(text, heard, expected):
    assert divide_text(text, heard, Tokenizer()) == expected


def test_a_transcript_of_something_else_is_noticed(tmp_path):
    texts = [*SENTENCES[:3], "This is not at all what you hear.", SENTENCES[4]]
    (tmp_path / "text.txt").write_text(" ".join(texts))
    wavs = {"talk.wav": join([speak(text) for text in SENTENCES])[0]}
    rows = run(tmp_path, wavs, Recognizer(HEARD), "--text", str(tmp_path / "text.txt"))
    assert [row["why"] for row in rows][3] == "the transcript differs"
    kept = {row["heard"]: row["text"] for row in rows if not row["why"]}
    assert kept.items() <= dict(zip(HEARD, SENTENCES, strict=True)).items() and len(kept) >= 3


def test_half_of_a_recording_is_refused(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "talk.wav", WAV, RATE)
    content = (tmp_path / "talk.wav").read_bytes()
    (tmp_path / "talk.wav").write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(cut_recordings, "load_recognizer", lambda *_: Recognizer([]))
    flags = ["--recordings", tmp_path / "talk.wav", "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"talk\.wav: is truncated, \d+ bytes of samples instead"):
        cut_recordings.main([*map(str, flags), "--asr", "x"])


@pytest.mark.parametrize(
    ("files", "flags", "message"),
    [
        ({}, ["--recordings", "no.wav"], "no.wav: cannot be read as audio (no such file)"),
        ({"a.mp3": "x"}, ["--recordings", "a.mp3"], "a.mp3: cannot be read as audio"),
        ({}, ["--recordings", "a/x.wav", "b/x.mp3"], "two are named 'x'"),
        (
            {"t.srt": "1\n0:00:01,000 --> 0:00:02,000\nHi"},
            ["--text", "t.srt"],
            "t.srt: has time stamps",
        ),
        ({"t.txt": " \n"}, ["--text", "t.txt"], "t.txt: has no words"),
        ({}, ["--text", "no.txt"], "no.txt"),
        ({"out/wavs/mine.wav": ""}, [], "has wavs already"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(files, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    soundfile.write("talk.wav", WAV, RATE)
    monkeypatch.setattr(cut_recordings, "load_recognizer", lambda *_: Recognizer([]))
    flags = flags if "--recordings" in flags else ["--recordings", "talk.wav", *flags]
    with pytest.raises(SystemExit) as stop:
        cut_recordings.main([*flags, "--asr", "x", "--output_dir", "out"])
    assert message in str(stop.value) and "\n" not in str(stop.value)
    assert not [*(tmp_path / "out").glob("*.*")]
