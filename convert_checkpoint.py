"""Convert Tacotron 2 weights from and to torchaudio, NVIDIA/tacotron2 and SpeechBrain; from Coqui.

    python convert_checkpoint.py --from nvidia tacotron2_statedict.pt --to voices/nvidia
    python synthesize.py --checkpoint voices/nvidia --text "Printing." --output_dir spoken
    python convert_checkpoint.py --from work_dir/tacotron2/final_checkpoint --to torchaudio out.pt

The peers have the model's tensors in the same shapes under other names (SpeechBrain's are NVIDIA's;
speech/coqui.py has what differs in Coqui TTS); the script reads the sizes off the shapes. Exported
files load in the peer with `strict=True`. No file is read as code.

Coqui's config.json must lie beside its weights. The other peers' weights do not say how their mels
were made, so the script assumes their defaults: 22050 Hz, 1024 samples every 256, filters up to
8000 Hz, natural-log mels. torchaudio's weights for WaveRNN were trained on other mels: correct
"audio" in the config.json that this script writes. The number of symbols decides which symbols they
are (148: NVIDIA's and SpeechBrain's; 38 and 96: torchaudio's characters and phonemes), unless
--symbols names a JSON list that begins with padding. To speak phonemes, write ARPAbet in braces,
"{T ER1 N} left", or use `synthesize.py --phonemes`.
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from command_line.files import (
    DataError,
    check_writable,
    file_errors,
    one_line,
    path_argument,
    read_json,
    write_whole,
)
from command_line.flags import FlagParser
from command_line.main import say, script
from dataset import AudioConfig
from model import Tacotron2, Tacotron2Config
from speech import coqui
from speech.voice import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint, outline_model, write_config
from text.phonemes import ARPABET
from text.tokenizer import Tokenizer

LAYOUTS = ("torchaudio", "nvidia", "speechbrain")  # that a voice can be exported to
SOURCES = (*LAYOUTS, "coqui")
COUNTER = ".num_batches_tracked"  # a batch norm's; files from before PyTorch 0.4.1 lack it

# Prefixes of our names -> torchaudio's. The first that matches is used; other names are the same.
TORCHAUDIO_NAMES = {
    "encoder.embedding.": "embedding.",
    "decoder.attention.key_layer.": "decoder.attention_layer.memory_layer.",
    "decoder.attention.location_conv.": "decoder.attention_layer.location_layer.location_conv.",
    "decoder.attention.location_layer.": "decoder.attention_layer.location_layer.location_dense.",
    "decoder.attention.": "decoder.attention_layer.",
    "decoder.mel_projection.": "decoder.linear_projection.",
    "decoder.stop_projection.": "decoder.gate_layer.",
}
# NVIDIA wraps its convolutions and linear layers in modules of their own.
NVIDIA_CONV = re.compile(r"(convolutions\.\d+\.0|_conv)\.(weight|bias)$")
NVIDIA_LINEAR = re.compile(r"(layers\.\d+|_layer|\.v|_dense|_projection)\.(weight|bias)$")
# Replacements in NVIDIA's names that make them Coqui's.
COQUI_NAMES = {
    r"(convolutions\.\d+)\.0\.": r"\1.convolution1d.",
    r"(convolutions\.\d+)\.1\.": r"\1.batch_normalization.",
    r"attention_layer\.": "attention.",
    r"memory_layer\.": "inputs_layer.",
    r"location_conv\.": "location_conv1d.",
    r"prenet\.layers\.": "prenet.linear_layers.",
    r"gate_layer\.": "stopnet.1.",
}

# For each size of the model, the tensor (by our name) and the dimension that it is read off.
SIZES = {
    "vocab_size": ("encoder.embedding.weight", 0),
    "character_embed_dim": ("encoder.embedding.weight", 1),
    "encoder_embed_dim": ("encoder.convolutions.0.0.weight", 0),
    "encoder_kernel_size": ("encoder.convolutions.0.0.weight", 2),
    "num_mels": ("postnet.convolutions.0.0.weight", 1),
    "decoder_rnn_embed_dim": ("decoder.attention_rnn.weight_hh", 1),
    "decoder_prenet_dim": ("decoder.prenet.layers.0.weight", 0),
    "decoder_postnet_n_filters": ("postnet.convolutions.0.0.weight", 0),
    "decoder_postnet_kernel_size": ("postnet.convolutions.0.0.weight", 2),
    "attention_dim": ("decoder.attention.query_layer.weight", 0),
    "attention_location_n_filters": ("decoder.attention.location_conv.weight", 0),
    "attention_location_kernel_size": ("decoder.attention.location_conv.weight", 2),
}
COUNTS = {"encoder": "encoder_n_convolutions", "postnet": "decoder_postnet_num_convs"}

LOWER_CASE = "abcdefghijklmnopqrstuvwxyz"
COMMON = ("_", *"-!'(),.:;? ")  # padding and punctuation
SYMBOLS = {
    38: (*COMMON, *LOWER_CASE),  # torchaudio, characters
    96: (*COMMON, *ARPABET),  # torchaudio, phonemes
    148: (*COMMON, *LOWER_CASE.upper(), *LOWER_CASE, *("@" + phone for phone in ARPABET)),  # NVIDIA
}


def peer_name(name: str, layout: str) -> str:
    """Translate our name of a tensor into the peer's."""
    start = next((start for start in TORCHAUDIO_NAMES if name.startswith(start)), "")
    name = TORCHAUDIO_NAMES.get(start, "") + name.removeprefix(start)
    if name.startswith("decoder.decoder_rnn."):
        name = name.removesuffix("_l0")  # an LSTMCell there
    if layout in ("nvidia", "speechbrain"):
        name = NVIDIA_CONV.sub(r"\1.conv.\2", name)
    if layout != "torchaudio":
        name = NVIDIA_LINEAR.sub(r"\1.linear_layer.\2", name)
    if layout == "coqui":
        for pattern, replacement in COQUI_NAMES.items():
            name = re.sub(pattern, replacement, name)
    return name


