"""What only some users need: ONNX, a page to try a voice, publishing, word times, the rehearsal."""
