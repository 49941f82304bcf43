"""Count the hard sentences that a voice gets wrong, by a recognizer and by its attention.

    python benchmarks/hard_sentences.py --checkpoint demo/work_dir/demo/final_checkpoint \
        --asr openai/whisper-base.en

The 50 sentences of hard_sentences.txt are of the kinds that FastSpeech (Ren et al. 2019) was tried
on. There, listeners found 24 % of Tacotron 2's sentences wrong; those were other sentences. Each is
spoken whole, or in pieces of at most --max_characters, first without retries, then with up to
--n_retries of them.

A recognizer finds a skip where it misses a word, a repeat where it hears a word of the text once
more, and a sentence wrong if it hears anything but the text. The attention skips a word if no
character of it is attended to, repeats if it goes back for a while, and gets a sentence wrong if it
does one of these or does not stop. A sentence counts once in each column. The last column divides
the words that the recognizer finds wrong by those of the texts.

Writes hard_sentences.csv, with a row for each sentence, and hard_sentences_counts.csv.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Row, make_parser, print_device, report
from command_line.files import count_argument, path_argument, seed_argument
from command_line.main import script
from dataset import resample
from scoring.recognition import (
    KINDS,
    SAMPLING_RATE,
    Recognizer,
    count_errors,
    load_recognizer,
    plain_words,
)
from scoring.scores import COVERED
from speech.speaking import MAX_DECODER_STEPS, PAUSE_MS, PAUSES, SpeakingOptions, Synthesis, speak
from speech.vocoder import choose_vocoder
from speech.voice import add_device_flag, load_checkpoint
from text.splitting import Piece, split_text
from text.tokenizer import Tokenizer

# Attention that is this many characters behind where it has been, for this many frames in all,
# repeats. A good alignment now and then goes back a character or two at a border.
BACK_CHARACTERS, BACK_FRAMES = 4, 5


class Sentence(NamedTuple):
    """A line of hard_sentences.txt."""

    kind: str
    text: str


class Errors(NamedTuple):
    """What a judge finds in a sentence."""

    repeats: bool
    skips: bool
    wrong: bool


def read_sentences() -> list[Sentence]:
    """Read hard_sentences.txt."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return [Sentence(*line.split("|")) for line in text.splitlines()]


def find_attention_errors(spoken: Synthesis, written: str) -> Errors:
    """Find the errors of an alignment (T_mel, T_text) to the T_text characters of `written`."""
    attended = spoken.alignment.sum(dim=0) >= COVERED  # (T_text,)
    words = [attended[slice(*word.span())] for word in re.finditer(r"[\w']*\w", written)]
    positions = spoken.alignment.argmax(dim=1)  # (T_mel,)
    behind = positions.cummax(dim=0).values - positions  # (T_mel,)
    repeats = int((behind >= BACK_CHARACTERS).sum()) >= BACK_FRAMES
    skips = not all(word.any() for word in words)
    return Errors(repeats, skips, repeats or skips or spoken.reached_limit)


def find_heard_errors(reference: str, transcript: str) -> Errors:
    """Find the errors of a transcript; a word that is written as two is none."""
    import jiwer  # only some users have it

    if reference.replace(" ", "") == transcript.replace(" ", ""):
        return Errors(False, False, False)
    edits = jiwer.process_words(reference, transcript).alignments[0]
    heard, known = transcript.split(), {*reference.split()}
    inserted = [edit for edit in edits if edit.type == "insert"]
    more = {word for edit in inserted for word in heard[edit.hyp_start_idx : edit.hyp_end_idx]}
    return Errors(bool(more & known), any(edit.type == "delete" for edit in edits), True)


def join(spoken: list[tuple[Piece, Synthesis]], sampling_rate: int) -> Tensor:
    """Join the pieces of a sentence with synthesize.py's pauses, (n_samples,) at SAMPLING_RATE."""
    pauses = [
        round(PAUSE_MS / 1000 * PAUSES[piece.end] * sampling_rate) for piece, _ in spoken[:-1]
    ]
    wavs = [F.pad(x.wav, (0, n)) for (_, x), n in zip(spoken, [*pauses, 0], strict=True)]
    return resample(torch.cat(wavs), sampling_rate, SAMPLING_RATE)


