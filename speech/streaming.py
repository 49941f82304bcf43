"""Speech while it is being made: the first sound long before the text is spoken to its end.

    for wav in stream("It rained. It snowed.", voice, Manner(seed=0)):
        play(wav)  # (n_samples,) float32

The decoder makes some frames; the postnet corrects those whose neighbours are known, as far as
its convolutions reach; and their sound is made with some frames before them, over which it fades
in while that of the frames before fades out. The frames are those of `speak`, and the sound is
nearly its: Griffin-Lim finds other phases for a part than for the whole.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dataset import clamp_mel
from model import PostNet
from speech.speaking import PAUSES, Manner, encode, make_guide, to_wav
from speech.voice import Voice, inference_precision
from text.splitting import MAX_CHARACTERS, split_text

FIRST_FRAMES, MORE_FRAMES = 24, 48  # decoded before the first sound, and between later ones
PLAIN = Manner()
FADE_FRAMES = 8  # that two neighbouring parts share, and over which they are mixed


def postnet_reach(postnet: PostNet) -> int:
    """How many frames before and after a frame its correction depends on."""
    return sum(conv[0].kernel_size[0] // 2 for conv in postnet.convolutions)


@torch.no_grad()
def stream_mels(text: str, voice: Voice, manner: Manner) -> Iterator[Tensor]:
    """The mel of one piece in parts (n, num_mels), clamped, scaled as the checkpoint's config says.

    Raises:
        DataError: when the text has nothing to speak.
    """
    model, tokens = voice.model, encode(text, voice)
    device = next(model.parameters()).device
    lengths, seeds = torch.tensor([len(tokens)]), [] if manner.seed is None else [manner.seed]
    guide = make_guide(voice, lengths, manner, seeds)
    reach = postnet_reach(model.postnet)
    with inference_precision(device, manner.dtype):
        outputs = model.encoder(tokens[None].to(device), lengths, guide.padding_mask)
    steps = model.decoder.run_freely(
        outputs, guide.padding_mask, manner.max_decoder_steps, manner.stop_threshold, guide
    )
    mels = outputs.new_zeros(1, 0, model.config.num_mels)  # decoded; corrected up to n_done
    n_done, n_wanted, is_last = 0, FIRST_FRAMES + reach, False
    while not is_last:
        new = []
        while sum(part.shape[1] for part in new) + mels.shape[1] < n_wanted and not is_last:
            with inference_precision(device, manner.dtype):
                step = next(steps, None)
            is_last = step is None
            new += [] if is_last else [step[0].float()]
        mels = torch.cat([mels, *new], dim=1)
        first = max(0, n_done - reach)  # what the corrections of the next frames depend on
        end = mels.shape[1] if is_last else mels.shape[1] - reach
        known = mels[:, first:]
        with inference_precision(device, manner.dtype):
            padding = torch.zeros(known.shape[:2], dtype=torch.bool, device=device)
            corrected = known + model.postnet(known, padding)
        yield clamp_mel(corrected[0, n_done - first : end - first].float(), voice.audio_config)
        n_done, n_wanted = end, end + MORE_FRAMES + reach


def stream_piece(text: str, voice: Voice, manner: Manner) -> Iterator[Tensor]:
    """The sound of one piece in parts (n_samples,), each as soon as it is known.

    Raises:
        DataError: when the text has nothing to speak.
    """
    hop_size, audio_config = voice.audio_config.hop_size, voice.audio_config
    rising = torch.linspace(0.0, 1.0, FADE_FRAMES * hop_size)
    before = tail = None  # the last frames that have been heard, and the sound that waits to fade
    for mel in stream_mels(text, voice, manner):
        part = mel if before is None else torch.cat([before, mel])
        if not len(part):
            continue
        wav = to_wav(part, audio_config, manner)
        if tail is not None:
            n = len(tail)
            faded = tail * (1.0 - rising[:n]) + wav[:n] * rising[:n]
            wav = torch.cat([faded, wav[n:]])
        held = min(FADE_FRAMES, len(part)) * hop_size
        before, tail = part[-FADE_FRAMES:], wav[-held:]
        yield wav[:-held]
    yield tail


def stream(
    text: str, voice: Voice, manner: Manner = PLAIN, max_characters: int = MAX_CHARACTERS,
    pause_ms: float = 300.0,
) -> Iterator[Tensor]:  # fmt: skip
    """Speaks a text of any length; yields its sound in parts, (n_samples,) float32 in [-1, 1].

    A try of `Manner` is all that a sentence gets: n_candidates, n_retries and speed do nothing.

    Raises:
        DataError: when the text has nothing to speak.
    """
    encode(text, voice)
    manner = replace(manner, speed=1.0)
    pieces = split_text(text, voice.tokenizer, max_characters)
    for i, piece in enumerate(pieces):
        yield from stream_piece(piece.text, voice, manner)
        if i < len(pieces) - 1:
            seconds = pause_ms / 1000 * PAUSES[piece.end]
            yield torch.zeros(round(seconds * voice.audio_config.sampling_rate))
