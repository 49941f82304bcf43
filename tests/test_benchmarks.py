"""The benchmarks at tiny sizes: what they count, what they compare, what they write."""

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common, griffin_lim, inference, loader, minutes, throughput, train_step
from benchmarks.common import MODELS, OURS, PLAIN, TORCHAUDIO, forward_flops
from command_line.files import DataError
from dataset import AudioConfig, BatchSampler, TTSDataset
from model import Tacotron2, Tacotron2Config
from speech.voice import DTYPES, load_checkpoint
from text.tokenizer import Tokenizer

SMALL = {
    "character_embed_dim": 32,
    "encoder_embed_dim": 32,
    "decoder_rnn_embed_dim": 48,
    "decoder_prenet_dim": 16,
    "decoder_postnet_n_filters": 32,
    "attention_dim": 16,
}
SMALL_FLAGS = [word for name, size in SMALL.items() for word in (f"--{name}", str(size))]
CPU = torch.device("cpu")
SIZE = train_step.Size(batch_size=2, n_text=9, n_mel=11)


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply small matrices, because large ones take seconds on a slow core."""
    monkeypatch.setitem(common.MATMUL_SIZE, "cpu", 128)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def count_flops(function) -> int:
    # oneDNN runs an LSTM as one operation that the counter does not know.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of Intel GPUs; not asked for here
def test_counted_flops_are_those_of_the_plain_model():
    config = Tacotron2Config(
        num_mels=10, character_embed_dim=24, encoder_embed_dim=32, encoder_n_convolutions=2,
        decoder_rnn_embed_dim=48, decoder_prenet_dim=16, decoder_prenet_depth=3, attention_dim=20,
        decoder_postnet_n_filters=36, attention_location_n_filters=5,
    )  # fmt: skip
    contender = train_step.make_contender(PLAIN, config, CPU)
    batch = train_step.make_batch(config, SIZE, CPU)
    counted = forward_flops(config, *SIZE)
    assert count_flops(lambda: train_step.forward(contender, batch)) == counted
    with_backward = count_flops(lambda: train_step.train_step(contender, batch, torch.float32))
    # The gradient of the mels, which nobody asks for, is the difference.
    assert with_backward == pytest.approx(common.TRAINING_PASSES * counted, rel=0.02)


def test_both_models_have_the_same_sizes():
    config = Tacotron2Config(**SMALL)
    shapes = [
        sorted(tuple(p.shape) for p in model.parameters())
        for model in (Tacotron2(config), common.build_torchaudio(config))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", [*MODELS, PLAIN])
def test_a_training_step_clips_and_trains(name):
    """Every parameter moves, in bfloat16 too, and the gradients' norm is clipped to 1."""
    config = Tacotron2Config(**SMALL)
    contender = train_step.make_contender(name, config, CPU, **throughput.TRAINING)
    batch, norms = train_step.make_batch(config, SIZE, CPU), []
    parameters = list(contender.model.parameters())
    contender.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
    )
    for dtype in DTYPES.values():
        before = [parameter.detach().clone() for parameter in parameters]
        loss = train_step.train_step(contender, batch, dtype)
        # Two mel losses against unit noise and a stop loss: 1 + 1 + 0.7, or more.
        assert 2.0 < loss.item() < 10.0
        assert not any(torch.equal(b, a) for b, a in zip(before, parameters, strict=True))
        assert norms.pop().item() == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(RuntimeError, match=f"{name}: the norm of the gradients is nan"):
        train_step.train_step(contender, batch._replace(mels=batch.mels * torch.nan), torch.float32)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_step():
    """In a fresh process, since this one's peak is other tests'; never less than autograd saves."""
    size = train_step.Size(batch_size=32, n_text=60, n_mel=240)
    config, saved = Tacotron2Config(**SMALL), {}
    memory = train_step.peak_memory_in_child(OURS, config, size, torch.float32, CPU)

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    contender = train_step.make_contender(OURS, config, CPU)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        train_step.forward(contender, train_step.make_batch(config, size, CPU))
    for parameter in contender.model.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    saved_mib = sum(t.untyped_storage().nbytes() for t in saved.values()) / train_step.MIB
    assert saved_mib < memory["peak_mib"] < 4 * saved_mib
    assert memory["total_mib"] > memory["peak_mib"]


