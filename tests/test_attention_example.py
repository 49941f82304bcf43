"""Run the example of docs/changing_the_model.md, another attention, as it stands there."""

import re

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

import model as model_module
import train_taco
from conftest import REPO
from model import Decoder, Tacotron2Config, build_padding_mask
from runs import draw_nothing, run_flags
from speech.voice import load_checkpoint
from synthesize import synthesize
from test_model import SMALL

PAGE = (REPO / "docs/changing_the_model.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.split("## Example: another attention")[1]
CODE, SAID = re.findall(r"```(?:python)?\n(.*?)```", EXAMPLE, re.DOTALL)


@pytest.fixture
def attention_class():
    """Run the class alone; the code after it builds a model of the paper's sizes."""
    namespace: dict = {}
    exec(CODE.split("\n\n\nmodel = ")[0], namespace)
    return namespace["DynamicConvolutionAttention"]


def test_the_code_runs_as_it_stands_and_speed_up_steps_aside(capsys):
    namespace: dict = {}
    exec(CODE, namespace)
    assert type(namespace["model"].decoder) is Decoder
    assert capsys.readouterr().err.split() == SAID.split()


def formula(attention, query, alignment) -> np.ndarray:
    """Compute Battenberg et al. 2020 for one clip without padding, character by character."""
    w = {name: value.detach().numpy() for name, value in attention.named_parameters()}
    n_text, n_filters = len(alignment), w["static_conv.weight"].shape[0]
    size = w["static_conv.weight"].shape[2]
    static = w["static_conv.weight"][:, 0]  # (n_filters, size)
    dynamic = np.tanh(w["query_layer.weight"] @ query + w["query_layer.bias"])
    dynamic = (w["filter_layer.weight"] @ dynamic).reshape(n_filters, size)
    around = np.pad(alignment, size // 2)
    energies = []
    for j in range(n_text):
        window = around[j : j + size]
        hidden = w["static_layer.weight"] @ (static @ window)
        hidden = hidden + w["dynamic_layer.weight"] @ (dynamic @ window) + w["dynamic_layer.bias"]
        prior = sum(
            betabinom.pmf(k, 10, 0.1, 0.9) * alignment[j - k] for k in range(11) if j - k >= 0
        )
        energies.append(w["v.weight"][0] @ np.tanh(hidden) + np.log(max(prior, 1e-6)))
    exponentials = np.exp(energies)
    return exponentials / exponentials.sum()


def test_the_alignments_are_those_of_the_papers_formula(attention_class):
    torch.manual_seed(0)
    attention = attention_class(Tacotron2Config(**SMALL)).double()
    n_text, lengths = 25, [25, 14]
    queries = torch.randn(3, 2, SMALL["decoder_rnn_embed_dim"], dtype=torch.float64)
    mask = build_padding_mask(torch.tensor(lengths))
    alignment = cumulative = torch.zeros(2, n_text, dtype=torch.float64)
    expected = [np.eye(length)[0] for length in lengths]  # on the first character
    for query in queries:
        alignment = attention(query, None, mask, alignment, cumulative)
        cumulative = cumulative + alignment
        for i, length in enumerate(lengths):
            expected[i] = formula(attention, query[i].numpy(), expected[i])
            ours = alignment[i].detach().numpy()
            np.testing.assert_allclose(ours[:length], expected[i], rtol=1e-5, atol=1e-9)
            assert not ours[length:].any()


@pytest.mark.slow
def test_in_the_decoders_place_all_scripts_use_it(attention_class, monkeypatch, world, capsys):
    """Where `Decoder` itself builds it, a run trains it and its checkpoint speaks."""
    monkeypatch.setattr(model_module, "LocationSensitiveAttention", attention_class)
    draw_nothing(monkeypatch.setattr)
    train_taco.main(run_flags(world.corpus, world.out, "--training_epochs", 1))
    assert capsys.readouterr().err.startswith(
        "fast/decoder.py does not fit this model: AttributeError: "
    )
    voice = load_checkpoint(next(world.out.rglob("final_checkpoint")))
    assert type(voice.model.decoder.attention) is attention_class
    assert type(voice.model.decoder) is Decoder
    result = synthesize("Go home.", voice, max_decoder_steps=5, seed=0)
    assert len(result.mel) == 5 and result.wav.isfinite().all()
