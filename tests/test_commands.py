"""Try what the documents show: commands, flags, files, links and Python.

No command is run. A script's own parser reads its flags, accelerate's parser those of its launcher,
and make says what it would run.
"""

import argparse
import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from conftest import REPO
from training.config import make_configs

PAGES = {
    str(path.relative_to(REPO)): path.read_text(encoding="utf-8")
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/*.md")
    for path in sorted(REPO.glob(pattern))
}
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
PROSE = {name: FENCED.sub("", page) for name, page in PAGES.items()}
IN_BACKTICKS = {
    name: [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]
    for name, prose in PROSE.items()
}
SCRIPT = (REPO / "train_taco.sh").read_text(encoding="utf-8")
MAKEFILE = (REPO / "Makefile").read_text(encoding="utf-8")
ALL_IN_BACKTICKS = [words for found in IN_BACKTICKS.values() for words in found]
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
WORKFLOW = (REPO / ".github/workflows/tests.yml").read_text(encoding="utf-8")
SCRIPTS = [
    str(path.relative_to(REPO))
    for folder in ("", "benchmarks", "corpora", "extras")
    for path in sorted((REPO / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
COMMAND = re.compile(r"(?:exec )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(python3?|accelerate|make|bash) (.+)")
PLACEHOLDERS = {"FILE.py", "FILE"}


def commands_of(text: str) -> list[str]:
    """Find the shell lines that start python, accelerate, make or bash; comments are cut off."""
    lines = [line.strip() for line in re.sub(r"\s*\\\n\s*", " ", text).split("\n")]
    lines = [re.split(r"\s{2,}|\s#|\s>", line)[0] for line in lines]
    return [line for line in lines if COMMAND.fullmatch(line)]


def make(*words: str) -> str:
    """Return what make would run."""
    command = ["make", "--dry-run", "--always-make", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMANDS = {
    name: commands_of("\n".join([*FENCED.findall(page), *IN_BACKTICKS[name]]))
    for name, page in PAGES.items()
} | {
    "the workflow": re.findall(r"^ +- run: (.+)$", WORKFLOW, re.MULTILINE),
    "Makefile": commands_of("\n".join(map(make, TARGETS))),
    "train_taco.sh": commands_of("\n".join(re.findall(r"^# +(.+)", SCRIPT, re.MULTILINE))),
}


class Found(Exception):
    """Carry a script's parser out of its main."""


def module_of(script: str):
    assert (REPO / script).is_file(), f"there is no {script}"
    return import_module(script.removeprefix("tests/").removesuffix(".py").replace("/", "."))


def parser_of(script: str) -> argparse.ArgumentParser:
    """Return the parser that a script's main builds."""

    def stop(parser, *_):
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        module_of(script).main()
    return found.value.args[0]


def read_flags(script: str, flags: list[str]) -> None:
    """Parse flags as the script does, with its own checks; argparse exits where one is wrong.

    `...` stands for the flags that are required.
    """
    parser = parser_of(script)
    if "..." in flags:
        required = [action.option_strings[0] for action in parser._actions if action.required]
        flags = [*(flag for flag in flags if flag != "..."), *(f"{name}=x" for name in required)]
    flags = ["cpu" if flag == "cuda" else flag for flag in flags]  # scripts look for the device
    if script == "train_taco.py":
        make_configs(parser, parser.parse_args(flags))
    else:
        getattr(module_of(script), "parse_args", parser.parse_args)(flags)


def read_command(command: str) -> None:
    """Parse a command as the program that it starts would."""
    line = re.sub(r"\$\w+|\bRANK\b", "1", command).rstrip("'")  # the end of bash -c '...'
    program, rest = COMMAND.fullmatch(line).groups()
    words = shlex.split(rest)
    if program == "make":
        make(*words)
    elif program == "bash" and words[0] == "my_voice.sh":  # takes variables
        assert (REPO / words[0]).is_file()
    elif program == "bash":
        assert words[0] == "train_taco.sh"
        read_flags("train_taco.py", [*words[1:], "..."])
    elif program == "accelerate" and words[0] == "launch":
        assert "--quiet" in words, "a mistake would not end in one sentence"
        if not any(word.endswith(".py") for word in words):  # a table leaves out the rest
            words += ["train_taco.py", "..."]
        args = launch_command_parser().parse_args(words[1:])
        read_flags(args.training_script, args.training_script_args)
    elif words[0] == "-m" and words[1].startswith(("corpora.", "extras.")):
        read_flags(f"{words[1].replace('.', '/')}.py", words[2:])
    elif words[0] == "-m":
        assert words[1] in ("pip", "pytest", "timeit", "venv")
        files = [word for word in words[2:] if word.endswith((".py", ".txt", ".lock"))]
        assert all((REPO / name).is_file() for name in files), command
    elif program.startswith("python"):
        read_flags(words[0], words[1:])


@pytest.mark.parametrize("source", [name for name, commands in COMMANDS.items() if commands])
def test_each_command_works(source, capsys):
    for command in dict.fromkeys(COMMANDS[source]):
        if PLACEHOLDERS.isdisjoint(command.split()[1:2]):
            try:
                read_command(command)
            except SystemExit:
                pytest.fail(f"{command}\n{capsys.readouterr().err}")


def test_each_script_is_in_one_of_the_commands():
    words = " ".join(" ".join(commands) for commands in COMMANDS.values()).split()
    modules = [word for word in words if word.startswith(("corpora.", "extras."))]
    words += [f"{module.replace('.', '/')}.py" for module in modules]
    assert set(SCRIPTS) <= set(words), set(SCRIPTS) - set(words)


def test_each_flag_of_the_prose_is_a_scripts():
    parsers = [*map(parser_of, [*SCRIPTS, "tests/kill_and_resume.py"]), launch_command_parser()]
    known = {name for parser in parsers for name in parser._option_string_actions}
    shown = {flag for words in ALL_IN_BACKTICKS for flag in re.findall(r"(?<!\S)--[\w-]+", words)}
    assert len(shown) > 30 and shown <= known, shown - known


def test_each_file_of_the_prose_is_there():
    pattern = re.compile(
        r"[\w./]+\.(?:py|sh|ipynb)\b|\b(?:tests|docs|benchmarks|requirements)/\w+\.\w+"
    )
    files = {name for words in ALL_IN_BACKTICKS for name in pattern.findall(words)}
    missing = {name for name in files - PLACEHOLDERS if not (REPO / name).exists()}
    assert len(files) > 40 and not missing, missing


def test_the_tree_shows_each_script_and_each_folder():
    tree = next(block for block in FENCED.findall(PAGES["README.md"]) if "\nmodel.py " in block)
    shown = {line.split()[0].rstrip("/") for line in tree.split("\n")[1:-1]}
    tracked = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True).stdout
    if not tracked:
        pytest.skip("not a checkout of git")
    tops = {name.split("/")[0] for name in tracked.split("\n") if name}
    expected = {
        name
        for name in tops
        if name[0] != "." and ((REPO / name).is_dir() or name.endswith((".py", ".sh", ".ipynb")))
    }
    assert shown == expected | {"README.md"}


def anchors_of(prose: str) -> set[str]:
    """Make the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(name: str) -> set[tuple[str, str]]:
    """The links of a page within this repository: the file, from its root, and the anchor."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PROSE[name])
    folder = (REPO / name).parent
    return {
        (str((folder / path).resolve().relative_to(REPO)) if path else name, anchor)
        for path, anchor in links
    }


@pytest.mark.parametrize("name", PAGES)
def test_each_link_leads_to_a_file_and_a_heading(name):
    for path, anchor in links_of(name):
        assert (REPO / path).is_file(), path
        assert not anchor or anchor in anchors_of(PROSE[path]), (path, anchor)
    pages = {page for page in PAGES if page.startswith("docs/")}
    assert name != "README.md" or pages <= {path for path, _ in links_of(name)}


def test_the_python_of_speaking_runs(voice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("work_dir/tacotron2").mkdir(parents=True)
    Path("work_dir/tacotron2/final_checkpoint").symlink_to(voice)
    vocoder = lambda log_mel: torch.zeros(256 * len(log_mel))  # noqa: E731
    monkeypatch.setattr("speech.vocoder.load_vocoder", lambda folder, audio_config: vocoder)
    blocks = re.findall(r"```python\n(.*?)```", PAGES["docs/speaking.md"], re.DOTALL)
    namespace: dict = {}
    for block in blocks:
        exec(re.sub(r"seed=0", "seed=0, max_decoder_steps=5", block), namespace)
        assert namespace["result"].wav.isfinite().all()
    assert len(blocks) == 2
