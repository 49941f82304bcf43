"""Export a checkpoint as ONNX graphs that speak without PyTorch, and the program that runs them.

    python -m extras.export_onnx --checkpoint work_dir/tacotron2/final_checkpoint \
        --output_dir voice_onnx --int8

Needs requirements/onnx.txt. Opset 17, float32, one text at a time (the first axis is 1):

    encoder.onnx    tokens (1, T_text) int64 -> encoder_outputs (1, T_text, encoder_embed_dim),
                    keys (1, T_text, attention_dim)
    step.onnx       frame, masks, encoder_outputs, keys and the seven tensors of DecoderState
                    -> frames (1, frames_per_step, num_mels), stop_logits (1, frames_per_step)
                    and the state with next_ before each name
    postnet.onnx    mels_before (1, T_mel, num_mels) -> mels_after, the same shape

Only T_text and T_mel are dynamic. masks (decoder_prenet_depth, decoder_prenet_dim) are the factors
of the prenet's dropout, 0 or 1 / (1 - p), which the program that runs the step draws for each
frame. --int8 adds step.int8.onnx, with the products of both decoder LSTMs in 8 bits.

Beside the graphs: settings.json (symbols, token ids of characters, audio settings, stop threshold,
and the contrast by which run_onnx.py sharpens mels_after),
mel_filters.npy (num_mels, n_fft // 2 + 1), and speak.py, a copy of run_onnx.py, which needs only
onnxruntime and numpy. It does not normalise text: it takes plain words or token ids.

Before it writes to the folder, the export runs the float32 graphs beside the model, and refuses
them where their numbers differ by more than 1e-4.
"""

import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from command_line.files import (
    DataError,
    check_writable,
    file_errors,
    import_extra,
    path_argument,
    write_whole,
)
from command_line.flags import FlagParser
from command_line.main import say, script
from dataset import mel_filters
from model import DecoderState, Prenet, Tacotron2
from speech.voice import Voice, load_checkpoint

OPSET = 17
ENCODER, STEP, POSTNET, INT8_STEP = "encoder.onnx", "step.onnx", "postnet.onnx", "step.int8.onnx"
OF_TEXT = ["tokens", "encoder_outputs", "keys", "alignment", "cumulative_alignment"]
OF_TEXT += ["next_alignment", "next_cumulative_alignment"]
DYNAMIC_AXES = {name: {1: "T_text"} for name in OF_TEXT}  # the tensors whose axis 1 varies
DYNAMIC_AXES |= {name: {1: "T_mel"} for name in ("mels_before", "mels_after")}
TRACED_TEXT, TRACED_FRAMES = 12, 8  # characters and frames that the graphs are traced with
TRIAL_TEXT, TRIAL_FRAMES = 50, 300  # of the comparison with the model: a whole sentence
TOLERANCE = 1e-4


class GivenDropout(Prenet):
    """The prenet with its dropout as an input, not drawn at random."""

    masks: Tensor  # (decoder_prenet_depth, decoder_prenet_dim)

    def forward(self, frame: Tensor) -> Tensor:
        """Map (1, num_mels) to (1, decoder_prenet_dim)."""
        for layer, factors in zip(self.layers, self.masks, strict=True):
            frame = F.relu(layer(frame)) * factors
        return frame


def copy_model(voice: Voice, prenet: Prenet) -> Tacotron2:
    """Copy the model with the plain loops of model.py and this prenet."""
    model = Tacotron2(voice.model.config)
    model.decoder.prenet = prenet
    model.load_state_dict(voice.model.state_dict())
    return model.eval().requires_grad_(False)


