"""Training as a user runs it: flags, files, what comes back after an interruption."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

import prep_splits
import synthesize
import train_taco
import training.validation as validation
from command_line.files import DataError
from conftest import REPO
from dataset import TTSCollator, TTSDataset
from forked_run import draw_nothing, train
from kill_and_resume import TINY_MODEL, differences
from model import Tacotron2, Tacotron2Config, tacotron2_loss
from scoring.scores import FREE_RUNNING_SCORES
from speech.voice import load_checkpoint
from test_model import NO_DROPOUT
from text.tokenizer import Tokenizer
from train_taco import learning_rate
from training.checkpoints import list_checkpoints
from training.config import parse_args
from training.reporting import alignment_is_due, make_film, missing_alignment


def run_flags(corpus, folder, *extra):
    return [
        "--working_directory", str(folder / "work"), "--save_audio_gen", str(folder / "samples"),
        "--path_to_train_manifest", str(corpus.train_manifest),
        "--path_to_val_manifest", str(corpus.test_manifest),
        "--experiment_name", "tiny", "--batch_size", "2", "--num_workers", "0",
        "--console_out_iters", "2", "--checkpoint_epochs", "1", "--training_epochs", "2",
        "--warmup_steps", "0", "--short_first_epochs", "0", *TINY_MODEL, *map(str, extra),
    ]  # fmt: skip


def launcher_words(processes, mixed_precision="no"):
    """accelerate's launcher, between python and the script."""
    # It starts several processes only with --multi_gpu, also where they are on the CPU.
    kind = "--cpu" if processes == 1 else "--multi_gpu"
    return [
        "-m", "accelerate.commands.launch", "--quiet", kind, "--num_machines", "1",
        "--num_processes", str(processes), "--mixed_precision", mixed_precision,
        "--dynamo_backend", "no", "--main_process_port", "0",
    ]  # fmt: skip


