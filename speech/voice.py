"""Read and write voices: folders with config.json and model.safetensors. No pickle is ever opened.

    voice = load_checkpoint("work_dir/tacotron2/final_checkpoint")
    voice = load_checkpoint("USER/NAME")   # from the Hugging Face Hub, see speech/hub.py

config.json holds the model's sizes, the audio settings, the symbols and the name of the text
cleaner, which is all that speaking needs besides the weights, and what training has noted: the
length of the longest text, and the contrast that the voice lacks (speech/contrast.py).
training/checkpoints.py adds the files that resuming needs.
"""

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import safetensors.torch
import torch

from command_line.files import DataError, one_line, read_json
from dataset import AudioConfig
from fast.decoder import speed_up
from model import Tacotron2, Tacotron2Config
from speech.contrast import Contrast, read_contrast
from speech.hub import CONFIG_FILE, OWN_FIELDS, WEIGHTS_FILE, find_checkpoint
from text.tokenizer import Tokenizer

FORMAT_VERSION = 1
# Fields of the tokenizer that are in config.json only where they are not empty
OPTIONAL_FIELDS = {"language": "", "lexicon": {}}
MIN_CHARACTERS, MAX_CHARACTERS = 80, 150  # of a piece of text, by default
MAX_PARAMETERS = 10**9  # 4 GB in float32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # for the matrix products


class VoiceConfig(NamedTuple):
    """What config.json holds."""

    model: Tacotron2Config
    audio: AudioConfig
    tokenizer: Tokenizer
    longest_text: int
    contrast: Contrast | None


class Voice(NamedTuple):
    """A checkpoint, ready to speak."""

    model: Tacotron2
    audio_config: AudioConfig
    tokenizer: Tokenizer
    longest_text: int = 0  # tokens of the longest text that it was trained on; 0 is unknown
    contrast: Contrast | None = None  # what its mels lack of that of recordings; None is unknown

    @property
    def max_characters(self) -> int:
        """Tokens that it speaks in one go: attention gets lost in texts longer than it knows."""
        return min(max(self.longest_text or MAX_CHARACTERS, MIN_CHARACTERS), MAX_CHARACTERS)


def write_config(
    directory: str | Path,
    model_config: Tacotron2Config,
    audio_config: AudioConfig,
    tokenizer: Tokenizer,
    longest_text: int = 0,
    contrast: Contrast | None = None,
) -> None:
    """Write config.json, which is all that speaking needs besides the weights."""
    config = {
        "format_version": FORMAT_VERSION,
        **asdict(model_config),
        "audio": asdict(audio_config),
        "symbols": list(tokenizer.symbols),
        "cleaner": tokenizer.cleaner,
    }
    config |= {
        name: getattr(tokenizer, name) for name in OPTIONAL_FIELDS if getattr(tokenizer, name)
    }
    config |= {"longest_text": longest_text} if longest_text else {}
    config |= {"contrast": contrast._asdict()} if contrast else {}
    content = json.dumps(config, indent=2, ensure_ascii=False)
    (Path(directory) / CONFIG_FILE).write_text(content, encoding="utf-8")


def check_fields(path: Path, given: dict[str, Any], config_class: type) -> None:
    """Refuse fields that are missing, unknown or of another type than the config class's."""
    odd = set(given) ^ {field.name for field in fields(config_class)}
    if odd:
        raise DataError(f"{path}: {sorted(odd)[0]} is missing or unknown")
    for name, kind in get_type_hints(config_class).items():
        if type(given[name]) not in ((int, float) if kind is float else (kind,)):
            raise DataError(f"{path}: {name} must be {kind.__name__}, found {given[name]!r:.40}")


def outline_model(model_config: Tacotron2Config) -> Tacotron2:
    """Build the model on the meta device (no memory); refuse more than MAX_PARAMETERS."""
    with torch.device("meta"):
        model = Tacotron2(model_config)
    n_parameters = sum(p.numel() for p in model.parameters())
    if n_parameters > MAX_PARAMETERS:
        limit = f"at most {MAX_PARAMETERS:,} are allowed"
        raise DataError(f"the sizes make a model of {n_parameters:,} parameters, {limit}")
    return model


