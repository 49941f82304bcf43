"""fast_loops.py and free running on a GPU: Triton kernels, their launches, CUDA graphs.

Takes and returns tensors, and imports nothing of this repo. Run one operation at a time, a frame
is 27 launches forwards and 40 backwards, and a GPU finishes most of them sooner than the next one
is launched. Here it is five each way:

    forwards   preactivations_t += W_r [context_{t-1}, h_{t-1}]   matrix product
               c_t, h_t, q_t                                      cell_kernel
               W_q q_t                                            matrix product
               e_t                                                energies_kernel
               a_t, context_t                                     context_kernel
    backwards  d e_t                                              energies_backward_kernel
               d (W_q q_t), d K, d U, d v, d location_t           hidden_backward_kernel
               d q_t                                              matrix product
               d preactivations_t, d c_{t-1}                      cell_backward_kernel
               d [context_{t-1}, h_{t-1}]                         matrix product

Each accumulator belongs to one program and there are no atomics, so results are deterministic, and
Triton's interpreter, which runs one program after the other on a CPU, computes what a GPU does
(tests/test_fast_gpu.py). Symbols, shapes and the doubled tensors are those of fast_loops.py.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK_UNITS = 512  # of an LSTM, per program
BLOCK_TEXT = 64  # characters per program, where the location convolution is
BLOCK_HIDDEN = 32  # channels of the attention's hidden layer at a time
BLOCK_OUTPUTS = 128  # channels of the context per program
BLOCK_ENCODER = 64  # of them, or of encoder_outputs, at a time
MIN_ROW = 64  # shorter texts share the kernels of this length: each power of two is compiled
ROW_WARPS = 8  # where a program has a whole row of characters

Launch = Callable[..., Any]
Launcher = Callable[[Any, tuple[int, ...], dict[str, int]], Launch]  # one of the two below
# carry -> (outputs, carry)
StepsFunction = Callable[[tuple[Tensor, ...]], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]

# Kernels


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def cell_kernel(
    gates,  # (B, 4H), activated in place
    cells,  # (B, H), c_{t-1}
    next_cells,  # (B, H), c_t
    hiddens,  # (B, H), rows hidden_stride apart, h_t
    queries,  # (B, H), d_t h_t; or None
    drops,  # (B, H), d_t; or None
    hidden_stride,
    HIDDEN_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The LSTM's activations; a program has BLOCK units of one clip."""
    row = tl.program_id(0)
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = units < HIDDEN_DIM
    gate = gates + row * 4 * HIDDEN_DIM + units
    i = tl.sigmoid(tl.load(gate, valid, 0.0).to(tl.float32))
    f = tl.sigmoid(tl.load(gate + HIDDEN_DIM, valid, 0.0).to(tl.float32))
    g = _tanh(tl.load(gate + 2 * HIDDEN_DIM, valid, 0.0).to(tl.float32))
    o = tl.sigmoid(tl.load(gate + 3 * HIDDEN_DIM, valid, 0.0).to(tl.float32))
    place = row * HIDDEN_DIM + units
    cell = f * tl.load(cells + place, valid, 0.0) + i * g
    hidden = o * _tanh(cell)
    tl.store(gate, i, valid)
    tl.store(gate + HIDDEN_DIM, f, valid)
    tl.store(gate + 2 * HIDDEN_DIM, g, valid)
    tl.store(gate + 3 * HIDDEN_DIM, o, valid)
    tl.store(next_cells + place, cell, valid)
    tl.store(hiddens + row * hidden_stride + units, hidden, valid)
    if queries is not None:
        if drops is not None:
            hidden *= tl.load(drops + place, valid, 0.0).to(tl.float32)
        tl.store(queries + place, hidden, valid)


