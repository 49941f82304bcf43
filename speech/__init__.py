"""The parts of synthesize.py: voices on disk, on the Hub, of Coqui; speech, streams, HiFi-GAN."""
