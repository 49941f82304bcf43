"""fast/gpu.py and fast/kernels.py, as far as a machine without a GPU can check them.

Triton's interpreter computes the kernels on a CPU. Triton's compiler, which needs no GPU, makes
machine code for two of them. FakeGraph plays a CUDA graph, with fixed addresses and no Python at
replay, by recording PyTorch's operations. The last tests need a real GPU.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fast.decoder as fast_decoder
import fast.loops as fast_loops
import test_fast_decoder
from fast.decoder import speed_up
from fast.loops import gpu_loops_work
from model import InferenceOutput, Tacotron2, build_padding_mask

triton = pytest.importorskip("triton", reason="PyTorch brings Triton on Linux only")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("the compiler is tested, not the interpreter", allow_module_level=True)
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime import build  # noqa: E402

import fast.gpu as fast_gpu  # noqa: E402

HERE = Path(__file__).parent
# Of the largest number. One rounding is 6e-8, 5e-4 and 4e-3; a number is a sum of many terms.
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 0.05}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program can have, by architecture
TRITON_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.bool: "*i1"}
# No dropout, because FakeGraph draws it again at each replay.
SMALL = replace(test_fast_decoder.SMALL, decoder_prenet_dropout_p=0.0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.slow
def test_interpreted_kernels_equal_the_plain_loops():
    """Loops with all gradients, the same bits twice, and the whole model beside model.py's."""
    result = subprocess.run(
        [sys.executable, str(HERE / "interpreted_kernels.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert result.returncode == 0
    interpreted = json.loads(result.stdout)
    for dtype, tolerance in TOLERANCE.items():
        cases = interpreted["loops"][dtype]
        assert len(cases) == (6 if dtype == "float32" else 2)
        for name, distances in cases.items():
            assert len(distances) == 3 + 9, "outputs and gradients"
            assert max(distances) < tolerance, (dtype, name)  # false for nan, too
        assert 0 < interpreted["trial"][dtype] < fast_loops.GPU_TOLERANCE[getattr(torch, dtype)]
    assert interpreted["same_twice"]
    for distances in interpreted["model"].values():
        assert max(distances) < 2e-5


class Recorder:
    """Replaces a kernel: notes the arguments of its first launch."""

    def __init__(self, kernel, launches: dict):
        self.kernel, self.launches, self.arg_names = kernel, launches, kernel.arg_names

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            bound = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            self.launches.setdefault(self.kernel.__name__, (self.kernel, bound))

        return launch


def compile_kernel(kernel, arguments: dict, architecture: int) -> int:
    """Compile a kernel for a launch with these arguments; return its bytes of shared memory."""
    unaligned = kernel.do_not_specialize_on_alignment or ()
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = TRITON_TYPES[value.dtype]
            if parameter.name not in unaligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    assert compiled.asm["cubin"]
    return compiled.metadata.shared


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture, dtype", [(80, torch.float32), (90, torch.bfloat16)], ids=["sm_80", "sm_90"]
)
def test_kernels_compile_at_the_papers_sizes(monkeypatch, architecture, dtype):
    """Compile for an A100 and an H100, with the arguments that the loops launch them with."""
    launches: dict = {}
    for name, kernel in vars(fast_gpu).copy().items():
        if name.endswith("_kernel"):
            monkeypatch.setattr(fast_gpu, name, Recorder(kernel, launches))
    fast_loops.gpu_disagreement(torch.device("cpu"), dtype)  # launches all, computes nothing
    assert len(launches) == 6
    for kernel, arguments in launches.values():
        shared = compile_kernel(kernel, arguments, architecture)
        assert shared <= SHARED_MEMORY[architecture], kernel.__name__


def explain_refusal(monkeypatch, capsys, trial) -> str:
    """Let the kernels' trial be `trial`; return the one line that says why they are not used."""
    monkeypatch.setattr(fast_loops, "gpu_disagreement", trial)
    gpu_loops_work.cache_clear()
    for _ in range(2):
        assert not gpu_loops_work(torch.device("cuda"), torch.float32)
    gpu_loops_work.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch, tmp_path, capsys):
    """Triton's own code looks for a compiler and finds none."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    trial = lambda *_: build.compile_module_from_src("", "launcher")  # noqa: E731
    line = explain_refusal(monkeypatch, capsys, trial)
    assert "cuda: no fused kernels, which is slower; " in line
    assert "install gcc and python3-dev" in line and "variable CC" in line


def test_kernels_that_compute_something_else_are_not_used(monkeypatch, capsys):
    line = explain_refusal(monkeypatch, capsys, lambda *_: float("nan"))
    assert "nan of the norm" in line and "gcc" not in line


class FakeGraph(TorchDispatchMode):
    """Plays a CUDA graph on a CPU: replays the operations of its block into the same tensors."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for place, x in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != x.data_ptr():
                    place.copy_(x)


class FakeGenerator:
    """Plays a GPU's generator, which a failed recording leaves unusable."""

    def __init__(self):
        self.state = "before"

    def clone_state(self) -> str:
        return self.state

    def graphsafe_set_state(self, state: str) -> None:
        self.state = state


@pytest.fixture
def fake_graphs(monkeypatch) -> list[FakeGraph]:
    """Replace CUDA graphs by FakeGraph, of 4 steps each; return the list of those recorded."""
    graphs: list[FakeGraph] = []

    def record(graph: FakeGraph, pool: str, stream: str, capture_error_mode: str) -> FakeGraph:
        graphs.append(graph)
        assert (pool, stream) == ("pool", "recording stream")
        return graph

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "default_generators", {None: FakeGenerator()})
    monkeypatch.setattr(fast_gpu, "_recording_stream", lambda device: "recording stream")
    monkeypatch.setattr(fast_gpu, "_FAILED", [])
    monkeypatch.setattr(fast_decoder, "STEPS_AT_ONCE", {"cpu": 4})
    return graphs


