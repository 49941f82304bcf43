"""The numbers that a checkpoint is judged by, on alignments whose scores are known."""

import json
import platform
import re
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

import evaluate
from command_line.files import DataError
from dataset import AudioConfig, Batch, audio_to_mel, load_wav, to_log_mel
from evaluate import judge, make_intervals, make_report, print_report
from model import InferenceOutput, Tacotron2Output
from scoring import pictures
from scoring.pictures import summary_figure
from scoring.scores import free_running_scores, mel_cepstral_distortion, word_start_errors
from speech.voice import Voice
from stub_model import StubModel
from text.tokenizer import Tokenizer

HOP, HOP_SECONDS = 0.01, 256 / 22050


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


@pytest.mark.parametrize("n", [40, 80])
def test_distortion_agrees_with_the_formula_by_hand(n):
    generator = torch.Generator().manual_seed(0)
    mel = torch.rand(23, n, generator=generator) * 8 - 4
    reference = torch.rand(17, n, generator=generator) * 8 - 4
    expected = distortion_by_hand(mel, reference)
    distortion = mel_cepstral_distortion(mel, reference, AudioConfig(num_mels=n))
    assert distortion == pytest.approx(expected)


def test_distortion_is_blind_to_loudness_and_to_pace_but_not_to_words(tiny_corpus):
    config = AudioConfig()
    wavs = [load_wav(path, 22050) for path in sorted(tiny_corpus.wavs.iterdir())[:2]]
    mel, other = (audio_to_mel(wav, config) for wav in wavs)
    slower = mel.repeat_interleave(2, dim=0)
    assert mel_cepstral_distortion(mel, mel, config) == 0.0
    assert mel_cepstral_distortion(mel, mel + 0.5, config) == pytest.approx(0.0, abs=1e-3)
    assert mel_cepstral_distortion(slower, mel, config) == pytest.approx(0.0, abs=1e-3)
    assert mel_cepstral_distortion(other, mel, config) > 4
    assert mel_cepstral_distortion(mel[:1], mel, config) > 4  # one frame is a mel, too


def test_a_mel_that_goes_on_for_ever_is_no_closer(tiny_corpus):
    """A flat mel costs nothing beside silence: long enough, it would have a small mean."""
    config = AudioConfig()
    mel = audio_to_mel(load_wav(sorted(tiny_corpus.wavs.iterdir())[0], 22050), config)
    mel = torch.cat([mel, torch.full((5, 80), -4.0)])
    flat = torch.zeros(len(mel), 80)
    short, long = (
        mel_cepstral_distortion(babble, mel, config) for babble in (flat, flat.repeat(9, 1))
    )
    assert short > 4 and long == pytest.approx(short, rel=0.02)


def test_distortion_of_real_clips(ljspeech_dir):
    """Silence in front and a slower pace change little, another sentence and noise much."""
    config = AudioConfig()
    first, second = sorted((ljspeech_dir / "wavs").iterdir())[:2]
    wavs = [
        load_wav(path, config.sampling_rate)[: 3 * config.sampling_rate] for path in (first, second)
    ]
    mel, other = (audio_to_mel(wav, config) for wav in wavs)
    slower = torch.nn.functional.interpolate(mel.T[None], scale_factor=1.2, mode="linear")[0].T
    small = mel_cepstral_distortion(slower, mel, config)
    large = mel_cepstral_distortion(other, mel, config)
    noise = mel_cepstral_distortion(torch.rand_like(mel) * 8 - 4, mel, config)
    print("MCD", small, large, noise)
    assert small < 0.5 * large < 0.5 * noise


def test_a_mel_that_is_not_finite_is_refused():
    mel = torch.zeros(4, 80)
    broken = mel.clone()
    broken[2, 3] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        mel_cepstral_distortion(broken, mel, AudioConfig())


