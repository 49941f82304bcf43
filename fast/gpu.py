"""fast/loops.py and free running on a GPU: launches of fast/kernels.py, and CUDA graphs.

Takes and returns tensors. A frame is five launches each way:

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

The GPU finishes even these sooner than Python launches them, so the launches of several frames are
recorded once as a CUDA graph, which is one launch. Symbols, shapes and the doubled tensors are
those of fast/loops.py.

tests/test_fast_gpu.py checks the kernels in Triton's interpreter against fast/loops.py, compiles
them for two GPUs, and replays the recording of graphs on a CPU. fast/loops.py tries this file out
on the GPU at hand before it is used.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from command_line.main import warn
from fast.kernels import (
    cell_backward_kernel,
    cell_kernel,
    context_kernel,
    energies_backward_kernel,
    energies_kernel,
    hidden_backward_kernel,
)

BLOCK_UNITS = 512  # units of an LSTM per program
BLOCK_TEXT = 64  # characters per program, where the location convolution is
BLOCK_HIDDEN = 32  # channels of the attention's hidden layer at a time
BLOCK_OUTPUTS = 128  # channels of the context per program
BLOCK_ENCODER = 64  # channels of the context or of encoder_outputs at a time
MIN_ROW = 64  # characters; shorter texts share the kernels compiled for this length
ROW_WARPS = 8  # for kernels whose program has a whole row of characters
FRAMES_AT_ONCE = 16  # training frames in one CUDA graph
GRAPH_DEVICES = ("cuda",)
MAX_GRAPHS = 32  # each batch size and text length needs two, with memory for their frames

Launch = Callable[..., Any]
Tensors = Sequence[Tensor | None]
FramesFunction = Callable[[Tensors, Tensors, Tensors, Tensors], None]  # see `run_frames`
# carry -> (outputs, carry)
StepsFunction = Callable[[tuple[Tensor, ...]], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]

# Launching


class _Shared(NamedTuple):
    """The tensors that every frame reads, each contiguous."""

    encoder_outputs: Tensor  # (B, T_text, E)
    keys: Tensor  # (B, T_text, A)
    padding_mask: Tensor  # (B, T_text)
    weight_recurrent: Tensor | None  # (4H, E + H); None in free running
    weight_query: Tensor  # (A, H)
    matrix: Tensor  # (2K, A), U
    v: Tensor  # (A,)


def _share(
    encoder_outputs: Tensor,
    keys: Tensor,
    padding_mask: Tensor,
    weight_recurrent: Tensor | None,
    weight_query: Tensor,
    weight_location: Tensor,
    v: Tensor,
) -> _Shared:
    matrix = weight_location.flatten(1).t()  # (A, 2, K) -> (2K, A)
    tensors = encoder_outputs, keys, padding_mask, weight_recurrent, weight_query, matrix, v
    return _Shared(*(None if x is None else x.contiguous() for x in tensors))


def _launch(kernel: Any, grid: tuple[int, ...], constants: dict[str, int]) -> Launch:
    """Bind a kernel to its grid and constants; call the result with its other arguments."""
    return partial(kernel[grid], **constants)


def _cell_grid(cell: Tensor) -> tuple[int, int, int]:
    batch_size, hidden_dim = cell.shape
    return batch_size, triton.cdiv(hidden_dim, BLOCK_UNITS), 1


def _cell_launch(cell: Tensor) -> Launch:
    sizes = {"HIDDEN_DIM": cell.shape[1], "BLOCK": BLOCK_UNITS}
    return _launch(cell_kernel, _cell_grid(cell), sizes)


def _constants(shared: _Shared) -> tuple[dict[str, int], dict[str, int]]:
    """Return the constants of kernels with the location convolution, and of those with a row."""
    n_taps, attention_dim = shared.matrix.shape
    _, n_text, encoder_dim = shared.encoder_outputs.shape
    convolution = {
        "ATTENTION_DIM": attention_dim,
        "KERNEL_SIZE": n_taps // 2,
        "BLOCK_TAPS": max(triton.next_power_of_2(n_taps), 16),  # tl.dot's least
        "BLOCK_TEXT": BLOCK_TEXT,
        "BLOCK": BLOCK_HIDDEN,
    }
    row = {
        "ENCODER_DIM": encoder_dim,
        "KERNEL_SIZE": n_taps // 2,
        "ROW": max(triton.next_power_of_2(n_text), MIN_ROW),
        "BLOCK": BLOCK_ENCODER,
        "num_warps": ROW_WARPS,
    }
    return convolution, row


def _attention_launch(shared: _Shared) -> Launch:
    """Prepare a frame's attention, from W_q q_t to the context; shapes as for the kernels."""
    batch_size, n_text, encoder_dim = shared.encoder_outputs.shape
    convolution, row = _constants(shared)
    energies_grid = (batch_size, triton.cdiv(n_text, BLOCK_TEXT), 1)
    context_grid = (batch_size, triton.cdiv(encoder_dim, BLOCK_OUTPUTS), 1)
    launch_energies = _launch(energies_kernel, energies_grid, convolution)
    launch_context = _launch(context_kernel, context_grid, row | {"BLOCK_OUTPUTS": BLOCK_OUTPUTS})
    energies = shared.v.new_empty(batch_size, n_text, dtype=torch.float32)

    def launch(
        query_product: Tensor,
        location: Tensor,
        cumulative: Tensor,
        next_cumulative: Tensor,
        alignment: Tensor,
        next_location: Tensor,
        context: Tensor,
    ) -> None:
        """Launch both kernels; they read the first three arguments and write the others."""
        inputs = location, query_product, shared.keys, shared.matrix, shared.v
        launch_energies(*inputs, energies, n_text)
        inputs = energies, shared.padding_mask, shared.encoder_outputs, cumulative
        outputs = next_cumulative, alignment, next_location, context
        launch_context(*inputs, *outputs, n_text, context.stride(0))

    return launch


