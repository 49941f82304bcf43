"""Tacotron 2: characters in, scaled mel spectrogram and alignment out.

Shen et al. 2018, arXiv 1712.05884. Read section 2.2 beside this file, which follows its order:

    Encoder                     embedding -> 3 x (conv, batch norm, ReLU, dropout) -> BiLSTM
    LocationSensitiveAttention  which characters the next frame is about
    Decoder                     prenet -> attention LSTM -> attention -> decoder LSTM -> frame, stop
    PostNet                     5 convolutions that correct the decoder's frames
    Tacotron2                   the whole: `forward` is teacher forcing, `infer` free running
    tacotron2_loss              what training minimises

`forward` and `infer` are plain loops over `Decoder.step`. fast/decoder.py computes the same numbers
faster; if you change something here, it notices and steps aside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

MAX_SIZE = 16384  # the largest value of any size; a larger model would only run out of memory


@dataclass(frozen=True)
class Tacotron2Config:
    """Model sizes; the defaults are the paper's. A size out of bounds raises ValueError."""

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
    frames_per_step: Annotated[
        int, "mel frames that each decoder step predicts; 1 is the paper's"
    ] = 1
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
            if name.endswith("_p"):
                if not 0 <= value < 1:
                    raise ValueError(f"--{name} must be in [0, 1), found {value}")
            elif name != "pad_token_id" and not 1 <= value <= MAX_SIZE:
                bounds = "at least 1" if value < 1 else f"at most {MAX_SIZE}"
                raise ValueError(f"--{name} must be {bounds}, found {value}")
            elif name.endswith("kernel_size") and value % 2 == 0:
                raise ValueError(f"--{name} must be odd, found {value}")
        if self.encoder_embed_dim % 2:
            raise ValueError(f"--encoder_embed_dim must be even, found {self.encoder_embed_dim}")


class Tacotron2Output(NamedTuple):
    """The result of teacher forcing; frames past a clip's end are 0 in both mels."""

    mels_before: Tensor  # (B, T_mel, num_mels)
    mels_after: Tensor  # (B, T_mel, num_mels)
    stop_logits: Tensor  # (B, T_mel)
    alignments: Tensor  # (B, T_mel, T_text)


class InferenceOutput(NamedTuple):
    """The result of free running; frames past a clip's end are 0 in mels."""

    mels: Tensor  # (B, T_mel, num_mels), after the postnet
    mel_lengths: Tensor  # (B,) int64, including the frame with the stop token
    stop_logits: Tensor  # (B, T_mel)
    alignments: Tensor  # (B, T_mel, T_text)
    reached_limit: Tensor  # (B,) bool, True = no stop token came


class DecoderState(NamedTuple):
    """The tensors that one decoder step hands to the next."""

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
    """Turn lengths (B,) into a mask (B, max_length) bool, True = padding.

    Without max_length the mask is as wide as the longest item.
    """
    lengths = lengths.to(device or lengths.device, non_blocking=True)
    return torch.arange(max_length or int(lengths.max()), device=lengths.device) >= lengths[:, None]