def test_train_step_tables(tmp_path, capsys, monkeypatch):
    memory = {name: {"peak_mib": n, "total_mib": 9.0} for n, name in enumerate([*MODELS, PLAIN], 2)}
    monkeypatch.setattr(train_step, "peak_memory_in_child", lambda name, *_: memory[name])
    train_step.main(
        ["--batch_size", "2", "--n_text", "5", "--n_mel", "6", "--repeats", "2", "--device", "cpu",
         "--sweep", "4x2", "--sweep_repeats", "1", "--plain", "--output_dir", str(tmp_path),
         *SMALL_FLAGS]
    )  # fmt: skip
    rows = read_rows(tmp_path / "train_step.csv")
    assert [(row["model"], row["peak_mib"]) for row in rows] == [
        (OURS, "2"), (TORCHAUDIO, "3"), (PLAIN, "4")
    ]  # fmt: skip
    for row in rows:
        step_ms, floor_ms = float(row["step_ms"]), float(row["floor_ms"])
        assert float(row["step_ms_min"]) <= step_ms <= float(row["step_ms_max"])
        assert float(row["frames_per_s"]) == pytest.approx(2 * 6 / step_ms * 1e3)
        assert float(row["of_floor"]) == pytest.approx(floor_ms / step_ms)
        assert "torch" in row["machine"]
    sweep = read_rows(tmp_path / "train_step_sweep.csv")
    assert [row["n_mel"] for row in sweep] == ["6"] * 3 + ["4"] * 3
    flops = [forward_flops(Tacotron2Config(**SMALL), 2, 5, n_mel) for n_mel in (6, 4)]
    floors = [float(row["floor_ms"]) for row in sweep]
    assert floors[3] / floors[0] == pytest.approx(flops[1] / flops[0])
    medians = [float(row["step_ms"]) for row in rows]
    printed = capsys.readouterr().out
    assert f"time, torchaudio / ours: {medians[1] / medians[0]:.2f} (" in printed


def test_inference_tables(tmp_path):
    inference.main(
        ["--batch_size", "1", "3", "--n_text", "5", "--n_steps", "4", "--repeats", "2",
         "--device", "cpu", "--output_dir", str(tmp_path), *SMALL_FLAGS]
    )  # fmt: skip
    rows = read_rows(tmp_path / "inference.csv")
    found = {(row["model"], row["dtype"], row["batch_size"]) for row in rows}
    assert found == {(name, dtype, b) for name in MODELS for dtype in DTYPES for b in ("1", "3")}
    for row in rows:
        # 4 steps make 4 frames of 256 samples for each clip of the batch.
        audio_ms_per_step = int(row["batch_size"]) * 256 / 22050 * 1e3
        real_time = audio_ms_per_step / float(row["step_ms"])
        assert float(row["x_real_time"]) == pytest.approx(real_time)


@pytest.mark.slow
def test_loader_tables(tmp_path, capsys):
    loader.main(
        ["--n_clips", "6", "--batch_size", "2", "--num_workers", "1", "--repeats", "1",
         "--output_dir", str(tmp_path)]
    )  # fmt: skip
    rows = read_rows(tmp_path / "loader.csv")
    assert [row["num_workers"] for row in rows] == ["0", "1"]
    assert all(float(row["clips_per_s"]) > 0 for row in rows)
    printed = capsys.readouterr().out.splitlines()
    padding = {line.split("  ")[0]: float(line.split()[-1]) for line in printed if "13100" in line}
    assert 0 < padding["BatchSampler"] < 0.1 < padding["random order"] < 0.5
    assert loader.padding_share([10, 20, 30], [[0, 1], [2]]) == pytest.approx(10 / 70)