# CUDA graphs


class Recording(NamedTuple):
    """A CUDA graph, with the tensors at whose addresses it reads and writes."""

    graph: torch.cuda.CUDAGraph
    run: Callable[[], Any]  # the recorded function, which keeps its tensors alive
    result: Any  # its result; each replay writes it again


_FAILED: list[Any] = []  # a failed recording, which must stay alive; no other is tried after it


@lru_cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Make one stream per device, because cuBLAS keeps 32 MiB for each stream it has seen."""
    return torch.cuda.Stream(device)


def record(run: Callable[[], Any], like: Tensor) -> Recording | None:
    """Record what `run` launches; if that fails, print a warning and return None.

    Args:
        run: has run before, so that all kernels are compiled, and never waits for the device.
        like: a tensor on the device.
    """
    if _FAILED:
        return None
    device = like.device
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream = torch.cuda.current_stream(device)
    generator = torch.cuda.default_generators[device.index]
    random_state = generator.clone_state()
    try:
        # Other threads, a loader's or NCCL's, may call CUDA during the recording.
        recording = torch.cuda.graph(
            graph, pool, _recording_stream(device), capture_error_mode="thread_local"
        )
        with torch.cuda.device_of(like), recording:
            return Recording(graph, run, run())
    except RuntimeError as error:
        with torch.cuda.device_of(like):  # setting a stream sets the device too
            torch.cuda.set_stream(stream)
        # PyTorch leaves the random generator and the memory allocator in recording mode, in which
        # they refuse to draw and to free memory.
        generator.graphsafe_set_state(random_state)
        with suppress(RuntimeError):  # if the recording has ended after all
            torch._C._cuda_endAllocateToPool(device.index, pool)
        _FAILED.append(graph)
        warn(f"no CUDA graph, which is slower; {error}")
        return None


def _copy(places: Tensors, tensors: Tensors) -> None:
    for place, x in zip(places, tensors, strict=True):
        if place is not None and place is not x:
            place.copy_(x)


def _take(tensors: Tensors, rows: slice) -> list[Tensor | None]:
    return [None if x is None else x[rows] for x in tensors]


class FramesGraph:
    """FRAMES_AT_ONCE frames of `run_frames` as a CUDA graph with memory of its own."""

    def __init__(
        self, run: FramesFunction, fixed: Tensors, state: Tensors, reads: Tensors, writes: Tensors
    ) -> None:
        def clone(tensors: Tensors) -> list[Tensor | None]:
            form = torch.contiguous_format
            return [None if x is None else x.clone(memory_format=form) for x in tensors]

        # Tensors made under inference_mode, as in validation, could not be changed in training.
        with torch.inference_mode(False), torch.no_grad():
            rows = slice(FRAMES_AT_ONCE)
            self.fixed, self.state = clone(fixed), clone(state)
            self.reads = clone(_take(reads, rows))
            shared = {id(x): place for x, place in zip(reads, self.reads, strict=True)}
            self.writes = [shared.get(id(x), torch.zeros_like(x[rows])) for x in writes]
            go = partial(run, self.fixed, self.state, self.reads, self.writes)
            go()  # compiles
            self.recording = record(go, state[0])


_GRAPHS: dict[Any, FramesGraph] = {}  # in the order of their last use


def _frames_graph(run: FramesFunction, *groups: Tensors) -> FramesGraph:
    """Return the graph for tensors of these shapes; record it on the first call."""
    fixed, state, reads, writes = groups
    rows = _take((*reads, *writes), slice(FRAMES_AT_ONCE))
    tensors = *fixed, *state, *rows
    shapes = (None if x is None else (x.dtype, x.shape) for x in tensors)
    key = (run, state[0].device, *shapes)
    if key not in _GRAPHS:
        if len(_GRAPHS) == MAX_GRAPHS:
            del _GRAPHS[next(iter(_GRAPHS))]
        _GRAPHS[key] = FramesGraph(run, *groups)
    _GRAPHS[key] = _GRAPHS.pop(key)
    return _GRAPHS[key]


def run_frames(
    run: FramesFunction,
    fixed: Tensors,
    state: Tensors,
    reads: Tensors,
    writes: Tensors,
    backwards: bool = False,
) -> None:
    """Call `run(fixed, state, reads, writes)`; on a GPU, replay it in parts as a CUDA graph.

    A graph knows addresses and not tensors, so the rows of FRAMES_AT_ONCE frames are copied to its
    own memory and the results back, which takes about a twentieth of the time. The first frames,
    up to a multiple of FRAMES_AT_ONCE, are launched one by one.

    Args:
        run: runs one frame for each row, from the first to the last, or `backwards`.
        fixed: tensors that every frame reads.
        state: tensors that each frame hands to the next; changed in place.
        reads: tensors with a row for each frame, or None.
        writes: tensors with a row for each frame; one that is in `reads` too is changed in place.
    """
    n_frames, graph = len(writes[0]), None
    if state[0].device.type in GRAPH_DEVICES and n_frames >= FRAMES_AT_ONCE:
        graph = _frames_graph(run, fixed, state, reads, writes)
    if graph is None or graph.recording is None:
        run(fixed, state, reads, writes)
        return
    n_single = n_frames % FRAMES_AT_ONCE
    single = slice(n_frames - n_single, n_frames) if backwards else slice(n_single)
    if n_single:
        run(fixed, state, _take(reads, single), _take(writes, single))
    _copy((*graph.fixed, *graph.state), (*fixed, *state))
    first = 0 if backwards else n_single
    starts = range(first, first + n_frames - n_single, FRAMES_AT_ONCE)
    for start in reversed(starts) if backwards else starts:
        rows = slice(start, start + FRAMES_AT_ONCE)
        _copy(graph.reads, _take(reads, rows))
        graph.recording.graph.replay()
        _copy(_take(writes, rows), graph.writes)
    _copy(state, graph.state)


# The loops of teacher forcing


def _forward_frames(fixed: Tensors, state: Tensors, reads: Tensors, writes: Tensors) -> None:
    """Run the frames of `forward_loop`; see `run_frames`."""
    shared = _Shared(*fixed)
    (recurrent, cell, location, cumulative), (preactivations, drops) = state, reads
    _, recurrents, cells, locations, queries, alignments = writes
    contexts, hiddens = recurrents.tensor_split([shared.encoder_outputs.shape[2]], 2)
    attend, launch_cell = _attention_launch(shared), _cell_launch(cell)
    query_product = queries.new_empty(len(cell), len(shared.weight_query))
    # A frame reads one of the pair and writes the other.
    totals = cumulative, torch.empty_like(cumulative)
    for t, gate in enumerate(preactivations.unbind()):
        gate.addmm_(recurrent, shared.weight_recurrent.t())
        drop = None if drops is None else drops[t]
        launch_cell(gate, cell, cells[t], hiddens[t], queries[t], drop, hiddens.stride(1))
        torch.mm(queries[t], shared.weight_query.t(), out=query_product)
        outputs = alignments[t], locations[t], contexts[t]
        attend(query_product, location, totals[t % 2], totals[1 - t % 2], *outputs)
        recurrent, cell, location = recurrents[t], cells[t], locations[t]
    _copy(state, (recurrent, cell, location, totals[len(queries) % 2]))


def forward_loop(preactivations: Tensor, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Run `forward_loop` of loops.py: takes its LoopInputs, returns its LoopFrames, as tuples."""
    encoder_outputs, keys, padding_mask, drops, *weights = inputs
    n_frames, batch_size, _ = preactivations.shape
    _, n_text, encoder_dim = encoder_outputs.shape
    hidden_dim, kernel_size = weights[1].shape[1], weights[2].shape[2]
    zeros, wide = preactivations.new_zeros, {"dtype": torch.float32}
    # Frame t reads row t, so the frames write from row 1 on.
    recurrent = zeros(n_frames + 1, batch_size, encoder_dim + hidden_dim)
    cells = zeros(n_frames + 1, batch_size, hidden_dim, **wide)
    locations = zeros(n_frames + 1, batch_size, 2, n_text + kernel_size - 1)
    queries = zeros(n_frames, batch_size, hidden_dim)
    alignments = zeros(n_frames, batch_size, n_text, **wide)
    state = [torch.zeros_like(x[0]) for x in (recurrent, cells, locations, alignments)]
    writes = (preactivations, recurrent[1:], cells[1:], locations[1:], queries, alignments)
    with torch.cuda.device_of(preactivations):
        shared = _share(encoder_outputs, keys, padding_mask, *weights)
        run_frames(_forward_frames, shared, state, (preactivations, drops), writes)
    return preactivations, recurrent, cells, locations, queries, alignments  # now activations


