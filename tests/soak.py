"""Not a test: trains many steps and watches what the main process holds on to.

    python tests/soak.py --steps 2000

A small model trains on a tiny made-up corpus, with a validation and its pictures every 99 steps,
once without loader processes and once with two. Memory must be as large at the end as at step 200,
within 5 %, and no figure, open file or loader process may be left over. Exit status 1 when not.

The C library keeps memory that is freed, in pieces between what is still used, and batches of ever
other sizes tear it into more of them. So the table has two columns: `resident` as the system counts
it, and `in use`, after malloc_trim has handed back what is free. A leak is what grows `in use`.
"""

import argparse
import ctypes
import gc
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco
from conftest import make_tiny_corpus
from kill_and_resume import TINY_MODEL
from training.setup import Run

STEPS_PER_EPOCH = 99  # 9 clips, 22 times, 2 a step
TOLERANCE = 0.05
SHOWN_EVERY = 200


def resident_mib() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def measure() -> dict[str, float]:
    """MiB, and counts of what must not pile up. Trims the heap."""
    gc.collect()
    counts = {
        "figures": sum(issubclass(type(thing), Figure) for thing in gc.get_objects()),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "loaders": len(multiprocessing.active_children()),
    }
    resident = resident_mib()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return {"resident": resident, "in use": resident_mib(), **counts}


def soak(flags: list[str]) -> None:
    """One run in this process, measured in the middle of steps; exit status 1 when it grew."""
    rows: dict[int, dict[str, float]] = {}
    train_step = train_taco.train_step

    def measured_step(run: Run, batches: list, step: int) -> tuple:
        result = train_step(run, batches, step)
        if (step + 1) % SHOWN_EVERY == 0:
            rows[step + 1] = measure()
            shown = "  ".join(f"{name} {value:.0f}" for name, value in rows[step + 1].items())
            print(f"step {step + 1:5}  {shown}", flush=True)
        return result

    train_taco.train_step = measured_step
    train_taco.main(flags)
    first, last = rows[min(rows)], rows[max(rows)]
    growth = last["in use"] / first["in use"] - 1
    leaks = [name for name in ("figures", "files", "loaders") if last[name] > first[name]]
    left = len(multiprocessing.active_children())
    print(f"in use: {growth:+.1%}; piled up: {leaks or 'nothing'}; loaders left at the end: {left}")
    sys.exit(1 if growth > TOLERANCE or leaks or left else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="of each run (default: 2000)")
    args = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    statuses = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = make_tiny_corpus(folder / "corpus")
        manifest = pd.concat([pd.read_csv(corpus.train_manifest)] * 22)
        manifest.to_csv(folder / "train.csv", index=False)
        for num_workers in (0, 2):
            print(f"--num_workers {num_workers}", flush=True)
            flags = [
                "--working_directory", str(folder / f"work_{num_workers}"),
                "--save_audio_gen", str(folder / f"samples_{num_workers}"),
                "--path_to_train_manifest", str(folder / "train.csv"),
                "--path_to_val_manifest", str(corpus.test_manifest),
                "--experiment_name", "soak", "--batch_size", "2", "--console_out_iters", "1000",
                "--training_epochs", str(-(-args.steps // STEPS_PER_EPOCH)),
                "--keep_checkpoints", "2", "--num_workers", str(num_workers), *TINY_MODEL,
            ]  # fmt: skip
            # A process of its own: one run's memory must not be the next one's.
            process = multiprocessing.get_context("fork").Process(target=soak, args=(flags,))
            process.start()
            process.join()
            statuses.append(process.exitcode)
    sys.exit(1 if any(statuses) else 0)


if __name__ == "__main__":
    main()
