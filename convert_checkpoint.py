"""Tacotron 2 weights to and from torchaudio and NVIDIA/tacotron2.

    python convert_checkpoint.py --from nvidia tacotron2_statedict.pt --to voices/nvidia
    python synthesize.py --checkpoint voices/nvidia --text "Printing." --output_dir spoken
    python convert_checkpoint.py --from work_dir/tacotron2/final_checkpoint --to torchaudio out.pt

Both peers have the model's tensors in these very shapes, under other names; sizes are read off the
shapes, and an entry that is missing, unknown or of another shape stops the conversion. A written
file loads there with `strict=True`; files are read as plain tensors only, never as code.

What a state dict does not say is taken from the peers' defaults: 22050 Hz, windows of 1024 samples
every 256, mel filters up to 8000 Hz, natural-log mels. torchaudio's weights for WaveRNN have other
mels: for them, correct "audio" in the written config.json. The table of symbols follows from the
number of embeddings (148: NVIDIA's; 38 and 96: torchaudio's characters and phonemes), or stands in
--symbols, a JSON list, padding first. Text is lower-cased before it is looked up, so NVIDIA's
capitals have ids that no text reaches. Phonemes are said by ARPAbet in braces, "{T ER1 N} left", or
for whole texts by `synthesize.py --phonemes`.
"""

import argparse
import os
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from command_line.files import (
    DataError,
    check_writable,
    file_errors,
    path_argument,
    read_json,
    write_whole,
)
from command_line.flags import FlagParser
from dataset import AudioConfig
from model import Tacotron2, Tacotron2Config
from speech.voice import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint, write_config
from text.phonemes import ARPABET
from text.tokenizer import Tokenizer

LAYOUTS = ("torchaudio", "nvidia")
COUNTER = ".num_batches_tracked"  # of a batch norm; files from before PyTorch 0.4.1 lack it

# Beginnings of our names -> of torchaudio's, the first that fits; other names are the same.
TORCHAUDIO_NAMES = {
    "encoder.embedding.": "embedding.",
    "decoder.attention.key_layer.": "decoder.attention_layer.memory_layer.",
    "decoder.attention.location_conv.": "decoder.attention_layer.location_layer.location_conv.",
    "decoder.attention.location_layer.": "decoder.attention_layer.location_layer.location_dense.",
    "decoder.attention.": "decoder.attention_layer.",
    "decoder.mel_projection.": "decoder.linear_projection.",
    "decoder.stop_projection.": "decoder.gate_layer.",
}
# NVIDIA wraps its convolutions and linear layers in a module of their own.
NVIDIA_CONV = re.compile(r"(convolutions\.\d+\.0|_conv)\.(weight|bias)$")
NVIDIA_LINEAR = re.compile(r"(layers\.\d+|_layer|\.v|_dense|_projection)\.(weight|bias)$")

LOWER_CASE = "abcdefghijklmnopqrstuvwxyz"
COMMON = ("_", *"-!'(),.:;? ")  # padding and punctuation
SYMBOLS = {
    38: (*COMMON, *LOWER_CASE),  # torchaudio, characters
    96: (*COMMON, *ARPABET),  # torchaudio, phonemes
    148: (*COMMON, *LOWER_CASE.upper(), *LOWER_CASE, *("@" + phone for phone in ARPABET)),  # NVIDIA
}

# No two of these, nor the sums and multiples that a model has of them, are the same number: so a
# model of these sizes shows which size each dimension of each tensor is.
PROBE_SIZES = {
    "vocab_size": 11, "num_mels": 13, "character_embed_dim": 34, "encoder_embed_dim": 34,
    "encoder_kernel_size": 5, "decoder_rnn_embed_dim": 101, "decoder_prenet_dim": 23,
    "decoder_postnet_n_filters": 29, "decoder_postnet_kernel_size": 7, "attention_dim": 31,
    "attention_location_n_filters": 37, "attention_location_kernel_size": 9,
}  # fmt: skip


def peer_name(name: str, layout: str) -> str:
    """Our name of a tensor -> the peer's."""
    start = next((start for start in TORCHAUDIO_NAMES if name.startswith(start)), "")
    name = TORCHAUDIO_NAMES.get(start, "") + name.removeprefix(start)
    if name.startswith("decoder.decoder_rnn."):
        name = name.removesuffix("_l0")  # an LSTMCell there
    if layout == "nvidia":
        name = NVIDIA_CONV.sub(r"\1.conv.\2", name)
        name = NVIDIA_LINEAR.sub(r"\1.linear_layer.\2", name)
    return name


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pt file, bare or under "state_dict", without a `module.` prefix.

    Raises:
        DataError: when the file is missing, broken, no state dict, or needs code to be run.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, False for any unusable name
        raise DataError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile pickle brings up
        kind = type(error).__name__
        raise DataError(f"{path}: refused, cannot be read as plain tensors ({kind})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not state:
        raise DataError(f"{path}: holds no state dict")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise DataError(f"{path}: entry {name} is not a plain tensor")
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in state.items()}


