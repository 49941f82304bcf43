"""Free running, made fast: LSTM cells and attention made ready for many steps, and CUDA graphs.

A decoder step reads 71 MB of LSTM weights to make a few frames. On a CPU that is its cost, and
the weights are laid out for it once; on a GPU it is the launching of some thirty operations, and
several steps are recorded as one CUDA graph. model.py's `Decoder.step` calls what is made here.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fast_decoder import (
    activate_cell,
    can_block,
    compute_dtype,
    load_fused,
    load_fused_attention,
    prepare_attention,
    repeated_linear,
    state_dtype_of,
)

CellFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # x, h, c -> h, c
# carry -> (outputs, carry)
StepsFunction = Callable[[tuple[Tensor, ...]], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]

# Of each LSTM cell stepped on a CPU, by its weight_hh: dtype -> (copies of its weights, the cell
# with the blocked layout made from them). Making that takes as long as 60 steps of a sentence,
# comparing the copies with the weights as long as two or three. Copies and layout take twice the
# weights' memory, 142 MB at the default sizes in float32; they go when the model goes.
_CELLS = WeakIdKeyDictionary()


def repeated_cell(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> CellFunction:
    """(x, h, c) -> (h, c), an LSTM cell that is stepped many times, without a gradient.

    The product runs in autocast's type where that is on, the rest in float32.
    """
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    dtype = compute_dtype(weight_hh)
    fused = load_fused(weight_hh.device, dtype)
    if fused:
        return _make_cell(weights, dtype, fused.activate_cell)
    if not can_block(weight_hh.to(dtype)):
        return lambda x, h, c: torch.lstm_cell(x, (h, c), *weights)
    cells = _CELLS.setdefault(weight_hh, {})
    # By value: `.data`, a move to another device and inference mode leave no other trace.
    if dtype not in cells or not all(map(_same, cells[dtype][0], weights)):
        copies = [weight.detach().clone() for weight in weights]
        cells[dtype] = (copies, _make_cell(weights, dtype, activate_cell))
    return cells[dtype][1]


def _same(x: Tensor, y: Tensor) -> bool:
    return x.device == y.device and x.dtype == y.dtype and torch.equal(x, y)


def _make_cell(
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    dtype: torch.dtype,
    activate: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> CellFunction:
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    product = repeated_linear(torch.cat([weight_ih, weight_hh], dim=1).to(dtype))
    bias = (bias_ih + bias_hh).float()

    def cell(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        gate = product(torch.cat([x, hidden], dim=1).to(dtype)).float() + bias
        next_cell = torch.empty_like(cell)
        return activate(gate, cell, next_cell), next_cell

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
    dtype = state_dtype_of(encoder_outputs)
    encoder_outputs = encoder_outputs.to(dtype)
    doubled = [2 * x.detach().to(dtype) for x in (keys, weight_query, weight_location, v)]
    fused = load_fused_attention(encoder_outputs.device, dtype, weight_location)
    if fused:
        return fused.repeated_attention(encoder_outputs, doubled[0], padding_mask, *doubled[1:])
    attention = prepare_attention(*doubled)
    half = weight_location.shape[2] // 2
    lowest = torch.finfo(dtype).min

    def attend(query: Tensor, alignment: Tensor, cumulative: Tensor) -> tuple[Tensor, Tensor]:
        location = F.pad(torch.stack([alignment, cumulative], dim=1), (half, half))
        energies = (attention.sigmoid(location, query)[0] @ attention.v).view_as(alignment)
        alignment = torch.softmax(energies.masked_fill_(padding_mask, lowest), dim=1)
        return torch.bmm(alignment[:, None], encoder_outputs).squeeze(1), alignment

    return attend


# A recording that broke off: no other is begun. PyTorch's allocators may still ask it whether a
# stream is its own, so it stays.
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
        # Other threads, a loader's or NCCL's, may call CUDA meanwhile.
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
        # PyTorch leaves the generator and the memory allocator in the middle of the recording: the
        # one would refuse to draw, the other to free its cache.
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
