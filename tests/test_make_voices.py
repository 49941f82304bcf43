"""`make rehearsal` and `make my_voice`, whole, at a tiny size: what a user gets, and going on."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import soundfile
from PIL import Image

import rehearsal as rehearsal_script
from kill_and_resume import TINY_MODEL
from rehearsal import processes
from test_train_taco import REPO

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(
    not (BIN / "installed").exists(), reason="these tests do not run in the .venv that make made"
)
TINY = " ".join([*TINY_MODEL, "--free_running_clips=2", "--max_decoder_steps=20"])


def make(target: str, **variables: object) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", target, f"BIN={BIN}"]
    command += [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> Path:
    """The folder of a rehearsal of two epochs of two steps, made in two calls."""
    folder = tmp_path_factory.mktemp("voices") / "rehearsal"
    for steps in (2, 4):
        done = make(
            "rehearsal", REHEARSAL=folder, REHEARSAL_STEPS=steps, REHEARSAL_SENTENCES=34,
            REHEARSAL_FLAGS=TINY,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 steps to go, in epochs of 2: about" in done.stdout
    return folder


def test_a_rehearsal_goes_on_where_it_stopped(rehearsal):
    rows = json.loads((rehearsal / "table.json").read_text())
    assert [row["step"] for row in rows] == [2, 4]
    assert 0 < rows[0]["hours"] < rows[1]["hours"] and rows[1]["seconds_per_step"] > 0
    report = json.loads((rehearsal / "report.json").read_text())
    assert rows[1].items() >= report.items() and rows[0]["word_start_median_ms"] > 0
    header, *lines = (rehearsal / "table.txt").read_text().splitlines()
    assert header.split()[:2] == ["step", "hours"] and [x.split()[0] for x in lines] == ["2", "4"]
    with Image.open(rehearsal / "curve.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20, "should not be blank"


def test_an_interrupted_epoch_is_counted_at_the_speed_of_its_second_part(tmp_path, monkeypatch):
    """One of its two steps was trained by an earlier call; this one takes 7 s for the other."""
    (tmp_path / "train_metadata.csv").write_text("\n" * 33)
    stopped = tmp_path / "work_dir" / "tacotron2" / "checkpoint_0_step_1" / "trainer_state.json"
    stopped.parent.mkdir(parents=True)
    common = {"epoch_step": 0, "epoch_losses": [], "train_config": {}}
    stopped.write_text(json.dumps(common | {"epoch": 0, "step": 1, "history": []}))
    clock = iter([100.0, 107.0, 200.0, 200.1])

    def train(folder: Path, epochs: int, extra: list[str]) -> None:
        end = rehearsal_script.checkpoint(folder) / "trainer_state.json"
        end.parent.mkdir()
        state = {"epoch": epochs, "step": 2 * epochs, "history": [{"epoch": 1, "val_loss": 0.5}]}
        end.write_text(json.dumps(common | state))

    def evaluate(folder: Path) -> dict[str, float]:
        scores = dict.fromkeys(rehearsal_script.COLUMNS, 1.0)
        return scores | {"diagonal_median_ms": 1.0, "diagonal_p90_ms": 1.0}

    monkeypatch.setattr(rehearsal_script, "train", train)
    monkeypatch.setattr(rehearsal_script, "evaluate", evaluate)
    watch = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(rehearsal_script, "time", watch)
    rehearsal_script.rehearse(tmp_path, 2, [])
    table = tmp_path / "table.json"
    (row,) = json.loads(table.read_text())
    assert row["step"] == 2 and row["seconds_per_step"] == 7.0
    assert row["hours"] == pytest.approx(2 * 7.0 / 3600)
    table.unlink()  # training had ended, judging it had not
    rehearsal_script.rehearse(tmp_path, 2, [])
    (row,) = json.loads(table.read_text())
    assert row["seconds_per_step"] == rehearsal_script.SECONDS_PER_STEP, "nothing was measured"


def test_a_rehearsal_is_the_reference_run_but_for_what_the_machine_decides(rehearsal):
    """Its sentences are as long as LJSpeech's, and its flags those of train_taco.sh."""
    corpus = pd.read_csv(rehearsal / "corpus" / "metadata.csv", sep="|", header=None, quoting=3)
    assert corpus[1].str.len().between(12, 187).all() and corpus[1].str.len().mean() > 60
    state = json.loads(
        (rehearsal / "work_dir/tacotron2/final_checkpoint/trainer_state.json").read_text()
    )
    flags = state["train_config"]
    script = (REPO / "train_taco.sh").read_text()
    for name in ("learning_rate", "guided_attention_weight", "guided_attention_sigma",
                 "guided_attention_steps", "warmup_steps", "drop_frame_rate",
                 "stop_positive_weight", "short_first_epochs"):  # fmt: skip
        shown = script.split(f"    --{name} ")[1].split()[0]
        assert float(shown) == flags[name], name
    assert flags["batch_size"] * processes()[0] == 16


def test_a_voice_from_recordings(rehearsal, tmp_path):
    """Out of the rehearsal's checkpoint, whose sizes nobody types again."""
    recordings, voice = tmp_path / "recordings", tmp_path / "voice"
    recordings.mkdir()
    (recordings / "wavs").symlink_to(rehearsal / "corpus" / "wavs")
    lines = (rehearsal / "corpus" / "metadata.csv").read_text().splitlines()
    (recordings / "metadata.csv").write_text("\n".join(sorted(lines, key=len)[:12]))
    flags = "--batch_size 4 --free_running_clips 2 --max_decoder_steps 20"
    done = make(
        "my_voice", RECORDINGS=recordings, VOICE=voice, EPOCHS=2, TRAIN_FLAGS=flags,
        CHECKPOINT=rehearsal / "work_dir/tacotron2/final_checkpoint",
        WORD_TIMES=rehearsal / "corpus" / "word_times.json", PREP_FLAGS="--test_split_pct 0.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"weights of {rehearsal}" in done.stdout
    checkpoint = voice / "work_dir" / "voice" / "final_checkpoint"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["epoch"] == 2
    sizes = json.loads((checkpoint / "config.json").read_text())
    assert f"--attention_dim={sizes['attention_dim']}" in TINY_MODEL
    assert json.loads((voice / "report.json").read_text())["words"] > 0
    assert "word start error" in (voice / "report.txt").read_text()
    pictures = ["recordings/recordings.png", "worst/worst_1.png", "suspects/worst_1.png",
                "samples/alignment.gif", "samples/loss.png"]  # fmt: skip
    assert all((voice / name).is_file() for name in pictures)
    assert len(pd.read_csv(voice / "suspects.csv")) == 10, "all training clips are judged"
    assert soundfile.info(voice / "spoken" / "001.wav").samplerate == 22050


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "RECORDINGS: names the folder of your recordings: make my_voice RECORDINGS=DIR"),
        ({"RECORDINGS": "x", "CHECKPOINT": "/nowhere"}, "my_voice.sh: no checkpoint in /nowhere"),
    ],
)
def test_what_is_missing_is_one_sentence(variables, sentence):
    done = make("my_voice", **variables)
    assert done.returncode != 0 and sentence in done.stderr
    assert "Traceback" not in done.stderr
