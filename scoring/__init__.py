"""How well a voice speaks: alignments, word starts, mel distance, word errors, pictures."""
