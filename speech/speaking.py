"""Turn text into speech with a checkpoint.

    voice = load_checkpoint("work_dir/tacotron2/final_checkpoint")
    synthesize("Hello there.", voice, seed=0).wav                    # (n_samples,)
    for spoken in speak(["It rained.", "It snowed."], voice, SpeakingOptions(seed=0)):
        spoken.mel, spoken.alignment, spoken.failed

`synthesize` speaks one text once. `speak` takes many, a batch at a time, and speaks those that
failed again. text/splitting.py cuts a long text into pieces.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from command_line.files import DataError
from dataset import AudioConfig, clamp_mel
from scoring.scores import free_running_scores
from speech.vocoder import Vocoder, to_audio
from speech.voice import Voice, inference_precision

MAX_DECODER_STEPS = 2000  # 23 s at 86 frames per second
# A text with lower scores has failed. The worst of the demo's 100 test sentences has a coverage of
# 1.0 and a monotonicity of 0.95.
MIN_COVERAGE, MIN_MONOTONICITY = 0.9, 0.9
# Pauses after a piece, in multiples of --pause_ms.
PAUSES = {"word": 0.0, "clause": 0.4, "sentence": 1.0, "paragraph": 2.0}


@dataclass(frozen=True)
class SpeakingOptions:
    """How to speak. Flags of the same names set these fields in synthesize.py."""

    max_decoder_steps: int = MAX_DECODER_STEPS  # frames after which a text is cut
    stop_threshold: float = 0.5  # probability of the stop token that ends a text
    seed: int | None = None  # see `infer_batch`; None draws from torch's generator as it is
    dtype: torch.dtype = torch.float32  # of the matrix products; torch.bfloat16 is faster
    n_retries: int = 2  # how often a failed text is tried again
    speed: float = 1.0  # of the sound; the pitch stays the same
    vocoder: Vocoder | None = None  # None is Griffin-Lim


class Synthesis(NamedTuple):
    """One spoken text."""

    mel: Tensor  # (T_mel, num_mels), scaled as the checkpoint's audio_config says, clamped
    alignment: Tensor  # (T_mel, T_text)
    wav: Tensor  # (n_samples,)
    reached_limit: bool  # True: cut at max_decoder_steps, without a stop token
    scores: dict[str, float]  # FREE_RUNNING_SCORES of scoring/scores.py, by name
    n_tries: int = 1

    @property
    def failed(self) -> bool:
        """True if the voice did not stop, left out characters or went back in the text."""
        return (
            self.reached_limit
            or self.scores["free_running_coverage"] < MIN_COVERAGE
            or self.scores["free_running_monotonicity"] < MIN_MONOTONICITY
        )

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The rank by which the best of several tries is chosen."""
        score, coverage = (self.scores[f"free_running_{name}"] for name in ("score", "coverage"))
        return not self.failed, score, coverage


def synthesize(
    text: str, voice: Voice, max_decoder_steps: int = MAX_DECODER_STEPS, **options: Any
) -> Synthesis:
    """Speak a text once, in one piece.

    `options` are the other fields of SpeakingOptions, such as seed=0 (each seed sounds a little
    different) or vocoder=load_vocoder(folder, voice.audio_config). n_retries is 0 here. A text with
    nothing to speak is a DataError, as in the functions below.
    """
    options = {"n_retries": 0, **options}
    return speak_batch([text], voice, SpeakingOptions(max_decoder_steps, **options))[0]


def speak(
    texts: Iterable[str], voice: Voice, options: SpeakingOptions, batch_size: int = 16
) -> Iterator[Synthesis]:
    """Speak texts in order, batch_size at a time."""
    texts = iter(texts)
    while batch := list(islice(texts, batch_size)):
        yield from speak_batch(batch, voice, options)


def speak_batch(texts: list[str], voice: Voice, options: SpeakingOptions) -> list[Synthesis]:
    """Speak some texts at once; try failed ones again, and keep the best try of each."""
    tokens = [encode(text, voice) for text in texts]
    results = infer_batch(tokens, voice, options, options.seed)
    for n_tries in range(2, options.n_retries + 2):
        failed = [i for i, result in enumerate(results) if result.failed]
        if not failed:
            break
        seed = None if options.seed is None else options.seed + n_tries - 1
        again = infer_batch([tokens[i] for i in failed], voice, options, seed)
        for i, result in zip(failed, again, strict=True):
            best = max(results[i], result, key=lambda result: result.rank)
            results[i] = best._replace(n_tries=n_tries)
    spoken = []
    for result in results:
        if options.seed is not None:
            torch.manual_seed(options.seed)  # for Griffin-Lim's phases
        mel = clamp_mel(result.mel, voice.audio_config)
        wav = to_wav(mel, voice.audio_config, options)
        spoken.append(result._replace(mel=mel.cpu(), wav=wav))
    return spoken


@torch.no_grad()
def infer_batch(
    tokens: list[Tensor], voice: Voice, options: SpeakingOptions, seed: int | None
) -> list[Synthesis]:
    """Run the model on some texts, each (T_text,); the results have no wav yet.

    The seed fixes the prenet's dropout of the whole batch: the same texts in the same batch on the
    same device give the same mels. In another batch a text gets other dropout.
    """
    device = next(voice.model.parameters()).device
    lengths = torch.tensor([len(item) for item in tokens])
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device)
    if seed is not None:
        torch.manual_seed(seed)
    limits = options.max_decoder_steps, options.stop_threshold
    with inference_precision(device, options.dtype):
        output = voice.model.infer(padded, lengths, *limits)
    scores = free_running_scores(output, lengths)
    return [
        Synthesis(
            mel=output.mels[i, :n_frames].float(),
            alignment=output.alignments[i, :n_frames, : lengths[i]].cpu(),
            wav=torch.empty(0),
            reached_limit=bool(output.reached_limit[i]),
            scores={name: float(values[i]) for name, values in scores.items()},
        )
        for i, n_frames in enumerate(output.mel_lengths.tolist())
    ]


def encode(text: str, voice: Voice) -> Tensor:
    """Turn a text into tokens, (T_text,) int64; one with nothing to speak is a DataError."""
    try:
        return voice.tokenizer.encode(text)
    except ValueError as error:
        raise DataError(str(error)) from None


def to_wav(mel: Tensor, audio_config: AudioConfig, options: SpeakingOptions) -> Tensor:
    """Turn a mel (T_mel, num_mels) into sound (n_samples,) on the CPU, at the speed asked for."""
    wav = to_audio(mel, audio_config, options.vocoder).cpu()
    if options.speed == 1.0:
        return wav
    import librosa.effects  # slow to import

    with warnings.catch_warnings():  # librosa warns of a sound shorter than its window
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(librosa.effects.time_stretch(wav.numpy(), rate=options.speed))


def to_pcm(wav: Tensor) -> bytes:
    """Convert samples (n_samples,) in [-1, 1] to 16-bit little-endian."""
    samples = (wav.clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16)
    return samples.numpy().astype("<i2").tobytes()