def _backward_frames(fixed: Tensors, state: Tensors, reads: Tensors, writes: Tensors) -> None:
    """Run the frames of `backward_loop`, from the last to the first; see `run_frames`."""
    shared = _Shared(*fixed)
    d_recurrent, d_cell, d_cumulative, d_windows, d_keys, d_matrix, d_v = state
    alignments, locations, query_products, gates, hidden_to_cell, forget, *grads, drops = reads
    grad_queries, grad_contexts, grad_alignments = grads
    _, d_contexts, d_query_products = writes
    (n_frames, batch_size, hidden_dim), n_text = grad_queries.shape, alignments.shape[2]
    n_blocks = d_matrix.shape[1]
    convolution, row = _constants(shared)
    row["BLOCK_TAPS"] = triton.next_power_of_2(row["KERNEL_SIZE"])
    units = {"N_BLOCKS": n_blocks, "HIDDEN_DIM": hidden_dim, "BLOCK": BLOCK_UNITS}
    launch_energies = _launch(energies_backward_kernel, (batch_size, 1, 1), row)
    launch_hidden = _launch(hidden_backward_kernel, (batch_size, n_blocks, 1), convolution)
    launch_cell = _launch(cell_backward_kernel, _cell_grid(d_cell), units)
    d_contexts_after, d_hiddens = d_recurrent.tensor_split([grad_contexts.shape[2]], 1)
    d_queries = grad_queries.new_empty(batch_size * n_blocks, hidden_dim)
    d_energies = torch.empty_like(d_cumulative)
    # A frame reads one of the pair and writes the other.
    d_totals = d_cumulative, torch.empty_like(d_cumulative)
    d_vs = d_v, torch.empty_like(d_v)
    for i, t in enumerate(reversed(range(n_frames))):
        now, after = i % 2, 1 - i % 2
        inputs = alignments[t], shared.padding_mask, shared.encoder_outputs
        grads = grad_alignments[t], grad_contexts[t], d_contexts_after, d_contexts[t], d_windows
        totals = d_totals[now], d_totals[after]
        launch_energies(*inputs, *grads, *totals, d_energies, n_text, d_recurrent.stride(0))
        inputs = locations[t], query_products[t], shared.keys, shared.matrix, shared.v
        grads = d_energies, d_windows, d_query_products[t], d_keys, d_matrix
        launch_hidden(*inputs, *grads, d_vs[now], d_vs[after], n_text)
        torch.mm(d_query_products[t], shared.weight_query, out=d_queries)
        grads = d_queries, grad_queries[t], None if drops is None else drops[t], d_hiddens
        factors = gates[t], hidden_to_cell[t], forget[t], d_cell
        launch_cell(*grads, *factors, d_recurrent.stride(0), forget.stride(1))
        torch.mm(gates[t].flatten(1), shared.weight_recurrent, out=d_recurrent)
    _copy((d_cumulative, d_v), (d_totals[n_frames % 2], d_vs[n_frames % 2]))


