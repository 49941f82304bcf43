"""Not a test: kills training at random moments, resumes it, and compares what comes out.

    python tests/kill_and_resume.py --times 50

A tiny model trains on a tiny made-up corpus and writes a checkpoint before every step, so that many
kills fall into the writing of one. Each kill is SIGKILL to the run and all its processes, at a
moment drawn from --seed; the next run begins with --resume_from_checkpoint latest. Every other kill
waits until a checkpoint is being written. Three kinds of runs take a third of the kills each: one
without loader processes, one with two, and one of two processes with a loader process each.

Whenever a run comes to its end, every tensor of its final checkpoint must equal, bit for bit, that
of a run of its kind that nobody killed: a kill leaves no trace. And the steps that the final
checkpoint comes from must have seen each clip once in each epoch.

Ends with a summary; exit status 1 when anything differed. The runs are forked from this process,
which has imported everything, also what a run imports late: ten seconds saved for each.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco
from conftest import make_tiny_corpus
from dataset import Batch
from forked_run import PRELOADED, process_variables
from runs import TINY_MODEL, draw_nothing
from training.checkpoints import TEMPORARY_PREFIX, list_checkpoints, read_state
from training.run import Run

COPIES = 4  # of the 9 clips: 18 steps of 2 clips an epoch
EPOCHS = 2
WRITE_SECONDS = 0.03  # that writing a checkpoint takes
EVERY_STEP = "0.0000001"  # --checkpoint_minutes
RESUME = ["--resume_from_checkpoint", "latest"]


KINDS = {  # of runs: --num_workers, processes
    "no loader process": (0, 1),
    "two loader processes": (2, 1),
    "two processes": (1, 2),
}


def tensors_of(value, name: str) -> dict:
    """All leaves of nested dicts, lists and tuples, by their place."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {name: value}
    return {k: v for key, part in items for k, v in tensors_of(part, f"{name}/{key}").items()}


def read_all(checkpoint: Path) -> dict:
    """Everything in a checkpoint that decides how training goes on, by file and place."""
    content = tensors_of(load_file(checkpoint / "model.safetensors"), "model.safetensors")
    for path in sorted([*checkpoint.glob("*.bin"), *checkpoint.glob("*.pkl")]):
        # Written by these tests themselves; numpy's random state is no plain tensor.
        content |= tensors_of(torch.load(path, weights_only=False), path.name)
    state = asdict(read_state(checkpoint)) | {"wandb_run_id": None}
    return content | tensors_of(state, "trainer_state.json")


def differences(left: Path, right: Path) -> list[str]:
    """Names of what two checkpoints do not have bit for bit alike."""
    ours, theirs = read_all(left), read_all(right)
    differing = [f"{name} is in one only" for name in ours.keys() ^ theirs.keys()]
    for name in ours.keys() & theirs.keys():
        if type(ours[name]) is not type(theirs[name]) or not np.array_equal(
            np.asarray(ours[name]), np.asarray(theirs[name])
        ):
            differing.append(name)
    return sorted(differing)


def start(flags: list[str], folder: Path, n_processes: int) -> int:
    """train_taco.py in forked processes, a group of its own; the id of the first, their leader.

    They write to log.txt, and a line per step to steps.jsonl: step, process, paths of its clips.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = os.fork()
    if process:
        return process
    os.setsid()
    rank = next((i for i in range(1, n_processes) if os.fork() == 0), 0)
    if n_processes > 1:
        os.environ |= process_variables(rank, n_processes, port)
    output = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    train_step = train_taco.train_step

    def recorded_step(run: Run, batches: list[Batch], step: int) -> dict:
        result = train_step(run, batches, step)
        line = [step + 1, rank, [path for batch in batches for path in batch.paths]]
        with open(folder / "steps.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return result

    train_taco.train_step = recorded_step
    status = 1
    try:
        train_taco.main(flags)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def seen_otherwise(folder: Path, final: Path, clips: list[str]) -> list[str]:
    """The epochs in which a run that has come to its end has not seen each clip once.

    A step that was repeated after a kill counts as it was taken last.
    """
    lines = (folder / "steps.jsonl").read_text().split("\n")
    # A kill may cut a line; that step was then taken again.
    whole = [json.loads(line) for line in lines if line.endswith("]]")]
    taken = {(step, rank): paths for step, rank, paths in whole}
    first, wrong = 1, []
    for row in read_state(final).history:
        seen = [paths for (step, _), paths in taken.items() if first <= step <= row["step"]]
        if sorted(path for paths in seen for path in paths) != sorted(clips):
            wrong.append(f"epoch {row['epoch']} has not seen each clip once")
        first = row["step"] + 1
    return wrong


def wait(process: int, seconds: float) -> int | None:
    """The exit status within so many seconds, else None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def wait_for_write(process: int, checkpoints: Path, seconds: float) -> int | None:
    """Until so many seconds after a checkpoint was begun; the exit status when the run ends."""
    status = None
    while status is None and not list(checkpoints.glob(TEMPORARY_PREFIX + "*")):
        status = wait(process, 0.001)
    if status is None:
        time.sleep(seconds)
    return status


def kill(process: int) -> None:
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)


def run_to_its_end(flags: list[str], folder: Path, n_processes: int, limit: float) -> float:
    """Seconds that an undisturbed run takes; ends the script when it fails."""
    begun = time.monotonic()
    process = start(flags, folder, n_processes)
    status = wait(process, limit)
    if status is None:
        kill(process)
    if status != 0:
        log = (folder / "log.txt").read_text()[-3000:]
        sys.exit(f"a run that nobody disturbed ended with {status}:\n{log}")
    return time.monotonic() - begun


