"""Not a test: trains many steps and watches what the main process holds on to.

    python tests/soak.py --steps 2000

A small model trains on a tiny made-up corpus, with a validation and its pictures every 99 steps,
once without loader processes and once with two. Exit status 1 when

- memory in use is more than 5 % larger at the end than at step 200: a leak;
- resident memory is more than 1.3 times as large at step 300 as at step 30: pieces that the C
  library keeps after they are freed, between what is still used, and that ever other sizes of
  batches tear apart. train_taco.py gives them back every few steps;
- a figure, an open file or a loader process piles up.
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
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco
from conftest import make_tiny_corpus
from runs import run_flags
from training.run import Run

COPIES = 22  # of the 9 clips: 99 steps of 2 clips an epoch
SHOWN_EVERY = 200
EARLY, LATE = 30, 300
MOST_GROWTH, MOST_FRAGMENTS = 1.05, 1.3


def resident_mib() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def open_files() -> list[Path]:
    """List the open files; in /dev/shm are batches that loader processes have prepared."""
    with os.scandir("/proc/self/fd") as entries:
        return [Path(entry.path).readlink() for entry in entries if os.path.lexists(entry.path)]


def measure() -> dict[str, float]:
    """Measure MiB, and count what must not pile up. Trims the heap, after `resident`."""
    resident = resident_mib()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return {
        "resident": resident,
        "in use": resident_mib(),
        "figures": sum(issubclass(type(thing), Figure) for thing in gc.get_objects()),
        "files": sum(not str(path).startswith("/dev/shm") for path in open_files()),
        "loaders": len(multiprocessing.active_children()),
    }


def soak(flags: list[str]) -> None:
    """Train, and measure in the middle of steps; exit status 1 when something grew."""
    rows: dict[int, dict[str, float]] = {}
    train_step = train_taco.train_step

    def measured_step(run: Run, batches: list, step: int) -> dict[str, float]:
        losses = train_step(run, batches, step)
        if (step + 1) % SHOWN_EVERY == 0 or step + 1 in (EARLY, LATE):
            rows[step + 1] = measure()
            shown = "  ".join(f"{name} {value:.0f}" for name, value in rows[step + 1].items())
            print(f"step {step + 1:5}  {shown}", flush=True)
        return losses

    train_taco.train_step = measured_step
    train_taco.main(flags)
    first, last = rows[SHOWN_EVERY], rows[max(rows)]
    growth = last["in use"] / first["in use"]
    fragments = rows[LATE]["resident"] / rows[EARLY]["resident"]
    leaks = [name for name in ("figures", "files", "loaders") if last[name] > first[name]]
    left = len(multiprocessing.active_children())
    print(f"in use: x {growth:.2f}; resident at step {LATE}: x {fragments:.2f}; "
          f"piled up: {leaks or 'nothing'}; loaders left at the end: {left}")  # fmt: skip
    too_much = growth > MOST_GROWTH or fragments > MOST_FRAGMENTS
    sys.exit(1 if too_much or leaks or left else 0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=2000, help="of each run, at least 300 (default: 2000)"
    )
    args = parser.parse_args(argv)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    statuses = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = make_tiny_corpus(folder / "corpus")
        manifest = pd.concat([pd.read_csv(corpus.train_manifest)] * COPIES)
        manifest.to_csv(folder / "train.csv", index=False)
        corpus = corpus._replace(train_manifest=folder / "train.csv")
        for num_workers in (0, 2):
            print(f"--num_workers {num_workers}", flush=True)
            n_epochs = -(-args.steps // (len(manifest) // 2))
            flags = ["--console_out_iters", 1000, "--keep_checkpoints", 2,
                     "--training_epochs", n_epochs, "--num_workers", num_workers]  # fmt: skip
            flags = run_flags(corpus, folder / str(num_workers), *flags)
            # A process of its own: one run's memory must not be the next one's.
            process = multiprocessing.get_context("fork").Process(target=soak, args=(flags,))
            process.start()
            process.join()
            statuses.append(process.exitcode)
    sys.exit(1 if any(statuses) else 0)


if __name__ == "__main__":
    main()
