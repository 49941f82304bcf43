"""Read Coqui TTS's Tacotron 2: what its config.json says, its symbols, and its stop token.

The rest of its weights are ours under other names, see convert_checkpoint.py. A reduction factor r
is our frames_per_step. Coqui's stop token reads the frames that the decoder has just predicted, and
there is one for r frames. The frames are a linear map of what our stop token reads, so the two maps
fold into one, and only the last frame of a step can stop.
"""

import torch
from torch import Tensor

from command_line.files import DataError
from dataset import AudioConfig
from text.tokenizer import Tokenizer

# What makes another architecture, other inputs or mels that AudioConfig cannot describe.
NEEDED = {
    "attention_type": "original",
    "attention_norm": "softmax",
    "location_attn": True,
    "prenet_type": "original",
    "use_phonemes": False,
}
REFUSED = (
    "use_gst", "use_capacitron_vae", "use_speaker_embedding", "use_d_vector_file",
    "use_forward_attn", "transition_agent", "attention_win", "add_blank", "enable_eos_bos_chars",
)  # fmt: skip
NEEDED_AUDIO = {"signal_norm": False, "log_func": "np.log", "spec_gain": 1, "preemphasis": 0}
ONLY_IN_TRAINING = ("coarse_decoder.", "decoder_backward.")
KEEPS_CASE = {None, "", "no_cleaners", "chinese_mandarin_cleaners"}  # other cleaners lower-case
PROJECTION, STOP = "decoder.linear_projection.linear_layer.", "decoder.stopnet.1.linear_layer."
NEVER = -20.0  # a stop logit; its sigmoid is 2e-9


def check_config(config: dict) -> AudioConfig:
    """Refuse what our model lacks by its name in Coqui's config.json; return the audio settings."""
    if str(config["model"]).lower() != "tacotron2":
        raise DataError(f"model is {config['model']!r}, not tacotron2")
    audio = config["audio"]
    needed = [("", name, config.get(name), value) for name, value in NEEDED.items()]
    needed += [("", name, config.get(name) or False, False) for name in REFUSED]
    needed += [("audio.", name, audio.get(name), value) for name, value in NEEDED_AUDIO.items()]
    for prefix, name, found, value in needed:
        if found != value:
            raise DataError(f"{prefix}{name} is {found!r}, only {value!r} can be converted")
    return AudioConfig(
        sampling_rate=audio["sample_rate"],
        num_mels=audio["num_mels"],
        n_fft=audio["fft_size"],
        window_size=audio["win_length"],
        hop_size=audio["hop_length"],
        fmin=float(audio["mel_fmin"]),
        fmax=float(audio["mel_fmax"] or audio["sample_rate"] / 2),
        mel_scaling="log",
    )


def prenet_dropout(config: dict) -> float:
    """Return the prenet's dropout when speaking, which Coqui turns off by default."""
    return 0.5 if config["prenet_dropout"] and config["prenet_dropout_at_inference"] else 0.0


def build_tokenizer(config: dict) -> Tokenizer:
    """Build the table of symbols as Coqui's Graphemes does.

    Names in angle brackets take the places of symbols that Coqui never uses: all but the last of
    equal ones, and capitals where the text is lower-cased.
    """
    table = config["characters"]
    kind = str(table.get("characters_class") or "Graphemes").split(".")[-1]
    unsorted = table.get("is_unique") and not table.get("is_sorted", True)
    if kind not in ("Graphemes", "BaseCharacters") or unsorted or not table["pad"]:
        raise ValueError("only sorted Graphemes with padding are known")
    characters = set(table["characters"]) if table.get("is_unique") else table["characters"]
    characters = sorted(characters) if table.get("is_sorted", True) else characters
    special = [table[name] for name in ("pad", "eos", "bos", "blank") if table.get(name)]
    symbols = [*special, *characters, *table["punctuations"]]
    keeps_case = config["text_cleaner"] in KEEPS_CASE
    for i, symbol in enumerate(symbols):
        is_capital = len(symbol) == 1 and symbol.isupper() and not keeps_case
        if symbol in symbols[i + 1 :] or is_capital:
            symbols[i] = f"<{symbol} {i}>"
    is_english = config["text_cleaner"] == "english_cleaners"
    return Tokenizer(symbols, "english" if is_english else "basic")


def to_frames_per_step(state: dict[str, Tensor], n_frames: int, num_mels: int) -> dict[str, Tensor]:
    """Fold the stop token for n_frames a step, and drop what Coqui uses only in training.

    The projections may have more frames, which training began with (gradual training): Coqui's
    stop token reads them all, its decoder returns the first n_frames.
    """
    n_projected = len(state[PROJECTION + "bias"]) // num_mels
    if n_frames not in range(1, n_projected + 1):
        raise ValueError(f"r is {n_frames!r}, and it projects {n_projected} frames")
    state = {n: t for n, t in state.items() if not n.startswith(ONLY_IN_TRAINING)}
    state.pop("decoder.attention.v.linear_layer.bias")  # adds the same to all of a softmax's inputs
    project, project_bias = (state[PROJECTION + kind].double() for kind in ("weight", "bias"))
    stop, stop_bias = (state[STOP + kind].double() for kind in ("weight", "bias"))
    of_hidden, of_frames = stop.split([stop.shape[1] - len(project), len(project)], dim=1)
    weight = of_frames @ project  # (1, decoder_rnn_embed_dim + encoder_embed_dim)
    weight[:, : of_hidden.shape[1]] += of_hidden
    bias = stop_bias + of_frames @ project_bias
    earlier = n_frames - 1
    weight = torch.cat([weight.new_zeros(earlier, weight.shape[1]), weight])
    bias = torch.cat([bias.new_full((earlier,), NEVER), bias])
    state |= {STOP + "weight": weight.float(), STOP + "bias": bias.float()}
    kept = {PROJECTION + kind: state[PROJECTION + kind] for kind in ("weight", "bias")}
    return state | {name: tensor[: n_frames * num_mels] for name, tensor in kept.items()}
