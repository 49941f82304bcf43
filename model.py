"""Tacotron 2: characters in, scaled mel spectrogram and alignment out.

Shen et al. 2018, arXiv 1712.05884. Read section 2.2 beside this file, which follows its order:

    Encoder                     embedding -> 3 x (conv, batch norm, ReLU, dropout) -> BiLSTM
    LocationSensitiveAttention  which characters the next frame is about
    Decoder                     prenet -> attention LSTM -> attention -> decoder LSTM -> frame, stop
    PostNet                     5 convolutions that correct the decoder's frames
    Tacotron2                   the whole: `forward` is teacher forcing, `infer` free running
    tacotron2_loss              what training minimises

Both are plain loops over `Decoder.step`, and nothing in this file is there for speed.
fast/decoder.py computes the same numbers faster; change something here, and it steps aside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

MAX_SIZE = 16384  # of anything; beyond it memory would run out, unexplained


@dataclass(frozen=True)
class Tacotron2Config:
    """Model sizes; the defaults are the paper's. Raises ValueError naming the flag that is off."""

    vocab_size: Annotated[int, "number of symbols, padding included"] = 40
    pad_token_id: Annotated[int, "token id of padding"] = 0
    num_mels: Annotated[int, "mel bins"] = 80
    character_embed_dim: Annotated[int, "size of a character's embedding"] = 512
    encoder_kernel_size: Annotated[
        int, "width of the encoder's convolutions in characters, odd"
    ] = 5
    encoder_n_convolutions: Annotated[int, "convolutions in the encoder"] = 3
    encoder_embed_dim: Annotated[int, "size of encoder_outputs, both directions, even"] = 512
    encoder_dropout_p: Annotated[float, "dropout after each encoder convolution"] = 0.5
    decoder_rnn_embed_dim: Annotated[int, "size of both decoder LSTMs"] = 1024
    decoder_dropout_p: Annotated[float, "dropout on the decoder LSTM's output"] = 0.1
    decoder_prenet_dim: Annotated[int, "size of the prenet's layers"] = 256
    decoder_prenet_depth: Annotated[int, "number of prenet layers"] = 2
    decoder_prenet_dropout_p: Annotated[float, "prenet dropout, also when speaking"] = 0.5
    decoder_postnet_num_convs: Annotated[int, "convolutions in the postnet"] = 5
    decoder_postnet_n_filters: Annotated[int, "channels of the postnet's convolutions"] = 512
    decoder_postnet_kernel_size: Annotated[
        int, "width of the postnet's convolutions in frames, odd"
    ] = 5
    decoder_postnet_dropout_p: Annotated[float, "dropout after each postnet convolution"] = 0.5
    attention_dim: Annotated[int, "size of the attention's hidden layer"] = 128
    attention_dropout_p: Annotated[float, "dropout on the attention LSTM's output"] = 0.1
    attention_location_n_filters: Annotated[int, "channels of the location convolution"] = 32
    attention_location_kernel_size: Annotated[
        int, "width of the location convolution in characters, odd"
    ] = 31

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and name != "pad_token_id" and not 1 <= value <= MAX_SIZE:
                bounds = "at least 1" if value < 1 else f"at most {MAX_SIZE}"
                raise ValueError(f"--{name} must be {bounds}, found {value}")
            if name.endswith("kernel_size") and value % 2 == 0:
                raise ValueError(f"--{name} must be odd, found {value}")
            if name.endswith("_p") and not 0 <= value < 1:
                raise ValueError(f"--{name} must be in [0, 1), found {value}")
        if self.encoder_embed_dim % 2:
            raise ValueError(f"--encoder_embed_dim must be even, found {self.encoder_embed_dim}")


class Tacotron2Output(NamedTuple):
    """What teacher forcing gives; frames past an item's length are 0 in both mels."""

    mels_before: Tensor  # (B, T_mel, num_mels)
    mels_after: Tensor  # (B, T_mel, num_mels)
    stop_logits: Tensor  # (B, T_mel)
    alignments: Tensor  # (B, T_mel, T_text)