def read_config(directory: str | Path) -> VoiceConfig:
    """Read config.json of a checkpoint folder."""
    path = Path(directory) / CONFIG_FILE
    if not os.path.isdir(directory):  # unlike Path.is_dir, False for any unusable name
        raise DataError(f"{directory}: no such checkpoint folder")
    if not os.path.isfile(path):
        raise DataError(f"{directory}: not a checkpoint folder, {CONFIG_FILE} is missing")
    config = read_json(path)
    try:
        if not OWN_FIELDS & set(config):
            raise DataError(
                f"{path}: has neither audio settings nor symbols, which save_pretrained does not "
                f"write: copy {CONFIG_FILE} of the checkpoint that the model came from to "
                f"{directory}, or call write_config({str(directory)!r}, model.config, "
                "audio_config, tokenizer) of speech/voice.py"
            )
        if (found := config.pop("format_version")) != FORMAT_VERSION:
            message = f"format_version {found!r:.40} is not the {FORMAT_VERSION} read here"
            raise DataError(f"{path}: {message}")
        contrast = read_contrast(config)
        config.pop("contrast", None)
        if type(longest_text := config.pop("longest_text", 0)) is not int:
            raise ValueError(f"longest_text is {longest_text!r:.40}")
        audio, symbols, cleaner = (config.pop(name) for name in ("audio", "symbols", "cleaner"))
        optional = {name: config.pop(name, empty) for name, empty in OPTIONAL_FIELDS.items()}
        check_fields(path, config, Tacotron2Config)
        check_fields(path, audio, AudioConfig)
        tokenizer = Tokenizer(symbols, cleaner, **optional)
        configs = Tacotron2Config(**config), AudioConfig(**audio)
        result = VoiceConfig(*configs, tokenizer, longest_text, contrast)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a checkpoint's config ({error})") from None
    model, audio, tokenizer, *_ = result
    if model.vocab_size != tokenizer.vocab_size or model.num_mels != audio.num_mels:
        raise DataError(f"{path}: model, symbols and audio do not fit each other")
    return result


def check_shapes(path: Path, model_config: Tacotron2Config) -> None:
    """Compare the shapes in a weights file with the model's, before either is loaded."""
    try:
        outline = outline_model(model_config).state_dict()
    except DataError as error:
        raise DataError(f"{path.with_name(CONFIG_FILE)}: {error}") from None
    expected = {name: [*tensor.shape] for name, tensor in outline.items()}
    with safetensors.safe_open(path, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    for name in sorted(expected.keys() | found):
        if expected.get(name) != found.get(name):
            shapes = f"{name} is {found.get(name, 'missing')}, not {expected.get(name, 'expected')}"
            raise DataError(f"{path}: weights do not fit {CONFIG_FILE} ({shapes})")


def load_checkpoint(directory: str | Path, device: str | torch.device = "cpu") -> Voice:
    """Load a checkpoint folder, or USER/NAME of the Hub, as a Voice in eval mode.

    A checkpoint that cannot be downloaded, is incomplete or is broken is a DataError.
    """
    directory = find_checkpoint(directory)
    model_config, *others = read_config(directory)
    path = Path(directory) / WEIGHTS_FILE
    if not path.is_file():
        raise DataError(f"{directory}: {WEIGHTS_FILE} is missing")
    try:
        check_shapes(path, model_config)
        model = Tacotron2(model_config)
        state = safetensors.torch.load_file(path)
        model.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        message = f"{path}: weights do not fit {CONFIG_FILE} ({one_line(error)})"
        raise DataError(message) from None
    broken = [name for name, weight in state.items() if not torch.isfinite(weight).all()]
    if broken:
        raise DataError(f"{path}: {broken[0]} holds NaN or infinity")
    return Voice(speed_up(model).to(device).eval(), *others)


def device_argument(value: str) -> str:
    """Check that a device exists (an argparse type)."""
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0][:120]
        raise argparse.ArgumentTypeError(f"{value} cannot be used ({reason})") from None
    return value


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add --device, which is a GPU by default if there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    text = "where the model runs, such as cpu or cuda:1 (default: cuda if there is a GPU, else cpu)"
    parser.add_argument("--device", type=device_argument, default=default, help=text)


