"""Texts in other languages than English: --cleaner, --extra_symbols, from training to speech."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import train_taco
from command_line.files import DataError
from speech.voice import load_checkpoint, read_config
from synthesize import main as speak
from test_train_taco import run_flags
from text.tokenizer import DEFAULT_SYMBOLS, Tokenizer, clean_text
from training.config import parse_args

GERMAN = [
    "Das Mädchen trägt schöne Schuhe.",
    "Grüße aus der Straße, sagt z. B. Dr. Weiß.",
    "Zwölf Boxkämpfer jagen Viktor.",
    "Wir hören gern zu.",
]
QUICK = ("--batch_size", 4, "--no-fast_decoder")
KNOWN = frozenset(DEFAULT_SYMBOLS[1:]) | set("äöüß")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Das MÄDCHEN", "das mädchen"),
        ("Ma\u0308dchen  und\tGru\u0308ße", "mädchen und grüße"),
        ("„Ja“ \u2013 sagt\u2019s … »so«", '"ja" - sagt\'s ... "so"'),
        ("Café à la Zoë, Łódź", "cafe a la zoe, lodz"),
        ("z. B. Dr. No, St. Pauli, die NASA", "z. b. dr. no, st. pauli, die nasa"),
        ("5 % von 1.000", "5 % von 1.000"),
        ("[so] und/oder", "(so) und oder"),
        ("STRA\u1e9eE", "straße"),
        ("¿Qué?", "¿que?"),
    ],
)
def test_basic_leaves_english_out(text, cleaned):
    assert clean_text(text, KNOWN, "basic") == cleaned


def test_what_basic_drops_is_named():
    tokenizer = Tokenizer(cleaner="basic")
    assert tokenizer.unknown_characters("5 % ¿Qué? 中") == "5%¿中"
    assert tokenizer.decode(tokenizer.encode("5 % ¿Qué?")) == "  que?"


def test_a_table_with_figures_keeps_them_in_any_language():
    tokenizer = Tokenizer(cleaner="basic").with_characters("0123456789")
    assert tokenizer.decode(tokenizer.encode("Am 3. Mai 1999")) == "am 3. mai 1999"


@pytest.mark.parametrize("cleaner", ["english", "basic"])
def test_letters_that_become_others_are_named(cleaner):
    tokenizer = Tokenizer(cleaner=cleaner)
    assert tokenizer.folded_letters("Ärger, Ma\u0308dchen, Straße") == {"ä": "a", "ß": "ss"}
    assert tokenizer.folded_letters("q\u0303 中 Ж é — “5”") == {"\u0303": "", "é": "e"}
    line = tokenizer.describe_folded(["Ärger, Mädchen", "Plain.", "schöne Mädchen"])
    assert line.endswith(" in 2 of 3 clips: 'ä' as 'a' in 2, 'ö' as 'o' in 1")
    assert tokenizer.describe_folded(["Plain “text”, 5 ½ — 20 °C"]) == ""
    assert tokenizer.with_characters("äöüß").describe_folded(GERMAN) == ""


def test_extra_symbols_come_at_the_end_once_and_in_the_case_of_the_table():
    tokenizer = Tokenizer(cleaner="basic").with_characters("Ä ö\u00a0o\u0308 äß a")
    assert tokenizer.symbols == (*DEFAULT_SYMBOLS, "ä", "ö", "ß")
    assert tokenizer.with_characters("ßÄ") is tokenizer
    assert tokenizer.cleaner == tokenizer.with_phonemes().cleaner == "basic"
    capitals = Tokenizer([*DEFAULT_SYMBOLS, *"ABC"]).with_characters("Ä")
    assert capitals.symbols[-1] == "Ä"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--extra_symbols", "  "], "--extra_symbols must be visible characters"),
        (["--extra_symbols", "ä\a"], "--extra_symbols must be visible characters"),
        (["--cleaner", "klingon"], "--cleaner"),
    ],
)
def test_a_wrong_flag_is_one_sentence(tiny_corpus, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit):
        parse_args(run_flags(tiny_corpus, tmp_path, *flags), "")
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1


@pytest.fixture(scope="module")
def manifest(tiny_corpus, tmp_path_factory):
    """German texts with any sound."""
    frame = pd.read_csv(tiny_corpus.train_manifest)[: len(GERMAN)]
    frame["normalized_transcript"] = GERMAN
    path = tmp_path_factory.mktemp("german") / "manifest.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def prepare(tiny_corpus, manifest, tmp_path_factory):
    """A run before its first step, in the same folder each time."""
    folder = tmp_path_factory.mktemp("run")
    manifests = ["--path_to_train_manifest", manifest, "--path_to_val_manifest", manifest]

    def prepare(*flags):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCELERATE_USE_CPU", "true")
            words = run_flags(tiny_corpus, folder, *manifests, *QUICK, *flags)
            return train_taco.prepare(parse_args(words, ""), Accelerator())

    return prepare


@pytest.fixture(scope="module")
def trained(prepare):
    """The checkpoint of one step on the German texts."""
    run, state = prepare("--cleaner", "basic", "--extra_symbols", "ÄÖÜß")
    shown = [run.tokenizer.decode(clip.tokens) for clip in run.train_set]
    assert shown == [text.lower() for text in GERMAN]
    row = run.tokenizer.symbols.index("ä")
    name = "encoder.embedding.weight"
    before = run.model.state_dict()[name][row].clone()
    state, _ = train_taco.train_epoch(run, state, 0.0)
    assert state.step == 1
    assert not torch.equal(before, run.model.state_dict()[name][row]), "the letter is learned"
    state = state._replace(epoch=1, epoch_step=0, epoch_clips=0)
    train_taco.save(run, state, "checkpoint_1")
    return run.folder / "checkpoint_1"


def test_a_german_voice_says_what_it_was_trained_on(trained, tmp_path, capsys):
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    assert config["cleaner"] == "basic" and config["symbols"] == [*DEFAULT_SYMBOLS, *"äöüß"]
    speak(
        ["--checkpoint", str(trained), "--output_dir", str(tmp_path), "--max_decoder_steps", "9",
         "--device", "cpu", "--text", "Schöne Mädchen, sagt Dr. Weiß."]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "as spoken: schöne mädchen, sagt dr. weiß.\n" in said and "left out" not in said
    assert len(np.load(tmp_path / "001.npy")) == 80


def test_a_run_that_goes_on_keeps_its_cleaner_and_symbols(trained, prepare):
    run, state = prepare("--resume_from_checkpoint", "checkpoint_1")
    assert (state.step, run.config.cleaner, run.config.extra_symbols) == (1, "basic", "ÄÖÜß")
    assert run.tokenizer.symbols == (*DEFAULT_SYMBOLS, *"äöüß")
    assert run.train_set.tokenizer.cleaner == run.val_set.tokenizer.cleaner == "basic"
    resume = ["--resume_from_checkpoint", "checkpoint_1"]
    run, _ = prepare(*resume, "--extra_symbols", "ä", "--cleaner", "basic")
    assert run.config.extra_symbols == "ä"
    with pytest.raises(DataError, match="--cleaner was basic and is now english"):
        prepare(*resume, "--cleaner", "english")
    with pytest.raises(DataError, match=r"--extra_symbols: the symbols of .* lack é, .*--warm_s"):
        prepare(*resume, "--extra_symbols", "éä")


def test_a_warm_start_takes_the_cleaner_unless_one_is_given(trained, prepare, capsys):
    new = ["--warm_start", trained, "--experiment_name", "warm"]
    run, _ = prepare(*new)
    assert run.tokenizer.cleaner == run.config.cleaner == "basic"
    assert "is now" not in capsys.readouterr().out
    run, _ = prepare(*new, "--cleaner", "english", "--extra_symbols", "é")
    assert run.tokenizer.cleaner == run.config.cleaner == "english"
    assert run.tokenizer.symbols == (*DEFAULT_SYMBOLS, *"äöüßé")
    said = capsys.readouterr().out
    assert "--cleaner was basic and is now english\n" in said
    assert "new symbols, not yet learned: 'é'\n" in said
    name = "encoder.embedding.weight"
    saved = load_file(trained / "model.safetensors")[name]
    assert torch.equal(run.model.state_dict()[name][: len(saved)], saved)


def test_a_start_in_english_says_what_becomes_of_german(prepare, capsys):
    run, _ = prepare("--experiment_name", "plain")
    train_taco.announce(run)
    said = capsys.readouterr().err
    begin = "letters that have no symbol are replaced in 8 of 8 clips: 'ö' as 'o' in 6, "
    assert said.startswith(begin) and said.count("\n") == 1
    assert "'ä' as 'a' in 4" in said and said.endswith("; --extra_symbols adds symbols for them\n")


def test_a_checkpoint_of_an_older_version_is_english(trained, tmp_path):
    path = tmp_path / "config.json"
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    del config["cleaner"]
    path.write_text(json.dumps(config), encoding="utf-8")
    assert read_config(tmp_path)[2].cleaner == "english"
    path.write_text(json.dumps({**config, "cleaner": "klingon"}), encoding="utf-8")
    with pytest.raises(DataError, match="cleaner must be english or basic, found 'klingon'"):
        read_config(tmp_path)
    assert load_checkpoint(trained).tokenizer.cleaner == "basic"