def read_file(path: Path) -> dict:
    """Read what a .pt file holds, without running any of it."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for any unusable name
        raise DataError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile pickle raises anything
        kind = type(error).__name__
        raise DataError(f"{path}: refused, cannot be read as plain tensors ({kind})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no state dict")
    return content


def find_state_dict(content: dict, layout: str, path: Path) -> dict[str, Tensor]:
    """Find a file's state dict, bare or under the layout's key, without `module.` prefixes."""
    state = content.get("model" if layout == "coqui" else "state_dict", content)
    if not isinstance(state, dict) or not state:
        raise DataError(f"{path}: holds no state dict")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise DataError(f"{path}: entry {name} is not a plain tensor")
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in state.items()}


def infer_config(state: dict[str, Tensor], layout: str) -> Tacotron2Config:
    """Read the model's sizes off the shapes; others, such as dropout, get their defaults."""
    sizes = {}
    for field, (name, dimension) in SIZES.items():
        tensor = state.get(peer_name(name, layout))
        if tensor is not None and tensor.ndim > dimension:
            sizes[field] = tensor.shape[dimension]
    for module, field in COUNTS.items():
        found = [re.match(rf"{module}\.convolutions\.(\d+)\.", name) for name in state]
        if numbers := [int(match[1]) for match in found if match]:
            sizes[field] = max(numbers) + 1
    projection = state.get(peer_name("decoder.mel_projection.weight", layout))
    if projection is not None and sizes.get("num_mels"):
        sizes["frames_per_step"] = max(1, len(projection) // sizes["num_mels"])
    return Tacotron2Config(**sizes)


def find_faults(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """List the entries that are missing, unknown, or of another shape or kind, each in a phrase."""
    faults = [f"{name} is missing" for name in expected if name not in state]
    for name, found in state.items():
        if name not in expected:
            faults.append(f"{name} is unknown")
        elif (shape := expected[name].shape) != found.shape:
            faults.append(f"{name} is {(*found.shape,)} instead of {(*shape,)}")
        elif expected[name].is_floating_point() != found.is_floating_point():
            faults.append(f"{name} is {found.dtype} instead of {expected[name].dtype}")
    return faults


def model_from_peer(
    state: dict[str, Tensor], layout: str, path: Path, **settings: float
) -> Tacotron2:
    """Build our model with the weights of a peer's state dict.

    `path` is for messages; `settings` are fields of Tacotron2Config that no tensor tells.
    """
    try:
        config = replace(infer_config(state, layout), **settings)
        AudioConfig(num_mels=config.num_mels)  # checks the number
        outline = outline_model(config)  # without memory, until the shapes are known to fit
    except ValueError as error:
        raise DataError(f"{path}: {layout} weights of sizes that do not fit ({error})") from None
    if (n_frames := config.frames_per_step) > 1 and layout != "coqui":
        reads = "its prenet reads all frames of a step and ours the last"
        raise DataError(f"{path}: n_frames_per_step {n_frames} cannot be converted, {reads}")
    expected = {peer_name(name, layout): t for name, t in outline.state_dict().items()}
    absent = [name for name in expected if name.endswith(COUNTER) and name not in state]
    state = state | dict.fromkeys(absent, torch.tensor(0))
    if faults := find_faults(state, expected):
        more = f"; {len(faults) - 3} more such entries" if len(faults) > 3 else ""
        raise DataError(f"{path}: not a {layout} Tacotron 2: {'; '.join(faults[:3])}{more}")
    if absent:
        say(f"{path}: {len(absent)} num_batches_tracked entries are absent and are set to 0")
    model = Tacotron2(config)
    model.load_state_dict({name: state[peer_name(name, layout)] for name in model.state_dict()})
    return model


def read_symbols(path: str | None, n_symbols: int) -> Tokenizer:
    """Read the symbols from a JSON file; without one, use the peer's table of n_symbols symbols."""
    if path is None:
        if n_symbols not in SYMBOLS:
            raise DataError(f"no table of {n_symbols} symbols is known: give it as --symbols FILE")
        return Tokenizer(SYMBOLS[n_symbols])
    symbols = read_json(path, f"--symbols {path}")
    try:
        tokenizer = Tokenizer(symbols)
        if tokenizer.vocab_size != n_symbols:
            raise ValueError(f"the weights have {n_symbols} symbols, not {tokenizer.vocab_size}")
    except ValueError as error:
        raise DataError(f"--symbols {path}: cannot be used ({error})") from None
    return tokenizer


def read_peer(
    layout: str, source: Path, symbols: str | None
) -> tuple[Tacotron2, AudioConfig, Tokenizer]:
    """Read the weights of a peer other than Coqui, whose mels and symbols are the usual ones."""
    state = find_state_dict(read_file(source), layout, source)
    model = model_from_peer(state, layout, source)
    audio_config = AudioConfig(num_mels=model.config.num_mels, mel_scaling="log")
    return model, audio_config, read_symbols(symbols, model.config.vocab_size)


def read_coqui(source: Path, symbols: str | None) -> tuple[Tacotron2, AudioConfig, Tokenizer]:
    """Read Coqui's weights, and its config.json beside them."""
    content = read_file(source)
    state = find_state_dict(content, "coqui", source)
    path = source.with_name(CONFIG_FILE)
    config = read_json(path)
    try:
        audio_config = coqui.check_config(config)
        trained = content.get("config") or config
        n_frames = content.get("r", trained["r"])
        dropout_p = coqui.prenet_dropout(config)
        tokenizer = None if symbols else coqui.build_tokenizer(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not a config.json of Coqui that is known ({problem})") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    try:
        state = coqui.to_frames_per_step(state, n_frames, audio_config.num_mels)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{source}: not a coqui Tacotron 2 ({one_line(error)})") from None
    model = model_from_peer(state, "coqui", source, decoder_prenet_dropout_p=dropout_p)
    tokenizer = tokenizer or read_symbols(symbols, model.config.vocab_size)
    found = (tokenizer.vocab_size, audio_config.num_mels)
    if found != (model.config.vocab_size, model.config.num_mels):
        raise DataError(f"{source}: the weights do not fit {path} (symbols and mel bins: {found})")
    if not dropout_p:
        say(
            "the prenet's dropout is off, as in Coqui; to train, add --decoder_prenet_dropout_p 0.5"
        )
    return model, audio_config, tokenizer


def import_peer(layout: str, source: Path, target: Path, symbols: str | None) -> None:
    """Convert a peer's file into a checkpoint folder."""
    if layout == "coqui":
        model, audio_config, tokenizer = read_coqui(source, symbols)
    else:
        model, audio_config, tokenizer = read_peer(layout, source, symbols)

    def write(folder: Path) -> None:
        folder.mkdir()
        write_config(folder, model.config, audio_config, tokenizer)
        safetensors.torch.save_file(model.state_dict(), folder / WEIGHTS_FILE, {"format": "pt"})

    write_target(target, write)
    if not any(symbol in LOWER_CASE for symbol in tokenizer.symbols[1:]):
        but = ", only phonemes, with --phonemes" if tokenizer.has_phonemes else ""
        say(f"warning: no symbol is a lower-case letter, so this voice cannot speak text{but}")
    say(f"{target}: {tokenizer.vocab_size} symbols, log mels")


def export_voice(source: Path, layout: str, target: Path) -> None:
    """Convert a checkpoint folder into a peer's file."""
    voice = load_checkpoint(source)
    config = voice.model.config
    needs = {"character_embed_dim": config.encoder_embed_dim}
    needs |= {"decoder_prenet_depth": 2, "frames_per_step": 1}
    for field, needed in needs.items():
        if (found := getattr(config, field)) != needed:
            raise DataError(f"{source}: {layout} needs --{field} {needed}, found {found}")
    state = {peer_name(name, layout): t for name, t in voice.model.state_dict().items()}
    content = {"state_dict": state} if layout == "nvidia" else state
    write_target(target, lambda temporary: torch.save(content, temporary))
    if voice.audio_config.mel_scaling != "log":
        say(f"warning: the mels are {voice.audio_config.mel_scaling}, {layout} expects log mels")
    if voice.tokenizer.language:
        say("warning: the voice reads IPA as espeak-ng writes it, no letters")
    say(f"{target}: a {layout} state dict")


@file_errors()
def check_target(path: Path, is_folder: bool, overwrite: bool) -> None:
    """Refuse an existing target, unless this script wrote it and --overwrite is given."""
    check_writable("--to", path.parent)
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
    """Write a file or folder whole, or leave nothing of it."""
    try:
        write_whole(path, write)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be written ({error})") from None


def parse_end(flag: str, values: list[str], layouts: tuple[str, ...]) -> tuple[str | None, Path]:
    """Parse the values of --from or --to as (layout, file), or as (None, folder)."""
    path = Path(os.path.abspath(os.path.expanduser(values[-1])))
    if len(values) == 1 and values[0] and values[0] not in layouts:
        return None, path
    if len(values) == 2 and values[1] and values[0] in layouts:
        return values[0], path
    known = f"{', '.join(layouts[:-1])} or {layouts[-1]}"
    raise DataError(f"{flag} takes a folder, or {known} and a file, found {values}")


@script
def main(argv: list[str] | None = None) -> None:
    """Convert one end to the other, or write nothing."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    ends = {"nargs": "+", "required": True, "metavar": "DIR | LAYOUT FILE"}
    parser.add("--from", "what to read", dest="source", **ends)
    parser.add("--to", "what to write", dest="target", **ends)
    parser.add("--symbols", "JSON list of the table of symbols, padding first", type=path_argument)
    parser.add("--overwrite", "replace an existing target", action="store_true")
    args = parser.parse_args(argv)
    source_layout, source = parse_end("--from", args.source, SOURCES)
    target_layout, target = parse_end("--to", args.target, LAYOUTS)
    if (source_layout is None) == (target_layout is None):
        raise DataError("one of --from and --to must be a folder, the other a layout and a file")
    if args.symbols and source_layout is None:
        raise DataError("--symbols is for weights of a peer; a folder has its own symbols")
    check_target(target, target_layout is None, args.overwrite)
    if target_layout is None:
        import_peer(source_layout, source, target, args.symbols)
    else:
        export_voice(source, target_layout, target)


if __name__ == "__main__":
    main()
