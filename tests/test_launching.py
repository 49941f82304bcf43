"""Test how training starts: how many processes, train_taco.sh's flags, and how signals reach it."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate.commands import launch as launcher

from conftest import REPO
from runs import launcher_words, run_flags
from training.checkpoints import list_checkpoints
from training.config import CONFIG_CLASSES, FROM_TOKENIZER, make_configs, make_parser
from world import run

PAGES = [REPO / "README.md", *sorted(REPO.glob("docs/*.md"))]
DOCS = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
SCRIPT = (REPO / "train_taco.sh").read_text(encoding="utf-8")
N_GPUS = 8
BIN = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture
def eight_gpus(monkeypatch, tmp_path):
    """Show accelerate's launcher a machine with 8 GPUs and no saved configuration."""
    monkeypatch.setattr(launcher, "default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: N_GPUS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def processes_here(words):
    """Count the processes that `accelerate launch` starts on this machine."""
    args = launcher.launch_command_parser().parse_args(words)
    args = launcher._validate_launch_command(args)[0]
    return args.num_processes // args.num_machines if args.multi_gpu else 1


def test_each_documented_launch_starts_as_many_processes_as_its_row_says(eight_gpus):
    rows = re.findall(r"^\| ([^|]+) \| `.*accelerate launch ([^`]+)` \|$", DOCS, re.MULTILINE)
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
    assert processes_here(["train_taco.py", "--batch_size", "64"]) == N_GPUS


def parse(flags):
    """Read flags as train_taco.py does."""
    parser = make_parser("")
    return make_configs(parser, parser.parse_args(flags))


def start_stubbed(tmp_path, *words, script=REPO / "train_taco.sh", **variables):
    """Run train_taco.sh with programs that print their process id and arguments."""
    programs = {
        "python": 'printf "%s\\n" $$ "$ACCELERATE_MIXED_PRECISION" "$@"',
        "accelerate": 'printf "%s\\n" $$ "$PET_SIGNALS_TO_HANDLE" "$@"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    process = subprocess.Popen(
        ["bash", script, *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    return process.pid, process.communicate()[0].splitlines()


def test_the_script_becomes_python_or_the_launcher(eight_gpus, tmp_path):
    """No shell stays behind, which would have to pass signals on."""
    pid, words = start_stubbed(tmp_path, "--seed", "7", MIXED_PRECISION="fp16")
    assert words[:3] == [str(pid), "fp16", "train_taco.py"]
    assert parse(words[3:]).train.seed == 7
    pid, words = start_stubbed(tmp_path, "--seed", "7", NUM_PROCESSES="4")
    assert words[0] == str(pid) and words[2] == "launch" and processes_here(words[3:]) == 4
    assert parse(words[words.index("train_taco.py") + 1 :]).train.seed == 7


def test_nohup_keeps_several_processes_alive(handlers_of_signals, tmp_path):
    """torch's launcher would handle even a SIGHUP that nohup has it ignore, and end the run."""
    for handler in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGHUP, handler)
        _, (_, handled, *_) = start_stubbed(tmp_path, NUM_PROCESSES="2")
        assert ("SIGHUP" in handled) == (handler == signal.SIG_DFL) and "SIGUSR1" in handled


def test_the_script_shows_every_flag_of_training(tmp_path):
    """Some are comments, which training accepts too when they are made flags.

    --language stands in a comment to --phonemes, because it needs another value of that flag.
    """
    script = tmp_path / "train_taco.sh"
    script.write_text(re.sub(r"^( +)# (--\w)", r"\1\2", SCRIPT, flags=re.MULTILINE))
    _, (_, _, _, *flags) = start_stubbed(tmp_path, script=script)
    parse(flags)
    fields = {name for config in CONFIG_CLASSES.values() for name in config.__dataclass_fields__}
    shown = sorted(word for word in flags if word.startswith("--"))
    assert shown == sorted(f"--{name}" for name in fields - {*FROM_TOKENIZER, "language"})
    assert "--language" in SCRIPT


def test_the_script_shows_the_defaults(tmp_path):
    """Paths, --num_workers and --log_wandb belong to one machine or user."""
    _, (_, _, _, *flags) = start_stubbed(tmp_path)
    shown = parse(flags)
    paths = ("working_directory", "save_audio_gen", "path_to_train_manifest",
             "path_to_val_manifest")  # fmt: skip
    defaults = parse([f"--{name}={getattr(shown.train, name)}" for name in paths])
    own = replace(defaults.train, num_workers=32, log_wandb=True)
    assert shown == defaults._replace(train=own)


@pytest.mark.slow
def test_a_mistake_is_one_sentence_through_the_launcher_too(tmp_path):
    words = [*launcher_words(1), REPO / "train_taco.py", "--path_to_train_manifest", "none.csv"]
    words += ["--path_to_val_manifest", "none.csv", "--working_directory", tmp_path / "work"]
    done = subprocess.run(
        [sys.executable, *words, "--save_audio_gen", tmp_path / "samples"],
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("train_taco.py: ") and "none.csv: no such" in done.stderr


def test_a_launcher_that_splits_the_model_is_refused(world, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    code, errors = run("train_taco", *run_flags(world.corpus, world.out), capsys=capsys)
    assert code == 1 and errors.count("\n") == 1 and "ACCELERATE_USE_FSDP" in errors
    assert not world.out.exists()


# ---- Signals


class Started(subprocess.Popen):
    """train_taco.sh in the background, in a process group of its own."""

    def __init__(self, script, processes, *flags):
        self.mark = f"STARTED_BY_TEST={script.parent} {time.monotonic_ns()}"
        variables = [self.mark, f"PATH={BIN}", f"NUM_PROCESSES={processes}", "MIXED_PRECISION=no",
                     "OMP_NUM_THREADS=1", "ACCELERATE_USE_CPU=true"]  # fmt: skip
        super().__init__(
            ["env", *variables, "bash", script, *map(str, flags)], start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.timer = threading.Timer(150, self.kill_all)
        self.timer.start()

    def wait_for_line(self, words):
        """Read stdout until a line holds these words."""
        for line in self.stdout:
            if words in line:
                return
        raise AssertionError(self.stderr.read()[-2000:])

    def find_processes(self):
        """List the processes of this run that still exist, by the mark in their environment."""
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if self.mark.encode() in file.read_bytes():
                    found.append(int(file.parent.name))
        return found

    def kill_all(self):
        """Kill what is left of this run."""
        self.timer.cancel()
        for pid in self.find_processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(handlers_of_signals):
    """Start train_taco.sh as from a terminal, even if these tests ignore some signals."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runs = []
    yield lambda *words: runs.append(Started(*words)) or runs[-1]
    for each in runs:
        each.kill_all()
        each.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "name"), [(1, "SIGINT"), (2, "SIGTERM")])
def test_a_signal_before_training_can_handle_it_ends_everything(
    start, tiny_corpus, tmp_path, processes, name
):
    """It comes after 1 s, while torch is imported."""
    flags = run_flags(tiny_corpus, tmp_path, "--training_epochs", 1000)
    started = start(REPO / "train_taco.sh", processes, *flags, "--no-log_wandb")
    time.sleep(1)
    started.send_signal(getattr(signal, name))
    assert started.wait(timeout=20) != 0
    assert started.find_processes() == [] and not (tmp_path / "work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_in_a_step_ends_training_with_a_checkpoint(
    start, tiny_corpus, tmp_path, processes
):
    """Ctrl-C reaches one process and its loader; `docker stop` signals the launcher of two."""
    clips = pd.concat([pd.read_csv(tiny_corpus.train_manifest)] * 60)
    clips.to_csv(tmp_path / "train.csv", index=False)
    corpus = tiny_corpus._replace(train_manifest=tmp_path / "train.csv")
    flags = run_flags(corpus, tmp_path, "--console_out_iters", 1, "--num_workers", 1)
    started = start(REPO / "train_taco.sh", processes, *flags, "--no-log_wandb")
    started.wait_for_line("step 3/")
    if processes == 1:
        os.killpg(started.pid, signal.SIGINT)
    else:
        started.send_signal(signal.SIGTERM)
    output, errors = started.communicate()
    (checkpoint,) = list_checkpoints(tmp_path / "work" / "tiny")
    assert f"checkpoint: {checkpoint}" in output and checkpoint.name.startswith("checkpoint_0_step")
    assert started.find_processes() == [] and errors.count("Traceback") == processes - 1, errors