class Killer:
    """Kills runs of one kind, resumes them, and counts what it meets."""

    def __init__(self, times: int, rng: random.Random, limit: float) -> None:
        self.times, self.rng, self.limit = times, rng, limit
        self.kills = self.in_write = self.mid_epoch = self.finished = 0

    def reach_end(
        self, flags: list[str], folder: Path, n_processes: int, run_seconds: float
    ) -> str | None:
        """Kills and resumes a run until it comes to its end; what went wrong, if anything."""
        checkpoints = folder / "work" / "tiny"
        while True:
            resume = list_checkpoints(checkpoints)
            if resume:
                self.mid_epoch += read_state(resume[-1]).epoch_step > 0
            process = start([*flags, *(RESUME if resume else [])], folder, n_processes)
            left = self.kills < self.times
            status = wait(process, self.rng.uniform(0, run_seconds) if left else self.limit)
            if status is None and left and self.kills % 2:
                status = wait_for_write(process, checkpoints, self.rng.uniform(0, WRITE_SECONDS))
            if status is None:
                kill(process)
                self.kills += 1
                self.in_write += bool(list(checkpoints.glob(TEMPORARY_PREFIX + "*")))
                if not left:
                    return f"a resumed run took more than {self.limit} s"
            elif status != 0:
                log = (folder / "log.txt").read_text()[-3000:]
                return f"a resumed run ended with {status}:\n{log}"
            else:
                return None


def disturb(
    killer: Killer, flags: list[str], folder: Path, n_processes: int, seconds: float,
    straight: Path, clips: list[str],
) -> bool:  # fmt: skip
    """Runs until all kills are done, and the one after the last; whether all came out alike."""
    checkpoints = folder / "work" / "tiny"
    same = True
    while killer.kills < killer.times or not killer.finished:
        failure = killer.reach_end(flags, folder, n_processes, seconds)
        if failure:
            print(failure)
            return False
        killer.finished += 1
        final = checkpoints / "final_checkpoint"
        differing = differences(final, straight) + seen_otherwise(folder, final, clips)
        same = same and not differing
        print(
            f"{killer.kills} kills, run {killer.finished}: {differing or 'same, bit for bit'}",
            flush=True,
        )
        shutil.rmtree(checkpoints)
        (folder / "steps.jsonl").unlink()
    return same


def copy_clips(manifest: Path, copies: int, folder: Path) -> Path:
    """A manifest of copies of each clip under names of their own, in a folder that is made."""
    folder.mkdir()
    frame = pd.concat([pd.read_csv(manifest)] * copies, ignore_index=True)
    frame["file_path"] = [
        str(shutil.copy(path, folder / f"{i:02}.wav")) for i, path in enumerate(frame["file_path"])
    ]
    frame.to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=50, help="kills (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of their moments (default: 0)")
    parser.add_argument(
        "--limit_seconds", type=float, default=300, help="for a whole run (default: 300)"
    )
    parser.add_argument(
        "--no_pictures", action="store_true",
        help="draw nothing: more of the kills fall into training and checkpoints",
    )  # fmt: skip
    args = parser.parse_args()
    if args.no_pictures:
        draw_nothing()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for name in PRELOADED:
        import_module(name)
    rng, killers, same = random.Random(args.seed), [], True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = make_tiny_corpus(folder / "corpus")
        train_manifest = copy_clips(corpus.train_manifest, COPIES, folder / "clips")
        clips = pd.read_csv(train_manifest)["file_path"].tolist()
        for number, (kind, (num_workers, n_processes)) in enumerate(KINDS.items()):
            places = [folder / f"{number}_straight", folder / f"{number}_disturbed"]
            flags = [
                [
                    "--working_directory", str(place / "work"),
                    "--save_audio_gen", str(place / "samples"),
                    "--path_to_train_manifest", str(train_manifest),
                    "--path_to_val_manifest", str(corpus.test_manifest),
                    "--experiment_name", "tiny", "--batch_size", "2",
                    "--training_epochs", str(EPOCHS), "--num_workers", str(num_workers),
                    "--free_running_clips", "1", "--max_decoder_steps", "60",
                    "--checkpoint_epochs", "1", *TINY_MODEL,
                ]
                for place in places
            ]  # fmt: skip
            for place in places:
                place.mkdir()
            seconds = run_to_its_end(flags[0], places[0], n_processes, args.limit_seconds)
            straight = places[0] / "work" / "tiny" / "final_checkpoint"
            wrong = seen_otherwise(places[0], straight, clips)
            print(f"{kind}: undisturbed, {wrong or 'each clip once an epoch'}", flush=True)
            killer = Killer(args.times // 3 + (number < args.times % 3), rng, args.limit_seconds)
            killers.append(killer)
            often = ["--checkpoint_minutes", EVERY_STEP, "--keep_checkpoints", "2"]
            flags[1] += often
            same = not wrong and same and disturb(
                killer, flags[1], places[1], n_processes, seconds, straight, clips
            )  # fmt: skip
    total = {
        name: sum(getattr(killer, name) for killer in killers)
        for name in ("kills", "in_write", "mid_epoch", "finished")
    }
    print(
        f"{total['kills']} kills, {total['in_write']} of them while a checkpoint was written or "
        f"removed; {total['mid_epoch']} resumes in the middle of an epoch; {total['finished']} "
        f"runs came to their end, {'all' if same else 'NOT all'} with the same final checkpoint "
        "as one that nobody killed, bit for bit, and with each clip once an epoch"
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
