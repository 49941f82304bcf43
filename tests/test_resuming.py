"""Going on with other flags, another manifest or other processes than a run began with."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import train_taco
from command_line.files import DataError
from forked_run import draw_nothing, train
from kill_and_resume import differences
from test_nonfinite import StopAfter
from test_train_taco import run_flags
from training import setup
from training.checkpoints import load_checkpoint_state
from training.config import parse_args

N_CLIPS = 9  # of the tiny corpus: 5 steps an epoch at its batch size of 2
NEW_KEYS = ("epoch_clips", "order_batch_size", "order_checksum", "order_recut")


@pytest.fixture
def begin(tiny_corpus, tmp_path, monkeypatch):
    """A run prepared in this process; `steps` is filled with the rate and the clips of each."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    draw_nothing(monkeypatch.setattr)
    train_step = train_taco.train_step

    def begin(*flags, corpus=tiny_corpus):
        configs = parse_args(run_flags(corpus, tmp_path, "--training_epochs", 4, *flags), "")
        run, state = train_taco.prepare(configs, Accelerator())
        steps = []

        def recorded_step(run, batches, step):
            clips = [path for batch in batches for path in batch.paths]
            steps.append(SimpleNamespace(lr=run.optimizer.param_groups[0]["lr"], clips=clips))
            return train_step(run, batches, step)

        monkeypatch.setattr(train_taco, "train_step", recorded_step)
        return run, state, steps

    return begin


def stop_in_epoch(run, state, n_steps):
    """Trains so many steps of an epoch and writes a checkpoint, whose name is returned."""
    with pytest.raises(train_taco.Interrupted) as stopped:
        train_taco.train_epoch(run._replace(interrupt=StopAfter(n_steps)), state, 0.0)
    return str(stopped.value)


def decayed(epoch):
    """1e-3 until epoch 1, then exponentially to 1e-5 at epoch 4."""
    return 1e-3 * 0.01 ** np.clip((epoch - 1) / 3, 0, 1)


DECAY = ["--start_decay_epochs", 1]


def test_the_learning_rate_over_epochs_is_one_curve_whatever_the_batch(begin):
    run, state, steps = begin(*DECAY)
    for _ in range(2):
        state, _ = train_taco.train_epoch(run, state, 0.0)
        state = train_taco.finish_epoch(run, state)
    train_taco.save(run, state, "checkpoint_2")
    seen = np.cumsum([0] + [len(step.clips) for step in steps])[:-1]
    np.testing.assert_allclose([step.lr for step in steps], decayed(seen / N_CLIPS))
    for flags in (["--batch_size", 1], ["--batch_size", 4], ["--gradient_accumulation_steps", 3]):
        run, state, steps = begin(*DECAY, *flags, "--resume_from_checkpoint", "checkpoint_2")
        state, _ = train_taco.train_epoch(run, state, 0.0)
        seen = np.cumsum([0] + [len(step.clips) for step in steps])[:-1]
        np.testing.assert_allclose([step.lr for step in steps], decayed(2 + seen / N_CLIPS))
    assert train_taco.finish_epoch(run, state).history[-1]["learning_rate"] == pytest.approx(
        decayed(3)
    )


def test_flags_that_are_not_given_again_stay_those_of_the_run(begin, capsys):
    """And what the command line gives wins, also where it is a default, and is listed."""
    run, state, _ = begin("--learning_rate", 5e-4, "--max_grad_norm", 0.5, "--keep_checkpoints", 3)
    name = stop_in_epoch(run, state, 1)
    capsys.readouterr()
    run, _, _ = begin("--max_grad_norm", 1, "--resume_from_checkpoint", name)
    config, said = run.config, capsys.readouterr().out
    assert (config.learning_rate, config.max_grad_norm, config.keep_checkpoints) == (5e-4, 1.0, 3)
    assert "--max_grad_norm was 0.5 and is now 1.0" in said and "--learning_rate" not in said
    file = run.folder / name / "trainer_state.json"
    content = json.loads(file.read_text())
    content["train_config"]["learning_rate"] = "fast"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"trainer_state.json: .*learning_rate is 'fast'"):
        begin("--resume_from_checkpoint", name)
    content["train_config"]["learning_rate"] = 1e-7
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{name}: --min_learning_rate must not exceed"):
        begin("--min_learning_rate", 1e-6, "--resume_from_checkpoint", name)


