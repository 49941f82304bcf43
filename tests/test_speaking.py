"""Batches, retries, many pieces in one wav, speed, times of the words, and the stream."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

import speech.speaking as speaking
from command_line.files import DataError
from conftest import REPO
from scoring.scores import FREE_RUNNING_SCORES
from speech.contrast import Contrast
from speech.report import write_spoken
from speech.speaking import SpeakingOptions, Synthesis, speak_batch, to_wav
from speech.streaming import stream, stream_mels
from speech.timings import Word, restore_words, time_words
from speech.voice import Voice, load_checkpoint
from synthesize import main
from text.splitting import Piece
from text.tokenizer import Tokenizer

STORY = "The old man went home. It rained, and he was wet; so he sat.\n\nThen he slept. A b."


def run(voice, folder, *flags):
    """Run synthesize.py for 20 frames a sentence."""
    where = [] if folder is None else ["--output_dir", str(folder)]
    flags = ["--checkpoint", str(voice), "--device", "cpu", "--max_decoder_steps", "20", *flags]
    return main([*flags, *where])


def result_of(score=0.6, coverage=1.0, monotonicity=1.0, reached_limit=False, n_frames=4, n_text=2):
    scores = dict.fromkeys(FREE_RUNNING_SCORES, 1.0)
    scores["free_running_score"] = score
    scores["free_running_coverage"] = coverage
    scores["free_running_monotonicity"] = monotonicity
    mel = torch.full((n_frames, 80), -4.0)
    return Synthesis(mel, torch.ones(n_frames, n_text), torch.zeros(0), reached_limit, scores)


@pytest.mark.parametrize(
    ("result", "failed"),
    [
        (result_of(reached_limit=True), True),
        (result_of(coverage=0.89), True),
        (result_of(monotonicity=0.89), True),
        (result_of(score=0.1, coverage=0.91, monotonicity=0.91), False),
    ],
)
def test_what_has_failed(result, failed):
    assert result.failed == failed
    assert failed == (max(result, result_of(0.05), key=lambda x: x.rank) is not result)


def test_only_a_failed_sentence_is_spoken_again(voice, monkeypatch):
    """The first fails once, the second never, the third always: its best try is kept."""
    voice, calls = load_checkpoint(voice), []
    scores = {3: [None, 0.5], 2: [0.4], 1: [None, None, None]}  # by number of tokens; None fails

    def infer_batch(tokens, voice, options, seed):
        calls.append(([len(item) for item in tokens], seed))
        results = []
        for item in tokens:
            score = scores[len(item)].pop(0)
            coverage = {10: 0.0, 11: 0.5, 12: 0.2}[seed] if score is None else 1.0
            results.append(result_of(score or 0.9, coverage))
        return results

    monkeypatch.setattr(speaking, "infer_batch", infer_batch)
    found = speak_batch(["abc", "ab", "a"], voice, SpeakingOptions(n_retries=2, seed=10))
    assert calls == [([3, 2, 1], 10), ([3, 1], 11), ([1], 12)]
    kept = [(x.failed, x.scores["free_running_score"], x.n_tries) for x in found]
    assert kept == [(False, 0.5, 2), (False, 0.4, 1), (True, 0.9, 3)]
    assert found[2].scores["free_running_coverage"] == pytest.approx(0.5)


def test_pieces_are_joined_with_pauses(voice, tmp_path):
    """Of 10, 4 and 20 frames (1 is 11.6 ms); wav and mel stay in step."""
    voice = load_checkpoint(voice)
    ends = {"aa": "sentence", "b": "clause", "c": "paragraph", "d": "paragraph"}
    pieces = [Piece(text, end) for text, end in ends.items()]
    mels = [torch.full((n, 80), value) for n, value in ((3, 1.0), (5, 2.0), (2, 0.5), (4, 3.0))]
    results = [
        result_of(0.5 + i / 10, n_frames=len(mel))._replace(
            mel=mel, wav=torch.full((len(mel) * 256,), 0.1 * (i + 1))
        )
        for i, mel in enumerate(mels)
    ]
    following = result_of()
    results_of_all = iter([*results, following])
    spoken = write_spoken(pieces, results_of_all, voice, tmp_path, "001", pause_ms=116.1)
    assert list(results_of_all) == [following], "the next text's result is left for it"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"001.{kind}" for kind in ("npy", "png", "txt", "wav")
    ]
    mel, (wav, rate) = np.load(tmp_path / "001.npy"), soundfile.read(tmp_path / "001.wav")
    n_frames = [3, 10, 5, 4, 2, 20, 4]
    assert mel.dtype == np.float32 and mel.shape == (80, sum(n_frames))
    sound = np.repeat([0.1, 0, 0.2, 0, 0.3, 0, 0.4], [n * 256 for n in n_frames])
    np.testing.assert_allclose(wav, sound, atol=1 / 32768)
    floor = np.log(1e-5)
    levels = [(x / 8 - 0.5) * -floor for x in (1.0, -4.0, 2.0, -4.0, 0.5, -4.0, 3.0)]
    np.testing.assert_allclose(mel, np.tile(np.repeat(levels, n_frames), (80, 1)), atol=1e-4)
    assert (tmp_path / "001.txt").read_text() == "aa b c\n\nd\n"
    assert spoken.worst is results[0] and not any(len(x.mel) for x in spoken.results)
    assert spoken.seconds == pytest.approx(48 * 256 / rate)


def test_speed_changes_the_length_and_not_the_pitch(monkeypatch):
    tone = torch.sin(2 * torch.pi * 441 * torch.arange(22050) / 22050)
    monkeypatch.setattr(speaking, "to_audio", lambda *_: tone)
    assert torch.equal(to_wav(torch.zeros(1, 80), None, SpeakingOptions()), tone)
    for speed in (0.5, 2.0):
        wav = to_wav(torch.zeros(1, 80), None, SpeakingOptions(speed=speed))
        assert len(wav) == pytest.approx(22050 / speed, rel=0.01)
        spectrum = np.abs(np.fft.rfft(wav.numpy()))
        assert spectrum.argmax() * 22050 / len(wav) == pytest.approx(441, abs=3)


def test_words_border_on_each_other_except_where_the_sound_pauses(voice):
    """Attention passes the comma and goes back a little before the pause is over."""
    voice, text = load_checkpoint(voice), '"oh, my no'
    mel, frames = torch.full((60, 80), -4.0), torch.zeros(60, dtype=torch.int64)
    for first, end in ((2, 20), (32, 44), (46, 58)):  # sound; the second gap lasts 23 ms
        mel[first:end] = 1.0
    for first, character in ((1, 1), (10, 2), (17, 3), (26, 5), (27, 4), (36, 6), (45, 8), (50, 9)):
        frames[first:] = character
    result = result_of()._replace(mel=mel, alignment=torch.eye(len(text))[frames])
    hop = 256 / 22050
    expected = [('"oh,', 2, 20), ("my", 32, 45), ("no", 45, 58)]
    found = time_words(text, result, voice)
    assert found == [
        (word, pytest.approx(a * hop), pytest.approx(b * hop)) for word, a, b in expected
    ]
    fast = time_words(text, result, voice, offset=1.0, speed=2.0)
    assert [x.start for x in fast] == pytest.approx([1 + x.start / 2 for x in found])
    assert [x.end for x in fast] == pytest.approx([1 + x.end / 2 for x in found])


@pytest.mark.parametrize(
    ("spoken", "typed"),
    [
        ("doctor no|paid five dollars and fifty cents,", "Dr.|No -|paid|$5.50,"),
        ("henry the eighth", "Henry|VIII"),
        ("it cost five million dollars.", "It|cost|$5 million."),  # cleaned in another order
        ("- oh no", "- Oh|no"),
        ("it snowed", "It|snowed \u6f22"),  # which has no symbol
        ("it snowed", "\u6f22 It|snowed"),
    ],
)
def test_the_words_that_were_typed_get_the_times_of_those_spoken(spoken, typed):
    clean, words = Tokenizer().clean, re.findall(r"\w+", spoken)
    timed = [Word(word, float(i), i + 0.5) for i, word in enumerate(words)]
    text = typed.replace("|", " ")
    assert re.findall(r"[a-z]+", clean(text)) == words
    found = restore_words(text, timed, clean)
    assert [word for word, *_ in found] == typed.split("|")
    assert (found[0].start, found[-1].end) == (0.0, len(words) - 0.5)
    for before, after in itertools.pairwise(found):
        assert before.end == after.start - 0.5


def test_words_in_another_order_share_an_entry_where_the_next_word_sounds_otherwise_alone():
    """As espeak-ng's "on" does."""
    alone = {"$5": "five dollars", "on": "awn"}
    spoken = ["cost", "five", "million", "dollars", "on", "may"]
    timed = [Word(word, float(i), i + 1.0) for i, word in enumerate(spoken)]
    found = restore_words("cost $5 million on may", timed, lambda word: alone.get(word, word))
    assert [(word, start) for word, start, _ in found] == [
        ("cost", 0.0), ("$5 million", 1.0), ("on", 4.0), ("may", 5.0),
    ]  # fmt: skip