def launch(flags, processes=1, check=True, launcher=False, mixed_precision="no"):
    """train_taco.py on the CPU: by itself, which is quicker, or as the README has it."""
    words = launcher_words(processes, mixed_precision) if launcher or processes > 1 else []
    command = [sys.executable, *words, str(REPO / "train_taco.py"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def straight_run(tiny_corpus, tmp_path_factory):
    """Two epochs without an interruption."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, launch(run_flags(tiny_corpus, folder), launcher=True)


def assert_same_checkpoint(left: Path, right: Path):
    assert differences(left, right) == []


def test_a_run_leaves_what_the_readme_says(straight_run):
    folder, done = straight_run
    checkpoints = folder / "work" / "tiny"
    assert {path.name for path in checkpoints.iterdir()} == {
        "best_checkpoint",
        "checkpoint_1",
        "checkpoint_2",
        "final_checkpoint",
    }
    names = {path.name for path in (checkpoints / "final_checkpoint").iterdir()}
    assert names >= {"config.json", "model.safetensors", "optimizer.bin", "trainer_state.json"}
    state = json.loads((checkpoints / "final_checkpoint" / "trainer_state.json").read_text())
    assert (state["epoch"], state["epoch_step"], state["step"]) == (2, 0, 10)
    losses = [row["val_loss"] for row in state["history"]]
    assert np.isfinite(losses).all()
    assert "1 process (cpu) x 2 clips a batch x 1 accumulated = 2 clips a step" in done.stdout
    assert "step 4/5" in done.stdout and "frames/s" in done.stdout and "left" in done.stdout
    lines, row = done.stdout.split("\n"), state["history"][1]
    place = next(i for i, line in enumerate(lines) if line.startswith("epoch 2 done"))
    for name in ("focus", "coverage", "monotonicity"):
        assert f" {name} {row[name]:.3f} / {row[f'free_running_{name}']:.3f}" in lines[place + 1]
    assert "free_running_score " in lines[place] and "stopped_by_itself " in lines[place + 1]
    assert "begun to align" not in done.stderr, "too early to say"


def test_the_weights_have_learnt(straight_run, run_folder, tiny_corpus):
    """By a batch's own statistics: the running ones alone make validation's loss fall."""
    losses = []
    for run in (run_folder, straight_run[0]):
        voice = load_checkpoint(list_checkpoints(run / "work" / "tiny")[-1])
        model = Tacotron2(replace(voice.model.config, **NO_DROPOUT)).train()
        model.load_state_dict(voice.model.state_dict())
        clips = TTSDataset(tiny_corpus.train_manifest, voice.audio_config, voice.tokenizer)
        batch = TTSCollator(voice.audio_config, voice.tokenizer)([clips[i] for i in range(9)])
        tokens, token_lengths, mels, mel_lengths, stop_targets = batch[:5]
        with torch.no_grad():
            output = model(tokens, token_lengths, mels, mel_lengths)
        losses.append(tacotron2_loss(output, mels, token_lengths, mel_lengths, stop_targets))
    untrained, trained = losses
    for name in ("mel_before_loss", "mel_after_loss", "stop_loss"):
        assert trained[name] < 0.99 * untrained[name], name


def test_the_film_has_no_frame_of_an_epoch_without_a_validation(tmp_path):
    """A file of such an epoch was there before the run."""
    rng = np.random.default_rng(0)
    for epoch in (1, 2, 3):
        arrays = {"alignment": rng.random((5, 4)), "mel": rng.random((5, 80))}
        np.savez(tmp_path / f"epoch_{epoch:03d}.npz", **arrays)
    rows = [{"epoch": epoch, "train_loss": 1.0} for epoch in (1, 2, 3)]
    for row in (rows[0], rows[2]):
        row["free_running_score"] = 0.0
    make_film(tmp_path, rows, "abcd", 0.01)
    assert Image.open(tmp_path / "alignment.gif").n_frames == 2


def test_bfloat16_through_the_launcher_trains_nearly_as_float32(
    straight_run, tiny_corpus, tmp_path
):
    """Apart by rounding to 8 bits: more than float32's own rounding, less than an epoch's gain."""
    launch(run_flags(tiny_corpus, tmp_path), launcher=True, mixed_precision="bf16")
    finals = [
        folder / "work" / "tiny" / "final_checkpoint" for folder in (straight_run[0], tmp_path)
    ]
    full, half = (
        json.loads((final / "trainer_state.json").read_text())["history"] for final in finals
    )
    assert full[1]["val_loss"] < (1 - 2e-3) * full[0]["val_loss"]
    assert len(half) == 2
    for in_full, in_half in zip(full, half, strict=True):
        assert all(np.isfinite(value) for value in in_half.values())
        assert in_half["train_loss"] == pytest.approx(in_full["train_loss"], rel=1e-3)
        assert 1e-5 < abs(in_half["val_loss"] / in_full["val_loss"] - 1) < 1e-3
    weights = load_file(finals[1] / "model.safetensors")
    assert all(
        weight.dtype == torch.float32 for weight in weights.values() if weight.is_floating_point()
    )


@pytest.mark.parametrize(
    "field",
    [{}, {"fast_decoder": True}, {"fast_decoder": False}],
    ids=["as_written", "fast", "plain"],
)
def test_a_checkpoint_folder_is_a_pretrained_model(straight_run, tmp_path, field):
    """Whichever decoder loop its config.json says that it was trained with, if it says so."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(straight_run[0] / "work" / "tiny" / "final_checkpoint", folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | field))
    model = Tacotron2.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    model.save_pretrained(tmp_path / "saved")
    models = [model, Tacotron2.from_pretrained(tmp_path / "saved"), load_checkpoint(folder).model]
    spoken = []
    for model in models:
        assert (model.config.attention_dim, model.config.vocab_size) == (8, content["vocab_size"])
        assert model.state_dict().keys() == weights.keys()
        for name, weight in weights.items():
            assert torch.equal(model.state_dict()[name], weight), name
        torch.manual_seed(0)
        spoken.append(model.eval().infer(torch.tensor([[5, 6, 7, 8]]), None, 5).mels)
        torch.testing.assert_close(spoken[0], spoken[-1])


@pytest.mark.parametrize("saved_with", [True, False], ids=["fast", "plain"])
def test_a_run_goes_on_with_either_decoder_loop(world, capsys, saved_with):
    """Also from a checkpoint whose config.json, and not its run's flags, says which it had."""
    folder = world.copy_run()
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"fast_decoder": saved_with}))
    content = json.loads((folder / "trainer_state.json").read_text())
    content["train_config"].pop("fast_decoder", None)
    (folder / "trainer_state.json").write_text(json.dumps(content))
    for flag in ("--fast_decoder", "--no-fast_decoder"):
        flags = run_flags(world.corpus, world.out, "--resume_from_checkpoint", "latest", flag)
        state = train_taco.prepare(parse_args(flags, ""), Accelerator())[1]
        assert (state.epoch, state.step) == (0, 0) and "resumed from" in capsys.readouterr().out


