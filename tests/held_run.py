"""Not a test: train_taco.py held in one step until a signal comes; see `hold` in forked_run.py.

    python tests/held_run.py STEP FLAGS_OF_TRAIN_TACO...

For runs that the launcher starts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco
from forked_run import hold

if __name__ == "__main__":
    hold(int(sys.argv[1]))
    train_taco.main(sys.argv[2:])
