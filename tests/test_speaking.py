"""Batches, tries and what becomes of failures; many pieces in one wav; speed; and the stream."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

import speech.speaking as speaking
from benchmarks import speaking as benchmark
from scoring.scores import FREE_RUNNING_SCORES
from speech.guide import Acted
from speech.speaking import Manner, Synthesis, speak, speak_batch, to_pcm, to_wav, write_joined
from speech.streaming import stream, stream_mels
from speech.voice import load_checkpoint
from synthesize import main
from text.splitting import Piece

STORY = "The old man went home. It rained, and he was wet; so he sat.\n\nThen he slept. A b."


def speech(voice, folder, *flags):
    """The exit code of synthesize.py, 20 frames a sentence."""
    where = [] if folder is None else ["--output_dir", str(folder)]
    flags = ["--checkpoint", str(voice), "--device", "cpu", "--max_decoder_steps", "20", *flags]
    return main([*flags, *where])


def result_of(score=0.6, coverage=1.0, monotonicity=1.0, reached_limit=False, n_frames=4, n_text=2):
    scores = dict.fromkeys(FREE_RUNNING_SCORES, 1.0)
    scores |= {"free_running_score": score, "free_running_coverage": coverage,
               "free_running_monotonicity": monotonicity}  # fmt: skip
    mel = torch.full((n_frames, 80), -4.0)
    return Synthesis(mel, torch.ones(n_frames, n_text), torch.zeros(0), reached_limit, scores)


def test_a_batch_sounds_as_its_sentences_alone(voice):
    voice, manner = load_checkpoint(voice), Manner(12, seed=7, n_candidates=2, n_retries=1)
    texts = ["The old man went home.", "a", "It rained"]
    together = list(speak(texts, voice, manner, batch_size=2))
    for text, result in zip(texts, together, strict=True):
        (alone,) = speak_batch([text], voice, manner)
        torch.testing.assert_close(alone.mel, result.mel, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.alignment, result.alignment, atol=1e-5, rtol=0)
        assert len(result.wav) == 12 * 256


@pytest.mark.parametrize(
    ("result", "failed"),
    [
        (result_of(), False),
        (result_of(reached_limit=True), True),
        (result_of(coverage=0.89), True),
        (result_of(monotonicity=0.89), True),
        (result_of(score=0.1, coverage=0.91, monotonicity=0.91), False),
    ],
)
def test_what_has_failed(result, failed):
    assert result.failed == failed
    assert failed == (max(result, result_of(0.05), key=lambda x: x.rank) is not result)


def test_a_failed_sentence_alone_is_tried_again(voice, monkeypatch):
    """The first fails once, the second never, the third always: its best try is kept."""
    voice, calls = load_checkpoint(voice), []
    scores = {3: [None, 0.5], 2: [0.4], 1: [None, None, None]}  # by number of tokens; None fails

    def infer_batch(tokens, voice, manner, first_try, n_tries):
        calls.append(([len(item) for item in tokens], first_try, n_tries))
        results = []
        for item in tokens:
            score = scores[len(item)].pop(0)
            coverage = {0: 0.0, 4: 0.5, 5: 0.2}[first_try] if score is None else 1.0
            results.append(result_of(score or 0.9, coverage)._replace(n_tries=first_try + n_tries))
        return results

    monkeypatch.setattr(speaking, "infer_batch", infer_batch)
    found = speak_batch(["abc", "ab", "a"], voice, Manner(n_candidates=4, n_retries=2, seed=0))
    assert calls == [([3, 2, 1], 0, 4), ([3, 1], 4, 1), ([1], 5, 1)]
    kept = [(x.failed, x.scores["free_running_score"], x.n_tries) for x in found]
    assert kept == [(False, 0.5, 5), (False, 0.4, 4), (True, 0.9, 6)]
    assert found[2].scores["free_running_coverage"] == pytest.approx(0.5)


def test_the_best_candidate_is_kept(voice, monkeypatch):
    """Each try has a seed of its own, and is what a single try with that seed gives."""

    def score_by_loudness(output, token_lengths):
        names = dict.fromkeys(FREE_RUNNING_SCORES, torch.ones(len(token_lengths)))
        return names | {"free_running_score": output.mels.mean(dim=(1, 2))}

    monkeypatch.setattr(speaking, "free_running_scores", score_by_loudness)
    voice = load_checkpoint(voice)
    tokens = [voice.tokenizer.encode("The old man.")]
    singles = [
        speaking.infer_batch(tokens, voice, Manner(15, seed=40 + k), 0, 1)[0] for k in range(4)
    ]
    (best,) = speaking.infer_batch(tokens, voice, Manner(15, seed=39), 1, 4)
    expected = max(singles, key=lambda x: x.mel.mean())
    torch.testing.assert_close(best.mel, expected.mel, atol=1e-4, rtol=0)
    assert len({float(x.mel.mean()) for x in singles}) == 4 and best.n_tries == 5


def test_pieces_are_joined_with_pauses(voice, tmp_path):
    """Of 10, 4 and 20 frames (1 is 11.6 ms); wav and mel stay in step."""
    voice = load_checkpoint(voice)
    pieces = [Piece("aa", "sentence"), Piece("b", "clause"), Piece("c", "paragraph"),
              Piece("d", "paragraph")]  # fmt: skip
    mels = [torch.full((n, 80), value) for n, value in ((3, 1.0), (5, 2.0), (2, 0.5), (4, 3.0))]
    results = [
        result_of(0.5 + i / 10, n_frames=len(mel))._replace(
            mel=mel, wav=torch.full((len(mel) * 256,), 0.1 * (i + 1))
        )
        for i, mel in enumerate(mels)
    ]
    written = write_joined(pieces, iter(results), voice, tmp_path, "001", pause_ms=116.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"001.{kind}" for kind in ("npy", "png", "txt", "wav")
    ]
    mel, (wav, rate) = np.load(tmp_path / "001.npy"), soundfile.read(tmp_path / "001.wav")
    n_frames = [3, 10, 5, 4, 2, 20, 4]
    assert mel.dtype == np.float32 and mel.shape == (80, sum(n_frames))
    spoken = np.repeat([0.1, 0, 0.2, 0, 0.3, 0, 0.4], [n * 256 for n in n_frames])
    np.testing.assert_allclose(wav, spoken, atol=1 / 32768)
    floor = np.log(1e-5)
    levels = [(x / 8 - 0.5) * -floor for x in (1.0, -4.0, 2.0, -4.0, 0.5, -4.0, 3.0)]
    np.testing.assert_allclose(mel, np.tile(np.repeat(levels, n_frames), (80, 1)), atol=1e-4)
    assert (tmp_path / "001.txt").read_text() == "aa b c\n\nd\n"
    assert written.worst is results[0] and not any(len(x.mel) for x in written.results)
    assert written.seconds == pytest.approx(48 * 256 / rate)


def test_speed_changes_the_length_and_not_the_pitch(monkeypatch):
    tone = torch.sin(2 * torch.pi * 441 * torch.arange(22050) / 22050)
    monkeypatch.setattr(speaking, "to_audio", lambda *_: tone)
    assert torch.equal(to_wav(torch.zeros(1, 80), None, Manner(seed=0)), tone)
    for speed in (0.5, 2.0):
        wav = to_wav(torch.zeros(1, 80), None, Manner(seed=0, speed=speed))
        assert len(wav) == pytest.approx(22050 / speed, rel=0.01)
        spectrum = np.abs(np.fft.rfft(wav.numpy()))
        assert spectrum.argmax() * 22050 / len(wav) == pytest.approx(441, abs=3)


def test_samples_of_16_bits():
    pcm = np.frombuffer(to_pcm(torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])), "<i2")
    assert pcm.tolist() == [0, 32767, -32767, 32767, 16384]


def test_a_long_text_is_one_wav(voice, tmp_path, capsys):
    """Whose sentences all fail: the voice never says stop."""
    (tmp_path / "story.txt").write_text(STORY)
    flags = ["--max_characters", "25", "--n_retries", "1"]
    code = speech(voice, tmp_path / "out", "--long_text", str(tmp_path / "story.txt"), *flags)
    assert code == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "001.wav", "001.npy", "001.txt", "001.png"
    }  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert "5 pieces, 0 stopped by themselves, free-running score 0.00" in printed[0]
    failed = [line for line in printed if "failed in 2 tries" in line]
    assert failed[0].endswith("the old man went home.") and len(failed) == 5
    said = "the old man went home. it rained, and he was wet; so he sat.\n\nThen he slept. A b.\n"
    assert (tmp_path / "out" / "001.txt").read_text() == said.lower()


def test_a_text_that_does_not_fail_ends_with_0(voice, tmp_path, monkeypatch, capsys):
    def infer_batch(tokens, *_):
        acted = Acted(3, False, True, 0)
        return [result_of(n_text=len(item))._replace(acted=acted) for item in tokens]

    monkeypatch.setattr(speaking, "infer_batch", infer_batch)
    assert speech(voice, tmp_path, "--text", "It rained. We left.", "Go.") == 0
    assert "waited 3 frames" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.wav"))) == 2


@pytest.mark.parametrize("text", ["a", "Hello", "I."])
def test_a_letter_or_a_word_is_spoken(voice, tmp_path, text):
    speech(voice, tmp_path, "--text", text)
    assert soundfile.info(tmp_path / "001.wav").frames > 0


def test_seconds_limit_a_sentence(voice, tmp_path):
    speech(voice, tmp_path, "--text", "It rained.", "--max_seconds", "0.1")
    assert np.load(tmp_path / "001.npy").shape[1] == 9


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--output_dir", "x", "--stream"], "either --output_dir or --stream"),
        ([], "either --output_dir or --stream"),
        (["--stream", "--n_candidates", "2"], "--n_candidates"),
        (["--stream", "--speed", "2"], "--speed"),
        (["--output_dir", "x", "--speed", "nan"], "--speed: must be 0.25 to 4"),
        (["--output_dir", "x", "--attention_window", "1", "0"], "--attention_window"),
        (["--output_dir", "x", "--max_characters", "0"], "--max_characters"),
    ],
)
def test_wrong_flags(voice, capsys, flags, says):
    with pytest.raises(SystemExit) as error:
        main(["--checkpoint", str(voice), "--text", "a", *flags])
    assert error.value.code == 2 and says in capsys.readouterr().err


@pytest.fixture
def lively_voice(voice, tmp_path):
    """Speaks 150 frames, whose mels are not alike."""
    voice = load_checkpoint(shutil.copytree(voice, tmp_path / "voice"))
    with torch.no_grad():
        voice.model.decoder.mel_projection.weight.mul_(5.0)
    return voice, Manner(150, seed=1, n_retries=0, careful_stop=False)


def test_a_stream_has_the_frames_of_the_whole(lively_voice):
    voice, manner = lively_voice
    parts = list(stream_mels("The old man.", voice, manner))
    (whole,) = speak_batch(["The old man."], voice, manner)
    assert len(parts) > 2
    torch.testing.assert_close(torch.cat(parts), whole.mel, atol=1e-4, rtol=0)


def test_a_stream_is_as_long_as_the_whole_and_about_as_loud(lively_voice, monkeypatch):
    """With a sound that depends on the mel alone, the parts are mixed to the whole's."""
    monkeypatch.setattr(
        speaking, "to_audio", lambda mel, *_: mel.mean(dim=1).div(40).repeat_interleave(256)
    )
    voice, manner = lively_voice
    parts = list(stream("The old man. It rained.", voice, manner, 12, pause_ms=100))
    whole = speak_batch(["the old man.", "it rained."], voice, manner)
    joined = torch.cat([whole[0].wav, torch.zeros(2205), whole[1].wav])
    assert len(parts) > 5 and parts[0].dtype == torch.float32
    torch.testing.assert_close(torch.cat(parts), joined, atol=1e-5, rtol=0)


def test_the_stream_of_the_command_is_samples(voice, capfdbinary):
    assert speech(voice, None, "--stream", "--text", "It rained.") == 0
    out, err = capfdbinary.readouterr()
    assert len(out) == 20 * 256 * 2 and b"22050 Hz" in err


def test_the_benchmark_judges_texts_by_their_pieces(voice):
    """A frame is 11.6 ms, a pause between sentences 0.3 s."""
    voice = load_checkpoint(voice)
    cut = [[Piece("a", "sentence"), Piece("b", "sentence")], [Piece("c", "sentence")]] * 2
    good, skips, endless = (
        result_of(0.8, n_frames=100),
        result_of(0.4, coverage=0.5, n_frames=100),
        result_of(0.0, reached_limit=True, n_frames=100),
    )
    spoken = [[good, good], [skips], [good, endless], [good]]
    seconds = [2.622, 1.161, 2.322, 1.161 * 1.2]  # the third is 13 % shorter than its speech
    row = benchmark.judge(cut, spoken, seconds, voice)
    assert row == pytest.approx(
        {"stops": 0.75, "aligns": 0.75, "length within 15 %": 0.75, "all three": 0.25, "score": 0.6}
    )
