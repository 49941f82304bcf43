"""Recordings on disk to mono samples, as training and the reports on them read them."""
