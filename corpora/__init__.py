"""Recordings in any layout of folder, the report on them, and the corpus of `make demo`."""
