"""fast_decoder.py's two loops and free running's attention, with the kernels of fused_kernels.py.

Same buffers, same numbers but for rounding. `disagreement` tries both on the GPU at hand.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

import fused_kernels as kernels
from fast_decoder import AttentionLoop, CellBackward, Frames, LoopGradients, Text, Weights

BLOCK_UNITS = 512  # of an LSTM, per program
BLOCK_TEXT = 64  # characters per program, where the location convolution is
BLOCK_HIDDEN = 32  # channels of the attention's hidden layer at a time
BLOCK_OUTPUTS = 128  # channels of the context per program
BLOCK_ENCODER = 64  # of them, or of encoder_outputs, at a time
MIN_ROW = 64  # shorter texts share the kernels of this length: each power of two is compiled
ROW_WARPS = 8  # where a program has a whole row of characters

Launch = Callable[..., Any]
Launcher = Callable[[Any, tuple[int, ...], dict[str, int]], Launch]  # one of the two below

TRIAL_BATCH = (3, 2, 70)  # frames, clips, characters
TRIAL_SIZES = (256, 512, 1024, 128, 31)  # P, E, H, A, K, as in AttentionLoop


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


def activate_cell(gate: Tensor, cell: Tensor, next_cell: Tensor) -> Tensor:
    """fast_decoder.py's `activate_cell`."""
    hidden = torch.empty_like(cell)
    with torch.cuda.device_of(cell):
        launch = _cell_launch(cell, plain_launch)
        launch(gate, cell, next_cell, hidden, None, None, hidden.stride(0))
    return hidden


def _cell_launch(cell: Tensor, launcher: Launcher) -> Launch:
    sizes = {"HIDDEN_DIM": cell.shape[1], "BLOCK": BLOCK_UNITS}
    return launcher(kernels.cell_kernel, _cell_grid(cell), sizes)


def _cell_grid(cell: Tensor) -> tuple[int, int, int]:
    batch_size, hidden_dim = cell.shape
    return batch_size, triton.cdiv(hidden_dim, BLOCK_UNITS), 1


class _Clip(NamedTuple):
    """What the attention's kernels share, from frame to frame."""

    text: Text
    v: Tensor  # (A,)
    matrix: Tensor  # (2K, A), U
    energies: Tensor  # (B, T_text), scratch; backwards their gradient
    convolution: dict[str, int]  # constants of the kernels with the location convolution
    row: dict[str, int]  # constants of those with a whole row of characters
    n_blocks: int  # programs that share a clip's characters


def _prepare_clip(text: Text, weight_location: Tensor, v: Tensor) -> _Clip:
    attention_dim, _, kernel_size = weight_location.shape
    _, n_text, encoder_dim = text.encoder_outputs.shape
    n_taps = max(triton.next_power_of_2(2 * kernel_size), 16)  # tl.dot's least
    convolution = {"BLOCK_TEXT": BLOCK_TEXT, "BLOCK_TAPS": n_taps, "BLOCK": BLOCK_HIDDEN}
    row = {"ROW": max(triton.next_power_of_2(n_text), MIN_ROW), "BLOCK": BLOCK_ENCODER}
    return _Clip(
        Text(*(x.contiguous() for x in text)),
        v,
        weight_location.flatten(1).t().contiguous(),
        v.new_empty(text.padding_mask.shape, dtype=torch.float32),
        convolution | {"ATTENTION_DIM": attention_dim, "KERNEL_SIZE": kernel_size},
        row | {"ENCODER_DIM": encoder_dim, "KERNEL_SIZE": kernel_size, "num_warps": ROW_WARPS},
        triton.cdiv(n_text, BLOCK_TEXT),
    )


def _attention_launch(clip: _Clip, launcher: Launcher) -> Launch:
    """One frame's attention, from W_q query_t to the context; shapes as for the kernels."""
    encoder_outputs, keys, padding_mask = clip.text
    batch_size, n_text, encoder_dim = encoder_outputs.shape
    energies_grid = (batch_size, clip.n_blocks, 1)
    context_grid = (batch_size, triton.cdiv(encoder_dim, BLOCK_OUTPUTS), 1)
    context_sizes = clip.row | {"BLOCK_OUTPUTS": BLOCK_OUTPUTS}
    launch_energies = launcher(kernels.energies_kernel, energies_grid, clip.convolution)
    launch_context = launcher(kernels.context_kernel, context_grid, context_sizes)

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
        launch_energies(location, query_product, keys, clip.matrix, clip.v, clip.energies, n_text)
        launch_context(
            clip.energies, padding_mask, encoder_outputs, cumulative, next_cumulative, alignment,
            next_location, context, n_text, context.stride(0),
        )  # fmt: skip

    return launch