def test_pictures_sounds_and_film_of_a_run(straight_run):
    """Which files there are; what they hold is tested in test_reporting.py."""
    samples = straight_run[0] / "samples"
    kinds = ("_teacher_forced.png", "_free_running.png", "_free_running.wav", ".npz")
    names = {f"epoch_{epoch:03d}{kind}" for epoch in (1, 2) for kind in kinds}
    names |= {f"epoch_000_step_{step:06d}.npz" for step in range(5)}  # each of the first epoch's
    names |= {"alignment.gif", "loss.png", "run.txt"}
    assert {path.name for path in samples.iterdir()} == names
    assert Image.open(samples / "alignment.gif").n_frames == 5 + 2


def test_resuming_at_an_epochs_end_is_exact(straight_run, tiny_corpus, tmp_path):
    train(run_flags(tiny_corpus, tmp_path))
    checkpoints = tmp_path / "work" / "tiny"
    for name in ("checkpoint_2", "best_checkpoint", "final_checkpoint"):
        shutil.rmtree(checkpoints / name)
    done = train(
        run_flags(tiny_corpus, tmp_path, "--resume_from_checkpoint", "latest", "--num_workers", 1)
    )
    assert "resumed from" in done.stdout and "epoch 1, step 5" in done.stdout
    straight = straight_run[0] / "work" / "tiny" / "final_checkpoint"
    assert_same_checkpoint(checkpoints / "final_checkpoint", straight)


def test_a_taken_folder_is_refused_and_can_be_overwritten(straight_run, tiny_corpus):
    folder, _ = straight_run
    before = list_checkpoints(folder / "work" / "tiny")
    done = train(run_flags(tiny_corpus, folder), check=False)
    assert done.returncode != 0 and "--overwrite" in done.stderr
    assert list_checkpoints(folder / "work" / "tiny") == before


def test_warm_start_takes_weights_and_nothing_else(run_folder, prepare, capsys):
    source = run_folder / "work" / "tiny" / "checkpoint_0"
    run, state = prepare("--warm_start", source, "--seed", 7)
    said = capsys.readouterr().out
    assert said.startswith(f"weights of {source}\n") and "\n  " not in said
    for name, weight in load_file(source / "model.safetensors").items():
        assert torch.equal(run.model.state_dict()[name], weight), name
    assert state.step == state.epoch == 0 and not run.optimizer.state_dict()["state"]


