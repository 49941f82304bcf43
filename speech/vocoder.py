"""A HiFi-GAN instead of Griffin-Lim: natural-log mel (T_mel, num_mels) to wav.

    vocoder = load_vocoder("UNIVERSAL_V1", voice.audio_config)   # needs requirements/vocoder.txt
    wav = to_audio(mel, voice.audio_config, vocoder)             # Griffin-Lim where that is None

The folder is one of two kinds. Of jik876/hifi-gan: config.json, and beside it the generator,
generator_v1 or g_02500000, of which the last by name is taken; V1, V2 and V3. Or of transformers'
SpeechT5HifiGan: config.json, which must also have n_fft, win_size, fmin and fmax as HiFi-GAN's has
them, and model.safetensors or pytorch_model.bin. The generator runs in transformers' module, which
has the residual blocks of V1 and V2; those of V3 are here.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from command_line.files import DataError, import_extra, read_json
from dataset import AudioConfig, clamp_mel, mel_to_audio, to_log_mel

Vocoder = Callable[[Tensor], Tensor]  # natural-log mel (T_mel, num_mels) -> wav (n_samples,)
TRANSFORMERS_TYPE = "speecht5_hifigan"
AUDIO_NAMES = {  # HiFi-GAN's name of what AudioConfig has
    "sampling_rate": "sampling_rate", "num_mels": "num_mels", "n_fft": "n_fft",
    "win_size": "window_size", "hop_size": "hop_size", "fmin": "fmin", "fmax": "fmax",
}  # fmt: skip
SIZES = (
    "upsample_initial_channel", "upsample_rates", "upsample_kernel_sizes",
    "resblock_kernel_sizes", "resblock_dilation_sizes",
)  # fmt: skip
MAX_SIZE = 4096  # of a channel, kernel or dilation; V1 has 512 channels
LEAKY_SLOPE = 0.1


class ResidualBlock2(nn.Module):
    """V3's: for each dilation x + conv(leaky_relu(x)), (B, channels, n) to the same shape."""

    def __init__(self, channels: int, kernel_size: int, dilations: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding="same")
            for dilation in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum that the last convolution ends."""
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, LEAKY_SLOPE))
        return x


def to_audio(mel: Tensor, audio_config: AudioConfig, vocoder: Vocoder | None = None) -> Tensor:
    """(T_mel, num_mels) scaled -> (n_samples,), by a vocoder, or by Griffin-Lim without one.

    n_samples = T_mel * hop_size. The mel is clamped, with a warning, see `clamp_mel`.
    """
    if vocoder is None:
        return mel_to_audio(mel, audio_config)
    return vocoder(to_log_mel(clamp_mel(mel, audio_config), audio_config))


def fold_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with g v / |v| for each pair of weight norm, by torch's older or newer names.

    |v| is taken over all dimensions but the first.
    """
    folded = dict(state)
    for old, new in (
        (".weight_g", ".weight_v"),
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    ):
        for name in [name for name in folded if name.endswith(old)]:
            stem = name.removesuffix(old)
            g, v = folded.pop(name), folded.pop(stem + new)
            norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.dim() - 1))
            folded[f"{stem}.weight"] = g * v / norm
    return folded


