"""Text to token ids: cleaning, numbers, phonemes, symbols, and cutting long texts."""
