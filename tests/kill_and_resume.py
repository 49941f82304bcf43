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
from conftest import TinyCorpus, make_tiny_corpus
from dataset import Batch
from forked_run import PRELOADED, process_variables
from runs import draw_nothing, run_flags
from training.checkpoints import TEMPORARY_PREFIX, list_checkpoints, read_state
from training.run import Run

COPIES = 4  # of the 9 clips: 18 steps of 2 clips an epoch
WRITE_SECONDS = 0.03  # that writing a checkpoint takes
OFTEN = ["--checkpoint_minutes", "0.0000001", "--keep_checkpoints", "2"]  # before every step
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
    """Return the exit status if the process ends within so many seconds, else None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def kill(process: int) -> None:
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)


class Victim:
    """The runs of one kind in one folder: killed, resumed, and counted."""

    def __init__(self, folder: Path, flags: list[str], n_processes: int, limit: float) -> None:
        self.folder, self.flags = folder, flags
        self.n_processes, self.limit = n_processes, limit
        self.checkpoints = folder / "work" / "tiny"
        self.kills = self.in_write = self.mid_epoch = self.finished = 0
        folder.mkdir()

    def is_writing(self) -> bool:
        return any(self.checkpoints.glob(TEMPORARY_PREFIX + "*"))

    def finish(self) -> str | None:
        """Run to the end from the newest checkpoint, if any; return what went wrong."""
        status = self.run(self.limit)
        return None if status == 0 else f"a run ended with {status}:\n{self.read_log()}"

    def run(self, seconds: float, then_wait_for_write: float | None = None) -> int | None:
        """Return the exit status of a run, or None if it was killed after so many seconds.

        With then_wait_for_write, the kill waits until so long after a checkpoint was begun.
        """
        resume = list_checkpoints(self.checkpoints)
        if resume:
            self.mid_epoch += read_state(resume[-1]).epoch_step > 0
        more = ["--resume_from_checkpoint", "latest"] if resume else []
        process = start([*self.flags, *more], self.folder, self.n_processes)
        status = wait(process, seconds)
        if status is None and then_wait_for_write is not None:
            while status is None and not self.is_writing():
                status = wait(process, 0.001)
            time.sleep(then_wait_for_write)
        if status is None:
            kill(process)
            self.in_write += self.is_writing()
        return status

    def read_log(self) -> str:
        return (self.folder / "log.txt").read_text()[-3000:]

    def disturb(self, times: int, rng: random.Random, seconds: float) -> str | None:
        """Kill and resume until a run ends, at most `times` in all; return what went wrong."""
        while self.kills < times:
            pause = rng.uniform(0, WRITE_SECONDS) if self.kills % 2 else None
            status = self.run(rng.uniform(0, seconds), pause)
            if status is not None:
                return f"a run ended with {status}:\n{self.read_log()}" if status else None
            self.kills += 1
        return self.finish()


def compare(
    victim: Victim, straight: Path, clips: list[str], times: int, rng: random.Random, seconds: float
) -> bool:
    """Disturb runs until all kills are done; return whether all came out as the straight one."""
    same = True
    while victim.kills < times or not victim.finished:
        failure = victim.disturb(times, rng, seconds)
        if failure:
            print(failure)
            return False
        victim.finished += 1
        final = victim.checkpoints / "final_checkpoint"
        differing = differences(final, straight) + seen_otherwise(victim.folder, final, clips)
        same = same and not differing
        outcome = differing or "same, bit for bit"
        print(f"{victim.kills} kills, run {victim.finished}: {outcome}", flush=True)
        shutil.rmtree(victim.checkpoints)
        (victim.folder / "steps.jsonl").unlink()
    return same


def make_corpus(folder: Path) -> tuple[TinyCorpus, list[str]]:
    """Make the tiny corpus with copies of each clip under names of their own."""
    corpus = make_tiny_corpus(folder / "corpus")
    frame = pd.concat([pd.read_csv(corpus.train_manifest)] * COPIES, ignore_index=True)
    frame["file_path"] = [
        str(shutil.copy(path, corpus.wavs / f"{i:02}.wav"))
        for i, path in enumerate(frame["file_path"])
    ]
    frame.to_csv(corpus.train_manifest, index=False)
    return corpus, frame["file_path"].tolist()


def parse_args() -> argparse.Namespace:
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.no_pictures:
        draw_nothing()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for name in PRELOADED:
        import_module(name)
    rng, victims, same = random.Random(args.seed), [], True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, clips = make_corpus(folder)
        for number, (kind, (num_workers, n_processes)) in enumerate(KINDS.items()):
            places = [folder / f"{number}_straight", folder / f"{number}_disturbed"]
            more = ["--num_workers", num_workers, "--free_running_clips", 1]
            more += ["--max_decoder_steps", 60]
            flags = [run_flags(corpus, place, *more) for place in places]
            straight = Victim(places[0], flags[0], n_processes, args.limit_seconds)
            victim = Victim(places[1], [*flags[1], *OFTEN], n_processes, args.limit_seconds)
            begun = time.monotonic()
            failure = straight.finish()
            if failure:
                sys.exit(failure)
            seconds, final = time.monotonic() - begun, straight.checkpoints / "final_checkpoint"
            wrong = seen_otherwise(straight.folder, final, clips)
            print(f"{kind}: undisturbed, {wrong or 'each clip once an epoch'}", flush=True)
            times = args.times // 3 + (number < args.times % 3)
            victims.append(victim)
            same = compare(victim, final, clips, times, rng, seconds) and same and not wrong
    kills, in_write, mid_epoch, finished = (
        sum(getattr(victim, name) for victim in victims)
        for name in ("kills", "in_write", "mid_epoch", "finished")
    )
    print(
        f"{kills} kills, {in_write} of them while a checkpoint was written or removed; "
        f"{mid_epoch} resumes in the middle of an epoch; {finished} runs came to their end, "
        f"{'all' if same else 'NOT all'} with the same final checkpoint as one that nobody "
        "killed, bit for bit, and with each clip once an epoch"
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
