"""Texts to speech with a checkpoint: in batches, the best of several tries, joined to one sound.

    voice = load_checkpoint("work_dir/tacotron2/final_checkpoint")
    for spoken in speak(["It rained.", "It snowed."], voice, Manner(seed=0)):
        spoken.wav  # (n_samples,)

A sentence sounds the same alone and in any batch, because its dropout comes from a generator of
its own. `to_wav` is the one place where a mel becomes sound.
"""

import shutil
import tempfile
import warnings
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from command_line.files import DataError, file_errors, put_in_place
from dataset import AudioConfig, clamp_mel, to_log_mel
from scoring.scores import free_running_scores
from speech.guide import Acted, Guide, Rules
from speech.vocoder import Vocoder, to_audio
from speech.voice import Voice, inference_precision
from text.splitting import Piece

MAX_DECODER_STEPS = 2000  # 23 s at 86 frames per second
# A sentence below either has failed. Of the demo's 100 test sentences, the worst have coverage
# 1.0 and monotonicity 0.95.
LEAST_COVERAGE, LEAST_MONOTONICITY = 0.9, 0.9
PAUSES = {"word": 0.0, "clause": 0.4, "sentence": 1.0, "paragraph": 2.0}  # times --pause_ms


@dataclass(frozen=True)
class Manner:
    """How to speak."""

    max_decoder_steps: int = MAX_DECODER_STEPS  # frames after which a sentence is cut
    stop_threshold: float = 0.5  # probability of the stop token that ends a sentence
    seed: int | None = None  # of dropout and phases; None goes on with torch's generator
    dtype: torch.dtype = torch.float32  # of matrix products
    attention_window: tuple[int, int] | None = None  # see speech/guide.py, as careful_stop
    careful_stop: bool = True
    n_candidates: int = 1  # tries of every sentence, of which the best is kept
    n_retries: int = 2  # more of them where the best has failed
    speed: float = 1.0  # of the sound, at the same pitch
    vocoder: Vocoder | None = None  # makes the sound; Griffin-Lim does without one


class Synthesis(NamedTuple):
    """One spoken text."""

    mel: Tensor  # (T_mel, num_mels), scaled as the checkpoint's audio_config says, clamped
    alignment: Tensor  # (T_mel, T_text)
    wav: Tensor  # (n_samples,)
    reached_limit: bool  # True: cut at max_decoder_steps instead of stopping by itself
    scores: dict[str, float]  # FREE_RUNNING_SCORES of scoring/scores.py, by name
    acted: Acted = Acted(0, False, False, 0)  # what the careful stop and the window did
    n_tries: int = 1

    @property
    def failed(self) -> bool:
        """Whether it does not end, leaves characters out or goes back and forth."""
        coverage, monotonicity = (
            self.scores[f"free_running_{name}"] for name in ("coverage", "monotonicity")
        )
        is_broken = coverage < LEAST_COVERAGE or monotonicity < LEAST_MONOTONICITY
        return self.reached_limit or is_broken

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The higher, the better."""
        score, coverage = (self.scores[f"free_running_{name}"] for name in ("score", "coverage"))
        return not self.failed, score, coverage


def encode(text: str, voice: Voice) -> Tensor:
    """(T_text,) int64.

    Raises:
        DataError: when the text has nothing to speak.
    """
    try:
        return voice.tokenizer.encode(text)
    except ValueError as error:
        raise DataError(str(error)) from None


def to_wav(mel: Tensor, audio_config: AudioConfig, manner: Manner) -> Tensor:
    """The sound (n_samples,) of a mel (T_mel, num_mels); the seed is of Griffin-Lim's phases."""
    if manner.seed is not None:
        torch.manual_seed(manner.seed)
    wav = to_audio(mel, audio_config, manner.vocoder).cpu()
    if manner.speed == 1.0:
        return wav
    import librosa.effects  # slow to import

    with warnings.catch_warnings():  # of a sound that is shorter than librosa's window
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(librosa.effects.time_stretch(wav.numpy(), rate=manner.speed))


