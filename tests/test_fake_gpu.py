"""One training step on a GPU that PyTorch knows by shape only: dtypes, and waits for the device.

PyTorch's autocast runs cuDNN's LSTMs in float16 whatever its own dtype is; FakeCudnn does the same.
"""

import copy

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import rnn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fast.loops as fast_loops
from fast.decoder import FastDecoder
from fast.loops import cudnn_has_bfloat16, lstm_in_dtype
from model import Tacotron2, tacotron2_loss
from test_fast_decoder import SMALL

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch without CUDA"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]


class Recorder(TorchDispatchMode):
    """Notes the operations that touched each floating dtype, and those that wait for the device."""

    def __init__(self):
        super().__init__()
        self.seen: dict[torch.dtype, set[str]] = {}
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.name()
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.seen.setdefault(leaf.dtype, set()).add(name)
        copies = name == "aten::_to_copy" and args[0].device.type != result.device.type
        if (copies and not kwargs.get("non_blocking")) or name == "aten::_local_scalar_dense":
            self.waits.append(name)
        return result


class Sizes(list):
    """Stands in for batch_sizes of a packed sequence, because fake tensors have no values."""

    device = torch.device("cpu")

    def size(self, _: int) -> int:
        return len(self)


class FakeCudnn:
    """Stands in for the C functions that nn.LSTM and packing call."""

    def __init__(self):
        self.dtypes: list[torch.dtype] = []  # of each call of an LSTM

    def _pack_padded_sequence(self, x: Tensor, lengths: Tensor, batch_first: bool):
        return x.transpose(0, 1).flatten(0, 1), Sizes([x.shape[0]] * x.shape[1])

    def _pad_packed_sequence(self, x: Tensor, sizes: Sizes, batch_first: bool, fill: float, n):
        return x.unflatten(0, (n, -1)).transpose(0, 1), torch.empty(sizes[0], dtype=torch.int64)

    def lstm(self, x: Tensor, *args):
        packed = isinstance(args[0], Sizes)
        states, weights, has_biases, _, _, _, bidirectional = args[packed : packed + 7]
        if torch.is_autocast_enabled("cuda"):  # at::autocast::_cudnn_rnn_cast_reflatten
            x, *weights = (tensor.half() for tensor in (x, *weights))
            states = [state.half() for state in states]
        assert {tensor.dtype for tensor in (x, *states, *weights)} == {x.dtype}
        n_directions = 1 + bidirectional
        assert has_biases and len(weights) == 4 * n_directions
        self.dtypes.append(x.dtype)
        with torch.autocast("cuda", enabled=False):  # some product with all of the weights
            outputs = []
            for i in range(n_directions):
                w_ih, w_hh, b_ih, b_hh = weights[4 * i : 4 * i + 4]
                gates = torch.tanh(x @ w_ih.t() + b_ih + b_hh)
                outputs.append(gates @ w_hh)
            return torch.cat(outputs, dim=-1), *states


@pytest.fixture
def cudnn(monkeypatch) -> FakeCudnn:
    fake = FakeCudnn()
    monkeypatch.setattr(rnn, "_VF", fake)
    monkeypatch.setattr(torch.nn.modules.rnn, "_VF", fake)
    monkeypatch.setattr(torch, "lstm", fake.lstm)
    monkeypatch.setattr(fast_loops, "gpu_loops_work", lambda device, dtype: False)
    return fake


def gpu_of(monkeypatch, version: int | None, capability: tuple[int, int], hip=None) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)


class cuda_autocast:
    """torch.autocast("cuda") turns itself off where there is no GPU."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", self.dtype)

    def __exit__(self, *_):
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", self.before)
        torch.clear_autocast_cache()


def forward_and_loss(dtype: torch.dtype, fast_decoder: bool) -> Recorder:
    """Run forward and loss on fake CUDA tensors; return the recorder of their operations."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = Tacotron2(SMALL).train()
            if fast_decoder:
                model.decoder = FastDecoder(SMALL).train()
            tokens = torch.ones(3, 9, dtype=torch.int64)
            mels, stop_targets = torch.zeros(3, 7, SMALL.num_mels), torch.zeros(3, 7)
        lengths = torch.tensor([9, 4, 7]), torch.tensor([7, 5, 3])
        with Recorder() as recorder:
            with cuda_autocast(dtype):
                output = model(tokens, lengths[0], mels, lengths[1])
            loss = tacotron2_loss(output, mels, *lengths, stop_targets, 1.0)["loss"]
        assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
        assert not recorder.waits
        with recorder:
            lengths[0].to("cuda")
        assert recorder.waits == ["aten::_to_copy"], "the recorder should see a wait"
    return recorder


@pytest.mark.parametrize("fast_decoder", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize(
    "cudnn_version, lstm_runs_in", [(91300, torch.bfloat16), (91200, torch.float32)]
)
def test_no_float16_under_bfloat16_and_no_wait(
    cudnn, monkeypatch, cudnn_version, lstm_runs_in, fast_decoder
):
    gpu_of(monkeypatch, cudnn_version, (8, 0))
    seen = forward_and_loss(torch.bfloat16, fast_decoder).seen
    assert torch.float16 not in seen, sorted(seen[torch.float16])
    # The encoder's LSTM, and that of the fast decoder; model.py writes its own out.
    assert cudnn.dtypes == [torch.float32, lstm_runs_in][: 1 + fast_decoder]
    assert "aten::mm" in seen[torch.bfloat16], "autocast was off"


@pytest.mark.parametrize(
    "version, capability, hip, has_bfloat16",
    [
        (91300, (8, 0), None, True),
        (91900, (7, 5), None, False),
        (3005000, (9, 4), "7.0", False),  # AMD's GPUs, which PyTorch calls CUDA too
    ],
)
def test_which_gpus_have_lstms_in_bfloat16(monkeypatch, version, capability, hip, has_bfloat16):
    gpu_of(monkeypatch, version, capability, hip)
    assert cudnn_has_bfloat16(torch.device("cuda")) == has_bfloat16


def test_under_float16_the_decoders_lstm_runs_in_float16(cudnn, monkeypatch):
    """The loss is scaled there; this also shows that the recorder sees float16."""
    gpu_of(monkeypatch, 91900, (9, 0))
    seen = forward_and_loss(torch.float16, True).seen
    assert cudnn.dtypes == [torch.float32, torch.float16], "the encoder's, the decoder's"
    assert torch.bfloat16 not in seen and "aten::mm" in seen[torch.float16]


def test_cast_weights_give_the_modules_outputs_and_gradients():
    """Run a float32 LSTM in float64, beside a copy whose parameters are float64."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(5, 3)
    exact = copy.deepcopy(lstm).double()
    x = torch.randn(4, 2, 5, requires_grad=True)
    x_exact = x.detach().double().requires_grad_()
    ours, theirs = lstm_in_dtype(x, lstm, torch.float64), exact(x_exact)[0]
    assert ours.dtype == torch.float64 and ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    for y in (ours, theirs):
        (y * torch.arange(y.numel()).view_as(y)).sum().backward()
    torch.testing.assert_close(x.grad.double(), x_exact.grad, rtol=1e-6, atol=0)
    for parameter, other in zip(lstm.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.double(), other.grad, rtol=1e-6, atol=1e-9)
