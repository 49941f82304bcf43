"""The scores of a checkpoint, on mels and alignments whose scores are known."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

import conftest
import evaluate
from command_line.files import DataError
from dataset import AudioConfig, Batch, TTSCollator, TTSDataset, to_log_mel
from evaluate import print_report, score_batch
from fast.decoder import speed_up
from model import (
    InferenceOutput,
    Tacotron2,
    Tacotron2Config,
    Tacotron2Output,
    tacotron2_loss,
)
from scoring import pictures
from scoring.pictures import summary_figure
from scoring.scores import (
    free_running_scores,
    indices_fit,
    mel_cepstral_distortion,
    word_start_errors,
)
from scoring.summary import make_report
from scoring.text_match import pick_others, text_match
from speech.voice import Voice
from stub_model import StubModel
from text.tokenizer import Tokenizer


def staircase(n_frames, starts):
    """One-hot alignment: character i is spoken from frame starts[i] on."""
    alignment = torch.zeros(n_frames, len(starts))
    for frame in range(n_frames):
        alignment[frame, max(i for i, start in enumerate(starts) if start <= frame)] = 1.0
    return alignment


def distortion_by_hand(mel, reference):
    """Sums over cosines instead of a DCT, and the textbook's table instead of a library's path."""
    n = mel.shape[1]
    k, i = np.arange(1, 14)[:, None], np.arange(n)
    cosines = np.cos(np.pi * k * (i + 0.5) / n)  # (13, n)
    left, right = (
        2 / n * cosines @ to_log_mel(x, AudioConfig()).double().numpy().T for x in (mel, reference)
    )
    squares = ((left[:, :, None] - right[:, None, :]) ** 2).sum(axis=0)
    decibels = 10 / np.log(10) * np.sqrt(2 * squares)  # (T, T')
    best = {(-1, -1): (0.0, ())}  # the cheapest way to a place: its cost, and the places on it
    for a, b in np.ndindex(decibels.shape):
        before = [
            best.get(place, (np.inf, ())) for place in ((a - 1, b - 1), (a - 1, b), (a, b - 1))
        ]
        cost, path = min(before)
        best[a, b] = cost + decibels[a, b], (*path, (a, b))
    path = best[a, b][1]
    groups = [[decibels[a, b] for a, b in path if b == frame] for frame in range(b + 1)]
    return np.mean([np.mean(group) for group in groups])


def test_distortion_agrees_with_the_formula_by_hand():
    generator = torch.Generator().manual_seed(0)
    mel = torch.rand(23, 40, generator=generator) * 8 - 4
    reference = torch.rand(17, 40, generator=generator) * 8 - 4
    distortion = mel_cepstral_distortion(mel, reference, AudioConfig(num_mels=40))
    assert distortion == pytest.approx(distortion_by_hand(mel, reference))
    mel[2, 3] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        mel_cepstral_distortion(mel, reference, AudioConfig(num_mels=40))


def make_lettered(folder: Path, texts: list[str], n_repeats: int) -> TTSDataset:
    """Make clips of these texts, in which each letter sounds n_repeats times 0.05 s."""
    rows = []
    for text in texts:
        wav = np.concatenate([conftest.speak(letter * n_repeats) for letter in text])
        soundfile.write(folder / f"{text}.wav", wav, conftest.RATE)
        rows.append((folder / f"{text}.wav", text, len(wav) / conftest.RATE))
    columns = ["file_path", "normalized_transcript", "duration"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "clips.csv", index=False)
    return TTSDataset(folder / "clips.csv", AudioConfig(), Tokenizer())


def draw_words(n: int) -> list[str]:
    """Draw words of four letters."""
    rng, letters = np.random.default_rng(0), list("abcdefghijklmnopqrstuvwx")
    return ["".join(rng.permutation(letters)[:4]) for _ in range(n)]


@pytest.fixture(scope="module")
def lettered(tmp_path_factory) -> TTSDataset:
    """20 clips of a second, and 20 of one and a half that begin like them."""
    words = draw_words(20)
    texts = [*words, *(f"{word}yz" for word in words)]
    return make_lettered(tmp_path_factory.mktemp("letters"), texts, 5)


def test_text_match_is_the_share_of_half_seconds_that_say_the_text(lettered):
    """Slower and blurred speech counts whole, half wrong speech half, and noise next to nothing."""
    generator = torch.Generator().manual_seed(0)
    shares = {"voice": [], "half": [], "silence": [], "mush": [], "broken": []}
    average = torch.stack([lettered[i].mel for i in range(20)]).mean(dim=0)
    for i in range(20):
        own, other = lettered[i].mel, lettered[(i + 1) % 20].mel
        slow = own.repeat_interleave(torch.arange(len(own)) % 2 + 1, dim=0)
        noise = torch.randn(slow.shape, generator=generator)
        spoken = {
            "voice": slow + noise,
            "half": torch.cat([own[: len(own) // 2], other[len(other) // 2 :]]),
            "silence": torch.full_like(own, -4.0),
            "mush": average,
            "broken": own * torch.nan,
        }
        for name, mel in spoken.items():
            shares[name].append(text_match(lettered, i, mel))
    means = {name: np.mean(values) for name, values in shares.items()}
    assert means["voice"] > 0.95 and 0.4 < means["half"] < 0.65
    assert means["mush"] < 0.15 and means["silence"] < 0.15 and means["broken"] == 0


def train_small_model(batch: Batch, shuffle: bool) -> Tacotron2:
    """Train on one batch for 200 steps; with `shuffle`, each step gives the clips other texts."""
    torch.manual_seed(0)
    sizes = {"character_embed_dim": 64, "encoder_embed_dim": 64, "decoder_rnn_embed_dim": 128}
    sizes |= {"decoder_prenet_dim": 64, "decoder_postnet_n_filters": 32, "attention_dim": 32}
    model = speed_up(Tacotron2(Tacotron2Config(vocab_size=Tokenizer().vocab_size, **sizes)))
    optimizer, n = torch.optim.Adam(model.parameters(), lr=0.003), len(batch.texts)
    for step in range(200):
        order = torch.randperm(n) if shuffle else torch.arange(n)
        tokens, lengths = batch.tokens[order], batch.token_lengths[order]
        losses = tacotron2_loss(
            model(tokens, lengths, batch.mels, batch.mel_lengths),
            batch.mels,
            lengths,
            batch.mel_lengths,
            batch.stop_targets,
            guided_attention_weight=max(5 - step / 30, 0),
            guided_attention_sigma=0.2,
            stop_positive_weight=10.0,
        )
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.slow
def test_text_match_knows_a_voice_from_a_mush_with_a_fine_alignment(tmp_path):
    """Two models that learn 16 clips by heart, with true and with shuffled texts."""
    clips = make_lettered(tmp_path, draw_words(16), 2)
    batch = TTSCollator(clips.audio_config, clips.tokenizer)([clips[i] for i in range(16)])
    matches, coverages = [], []
    for shuffle in (False, True):
        model = train_small_model(batch, shuffle)
        with torch.no_grad():
            free = model.infer(batch.tokens, batch.token_lengths, 2 * batch.mels.shape[1])
        mels = [mel[:n] for mel, n in zip(free.mels, free.mel_lengths, strict=True)]
        matches.append(np.mean([text_match(clips, i, mel) for i, mel in enumerate(mels)]))
        scores = free_running_scores(free, batch.token_lengths)
        coverages.append(scores["free_running_coverage"].mean())
    assert matches[0] > 0.6 and matches[1] < 0.25, matches
    assert min(coverages) > 0.9, "the alignments do not tell one from the other"


def test_speech_is_compared_with_other_texts_of_like_length(lettered):
    others = pick_others(lettered, 25)
    assert len(set(others)) == 15 and all(i >= 20 and i != 25 for i in others)
    lettered.texts[25], before = lettered.texts[26], lettered.texts[25]
    assert 26 not in pick_others(lettered, 25)
    lettered.texts[25] = before


def test_word_start_errors_of_a_known_staircase():
    """Characters 0, 3, 6, 7, 8 begin words; 3, 6 and 7 are reached in frames 10, 30 and 34."""
    alignment = torch.nn.functional.pad(staircase(40, [0, 3, 6, 10, 14, 20, 30, 34]), (0, 2))
    starts = {0: 0.0, 3: 0.085, 6: 0.325, 7: 0.33, 8: 0.1}
    words = [{"word": "x", "index": index, "start": start} for index, start in starts.items()]
    errors, diagonal = word_start_errors(alignment, words, 0.01)
    # The alignment never reaches the last word, which counts as the clip's end.
    expected = [0.105 - 0.085, 0.305 - 0.325, 0.345 - 0.33, 0.4 - 0.1]
    np.testing.assert_allclose(errors, expected)
    by_hand = [index / 10 * 0.4 - starts[index] for index in (3, 6, 7, 8)]
    np.testing.assert_allclose(diagonal, by_hand)


def test_word_indices_count_the_text_as_it_is_spoken():
    text, cleaned = "Dr. Smith is here.", "doctor smith is here."
    spoken = [{"word": "doctor", "index": 0}, {"word": "smith", "index": 7}]
    as_written = [{"word": "Dr", "index": 0}, {"word": "Smith", "index": 4}]
    assert indices_fit(spoken, text, cleaned) and not indices_fit(as_written, text, cleaned)
    assert indices_fit([{"index": 3}], "He is.", "he is.")
    in_words = [{"word": "in", "index": 0}, {"word": "he", "index": 24}]  # of another cleaner
    assert not indices_fit(in_words, "In 1999 he left.", "in 1999 he left.")


def test_each_clip_of_a_padded_batch_is_scored_alone():
    """Each array and score ends where its clip does.

    The second clip's forced alignment goes on in the padding: read to its end, it would reach the
    last word there, and a straight diagonal would be another one.
    """
    forced = torch.zeros(2, 40, 8)
    forced[0] = staircase(40, [0, 3, 6, 10, 14, 20, 30, 34])
    forced[1, :20, :4] = 0.75 * staircase(20, [0, 5, 12, 30])
    forced[1, 20:, 7] = 1.0
    free = torch.zeros(2, 12, 8)
    free[0] = 0.5 * staircase(12, [0, 1, 2, 3, 4, 5, 6, 7])
    free[1, range(6), [0, 1, 0, 2, 2, 2]] = 0.9  # goes back once, and skips the last character
    mels, spoken = torch.rand(2, 40, 80), torch.rand(2, 12, 80)
    text_lengths, mel_lengths = torch.tensor([8, 4]), torch.tensor([40, 20])
    batch = Batch(
        torch.ones(2, 8, dtype=torch.int64), text_lengths, mels, mel_lengths,
        torch.zeros(2, 40), ["abc defg", "ab c"], ["x/first.wav", "x/second.wav"],
    )  # fmt: skip
    stopped = torch.tensor([True, False])
    model = StubModel(
        Tacotron2Output(mels, mels, torch.zeros(2, 40), forced),
        InferenceOutput(spoken, torch.tensor([12, 6]), torch.zeros(2, 12), free, stopped),
    )
    config = AudioConfig(sampling_rate=25600)  # 0.01 s from frame to frame
    words = {
        "first": [{"index": i, "start": s} for i, s in ((0, 0), (3, 0.09), (5, 0.3))],
        "second": [{"index": i, "start": s} for i, s in ((0, 0), (3, 0.1))],
    }
    voice = Voice(model, config, Tokenizer())
    scored = score_batch(voice, batch, 1000, words)
    (_, infer), (_, forward) = model.calls
    assert infer == (batch.tokens, text_lengths, 2 * 40 + 100)  # beside the longest recording
    assert forward == (batch.tokens, text_lengths, mels, mel_lengths)
    # Characters 3 and 5 are reached in the middles of frames 10 and 20, by the diagonal after 3 and
    # 5 eighths of 0.4 s; the second clip ends at 0.2 s without its character 3.
    by_hand = [
        {
            "path": "x/first.wav", "text": "abc defg", "recording_frames": 40, "spoken_frames": 12,
            "length_ratio": 0.3, "stopped_by_itself": 0.0, "focus": 1.0, "coverage": 1.0,
            "monotonicity": 1.0, "free_running_focus": 0.5, "free_running_coverage": 1.0,
            "free_running_monotonicity": 1.0, "free_running_score": 0.0,
            "word_start": [0.105 - 0.09, 0.205 - 0.3], "diagonal": [0.15 - 0.09, 0.25 - 0.3],
            "word_start_median_ms": (15 + 95) / 2,
        },
        {
            "path": "x/second.wav", "text": "ab c", "recording_frames": 20, "spoken_frames": 6,
            "length_ratio": 0.3, "stopped_by_itself": 1.0, "focus": 0.75, "coverage": 0.75,
            "monotonicity": 1.0, "free_running_focus": 0.9, "free_running_coverage": 0.75,
            "free_running_monotonicity": 0.8, "free_running_score": 0.54,
            "word_start": [0.1], "diagonal": [0.15 - 0.1], "word_start_median_ms": 100.0,
        },
    ]  # fmt: skip
    for i, (clip, expected) in enumerate(zip(scored, by_hand, strict=True)):
        n_frames, n_spoken = expected["recording_frames"], expected["spoken_frames"]
        assert torch.equal(clip.recording, mels[i, :n_frames])
        assert torch.equal(clip.mel, spoken[i, :n_spoken])
        assert torch.equal(clip.alignment, free[i, :n_spoken, : text_lengths[i]])
        distortion = clip.row.pop("mcd_db")
        assert distortion == mel_cepstral_distortion(clip.mel, clip.recording, config)
        for name in ("word_start", "diagonal"):
            assert clip.row.pop(name) == pytest.approx(expected.pop(name))
        assert clip.row == pytest.approx(expected)
    shortened = batch._replace(texts=["abc  defg", "ab c"])  # cleaning takes a character away
    assert score_batch(voice, shortened, 12, words)[0].row["word_start"] == []


SCORES = ("focus", "coverage", "monotonicity")
TABLE = ["length_ratio", "stopped_by_itself", "free_running_score", "mcd_db", "text_match",
         *SCORES, *(f"free_running_{name}" for name in SCORES)]  # fmt: skip


def test_report_and_its_table_of_made_up_clips(capsys):
    """No share is 0 or 1 and no two numbers are the same, so that none can stand for another."""
    n = len(TABLE)
    rows = [{name: (i + 1) * (k + 1) / (5 * n) for k, name in enumerate(TABLE)} for i in range(5)]
    ratios, stopped = (1.14, 0.86, 1.0, 1.3, 3.0), (1.0, 1.0, 0.0, 1.0, 0.0)
    scores, distortions = (0.1, 0.2, 0.3, 0.4, 0.875), (1.0, 2.0, 4.0, 5.0, 10.0)
    for row, *values in zip(rows, ratios, stopped, scores, distortions, strict=True):
        row.update(zip(TABLE[:4], values, strict=True))
    plain = make_report(rows, 0)
    errors = [[-0.01 * i for i in range(1, 11)], [], [0.2], [], []]
    diagonal = [[0.3, -0.1, -0.2] * 3, [0.25] * 2, [], [], []]
    for row, *lists in zip(rows, errors, diagonal, strict=True):
        row["word_start"], row["diagonal"] = lists
    report = make_report(rows, 0)
    assert report.pop("intervals").keys() == report.keys() - {"clips", "words"}
    means = {name: (k + 1) * 3 / (5 * n) for k, name in enumerate(TABLE)}  # of i + 1: 3
    assert report == pytest.approx(
        {
            "clips": 5, "stopped_by_itself": 0.6, "length_within_15_percent": 0.4,
            "length_ratio_median": 1.14, "free_running_score": 0.375,
            **{name: means[name] for name in TABLE[4:]},
            "mcd_db_mean": 4.4, "mcd_db_median": 4.0, "words": 11,
            "word_start_median_ms": 60.0, "word_start_p90_ms": 100.0,
            "diagonal_median_ms": 200.0, "diagonal_p90_ms": 300.0,
        }
    )  # fmt: skip
    assert plain.keys() - {"intervals"} == {
        name for name in report if name != "words" and "_ms" not in name
    }
    print_report(report)
    values = [re.split(" {2,}", line)[1] for line in capsys.readouterr().out.splitlines()]
    assert values[:6] == ["5", "0.273", "60.0%", "40.0%", "0.375", "0.327 / 0.491"]
    assert values[6:9] == ["0.382 / 0.545", "0.436 / 0.600", "4.00 / 4.40 dB"]
    assert values[9:] == ["60 / 100 ms", "200 / 300 ms"]


def test_intervals_agree_with_those_of_the_normal_distribution():
    """Of 400 clips; the errors of a clip's three words are the same, so they count as one."""
    rng, n = np.random.default_rng(0), 400
    word_errors = rng.normal(0.05, 0.01, n)
    values = {name: rng.normal(1 + i, 0.1 + i / 100, n) for i, name in enumerate(TABLE)}
    rows = [{name: x[i] for name, x in values.items()} for i in range(n)]
    for row, error in zip(rows, word_errors, strict=True):
        row["word_start"] = [error] * 3
    intervals = make_report(rows, 0)["intervals"]
    for name, column in (
        ("focus", values["focus"]),
        ("mcd_db_median", values["mcd_db"]),
        ("word_start_median_ms", 1000 * word_errors),
    ):
        low, high = intervals[name]
        is_median = "median" in name
        error = 1.96 * column.std() / np.sqrt(n) * (np.sqrt(np.pi / 2) if is_median else 1.0)
        close = 0.3 if is_median else 0.1  # medians of 400 numbers jump
        assert high - low == pytest.approx(2 * error, rel=close), name
        assert low < (np.median(column) if is_median else column.mean()) < high