class EncoderOfOneText(nn.Module):
    """The encoder of an unpadded text, which needs no packing, and the attention's keys."""

    def __init__(self, model: Tacotron2) -> None:
        super().__init__()
        self.encoder, self.key_layer = model.encoder, model.decoder.attention.key_layer

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map (1, T_text) to encoder_outputs (1, T_text, E), keys (1, T_text, attention_dim)."""
        x = self.encoder.embedding(tokens).transpose(1, 2)  # (1, character_embed_dim, T_text)
        for conv in self.encoder.convolutions:
            x = F.relu(conv(x))
        encoder_outputs, _ = self.encoder.lstm(x.transpose(1, 2))
        return encoder_outputs, self.key_layer(encoder_outputs)


class OneStep(nn.Module):
    """Decoder.step of an unpadded text; its prenet's dropout is an input."""

    def __init__(self, model: Tacotron2) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self, frame: Tensor, masks: Tensor, encoder_outputs: Tensor, keys: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Map the inputs of step.onnx to its outputs, in order."""
        self.decoder.prenet.masks = masks
        nothing_is_padding = torch.zeros((), dtype=torch.bool)
        frames, stop_logits, _, state = self.decoder.step(
            frame, DecoderState(*state), encoder_outputs, keys, nothing_is_padding
        )
        return frames, stop_logits, *state


class Correction(nn.Module):
    """The postnet of an unpadded mel, added to the mel."""

    def __init__(self, model: Tacotron2) -> None:
        super().__init__()
        self.postnet = model.postnet

    def forward(self, mels_before: Tensor) -> Tensor:
        """Map (1, T_mel, num_mels) to mels_after, of the same shape."""
        nothing_is_padding = torch.zeros(1, 1, dtype=torch.bool)
        return mels_before + self.postnet(mels_before, nothing_is_padding)


def write_graph(
    path: Path, module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]
) -> None:
    """Trace a module with these inputs, and write the graph."""
    names = {*inputs, *outputs}
    with warnings.catch_warnings():
        # torch's newer exporter needs one more package, onnxscript. This one warns that it will
        # go, and the tracer warns of the constant padding mask.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            path,
            input_names=[*inputs],
            output_names=outputs,
            dynamic_axes={k: axis for k, axis in DYNAMIC_AXES.items() if k in names},
            opset_version=OPSET,
            dynamo=False,
        )


def write_graphs(voice: Voice, folder: Path) -> None:
    """Write the three float32 graphs."""
    model = copy_model(voice, GivenDropout(voice.model.config))
    config, encoder = model.config, EncoderOfOneText(model)
    tokens = {"tokens": torch.ones(1, TRACED_TEXT, dtype=torch.int64)}
    write_graph(folder / ENCODER, encoder, tokens, ["encoder_outputs", "keys"])
    encoder_outputs, keys = encoder(tokens["tokens"])
    step = {
        "frame": torch.zeros(1, config.num_mels),
        "masks": torch.ones(config.decoder_prenet_depth, config.decoder_prenet_dim),
        "encoder_outputs": encoder_outputs,
        "keys": keys,
        **model.decoder.initial_state(encoder_outputs)._asdict(),
    }
    outputs = ["frames", "stop_logits", *(f"next_{name}" for name in DecoderState._fields)]
    write_graph(folder / STEP, OneStep(model), step, outputs)
    mels = {"mels_before": torch.zeros(1, TRACED_FRAMES, config.num_mels)}
    write_graph(folder / POSTNET, Correction(model), mels, ["mels_after"])


def check_graphs(voice: Voice, folder: Path) -> float:
    """Compare the float32 graphs with model.py, teacher forced on random text and frames.

    Returns the largest difference, relative to the largest number of its kind if that is above 1.
    """
    from extras.run_onnx import Speaker  # onnxruntime is an extra

    config, rng = voice.model.config, np.random.default_rng(0)
    model = copy_model(voice, Prenet(replace(config, decoder_prenet_dropout_p=0.0)))
    tokens = rng.integers(1, config.vocab_size, (1, TRIAL_TEXT))
    mels = rng.standard_normal((TRIAL_FRAMES, config.num_mels), np.float32)
    lengths = torch.tensor([TRIAL_TEXT]), torch.tensor([TRIAL_FRAMES])
    _, *expected = model(
        torch.from_numpy(tokens), lengths[0], torch.from_numpy(mels)[None], lengths[1]
    )
    sizes = TRIAL_FRAMES, config.decoder_prenet_depth, config.decoder_prenet_dim
    masks, speaker = np.ones(sizes, np.float32), Speaker(folder, threads=1)
    found = speaker.speak(tokens, rng, masks=masks, mels=mels)
    differences = []
    for name, ours, theirs in zip(("mel", "stop token", "alignment"), expected, found, strict=True):
        largest = max(ours.abs().max().item(), 1.0)
        differences.append(float(np.abs(ours[0].numpy() - theirs).max()) / largest)
        if not differences[-1] <= TOLERANCE:
            problem = f"the exported graphs give another {name} than the model"
            cause = "extras/export_onnx.py repeats parts of model.py; change them here too"
            raise DataError(f"{problem} (by {differences[-1]:.1g}): {cause}")
    return max(differences)


def quantize_step(folder: Path) -> None:
    """Write step.int8.onnx: the decoder LSTMs, nearly all weights, multiply in 8 bits."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(folder / STEP).graph.node
    of_lstms = [node.name for node in nodes if any("_rnn.weight" in name for name in node.input)]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a preparation that changes nothing here
    try:
        quantize_dynamic(
            folder / STEP,
            folder / INT8_STEP,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[name for node in of_lstms for name in (node, f"{node}_MatMul")],
        )
    finally:
        logging.disable(disabled)