def test_the_symbols_are_those_of_the_checkpoint_gone_on_from(
    run_folder, prepare, tmp_path, capsys
):
    """A warm start into another table takes each symbol's embedding along, and says what is new."""
    table = ("<pad>", *" zyxwvutsrqponmlkjihgfedcba.,!?:\u00e9")
    symbols, source = tmp_path / "symbols.json", run_folder / "work" / "tiny" / "checkpoint_0"
    symbols.write_text(json.dumps(table))
    run, state = prepare("--warm_start", source, "--path_to_symbols", symbols)
    said = capsys.readouterr().out
    assert "new symbols, not yet learned: '\u00e9'\n" in said
    assert """symbols left out: '"' "'" '(' ')' '-' ';'""" in said
    weights, saved = run.model.state_dict(), load_file(source / "model.safetensors")
    name = "encoder.embedding.weight"
    for symbol in table[:-1]:
        row = saved[name][Tokenizer().symbols.index(symbol)]
        assert torch.equal(weights[name][table.index(symbol)], row), symbol
    name = "decoder.attention_rnn.weight_ih"
    assert torch.equal(weights[name], saved[name])
    train_taco.save(run, state, "checkpoint_1")
    symbols.unlink()
    saved = run.folder / "checkpoint_1"
    # What a run was begun with is not looked at again when it goes on.
    resume = ["--resume_from_checkpoint", saved, "--warm_start", tmp_path / "gone"]
    for flags in (["--warm_start", saved, "--overwrite"], resume):
        run, _ = prepare(*flags)
        assert run.tokenizer.symbols == table and run.model_config.vocab_size == len(table)
        if flags is not resume:
            train_taco.save(run, state, "checkpoint_1")


def test_a_run_that_is_resumed_needs_no_sizes(run_folder, prepare):
    """As my_voice.sh goes on, which names none."""
    source = run_folder / "work" / "tiny" / "checkpoint_0"
    run, _ = prepare("--resume_from_checkpoint", source, bare=True)
    sizes = json.loads((source / "config.json").read_text())
    assert asdict(run.model_config) == {name: sizes[name] for name in asdict(run.model_config)}


def test_a_warm_start_brings_sizes_and_audio_settings_along(run_folder, prepare, tmp_path, capsys):
    """What the command line gives wins, also where it repeats a default, and has to fit."""
    source = run_folder / "work" / "tiny" / "checkpoint_0"
    sizes = json.loads((source / "config.json").read_text())
    assert sizes["attention_dim"] != Tacotron2Config().attention_dim
    run, _ = prepare("--warm_start", source, bare=True)
    assert asdict(run.model_config) == {name: sizes[name] for name in asdict(run.model_config)}
    assert asdict(run.audio_config) == sizes["audio"]
    flags = ["--warm_start", source, "--attention_dim", "128", "--fmin", "50"]
    with pytest.raises(DataError, match=r"--attention_dim was \d+ and is now 128; .*--fmin was 0"):
        prepare(*flags, bare=True)
    capsys.readouterr()
    run, _ = prepare(*flags, "--warm_start_allow_mismatch", bare=True)
    said = capsys.readouterr().out
    assert "decoder.attention.v.weight has another shape" in said and "--fmin was 0.0" in said
    assert run.model_config.attention_dim == 128 and run.audio_config.fmin == 50
    telephone = tmp_path / "telephone"
    telephone.mkdir()
    sizes["audio"] |= {"sampling_rate": 8000, "fmax": 4000.0}
    (telephone / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(DataError, match=r"telephone: .*found 0.0, 8000.0, 4000.0"):
        prepare("--warm_start", telephone, "--fmax", "8000", bare=True)


def test_flags_reach_the_configs():
    train_config, audio_config, model_config, _ = parse_args(
        ["--working_directory", "w", "--save_audio_gen", "s", "--path_to_train_manifest", "t",
         "--path_to_val_manifest", "v", "--min_learning_rate", "1e-6", "--min_db", "-80",
         "--num_mels", "40", "--log_wandb", "--no-fast_decoder", "--attention_dim", "64"],
        "",
    )  # fmt: skip
    assert train_config.min_learning_rate == 1e-6 and train_config.log_wandb
    assert audio_config.min_db == -80 and audio_config.num_mels == model_config.num_mels == 40
    assert not train_config.fast_decoder and model_config.attention_dim == 64
    assert parse_args(
        ["--working_directory=w", "--save_audio_gen=s", "--path_to_train_manifest=t",
         "--path_to_val_manifest=v", "--min_db=-100"], ""
    )[1].min_db == -100  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["--learning_rat", "1"], "--learning_rat"),
        (["--learning_rate", "0"], "--learning_rate"),
        (["--learning_rate", "nan"], "--learning_rate"),
        (["--min_learning_rate", "1"], "--min_learning_rate"),
        (["--batch_size", "0"], "--batch_size"),
        (["--training_epochs", "-1"], "--training_epochs"),
        (["--fmax", "12000"], "--fmax"),
        (["--hop_size", "2048"], "--hop_size"),
        (["--drop_frame_rate", "1"], "--drop_frame_rate must be in [0, 1)"),
        (["--stop_positive_weight", "0"], "--stop_positive_weight must be above 0"),
        (["--warmup_steps", "-1"], "--warmup_steps must be at least 0"),
        (["--short_first_epochs", "-1"], "--short_first_epochs must be at least 0"),
        (["--encoder_kernel_size", "4"], "--encoder_kernel_size"),
        (["--experiment_name", "../x"], "--experiment_name"),
        (["--num_workers", "two"], "--num_workers"),
        (["--num_workers", "1025"], "--num_workers must be at most 1024"),
        (["--mel_scaling", "linear"], "--mel_scaling"),
    ],
)
def test_a_wrong_flag_is_named_in_one_sentence(flags, culprit, capsys):
    paths = [
        "working_directory",
        "save_audio_gen",
        "path_to_train_manifest",
        "path_to_val_manifest",
    ]
    with pytest.raises(SystemExit) as error:
        parse_args([*(f"--{name}=x" for name in paths), *flags], "")
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert culprit in said and said.count("\n") == 1


