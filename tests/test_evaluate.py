"""The numbers that a checkpoint is judged by, on alignments whose scores are known."""

import json

import numpy as np
import pytest
import torch

import evaluate
from evaluate import alignment_scores, word_start_errors

HOP = 0.01


def staircase(n_frames, starts):
    """One-hot alignment: character i is spoken from frame starts[i] on."""
    alignment = torch.zeros(n_frames, len(starts))
    for frame in range(n_frames):
        alignment[frame, max(i for i, start in enumerate(starts) if start <= frame)] = 1.0
    return alignment


def test_a_perfect_alignment_scores_one():
    alignment = staircase(20, [0, 4, 9, 15])[None]
    scores = alignment_scores(alignment, torch.tensor([4]), torch.tensor([20]))
    assert {name: value.item() for name, value in scores.items()} == {
        "focus": 1.0,
        "coverage": 1.0,
        "monotonicity": 1.0,
    }


def test_scores_ignore_padding():
    padded = torch.full((1, 30, 9), 1 / 9)
    padded[0, :20, 4:] = 0.0
    padded[0, :20, :4] = staircase(20, [0, 4, 9, 15])
    scores = alignment_scores(padded, torch.tensor([4]), torch.tensor([20]))
    assert scores["focus"].item() == scores["monotonicity"].item() == 1.0


def test_each_fault_lowers_its_own_score():
    lengths = torch.tensor([4]), torch.tensor([20])
    blurred = staircase(20, [0, 4, 9, 15])[None] * 0.6 + 0.1
    assert alignment_scores(blurred, *lengths)["focus"].item() == pytest.approx(0.7)
    skipping = staircase(20, [0, 4, 4, 15])[None]  # the second character is never attended to
    assert alignment_scores(skipping, *lengths)["coverage"].item() == 0.75
    jumping = staircase(20, [0, 4, 9, 15])[None]
    jumping[0, 17] = jumping[0, 0]
    score = alignment_scores(jumping, *lengths)["monotonicity"].item()
    assert score == pytest.approx(18 / 19)


def test_word_start_errors_of_a_known_staircase():
    """Characters 0, 3 and 6 begin words; frames 0, 10, 30 of 40."""
    alignment = staircase(40, [0, 3, 6, 10, 14, 20, 30, 34])
    words = [
        {"word": "a", "index": 0, "start": 0.0},
        {"word": "b", "index": 3, "start": 0.085},
        {"word": "c", "index": 6, "start": 0.325},
    ]
    errors, diagonal = word_start_errors(alignment, words, HOP)
    np.testing.assert_allclose(errors, [0.105 - 0.085, 0.305 - 0.325])
    np.testing.assert_allclose(diagonal, [3 / 8 * 0.4 - 0.085, 6 / 8 * 0.4 - 0.325])


def test_a_word_that_is_never_reached_counts_to_the_end():
    alignment = staircase(40, [0, 10]).repeat_interleave(2, dim=1)[:, :3]
    alignment = torch.nn.functional.pad(alignment, (0, 1))
    words = [{"word": "a", "index": 0, "start": 0.0}, {"word": "b", "index": 3, "start": 0.1}]
    assert word_start_errors(alignment, words, HOP)[0] == pytest.approx([0.4 - 0.1])


def test_report_of_a_checkpoint(tiny_corpus, tmp_path, capsys):
    """On an untrained model: the table and the file agree, and the numbers are shares."""
    from safetensors.torch import save_file

    from dataset import AudioConfig
    from model import Tacotron2, Tacotron2Config
    from synthesize import write_config
    from test_synthesize import SMALL
    from tokenizer import Tokenizer

    torch.manual_seed(0)
    config = Tacotron2Config(vocab_size=Tokenizer().vocab_size, **SMALL)
    model = Tacotron2(config)
    with torch.no_grad():
        model.decoder.stop_projection.bias.fill_(-100.0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    write_config(tmp_path, config, AudioConfig(), Tokenizer())
    words = {
        path.stem: [
            {"word": "x", "index": 0, "start": 0.0},
            {"word": "y", "index": 4, "start": 0.2},
        ]
        for path in tiny_corpus.wavs.iterdir()
    }
    (tmp_path / "words.json").write_text(json.dumps(words))
    report_path = tmp_path / "out" / "report.json"
    flags = ["--checkpoint", str(tmp_path), "--path_to_manifest", str(tiny_corpus.test_manifest),
             "--max_decoder_steps", "12", "--device", "cpu"]  # fmt: skip
    evaluate.main(
        [*flags, "--word_times", str(tmp_path / "words.json"), "--output_json", str(report_path)]
    )
    report = json.loads(report_path.read_text())
    assert report["clips"] == 3 and report["words"] == 3
    assert report["stopped_by_itself"] == 0.0 and report["length_within_15_percent"] == 0.0
    assert 0 < report["focus"] < 1 and report["word_start_median_ms"] > 0
    assert "stopped by itself" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--word_times"):
        evaluate.main([*flags, "--word_times", str(tmp_path / "absent.json")])
