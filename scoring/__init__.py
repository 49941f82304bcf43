"""Measures of how well a voice speaks: alignments, word starts, mels, word errors, pictures."""