def test_word_start_errors_of_a_known_staircase():
    """Characters 0, 3, 6 and 7 begin words; frames 0, 10, 30, 34 of 40."""
    alignment = staircase(40, [0, 3, 6, 10, 14, 20, 30, 34])
    words = [
        {"word": "a", "index": 0, "start": 0.0},
        {"word": "b", "index": 3, "start": 0.085},
        {"word": "c", "index": 6, "start": 0.325},
        {"word": "d", "index": 7, "start": 0.33},
    ]
    errors, diagonal = word_start_errors(alignment, words, HOP)
    np.testing.assert_allclose(errors, [0.105 - 0.085, 0.305 - 0.325, 0.345 - 0.33])
    by_hand = [3 / 8 * 0.4 - 0.085, 6 / 8 * 0.4 - 0.325, 7 / 8 * 0.4 - 0.33]
    np.testing.assert_allclose(diagonal, by_hand)


def test_a_word_that_is_never_reached_counts_to_the_end():
    alignment = staircase(40, [0, 10]).repeat_interleave(2, dim=1)[:, :3]
    alignment = torch.nn.functional.pad(alignment, (0, 1))
    words = [{"word": "a", "index": 0, "start": 0.0}, {"word": "b", "index": 3, "start": 0.1}]
    assert word_start_errors(alignment, words, HOP)[0] == pytest.approx([0.4 - 0.1])