def test_the_times_of_a_long_text_go_on_from_piece_to_piece(voice, tmp_path):
    story, out = "No. 5 was late; it rained.\n\nThen 10 people slept.", tmp_path / "out"
    (tmp_path / "story.txt").write_text(story)
    flags = ["--max_characters", "25", "--n_retries", "0", "--speed", "2", "--timings"]
    run(voice, out, "--long_text", str(tmp_path / "story.txt"), *flags)
    words = json.loads((out / "001.json").read_text())
    assert [word["word"] for word in words] == story.split()
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[-1] <= soundfile.info(out / "001.wav").duration
    piece, pause = 20 * 256 / 22050 / 2, 0.3 / 2  # 20 frames a piece
    starts = [0, piece + 0.4 * pause, 2 * piece + 2.4 * pause]
    for start, index in zip(starts, (0, 4, 6), strict=True):
        inside = [word["start"] for word in words if start - 0.01 <= word["start"]]
        assert words[index]["start"] == inside[0] < start + piece + 0.01
    cues = (out / "001.srt").read_text().split("\n\n")
    for number, (cue, word) in enumerate(zip(cues, words, strict=True), start=1):
        index, span, shown = cue.strip().split("\n")
        clock = [re.fullmatch(r"00:00:(\d\d),(\d{3})", time) for time in span.split(" --> ")]
        seconds = [int(found[1]) + int(found[2]) / 1000 for found in clock]
        assert (int(index), shown) == (number, word["word"])
        assert seconds == [word["start"], word["end"]]


