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
model.py's LocationSensitiveAttention is the readable twin; tests hold the two together. On a GPU
fused_loops.py runs the same loops in fewer launches.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_FUSED_KERNEL_SIZE = 31  # of the location convolution: a GPU's shared memory ends there
TRIAL_TOLERANCE = {torch.float32: 0.01, torch.float16: 0.02, torch.bfloat16: 0.1}  # of the norm


def can_block(weight: Tensor) -> bool:
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
    if can_block(weight):
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocked, None, "none", [], "")
    return lambda x: x @ weight.t()


def compute_dtype(like: Tensor) -> torch.dtype:
    """Autocast's type where it is on, else that of the tensor."""
    device_type = like.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return like.dtype


def state_dtype_of(like: Tensor) -> torch.dtype:
    """Cells and alignments add up over hundreds of frames: never less than float32."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def activate_cell(gate: Tensor, cell: Tensor, next_cell: Tensor) -> Tensor:
    """LSTM cell: gate (B, 4H) becomes [i, f, g, o] in place, next_cell is written; returns h."""
    hidden_dim = cell.shape[1]
    gate[:, : 2 * hidden_dim].sigmoid_()
    gate[:, 2 * hidden_dim : 3 * hidden_dim].tanh_()
    gate[:, 3 * hidden_dim :].sigmoid_()
    i, f, g, o = gate.chunk(4, dim=1)  # (B, H) each
    torch.mul(f, cell, out=next_cell).addcmul_(i, g)
    return o * next_cell.tanh()


class CellBackward(NamedTuple):
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


def _prepare_cell_backward(gates: Tensor, cells: Tensor) -> CellBackward:
    """From gates (T_mel, B, 4H) after their activations and cells (T_mel + 1, B, H)."""
    i, f, g, o = gates.unflatten(2, (4, -1)).unbind(2)  # (T_mel, B, H) each
    cells = cells.to(gates.dtype)
    tanh_cells = cells[1:].tanh()
    d_gates = torch.empty_like(gates).unflatten(2, (4, -1))
    torch.mul(i * g, 1 - i, out=d_gates[:, :, 0])
    torch.mul(f * cells[:-1], 1 - f, out=d_gates[:, :, 1])
    torch.mul(i, 1 - g * g, out=d_gates[:, :, 2])
    torch.mul(tanh_cells, o * (1 - o), out=d_gates[:, :, 3])
    return CellBackward(d_gates, o * tanh_cells.square_().neg_().add_(1), f)


class _LSTM(torch.autograd.Function):
    """A one-layer LSTM from zero state, with the recurrent weight blocked once."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
        n_frames, batch_size, _ = inputs.shape
        hidden_dim = weight_hh.shape[1]
        state_dtype = state_dtype_of(inputs)
        gates = torch.addmm(bias, inputs.flatten(0, 1), weight_ih.t())
        gates = gates.view(n_frames, batch_size, 4 * hidden_dim)
        hiddens = inputs.new_zeros(n_frames + 1, batch_size, hidden_dim)
        cells = inputs.new_zeros(n_frames + 1, batch_size, hidden_dim, dtype=state_dtype)
        product = repeated_linear(weight_hh)
        for t in range(n_frames):
            gate = gates[t].add_(product(hiddens[t]))
            hiddens[t + 1] = activate_cell(gate, cells[t], cells[t + 1])
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


def prepare_attention(
    keys: Tensor, weight_query: Tensor, weight_location: Tensor, v: Tensor
) -> _Attention:
    attention_dim = len(v)
    location_matrix = weight_location.reshape(attention_dim, -1).t().contiguous()
    return _Attention(
        keys.reshape(-1, attention_dim), location_matrix, v, repeated_linear(weight_query)
    )


class Text(NamedTuple):
    """What every frame reads of the text."""

    encoder_outputs: Tensor  # (B, T_text, E)
    keys: Tensor  # (B, T_text, A), doubled
    padding_mask: Tensor  # (B, T_text)


class Weights(NamedTuple):
    """What every frame multiplies by."""

    recurrent: Tensor  # (4H, E + H)
    query: Tensor  # (A, H), doubled as the next two
    location: Tensor  # (A, 2, K)
    v: Tensor  # (A,)


