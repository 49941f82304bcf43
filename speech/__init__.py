"""The parts of synthesize.py: a voice on disk or the Hub, Coqui's, speaking, streaming, HiFi-GAN."""
