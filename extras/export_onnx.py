"""Exports a checkpoint as ONNX graphs that speak without PyTorch, and the program that runs them.

    python -m extras.export_onnx --checkpoint work_dir/tacotron2/final_checkpoint \
        --output_dir voice_onnx --int8

Needs requirements/onnx.txt. Opset 17, float32, one text at a time (the first axis is 1):

    encoder.onnx    tokens (1, T_text) int64 -> encoder_outputs (1, T_text, encoder_embed_dim),
                    keys (1, T_text, attention_dim)
    step.onnx       frame, masks, encoder_outputs, keys and the seven tensors of DecoderState
                    -> next_frame, stop_logit (1,) and the state with next_ before each name
    postnet.onnx    mels_before (1, T_mel, num_mels) -> mels_after, the same shape

T_text and T_mel are dynamic, all other axes fixed. masks, (decoder_prenet_depth,
decoder_prenet_dim), is what the prenet's dropout multiplies by: 0 or 1 / (1 - p), drawn anew for
each frame by whoever runs the step; ones for no dropout. --int8 adds step.int8.onnx, with the
products of both decoder LSTMs in 8 bits: weights quantised for each column, inputs as they come.

Beside the graphs: settings.json (symbols, token ids of characters, audio settings, stop
threshold), mel_filters.npy (num_mels, n_fft // 2 + 1), and speak.py, a copy of run_onnx.py, which
needs onnxruntime and numpy alone. Text is not normalised there: it takes plain words or token ids.

The float32 graphs are run on a trial text before anything is put into the folder, and refused
where their numbers differ from the model's by more than 1e-4.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from command_line.files import DataError, check_writable, file_errors, path_argument, write_whole
from command_line.flags import FlagParser
from dataset import AudioConfig, mel_filters
from model import Decoder, DecoderState, Encoder, PostNet
from speech.voice import Voice, load_checkpoint

OPSET = 17
GRAPHS = ("encoder.onnx", "step.onnx", "postnet.onnx")
INT8_STEP = "step.int8.onnx"
TRACED_TEXT, TRACED_FRAMES = 12, 8  # characters and frames that the graphs are traced with
TRIAL_TEXT, TRIAL_FRAMES = 50, 300  # of the comparison with the model: a whole sentence
TOLERANCE = 1e-4


class EncoderOfOneText(nn.Module):
    """The encoder of an unpadded text, which needs no packing, and the attention's keys."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.key_layer = encoder, decoder.attention.key_layer

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(1, T_text) -> encoder_outputs (1, T_text, E), keys (1, T_text, attention_dim)."""
        x = self.encoder.embedding(tokens).transpose(1, 2)  # (1, character_embed_dim, T_text)
        for conv in self.encoder.convolutions:
            x = F.relu(conv(x))
        encoder_outputs, _ = self.encoder.lstm(x.transpose(1, 2))
        return encoder_outputs, self.key_layer(encoder_outputs)


class OneStep(nn.Module):
    """Decoder.step of an unpadded text; its prenet's dropout is an input."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, frame: Tensor, masks: Tensor, encoder_outputs: Tensor, keys: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Inputs and outputs are those of step.onnx, in order."""
        nothing_is_padding = torch.zeros((), dtype=torch.bool)
        frame, stop_logit, _, state = self.decoder.step(
            frame, DecoderState(*state), encoder_outputs, keys, nothing_is_padding, masks
        )
        return frame, stop_logit, *state


class Correction(nn.Module):
    """The postnet of an unpadded mel, and what it corrects."""

    def __init__(self, postnet: PostNet) -> None:
        super().__init__()
        self.postnet = postnet

    def forward(self, mels_before: Tensor) -> Tensor:
        """(1, T_mel, num_mels) -> mels_after, the same shape."""
        nothing_is_padding = torch.zeros(1, 1, dtype=torch.bool)
        return mels_before + self.postnet(mels_before, nothing_is_padding)


def write_graph(
    module: nn.Module, arguments: tuple[Tensor, ...], path: Path, inputs: list[str],
    outputs: list[str], dynamic: dict[str, str],
) -> None:  # fmt: skip
    """Traces a module; `dynamic` names the axis 1 of the tensors for which it varies."""
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter of torch.export would need a further package, onnxscript; this one is
        # announced to go, and says so. The tracer warns of the constant padding mask.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            arguments,
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {1: axis} for name, axis in dynamic.items()},
            opset_version=OPSET,
            dynamo=False,
        )