def test_a_long_text_is_one_wav(voice, tmp_path, capsys):
    """All of its sentences fail, as the voice never says stop."""
    (tmp_path / "story.txt").write_text(STORY)
    flags = ["--max_characters", "25", "--n_retries", "1"]
    code = run(voice, tmp_path / "out", "--long_text", str(tmp_path / "story.txt"), *flags)
    assert code == 2
    names = {f"001.{kind}" for kind in ("wav", "npy", "txt", "png")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    printed = capsys.readouterr().out.splitlines()
    assert "5 pieces, 0 stopped by themselves, free-running score 0.00" in printed[0]
    failed = [line for line in printed if "failed in 2 tries" in line]
    assert failed[0].endswith("the old man went home.") and len(failed) == 5
    said = "the old man went home. it rained, and he was wet; so he sat.\n\nThen he slept. A b.\n"
    assert (tmp_path / "out" / "001.txt").read_text() == said.lower()


def test_texts_that_do_not_fail_end_with_0(voice, tmp_path, monkeypatch):
    def infer_batch(tokens, *_):
        return [result_of(n_text=len(item)) for item in tokens]

    monkeypatch.setattr(speaking, "infer_batch", infer_batch)
    assert run(voice, tmp_path, "--text", "It rained. We left.", "a") == 0
    assert len(list(tmp_path.glob("*.wav"))) == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "either --output_dir or --stream"),
        (["--stream", "--speed", "2"], "--speed"),
        (["--output_dir", "x", "--speed", "nan"], "--speed: must be 0.25 to 4"),
    ],
)
def test_wrong_flags(voice, capsys, flags, says):
    with pytest.raises(SystemExit) as error:
        main(["--checkpoint", str(voice), "--text", "a", *flags])
    assert error.value.code == 2 and says in capsys.readouterr().err


@pytest.fixture
def lively_voice(voice, tmp_path):
    """A voice that speaks 150 frames, whose mels are not alike."""
    voice = load_checkpoint(shutil.copytree(voice, tmp_path / "voice"))
    with torch.no_grad():
        voice.model.decoder.mel_projection.weight.mul_(5.0)
    voice = voice._replace(contrast=Contrast([0.1] * 80, [1.0] * 40 + [2.0] * 40))
    return voice, SpeakingOptions(150, seed=1, n_retries=0)


