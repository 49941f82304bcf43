"""The type in which LSTMs run on a GPU under autocast, on a GPU that PyTorch knows by shape only.

torch's autocast runs cuDNN's LSTMs in float16 whatever its own type is, which FakeCudnn copies;
the recorder sees the type of every tensor that goes in or out of an operation.
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


class Dtypes(TorchDispatchMode):
    """The operations that touched each floating type."""

    def __init__(self):
        super().__init__()
        self.seen: dict[torch.dtype, set[str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.seen.setdefault(leaf.dtype, set()).add(func.name())
        return result


class Sizes(list):
    """batch_sizes of a packed sequence: fake tensors have no values."""

    device = torch.device("cpu")

    def size(self, _: int) -> int:
        return len(self)


class FakeCudnn:
    """In the place of torch's C functions that nn.LSTM and packing call."""

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
        n_sequences = args[0][0] if packed else x.shape[1]
        n_directions = 1 + bidirectional
        hidden_size = weights[1].shape[1]
        assert has_biases and len(weights) == 4 * n_directions
        for state in states:
            assert state.shape == (n_directions, n_sequences, hidden_size)
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


@torch.no_grad()
def backward(loss: Tensor) -> dict[Tensor, Tensor]:
    """Gradients by parameter. autograd's own engine asks the GPU's driver, which is not there."""
    users: dict = {}  # of each node: how many nodes hand it a gradient
    to_visit = [loss.grad_fn]
    while to_visit:
        for node, _ in to_visit.pop().next_functions:
            if node and node not in users:
                to_visit.append(node)
            users[node] = users.get(node, 0) + 1
    gradients, result = {loss.grad_fn: {0: torch.ones_like(loss)}}, {}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        if hasattr(node, "variable"):
            result[node.variable] = given.get(0)
            continue
        arguments = [given.get(i) for i in range(len(node._input_metadata))]
        if isinstance(node, torch.autograd.function.BackwardCFunction):  # AttentionLoop's
            handed_on = zip(node.apply(*arguments), node.needs_input_grad, strict=True)
            handed_on = [gradient for gradient, needed in handed_on if needed]
            next_nodes = [place for place in node.next_functions if place[0]]
        else:
            handed_on, next_nodes = node(*arguments), node.next_functions
            handed_on = handed_on if isinstance(handed_on, tuple) else (handed_on,)
        for (user, i), gradient in zip(next_nodes, handed_on, strict=True):
            if user is None:
                continue
            if gradient is not None:
                like = user._input_metadata[i]
                gradient = gradient.sum_to_size(like.shape).to(like.dtype)
                place = gradients.setdefault(user, {})
                place[i] = place[i] + gradient if i in place else gradient
            users[user] -= 1
            if not users[user]:
                ready.append(user)
    return result


def training_step(dtype: torch.dtype, fast_decoder: bool) -> dict[torch.dtype, set[str]]:
    """Operations by type, forward and backward, of one step on fake CUDA tensors."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = Tacotron2(SMALL).train()
            if fast_decoder:
                model.decoder = FastDecoder(SMALL).train()
            tokens = torch.ones(3, 9, dtype=torch.int64)
            mels, stop_targets = torch.zeros(3, 7, SMALL.num_mels), torch.zeros(3, 7)
        lengths = torch.tensor([9, 4, 7]), torch.tensor([7, 5, 3])
        with Dtypes() as dtypes:
            with cuda_autocast(dtype):
                output = model(tokens, lengths[0], mels, lengths[1])
            gradients = backward(tacotron2_loss(output, mels, *lengths, stop_targets, 1.0)["loss"])
        for name, parameter in model.named_parameters():
            assert gradients[parameter].shape == parameter.shape, name
            assert gradients[parameter].dtype == torch.float32, name
    return dtypes.seen


@pytest.mark.parametrize("fast_decoder", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize(
    "cudnn_version, lstm_runs_in",
    [(91300, torch.bfloat16), (91200, torch.float32)],
    ids=["cuDNN 9.13", "cuDNN 9.12"],
)
def test_no_float16_under_bfloat16(cudnn, monkeypatch, cudnn_version, lstm_runs_in, fast_decoder):
    gpu_of(monkeypatch, cudnn_version, (8, 0))
    seen = training_step(torch.bfloat16, fast_decoder)
    assert torch.float16 not in seen, sorted(seen[torch.float16])
    # The encoder's LSTM, and the decoder's where model.py does not write it out.
    assert cudnn.dtypes == [torch.float32, lstm_runs_in][: 1 + fast_decoder]
    assert "aten::mm" in seen[torch.bfloat16], "autocast was off"


@pytest.mark.parametrize(
    "version, capability, hip, has_bfloat16",
    [
        (91300, (8, 0), None, True),
        (91900, (12, 0), None, True),
        (91202, (9, 0), None, False),
        (91900, (7, 5), None, False),
        (None, (9, 0), None, False),
        (3005000, (9, 4), "7.0", False),  # AMD's GPUs go by the name of CUDA, with MIOpen's version
    ],
)
def test_which_gpus_have_lstms_in_bfloat16(monkeypatch, version, capability, hip, has_bfloat16):
    gpu_of(monkeypatch, version, capability, hip)
    assert cudnn_has_bfloat16(torch.device("cuda")) == has_bfloat16


def test_under_float16_the_decoders_lstm_runs_in_float16(cudnn, monkeypatch):
    """Where the loss is scaled; this also shows that the recorder sees float16."""
    gpu_of(monkeypatch, 91900, (9, 0))
    seen = training_step(torch.float16, True)
    assert cudnn.dtypes == [torch.float32, torch.float16], "the encoder's, the decoder's"
    assert torch.bfloat16 not in seen and "aten::mm" in seen[torch.float16]


def test_cast_weights_give_the_modules_outputs_and_gradients():
    """In float64, of an LSTM in float32: as one whose parameters are float64."""
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
