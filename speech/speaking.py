"""Turn text into speech with a checkpoint.

    voice = load_checkpoint("work_dir/tacotron2/final_checkpoint")
    synthesize("Hello there.", voice, seed=0).wav                    # (n_samples,)
    for spoken in speak(["It rained.", "It snowed."], voice, SpeakingOptions(seed=0)):
        spoken.mel, spoken.alignment, spoken.failed

`synthesize` speaks one text once. `speak` takes many, a batch at a time, and speaks those that
failed again. text/splitting.py cuts a long text into pieces. A seed's random numbers come from a
generator of their own: they leave torch's alone, and other threads leave them alone.
"""

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from command_line.files import DataError
from dataset import AudioConfig
from scoring.scores import free_running_scores
from speech.contrast import sharpen
from speech.vocoder import Vocoder, to_audio
from speech.voice import Voice, inference_precision

MAX_DECODER_STEPS = 2000  # 23 s at 86 frames per second
# A text with lower scores has failed. The worst of the demo's 100 test sentences has a coverage of
# 1.0 and a monotonicity of 0.95.
MIN_COVERAGE, MIN_MONOTONICITY = 0.9, 0.9
PAUSE_MS = 300.0  # between sentences, by default
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

    mel: Tensor  # (T_mel, num_mels), scaled as the checkpoint's audio_config says, sharpened
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
        mel = sharpen(result.mel, voice.audio_config, voice.contrast)
        phases = make_generator(options.seed, mel.device)
        wav = to_wav(mel, voice.audio_config, options, phases)
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
    limits = options.max_decoder_steps, options.stop_threshold
    generator = make_generator(seed, device)
    with inference_precision(device, options.dtype), dropout_from(generator):
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


def make_generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    """Make a generator for the random numbers of a seed; None means torch's own."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)


class _OwnDropout(TorchFunctionMode):
    """Draws F.dropout in this thread from a generator, the numbers that torch's own would draw."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, function, types, args=(), kwargs=None):
        drop = self.drop if function is F.dropout else function
        return drop(*args, **(kwargs or {}))

    def drop(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
        if not training or p == 0:
            return x
        return x * torch.empty_like(x).bernoulli_(1 - p, generator=self.generator).div_(1 - p)


_CUDA_LOCK = threading.Lock()


@contextmanager
def dropout_from(generator: torch.Generator | None) -> Iterator[None]:
    """Draw the dropout in the block from a generator; None leaves it to torch's own."""
    if generator is None:
        yield
    elif generator.device.type != "cuda":
        with _OwnDropout(generator):
            yield
    else:  # CUDA graphs draw from the device's generator, so it lends its place for the block
        shared = torch.cuda.default_generators[generator.device.index]
        with _CUDA_LOCK:
            before = shared.get_state()
            shared.set_state(generator.get_state())
            try:
                yield
            finally:
                generator.set_state(shared.get_state())
                shared.set_state(before)


def to_wav(
    mel: Tensor,
    audio_config: AudioConfig,
    options: SpeakingOptions,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Turn a mel (T_mel, num_mels) into sound (n_samples,) on the CPU, at the speed asked for.

    Griffin-Lim's phases come from `generator`, on the mel's device, or torch's own.
    """
    wav = to_audio(mel, audio_config, options.vocoder, generator).cpu()
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