def read_weights(path: Path) -> dict[str, Tensor]:
    """A generator's weights with weight norm folded; no pickle is run.

    Raises:
        DataError: when the file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("generator", state)
        state = {name.replace("ups.", "upsampler.", 1): x for name, x in state.items()}
        state = {name: weight.float() for name, weight in fold_weight_norm(state).items()}
    except Exception as error:  # torch.load raises nearly anything on a broken file
        reason = " ".join(str(error).split())[:150]
        raise DataError(f"--vocoder {path}: not a generator's weights ({reason})") from None
    broken = [name for name, weight in state.items() if not torch.isfinite(weight).all()]
    if broken:
        raise DataError(f"--vocoder {path}: {broken[0]} holds NaN or infinity")
    return state


def read_vocoder_config(folder: Path) -> dict[str, Any]:
    """config.json by HiFi-GAN's names, also where it is one of transformers.

    Raises:
        DataError: when it is missing or not that of a HiFi-GAN.
    """
    path = folder / "config.json"
    if not os.path.isdir(folder):
        raise DataError(f"--vocoder {folder}: no such folder")
    if not os.path.isfile(path):
        raise DataError(f"--vocoder {folder}: config.json is missing")
    config = read_json(path, f"--vocoder {path}")
    if not isinstance(config, dict):
        raise DataError(f"--vocoder {path}: not the config of a HiFi-GAN")
    if config.get("model_type") == TRANSFORMERS_TYPE:
        rates = config.get("upsample_rates")
        if is_sizes(rates):
            config["hop_size"] = math.prod(rates)
        config |= {"num_mels": config.get("model_in_dim"), "resblock": "1"}
    missing = [name for name in (*SIZES, *AUDIO_NAMES, "resblock") if name not in config]
    if missing:
        raise DataError(
            f"--vocoder {path}: does not say {', '.join(missing)}, as the config.json of a "
            "HiFi-GAN does"
        )
    return config


def is_sizes(value: object) -> bool:
    """Whether it is a list of whole numbers from 1 to MAX_SIZE."""
    return isinstance(value, list) and all(type(x) is int and 1 <= x <= MAX_SIZE for x in value)


def check_sizes(path: Path, config: dict[str, Any]) -> None:
    """Holds the sizes of a config against each other.

    Raises:
        DataError: naming what is off.
    """
    channels, rates, kernels, block_kernels, dilations = (config[name] for name in SIZES)
    fit = (
        config["resblock"] in ("1", "2")
        and is_sizes([channels])
        and all(map(is_sizes, (rates, kernels, block_kernels)))
        and isinstance(dilations, list)
        and all(map(is_sizes, dilations))
        and len(rates) == len(kernels) > 0
        and len(block_kernels) == len(dilations) > 0
        and all(k >= u and (k - u) % 2 == 0 for u, k in zip(rates, kernels, strict=True))
        and all(k % 2 for k in block_kernels)
        and channels >= 2 ** len(rates)
        and math.prod(rates) == config["hop_size"]
    )
    if not fit:
        raise DataError(f"--vocoder {path}: {', '.join(SIZES)} and hop_size make no HiFi-GAN")


def list_differences(config: dict[str, Any], audio_config: AudioConfig) -> list[str]:
    """What a vocoder's mels have otherwise than these, a phrase for each."""
    differences = []
    for name, own_name in AUDIO_NAMES.items():
        theirs, ours = config[name], getattr(audio_config, own_name)
        if name == "fmax" and theirs is None:  # as librosa has it
            theirs = config["sampling_rate"] / 2
        if theirs != ours:
            differences.append(f"{own_name} is {theirs!r:.20}, not {ours}")
    return differences


def find_weights(folder: Path, config: dict[str, Any]) -> Path:
    """The generator's file.

    Raises:
        DataError: when there is none.
    """
    patterns = ["generator_*", "g_*"]
    if config.get("model_type") == TRANSFORMERS_TYPE:
        patterns = ["model.safetensors", "pytorch_model.bin"]
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found[-1]
    raise DataError(f"--vocoder {folder}: there is no {' or '.join(patterns)} beside config.json")


def build_generator(config: dict[str, Any]) -> nn.Module:
    """transformers' generator without memory for its weights, with V3's blocks where it is one.

    Raises:
        DataError: when transformers is not installed.
    """
    transformers = import_extra("transformers", "--vocoder", "requirements/vocoder.txt")
    sizes = {name: config[name] for name in SIZES}
    normalize = config.get("normalize_before", config.get("model_type") == TRANSFORMERS_TYPE)
    slope = config.get("leaky_relu_slope", LEAKY_SLOPE)
    with torch.device("meta"):
        generator = transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(
                **sizes, model_in_dim=config["num_mels"], normalize_before=normalize,
                leaky_relu_slope=slope,
            )
        )  # fmt: skip
        if config["resblock"] == "2":
            generator.resblocks = nn.ModuleList(
                ResidualBlock2(
                    config["upsample_initial_channel"] // 2 ** (i + 1), kernel, dilations
                )
                for i in range(len(config["upsample_rates"]))
                for kernel, dilations in zip(
                    config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True
                )
            )
    return generator


def load_vocoder(
    directory: str | Path, audio_config: AudioConfig, device: str | torch.device = "cpu"
) -> Vocoder:
    """A folder to a function of the natural-log mel (T_mel, num_mels) that gives the wav.

    The wav has T_mel * hop_size samples in [-1, 1], on `device`.

    Raises:
        DataError: when a file is missing, broken or does not fit, transformers is not installed, or
            the vocoder is one for other mels than those of audio_config.
    """
    folder = Path(directory)
    config = read_vocoder_config(folder)
    differences = list_differences(config, audio_config)
    if differences:
        raise DataError(
            f"--vocoder {folder}: is for other mels than the checkpoint's: {'; '.join(differences)}"
        )
    check_sizes(folder / "config.json", config)
    path = find_weights(folder, config)
    generator = build_generator(config)
    state = read_weights(path)
    if config.get("model_type") != TRANSFORMERS_TYPE:  # HiFi-GAN takes the mel as it is
        n_mels = config["num_mels"]
        state |= {"mean": torch.zeros(n_mels), "scale": torch.ones(n_mels)}
    try:
        generator.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"--vocoder {path}: does not fit config.json ({reason})") from None
    generator = generator.to(device).eval().requires_grad_(False)

    def speak(log_mel: Tensor) -> Tensor:
        return generator(log_mel.to(device).float())  # (T_mel * hop_size,)

    return speak
