"""inference.ipynb, executed from its first cell to its last on an untrained tiny checkpoint."""

import re
import shutil
from copy import deepcopy

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from safetensors.torch import load_file, save_file

from test_vocoder import V1, write_folder

NOTEBOOK = "inference.ipynb"
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/\w[\w.-]*/|\b[A-Z]:\\|~/|site-packages")
BASE64 = re.compile(r"base64,[A-Za-z0-9+/=\s]+")


def assert_clean(outputs):
    """Allow no warning, no error, and no path of the machine that ran it."""
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
        texts = [output.get("text", "")]
        texts += [t for kind, t in output.get("data", {}).items() if not kind.startswith("image/")]
        for text in texts:
            text = BASE64.sub("", text)
            assert "Warning" not in text and not ABSOLUTE_PATH.search(text), text


@pytest.fixture
def settings(tmp_path, tiny_corpus, voice) -> dict[str, str]:
    """Values for the settings of the notebook: a checkpoint, frames, clips, a vocoder."""
    checkpoint = shutil.copytree(voice, tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    weights["decoder.stop_projection.bias"].fill_(100.0)  # it stops at once
    save_file(weights, checkpoint / "model.safetensors")
    frames = tmp_path / "validation"
    frames.mkdir()
    for name in ("epoch_000_step_000000", "epoch_001", "epoch_002"):
        arrays = {"alignment": np.eye(9, 7, dtype=np.float16), "mel": np.zeros((9, 80), np.float16)}
        np.savez_compressed(frames / f"{name}.npz", **arrays)
    return {
        "CHECKPOINT": str(checkpoint),
        "VALIDATION": str(frames),
        "MANIFEST": str(tiny_corpus.test_manifest),
        "VOCODER": str(write_folder(tmp_path / "hifigan", V1)),
    }


def with_settings(source: str, **settings: str) -> str:
    """Give the cell of settings other values."""
    for name, value in settings.items():
        source, n_replaced = re.subn(rf"^{name} = \S+", f"{name} = {value!r}", source, flags=re.M)
        assert n_replaced == 1, name
    return source


@pytest.mark.slow
def test_notebook_runs_on_another_checkpoint(settings, request):
    """And, before that, says in one sentence what to do if the checkpoint is missing."""
    notebook = nbformat.read(request.config.rootpath / NOTEBOOK, as_version=4)
    chosen, loading = notebook.cells[1:3]
    wrong, failing = deepcopy([chosen, loading])
    wrong["source"] = with_settings(chosen["source"], CHECKPOINT="nowhere")
    failing["metadata"]["tags"] = ["raises-exception"]
    chosen["source"] = with_settings(chosen["source"], **settings)
    notebook.cells[1:1] = [wrong, failing]
    resources = {"metadata": {"path": str(request.config.rootpath)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    (error,) = failing["outputs"]
    assert error["evalue"].startswith("nowhere is missing: run `make demo` in a terminal, or set ")
    outputs = [out for cell in notebook.cells[3:] for out in cell.get("outputs", [])]
    assert_clean(outputs)
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    players = [out for out in outputs if "<audio" in out.get("data", {}).get("text/html", "")]
    assert (len(pictures), len(players)) == (5, 9)  # two of them the vocoder's


def test_notebook_is_committed_with_outputs(request):
    notebook = nbformat.read(request.config.rootpath / NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert_clean([output for cell in code for output in cell.outputs])
    text = "".join(str(cell.outputs) for cell in code)
    assert text.count("'image/png'") == 5
    assert text.count("<audio") in (7, 9)  # 9 where HiFi-GAN is installed
    assert "stopped by itself" in text
    assert (request.config.rootpath / NOTEBOOK).stat().st_size < 900_000
