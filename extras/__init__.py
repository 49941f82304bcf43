"""Scripts that only some users need: ONNX, a web page, publishing, word times, the rehearsal."""
