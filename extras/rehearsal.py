"""The reference recipe without LJSpeech: train_taco.sh on espeak-ng's sentences of like lengths.

    make rehearsal                          # REHEARSAL_STEPS=1000 steps of 16 clips
    make rehearsal REHEARSAL_STEPS=3000     # goes on from there

The Makefile has the corpus spoken and split first. Then, epoch by epoch, train_taco.sh trains,
unchanged but for paths, batch size, workers and wandb, and evaluate.py judges what has been
learned on the sentences held out. Stopped, it goes on where it stood when called again. In
--folder:

    table.json, table.txt    a row for each epoch: word starts, stops, lengths, losses
    curve.png                the error of word starts over the steps
    samples/alignment.gif    how the alignment came about
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
    write_whole,
)
from command_line.flags import FlagParser
from training.checkpoints import list_checkpoints, read_state_file

REPO = Path(__file__).resolve().parent
CLIPS_PER_STEP = 16  # over all processes
SECONDS_PER_STEP = 7.0  # on two CPU cores, before this machine has been measured
COLUMNS = {  # of the table: evaluate.py's names
    "word_start_median_ms": "word start median",
    "word_start_p90_ms": "p90 (ms)",
    "stopped_by_itself": "stopped",
    "length_within_15_percent": "right length",
    "focus": "focus",
    "free_running_score": "free score",
    "mcd_db_median": "MCD (dB)",
}


def processes() -> tuple[int, dict[str, str]]:
    """How many processes train, and the environment they need.

    On a CPU several processes of one thread each are faster than one with several threads, whose
    small operations wait for each other. A GPU is left to one process.
    """
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if torch.cuda.is_available():
        return 1, environment
    n_cores = os.cpu_count() or 1
    n = max(n for n in (1, 2, 4, 8) if n <= n_cores)
    return n, {**environment, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def run(command: list[str], environment: dict[str, str]) -> None:
    """Runs a command in the repository's folder, to its end after Ctrl-C too, which it gets.

    Raises:
        DataError: when it fails; it has said why.
    """
    process = subprocess.Popen(command, cwd=REPO, env={**os.environ, **environment})
    while process.poll() is None:
        with suppress(KeyboardInterrupt):
            process.wait()
    if process.returncode:
        raise DataError(f"{shlex.join(command[:2])} ended with {process.returncode}, see above")


def train(folder: Path, epochs: int, extra: list[str]) -> None:
    """Trains to the end of an epoch, from the last checkpoint where there is one.

    Raises:
        DataError: when training fails or is interrupted.
    """
    n, environment = processes()
    environment |= {
        "PATH_TO_TRAIN_MANIFEST": str(folder / "train_metadata.csv"),
        "PATH_TO_VAL_MANIFEST": str(folder / "test_metadata.csv"),
        "WORKING_DIRECTORY": str(folder / "work_dir"),
        "SAVE_AUDIO_GEN": str(folder / "samples"),
        "NUM_PROCESSES": str(n),
    }
    run(
        ["bash", "train_taco.sh", "--batch_size", str(CLIPS_PER_STEP // n), "--num_workers", "0",
         "--no-log_wandb", "--training_epochs", str(epochs), "--checkpoint_minutes", "10",
         "--keep_checkpoints", "1", "--console_out_iters", "25",
         "--resume_from_checkpoint", "latest_or_new", *extra],
        environment,
    )  # fmt: skip


def evaluate(folder: Path) -> dict[str, float]:
    """evaluate.py's report of the last checkpoint on the sentences held out.

    Raises:
        DataError: when that fails.
    """
    report = folder / "report.json"
    run(
        [sys.executable, "evaluate.py", "--checkpoint", str(checkpoint(folder)),
         "--path_to_manifest", str(folder / "test_metadata.csv"),
         "--word_times", str(folder / "corpus" / "word_times.json"),
         "--output_json", str(report), "--save_worst", str(folder / "worst")],
        {},
    )  # fmt: skip
    return read_json(report, str(report))


def checkpoint(folder: Path) -> Path:
    """What training writes at its end."""
    return folder / "work_dir" / "tacotron2" / "final_checkpoint"


def read_state(folder: Path) -> dict[str, Any]:
    """trainer_state.json of the last finished epoch; an empty one before the first."""
    path = checkpoint(folder) / "trainer_state.json"
    return read_json(path, str(path)) if path.is_file() else {"epoch": 0, "step": 0, "history": []}


def count_steps(folder: Path) -> int:
    """How many steps have been trained, those of an unfinished epoch included."""
    checkpoints = list_checkpoints(checkpoint(folder).parent)
    return max((read_state_file(path)[0].step for path in checkpoints), default=0)


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """table.json, table.txt and curve.png."""
    import pandas as pd  # slow to import, as is matplotlib
    from matplotlib.figure import Figure

    from scoring.pictures import save_figure

    table = pd.DataFrame(rows)
    content = json.dumps(rows, indent=2)
    write_whole(folder / "table.json", lambda path: path.write_text(content, encoding="utf-8"))
    shown = table[["step", "hours", *COLUMNS, "val_loss"]].rename(columns=COLUMNS)
    text = shown.to_string(index=False, float_format=lambda x: f"{x:.3g}" if x < 10 else f"{x:.0f}")
    (folder / "table.txt").write_text(text + "\n", encoding="utf-8")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, label, colour in (
        ("median", "median", "#3b6fb6"),
        ("p90", "90th percentile", "#e07b39"),
    ):
        line = f"word_start_{name}_ms", f"diagonal_{name}_ms"
        axes.plot(table["step"], table[line[0]], "o-", color=colour, label=label)
        axes.axhline(table[line[1]].iloc[-1], color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel=f"steps of {CLIPS_PER_STEP} clips", ylabel="error of word starts, ms")
    axes.set_title("dotted: a straight diagonal", fontsize=9)
    axes.set_ylim(0)
    axes.set_xlim(0)
    axes.legend(frameon=False)
    save_figure(figure, folder / "curve.png")


def rehearse(folder: Path, steps: int, extra: list[str]) -> None:
    """Trains to the first end of an epoch at or after `steps`, judging every epoch.

    Raises:
        DataError: when a part of it fails.
    """
    with open(folder / "train_metadata.csv", encoding="utf-8") as file:
        steps_per_epoch = -(-(sum(1 for _ in file) - 1) // CLIPS_PER_STEP)
    epochs = -(-steps // steps_per_epoch)
    table = folder / "table.json"
    rows = read_json(table, str(table)) if table.is_file() else []
    n_left = max(steps - count_steps(folder), 0)
    speed = rows[-1]["seconds_per_step"] if rows else SECONDS_PER_STEP
    print(
        f"{n_left:,} steps to go, in epochs of {steps_per_epoch}: about "
        f"{n_left * speed / 3600:.1f} hours at {speed:.1f} s a step "
        f"({'as measured' if rows else 'on two cores of a CPU; a GPU is far faster'})",
        flush=True,
    )
    while len(rows) < epochs:
        epoch = len(rows) + 1
        begun, before = time.monotonic(), count_steps(folder)
        if read_state(folder)["epoch"] < epoch:
            train(folder, epoch, extra)
        state, seconds = read_state(folder), time.monotonic() - begun
        if state["epoch"] < epoch:
            raise DataError("training was stopped; call again to go on")
        if state["step"] > before:  # else training had ended, and judging it had not
            speed = seconds / (state["step"] - before)
        done, hours = (rows[-1]["step"], rows[-1]["hours"]) if rows else (0, 0.0)
        # From the speed: a part of the epoch may have been trained by an earlier call.
        hours += (state["step"] - done) * speed / 3600
        row = {"step": state["step"], "hours": hours, "seconds_per_step": speed}
        row["val_loss"] = state["history"][-1]["val_loss"]
        rows.append(row | evaluate(folder))
        write_table(folder, rows)
        print((folder / "table.txt").read_text(encoding="utf-8"), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); what fails ends in one sentence."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=path_argument, required=True, help="the one with the manifests"
    )
    steps_help = "optimizer steps in all (default: %(default)s)"
    parser.add_argument("--steps", type=count_argument, default=1000, help=steps_help)
    parser.add_argument("--train_flags", default="", help="further flags for train_taco.sh")
    args = parser.parse_args(argv)
    try:
        with file_errors():
            rehearse(Path(args.folder).absolute(), args.steps, shlex.split(args.train_flags))
    except DataError as error:
        sys.exit(f"extras/rehearsal.py: {error}")


if __name__ == "__main__":
    main()
