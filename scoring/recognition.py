"""Count the errors that a speech recognizer makes on a voice: evaluate.py --asr.

    recognizer = load_recognizer("openai/whisper-small.en", "cpu")  # or a folder
    transcribe(recognizer, wav, 22050)                              # (n_samples,) -> text

The recognizer transcribes three sounds of each clip: free running, the recording's own mel through
the same vocoder, and the recording. The recording shows the recognizer's own errors, the vocoded
recording adds those of the vocoder, and free running those of the model. Texts are compared as the
tokenizer cleans them, without punctuation. Needs requirements/asr.txt.
"""

import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from command_line.files import DataError, import_extra, one_line
from text.phonemes import PHONEMES_IN_BRACES
from text.tokenizer import Tokenizer

REQUIREMENTS = "requirements/asr.txt"
SAMPLING_RATE = 16_000  # Hz, on which recognizers are trained
PAD_SECONDS = 0.5  # of silence at both ends; without it, recognizers miss an early first word
SOUNDS = {  # transcribed of each clip: name, label
    "free_running": "free running",
    "vocoded": "vocoded recording",
    "recording": "recording",
}
KINDS = ("insertions", "deletions", "substitutions")
COUNTS = tuple(
    f"{name}_{unit}_{k}" for name in SOUNDS for unit in ("word", "character") for k in KINDS
)
Recognizer = Callable[[np.ndarray], str]  # (n_samples,) float32 at SAMPLING_RATE -> text


def load_recognizer(name: str, device: str) -> Recognizer:
    """Load a recognizer of transformers, such as Whisper or wav2vec 2.0, by name or folder."""
    import_extra("jiwer", "--asr", REQUIREMENTS)  # counts the errors
    transformers = import_extra("transformers", "--asr", REQUIREMENTS)
    transformers.logging.set_verbosity_error()
    try:
        pipe = transformers.pipeline("automatic-speech-recognition", model=name, device=device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        message = f"--asr {name}: is no recognizer that can be loaded ({one_line(error)})"
        raise DataError(message) from None

    def recognize(samples: np.ndarray) -> str:
        sound = {"raw": samples, "sampling_rate": SAMPLING_RATE}
        is_long = pipe.type == "seq2seq_whisper" and len(samples) > 30 * SAMPLING_RATE
        return pipe(sound, return_timestamps=True)["text"] if is_long else pipe(sound)["text"]

    return recognize


def transcribe(recognizer: Recognizer, wav: Tensor, sampling_rate: int) -> str:
    """Transcribe a wav, (n_samples,) float, with PAD_SECONDS of silence before and after it."""
    samples = wav.numpy()
    if sampling_rate != SAMPLING_RATE:
        import librosa  # slow to import

        samples = librosa.resample(samples, orig_sr=sampling_rate, target_sr=SAMPLING_RATE)
    return recognizer(np.pad(samples, round(PAD_SECONDS * SAMPLING_RATE)).astype(np.float32))


def plain_words(text: str, tokenizer: Tokenizer) -> str:
    """Reduce a text to the words that are compared: cleaned, lower case, no punctuation."""
    text = tokenizer.clean(text).lower()
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
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
    recognizer: Recognizer,
    sounds: Mapping[str, tuple[Tensor, int]],
    text: str,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Transcribe a clip's SOUNDS (wav and sampling rate) and count errors: columns of its row.

    A text with phonemes in braces cannot be compared, so its clip has no columns.
    """
    reference = plain_words(text, tokenizer)
    if PHONEMES_IN_BRACES.search(text) or not reference:
        return {}
    row = {"asr_words": len(reference.split()), "asr_characters": len(reference)}
    for name, sound in sounds.items():
        transcript = plain_words(transcribe(recognizer, *sound), tokenizer)
        errors = count_errors(reference, transcript)
        row[f"{name}_heard"] = transcript
        row |= {f"{name}_{kind}": count for kind, count in errors.items()}
    return row


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
    return lines