def test_learning_rate_is_constant_then_decays_to_its_minimum():
    paths = [
        "working_directory",
        "save_audio_gen",
        "path_to_train_manifest",
        "path_to_val_manifest",
    ]
    config = parse_args([*(f"--{name}=x" for name in paths), "--training_epochs=10"], "")[0]
    rates = [learning_rate(config.warmup_steps, epoch, config) for epoch in range(11)]
    assert rates[:6] == [1e-3] * 6
    np.testing.assert_allclose(np.diff(np.log(rates[5:])), np.log(0.01) / 5)
    assert rates[10] == pytest.approx(1e-5)


def test_when_an_alignment_is_looked_for():
    """After guided attention; without it ten times later; never with 0."""

    def first_due(*flags):
        paths = ("working_directory", "save_audio_gen", "path_to_train_manifest",
                 "path_to_val_manifest")  # fmt: skip
        config = parse_args([*(f"--{name}=x" for name in paths), *flags], "")[0]
        return next((step for step in range(0, 30000, 100) if alignment_is_due(step, config)), None)

    assert first_due() == 2300
    assert first_due("--guided_attention_steps=1000", "--alignment_warning_steps=200") == 1200
    assert first_due("--guided_attention_weight=0") == 20000
    assert first_due("--alignment_warning_steps=0") is None


def test_the_advice_fits_the_flags():
    paths = ["--working_directory=w", "--save_audio_gen=s", "--path_to_train_manifest=t",
             "--path_to_val_manifest=v"]  # fmt: skip
    config = parse_args([*paths, "--guided_attention_weight=0", "--learning_rate=3e-5"], "")[0]
    row = {"step": 7, "focus": 0.1, "coverage": 1.0, "monotonicity": 0.9}
    said = missing_alignment(row, config)
    assert "monotonicity is 0.09" in said and "--learning_rate, now 3e-05" in said
    assert "\n  guided attention: --guided_attention_weight 5, now 0\n" in said
    assert "--short_first_epochs 2, now 1\n" in said and said.endswith("rate 0.1, now 0")
    assert missing_alignment({**row, "focus": 0.27}, config)  # 0.243
    assert missing_alignment({**row, "focus": 0.29}, config) is None  # 0.261


