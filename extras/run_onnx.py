"""Speak with the graphs of export_onnx.py, which puts a copy of this file, speak.py, beside them.

    python speak.py --text "hello world." --output hello.wav

Needs only onnxruntime and numpy. The text is looked up letter by letter: write numbers and
abbreviations as words, as in the .txt files of synthesize.py. Characters that the voice has no
symbols for are skipped. --tokens takes token ids instead. A voice of `--phonemes espeak` speaks the
IPA of those .txt files, in braces: --text "{h\u0259l\u02c8o\u028a}".
"""

import argparse
import json
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime

TINY = 1e-8  # below all magnitudes that matter; the least divisor


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Compute 1 / (1 + e^-x) without overflow."""
    return 0.5 + 0.5 * np.tanh(x / 2)


class Speaker:
    """The graphs and the settings of a folder; `int8` uses the step with quantised LSTMs."""

    def __init__(self, folder: str | Path, int8: bool = False, threads: int = 0) -> None:
        folder, options = Path(folder), onnxruntime.SessionOptions()
        self.settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.mel_filters = np.load(folder / "mel_filters.npy")  # (num_mels, n_fft // 2 + 1)
        # 0 is one per core. In 8 bits there is too little work to share.
        options.intra_op_num_threads = threads or int(int8)
        step = "step.int8.onnx" if int8 else "step.onnx"
        self.encoder, self.step, self.postnet = (
            onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
            for name in ("encoder.onnx", step, "postnet.onnx")
        )

    def encode(self, text: str) -> np.ndarray:
        """Look up token ids (1, T_text), of lower-case letters if the symbols have no capitals."""
        ids = self.settings["token_ids"]
        found = [ids.get(c, ids.get(c.lower())) for c in text]
        return np.array([[i for i in found if i is not None]], np.int64)

    def draw_masks(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the dropout of one frame, 0 or 1 / (1 - p), (prenet_depth, prenet_dim)."""
        p = self.settings["decoder_prenet_dropout_p"]
        shape = [self.settings[f"decoder_prenet_{name}"] for name in ("depth", "dim")]
        return (rng.random(shape, np.float32) >= p).astype(np.float32) / np.float32(1 - p)

    def speak(
        self,
        tokens: np.ndarray,
        rng: np.random.Generator,
        max_decoder_steps: int = 2000,
        stop_threshold: float | None = None,
        masks: np.ndarray | None = None,
        mels: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Make mel (T_mel, num_mels), stop logits (T_mel,) and alignment (T_mel, T_text).

        The mel is free running unless true `mels` (T_mel, num_mels) are given. `masks`, (T_mel,
        depth, dim), replace the drawn dropout.
        """
        threshold = self.settings["stop_threshold"] if stop_threshold is None else stop_threshold
        encoder_outputs, keys = self.encoder.run(None, {"tokens": tokens})
        feed = {"encoder_outputs": encoder_outputs, "keys": keys}
        sizes = {"T_text": tokens.shape[1]}  # all other axes have one size
        for value in self.step.get_inputs():
            shape = [sizes.get(size, size) for size in value.shape]
            feed.setdefault(value.name, np.zeros(shape, np.float32))
        state = [value.name for value in self.step.get_inputs()][4:]
        frames, stop_logits, alignments = [], [], []
        n_frames = max_decoder_steps if mels is None else len(mels)
        while len(frames) < n_frames:
            step_masks = self.draw_masks(rng) if masks is None else masks[len(alignments)]
            new, stops, *next_state = self.step.run(None, feed | {"masks": step_masks})
            feed.update(zip(state, next_state, strict=True), frame=new[:, -1])
            if mels is None and (ends := np.flatnonzero(sigmoid(stops[0]) > threshold)).size:
                n_frames = min(n_frames, len(frames) + ends[0] + 1)
            frames.extend(new[0])
            stop_logits.extend(stops[0])
            alignments.append(feed["alignment"][0])  # of all frames of the step
            if mels is not None:
                feed["frame"] = mels[len(frames) - 1 : len(frames)]
        (mel,) = self.postnet.run(None, {"mels_before": np.stack(frames[:n_frames])[None]})
        alignment = np.repeat(np.stack(alignments), new.shape[1], axis=0)
        return mel[0], np.array(stop_logits[:n_frames]), alignment[:n_frames]

    def fit_to_mel(self, magnitude: np.ndarray, mel: np.ndarray) -> np.ndarray:
        """Bring the mel of magnitudes (T, n_fft // 2 + 1) to `mel`, by Lee and Seung 2001."""
        ratio = mel / (magnitude @ self.mel_filters.T).clip(TINY)
        return magnitude * (ratio @ self.mel_filters) / self.mel_filters.sum(axis=0).clip(TINY)

    def sharpen(self, mel: np.ndarray) -> np.ndarray:
        """Clamp a mel (T_mel, num_mels) and give it the contrast of recordings, if it is known."""
        audio, contrast = self.settings["audio"], self.settings.get("contrast")
        mel = np.clip(np.nan_to_num(mel), audio["silence"], audio["loudest"])
        if contrast:
            k = np.arange(mel.shape[1])
            cosines = np.cos(np.pi / len(k) * k[:, None] * (k + 0.5)) * np.sqrt(2 / len(k))
            cosines[0] /= np.sqrt(2)  # (num_mels, num_mels), the orthonormal DCT-II
            mean, scale = np.array(contrast["mean"]), np.array(contrast["scale"])
            mel = mel + (mel @ cosines.T - mean) * (scale - 1) @ cosines
        return np.clip(mel, audio["silence"], audio["loudest"])

    def to_audio(self, mel: np.ndarray, rng: np.random.Generator, n_iter: int = 48) -> np.ndarray:
        """Turn a mel (T_mel, num_mels) into samples (T_mel * hop_size,) within -1 .. 1.

        Each iteration of Griffin-Lim also fits the magnitudes to the mel.
        """
        a = self.settings["audio"]
        n_fft, hop = a["n_fft"], a["hop_size"]
        window = np.zeros(n_fft)
        start, width = (n_fft - a["window_size"]) // 2, a["window_size"]
        window[start : start + width] = np.hanning(width + 1)[:-1]
        edge = n_fft // hop + 1  # frames at each end that the overlapping windows need
        mel = np.clip(np.nan_to_num(mel), a["silence"], a["loudest"])
        mel = np.pad(mel, ((edge, edge), (0, 0)), mode="edge")
        mel = np.exp(mel * a["log_mel_scale"] + a["log_mel_shift"])
        places = np.arange(len(mel))[:, None] * hop + np.arange(n_fft)  # of each frame's samples
        weight = np.bincount(places.ravel(), np.tile(np.square(window), len(mel))).clip(TINY)
        magnitude = self.fit_to_mel(np.ones((len(mel), n_fft // 2 + 1)), mel)
        spectrum, before = magnitude * np.exp(2j * np.pi * rng.random(magnitude.shape)), 0
        for i in range(n_iter + 1):
            framed = np.fft.irfft(spectrum, n_fft) * window
            samples = np.bincount(places.ravel(), framed.ravel()) / weight
            if i < n_iter:
                rebuilt = np.fft.rfft(samples[places] * window)
                magnitude = self.fit_to_mel(np.abs(rebuilt).clip(TINY), mel)
                ahead, before = rebuilt - 0.99 / 1.99 * before, rebuilt  # momentum 0.99
                spectrum = ahead * magnitude / np.abs(ahead).clip(TINY)
        start = edge * hop + (n_fft - hop) // 2
        samples = samples[start : start + (len(mel) - 2 * edge) * hop]
        return samples / np.abs(samples).max().clip(1)


def main(argv: list[str] | None = None) -> None:
    """Write the wav of one text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--folder", default=Path(__file__).parent, help="with the graphs (default: this file's)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="what to say, in plain words")
    source.add_argument("--tokens", type=int, nargs="+", help="token ids, instead of a text")
    add("--output", default="spoken.wav", help="16-bit wav (default: %(default)s)")
    add("--int8", action="store_true", help="with the quantised LSTMs")
    add("--max_decoder_steps", type=int, default=2000, help="most frames (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of dropout and phases (default: %(default)s)")
    add(
        "--threads",
        type=int,
        default=0,
        help="threads of onnxruntime (default: all cores, 1 with --int8)",
    )
    args = parser.parse_args(argv)
    if not (Path(args.folder) / "settings.json").is_file():
        sys.exit(f"--folder {args.folder}: holds no settings.json, as export_onnx.py writes it")
    if args.int8 and not (Path(args.folder) / "step.int8.onnx").is_file():
        sys.exit("--int8: step.int8.onnx is missing, export_onnx.py --int8 writes it")
    if not Path(args.output).absolute().parent.is_dir():
        sys.exit(f"--output {args.output}: there is no such folder")
    if args.seed < 0 or args.max_decoder_steps < 1:
        sys.exit("--seed must be at least 0, and --max_decoder_steps at least 1")
    speaker, rng = Speaker(args.folder, args.int8, args.threads), np.random.default_rng(args.seed)
    rate, n_symbols = speaker.settings["audio"]["sampling_rate"], len(speaker.settings["symbols"])
    tokens = np.array([args.tokens], np.int64) if args.tokens else speaker.encode(args.text)
    has_language, has_braces = speaker.settings.get("language"), "{" in (args.text or "")
    if has_language and args.text and not has_braces:
        sys.exit("--text: this voice speaks IPA in braces, as in the .txt files of synthesize.py")
    if has_braces and not has_language:
        sys.exit("--text: phonemes in braces cannot be looked up letter by letter: give --tokens")
    has_letter = any(c.isalpha() and speaker.encode(c).size for c in args.text or "")
    if not (args.tokens or has_letter) or not 0 <= tokens.min() <= tokens.max() < n_symbols:
        sys.exit(f"nothing to say: {args.text or args.tokens!r} has no symbols of this voice")
    mel, stop_logits, _ = speaker.speak(tokens, rng, args.max_decoder_steps)
    samples = (speaker.to_audio(speaker.sharpen(mel), rng) * 32767).astype("<i2")
    with wave.open(args.output, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    stopped = sigmoid(stop_logits[-1]) > speaker.settings["stop_threshold"]
    ending = "stopped by itself" if stopped else "did not stop"
    print(f"{args.output}: {len(samples) / rate:.2f} s, {ending}", file=sys.stderr)


if __name__ == "__main__":
    main()
