"""What train_taco.py uses: its flags, set-up, checkpoints, validation, and what a run shows."""
