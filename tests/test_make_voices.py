"""`make rehearsal` and `make my_voice`, whole, at a tiny size: what a user gets, and going on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import rehearsal as rehearsal_script
import soundfile
from PIL import Image

from command_line.files import DataError
from conftest import REPO
from extras.rehearsal import processes
from kill_and_resume import TINY_MODEL

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


@pytest.fixture
def stubbed_voice(tmp_path):
    """my_voice.sh with programs that only note their flags, in a voice split before."""
    folder, voice = tmp_path / "recordings", tmp_path / "voice"
    for path in (folder, voice, tmp_path / "bin", tmp_path / "base"):
        path.mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    final = voice / "work_dir/voice/final_checkpoint/trainer_state.json"
    final.parent.mkdir(parents=True)
    final.touch()
    (voice / "test_metadata.csv").write_text("file_path\na\nb\n")
    (voice / "train_metadata.csv").write_text("file_path\n")
    for name in ("python", "accelerate"):
        # What asks for a GPU finds none; the end of training is a new final checkpoint.
        body = f'[ "$1" != -c ] || exit 1\necho {name} "$@"\n[ {name} = python ] || eval "$TRAIN"'
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(train: str = f"sleep 0.01; touch {final}", **variables: str):
        environment = {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "RECORDINGS": str(folder), "TRAIN": train,
            "VOICE": str(voice), "CHECKPOINT": str(tmp_path / "base"), **variables,
        }  # fmt: skip
        return subprocess.run(
            ["bash", REPO / "my_voice.sh"], env=environment, capture_output=True, text=True
        )

    run.voice = voice
    return run


def test_a_voice_is_of_one_folder_of_recordings(stubbed_voice):
    (stubbed_voice.voice / "train_metadata.csv").unlink()
    done = stubbed_voice(PREP_FLAGS="--trim_db 40")
    assert done.returncode == 0 and "python prep_splits.py" in done.stdout, done.stderr
    (stubbed_voice.voice / "train_metadata.csv").write_text("file_path\n")
    again = stubbed_voice(PREP_FLAGS="--trim_db 40")
    assert again.returncode == 0 and "prep_splits.py" not in again.stdout and not again.stderr
    other = stubbed_voice(RECORDINGS=str(stubbed_voice.voice), PREP_FLAGS="--trim_db 40")
    assert other.returncode == 1 and not other.stdout
    assert other.stderr.endswith("name another VOICE, or remove the folder\n")


def test_recordings_that_have_changed_since_are_said_to_be_left_out(stubbed_voice):
    (stubbed_voice.voice.parent / "recordings" / "metadata.csv").touch()
    done = stubbed_voice()
    assert done.returncode == 0 and "has changed since" in done.stderr


def test_a_training_that_was_stopped_is_not_judged(stubbed_voice):
    done = stubbed_voice(train="true")
    assert done.returncode == 1 and "evaluate.py" not in done.stdout
    assert done.stderr == "my_voice.sh: training was stopped; called again, it goes on\n"


@pytest.mark.parametrize(("clips", "processes"), [("a\nb", 2), ("a", 1)])
def test_one_clip_to_validate_on_is_for_one_process(stubbed_voice, clips, processes):
    (stubbed_voice.voice / "test_metadata.csv").write_text(f"file_path\n{clips}\n")
    assert f"--num_processes {processes} " in stubbed_voice().stdout


def test_a_rehearsal_whose_training_was_stopped_ends_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "train_metadata.csv").write_text("\n" * 33)
    monkeypatch.setattr(rehearsal_script, "train", lambda *_: None)
    with pytest.raises(DataError, match="training was stopped; call again to go on"):
        rehearsal_script.rehearse(tmp_path, 2, [])
    assert not (tmp_path / "table.json").exists()


def test_a_rehearsal_waits_for_what_ctrl_c_ends(tmp_path):
    """The signal reaches all of them; training then still writes its checkpoint."""
    script = (
        f"trap 'sleep 1; touch {tmp_path}/saved; exit' INT; echo on; while :; do sleep 0.1; done"
    )
    program = (
        "import rehearsal, sys\nrehearsal.run(['bash', '-c', sys.argv[1]], {})\nprint('waited')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, script], cwd=REPO, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "on\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "waited\n" and process.returncode == 0
    assert (tmp_path / "saved").exists()


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
