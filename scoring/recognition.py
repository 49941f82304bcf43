"""Count the errors that a speech recognizer makes on a voice: evaluate.py --asr.

    recognizer = load_recognizer("openai/whisper-small.en", "cpu")  # or a folder
    recognizer.transcribe([wav, wav])                               # (n_samples,) each -> texts

The recognizer transcribes three sounds of each clip: free running, the recording's own mel through
the same vocoder, and the recording. The recording shows the recognizer's own errors, the vocoded
recording adds those of the vocoder, and free running those of the model. Texts are compared as the
tokenizer cleans them, without punctuation. Needs requirements/asr.txt.
"""

import math
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from command_line.files import DataError, import_extra, one_line
from text.cleaning import TYPOGRAPHIC
from text.tokenizer import Tokenizer

REQUIREMENTS = "requirements/asr.txt"
SAMPLING_RATE = 16_000  # Hz, on which recognizers are trained
WHISPER_SECONDS = 30  # that Whisper hears at once
BATCH_SIZE = 16  # sounds that Whisper transcribes at once
TOKENS_PER_SECOND, MAX_TOKENS = 30, 400  # of a transcript; English has about 5, Hindi up to 30
PAD_SECONDS = 0.5  # of silence at both ends; without it, recognizers miss an early first word
SOUNDS = {  # transcribed of each clip: name, label
    "free_running": "free running",
    "vocoded": "vocoded recording",
    "recording": "recording",
}
Sounds = Mapping[str, Tensor]  # SOUNDS of a clip, each (n_samples,) at SAMPLING_RATE
KINDS = ("insertions", "deletions", "substitutions")
COUNTS = tuple(
    f"{name}_{unit}_{k}" for name in SOUNDS for unit in ("word", "character") for k in KINDS
)


class Recognizer:
    """A recognizer of transformers, which notes how fast it is."""

    def __init__(self, pipe: Any, language: str | None = None) -> None:
        self.pipe = pipe
        # The five beams that the pipeline searches by default cost a CPU more than all the rest.
        greedy = {"num_beams": 1} if pipe.type == "seq2seq_whisper" else {}
        spoken = {"language": language, "task": "transcribe"} if language else {}
        self.options = greedy | spoken
        self.seconds_heard = self.seconds_taken = 0.0

    @property
    def speed(self) -> float:
        """Return how many seconds of sound were transcribed in a second, silence included."""
        return self.seconds_heard / self.seconds_taken if self.seconds_taken else math.nan

    def transcribe(self, sounds: Sequence[Tensor]) -> list[str]:
        """Transcribe sounds, each (n_samples,) float at SAMPLING_RATE.

        Silence of PAD_SECONDS is added at both ends. Whisper hears sounds in batches, since it pads
        each to 30 s anyway; other recognizers hear each alone, because padding changes what they
        hear.
        """
        padding = round(PAD_SECONDS * SAMPLING_RATE)
        padded = [np.pad(sound.numpy(), padding).astype(np.float32) for sound in sounds]
        start = time.perf_counter()
        texts = self._transcribe(padded)
        self.seconds_taken += time.perf_counter() - start
        self.seconds_heard += sum(map(len, padded)) / SAMPLING_RATE
        return texts

    def _transcribe(self, sounds: list[np.ndarray]) -> list[str]:
        is_whisper = self.pipe.type == "seq2seq_whisper"
        inputs = [{"raw": sound, "sampling_rate": SAMPLING_RATE} for sound in sounds]
        seconds = [len(sound) / SAMPLING_RATE for sound in sounds]
        if is_whisper and 0 < max(seconds, default=0) <= WHISPER_SECONDS:
            # Now and then Whisper repeats a word until a limit, and the batch has to wait for it.
            n_tokens = min(round(TOKENS_PER_SECOND * max(seconds)), MAX_TOKENS)
            options = {**self.options, "max_new_tokens": n_tokens}
            heard = self.pipe(inputs, batch_size=BATCH_SIZE, generate_kwargs=options)
        else:
            options = {"generate_kwargs": self.options} if self.options else {}
            is_long = [is_whisper and x > WHISPER_SECONDS for x in seconds]
            timestamps = [{"return_timestamps": True} if long else {} for long in is_long]
            pairs = zip(inputs, timestamps, strict=True)
            heard = [self.pipe(sound, **more, **options) for sound, more in pairs]
        return [found["text"] for found in heard]


