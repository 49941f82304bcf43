"""What a speech recognizer hears in a voice: word and character error rates (evaluate.py --asr).

    recognizer = load_recognizer("openai/whisper-small.en", "cpu")  # or a folder, or pocketsphinx
    recognizer(samples)                                             # float32, 16 kHz -> text

Three sounds of each clip are heard: free running, the recording's own mel through the same
vocoder, and the recording. The last one has the recognizer's own errors, the second also those of
the vocoder; what the first has beyond them is the model's. Texts are compared as the tokenizer
cleans them, without punctuation. Needs requirements/asr.txt.
"""

import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from command_line.files import DataError, import_extra
from dataset import load_wav
from speech.vocoder import Vocoder, to_audio
from speech.voice import Voice
from text.phonemes import PHONEMES_IN_BRACES
from text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pocketsphinx

REQUIREMENTS = "requirements/asr.txt"
SAMPLING_RATE = 16_000  # Hz, what recognizers are trained on
PAD_SECONDS = 0.5  # of silence at both ends: recognizers lose a first word that begins at once
NOISE = 3e-4  # -70 dB of full scale
SOUNDS = {  # heard of each clip: name, label
    "free_running": "free running",
    "vocoded": "vocoded recording",
    "recording": "recording",
}
KINDS = ("insertions", "deletions", "substitutions")
Recognizer = Callable[[np.ndarray], str]  # (n_samples,) float32 at SAMPLING_RATE -> text


def make_decoder(flag: str, **options: Any) -> "pocketsphinx.Decoder":
    """PocketSphinx with the English model of its package; what it hears has no effect on later.

    Raises:
        DataError: when the package is not installed; `flag` is what needs it.
    """
    decoder = import_extra("pocketsphinx", flag, REQUIREMENTS).Decoder
    return decoder(samprate=SAMPLING_RATE, loglevel="FATAL", **options)