def lstm_cell(x: Tensor, hidden: Tensor, cell: Tensor, lstm: nn.Module) -> tuple[Tensor, Tensor]:
    """Run one step of `lstm` on x (B, n_in); return the next hidden and cell (B, n_hidden).

    It is written out so that under autocast only the matrix products run in half precision. The
    cell is a sum over hundreds of frames and stays float32.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = lstm.parameters()
    gates = F.linear(x, weight_ih, bias_ih) + F.linear(hidden, weight_hh, bias_hh)
    i, f, g, o = gates.to(cell.dtype).chunk(4, dim=1)  # (B, n_hidden) each
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that also takes a batch of one clip of length one.

    A single value per channel has no variance, so it is normalised as in eval mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, T) over B and T."""
        if self.training and x.shape[0] * x.shape[2] == 1:
            statistics = self.running_mean, self.running_var
            return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class ConvNorm(nn.Sequential):
    """A convolution that keeps the length, then batch norm: (B, C_in, T) -> (B, C_out, T)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: str) -> None:
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain(gain))
        super().__init__(conv, BatchNorm(out_channels))


class Encoder(nn.Module):
    """Turns characters into encoder_outputs. Section 2.2, third paragraph."""

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
        """Encode tokens (B, T_text) as (B, T_text, encoder_embed_dim), 0 on padding."""
        pad = padding_mask[:, None, :]  # (B, 1, T_text)
        x = self.embedding(tokens).transpose(1, 2)  # (B, character_embed_dim, T_text)
        for conv in self.convolutions:
            # Padding is zero, like the convolution's own edges, so a clip gives the same numbers
            # alone and in a batch.
            x = F.relu(conv(x.masked_fill(pad, 0.0)))  # (B, encoder_embed_dim, T_text)
            x = F.dropout(x, self.dropout_p, self.training)
        order = padding_mask.sum(dim=1).argsort(stable=True)  # packing takes the longest first
        lengths = token_lengths.cpu().sort(descending=True).values
        x = x.transpose(1, 2).index_select(0, order)  # (B, T_text, encoder_embed_dim)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        # On a GPU autocast would run the LSTM in float16 even under bfloat16, where the loss is
        # not scaled, and most of its gradients would underflow.
        with torch.autocast(x.device.type, enabled=False):
            outputs, _ = self.lstm(packed.to(self.lstm.weight_hh_l0.dtype))
        outputs, _ = nn.utils.rnn.pad_packed_sequence(outputs, True, total_length=tokens.shape[1])
        return outputs.index_select(0, order.argsort())  # (B, T_text, encoder_embed_dim)


class Prenet(nn.Module):
    """The bottleneck on the previous frame. Section 2.2.

    Its dropout stays on when speaking. Without it the decoder would copy the previous frame
    instead of attending to the text.
    """

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.dropout_p = config.decoder_prenet_dropout_p
        widths = [config.num_mels] + [config.decoder_prenet_dim] * config.decoder_prenet_depth
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in pairwise(widths))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (..., num_mels) to (..., decoder_prenet_dim)."""
        for layer in self.layers:
            frames = F.dropout(F.relu(layer(frames)), self.dropout_p, training=True)
        return frames


