"""The house: arrows between rooms point one way, model.py is pure, nothing is in a circle.

Each rule lists what breaks it, and is tried on sources that do.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from conftest import REPO

LEVELS = (  # a file imports its own room, and what stands on a lower level
    ("command_line",),
    ("audio",),
    ("text",),
    ("dataset", "model"),
    ("fast", "scoring"),
    ("corpora", "speech"),
    ("training",),
    ("convert_checkpoint", "evaluate", "export_mels", "prep_splits", "synthesize", "train_taco"),
    ("extras",),
    ("benchmarks",),
)
SCRIPTS = LEVELS[-3]
ROOMS = (
    "command_line",
    "audio",
    "text",
    "fast",
    "scoring",
    "corpora",
    "speech",
    "training",
    "extras",
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MAX_LINES = 60  # of a function, docstring included; Triton's kernels may be longer
SOURCES = {  # by module, such as model and extras.publish
    ".".join(path.relative_to(REPO).with_suffix("").parts): path.read_text(encoding="utf-8")
    for folder in ("", *ROOMS, "benchmarks")
    for path in (REPO / folder).glob("*.py")
    if path.name != "__init__.py"
}
Sources = dict[str, str]


@cache
def find_imports(source: str, late: bool = True) -> set[str]:
    """The modules that a source imports, with `late` those within functions too."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module
        for child in ast.iter_child_nodes(node):
            if late or not isinstance(child, ast.FunctionDef | ast.Lambda):
                yield from visit(child)

    return set(visit(ast.parse(source)))


def find_reached(sources: Sources, module: str, late: bool = True) -> set[str]:
    """All that a module imports, and what the repo's own modules among it import in turn."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = find_imports(sources[waiting.pop()], late) - found
        found |= new
        waiting += new & set(sources)
    return found


def find_wrong_arrows(sources: Sources) -> list[str]:
    """Imports of a room on the same level or above, scripts among them."""
    arrows = [(name, other) for name, text in sources.items() for other in find_imports(text)]
    rooms = [(a, b, a.split(".")[0], b.split(".")[0]) for a, b in arrows if b in sources]
    return [f"{a} -> {b}" for a, b, own, room in rooms if own != room and LEVEL[room] >= LEVEL[own]]


def find_circles(sources: Sources) -> list[str]:
    """Modules that import themselves, by way of others."""
    return [module for module in sources if module in find_reached(sources, module)]


def find_more_in_the_model(sources: Sources) -> list[str]:
    """model.py is the paper: torch and the Hub's mixin; Triton's kernels stand alone too."""
    known = {"torch", "huggingface_hub", *sys.stdlib_module_names}
    more = {name for name in find_imports(sources["model"]) if name.split(".")[0] not in known}
    return sorted(more | (find_imports(sources["fast.kernels"]) & set(sources)))


def find_slow_starts(sources: Sources) -> list[str]:
    """Packages that take seconds to import, where --help and small corpora do without."""
    slow = {"torch", "torchaudio", "librosa", "pandas", "accelerate", "matplotlib"}
    return [
        f"{module} -> {other}"
        for module in ("command_line.files", "prep_splits", "corpora.make_demo_corpus")
        for other in find_reached(sources, module, late=False) & slow
    ]


def find_long_functions(sources: Sources) -> list[str]:
    return [
        f"{module}.{node.name}"
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno - node.lineno >= MAX_LINES
        and not any("triton.jit" in ast.unparse(x) for x in node.decorator_list)
    ]


def find_unused(sources: Sources) -> list[str]:
    """Functions and classes that nothing but tests names."""
    named = set(re.findall(r"\w+", (REPO / "inference.ipynb").read_text(encoding="utf-8")))
    defined = set()
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute | ast.alias):
                named |= {getattr(node, x) for x in ("id", "attr", "name") if hasattr(node, x)}
    return sorted(name for name in defined - named if not name.startswith("__"))


LONG = "def long():\n" + "    x = 1\n" * MAX_LINES
BREACHES = [  # a rule, a module, and what is added to it
    (find_wrong_arrows, "text.tokenizer", "from dataset import AudioConfig"),
    (find_wrong_arrows, "training.set_up", "def late():\n    import train_taco"),
    (find_circles, "scoring.scores", "import scoring.pictures\nimport scoring.scores"),
    (find_more_in_the_model, "model", "def late():\n    import triton.language as tl"),
    (find_slow_starts, "command_line.files", "import torch"),
    (find_long_functions, "model", "class Any:\n" + textwrap.indent(LONG, "    ")),
    (find_unused, "scoring.pictures", "def nobody_calls_this():\n    pass"),
]
Rule = Callable[[Sources], list[str]]


@pytest.mark.parametrize("rule", list(dict.fromkeys(rule for rule, *_ in BREACHES)))
def test_no_file_breaks(rule: Rule):
    assert rule(SOURCES) == []


@pytest.mark.parametrize(("rule", "module", "addition"), BREACHES)
def test_a_breach_is_found(rule: Rule, module: str, addition: str):
    broken = {**SOURCES, module: f"{SOURCES[module]}\n{addition}\n"}
    assert len(rule(broken)) > len(rule(SOURCES))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it_and_nothing_else(room: str):
    tree = ast.parse((REPO / room / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) and len(tree.body) == 1
