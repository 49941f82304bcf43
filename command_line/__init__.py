"""Flags, files and the `main` wrapper that all scripts share."""