@pytest.fixture
def untrained(voice, tmp_path):
    """A checkpoint of random weights that never says stop."""
    return shutil.copytree(voice, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def flags(untrained, tiny_corpus):
    """Three clips, one of them with a name that is hard on pictures and tables."""
    frame = pd.read_csv(tiny_corpus.test_manifest)
    odd = untrained / 'odd, "$x_{1}" ü.wav'
    shutil.copy(frame["file_path"][1], odd)
    frame.loc[1, "file_path"] = str(odd)
    frame.to_csv(untrained / "manifest.csv", index=False)
    return ["--checkpoint", str(untrained), "--path_to_manifest", str(untrained / "manifest.csv"),
            "--max_decoder_steps", "12", "--device", "cpu"]  # fmt: skip


def test_what_does_not_stop_ends_at_twice_the_longest_recording(flags, tmp_path):
    evaluate.main([*flags, "--max_decoder_steps", "2000", "--output_csv", str(tmp_path / "x.csv")])
    table = pd.read_csv(tmp_path / "x.csv")
    assert not table["stopped_by_itself"].any()
    assert set(table["spoken_frames"]) == {2 * table["recording_frames"].max() + 100}


def test_each_clip_of_a_padded_batch_is_judged_alone():
    """Each array and score ends where its clip does; the second clip's scores are below 1.

    The forced alignments of the second clip go on in the padding: read to their ends, they would
    reach the last word there, and a straight diagonal would be another one.
    """
    forced = torch.zeros(2, 40, 8)
    forced[0] = staircase(40, [0, 3, 6, 10, 14, 20, 30, 34])
    forced[1, :20, :4] = 0.75 * staircase(20, [0, 5, 12, 30])
    forced[1, 20:, 7] = 1.0
    free = torch.zeros(2, 12, 8)
    free[0] = 0.5 * staircase(12, [0, 1, 2, 3, 4, 5, 6, 7])
    free[1, range(6), [0, 1, 0, 2, 2, 2]] = 0.9  # goes back once, and skips the last character
    mels, spoken = torch.zeros(2, 40, 80), torch.zeros(2, 12, 80)
    mels[0], mels[1, :20] = torch.rand(40, 80), torch.rand(20, 80)
    spoken[0], spoken[1, :6] = torch.rand(12, 80), torch.rand(6, 80)
    lengths = {"token": torch.tensor([8, 4]), "mel": torch.tensor([40, 20])}
    batch = Batch(
        torch.ones(2, 8, dtype=torch.int64), lengths["token"], mels, lengths["mel"],
        torch.zeros(2, 40), ["abc defg", "ab c"], ["x/first.wav", "x/second.wav"],
    )  # fmt: skip
    limits = torch.tensor([True, False])
    model = StubModel(
        Tacotron2Output(mels, mels, torch.zeros(2, 40), forced),
        InferenceOutput(spoken, torch.tensor([12, 6]), torch.zeros(2, 12), free, limits),
    )
    config = AudioConfig(sampling_rate=25600)  # 0.01 s from frame to frame
    words = {
        "first": [
            {"word": "abc", "index": 0, "start": 0.0},
            {"word": "d", "index": 3, "start": 0.09},
            {"word": "f", "index": 5, "start": 0.3},
            {"word": "g", "index": 7, "start": 0.3},
        ],
        "second": [{"word": "ab", "index": 0, "start": 0}, {"word": "c", "index": 3, "start": 0.1}],
    }
    judged = judge(Voice(model, config, Tokenizer()), batch, 12, words)

    (_, infer), (_, forward) = model.calls
    assert infer == (batch.tokens, lengths["token"], 12)
    assert forward == (batch.tokens, lengths["token"], mels, lengths["mel"])
    by_hand = [
        {
            "path": "x/first.wav", "text": "abc defg", "recording_frames": 40, "spoken_frames": 12,
            "length_ratio": 0.3, "stopped_by_itself": 0.0, "focus": 1.0, "coverage": 1.0,
            "monotonicity": 1.0, "free_running_focus": 0.5, "free_running_coverage": 1.0,
            "free_running_monotonicity": 1.0, "free_running_score": 0.0,
            "word_start_median_ms": 45.0,
        },
        {
            "path": "x/second.wav", "text": "ab c", "recording_frames": 20, "spoken_frames": 6,
            "length_ratio": 0.3, "stopped_by_itself": 1.0, "focus": 0.75, "coverage": 0.75,
            "monotonicity": 1.0, "free_running_focus": 0.9, "free_running_coverage": 0.75,
            "free_running_monotonicity": 0.8, "free_running_score": 0.54,
            "word_start_median_ms": 100.0,
        },
    ]  # fmt: skip
    for clip, expected, i, n_frames, n_spoken, n_text in (
        (judged[0], by_hand[0], 0, 40, 12, 8),
        (judged[1], by_hand[1], 1, 20, 6, 4),
    ):
        assert torch.equal(clip.recording, mels[i, :n_frames])
        assert torch.equal(clip.mel, spoken[i, :n_spoken])
        assert torch.equal(clip.alignment, free[i, :n_spoken, :n_text])
        distortion = clip.row.pop("mcd_db")
        assert distortion == mel_cepstral_distortion(clip.mel, clip.recording, config)
        assert clip.row == pytest.approx(expected)
    # Characters 3, 5 and 7 are reached in the middles of frames 10, 20 and 34, and by a diagonal
    # after 3, 5 and 7 eighths of 0.4 s; the second clip ends at 0.2 s without its character 3.
    assert judged[0].word_errors == pytest.approx([0.105 - 0.09, 0.205 - 0.3, 0.345 - 0.3])
    assert judged[0].diagonal_errors == pytest.approx([0.15 - 0.09, 0.25 - 0.3, 0.35 - 0.3])
    assert judged[1].word_errors == pytest.approx([0.2 - 0.1])
    assert judged[1].diagonal_errors == pytest.approx([0.15 - 0.1])
    longer = batch._replace(texts=["abc  defg", "ab c"])  # cleaning takes a character away
    assert judge(Voice(model, config, Tokenizer()), longer, 12, words)[0].word_errors == []


TABLE = [
    "length_ratio", "stopped_by_itself", "free_running_score", "mcd_db", *(
        f"{kind}{name}"
        for kind in ("", "free_running_")
        for name in ("focus", "coverage", "monotonicity")
    ),
]  # fmt: skip


def test_report_and_its_table_of_made_up_clips(capsys):
    """No share is 0 or 1 and no two numbers are the same, so that none can stand for another."""
    n = len(TABLE)
    rows = [{name: (i + 1) * (k + 1) / (5 * n) for k, name in enumerate(TABLE)} for i in range(5)]
    ratios, stopped = (1.14, 0.86, 1.0, 1.3, 3.0), (True, True, False, True, False)
    scores, distortions = (0.1, 0.2, 0.3, 0.4, 0.875), (1.0, 2.0, 4.0, 5.0, 10.0)
    for row, *values in zip(rows, ratios, stopped, scores, distortions, strict=True):
        row.update(zip(TABLE[:4], values, strict=True))
    errors = {
        "word_start": [[-0.01 * i for i in range(1, 11)], [], [0.2], [], []],
        "diagonal": [[0.3, -0.1, -0.2] * 3, [0.25] * 2, [], [], []],
    }
    report = make_report(rows, errors)
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
    assert make_report(rows, None) == {
        name: value for name, value in report.items() if name != "words" and "_ms" not in name
    }
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(" {2,}", line) for line in lines] == [
        ["clips", "5"],
        ["stopped by itself", "60.0%"],
        ["length within 15 % of the recording", "40.0%"],
        ["free-running score", "0.375"],
        ["focus, teacher forced / free running", "0.300 / 0.480"],
        ["coverage, teacher forced / free running", "0.360 / 0.540"],
        ["monotonicity, teacher forced / free running", "0.420 / 0.600"],
        ["mel-cepstral distortion, median / mean", "4.00 / 4.40 dB"],
        ["word start error, median / 90th percentile", "60 / 100 ms"],
        ["a straight diagonal, median / 90th percentile", "200 / 300 ms"],
    ]


