"""The parts of train_taco.py: flags, set-up, checkpoints, validation, and what a run shows."""
