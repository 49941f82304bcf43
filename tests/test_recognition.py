"""Transcripts of a voice, and how their errors are counted."""

import functools
import json
import re
import sys
from types import SimpleNamespace

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
from dataset import load_wav
from scoring.mos import load_mos_predictor
from scoring.recognition import (
    Recognizer,
    count_errors,
    load_recognizer,
    plain_words,
)
from text.tokenizer import ESPEAK_SYMBOLS, Tokenizer


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


@pytest.mark.parametrize("tokenizer", [Tokenizer(), Tokenizer(ESPEAK_SYMBOLS, language="en-us")])
def test_texts_are_compared_as_they_are_spoken(tokenizer):
    spoken = plain_words('"Don\'t!" - Dr. Smith paid $3.50 at 10:30.', tokenizer)
    assert spoken == "don't doctor smith paid three dollars and fifty cents at ten thirty"
    assert plain_words("Twenty-one 'tis CAFÉ", tokenizer) == "twenty one tis cafe"


def test_an_apostrophe_is_one_however_it_is_typed():
    tokenizer = Tokenizer(ESPEAK_SYMBOLS, language="fr")
    assert plain_words("L\u2019homme d\u2019ici.", tokenizer) == "l'homme d'ici"


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

    class Pipe:
        type = "seq2seq_whisper"

        def __call__(self, inputs, batch_size, generate_kwargs):
            sounds.extend(sound["raw"] for sound in inputs)
            return [{"text": next(answers)} for _ in inputs]

    monkeypatch.setattr(evaluate, "load_recognizer", lambda *_: Recognizer(Pipe()))
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
    assert f"{report['asr_speed']:.1f} seconds of sound a second" in table
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


class Echo:
    """A pipeline of transformers that hears how long a sound is, and notes how it was called."""

    def __init__(self, kind, known=()):
        self.type, self.calls = kind, []
        self.model = SimpleNamespace(generation_config=SimpleNamespace(lang_to_id=dict(known)))

    def __call__(self, inputs, **options):
        self.calls.append((len(inputs) if isinstance(inputs, list) else 1, options))
        if isinstance(inputs, list):
            return [{"text": str(len(sound["raw"]) // 16000 - 1)} for sound in inputs]
        return {"text": str(len(inputs["raw"]) // 16000 - 1)}


def greedy(**options):
    return {"generate_kwargs": {"num_beams": 1, **options}}


@pytest.mark.parametrize(
    ("kind", "seconds", "calls"),
    [
        ("seq2seq_whisper", (3, 1, 2), [(3, {"batch_size": 16, **greedy(max_new_tokens=120)})]),
        ("seq2seq_whisper", (28, 1), [(2, {"batch_size": 16, **greedy(max_new_tokens=400)})]),
        ("seq2seq_whisper", (3, 40), [(1, greedy()), (1, greedy() | {"return_timestamps": True})]),
        ("ctc", (3, 40), [(1, {}), (1, {})]),
        ("seq2seq_whisper", (), []),
    ],
)
def test_whisper_hears_in_batches_what_fits_into_its_30_seconds(kind, seconds, calls):
    recognizer = Recognizer(Echo(kind))
    heard = recognizer.transcribe([torch.zeros(16000 * n) for n in seconds])
    assert heard == [str(n) for n in seconds] and recognizer.pipe.calls == calls
    assert recognizer.seconds_heard == sum(seconds) + len(seconds)  # half a second at both ends


def test_a_language_is_for_recognizers_that_know_it(monkeypatch):
    known = {"<|en|>": 1, "<|de|>": 2}
    pipes = {"many": Echo("seq2seq_whisper", known), "tiny.en": Echo("seq2seq_whisper")}
    pipes["wav2vec"] = Echo("ctc")
    pipes["wav2vec"].model = object()
    transformers = SimpleNamespace(
        logging=SimpleNamespace(set_verbosity_error=lambda: None),
        pipeline=lambda _, model, device: pipes[model],
    )
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    load_recognizer("many", "cpu", "de").transcribe([torch.zeros(16000)])
    options = pipes["many"].calls[0][1]["generate_kwargs"]
    assert options.items() >= {"language": "de", "task": "transcribe"}.items()
    with pytest.raises(DataError, match=r"--asr_language xx: --asr many does not .* only en, de$"):
        load_recognizer("many", "cpu", "xx")
    for name in ("tiny.en", "wav2vec"):
        with pytest.raises(DataError, match=f"--asr_language de: --asr {name} knows one language"):
            load_recognizer(name, "cpu", "de")


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


# ---- Predicted opinion scores


class Listener(torch.nn.Module):
    """A DistillMOS whose score is the sound's seconds, and which is as talkative."""

    def __init__(self):
        super().__init__()
        print("weights loaded from:")

    def forward(self, sounds):  # (B, n_samples)
        return torch.full((len(sounds), 1), sounds.shape[1] / 16000)


@pytest.mark.slow
def test_mos_is_predicted_for_three_sounds(voice, tiny_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        sys.modules, "distillmos", SimpleNamespace(ConvTransformerSQAModel=Listener)
    )
    quick = functools.partial(vocoder.mel_to_audio, n_iter=2)
    monkeypatch.setattr(vocoder, "mel_to_audio", quick)
    manifest = tiny_corpus.test_manifest
    plain, _ = run_evaluate(voice, manifest, tmp_path)
    capsys.readouterr()
    report, clips = run_evaluate(voice, manifest, tmp_path, "--mos")
    seconds = pd.read_csv(manifest)["duration"]
    assert report["recording_mos"] == pytest.approx(seconds.mean(), abs=1e-3)
    assert report["vocoded_mos"] == pytest.approx(seconds.mean(), abs=0.02)
    assert report["free_running_mos"] == pytest.approx(30 * 256 / 22050, abs=1e-3)
    assert sorted(clips["recording_mos"]) == pytest.approx(sorted(seconds), abs=1e-3)
    low, high = report["intervals"]["recording_mos"]
    assert min(seconds) <= low + 1e-3 and low < seconds.mean() < high
    table = capsys.readouterr().out
    assert re.search(
        rf"MOS .*, recording +{report['recording_mos']:.2f} \({low:.2f} to {high:.2f}\)", table
    )
    assert "weights loaded" not in table
    for name in set(plain) - {"intervals", "date"}:
        assert report[name] == plain[name], "--mos changes no other number"


def test_mos_without_its_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "distillmos", None)
    with pytest.raises(DataError, match=r"distillmos: .*pip install -r requirements/mos.txt"):
        load_mos_predictor("cpu")


@pytest.mark.slow
def test_noise_lowers_the_predicted_mos(ljspeech_dir):
    pytest.importorskip("distillmos", reason="needs requirements/mos.txt")
    wav = load_wav(next((ljspeech_dir / "wavs").glob("*.wav")), recognition.SAMPLING_RATE)
    noisy = wav + 0.05 * torch.randn(len(wav), generator=torch.Generator().manual_seed(0))
    predict_mos = load_mos_predictor("cpu")
    assert 1 < predict_mos(noisy) < 3 < 4 < predict_mos(wav) < 5