class Frames(NamedTuple):
    """What the loop leaves of all frames; frame t reads row t of the second to the fourth."""

    gates: Tensor  # (T_mel, B, 4H): W_x x_t + b before frame t, [i, f, g, o] after it
    recurrent: Tensor  # (T_mel + 1, B, E + H), [context_{t-1}, h_{t-1}]
    cells: Tensor  # (T_mel + 1, B, H), c_{t-1}
    locations: Tensor  # (T_mel + 1, B, 2, T_text + K - 1), [a_{t-1}, sum_{s<t} a_s] between zeros
    queries: Tensor  # (T_mel, B, H), d_t h_t
    alignments: Tensor  # (T_mel, B, T_text), a_t


class LoopGradients(NamedTuple):
    """What the loop backwards leaves, beside the gates' gradient."""

    contexts: Tensor  # (T_mel, B, E), of context_t
    query_products: Tensor  # (T_mel, B, A), of W_q q_t
    keys: Tensor  # (N, A)
    location_matrix: Tensor  # (2K, A)
    v: Tensor  # (A,)


def _new_frames(gates: Tensor, text: Text, hidden_dim: int, kernel_size: int) -> Frames:
    n_frames, batch_size, _ = gates.shape
    n_text, encoder_dim = text.encoder_outputs.shape[1:]
    zeros, state_dtype = gates.new_zeros, state_dtype_of(gates)
    return Frames(
        gates,
        zeros(n_frames + 1, batch_size, encoder_dim + hidden_dim),
        zeros(n_frames + 1, batch_size, hidden_dim, dtype=state_dtype),
        zeros(n_frames + 1, batch_size, 2, n_text + kernel_size - 1),
        zeros(n_frames, batch_size, hidden_dim),
        zeros(n_frames, batch_size, n_text, dtype=state_dtype),
    )


def _forward_frames(frames: Frames, text: Text, weights: Weights, drops: Tensor | None) -> None:
    """Frame after frame, each from what the one before left in `frames`."""
    gates, recurrent, cells, locations, queries, alignments = frames
    batch_size, n_text, encoder_dim = text.encoder_outputs.shape
    half = weights.location.shape[2] // 2
    inner = locations[..., half : half + n_text]
    cumulative = torch.zeros_like(alignments[0])
    gate_product = repeated_linear(weights.recurrent)
    attention = prepare_attention(text.keys, *weights[1:])
    lowest = torch.finfo(alignments.dtype).min
    for t in range(len(gates)):
        gate = gates[t].add_(gate_product(recurrent[t]))
        hidden = activate_cell(gate, cells[t], cells[t + 1])
        query = queries[t].copy_(hidden)
        if drops is not None:
            query.mul_(drops[t])
        energies = (attention.sigmoid(locations[t], query)[0] @ weights.v).view(batch_size, n_text)
        energies = energies.to(alignments.dtype).masked_fill_(text.padding_mask, lowest)
        alignment = torch.softmax(energies, dim=1, out=alignments[t])
        cumulative += alignment
        inner[t + 1, :, 0] = alignment
        inner[t + 1, :, 1] = cumulative
        recurrent[t + 1, :, :encoder_dim] = torch.bmm(
            alignment[:, None].to(gates.dtype), text.encoder_outputs
        ).squeeze(1)
        recurrent[t + 1, :, encoder_dim:] = hidden


def _backward_frames(
    frames: Frames,
    text: Text,
    weights: Weights,
    drops: Tensor | None,
    cell_backward: CellBackward,
    gradients: LoopGradients,
    grad_queries: Tensor,
    grad_contexts: Tensor,
    grad_alignments: Tensor,
) -> None:
    """Frame before frame; `cell_backward.d_gates` becomes the gates' gradient."""
    encoder_dim = text.encoder_outputs.shape[2]
    gate_product = repeated_linear(weights.recurrent.t())
    query_product = repeated_linear(weights.query.t())
    attention = prepare_attention(text.keys, *weights[1:])
    d_recurrent = torch.zeros_like(frames.recurrent[0])  # of [context_t, h_t], from frame t + 1
    d_cell = torch.zeros_like(frames.cells[0])
    # Of a_t and of sum_{s<=t} a_s, from the locations of frame t + 1 and of all later ones.
    d_alignment, d_cumulative = (torch.zeros_like(frames.alignments[0]) for _ in range(2))
    for t in reversed(range(len(frames.gates))):
        torch.add(grad_contexts[t], d_recurrent[:, :encoder_dim], out=gradients.contexts[t])
        d_location = _attention_backward(
            t, frames, text, attention, gradients, d_alignment + d_cumulative + grad_alignments[t]
        )
        d_alignment = d_location[:, 0]
        d_cumulative += d_location[:, 1]
        d_hidden = query_product(gradients.query_products[t]).add_(grad_queries[t])
        if drops is not None:
            d_hidden.mul_(drops[t])
        d_hidden += d_recurrent[:, encoder_dim:]
        d_recurrent = gate_product(cell_backward.step(t, d_hidden, d_cell))


