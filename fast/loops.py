"""Run the decoder's two sequential parts in teacher forcing, with hand-written gradients.

With teacher forcing only the attention LSTM and the attention are sequential: frame t needs the
context of frame t - 1. `attention_loop` runs that loop. The rest, including the decoder LSTM
(`fast_lstm`), is one call over all frames. With x_t the prenet's output and K = V encoder_outputs:

    preactivations_t = W_x x_t + b  +  W_r [context_{t-1}, h_{t-1}]
    i, f, g, o = split(preactivations_t), sigmoid on i, f and o, tanh on g
    c_t = f c_{t-1} + i g;        h_t = o tanh(c_t)
    q_t = d_t h_t                 d_t: dropout, on the output only, never on the state
    e_t = v^T tanh(W_q q_t + K + U * [a_{t-1}, sum_{s<t} a_s])
    a_t = softmax(e_t);           context_t = a_t encoder_outputs

Autograd would make this slow: it records some forty small operations per frame, keeps a (B, T_text,
attention_dim) activation for each frame, and reads and writes a 25 MB weight gradient every frame.
Here W_x x_t + b is one matrix product over all frames; the backward pass recomputes tanh(...) from
the saved alignments and queries; the factors of the LSTM's derivative that depend only on the
forward pass are computed for all frames at once; and the gradient of each weight is one product
over all T_mel * B rows at the end. U is the location convolution folded into the linear layer after
it (both are linear). fast/gpu.py runs the same loop on a GPU.

tests/test_fast_decoder.py checks the gradients against finite differences in double precision, and
outputs and gradients against the plain loops of model.py.

Sizes: P prenet, E encoder, H LSTM, A attention, K location kernel; N = B * T_text rows. `d_x` is
the gradient of the loss with respect to x.
"""

import subprocess
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from command_line.main import warn

TEXT_STEP = 32  # texts are padded to multiples of this, so that a GPU needs few CUDA graphs
MAX_GPU_KERNEL_SIZE = 31  # of the location convolution; more exceeds a GPU's shared memory
GPU_TOLERANCE = {torch.float32: 0.01, torch.float16: 0.02, torch.bfloat16: 0.1}  # of the norm
CUDNN_WITH_BFLOAT16 = 91300  # cuDNN 9.13 is the first whose LSTMs take bfloat16
BFLOAT16_CAPABILITY = (8, 0)  # of the first GPUs that compute in bfloat16


def compute_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of matrix products: autocast's where it is on, else the tensor's."""
    device_type = like.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return like.dtype


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of cells and alignments, which are sums over hundreds of frames."""
    return torch.promote_types(dtype, torch.float32)


def can_block(weight: Tensor) -> bool:
    """Tell if oneDNN has a blocked memory layout for this weight, which has no gradient."""
    if weight.device.type != "cpu" or torch.is_grad_enabled():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def repeated_linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return x -> x @ weight.T for a weight that every frame uses.

    On a CPU the product of a few rows with a large matrix is bound by reading the matrix. From
    oneDNN's blocked layout, made once here, that is 2 to 3 times as fast as row by row.
    """
    if can_block(weight):
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocked, None, "none", [], "")
    return lambda x: x @ weight.t()


def fold_location(attention: nn.Module) -> Tensor:
    """Fold the location convolution and the linear layer after it into U, (A, 2, K)."""
    return torch.einsum(
        "af,fck->ack", attention.location_layer.weight, attention.location_conv.weight
    )


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Double the keys, W_q, U and v, so that the loops can use sigmoid instead of tanh.

    tanh(x) = 2 sigmoid(2x) - 1, sigmoid is 3 to 6 times as fast on a CPU, and the softmax cancels
    the constant -1. All loops below and in fast/gpu.py take doubled tensors.
    """
    return tuple(2 * tensor for tensor in tensors)


# LSTM


def activate_(preactivations: Tensor, cell: Tensor, next_cell: Tensor) -> Tensor:
    """Turn preactivations (B, 4H) into [i, f, g, o] in place; write next_cell, return h."""
    hidden_dim = cell.shape[1]
    preactivations[:, : 2 * hidden_dim].sigmoid_()
    preactivations[:, 2 * hidden_dim : 3 * hidden_dim].tanh_()
    preactivations[:, 3 * hidden_dim :].sigmoid_()
    i, f, g, o = preactivations.chunk(4, dim=1)  # (B, H) each
    torch.mul(f, cell, out=next_cell).addcmul_(i, g)
    return o * next_cell.tanh()