def decode(decoder: "pocketsphinx.Decoder", samples: np.ndarray) -> None:
    """Has PocketSphinx hear samples, (n_samples,) at SAMPLING_RATE, as one utterance.

    As a whole, so that its cepstral means are its own, not also those of what came before. With
    faint noise: the logarithm of digital silence would bend these means, and words were lost.
    """
    noise = NOISE * np.random.default_rng(0).standard_normal(len(samples))
    pcm = np.clip(samples + noise, -1, 1) * 32767
    decoder.start_utt()
    decoder.process_raw(pcm.astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()


def load_pocketsphinx() -> Recognizer:
    """A recognizer that needs no download, and makes many more errors than Whisper.

    Raises:
        DataError: when the package is not installed.
    """
    decoder = make_decoder("--asr pocketsphinx")

    def recognize(samples: np.ndarray) -> str:
        decode(decoder, samples)
        heard = decoder.hyp()
        return heard.hypstr if heard else ""

    return recognize


def load_transformers(name: str, device: str) -> Recognizer:
    """A model of transformers, such as Whisper or wav2vec 2.0, by name or from a folder.

    Raises:
        DataError: when transformers is not installed, or the model cannot be had.
    """
    transformers = import_extra("transformers", f"--asr {name}", REQUIREMENTS)
    transformers.logging.set_verbosity_error()
    task = "automatic-speech-recognition"
    try:
        pipe = transformers.pipeline(task, model=name, device=device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"--asr {name}: is no recognizer that can be loaded ({reason})") from None

    def recognize(samples: np.ndarray) -> str:
        sound = {"raw": samples, "sampling_rate": SAMPLING_RATE}
        is_long = pipe.type == "seq2seq_whisper" and len(samples) > 30 * SAMPLING_RATE
        return pipe(sound, return_timestamps=True)["text"] if is_long else pipe(sound)["text"]

    return recognize


def load_recognizer(name: str, device: str) -> Recognizer:
    """The recognizer of --asr: pocketsphinx, or a model of transformers.

    Raises:
        DataError: when a package that it needs is missing, or the model cannot be had.
    """
    import_extra("jiwer", "--asr", REQUIREMENTS)  # which counts the errors
    return load_pocketsphinx() if name == "pocketsphinx" else load_transformers(name, device)


def plain_words(text: str, tokenizer: Tokenizer) -> str:
    """Text as it is compared: cleaned, in lower case, its words without punctuation."""
    text = tokenizer.clean(text).lower()
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def count_errors(reference: str, heard: str) -> dict[str, int]:
    """Insertions, deletions and substitutions by name, of words and of characters.

    Args:
        reference: what was to be said, not empty.
        heard: what was heard instead; both of `plain_words`.
    """
    import jiwer

    words, characters = (
        f(reference, heard) for f in (jiwer.process_words, jiwer.process_characters)
    )
    return {
        f"{unit}_{kind}": getattr(counted, kind)
        for unit, counted in (("word", words), ("character", characters))
        for kind in KINDS
    }


def vocode(mel: Tensor, voice: Voice, vocoder: Vocoder | None) -> np.ndarray:
    """A mel, (T_mel, num_mels), to sound at SAMPLING_RATE, (n_samples,).

    Its random phases are drawn from a fork of torch's generator: that of the prenet's dropout
    goes on as without --asr.
    """
    import librosa  # slow to import, see import_librosa

    with torch.random.fork_rng(devices=[]):
        wav = to_audio(mel, voice.audio_config, vocoder).cpu().numpy()
    rate = voice.audio_config.sampling_rate
    return librosa.resample(wav, orig_sr=rate, target_sr=SAMPLING_RATE)


def hear(
    recognizer: Recognizer, voice: Voice, text: str, path: str, recording: Tensor, mel: Tensor,
    vocoder: Vocoder | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What is heard of a clip, and its errors: columns of its row.

    Args:
        text: what is to be said. Where it has phonemes in braces, there is nothing to compare
            with, and no column.
        path: of the recording.
        recording, mel: the recording's mel and the free-running one, (T_mel, num_mels).

    Raises:
        DataError: when the recording cannot be read.
    """
    reference = plain_words(text, voice.tokenizer)
    if PHONEMES_IN_BRACES.search(text) or not reference:
        return {}
    samples = {
        "free_running": vocode(mel, voice, vocoder),
        "vocoded": vocode(recording, voice, vocoder),
        "recording": load_wav(path, SAMPLING_RATE).numpy(),
    }
    row = {"asr_words": len(reference.split()), "asr_characters": len(reference)}
    for name, sound in samples.items():
        padded = np.pad(sound, round(PAD_SECONDS * SAMPLING_RATE)).astype(np.float32)
        row[f"{name}_heard"] = plain_words(recognizer(padded), voice.tokenizer)
        errors = count_errors(reference, row[f"{name}_heard"])
        row |= {f"{name}_{kind}": count for kind, count in errors.items()}
    return row


def error_rates(rows: list[dict], picked: np.ndarray) -> dict[str, np.ndarray]:
    """Errors of all picked clips together, per word (wer) and character (cer) of their texts.

    Args:
        rows: of `hear`.
        picked: numbers of rows, (..., n_clips); the rates are (...).
    """
    rates = {}
    for name in SOUNDS:
        for rate, unit in (("wer", "word"), ("cer", "character")):
            errors = np.array([sum(row[f"{name}_{unit}_{k}"] for k in KINDS) for row in rows])
            lengths = np.array([row[f"asr_{unit}s"] for row in rows])
            rates[f"{name}_{rate}"] = errors[picked].sum(axis=-1) / lengths[picked].sum(axis=-1)
    return rates


def add_recognition(report: dict[str, Any], rows: list[dict], n_resamples: int) -> None:
    """Adds error rates, counts and 95 % bootstrap intervals over clips to evaluate.py's report.

    Raises:
        DataError: when nothing was heard of any clip.
    """
    rows = [row for row in rows if "asr_words" in row]
    if not rows:
        raise DataError("--asr: no clip has a text without phonemes in braces")
    report["asr_clips"] = len(rows)
    for count in ("asr_words", "asr_characters"):
        report[count] = sum(row[count] for row in rows)
    everything = error_rates(rows, np.arange(len(rows)))
    report |= {name: float(rate) for name, rate in everything.items()}
    for name in SOUNDS:
        for count in (f"{name}_{unit}_{kind}" for unit in ("word", "character") for kind in KINDS):
            report[count] = sum(row[count] for row in rows)
    generator = np.random.default_rng(report["seed"])
    drawn = error_rates(rows, generator.integers(len(rows), size=(n_resamples, len(rows))))
    for name, rates in drawn.items():
        report["intervals"][name] = np.percentile(rates, [2.5, 97.5]).tolist()


def recognition_table(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of the table that evaluate.py prints: label, value."""
    lines = [("words that the recognizer was to hear", f"{report['asr_words']}")]
    for name, label in SOUNDS.items():
        kinds = ", ".join(f"{report[f'{name}_word_{kind}']} {kind}" for kind in KINDS)
        rates = f"{report[f'{name}_wer']:.1%} / {report[f'{name}_cer']:.1%}"
        lines.append((f"word / character errors, {label}", f"{rates} (words: {kinds})"))
    return lines
