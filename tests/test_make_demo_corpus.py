"""make_demo_corpus.py: the wavs, the true word times, and what it refuses."""

import hashlib
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import REPO
from corpora import make_demo_corpus as demo
from corpora import pico
from text import espeak
from world import run

COMMAND = [sys.executable, "-m", "corpora.make_demo_corpus"]
N_CLIPS = 260  # more than one block, so that two processes speak
PROSE = [
    "The printers, it is said, kept their presses in the cellars; and as soon as the river rose,"
    " they would have to carry every sheet of paper up to the attic.",
    "The naïve café owner, Zoë Ångström, served crème brûlée — twice — to the señor from São"
    " Paulo; and “never again” was all that he could say.",
    "A façade 😀, a résumé, and a piñata were in the box, weren\u2019t they?",
    "It has to be one of them, and it would have been there as well as it is here.",
    "We see a sailor so far away. You saw my sofa, and he saw a silver sea so sad.",
]
PACKAGES = {"pico": "py_nanotts", "espeak": "espeakng_loader"}


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_corpus(folder: Path) -> dict[str, tuple[str, np.ndarray, list[dict]]]:
    """{id: (text, samples, word times)}."""
    times = json.loads((folder / "word_times.json").read_text(encoding="utf-8"))
    corpus = {}
    for line in (folder / "metadata.csv").read_text(encoding="utf-8").splitlines():
        clip_id, raw, normalized = line.split("|")
        assert raw == normalized
        wav, rate = soundfile.read(folder / "wavs" / f"{clip_id}.wav", dtype="int16")
        assert rate == 22050
        corpus[clip_id] = raw, wav, times[clip_id]
    assert list(times) == list(corpus)
    return corpus