def backward_loop(
    frames: tuple[Tensor, ...],
    inputs: tuple[Tensor | None, ...],
    derivatives: tuple[Tensor, ...],
    grad_queries: Tensor,
    grad_contexts: Tensor,
    grad_alignments: Tensor,
) -> tuple[Tensor, ...]:
    """Run `backward_loop` of loops.py; returns its LoopGradients as a tuple."""
    encoder_outputs, keys, padding_mask, drops, *weights = inputs
    _, recurrent, cells, locations, queries, alignments = frames
    (n_frames, batch_size, n_text), weight_query = alignments.shape, weights[1]
    attention_dim, _, kernel_size = weights[2].shape
    n_blocks = triton.cdiv(n_text, BLOCK_TEXT)  # programs that share a clip's characters

    zeros = alignments.new_zeros  # float32
    d_keys = zeros(batch_size * n_text, attention_dim)
    d_matrix = zeros(batch_size, n_blocks, 2 * kernel_size, attention_dim)
    d_v = zeros(batch_size, n_blocks, attention_dim)
    d_windows = zeros(batch_size, n_text + kernel_size - 1, 2 * kernel_size)
    totals = d_windows, d_keys, d_matrix, d_v
    state = (*(torch.zeros_like(x[0]) for x in (recurrent, cells, alignments)), *totals)
    grads = [x.contiguous() for x in (grad_queries, grad_contexts, grad_alignments)]
    d_contexts = torch.empty_like(grads[1])
    d_query_products = queries.new_empty(n_frames, batch_size * n_blocks, attention_dim)
    query_products = queries @ weight_query.t()  # (T_mel, B, A)
    reads = (alignments, locations[:-1], query_products, *derivatives, *grads, drops)
    writes = (derivatives[0], d_contexts, d_query_products)
    with torch.cuda.device_of(alignments):
        shared = _share(encoder_outputs, keys, padding_mask, *weights)
        run_frames(_backward_frames, shared, state, reads, writes, backwards=True)
    d_query_products = d_query_products.view(n_frames, batch_size, n_blocks, -1).sum(dim=2)
    sums = d_keys, d_matrix.sum(dim=(0, 1)), d_v.sum(dim=(0, 1))
    return derivatives[0].flatten(2), d_contexts, d_query_products, *sums