def to_pcm(wav: Tensor) -> bytes:
    """(n_samples,) in [-1, 1] as 16-bit little-endian samples."""
    samples = (wav.clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16)
    return samples.numpy().astype("<i2").tobytes()


def make_guide(voice: Voice, token_lengths: Tensor, manner: Manner, seeds: list[int]) -> Guide:
    """The guide of a batch, whose items have these seeds; none to draw from torch's generator."""
    rules = Rules(manner.stop_threshold, manner.attention_window, manner.careful_stop)
    device = next(voice.model.parameters()).device
    hop_seconds = voice.audio_config.hop_seconds
    return Guide(voice.model.config, token_lengths, rules, hop_seconds, seeds, device)


@torch.no_grad()
def infer_batch(
    tokens: list[Tensor], voice: Voice, manner: Manner, first_try: int, n_tries: int
) -> list[Synthesis]:
    """The best of n_tries of each item, yet without wav; `first_try` is the number of the first.

    Try k of an item has the seed manner.seed + k, whatever else is in the batch.
    """
    device = next(voice.model.parameters()).device
    lengths = torch.tensor([len(item) for item in tokens]).repeat_interleave(n_tries)
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    padded = padded.repeat_interleave(n_tries, dim=0).to(device)
    seeds = []
    if manner.seed is not None:
        tries = range(first_try, first_try + n_tries)
        seeds = [(manner.seed + k) % 2**63 for _ in tokens for k in tries]
    guide = make_guide(voice, lengths, manner, seeds)
    with inference_precision(device, manner.dtype):
        output = voice.model.infer(
            padded, lengths, manner.max_decoder_steps, manner.stop_threshold, guide
        )
    scores = free_running_scores(output, lengths)
    acted = guide.acted(output.mel_lengths)
    results = [
        Synthesis(
            output.mels[i, : output.mel_lengths[i]].float(),
            output.alignments[i, : output.mel_lengths[i], : lengths[i]].cpu(),
            torch.empty(0),
            bool(output.reached_limit[i]),
            {name: float(values[i]) for name, values in scores.items()},
            acted[i],
            first_try + n_tries,
        )
        for i in range(len(lengths))
    ]
    tries_of_each = (results[i : i + n_tries] for i in range(0, len(results), n_tries))
    return [max(tries, key=lambda result: result.rank) for tries in tries_of_each]


def infer_best(tokens: list[Tensor], voice: Voice, manner: Manner) -> list[Synthesis]:
    """The best tries of some texts, yet without wav; what fails is tried again with other seeds."""
    results = infer_batch(tokens, voice, manner, 0, manner.n_candidates)
    for retry in range(manner.n_retries):
        failed = [i for i, result in enumerate(results) if result.failed]
        if not failed:
            break
        first_try = manner.n_candidates + retry
        again = infer_batch([tokens[i] for i in failed], voice, manner, first_try, 1)
        for i, result in zip(failed, again, strict=True):
            best = max(results[i], result, key=lambda result: result.rank)
            results[i] = best._replace(n_tries=result.n_tries)
    return results


def speak_batch(texts: list[str], voice: Voice, manner: Manner) -> list[Synthesis]:
    """Speaks some texts at once.

    Raises:
        DataError: when a text has nothing to speak.
    """
    tokens = [encode(text, voice) for text in texts]
    finished = []
    for result in infer_best(tokens, voice, manner):
        mel = clamp_mel(result.mel, voice.audio_config)
        wav = to_wav(mel, voice.audio_config, manner)
        finished.append(result._replace(mel=mel.cpu(), wav=wav))
    return finished


def speak(
    texts: Iterable[str], voice: Voice, manner: Manner, batch_size: int = 16
) -> Iterator[Synthesis]:
    """Speaks texts in order, batch_size at once, and keeps no more than a batch in memory.

    Raises:
        DataError: when a text has nothing to speak.
    """
    texts = iter(texts)
    while batch := list(islice(texts, batch_size)):
        yield from speak_batch(batch, voice, manner)


