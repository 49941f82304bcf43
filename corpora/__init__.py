"""Folders of recordings in any layout, the report on them, and the corpus of `make demo`."""
