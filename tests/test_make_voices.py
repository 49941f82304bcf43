"""Test `make rehearsal` and `make my_voice` as a user runs them, at a tiny size."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import soundfile

from conftest import REPO
from runs import TINY_MODEL

BIN = Path(sys.executable).parent
needs_make = pytest.mark.skipif(
    not (BIN / "installed").exists(), reason="these tests do not run in the .venv that make made"
)
TINY = " ".join([*TINY_MODEL, "--free_running_clips=2", "--max_decoder_steps=20"])


def make(target: str, **variables: object) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", target, f"BIN={BIN}"]
    command += [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> Path:
    """Make a rehearsal of two epochs of two steps, in two calls."""
    folder = tmp_path_factory.mktemp("voices") / "rehearsal"
    for steps in (2, 4):
        done = make(
            "rehearsal", REHEARSAL=folder, REHEARSAL_STEPS=steps, REHEARSAL_SENTENCES=34,
            REHEARSAL_FLAGS=TINY, PRECISION="no",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 steps to go, in epochs of 2: about" in done.stdout
        assert " = 16 clips a step" in done.stdout and "mixed precision: no" in done.stdout
    return folder


@needs_make
@pytest.mark.slow
def test_a_rehearsal_resumes_and_follows_the_reference_recipe(rehearsal):
    rows = json.loads((rehearsal / "table.json").read_text())
    assert [row["step"] for row in rows] == [2, 4]
    assert 0 < rows[0]["hours"] < rows[1]["hours"] and rows[1]["seconds_per_step"] > 0
    report = json.loads((rehearsal / "report.json").read_text())
    assert rows[1].items() >= report.items() and rows[0]["word_start_median_ms"] > 0
    assert (rehearsal / "table.txt").is_file() and (rehearsal / "curve.png").is_file()
    corpus = pd.read_csv(rehearsal / "corpus" / "metadata.csv", sep="|", header=None, quoting=3)
    assert corpus[1].str.len().between(12, 187).all() and corpus[1].str.len().mean() > 60
    state = json.loads(
        (rehearsal / "work_dir/tacotron2/final_checkpoint/trainer_state.json").read_text()
    )
    script = (REPO / "train_taco.sh").read_text()
    for name in ("learning_rate", "guided_attention_weight", "guided_attention_sigma",
                 "guided_attention_steps", "warmup_steps", "drop_frame_rate",
                 "stop_positive_weight", "stop_tail_frames", "l1_weight",
                 "short_first_epochs"):  # fmt: skip
        shown = script.split(f"    --{name} ")[1].split()[0]
        assert float(shown) == state["train_config"][name], name


@needs_make
@pytest.mark.slow
def test_a_voice_from_recordings(rehearsal, tmp_path):
    """Start from the rehearsal's checkpoint, whose sizes nobody types again."""
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
                "samples/voice/alignment.gif", "samples/voice/loss.png"]  # fmt: skip
    assert all((voice / name).is_file() for name in pictures)
    assert len(pd.read_csv(voice / "suspects.csv")) == 10, "all training clips are scored"
    assert soundfile.info(voice / "spoken" / "001.wav").samplerate == 22050


@pytest.fixture
def stubbed_voice(tmp_path):
    """Run my_voice.sh with programs that print their flags, in a folder that is already split."""
    recordings, voice = tmp_path / "recordings", tmp_path / "voice"
    for path in (recordings, voice, tmp_path / "bin", tmp_path / "base"):
        path.mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    final = voice / "work_dir/voice/final_checkpoint/trainer_state.json"
    final.parent.mkdir(parents=True)
    final.touch()
    (voice / "test_metadata.csv").write_text("file_path\na\nb\n")
    (voice / "train_metadata.csv").write_text("file_path\n")
    for name in ("python", "accelerate"):
        # The question for a GPU is answered with no; training leaves a new final checkpoint.
        body = f'[ "$1" != -c ] || exit 1\necho {name} "$@"\n'
        body += 'case "$*" in *train_taco.py*) eval "$TRAIN";; esac'
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(train: str = f"sleep 0.01; touch {final}", arguments=(), **variables: str):
        environment = {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "RECORDINGS": str(recordings),
            "TRAIN": train, "VOICE": str(voice), "CHECKPOINT": str(tmp_path / "base"), **variables,
        }  # fmt: skip
        return subprocess.run(
            ["bash", REPO / "my_voice.sh", *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )

    run.voice, run.recordings = voice, recordings
    return run


def test_a_voice_keeps_to_one_folder_of_recordings(stubbed_voice):
    manifest = stubbed_voice.voice / "train_metadata.csv"
    manifest.unlink()
    done = stubbed_voice(PREP_FLAGS="--trim_db 40")
    assert done.returncode == 0 and "python prep_splits.py" in done.stdout, done.stderr
    manifest.write_text("file_path\n")
    again = stubbed_voice(PREP_FLAGS="--trim_db 40")
    assert again.returncode == 0 and "prep_splits.py" not in again.stdout and not again.stderr
    other = stubbed_voice(RECORDINGS=str(stubbed_voice.voice), PREP_FLAGS="--trim_db 40")
    assert other.returncode == 1 and not other.stdout and "another VOICE" in other.stderr
    assert stubbed_voice(
        RECORDINGS=f"{stubbed_voice.recordings}/", PREP_FLAGS="--trim_db 40"
    ).stdout
    base = stubbed_voice.voice.with_name("base")
    shutil.copytree(base, base.with_name("other"))
    begun = stubbed_voice(CHECKPOINT=str(base.with_name("other")), PREP_FLAGS="--trim_db 40")
    assert begun.returncode == 1 and not begun.stdout and "another VOICE" in begun.stderr
    (stubbed_voice.recordings / "metadata.csv").touch()
    changed = stubbed_voice(PREP_FLAGS="--trim_db 40")
    assert changed.returncode == 0 and "has changed" in changed.stderr


def test_a_voice_whose_training_was_stopped_is_not_scored(stubbed_voice):
    done = stubbed_voice(train="true")
    assert done.returncode == 1 and "evaluate.py" not in done.stdout
    assert (
        done.stderr == "my_voice.sh: training was stopped; run the same command again to resume\n"
    )


@needs_make
def test_what_is_missing_is_one_sentence():
    assert "make my_voice RECORDINGS=DIR" in make("my_voice").stderr
    done = make("my_voice", RECORDINGS="x", CHECKPOINT="/nowhere")
    assert "my_voice.sh: no checkpoint in /nowhere" in done.stderr


def test_a_voice_speaks_its_language(stubbed_voice):
    command = ["make", "--dry-run", "my_voice", "LANGUAGE=de"]
    recipe = subprocess.run(command, cwd=REPO, capture_output=True, text=True).stdout
    assert "demo_de/work_dir" in recipe and 'my_voice.sh "Hörst du meine neue Stimme?"' in recipe
    spoken = stubbed_voice(arguments=["Hörst du mich?"], ASR="x", ASR_LANGUAGE="de").stdout
    assert "--asr x --asr_language de" in spoken and "--text Hörst du mich?" in spoken
