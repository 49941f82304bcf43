"""Give a voice's mels the contrast of recordings.

    sums = sum_cepstra(spoken_mels), sum_cepstra(recorded_mels)
    contrast = compare(*sums)                           # in each validation
    mel = sharpen(mel, audio_config, contrast)          # in speaking

A trained model speaks a middle of the mels that would fit its text: their mean by squared error,
their median by absolute error. What differs from one of them to the next gets lost, above all the
harmonics, so the mel is blurred and the sound muffled. One sees it in the cepstrum: each
coefficient of the voice's mels varies less than that of recordings, the less the finer the detail
that it stands for. Here each is scaled about its mean, so that it varies as much: the global
variance of Toda and Tokuda (2007), brought back by the scaling of Silén et al. (2012). A voice that
is not blurred stays as it is.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset import AudioConfig, clamp_mel

LEAST_SCALE = 1.0  # what varies more than in the recordings stays as it is
MOST_SCALE = 8.0  # the mels of a model that has learned nothing vary by nothing
LARGEST_MEAN = 1000.0  # in a config.json; a mel of 80 times the loudest value has 55


class Contrast(NamedTuple):
    """How a voice's cepstra differ from those of recordings: num_mels numbers each."""

    mean: list[float]  # of the voice's cepstra
    scale: list[float]  # standard deviation of the recordings' cepstra by that of the voice's


def cosines(num_mels: int) -> Tensor:
    """Return the orthonormal DCT-II, (num_mels, num_mels): cepstra = mels @ cosines.T."""
    import scipy.fft  # slow to import

    return torch.from_numpy(scipy.fft.dct(np.eye(num_mels), norm="ortho", axis=0)).float()


def sum_cepstra(mels: Iterable[Tensor]) -> Tensor:
    """Add up the cepstra of mels (T_mel, num_mels): (3, num_mels) of counts, sums, squares."""
    frames = torch.cat([*mels]).float()
    cepstra = frames @ cosines(frames.shape[1]).to(frames.device).T
    return torch.stack([torch.ones_like(cepstra), cepstra, cepstra**2]).sum(dim=1)


def compare(spoken: Tensor, recorded: Tensor) -> Contrast:
    """Find the contrast that a voice lacks, from the sums (3, num_mels) of `sum_cepstra`."""
    means = [sums[1] / sums[0] for sums in (spoken, recorded)]
    spreads = [
        (sums[2] / sums[0] - mean**2).clamp_min(1e-10).sqrt()
        for sums, mean in zip((spoken, recorded), means, strict=True)
    ]
    scale = (spreads[1] / spreads[0]).clamp(LEAST_SCALE, MOST_SCALE)
    return Contrast(*([round(x, 4) for x in numbers.tolist()] for numbers in (means[0], scale)))


def sharpen(mel: Tensor, audio_config: AudioConfig, contrast: Contrast | None) -> Tensor:
    """Clamp a mel of the model (T_mel, num_mels), and give it the contrast of recordings.

    See `clamp_mel`. Without a contrast, the mel is clamped alone.
    """
    mel = clamp_mel(mel.float(), audio_config)
    if contrast is None:
        return mel
    mean, scale = (torch.tensor(numbers).to(mel) for numbers in contrast)
    table = cosines(len(scale)).to(mel)
    mel = mel + (mel @ table.T - mean) * (scale - 1) @ table
    return mel.clamp(audio_config.silence, audio_config.loudest)


def read_contrast(config: dict[str, Any]) -> Contrast | None:
    """Read the contrast in a config.json; anything that `compare` does not give is a ValueError."""
    if "contrast" not in config:
        return None
    contrast = Contrast(**config["contrast"])
    limits = {"mean": (-LARGEST_MEAN, LARGEST_MEAN), "scale": (LEAST_SCALE, MOST_SCALE)}
    for name, (least, most) in limits.items():
        numbers = getattr(contrast, name)
        fits = type(numbers) is list and len(numbers) == config["num_mels"]
        if not (fits and all(type(x) in (int, float) and least <= x <= most for x in numbers)):
            expected = f"{config['num_mels']} numbers from {least:g} to {most:g}"
            raise ValueError(f"contrast's {name} is {numbers!r:.40}, not {expected}")
    return contrast
