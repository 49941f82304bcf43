"""What recognizers hear, how its errors are counted, and word times by forced alignment."""

import functools
import json
import sys
from pathlib import Path

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
from evaluate import are_of
from extras import align_words
from scoring.recognition import count_errors, load_recognizer, plain_words
from text.tokenizer import Tokenizer


def edits_by_hand(reference, heard):
    """The least number of edits, by the textbook's table."""
    row = list(range(len(heard) + 1))
    for i, wanted in enumerate(reference, start=1):
        above, row = row, [i]
        for j, found in enumerate(heard, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (wanted != found)))
    return row[-1]


@pytest.mark.parametrize(
    ("heard", "insertions", "deletions", "substitutions"),
    [
        ("a dog barks", 0, 0, 0),
        ("a big dog barks", 1, 0, 0),
        ("dog barks", 0, 1, 0),
        ("a cat barks", 0, 0, 1),
        ("the big cat", 0, 0, 3),
        ("", 0, 3, 0),
        ("well a dog sings now", 2, 0, 1),
    ],
)
def test_kinds_of_errors_are_counted_apart(heard, insertions, deletions, substitutions):
    errors = count_errors("a dog barks", heard)
    words = [errors[f"word_{kind}"] for kind in ("insertions", "deletions", "substitutions")]
    assert words == [insertions, deletions, substitutions]
    characters = sum(errors[f"character_{kind}"] for kind in recognition.KINDS)
    assert characters == edits_by_hand("a dog barks", heard)


def test_texts_are_compared_as_they_are_spoken():
    tokenizer = Tokenizer()
    said = plain_words('"Don\'t!" - Dr. Smith paid $3.50 at 10:30.', tokenizer)
    assert said == "don't doctor smith paid three dollars and fifty cents at ten thirty"
    assert plain_words("Twenty-one 'tis CAFÉ", tokenizer) == "twenty one tis cafe"


def judged(voice, corpus, tmp_path, name, *flags):
    files = [str(tmp_path / f"{name}.{kind}") for kind in ("json", "csv")]
    evaluate.main([
        "--checkpoint", str(voice), "--path_to_manifest", str(corpus), "--max_decoder_steps", "30",
        "--output_json", files[0], "--output_csv", files[1], *flags,
    ])  # fmt: skip
    return json.loads(Path(files[0]).read_text()), pd.read_csv(files[1], keep_default_na=False)


def test_rates_are_those_of_what_is_heard(voice, tiny_corpus, tmp_path, monkeypatch, capsys):
    """With a recognizer that hears these words in turn: a clip's three sounds, clip after clip."""
    answers = [
        "", "The big key", "Where is the big key?",
        "rain", "Rain falls on hill", "rain falls on the hill",
        "x y", "The quick fox jumps", "the quick red fox jumps over",
    ]  # fmt: skip
    texts = ("Where is the big key?", "Rain falls on the hill", "The quick fox jumps over")
    texts = dict(zip(texts, np.array(answers).reshape(3, 3).tolist(), strict=True))
    order, sounds = [], []
    manifest = pd.read_csv(tiny_corpus.test_manifest)
    rows = [SENTENCES.index(text) for text in texts]
    paths = [str(tiny_corpus.wavs / f"tiny-{i:02d}.wav") for i in rows]
    manifest = pd.DataFrame({"file_path": paths, "normalized_transcript": list(texts)})
    manifest["duration"] = [soundfile.info(path).duration for path in paths]
    manifest.to_csv(tmp_path / "test.csv", index=False)

    longest_first = sorted(texts, key=len, reverse=True)  # as evaluate.py has them

    def recognize(samples):
        sounds.append(samples)
        return order.pop(0)

    def load(name, device):
        order.extend(answer for text in longest_first for answer in texts[text])
        return recognize

    monkeypatch.setattr(evaluate, "load_recognizer", load)
    quick = functools.partial(vocoder.mel_to_audio, n_iter=2)
    monkeypatch.setattr(vocoder, "mel_to_audio", quick)
    corpus = tmp_path / "test.csv"
    plain, _ = judged(voice, corpus, tmp_path, "plain", "--batch_size", "1")
    report, clips = judged(voice, corpus, tmp_path, "asr", "--batch_size", "1", "--asr", "stub")
    assert report["asr"] == "stub" and report["asr_words"] == 15 and report["asr_clips"] == 3
    assert report["free_running_wer"] == pytest.approx((5 + 4 + 5) / 15)
    assert report["vocoded_wer"] == pytest.approx((2 + 1 + 1) / 15)
    assert report["recording_wer"] == pytest.approx(1 / 15)
    assert report["recording_word_insertions"] == 1 and report["vocoded_word_deletions"] == 4
    characters = [plain_words(text, Tokenizer()) for text in texts]
    edits = edits_by_hand(characters[0], "the big key") + 4 + 5
    assert report["vocoded_cer"] == pytest.approx(edits / sum(map(len, characters)))
    low, high = report["intervals"]["recording_wer"]
    assert 0 == low < report["recording_wer"] < high
    assert set(clips["vocoded_heard"]) == {
        "the big key", "rain falls on hill", "the quick fox jumps",
    }  # fmt: skip
    # Hearing changes nothing else.
    for name in set(plain) - {"intervals", "date"}:
        assert report[name] == plain[name]
    # Recordings come at 16 kHz, whole, between two halves of a second of silence.
    for i, text in enumerate(longest_first):
        sound = sounds[3 * i + 2]
        assert sound.dtype == np.float32 and not sound[:8000].any() and not sound[-8000:].any()
        seconds = soundfile.info(paths[list(texts).index(text)]).duration
        assert len(sound) == pytest.approx(16000 * (seconds + 1), abs=2)
        vocoded = sounds[3 * i + 1]
        assert len(vocoded) == pytest.approx(len(sound), abs=400)
        assert np.abs(vocoded).max() > 0.1
    table = capsys.readouterr().out
    assert "word / character errors, recording" in table and "6.7% / " in table