def inference_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return the context that computes matrix products in `dtype`; LSTM cells stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def list_differences(
    path: Path, model_config: Tacotron2Config, audio_config: AudioConfig, tokenizer: Tokenizer
) -> list[str]:
    """List how a checkpoint's config.json differs from these settings, a phrase for each."""
    saved_model, saved_audio, saved_tokenizer, *_ = read_config(path)
    differences = []
    for saved, given in ((saved_model, model_config), (saved_audio, audio_config)):
        for name, value in asdict(saved).items():
            if value != getattr(given, name) and name != "vocab_size":
                differences.append(f"--{name} was {value} and is now {getattr(given, name)}")
    if saved_tokenizer.symbols != tokenizer.symbols:
        n_saved, n_given = saved_tokenizer.vocab_size, tokenizer.vocab_size
        differences.append(f"the symbols differ ({n_saved} were saved, {n_given} are given)")
    # --num_mels is of both the model and the audio
    return [*dict.fromkeys(differences + compare_readings(saved_tokenizer, tokenizer))]


def compare_readings(saved: Tokenizer, given: Tokenizer) -> list[str]:
    """List how two tokenizers differ in reading a text, a phrase for each."""
    differences = []
    for name in ("cleaner", "language"):
        was, now = getattr(saved, name), getattr(given, name)
        if was != now:
            differences.append(f"--{name} was {was or 'unset'} and is now {now or 'unset'}")
    if words := [w for w, x in given.lexicon.items() if saved.lexicon.get(w) != x]:
        differences.append(f"--lexicon has other words than the checkpoint: {words[0]!r:.40}")
    return differences


def move_embeddings(
    saved: torch.Tensor, own: torch.Tensor, saved_symbols: Sequence[str], symbols: Sequence[str]
) -> tuple[torch.Tensor, list[str]]:
    """Move each symbol's embedding (character_embed_dim,) to the symbol's place in the new table.

    A new symbol keeps its embedding in `own`. The list has a phrase for each kind of difference.
    """
    places = {symbol: i for i, symbol in enumerate(saved_symbols)}
    rows = [saved[places[s]] if s in places else own[i] for i, s in enumerate(symbols)]
    differences = []
    if new := [repr(symbol) for symbol in symbols if symbol not in places]:
        differences.append(f"new symbols, not yet learned: {' '.join(new)}")
    if gone := [repr(symbol) for symbol in saved_symbols if symbol not in symbols]:
        differences.append(f"symbols left out: {' '.join(gone)}")
    return torch.stack(rows), differences


def warm_start(
    model: Tacotron2,
    path: Path,
    audio_config: AudioConfig,
    tokenizer: Tokenizer,
    allow_mismatch: bool,
) -> list[str]:
    """Copy the weights of a checkpoint into `model`; list the differences, a phrase for each.

    Embeddings are copied symbol by symbol, so the order and number of symbols may differ, and so
    may the cleaner. Other weights that do not fit are refused; with allow_mismatch, they keep their
    initial values.
    """
    voice = load_checkpoint(path)
    saved, own = voice.model.state_dict(), model.state_dict()
    misfits = list_differences(path, model.config, audio_config, voice.tokenizer)
    text_differences, name = [], "encoder.embedding.weight"
    if saved[name].shape[1] == own[name].shape[1]:
        tables = voice.tokenizer.symbols, tokenizer.symbols
        saved[name], text_differences = move_embeddings(saved[name], own[name], *tables)
    text_differences += compare_readings(voice.tokenizer, tokenizer)
    fitting = {}
    for name, weight in own.items():
        if name not in saved:
            misfits.append(f"{name} is not in the checkpoint")
        elif saved[name].shape != weight.shape:
            shapes = f"{tuple(saved[name].shape)} there, {tuple(weight.shape)} here"
            misfits.append(f"{name} has another shape ({shapes}), left out")
        else:
            fitting[name] = saved[name]
    misfits += [f"{name} has no place here" for name in saved if name not in own]
    if misfits and not allow_mismatch:
        remedy = "--warm_start_allow_mismatch takes what fits"
        raise DataError(f"--warm_start {path}: {'; '.join(misfits[:8])}; {remedy}")
    model.load_state_dict(fitting, strict=False)
    return text_differences + misfits
