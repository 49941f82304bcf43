"""The benchmarks at tiny sizes: what they count, what they compare, what they write."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common, inference, loader, train_step, training
from benchmarks.common import MODELS, OURS, TORCHAUDIO, forward_flops, forward_macs
from model import Tacotron2, Tacotron2Config
from synthesize import DTYPES

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
    """The large matrix product takes seconds on a slow core."""
    monkeypatch.setitem(common.MATMUL_SIZE, "cpu", 128)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.width > 300 and image.height > 200
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20, "should not be blank"


def count_flops(function) -> int:
    # oneDNN runs an LSTM as one operation that the counter does not know.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of Intel GPUs; not asked for here
@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["default", "small"])
def test_counted_flops_are_those_of_the_plain_model(sizes):
    config = Tacotron2Config(**sizes, fast_decoder=False)
    contender = training.make_contender(OURS, config, CPU)
    batch = train_step.make_batch(config, SIZE, CPU)
    counted = forward_flops(config, *SIZE)
    assert count_flops(lambda: training.forward(contender, batch)) == counted
    with_backward = count_flops(lambda: train_step.train_step(contender, batch, torch.float32))
    # The gradient of the mels, which nobody asks for, is the difference.
    assert with_backward == pytest.approx(common.TRAINING_PASSES * counted, rel=0.02)


def test_parts_grow_with_what_they_work_on():
    config = Tacotron2Config()
    base, more_text, more_mel = (
        forward_macs(config, *size) for size in ((2, 10, 20), (2, 20, 20), (2, 10, 40))
    )
    for part in base:
        of_text = more_text[part] / base[part]
        of_mel = more_mel[part] / base[part]
        text_only = part.startswith("encoder") or part == "attention keys"
        pairs = part in ("attention location", "attention energies", "attention context")
        assert (of_text, of_mel) == ((2, 1) if text_only else (2, 2) if pairs else (1, 2)), part
    folded = forward_macs(config, 2, 10, 20, folded=True)
    assert {part for part in base if folded[part] != base[part]} == {"attention location"}
    assert folded["attention location"] == 2 * 10 * 20 * 2 * 31 * 128


def test_decoder_step_weights():
    decoder = Tacotron2(Tacotron2Config()).decoder
    read = [decoder.prenet, decoder.attention_rnn, decoder.attention.query_layer]
    read += [decoder.decoder_rnn, decoder.mel_projection, decoder.stop_projection]
    n_weights = sum(p.numel() for part in read for p in part.parameters() if p.ndim == 2)
    assert common.decoder_step_weights(Tacotron2Config()) == n_weights


@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["default", "small"])
def test_both_models_have_the_same_sizes(sizes):
    config = Tacotron2Config(**sizes)
    shapes = [
        sorted(tuple(p.shape) for p in model.parameters())
        for model in (Tacotron2(config), common.build_torchaudio(config))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_training_step_trains(name, dtype):
    config = Tacotron2Config(**SMALL)
    contender = training.make_contender(name, config, CPU)
    batch = train_step.make_batch(config, SIZE, CPU)
    before = [parameter.detach().clone() for parameter in contender.model.parameters()]
    loss = train_step.train_step(contender, batch, dtype)
    # Two mel losses against unit noise and a stop loss: 1 + 1 + 0.7, and more of an untrained net.
    assert 2.0 < loss.item() < 10.0
    after = list(contender.model.parameters())
    moved = [not torch.equal(b, a) for b, a in zip(before, after, strict=True)]
    assert all(moved), "every parameter should have had a gradient"
    assert all(parameter.grad is None for parameter in after)


def test_models_take_turns(monkeypatch):
    turns = []
    monkeypatch.setattr(
        train_step,
        "train_step",
        lambda contender, batch, dtype: turns.append(contender.name) or torch.tensor(1.0),
    )
    contenders = [training.Contender(name, None, None) for name in MODELS]
    batch = train_step.make_batch(Tacotron2Config(**SMALL), SIZE, CPU)
    seconds = train_step.time_steps(contenders, batch, torch.float32, repeats=3)
    assert turns[2:] == [OURS, TORCHAUDIO, TORCHAUDIO, OURS, OURS, TORCHAUDIO]
    assert {name: len(times) for name, times in seconds.items()} == {OURS: 3, TORCHAUDIO: 3}


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch):
    monkeypatch.setattr(train_step, "train_step", lambda *args: torch.tensor(float("nan")))
    batch = train_step.make_batch(Tacotron2Config(**SMALL), SIZE, CPU)
    with pytest.raises(RuntimeError, match="ours: the loss is nan"):
        train_step.time_steps([training.Contender(OURS, None, None)], batch, torch.float32, 1)


def test_peak_memory_grows_with_the_batch():
    """In one process: the peak only ever rises, so the larger batch must come on top."""
    config = Tacotron2Config(**SMALL)
    before = train_step.resident_bytes(peak=True) / train_step.MIB
    big = train_step.Size(batch_size=32, n_text=60, n_mel=120)
    memory = train_step.peak_memory(TORCHAUDIO, config, big, torch.float32, CPU)
    activations = 32 * 120 * 60 * SMALL["attention_dim"] * 4 / train_step.MIB  # of one tanh
    assert memory["peak_mib"] > activations
    assert memory["total_mib"] >= max(before, memory["peak_mib"])


def test_train_step_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # memory is measured by children, which must find their modules
    train_step.main(
        ["--batch_size", "2", "--n_text", "5", "--n_mel", "6", "--repeats", "2", "--device", "cpu",
         "--sweep", "4x2", "8x2", "--sweep_repeats", "1", "--output_dir", "out",
         *SMALL_FLAGS]
    )  # fmt: skip
    rows = read_rows(tmp_path / "out" / "train_step.csv")
    assert [row["model"] for row in rows] == [OURS, TORCHAUDIO]
    config = Tacotron2Config(**SMALL)
    for row in rows:
        step_ms, floor_ms = float(row["step_ms"]), float(row["floor_ms"])
        assert float(row["step_ms_min"]) <= step_ms <= float(row["step_ms_max"])
        assert float(row["frames_per_s"]) == pytest.approx(2 * 6 / step_ms * 1e3)
        assert float(row["of_floor"]) == pytest.approx(floor_ms / step_ms)
        assert float(row["total_mib"]) > 100 > float(row["peak_mib"]) >= 0
        assert "torch" in row["machine"]
    assert rows[0]["floor_ms"] == rows[1]["floor_ms"]

    sweep = read_rows(tmp_path / "out" / "train_step_sweep.csv")
    assert [(row["model"], row["n_mel"]) for row in sweep] == [
        (name, n_mel) for n_mel in ("6", "4", "8") for name in MODELS
    ]
    floors = [float(row["floor_ms"]) for row in sweep]
    flops = [forward_flops(config, 2, 5, n_mel) for n_mel in (6, 4, 8)]
    assert floors[4] / floors[2] == pytest.approx(flops[2] / flops[1])
    parts = read_rows(tmp_path / "out" / "train_step_flops.csv")
    total = next(row for row in parts if row["part"] == "all")
    assert float(total["forward_mflop_per_frame"]) == pytest.approx(
        forward_flops(config, 2, 5, 6) / 12 / 1e6
    )
    check_picture(tmp_path / "out" / "train_step.png")
    printed = capsys.readouterr().out
    medians = [float(row["step_ms"]) for row in rows]
    assert f"time, torchaudio / ours: {medians[1] / medians[0]:.2f} (" in printed
    assert "peak memory, torchaudio / ours: " in printed


def test_inference_tables(tmp_path, capsys):
    inference.main(
        ["--batch_size", "1", "3", "--n_text", "5", "--n_steps", "4", "--repeats", "2",
         "--device", "cpu", "--output_dir", str(tmp_path), *SMALL_FLAGS]
    )  # fmt: skip
    rows = read_rows(tmp_path / "inference.csv")
    found = {(row["model"], row["dtype"], row["batch_size"]) for row in rows}
    assert found == {(name, dtype, b) for name in MODELS for dtype in DTYPES for b in ("1", "3")}
    assert len(rows) == 8
    for row in rows:
        # 4 steps make 4 frames of 256 samples for each clip of the batch.
        audio_ms_per_step = int(row["batch_size"]) * 256 / 22050 * 1e3
        real_time = audio_ms_per_step / float(row["step_ms"])
        assert float(row["x_real_time"]) == pytest.approx(real_time)
        assert float(row["floor_ms"]) > 0 and row["floor_is"] in ("compute", "weights")
    check_picture(tmp_path / "inference.png")
    printed = capsys.readouterr().out
    for batch_size in (1, 3):
        for peer, own in (("float32",) * 2, ("bfloat16",) * 2, ("float32", "bfloat16")):
            assert f"batch {batch_size}: torchaudio {peer} / ours {own}: " in printed


def test_inference_is_in_the_dtype_asked_for():
    speakers = inference.make_speakers(MODELS, Tacotron2Config(**SMALL), 3, CPU)
    tokens = torch.randint(1, 40, (2, 5))
    for name, speaker in speakers.items():
        torch.manual_seed(0)
        full = inference.speak(speaker, tokens, torch.float32)
        torch.manual_seed(0)
        half = inference.speak(speaker, tokens, torch.bfloat16)
        assert full.shape == half.shape == (2, 3, 80), name
        assert full.dtype == torch.float32 and not full.requires_grad, name
        assert not torch.equal(full, half.float()), f"{name} should round in bfloat16"


def test_a_model_that_stops_early_ends_the_run():
    tokens = torch.ones(2, 5, dtype=torch.int64)
    short = {OURS: lambda tokens: torch.zeros(2, 3, 80)}
    with pytest.raises(RuntimeError, match="ours: made"):
        inference.time_runs(short, tokens, n_steps=4, dtypes=["float32"], repeats=1)


def test_loader_tables(tmp_path, capsys):
    before = torch.get_num_threads()
    loader.main(
        ["--n_clips", "6", "--batch_size", "2", "--num_workers", "1", "--repeats", "1",
         "--output_dir", str(tmp_path)]
    )  # fmt: skip
    assert torch.get_num_threads() == before
    rows = read_rows(tmp_path / "loader.csv")
    assert [row["num_workers"] for row in rows] == ["0", "1"]
    assert all(float(row["clips_per_s"]) > 0 for row in rows)
    parts = read_rows(tmp_path / "loader_parts.csv")
    assert {row["part"] for row in parts} == {
        "read manifest", "read wav", "wav to mel", "encode text", "collate"
    }  # fmt: skip
    assert sum(float(row["share"]) for row in parts) == pytest.approx(1.0)
    check_picture(tmp_path / "loader.png")
    printed = capsys.readouterr().out.splitlines()
    padding = {line.split("  ")[0]: float(line.split()[-1]) for line in printed if "13100" in line}
    assert 0 < padding["BatchSampler"] < 0.1 < padding["random order"] < 0.5


def test_loader_counts_cores_and_padding():
    row = loader.loader_row(num_workers=2, n_clips=100, audio_seconds=600.0, times=[5.0])
    assert (row["clips_per_s"], row["clips_per_s_per_core"]) == (20.0, 10.0)
    assert row["audio_s_per_s_per_core"] == 60.0
    assert loader.padding_share([10, 20, 30], [[0, 1], [2]]) == pytest.approx(10 / 70)


def test_corpus_has_the_lengths_of_ljspeech():
    lengths = loader.draw_lengths(loader.LJSPEECH_CLIPS)
    assert lengths.min() >= 1.1 and lengths.max() <= 10.1
    assert lengths.mean() == pytest.approx(6.57, abs=0.1)
    assert lengths.std() == pytest.approx(2.2, abs=0.1)


def test_unusable_manifest_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"loader\.py: .*no such manifest"):
        loader.main(["--manifest", str(tmp_path / "none.csv"), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (train_step, ["--batch", "3"], "--batch"),  # no abbreviations
        (train_step, ["--repeats", "0"], "at least 1"),
        (train_step, ["--sweep", "300"], "N_MELxBATCH_SIZE"),
        (train_step, ["--character_embed_dim", "64"], "--character_embed_dim equal to"),
        (inference, ["--decoder_prenet_depth", "3"], "--decoder_prenet_depth 2"),
        (inference, ["--attention_dim", "0"], "--attention_dim must be at least 1"),
        (loader, ["--num_workers", "0"], "at least 1"),
        (inference, ["--device", "gpu"], "must be cpu, cuda or cuda:N"),
        (train_step, ["--device", "cuda:99"], "no such GPU"),
    ],
)
def test_wrong_flags(module, flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_own_sizes_need_no_peer():
    args, config = train_step.parse_args(["--only", "ours", "--decoder_prenet_depth", "3"])
    assert common.chosen_models(args.only) == (OURS,) and config.decoder_prenet_depth == 3


def test_scripts_explain_themselves_from_anywhere(tmp_path):
    """As a user starts them, but in one process, since PyTorch takes seconds to import."""
    scripts = [module.__file__ for module in (train_step, inference, loader)]
    code = (
        "import contextlib, runpy, sys\n"
        "for script in sys.argv[1:]:\n"
        "    sys.argv = [script, '--help']\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        runpy.run_path(script, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, *scripts]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for script in scripts:
        assert f"usage: {Path(script).name}" in result.stdout
    assert result.stdout.count("Writes ") == 3