class InferenceOutput(NamedTuple):
    """What free running gives; frames past an item's length are 0 in mels."""

    mels: Tensor  # (B, T_mel, num_mels), after the postnet
    mel_lengths: Tensor  # (B,) int64, the frame that said stop included
    stop_logits: Tensor  # (B, T_mel)
    alignments: Tensor  # (B, T_mel, T_text)
    reached_limit: Tensor  # (B,) bool, True = never said stop


class DecoderState(NamedTuple):
    """What one decoder step hands to the next."""

    attention_hidden: Tensor  # (B, decoder_rnn_embed_dim)
    attention_cell: Tensor  # (B, decoder_rnn_embed_dim)
    decoder_hidden: Tensor  # (B, decoder_rnn_embed_dim)
    decoder_cell: Tensor  # (B, decoder_rnn_embed_dim)
    context: Tensor  # (B, encoder_embed_dim)
    alignment: Tensor  # (B, T_text)
    cumulative_alignment: Tensor  # (B, T_text)


def build_padding_mask(
    lengths: Tensor, max_length: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Lengths (B,) -> (B, max_length) bool, True = padding; as wide as the longest when None."""
    lengths = lengths.to(device or lengths.device, non_blocking=True)
    return torch.arange(max_length or int(lengths.max()), device=lengths.device) >= lengths[:, None]


def lstm_cell(x: Tensor, hidden: Tensor, cell: Tensor, lstm: nn.Module) -> tuple[Tensor, Tensor]:
    """One step of an LSTM with the weights of `lstm`: x (B, n_in) -> hidden, cell (B, n_hidden).

    Written out so that under autocast only the matrix products run in half precision: the cell
    adds up over hundreds of frames and stays float32.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = lstm.parameters()
    gates = F.linear(x, weight_ih, bias_ih) + F.linear(hidden, weight_hh, bias_hh)
    i, f, g, o = gates.to(cell.dtype).chunk(4, dim=1)  # (B, n_hidden) each
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


class ConvNorm(nn.Sequential):
    """Convolution that keeps the length, then batch norm: (B, C_in, T) -> (B, C_out, T)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: str) -> None:
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain(gain))
        super().__init__(conv, nn.BatchNorm1d(out_channels))


class Encoder(nn.Module):
    """Characters to encoder_outputs. Section 2.2, third paragraph."""

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.dropout_p = config.encoder_dropout_p
        dim, size = config.encoder_embed_dim, config.encoder_kernel_size
        self.embedding = nn.Embedding(config.vocab_size, config.character_embed_dim)
        nn.init.xavier_uniform_(self.embedding.weight)
        widths = [config.character_embed_dim] + [dim] * config.encoder_n_convolutions
        self.convolutions = nn.ModuleList(ConvNorm(n, m, size, "relu") for n, m in pairwise(widths))
        self.lstm = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, token_lengths: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, T_text) tokens -> (B, T_text, encoder_embed_dim), 0 on padding."""
        pad = padding_mask[:, None, :]  # (B, 1, T_text)
        x = self.embedding(tokens).transpose(1, 2)  # (B, character_embed_dim, T_text)
        for conv in self.convolutions:
            # Zero, as the convolution's own edge padding is: alone and in a batch are then equal.
            x = F.relu(conv(x.masked_fill(pad, 0.0)))  # (B, encoder_embed_dim, T_text)
            x = F.dropout(x, self.dropout_p, self.training)
        order = padding_mask.sum(dim=1).argsort(stable=True)  # packing wants the longest first
        lengths = token_lengths.cpu().sort(descending=True).values
        x = x.transpose(1, 2).index_select(0, order)  # (B, T_text, encoder_embed_dim)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        # On a GPU autocast runs an LSTM in float16, also under bfloat16. Without a scaled loss
        # most of its gradients would underflow.
        with torch.autocast(x.device.type, enabled=False):
            outputs, _ = self.lstm(packed.to(self.lstm.weight_hh_l0.dtype))
        outputs, _ = nn.utils.rnn.pad_packed_sequence(outputs, True, total_length=tokens.shape[1])
        return outputs.index_select(0, order.argsort())  # (B, T_text, encoder_embed_dim)


class Prenet(nn.Module):
    """The bottleneck on the previous frame; its dropout is never off. Section 2.2.

    Without it the decoder copies the previous frame instead of attending to the text.
    """

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.dropout_p = config.decoder_prenet_dropout_p
        widths = [config.num_mels] + [config.decoder_prenet_dim] * config.decoder_prenet_depth
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in pairwise(widths))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, frames: Tensor, drops: Tensor | None = None) -> Tensor:
        """(..., num_mels) -> (..., decoder_prenet_dim).

        drops (depth, ..., decoder_prenet_dim) are the dropout's factors, 0 or 1 / (1 - p); they
        are drawn here when None.
        """
        for i, layer in enumerate(self.layers):
            frames = F.relu(layer(frames))
            if drops is None:
                frames = F.dropout(frames, self.dropout_p, training=True)
            else:
                frames = frames * drops[i].to(frames.dtype)
        return frames


