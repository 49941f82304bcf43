"""The sequential part of teacher forcing, by hand: attention LSTM and attention, T_mel times.

Written out because autograd is what makes Tacotron 2 slow: it records some forty small operations
a frame, keeps a (B, T_text, attention_dim) activation of each frame, and reads and writes a 25 MB
weight gradient every frame. Here, with x_t the prenet's output and K = V encoder_outputs:

    gates_t   = W_x x_t + b  +  W_r [context_{t-1}, h_{t-1}]
    i, f, g, o = split(gates_t);  sigmoid on i, f, o; tanh on g
    c_t = f c_{t-1} + i g;        h_t = o tanh(c_t)
    q_t = d_t h_t                 d_t: dropout, on the output only, never on the state
    e_t = v^T tanh(W_q q_t + K + U * [a_{t-1}, sum_{s<t} a_s])
    a_t = softmax(e_t);           context_t = a_t encoder_outputs

the first summand of gates_t is one matrix product over all frames, the backward pass recomputes
tanh(...) from the stored alignments and hidden states, what the LSTM's derivatives hold of known
numbers is worked out for all frames at once, and every weight's gradient is one product over all
T_mel * B rows at the end. Since tanh(x) = 2 sigmoid(2x) - 1, and softmax does not see a constant,
the loop takes 2 W_q, 2 K, 2 U and 2 v and runs sigmoid, 3 to 6 times as fast as tanh on a CPU.
model.py's LocationSensitiveAttention is the readable twin; tests hold the two together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


def _can_block(weight: Tensor) -> bool:
    """Whether oneDNN has a blocked layout for this weight; it has no gradient."""
    if weight.device.type != "cpu" or torch.is_grad_enabled():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def repeated_linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x -> x @ weight.T, for a weight that is used at every frame.

    On a CPU the product of a few rows with a large matrix is bound by how the matrix lies in
    memory: oneDNN's blocked order is 2 to 3 times as fast as rows, and is made once here.
    """
    if _can_block(weight):
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocked, None, "none", [], "")
    return lambda x: x @ weight.t()


# The blocked weights of the LSTM cells last stepped: weight_hh -> dtype -> (what they were made
# from, cell). Making them takes as long as 60 steps of a sentence; they go when the model goes.
_CELLS = WeakIdKeyDictionary()