def forward_frames(frames: Frames, text: Text, weights: Weights, drops: Tensor | None) -> None:
    """fast_decoder.py's `_forward_frames`, to the same buffers."""
    gates, recurrent, cells, locations, queries, alignments = (x.unbind() for x in frames)
    encoder_dim = text.encoder_outputs.shape[2]
    clip = _prepare_clip(text, weights.location, weights.v)
    launch_attention = _attention_launch(clip, frame_launch)
    recurrent_t, query_t = weights.recurrent.t(), weights.query.t()
    query_product = gates[0].new_empty(len(gates[0]), len(weights.v))
    cumulative = [torch.zeros_like(alignments[0]) for _ in range(2)]
    contexts, hiddens = (part.unbind() for part in frames.recurrent.tensor_split([encoder_dim], 2))
    drops = [None] * len(gates) if drops is None else drops.unbind()
    launch_cell = _cell_launch(cells[0], frame_launch)
    hidden_stride = hiddens[0].stride(0)
    with torch.cuda.device_of(frames.gates):
        for t, gate in enumerate(gates):
            gate.addmm_(recurrent[t], recurrent_t)
            launch_cell(
                gate, cells[t], cells[t + 1], hiddens[t + 1], queries[t], drops[t], hidden_stride
            )
            torch.mm(queries[t], query_t, out=query_product)
            launch_attention(
                query_product, locations[t], cumulative[t % 2], cumulative[1 - t % 2],
                alignments[t], locations[t + 1], contexts[t + 1],
            )  # fmt: skip