def write_graphs(voice: Voice, folder: Path) -> None:
    """The three float32 graphs."""
    model, config = voice.model, voice.model.config
    decoder = model.decoder
    tokens = torch.ones(1, TRACED_TEXT, dtype=torch.int64)
    text = ["encoder_outputs", "keys"]
    encoder = EncoderOfOneText(model.encoder, decoder)
    dynamic = dict.fromkeys(["tokens", *text], "T_text")
    write_graph(encoder, (tokens,), folder / GRAPHS[0], ["tokens"], text, dynamic)
    with torch.no_grad():
        encoder_outputs, keys = encoder(tokens)
    frame = torch.zeros(1, config.num_mels)
    masks = torch.ones(config.decoder_prenet_depth, config.decoder_prenet_dim)
    state = decoder.initial_state(encoder_outputs)
    inputs = ["frame", "masks", *text, *DecoderState._fields]
    outputs = ["next_frame", "stop_logit", *(f"next_{name}" for name in DecoderState._fields)]
    varying = [*text, *(n for n in inputs + outputs if n.endswith("alignment"))]
    arguments = (frame, masks, encoder_outputs, keys, *state)
    dynamic = dict.fromkeys(varying, "T_text")
    write_graph(OneStep(decoder), arguments, folder / GRAPHS[1], inputs, outputs, dynamic)
    mels = torch.zeros(1, TRACED_FRAMES, config.num_mels)
    names = ["mels_before"], ["mels_after"]
    dynamic = dict.fromkeys(["mels_before", "mels_after"], "T_mel")
    write_graph(Correction(model.postnet), (mels,), folder / GRAPHS[2], *names, dynamic)