def load_recognizer(name: str, device: str, language: str | None = None) -> Recognizer:
    """Load a recognizer of transformers, such as Whisper or wav2vec 2.0, by name or folder.

    The language, such as "de", is for recognizers that know several.
    """
    import_extra("jiwer", "--asr", REQUIREMENTS)  # counts the errors
    transformers = import_extra("transformers", "--asr", REQUIREMENTS)
    transformers.logging.set_verbosity_error()
    try:
        pipe = transformers.pipeline("automatic-speech-recognition", model=name, device=device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        message = f"--asr {name}: is no recognizer that can be loaded ({one_line(error)})"
        raise DataError(message) from None
    if language is not None:
        config = getattr(pipe.model, "generation_config", None)  # wav2vec 2.0 has none
        codes = [code.strip("<|>") for code in getattr(config, "lang_to_id", None) or {}]
        if not codes:
            raise DataError(f"--asr_language {language}: --asr {name} knows one language only")
        if language not in codes:
            message = f"--asr {name} does not know it, only {', '.join(codes)}"
            raise DataError(f"--asr_language {language}: {message}")
    return Recognizer(pipe, language)


def plain_words(text: str, tokenizer: Tokenizer) -> str:
    """Reduce a text to the words that are compared: cleaned, lower case, no punctuation."""
    text = "".join("'" if TYPOGRAPHIC.get(c) == "'" else c for c in tokenizer.to_letters(text))
    kept = "".join(
        c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text.lower()
    )
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def count_errors(reference: str, transcript: str) -> dict[str, int]:
    """Count insertions, deletions and substitutions of words and of characters."""
    import jiwer

    words = jiwer.process_words(reference, transcript)
    characters = jiwer.process_characters(reference, transcript)
    return {
        f"{unit}_{kind}": getattr(counted, kind)
        for unit, counted in (("word", words), ("character", characters))
        for kind in KINDS
    }


def score_sounds(
    recognizer: Recognizer, clips: Sequence[Sounds], texts: Sequence[str], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Transcribe the SOUNDS of each clip and count errors: columns of the clip's row.

    A text with phonemes in braces cannot be compared, so its clip has no columns.
    """
    references = ["" if tokenizer.split(x)[1:] else plain_words(x, tokenizer) for x in texts]
    compared = [sounds for sounds, reference in zip(clips, references, strict=True) if reference]
    transcripts = iter(recognizer.transcribe([x for sounds in compared for x in sounds.values()]))
    rows: list[dict[str, Any]] = []
    for sounds, reference in zip(clips, references, strict=True):
        rows.append({})
        if not reference:
            continue
        rows[-1] |= {"asr_words": len(reference.split()), "asr_characters": len(reference)}
        for name in sounds:
            transcript = plain_words(next(transcripts), tokenizer)
            errors = count_errors(reference, transcript)
            rows[-1][f"{name}_heard"] = transcript
            rows[-1] |= {f"{name}_{kind}": count for kind, count in errors.items()}
    return rows


def error_rates(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Divide the errors of all clips by the words (wer) and characters (cer) of their texts."""
    rates = {}
    for name in SOUNDS:
        for rate, unit in (("wer", "word"), ("cer", "character")):
            errors = sum(np.nansum(columns[f"{name}_{unit}_{kind}"]) for kind in KINDS)
            rates[f"{name}_{rate}"] = errors / (np.nansum(columns[f"asr_{unit}s"]) or math.nan)
    return rates


def count_totals(columns: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count clips, words, characters and errors of each kind for the report of evaluate.py."""
    names = ("asr_words", "asr_characters", *COUNTS)
    n_clips = int(np.isfinite(columns["asr_words"]).sum())
    return {"asr_clips": n_clips, **{name: int(np.nansum(columns[name])) for name in names}}


def recognition_table(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Format the report's error rates as lines of evaluate.py's table: label, value."""
    lines = [("words in the texts that were transcribed", f"{report['asr_words']}")]
    for name, label in SOUNDS.items():
        kinds = ", ".join(f"{report[f'{name}_word_{kind}']} {kind}" for kind in KINDS)
        rates = f"{report[f'{name}_wer']:.1%} / {report[f'{name}_cer']:.1%}"
        lines.append((f"word / character errors, {label}", f"{rates} (words: {kinds})"))
    return [*lines, ("recognizer's speed", f"{report['asr_speed']:.1f} seconds of sound a second")]