def _attention_backward(
    t: int,
    frames: Frames,
    text: Text,
    attention: _Attention,
    gradients: LoopGradients,
    d_alignment: Tensor,
) -> Tensor:
    """Frame t's attention, backwards.

    Args:
        d_alignment: (B, T_text), the gradient of a_t, but for its context's share.

    Returns:
        The gradient of the location, (B, 2, T_text).
    """
    encoder_outputs, alignment = text.encoder_outputs, frames.alignments[t]
    batch_size, n_text, _ = encoder_outputs.shape
    kernel_size = len(attention.location_matrix) // 2
    d_context = gradients.contexts[t][:, None]  # (B, 1, E)
    d_alignment = d_alignment + torch.bmm(d_context, encoder_outputs.transpose(1, 2)).squeeze(1)
    d_energies = d_alignment - (d_alignment * alignment).sum(dim=1, keepdim=True)
    d_energies = (d_energies * alignment).masked_fill_(text.padding_mask, 0.0)
    d_energies = d_energies.to(encoder_outputs.dtype).view(-1, 1)  # (N, 1)

    location = frames.locations[t]
    sigmoid, windows = attention.sigmoid(location, frames.queries[t])  # (N, A), (N, 2K)
    gradients.v.add_((d_energies.t() @ sigmoid).squeeze(0))
    d_hidden = (1 - sigmoid).mul_(sigmoid).mul_(attention.v).mul_(d_energies)  # (N, A)
    gradients.keys.add_(d_hidden)
    gradients.location_matrix.add_(windows.t() @ d_hidden)
    d_windows = (d_hidden @ attention.location_matrix.t()).view(batch_size, n_text, -1)
    d_location = F.fold(d_windows.transpose(1, 2), (1, location.shape[2]), (1, kernel_size))
    half = kernel_size // 2
    d_query_product = gradients.query_products[t]
    torch.sum(d_hidden.view(batch_size, n_text, -1), dim=1, out=d_query_product)
    return d_location[:, :, 0, half : half + n_text]


