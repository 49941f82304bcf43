"""Runs the Triton kernels in Triton's interpreter, on a CPU; prints distances as JSON.

    TRITON_INTERPRET=1 python tests/interpreted_kernels.py

The interpreter is chosen when Triton is imported, so test_fast_gpu.py runs this in a process of its
own. Every argument lies between NaNs, so that a read past its end shows.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fast.decoder as fast_decoder
import fast.loops as fast_loops
from fast.decoder import FastDecoder, KnownDropout, make_twin
from fast.loops import AttentionLoop
from model import Tacotron2, build_padding_mask
from test_fast_decoder import SMALL

CPU = torch.device("cpu")
GUARD = 4096
# n_frames, token lengths, P, E, H, A, K, with dropout or not
CASES = {
    "two blocks of characters": (4, [70, 33], 16, 64, 40, 48, 31, True),
    "one block, odd sizes": (5, [9, 4, 7], 7, 39, 23, 21, 7, True),
    "a row that is nearly all padding": (4, [66, 1], 8, 32, 16, 16, 5, True),
    "one character, one frame": (1, [1], 4, 8, 6, 5, 3, False),
    "more channels and units than a program has": (3, [12], 8, 150, 520, 40, 5, False),
    "five blocks, no dropout": (3, [300, 257], 4, 16, 8, 16, 31, False),
}
CASES_IN_HALF_PRECISION = ("two blocks of characters", "more channels and units than a program has")


def multiply_bfloat16_as_float32() -> None:
    """Mend Triton 3.6's interpreter, which multiplies bfloat16's bits as if they were integers."""
    create_dot = interpreter.InterpreterBuilder.create_dot

    def widen(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: create_dot(
        self, widen(a), widen(b), *rest
    )


def guarded(x: Tensor) -> Tensor:
    """Copy a tensor to memory with NaNs (True for a mask) before and after it."""
    fill = True if x.dtype == torch.bool else float("nan")
    memory = torch.full((x.numel() + 2 * GUARD,), fill, dtype=x.dtype)
    return memory[GUARD:-GUARD].view(x.shape).copy_(x)


def loop_arguments(case: tuple, dtype: torch.dtype) -> list[Tensor | None]:
    """Make the arguments of AttentionLoop."""
    n_frames, lengths, P, E, H, A, K, with_drops = case
    generator = torch.Generator().manual_seed(0)
    batch_size, n_text = len(lengths), max(lengths)

    def random(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator) / 2
        return guarded(x.to(dtype)).requires_grad_()

    mask = build_padding_mask(torch.tensor(lengths), n_text)
    drops = (torch.rand(n_frames, batch_size, H, generator=generator) > 0.3).to(dtype) / 0.7
    return [
        random(n_frames, batch_size, P),
        random(n_text, batch_size, E).transpose(0, 1),  # as an LSTM of packed sequences leaves it
        random(batch_size, n_text, A),
        guarded(mask),
        guarded(drops) if with_drops else None,
        *(random(*s) for s in ((4 * H, P + E), (4 * H, H), (4 * H,), (A, H), (A, 2, K), (A,))),
    ]


def run_loop(on_gpu: bool, arguments: list[Tensor | None]) -> list[Tensor]:
    """Compute outputs and the gradients of a random projection of them."""
    outputs = AttentionLoop.apply(on_gpu, *arguments)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in outputs]
    # As in training, where alignments and outputs are transposed before the loss.
    weights = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in weights]
    wanted = [x for x in arguments if x is not None and x.requires_grad]
    assert not arguments[1].is_contiguous() or arguments[1].shape[0] == 1
    gradients = torch.autograd.grad(outputs, wanted, weights)
    return [x.detach().float() for x in (*outputs, *gradients)]


def distances(ours: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Compute each pair's largest difference as a share of its largest number, or of 1e-3."""
    return [
        float((x - y).abs().max() / y.abs().max().clamp(min=1e-3))
        for x, y in zip(ours, exact, strict=True)
    ]


def in_float32(x: Tensor | None) -> Tensor | None:
    if x is None or not x.is_floating_point():
        return x
    return x.detach().float().requires_grad_(x.requires_grad)


def loop_distances(dtype: torch.dtype) -> dict[str, list[float]]:
    """Measure how far each output and gradient is from the plain loop in float32, by case."""
    results = {}
    for name in CASES if dtype == torch.float32 else CASES_IN_HALF_PRECISION:
        case = CASES[name]
        arguments = loop_arguments(case, dtype)
        exact = run_loop(False, [in_float32(x) for x in arguments])
        results[name] = distances(run_loop(True, arguments), exact)
    return results


def same_twice() -> bool:
    """Tell whether a second run gives the same bits."""
    arguments = loop_arguments(CASES["one block, odd sizes"], torch.float32)
    runs = [run_loop(True, arguments) for _ in range(2)]
    return all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


def model_distances() -> dict[str, list[float]]:
    """Run the whole model with the kernels and plain: a training step, and free running."""
    lengths = torch.tensor([9, 70, 5])
    torch.manual_seed(0)
    tokens = torch.randint(1, SMALL.vocab_size, (3, 70))
    tokens = tokens.masked_fill(build_padding_mask(lengths), 0)
    mels, mel_lengths = torch.randn(3, 6, SMALL.num_mels), torch.tensor([6, 3, 5])
    for module in (fast_loops, fast_decoder):
        module.gpu_loops_work = lambda device, dtype: True
    steps, spoken = [], []
    for fast in (True, False):
        torch.manual_seed(0)
        model = Tacotron2(SMALL)
        if fast:
            model.decoder = make_twin(model.decoder, SMALL, FastDecoder)
        with KnownDropout():
            output = model.train()(tokens, lengths, mels, mel_lengths)
        total = sum(part.square().mean() for part in output)
        # Before a batch norm a bias has no gradient but for rounding.
        named = [(n, p) for n, p in model.named_parameters() if not n.endswith(".0.bias")]
        gradients = torch.autograd.grad(total, [p for _, p in named])
        steps.append([x.detach() for x in (*output, *gradients)])
        with KnownDropout():
            spoken.append(list(model.eval().infer(tokens, lengths, 4, 1.0)[:1]))
    return {"training step": distances(*steps), "free running": distances(*spoken)}


def main() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1", "see this file's docstring"
    multiply_bfloat16_as_float32()
    trial = partial(fast_loops.gpu_disagreement, CPU)
    dtypes = {str(d).removeprefix("torch."): d for d in fast_loops.GPU_TOLERANCE}
    results = {
        "loops": {name: loop_distances(dtype) for name, dtype in dtypes.items()},
        "trial": {name: trial(dtype) for name, dtype in dtypes.items()},
        "same_twice": same_twice(),
        "model": model_distances(),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