class LocationSensitiveAttention(nn.Module):
    """Which characters the next frame is about. Section 2.2; Chorowski et al. 2015, 1506.07503.

    f = location_conv([alignment, cumulative_alignment])        where attention was, and has been
    energies = v^T tanh(W query + V encoder_outputs + U f)
    alignment = softmax(energies),  context = sum over characters of alignment * encoder_outputs
    """

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        dim, n_filters = config.attention_dim, config.attention_location_n_filters
        size = config.attention_location_kernel_size
        self.query_layer = nn.Linear(config.decoder_rnn_embed_dim, dim, bias=False)  # W
        self.key_layer = nn.Linear(config.encoder_embed_dim, dim, bias=False)  # V
        self.location_conv = nn.Conv1d(2, n_filters, size, padding=size // 2, bias=False)
        self.location_layer = nn.Linear(n_filters, dim, bias=False)  # U
        self.v = nn.Linear(dim, 1, bias=False)
        for layer in (self.query_layer, self.key_layer, self.location_layer):
            nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))
        nn.init.xavier_uniform_(self.location_conv.weight)
        nn.init.xavier_uniform_(self.v.weight)

    def forward(
        self, query: Tensor, keys: Tensor, padding_mask: Tensor, alignment: Tensor,
        cumulative_alignment: Tensor,
    ) -> Tensor:  # fmt: skip
        """The alignment of one frame, (B, T_text).

        Args:
            query: (B, decoder_rnn_embed_dim), the attention LSTM's output.
            keys: (B, T_text, attention_dim), key_layer(encoder_outputs).
            padding_mask: (B, T_text) bool, True = padding.
            alignment, cumulative_alignment: (B, T_text), of the previous frame, and their sum.
        """
        locations = torch.stack([alignment, cumulative_alignment], dim=1)  # (B, 2, T_text)
        f = self.location_conv(locations).transpose(1, 2)  # (B, T_text, n_filters)
        hidden = torch.tanh(self.query_layer(query)[:, None] + keys + self.location_layer(f))
        energies = self.v(hidden).squeeze(2).to(alignment.dtype)  # (B, T_text)
        # The lowest number instead of -inf: a row that is all padding stays finite.
        energies = energies.masked_fill(padding_mask, torch.finfo(energies.dtype).min)
        return F.softmax(energies, dim=1)  # (B, T_text)