@pytest.fixture
def flags(voice, tiny_corpus, tmp_path):
    """An untrained checkpoint, and three clips, one with a name that is hard on pictures."""
    shutil.copytree(voice, tmp_path, dirs_exist_ok=True)
    frame = pd.read_csv(tiny_corpus.test_manifest)
    odd = tmp_path / 'odd, "$x_{1}" ü.wav'
    shutil.copy(frame["file_path"][1], odd)
    frame.loc[1, "file_path"] = str(odd)
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    return ["--checkpoint", str(tmp_path), "--path_to_manifest", str(tmp_path / "manifest.csv"),
            "--max_decoder_steps", "12", "--device", "cpu"]  # fmt: skip


@pytest.mark.slow
def test_files_hold_the_report_of_their_table_and_follow_from_the_seed(
    flags, tiny_corpus, tmp_path
):
    words = [{"index": 0, "start": 0.0}, {"index": 4, "start": 0.2}]
    times = {path.stem: words for path in tiny_corpus.wavs.iterdir()}
    (tmp_path / "words.json").write_text(json.dumps(times))
    (tmp_path / "trainer_state.json").write_text('{"step": 1234}')
    table, numbers = tmp_path / "out" / "clips.csv", tmp_path / "out" / "report.json"
    flags += ["--word_times", str(tmp_path / "words.json")]
    flags += ["--output_json", str(numbers), "--output_csv", str(table)]
    reports = []
    for seed in ("1", "1", "2"):
        evaluate.main([*flags, "--seed", seed])
        reports.append(json.loads(numbers.read_text()))
        reports[-1].pop("date")
    assert reports[0] == reports[1]
    report = reports[2]
    assert reports[0]["focus"] != report["focus"]
    described = {"checkpoint": str(tmp_path), "step": 1234, "seed": 2, "vocoder": None}
    assert report.items() >= described.items()
    clips, manifest = pd.read_csv(table), pd.read_csv(tmp_path / "manifest.csv")
    assert {*TABLE, "recording_frames", "spoken_frames"} < {*clips.columns}
    assert set(clips["path"]) == set(manifest["file_path"])
    means = {name: clips[name].mean() for name in TABLE[1:] if name in report}
    assert means == pytest.approx({name: report[name] for name in means})
    known = [Path(path).stem in times for path in clips["path"]]  # all but the odd name
    assert clips["word_start_median_ms"].notna().tolist() == known and report["words"] == 2