def infer_config(state: dict[str, Tensor], layout: str) -> Tacotron2Config:
    """Sizes from the shapes; what shapes do not say, such as dropout, stays at its default.

    Raises:
        ValueError: when the sizes are none that the model can have.
    """
    votes = {field: [] for field in PROBE_SIZES}
    for name, probe in Tacotron2(Tacotron2Config(**PROBE_SIZES)).state_dict().items():
        tensor = state.get(peer_name(name, layout))
        if tensor is None or tensor.ndim != probe.ndim:
            continue
        for size, probe_size in zip(tensor.shape, probe.shape, strict=True):
            for field in (f for f in PROBE_SIZES if PROBE_SIZES[f] == probe_size):
                votes[field].append(size)
    # The majority: one misshapen tensor is then found to be the odd one, and not all the others.
    default = Tacotron2Config()
    sizes = {field: statistics.mode([*v, getattr(default, field)]) for field, v in votes.items()}
    counts = {"encoder": "encoder_n_convolutions", "postnet": "decoder_postnet_num_convs"}
    for module, field in counts.items():
        names = [name for name in state if name.startswith(f"{module}.convolutions.")]
        n_entries = sum(not name.endswith(COUNTER) for name in names)
        # Six to a convolution: weight and bias twice, mean, variance.
        sizes[field] = round(n_entries / 6) or getattr(default, field)
    return Tacotron2Config(**sizes)


def model_from_peer(state: dict[str, Tensor], layout: str, path: Path) -> Tacotron2:
    """Our model with the weights of a peer's state dict.

    Raises:
        DataError: naming the entry that is missing, unknown, or of another shape or kind.
    """
    try:
        model = Tacotron2(infer_config(state, layout))
    except ValueError as error:
        raise DataError(f"{path}: {layout} weights of sizes that do not fit ({error})") from None
    expected = {peer_name(name, layout): tensor for name, tensor in model.state_dict().items()}
    absent = [name for name in expected if name.endswith(COUNTER) and name not in state]
    state = state | dict.fromkeys(absent, torch.tensor(0))
    faults = [f"{name} is missing" for name in expected if name not in state]
    for name, found in state.items():
        if name not in expected:
            faults.append(f"{name} is unknown")
        elif (shape := expected[name].shape) != found.shape:
            faults.append(f"{name} is {(*found.shape,)} instead of {(*shape,)}")
        elif expected[name].is_floating_point() != found.is_floating_point():
            faults.append(f"{name} is {found.dtype} instead of {expected[name].dtype}")
    if faults:
        more = f"; {len(faults) - 3} more such entries" if len(faults) > 3 else ""
        raise DataError(f"{path}: not a {layout} Tacotron 2: {'; '.join(faults[:3])}{more}")
    if absent:
        print(f"{path}: {len(absent)} num_batches_tracked entries are absent and are set to 0")
    model.load_state_dict({name: state[peer_name(name, layout)] for name in model.state_dict()})
    return model


def read_symbols(path: str | None, n_symbols: int) -> Tokenizer:
    """The table in a JSON file, or that of the peer with so many symbols when there is no file.

    Raises:
        DataError: when the file is no list of n_symbols different strings, or no peer's table fits.
    """
    if path is None:
        if n_symbols not in SYMBOLS:
            raise DataError(f"no table of {n_symbols} symbols is known: give it as --symbols FILE")
        return Tokenizer(SYMBOLS[n_symbols])
    try:
        symbols = read_json(path, f"--symbols {path}")
        is_list = isinstance(symbols, list) and all(isinstance(s, str) for s in symbols)
        if not is_list or len(symbols) != n_symbols:
            raise ValueError(f"not a JSON list of {n_symbols} strings")
        return Tokenizer(symbols)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"--symbols {path}: cannot be used ({error})") from None


