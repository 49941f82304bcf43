"""Training as a user runs it: flags, files, warm starts, and what a run leaves."""

import json
import re
from dataclasses import asdict, replace

import librosa
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import prep_splits
import synthesize
import train_taco
from command_line.files import DataError
from conftest import REPO
from dataset import AudioConfig, TTSCollator, TTSDataset
from forked_run import train
from model import Tacotron2, Tacotron2Config, tacotron2_loss
from runs import launch, run_flags
from speech.speaking import synthesize as synthesize_text
from speech.voice import Voice, load_checkpoint
from test_model import NO_DROPOUT
from text.tokenizer import Tokenizer
from train_taco import guided_attention_weight, learning_rate
from training.checkpoints import list_checkpoints
from training.config import TrainConfig, make_configs, make_parser

AUDIO_FLAGS = ("--sampling_rate", "--hop_size", "--window_size", "--n_fft", "--num_mels", "--fmax")
TRAINING_PAGE = (REPO / "docs/training.md").read_text(encoding="utf-8")
RATES = [  # the rows of docs/training.md with audio settings, as flags
    [f"{flag}={value}" for flag, value in zip(AUDIO_FLAGS, row, strict=True)]
    for row in re.findall(r"^\| [\d.]+ " + 6 * r"\| (\d+) ", TRAINING_PAGE, re.MULTILINE)
]
PATHS = [f"--{name}=x" for name in ("working_directory", "save_audio_gen", "path_to_train_manifest",
                                    "path_to_val_manifest")]  # fmt: skip


def parse(*flags):
    parser = make_parser("")
    return make_configs(parser, parser.parse_args([*PATHS, *flags]))


@pytest.fixture(scope="module")
def straight_run(tiny_corpus, tmp_path_factory):
    """Two epochs, by the launcher."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, launch(run_flags(tiny_corpus, folder))


@pytest.mark.slow
def test_a_run_leaves_what_the_docs_say(straight_run):
    folder, done = straight_run
    checkpoints, samples = folder / "work" / "tiny", folder / "samples" / "tiny"
    names = {"best_checkpoint", "checkpoint_1", "checkpoint_2", "final_checkpoint"}
    assert {path.name for path in checkpoints.iterdir()} == names
    names = {path.name for path in (checkpoints / "final_checkpoint").iterdir()}
    assert names >= {"config.json", "model.safetensors", "optimizer.bin", "trainer_state.json"}
    state = json.loads((checkpoints / "final_checkpoint" / "trainer_state.json").read_text())
    assert (state["epoch"], state["epoch_step"], state["step"]) == (2, 0, 10)
    assert np.isfinite([row["val_loss"] for row in state["history"]]).all()
    assert "1 process (cpu) x 2 clips a batch x 1 accumulated = 2 clips a step" in done.stdout
    assert "step 4/5" in done.stdout and "frames/s" in done.stdout and "left" in done.stdout
    lines, row = done.stdout.split("\n"), state["history"][1]
    place = next(i for i, line in enumerate(lines) if line.startswith("epoch 2 done"))
    for name in ("focus", "coverage", "monotonicity"):
        assert f" {name} {row[name]:.3f} / {row[f'free_running_{name}']:.3f}" in lines[place + 1]
    assert f"  text_match {row['text_match']:.3f} (" in lines[place]
    assert all(f"  {name} " in lines[place + 1] for name in ("stopped_by_itself", "text_gain"))
    kinds = ("_teacher_forced.png", "_free_running.png", "_free_running.wav", ".npz")
    names = {f"epoch_{epoch:03d}{kind}" for epoch in (1, 2) for kind in kinds}
    names |= {f"epoch_000_step_{step:06d}.npz" for step in range(5)}  # each of the first epoch's
    assert {path.name for path in samples.iterdir()} == names | {
        "alignment.gif",
        "loss.png",
        "run.txt",
    }
    assert Image.open(samples / "alignment.gif").n_frames == 5 + 2


@pytest.mark.slow
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


@pytest.mark.slow
def test_bfloat16_trains_nearly_as_float32(straight_run, tiny_corpus, tmp_path):
    """Apart by rounding to 8 bits: more than float32's own rounding, less than an epoch's gain.

    The environment asks accelerate for accumulation of its own, which would divide the gradients.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
        launch(run_flags(tiny_corpus, tmp_path), mixed_precision="bf16")
    finals = [x / "work" / "tiny" / "final_checkpoint" for x in (straight_run[0], tmp_path)]
    full, half = (
        json.loads((final / "trainer_state.json").read_text())["history"] for final in finals
    )
    assert full[1]["val_loss"] < (1 - 2e-3) * full[0]["val_loss"]
    for in_full, in_half in zip(full, half, strict=True):
        assert in_half["train_loss"] == pytest.approx(in_full["train_loss"], rel=1e-3)
        assert 1e-5 < abs(in_half["val_loss"] / in_full["val_loss"] - 1) < 1e-3
    weights = load_file(finals[1] / "model.safetensors").values()
    assert all(weight.dtype == torch.float32 for weight in weights if weight.is_floating_point())


