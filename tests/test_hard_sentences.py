"""What counts as a repeat, a skip and a wrong sentence."""

import csv

import pytest
import torch

import speech.vocoder as vocoder
from benchmarks import hard_sentences
from benchmarks.hard_sentences import (
    Sentence,
    find_attention_errors,
    find_heard_errors,
    read_sentences,
)
from scoring.recognition import SAMPLING_RATE
from speech.speaking import Synthesis
from text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("heard", "repeats", "skips", "wrong"),
    [
        ("the big dog barks", False, False, False),
        ("the bigdog barks", False, False, False),
        ("the big the big dog barks", True, False, True),
        ("the big dog barks loudly", False, False, True),
        ("the dog barks", False, True, True),
        ("the big dog sings", False, False, True),
        ("dog barks dog barks", False, False, True),  # two words for two others
        ("", False, True, True),
    ],
)
def test_errors_that_are_heard(heard, repeats, skips, wrong):
    assert find_heard_errors("the big dog barks", heard) == (repeats, skips, wrong)


TWICE = [place for place in range(12) for _ in range(2)]  # two frames for each character


@pytest.mark.parametrize(
    ("places", "repeats", "skips"),
    [
        (TWICE, False, False),
        ([*TWICE[:8], *TWICE[14:]], False, True),  # leaps over "big"
        ([*TWICE[:8], *TWICE[12:]], False, False),  # leaves out two characters of it
        ([*TWICE, *TWICE[8:]], True, False),
        ([*TWICE[:14], *TWICE[10:]], False, False),  # back by two characters
        ([*TWICE[:14], 0, *TWICE[14:]], False, False),  # for a moment
    ],
)
def test_errors_of_attention(places, repeats, skips):
    alignment = torch.nn.functional.one_hot(torch.tensor(places), 12).float()
    for reached_limit in (False, True):
        spoken = Synthesis(torch.zeros(0), alignment, torch.zeros(0), reached_limit, {})
        wrong = repeats or skips or reached_limit
        assert find_attention_errors(spoken, "the big dogs") == (repeats, skips, wrong)


def test_every_sentence_can_be_spoken_whole():
    sentences, tokenizer = read_sentences(), Tokenizer()
    texts = [sentence.text for sentence in sentences]
    assert len({*texts}) == 50 and len({sentence.kind for sentence in sentences}) == 6
    assert not any(map(tokenizer.unknown_characters, texts))
    assert 250 < max(map(len, map(tokenizer.encode, texts))) < 300  # 2000 frames are enough


class Ear:
    """A recognizer that hears each text as it is, but the first one twice, and the last not."""

    speed = 1.0

    def transcribe(self, wavs):
        texts = [sentence.text for sentence in hard_sentences.read_sentences()]
        assert len(wavs) == len(texts)
        self.seconds = [len(wav) / SAMPLING_RATE for wav in wavs]
        return [f"{texts[0]} {texts[0]}", *texts[1:-1], ""]


@pytest.mark.slow
def test_a_voice_is_counted_without_retries_and_with_them(voice, tmp_path, monkeypatch):
    """The voice never stops, so every sentence is wrong by its attention."""
    monkeypatch.setattr(hard_sentences, "load_recognizer", lambda *_: Ear())
    monkeypatch.setattr(vocoder, "mel_to_audio", lambda *_, **__: torch.zeros(500))
    hard_sentences.main(
        ["--checkpoint", str(voice), "--asr", "stub", "--n_retries", "1", "--device", "cpu",
         "--max_decoder_steps", "8", "--output_dir", str(tmp_path)]
    )  # fmt: skip
    counts = [*csv.DictReader((tmp_path / "hard_sentences_counts.csv").open())]
    assert [row["voice"] for row in counts] == ["retries: 0"] * 7 + ["retries: 1"] * 7
    for whole in (counts[6], counts[13]):
        heard = [whole[f"recognizer {name}"] for name in ("repeats", "skips", "wrong")]
        assert (whole["kind"], whole["sentences"], heard) == ("all", "50", ["1", "1", "2"])
        assert whole["attention wrong"] == "50"
    wrong = {row["kind"]: row["word errors"] for row in counts[:6]}
    assert float(wrong["single letters and words"]) == 1 / 10 and float(wrong["numbers"]) == 0
    rows = [*csv.DictReader((tmp_path / "hard_sentences.csv").open())]
    assert len(rows) == 100 and rows[0]["heard"] == "b b"


@pytest.mark.slow
def test_long_sentences_are_spoken_in_pieces(voice, tmp_path, monkeypatch):
    """Four sentences make one text and two clauses the other, and their pauses stand between."""
    ear = Ear()
    sentences = [Sentence("long", "It rained. " * 4), Sentence("long", "It rained there, " * 2)]
    monkeypatch.setattr(hard_sentences, "read_sentences", lambda: sentences)
    monkeypatch.setattr(hard_sentences, "load_recognizer", lambda *_: ear)
    monkeypatch.setattr(vocoder, "mel_to_audio", lambda *_, **__: torch.zeros(22050))
    hard_sentences.main(
        ["--checkpoint", str(voice), "--asr", "stub", "--n_retries", "1", "--device", "cpu",
         "--max_decoder_steps", "8", "--output_dir", str(tmp_path), "--max_characters", "20"]
    )  # fmt: skip
    assert ear.seconds == pytest.approx([4 + 3 * 0.3, 2 + 0.12], abs=0.001)
