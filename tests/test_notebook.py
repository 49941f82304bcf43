"""inference.ipynb, executed from its first cell to its last on an untrained tiny checkpoint."""

import re

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from safetensors.torch import save_file

from checkpoints import write_config
from dataset import AudioConfig
from model import Tacotron2, Tacotron2Config
from tokenizer import Tokenizer

NOTEBOOK = "inference.ipynb"
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/\w[\w.-]*/|\b[A-Z]:\\|~/|site-packages")
BASE64 = re.compile(r"base64,[A-Za-z0-9+/=\s]+")


def assert_clean(outputs):
    """No warning, no error, and nothing that only the machine it ran on has."""
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
        texts = [output.get("text", "")]
        texts += [t for kind, t in output.get("data", {}).items() if not kind.startswith("image/")]
        for text in texts:
            text = BASE64.sub("", text)
            assert "Warning" not in text and not ABSOLUTE_PATH.search(text), text


@pytest.fixture
def tiny_checkpoint(tmp_path):
    """A checkpoint that says stop after a while, whatever it is given."""
    torch.manual_seed(0)
    tokenizer = Tokenizer()
    config = Tacotron2Config(
        vocab_size=tokenizer.vocab_size,
        character_embed_dim=16,
        encoder_embed_dim=16,
        decoder_rnn_embed_dim=16,
        decoder_prenet_dim=8,
        decoder_postnet_n_filters=8,
        attention_dim=8,
    )
    model = Tacotron2(config)
    with torch.no_grad():
        model.decoder.stop_projection.bias.fill_(100.0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    write_config(tmp_path, config, AudioConfig(), tokenizer)
    return tmp_path


def test_notebook_runs_and_ends_with_a_picture_and_a_player(tiny_checkpoint, monkeypatch, request):
    monkeypatch.setenv("CHECKPOINT", str(tiny_checkpoint))
    notebook = nbformat.read(request.config.rootpath / NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(request.config.rootpath)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert_clean(outputs)
    mime_types = [set(output.get("data", {})) for output in outputs]
    assert any("image/png" in types for types in mime_types)
    assert any("<audio" in output.get("data", {}).get("text/html", "") for output in outputs)


def test_notebook_is_committed_with_outputs(request):
    notebook = nbformat.read(request.config.rootpath / NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert_clean([output for cell in code for output in cell.outputs])
    text = "".join(str(cell.outputs) for cell in code)
    assert "image/png" in text and "<audio" in text and "stopped by itself" in text