def test_a_missing_alignment_is_looked_for_once(tiny_corpus, tmp_path, monkeypatch, capsys):
    """Silent before its time, for a good alignment, and for what happens to a good one later."""
    good = {"focus": 0.5, "coverage": 0.98, "monotonicity": 0.99}
    stuck = {"focus": 0.9, "coverage": 0.05, "monotonicity": 1.0}
    blurred = {"focus": 0.2, "coverage": 1.0, "monotonicity": 0.87}
    broken = {**good, "focus": float("nan")}
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(
        validation, "speak_freely", lambda *_: dict.fromkeys(FREE_RUNNING_SCORES, 0.0)
    )
    draw_nothing(monkeypatch.setattr)
    flags = run_flags(tiny_corpus, tmp_path, "--alignment_warning_steps", 10)

    def prepare(flags):
        accelerator = Accelerator()
        return train_taco.prepare(parse_args(flags, ""), accelerator)

    def finish(state, step, scores):
        monkeypatch.setattr(validation, "validate", lambda *_: scores)
        state = train_taco.finish_epoch(run, state._replace(epoch_step=5, step=step))
        return state, capsys.readouterr().err

    run, new = prepare(flags)
    for scores in (stuck, blurred, broken):
        state, said = finish(new, 309, scores)
        assert said == "" and not state.alignment_judged
        state, said = finish(state, 310, scores)
        assert said.startswith("step 310: attention has not begun to align.")
        for advice in ("--batch_size, now 2", "--trim_db", "--learning_rate, now 0.001",
                       "--guided_attention_steps, now 300"):  # fmt: skip
            assert advice in said
        assert finish(state, 320, scores)[1] == ""
    train_taco.save(run, state, "checkpoint_1")
    resumed = prepare([*flags, "--resume_from_checkpoint", "latest"])[1]
    assert finish(resumed, 330, stuck)[1] == ""
    state, said = finish(new, 310, good)
    assert said == "" and state.alignment_judged
    assert finish(state, 320, stuck)[1] == ""


def test_training_on_real_clips(ljspeech_dir, tmp_path, capsys):
    """The default model on real speech: prep_splits, training, checkpoint, synthesis."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "wavs").symlink_to(ljspeech_dir / "wavs")
    lines = (ljspeech_dir / "metadata.csv").read_text(encoding="utf-8").splitlines()
    shortest = sorted(lines, key=len)[:6]
    (corpus / "metadata.csv").write_text("\n".join(shortest), encoding="utf-8")
    prep_splits.main(
        ["--path_to_ljspech", str(corpus), "--path_to_save", str(tmp_path),
         "--test_split_pct", "0.2"]
    )  # fmt: skip
    train(
        ["--working_directory", tmp_path, "--save_audio_gen", tmp_path / "samples",
         "--path_to_train_manifest", tmp_path / "train_metadata.csv",
         "--path_to_val_manifest", tmp_path / "test_metadata.csv",
         "--training_epochs", 2, "--batch_size", 2, "--num_workers", 0, "--warmup_steps", 0,
         "--checkpoint_epochs", 5, "--max_decoder_steps", 60, "--free_running_clips", 2]
    )  # fmt: skip
    final = tmp_path / "tacotron2" / "final_checkpoint"
    history = json.loads((final / "trainer_state.json").read_text())["history"]
    losses = [row["train_loss"] for row in history]
    assert np.isfinite(losses).all() and losses[1] < 0.8 * losses[0]
    synthesize.main(
        ["--checkpoint", str(final), "--text", "Printing, in 1465.",
         "--output_dir", str(tmp_path / "spoken"), "--max_decoder_steps", "80", "--n_retries", "0"]
    )  # fmt: skip
    assert "001.wav" in capsys.readouterr().out
    mel = np.load(tmp_path / "spoken" / "001.npy")
    assert mel.shape[0] == 80 and mel.dtype == np.float32