@pytest.mark.slow
def test_a_checkpoint_folder_is_a_pretrained_model(straight_run, tiny_corpus, tmp_path):
    folder = straight_run[0] / "work" / "tiny" / "final_checkpoint"
    model = Tacotron2.from_pretrained(folder)
    clips = TTSDataset(tiny_corpus.train_manifest, AudioConfig(), Tokenizer())
    longest = max(len(clip.tokens) for clip in clips)
    assert load_checkpoint(folder).longest_text == clips.longest_text == longest
    weights = load_file(folder / "model.safetensors")
    model.save_pretrained(tmp_path / "saved")
    models = [model, Tacotron2.from_pretrained(tmp_path / "saved"), load_checkpoint(folder).model]
    spoken = []
    for model in models:
        assert model.state_dict().keys() == weights.keys()
        for name, weight in weights.items():
            assert torch.equal(model.state_dict()[name], weight), name
        torch.manual_seed(0)
        spoken.append(model.eval().infer(torch.tensor([[5, 6, 7, 8]]), None, 5).mels)
        torch.testing.assert_close(spoken[0], spoken[-1])


def test_a_warm_start_takes_weights_and_nothing_else(run_folder, begin, capsys):
    source = run_folder / "work" / "tiny" / "checkpoint_0"
    run, state = begin("--warm_start", source, "--seed", 7)
    assert capsys.readouterr().out.startswith(f"weights of {source}\n0.0 M parameters")
    for name, weight in load_file(source / "model.safetensors").items():
        assert torch.equal(run.model.state_dict()[name], weight), name
    assert state.step == state.epoch == 0 and not run.optimizer.state_dict()["state"]


def test_a_warm_start_into_other_symbols_moves_their_embeddings(
    run_folder, begin, tmp_path, capsys
):
    table = ("<pad>", *" zyxwvutsrqponmlkjihgfedcba.,!?:\u00e9")
    symbols, source = tmp_path / "symbols.json", run_folder / "work" / "tiny" / "checkpoint_0"
    symbols.write_text(json.dumps(table))
    run, state = begin("--warm_start", source, "--path_to_symbols", symbols)
    said = capsys.readouterr().out
    assert "'\u00e9'" in said and """'"' "'" '(' ')' '-' ';'""" in said, "new and left out"
    weights, saved = run.model.state_dict(), load_file(source / "model.safetensors")
    name = "encoder.embedding.weight"
    for symbol in table[:-1]:
        row = saved[name][Tokenizer().symbols.index(symbol)]
        assert torch.equal(weights[name][table.index(symbol)], row), symbol
    train_taco.save_checkpoint(run, state, "checkpoint_1")
    symbols.unlink()
    # What a run was begun with is not looked at again when it resumes.
    flags = ["--resume_from_checkpoint", "checkpoint_1", "--warm_start", tmp_path / "gone"]
    assert begin(*flags)[0].tokenizer.symbols == table


