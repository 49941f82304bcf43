"""Not a test: train_taco.py held in one step until a signal has come or a file is there.

    python tests/held_run.py STEP FILE FLAGS_OF_TRAIN_TACO...

It prints "held" when it begins to wait, so that what a test does next happens in that step,
however fast or busy the machine is.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco

held_at, release = int(sys.argv[1]), Path(sys.argv[2])
train_epoch, train_step = train_taco.train_epoch, train_taco.train_step


def held_epoch(run, state, saved_at):
    def held_step(run, batches, step):
        if step == held_at:
            print("held", flush=True)
            while not (run.interrupt.pending or release.exists()):
                time.sleep(0.01)
        return train_step(run, batches, step)

    train_taco.train_step = held_step
    return train_epoch(run, state, saved_at)


if __name__ == "__main__":
    train_taco.train_epoch = held_epoch
    train_taco.main(sys.argv[3:])