def test_word_times_of_clips_of_one_name_are_refused(flags, tmp_path):
    (tmp_path / "words.json").write_text('{"one": [{"index": 0, "start": 0}]}')
    frame = pd.read_csv(tmp_path / "manifest.csv")
    for i in (0, 1):
        (tmp_path / str(i)).mkdir()
        frame.loc[i, "file_path"] = str(
            shutil.copy(frame["file_path"][i], tmp_path / f"{i}/one.wav")
        )
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(SystemExit, match="several clips of the manifest are named 'one'"):
        evaluate.main([*flags, "--word_times", str(tmp_path / "words.json")])


def test_the_worst_clips_are_drawn_worst_first(flags, tmp_path, monkeypatch):
    """By text match, then by distortion; older pictures in the folder are replaced."""
    drawn = []

    def draw(recording, mel, alignment, text, hop_seconds, title):
        drawn.append(title)
        assert len(mel) == len(alignment) == 12 and alignment.shape[1] == len(text)
        return summary_figure(recording, mel, alignment, text, hop_seconds, title)

    monkeypatch.setattr(evaluate, "text_match", lambda clips, index, mel: (0.1, 0.5, 0.1)[index])
    monkeypatch.setattr(pictures, "summary_figure", draw)
    folder, table = tmp_path / "worst", tmp_path / "clips.csv"
    folder.mkdir()
    (folder / "worst_7.png").write_bytes(b"of another checkpoint")
    evaluate.main([*flags, "--output_csv", str(table), "--save_worst", str(folder), "--worst", "2"])
    clips = pd.read_csv(table).sort_values(["text_match", "mcd_db"], ascending=[True, False])
    names = [title.split(": text match 0.100")[0] for title in drawn]
    assert names == [Path(path).name for path in clips["path"][:2]]
    assert f"MCD {clips['mcd_db'].iloc[0]:.2f} dB, reached the limit" in drawn[0]
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"worst_{n}.{kind}" for n in (1, 2) for kind in ("png", "wav")]
    assert np.asarray(Image.open(folder / "worst_2.png").convert("L")).std() > 10