def test_a_model_of_transformers_hears(tmp_path, voice, tiny_corpus, capsys):
    """A tiny wav2vec 2.0 of random weights, from a folder: what it hears has no meaning."""
    import transformers

    torch.manual_seed(0)
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
    recognizer = load_recognizer(str(folder), "cpu")
    assert recognizer(np.zeros(16000, np.float32)).strip().lower() == "b"
    report, clips = judged(voice, tiny_corpus.test_manifest, tmp_path, "asr", "--asr", str(folder))
    assert (clips["recording_heard"] == "b").all() and 0.5 < report["recording_wer"] <= 1.5
    capsys.readouterr()


def test_an_unusable_recognizer_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="no recognizer that can be loaded"):
        load_recognizer(str(tmp_path), "cpu")
    for package in ("jiwer", "pocketsphinx"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(DataError, match=f"{package}: python -m pip install -r"):
                load_recognizer("pocketsphinx", "cpu")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Two sentences by espeak-ng, with the true times of their words."""
    pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed")
    import corpora.make_demo_corpus as make_demo_corpus

    folder = tmp_path_factory.mktemp("spoken")
    (folder / "texts.txt").write_text(
        "The children walked slowly to the river.\nMy mother opened the window this morning.\n"
    )
    flags = ["--path_to_save", str(folder / "corpus"), "--sentences", str(folder / "texts.txt")]
    assert make_demo_corpus.main(flags) == 0
    return folder / "corpus"


def test_pocketsphinx_hears_the_same_whatever_came_before(spoken):
    wavs = [recognition.load_wav(path, 16000).numpy() for path in sorted(spoken.glob("wavs/*"))]
    first, second = (np.pad(wav, 8000) for wav in wavs)
    recognizer = load_recognizer("pocketsphinx", "cpu")
    heard = recognizer(first)
    recognizer(second[:24000])
    assert recognizer(first) == heard and len(heard.split()) > 2
    assert {*heard.split()} & {"the", "children", "walked", "slowly", "river"}


def test_words_are_aligned_where_they_are_spoken(spoken, tmp_path, capsys):
    path = tmp_path / "aligned.json"
    align_words.main(["--path_to_ljspech", str(spoken), "--output_json", str(path)])
    assert "14 words of 2 clips; 0 left out" in capsys.readouterr().out
    aligned = json.loads(path.read_text())
    truth = json.loads((spoken / "word_times.json").read_text())
    errors = []
    for clip_id, words in truth.items():
        found = aligned[clip_id]
        assert [word["index"] for word in found] == [word["index"] for word in words]
        assert [word["word"] for word in found] == [word["word"].lower() for word in words]
        errors += [a["start"] - b["start"] for a, b in zip(found, words, strict=True)]
    assert np.median(np.abs(errors)) < 0.03 and np.abs(errors).max() < 0.15


def test_unknown_words_are_looked_up_or_their_clips_left_out(spoken, tmp_path, capsys, monkeypatch):
    wavs = sorted(spoken.glob("wavs/*"))
    rows = [
        (str(wavs[0]), "The childrenz walked slowly to the river."),
        (str(wavs[1]), "My mother opened the xqzt this morning."),
    ]
    manifest = pd.DataFrame(rows, columns=["file_path", "normalized_transcript"])
    manifest.assign(duration=3.0).to_csv(tmp_path / "m.csv", index=False)
    monkeypatch.setattr(align_words, "load_dictionary", lambda: {"childrenz": "CH IH1 L D R AH0 N"})
    path = tmp_path / "aligned.json"
    flags = ["--path_to_manifest", str(tmp_path / "m.csv"), "--output_json", str(path)]
    align_words.main(flags)
    said = capsys.readouterr()
    assert f"left out: {wavs[1].stem}: no pronunciation of xqzt" in said.err
    assert "7 words of 1 clips; 1 left out" in said.out
    assert [word["word"] for word in json.loads(path.read_text())[wavs[0].stem]][1] == "childrenz"
    monkeypatch.setattr(align_words, "load_dictionary", dict)
    with pytest.raises(SystemExit, match="none of the recordings could be aligned"):
        align_words.main(flags)


def test_word_times_count_the_text_as_it_is_spoken():
    said = "doctor smith is here."
    assert align_words.find_words("Dr. Smith is here.")[1] == ("smith", 7)
    spoken = [{"word": "doctor", "index": 0}, {"word": "smith", "index": 7}]
    as_written = [{"word": "Dr", "index": 0}, {"word": "Smith", "index": 4}]
    assert are_of(spoken, "Dr. Smith is here.", said)
    assert not are_of(as_written, "Dr. Smith is here.", said)
    assert are_of([{"index": 3}], "He is.", "he is.")
