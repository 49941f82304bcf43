"""Rehearse the reference run without LJSpeech: train_taco.sh on a synthesizer's sentences.

    make rehearsal                          # REHEARSAL_STEPS=1000 steps of 16 clips
    make rehearsal REHEARSAL_STEPS=3000     # continues from there

The Makefile makes and splits the corpus, whose sentences are as long as LJSpeech's. Then, epoch by
epoch, train_taco.sh trains (only paths, batch size, workers, checkpoints and wandb differ) and
evaluate.py scores the held-out sentences. An interrupted rehearsal continues when you run it again.
It writes to --folder:

    table.json, table.txt    a row for each epoch: word starts, stops, lengths, losses
    curve.png                the error of word starts over the steps
    samples/tacotron2/       pictures and sounds; alignment.gif is the alignment, epoch by epoch
"""

import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from command_line.files import (
    DataError,
    count_argument,
    file_errors,
    path_argument,
    read_json,
    write_text,
)
from command_line.flags import FlagParser
from command_line.main import say, script

REPO = Path(__file__).resolve().parent.parent
CLIPS_PER_STEP = 16  # over all processes
SECONDS_PER_STEP = 7.0  # on two CPU cores, until this machine has been measured
COLUMNS = {  # of the table: evaluate.py's names
    "word_start_median_ms": "word start median",
    "word_start_p90_ms": "p90 (ms)",
    "stopped_by_itself": "stopped",
    "length_within_15_percent": "right length",
    "focus": "focus",
    "text_match": "text match",
    "free_running_score": "free score",
    "mcd_db_median": "MCD (dB)",
}


def count_processes() -> int:
    """Choose the number of processes: one on a GPU, else one per core, up to 8, which is faster."""
    if torch.cuda.is_available():
        return 1
    return max(n for n in (1, 2, 4, 8) if n <= (os.cpu_count() or 1))


def run(command: list[str], environment: dict[str, str]) -> None:
    """Run a command in the repository's folder; after Ctrl-C, wait for it to write a checkpoint."""
    process = subprocess.Popen(command, cwd=REPO, env={**os.environ, **environment})
    while process.poll() is None:
        with suppress(KeyboardInterrupt):
            process.wait()
    if process.returncode:
        raise DataError(f"{shlex.join(command[:2])} ended with {process.returncode}, see above")