def test_files_hold_the_report_of_their_table_and_follow_from_the_seed(
    flags, tiny_corpus, tmp_path, capsys
):
    words = [{"word": "x", "index": 0, "start": 0.0}, {"word": "y", "index": 4, "start": 0.2}]
    times = {path.stem: words for path in tiny_corpus.wavs.iterdir()}
    (tmp_path / "words.json").write_text(json.dumps(times))
    flags += ["--word_times", str(tmp_path / "words.json")]
    table, numbers = tmp_path / "out" / "clips.csv", tmp_path / "out" / "report.json"
    flags += ["--output_json", str(numbers), "--output_csv", str(table)]
    reports, printed = [], []
    for seed in ("1", "1", "2"):
        evaluate.main([*flags, "--seed", seed])
        reports.append(json.loads(numbers.read_text()))
        date = datetime.fromisoformat(reports[-1].pop("date"))
        assert abs((datetime.now(timezone.utc) - date).total_seconds()) < 60
        printed.append(capsys.readouterr().out)
    assert reports[0] == reports[1] and printed[0] == printed[1]
    assert reports[0]["focus"] != reports[2]["focus"]

    clips, manifest = pd.read_csv(table), pd.read_csv(tmp_path / "manifest.csv")
    expected = make_report(clips.to_dict("records"), None)
    described = {
        "checkpoint": str(tmp_path), "step": None, "manifest": str(tmp_path / "manifest.csv"),
        "seed": 2, "precision": "float32", "device": "cpu",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip
    assert {name: reports[2].pop(name) for name in described} == described
    intervals = reports[2].pop("intervals")
    word_numbers = {name: x for name, x in reports[2].items() if name not in expected}
    assert {**expected, **word_numbers} == pytest.approx(reports[2])
    assert intervals.keys() == reports[2].keys() - {"clips", "words"}
    assert all(low <= reports[2][name] <= high for name, (low, high) in intervals.items())
    assert set(clips["path"]) == set(manifest["file_path"])
    assert set(clips["text"]) == set(manifest["normalized_transcript"])
    assert (clips["spoken_frames"] == 12).all() and not clips["stopped_by_itself"].any()
    frames = [soundfile.info(path).frames // 256 for path in clips["path"]]
    assert clips["recording_frames"].tolist() == frames
    known = [Path(path).stem in times for path in clips["path"]]  # all but the odd name
    assert clips["word_start_median_ms"].notna().tolist() == known and word_numbers["words"] == 2
    starts = clips["word_start_median_ms"].median()
    assert word_numbers["word_start_median_ms"] == pytest.approx(starts)
    n_text = clips["text"].str.len()
    diagonal = (4 / n_text * clips["recording_frames"] * HOP_SECONDS - 0.2).abs()[known].median()
    assert word_numbers["diagonal_median_ms"] == pytest.approx(1000 * diagonal)
    print_report(reports[2])
    assert capsys.readouterr().out == printed[2]


def test_intervals_agree_with_those_of_the_normal_distribution():
    """Of 400 clips; the errors of a clip's three words are the same, so they count as one."""
    rng, n = np.random.default_rng(0), 400
    values = {name: rng.normal(1 + i, 0.1 + i / 100, n) for i, name in enumerate(TABLE)}
    rows = [{name: x[i] for name, x in values.items()} for i in range(n)]
    word_errors = rng.normal(0.05, 0.01, n)
    intervals = make_intervals(rows, {"word_start": [[x] * 3 for x in word_errors]}, 0)
    for name, column, wider in (
        *((name, values[name], 1.0) for name in TABLE[4:]),
        ("mcd_db_mean", values["mcd_db"], 1.0),
        ("mcd_db_median", values["mcd_db"], np.sqrt(np.pi / 2)),
        ("length_ratio_median", values["length_ratio"], np.sqrt(np.pi / 2)),
        ("word_start_median_ms", 1000 * word_errors, np.sqrt(np.pi / 2)),
    ):
        low, high = intervals[name]
        middle = np.median(column) if "median" in name else column.mean()
        error = 1.96 * wider * column.std() / np.sqrt(n)
        close = 0.3 if "median" in name else 0.1  # medians of 400 numbers jump
        assert high - low == pytest.approx(2 * error, rel=close), name
        assert low < middle < high
    one_clip = make_intervals(rows[:1], {"word_start": [[0.1]]}, 0)
    assert one_clip["focus"] == [rows[0]["focus"]] * 2


def test_the_step_is_the_checkpoints(flags, untrained, tmp_path, capsys):
    (untrained / "trainer_state.json").write_text('{"step": 1234}')
    evaluate.main([*flags, "--output_json", str(tmp_path / "x.json")])
    assert json.loads((tmp_path / "x.json").read_text())["step"] == 1234
    assert capsys.readouterr().err == "", "no bar where nobody looks"
    (untrained / "trainer_state.json").write_text("{")
    with pytest.raises(SystemExit, match=r"trainer_state\.json: cannot be read"):
        evaluate.main(flags)


def test_a_bar_on_a_terminal(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    evaluate.main(flags)
    said = capsys.readouterr()
    assert "3/3" in said.err and "clip" in said.err and "3/3" not in said.out


def test_the_worst_clips_are_drawn_worst_first(flags, tmp_path, monkeypatch):
    """By score, then by distortion; a folder that is drawn to again holds no old pictures."""

    def scores(output, token_lengths):
        values = free_running_scores(output, token_lengths)
        return {**values, "free_running_score": torch.tensor([0.1, 0.5, 0.1])}

    drawn = []

    def draw(recording, mel, alignment, text, hop_seconds, title):
        drawn.append(title)
        assert len(mel) == len(alignment) == 12 and alignment.shape[1] == len(text)
        return summary_figure(recording, mel, alignment, text, hop_seconds, title)

    monkeypatch.setattr(evaluate, "free_running_scores", scores)
    monkeypatch.setattr(pictures, "summary_figure", draw)
    folder, table = tmp_path / "worst", tmp_path / "clips.csv"
    flags = [*flags, "--output_csv", str(table), "--save_worst", str(folder)]
    evaluate.main([*flags, "--worst", "3"])
    clips = pd.read_csv(table).sort_values(
        ["free_running_score", "mcd_db"], ascending=[True, False]
    )
    assert clips["free_running_score"].tolist() == pytest.approx([0.1, 0.1, 0.5])
    names = [title.split(": free-running score")[0] for title in drawn]
    assert names == [Path(path).name for path in clips["path"]]
    assert f"MCD {clips['mcd_db'].iloc[0]:.2f} dB, reached the limit" in drawn[0]
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"worst_{n}.{kind}" for n in (1, 2, 3) for kind in ("png", "wav")]
    assert np.asarray(Image.open(folder / "worst_2.png").convert("L")).std() > 10
    evaluate.main([*flags, "--worst", "1"])
    assert sorted(path.name for path in folder.iterdir()) == ["worst_1.png", "worst_1.wav"]


@pytest.mark.parametrize(
    ("more", "culprit"),
    [
        (["--word_times", "absent.json"], "--word_times absent.json"),
        (["--word_times", "model.safetensors"], "--word_times model.safetensors"),
        (["--word_times", "config.json"], "config.json: cannot be read"),
        (["--word_times", "empty.json"], "knows no word"),
        (["--output_csv", "folder"], "folder"),
        (["--save_worst", "config.json"], "config.json"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(flags, untrained, monkeypatch, more, culprit):
    monkeypatch.chdir(untrained)
    (untrained / "folder").mkdir()
    (untrained / "empty.json").write_text("{}")
    before = sorted(untrained.iterdir())
    with pytest.raises(SystemExit, match=f"evaluate.py: .*{culprit}"):
        evaluate.main([*flags, *more])
    assert sorted(untrained.iterdir()) == before