class CellDerivatives(NamedTuple):
    """The factors of the LSTM's backward pass that depend only on the forward pass."""

    gates: Tensor  # (T_mel, B, 4, H): d c_t / d (i, f, g) and d h_t / d o, before the activations
    hidden_to_cell: Tensor  # (T_mel, B, H), d h_t / d c_t
    forget: Tensor  # (T_mel, B, H), d c_t / d c_{t-1}


def cell_derivatives(activations: Tensor, cells: Tensor) -> CellDerivatives:
    """Compute the factors from [i, f, g, o] (T_mel, B, 4H) and the cells (T_mel + 1, B, H)."""
    i, f, g, o = activations.unflatten(2, (4, -1)).unbind(2)  # (T_mel, B, H) each
    cells = cells.to(activations.dtype)
    tanh_cells = cells[1:].tanh()
    gates = torch.empty_like(activations).unflatten(2, (4, -1))
    torch.mul(i * g, 1 - i, out=gates[:, :, 0])
    torch.mul(f * cells[:-1], 1 - f, out=gates[:, :, 1])
    torch.mul(i, 1 - g * g, out=gates[:, :, 2])
    torch.mul(tanh_cells, o * (1 - o), out=gates[:, :, 3])
    return CellDerivatives(gates, o * tanh_cells.square_().neg_().add_(1), f)


def cell_backward_(
    derivatives: CellDerivatives, t: int, d_hidden: Tensor, d_cell: Tensor
) -> Tensor:
    """Run frame t backwards: turn derivatives.gates[t] into d_preactivations (B, 4H) in place.

    d_cell, the gradient of c_t from later frames, becomes that of c_{t-1} in place.
    """
    d_cell.add_(d_hidden * derivatives.hidden_to_cell[t])
    d_preactivations = derivatives.gates[t]
    d_preactivations[:, :3].mul_(d_cell.to(d_preactivations.dtype)[:, None])
    d_preactivations[:, 3].mul_(d_hidden)
    d_cell.mul_(derivatives.forget[t])
    return d_preactivations.flatten(1)


class _LSTM(torch.autograd.Function):
    """Runs a one-layer LSTM from a zero state, with the recurrent weight blocked once."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
        n_frames, batch_size, _ = inputs.shape
        hidden_dim = weight_hh.shape[1]
        preactivations = torch.addmm(bias, inputs.flatten(0, 1), weight_ih.t())
        preactivations = preactivations.view(n_frames, batch_size, 4 * hidden_dim)
        hiddens = inputs.new_zeros(n_frames + 1, batch_size, hidden_dim)
        cells = torch.zeros_like(hiddens, dtype=state_dtype(inputs.dtype))
        recurrent_product = repeated_linear(weight_hh)
        for t in range(n_frames):
            preactivations[t] += recurrent_product(hiddens[t])
            hiddens[t + 1] = activate_(preactivations[t], cells[t], cells[t + 1])
        activations = preactivations  # each frame in place
        ctx.save_for_backward(inputs, weight_ih, weight_hh, activations, hiddens, cells)
        return hiddens[1:].clone()

    @staticmethod
    def backward(ctx, grad_hiddens: Tensor):
        inputs, weight_ih, weight_hh, activations, hiddens, cells = ctx.saved_tensors
        recurrent_product = repeated_linear(weight_hh.t())
        derivatives = cell_derivatives(activations, cells)
        d_cell = torch.zeros_like(cells[0])
        d_hidden = grad_hiddens[-1]
        for t in reversed(range(len(inputs))):
            d_preactivations = cell_backward_(derivatives, t, d_hidden, d_cell)
            if t:
                d_hidden = recurrent_product(d_preactivations).add_(grad_hiddens[t - 1])
        rows = derivatives.gates.view(-1, activations.shape[2])  # d_preactivations, (T_mel * B, 4H)
        return (
            (rows @ weight_ih).view_as(inputs),
            rows.t() @ inputs.flatten(0, 1),
            rows.t() @ hiddens[:-1].flatten(0, 1),
            rows.sum(dim=0),
        )


def fast_lstm(inputs: Tensor, lstm: nn.LSTM) -> Tensor:
    """Compute `lstm(inputs)[0]` of a one-layer LSTM, (T_mel, B, n_in) -> (T_mel, B, n_hidden).

    On a CPU PyTorch's own LSTM spends most of its time on reordering the recurrent weight at each
    frame, so the loop above replaces it. On a GPU it is cuDNN's, outside autocast, which would run
    it in float16 even under bfloat16 (see Encoder in model.py).
    """
    dtype, device = compute_dtype(inputs), inputs.device
    if device.type == "cuda" and dtype == torch.bfloat16 and not cudnn_has_bfloat16(device):
        dtype = torch.float32
    with torch.autocast(device.type, enabled=False):
        if device.type == "cpu":
            weight_ih, weight_hh, bias_ih, bias_hh = lstm.parameters()
            weights = (weight_ih, weight_hh, bias_ih + bias_hh)
            return _LSTM.apply(inputs.to(dtype), *(weight.to(dtype) for weight in weights))
        if dtype == lstm.weight_hh_l0.dtype:
            return lstm(inputs.to(dtype))[0]
        return lstm_in_dtype(inputs, lstm, dtype)


def lstm_in_dtype(inputs: Tensor, lstm: nn.LSTM, dtype: torch.dtype) -> Tensor:
    """Compute `lstm(inputs)[0]` in dtype; gradients keep the dtype of inputs and weights."""
    weights = [weight.to(dtype) for weight in lstm.parameters()]
    zeros = inputs.new_zeros(1, inputs.shape[1], lstm.hidden_size, dtype=dtype)
    options = (True, 1, 0.0, lstm.training, False, False)  # as torch.lstm takes them
    with warnings.catch_warnings():
        # cuDNN needs the weights side by side; torch copies them there and warns.
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        return torch.lstm(inputs.to(dtype), (zeros, zeros), weights, *options)[0]


def cudnn_has_bfloat16(device: torch.device) -> bool:
    """Tell if cuDNN runs LSTMs in bfloat16 on this GPU; AMD's MIOpen does not."""
    if torch.version.hip or (torch.backends.cudnn.version() or 0) < CUDNN_WITH_BFLOAT16:
        return False
    return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


