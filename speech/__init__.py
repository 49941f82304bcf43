"""What synthesize.py uses: a voice on disk or the Hub, speaking, streaming, HiFi-GAN."""