class Written(NamedTuple):
    """What became of a text whose pieces were joined."""

    seconds: float  # of the wav
    results: list[Synthesis]  # of each piece, without mel, alignment and wav where there are many
    worst: Synthesis  # the piece with the lowest score, whole


@file_errors()
def write_joined(
    pieces: list[Piece], results: Iterator[Synthesis], voice: Voice, output_dir: Path, stem: str,
    pause_ms: float, speed: float = 1.0,
) -> Written:  # fmt: skip
    """stem.wav, .npy, .txt of all pieces, with pauses; stem.png of the one with the lowest score.

    Takes the pieces' results one by one, as they are spoken, and writes each at once: memory does
    not grow with the text. Files appear under their names when all of them are whole.

    Raises:
        DataError: when one cannot be written.
    """
    audio_config, kept, worst, worst_text = voice.audio_config, [], None, ""
    n_frames = n_samples = 0
    prefix = f".{stem}."
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=prefix, suffix=".tmp") as scratch:
        wav_path, mel_path, raw_path, text_path, figure_path = (
            Path(scratch) / f"{stem}.{kind}" for kind in ("wav", "npy", "raw", "txt", "png")
        )
        with (
            wave.open(str(wav_path), "wb") as wav_file,
            raw_path.open("wb") as raw_file,
            text_path.open("w", encoding="utf-8") as text_file,
        ):
            wav_file.setparams((1, 2, audio_config.sampling_rate, 0, "NONE", ""))
            for i, piece in enumerate(pieces):
                result = next(results)
                said = voice.tokenizer.decode(encode(piece.text, voice))
                is_last = i == len(pieces) - 1
                pause = 0.0 if is_last else pause_ms / 1000 * PAUSES[piece.end]
                n_silent = round(pause / audio_config.hop_seconds)  # frames
                silence = torch.full((n_silent, audio_config.num_mels), audio_config.silence)
                mel = to_log_mel(torch.cat([result.mel, silence]), audio_config).numpy()
                raw_file.write(mel.astype("<f4").tobytes())
                still = torch.zeros(round(n_silent * audio_config.hop_size / speed))
                wav_file.writeframesraw(to_pcm(torch.cat([result.wav, still])))
                between = "\n\n" if piece.end == "paragraph" else " "
                text_file.write(said + ("\n" if is_last else between))
                n_frames, n_samples = n_frames + len(mel), n_samples + len(result.wav) + len(still)
                score = result.scores["free_running_score"]
                if worst is None or score < worst.scores["free_running_score"]:
                    worst, worst_text = result, said
                empty = torch.empty(0)
                kept.append(result._replace(mel=empty, alignment=empty, wav=empty))
        write_mel(mel_path, raw_path, n_frames, audio_config.num_mels)
        draw(worst, worst_text, audio_config, figure_path)
        for path in (wav_path, mel_path, text_path, figure_path):
            target = output_dir / path.name
            put_in_place(path, target, path.with_suffix(".replaced"))
    return Written(n_samples / audio_config.sampling_rate, kept, worst)


def write_mel(path: Path, raw_path: Path, n_frames: int, num_mels: int) -> None:
    """The .npy, (num_mels, n_frames), of frames written one after the other as float32.

    Frame after frame is the order of the array's memory when it is Fortran's.
    """
    header = {"descr": "<f4", "fortran_order": True, "shape": (num_mels, n_frames)}
    with path.open("wb") as file, raw_path.open("rb") as raw:
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(raw, file)


def draw(result: Synthesis, said: str, audio_config: AudioConfig, path: Path) -> None:
    """The picture of one piece: mel and alignment."""
    from scoring.pictures import save_figure, summary_figure  # matplotlib is slow to import

    figure = summary_figure(
        None, result.mel, result.alignment, said, hop_seconds=audio_config.hop_seconds
    )
    save_figure(figure, path)