@triton.jit
def cell_backward_kernel(
    d_queries,  # (B, n_blocks, H), of query_t from W_q query_t, to be added up
    grad_queries,  # (B, H), of query_t from all else
    drops,  # (B, H); or None
    d_hiddens,  # (B, H), rows hidden_stride apart, of h_t from frame t + 1
    d_gates,  # (B, 4, H), the derivatives, then the gradient
    d_cells,  # (B, H), d h_t / d c_t
    forgets,  # (B, H), rows forget_stride apart
    d_cell,  # (B, H), moves one frame back
    hidden_stride,
    forget_stride,
    N_BLOCKS: tl.constexpr,
    HIDDEN_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`CellBackward.step` and what comes before it; a program has BLOCK units of one clip."""
    row = tl.program_id(0)
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = units < HIDDEN_DIM
    place = row * HIDDEN_DIM + units
    d_hidden = tl.load(grad_queries + place, valid, 0.0).to(tl.float32)
    for block in range(N_BLOCKS):
        d_query = d_queries + (row * N_BLOCKS + block) * HIDDEN_DIM + units
        d_hidden += tl.load(d_query, valid, 0.0).to(tl.float32)
    if drops is not None:
        d_hidden *= tl.load(drops + place, valid, 0.0).to(tl.float32)
    d_hidden += tl.load(d_hiddens + row * hidden_stride + units, valid, 0.0).to(tl.float32)
    d_c = tl.load(d_cell + place, valid, 0.0)
    d_c += d_hidden * tl.load(d_cells + place, valid, 0.0).to(tl.float32)
    forget = tl.load(forgets + row * forget_stride + units, valid, 0.0).to(tl.float32)
    tl.store(d_cell + place, d_c * forget, valid)
    for part in tl.static_range(4):
        gate = d_gates + (row * 4 + part) * HIDDEN_DIM + units
        factor = d_c if part < 3 else d_hidden
        tl.store(gate, tl.load(gate, valid, 0.0).to(tl.float32) * factor, valid)


@triton.jit
def _load_windows(
    location, n_text, characters, KERNEL_SIZE: tl.constexpr, BLOCK_TAPS: tl.constexpr
):
    """What the location convolution sees at each character: (BLOCK_TEXT, BLOCK_TAPS)."""
    taps = tl.arange(0, BLOCK_TAPS)
    offsets = (taps // KERNEL_SIZE) * (n_text + KERNEL_SIZE - 1) + taps % KERNEL_SIZE
    valid = (characters < n_text)[:, None] & (taps < 2 * KERNEL_SIZE)[None, :]
    return tl.load(location + characters[:, None] + offsets[None, :], valid, 0.0)


@triton.jit
def _load_matrix(
    matrix,
    channels,
    ATTENTION_DIM: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
):
    """Some channels of U: (BLOCK_TAPS, BLOCK)."""
    taps = tl.arange(0, BLOCK_TAPS)
    valid = (taps < 2 * KERNEL_SIZE)[:, None] & (channels < ATTENTION_DIM)[None, :]
    return tl.load(matrix + taps[:, None] * ATTENTION_DIM + channels[None, :], valid, 0.0)


@triton.jit
def _sigmoid_hidden(
    windows, u, keys, query_products, n_text, characters, channels, ATTENTION_DIM: tl.constexpr
):
    """Some channels of sigmoid(W_q q + K + U * location): (BLOCK_TEXT, BLOCK)."""
    inside = channels < ATTENTION_DIM
    key = keys + characters[:, None] * ATTENTION_DIM + channels[None, :]
    # Three TF32 products make one of float32; with bfloat16 this says nothing.
    hidden = tl.dot(windows, u, input_precision="tf32x3")
    hidden += tl.load(key, (characters < n_text)[:, None] & inside[None, :], 0.0).to(tl.float32)
    hidden += tl.load(query_products + channels, inside, 0.0).to(tl.float32)[None, :]
    return tl.sigmoid(hidden)


@triton.jit(do_not_specialize=["n_text"], do_not_specialize_on_alignment=["location"])
def energies_kernel(
    location,  # (B, 2, T_text + K - 1), [a_{t-1}, sum_{s<t} a_s] between zeros
    query_products,  # (B, A), W_q query_t
    keys,  # (B, T_text, A)
    matrix,  # (2K, A), U
    v,  # (A,)
    energies,  # (B, T_text), e_t
    n_text,
    ATTENTION_DIM: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_TEXT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """v^T sigmoid(...); a program has BLOCK_TEXT characters of one clip."""
    row = tl.program_id(0)
    characters = tl.program_id(1) * BLOCK_TEXT + tl.arange(0, BLOCK_TEXT)
    location += row * 2 * (n_text + KERNEL_SIZE - 1)
    windows = _load_windows(location, n_text, characters, KERNEL_SIZE, BLOCK_TAPS)
    keys += row * n_text * ATTENTION_DIM
    query_products += row * ATTENTION_DIM
    energy = tl.zeros((BLOCK_TEXT,), tl.float32)
    for start in range(0, ATTENTION_DIM, BLOCK):
        channels = start + tl.arange(0, BLOCK)
        u = _load_matrix(matrix, channels, ATTENTION_DIM, KERNEL_SIZE, BLOCK_TAPS)
        hidden = _sigmoid_hidden(
            windows, u, keys, query_products, n_text, characters, channels, ATTENTION_DIM
        )
        weight = tl.load(v + channels, channels < ATTENTION_DIM, 0.0).to(tl.float32)
        energy += tl.sum(hidden * weight[None, :], axis=1)
    tl.store(energies + row * n_text + characters, energy, characters < n_text)


@triton.jit(
    do_not_specialize=["n_text"],
    do_not_specialize_on_alignment=["alignment", "next_location"],
)
def context_kernel(
    energies,  # (B, T_text), e_t
    padding_mask,  # (B, T_text)
    encoder_outputs,  # (B, T_text, E)
    cumulative,  # (B, T_text), sum_{s<t} a_s
    next_cumulative,  # (B, T_text), with a_t
    alignment,  # (B, T_text), a_t
    next_location,  # (B, 2, T_text + K - 1), of frame t + 1
    contexts,  # (B, E), rows context_stride apart
    n_text,
    context_stride,
    ENCODER_DIM: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Softmax and context; a program has BLOCK_OUTPUTS channels of one clip's context."""
    row = tl.program_id(0)
    characters = tl.arange(0, ROW)
    inside = characters < n_text
    place = row * n_text + characters
    energy = tl.load(energies + place, inside, float("-inf"))
    padding = tl.load(padding_mask + place, inside, 0)
    energy = tl.where(padding != 0, -3.4028234663852886e38, energy)  # float32's lowest
    weights = tl.exp(energy - tl.max(energy, axis=0))
    weights = weights / tl.sum(weights, axis=0)
    if tl.program_id(1) == 0:
        total = tl.load(cumulative + place, inside, 0.0) + weights
        tl.store(alignment + place, weights, inside)
        tl.store(next_cumulative + place, total, inside)
        first = next_location + row * 2 * (n_text + KERNEL_SIZE - 1) + KERNEL_SIZE // 2
        tl.store(first + characters, weights, inside)
        tl.store(first + n_text + KERNEL_SIZE - 1 + characters, total, inside)
    for start in range(0, BLOCK_OUTPUTS, BLOCK):
        channels = tl.program_id(1) * BLOCK_OUTPUTS + start + tl.arange(0, BLOCK)
        valid = channels < ENCODER_DIM
        outputs = tl.load(
            encoder_outputs + place[:, None] * ENCODER_DIM + channels[None, :],
            inside[:, None] & valid[None, :],
            0.0,
        )
        context = tl.sum(outputs.to(tl.float32) * weights[:, None], axis=0)
        tl.store(contexts + row * context_stride + channels, context, valid)


@triton.jit
def _load_carry(d_windows, n_text, characters, KERNEL_SIZE: tl.constexpr, BLOCK_TAPS: tl.constexpr):
    """One channel of the location's gradient from that of its windows: (ROW,).

    Character j lies in the windows of the characters j - K // 2 to j + K // 2; row r of d_windows
    is the window of character r - K // 2.
    """
    taps = tl.arange(0, BLOCK_TAPS)
    valid = (characters < n_text)[:, None] & (taps < KERNEL_SIZE)[None, :]
    windows = characters[:, None] + (KERNEL_SIZE - 1 - taps)[None, :]
    return tl.sum(
        tl.load(d_windows + windows * 2 * KERNEL_SIZE + taps[None, :], valid, 0.0), axis=1
    )


@triton.jit(
    do_not_specialize=["n_text"],
    do_not_specialize_on_alignment=["alignment", "grad_alignments"],
)
def energies_backward_kernel(
    alignment,  # (B, T_text), a_t
    padding_mask,  # (B, T_text)
    encoder_outputs,  # (B, T_text, E)
    grad_alignments,  # (B, T_text), of a_t from the loss
    grad_contexts,  # (B, E), of context_t from all that is not a frame
    d_recurrent,  # (B, E), rows recurrent_stride apart, of context_t from frame t + 1
    d_contexts,  # (B, E), their sum
    d_windows,  # (B, T_text + K - 1, 2K), of frame t + 1's windows, between zeros
    d_cumulative,  # (B, T_text), of sum_{s<=t+1} a_s, from the locations after frame t + 1's
    next_d_cumulative,  # (B, T_text), of sum_{s<=t} a_s, from frame t + 1's location on
    d_energies,  # (B, T_text), of e_t
    n_text,
    recurrent_stride,
    ENCODER_DIM: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Softmax and context backwards; a program has one clip."""
    row = tl.program_id(0)
    characters = tl.arange(0, ROW)
    inside = characters < n_text
    place = row * n_text + characters
    d_windows += row * (n_text + KERNEL_SIZE - 1) * 2 * KERNEL_SIZE
    total = tl.load(d_cumulative + place, inside, 0.0)
    total += _load_carry(d_windows + KERNEL_SIZE, n_text, characters, KERNEL_SIZE, BLOCK_TAPS)
    tl.store(next_d_cumulative + place, total, inside)
    d_alignment = total + tl.load(grad_alignments + place, inside, 0.0)
    d_alignment += _load_carry(d_windows, n_text, characters, KERNEL_SIZE, BLOCK_TAPS)
    for start in range(0, ENCODER_DIM, BLOCK):
        channels = start + tl.arange(0, BLOCK)
        valid = channels < ENCODER_DIM
        d_context = tl.load(grad_contexts + row * ENCODER_DIM + channels, valid, 0.0).to(tl.float32)
        later = tl.load(d_recurrent + row * recurrent_stride + channels, valid, 0.0)
        d_context += later.to(tl.float32)
        tl.store(d_contexts + row * ENCODER_DIM + channels, d_context, valid)
        outputs = tl.load(
            encoder_outputs + place[:, None] * ENCODER_DIM + channels[None, :],
            inside[:, None] & valid[None, :],
            0.0,
        )
        d_alignment += tl.sum(outputs.to(tl.float32) * d_context[None, :], axis=1)
    weights = tl.load(alignment + place, inside, 0.0)
    d_energy = (d_alignment - tl.sum(d_alignment * weights, axis=0)) * weights
    padding = tl.load(padding_mask + place, inside, 0)
    tl.store(d_energies + place, tl.where(padding != 0, 0.0, d_energy), inside)


@triton.jit(do_not_specialize=["n_text"], do_not_specialize_on_alignment=["location"])
def hidden_backward_kernel(
    location,  # as for energies_kernel, the next four too
    query_products,
    keys,
    matrix,
    v,
    d_energies,  # (B, T_text), of e_t
    d_windows,  # (B, T_text + K - 1, 2K), of frame t's windows, between zeros
    d_query_products,  # (B, n_blocks, A), of W_q query_t, to be added up
    d_keys,  # (B, T_text, A), added to
    d_matrix,  # (B, n_blocks, 2K, A), added to
    d_v,  # (B, n_blocks, A), of the frames after t
    next_d_v,  # (B, n_blocks, A), with frame t
    n_text,
    ATTENTION_DIM: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_TEXT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sigmoid again, and all behind it; a program has BLOCK_TEXT characters of one clip."""
    row = tl.program_id(0)
    block = row * tl.num_programs(1) + tl.program_id(1)
    characters = tl.program_id(1) * BLOCK_TEXT + tl.arange(0, BLOCK_TEXT)
    inside = characters < n_text
    taps = tl.arange(0, BLOCK_TAPS)
    is_tap = taps < 2 * KERNEL_SIZE
    location += row * 2 * (n_text + KERNEL_SIZE - 1)
    windows = _load_windows(location, n_text, characters, KERNEL_SIZE, BLOCK_TAPS)
    keys += row * n_text * ATTENTION_DIM
    d_keys += row * n_text * ATTENTION_DIM
    query_products += row * ATTENTION_DIM
    d_energy = tl.load(d_energies + row * n_text + characters, inside, 0.0)
    d_window = tl.zeros((BLOCK_TEXT, BLOCK_TAPS), tl.float32)
    for start in range(0, ATTENTION_DIM, BLOCK):
        channels = start + tl.arange(0, BLOCK)
        valid = channels < ATTENTION_DIM
        u = _load_matrix(matrix, channels, ATTENTION_DIM, KERNEL_SIZE, BLOCK_TAPS)
        hidden = _sigmoid_hidden(
            windows, u, keys, query_products, n_text, characters, channels, ATTENTION_DIM
        )
        d_weight = tl.load(d_v + block * ATTENTION_DIM + channels, valid, 0.0)
        d_weight += tl.sum(hidden * d_energy[:, None], axis=0)
        tl.store(next_d_v + block * ATTENTION_DIM + channels, d_weight, valid)
        weight = tl.load(v + channels, valid, 0.0).to(tl.float32)
        d_hidden = hidden * (1.0 - hidden) * weight[None, :] * d_energy[:, None]
        d_query_product = tl.sum(d_hidden, axis=0)
        tl.store(d_query_products + block * ATTENTION_DIM + channels, d_query_product, valid)
        d_key = d_keys + characters[:, None] * ATTENTION_DIM + channels[None, :]
        is_key = inside[:, None] & valid[None, :]
        tl.store(d_key, tl.load(d_key, is_key, 0.0) + d_hidden, is_key)
        d_hidden = d_hidden.to(windows.dtype)
        d_u = (block * 2 * KERNEL_SIZE + taps[:, None]) * ATTENTION_DIM + channels[None, :]
        is_u = is_tap[:, None] & valid[None, :]
        sum_u = tl.load(d_matrix + d_u, is_u, 0.0)
        sum_u += tl.dot(tl.trans(windows), d_hidden, input_precision="tf32x3")
        tl.store(d_matrix + d_u, sum_u, is_u)
        d_window += tl.dot(d_hidden, tl.trans(u), input_precision="tf32x3")
    rows = row * (n_text + KERNEL_SIZE - 1) + KERNEL_SIZE // 2 + characters
    place = rows[:, None] * 2 * KERNEL_SIZE + taps[None, :]
    tl.store(d_windows + place, d_window, inside[:, None] & is_tap[None, :])


# Launching


def plain_launch(kernel: Any, grid: tuple[int, ...], constants: dict[str, int]) -> Launch:
    """A kernel with its grid and constants: called with all its other arguments, in order."""
    return partial(kernel[grid], **constants)


def frame_launch(kernel: Any, grid: tuple[int, ...], constants: dict[str, int]) -> Launch:
    """`plain_launch` for a loop over frames, on one stream, at less of the host's time.

    At each launch Triton looks at every argument, which takes as long as a small kernel runs: it
    compiles one source several times, by what may be taken for granted of numbers and of addresses
    (multiples of 16 or not). In a loop an argument stays from frame to frame, or moves by the same
    distance, or is the first and the second of a pair in turn: where two frames in a row got the
    same compiled kernel, all that follow would, and it is launched as it is.
    """
    look_up = plain_launch(kernel, grid, constants)
    values = [constants[name] for name in kernel.arg_names if name in constants]
    latest = direct = None

    def launch(*arguments: Any) -> None:
        nonlocal latest, direct
        if direct:
            direct(*arguments, *values)
            return
        compiled = look_up(*arguments)  # None in Triton's interpreter
        if compiled and compiled is latest:
            stream, hooks = torch.cuda.current_stream().cuda_stream, (None, None, None)
            function, metadata = compiled.function, compiled.packed_metadata
            direct = partial(compiled.run, *grid, stream, function, metadata, *hooks)
        latest = compiled

    return launch


def _cell_launch(cell: Tensor, launcher: Launcher) -> Launch:
    sizes = {"HIDDEN_DIM": cell.shape[1], "BLOCK": BLOCK_UNITS}
    return launcher(cell_kernel, _cell_grid(cell), sizes)


def _cell_grid(cell: Tensor) -> tuple[int, int, int]:
    batch_size, hidden_dim = cell.shape
    return batch_size, triton.cdiv(hidden_dim, BLOCK_UNITS), 1


class _Clip(NamedTuple):
    """What the attention's kernels read of a batch of texts, and how they are launched."""

    encoder_outputs: Tensor  # (B, T_text, E)
    keys: Tensor  # (B, T_text, A)
    padding_mask: Tensor  # (B, T_text)
    v: Tensor  # (A,)
    matrix: Tensor  # (2K, A), U
    energies: Tensor  # (B, T_text), scratch; backwards their gradient
    convolution: dict[str, int]  # constants of the kernels with the location convolution
    row: dict[str, int]  # constants of those with a whole row of characters
    n_blocks: int  # programs that share a clip's characters


def _prepare_clip(
    encoder_outputs: Tensor, keys: Tensor, padding_mask: Tensor, weight_location: Tensor, v: Tensor
) -> _Clip:
    attention_dim, _, kernel_size = weight_location.shape
    _, n_text, encoder_dim = encoder_outputs.shape
    n_taps = max(triton.next_power_of_2(2 * kernel_size), 16)  # tl.dot's least
    convolution = {"BLOCK_TEXT": BLOCK_TEXT, "BLOCK_TAPS": n_taps, "BLOCK": BLOCK_HIDDEN}
    row = {"ROW": max(triton.next_power_of_2(n_text), MIN_ROW), "BLOCK": BLOCK_ENCODER}
    return _Clip(
        encoder_outputs.contiguous(),
        keys.contiguous(),
        padding_mask.contiguous(),
        v,
        weight_location.flatten(1).t().contiguous(),
        v.new_empty(padding_mask.shape, dtype=torch.float32),
        convolution | {"ATTENTION_DIM": attention_dim, "KERNEL_SIZE": kernel_size},
        row | {"ENCODER_DIM": encoder_dim, "KERNEL_SIZE": kernel_size, "num_warps": ROW_WARPS},
        triton.cdiv(n_text, BLOCK_TEXT),
    )


def _attention_launch(clip: _Clip, launcher: Launcher) -> Launch:
    """One frame's attention, from W_q q_t to the context; shapes as for the kernels."""
    batch_size, n_text, encoder_dim = clip.encoder_outputs.shape
    energies_grid = (batch_size, clip.n_blocks, 1)
    context_grid = (batch_size, triton.cdiv(encoder_dim, BLOCK_OUTPUTS), 1)
    context_sizes = clip.row | {"BLOCK_OUTPUTS": BLOCK_OUTPUTS}
    launch_energies = launcher(energies_kernel, energies_grid, clip.convolution)
    launch_context = launcher(context_kernel, context_grid, context_sizes)

    def launch(
        query_product: Tensor,
        location: Tensor,
        cumulative: Tensor,
        next_cumulative: Tensor,
        alignment: Tensor,
        next_location: Tensor,
        context: Tensor,
    ) -> None:
        """Reads the first three, writes the others."""
        launch_energies(
            location, query_product, clip.keys, clip.matrix, clip.v, clip.energies, n_text
        )
        launch_context(
            clip.energies, clip.padding_mask, clip.encoder_outputs, cumulative, next_cumulative,
            alignment, next_location, context, n_text, context.stride(0),
        )  # fmt: skip

    return launch


# The loops of teacher forcing


def forward_loop(preactivations: Tensor, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """`forward_loop` of fast_loops.py: the fields of its LoopInputs in, of its LoopFrames out."""
    encoder_outputs, keys, padding_mask, drops, weight_recurrent, weight_query, *weights = inputs
    n_frames, batch_size, _ = preactivations.shape
    (_, n_text, encoder_dim), (attention_dim, hidden_dim) = (
        encoder_outputs.shape,
        weight_query.shape,
    )
    zeros, wide = preactivations.new_zeros, {"dtype": torch.float32}
    recurrent = zeros(n_frames + 1, batch_size, encoder_dim + hidden_dim)
    cells = zeros(n_frames + 1, batch_size, hidden_dim, **wide)
    locations = zeros(n_frames + 1, batch_size, 2, n_text + weights[0].shape[2] - 1)
    queries = zeros(n_frames, batch_size, hidden_dim)
    alignments = zeros(n_frames, batch_size, n_text, **wide)
    frames = (preactivations, recurrent, cells, locations, queries, alignments)

    clip = _prepare_clip(encoder_outputs, keys, padding_mask, *weights)
    launch_attention = _attention_launch(clip, frame_launch)
    launch_cell = _cell_launch(cells[0], frame_launch)
    weight_recurrent, weight_query = weight_recurrent.t(), weight_query.t()
    query_product = zeros(batch_size, attention_dim)
    cumulative = [torch.zeros_like(alignments[0]) for _ in range(2)]
    contexts, hiddens = (part.unbind() for part in recurrent.tensor_split([encoder_dim], 2))
    drops = [None] * n_frames if drops is None else drops.unbind()
    hidden_stride = hiddens[0].stride(0)
    gates, recurrent, cells, locations, queries, alignments = (x.unbind() for x in frames)
    with torch.cuda.device_of(preactivations):
        for t, gate in enumerate(gates):
            gate.addmm_(recurrent[t], weight_recurrent)
            launch_cell(
                gate, cells[t], cells[t + 1], hiddens[t + 1], queries[t], drops[t], hidden_stride
            )
            torch.mm(queries[t], weight_query, out=query_product)
            launch_attention(
                query_product, locations[t], cumulative[t % 2], cumulative[1 - t % 2],
                alignments[t], locations[t + 1], contexts[t + 1],
            )  # fmt: skip
    return frames  # the preactivations have become activations


def backward_loop(
    frames: tuple[Tensor, ...],
    inputs: tuple[Tensor | None, ...],
    derivatives: tuple[Tensor, ...],
    grad_queries: Tensor,
    grad_contexts: Tensor,
    grad_alignments: Tensor,
) -> tuple[Tensor, ...]:
    """`backward_loop` of fast_loops.py: the fields of its LoopGradients out."""
    encoder_outputs, keys, padding_mask, drops, weight_recurrent, weight_query, *weights = inputs
    _, recurrent, cells, locations, queries, alignments = frames
    n_frames, batch_size, hidden_dim = grad_queries.shape
    attention_dim, _, kernel_size = weights[0].shape
    clip = _prepare_clip(encoder_outputs, keys, padding_mask, *weights)
    n_blocks, (_, n_text, encoder_dim) = clip.n_blocks, encoder_outputs.shape

    zeros = alignments.new_zeros  # float32
    d_recurrent = torch.zeros_like(recurrent[0])
    d_contexts_after, d_hiddens = d_recurrent.tensor_split([encoder_dim], 1)
    d_cell = torch.zeros_like(cells[0])
    d_queries = queries.new_empty(batch_size * n_blocks, hidden_dim)
    # Frame t reads the first of a pair, or the second, and writes the other.
    d_cumulative = [zeros(batch_size, n_text) for _ in range(2)]
    d_v = [zeros(batch_size, n_blocks, attention_dim) for _ in range(2)]
    d_windows = zeros(batch_size, n_text + kernel_size - 1, 2 * kernel_size)
    d_matrix = zeros(batch_size, n_blocks, 2 * kernel_size, attention_dim)
    d_keys = zeros(batch_size * n_text, attention_dim)
    d_contexts = torch.empty_like(grad_contexts, memory_format=torch.contiguous_format)
    d_query_products = queries.new_empty(n_frames, batch_size * n_blocks, attention_dim)

    query_products = (queries @ weight_query.t()).unbind()  # (B, A) each
    flat_gates = derivatives[0].flatten(2).unbind()  # (B, 4H) each
    d_gates, hidden_to_cell, forget = (x.unbind() for x in derivatives)
    locations, alignments = locations.unbind(), alignments.unbind()
    d_contexts_of, d_products_of = d_contexts.unbind(), d_query_products.unbind()
    grad_queries, grad_contexts, grad_alignments = (
        x.contiguous().unbind() for x in (grad_queries, grad_contexts, grad_alignments)
    )
    drops = [None] * n_frames if drops is None else drops.unbind()
    row = clip.row | {"BLOCK_TAPS": triton.next_power_of_2(kernel_size)}
    units = {"N_BLOCKS": n_blocks, "HIDDEN_DIM": hidden_dim, "BLOCK": BLOCK_UNITS}
    launch_energies = frame_launch(energies_backward_kernel, (batch_size, 1, 1), row)
    launch_hidden = frame_launch(
        hidden_backward_kernel, (batch_size, n_blocks, 1), clip.convolution
    )
    launch_cell = frame_launch(cell_backward_kernel, _cell_grid(d_cell), units)
    recurrent_stride, forget_stride = d_recurrent.stride(0), forget[0].stride(0)
    with torch.cuda.device_of(d_recurrent):
        for t in reversed(range(n_frames)):
            now, after = t % 2, 1 - t % 2
            launch_energies(
                alignments[t], clip.padding_mask, clip.encoder_outputs, grad_alignments[t],
                grad_contexts[t], d_contexts_after, d_contexts_of[t], d_windows,
                d_cumulative[now], d_cumulative[after], clip.energies, n_text, recurrent_stride,
            )  # fmt: skip
            launch_hidden(
                locations[t], query_products[t], clip.keys, clip.matrix, clip.v, clip.energies,
                d_windows, d_products_of[t], d_keys, d_matrix, d_v[now], d_v[after], n_text,
            )  # fmt: skip
            torch.mm(d_products_of[t], weight_query, out=d_queries)
            launch_cell(
                d_queries, grad_queries[t], drops[t], d_hiddens, d_gates[t], hidden_to_cell[t],
                forget[t], d_cell, recurrent_stride, forget_stride,
            )  # fmt: skip
            torch.mm(flat_gates[t], weight_recurrent, out=d_recurrent)
    d_query_products = d_query_products.view(n_frames, batch_size, n_blocks, -1).sum(dim=2)
    d_preactivations = derivatives[0].flatten(2)
    return (
        d_preactivations, d_contexts, d_query_products, d_keys, d_matrix.sum(dim=(0, 1)),
        d_v[1].sum(dim=(0, 1)),  # frame 0 wrote the second
    )  # fmt: skip


# Free running


def prepare_cell(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x, h, c) -> (h, c), an LSTM cell whose product runs in dtype and all else in float32."""
    weight = torch.cat([weight_ih, weight_hh], dim=1).to(dtype).t()
    bias = (bias_ih + bias_hh).float()

    def step(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        preactivations = (torch.cat([x, hidden], dim=1).to(dtype) @ weight).float() + bias
        next_hidden, next_cell = torch.empty_like(cell), torch.empty_like(cell)
        with torch.cuda.device_of(cell):
            launch = _cell_launch(cell, plain_launch)
            launch(preactivations, cell, next_cell, next_hidden, None, None, next_hidden.stride(0))
        return next_hidden, next_cell

    return step


def prepare_attention(
    encoder_outputs: Tensor,
    padding_mask: Tensor,
    keys: Tensor,
    weight_query: Tensor,
    weight_location: Tensor,
    v: Tensor,
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(query, alignment, cumulative_alignment) -> (context, alignment); keys, weights doubled."""
    clip = _prepare_clip(encoder_outputs, keys, padding_mask, weight_location, v)
    launch = _attention_launch(clip, plain_launch)
    half = weight_location.shape[2] // 2

    def attend(query: Tensor, alignment: Tensor, cumulative: Tensor) -> tuple[Tensor, Tensor]:
        location = F.pad(torch.stack([alignment, cumulative], dim=1), (half, half))
        context = encoder_outputs.new_empty(len(query), encoder_outputs.shape[2])
        next_alignment = torch.empty_like(alignment)
        with torch.cuda.device_of(query):
            launch(
                query @ weight_query.t(), location, cumulative, torch.empty_like(cumulative),
                next_alignment, torch.empty_like(location), context,
            )  # fmt: skip
        return context, next_alignment

    return attend


# Failed graph captures: kept alive for the memory allocator, and capture is not tried again.
_FAILED: list[torch.cuda.CUDAGraph] = []


@lru_cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: cuBLAS keeps 32 MiB for every stream that it has seen."""
    return torch.cuda.Stream(device)


def capture(run: StepsFunction, carry: tuple[Tensor, ...]) -> StepsFunction:
    """`run` recorded as a CUDA graph: one launch where `run` has hundreds.

    Args:
        run: carry -> (outputs, carry), of the same shapes each time, without a wait for the
            device in it. It has run before, so that all is compiled.
        carry: what it will be called with.

    Returns:
        The same function, whose carry is overwritten by the next call; `run` itself, with a
        warning, where it cannot be recorded.
    """
    if _FAILED:
        return run
    device = carry[0].device
    places = tuple(x.clone() for x in carry)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream = torch.cuda.current_stream(device)
    generator = torch.cuda.default_generators[device.index]
    random_state = generator.clone_state()
    try:
        # Other threads, a loader's or NCCL's, may call CUDA during the capture.
        recording = torch.cuda.graph(
            graph, pool, _recording_stream(device), capture_error_mode="thread_local"
        )
        with torch.cuda.device_of(carry[0]), recording:
            outputs, after = run(places)
            for place, x in zip(places, after, strict=True):
                place.copy_(x)
    except RuntimeError as error:
        with torch.cuda.device_of(carry[0]):  # setting a stream sets the device too
            torch.cuda.set_stream(stream)
        # PyTorch leaves the random generator and the memory allocator in capture mode: the one
        # would refuse to draw, the other to free its cache.
        generator.graphsafe_set_state(random_state)
        with suppress(RuntimeError):  # where that recording has ended after all
            torch._C._cuda_endAllocateToPool(device.index, pool)
        _FAILED.append(graph)
        warnings.warn(f"no CUDA graph, which is slower; {error}", stacklevel=2)
        return run

    def replay(carry: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        for place, x in zip(places, carry, strict=True):
            if x is not place:
                place.copy_(x)
        graph.replay()
        return tuple(x.clone() for x in outputs), places

    return replay
