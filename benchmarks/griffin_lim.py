"""Mel to sound by Griffin-Lim: how near the sound's mel comes, and what it costs on one core.

    OMP_NUM_THREADS=1 python benchmarks/griffin_lim.py --recordings LJSpeech-1.1/wavs

Each recording becomes a mel, the mel becomes a sound by each way, and the sound's mels are held
against those of the recording. "mel" is the root mean square error in dB over all frames and bins
of the mel that the sound was made from. No way can have fitted the other three to it: the same mel
with its frames half a hop later, and mels of windows of 2048 and 512 samples. "real-time factor" is
seconds of CPU time (time.process_time, which other programs on the machine hardly change) per
second of sound; the recordings are taken in turn, each by all ways.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import torch
import torchaudio
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the flat modules are

from benchmarks.common import make_parser, print_device, report
from command_line.files import count_argument
from dataset import AudioConfig, audio_to_mel, load_wav, mel_to_audio, to_log_mel

CONFIG = AudioConfig()
DECIBELS = 20 / math.log(10)  # of a natural logarithm
MELS = {  # by column: the mel, and the samples that it leaves out at the start
    "mel": (CONFIG, 0),
    "half a hop later": (CONFIG, CONFIG.hop_size // 2),
    "window of 2048": (replace(CONFIG, n_fft=2048, window_size=2048), 0),
    "window of 512": (replace(CONFIG, n_fft=512, window_size=512, hop_size=128, num_mels=40), 0),
}
Invert = Callable[[Tensor, Tensor], Tensor]  # mel (num_mels, T_mel), filters -> magnitudes


def pseudo_inverse(mel: Tensor, filters: Tensor) -> Tensor:
    """The least-squares magnitudes (n_fft // 2 + 1, T_mel), negative ones set to 0."""
    return (torch.linalg.pinv(filters) @ mel).clamp_min(0.0)


def librosa_nnls(mel: Tensor, filters: Tensor) -> Tensor:
    """The least-squares magnitudes among those that are not negative, by L-BFGS-B."""
    return torch.from_numpy(librosa.util.nnls(filters.numpy(), mel.numpy())).float()


def multiplicative(mel: Tensor, filters: Tensor, divergence: str, steps: int = 20) -> Tensor:
    """Multiplicative updates under the Kullback-Leibler or the Itakura-Saito divergence."""
    magnitude = torch.ones(filters.shape[1], mel.shape[1])
    for _ in range(steps):
        found = (filters @ magnitude).clamp_min(1e-10)
        if divergence == "Kullback-Leibler":
            gain = (filters.t() @ (mel / found)) / filters.sum(dim=0)[:, None].clamp_min(1e-10)
        else:
            gain = filters.t() @ (mel / found**2) / (filters.t() @ (1 / found)).clamp_min(1e-10)
            gain = gain.sqrt()  # which is sure to lower the divergence
        magnitude = magnitude * gain
    return magnitude


def fixed_magnitudes(
    mel: Tensor, invert: Invert, n_iter: int = 60, momentum: float = 0.99
) -> Tensor:
    """torchaudio's Griffin-Lim with magnitudes that `invert` makes of the mel, (n_samples,)."""
    c = CONFIG
    edge = c.n_fft // c.hop_size + 1  # see mel_to_audio, which this has in common with it
    longer = torch.cat([mel[:1].expand(edge, -1), mel, mel[-1:].expand(edge, -1)])
    filters = torch.from_numpy(
        librosa.filters.mel(
            sr=c.sampling_rate, n_fft=c.n_fft, n_mels=c.num_mels, fmin=c.fmin, fmax=c.fmax
        )
    )
    magnitude = invert(to_log_mel(longer, c).exp().t(), filters)
    wav = torchaudio.functional.griffinlim(
        magnitude, torch.hann_window(c.window_size), c.n_fft, c.hop_size, c.window_size,
        power=1.0, n_iter=n_iter, momentum=momentum, length=None, rand_init=True,
    )  # fmt: skip
    return wav[edge * c.hop_size - c.hop_size // 2 :][: len(mel) * c.hop_size]


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "pseudo-inverse, 60 iterations": partial(fixed_magnitudes, invert=pseudo_inverse),
    "the same, 120 iterations": partial(fixed_magnitudes, invert=pseudo_inverse, n_iter=120),
    "librosa.util.nnls, 60": partial(fixed_magnitudes, invert=librosa_nnls),
    **{
        f"20 {name} updates, 60": partial(
            fixed_magnitudes, invert=partial(multiplicative, divergence=name)
        )
        for name in ("Kullback-Leibler", "Itakura-Saito")
    },
    "Itakura-Saito, 60, no momentum": partial(
        fixed_magnitudes,
        invert=partial(multiplicative, divergence="Itakura-Saito"),
        momentum=0.0,
    ),
    **{
        f"magnitudes fitted in each of {n}": partial(mel_to_audio, audio_config=CONFIG, n_iter=n)
        for n in (16, 32, 48, 60)
    },
}


def mel_errors(sound: Tensor, recording: Tensor) -> dict[str, Tensor]:
    """By name of MELS, the errors in dB of all frames and bins."""
    recording = recording[: len(sound)]
    errors = {}
    for name, (config, start) in MELS.items():
        pair = (to_log_mel(audio_to_mel(wav[start:], config), config) for wav in (sound, recording))
        errors[name] = DECIBELS * (next(pair) - next(pair)).flatten()
    return errors


def measure(recordings: Sequence[Path], seed: int) -> list[dict]:
    """A row for each of WAYS."""
    errors = {name: {column: [] for column in MELS} for name in WAYS}
    cpu_seconds, peaks = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)
    n_samples = 0
    for path in recordings:
        recording = load_wav(path, CONFIG.sampling_rate)
        mel = audio_to_mel(recording, CONFIG)
        n_samples += len(mel) * CONFIG.hop_size
        for name, way in WAYS.items():
            torch.manual_seed(seed)
            start = time.process_time()
            sound = way(mel)
            cpu_seconds[name] += time.process_time() - start
            peaks[name] = max(peaks[name], sound.abs().max().item())
            for column, some in mel_errors(sound, recording).items():
                errors[name][column].append(some)
    return [
        {
            "way": name,
            **{
                column: torch.cat(some).square().mean().sqrt().item()
                for column, some in errors[name].items()
            },
            "real-time factor": cpu_seconds[name] / n_samples * CONFIG.sampling_rate,
            "peak": peaks[name],
        }
        for name in WAYS
    ]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--recordings", type=Path, required=True, help="folder of wav or flac files")
    add("--n_clips", type=count_argument, default=16, help="of them (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the first phases (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a table and writes griffin_lim.csv."""
    args = parse_args(argv)
    found = sorted(p for p in args.recordings.glob("*") if p.suffix in (".wav", ".flac"))
    if not found:
        raise SystemExit(f"griffin_lim.py: --recordings {args.recordings}: no wav or flac in it")
    places = np.linspace(0, len(found) - 1, min(args.n_clips, len(found))).round().astype(int)
    machine = print_device(torch.device("cpu"))
    print(f"{len(places)} recordings of {args.recordings}")
    rows = measure([found[i] for i in places], args.seed)
    report(args.output_dir / "griffin_lim.csv", rows, machine)


if __name__ == "__main__":
    main()