def sound_starts(wav: np.ndarray, quiet_ms: int = 60) -> np.ndarray:
    """Seconds at which sound follows quiet_ms of silence: frames of 1 ms, RMS over 100."""
    frames = wav[: len(wav) // 22 * 22].reshape(-1, 22).astype(float)
    loud = np.sqrt((frames**2).mean(1)) > 100
    padded = np.concatenate([np.zeros(quiet_ms, bool), loud])
    heard = np.convolve(padded, np.ones(quiet_ms), "valid")[:-1] > 0
    return np.flatnonzero(loud & ~heard) * 22 / 22050


@pytest.fixture(scope="module", params=PACKAGES)
def engine(request) -> str:
    pytest.importorskip(PACKAGES[request.param], reason=f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, engine) -> Path:
    """A small corpus spoken by a process of its own."""
    path = tmp_path_factory.mktemp("demo") / "corpus"
    flags = ["--path_to_save", str(path), "--n_sentences", str(N_CLIPS), "--engine", engine]
    subprocess.run([*COMMAND, *flags], cwd=REPO, check=True, timeout=300)
    return path


@pytest.fixture(scope="module")
def prose(tmp_path_factory, engine) -> Path:
    path = tmp_path_factory.mktemp("prose")
    (path / "prose.txt").write_text("\n\n".join(PROSE) + "\n", encoding="utf-8")
    text = str(path / "prose.txt")
    demo.main(["--path_to_save", str(path / "corpus"), "--sentences", text, "--engine", engine])
    return path / "corpus"


def test_every_run_gives_the_same_bytes(folder, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "N_PROCESSES", 1)
    path = tmp_path / "again"
    demo.main(["--path_to_save", str(path), "--n_sentences", str(N_CLIPS), "--engine", engine])
    assert file_hashes(path) == file_hashes(folder)
    assert len(file_hashes(folder)) == N_CLIPS + 3


def test_wavs_are_ljspeech_shaped_and_trimmed(folder, engine):
    corpus = read_corpus(folder)
    assert next(iter(corpus)) == "DEMO-00001" and len(corpus) == N_CLIPS
    info = soundfile.info(folder / "wavs" / "DEMO-00001.wav")
    assert (info.samplerate, info.channels, info.subtype) == (22050, 1, "PCM_16")
    for _, wav, _ in corpus.values():
        assert 0.4 < len(wav) / 22050 < 4.5
        assert np.abs(wav.astype(int)).max() < 32767  # nothing clipped
        sound = np.flatnonzero(np.abs(wav.astype(int)) > demo.ENGINES[engine].SILENCE_LEVEL)
        assert sound[0] / 22050 <= 0.051
        assert 0.09 < (len(wav) - sound[-1]) / 22050 < 0.11
    seconds = sum(len(wav) for _, wav, _ in corpus.values()) / 22050
    record = json.loads((folder / "corpus.json").read_text())
    assert (record["n_clips"], record["seconds"]) == (N_CLIPS, pytest.approx(seconds, abs=0.01))


def hiss_start(wav: np.ndarray, near: float) -> float:
    """Seconds, within 60 ms of `near`, from which most of the energy is above 4 kHz."""
    for start in range(round((near - 0.06) * 22050), round((near + 0.06) * 22050), 11):
        energy = np.abs(np.fft.rfft(wav[start : start + 220] * np.hanning(220))) ** 2
        if energy[40:].sum() > energy[:40].sum():
            return (start + 110) / 22050
    return np.inf


def test_words_that_begin_with_s_begin_where_the_hiss_does(prose):
    errors = []
    for text, wav, times in read_corpus(prose).values():
        for word in times:
            if re.search("[aeouy] $", text[: word["index"]]) and word["word"][0] == "s":
                errors.append(hiss_start(wav, word["start"]) - word["start"])
    assert len(errors) >= 6
    assert abs(np.median(errors)) < 0.008
    assert np.abs(errors).max() < 0.025


@pytest.mark.parametrize("corpus", ["folder", "prose"])
def test_word_times_are_where_the_sound_starts(corpus, engine, request):
    """Of words after a pause; those of Pico may begin with a closure that is silent too."""
    errors = []
    for text, wav, times in read_corpus(request.getfixturevalue(corpus)).values():
        onsets = sound_starts(wav)
        for word in times:
            if word["index"] == 0 or re.search("[,;:] [“]?$", text[: word["index"]]):
                errors.append(np.abs(onsets - word["start"]).min())
    assert len(errors) > (N_CLIPS if corpus == "folder" else 8)
    assert np.median(errors) < (0.030 if engine == "pico" else 0.002)
    assert max(errors) < (0.120 if engine == "pico" else 0.010)


def test_word_times_name_every_word_in_order(folder, prose):
    """Also in sentences that are long, or have letters that are not ASCII's."""
    corpus = read_corpus(prose)
    assert [text for text, _, _ in corpus.values()] == PROSE
    for text, wav, times in [*corpus.values(), *read_corpus(folder).values()]:
        words = re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text)
        assert [t["word"] for t in times] == words
        assert all(text[t["index"] :].startswith(t["word"]) for t in times)
        starts = [t["start"] for t in times]
        assert starts[0] >= 0 and all(a < b for a, b in itertools.pairwise(starts))
        assert starts[-1] < len(wav) / 22050


def speak_with_pico(texts: list[str]) -> list[bytes]:
    speaker = pico.Speaker("en-US")
    return [speaker.speak(text)[0].tobytes() for text in texts]


def test_pico_speaks_a_sentence_alike_after_any_other():
    pytest.importorskip("py_nanotts", reason="py-nanotts is not installed")
    texts = [*PROSE, "Pi is 3.14 to us, not <b>3</b>."]
    # In a process of its own, as the corpus is spoken: what ran before leaves used memory behind.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        spoken = pool.submit(speak_with_pico, texts + texts[::-1]).result()
    assert spoken == spoken[::-1]


def test_pico_writes_no_file_that_a_text_asks_for(tmp_path):
    pytest.importorskip("py_nanotts", reason="py-nanotts is not installed")
    pico.Speaker("en-US").speak(f'Hello <genfile file="{tmp_path}/hello.wav">you</genfile>.')
    assert not list(tmp_path.iterdir())