def speak(model: Tacotron2, max_decoder_steps: int, stop_threshold: float) -> InferenceOutput:
    lengths = torch.tensor([9, 4, 7])
    torch.manual_seed(5)
    tokens = torch.randint(1, SMALL.vocab_size, (3, 9)).masked_fill(build_padding_mask(lengths), 0)
    return model.infer(tokens, lengths, max_decoder_steps, stop_threshold)


def chatty_model() -> Tacotron2:
    """Build a model whose stop token moves: a threshold ends the clips at different frames."""
    torch.manual_seed(3)
    model = speed_up(Tacotron2(SMALL)).eval()
    with torch.no_grad():
        model.decoder.stop_projection.weight.mul_(20.0)
    return model


@pytest.mark.parametrize(
    ("max_decoder_steps", "all_stop"),
    [(4, False), (13, False), (40, False), (40, True)],
)
def test_recorded_steps_speak_as_single_steps_do(
    fake_graphs, monkeypatch, max_decoder_steps, all_stop
):
    """Also where the limit, or the last stop token, falls within a recorded chunk."""
    model = chatty_model()
    highest = torch.sigmoid(speak(model, 40, 1.0).stop_logits).amax(dim=1).sort().values
    threshold = float(highest[0] - 1e-4 if all_stop else highest[:2].mean())
    fake_graphs.clear()
    recorded = speak(model, max_decoder_steps, threshold)
    assert len(fake_graphs) == (max_decoder_steps > 4)
    monkeypatch.setattr(fast_decoder, "STEPS_AT_ONCE", {})
    single = speak(model, max_decoder_steps, threshold)
    assert single.mels.abs().max() > 0.1
    for name, ours, theirs in zip(single._fields, recorded, single, strict=True):
        assert ours.shape == theirs.shape, name
        # 20 times as loud a stop token has 20 times the rounding error, 1e-6 on some CPUs.
        atol = 2e-5 if name == "stop_logits" else 1e-6
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=name)
    if max_decoder_steps == 40:
        assert len(set(single.mel_lengths.tolist())) > 1 and not single.reached_limit.all()
        assert single.reached_limit.any() != all_stop
        assert not all_stop or single.mel_lengths.max() % 4 > 0


def add_up(fixed, state, reads, writes, backwards: bool) -> None:
    """Play a loop: state_t = (state + read_t) * fixed, in place where reads are writes."""
    assert reads[1] is None
    total = state[0]
    order = range(len(writes[0]))
    for t in reversed(order) if backwards else order:
        total = (total + reads[0][t]) * fixed[0]
        reads[0][t].sub_(total)
        writes[1][t].copy_(total)
    state[0].copy_(total)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("n_frames", [3, 11])
def test_frames_in_recorded_parts_are_those_run_one_by_one(
    fake_graphs, monkeypatch, n_frames, backwards
):
    """Also at the second call, which copies into the recording of the first."""
    monkeypatch.setattr(fast_gpu, "FRAMES_AT_ONCE", 4)
    monkeypatch.setattr(fast_gpu, "_GRAPHS", {})
    run = partial(add_up, backwards=backwards)
    generator = torch.Generator().manual_seed(n_frames)
    for call in (1, 2):
        weight, start = torch.rand(2, generator=generator), torch.rand(2, generator=generator)
        results = []
        for devices in ((), ("cpu",)):
            monkeypatch.setattr(fast_gpu, "GRAPH_DEVICES", devices)
            rows = torch.arange(2.0 * n_frames).view(n_frames, 2) * call
            totals, state = torch.zeros(n_frames, 2), start.clone()
            fast_gpu.run_frames(run, [weight], [state], [rows, None], [rows, totals], backwards)
            results.append([rows, totals, state])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert len(fake_graphs) == (n_frames >= 4)