class Decoder(nn.Module):
    """One mel frame after the other, each from the text that the attention points at."""

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.config = config
        text_dim, rnn_dim = config.encoder_embed_dim, config.decoder_rnn_embed_dim
        self.prenet = Prenet(config)
        self.attention_rnn = nn.LSTMCell(config.decoder_prenet_dim + text_dim, rnn_dim)
        self.attention = LocationSensitiveAttention(config)
        self.decoder_rnn = nn.LSTM(rnn_dim + text_dim, rnn_dim)
        self.mel_projection = nn.Linear(rnn_dim + text_dim, config.num_mels)
        self.stop_projection = nn.Linear(rnn_dim + text_dim, 1)
        nn.init.xavier_uniform_(self.mel_projection.weight)
        nn.init.xavier_uniform_(self.stop_projection.weight, gain=nn.init.calculate_gain("sigmoid"))

    def initial_state(self, encoder_outputs: Tensor) -> DecoderState:
        """The state before the first frame: all zeros, at least float32 also under autocast."""
        batch_size, n_text, text_dim = encoder_outputs.shape
        dtype = torch.promote_types(encoder_outputs.dtype, torch.float32)
        rnn, context, alignment = (
            encoder_outputs.new_zeros(batch_size, width, dtype=dtype)
            for width in (self.config.decoder_rnn_embed_dim, text_dim, n_text)
        )
        return DecoderState(rnn, rnn, rnn, rnn, context, alignment, alignment)

    def step(
        self, frame: Tensor, state: DecoderState, encoder_outputs: Tensor, keys: Tensor,
        padding_mask: Tensor, drops: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, DecoderState]:  # fmt: skip
        """The next frame. Dropout is on the LSTMs' outputs, not on the states that are fed back.

        Args:
            frame, state: of the previous step; zeros and `initial_state` to begin.
            encoder_outputs: (B, T_text, encoder_embed_dim).
            keys: (B, T_text, attention_dim), attention.key_layer(encoder_outputs).
            padding_mask: (B, T_text) bool, True = padding.
            drops: (depth, B, decoder_prenet_dim), see Prenet.forward.

        Returns:
            frame (B, num_mels), stop_logit (B,), alignment (B, T_text), state.
        """
        prenet_output = self.prenet(frame, drops)  # (B, decoder_prenet_dim)
        x = torch.cat([prenet_output, state.context], dim=1)
        attention_hidden, attention_cell = lstm_cell(
            x, state.attention_hidden, state.attention_cell, self.attention_rnn
        )  # (B, decoder_rnn_embed_dim) each
        query = F.dropout(attention_hidden, self.config.attention_dropout_p, self.training)

        alignment = self.attention(
            query, keys, padding_mask, state.alignment, state.cumulative_alignment
        )  # (B, T_text)
        context = torch.bmm(alignment[:, None].to(encoder_outputs.dtype), encoder_outputs)
        context = context.squeeze(1)  # (B, encoder_embed_dim)

        x = torch.cat([query, context], dim=1)
        decoder_hidden, decoder_cell = lstm_cell(
            x, state.decoder_hidden, state.decoder_cell, self.decoder_rnn
        )  # (B, decoder_rnn_embed_dim) each
        output = F.dropout(decoder_hidden, self.config.decoder_dropout_p, self.training)

        output = torch.cat([output, context], dim=1)
        frame = self.mel_projection(output)  # (B, num_mels)
        stop_logit = self.stop_projection(output).squeeze(1)  # (B,)
        state = DecoderState(
            attention_hidden, attention_cell, decoder_hidden, decoder_cell, context, alignment,
            state.cumulative_alignment + alignment,
        )  # fmt: skip
        return frame, stop_logit, alignment, state

    def forward(
        self, encoder_outputs: Tensor, padding_mask: Tensor, mels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher forcing: frame t is predicted from the true frame t - 1.

        Takes encoder_outputs and padding_mask as `step` does and mels (B, T_mel, num_mels); returns
        mels_before (B, T_mel, num_mels), stop_logits (B, T_mel), alignments (B, T_mel, T_text).
        """
        keys = self.attention.key_layer(encoder_outputs)
        state = self.initial_state(encoder_outputs)
        outputs = []
        for frame in F.pad(mels, (0, 0, 1, -1)).unbind(dim=1):  # zeros, then the true frames
            *output, state = self.step(frame, state, encoder_outputs, keys, padding_mask)
            outputs.append(output)
        return tuple(torch.stack(parts, dim=1) for parts in zip(*outputs, strict=True))

    def infer(
        self, encoder_outputs: Tensor, padding_mask: Tensor, max_decoder_steps: int,
        stop_threshold: float, guide: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Free running, see `run_freely`. Returns what `forward` does."""
        parts = self.run_freely(
            encoder_outputs, padding_mask, max_decoder_steps, stop_threshold, guide
        )
        return tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))

    def run_freely(
        self, encoder_outputs: Tensor, padding_mask: Tensor, max_decoder_steps: int,
        stop_threshold: float, guide: Any = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
        """Free running: frame t is predicted from the predicted frame t - 1, until every item has
        said stop once, or for max_decoder_steps. Yields what `forward` returns, frame by frame.
        """
        keys = self.attention.key_layer(encoder_outputs)
        state = self.initial_state(encoder_outputs)
        frame = state.context.new_zeros(len(padding_mask), self.config.num_mels)
        stopped = torch.zeros_like(padding_mask[:, 0])  # (B,)
        mask, drops, n_steps = padding_mask, None, 0
        while n_steps < max_decoder_steps and not stopped.all():
            if guide:
                mask, drops = guide.mask(state.alignment), guide.draw()
            *output, state = self.step(frame, state, encoder_outputs, keys, mask, drops)
            frame, stop_logit, alignment = output
            if guide:
                stopped |= guide.ends(stop_logit[:, None], alignment[:, None])[:, 0]
            else:
                stopped |= torch.sigmoid(stop_logit) > stop_threshold
            n_steps += 1
            yield tuple(x[:, None] for x in output)


class PostNet(nn.Module):
    """Convolutions over the finished frames; their output is added to these. Section 2.2."""

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.dropout_p = config.decoder_postnet_dropout_p
        n_hidden, size = config.decoder_postnet_num_convs - 1, config.decoder_postnet_kernel_size
        widths = [config.num_mels] + [config.decoder_postnet_n_filters] * n_hidden
        self.convolutions = nn.ModuleList(ConvNorm(n, m, size, "tanh") for n, m in pairwise(widths))
        self.convolutions.append(ConvNorm(widths[-1], config.num_mels, size, "linear"))

    def forward(self, mels: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, T_mel, num_mels) -> the correction, same shape, 0 on padding."""
        pad = padding_mask[:, None, :]  # (B, 1, T_mel)
        x = mels.transpose(1, 2)  # (B, num_mels, T_mel)
        for conv in self.convolutions[:-1]:
            x = torch.tanh(conv(x.masked_fill(pad, 0.0)))  # (B, n_filters, T_mel)
            x = F.dropout(x, self.dropout_p, self.training)
        x = F.dropout(self.convolutions[-1](x.masked_fill(pad, 0.0)), self.dropout_p, self.training)
        return x.masked_fill(pad, 0.0).transpose(1, 2)


class Tacotron2(nn.Module, PyTorchModelHubMixin):
    """Encoder, decoder, postnet. `from_pretrained(dir)` reads what `save_pretrained(dir)` wrote."""

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.postnet = PostNet(config)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs) -> "Tacotron2":
        return super()._from_pretrained(strict=strict, **kwargs)  # missing weights are an error

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, mels: Tensor, mel_lengths: Tensor
    ) -> Tacotron2Output:
        """Teacher forcing: tokens (B, T_text), the true mels (B, T_mel, num_mels), lengths (B,)."""
        text_mask = build_padding_mask(token_lengths, tokens.shape[1], tokens.device)
        mel_mask = build_padding_mask(mel_lengths, mels.shape[1], mels.device)
        encoder_outputs = self.encoder(tokens, token_lengths, text_mask)
        mels_before, stop_logits, alignments = self.decoder(encoder_outputs, text_mask, mels)
        mels_before = mels_before.masked_fill(mel_mask[:, :, None], 0.0)
        mels_after = mels_before + self.postnet(mels_before, mel_mask)
        return Tacotron2Output(mels_before, mels_after, stop_logits, alignments)

    @torch.no_grad()
    def infer(
        self, tokens: Tensor, token_lengths: Tensor | None = None, max_decoder_steps: int = 2000,
        stop_threshold: float = 0.5, guide: Any = None,
    ) -> InferenceOutput:  # fmt: skip
        """Free running, each item to its own end: a stop token above stop_threshold, or
        max_decoder_steps frames, at least 1. token_lengths is None when no item is padded.
        A `guide` of speech/guide.py decides the end instead, and where attention may look.
        """
        if max_decoder_steps < 1:
            raise ValueError(f"max_decoder_steps must be at least 1, found {max_decoder_steps}")
        if token_lengths is None:
            token_lengths = torch.full(tokens.shape[:1], tokens.shape[1])
        text_mask = build_padding_mask(token_lengths, tokens.shape[1], tokens.device)
        encoder_outputs = self.encoder(tokens, token_lengths, text_mask)
        mels_before, stop_logits, alignments = self.decoder.infer(
            encoder_outputs, text_mask, max_decoder_steps, stop_threshold, guide
        )
        stops = guide.all_ends() if guide else torch.sigmoid(stop_logits) > stop_threshold
        stops = stops[:, : stop_logits.shape[1]]  # (B, T_mel)
        reached_limit = ~stops.any(dim=1)  # (B,)
        lengths = (stops.int().argmax(dim=1) + 1).masked_fill(reached_limit, stops.shape[1])
        mel_mask = build_padding_mask(lengths)
        mels_before = mels_before.masked_fill(mel_mask[:, :, None], 0.0)
        mels = mels_before + self.postnet(mels_before, mel_mask)
        return InferenceOutput(mels, lengths, stop_logits, alignments, reached_limit)


def guided_attention_penalty(
    token_lengths: Tensor, mel_lengths: Tensor, sigma: float, alignments: Tensor
) -> Tensor:
    """W of Tachibana et al. 2017, arXiv 1710.08969, eq. 6: 0 on the diagonal, towards 1 off it.

    The lengths are on the alignments' device; the penalty is as large, (B, T_mel, T_text).
    """
    t, n = (torch.arange(size, device=alignments.device) for size in alignments.shape[1:])
    t, n = t / mel_lengths[:, None], n / token_lengths[:, None]  # (B, T_mel), (B, T_text)
    return 1.0 - torch.exp(-((n[:, None, :] - t[:, :, None]) ** 2) / (2.0 * sigma**2))


def tacotron2_loss(
    output: Tacotron2Output, mels: Tensor, token_lengths: Tensor, mel_lengths: Tensor,
    stop_targets: Tensor, guided_attention_weight: float = 0.0,
    guided_attention_sigma: float = 0.2, n_frames: Tensor | None = None,
    stop_positive_weight: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    """The losses by name, each a mean over valid frames, and their sum, `loss`.

    Args:
        mels: (B, T_mel, num_mels), the true frames.
        stop_targets: (B, T_mel), 1 from the last valid frame on.
        guided_attention_sigma: width of the diagonal, as a share of the clip.
        n_frames: valid frames of the whole optimizer step, where it has more than this batch.
        stop_positive_weight: of the frames whose stop target is 1, one of each clip.
    """
    token_lengths = token_lengths.to(mels.device, non_blocking=True)
    mel_lengths = mel_lengths.to(mels.device, non_blocking=True)
    padding_mask = build_padding_mask(mel_lengths, mels.shape[1])  # (B, T_mel)
    n_frames = mel_lengths.sum() if n_frames is None else n_frames
    stop_logits = output.stop_logits.float()
    stop = F.binary_cross_entropy_with_logits(stop_logits, stop_targets, reduction="none")
    per_frame = {  # (B, T_mel) each
        "mel_before_loss": (output.mels_before.float() - mels).square().mean(dim=2),
        "mel_after_loss": (output.mels_after.float() - mels).square().mean(dim=2),
        "stop_loss": stop * (1.0 + (stop_positive_weight - 1.0) * stop_targets),
        "guided_attention_loss": torch.zeros_like(stop),
    }
    if guided_attention_weight:
        penalty = guided_attention_penalty(
            token_lengths, mel_lengths, guided_attention_sigma, output.alignments
        )
        off_diagonal = (output.alignments.float() * penalty).sum(dim=2)
        per_frame["guided_attention_loss"] = guided_attention_weight * off_diagonal
    losses = {k: v.masked_fill(padding_mask, 0.0).sum() / n_frames for k, v in per_frame.items()}
    return losses | {"loss": sum(losses.values())}