def judge(
    sentences: Sequence[Sentence],
    wavs: Sequence[Tensor],
    recognizer: Recognizer,
    tokenizer: Tokenizer,
    spoken: Sequence[list[tuple[Piece, Synthesis]]],
) -> list[Row]:
    """Make a row for each sentence, with the errors of its sound and of its attention.

    wavs are (n_samples,) at the recognizer's SAMPLING_RATE; spoken has the pieces of each sentence.
    """
    rows = []
    transcripts = recognizer.transcribe(wavs)
    for sentence, transcript, pieces in zip(sentences, transcripts, spoken, strict=True):
        reference, heard = (plain_words(x, tokenizer) for x in (sentence.text, transcript))
        found = [
            find_attention_errors(result, tokenizer.decode(tokenizer.encode(piece.text)))
            for piece, result in pieces
        ]
        errors = {
            "recognizer": find_heard_errors(reference, heard),
            "attention": Errors(*map(any, zip(*found, strict=True))),
        }
        named = {f"{who} {k}": x for who, e in errors.items() for k, x in e._asdict().items()}
        counted = count_errors(reference, heard)
        n_errors = errors["recognizer"].wrong * sum(counted[f"word_{kind}"] for kind in KINDS)
        words = {"words": len(reference.split()), "word errors": n_errors}
        rows.append({**sentence._asdict(), "heard": heard, **named, **words})
    return rows


def judge_voice(
    args: argparse.Namespace, sentences: list[Sentence], recognizer: Recognizer
) -> list[Row]:
    """Let the checkpoint speak without retries and with them, and judge both."""
    voice, rows = load_checkpoint(args.checkpoint, args.device), []
    audio, tokenizer = voice.audio_config, voice.tokenizer
    vocoder = choose_vocoder(args.vocoder, audio, args.device)
    limit = args.max_characters or sys.maxsize
    pieces = [split_text(sentence.text, tokenizer, limit) for sentence in sentences]
    for n_retries in sorted({0, args.n_retries}):
        options = SpeakingOptions(
            args.max_decoder_steps, seed=args.seed, n_retries=n_retries, vocoder=vocoder
        )
        speaking = speak((piece.text for piece in chain(*pieces)), voice, options)
        results = iter(tqdm(speaking, total=sum(map(len, pieces)), unit="piece", disable=None))
        spoken = [[(piece, next(results)) for piece in parts] for parts in pieces]
        wavs = [join(parts, audio.sampling_rate) for parts in spoken]
        judged = judge(sentences, wavs, recognizer, tokenizer, spoken)
        rows += [{"voice": f"retries: {n_retries}", **row} for row in judged]
    return rows


def count(rows: list[Row]) -> list[Row]:
    """Count the sentences with errors of each voice and kind; divide word errors by words."""
    table = pd.DataFrame(rows)
    groups = pd.concat([table, table.assign(kind="all")]).groupby(["voice", "kind"], sort=False)
    counts = groups.sum(numeric_only=True).astype(int)
    counts["word errors"] = counts["word errors"] / counts.pop("words")
    counts.insert(0, "sentences", groups.size())
    return counts.reset_index().sort_values("voice", kind="stable").to_dict("records")


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Judge with these flags."""
    parser = make_parser(__doc__)
    parser.add("--checkpoint", "checkpoint folder", type=path_argument, required=True)
    parser.add("--asr", "recognizer of transformers, by folder or Hub name", required=True)
    parser.add("--asr_language", "en, where the recognizer knows several languages")
    vocoder = "HiFi-GAN for the sounds, as synthesize.py takes it"
    parser.add("--vocoder", vocoder, type=path_argument, metavar="NAME")
    parser.add("--n_retries", "tries again of the second time", type=count_argument, default=2)
    steps = "frames after which a sentence is cut"
    parser.add("--max_decoder_steps", steps, type=count_argument, default=MAX_DECODER_STEPS)
    pieces = "characters above which a sentence is spoken in pieces; if unset, none is"
    parser.add("--max_characters", pieces, type=count_argument)
    parser.add("--seed", "seed of the prenet's dropout", type=seed_argument, default=42)
    add_device_flag(parser)
    args = parser.parse_args(argv)
    sentences = read_sentences()
    recognizer = load_recognizer(args.asr, args.device, args.asr_language)
    machine = print_device(torch.device(args.device))
    rows = judge_voice(args, sentences, recognizer)
    report(args.output_dir / "hard_sentences_counts.csv", count(rows), machine)
    pd.DataFrame(rows).to_csv(args.output_dir / "hard_sentences.csv", index=False)
    print(f"{recognizer.speed:.1f} seconds of sound transcribed a second")


if __name__ == "__main__":
    main()