# Attention LSTM and attention, teacher forced


class Attention:
    """The attention over a text, prepared for many frames from doubled keys and weights."""

    def __init__(
        self, keys: Tensor, weight_query: Tensor, weight_location: Tensor, v: Tensor
    ) -> None:
        self.keys = keys.flatten(0, 1)  # (N, A)
        self.query_product = repeated_linear(weight_query)  # (B, H) -> (B, A)
        self.location_matrix = weight_location.flatten(1).t().contiguous()  # (2K, A)
        self.v = v  # (A,)

    def sigmoid(self, location: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Compute sigmoid(W_q q + K + U * location), (N, A); also return the windows, (N, 2K)."""
        kernel_size = len(self.location_matrix) // 2
        windows = location.unfold(2, kernel_size, 1).transpose(1, 2).reshape(-1, 2 * kernel_size)
        hidden = torch.addmm(self.keys, windows, self.location_matrix)
        hidden.view(len(query), -1, len(self.v)).add_(self.query_product(query)[:, None])
        return hidden.sigmoid_(), windows

    def align(self, location: Tensor, query: Tensor, padding_mask: Tensor, dtype) -> Tensor:
        """Compute a_t, (B, T_text), in dtype."""
        energies = (self.sigmoid(location, query)[0] @ self.v).view_as(padding_mask).to(dtype)
        return torch.softmax(energies.masked_fill_(padding_mask, -torch.inf), dim=1)

    def backward(
        self, location: Tensor, query: Tensor, d_energies: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run one frame backwards from d_energies (B, T_text), computing the sigmoid again.

        Returns:
            d_location (B, 2, T_text), and the gradients of W_q q (B, A), of the keys (N, A), of
            the location matrix (2K, A) and of v (A,).
        """
        batch_size, n_text = d_energies.shape
        kernel_size = len(self.location_matrix) // 2
        d_energies = d_energies.to(self.keys.dtype).view(-1, 1)  # (N, 1)
        sigmoid, windows = self.sigmoid(location, query)
        d_hidden = (1 - sigmoid).mul_(sigmoid).mul_(self.v).mul_(d_energies)  # (N, A)
        d_windows = (d_hidden @ self.location_matrix.t()).view(batch_size, n_text, -1)
        d_padded = F.fold(d_windows.transpose(1, 2), (1, location.shape[2]), (1, kernel_size))
        d_location = d_padded[:, :, 0, kernel_size // 2 : kernel_size // 2 + n_text]
        d_query_product = d_hidden.view(batch_size, n_text, -1).sum(dim=1)
        d_v = (d_energies.t() @ sigmoid).squeeze(0)
        return d_location, d_query_product, d_hidden, windows.t() @ d_hidden, d_v


class LoopInputs(NamedTuple):
    """The tensors that every frame of the loop reads; keys and the last three are doubled."""

    encoder_outputs: Tensor  # (B, T_text, E)
    keys: Tensor  # (B, T_text, A)
    padding_mask: Tensor  # (B, T_text)
    drops: Tensor | None  # (T_mel, B, H), the factors of the dropout
    weight_recurrent: Tensor  # (4H, E + H)
    weight_query: Tensor  # (A, H)
    weight_location: Tensor  # (A, 2, K)
    v: Tensor  # (A,)


class LoopFrames(NamedTuple):
    """The results of the loop; frame t reads row t of recurrent, cells and locations."""

    activations: Tensor  # (T_mel, B, 4H), [i, f, g, o]
    recurrent: Tensor  # (T_mel + 1, B, E + H), [context_{t-1}, h_{t-1}]
    cells: Tensor  # (T_mel + 1, B, H), c_{t-1}
    locations: Tensor  # (T_mel + 1, B, 2, T_text + K - 1), [a_{t-1}, sum_{s<t} a_s], zeros around
    queries: Tensor  # (T_mel, B, H), q_t
    alignments: Tensor  # (T_mel, B, T_text), a_t


class LoopGradients(NamedTuple):
    """The results of the backward loop."""

    d_preactivations: Tensor  # (T_mel, B, 4H)
    d_contexts: Tensor  # (T_mel, B, E)
    d_query_products: Tensor  # (T_mel, B, A), of W_q q_t
    d_keys: Tensor  # (N, A)
    d_location_matrix: Tensor  # (2K, A)
    d_v: Tensor  # (A,)


def forward_loop(preactivations: Tensor, inputs: LoopInputs) -> LoopFrames:
    """Run all frames from W_x x_t + b, (T_mel, B, 4H), which is activated in place."""
    encoder_outputs, keys, padding_mask, drops, weight_recurrent, *weights = inputs
    n_frames, batch_size, _ = preactivations.shape
    (_, n_text, encoder_dim), hidden_dim = encoder_outputs.shape, weights[0].shape[1]
    kernel_size = weights[1].shape[2]
    zeros, dtype = preactivations.new_zeros, state_dtype(preactivations.dtype)
    recurrent = zeros(n_frames + 1, batch_size, encoder_dim + hidden_dim)
    cells = zeros(n_frames + 1, batch_size, hidden_dim, dtype=dtype)
    locations = zeros(n_frames + 1, batch_size, 2, n_text + kernel_size - 1)
    queries = zeros(n_frames, batch_size, hidden_dim)
    alignments = zeros(n_frames, batch_size, n_text, dtype=dtype)

    inner = locations[..., kernel_size // 2 : kernel_size // 2 + n_text]  # without the padding
    cumulative_alignment = torch.zeros_like(alignments[0])
    recurrent_product, attention = repeated_linear(weight_recurrent), Attention(keys, *weights)
    for t in range(n_frames):
        preactivations[t] += recurrent_product(recurrent[t])
        hidden = activate_(preactivations[t], cells[t], cells[t + 1])
        query = queries[t].copy_(hidden)
        if drops is not None:
            query.mul_(drops[t])
        alignment = attention.align(locations[t], query, padding_mask, dtype)
        cumulative_alignment += alignment
        context = torch.bmm(alignment[:, None].to(encoder_outputs.dtype), encoder_outputs)
        alignments[t] = inner[t + 1, :, 0] = alignment
        inner[t + 1, :, 1] = cumulative_alignment
        recurrent[t + 1, :, :encoder_dim] = context.squeeze(1)
        recurrent[t + 1, :, encoder_dim:] = hidden
    activations = preactivations
    return LoopFrames(activations, recurrent, cells, locations, queries, alignments)


def backward_loop(
    frames: LoopFrames,
    inputs: LoopInputs,
    derivatives: CellDerivatives,
    grad_queries: Tensor,
    grad_contexts: Tensor,
    grad_alignments: Tensor,
) -> LoopGradients:
    """Run all frames backwards; derivatives.gates becomes d_preactivations in place."""
    encoder_outputs, keys, padding_mask, drops, weight_recurrent, weight_query, *_ = inputs
    n_frames, encoder_dim = len(grad_queries), encoder_outputs.shape[2]
    attention_dim = len(inputs.v)
    recurrent_product = repeated_linear(weight_recurrent.t())
    query_product = repeated_linear(weight_query.t())
    attention = Attention(keys, *inputs[5:])
    sums = {"dtype": frames.alignments.dtype}
    d_keys = torch.zeros_like(attention.keys, **sums)
    d_location_matrix = torch.zeros_like(attention.location_matrix, **sums)
    d_v = torch.zeros_like(attention.v, **sums)
    d_contexts = torch.empty_like(grad_contexts, memory_format=torch.contiguous_format)
    d_query_products = keys.new_empty(n_frames, len(keys), attention_dim)
    # Gradients from the frames after t: of [context_t, h_t], c_t, a_t and sum_{s<=t} a_s.
    d_recurrent = torch.zeros_like(frames.recurrent[0])
    d_cell = torch.zeros_like(frames.cells[0])
    d_alignment, d_cumulative = (torch.zeros_like(frames.alignments[0]) for _ in range(2))
    for t in reversed(range(n_frames)):
        torch.add(grad_contexts[t], d_recurrent[:, :encoder_dim], out=d_contexts[t])
        alignment = frames.alignments[t]
        d_alignment = d_alignment + d_cumulative + grad_alignments[t]
        d_alignment += torch.bmm(d_contexts[t][:, None], encoder_outputs.transpose(1, 2)).squeeze(1)
        d_energies = d_alignment - (d_alignment * alignment).sum(dim=1, keepdim=True)  # softmax
        d_energies = (d_energies * alignment).masked_fill_(padding_mask, 0.0)
        d_location, d_query_products[t], *parts = attention.backward(
            frames.locations[t], frames.queries[t], d_energies
        )
        for total, part in zip((d_keys, d_location_matrix, d_v), parts, strict=True):
            total += part
        d_alignment = d_location[:, 0]
        d_cumulative += d_location[:, 1]
        d_hidden = query_product(d_query_products[t]).add_(grad_queries[t])
        if drops is not None:
            d_hidden.mul_(drops[t])
        d_hidden += d_recurrent[:, encoder_dim:]
        d_recurrent = recurrent_product(cell_backward_(derivatives, t, d_hidden, d_cell))
    d_preactivations = derivatives.gates.flatten(2)
    return LoopGradients(
        d_preactivations, d_contexts, d_query_products, d_keys, d_location_matrix, d_v
    )


def choose_loops(on_gpu: bool) -> tuple[Callable, Callable]:
    """Return the forward and the backward loop, of fast/gpu.py or of this file."""
    if on_gpu:
        import fast.gpu as fast_gpu  # needs Triton, which comes with PyTorch on Linux only

        return fast_gpu.forward_loop, fast_gpu.backward_loop
    return forward_loop, backward_loop


class AttentionLoop(torch.autograd.Function):
    """Runs the loop of the module's docstring, and its gradient."""

    @staticmethod
    def forward(
        ctx,
        on_gpu: bool,  # run fast/gpu.py's loops instead of those above
        prenet_outputs: Tensor,  # (T_mel, B, P)
        encoder_outputs: Tensor,  # (B, T_text, E)
        keys: Tensor,  # (B, T_text, A), doubled
        padding_mask: Tensor,  # (B, T_text)
        drops: Tensor | None,  # (T_mel, B, H)
        weight_ih: Tensor,  # (4H, P + E)
        weight_hh: Tensor,  # (4H, H)
        bias: Tensor,  # (4H,)
        weight_query: Tensor,  # (A, H), doubled as the next two
        weight_location: Tensor,  # (A, 2, K)
        v: Tensor,  # (A,)
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_frames, batch_size, prenet_dim = prenet_outputs.shape
        x_product = torch.addmm(bias, prenet_outputs.flatten(0, 1), weight_ih[:, :prenet_dim].t())
        weight_recurrent = torch.cat([weight_ih[:, prenet_dim:], weight_hh], dim=1)
        weights = weight_recurrent, weight_query, weight_location, v
        inputs = LoopInputs(encoder_outputs, keys, padding_mask, drops, *weights)
        run = choose_loops(on_gpu)[0]
        frames = LoopFrames(*run(x_product.view(n_frames, batch_size, -1), inputs))
        ctx.on_gpu = on_gpu
        ctx.save_for_backward(prenet_outputs, weight_ih, *inputs, *frames)
        contexts = frames.recurrent[1:, :, : encoder_outputs.shape[2]].contiguous()
        return frames.queries.clone(), contexts, frames.alignments.clone()

    @staticmethod
    def backward(ctx, grad_queries: Tensor, grad_contexts: Tensor, grad_alignments: Tensor):
        prenet_outputs, weight_ih, *saved = ctx.saved_tensors
        inputs, frames = LoopInputs(*saved[:8]), LoopFrames(*saved[8:])
        derivatives = cell_derivatives(frames.activations, frames.cells)
        run = choose_loops(ctx.on_gpu)[1]
        gradients = LoopGradients(
            *run(frames, inputs, derivatives, grad_queries, grad_contexts, grad_alignments)
        )
        # The gradient of each weight is one product over all T_mel * B rows.
        prenet_dim, encoder_dim = prenet_outputs.shape[2], inputs.encoder_outputs.shape[2]
        dtype = inputs.encoder_outputs.dtype
        rows = gradients.d_preactivations.flatten(0, 1)  # (T_mel * B, 4H)
        d_weight_prenet = rows.t() @ prenet_outputs.flatten(0, 1)  # (4H, P)
        d_weight_recurrent = rows.t() @ frames.recurrent[:-1].flatten(0, 1)  # (4H, E + H)
        alignments = frames.alignments.permute(1, 2, 0).to(dtype)  # (B, T_text, T_mel)
        return (
            None,
            (rows @ weight_ih[:, :prenet_dim]).view_as(prenet_outputs),
            torch.bmm(alignments, gradients.d_contexts.transpose(0, 1)),
            gradients.d_keys.view_as(inputs.keys).to(dtype),
            None,
            None,
            torch.cat([d_weight_prenet, d_weight_recurrent[:, :encoder_dim]], dim=1),
            d_weight_recurrent[:, encoder_dim:],
            rows.sum(dim=0),
            gradients.d_query_products.flatten(0, 1).t() @ frames.queries.flatten(0, 1),
            gradients.d_location_matrix.t().reshape_as(inputs.weight_location).to(dtype),
            gradients.d_v.to(dtype),
        )


def attention_loop(
    prenet_outputs: Tensor,
    encoder_outputs: Tensor,
    keys: Tensor,
    padding_mask: Tensor,
    drops: Tensor | None,
    attention_rnn: nn.LSTMCell,
    attention: nn.Module,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the attention LSTM and the attention over all frames, teacher forced.

    Args:
        prenet_outputs: (T_mel, B, decoder_prenet_dim).
        encoder_outputs: (B, T_text, encoder_embed_dim).
        keys: (B, T_text, attention_dim), V encoder_outputs.
        padding_mask: (B, T_text) bool, True = padding.
        drops: (T_mel, B, decoder_rnn_embed_dim), the factors of the dropout; None for none.
        attention_rnn, attention: of model.py's Decoder, for their weights.

    Returns:
        queries (T_mel, B, decoder_rnn_embed_dim), the LSTM's outputs after dropout;
        contexts (T_mel, B, encoder_embed_dim); alignments (T_mel, B, T_text), float32 or float64.
        Under autocast the products run in autocast's dtype; cells and alignments stay float32.
    """
    dtype, device = compute_dtype(encoder_outputs), encoder_outputs.device
    weight_ih, weight_hh, bias_ih, bias_hh = attention_rnn.parameters()
    weights = (weight_ih, weight_hh, bias_ih + bias_hh)
    weight_query, weight_location = attention.query_layer.weight, fold_location(attention)
    on_gpu, n_text = gpu_attention_works(weight_location, device, dtype), keys.shape[1]
    if on_gpu:
        n_more = -n_text % TEXT_STEP
        encoder_outputs, keys = (F.pad(x, (0, 0, 0, n_more)) for x in (encoder_outputs, keys))
        padding_mask = F.pad(padding_mask, (0, n_more), value=True)
    doubled = double(keys, weight_query, weight_location, attention.v.weight.squeeze(0))
    with torch.autocast(device.type, enabled=False):
        doubled_keys, *doubled = (x.to(dtype) for x in doubled)
        queries, contexts, alignments = AttentionLoop.apply(
            on_gpu,
            prenet_outputs.to(dtype),
            encoder_outputs.to(dtype),
            doubled_keys,
            padding_mask,
            None if drops is None else drops.to(dtype),
            *(weight.to(dtype) for weight in weights),
            *doubled,
        )
    return queries, contexts, alignments[..., :n_text]


# Trying fast/gpu.py on the GPU at hand

TRIAL_BATCH = (3, 2, 70)  # frames, clips, characters
TRIAL_SIZES = (256, 512, 1024, 128, 31)  # P, E, H, A, K: the paper's, so what training compiles


@lru_cache
def gpu_loops_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Try fast/gpu.py's loops once per GPU and dtype, against the loops above.

    GPUs, drivers and compilers differ, and a slower run is better than a wrong one: if the kernels
    fail or disagree, one line says why and the loops above run.
    """
    if device.type != "cuda" or dtype not in GPU_TOLERANCE:
        return False
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < BFLOAT16_CAPABILITY:
        return False  # the GPU would emulate it; training advises fp16 there
    try:
        error = gpu_disagreement(device, dtype)
        if error < GPU_TOLERANCE[dtype]:
            return True
        reason = f"they are {error:.2g} of the norm away from the plain loop"
    except Exception as error:  # of Triton, its compiler or the driver
        reason = explain_failure(error)
    warn(f"{device}: no fused kernels, which is slower; {reason}")
    return False


def explain_failure(error: Exception) -> str:
    """Explain in one line why the kernels failed, and what to install if a compiler is missing."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, subprocess.CalledProcessError):
        reason = f"the C compiler {error.cmd[0]} failed"
    elif not isinstance(error, OSError) and "C compiler" not in reason:
        return reason
    return (
        f"{reason}; Triton needs a C compiler and Python's headers: on Debian and Ubuntu "
        "install gcc and python3-dev, or name a compiler in the environment variable CC"
    )


def gpu_attention_works(weight_location: Tensor, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell if fast/gpu.py runs this attention; the location convolution (A, 2, K) must fit."""
    return weight_location.shape[2] <= MAX_GPU_KERNEL_SIZE and gpu_loops_work(device, dtype)


def gpu_disagreement(device: torch.device, dtype: torch.dtype) -> float:
    """Measure how far fast/gpu.py's loops in dtype are from the loops above in float32.

    Returns the largest distance of an output or gradient of a small batch, as a share of its norm.
    """
    with torch.inference_mode(False), torch.enable_grad():
        arguments = _trial_arguments(device, dtype)
        exact = [x if x.dtype == torch.bool else x.float() for x in arguments]
        wanted = [x for x in arguments if x.requires_grad]
        results = []
        with torch.autocast(device.type, enabled=False):
            for on_gpu, inputs in ((False, exact), (True, arguments)):
                outputs = AttentionLoop.apply(on_gpu, *inputs)
                gradients = torch.autograd.grad(outputs, wanted, [x.sign() for x in outputs])
                results.append([x.detach().float() for x in (*outputs, *gradients)])
    distances = [(ours - plain).norm() / plain.norm() for plain, ours in zip(*results, strict=True)]
    return float(torch.stack(distances).max())  # nan if any distance is nan


def _trial_arguments(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Make arguments of AttentionLoop: two clips, one of them half padding."""
    (n_frames, batch_size, n_text), (P, E, H, A, K) = TRIAL_BATCH, TRIAL_SIZES
    generator = torch.Generator().manual_seed(0)  # leaves training's random numbers alone

    def random(*shape: int) -> Tensor:
        # Large enough for a sharp alignment; otherwise W_q's gradient would be rounding errors.
        x = torch.randn(shape, generator=generator) / shape[-1] ** 0.3
        return x.to(device, dtype).requires_grad_()

    inputs = [random(n_frames, batch_size, P), random(batch_size, n_text, E)]
    inputs.append(random(batch_size, n_text, A))
    lengths = torch.tensor([[n_text], [n_text // 2]])
    mask = (torch.arange(n_text) >= lengths).to(device)
    drops = (torch.rand(n_frames, batch_size, H, generator=generator) > 0.1).to(device, dtype)
    shapes = ((4 * H, P + E), (4 * H, H), (4 * H,), (A, H), (A, 2, K), (A,))
    return [*inputs, mask, drops, *(random(*shape) for shape in shapes)]
