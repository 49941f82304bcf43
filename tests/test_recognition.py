"""Transcripts of a voice, and how their errors are counted."""

import functools
import json
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import evaluate
import scoring.recognition as recognition
import speech.vocoder as vocoder
from command_line.files import DataError
from conftest import SENTENCES
from scoring.recognition import (
    count_errors,
    load_recognizer,
    plain_words,
)
from text.tokenizer import Tokenizer


def edits_by_hand(reference, transcript):
    """The least number of edits, by the textbook's table."""
    row = list(range(len(transcript) + 1))
    for i, wanted in enumerate(reference, start=1):
        above, row = row, [i]
        for j, found in enumerate(transcript, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (wanted != found)))
    return row[-1]


@pytest.mark.parametrize(
    ("transcript", "insertions", "deletions", "substitutions"),
    [("a dog barks", 0, 0, 0), ("", 0, 3, 0), ("well a dog sings now", 2, 0, 1)],
)
def test_kinds_of_errors_are_counted_apart(transcript, insertions, deletions, substitutions):
    errors = count_errors("a dog barks", transcript)
    words = [errors[f"word_{kind}"] for kind in ("insertions", "deletions", "substitutions")]
    assert words == [insertions, deletions, substitutions]
    characters = sum(errors[f"character_{kind}"] for kind in recognition.KINDS)
    assert characters == edits_by_hand("a dog barks", transcript)


def test_texts_are_compared_as_they_are_spoken():
    tokenizer = Tokenizer()
    spoken = plain_words('"Don\'t!" - Dr. Smith paid $3.50 at 10:30.', tokenizer)
    assert spoken == "don't doctor smith paid three dollars and fifty cents at ten thirty"
    assert plain_words("Twenty-one 'tis CAFÉ", tokenizer) == "twenty one tis cafe"


def run_evaluate(voice, manifest, folder, *flags):
    evaluate.main([
        "--checkpoint", str(voice), "--path_to_manifest", str(manifest), "--device", "cpu",
        "--max_decoder_steps", "30", "--batch_size", "1",
        "--output_json", f"{folder}/x.json", "--output_csv", f"{folder}/x.csv", *flags,
    ])  # fmt: skip
    report = json.loads((folder / "x.json").read_text())
    return report, pd.read_csv(folder / "x.csv", keep_default_na=False)


TRANSCRIPTS = {  # of free running, the vocoded recording, and the recording; longest clip first
    "The quick fox jumps over": ("x y", "The quick fox jumps", "the quick red fox jumps over"),
    "Rain falls on the hill": ("rain", "Rain falls on hill", "rain falls on the hill"),
    "Where is the big key?": ("", "The big key", "Where is the big key?"),
}


@pytest.mark.slow
def test_rates_are_those_of_the_transcripts(voice, tiny_corpus, tmp_path, monkeypatch, capsys):
    """With a recognizer that gives TRANSCRIPTS in turn."""
    paths = [
        str(tiny_corpus.wavs / f"tiny-{SENTENCES.index(text):02d}.wav") for text in TRANSCRIPTS
    ]
    seconds = [soundfile.info(path).duration for path in paths]
    columns = {"file_path": paths, "normalized_transcript": [*TRANSCRIPTS], "duration": seconds}
    pd.DataFrame(columns).to_csv(tmp_path / "m.csv", index=False)
    sounds, answers = [], iter([answer for three in TRANSCRIPTS.values() for answer in three])

    def recognize(samples):
        sounds.append(samples)
        return next(answers)

    monkeypatch.setattr(evaluate, "load_recognizer", lambda name, device: recognize)
    quick = functools.partial(vocoder.mel_to_audio, n_iter=2)
    monkeypatch.setattr(vocoder, "mel_to_audio", quick)
    plain, _ = run_evaluate(voice, tmp_path / "m.csv", tmp_path)
    report, clips = run_evaluate(voice, tmp_path / "m.csv", tmp_path, "--asr", "stub")
    assert (report["asr"], report["asr_words"], report["asr_clips"]) == ("stub", 15, 3)
    assert report["free_running_wer"] == pytest.approx((5 + 4 + 5) / 15)
    assert report["vocoded_wer"] == pytest.approx((2 + 1 + 1) / 15)
    assert report["recording_wer"] == pytest.approx(1 / 15)
    assert report["recording_word_insertions"] == 1 and report["vocoded_word_deletions"] == 4
    references = [plain_words(text, Tokenizer()) for text in TRANSCRIPTS]
    edits = edits_by_hand(references[2], "the big key") + 4 + 5
    assert report["vocoded_cer"] == pytest.approx(edits / sum(map(len, references)))
    low, high = report["intervals"]["recording_wer"]
    assert 0 == low < report["recording_wer"] < high
    assert clips["vocoded_heard"].tolist() == [
        "the quick fox jumps", "rain falls on hill", "the big key",
    ]  # fmt: skip
    table = capsys.readouterr().out
    assert "word / character errors, recording" in table and "6.7% / " in table
    for name in set(plain) - {"intervals", "date"}:
        assert report[name] == plain[name], "--asr changes no other number"
    # Sounds come at 16 kHz, whole, between two halves of a second of silence.
    for i, n_seconds in enumerate(seconds):
        vocoded, recording = sounds[3 * i + 1 : 3 * i + 3]
        assert recording.dtype == np.float32
        assert not recording[:8000].any() and not recording[-8000:].any()
        assert len(recording) == pytest.approx(16000 * (n_seconds + 1), abs=2)
        assert len(vocoded) == pytest.approx(len(recording), abs=400)
        assert np.abs(vocoded).max() > 0.1


@pytest.mark.slow
def test_a_model_of_transformers_transcribes(tmp_path, voice, tiny_corpus):
    """A tiny wav2vec 2.0 from a folder, whose weights say "b" whatever the sound."""
    import transformers

    folder = tmp_path / "recognizer"
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz'|"
    ids = {symbol: i for i, symbol in enumerate(["<pad>", "<unk>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        folder / "vocab.json", pad_token="<pad>", unk_token="<unk>", word_delimiter_token="|",
        bos_token=None, eos_token=None,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(ids), pad_token_id=0, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, conv_dim=(16,) * 7, num_feat_extract_layers=7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config)
    with torch.no_grad():
        model.lm_head.bias[ids["b"]] = 100.0
    model.save_pretrained(folder)
    manifest = tiny_corpus.test_manifest
    report, clips = run_evaluate(voice, manifest, tmp_path, "--asr", str(folder))
    assert (clips["recording_heard"] == "b").all() and 0.5 < report["recording_wer"] <= 1.5


def test_an_unusable_recognizer_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="no recognizer that can be loaded"):
        load_recognizer(str(tmp_path), "cpu")
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(DataError, match=r"jiwer: python -m pip install -r requirements/asr.txt"):
        load_recognizer("any", "cpu")