def make_settings(voice: Voice, stop_threshold: float) -> dict[str, Any]:
    """Collect what speak.py needs beside the graphs, for settings.json.

    natural-log mel = mel * log_mel_scale + log_mel_shift, for both scalings of mels.
    """
    audio, scale, shift = voice.audio_config, 1.0, 0.0
    if audio.mel_scaling == "scaled_db":
        scale, shift = -audio.log_floor / (2.0 * audio.max_scaled_abs), audio.log_floor / 2.0
    return {
        "format_version": 1,
        "symbols": list(voice.tokenizer.symbols),
        "token_ids": voice.tokenizer.character_ids,
        "language": voice.tokenizer.language,
        **{k: v for k, v in asdict(voice.model.config).items() if "prenet" in k},
        "stop_threshold": stop_threshold,
        "contrast": voice.contrast and voice.contrast._asdict(),
        "audio": asdict(audio)
        | {"silence": audio.silence, "loudest": audio.loudest}
        | {"log_mel_scale": scale, "log_mel_shift": shift},
    }


def fill_folder(voice: Voice, folder: Path, int8: bool, stop_threshold: float) -> None:
    """Write all files of an export into a folder, and check the graphs."""
    content = json.dumps(make_settings(voice, stop_threshold), indent=2, ensure_ascii=False)
    (folder / "settings.json").write_text(content, encoding="utf-8")
    np.save(folder / "mel_filters.npy", mel_filters(voice.audio_config, torch.device("cpu")))
    shutil.copyfile(Path(__file__).with_name("run_onnx.py"), folder / "speak.py")
    write_graphs(voice, folder)
    difference = check_graphs(voice, folder)
    say(f"teacher forced, {TRIAL_FRAMES} frames: at most {difference:.1g} from PyTorch's numbers")
    if int8:
        quantize_step(folder)


@script
@file_errors()
def main(argv: list[str] | None = None) -> None:
    """Export to a temporary folder, and copy its files to --output_dir when it is complete."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=path_argument, required=True, help="checkpoint folder")
    add("--output_dir", type=path_argument, required=True, help="folder for the graphs")
    add("--int8", action="store_true", help="also a step with the LSTMs' products in 8 bits")
    add("--stop_threshold", type=float, default=0.5, help="stop probability that ends a text (0.5)")
    args = parser.parse_args(argv)
    if not 0 < args.stop_threshold < 1:
        parser.error(f"--stop_threshold must be between 0 and 1, found {args.stop_threshold}")
    for package in ("onnx", "onnxruntime"):
        import_extra(package, "the export", "requirements/onnx.txt")
    output_dir = Path(args.output_dir)
    check_writable("--output_dir", output_dir)
    voice = load_checkpoint(args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        fill_folder(voice, Path(folder), args.int8, args.stop_threshold)
        (output_dir / INT8_STEP).unlink(missing_ok=True)  # of an earlier export, perhaps
        for made in sorted(Path(folder).iterdir()):
            path = output_dir / made.name
            write_whole(path, partial(shutil.copyfile, made))
            say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