def test_only_the_last_recordings_are_kept(fake_graphs, monkeypatch):
    monkeypatch.setattr(fast_gpu, "FRAMES_AT_ONCE", 2)
    monkeypatch.setattr(fast_gpu, "GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(fast_gpu, "MAX_GRAPHS", 2)
    monkeypatch.setattr(fast_gpu, "_GRAPHS", {})
    run = partial(add_up, backwards=False)
    for width in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, not of 1, which was used since
        x = torch.ones(2, width)
        fast_gpu.run_frames(run, [x[0]], [x[0].clone()], [x, None], [x.clone(), x.clone()])
    assert len(fake_graphs) == 4 and len(fast_gpu._GRAPHS) == 2


def test_without_graphs_free_running_goes_on(fake_graphs, monkeypatch, capsys):
    """PyTorch 2.11 leaves generator, allocator and stream in the middle of a failed recording."""
    streams, pools = [], []
    generator = torch.cuda.default_generators[None]

    def record(*_, **__) -> None:
        generator.state = "recording"
        raise RuntimeError("operation not permitted")

    expected = speak(chatty_model(), 13, 1.0)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: pools.append(pool))
    monkeypatch.setattr(torch.cuda, "graph", record)
    outputs = [speak(chatty_model(), 13, 1.0) for _ in range(2)]  # the second does not try
    (line,) = capsys.readouterr().err.splitlines()
    assert "no CUDA graph, which is slower; operation not permitted" in line
    assert (streams, pools, generator.state) == (["stream"], [(None, "pool")], "before")
    for output in outputs:
        torch.testing.assert_close(output.mels, expected.mels, rtol=0, atol=1e-6)


@needs_gpu
@pytest.mark.parametrize("dtype", fast_loops.GPU_TOLERANCE, ids=str)
def test_gpu_passes_the_trial(dtype, capsys):
    assert gpu_loops_work(torch.device("cuda:0"), dtype)
    assert not capsys.readouterr().err


@needs_gpu
def test_gpu_trains_in_recorded_parts_as_frame_by_frame(monkeypatch, capsys):
    """Outputs and gradients of two steps on different batches."""
    n_text = 40
    model = speed_up(Tacotron2(SMALL)).cuda().train()
    results = []
    for frames_at_once in (16, 10**6):
        monkeypatch.setattr(fast_gpu, "FRAMES_AT_ONCE", frames_at_once)
        monkeypatch.setattr(fast_gpu, "_GRAPHS", {})
        torch.manual_seed(0)
        found = []
        for _ in range(2):
            tokens = torch.randint(1, SMALL.vocab_size, (3, n_text), device="cuda")
            mels = torch.randn(3, 53, SMALL.num_mels, device="cuda")
            lengths = torch.tensor([n_text, 5, 6]), torch.tensor([53, 20, 50])
            with test_fast_decoder.KnownDropout():
                output = model(tokens, lengths[0], mels, lengths[1])
            total = sum(part.square().mean() for part in output)
            found += [*output, *torch.autograd.grad(total, [*model.parameters()])]
        assert len(fast_gpu._GRAPHS) == (2 if frames_at_once == 16 else 0)
        assert not capsys.readouterr().err
        results.append(found)
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@needs_gpu
def test_gpu_graph_speaks_as_single_steps_do(monkeypatch, capsys):
    model = chatty_model().cuda()
    tokens = torch.randint(1, SMALL.vocab_size, (3, 9), device="cuda")
    recorded = model.infer(tokens, None, 100, 1.0)
    assert not capsys.readouterr().err
    monkeypatch.setattr(fast_decoder, "STEPS_AT_ONCE", {})
    for ours, theirs in zip(recorded, model.infer(tokens, None, 100, 1.0), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=1e-4)


@needs_gpu
@torch.no_grad()
def test_gpu_graph_draws_dropout_anew():
    """The prenet's dropout is never off, so the frames of a replayed graph must not repeat."""
    torch.manual_seed(0)
    prenet = Tacotron2(replace(SMALL, decoder_prenet_dropout_p=0.5)).decoder.prenet.cuda()
    carry = (torch.randn(3, SMALL.num_mels, device="cuda"),)

    def run(carry: tuple[Tensor]) -> tuple[tuple[Tensor], tuple[Tensor]]:
        return (prenet(carry[0]),), carry

    run(carry)
    replay = fast_gpu.capture(run, carry)
    assert replay is not run
    assert not torch.equal(replay(carry)[0][0], replay(carry)[0][0])
