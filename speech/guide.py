"""What free running is held to: where attention may look, when an item ends, its own dropout.

    guide = Guide(model.config, token_lengths, Rules(careful_stop=True), hop_seconds, seeds=[1, 2])
    output = model.infer(tokens, token_lengths, max_decoder_steps, guide=guide)
    guide.acted(output.mel_lengths)  # how often each rule made a difference

`Decoder.run_freely` of model.py asks a guide three things at every frame: `mask`, the characters
that attention may not look at; `draw`, the prenet's dropout; `ends`, which items end here. Without
a guide, attention may look anywhere and the first stop token ends an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model import Tacotron2Config, build_padding_mask

LAST_CHARACTERS = 3  # attention that has been on one of these has reached the end
GRACE_SECONDS = 0.25  # of stop tokens, until they are believed wherever attention is
REST_SECONDS = 0.5  # on the last character, until the item ends without a stop token
FRAMES_AT_ONCE = 64  # of dropout drawn for an item; another number draws other dropout


@dataclass(frozen=True)
class Rules:
    """What a guide does."""

    stop_threshold: float = 0.5  # probability of the stop token
    attention_window: tuple[int, int] | None = None  # characters back and ahead; None is anywhere
    careful_stop: bool = False  # False: the first stop token ends an item


class Acted(NamedTuple):
    """How the rules changed one item."""

    waited: int  # frames on which the stop token was not yet believed
    gave_up: bool  # it ended by GRACE_SECONDS of stop tokens, its last characters not reached
    rested: bool  # it ended by REST_SECONDS on its last character, without a stop token
    at_edge: int  # steps on which attention moved as far as the window lets it


def running_length(x: Tensor, before: Tensor) -> Tensor:
    """For each place of x (B, n) bool, how many True end there, going on from `before` (B,)."""
    places = torch.arange(1, x.shape[1] + 1, device=x.device)  # (n,)
    last_false = torch.where(x, 0, places).cummax(dim=1).values  # (B, n), 0 = none
    return places - last_false + torch.where(last_false == 0, before[:, None], 0)


class Guide:
    """The rules for one batch. Made anew for each call of `Tacotron2.infer`."""

    def __init__(
        self, config: Tacotron2Config, token_lengths: Tensor, rules: Rules, hop_seconds: float,
        seeds: Sequence[int] | None = None, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        """
        Args:
            config: the model's.
            token_lengths: (B,) int64.
            rules: what to do.
            hop_seconds: from one frame to the next.
            seeds: of each item's prenet dropout, which is then the same in every batch. None lets
                the prenet draw from torch's generator.
            device: the model's.
        """
        self.rules, self.device, self.dropout_p = rules, device, config.decoder_prenet_dropout_p
        self.grace_frames, self.rest_frames = (
            max(1, round(seconds / hop_seconds)) for seconds in (GRACE_SECONDS, REST_SECONDS)
        )
        self.last = (token_lengths - 1).to(device)  # (B,), each item's last character
        self.padding_mask = build_padding_mask(token_lengths, device=torch.device(device))
        self.characters = torch.arange(self.padding_mask.shape[1], device=device)
        self.shape = (FRAMES_AT_ONCE, config.decoder_prenet_depth, config.decoder_prenet_dim)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds or ()]
        self.drops = torch.empty(0)  # (n_frames, depth, B, decoder_prenet_dim) still to be used
        zeros = torch.zeros_like(self.last)
        self.reached, self.n_fired, self.n_rested = zeros.bool(), zeros, zeros
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []  # ends, fired, positions: (B, n) each

    def mask(self, alignment: Tensor) -> Tensor:
        """(B, T_text) bool, True = out of bounds, where `alignment` is the previous frame's.

        The window is about the previous arg-max, and at first about the first character.
        """
        if self.rules.attention_window is None:
            return self.padding_mask
        back, ahead = self.rules.attention_window
        position = alignment.argmax(dim=1, keepdim=True)  # (B, 1)
        outside = (self.characters < position - back) | (self.characters > position + ahead)
        return self.padding_mask | outside

    def draw(self, n_steps: int | None = None) -> Tensor | None:
        """Dropout factors of the next frame, (depth, B, decoder_prenet_dim), or of n_steps frames
        with these in front. None when no seeds were given.
        """
        if not self.generators:
            return None
        n = n_steps or 1
        while len(self.drops) < n:
            drawn = [torch.rand(self.shape, generator=generator) for generator in self.generators]
            kept = torch.stack(drawn, dim=2) >= self.dropout_p
            fresh = (kept.float() / (1.0 - self.dropout_p)).to(self.device)
            self.drops = torch.cat([self.drops, fresh]) if len(self.drops) else fresh
        drawn, self.drops = self.drops[:n], self.drops[n:]
        return drawn[0] if n_steps is None else drawn

    def ends(self, stop_logits: Tensor, alignments: Tensor) -> Tensor:
        """Which items end at which of the next n frames, (B, n) bool.

        Takes stop_logits (B, n) and alignments (B, n, T_text). What comes after an item's first
        end does not count.
        """
        fired = torch.sigmoid(stop_logits) > self.rules.stop_threshold  # (B, n)
        positions = alignments.argmax(dim=2)  # (B, n)
        ends = fired
        if self.rules.careful_stop:
            near_end = positions > (self.last - LAST_CHARACTERS)[:, None]
            reached = self.reached[:, None] | (near_end.cumsum(dim=1) > 0)
            n_fired = self.n_fired[:, None] + fired.cumsum(dim=1)
            n_rested = running_length(positions == self.last[:, None], self.n_rested)
            ends = (fired & reached) | (n_fired >= self.grace_frames)
            ends |= n_rested >= self.rest_frames
            self.reached, self.n_fired, self.n_rested = (
                x[:, -1] for x in (reached, n_fired, n_rested)
            )
        self.seen.append((ends, fired, positions))
        return ends

    def all_ends(self) -> Tensor:
        """What `ends` has said of all frames so far, (B, T_mel)."""
        return torch.cat([ends for ends, _, _ in self.seen], dim=1)

    def acted(self, mel_lengths: Tensor) -> list[Acted]:
        """How the rules changed each item, whose lengths (B,) are those that infer gave."""
        if not self.seen:
            return [Acted(0, False, False, 0) for _ in mel_lengths]
        parts = zip(*self.seen, strict=True)
        ends, fired, positions = (torch.cat(part, dim=1).cpu() for part in parts)
        acted = []
        for i, n in enumerate(mel_lengths.tolist()):
            moves = torch.diff(positions[i, :n], prepend=torch.zeros(1, dtype=torch.int64))
            back, ahead = self.rules.attention_window or (len(self.characters),) * 2
            near_end = positions[i, :n] > int(self.last[i]) - LAST_CHARACTERS
            ended, at_stop = bool(ends[i, n - 1]), bool(fired[i, n - 1])
            acted.append(
                Acted(
                    int(fired[i, : n - 1].sum()),
                    ended and at_stop and self.rules.careful_stop and not bool(near_end.any()),
                    ended and not at_stop,
                    int(((moves <= -back) | (moves >= ahead)).sum()),
                )
            )
        return acted
