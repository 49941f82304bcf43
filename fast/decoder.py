"""The decoder of model.py, faster: the same parameters, the same numbers.

    model = speed_up(Tacotron2(config))  # one line, for training and for speaking

`FastDecoder` overrides teacher forcing and free running. With teacher forcing, only the attention
LSTM and the attention need the frames before frame t: fast/loops.py runs those two frame by frame,
and the prenet, the decoder LSTM and the projections are one call over all frames. Free running
lays the weights out once for all steps, and on a GPU records several steps as one CUDA graph.

`speed_up` checks this file against model.py on every call: it runs both decoders on a small batch
and compares all outputs and gradients. If they differ, because someone changed model.py and not
this file, the model keeps the decoder of model.py and one line says why. tests/test_fast_decoder.py
compares the two at more sizes and in double precision.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from command_line.files import one_line
from command_line.main import say
from fast.loops import (
    Attention,
    activate_,
    attention_loop,
    can_block,
    compute_dtype,
    double,
    fast_lstm,
    fold_location,
    gpu_attention_works,
    gpu_loops_work,
    repeated_linear,
    state_dtype,
)
from fast.postnet import ChunkedPostNet
from model import Decoder, DecoderState, PostNet, Tacotron2, Tacotron2Config, lstm_cell

# Free-running steps between two checks of the stop token, each of which waits for the device.
STEPS_AT_ONCE = {"cuda": 8}
TRIAL_TOLERANCE = 1e-4  # of the norm; rounding is about 1e-6
TRIAL_SIZES = {  # of the decoders that are compared
    "num_mels": 4,
    "encoder_embed_dim": 6,
    "decoder_rnn_embed_dim": 8,
    "decoder_dropout_p": 0.3,
    "decoder_prenet_dim": 5,
    "attention_dim": 7,
    "attention_dropout_p": 0.2,
    "attention_location_n_filters": 3,
    "attention_location_kernel_size": 3,
}
Cell = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # x, h, c -> h, c
# query, alignment, cumulative_alignment -> context, alignment
Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class BlockedCell:
    """An LSTM's weights laid out for many single steps, without a gradient.

    Laying them out takes as long as 60 steps, so `prepare_cell` keeps the cell from sentence to
    sentence. The cell holds a copy of the weights that it was made from, to detect a change.
    """

    def __init__(self, lstm: nn.Module, dtype: torch.dtype) -> None:
        self.made_from = [weight.detach().clone() for weight in lstm.parameters()]
        weight_ih, weight_hh, bias_ih, bias_hh = self.made_from
        self.dtype = dtype
        self.product = repeated_linear(torch.cat([weight_ih, weight_hh], dim=1).to(dtype))
        self.bias = (bias_ih + bias_hh).float()

    def fits(self, lstm: nn.Module) -> bool:
        """Compare the LSTM's weights with those that this cell was made from."""
        return all(
            (kept.device, kept.dtype) == (weight.device, weight.dtype) and torch.equal(kept, weight)
            for kept, weight in zip(self.made_from, lstm.parameters(), strict=True)
        )

    def __call__(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step: the product in dtype, the rest in float32."""
        inputs = torch.cat([x, hidden], dim=1).to(self.dtype)
        preactivations = self.product(inputs).float() + self.bias
        next_cell = torch.empty_like(cell)
        return activate_(preactivations, cell, next_cell), next_cell


_BLOCKED_CELLS: WeakKeyDictionary = WeakKeyDictionary()  # lstm -> dtype -> BlockedCell


def prepare_cell(lstm: nn.Module) -> Cell:
    """Prepare an LSTM for many steps, in autocast's dtype where autocast is on."""
    weight_hh = list(lstm.parameters())[1]
    dtype = compute_dtype(weight_hh)
    if gpu_loops_work(weight_hh.device, dtype):
        import fast.gpu as fast_gpu

        return fast_gpu.prepare_cell(*(weight.detach() for weight in lstm.parameters()), dtype)
    if not can_block(weight_hh.to(dtype)):
        return partial(lstm_cell, lstm=lstm)
    cells = _BLOCKED_CELLS.setdefault(lstm, {})
    if dtype not in cells or not cells[dtype].fits(lstm):
        cells[dtype] = BlockedCell(lstm, dtype)
    return cells[dtype]


def prepare_attention(
    attention: nn.Module, encoder_outputs: Tensor, padding_mask: Tensor
) -> Attend:
    """Prepare the attention over a text for many steps, in float32 or better."""
    keys = attention.key_layer(encoder_outputs)
    dtype = state_dtype(encoder_outputs.dtype)
    encoder_outputs = encoder_outputs.to(dtype)
    weight_query, weight_location = attention.query_layer.weight, fold_location(attention)
    doubled = double(keys, weight_query, weight_location, attention.v.weight.squeeze(0))
    doubled = [x.detach().to(dtype) for x in doubled]
    half = weight_location.shape[2] // 2
    if gpu_attention_works(weight_location, encoder_outputs.device, dtype):
        import fast.gpu as fast_gpu

        return fast_gpu.prepare_attention(encoder_outputs, padding_mask, *doubled)
    prepared = Attention(*doubled)

    def attend(query: Tensor, alignment: Tensor, cumulative: Tensor) -> tuple[Tensor, Tensor]:
        location = F.pad(torch.stack([alignment, cumulative], dim=1), (half, half))
        alignment = prepared.align(location, query, padding_mask, dtype)
        return torch.bmm(alignment[:, None], encoder_outputs).squeeze(1), alignment

    return attend


class FastDecoder(Decoder):
    """Decoder with fast teacher forcing and free running; made by `speed_up`."""

    def train(self, mode: bool = True) -> "FastDecoder":
        """Switch to train or eval mode; train mode frees the memory kept for free running."""
        if mode:
            for lstm in (self.attention_rnn, self.decoder_rnn):
                _BLOCKED_CELLS.pop(lstm, None)
        return super().train(mode)

    def joint_projection(self) -> tuple[Tensor, Tensor]:
        """Join both projections to one weight (r * (num_mels + 1), ...) and bias.

        A product with one column costs as much as one with 80, and so does its gradient.
        """
        projections = (self.mel_projection, self.stop_projection)
        weight = torch.cat([projection.weight for projection in projections])
        return weight, torch.cat([projection.bias for projection in projections])

    def forward(
        self, encoder_outputs: Tensor, padding_mask: Tensor, mels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run teacher forcing; see Decoder.forward."""
        config = self.config
        frames = self.previous_frames(mels).transpose(0, 1)  # (n_steps, B, num_mels)
        prenet_outputs = self.prenet(frames)  # (n_steps, B, decoder_prenet_dim)
        drops = None
        if self.training and config.attention_dropout_p:
            shape = (*prenet_outputs.shape[:2], config.decoder_rnn_embed_dim)
            drops = F.dropout(prenet_outputs.new_ones(shape), config.attention_dropout_p)
        keys = self.attention.key_layer(encoder_outputs)  # (B, T_text, attention_dim)
        run_attention, run_lstm = attention_loop, fast_lstm
        if torch.compiler.is_compiling():  # tracing the loops would gain nothing
            run_attention, run_lstm = map(torch.compiler.disable, (attention_loop, fast_lstm))
        parts = self.attention_rnn, self.attention
        queries, contexts, alignments = run_attention(
            prenet_outputs, encoder_outputs, keys, padding_mask, drops, *parts
        )
        rnn_outputs = run_lstm(torch.cat([queries, contexts], dim=2), self.decoder_rnn)
        rnn_outputs = F.dropout(rnn_outputs, config.decoder_dropout_p, self.training)
        features = torch.cat([rnn_outputs, contexts.to(rnn_outputs.dtype)], dim=2)
        outputs = F.linear(features, *self.joint_projection()).transpose(0, 1)
        return self.per_frame(*self.split(outputs), alignments.transpose(0, 1), mels.shape[1])

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Split outputs (B, n_steps, r * (num_mels + 1)) into frames and stop_logits by frames."""
        r = self.config.frames_per_step
        frames = outputs[..., :-r].unflatten(2, (r, -1)).flatten(1, 2)  # (B, n_steps * r, num_mels)
        return frames, outputs[..., -r:].flatten(1)

    @torch.no_grad()
    def run_freely(
        self,
        encoder_outputs: Tensor,
        padding_mask: Tensor,
        max_decoder_steps: int,
        stop_threshold: float,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Run freely; see Decoder.run_freely. On a GPU it yields several frames at a time."""
        if self.training:  # with dropout on the LSTMs' outputs; nobody needs this to be fast
            arguments = encoder_outputs, padding_mask, max_decoder_steps, stop_threshold
            yield from super().run_freely(*arguments)
            return
        attend = prepare_attention(self.attention, encoder_outputs, padding_mask)
        cells = prepare_cell(self.attention_rnn), prepare_cell(self.decoder_rnn)
        state = self.initial_state(encoder_outputs)
        carry = (state.context.new_zeros(len(padding_mask), self.config.num_mels), *state)
        device_type = encoder_outputs.device.type
        n_steps = STEPS_AT_ONCE.get(device_type, 1)
        run = partial(self.run_steps, attend, cells, self.joint_projection(), n_steps)
        stopped = torch.zeros_like(padding_mask[:, 0])  # (B,)
        n_at_once = n_steps * self.config.frames_per_step
        for n_frames in range(0, max_decoder_steps, n_at_once):
            # Under autocast the cells, which hold nearly all the weights, run in its dtype. The
            # rest of a step is too small to gain from that and stays float32.
            with torch.autocast(device_type, enabled=False):
                # The first chunk has compiled all kernels.
                if n_frames == n_at_once and n_steps > 1:
                    import fast.gpu as fast_gpu

                    run = fast_gpu.capture(run, carry)
                outputs, carry = run(carry)
            ends = torch.sigmoid(outputs[1]) > stop_threshold  # (B, n_at_once)
            # The chunk may hold frames after the last clip's end, and after the limit.
            n_kept = min(n_at_once, max_decoder_steps - n_frames)
            newly = ends & ~stopped[:, None]
            stopped |= ends.any(dim=1)
            if n_steps > 1 and stopped.all():
                n_kept = min(n_kept, int(newly.int().argmax(dim=1).max()) + 1)
            yield tuple(x[:, :n_kept] for x in outputs)
            if stopped.all():
                break

    def run_steps(
        self,
        attend: Attend,
        cells: tuple[Cell, Cell],
        projection: tuple[Tensor, Tensor],
        n_steps: int,
        carry: tuple[Tensor, ...],
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        """Run Decoder.step n_steps times without checking the stop token.

        Args:
            attend, cells, projection: from `prepare_attention`, `prepare_cell` and
                `joint_projection`.
            carry: the previous frame and the state, (frame, *state).

        Returns:
            (frames (B, n_steps * r, num_mels), stop_logits (B, n_steps * r), alignments
            (B, n_steps * r, T_text)) and the next carry.
        """
        frame, state = carry[0], DecoderState(*carry[1:])
        outputs = []
        for _ in range(n_steps):
            x = torch.cat([self.prenet(frame), state.context], dim=1)
            hidden, cell = cells[0](x, state.attention_hidden, state.attention_cell)
            context, alignment = attend(hidden, state.alignment, state.cumulative_alignment)
            x = torch.cat([hidden, context], dim=1)
            state = DecoderState(
                hidden,
                cell,
                *cells[1](x, state.decoder_hidden, state.decoder_cell),
                context,
                alignment,
                state.cumulative_alignment + alignment,
            )
            features = torch.cat([state.decoder_hidden, context], dim=1)
            frames, stop_logits = self.split(F.linear(features, *projection)[:, None])
            frame = frames[:, -1]  # (B, num_mels)
            alignments = alignment[:, None].expand(-1, frames.shape[1], -1)  # of each frame
            outputs.append((frames, stop_logits, alignments))
        parts = tuple(torch.cat(x, dim=1) for x in zip(*outputs, strict=True))
        return parts, (frame, *state)


# Switching


def speed_up(model: Tacotron2) -> Tacotron2:
    """Give the model a fast decoder and postnet that share its parameters; return the model.

    If the fast decoder computes other numbers than the model's own, the model keeps its own and
    one line on stderr says why.
    """
    reason = find_difference(model.decoder)
    if reason is None:
        model.decoder = make_twin(model.decoder, model.config, FastDecoder)
    elif os.environ.get("RANK", "0") == "0":  # only one of several processes prints it
        say(
            f"fast/decoder.py does not fit this model: {reason}. The plain loops of model.py run "
            "instead, with the right numbers but slower; --no-fast_decoder chooses them without "
            "this line, and the same change in fast/decoder.py makes it fast again",
            file=sys.stderr,
        )
    if type(model.postnet) is PostNet and not is_patched(model.postnet):
        model.postnet = make_twin(model.postnet, model.config, ChunkedPostNet)
    return model


def make_twin(part: nn.Module, config: Tacotron2Config, fast_class: type) -> nn.Module:
    """Make a decoder or postnet of fast_class that shares the layers of `part`."""
    with torch.device("meta"):  # takes no memory, and no random numbers from training
        twin = fast_class(config)
    for name, layer in part.named_children():
        setattr(twin, name, layer)
    return twin.train(part.training)


def is_patched(part: nn.Module) -> bool:
    """Tell if a module has hooks, or a forward other than its class's."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def find_difference(decoder: nn.Module) -> str | None:
    """Describe how a decoder differs from the one FastDecoder was written for; None if equal.

    Builds both decoders at a small size, which takes milliseconds, and compares teacher forcing in
    train mode, all gradients, and free running in eval mode.
    """
    if type(decoder) is not Decoder:
        return f"its decoder is a {type(decoder).__name__}, expected model.py's Decoder"
    with torch.random.fork_rng(devices=[]):  # the trial leaves training's random numbers alone
        torch.manual_seed(0)
        plain = Decoder(replace(decoder.config, **TRIAL_SIZES))
    for (name, part), known in zip(decoder.named_modules(), plain.modules(), strict=False):
        if type(part) is not type(known):
            return f"decoder.{name} is a {type(part).__name__}, expected a {type(known).__name__}"
        if is_patched(part):
            return f"decoder.{name} has a hook, or a forward of its own"
    try:
        twin = make_twin(plain, plain.config, FastDecoder)
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False), KnownDropout():
            results = [trial_results(either) for either in (plain, twin)]
    except Exception as error:  # a changed part may raise anything
        return one_line(f"{type(error).__name__}: {error}")
    for name, ours in results[0].items():
        distance = float((results[1][name] - ours).norm() / ours.norm().clamp_min(1e-30))
        if not distance < TRIAL_TOLERANCE:
            return f"{name} differ from those of model.py by {distance:.1g} of their size"
    return None


class KnownDropout(TorchFunctionMode):
    """Replaces the random F.dropout by a factor per channel that is the same in all calls.

    Two decoders then give the same numbers only if they apply the same dropout in the same places.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.dropout:
            return function(*args, **(kwargs or {}))
        return self.scale(*args, **(kwargs or {}))

    @staticmethod
    def scale(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Multiply x (..., C) by 1 - p to 1 + p; takes the arguments of F.dropout."""
        if not training:
            return x
        return x * (1 + p * torch.cos(torch.arange(x.shape[-1], device=x.device)))


def trial_results(decoder: Decoder) -> dict[str, Tensor]:
    """Compute outputs and gradients on a few frames of two texts, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 30, decoder.config.encoder_embed_dim, generator=generator)
    mels = torch.randn(2, 6, decoder.config.num_mels, generator=generator)
    padding_mask = torch.tensor([[False] * 30, [False] * 21 + [True] * 9])
    names = ("mels_before", "stop_logits", "alignments")
    with torch.enable_grad():
        forced = decoder.train()(text.requires_grad_(), padding_mask, mels.requires_grad_())
        sources = {"encoder_outputs": text, "mels": mels, **dict(decoder.named_parameters())}
        # One number, because torch imports sympy for the gradients of several, which takes 0.3 s.
        weighted = sum((x * x.detach().cos()).sum() for x in forced)
        gradients = torch.autograd.grad(weighted, list(sources.values()))
    with torch.no_grad():
        free = decoder.eval().infer(text, padding_mask, max_decoder_steps=6, stop_threshold=1.0)
    return {
        **{f"its teacher-forced {name}": x.detach() for name, x in zip(names, forced, strict=True)},
        **{f"the gradients of {name}": x for name, x in zip(sources, gradients, strict=True)},
        **{f"its free-running {name}": x for name, x in zip(names, free, strict=True)},
    }
