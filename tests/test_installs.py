"""Test what is installed: the lock and the ranges, make's choice between them, the Dockerfile."""

import ast
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import REPO

PYTHONS = ("3.10", "3.11", "3.12", "3.13")  # those that the lock supports
LOCK = (REPO / "requirements.lock").read_text(encoding="utf-8")
PINS = [  # one per package, or several whose markers exclude each other
    (Requirement(line), re.findall(r"--hash=sha256:([0-9a-f]{64})\b", hashes))
    for line, hashes in re.findall(r"^(\w[^\\\n]+) \\\n((?: +--hash=\S+(?: \\)?\n)+)", LOCK, re.M)
]


def read_ranges(path: Path) -> list[Requirement]:
    """Read a requirements file and those that it includes."""
    ranges = []
    for line in filter(None, path.read_text(encoding="utf-8").splitlines()):
        included = line.startswith("-r ")
        ranges += read_ranges(path.parent / line[3:]) if included else [Requirement(line)]
    return ranges


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_agrees_with_the_ranges(python, machine):
    environment = {
        "python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux",
        "platform_system": "Linux", "os_name": "posix", "platform_machine": machine,
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    pins = [pin for pin, _ in PINS if pin.marker is None or pin.marker.evaluate(environment)]
    by_name = {canonicalize_name(pin.name): pin for pin in pins}
    assert len(by_name) == len(pins), "two versions of a package at once"
    for requirement in read_ranges(REPO / "requirements/dev.txt"):
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        (pinned,) = by_name[canonicalize_name(requirement.name)].specifier
        assert pinned.operator == "==" and requirement.specifier.contains(pinned.version)


def test_the_lock_has_hashes_and_names_no_host():
    pins = re.findall(r"^[^\s#].*", LOCK, re.M)
    assert len(PINS) == len(pins) > 100 and all(hashes for _, hashes in PINS)
    assert not re.search(r"://|--(?:extra-)?index-url|--find-links|\.(?:org|com|net|io)\b", LOCK)
    sources = {*re.findall(r"-r (\S+)", LOCK)}
    assert "requirements/dev.txt" in sources and all((REPO / name).is_file() for name in sources)


@pytest.fixture
def stub_venv(tmp_path):
    """Make a venv whose Python writes down its arguments and claims to be on $PLATFORM."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f"""#!/bin/sh
if [ "$1" = -c ]; then
    exec {sys.executable} -c "import sys; sys.platform, sys.version_info = $PLATFORM; $2"
fi
echo "$@" >> {folder}/arguments
""")
    python.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("platform", "minor", "locked", "expected"),
    [
        ("linux", 13, "yes", "--require-hashes -r requirements.lock"),
        ("linux", 9, "yes", "-r requirements/dev.txt"),
        ("darwin", 11, "yes", "-r requirements/dev.txt"),
        ("linux", 11, "no", "-r requirements/dev.txt"),
    ],
)
def test_make_installs_the_lock_where_it_works(stub_venv, platform, minor, locked, expected):
    environment = {**os.environ, "PLATFORM": f"'{platform}', (3, {minor}, 1)"}
    command = ["make", f"VENV={stub_venv}", f"LOCKED={locked}", f"{stub_venv}/bin/installed"]
    subprocess.run(command, cwd=REPO, env=environment, capture_output=True, check=True)
    (arguments,) = (stub_venv / "arguments").read_text().splitlines()
    assert arguments.startswith("-m pip install ") and arguments.endswith(expected)
    assert (stub_venv / "bin" / "installed").exists()


# ---- The Dockerfile


def read_dockerfile(kind: str) -> list[str]:
    """List the arguments of one kind of instruction."""
    text = (REPO / "Dockerfile").read_text(encoding="utf-8")
    return re.findall(rf"^{kind} (.+)$", re.sub(r"\\\n\s*", "", text), re.M)


@pytest.fixture
def image(tmp_path):
    """Make the image's folder from what .dockerignore lets through."""
    patterns = (REPO / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in patterns if not line.startswith("#")]

    def ignored(folder: str, names: list[str]) -> list[str]:
        """Apply the patterns in order; the last one that matches decides."""
        left_out = []
        for name in names:
            inside = folder != str(REPO)
            for pattern in patterns[inside:]:  # `*` is for the root
                if fnmatch.fnmatch(name, pattern.lstrip("!").removeprefix("**/")):
                    inside = pattern.startswith("!")
            left_out += [] if inside else [name]
        return left_out

    assert patterns[0] == "*" and read_dockerfile("COPY")[-1] == ". ./"
    return Path(shutil.copytree(REPO, tmp_path / "image", ignore=ignored))


def test_the_image_holds_all_that_its_scripts_import_and_little_else(image):
    names = {path.name for path in image.iterdir()}
    assert names >= {"train_taco.sh", "train_taco.py", "prep_splits.py", "requirements.lock"}
    assert not names & {".venv", ".git", "tests", "docs", "data", "work_dir", "demo"}
    assert not [*image.rglob("__pycache__")]
    for path in image.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                file = Path(*module.split("."))
                if (REPO / file).is_dir() or (REPO / file).with_suffix(".py").is_file():
                    assert (image / file).is_dir() or (image / file).with_suffix(".py").is_file()


def test_the_image_trains_on_what_is_in_data(image, tmp_path):
    """As another user than root, who can write where numba caches what it compiles."""
    for command in read_dockerfile("RUN"):
        subprocess.run(["sh", "-n", "-c", command], check=True)
    assert read_dockerfile("USER") == ["trainer"] and "trainer" in read_dockerfile("RUN")[-1]
    (command,), (variables,) = read_dockerfile("CMD"), read_dockerfile("ENV")
    variables = dict(word.split("=", 1) for word in variables.split())
    assert variables["PATH"] == "/opt/venv/bin:$PATH"
    assert variables["NUMBA_CACHE_DIR"].startswith("/tmp/")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ast.literal_eval(command), cwd=image, capture_output=True, text=True, check=True,
        env={**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    flags = done.stdout.split()
    for name in ("path_to_train_manifest", "path_to_val_manifest", "working_directory",
                 "save_audio_gen"):  # fmt: skip
        value = flags[flags.index(f"--{name}") + 1]
        assert value == variables[name.upper()] and value.startswith("/data/")