class LocationSensitiveAttention(nn.Module):
    """Finds the characters of the next frame. Section 2.2; Chorowski et al. 2015, 1506.07503.

    f = location_conv([alignment, cumulative_alignment])
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
        self,
        query: Tensor,
        keys: Tensor,
        padding_mask: Tensor,
        alignment: Tensor,
        cumulative_alignment: Tensor,
    ) -> Tensor:
        """Compute the alignment of one frame, (B, T_text).

        Args:
            query: (B, decoder_rnn_embed_dim), the attention LSTM's output.
            keys: (B, T_text, attention_dim), key_layer(encoder_outputs).
            padding_mask: (B, T_text) bool, True = padding.
            alignment: (B, T_text), of the previous frame.
            cumulative_alignment: (B, T_text), the sum over all previous frames.
        """
        locations = torch.stack([alignment, cumulative_alignment], dim=1)  # (B, 2, T_text)
        f = self.location_conv(locations).transpose(1, 2)  # (B, T_text, n_filters)
        hidden = torch.tanh(self.query_layer(query)[:, None] + keys + self.location_layer(f))
        energies = self.v(hidden).squeeze(2).to(alignment.dtype)  # (B, T_text)
        return F.softmax(energies.masked_fill(padding_mask, -torch.inf), dim=1)  # (B, T_text)


class Decoder(nn.Module):
    """Predicts mel frames one after the other from the text that the attention points at.

    The paper predicts one frame a step. With frames_per_step = r it is r frames, as in Tacotron
    (Wang et al. 2017, 1703.10135, section 3.4): there are r times fewer steps, and the frame that
    each starts from is r frames old, so that the decoder has to read the text.
    """

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.config = config
        text_dim, rnn_dim = config.encoder_embed_dim, config.decoder_rnn_embed_dim
        self.prenet = Prenet(config)
        self.attention_rnn = nn.LSTMCell(config.decoder_prenet_dim + text_dim, rnn_dim)
        self.attention = LocationSensitiveAttention(config)
        self.decoder_rnn = nn.LSTM(rnn_dim + text_dim, rnn_dim)
        n_frames = config.frames_per_step
        self.mel_projection = nn.Linear(rnn_dim + text_dim, n_frames * config.num_mels)
        self.stop_projection = nn.Linear(rnn_dim + text_dim, n_frames)
        nn.init.xavier_uniform_(self.mel_projection.weight)
        nn.init.xavier_uniform_(self.stop_projection.weight, gain=nn.init.calculate_gain("sigmoid"))

    def initial_state(self, encoder_outputs: Tensor) -> DecoderState:
        """Make the state before the first frame: zeros, float32 or wider even under autocast."""
        batch_size, n_text, text_dim = encoder_outputs.shape
        dtype = torch.promote_types(encoder_outputs.dtype, torch.float32)
        rnn, context, alignment = (
            encoder_outputs.new_zeros(batch_size, width, dtype=dtype)
            for width in (self.config.decoder_rnn_embed_dim, text_dim, n_text)
        )
        return DecoderState(rnn, rnn, rnn, rnn, context, alignment, alignment)

    def step(
        self,
        frame: Tensor,
        state: DecoderState,
        encoder_outputs: Tensor,
        keys: Tensor,
        padding_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, DecoderState]:
        """Predict the next r frames. Dropout is on the LSTMs' outputs, not on the states fed back.

        Args:
            frame: (B, num_mels), the last frame of the previous step; zeros for the first step.
            state: of the previous step; `initial_state` for the first step.
            encoder_outputs: (B, T_text, encoder_embed_dim).
            keys: (B, T_text, attention_dim), attention.key_layer(encoder_outputs).
            padding_mask: (B, T_text) bool, True = padding.

        Returns:
            frames (B, r, num_mels), stop_logits (B, r), alignment (B, T_text), state.
        """
        prenet_output = self.prenet(frame)  # (B, decoder_prenet_dim)
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
        frames = self.mel_projection(output).unflatten(1, (-1, self.config.num_mels))
        stop_logits = self.stop_projection(output)  # (B, r)
        state = DecoderState(
            attention_hidden,
            attention_cell,
            decoder_hidden,
            decoder_cell,
            context,
            alignment,
            state.cumulative_alignment + alignment,
        )
        return frames, stop_logits, alignment, state

    def forward(
        self, encoder_outputs: Tensor, padding_mask: Tensor, mels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run teacher forcing: predict frame t from the true frame t - 1.

        Args:
            encoder_outputs, padding_mask: as for `step`.
            mels: (B, T_mel, num_mels), the true frames.

        Returns:
            mels_before (B, T_mel, num_mels), stop_logits (B, T_mel), alignments (B, T_mel, T_text).
        """
        keys = self.attention.key_layer(encoder_outputs)
        state = self.initial_state(encoder_outputs)
        outputs = []
        for frame in self.previous_frames(mels).unbind(dim=1):
            *output, state = self.step(frame, state, encoder_outputs, keys, padding_mask)
            outputs.append(output)
        frames, stop_logits, alignments = zip(*outputs, strict=True)
        return self.per_frame(
            torch.cat(frames, dim=1),
            torch.cat(stop_logits, dim=1),
            torch.stack(alignments, dim=1),
            mels.shape[1],
        )

    def previous_frames(self, mels: Tensor) -> Tensor:
        """Pick the true frame before each step, zeros for the first: (B, n_steps, num_mels)."""
        r, n_frames = self.config.frames_per_step, mels.shape[1]
        return F.pad(mels[:, r - 1 :: r], (0, 0, 1, 0))[:, : -(-n_frames // r)]

    def per_frame(
        self, frames: Tensor, stop_logits: Tensor, alignments: Tensor, n_frames: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Repeat each step's alignment for its frames, and cut all three to n_frames."""
        alignments = alignments.repeat_interleave(self.config.frames_per_step, dim=1)
        return frames[:, :n_frames], stop_logits[:, :n_frames], alignments[:, :n_frames]

    def infer(
        self,
        encoder_outputs: Tensor,
        padding_mask: Tensor,
        max_decoder_steps: int,
        stop_threshold: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run freely to the end, see `run_freely`; return the same tensors as `forward`."""
        parts = self.run_freely(encoder_outputs, padding_mask, max_decoder_steps, stop_threshold)
        return tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))

    def run_freely(
        self,
        encoder_outputs: Tensor,
        padding_mask: Tensor,
        max_decoder_steps: int,
        stop_threshold: float,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Predict frames from predicted frames; yield the tensors of `forward`, some at a time.

        It ends once the stop token of every clip has been above stop_threshold, and at the latest
        after max_decoder_steps frames.
        """
        keys = self.attention.key_layer(encoder_outputs)
        state = self.initial_state(encoder_outputs)
        frame = state.context.new_zeros(len(padding_mask), self.config.num_mels)
        stopped = torch.zeros_like(padding_mask[:, 0])  # (B,)
        for n_frames in range(0, max_decoder_steps, self.config.frames_per_step):
            frames, stop_logits, alignment, state = self.step(
                frame, state, encoder_outputs, keys, padding_mask
            )
            yield self.per_frame(
                frames, stop_logits, alignment[:, None], max_decoder_steps - n_frames
            )
            frame = frames[:, -1]
            stopped |= (torch.sigmoid(stop_logits) > stop_threshold).any(dim=1)
            if stopped.all():
                break


class PostNet(nn.Module):
    """Convolutions that correct the finished frames: their output is added. Section 2.2."""

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.dropout_p = config.decoder_postnet_dropout_p
        n_hidden, size = config.decoder_postnet_num_convs - 1, config.decoder_postnet_kernel_size
        widths = [config.num_mels] + [config.decoder_postnet_n_filters] * n_hidden
        self.convolutions = nn.ModuleList(ConvNorm(n, m, size, "tanh") for n, m in pairwise(widths))
        self.convolutions.append(ConvNorm(widths[-1], config.num_mels, size, "linear"))

    def forward(self, mels: Tensor, padding_mask: Tensor) -> Tensor:
        """Compute the correction of mels (B, T_mel, num_mels), 0 on padding."""
        pad = padding_mask[:, None, :]  # (B, 1, T_mel)
        x = mels.transpose(1, 2)  # (B, num_mels, T_mel)
        for conv in self.convolutions[:-1]:
            x = torch.tanh(conv(x.masked_fill(pad, 0.0)))  # (B, n_filters, T_mel)
            x = F.dropout(x, self.dropout_p, self.training)
        x = F.dropout(self.convolutions[-1](x.masked_fill(pad, 0.0)), self.dropout_p, self.training)
        return x.masked_fill(pad, 0.0).transpose(1, 2)


class Tacotron2(nn.Module, PyTorchModelHubMixin):
    """The whole model. `from_pretrained(dir)` reads what `save_pretrained(dir)` wrote."""

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
        """Run teacher forcing on tokens (B, T_text), mels (B, T_mel, num_mels) and lengths (B,)."""
        text_mask = build_padding_mask(token_lengths, tokens.shape[1], tokens.device)
        mel_mask = build_padding_mask(mel_lengths, mels.shape[1], mels.device)
        encoder_outputs = self.encoder(tokens, token_lengths, text_mask)
        mels_before, stop_logits, alignments = self.decoder(encoder_outputs, text_mask, mels)
        mels_before = mels_before.masked_fill(mel_mask[:, :, None], 0.0)
        mels_after = mels_before + self.postnet(mels_before, mel_mask)
        return Tacotron2Output(mels_before, mels_after, stop_logits, alignments)

    @torch.no_grad()
    def infer(
        self,
        tokens: Tensor,
        token_lengths: Tensor | None = None,
        max_decoder_steps: int = 2000,
        stop_threshold: float = 0.5,
    ) -> InferenceOutput:
        """Speak tokens (B, T_text), each text to its own end.

        A text ends at the first stop token above stop_threshold, or after max_decoder_steps
        frames. token_lengths (B,) can be left out when no text is padded.
        """
        if max_decoder_steps < 1:
            raise ValueError(f"max_decoder_steps must be at least 1, found {max_decoder_steps}")
        if token_lengths is None:
            token_lengths = torch.full(tokens.shape[:1], tokens.shape[1])
        text_mask = build_padding_mask(token_lengths, tokens.shape[1], tokens.device)
        encoder_outputs = self.encoder(tokens, token_lengths, text_mask)
        mels_before, stop_logits, alignments = self.decoder.infer(
            encoder_outputs, text_mask, max_decoder_steps, stop_threshold
        )
        stops = torch.sigmoid(stop_logits) > stop_threshold  # (B, T_mel)
        reached_limit = ~stops.any(dim=1)  # (B,)
        lengths = (stops.int().argmax(dim=1) + 1).masked_fill(reached_limit, stops.shape[1])
        mel_mask = build_padding_mask(lengths)  # (B, T_mel); a step may go on after the last end
        mels_before, stop_logits, alignments = (
            x[:, : mel_mask.shape[1]] for x in (mels_before, stop_logits, alignments)
        )
        mels_before = mels_before.masked_fill(mel_mask[:, :, None], 0.0)
        mels = mels_before + self.postnet(mels_before, mel_mask)
        return InferenceOutput(mels, lengths, stop_logits, alignments, reached_limit)


def guided_attention_penalty(
    token_lengths: Tensor, mel_lengths: Tensor, sigma: float, alignments: Tensor
) -> Tensor:
    """Compute W of Tachibana et al. 2017, arXiv 1710.08969, eq. 6, (B, T_mel, T_text).

    It is 0 on the diagonal and rises towards 1 off it. Lengths (B,) and alignments (B, T_mel,
    T_text) are on one device.
    """
    t, n = (torch.arange(size, device=alignments.device) for size in alignments.shape[1:])
    t, n = t / mel_lengths[:, None], n / token_lengths[:, None]  # (B, T_mel), (B, T_text)
    return 1.0 - torch.exp(-((n[:, None, :] - t[:, :, None]) ** 2) / (2.0 * sigma**2))


def mel_loss(predicted: Tensor, mels: Tensor, l1_weight: float) -> Tensor:
    """Compute each frame's squared error plus l1_weight times its absolute error, (B, T_mel).

    The paper has the squared error alone, whose best answer is the mean of all mels that would fit.
    That of the absolute error is their median, which is less blurred.
    """
    error = predicted.float() - mels  # (B, T_mel, num_mels)
    return error.square().mean(dim=2) + l1_weight * error.abs().mean(dim=2)


def tacotron2_loss(
    output: Tacotron2Output,
    mels: Tensor,
    token_lengths: Tensor,
    mel_lengths: Tensor,
    stop_targets: Tensor,
    guided_attention_weight: float = 0.0,
    guided_attention_sigma: float = 0.2,
    n_frames: Tensor | None = None,
    stop_positive_weight: float = 1.0,
    l1_weight: float = 0.0,
    stop_tail_frames: int = 0,
) -> dict[str, Tensor]:
    """Compute the losses by name, each a mean over valid frames, and their sum, `loss`.

    Args:
        mels: (B, T_mel, num_mels), the true frames.
        stop_targets: (B, T_mel), 1 from the last valid frame on, 0 before it.
        guided_attention_weight: factor of the guided attention loss; 0 leaves it out.
        guided_attention_sigma: width of the diagonal, as a share of the clip.
        n_frames: what to divide by instead of this batch's valid frames: those of the whole
            optimizer step, over the number of processes, whose gradients are averaged.
        stop_positive_weight: factor of the stop loss on the frames whose target is 1.
        l1_weight: factor of the absolute error in both mel losses; 0, the paper's, leaves it out.
        stop_tail_frames: how many frames of padding after each clip the stop loss counts too. A
            voice that misses its last frame learns from them that the sentence is over.
    """
    token_lengths = token_lengths.to(mels.device, non_blocking=True)
    mel_lengths = mel_lengths.to(mels.device, non_blocking=True)
    padding_mask = build_padding_mask(mel_lengths, mels.shape[1])  # (B, T_mel)
    n_frames = mel_lengths.sum() if n_frames is None else n_frames
    stop_logits = output.stop_logits.float()
    stop = F.binary_cross_entropy_with_logits(stop_logits, stop_targets, reduction="none")
    per_frame = {  # (B, T_mel) each
        "mel_before_loss": mel_loss(output.mels_before, mels, l1_weight),
        "mel_after_loss": mel_loss(output.mels_after, mels, l1_weight),
        "stop_loss": stop * (1.0 + (stop_positive_weight - 1.0) * stop_targets),
        "guided_attention_loss": torch.zeros_like(stop),
    }
    if guided_attention_weight:
        penalty = guided_attention_penalty(
            token_lengths, mel_lengths, guided_attention_sigma, output.alignments
        )
        off_diagonal = (output.alignments.float() * penalty).sum(dim=2)
        per_frame["guided_attention_loss"] = guided_attention_weight * off_diagonal
    ignored = dict.fromkeys(per_frame, padding_mask)
    ignored["stop_loss"] = build_padding_mask(mel_lengths + stop_tail_frames, mels.shape[1])
    losses = {k: v.masked_fill(ignored[k], 0.0).sum() / n_frames for k, v in per_frame.items()}
    return losses | {"loss": sum(losses.values())}