class AttentionLoop(torch.autograd.Function):
    """See the module's docstring. Sizes: P prenet, E encoder, H LSTM, A attention, K kernel."""

    @staticmethod
    def forward(
        ctx,
        fused: ModuleType | None,  # fused_loops, or None for the loops above
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
        gates = torch.addmm(bias, prenet_outputs.flatten(0, 1), weight_ih[:, :prenet_dim].t())
        text = Text(encoder_outputs, keys, padding_mask)
        frames = _new_frames(
            gates.view(n_frames, batch_size, -1), text, weight_hh.shape[1], weight_location.shape[2]
        )
        weight_recurrent = torch.cat([weight_ih[:, prenet_dim:], weight_hh], dim=1)
        weights = Weights(weight_recurrent, weight_query, weight_location, v)
        run_frames = fused.forward_frames if fused else _forward_frames
        run_frames(frames, text, weights, drops)
        ctx.fused = fused
        ctx.save_for_backward(
            prenet_outputs, drops, weight_ih, weight_hh, *text, *weights[1:], *frames
        )
        contexts = frames.recurrent[1:, :, : encoder_outputs.shape[2]].contiguous()
        return frames.queries.clone(), contexts, frames.alignments.clone()

    @staticmethod
    def backward(ctx, grad_queries: Tensor, grad_contexts: Tensor, grad_alignments: Tensor):
        prenet_outputs, drops, weight_ih, weight_hh, *rest = ctx.saved_tensors
        n_frames, _, prenet_dim = prenet_outputs.shape
        weight_recurrent = torch.cat([weight_ih[:, prenet_dim:], weight_hh], dim=1)
        text, weights, frames = Text(*rest[:3]), Weights(weight_recurrent, *rest[3:6]), rest[6:]
        frames = Frames(*frames)
        encoder_outputs, keys, _ = text
        attention_dim, state_dtype = len(weights.v), frames.alignments.dtype
        gradients = LoopGradients(
            torch.empty_like(grad_contexts, memory_format=torch.contiguous_format),
            keys.new_empty(n_frames, len(keys), attention_dim),
            keys.new_zeros(keys[..., 0].numel(), attention_dim, dtype=state_dtype),
            keys.new_zeros(weights.location[0].numel(), attention_dim, dtype=state_dtype),
            keys.new_zeros(attention_dim, dtype=state_dtype),
        )
        cell_backward = _prepare_cell_backward(frames.gates, frames.cells)
        run_frames = ctx.fused.backward_frames if ctx.fused else _backward_frames
        run_frames(
            frames, text, weights, drops, cell_backward, gradients, grad_queries, grad_contexts,
            grad_alignments,
        )  # fmt: skip

        encoder_dim, dtype = encoder_outputs.shape[2], encoder_outputs.dtype
        d_gates = cell_backward.d_gates.view(-1, frames.gates.shape[2])  # (T_mel * B, 4H)
        d_weight_recurrent = d_gates.t() @ frames.recurrent[:-1].flatten(0, 1)  # (4H, E + H)
        d_weight_prenet = d_gates.t() @ prenet_outputs.flatten(0, 1)  # (4H, P)
        alignments = frames.alignments.permute(1, 2, 0).to(dtype)  # (B, T_text, T_mel)
        return (
            None,
            (d_gates @ weight_ih[:, :prenet_dim]).view_as(prenet_outputs),
            torch.bmm(alignments, gradients.contexts.transpose(0, 1)),
            gradients.keys.view_as(keys).to(dtype),
            None,
            None,
            torch.cat([d_weight_prenet, d_weight_recurrent[:, :encoder_dim]], dim=1),
            d_weight_recurrent[:, encoder_dim:],
            d_gates.sum(dim=0),
            gradients.query_products.flatten(0, 1).t() @ frames.queries.flatten(0, 1),
            gradients.location_matrix.t().reshape_as(weights.location).to(dtype),
            gradients.v.to(dtype),
        )


@lru_cache
def load_fused(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """fused_loops.py, if the device is a GPU that it runs on and is right on; tried out once.

    GPUs, drivers and compilers differ, and a run that is slower is better than one that is wrong:
    where the kernels fail or disagree with the loops above, a warning says so and those run.
    """
    if device.type != "cuda" or dtype not in TRIAL_TOLERANCE:
        return None
    try:
        import fused_loops

        error = fused_loops.disagreement(device, dtype)
        if error < TRIAL_TOLERANCE[dtype]:
            return fused_loops
        reason = f"they are {error:.2g} of the norm away from the plain loop"
    except Exception as error:  # of Triton, its compiler, the driver: whatever it is, go on
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(f"{device}: no fused kernels, which is slower; {reason}", stacklevel=2)
    return None


def load_fused_attention(
    device: torch.device, dtype: torch.dtype, weight_location: Tensor
) -> ModuleType | None:
    """`load_fused`, where the location convolution (A, 2, K) is not too wide for its kernels."""
    too_wide = weight_location.shape[2] > MAX_FUSED_KERNEL_SIZE
    return None if too_wide else load_fused(device, dtype)


@torch.compiler.disable  # the loop is written out by hand; tracing T_mel frames gains nothing
def fast_lstm(inputs: Tensor, lstm: torch.nn.LSTM) -> Tensor:
    """`lstm(inputs)[0]` for a one-layer LSTM: inputs (T_mel, B, n_in) -> (T_mel, B, n_hidden).

    For a CPU, where PyTorch's own spends most of its time on reordering the recurrent weight at
    each frame.
    """
    dtype = compute_dtype(inputs)
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
    dtype = compute_dtype(encoder_outputs)
    fused = load_fused_attention(encoder_outputs.device, dtype, weight_location)
    bias = attention_rnn.bias_ih + attention_rnn.bias_hh
    weights = (attention_rnn.weight_ih, attention_rnn.weight_hh, bias)
    with torch.autocast(encoder_outputs.device.type, enabled=False):
        return AttentionLoop.apply(
            fused,
            prenet_outputs.to(dtype),
            encoder_outputs.to(dtype),
            2 * keys.to(dtype),
            padding_mask,
            None if drops is None else drops.to(dtype),
            *(weight.to(dtype) for weight in weights),
            *(2 * weight.to(dtype) for weight in (weight_query, weight_location, v)),
        )