def test_optimizer_flags_that_are_said_to_have_changed_have(begin, capsys):
    run, state, _ = begin()
    name = stop_in_epoch(run, state, 2)
    flags = {"learning_rate": 5e-4, "weight_decay": 0.1, "adam_eps": 1e-3}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    run, state, steps = begin(*words, "--resume_from_checkpoint", name)
    said = capsys.readouterr().out
    assert "--learning_rate was 0.001 and is now 0.0005" in said
    assert "--weight_decay was 1e-06 and is now 0.1" in said
    assert "--adam_eps was 1e-06 and is now 0.001" in said
    weight = run.model.encoder.embedding.weight
    spoken = {int(token) for clip in run.train_set for token in clip.tokens}
    silent = [i for i in range(1, len(weight)) if i not in spoken]  # no gradient but the decay's
    old = weight.detach().clone()[silent]
    old_mean = run.optimizer.state[weight]["exp_avg"].clone()[silent]
    stop_in_epoch(run, state, 1)
    now = {key: value[silent] for key, value in run.optimizer.state[weight].items() if value.dim()}
    assert steps[0].lr == 5e-4
    torch.testing.assert_close(now["exp_avg"], 0.9 * old_mean + 0.1 * 0.1 * old)
    mean, square = now["exp_avg"] / (1 - 0.9**3), now["exp_avg_sq"] / (1 - 0.999**3)
    torch.testing.assert_close(
        weight[silent], old - 5e-4 * mean / (square.sqrt() + 1e-3), atol=1e-6, rtol=0
    )


def test_weights_that_share_one_memory_are_all_in_the_checkpoint(begin):
    """As cuDNN lays out those of an LSTM on a GPU."""
    run, state, _ = begin()
    for lstm in (run.model.encoder.lstm, run.model.decoder.decoder_rnn):
        weights = [*lstm.parameters()]
        memory = torch.cat([weight.detach().flatten() for weight in weights])
        for weight, part in zip(weights, memory.split([w.numel() for w in weights]), strict=True):
            weight.data = part.view_as(weight)
    path = run.folder / stop_in_epoch(run, state, 2)
    expected = run.model.state_dict()
    saved = load_file(path / "model.safetensors")
    assert saved.keys() == expected.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0, msg=name)


def test_another_precision_decoder_or_number_of_processes_is_listed(begin, capsys):
    """The launcher's two are given anew each time; older checkpoints do not say them."""
    run, state, _ = begin("--no-fast_decoder")
    name = stop_in_epoch(run, state, 1)
    file = run.folder / name / "trainer_state.json"
    content = json.loads(file.read_text())
    flags = content["train_config"]
    assert (flags.pop("mixed_precision"), flags.pop("num_processes")) == ("no", 1)
    for launched, listed in (
        ({}, []),
        ({"mixed_precision": "no", "num_processes": 1}, []),
        (
            {"mixed_precision": "bf16", "num_processes": 2},
            ["--mixed_precision was bf16 and is now no", "--num_processes was 2 and is now 1"],
        ),
    ):
        file.write_text(json.dumps({**content, "train_config": flags | launched}))
        for given, decoder in ((["--fast_decoder"], ["--fast_decoder was False and is now True"]),
                               ([], [])):  # fmt: skip
            capsys.readouterr()
            run, _, _ = begin(*given, "--resume_from_checkpoint", name)
            said = capsys.readouterr().out.splitlines()[1:]
            assert [line.strip() for line in said] == decoder + listed
            assert run.config.fast_decoder == bool(given)


def test_fp16_goes_on_from_a_run_without_it(begin):
    """With a loss scale of its own; accelerate would look for the other run's."""
    run, state, _ = begin()
    name = stop_in_epoch(run, state, 1)
    scaler = run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    sizes = run.audio_config, run.model_config, run.tokenizer
    assert load_checkpoint_state(run.accelerator, run.folder / name, *sizes).epoch_step == 1
    assert run.accelerator.scaler is scaler and scaler.get_scale() == 512.0