def test_a_warm_start_brings_sizes_and_audio_settings_along(run_folder, begin, capsys):
    """Flags override them, also where they repeat a default, and have to fit the weights."""
    source = run_folder / "work" / "tiny" / "checkpoint_0"
    sizes = json.loads((source / "config.json").read_text())
    assert sizes["attention_dim"] != Tacotron2Config().attention_dim
    run, _ = begin("--warm_start", source, bare=True)
    assert asdict(run.model_config) == {name: sizes[name] for name in asdict(run.model_config)}
    assert asdict(run.audio_config) == sizes["audio"]
    flags = ["--warm_start", source, "--attention_dim", "128", "--fmin", "50"]
    with pytest.raises(DataError, match=r"--attention_dim was \d+ and is now 128; .*--fmin was 0"):
        begin(*flags, bare=True)
    run, _ = begin(*flags, "--warm_start_allow_mismatch", bare=True)
    assert "decoder.attention.v.weight has another shape" in capsys.readouterr().out
    assert run.model_config.attention_dim == 128 and run.audio_config.fmin == 50


def test_flags_reach_the_configs():
    flags = ["--min_learning_rate", "1e-6", "--num_mels", "40", "--log_wandb", "--no-fast_decoder"]
    train_config, audio_config, model_config = parse(*flags, "--min_db", "-80")
    assert train_config.min_learning_rate == 1e-6 and train_config.log_wandb
    assert audio_config.min_db == -80 and audio_config.num_mels == model_config.num_mels == 40
    assert not train_config.fast_decoder
    assert parse("--min_db=-100").audio.min_db == -100


def test_the_learning_rate_rises_is_constant_then_decays_to_its_minimum():
    config = TrainConfig(*"wstv", training_epochs=10)
    np.testing.assert_allclose([learning_rate(i, 0, config) for i in (0, 49)], [1e-5, 5e-4])
    rates = [learning_rate(config.warmup_steps, epoch, config) for epoch in range(11)]
    assert rates[:6] == [1e-3] * 6
    np.testing.assert_allclose(np.diff(np.log(rates[5:])), np.log(0.01) / 5)
    assert rates[10] == pytest.approx(1e-5)


def test_guided_attention_falls_to_zero_and_is_off_at_zero_steps():
    config = TrainConfig(*"wstv", guided_attention_weight=8.0, guided_attention_steps=4)
    weights = [guided_attention_weight(step, config) for step in range(6)]
    assert weights == [8.0, 6.0, 4.0, 2.0, 0.0, 0.0]
    assert guided_attention_weight(0, replace(config, guided_attention_steps=0)) == 0


def test_clips_in_both_manifests_are_warned_of(begin, tiny_corpus, capsys):
    begin()
    assert "in both manifests" not in capsys.readouterr().err
    begin(corpus=tiny_corpus._replace(test_manifest=tiny_corpus.train_manifest))
    assert "9 clips are in both manifests" in capsys.readouterr().err


@pytest.mark.slow
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


def test_the_documents_settings_begin_with_the_flags_that_are_tried():
    header = next(line for line in TRAINING_PAGE.splitlines() if line.startswith("| kHz |"))
    assert re.findall(r"`(--\w+)`", header) == [*AUDIO_FLAGS] and len(RATES) == 5


@pytest.mark.slow
@pytest.mark.parametrize("flags", RATES, ids=lambda flags: flags[0])
def test_the_documents_settings_train_and_speak(flags, begin):
    run, state = begin(*flags)
    audio = run.audio_config
    batch = next(iter(run.train_loader))
    longest = max(librosa.get_duration(path=path) for path in batch.paths)
    assert batch.mels.shape[1:] == (
        int(longest * audio.sampling_rate) // audio.hop_size + run.config.stop_tail_frames,
        audio.num_mels,
    )
    assert np.isfinite(train_taco.train_step(run, [batch], state.step)["loss"])
    voice = Voice(run.model.eval(), audio, run.tokenizer)
    spoken = synthesize_text("Go home.", voice, seed=0, max_decoder_steps=40)
    assert len(spoken.wav) == len(spoken.mel) * audio.hop_size and spoken.wav.abs().max() > 0
