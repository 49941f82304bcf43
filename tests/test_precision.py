"""bf16 and fp16 autocast train: losses stay finite for 50 steps, and begin as those of float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import AudioConfig, Batch, TTSCollator, Utterance, audio_to_mel
from fast.decoder import FastDecoder, speed_up
from model import Decoder, Tacotron2, Tacotron2Config, build_padding_mask, lstm_cell, tacotron2_loss
from text.tokenizer import Tokenizer

AUDIO = AudioConfig()
SMALL = Tacotron2Config(
    vocab_size=Tokenizer().vocab_size, character_embed_dim=32, encoder_embed_dim=32,
    decoder_rnn_embed_dim=64, decoder_prenet_dim=32, decoder_postnet_n_filters=32,
    attention_dim=16, attention_location_n_filters=8,
)  # fmt: skip
SECONDS = (0.6, 0.45, 0.3)  # of each clip: enough frames for the loop, few enough for 50 steps
N_STEPS = 50
half_types = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"]
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Make three clips of a voice-like buzz with pauses of digital silence, the floor of mels."""
    time = torch.arange(AUDIO.sampling_rate) / AUDIO.sampling_rate
    texts, utterances = ["printing in the only sense", "produced the block", "books"], []
    for number, (seconds, text) in enumerate(zip(SECONDS, texts, strict=True)):
        pitch = 100.0 + 20.0 * number + 10.0 * torch.sin(6.0 * time)
        phase = 2.0 * torch.pi * pitch.cumsum(0) / AUDIO.sampling_rate
        buzz = sum(torch.sin(k * phase) / k for k in range(1, 30))
        wav = 0.2 * buzz * (torch.sin(20.0 * time) > -0.5)
        mel = audio_to_mel(wav[: int(seconds * AUDIO.sampling_rate)], AUDIO)
        tokens = Tokenizer().encode(text)[: int(15 * seconds) + 1]
        utterances.append(Utterance(tokens, mel, text, ""))
    return TTSCollator(AUDIO, Tokenizer())(utterances)


def losses_of(model: Tacotron2, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = model(batch.tokens, batch.token_lengths, batch.mels, batch.mel_lengths)
    assert all(torch.isfinite(part).all() for part in output)
    lengths = (batch.token_lengths, batch.mel_lengths)
    return tacotron2_loss(output, batch.mels, *lengths, batch.stop_targets, 1.0)


def first_clip(batch: Batch) -> Batch:
    """Return the longest clip, which has no padding, as a batch."""
    return Batch(*(part[:1] for part in batch))


@pytest.mark.slow
@half_types
def test_fifty_steps_stay_finite_and_learn(batch, dtype):
    """Train every fifth step on one clip; scale the gradients of fp16, as training does."""
    torch.manual_seed(0)
    model = speed_up(Tacotron2(SMALL)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
    losses = []
    for step in range(N_STEPS):
        loss = losses_of(model, first_clip(batch) if step % 5 == 4 else batch, dtype)["loss"]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for name, parameter in model.named_parameters():
            assert torch.isfinite(parameter.grad).all(), f"step {step}: {name}"
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_an_lstms_activations_are_float32_under_autocast():
    """The products are rounded to 8 bits, the sums of the cell are not."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTMCell(3, 4)
    x, hidden, cell = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = lstm_cell(x, hidden, cell, lstm)
        products = F.linear(x, lstm.weight_ih, lstm.bias_ih)
        products = products + F.linear(hidden, lstm.weight_hh, lstm.bias_hh)
    assert products.dtype == torch.bfloat16
    i, f, g, o = products.double().chunk(4, dim=1)
    exact_cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    expected = (o.sigmoid() * exact_cell.tanh()).float(), exact_cell.float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@half_types
@pytest.mark.parametrize("fast_decoder", [True, False], ids=["fast", "plain"])
def test_first_losses_are_float32s(batch, dtype, fast_decoder):
    torch.manual_seed(0)
    model = Tacotron2(SMALL).train()
    model = speed_up(model) if fast_decoder else model
    exact, half = (losses_of(model, batch, d) for d in (torch.float32, dtype))
    for name, loss in exact.items():
        assert loss > 0, name
        assert half[name].item() == pytest.approx(loss.item(), rel=0.02), name
    assert half["loss"] != exact["loss"], "autocast was off"


@half_types
@pytest.mark.parametrize("decoder_class", [FastDecoder, Decoder])
def test_alignments_are_float32_although_the_encoder_returns_half(dtype, decoder_class):
    encoder_outputs = torch.randn(2, 6, SMALL.encoder_embed_dim).to(dtype)
    mask = build_padding_mask(torch.tensor([6, 3]))
    with torch.autocast("cpu", dtype):
        outputs = decoder_class(SMALL)(encoder_outputs, mask, torch.randn(2, 9, SMALL.num_mels))
    assert outputs[2].dtype == torch.float32