@pytest.mark.parametrize("found", ["its own", "none", "another's"])
def test_best_checkpoint_is_believed_only_if_it_is_this_runs(begin, capsys, found):
    """A best epoch whose weights are elsewhere would keep every later one from being kept."""
    run, state, _ = begin()
    row = {"epoch": 3, "val_loss": 0.5, "free_running_score": 0.4}
    state = state._replace(epoch=3, best_epoch=3, history=[row])
    train_taco.save(run, state, "checkpoint_3")
    if found != "none":
        other = row | {"val_loss": 0.5 if found == "its own" else 0.6}
        train_taco.save(run, state._replace(history=[other]), "best_checkpoint")
    capsys.readouterr()
    _, state, _ = begin("--resume_from_checkpoint", "checkpoint_3")
    assert state.best_epoch == (3 if found == "its own" else 0)
    assert ("best_checkpoint: not this run's" in capsys.readouterr().out) == (not state.best_epoch)


def test_processes_with_other_clips_are_refused(begin, monkeypatch):
    """Machines without a shared disk each read their own manifest."""
    gathered = []

    def gather(content):
        gathered.append(content)
        return [*content, (8, 3, 1)]

    monkeypatch.setattr(setup, "gather_object", gather)
    with pytest.raises(DataError, match="by process: 9 and 3, 8 and 3"):
        begin()
    with pytest.raises(DataError, match="the manifests differ between the processes"):
        begin()
    assert gathered[0] == gathered[1], "the same clips have the same sum"


def test_other_texts_are_other_clips(begin, tiny_corpus, tmp_path, monkeypatch):
    sums = []
    monkeypatch.setattr(setup, "gather_object", lambda content: sums.extend(content) or content)
    begin()
    frame = pd.read_csv(tiny_corpus.train_manifest)
    frame.loc[4, "normalized_transcript"] += " or so"
    frame.to_csv(tmp_path / "other.csv", index=False)
    begin(corpus=tiny_corpus._replace(train_manifest=tmp_path / "other.csv"))
    assert sums[0][:2] == sums[1][:2] and sums[0][2] != sums[1][2]


@pytest.mark.parametrize(
    "flags", [["--batch_size", 3], ["--batch_size", 1], ["--gradient_accumulation_steps", 2]]
)
def test_an_epoch_that_goes_on_with_other_batches_sees_each_clip_once(begin, flags, capsys):
    run, state, steps = begin()
    name = stop_in_epoch(run, state, 1)
    seen = steps[0].clips
    run, state, steps = begin(*flags, "--resume_from_checkpoint", name)
    name = stop_in_epoch(run, state, 1)  # in the same epoch once more
    seen += steps[0].clips
    run, state, steps = begin(*flags, "--resume_from_checkpoint", name)
    state, _ = train_taco.train_epoch(run, state, 0.0)
    seen += [clip for step in steps for clip in step.clips]
    assert sorted(seen) == sorted(run.train_set.paths)
    assert state.epoch_clips == N_CLIPS
    said = capsys.readouterr().out
    assert ("left of the epoch are in batches of" in said) == (flags[0] == "--batch_size")


def test_more_processes_go_on_in_the_middle_of_an_epoch(begin, tiny_corpus, tmp_path):
    run, state, _ = begin()
    name = stop_in_epoch(run, state, 2)  # 4 clips; 5 are left, in 2 batches of 4 at most

    def draws_of(process):
        content = torch.load(run.folder / name / f"random_states_{process}.pkl", weights_only=False)
        return content["torch_manual_seed"]

    before = draws_of(0)
    flags = ["--training_epochs", 2, "--resume_from_checkpoint", name, "--validation_epochs", 2]
    flags += ["--checkpoint_minutes", 1e-7]  # writes it once more, before the first step
    done = train(run_flags(tiny_corpus, tmp_path, *flags), processes=2)
    assert "the 5 clips that are left of the epoch are in batches of 4" in done.stdout
    assert "1 of 2 processes had none there" in done.stdout
    state = json.loads((run.folder / "final_checkpoint" / "trainer_state.json").read_text())
    assert [row["step"] for row in state["history"]] == [4, 7]
    assert torch.equal(draws_of(0), before), "the process that was there goes on as it stood"
    seed = int(np.random.SeedSequence([42, 1, 2]).generate_state(1)[0])  # --seed, process, step
    assert torch.equal(draws_of(1), torch.Generator().manual_seed(seed).get_state())