@pytest.mark.slow
def test_throughput_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "LONGEST", 1.5)
    (tmp_path / "corpus").mkdir()
    short_clips = loader.write_corpus(tmp_path / "corpus", 8)  # of noise, which make 3 batches
    monkeypatch.setattr(common, "matmul_rate", lambda device, dtype: 1e9)
    throughput.main(
        ["--batch_size", "3", "--dtype", "float32", "--device", "cpu", "--num_workers", "0",
         "--manifest", str(short_clips), "--repeats", "2", "--seed", "5",
         "--output_dir", str(tmp_path), *SMALL_FLAGS]
    )  # fmt: skip
    rows = read_rows(tmp_path / "throughput.csv")

    dataset = TTSDataset(short_clips, AudioConfig(), Tokenizer())
    lengths = [round(n_frames) for n_frames in dataset.n_frames]
    sampled = BatchSampler(dataset.n_frames, 3, seed=5).draw()
    config = Tacotron2Config(**SMALL, vocab_size=Tokenizer().vocab_size)
    sizes = zip(dataset.texts, lengths, strict=True)
    flops = sum(forward_flops(config, 1, len(text), n_mel) for text, n_mel in sizes)
    assert [row["model"] for row in rows] == [OURS, TORCHAUDIO]
    for row in rows:
        assert (row["steps"], row["frames"]) == ("3", str(sum(lengths)))
        seconds = 3 * float(row["step_ms"]) / 1e3
        assert float(row["frames_per_s"]) == pytest.approx(sum(lengths) / seconds)
        assert float(row["padding_share"]) == pytest.approx(loader.padding_share(lengths, sampled))
        assert 3 * float(row["floor_ms"]) == pytest.approx(3 * flops / 1e6)


def test_griffin_lim_is_measured_on_recordings(tiny_corpus, tmp_path, monkeypatch):
    """Compare the other way with the repository's, which comes closer to the mel."""
    names = ("pseudo-inverse, 60 iterations", "magnitudes fitted in each of 48")
    monkeypatch.setattr(griffin_lim, "WAYS", {name: griffin_lim.WAYS[name] for name in names})
    flags = ["--recordings", str(tiny_corpus.wavs), "--n_clips", "1"]
    griffin_lim.main([*flags, "--output_dir", str(tmp_path)])
    rows = read_rows(tmp_path / "griffin_lim.csv")
    assert [row["way"] for row in rows] == list(names)
    errors = [float(row["mel"]) for row in rows]
    assert errors[0] > errors[1] > 0
    assert all(float(row["real-time factor"]) > 0 and float(row["peak"]) > 0.1 for row in rows)
    with pytest.raises(SystemExit, match="no wav or flac"):
        griffin_lim.main(["--recordings", str(tmp_path)])


def test_voices_of_few_minutes_share_their_sentences(tmp_path):
    """The sentences held out are neighbours that nobody trains on; smaller sets are parts."""
    clips = pd.DataFrame(
        {
            "file_path": [f"{tmp_path}/{i:03}.wav" for i in range(200)],
            "normalized_transcript": [f"Sentence {i % 190}." for i in range(200)],
            "duration": 6.0,
        }
    )
    splits = minutes.hold_out(clips, n_places=2)
    assert len(splits["train"]) == 200 - 2 * minutes.IN_A_ROW
    held_out = pd.concat((splits["val"], splits["test"]))
    assert {*held_out.index} == {*range(50, 64), *range(150, 164)}
    clips.loc[60, "normalized_transcript"] = "sentence 3"
    held_out = pd.concat([*minutes.hold_out(clips, n_places=2).values()][1:])
    assert {*held_out.index} == {*range(50, 64), *range(150, 164)} - {60}
    few, more = (minutes.take_minutes(splits["train"], n) for n in (2, 5))
    assert (len(few), len(more)) == (20, 50) and {*few.index} < {*more.index}
    with pytest.raises(DataError, match=r"there are 17\.2 minutes"):
        minutes.take_minutes(splits["train"], 18)


def test_a_voice_from_nothing_has_the_checkpoints_sizes_and_new_weights(voice, tmp_path):
    known = load_checkpoint(voice)
    new = load_checkpoint(minutes.save_untrained(voice, tmp_path / "untrained"))
    assert new.model.config == known.model.config and new.audio_config == known.audio_config
    assert new.tokenizer.symbols == known.tokenizer.symbols
    known, new = (x.model.decoder.stop_projection.bias for x in (known, new))
    assert (known == -100).all() and (new.abs() < 1).all()
