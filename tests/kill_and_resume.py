"""Not a test: kills training at random moments, resumes it, and compares what comes out.

    python tests/kill_and_resume.py --times 50

A tiny model trains on a tiny made-up corpus and writes a checkpoint before every step, so that many
kills fall into the writing of one. Each kill is SIGKILL to all processes of the run, at a moment
drawn from --seed; the next run begins with --resume_from_checkpoint latest. Every other kill waits
until a checkpoint is being written. Three kinds of runs take a third of the kills each: one without
loader processes, one with two, and one of two processes with a loader process each.

Whenever a run comes to its end, every tensor of its final checkpoint must equal, bit for bit, that
of a run of its kind that nobody killed: a kill leaves no trace. And the steps that the final
checkpoint comes from must have seen each clip once in each epoch.

Ends with a summary; exit status 1 when anything differed.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco
from conftest import TinyCorpus, make_tiny_corpus
from forked_run import ForkedRun
from runs import run_flags
from training.checkpoints import TEMPORARY_PREFIX, list_checkpoints, read_state

COPIES = 4  # of the 9 clips: 18 steps of 2 clips an epoch
WRITE_SECONDS = 0.03  # that writing a checkpoint takes
OFTEN = ["--checkpoint_minutes", "0.0000001", "--keep_checkpoints", "2"]  # before every step
KINDS = {  # of runs: --num_workers, processes
    "no loader process": (0, 1),
    "two loader processes": (2, 1),
    "two processes": (1, 2),
}
COUNTS = ("kills", "in_write", "mid_epoch", "finished")


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


def record_steps(folder: Path) -> None:
    """Append a line per step to steps.jsonl, before a run: step, process, paths of its clips."""
    train_step, rank = train_taco.train_step, os.environ.get("RANK", "0")

    def recorded_step(run, batches, step):
        result = train_step(run, batches, step)
        line = [step + 1, rank, [path for batch in batches for path in batch.paths]]
        with open(folder / "steps.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return result

    train_taco.train_step = recorded_step


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


class Victim:
    """The runs of one kind in one folder: killed, resumed, and counted."""

    def __init__(self, folder: Path, flags: list[str], n_processes: int, args) -> None:
        self.folder, self.flags, self.n_processes, self.args = folder, flags, n_processes, args
        self.checkpoints = folder / "work" / "tiny"
        self.kills = self.in_write = self.mid_epoch = self.finished = 0
        folder.mkdir()

    def is_writing(self) -> bool:
        return any(self.checkpoints.glob(TEMPORARY_PREFIX + "*"))

    def start(self) -> ForkedRun:
        """Begin a run, from the newest checkpoint if any; return when it takes a step or ends."""
        resume = list_checkpoints(self.checkpoints)
        if resume:
            self.mid_epoch += read_state(resume[-1]).epoch_step > 0
        flags = [*self.flags, *(["--resume_from_checkpoint", "latest"] if resume else [])]
        record = partial(record_steps, self.folder)
        steps = self.folder / "steps.jsonl"
        steps.touch()
        n_bytes = steps.stat().st_size
        run = ForkedRun(flags, self.n_processes, record, pictures=not self.args.no_pictures)
        while run.processes[0].is_alive() and steps.stat().st_size == n_bytes:
            time.sleep(0.001)
        return run

    def finish(self, run: ForkedRun) -> Path:
        """Wait for a run's end; return its final checkpoint. A failure ends this script."""
        done = run.wait(self.args.limit_seconds)
        if done.returncode != 0:
            sys.exit(f"a run ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return self.checkpoints / "final_checkpoint"

    def disturb(self, times: int, rng: random.Random, seconds: float) -> Path:
        """Kill a run and resume it, up to `times` kills in all; return its final checkpoint."""
        while True:
            run = self.start()
            if self.kills == times:
                return self.finish(run)
            first = run.processes[0]
            first.join(rng.uniform(0, seconds))
            if self.kills % 2:
                while first.is_alive() and not self.is_writing():
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, WRITE_SECONDS))
            if not first.is_alive():
                return self.finish(run)
            run.kill()
            run.wait()
            self.kills += 1
            self.in_write += self.is_writing()


def compare(
    victim: Victim, straight: Path, clips: list[str], times: int, rng: random.Random, seconds: float
) -> bool:
    """Disturb runs until all kills are done; return whether all came out as the straight one."""
    same = True
    while victim.kills < times or not victim.finished:
        final = victim.disturb(times, rng, seconds)
        victim.finished += 1
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


def parse_args(flags: list[str] | None = None) -> argparse.Namespace:
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
    return parser.parse_args(flags)


def main() -> None:
    args = parse_args()
    rng, victims, same = random.Random(args.seed), [], True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, clips = make_corpus(folder)
        for number, (kind, (num_workers, n_processes)) in enumerate(KINDS.items()):
            places = [folder / f"{number}_straight", folder / f"{number}_disturbed"]
            more = ["--num_workers", num_workers, "--free_running_clips", 1]
            more += ["--max_decoder_steps", 60]
            flags = [run_flags(corpus, place, *more) for place in places]
            straight = Victim(places[0], flags[0], n_processes, args)
            victim = Victim(places[1], [*flags[1], *OFTEN], n_processes, args)
            victims.append(victim)
            run, begun = straight.start(), time.monotonic()
            final = straight.finish(run)
            seconds = time.monotonic() - begun
            wrong = seen_otherwise(straight.folder, final, clips)
            print(f"{kind}: undisturbed, {wrong or 'each clip once an epoch'}", flush=True)
            times = args.times // 3 + (number < args.times % 3)
            same = compare(victim, final, clips, times, rng, seconds) and same and not wrong
    kills, in_write, mid_epoch, finished = (
        sum(getattr(victim, name) for victim in victims) for name in COUNTS
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