def test_a_corpus_is_reused_refused_or_overwritten(folder, engine, capsys, monkeypatch, tmp_path):
    before = file_hashes(folder)
    script = ("corpora.make_demo_corpus", "--engine", engine, "--path_to_save")
    flags = (*script, folder, "--n_sentences", N_CLIPS)
    with monkeypatch.context() as patch:
        patch.setattr(demo, "write_whole", None)  # reuse speaks nothing
        assert run(*flags, capsys=capsys) == (0, "")
        code, message = run(*flags, "--seed", 7, capsys=capsys)
    assert code == 1 and "holds another corpus (other sentences_sha256)" in message
    assert file_hashes(folder) == before

    path = tmp_path / "corpus"
    flags = (*script, path, "--n_sentences")
    assert run(*flags, 3, capsys=capsys)[0] == 0
    assert run(*flags, 2, capsys=capsys)[0] == 1
    assert run(*flags, 2, "--overwrite", capsys=capsys)[0] == 0
    assert len(list((path / "wavs").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]
    (path / "corpus.json").unlink()
    code, message = run(*flags, 2, "--overwrite", capsys=capsys)
    assert code == 1 and "not made by this script" in message


@pytest.mark.parametrize(
    ("flags", "text", "sentence"),
    [
        (["--n_sentences", "0"], None, "--n_sentences: must be at least 1"),
        (["--voice", "klingon-x"], None, "no voice 'klingon-x'"),
        ([], b"\n \n", "has only 0 sentences"),
        (["--n_sentences", "3"], b"One fox.\nTwo foxes.\n", "has only 2 sentences"),
        ([], b"One fox.\n\nNul \0 here.\n", "line 3 has a | or a control"),
        ([], b"One fox.\n...\n", "line 2 has no word"),
        ([], b"caf\xe9\n", "is not UTF-8"),
    ],
)
def test_bad_input_gets_one_sentence(flags, text, sentence, tmp_path, capsys):
    if text is not None:
        (tmp_path / "text.txt").write_bytes(text)
        flags = [*flags, "--sentences", tmp_path / "text.txt"]
    script = "corpora.make_demo_corpus"
    code, message = run(script, "--path_to_save", tmp_path / "out", *flags, capsys=capsys)
    assert code in (1, 2) and sentence in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", PACKAGES)
def test_without_a_speaker_it_says_what_to_install(engine, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[engine], None)
    espeak.load_library.cache_clear()  # another test may have loaded it
    flags = ("--path_to_save", tmp_path / "out", "--n_sentences", 2, "--engine", engine)
    code, message = run("corpora.make_demo_corpus", *flags, capsys=capsys)
    assert code == 1 and f"pip install {PACKAGES[engine].replace('_', '-')}" in message
    assert not list(tmp_path.iterdir())


def test_espeak_speaks_where_there_is_no_pico(tmp_path, capsys, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed")
    monkeypatch.setitem(sys.modules, "py_nanotts", None)
    flags = ("--path_to_save", tmp_path / "out", "--n_sentences", 1)
    assert run("corpora.make_demo_corpus", *flags, capsys=capsys)[0] == 0
    arguments = json.loads((tmp_path / "out" / "corpus.json").read_text())["arguments"]
    assert (arguments["engine"], arguments["voice"]) == ("espeak", "en-us")


def test_a_failure_midway_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch, capsys):
    flags = ("corpora.make_demo_corpus", "--path_to_save", tmp_path / "corpus", "--n_sentences")
    assert run(*flags, 2, capsys=capsys)[0] == 0
    before = file_hashes(tmp_path)

    def speak_all(clips, wavs, *_):
        (wavs / "DEMO-00001.wav").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "speak_all", speak_all)
    code, message = run(*flags, 3, "--overwrite", capsys=capsys)
    assert code == 1 and "No space left" in message
    assert file_hashes(tmp_path) == before