def repeated_cell(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x, h, c) -> (h, c), an LSTM cell that is stepped many times; PyTorch's own on a GPU."""
    dtype = _compute_dtype(weight_hh)
    if not _can_block(weight_hh.to(dtype)):
        return lambda x, h, c: torch.lstm_cell(x, (h, c), weight_ih, weight_hh, bias_ih, bias_hh)
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    # Any write to a weight raises its version, loading and training steps included.
    made_from = [(id(weight), weight._version) for weight in weights]
    cells = _CELLS.setdefault(weight_hh, {})
    if dtype in cells and cells[dtype][0] == made_from:
        return cells[dtype][1]
    product = repeated_linear(torch.cat([weight_ih, weight_hh], dim=1).to(dtype))
    bias = (bias_ih + bias_hh).float()

    def cell(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        gate = product(torch.cat([x, hidden], dim=1).to(dtype)).float() + bias
        next_cell = torch.empty_like(cell)
        return _activate_cell(gate, cell, next_cell), next_cell

    cells[dtype] = (made_from, cell)
    return cell


def repeated_attention(
    encoder_outputs: Tensor,
    keys: Tensor,
    padding_mask: Tensor,
    weight_query: Tensor,
    weight_location: Tensor,
    v: Tensor,
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(query, alignment, cumulative_alignment) -> (context, alignment), stepped many times.

    As `attention_loop` has it, of the same arguments, in float32 or better; it has no gradient.
    """
    dtype = _state_dtype(encoder_outputs)
    encoder_outputs = encoder_outputs.to(dtype)
    doubled = (2 * x.detach().to(dtype) for x in (keys, weight_query, weight_location, v))
    attention = _prepare_attention(*doubled)
    half = weight_location.shape[2] // 2
    lowest = torch.finfo(dtype).min

    def attend(query: Tensor, alignment: Tensor, cumulative: Tensor) -> tuple[Tensor, Tensor]:
        location = F.pad(torch.stack([alignment, cumulative], dim=1), (half, half))
        energies = (attention.sigmoid(location, query)[0] @ attention.v).view_as(alignment)
        alignment = torch.softmax(energies.masked_fill_(padding_mask, lowest), dim=1)
        return torch.bmm(alignment[:, None], encoder_outputs).squeeze(1), alignment

    return attend


def _compute_dtype(like: Tensor) -> torch.dtype:
    """Autocast's type where it is on, else that of the tensor."""
    device_type = like.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return like.dtype


def _state_dtype(like: Tensor) -> torch.dtype:
    """Cells and alignments add up over hundreds of frames: never less than float32."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _activate_cell(gate: Tensor, cell: Tensor, next_cell: Tensor) -> Tensor:
    """LSTM cell: gate (B, 4H) becomes [i, f, g, o] in place, next_cell is written; returns h."""
    hidden_dim = cell.shape[1]
    gate[:, : 2 * hidden_dim].sigmoid_()
    gate[:, 2 * hidden_dim : 3 * hidden_dim].tanh_()
    gate[:, 3 * hidden_dim :].sigmoid_()
    i, f, g, o = gate.chunk(4, dim=1)  # (B, H) each
    torch.mul(f, cell, out=next_cell).addcmul_(i, g)
    return o * next_cell.tanh()


class _CellBackward(NamedTuple):
    """The derivatives of all frames' LSTM cells: five numbers a unit, known before the loop."""

    d_gates: Tensor  # (T_mel, B, 4, H), d c_t / d (i, f, g) and d h_t / d o, then the gradient
    d_cells: Tensor  # (T_mel, B, H), d h_t / d c_t
    forgets: Tensor  # (T_mel, B, H), d c_t / d c_{t-1}

    def step(self, t: int, d_hidden: Tensor, d_cell: Tensor) -> Tensor:
        """The gradient before frame t's activations, (B, 4H); d_cell moves one frame back."""
        d_cell.add_(d_hidden * self.d_cells[t])
        d_gate = self.d_gates[t]
        d_gate[:, :3].mul_(d_cell.to(d_gate.dtype)[:, None])
        d_gate[:, 3].mul_(d_hidden)
        d_cell.mul_(self.forgets[t])
        return d_gate.flatten(1)


def _prepare_cell_backward(gates: Tensor, cells: Tensor) -> _CellBackward:
    """From gates (T_mel, B, 4H) after their activations and cells (T_mel + 1, B, H)."""
    i, f, g, o = gates.unflatten(2, (4, -1)).unbind(2)  # (T_mel, B, H) each
    cells = cells.to(gates.dtype)
    tanh_cells = cells[1:].tanh()
    d_gates = torch.empty_like(gates).unflatten(2, (4, -1))
    torch.mul(i * g, 1 - i, out=d_gates[:, :, 0])
    torch.mul(f * cells[:-1], 1 - f, out=d_gates[:, :, 1])
    torch.mul(i, 1 - g * g, out=d_gates[:, :, 2])
    torch.mul(tanh_cells, o * (1 - o), out=d_gates[:, :, 3])
    return _CellBackward(d_gates, o * tanh_cells.square_().neg_().add_(1), f)


class _LSTM(torch.autograd.Function):
    """A one-layer LSTM from zero state, with the recurrent weight blocked once."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
        n_frames, batch_size, _ = inputs.shape
        hidden_dim = weight_hh.shape[1]
        state_dtype = _state_dtype(inputs)
        gates = torch.addmm(bias, inputs.flatten(0, 1), weight_ih.t())
        gates = gates.view(n_frames, batch_size, 4 * hidden_dim)
        hiddens = inputs.new_zeros(n_frames + 1, batch_size, hidden_dim)
        cells = inputs.new_zeros(n_frames + 1, batch_size, hidden_dim, dtype=state_dtype)
        product = repeated_linear(weight_hh)
        for t in range(n_frames):
            gate = gates[t].add_(product(hiddens[t]))
            hiddens[t + 1] = _activate_cell(gate, cells[t], cells[t + 1])
        ctx.save_for_backward(inputs, weight_ih, weight_hh, gates, hiddens, cells)
        return hiddens[1:].clone()

    @staticmethod
    def backward(ctx, grad_hiddens: Tensor):
        inputs, weight_ih, weight_hh, gates, hiddens, cells = ctx.saved_tensors
        product = repeated_linear(weight_hh.t())
        cell_backward = _prepare_cell_backward(gates, cells)
        d_cell = torch.zeros_like(cells[0])
        d_hidden = grad_hiddens[-1]
        for t in reversed(range(len(inputs))):
            d_gate = cell_backward.step(t, d_hidden, d_cell)
            if t:
                d_hidden = product(d_gate).add_(grad_hiddens[t - 1])
        flat = cell_backward.d_gates.view(-1, gates.shape[2])  # (T_mel * B, 4H)
        return (
            (flat @ weight_ih).view_as(inputs),
            flat.t() @ inputs.flatten(0, 1),
            flat.t() @ hiddens[:-1].flatten(0, 1),
            flat.sum(dim=0),
        )


class _Attention(NamedTuple):
    """The attention's constants over a clip, doubled; N = B * T_text rows."""

    keys: Tensor  # (N, A)
    location_matrix: Tensor  # (2K, A)
    v: Tensor  # (A,)
    query_product: Callable[[Tensor], Tensor]  # (B, H) -> (B, A)

    def sigmoid(self, location: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """sigmoid(W_q q + K + U * location) as (N, A), and the location's windows (N, 2K)."""
        kernel_size = len(self.location_matrix) // 2
        windows = location.unfold(2, kernel_size, 1).transpose(1, 2).reshape(-1, 2 * kernel_size)
        hidden = torch.addmm(self.keys, windows, self.location_matrix)
        hidden.view(len(query), -1, len(self.v)).add_(self.query_product(query)[:, None])
        return hidden.sigmoid_(), windows


def _prepare_attention(
    keys: Tensor, weight_query: Tensor, weight_location: Tensor, v: Tensor
) -> _Attention:
    attention_dim = len(v)
    location_matrix = weight_location.reshape(attention_dim, -1).t().contiguous()
    return _Attention(
        keys.reshape(-1, attention_dim), location_matrix, v, repeated_linear(weight_query)
    )


class _AttentionLoop(torch.autograd.Function):
    """See the module's docstring. Sizes: P prenet, E encoder, H LSTM, A attention, K kernel."""

    @staticmethod
    def forward(
        ctx,
        prenet_outputs: Tensor,  # (T_mel, B, P)
        encoder_outputs: Tensor,  # (B, T_text, E)
        keys: Tensor,  # (B, T_text, A)
        padding_mask: Tensor,  # (B, T_text)
        drops: Tensor | None,  # (T_mel, B, H)
        weight_ih: Tensor,  # (4H, P + E)
        weight_hh: Tensor,  # (4H, H)
        bias: Tensor,  # (4H,)
        weight_query: Tensor,  # (A, H)
        weight_location: Tensor,  # (A, 2, K)
        v: Tensor,  # (A,)
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_frames, batch_size, prenet_dim = prenet_outputs.shape
        n_text, encoder_dim = encoder_outputs.shape[1:]
        hidden_dim, half = weight_hh.shape[1], weight_location.shape[2] // 2
        dtype, state_dtype = encoder_outputs.dtype, _state_dtype(encoder_outputs)
        zeros = encoder_outputs.new_zeros

        gates = torch.addmm(bias, prenet_outputs.flatten(0, 1), weight_ih[:, :prenet_dim].t())
        gates = gates.view(n_frames, batch_size, 4 * hidden_dim)
        # Row t of these is what frame t reads: [context_{t-1}, h_{t-1}], c_{t-1}, and
        # [a_{t-1}, sum_{s<t} a_s] between the convolution's zeros.
        recurrent = zeros(n_frames + 1, batch_size, encoder_dim + hidden_dim)
        cells = zeros(n_frames + 1, batch_size, hidden_dim, dtype=state_dtype)
        locations = zeros(n_frames + 1, batch_size, 2, n_text + 2 * half)
        inner = locations[..., half : half + n_text]
        queries = zeros(n_frames, batch_size, hidden_dim)
        alignments = zeros(n_frames, batch_size, n_text, dtype=state_dtype)
        cumulative = zeros(batch_size, n_text, dtype=state_dtype)

        gate_product = repeated_linear(torch.cat([weight_ih[:, prenet_dim:], weight_hh], dim=1))
        attention = _prepare_attention(keys, weight_query, weight_location, v)
        lowest = torch.finfo(state_dtype).min
        for t in range(n_frames):
            gate = gates[t].add_(gate_product(recurrent[t]))
            hidden = _activate_cell(gate, cells[t], cells[t + 1])
            query = queries[t].copy_(hidden)
            if drops is not None:
                query.mul_(drops[t])
            energies = (attention.sigmoid(locations[t], query)[0] @ v).view(batch_size, n_text)
            energies = energies.to(state_dtype).masked_fill_(padding_mask, lowest)
            alignment = torch.softmax(energies, dim=1, out=alignments[t])
            cumulative += alignment
            inner[t + 1, :, 0] = alignment
            inner[t + 1, :, 1] = cumulative
            recurrent[t + 1, :, :encoder_dim] = torch.bmm(
                alignment[:, None].to(dtype), encoder_outputs
            ).squeeze(1)
            recurrent[t + 1, :, encoder_dim:] = hidden

        ctx.save_for_backward(
            prenet_outputs, encoder_outputs, keys, padding_mask, drops, weight_ih, weight_hh,
            weight_query, weight_location, v, gates, recurrent, cells, queries, alignments,
            locations,
        )  # fmt: skip
        contexts = recurrent[1:, :, :encoder_dim].contiguous()
        return queries.clone(), contexts, alignments.clone()

    @staticmethod
    def backward(ctx, grad_queries: Tensor, grad_contexts: Tensor, grad_alignments: Tensor):
        (
            prenet_outputs, encoder_outputs, keys, padding_mask, drops, weight_ih, weight_hh,
            weight_query, weight_location, v, gates, recurrent, cells, queries, alignments,
            locations,
        ) = ctx.saved_tensors  # fmt: skip
        n_frames, _, prenet_dim = prenet_outputs.shape
        encoder_dim = encoder_outputs.shape[2]
        weight_recurrent = torch.cat([weight_ih[:, prenet_dim:], weight_hh], dim=1)
        gate_product = repeated_linear(weight_recurrent.t())
        query_product = repeated_linear(weight_query.t())
        attention = _prepare_attention(keys, weight_query, weight_location, v)
        gradients = _new_attention_gradients(attention, grad_contexts, queries, alignments)
        cell_backward = _prepare_cell_backward(gates, cells)
        d_recurrent = torch.zeros_like(recurrent[0])  # of [context_t, h_t], from frame t + 1
        d_cell = torch.zeros_like(cells[0])
        for t in reversed(range(n_frames)):
            gradients.contexts[t].add_(d_recurrent[:, :encoder_dim])
            d_query_input = _attention_backward(
                t, attention, gradients, encoder_outputs, padding_mask, alignments,
                grad_alignments, locations, queries,
            )  # fmt: skip
            d_hidden = query_product(d_query_input).add_(grad_queries[t])
            if drops is not None:
                d_hidden.mul_(drops[t])
            d_hidden += d_recurrent[:, encoder_dim:]
            d_recurrent = gate_product(cell_backward.step(t, d_hidden, d_cell))

        flat = cell_backward.d_gates.view(-1, gates.shape[2])  # (T_mel * B, 4H)
        d_weight_recurrent = flat.t() @ recurrent[:-1].flatten(0, 1)  # (4H, E + H)
        d_weight_prenet = flat.t() @ prenet_outputs.flatten(0, 1)  # (4H, P)
        dtype = encoder_outputs.dtype
        return (
            (flat @ weight_ih[:, :prenet_dim]).view_as(prenet_outputs),
            torch.bmm(alignments.permute(1, 2, 0).to(dtype), gradients.contexts.transpose(0, 1)),
            gradients.keys.view_as(keys).to(dtype),
            None,
            None,
            torch.cat([d_weight_prenet, d_weight_recurrent[:, :encoder_dim]], dim=1),
            d_weight_recurrent[:, encoder_dim:],
            flat.sum(dim=0),
            gradients.query_inputs.flatten(0, 1).t() @ queries.flatten(0, 1),
            gradients.location_matrix.t().reshape_as(weight_location).to(dtype),
            gradients.v.to(dtype),
        )


class _AttentionGradients(NamedTuple):
    """What the backward pass over the attention adds up, in place."""

    contexts: Tensor  # (T_mel, B, E), complete for all frames from t on
    query_inputs: Tensor  # (T_mel, B, A), of W_q q_t
    keys: Tensor  # (N, A)
    location_matrix: Tensor  # (2K, A)
    v: Tensor  # (A,)
    alignment: Tensor  # (B, T_text), of a_t from frame t + 1's location
    cumulative: Tensor  # (B, T_text), of sum_{s<=t} a_s from all later frames' locations


def _new_attention_gradients(
    attention: _Attention, grad_contexts: Tensor, queries: Tensor, alignments: Tensor
) -> _AttentionGradients:
    def zeros(like: Tensor) -> Tensor:
        return torch.zeros_like(like, dtype=alignments.dtype)

    return _AttentionGradients(
        contexts=grad_contexts.clone(),
        query_inputs=queries.new_empty(*queries.shape[:2], len(attention.v)),
        keys=zeros(attention.keys),
        location_matrix=zeros(attention.location_matrix),
        v=zeros(attention.v),
        alignment=zeros(alignments[0]),
        cumulative=zeros(alignments[0]),
    )


def _attention_backward(
    t: int,
    attention: _Attention,
    gradients: _AttentionGradients,
    encoder_outputs: Tensor,
    padding_mask: Tensor,
    alignments: Tensor,
    grad_alignments: Tensor,
    locations: Tensor,
    queries: Tensor,
) -> Tensor:
    """Frame t's attention, backwards; returns the gradient of W_q q_t, (B, A)."""
    batch_size, n_text, _ = encoder_outputs.shape
    kernel_size = len(attention.location_matrix) // 2
    alignment = alignments[t]
    d_context = gradients.contexts[t][:, None]  # (B, 1, E)
    d_alignment = torch.bmm(d_context, encoder_outputs.transpose(1, 2)).squeeze(1)
    d_alignment = gradients.alignment + gradients.cumulative + grad_alignments[t] + d_alignment
    d_energies = d_alignment - (d_alignment * alignment).sum(dim=1, keepdim=True)
    d_energies = (d_energies * alignment).masked_fill_(padding_mask, 0.0)
    d_energies = d_energies.to(queries.dtype).view(-1, 1)  # (N, 1)

    sigmoid, windows = attention.sigmoid(locations[t], queries[t])  # (N, A), (N, 2K)
    gradients.v.add_((d_energies.t() @ sigmoid).squeeze(0))
    d_hidden = (1 - sigmoid).mul_(sigmoid).mul_(attention.v).mul_(d_energies)  # (N, A)
    gradients.keys.add_(d_hidden)
    gradients.location_matrix.add_(windows.t() @ d_hidden)
    d_windows = (d_hidden @ attention.location_matrix.t()).view(batch_size, n_text, -1)
    d_location = F.fold(d_windows.transpose(1, 2), (1, locations.shape[3]), (1, kernel_size))
    half = kernel_size // 2
    gradients.alignment.copy_(d_location[:, 0, 0, half : half + n_text])
    gradients.cumulative.add_(d_location[:, 1, 0, half : half + n_text])
    d_query_input = gradients.query_inputs[t]
    return torch.sum(d_hidden.view(batch_size, n_text, -1), dim=1, out=d_query_input)


@torch.compiler.disable  # the loop is written out by hand; tracing T_mel frames gains nothing
def fast_lstm(inputs: Tensor, lstm: torch.nn.LSTM) -> Tensor:
    """`lstm(inputs)[0]` for a one-layer LSTM: inputs (T_mel, B, n_in) -> (T_mel, B, n_hidden).

    cuDNN's on a GPU. On a CPU PyTorch's own spends most of its time on reordering the recurrent
    weight at each frame, so the loop above takes its place.
    """
    if inputs.device.type != "cpu":
        return lstm(inputs)[0]
    dtype = _compute_dtype(inputs)
    weights = (lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    with torch.autocast("cpu", enabled=False):
        return _LSTM.apply(inputs.to(dtype), *(weight.to(dtype) for weight in weights))


@torch.compiler.disable  # the loop is written out by hand; tracing T_mel frames gains nothing
def attention_loop(
    prenet_outputs: Tensor,
    encoder_outputs: Tensor,
    keys: Tensor,
    padding_mask: Tensor,
    drops: Tensor | None,
    attention_rnn: torch.nn.LSTMCell,
    weight_query: Tensor,
    weight_location: Tensor,
    v: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention LSTM and attention over all frames, teacher forced.

    Args:
        prenet_outputs: (T_mel, B, decoder_prenet_dim).
        encoder_outputs: (B, T_text, encoder_embed_dim).
        keys: (B, T_text, attention_dim), V encoder_outputs.
        padding_mask: (B, T_text) bool, True = padding.
        drops: (T_mel, B, decoder_rnn_embed_dim), what dropout multiplies by; None for none.
        attention_rnn: the attention LSTM's weights.
        weight_query: W_q, (attention_dim, decoder_rnn_embed_dim).
        weight_location: U folded with the location convolution, (attention_dim, 2, kernel_size).
        v: (attention_dim,).

    Returns:
        queries (T_mel, B, decoder_rnn_embed_dim), the LSTM's outputs after dropout;
        contexts (T_mel, B, encoder_embed_dim); alignments (T_mel, B, T_text), float32 or float64.
        Under autocast the products run in autocast's type; cells and alignments stay float32.
    """
    dtype = _compute_dtype(encoder_outputs)
    bias = attention_rnn.bias_ih + attention_rnn.bias_hh
    weights = (attention_rnn.weight_ih, attention_rnn.weight_hh, bias)
    with torch.autocast(encoder_outputs.device.type, enabled=False):
        return _AttentionLoop.apply(
            prenet_outputs.to(dtype),
            encoder_outputs.to(dtype),
            2 * keys.to(dtype),
            padding_mask,
            None if drops is None else drops.to(dtype),
            *(weight.to(dtype) for weight in weights),
            *(2 * weight.to(dtype) for weight in (weight_query, weight_location, v)),
        )
