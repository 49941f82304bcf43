"""The commands that the documents, the Makefile and the scripts show, read as they will be read.

None is run: a script's own parser takes its flags, accelerate's those of its launcher, and make
says what it would do.
"""

import argparse
import re
import shlex
import subprocess
from importlib import import_module

import pytest
from accelerate.commands.launch import launch_command_parser

from conftest import REPO
from test_launching import MAKEFILE, README, SCRIPT

CONTRIBUTING = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOW = (REPO / ".github/workflows/tests.yml").read_text(encoding="utf-8")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
PROSE = FENCED.sub("", README)  # tables too


def in_backticks(prose: str) -> list[str]:
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]


IN_BACKTICKS = in_backticks(PROSE)
SCRIPTS = [
    str(path.relative_to(REPO))
    for folder in (REPO, REPO / "benchmarks", REPO / "extras")
    for path in sorted(folder.glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
NOT_OURS = ("pip", "venv")  # what python -m starts besides
COMMAND = re.compile(r"(?:exec )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(python3?|accelerate|make|bash) (.+)")


def commands_of(text: str) -> list[str]:
    """The lines of a shell that start python, accelerate, make or a script, without comments."""
    lines = [line.strip() for line in re.sub(r"\s*\\\n\s*", " ", text).split("\n")]
    lines = [re.split(r"\s{2,}|\s#|\s>", line)[0] for line in lines]
    return [line for line in lines if COMMAND.fullmatch(line)]


def make(*words: str) -> str:
    """What make would run."""
    command = ["make", "--dry-run", "--always-make", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
COMMANDS = {
    "README": commands_of("\n".join([*FENCED.findall(README), *IN_BACKTICKS])),
    "CONTRIBUTING.md": commands_of(
        "\n".join([*FENCED.findall(CONTRIBUTING), *in_backticks(FENCED.sub("", CONTRIBUTING))])
    ),
    "the workflow": re.findall(r"^ +- run: (.+)$", WORKFLOW, re.MULTILINE),
    "Makefile": commands_of("\n".join(map(make, TARGETS))),
    "train_taco.sh": commands_of("\n".join(re.findall(r"^# +(.+)", SCRIPT, re.MULTILINE))),
}


class Found(Exception):
    """Holds a script's parser."""


def parser_of(script: str) -> argparse.ArgumentParser:
    """What a script's main hands its flags to."""

    def stop(parser, *_):
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        module_of(script).main()
    return found.value.args[0]


def module_of(script: str):
    assert (REPO / script).is_file(), f"there is no {script}"
    return import_module(script.removeprefix("tests/").removesuffix(".py").replace("/", "."))


def read_flags(script: str, flags: list[str]) -> None:
    """By all that the script itself does with them; argparse exits where one is wrong.

    `...` stands for the flags that are required.
    """
    parser = parser_of(script)
    if "..." in flags:
        required = [action.option_strings[0] for action in parser._actions if action.required]
        flags = [*(flag for flag in flags if flag != "..."), *(f"{name}=x" for name in required)]
    flags = ["cpu" if flag == "cuda" else flag for flag in flags]  # a device is looked for
    read = getattr(module_of(script), "parse_args", parser.parse_args)
    read(flags, "") if script == "train_taco.py" else read(flags)


def read_command(command: str) -> None:
    """Holds a command against what reads it."""
    line = re.sub(r"\$\w+|\bRANK\b", "1", command).rstrip("'")  # the end of bash -c '...'
    program, rest = COMMAND.fullmatch(line).groups()
    words = shlex.split(rest)
    if program == "make":
        make(*words)
    elif program == "bash":
        assert (REPO / words[0]).is_file()
        if words[0] == "my_voice.sh":  # takes variables
            return
        assert words[0] == "train_taco.sh"
        read_flags("train_taco.py", [*words[1:], "..."])
    elif program == "accelerate" and words[0] == "launch":
        if not any(word.endswith(".py") for word in words):  # the table has them without
            words += ["train_taco.py", "..."]
        args = launch_command_parser().parse_args(words[1:])
        read_flags(args.training_script, args.training_script_args)
    elif words[:2] == ["-m", "pytest"]:
        assert all((REPO / word).is_file() for word in words[2:] if word.endswith(".py")), command
    elif words[0] == "-m" and words[1].startswith("extras."):
        read_flags(f"{words[1].replace('.', '/')}.py", words[2:])
    elif words[0] == "-m":
        assert words[1] in NOT_OURS
    elif program.startswith("python"):
        read_flags(words[0], words[1:])


@pytest.mark.parametrize("source", COMMANDS)
def test_each_command_is_one_that_works(source, capsys):
    assert COMMANDS[source]
    for command in dict.fromkeys(COMMANDS[source]):
        if "FILE.py" not in command:
            try:
                read_command(command)
            except SystemExit:
                pytest.fail(f"{command}\n{capsys.readouterr().err}")


def test_each_script_is_in_one_of_the_commands():
    words = " ".join(" ".join(commands) for commands in COMMANDS.values()).split()
    words += [f"{word.replace('.', '/')}.py" for word in words if word.startswith("extras.")]
    assert set(SCRIPTS) - set(words) == set()


def test_each_flag_of_the_prose_is_a_scripts():
    scripts = [*SCRIPTS, "tests/kill_and_resume.py"]
    parsers = [*map(parser_of, scripts), launch_command_parser()]
    known = {name for parser in parsers for name in parser._option_string_actions}
    shown = {flag for words in IN_BACKTICKS for flag in re.findall(r"(?<!\S)--[\w-]+", words)}
    assert len(shown) > 30 and shown <= known, shown - known


def test_each_file_of_the_prose_is_there():
    files = {
        word for words in IN_BACKTICKS for word in re.findall(r"[\w./]+\.(?:py|sh|ipynb)\b", words)
    }
    files |= set(re.findall(r"\]\((?!http|#)([^)]+)\)", README))
    missing = {name for name in files - {"FILE.py"} if not (REPO / name).exists()}
    assert len(files) > 20 and not missing


def test_each_link_within_the_readme_leads_to_a_heading():
    headings = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", PROSE))
    assert links and links <= anchors, links - anchors


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_flag(script, capsys):
    """As the README says of `python FILE.py --help`."""
    with pytest.raises(SystemExit) as end:
        read_flags(script, ["--help"])
    said = capsys.readouterr().out
    actions = [a for a in parser_of(script)._actions if a.help is not argparse.SUPPRESS]
    assert end.value.code == 0 and actions
    assert all(action.option_strings[0] in said for action in actions)
