"""The Triton kernels of fast/gpu.py: the small operations of a frame, forwards and backwards.

One PyTorch operation at a time, a frame is 27 launches forwards and 40 backwards, and a GPU
finishes most of them sooner than the next one is launched. With these kernels it is five each way,
including the matrix products between them, which are PyTorch's.

Each accumulator belongs to one program and there are no atomics, so results are deterministic, and
Triton's interpreter, which runs one program after the other on a CPU, computes the same as a GPU.
tests/test_fast_gpu.py runs it and compares the results with fast/loops.py. Symbols, shapes and the
doubled tensors are those of fast/loops.py. Arguments in capitals are known at compile time.
"""

import triton
import triton.language as tl


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
    """Computes the LSTM's activations; a program has BLOCK units of one clip."""
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
    """Runs the dropout and `cell_backward_` of loops.py; a program has BLOCK units of one clip."""
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
    """Loads the window of the location convolution at each character, (BLOCK_TEXT, BLOCK_TAPS)."""
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
    """Loads some channels of U, (BLOCK_TAPS, BLOCK)."""
    taps = tl.arange(0, BLOCK_TAPS)
    valid = (taps < 2 * KERNEL_SIZE)[:, None] & (channels < ATTENTION_DIM)[None, :]
    return tl.load(matrix + taps[:, None] * ATTENTION_DIM + channels[None, :], valid, 0.0)


@triton.jit
def _sigmoid_hidden(
    windows, u, keys, query_products, n_text, characters, channels, ATTENTION_DIM: tl.constexpr
):
    """Computes some channels of sigmoid(W_q q + K + U * location), (BLOCK_TEXT, BLOCK)."""
    inside = channels < ATTENTION_DIM
    key = keys + characters[:, None] * ATTENTION_DIM + channels[None, :]
    # Three TF32 products make one of float32; with bfloat16 this has no effect.
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
    """Computes e_t = v^T sigmoid(...); a program has BLOCK_TEXT characters of one clip."""
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
    """Computes a_t and context_t; a program has BLOCK_OUTPUTS channels of one clip's context."""
    row = tl.program_id(0)
    characters = tl.arange(0, ROW)
    inside = characters < n_text
    place = row * n_text + characters
    energy = tl.load(energies + place, inside, float("-inf"))
    padding = tl.load(padding_mask + place, inside, 0)
    energy = tl.where(padding != 0, float("-inf"), energy)
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
    """Sums one channel of the location's gradient from that of its windows, (ROW,).

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
    """Runs softmax and context backwards; a program has one clip."""
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
    """Runs the energies backwards; a program has BLOCK_TEXT characters of one clip."""
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
