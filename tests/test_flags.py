"""What --help shows of every script, and what a mistake in its flags is answered with."""

import argparse
import re
from dataclasses import fields

import pytest

from command_line.flags import FlagParser
from dataset import AudioConfig
from model import Tacotron2Config
from test_commands import SCRIPTS, module_of, parser_of
from training.config import TrainConfig

LONGER_TESTS = ["tests/kill_and_resume.py", "tests/soak.py"]
DEFAULT = re.compile(r"\(?default: .*?\)?$|\((?:off|on|required)\)$")


@pytest.mark.parametrize("script", [*SCRIPTS, *LONGER_TESTS])
def test_every_flag_has_a_text_and_a_mistake_is_one_line(script, capsys, monkeypatch):
    """The text says more than what the flag's default is."""
    for action in parser_of(script)._actions:
        assert DEFAULT.sub("", action.help or "").strip(), action.option_strings
    if script in ("extras/run_onnx.py", *LONGER_TESTS):  # which have argparse alone
        return
    monkeypatch.setattr("sys.argv", [script, "--no_such_thing", "1"])
    with pytest.raises(SystemExit, match="2"):
        module_of(script).main()
    name = script.split("/")[-1]
    sentence = f"{name}: there is no flag --no_such_thing; --help lists them all\n"
    assert capsys.readouterr() == ("", sentence)


def test_the_help_of_training(capsys):
    """The groups hold every field of the three configs once, in their order."""
    parser, configs = parser_of("train_taco.py"), (TrainConfig, AudioConfig, Tacotron2Config)
    groups = [group for group in parser._action_groups if group._group_actions]
    assert [group.title for group in groups] == ["options", "training", "audio", "model"]
    flags = [action.dest for group in groups[1:] for action in group._group_actions]
    names = [field.name for config in configs for field in fields(config)]
    assert flags == [x for x in dict.fromkeys(names) if x not in ("vocab_size", "pad_token_id")]
    parser.print_help()
    said = " ".join(capsys.readouterr().out.split())
    assert "None" not in said and "default: True" not in said and "default: False" not in said
    assert "--mel_scaling {scaled_db,log}" in said


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--lr", ["--learning_rate"]),
        ("--bathc_size=3", ["--batch_size"]),
        ("--epochs", ["--training_epochs", "--validation_epochs", "--checkpoint_epochs"]),
        ("--xyz", []),
    ],
)
def test_a_flag_that_is_not_there_is_answered_with_the_one_meant(given, meant, capsys):
    """Also where the misspelled one is a required one, which then is missing."""
    with pytest.raises(SystemExit) as end:
        parser_of("train_taco.py").parse_args([given, "1"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"there is no flag {given.split('=')[0]}" in said
    assert re.findall(r"--[\w-]+", said)[1:-1] == meant
    assert said.endswith("--help lists them all\n")


def test_a_value_may_look_like_a_flag():
    parser = FlagParser(prog="p")
    parser.add_argument("--text", nargs="+")
    parser.add_argument("--min_db", type=float)
    words = ["--text=--hello", "--min_db", "-100"]
    assert parser.parse_args(words) == argparse.Namespace(text=["--hello"], min_db=-100)
    assert parser.parse_args(["--text", "--hello there"]).text == ["--hello there"]