def test_another_manifest_is_refused_within_an_epoch_and_taken_at_its_end(
    begin, tiny_corpus, tmp_path
):
    run, state, _ = begin()
    name = stop_in_epoch(run, state, 2)
    state, _ = train_taco.train_epoch(run, state, 0.0)
    train_taco.save(run, train_taco.finish_epoch(run, state), "checkpoint_1")
    frame = pd.read_csv(tiny_corpus.train_manifest)
    grown = tiny_corpus._replace(train_manifest=tmp_path / "grown.csv")
    pd.concat([frame, frame[:4]]).to_csv(grown.train_manifest, index=False)
    with pytest.raises(DataError, match="within an epoch that began with other clips than the 13"):
        begin("--resume_from_checkpoint", name, corpus=grown)
    run, state, steps = begin("--resume_from_checkpoint", "checkpoint_1", corpus=grown)
    train_taco.train_epoch(run, state, 0.0)
    assert len([clip for step in steps for clip in step.clips]) == 13


def make_old(checkpoint, run, **flags):
    """What a version that counted only steps wrote, with a scheduler besides."""
    path = checkpoint / "trainer_state.json"
    content = json.loads(path.read_text())
    content["train_config"] |= flags
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in NEW_KEYS}))
    scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer.optimizer, lambda step: 1.0)
    torch.save(scheduler.state_dict(), checkpoint / "scheduler.bin")


@pytest.mark.parametrize(("accumulated", "n_steps"), [(1, 3), (2, 2)])
def test_checkpoints_of_older_versions_resume_at_the_same_clip(begin, accumulated, n_steps):
    flags = ["--gradient_accumulation_steps", accumulated]
    run, state, steps = begin(*flags)
    name = stop_in_epoch(run, state, n_steps)
    n_clips = sum(len(step.clips) for step in steps)
    make_old(run.folder / name, run)
    for batch_size in (3, 2):
        more = ["--batch_size", batch_size, "--resume_from_checkpoint", name]
        run, state, _ = begin(*flags, *more)
        place = (state.epoch_step, state.epoch_clips, state.order_batch_size)
        assert place == (n_steps, n_clips, 2), "as it was written, whatever the batch is now"
    state, _ = train_taco.train_epoch(run, state, 0.0)
    train_taco.save(run, state, "resumed")
    run, state, _ = begin(*flags, "--overwrite")
    state, _ = train_taco.train_epoch(run, state, 0.0)
    train_taco.save(run, state, "straight")
    assert differences(run.folder / "resumed", run.folder / "straight") == []


def test_scores_of_older_checkpoints_have_their_present_names(begin):
    run, state, _ = begin()
    name = stop_in_epoch(run, state, 1)
    path = run.folder / name / "trainer_state.json"
    names = ("focus", "coverage", "monotonicity")
    old = [*(f"val_{x}" for x in names), *(f"free_{x}" for x in (*names, "stopped", "score"))]
    row = {"epoch": 1, "val_loss": 0.5, **{x: i for i, x in enumerate(old)}}
    content = {**json.loads(path.read_text()), "history": [row]}
    del content["best_epoch"]
    path.write_text(json.dumps({**content, "best_score": row["free_score"]}))
    shutil.copytree(path.parent, run.folder / "best_checkpoint")
    new = [*names, *(f"free_running_{x}" for x in names)]
    new += ["stopped_by_itself", "free_running_score"]
    by_hand = {"epoch": 1, "val_loss": 0.5, **{x: i for i, x in enumerate(new)}}
    state = begin("--resume_from_checkpoint", name)[1]
    assert (state.history, state.best_epoch) == ([by_hand], 1)
    path.write_text(json.dumps({**content, "history": [], "best_score": -1.0}))
    assert begin("--resume_from_checkpoint", name)[1].best_epoch == 0


def test_an_older_checkpoint_whose_place_is_unclear_is_refused(begin):
    run, state, _ = begin()
    name = stop_in_epoch(run, state, 3)
    for flags, reason in (
        ({"batch_size": None}, "does not say how many clips of its epoch were seen"),
        ({"batch_size": 8}, "at step 3 of an epoch, and those of .* have 2"),
    ):
        make_old(run.folder / name, run, **flags)
        with pytest.raises(DataError, match=reason):
            begin("--resume_from_checkpoint", name)
