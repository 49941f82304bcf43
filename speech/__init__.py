"""The parts of synthesize.py: a voice on disk or the Hub, speaking, streaming, HiFi-GAN."""
