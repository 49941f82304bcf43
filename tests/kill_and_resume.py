"""Not a test: kills training at random moments, resumes it, and compares what comes out.

    python tests/kill_and_resume.py --times 50

A tiny model trains on a tiny made-up corpus and writes a checkpoint before every step, so that many
kills fall into the writing of one. Each kill is SIGKILL to the run and all its processes, at a
moment drawn from --seed; the next run begins with --resume_from_checkpoint latest. Whenever a run
comes to its end, every tensor of its final checkpoint must equal, bit for bit, that of a run that
nobody disturbed. Every other kill waits until a checkpoint is being written. Ends with a summary;
exit status 1 when anything differed.

The runs are forked from this process, which has imported everything: seconds saved for each.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco
from checkpoints import TEMPORARY_PREFIX, list_checkpoints, read_state
from conftest import make_tiny_corpus

TINY_MODEL = [
    "--character_embed_dim=16", "--encoder_embed_dim=16", "--decoder_rnn_embed_dim=24",
    "--decoder_prenet_dim=8", "--decoder_postnet_n_filters=8", "--attention_dim=8",
    "--attention_location_n_filters=4",
]  # fmt: skip
COPIES = 4  # of the 9 clips: 18 steps of 2 clips an epoch
WRITE_SECONDS = 0.03  # that writing a checkpoint takes
EVERY_STEP = "0.0000001"  # --checkpoint_minutes


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
    state, _ = read_state(checkpoint)
    return content | tensors_of(state._replace(wandb_run_id=None)._asdict(), "trainer_state.json")


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


def start(flags: list[str], log: Path) -> int:
    """train_taco.py in a forked process, the leader of a group of its own; its process id."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
        train_taco.main(flags)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


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


def run_to_its_end(flags: list[str], log: Path, limit: float) -> float:
    """Seconds that an undisturbed run takes; ends the script when it fails."""
    begun = time.monotonic()
    process = start(flags, log)
    status = wait(process, limit)
    if status is None:
        kill(process)
    if status != 0:
        sys.exit(f"a run that nobody disturbed ended with {status}:\n{log.read_text()[-3000:]}")
    return time.monotonic() - begun


def disturb(
    flags: list[str], folder: Path, args: argparse.Namespace, straight: Path, run_seconds: float
) -> bool:
    """The runs and the kills; whether all came out alike."""
    rng = random.Random(args.seed)
    log, checkpoints = folder / "log.txt", folder / "work" / "tiny"
    same = True
    kills = in_write = mid_epoch = finished = 0
    while kills < args.times or list_checkpoints(checkpoints):
        resume = list_checkpoints(checkpoints)
        mid_epoch += bool(resume) and read_state(resume[-1])[0].epoch_step > 0
        more = ["--resume_from_checkpoint", "latest"] if resume else []
        process = start([*flags, *more], log)
        seconds = rng.uniform(0, run_seconds) if kills < args.times else args.limit_seconds
        status = wait(process, seconds)
        if status is None and kills < args.times and kills % 2:
            status = wait_for_write(process, checkpoints, rng.uniform(0, WRITE_SECONDS))
        if status is None:
            kill(process)
            kills += 1
            in_write += bool(list(checkpoints.glob(TEMPORARY_PREFIX + "*")))
            if kills > args.times:
                print(f"a resumed run took more than {args.limit_seconds} s")
                return False
            continue
        if status != 0:
            print(f"a resumed run ended with {status}:\n{log.read_text()[-3000:]}")
            return False
        finished += 1
        differing = differences(checkpoints / "final_checkpoint", straight)
        same = same and not differing
        print(f"{kills} kills, run {finished}: {differing or 'same, bit for bit'}", flush=True)
        shutil.rmtree(checkpoints)
    print(
        f"{kills} kills, {in_write} of them while a checkpoint was written or removed; "
        f"{mid_epoch} resumes in the middle of an epoch; {finished} runs came to their end, "
        f"{'all' if same else 'NOT all'} with the same final checkpoint, bit for bit"
    )
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=50, help="kills (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of their moments (default: 0)")
    parser.add_argument("--num_workers", type=int, default=0, help="loader processes (default: 0)")
    parser.add_argument(
        "--limit_seconds", type=float, default=300, help="for a whole run (default: 300)"
    )
    args = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = make_tiny_corpus(folder / "corpus")
        train_manifest = folder / "train.csv"
        pd.concat([pd.read_csv(corpus.train_manifest)] * COPIES).to_csv(train_manifest, index=False)

        def flags(place: str, *more: str) -> list[str]:
            return [
                "--working_directory", str(folder / place / "work"),
                "--save_audio_gen", str(folder / place / "samples"),
                "--path_to_train_manifest", str(train_manifest),
                "--path_to_val_manifest", str(corpus.test_manifest),
                "--experiment_name", "tiny", "--batch_size", "2", "--training_epochs", "2",
                "--num_workers", str(args.num_workers), "--free_running_clips", "1",
                "--max_decoder_steps", "60", "--checkpoint_epochs", "1", *TINY_MODEL, *more,
            ]  # fmt: skip

        (folder / "straight").mkdir()
        (folder / "disturbed").mkdir()
        log = folder / "straight" / "log.txt"
        seconds = run_to_its_end(flags("straight"), log, args.limit_seconds)
        straight = folder / "straight" / "work" / "tiny" / "final_checkpoint"
        often = ["--checkpoint_minutes", EVERY_STEP, "--keep_checkpoints", "2"]
        same = disturb(flags("disturbed", *often), folder / "disturbed", args, straight, seconds)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
