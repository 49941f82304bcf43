"""The model under torch.compile, and its parts under torch.export, as docs/weights.md says."""

import pytest
import torch
from torch import nn

from extras.export_onnx import EncoderOfOneText
from model import DecoderState, build_padding_mask
from test_model import lively, make_batch, make_model


@pytest.mark.slow
def test_the_compiled_model_gives_the_same_numbers_and_gradients():
    """Trace forward and backward; the default backend would compile C++ for minutes."""
    batch = make_batch()
    eager, compiled = make_model(), make_model()
    compiled_forward = torch.compile(compiled, backend="aot_eager")
    outputs = eager(*batch), compiled_forward(*batch)
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for output in outputs:
        output.mels_after.square().mean().backward()
    for (name, left), right in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, atol=1e-5, rtol=1e-3, msg=name)


class OneStep(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, frame, state, encoder_outputs, padding_mask):
        keys = self.decoder.attention.key_layer(encoder_outputs)
        frame, stop_logit, alignment, state = self.decoder.step(
            frame, DecoderState(*state), encoder_outputs, keys, padding_mask
        )
        return frame, stop_logit, alignment, tuple(state)


def test_encoder_decoder_step_and_postnet_can_be_exported():
    model = lively(make_model())
    tokens, token_lengths, mels, mel_lengths = make_batch((9, 9, 9), (20, 20, 20))
    padding_mask = build_padding_mask(token_lengths)
    encoder_outputs = model.encoder(tokens, token_lengths, padding_mask)
    keys = model.decoder.attention.key_layer(encoder_outputs)
    exported = torch.export.export(EncoderOfOneText(model), (tokens,)).module()
    torch.testing.assert_close(exported(tokens), (encoder_outputs, keys))

    state = model.decoder.initial_state(encoder_outputs)
    arguments = (mels[:, 0], tuple(state), encoder_outputs, padding_mask)
    exported = torch.export.export(OneStep(model.decoder), arguments).module()
    expected = model.decoder.step(mels[:, 0], state, encoder_outputs, keys, padding_mask)
    for ours, theirs in zip(exported(*arguments)[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours, theirs)

    mel_mask = build_padding_mask(mel_lengths)
    exported = torch.export.export(model.postnet, (mels, mel_mask)).module()
    torch.testing.assert_close(exported(mels, mel_mask), model.postnet(mels, mel_mask))
