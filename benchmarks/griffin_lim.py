"""Measure Griffin-Lim: how near the sound's mel comes, and what it costs on one core.

    OMP_NUM_THREADS=1 python benchmarks/griffin_lim.py --recordings LJSpeech-1.1/wavs

It turns each recording into a mel, the mel into a sound in each of several ways, and compares the
sound's mels with those of the recording. "mel" is the root mean square error in dB of the mel that
the sound was made from; no way fitted the other three, with frames half a hop later and windows of
2048 and 512 samples. "real-time factor" is seconds of CPU time per second of sound.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Row, make_parser, print_device, report
from command_line.files import DataError
from command_line.main import script
from dataset import AudioConfig, audio_to_mel, load_wav, mel_filters, mel_to_audio, to_log_mel

CONFIG = AudioConfig()
DECIBELS = 20 / math.log(10)  # of a natural logarithm
MELS = {  # by column: the mel, and the samples that it leaves out at the start
    "mel": (CONFIG, 0),
    "half a hop later": (CONFIG, CONFIG.hop_size // 2),
    "window of 2048": (replace(CONFIG, n_fft=2048, window_size=2048), 0),
    "window of 512": (replace(CONFIG, n_fft=512, window_size=512, hop_size=128, num_mels=40), 0),
}


def pseudo_inverse(mel: Tensor) -> Tensor:
    """Run torchaudio's Griffin-Lim with the least-squares magnitudes, negative ones set to 0."""
    c = CONFIG
    edge = c.n_fft // c.hop_size + 1  # as in mel_to_audio
    longer = torch.cat([mel[:1].expand(edge, -1), mel, mel[-1:].expand(edge, -1)])
    filters = mel_filters(c, mel.device)
    magnitude = (torch.linalg.pinv(filters) @ to_log_mel(longer, c).exp().t()).clamp_min(0.0)
    griffin_lim = torchaudio.transforms.GriffinLim(
        c.n_fft, 60, c.window_size, c.hop_size, power=1.0
    )
    return griffin_lim(magnitude)[edge * c.hop_size - c.hop_size // 2 :][: len(mel) * c.hop_size]


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "pseudo-inverse, 60 iterations": pseudo_inverse,
    **{
        f"magnitudes fitted in each of {n}": partial(mel_to_audio, audio_config=CONFIG, n_iter=n)
        for n in (16, 32, 48, 60)
    },
}


def mel_errors(sound: Tensor, recording: Tensor) -> dict[str, Tensor]:
    """Compute the errors in dB of all frames and bins, for each of MELS."""
    recording = recording[: len(sound)]
    errors = {}
    for name, (config, start) in MELS.items():
        pair = (to_log_mel(audio_to_mel(wav[start:], config), config) for wav in (sound, recording))
        errors[name] = DECIBELS * (next(pair) - next(pair)).flatten()
    return errors


def measure(recordings: Sequence[Path]) -> list[Row]:
    """Measure each way of WAYS; return a row for each."""
    errors = {name: {column: [] for column in MELS} for name in WAYS}
    cpu_seconds, peaks = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)
    n_samples = 0
    for path in recordings:
        recording = load_wav(path, CONFIG.sampling_rate)
        mel = audio_to_mel(recording, CONFIG)
        n_samples += len(mel) * CONFIG.hop_size
        for name, way in WAYS.items():
            torch.manual_seed(0)  # of the first phases
            start = time.process_time()
            sound = way(mel)
            cpu_seconds[name] += time.process_time() - start
            peaks[name] = max(peaks[name], sound.abs().max().item())
            for column, error in mel_errors(sound, recording).items():
                errors[name][column].append(error)
    rows = []
    for name in WAYS:
        rms = {k: torch.cat(x).square().mean().sqrt().item() for k, x in errors[name].items()}
        factor = cpu_seconds[name] / n_samples * CONFIG.sampling_rate
        rows.append({"way": name, **rms, "real-time factor": factor, "peak": peaks[name]})
    return rows


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Measure with these flags."""
    parser = make_parser(__doc__, n_clips=(16, "number of recordings"))
    parser.add_argument("--recordings", type=Path, required=True, help="folder of wavs or flacs")
    args = parser.parse_args(argv)
    found = sorted(p for p in args.recordings.glob("*") if p.suffix in (".wav", ".flac"))
    if not found:
        raise DataError(f"--recordings {args.recordings}: no wav or flac in it")
    places = np.linspace(0, len(found) - 1, min(args.n_clips, len(found))).round().astype(int)
    machine = print_device(torch.device("cpu"))
    print(f"{len(places)} recordings of {args.recordings}")
    rows = measure([found[i] for i in places])
    report(args.output_dir / "griffin_lim.csv", rows, machine)


if __name__ == "__main__":
    main()