def test_a_stream_is_the_sound_of_the_whole(lively_voice, monkeypatch):
    """If the sound depends on the mel alone; Griffin-Lim's phases are those of a part."""
    monkeypatch.setattr(
        speaking, "to_audio", lambda mel, *_: mel.mean(dim=1).div(40).repeat_interleave(256)
    )
    voice, options = lively_voice
    with pytest.warns(UserWarning, match="did not stop within 150 frames: it rained"):
        parts = list(stream("The old man. It rained.", voice, options, 12, pause_ms=100))
    first, second = (
        speak_batch([text], voice, options)[0].wav for text in ("the old man.", "it rained.")
    )
    joined = torch.cat([first, torch.zeros(2205), second])
    assert len(parts) > 5 and parts[0].dtype == torch.float32
    torch.testing.assert_close(torch.cat(parts), joined, atol=1e-5, rtol=0)
    (whole,) = speak_batch(["The old man."], voice, options)
    generator = speaking.make_generator(options.seed, torch.device("cpu"))
    mels = torch.cat(list(stream_mels("The old man.", voice, options, generator)))
    torch.testing.assert_close(mels, whole.mel, atol=1e-4, rtol=0)
    with pytest.raises(DataError, match="no letter"):
        next(stream("?!", voice))


@pytest.mark.slow
def test_each_thread_speaks_by_its_own_seed_and_torch_keeps_its_random_numbers(lively_voice):
    """Whole and streamed, while another thread draws from torch's generator without end."""
    voice, _ = lively_voice

    def speak(seed):
        options = SpeakingOptions(20, seed=seed, n_retries=0)
        (spoken,) = speak_batch(["The old man."], voice, options)
        return torch.cat([spoken.wav, *stream("It rained.", voice, options)])

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    alone = [speak(seed) for seed in range(4)]
    assert torch.equal(torch.rand(3), expected)
    is_done = threading.Event()

    def draw():
        while not is_done.is_set():
            torch.rand(9)

    with ThreadPoolExecutor(5) as pool:
        pool.submit(draw)
        together = list(pool.map(speak, [*range(4)] * 2))
        is_done.set()
    assert not torch.equal(alone[0], alone[1])
    assert all(torch.equal(wav, alone[i % 4]) for i, wav in enumerate(together))


def test_the_stream_of_the_command_is_samples(voice, capfdbinary):
    assert run(voice, None, "--stream", "--text", "It rained.") == 0
    out, err = capfdbinary.readouterr()
    assert len(out) == 20 * 256 * 2 and b"22050 Hz" in err
    assert err.endswith(b"did not stop within 20 frames: It rained.\n")


@pytest.mark.slow
@pytest.mark.parametrize("where", [">/dev/full", ">&-", "2>&-"])
def test_a_stream_that_cannot_be_written_is_one_sentence(voice, where):
    """And with stderr closed, only samples are on standard output."""
    command = (
        f"{sys.executable} synthesize.py --checkpoint '{voice}' --device cpu --stream "
        f"--max_decoder_steps 9 --text Hi. {where}"
    )
    done = subprocess.run(command, shell=True, cwd=REPO, capture_output=True)
    said = done.stderr.decode().splitlines()
    if where == "2>&-":
        assert (done.returncode, len(done.stdout)) == (0, 9 * 256 * 2)
    else:
        assert done.returncode == 1 and "synthesize.py: --stream: standard output" in said[-1]
        assert len(said) <= 2, "the format of the samples, and the sentence"


def test_pieces_are_as_long_as_the_texts_that_the_voice_knows(voice, tmp_path, capsys):
    """Within bounds; a voice of short texts speaks two sentences of 60 characters one by one."""
    limits = [Voice(None, None, None, longest).max_characters for longest in (0, 42, 101, 400)]
    assert limits == [150, 80, 101, 150]
    known = tmp_path / "known"
    shutil.copytree(voice, known)
    config = json.loads((known / "config.json").read_text())
    (known / "config.json").write_text(json.dumps(config | {"longest_text": 42}))
    text = "The rain fell on the roof of the old barn, and on the corn. " * 2
    for folder, has_pieces in ((voice, False), (known, True)):
        speech = ["--checkpoint", str(folder), "--text", text, "--output_dir", str(tmp_path / "o")]
        main([*speech, "--max_decoder_steps", "5", "--n_retries", "0"])
        assert ("2 pieces" in capsys.readouterr().out) == has_pieces
