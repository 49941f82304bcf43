"""Launching: how many processes a command starts, what is refused, what is said at the start."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands import launch as launcher
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from safetensors.torch import load_file

import train_taco
import training.processes as processes
from command_line.files import DataError
from model import Tacotron2, Tacotron2Config
from test_synthesize import SMALL
from test_train_taco import REPO, run_flags
from training.config import CONFIG_CLASSES, FROM_TOKENIZER, parse_args
from training.setup import describe_batch, synchronize_batch_norm
from world import HEADER, TEXT, run

README = (REPO / "README.md").read_text(encoding="utf-8")
SCRIPT = (REPO / "train_taco.sh").read_text(encoding="utf-8")
MAKEFILE = (REPO / "Makefile").read_text(encoding="utf-8")
N_GPUS = 8
WORKS_EVERYWHERE = ["--mixed_precision", "no", "--num_machines", "1", "--dynamo_backend", "no"]


@pytest.fixture
def eight_gpus(monkeypatch, tmp_path):
    """What accelerate's launcher looks at before it decides what to start."""
    monkeypatch.setattr(launcher, "default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: N_GPUS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def parse_launch(words):
    """accelerate's own reading of the words after `accelerate launch`."""
    args = launcher.launch_command_parser().parse_args(words)
    return launcher._validate_launch_command(args)[0]


def processes_here(words):
    args = parse_launch(words)
    return args.num_processes // args.num_machines if args.multi_gpu else 1


def test_each_row_of_the_readme_starts_as_many_processes_as_it_says(eight_gpus):
    rows = re.findall(r"^\| ([^|]+) \| `.*accelerate launch ([^`]+)` \|$", README, re.MULTILINE)
    found = {
        where: processes_here([*shlex.split(words.replace("RANK", "1")), "train_taco.py"])
        for where, words in rows
    }
    assert found == {
        "one GPU": 1,
        "every GPU of the machine": N_GPUS,
        "4 GPUs": 4,
        "2 machines of 4 GPUs, on each": 4,
        "CPU, 2 processes": 2,
    }


def test_the_seeds_command_takes_every_gpu(eight_gpus):
    assert processes_here(["train_taco.py", "--batch_size", "64"]) == N_GPUS


@pytest.fixture
def stubs(tmp_path):
    """A PATH on which accelerate prints its arguments, and what SLURM has runs them."""
    programs = {
        "accelerate": 'printf "%s\\n" "$@"',
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": 'while [[ $1 == --* ]]; do echo "srun: $1 $2" >&2; shift 2; done\nexec "$@"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("asked", "processes"), [({}, 1), ({"NUM_PROCESSES": "4"}, 4)])
def test_the_script_trains_on_one_gpu_unless_told(eight_gpus, stubs, asked, processes):
    done = subprocess.run(
        ["bash", str(REPO / "train_taco.sh"), "--seed", "7"], env=stubs | asked,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[0] == "launch" and processes_here(words[1:]) == processes
    assert parse_args(words[words.index("train_taco.py") + 1 :], "")[0].seed == 7


def test_the_script_shows_every_flag_of_training(stubs, tmp_path):
    """Those that are off as comments, which training takes too when they are made flags."""
    script = tmp_path / "train_taco.sh"
    script.write_text(re.sub(r"^( +)# (--\w)", r"\1\2", SCRIPT, flags=re.MULTILINE))
    done = subprocess.run(
        ["bash", str(script)], env=stubs, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    flags = words[words.index("train_taco.py") + 1 :]
    parse_args(flags, "")
    fields = {name for config in CONFIG_CLASSES for name in config.__dataclass_fields__}
    shown = sorted(word for word in flags if word.startswith("--"))
    assert shown == sorted(f"--{name}" for name in fields - {*FROM_TOKENIZER})


def test_the_script_shows_the_defaults(stubs):
    """But for what belongs to one machine or user, and what the default is half of."""
    done = subprocess.run(
        ["bash", str(REPO / "train_taco.sh")], env=stubs, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    shown = parse_args(words[words.index("train_taco.py") + 1 :], "")
    paths = ("working_directory", "save_audio_gen", "path_to_train_manifest",
             "path_to_val_manifest")  # fmt: skip
    defaults = parse_args([f"--{name}={getattr(shown[0], name)}" for name in paths], "")
    others = {"num_workers": 32, "log_wandb": True, "start_decay_epochs": 125}
    assert shown[:3] == (replace(defaults[0], **others), *defaults[1:3])


def test_the_slurm_recipe_can_start(stubs):
    recipe = next(
        block
        for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
        if block.startswith("#SBATCH")
    )
    asked = dict(re.findall(r"--([\w-]+) (\S+)", recipe.split("\n")[0]))
    environment = {
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NODEID": "1",
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
    }
    done = subprocess.run(
        ["bash", "-c", recipe], env=stubs | environment, capture_output=True, text=True, check=True
    )
    assert f"srun: --cpus-per-task {asked['cpus-per-task']}" in done.stderr
    words = done.stdout.splitlines()
    args = launcher.launch_command_parser().parse_args(words[1:])
    assert (args.num_machines, args.machine_rank, args.main_process_ip) == (2, 1, "node1")
    assert args.num_processes == int(asked["nodes"]) * int(asked["gpus-per-node"])
    flags = args.training_script_args
    assert "latest_or_new" in flags, "the first job finds no checkpoint"
    n_workers = int(flags[flags.index("--num_workers") + 1])
    assert int(asked["cpus-per-task"]) == int(asked["gpus-per-node"]) * (1 + n_workers)


def test_every_launch_is_quiet():
    for text in (README, SCRIPT, MAKEFILE, train_taco.__doc__):
        joined = text.replace("\\\n", " ")
        launches = re.findall(r"accelerate launch (?:\"\$\{launch|--\S|\S+\.py).*", joined)
        assert launches
        for words in launches:
            assert "--quiet" in words or ("${launch" in words and "launch=(--quiet" in SCRIPT)


def test_a_mistake_ends_in_one_sentence_through_the_launcher_too(tmp_path):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MIXED_PRECISION": "no",
        "PATH_TO_TRAIN_MANIFEST": str(tmp_path / "none.csv"),
        "WORKING_DIRECTORY": str(tmp_path / "work"),
        "SAVE_AUDIO_GEN": str(tmp_path / "samples"),
    }
    command = ["bash", str(REPO / "train_taco.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    lines = done.stderr.strip().split("\n")
    assert lines[-1].startswith("train_taco.py: ") and "none.csv: no such manifest" in lines[-1]
    assert len(lines) == 1, done.stderr


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--use_deepspeed"], "DeepSpeed"),
        (["--use_fsdp"], "FSDP"),
        (["--use_fsdp", "--fsdp_version", "2"], "FSDP"),
        (["--use_megatron_lm"], "Megatron-LM"),
    ],
)
def test_a_launcher_that_splits_the_model_is_refused(world, monkeypatch, capsys, flags, name):
    """By what accelerate's launcher itself puts into the environment of the processes."""
    words = [*flags, "--num_processes", "2", *WORKS_EVERYWHERE, "--main_process_port", "0"]
    args = parse_launch([*words, "train_taco.py"])
    args.deepspeed_fields_from_accelerate_config = ""
    for variable in list(os.environ):
        if variable.startswith("ACCELERATE_"):
            monkeypatch.delenv(variable)
    prepare = prepare_deepspeed_cmd_env if args.use_deepspeed else prepare_multi_gpu_env
    environment = prepare(args)
    environment = environment[1] if isinstance(environment, tuple) else environment
    for variable in set(environment) - set(os.environ):
        monkeypatch.setenv(variable, environment[variable])
    code, said = run("train_taco", *run_flags(world.corpus, world.out), capsys=capsys)
    assert code == 1 and said.count("\n") == 1 and f"asks for {name} (" in said
    assert not world.out.exists()


def test_no_other_launcher_is_refused(monkeypatch):
    plain = parse_launch(["--num_processes", "1", *WORKS_EVERYWHERE, "train_taco.py"])
    several = parse_launch(["--multi_gpu", "--num_processes", "2", *WORKS_EVERYWHERE,
                            "--main_process_port", "0", "train_taco.py"])  # fmt: skip
    for environment in (prepare_simple_launcher_cmd_env(plain)[1], prepare_multi_gpu_env(several)):
        monkeypatch.setattr(os, "environ", environment)
        processes.refuse_sharding()


def test_what_is_said_at_the_start(world, capsys):
    world.clip()
    texts = [f"{TEXT} \u2603\u2603", TEXT, "\u4f60 \u2603 hello"]
    lines = "".join(f"clip.wav,{text},0.55\n" for text in texts)
    manifest = world.manifest(HEADER + lines)
    flags = run_flags(world.corpus, world.out, "--path_to_train_manifest", manifest,
                      "--gradient_accumulation_steps", 3)  # fmt: skip
    accelerator = Accelerator()
    prepared, _ = train_taco.prepare(parse_args(flags, ""), accelerator)
    train_taco.announce(prepared)
    said = capsys.readouterr()
    assert ", 1 steps an epoch, " in said.out  # of two batches
    assert "3 clips to train on" in said.out and "3 to validate on (3 of" in said.out
    assert "1 process (cpu) x 2 clips a batch x 3 accumulated = 6 clips a step\n" in said.out
    assert said.err == (
        "characters that have no symbol are left out of 2 of 6 clips: '\u2603' in 2, "
        "'\u4f60' in 1\n"
    )
    several = SimpleNamespace(device=torch.device("cpu"), num_processes=4)
    run_of_nine = prepared._replace(train_set=range(9), accelerator=several)
    assert run_of_nine.steps_per_epoch == 1  # of two batches of 8 clips
    configs = parse_args([*flags, "--batch_size", "32"], "")
    line = describe_batch(SimpleNamespace(accelerator=several, config=configs[0]))
    assert line == "4 processes (cpu) x 32 clips a batch x 3 accumulated = 384 clips a step"


def test_synchronized_batch_norm_has_the_same_parameters_under_the_same_names(voice):
    model = Tacotron2(Tacotron2Config(vocab_size=39, **SMALL))
    saved = load_file(voice / "model.safetensors")
    model.load_state_dict(saved)
    two_gpus = SimpleNamespace(device=torch.device("cuda"), num_processes=2)
    n_norms = sum(isinstance(m, torch.nn.BatchNorm1d) for m in model.modules())
    parameters = dict(model.named_parameters())
    converted = synchronize_batch_norm(model, two_gpus)
    norms = [m for m in converted.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert len(norms) == n_norms > 0
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in converted.modules())
    assert converted.state_dict().keys() == saved.keys()
    assert all(torch.equal(saved[name], value) for name, value in converted.state_dict().items())
    for name, parameter in converted.named_parameters():  # what an optimizer may hold already
        assert parameter is parameters[name], name


def test_synchronized_batch_norm_is_for_several_gpus(world, monkeypatch, capsys):
    configs = parse_args(run_flags(world.corpus, world.out, "--sync_batch_norm"), "")
    accelerator = Accelerator()
    alone, _ = train_taco.prepare(configs, accelerator)
    assert "--sync_batch_norm: one process" in capsys.readouterr().out
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in alone.model.modules())
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    with pytest.raises(DataError, match="--sync_batch_norm is for GPUs, found 2 processes on cpu"):
        train_taco.prepare(configs, accelerator)