@file_errors()
def check_target(path: Path, is_folder: bool, overwrite: bool) -> None:
    """Refuses a target that is in the way.

    Raises:
        DataError: when it exists without --overwrite, or is nothing that this script has written.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise DataError(f"{path}: exists already; --overwrite replaces it")
    ours = path.is_file()
    if is_folder:
        ours = path.is_dir() and set(os.listdir(path)) <= {CONFIG_FILE, WEIGHTS_FILE}
    if not ours:
        raise DataError(f"{path}: is not what this script writes there, and is not replaced")


@file_errors()
def write_target(path: Path, write: Callable[[Path], None]) -> None:
    """write_whole, whose errors are told in one sentence.

    Raises:
        DataError: when it cannot be written; nothing of it is left then.
    """
    try:
        write_whole(path, write)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be written ({error})") from None


def import_peer(layout: str, source: Path, target: Path, symbols: str | None) -> str:
    """A peer's file to a checkpoint folder; returns what was written, in words.

    Raises:
        DataError: when the weights or the symbols cannot be used.
    """
    model = model_from_peer(read_state_dict(source), layout, source)
    tokenizer = read_symbols(symbols, model.config.vocab_size)
    try:
        audio_config = AudioConfig(num_mels=model.config.num_mels, mel_scaling="log")
    except ValueError as error:
        raise DataError(f"{source}: {layout} weights of sizes that do not fit ({error})") from None

    def write(folder: Path) -> None:
        folder.mkdir()
        write_config(folder, model.config, audio_config, tokenizer)
        safetensors.torch.save_file(model.state_dict(), folder / WEIGHTS_FILE, {"format": "pt"})

    write_target(target, write)
    if not any(symbol in LOWER_CASE for symbol in tokenizer.symbols[1:]):
        but = " but as phonemes, by --phonemes" if tokenizer.has_phonemes else ""
        print(f"warning: its symbols hold no lower-case letter, text cannot be spoken with it{but}")
    return f"{target}: {tokenizer.vocab_size} symbols, log mels"


def export_voice(source: Path, layout: str, target: Path) -> str:
    """A checkpoint folder to a peer's file; returns what was written, in words.

    Raises:
        DataError: when the folder cannot be used, or the model has a size that no peer can have.
    """
    voice = load_checkpoint(source)
    config = voice.model.config
    needs = {"character_embed_dim": config.encoder_embed_dim, "decoder_prenet_depth": 2}
    for field, needed in needs.items():
        if (found := getattr(config, field)) != needed:
            raise DataError(f"{source}: {layout} needs --{field} {needed}, found {found}")
    state = {peer_name(name, layout): t for name, t in voice.model.state_dict().items()}
    content = {"state_dict": state} if layout == "nvidia" else state
    write_target(target, lambda temporary: torch.save(content, temporary))
    if voice.audio_config.mel_scaling != "log":
        print(f"warning: the mels are {voice.audio_config.mel_scaling}, {layout} expects log mels")
    return f"{target}: a {layout} state dict"


def parse_end(flag: str, values: list[str]) -> tuple[str | None, Path]:
    """The values of a flag: a layout and a file, or None and a folder. Raises DataError."""
    path = Path(os.path.abspath(os.path.expanduser(values[-1])))
    if len(values) == 1 and values[0] and values[0] not in LAYOUTS:
        return None, path
    if len(values) == 2 and values[1] and values[0] in LAYOUTS:
        return values[0], path
    raise DataError(f"{flag} takes a folder, or torchaudio or nvidia and a file, found {values}")


def run(args: argparse.Namespace) -> str:
    """Converts; returns what was written, in words.

    Raises:
        DataError: when it cannot be done; nothing is written then.
    """
    source_layout, source = parse_end("--from", args.source)
    target_layout, target = parse_end("--to", args.target)
    if (source_layout is None) == (target_layout is None):
        raise DataError("one of --from and --to must be a folder, the other a layout and a file")
    if args.symbols and source_layout is None:
        raise DataError("--symbols is for weights of a peer; a folder has its own symbols")
    check_writable("--to", target.parent)
    check_target(target, target_layout is None, args.overwrite)
    if target_layout is None:
        return import_peer(source_layout, source, target, args.symbols)
    return export_voice(source, target_layout, target)


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    ends = {"nargs": "+", "required": True, "metavar": "DIR | LAYOUT FILE"}
    parser.add_argument("--from", dest="source", help="what to read", **ends)
    parser.add_argument("--to", dest="target", help="what to write", **ends)
    symbols_help = "JSON list of the table of symbols, padding first"
    parser.add_argument("--symbols", type=path_argument, help=symbols_help)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")
    args = parser.parse_args(argv)
    try:
        print(run(args))
    except DataError as error:
        sys.exit(f"convert_checkpoint.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