@torch.no_grad()
def run_model(
    voice: Voice, tokens: Tensor, mels: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher forcing by model.py with given dropout, for comparison with Speaker.speak.

    Args:
        tokens: (1, T_text).
        mels: (T_mel, num_mels), the true frames.
        masks: (T_mel, decoder_prenet_depth, decoder_prenet_dim).

    Returns:
        mel (T_mel, num_mels), stop logits (T_mel,) and alignment (T_mel, T_text).
    """
    model, decoder = voice.model, voice.model.decoder
    padding_mask = torch.zeros_like(tokens, dtype=torch.bool)
    encoder_outputs = model.encoder(tokens, torch.tensor([tokens.shape[1]]), padding_mask)
    keys = decoder.attention.key_layer(encoder_outputs)
    state = decoder.initial_state(encoder_outputs)
    outputs = []
    for frame, drops in zip(F.pad(mels, (0, 0, 1, -1)), masks, strict=True):
        *output, state = decoder.step(
            frame[None], state, encoder_outputs, keys, padding_mask, drops
        )
        outputs.append(output)
    frames, stop_logits, alignments = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    mel_mask = torch.zeros(1, len(frames), dtype=torch.bool)
    return frames + model.postnet(frames[None], mel_mask)[0], stop_logits, alignments


def check_graphs(voice: Voice, folder: Path) -> float:
    """Runs the float32 graphs beside the model: random text, frames and dropout, teacher forced.

    Free running would feed rounding back, and tell less.

    Returns:
        The largest distance of a number, as a share of the largest of its kind, if that is above 1.

    Raises:
        DataError: when it is above TOLERANCE.
    """
    from extras.run_onnx import Speaker  # onnxruntime is an extra

    config = voice.model.config
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, config.vocab_size, (1, TRIAL_TEXT))
    mels = rng.standard_normal((TRIAL_FRAMES, config.num_mels), np.float32)
    speaker = Speaker(folder, threads=1)
    masks = np.stack([speaker.draw_masks(rng) for _ in mels])
    expected = run_model(voice, *map(torch.from_numpy, (tokens, mels, masks)))
    found = speaker.speak(tokens, rng, masks=masks, mels=mels)
    distances = {}
    for name, ours, theirs in zip(("mel", "stop token", "alignment"), expected, found, strict=True):
        largest = max(ours.abs().max().item(), 1.0)
        distances[name] = float(np.abs(ours.numpy() - theirs).max()) / largest
        if not distances[name] <= TOLERANCE:
            raise DataError(
                f"the exported graphs give another {name} than the model (by "
                f"{distances[name]:.1g}): extras/export_onnx.py spells the encoder out "
                "anew, and has to follow a change of it in model.py"
            )
    return max(distances.values())


def quantize_step(folder: Path) -> None:
    """step.int8.onnx from step.onnx: the decoder LSTMs' products, which hold nearly all weights.

    The prenet, the attention and the two projections stay float32: small, and what they give is
    heard, or ends the sentence.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(folder / GRAPHS[1]).graph.node
    of_lstms = [node.name for node in nodes if any("_rnn.weight" in name for name in node.input)]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a preparation that changes nothing here
    try:
        quantize_dynamic(
            folder / GRAPHS[1],
            folder / INT8_STEP,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[name for node in of_lstms for name in (node, f"{node}_MatMul")],
        )
    finally:
        logging.disable(disabled)


def make_settings(voice: Voice, stop_threshold: float) -> dict[str, Any]:
    """settings.json: what speak.py needs beside the graphs.

    natural-log mel = mel * log_mel_scale + log_mel_shift, whatever the scaling of the mels.
    """
    a: AudioConfig = voice.audio_config
    scale = -a.log_floor / (2.0 * a.max_scaled_abs) if a.mel_scaling == "scaled_db" else 1.0
    shift = a.log_floor / 2.0 if a.mel_scaling == "scaled_db" else 0.0
    prenet = {k: v for k, v in asdict(voice.model.config).items() if "prenet" in k}
    return {
        "format_version": 1,
        "symbols": list(voice.tokenizer.symbols),
        "token_ids": voice.tokenizer.character_ids,
        **prenet,
        "stop_threshold": stop_threshold,
        "audio": {
            **asdict(a),
            "silence": a.silence,
            "loudest": a.loudest,
            "log_mel_scale": scale,
            "log_mel_shift": shift,
        },
    }


def fill_folder(voice: Voice, folder: Path, int8: bool, stop_threshold: float) -> None:
    """Everything that --output_dir gets.

    Raises:
        DataError: when the graphs do not give the model's numbers.
    """
    settings = json.dumps(make_settings(voice, stop_threshold), indent=2, ensure_ascii=False)
    (folder / "settings.json").write_text(settings, encoding="utf-8")
    np.save(folder / "mel_filters.npy", mel_filters(voice.audio_config, torch.device("cpu")))
    shutil.copyfile(Path(__file__).with_name("run_onnx.py"), folder / "speak.py")
    write_graphs(voice, folder)
    distance = check_graphs(voice, folder)
    print(f"teacher forced, {TRIAL_FRAMES} frames: at most {distance:.1g} from PyTorch's numbers")
    if int8:
        quantize_step(folder)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=path_argument, required=True, help="checkpoint folder")
    add("--output_dir", type=path_argument, required=True, help="folder for the graphs")
    add("--int8", action="store_true", help="also a step with the LSTMs' products in 8 bits")
    threshold_help = "probability of the stop token that ends a text (default: %(default)s)"
    add("--stop_threshold", type=float, default=0.5, help=threshold_help)
    args = parser.parse_args(argv)
    if not 0 < args.stop_threshold < 1:
        parser.error(f"--stop_threshold must be between 0 and 1, found {args.stop_threshold}")
    return args


def check_packages() -> None:
    """Finds out whether the extra packages are there.

    Raises:
        DataError: naming the one that is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise DataError(
            f"the package {error.name} is missing: python -m pip install -r requirements/onnx.txt"
        ) from None


def run(args: argparse.Namespace) -> None:
    """Exports to a temporary folder, and copies the files to --output_dir once all are there.

    Raises:
        DataError: when the checkpoint cannot be used, a package is missing or a file cannot be
            written.
    """
    check_packages()
    output_dir = Path(args.output_dir)
    check_writable("--output_dir", output_dir)
    voice = load_checkpoint(args.checkpoint)
    with file_errors(), tempfile.TemporaryDirectory() as folder:
        fill_folder(voice, Path(folder), args.int8, args.stop_threshold)
        (output_dir / INT8_STEP).unlink(missing_ok=True)  # of an earlier export, perhaps
        for made in sorted(Path(folder).iterdir()):
            path = output_dir / made.name
            write_whole(path, partial(shutil.copyfile, made))
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        run(args)
    except DataError as error:
        sys.exit(f"export_onnx.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
