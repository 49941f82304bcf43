"""The rules of how the files depend on each other, and that functions stay short.

Each rule lists what breaks it, and is tried on sources that do.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from test_train_taco import REPO

MAX_LINES = 60
LONGER: dict[str, str] = {}  # functions, and why
SOURCES = {  # by name, such as model and extras/publish
    path.relative_to(REPO).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
    for folder in (REPO, REPO / "benchmarks", REPO / "extras")
    for path in folder.glob("*.py")
}
Sources = dict[str, str]


@cache
def imports(source: str, inside_functions: bool = True) -> set[str]:
    """The packages and siblings that a source imports, by their first name."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or ".").split(".")[0]
        for child in ast.iter_child_nodes(node):
            if inside_functions or not isinstance(child, ast.FunctionDef | ast.Lambda):
                yield from visit(child)

    return set(visit(ast.parse(source)))


def reached(sources: Sources, module: str, inside_functions: bool = True) -> set[str]:
    """All that a module imports, and what its siblings import in turn."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports(sources[waiting.pop()], inside_functions) - found
        found |= new
        waiting += new & set(sources)
    return found


def circles(sources: Sources) -> list[str]:
    """Modules that import themselves, by way of others, also inside functions."""
    return sorted(module for module in sources if module in reached(sources, module))


def imported_scripts(sources: Sources) -> list[str]:
    """Imports of a command-line script of the top level, also by a benchmark.

    evaluate speaks by synthesize's function, and a benchmark may import another one.
    """
    scripts = {name for name, source in sources.items() if '__name__ == "__main__"' in source}
    assert {"synthesize", "train_taco", "prep_splits"} <= scripts
    pairs = {(name, script) for name in sources for script in imports(sources[name]) & scripts}
    return sorted(f"{name} -> {script}" for name, script in pairs - {("evaluate", "synthesize")})


def siblings_of_the_lowest(sources: Sources) -> list[str]:
    """What the files import that are to be read, or compiled, on their own."""
    lowest = ("model", "normalize", "numerals", "fast_kernels", "files")
    lowest = [name for name in lowest if name in sources]
    return [
        f"{name} -> {other}" for name in lowest for other in imports(sources[name]) & {*sources}
    ]


def more_than_torch_in_the_model(sources: Sources) -> list[str]:
    """model.py is the paper: torch, the hub's mixin, and no Triton."""
    known = {"torch", "huggingface_hub", *sys.stdlib_module_names}
    return sorted(imports(sources["model"]) - known)


def slow_starts(sources: Sources) -> list[str]:
    """torch, at once or by way of a sibling, where it is not needed before the work begins."""
    scripts = ("files", "prep_splits", "recordings_report", "make_demo_corpus")
    slow = {"torch", "torchaudio", "librosa", "pandas", "accelerate", "matplotlib"}
    return [
        f"{name} -> {other}"
        for name in scripts
        for other in reached(sources, name, inside_functions=False) & slow
    ]


def is_kernel(function: ast.FunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def long_functions(sources: Sources) -> list[str]:
    """Functions of more than 60 lines, docstring included, that are not kernels."""
    return [
        f"{name}.{node.name}"
        for name, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno - node.lineno >= MAX_LINES
        and not is_kernel(node)
        and f"{name}.{node.name}" not in LONGER
    ]


def unused(sources: Sources) -> list[str]:
    """Functions and classes that nothing names but tests, perhaps, and their own `def`."""
    notebook = (REPO / "inference.ipynb").read_text(encoding="utf-8")
    named, defined = set(re.findall(r"\w+", notebook)), set()
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute | ast.alias):
                named.add(
                    next(getattr(node, x) for x in ("id", "attr", "name") if hasattr(node, x))
                )
    return sorted(name for name in defined - named if not name.startswith("__"))


LONG = "def long():\n" + "    x = 1\n" * MAX_LINES
BREACHES = [  # a rule, a file, and what is added to it
    (circles, "scores", "def late():\n    import evaluate"),
    (circles, "files", "from processes import Interrupt"),
    (imported_scripts, "reporting", "from synthesize import synthesize"),
    (imported_scripts, "validation", "def late():\n    import train_taco"),
    (imported_scripts, "benchmarks/common", "from synthesize import MAX_DECODER_STEPS"),
    (imported_scripts, "benchmarks/loader", "def late():\n    import prep_splits"),
    (siblings_of_the_lowest, "model", "from dataset import AudioConfig"),
    (siblings_of_the_lowest, "normalize", "def late():\n    import files"),
    (siblings_of_the_lowest, "fast_kernels", "from fast_loops import forward_loop"),
    (more_than_torch_in_the_model, "model", "def late():\n    import triton.language as tl"),
    (more_than_torch_in_the_model, "model", "import fast_gpu"),
    (slow_starts, "files", "import torch"),
    (slow_starts, "prep_splits", "from tokenizer import Tokenizer"),
    (slow_starts, "corpus", "import pandas"),
    (slow_starts, "recordings_report", "from plotting import save_figure"),
    (slow_starts, "demo_sentences", "if True:\n    import torchaudio"),
    (unused, "plotting", "def mel_figure():\n    pass"),
    (unused, "benchmarks/common", "def mel_figure():\n    pass"),
    (long_functions, "scores", LONG),
    (long_functions, "model", "class Any:\n" + "".join(f"    {x}\n" for x in LONG.split("\n"))),
]
Rule = Callable[[Sources], list[str]]


@pytest.mark.parametrize("rule", list(dict.fromkeys(rule for rule, *_ in BREACHES)))
def test_no_file_breaks(rule: Rule):
    assert rule(SOURCES) == []


@pytest.mark.parametrize(("rule", "module", "addition"), BREACHES)
def test_a_breach_is_found(rule: Rule, module: str, addition: str):
    broken = {**SOURCES, module: f"{SOURCES[module]}\n{addition}\n"}
    assert len(rule(broken)) > len(rule(SOURCES))


def test_functions_of_sixty_lines_and_long_kernels_are_allowed():
    assert not long_functions({"any": LONG.replace("    x = 1\n", "", 1)})
    assert not long_functions({"any": f"@triton.jit\n{LONG}"})


def test_exceptions_are_needed():
    names = {f"any.{name.split('.')[1]}" for name in LONGER}
    found = long_functions({"any": "\n".join(SOURCES[name.split(".")[0]] for name in LONGER)})
    assert names <= set(found)