def backward_frames(
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
    """fast_decoder.py's `_backward_frames`, to the same buffers."""
    n_frames, batch_size, hidden_dim = grad_queries.shape
    attention_dim, _, kernel_size = weights.location.shape
    clip = _prepare_clip(text, weights.location, weights.v)
    encoder_outputs, keys, padding_mask = clip.text
    n_text, encoder_dim = encoder_outputs.shape[1:]
    n_blocks = clip.n_blocks

    zeros = frames.alignments.new_zeros
    d_recurrent = torch.zeros_like(frames.recurrent[0])
    d_contexts_after, d_hiddens = d_recurrent.tensor_split([encoder_dim], 1)
    d_cell = torch.zeros_like(frames.cells[0])
    d_queries = frames.queries.new_empty(batch_size * n_blocks, hidden_dim)
    # Frame t reads the first of a pair, or the second, and writes the other.
    d_cumulative = [zeros(batch_size, n_text) for _ in range(2)]
    d_v = [zeros(batch_size, n_blocks, attention_dim) for _ in range(2)]
    d_windows = zeros(batch_size, n_text + kernel_size - 1, 2 * kernel_size)
    d_matrix = zeros(batch_size, n_blocks, 2 * kernel_size, attention_dim)
    blocks = frames.queries.new_empty(n_frames, batch_size * n_blocks, attention_dim)
    query_products = (frames.queries @ weights.query.t()).unbind()  # (B, A) each
    locations, alignments = frames.locations.unbind(), frames.alignments.unbind()
    d_gates, d_cells, forgets = (x.unbind() for x in cell_backward)
    flat_gates = cell_backward.d_gates.flatten(2).unbind()  # (B, 4H) each
    d_contexts, d_query_products = gradients.contexts.unbind(), blocks.unbind()
    grad_queries, grad_contexts, grad_alignments = (
        x.contiguous().unbind() for x in (grad_queries, grad_contexts, grad_alignments)
    )
    drops = [None] * n_frames if drops is None else drops.unbind()
    row = clip.row | {"BLOCK_TAPS": triton.next_power_of_2(kernel_size)}
    units = {"N_BLOCKS": n_blocks, "HIDDEN_DIM": hidden_dim, "BLOCK": BLOCK_UNITS}
    launch_energies = frame_launch(kernels.energies_backward_kernel, (batch_size, 1, 1), row)
    launch_hidden = frame_launch(
        kernels.hidden_backward_kernel, (batch_size, n_blocks, 1), clip.convolution
    )
    launch_cell = frame_launch(kernels.cell_backward_kernel, _cell_grid(d_cell), units)
    recurrent_stride, forget_stride = d_recurrent.stride(0), forgets[0].stride(0)
    with torch.cuda.device_of(frames.gates):
        for t in reversed(range(n_frames)):
            now, after = t % 2, 1 - t % 2
            launch_energies(
                alignments[t], padding_mask, encoder_outputs, grad_alignments[t],
                grad_contexts[t], d_contexts_after, d_contexts[t], d_windows, d_cumulative[now],
                d_cumulative[after], clip.energies, n_text, recurrent_stride,
            )  # fmt: skip
            launch_hidden(
                locations[t], query_products[t], keys, clip.matrix, clip.v,
                clip.energies, d_windows, d_query_products[t], gradients.keys, d_matrix,
                d_v[now], d_v[after], n_text,
            )  # fmt: skip
            torch.mm(d_query_products[t], weights.query, out=d_queries)
            launch_cell(
                d_queries, grad_queries[t], drops[t], d_hiddens, d_gates[t], d_cells[t],
                forgets[t], d_cell, recurrent_stride, forget_stride,
            )  # fmt: skip
            torch.mm(flat_gates[t], weights.recurrent, out=d_recurrent)
    torch.sum(blocks.view(n_frames, batch_size, n_blocks, -1), dim=2, out=gradients.query_products)
    gradients.location_matrix.copy_(d_matrix.sum(dim=(0, 1)))
    gradients.v.copy_(d_v[1].sum(dim=(0, 1)))  # frame 0 wrote the second


def repeated_attention(
    encoder_outputs: Tensor,
    keys: Tensor,
    padding_mask: Tensor,
    weight_query: Tensor,
    weight_location: Tensor,
    v: Tensor,
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """fast_decoder.py's `repeated_attention`, of arguments that are doubled there."""
    clip = _prepare_clip(Text(encoder_outputs, keys, padding_mask), weight_location, v)
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


def disagreement(device: torch.device, dtype: torch.dtype) -> float:
    """How far the loops here, in dtype, are from fast_decoder.py's in float32, on a small batch.

    The largest distance of an output or a gradient, as a share of its norm. Sizes are the
    paper's: the kernels that are compiled for this are those that training needs.
    """
    with torch.inference_mode(False), torch.enable_grad():
        arguments = _trial_arguments(device, dtype)
        exact = [x if x.dtype == torch.bool else x.float() for x in arguments]
        wanted = [x for x in arguments if x.requires_grad]
        results = []
        with torch.autocast(device.type, enabled=False):
            for fused, inputs in ((None, exact), (sys.modules[__name__], arguments)):
                outputs = AttentionLoop.apply(fused, *inputs)
                gradients = torch.autograd.grad(outputs, wanted, [x.sign() for x in outputs])
                results.append([x.detach().float() for x in (*outputs, *gradients)])
    distances = [(ours - plain).norm() / plain.norm() for plain, ours in zip(*results, strict=True)]
    return float(torch.stack(distances).max())  # nan, where one is


def _trial_arguments(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What AttentionLoop takes: two clips, one half padding."""
    (n_frames, batch_size, n_text), (P, E, H, A, K) = TRIAL_BATCH, TRIAL_SIZES
    generator = torch.Generator().manual_seed(0)  # its own: training's numbers stay untouched

    def random(*shape: int) -> Tensor:
        # Large enough that the attention points somewhere: W_q's gradient is all rounding if not.
        x = torch.randn(shape, generator=generator) / shape[-1] ** 0.3
        return x.to(device, dtype).requires_grad_()

    inputs = [random(n_frames, batch_size, P), random(batch_size, n_text, E)]
    inputs.append(random(batch_size, n_text, A))
    lengths = torch.tensor([[n_text], [n_text // 2]])
    mask = (torch.arange(n_text) >= lengths).to(device)
    drops = (torch.rand(n_frames, batch_size, H, generator=generator) > 0.1).to(device, dtype)
    shapes = ((4 * H, P + E), (4 * H, H), (4 * H,), (A, H), (A, 2, K), (A,))
    return [*inputs, mask, drops, *(random(*shape) for shape in shapes)]