def train(folder: Path, epochs: int, cpu_precision: str, extra_flags: list[str]) -> None:
    """Train to the end of an epoch, from the last checkpoint if there is one."""
    n = count_processes()
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PATH_TO_TRAIN_MANIFEST": str(folder / "train_metadata.csv"),
        "PATH_TO_VAL_MANIFEST": str(folder / "test_metadata.csv"),
        "WORKING_DIRECTORY": str(folder / "work_dir"),
        "SAVE_AUDIO_GEN": str(folder / "samples"),
        "NUM_PROCESSES": str(n),
    }
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment["MIXED_PRECISION"] = cpu_precision
    run(
        ["bash", "train_taco.sh", "--batch_size", str(CLIPS_PER_STEP // n), "--num_workers", "0",
         "--no-log_wandb", "--training_epochs", str(epochs), "--start_decay_epochs", "125",
         "--checkpoint_minutes", "10", "--keep_checkpoints", "1", "--console_out_iters", "25",
         "--resume_from_checkpoint", "latest_or_new", *extra_flags],
        environment,
    )  # fmt: skip


def evaluate(folder: Path) -> dict[str, float]:
    """Evaluate the last checkpoint on the held-out sentences; return evaluate.py's report."""
    report = folder / "report.json"
    run(
        [sys.executable, "evaluate.py", "--checkpoint", str(checkpoint(folder)),
         "--path_to_manifest", str(folder / "test_metadata.csv"),
         "--word_times", str(folder / "corpus" / "word_times.json"),
         "--output_json", str(report), "--save_worst", str(folder / "worst")],
        {},
    )  # fmt: skip
    return read_json(report)


def checkpoint(folder: Path) -> Path:
    """Return the path of the checkpoint that training writes at its end."""
    return folder / "work_dir" / "tacotron2" / "final_checkpoint"


def read_state(folder: Path) -> dict[str, Any]:
    """Read trainer_state.json of the last finished epoch; before the first one, return zeros."""
    path = checkpoint(folder) / "trainer_state.json"
    return read_json(path) if path.is_file() else {"epoch": 0, "step": 0, "history": []}


def count_steps(folder: Path) -> int:
    """Count the steps trained so far, including those of an unfinished epoch."""
    paths = checkpoint(folder).parent.glob("[!.]*/trainer_state.json")
    return max((read_json(path)["step"] for path in paths), default=0)


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write table.json, table.txt and curve.png."""
    import pandas as pd  # slow to import, as is matplotlib
    from matplotlib.figure import Figure

    from scoring.pictures import save_figure

    table = pd.DataFrame(rows)
    write_text(folder / "table.json", json.dumps(rows, indent=2))
    shown = table[["step", "hours", *COLUMNS, "val_loss"]].rename(columns=COLUMNS)
    text = shown.to_string(index=False, float_format=lambda x: f"{x:.3g}" if x < 10 else f"{x:.0f}")
    (folder / "table.txt").write_text(text + "\n", encoding="utf-8")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    lines = ("median", "median", "#3b6fb6"), ("p90", "90th percentile", "#e07b39")
    for name, label, colour in lines:
        axes.plot(table["step"], table[f"word_start_{name}_ms"], "o-", color=colour, label=label)
        diagonal = table[f"diagonal_{name}_ms"].iloc[-1]
        axes.axhline(diagonal, color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel=f"steps of {CLIPS_PER_STEP} clips", ylabel="error of word starts, ms")
    axes.set_title("dotted: a straight diagonal", fontsize=9)
    axes.set_ylim(0)
    axes.set_xlim(0)
    axes.legend(frameon=False)
    save_figure(figure, folder / "curve.png")


def rehearse(folder: Path, steps: int, cpu_precision: str, extra_flags: list[str]) -> None:
    """Train to the first end of an epoch at or after `steps`, and score every epoch."""
    with open(folder / "train_metadata.csv", encoding="utf-8") as file:
        steps_per_epoch = -(-(sum(1 for _ in file) - 1) // CLIPS_PER_STEP)
    table = folder / "table.json"
    rows = read_json(table) if table.is_file() else []
    n_left = max(steps - count_steps(folder), 0)
    speed = rows[-1]["seconds_per_step"] if rows else SECONDS_PER_STEP
    time_left = f"about {n_left * speed / 3600:.1f} hours at {speed:.1f} s a step"
    say(f"{n_left:,} steps to go, in epochs of {steps_per_epoch}: {time_left}")
    for epoch in range(len(rows) + 1, -(-steps // steps_per_epoch) + 1):
        start, before = time.monotonic(), count_steps(folder)
        if read_state(folder)["epoch"] < epoch:
            train(folder, epoch, cpu_precision, extra_flags)
        state, seconds = read_state(folder), time.monotonic() - start
        if state["epoch"] < epoch:
            raise DataError("training was interrupted; run this again to continue")
        if state["step"] > before:
            speed = seconds / (state["step"] - before)
        # An earlier call may have trained a part of the epoch, so its time follows from the speed.
        done, hours = (rows[-1]["step"], rows[-1]["hours"]) if rows else (0, 0.0)
        hours += (state["step"] - done) * speed / 3600
        row = {"step": state["step"], "hours": hours, "seconds_per_step": speed}
        row["val_loss"] = state["history"][-1]["val_loss"]
        rows.append(row | evaluate(folder))
        write_table(folder, rows)
        say((folder / "table.txt").read_text(encoding="utf-8"))


@script
@file_errors()
def main(argv: list[str] | None = None) -> None:
    """Train and score in turn."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--folder", type=path_argument, required=True, help="with manifests and a corpus")
    add("--steps", type=count_argument, default=1000, help="in all (default: %(default)s)")
    add("--cpu_precision", choices=("no", "bf16"), default="bf16", help="without a GPU")
    add("--train_flags", default="", help="more flags for train_taco.sh")
    args = parser.parse_args(argv)
    folder, extra_flags = Path(args.folder).absolute(), shlex.split(args.train_flags)
    rehearse(folder, args.steps, args.cpu_precision, extra_flags)


if __name__ == "__main__":
    main()