# Free running


def prepare_cell(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (x, h, c) -> (h, c), an LSTM cell with its product in dtype, the rest in float32."""
    weight = torch.cat([weight_ih, weight_hh], dim=1).to(dtype).t()
    bias = (bias_ih + bias_hh).float()

    def step(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        preactivations = (torch.cat([x, hidden], dim=1).to(dtype) @ weight).float() + bias
        next_hidden, next_cell = torch.empty_like(cell), torch.empty_like(cell)
        with torch.cuda.device_of(cell):
            launch = _cell_launch(cell)
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
    """Return (query, alignment, cumulative_alignment) -> (context, alignment).

    Keys and weights are doubled, see `double` in loops.py.
    """
    shared = _share(encoder_outputs, keys, padding_mask, None, weight_query, weight_location, v)
    launch = _attention_launch(shared)
    half = weight_location.shape[2] // 2

    def attend(query: Tensor, alignment: Tensor, cumulative: Tensor) -> tuple[Tensor, Tensor]:
        location = F.pad(torch.stack([alignment, cumulative], dim=1), (half, half))
        context = encoder_outputs.new_empty(len(query), encoder_outputs.shape[2])
        next_alignment = torch.empty_like(alignment)
        outputs = torch.empty_like(cumulative), next_alignment, torch.empty_like(location), context
        with torch.cuda.device_of(query):
            launch(query @ weight_query.t(), location, cumulative, *outputs)
        return context, next_alignment

    return attend


def capture(run: StepsFunction, carry: tuple[Tensor, ...]) -> StepsFunction:
    """Record `run` as a CUDA graph: one launch instead of hundreds.

    Args:
        run: carry -> (outputs, carry), of the same shapes each time, without a wait for the
            device in it. It has run before, so that all kernels are compiled.
        carry: an argument of `run`.

    Returns:
        The same function, whose carry is overwritten by the next call; `run` itself, after a
        warning, if it cannot be recorded.
    """
    places = tuple(x.clone() for x in carry)

    def steps() -> tuple[Tensor, ...]:
        outputs, after = run(places)
        _copy(places, after)
        return outputs

    recording = record(steps, carry[0])
    if recording is None:
        return run

    def replay(carry: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        _copy(places, carry)
        recording.graph.replay()
        return tuple(x.clone() for x in recording.result), places

    return replay
