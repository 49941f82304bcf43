"""Yield speech while it is being made: the first sound comes long before the text is finished.

    for wav in stream("It rained. It snowed.", voice):
        play(wav)  # (n_samples,) float32

The decoder makes some frames. The postnet corrects those whose neighbours are known as far as its
convolutions reach. Their sound is made together with a few frames before them, over which it is
cross-faded with the sound so far. Griffin-Lim finds other phases for a part than for the whole, so
a stream sounds nearly, but not exactly, like `speak`.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from model import build_padding_mask
from speech.contrast import sharpen
from speech.speaking import (
    PAUSE_MS,
    PAUSES,
    SpeakingOptions,
    dropout_from,
    encode,
    make_generator,
    to_wav,
)
from speech.voice import Voice, inference_precision
from text.splitting import split_text

FIRST_FRAMES, MORE_FRAMES = 24, 48  # decoded before the first sound, and between later ones
FADE_FRAMES = 8  # that two neighbouring parts share, and over which they are cross-faded


def stream(
    text: str,
    voice: Voice,
    options: SpeakingOptions | None = None,
    max_characters: int | None = None,
    pause_ms: float = PAUSE_MS,
) -> Iterator[Tensor]:
    """Speak a text of any length; yield its sound in parts, (n_samples,) float32 in [-1, 1].

    Of the options, n_retries and speed have no effect here.
    """
    encode(text, voice)
    options = replace(options or SpeakingOptions(), speed=1.0)
    pieces = split_text(text, voice.tokenizer, max_characters or voice.max_characters)
    for i, piece in enumerate(pieces):
        yield from stream_piece(piece.text, voice, options)
        if i < len(pieces) - 1:
            seconds = pause_ms / 1000 * PAUSES[piece.end]
            yield torch.zeros(round(seconds * voice.audio_config.sampling_rate))


def stream_piece(text: str, voice: Voice, options: SpeakingOptions) -> Iterator[Tensor]:
    """Yield the sound of one piece in parts (n_samples,)."""
    hop_size = voice.audio_config.hop_size
    fade_in = torch.linspace(0.0, 1.0, FADE_FRAMES * hop_size)
    last_frames = last_sound = None  # the end of the part before, held back to be faded
    generator = make_generator(options.seed, next(voice.model.parameters()).device)
    for mel in stream_mels(text, voice, options, generator):
        part = mel if last_frames is None else torch.cat([last_frames, mel])
        if not len(part):
            continue
        wav = to_wav(part, voice.audio_config, options, generator)
        if last_sound is not None:
            n = len(last_sound)
            wav[:n] = last_sound * (1.0 - fade_in[:n]) + wav[:n] * fade_in[:n]
        n_held = min(FADE_FRAMES, len(part)) * hop_size
        last_frames, last_sound = part[-FADE_FRAMES:], wav[-n_held:]
        yield wav[:-n_held]
    yield last_sound


@torch.no_grad()
def stream_mels(
    text: str, voice: Voice, options: SpeakingOptions, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Yield the mel of one piece in parts (n_frames, num_mels), sharpened, as soon as it is known.

    The prenet's dropout comes from `generator`, or torch's own. Warns if no stop token comes.
    """
    model, tokens = voice.model, encode(text, voice)
    device, lengths = next(model.parameters()).device, torch.tensor([len(tokens)])
    padding_mask = build_padding_mask(lengths, device=device)
    with inference_precision(device, options.dtype):
        encoder_outputs = model.encoder(tokens[None].to(device), lengths, padding_mask)
    limits = options.max_decoder_steps, options.stop_threshold
    steps = model.decoder.run_freely(encoder_outputs, padding_mask, *limits)
    # The correction of a frame depends on so many frames before it and after it.
    reach = sum(conv[0].kernel_size[0] // 2 for conv in model.postnet.convolutions)
    decoded = torch.zeros(1, 0, model.config.num_mels, device=device)
    n_done, n_wanted, is_last, has_stopped = 0, FIRST_FRAMES + reach, False, False
    while not is_last:
        with inference_precision(device, options.dtype), dropout_from(generator):
            while decoded.shape[1] < n_wanted and not is_last:
                frames, stop_logits, *_ = next(steps, (decoded[:, :0], decoded[:, :0, 0]))
                is_last = not frames.shape[1]
                has_stopped |= bool((stop_logits.sigmoid() > options.stop_threshold).any())
                decoded = torch.cat([decoded, frames.float()], dim=1)
            first = max(0, n_done - reach)
            end = decoded.shape[1] - (0 if is_last else reach)
            known = decoded[:, first:]
            no_padding = torch.zeros(known.shape[:2], dtype=torch.bool, device=device)
            corrected = known + model.postnet(known, no_padding)
        part = corrected[0, n_done - first : end - first]
        yield sharpen(part, voice.audio_config, voice.contrast)
        n_done, n_wanted = end, end + MORE_FRAMES + reach
    if not has_stopped:
        warnings.warn(f"did not stop within {n_done} frames: {text}", stacklevel=2)
