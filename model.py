"""Tacotron 2: characters in, scaled mel spectrogram and alignment out.

Shen et al. 2018, "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions",
arXiv 1712.05884, section 2.2. Read it beside this file:

    Encoder                     embedding -> 3 x (conv, batch norm, ReLU, dropout) -> BiLSTM
    LocationSensitiveAttention  which characters the next frame is about
    Decoder                     prenet -> attention LSTM -> attention -> decoder LSTM -> frame, stop
    PostNet                     5 convs that repair the decoder's frames
    Tacotron2                   the whole; `forward` trains by teacher forcing, `infer` speaks

Training does not run the decoder frame by frame: only the attention LSTM and the attention need
the frame before, and fast_decoder.py runs those two; all the rest is one call over all frames.
`--no-fast_decoder` runs the same loop in plain PyTorch, to the same numbers.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fast_decoder import attention_loop, fast_lstm
from fast_steps import CellFunction, capture, repeated_attention, repeated_cell

# The largest size by the ending of its field's name, and the largest model: 4 GB in float32. Beyond
# them, memory would run out with no word about the flag or the config.json that is to blame.
MAX_SIZES = {
    "_kernel_size": 1023,
    **dict.fromkeys(("_convolutions", "_convs", "_depth"), 64),
    **dict.fromkeys(("_dim", "_filters", "_mels", "vocab_size"), 16384),
}
MAX_PARAMETERS = 10**9
# Free running, between looks at the stop token. Each look waits for the device, and the more steps
# there are to a CUDA graph, the longer its recording takes.
STEPS_AT_ONCE = {"cuda": 8}
CUDNN_WITH_BFLOAT16 = 91300  # 9.13, the first whose LSTMs take bfloat16, on GPUs from Ampere on
# cuDNN needs all weights of an LSTM in one piece of memory. Weights cast to bfloat16 are not: torch
# copies them there at each call (24 MB in all) and warns that it does.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
# query, alignment, cumulative_alignment -> context, alignment
AttentionFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Tacotron2Config:
    """Model sizes; the defaults are the paper's. Raises ValueError naming the flag that is off."""

    vocab_size: Annotated[int, "number of symbols, padding included"] = 40
    pad_token_id: Annotated[int, "token id of padding"] = 0
    num_mels: Annotated[int, "mel bins"] = 80
    character_embed_dim: Annotated[int, "size of a character's embedding"] = 512
    encoder_kernel_size: Annotated[int, "width of the encoder's convolutions, odd"] = 5
    encoder_n_convolutions: Annotated[int, "convolutions in the encoder"] = 3
    encoder_embed_dim: Annotated[int, "size of encoder_outputs, both directions, even"] = 512
    encoder_dropout_p: Annotated[float, "dropout after each encoder convolution"] = 0.5
    decoder_rnn_embed_dim: Annotated[int, "size of both decoder LSTMs"] = 1024
    decoder_dropout_p: Annotated[float, "dropout on the decoder LSTM's output"] = 0.1
    decoder_prenet_dim: Annotated[int, "size of the prenet's layers"] = 256
    decoder_prenet_depth: Annotated[int, "number of prenet layers"] = 2
    decoder_prenet_dropout_p: Annotated[float, "prenet dropout, also at inference"] = 0.5
    decoder_postnet_num_convs: Annotated[int, "convolutions in the postnet"] = 5
    decoder_postnet_n_filters: Annotated[int, "channels of the postnet's convolutions"] = 512
    decoder_postnet_kernel_size: Annotated[int, "width of the postnet's convolutions, odd"] = 5
    decoder_postnet_dropout_p: Annotated[float, "dropout after each postnet convolution"] = 0.5
    attention_dim: Annotated[int, "size of the attention's hidden layer"] = 128
    attention_dropout_p: Annotated[float, "dropout on the attention LSTM's output"] = 0.1
    attention_location_n_filters: Annotated[int, "channels of the location convolution"] = 32
    attention_location_kernel_size: Annotated[int, "width of the location convolution, odd"] = 31
    fast_decoder: Annotated[bool, "the fast teacher-forced loop; --no-fast_decoder for plain"] = (
        True
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_p") and not 0 <= value < 1:
                raise ValueError(f"--{name} must be in [0, 1), found {value}")
            if name.endswith("kernel_size") and (value < 1 or value % 2 == 0):
                raise ValueError(f"--{name} must be odd and positive, found {value}")
            most = next((MAX_SIZES[end] for end in MAX_SIZES if name.endswith(end)), None)
            if most and not 1 <= value <= most:
                bounds = "at least 1" if value < 1 else f"at most {most}"
                raise ValueError(f"--{name} must be {bounds}, found {value}")
        if self.encoder_embed_dim % 2:
            raise ValueError(f"--encoder_embed_dim must be even, found {self.encoder_embed_dim}")
        if self.decoder_postnet_num_convs < 2:
            raise ValueError(
                f"--decoder_postnet_num_convs must be at least 2, "
                f"found {self.decoder_postnet_num_convs}"
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id must be in [0, vocab_size), found {self.pad_token_id} "
                f"of {self.vocab_size}"
            )
        if self.n_parameters > MAX_PARAMETERS:
            raise ValueError(
                f"the sizes make a model of {self.n_parameters:,} parameters, at most "
                f"{MAX_PARAMETERS:,} can be; the defaults have {Tacotron2Config().n_parameters:,}"
            )

    @property
    def n_parameters(self) -> int:
        """Of a model of these sizes, counted without building it."""

        def convolutions(*widths: int, kernel_size: int) -> int:
            # Three numbers a channel: the bias, and the weight and bias of batch norm.
            return sum(a * b * kernel_size + 3 * b for a, b in pairwise(widths))

        def lstm(n_in: int, n_hidden: int) -> int:
            return 4 * n_hidden * (n_in + n_hidden + 2)

        text, rnn = self.encoder_embed_dim, self.decoder_rnn_embed_dim
        prenet, attention = self.decoder_prenet_dim, self.attention_dim
        filters, kernel_size = (
            self.attention_location_n_filters,
            self.attention_location_kernel_size,
        )
        return (
            self.vocab_size * self.character_embed_dim
            + convolutions(
                self.character_embed_dim,
                *[text] * self.encoder_n_convolutions,
                kernel_size=self.encoder_kernel_size,
            )
            + 2 * lstm(text, text // 2)
            + self.num_mels * prenet
            + (self.decoder_prenet_depth - 1) * prenet**2
            + lstm(prenet + text, rnn)
            + (rnn + text + filters + 1) * attention
            + 2 * filters * kernel_size
            + lstm(rnn + text, rnn)
            + (rnn + text + 1) * (self.num_mels + 1)
            + convolutions(
                self.num_mels,
                *[self.decoder_postnet_n_filters] * (self.decoder_postnet_num_convs - 1),
                self.num_mels,
                kernel_size=self.decoder_postnet_kernel_size,
            )
        )


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
    """Everything one decoder step hands to the next."""

    attention_hidden: Tensor  # (B, decoder_rnn_embed_dim)
    attention_cell: Tensor  # (B, decoder_rnn_embed_dim)
    decoder_hidden: Tensor  # (B, decoder_rnn_embed_dim)
    decoder_cell: Tensor  # (B, decoder_rnn_embed_dim)
    context: Tensor  # (B, encoder_embed_dim)
    alignment: Tensor  # (B, T_text)
    cumulative_alignment: Tensor  # (B, T_text)


class EncodedText(NamedTuple):
    """What every decoder step reads of the text."""

    encoder_outputs: Tensor  # (B, T_text, encoder_embed_dim)
    attend: AttentionFunction
    attention_cell: CellFunction  # the LSTMs, made ready for many steps
    decoder_cell: CellFunction
    projection: tuple[Tensor, Tensor]  # weight and bias of frame and stop logit together


def build_padding_mask(lengths: Tensor, max_length: int | None = None) -> Tensor:
    """Mask of the positions past each length.

    Args:
        lengths: (B,) int64.
        max_length: width of the mask; the longest length when None.

    Returns:
        (B, max_length) bool, True = padding.
    """
    if max_length is None:
        max_length = int(lengths.max())
    return torch.arange(max_length, device=lengths.device) >= lengths[:, None]


def dropout_mask(like: Tensor, shape: torch.Size, p: float) -> Tensor:
    """What dropout multiplies by: 0 with probability p, else 1 / (1 - p)."""
    if like.device.type == "cpu":  # bernoulli_ draws number by number there: 3 times as slow
        return torch.rand(shape).ge_(p).mul_(1.0 / (1.0 - p)).to(like.dtype)
    return like.new_empty(shape).bernoulli_(1.0 - p).mul_(1.0 / (1.0 - p))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout, with the mask above on a CPU."""
    if x.device.type == "cpu" and training and p > 0.0:
        return x * dropout_mask(x, x.shape, p)
    return F.dropout(x, p, training)


def cudnn_has_bfloat16(device: torch.device) -> bool:
    """Whether cuDNN runs LSTMs in bfloat16 on this GPU; AMD's MIOpen does not."""
    if torch.version.hip or (torch.backends.cudnn.version() or 0) < CUDNN_WITH_BFLOAT16:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def run_lstm(inputs: Tensor | PackedSequence, lstm: nn.LSTM) -> Tensor | PackedSequence:
    """`lstm(inputs)[0]`, but never in float16 where autocast's type is bfloat16.

    On a GPU, torch's autocast runs an LSTM in float16 whatever its type is, and without the loss
    scaling of fp16 training most of the LSTM's gradients are too small for float16. So under
    bfloat16 the LSTM runs outside autocast: in bfloat16 where cuDNN has that, which adds up in
    float32, else in float32.
    """
    device = (inputs.data if isinstance(inputs, PackedSequence) else inputs).device
    under_autocast = device.type == "cuda" and torch.is_autocast_enabled("cuda")
    if not (under_autocast and torch.get_autocast_dtype("cuda") == torch.bfloat16):
        return lstm(inputs)[0]
    with torch.autocast("cuda", enabled=False):
        dtype = torch.bfloat16 if cudnn_has_bfloat16(device) else torch.float32
        return lstm_in_dtype(inputs, lstm, dtype)


def lstm_in_dtype(
    inputs: Tensor | PackedSequence, lstm: nn.LSTM, dtype: torch.dtype
) -> Tensor | PackedSequence:
    """`lstm(inputs)[0]`, with inputs and weights cast to dtype; gradients reach the originals."""
    inputs = inputs.to(dtype)
    weights = [weight.to(dtype) for weight in lstm.parameters()]
    options = (lstm.bias, lstm.num_layers, lstm.dropout, lstm.training, lstm.bidirectional)
    n_states = lstm.num_layers * (2 if lstm.bidirectional else 1)
    if isinstance(inputs, PackedSequence):
        x, batch_sizes = inputs[:2]
        zeros = x.new_zeros(n_states, int(batch_sizes[0]), lstm.hidden_size)
        outputs = torch.lstm(x, batch_sizes, (zeros, zeros), weights, *options)[0]
        return inputs._replace(data=outputs)
    batch_size = inputs.shape[0 if lstm.batch_first else 1]
    zeros = inputs.new_zeros(n_states, batch_size, lstm.hidden_size)
    return torch.lstm(inputs, (zeros, zeros), weights, *options, lstm.batch_first)[0]


def lstm_cell(
    weights: tuple[Tensor, ...], x: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: x (B, n_in) -> hidden, cell (B, n_hidden)."""
    return torch.lstm_cell(x, (hidden, cell), *weights)


class ConvNorm(nn.Sequential):
    """Convolution that keeps the length, then batch norm: (B, C_in, T) -> (B, C_out, T)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: str) -> None:
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain(gain))
        super().__init__(conv, nn.BatchNorm1d(out_channels))


class Encoder(nn.Module):
    """Characters to encoder_outputs. Section 2.2, second paragraph."""

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.dropout_p = config.encoder_dropout_p
        self.embedding = nn.Embedding(
            config.vocab_size, config.character_embed_dim, padding_idx=config.pad_token_id
        )
        nn.init.xavier_uniform_(self.embedding.weight)
        with torch.no_grad():
            self.embedding.weight[config.pad_token_id].zero_()
        widths = [config.character_embed_dim] + [config.encoder_embed_dim] * (
            config.encoder_n_convolutions
        )
        self.convolutions = nn.ModuleList(
            ConvNorm(n_in, n_out, config.encoder_kernel_size, "relu")
            for n_in, n_out in pairwise(widths)
        )
        self.lstm = nn.LSTM(
            config.encoder_embed_dim,
            config.encoder_embed_dim // 2,
            batch_first=True,
            bidirectional=True,
        )

    def forward(self, tokens: Tensor, token_lengths: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, T_text) tokens -> (B, T_text, encoder_embed_dim), 0 on padding.

        `token_lengths` is best on the CPU, where packing needs it.
        """
        pad = padding_mask[:, None, :]  # (B, 1, T_text)
        x = self.embedding(tokens).transpose(1, 2)  # (B, character_embed_dim, T_text)
        for conv in self.convolutions:
            # Zero, as the convolution's own edge padding is: alone and in a batch are then equal.
            x = F.relu(conv(x.masked_fill(pad, 0.0)))  # (B, encoder_embed_dim, T_text)
            x = dropout(x, self.dropout_p, self.training)
        # Longest first, which packing would see to itself, but wait twice for the GPU.
        order = padding_mask.sum(dim=1).argsort(stable=True)
        packed = nn.utils.rnn.pack_padded_sequence(
            x.transpose(1, 2).index_select(0, order),
            token_lengths.cpu().sort(descending=True).values,
            batch_first=True,
        )
        outputs, _ = nn.utils.rnn.pad_packed_sequence(
            run_lstm(packed, self.lstm), batch_first=True, total_length=tokens.shape[1]
        )
        return outputs.index_select(0, order.argsort())  # (B, T_text, encoder_embed_dim)


class Prenet(nn.Module):
    """The bottleneck on the frame before, with dropout that is never off. Section 2.2.

    Without it the decoder copies the frame before instead of attending to the text.
    """

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.dropout_p = config.decoder_prenet_dropout_p
        widths = [config.num_mels] + [config.decoder_prenet_dim] * config.decoder_prenet_depth
        self.layers = nn.ModuleList(
            nn.Linear(n_in, n_out, bias=False) for n_in, n_out in pairwise(widths)
        )
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, frames: Tensor) -> Tensor:
        """(..., num_mels) -> (..., decoder_prenet_dim)."""
        for layer in self.layers:
            frames = dropout(F.relu(layer(frames)), self.dropout_p, training=True)
        return frames


class LocationSensitiveAttention(nn.Module):
    """Chorowski et al. 2015, arXiv 1506.07503, with the paper's cumulative alignment.

    f = location_conv([alignment, cumulative_alignment])
    energies = v^T tanh(W query + V encoder_outputs + U f)
    alignment = softmax(energies),  context = alignment @ encoder_outputs
    """

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        dim, n_filters = config.attention_dim, config.attention_location_n_filters
        kernel_size = config.attention_location_kernel_size
        self.query_layer = nn.Linear(config.decoder_rnn_embed_dim, dim, bias=False)
        self.key_layer = nn.Linear(config.encoder_embed_dim, dim, bias=False)
        self.location_conv = nn.Conv1d(
            2, n_filters, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.location_layer = nn.Linear(n_filters, dim, bias=False)
        self.v = nn.Linear(dim, 1, bias=False)
        for layer in (self.query_layer, self.key_layer, self.location_layer):
            nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))
        nn.init.xavier_uniform_(self.location_conv.weight)
        nn.init.xavier_uniform_(self.v.weight)

    def folded_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, U with the convolution before it, which has nothing in between, and v.

        (attention_dim, decoder_rnn_embed_dim), (attention_dim, 2, kernel_size), (attention_dim,).
        """
        location, conv = self.location_layer.weight, self.location_conv.weight
        folded = torch.einsum("af,fck->ack", location, conv)
        return self.query_layer.weight, folded, self.v.weight.squeeze(0)

    def forward(
        self,
        encoder_outputs: Tensor,
        keys: Tensor,
        padding_mask: Tensor,
        query: Tensor,
        alignment: Tensor,
        cumulative_alignment: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One step: query (B, decoder_rnn_embed_dim) -> context, alignment (B, T_text)."""
        locations = torch.stack([alignment, cumulative_alignment], dim=1)  # (B, 2, T_text)
        features = self.location_layer(self.location_conv(locations).transpose(1, 2))
        hidden = torch.tanh(self.query_layer(query)[:, None] + keys + features)
        energies = self.v(hidden).squeeze(2)  # (B, T_text)
        # Not in bfloat16 under autocast.
        energies = energies.to(torch.promote_types(energies.dtype, torch.float32))
        # The lowest number, not -inf: a row that is all padding stays finite.
        energies = energies.masked_fill(padding_mask, torch.finfo(energies.dtype).min)
        alignment = F.softmax(energies, dim=1)
        context = torch.bmm(alignment[:, None].to(encoder_outputs.dtype), encoder_outputs)
        return context.squeeze(1), alignment


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

    def forward(
        self, encoder_outputs: Tensor, padding_mask: Tensor, mels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher forcing: frame t is predicted from the true frames before t.

        Args:
            encoder_outputs: (B, T_text, encoder_embed_dim).
            padding_mask: (B, T_text), True = padding.
            mels: (B, T_mel, num_mels), the true frames.

        Returns:
            mels_before (B, T_mel, num_mels), stop_logits (B, T_mel), alignments
            (B, T_mel, T_text).
        """
        frames = F.pad(mels.transpose(0, 1), (0, 0, 0, 0, 1, -1))  # (T_mel, B, num_mels), go = 0
        prenet_outputs = self.prenet(frames)  # (T_mel, B, decoder_prenet_dim)
        drops = self._draw_dropout(prenet_outputs)  # (T_mel, B, decoder_rnn_embed_dim) or None
        loop = self._fast_loop if self.config.fast_decoder else self._plain_loop
        queries, contexts, alignments = loop(prenet_outputs, encoder_outputs, padding_mask, drops)

        # All that follows needs no frame before its own: one call over all frames.
        rnn_inputs = torch.cat([queries.to(contexts.dtype), contexts], dim=2)
        on_cpu = rnn_inputs.device.type == "cpu"
        lstm = fast_lstm if self.config.fast_decoder and on_cpu else run_lstm
        rnn_outputs = lstm(rnn_inputs, self.decoder_rnn)
        rnn_outputs = dropout(rnn_outputs, self.config.decoder_dropout_p, self.training)
        features = torch.cat([rnn_outputs, contexts.to(rnn_outputs.dtype)], dim=2)
        outputs = F.linear(features, *self.joint_projection()).transpose(0, 1)
        return outputs[..., :-1], outputs[..., -1], alignments.transpose(0, 1)

    def joint_projection(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of both projections as one, (num_mels + 1) rows.

        A product with one column costs as much as one with 80, and its gradient does too.
        """
        projections = (self.mel_projection, self.stop_projection)
        weight = torch.cat([projection.weight for projection in projections])
        return weight, torch.cat([projection.bias for projection in projections])

    def _draw_dropout(self, prenet_outputs: Tensor) -> Tensor | None:
        """Dropout of the attention LSTM's outputs, for all frames at once."""
        if not (self.training and self.config.attention_dropout_p):
            return None
        shape = (*prenet_outputs.shape[:2], self.config.decoder_rnn_embed_dim)
        return dropout_mask(prenet_outputs, shape, self.config.attention_dropout_p)

    def _fast_loop(
        self,
        prenet_outputs: Tensor,
        encoder_outputs: Tensor,
        padding_mask: Tensor,
        drops: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return attention_loop(
            prenet_outputs,
            encoder_outputs,
            self.attention.key_layer(encoder_outputs),
            padding_mask,
            drops,
            self.attention_rnn,
            *self.attention.folded_weights(),
        )

    def _plain_loop(
        self,
        prenet_outputs: Tensor,
        encoder_outputs: Tensor,
        padding_mask: Tensor,
        drops: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        text = self.encode_text(encoder_outputs, padding_mask)
        state = self.initial_state(text)
        queries, contexts, alignments = [], [], []
        for t, prenet_output in enumerate(prenet_outputs.unbind()):
            query, state = self.attention_step(
                prenet_output, state, text, None if drops is None else drops[t]
            )
            queries.append(query)
            contexts.append(state.context)
            alignments.append(state.alignment)
        return torch.stack(queries), torch.stack(contexts), torch.stack(alignments)

    def encode_text(self, encoder_outputs: Tensor, padding_mask: Tensor) -> EncodedText:
        """What `step` needs of a text, computed once."""
        first, second = self.attention_rnn, self.decoder_rnn
        cells = (
            (first.weight_ih, first.weight_hh, first.bias_ih, first.bias_hh),
            (second.weight_ih_l0, second.weight_hh_l0, second.bias_ih_l0, second.bias_hh_l0),
        )
        keys = self.attention.key_layer(encoder_outputs)
        if self.config.fast_decoder and not torch.is_grad_enabled():
            attend = repeated_attention(
                encoder_outputs, keys, padding_mask, *self.attention.folded_weights()
            )
            attention_cell, decoder_cell = (repeated_cell(*weights) for weights in cells)
        else:
            attend = partial(self.attention, encoder_outputs, keys, padding_mask)
            attention_cell, decoder_cell = (partial(lstm_cell, weights) for weights in cells)
        projection = self.joint_projection()
        return EncodedText(encoder_outputs, attend, attention_cell, decoder_cell, projection)

    def initial_state(self, text: EncodedText) -> DecoderState:
        """All zeros."""
        batch_size, n_text, text_dim = text.encoder_outputs.shape
        # Also under autocast: cells and alignments add up over hundreds of frames.
        dtype = torch.promote_types(text.encoder_outputs.dtype, torch.float32)

        def zeros(width: int) -> Tensor:
            return text.encoder_outputs.new_zeros(batch_size, width, dtype=dtype)

        hidden = zeros(self.config.decoder_rnn_embed_dim)
        context, alignment = zeros(text_dim), zeros(n_text)
        return DecoderState(hidden, hidden, hidden, hidden, context, alignment, alignment)

    def attention_step(
        self,
        prenet_output: Tensor,
        state: DecoderState,
        text: EncodedText,
        drop: Tensor | None = None,
    ) -> tuple[Tensor, DecoderState]:
        """Attention LSTM and attention of one frame; returns the query and the state after it.

        Dropout falls on the output, not on the state that is fed back.
        """
        hidden, cell = text.attention_cell(
            torch.cat([prenet_output, state.context.to(prenet_output.dtype)], dim=1),
            state.attention_hidden,
            state.attention_cell,
        )
        query = hidden if drop is None else hidden * drop
        context, alignment = text.attend(query, state.alignment, state.cumulative_alignment)
        state = state._replace(
            attention_hidden=hidden,
            attention_cell=cell,
            context=context,
            alignment=alignment,
            cumulative_alignment=state.cumulative_alignment + alignment,
        )
        return query, state

    def step(
        self, frame: Tensor, state: DecoderState, text: EncodedText
    ) -> tuple[Tensor, Tensor, Tensor, DecoderState]:
        """One frame of free running.

        Args:
            frame: (B, num_mels), the frame before; zeros to begin.
            state: what the step before returned, or `initial_state(text)`.
            text: the encoded text.

        Returns:
            frame (B, num_mels), stop_logit (B,), alignment (B, T_text), state.
        """
        query, state = self.attention_step(self.prenet(frame), state, text)
        rnn_input = torch.cat([query, state.context.to(query.dtype)], dim=1)
        hidden, cell = text.decoder_cell(rnn_input, state.decoder_hidden, state.decoder_cell)
        features = torch.cat([hidden, state.context.to(hidden.dtype)], dim=1)
        state = state._replace(decoder_hidden=hidden, decoder_cell=cell)
        outputs = F.linear(features, *text.projection)  # (B, num_mels + 1)
        return outputs[:, :-1], outputs[:, -1], state.alignment, state

    def steps(
        self, text: EncodedText, n_steps: int, carry: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        """n_steps of free running, without a look at the stop token.

        Args:
            carry: the frame before and the state, (frame, *state).

        Returns:
            (frames (B, n_steps, num_mels), stop_logits (B, n_steps), alignments
            (B, n_steps, T_text)) and the next carry.
        """
        frame, state = carry[0], DecoderState(*carry[1:])
        outputs = []
        for _ in range(n_steps):
            frame, stop_logit, alignment, state = self.step(frame, state, text)
            outputs.append((frame, stop_logit, alignment))
        frames, stop_logits, alignments = (torch.stack(x, 1) for x in zip(*outputs, strict=True))
        return (frames, stop_logits, alignments), (frame, *state)


class PostNet(nn.Module):
    """Five convolutions over the finished frames; their output is added to them. Section 2.2."""

    def __init__(self, config: Tacotron2Config) -> None:
        super().__init__()
        self.dropout_p = config.decoder_postnet_dropout_p
        n_hidden = config.decoder_postnet_num_convs - 1
        widths = [config.num_mels] + [config.decoder_postnet_n_filters] * n_hidden
        kernel_size = config.decoder_postnet_kernel_size
        self.convolutions = nn.ModuleList(
            ConvNorm(n_in, n_out, kernel_size, "tanh") for n_in, n_out in pairwise(widths)
        )
        self.convolutions.append(ConvNorm(widths[-1], config.num_mels, kernel_size, "linear"))

    def forward(self, mels: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, T_mel, num_mels) -> the correction, same shape."""
        pad = padding_mask[:, None, :]  # (B, 1, T_mel)
        x = mels.transpose(1, 2)  # (B, num_mels, T_mel)
        for conv in self.convolutions[:-1]:
            x = torch.tanh(conv(x.masked_fill(pad, 0.0)))  # (B, n_filters, T_mel)
            x = dropout(x, self.dropout_p, self.training)
        x = dropout(self.convolutions[-1](x.masked_fill(pad, 0.0)), self.dropout_p, self.training)
        return x.transpose(1, 2)


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
        # The mixin's own default lets missing weights pass in silence.
        return super()._from_pretrained(strict=strict, **kwargs)

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, mels: Tensor, mel_lengths: Tensor
    ) -> Tacotron2Output:
        """Teacher forcing.

        Args:
            tokens: (B, T_text) int64, padded with pad_token_id.
            token_lengths: (B,) int64; on the CPU it saves a wait for the GPU.
            mels: (B, T_mel, num_mels), the true frames.
            mel_lengths: (B,) int64.
        """
        text_mask, mel_mask = (
            build_padding_mask(lengths.to(x.device, non_blocking=True), x.shape[1])
            for lengths, x in ((token_lengths, tokens), (mel_lengths, mels))
        )
        encoder_outputs = self.encoder(tokens, token_lengths, text_mask)
        mels_before, stop_logits, alignments = self.decoder(encoder_outputs, text_mask, mels)
        mels_before = mels_before.masked_fill(mel_mask[:, :, None], 0.0)
        mels_after = mels_before + self.postnet(mels_before, mel_mask)
        mels_after = mels_after.masked_fill(mel_mask[:, :, None], 0.0)
        return Tacotron2Output(mels_before, mels_after, stop_logits, alignments)

    @torch.no_grad()
    def infer(
        self,
        tokens: Tensor,
        token_lengths: Tensor | None = None,
        max_decoder_steps: int = 2000,
        stop_threshold: float = 0.5,
    ) -> InferenceOutput:
        """Free running, each item to its own end.

        Args:
            tokens: (B, T_text) int64.
            token_lengths: (B,) int64; None when no item is padded.
            max_decoder_steps: frames after which an item that never says stop is cut.
            stop_threshold: probability of the stop token that ends an item.

        Raises:
            ValueError: when max_decoder_steps < 1.
        """
        if max_decoder_steps < 1:
            raise ValueError(f"max_decoder_steps must be at least 1, found {max_decoder_steps}")
        batch_size, n_text = tokens.shape
        if token_lengths is None:
            token_lengths = torch.full((batch_size,), n_text)
        padding_mask = build_padding_mask(token_lengths, n_text).to(tokens.device)
        encoder_outputs = self.encoder(tokens, token_lengths, padding_mask)
        text = self.decoder.encode_text(encoder_outputs, padding_mask)

        state = self.decoder.initial_state(text)
        carry = (state.context.new_zeros(batch_size, self.config.num_mels), *state)
        n_steps = STEPS_AT_ONCE.get(tokens.device.type, 1) if self.config.fast_decoder else 1
        run = partial(self.decoder.steps, text, n_steps)
        finished = torch.zeros(batch_size, dtype=torch.bool, device=tokens.device)
        chunks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        # Under autocast the cells of `text`, which hold nearly all the weights, run in its type;
        # all else in a step is too small to gain from that, and stays float32.
        with torch.autocast(tokens.device.type, enabled=False):
            while len(chunks) * n_steps < max_decoder_steps and not finished.all():
                if len(chunks) == 1 and n_steps > 1:
                    run = capture(run, carry)
                (frames, stop_logits, alignments), carry = run(carry)
                stops = torch.sigmoid(stop_logits) > stop_threshold  # (B, n_steps)
                chunks.append((frames, stop_logits, alignments, stops))
                finished |= stops.any(dim=1)

        frames, stop_logits, alignments, stops = (
            torch.cat(parts, dim=1)[:, :max_decoder_steps] for parts in zip(*chunks, strict=True)
        )
        reached_limit = ~stops.any(dim=1)
        lengths = (stops.int().argmax(dim=1) + 1).masked_fill(reached_limit, max_decoder_steps)
        n_frames = int(lengths.max())
        mel_mask = build_padding_mask(lengths, n_frames)
        mels_before = frames[:, :n_frames].masked_fill(mel_mask[:, :, None], 0.0)
        mels = mels_before + self.postnet(mels_before, mel_mask)
        return InferenceOutput(
            mels.masked_fill(mel_mask[:, :, None], 0.0),
            lengths,
            stop_logits[:, :n_frames],
            alignments[:, :n_frames],
            reached_limit,
        )


def guided_attention_penalty(
    token_lengths: Tensor, mel_lengths: Tensor, sigma: float, shape: torch.Size
) -> Tensor:
    """W of Tachibana et al. 2017, arXiv 1710.08969, eq. 6: 0 on the diagonal, towards 1 off it.

    Returns:
        (B, T_mel, T_text) float32, with (T_mel, T_text) = shape.
    """
    device = mel_lengths.device
    t = torch.arange(shape[0], device=device) / mel_lengths[:, None]  # (B, T_mel)
    n = torch.arange(shape[1], device=device) / token_lengths[:, None]  # (B, T_text)
    return 1.0 - torch.exp(-((n[:, None, :] - t[:, :, None]) ** 2) / (2.0 * sigma**2))


def tacotron2_loss(
    output: Tacotron2Output,
    mels: Tensor,
    token_lengths: Tensor,
    mel_lengths: Tensor,
    stop_targets: Tensor,
    guided_attention_weight: float = 0.0,
    guided_attention_sigma: float = 0.4,
    n_frames: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses, each a mean over valid frames; padding counts nowhere.

    Args:
        output: what `Tacotron2.forward` returned.
        mels: (B, T_mel, num_mels), the true frames.
        token_lengths, mel_lengths: (B,) int64.
        stop_targets: (B, T_mel), 1 from the last valid frame on.
        guided_attention_weight: of eq. 6 of Tachibana et al.; 0 leaves it out.
        guided_attention_sigma: width of the diagonal, as a share of the clip.
        n_frames: what to divide the sums over frames by, when these are not all the frames of
            the optimizer step; the number of valid frames in the batch when None.

    Returns:
        mel_before_loss, mel_after_loss, stop_loss, guided_attention_loss and their sum, `loss`.
    """
    token_lengths, mel_lengths = (
        lengths.to(mels.device, non_blocking=True) for lengths in (token_lengths, mel_lengths)
    )  # a copy that blocks would wait for the forward pass
    valid = ~build_padding_mask(mel_lengths, mels.shape[1])  # (B, T_mel)
    if n_frames is None:
        n_frames = mel_lengths.sum()

    def mean_over_frames(per_frame: Tensor) -> Tensor:
        return per_frame.masked_fill(~valid, 0.0).sum() / n_frames

    before = F.mse_loss(output.mels_before.float(), mels, reduction="none").mean(dim=2)
    after = F.mse_loss(output.mels_after.float(), mels, reduction="none").mean(dim=2)
    stop = F.binary_cross_entropy_with_logits(
        output.stop_logits.float(), stop_targets, reduction="none"
    )
    losses = {
        "mel_before_loss": mean_over_frames(before),
        "mel_after_loss": mean_over_frames(after),
        "stop_loss": mean_over_frames(stop),
        "guided_attention_loss": mels.new_zeros(()),
    }
    if guided_attention_weight:
        penalty = guided_attention_penalty(
            token_lengths, mel_lengths, guided_attention_sigma, output.alignments.shape[1:]
        )
        losses["guided_attention_loss"] = guided_attention_weight * mean_over_frames(
            (output.alignments.float() * penalty).sum(dim=2)
        )
    losses["loss"] = sum(losses.values())
    return losses
