"""prep_splits.py --report, on clips whose silence, level, clipping and pace are known."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import prep_splits
from corpora.lengths import fit_usual_lengths
from corpora.report import measure_audio
from test_prep_splits import add_row, listing

RATE = 8000
TONE = 400.0  # Hz, whose period divides a frame


def tone(seconds: float, amplitude: float = 0.5, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return amplitude * np.sin(2 * np.pi * TONE * time + 0.3)


def measured(path: Path, samples: np.ndarray, rate: int = RATE, **options) -> dict:
    soundfile.write(path, samples, rate, **options)
    return measure_audio(path)


def report_on(corpus: Path, save: Path, *flags: str) -> tuple[dict, pd.DataFrame]:
    """report.json, and clips.csv by clip_id."""
    prep_splits.main(["--path_to_ljspech", str(corpus), "--report", str(save), *flags])
    clips = pd.read_csv(save / "clips.csv", keep_default_na=False).set_index("clip_id")
    return json.loads((save / "report.json").read_text()), clips


def make_voice(folder: Path, n: int = 40, overhead: float = 0.3, per_letter: float = 0.06) -> Path:
    """Clips whose length follows from their text, within a few per cent; 10 to 10 + n letters."""
    rng = np.random.default_rng(0)
    (folder / "wavs").mkdir(parents=True)
    lines = []
    for i in range(n):
        text = "ab, cd. " * 15
        while sum(map(str.isalpha, text)) > 10 + i:
            text = text[:-1]
        seconds = (overhead + per_letter * (10 + i)) * math.exp(rng.normal(0, 0.05))
        soundfile.write(folder / f"wavs/clip{i:02d}.wav", tone(seconds), RATE)
        lines.append(f"clip{i:02d}|{text}|{text}\n")
    (folder / "metadata.csv").write_text("".join(lines))
    return folder


def replace_text(corpus: Path, clip_id: str, text: str) -> None:
    lines = (corpus / "metadata.csv").read_text().split("\n")
    lines = [
        f"{clip_id}|{text}|{text}" if line.startswith(f"{clip_id}|") else line for line in lines
    ]
    (corpus / "metadata.csv").write_text("\n".join(lines))


# ---- what is measured of a recording ----


def test_silence_and_level_of_a_clip_of_known_parts(tmp_path):
    rate = 22050
    parts = ((0.3, 0), (1.0, 0.5), (0.5, 0), (0.4, 0.25), (0.1, 0), (0.3, 0.5), (0.2, 0))
    samples = np.concatenate([tone(*part, rate) for part in parts])
    found = measured(tmp_path / "clip.wav", samples, rate)
    assert found["seconds"] == pytest.approx(len(samples) / rate)
    assert (found["sampling_rate"], found["channels"]) == (rate, 1)
    # A frame of 20 ms that is partly silent sounds, on either side of a pause.
    known = {"start_silence": 0.3, "end_silence": 0.2, "longest_pause": 0.5, "spoken_seconds": 2.3}
    assert {name: found[name] for name in known} == pytest.approx(known, abs=0.041)
    assert found["inner_silence"] == pytest.approx(0.6 / 2.3, abs=0.03)
    assert found["peak_dbfs"] == pytest.approx(20 * math.log10(0.5), abs=0.02)
    rms = math.sqrt((1.3 * 0.5**2 + 0.4 * 0.25**2) / 2 / 2.8)
    assert found["rms_dbfs"] == pytest.approx(20 * math.log10(rms), abs=0.02)


def test_silence_lies_forty_decibels_below_the_clips_own_loudest_frame(tmp_path):
    for loudest in (0.9, 0.009):
        parts = [tone(0.5, loudest * 10 ** (db / 20)) for db in (-43, 0, -43, -37, 0, -37)]
        found = measured(tmp_path / "clip.wav", np.concatenate(parts), subtype="FLOAT")
        assert found["start_silence"] == pytest.approx(0.5) == found["longest_pause"]
        assert found["end_silence"] == pytest.approx(0.0)


def test_a_constant_offset_is_named_and_no_sound(tmp_path, capsys):
    corpus = make_voice(tmp_path / "lj", 12)
    edges = np.concatenate([np.zeros(RATE // 2), tone(1, 0.3), np.zeros(RATE // 2)])
    for i, offset in enumerate((0.0, 0.02, -0.02)):
        soundfile.write(corpus / f"wavs/clip{i:02d}.wav", edges + offset, RATE, subtype="PCM_24")
    soundfile.write(corpus / "wavs/clip03.wav", np.full(RATE, 0.1), RATE)
    report, clips = report_on(corpus, tmp_path / "out")
    assert report["clips_with_offset"] == 3 and clips.loc["clip03", "why"] == "no sound"
    assert "offset (at least 0.3%): 3 clips\n" in capsys.readouterr().out
    for name in ("start_silence", "end_silence", "rms_dbfs", "peak_dbfs"):
        columns = clips[name].astype(float)
        assert columns["clip01"] == pytest.approx(columns["clip00"], abs=0.02)
        assert columns["clip02"] == pytest.approx(columns["clip00"], abs=0.02)
    assert float(clips.loc["clip01", "start_silence"]) == pytest.approx(0.5, abs=0.02)


def test_what_training_reads_of_channels_that_cancel_is_measured(tmp_path):
    both = np.stack([tone(1), -tone(1)], axis=1)
    assert measured(tmp_path / "a.wav", both)["rms_dbfs"] == pytest.approx(-9.03, abs=0.02)


def test_clipping_is_counted_where_samples_reach_full_scale(tmp_path):
    clipped = np.clip(tone(1, 1.5), -1, 1)
    pcm = np.round(clipped * 32767).astype(np.int16)
    found = measured(tmp_path / "clip.wav", pcm)
    assert found["clipped_samples"] == (np.abs(pcm) == 32767).sum() > 1000
    assert found["peak_dbfs"] == pytest.approx(0, abs=0.001)
    assert measured(tmp_path / "clip.wav", tone(1, 0.99))["clipped_samples"] == 0


# ---- which pairs look wrong ----


def test_the_usual_length_is_a_line_that_wrong_pairs_do_not_bend():
    rng = np.random.default_rng(0)
    letters = rng.integers(10, 150, 3000)
    true = 0.4 + 0.07 * letters
    seconds = true * np.exp(rng.normal(0, 0.1, 3000))
    assert np.abs(fit_usual_lengths(letters, seconds) / true - 1).max() < 0.02
    seconds[:300] = rng.uniform(0.5, 12, 300)  # of other texts
    assert np.abs(fit_usual_lengths(letters, seconds) / true - 1).max() < 0.15
    slope, overhead = np.polyfit(letters, seconds, 1)
    assert np.abs((overhead + slope * letters) / true - 1).max() > 0.4, "least squares is bent"


def test_even_pairs_are_not_suspected_and_a_wrong_text_is(tmp_path, capsys):
    corpus = make_voice(tmp_path / "lj")
    report, _ = report_on(corpus, tmp_path / "out")
    assert report["suspects"] == 0 and report["worst_suspects"] == []

    # 30 letters that are spoken in the time of 12, 15 in the time of 45.
    replace_text(corpus, "clip02", "abcde " * 6)
    replace_text(corpus, "clip35", "abcde " * 3)
    report, clips = report_on(corpus, tmp_path / "out")
    found = [(row["clip_id"], row["why"]) for row in report["worst_suspects"]]
    assert found == [("clip35", "the text is too short"), ("clip02", "the text is too long")]
    assert list(clips.index[clips["why"] != ""]) == ["clip02", "clip35"]
    assert float(clips.loc["clip02", "usual_seconds"]) == pytest.approx(0.3 + 30 * 0.06, rel=0.06)
    z_scores = clips["z_score"].astype(float)
    assert z_scores["clip02"] > 5 and z_scores["clip35"] < -5
    assert np.abs(z_scores.drop(["clip02", "clip35"])).max() < 3.5
    # As many standard deviations as the lengths were drawn with, which is 5 %.
    expected = math.log((0.3 + 30 * 0.06) / clips.loc["clip02", "spoken_seconds"]) / 0.05
    assert z_scores["clip02"] == pytest.approx(expected, rel=0.3)
    out = capsys.readouterr().out
    assert out.index("clip35") < out.index("clip02") and "look wrong: 2\n" in out


def test_a_clip_without_sound_and_a_text_without_letters_come_first(tmp_path):
    corpus = make_voice(tmp_path / "lj", 12)
    soundfile.write(corpus / "wavs/clip03.wav", np.zeros(RATE), RATE)
    replace_text(corpus, "clip05", "?!")
    replace_text(corpus, "clip07", "abcde " * 30)
    report, clips = report_on(corpus, tmp_path / "out")
    assert [(row["clip_id"], row["why"]) for row in report["worst_suspects"]] == [
        ("clip03", "no sound"),
        ("clip05", "no letter to speak"),
        ("clip07", "the text is too long"),
    ]
    assert clips.loc["clip03", "rms_dbfs"] == -120
    assert "Infinity" not in (tmp_path / "out/report.json").read_text()


# ---- the report ----


def test_the_numbers_are_those_of_the_clips(tmp_path, capsys):
    corpus = make_voice(tmp_path / "lj", 20)
    stereo = np.stack([tone(2, rate=16000)] * 2, axis=1)
    soundfile.write(corpus / "wavs/clip04.wav", stereo, 16000)
    replace_text(corpus, "clip06", "abc \u2603 def abc de")
    before = listing(corpus)
    report, clips = report_on(corpus, tmp_path / "out", "--path_to_save", str(tmp_path / "splits"))
    assert listing(tmp_path / "out") == ["clips.csv", "recordings.png", "report.json"]
    assert listing(tmp_path / "splits") == ["test_metadata.csv", "train_metadata.csv"]
    assert listing(corpus) == before
    assert report["clips"] == 20 == len(clips)
    durations = {p.stem: soundfile.info(p).duration for p in (corpus / "wavs").iterdir()}
    assert clips["seconds"].to_dict() == pytest.approx(durations, abs=1e-4)
    assert report["hours"] == pytest.approx(sum(durations.values()) / 3600)
    assert report["sampling_rates"] == {"8000": 19, "16000": 1}
    assert report["channels"] == {"1": 19, "2": 1}
    for column in ("seconds", "characters_per_second", "end_silence", "rms_dbfs", "peak_dbfs"):
        values = clips[column].astype(float)
        expected = {name: getattr(values, name)() for name in ("mean", "min", "median", "max")}
        expected["std"] = values.std(ddof=0)
        assert report[column] == pytest.approx(expected, abs=2e-4)
    assert "'\u2603' in 1" in report["unknown_characters"]
    out = capsys.readouterr().out
    assert out.startswith(f"20 clips, {report['hours']:.2f} hours\n")
    assert report["unknown_characters"] in out


def test_clips_that_cannot_be_read_are_listed_and_not_fatal(tmp_path, capsys):
    corpus = make_voice(tmp_path / "lj", 12)
    (corpus / "wavs/clip02.wav").write_bytes(b"no audio")
    (corpus / "wavs/clip03.wav").unlink()
    add_row(corpus, "clip99|two columns")
    report, clips = report_on(corpus, tmp_path / "out")
    assert (report["clips"], report["unusable_clips"], len(clips)) == (10, 3, 13)
    assert clips.loc["clip02", "why"].startswith("unreadable: ")
    assert clips.loc["clip03", "why"].startswith("missing: ")
    assert clips.loc["clip02", "seconds"] == "" and clips.loc["clip01", "seconds"] != ""
    out = capsys.readouterr().out
    assert "cannot be used: 3\n" in out
    assert "  metadata.csv line 3: 'clip02': unreadable: " in out
    assert "  metadata.csv line 13: 'clip99': 2 columns instead of 3" in out


# ---- a real voice ----


def test_a_real_voice(real_voice_dir, tmp_path):
    """Two of its transcripts are known to be wrong: one has a note, one is an abbreviation."""
    report, clips = report_on(real_voice_dir, tmp_path / "out")
    assert report["clips"] == len(clips) == 402 and report["unusable_clips"] == 0
    assert report["sampling_rates"] == {"16000": 402} and report["clipped_clips"] == 0
    suspects = [row["clip_id"] for row in report["worst_suspects"]]
    assert suspects[:2] == ["AL-spy_iax2", "AL-spy_mgcp"] and len(suspects) <= 5
    assert report["unknown_characters"] == "", "number signs and asterisks are read"
