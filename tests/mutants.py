"""Break the code on purpose, in one place at a time, and report which breaks the tests miss.

    python tests/mutants.py                    # every mutant of mutants.txt
    python tests/mutants.py --only dataset.py  # those of a file, a function, or with this text
    python tests/mutants.py --list

mutants.txt is the list. "@ FILE" begins the mutants of a file, and "? TESTS" names the tests that
should fail for those that follow: files or node ids, without "tests/". Then each mutant is
"FUNCTION: CODE => CODE" with the function's qualified name, "*" for the whole file, the expression
or statement to replace, and what replaces it. An indented line continues the line above, and "#"
begins a comment. Code is compared as syntax trees within the function, so that formatting, comments
and changes elsewhere never break the list. Code that is not there exactly once is an error.
"""

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".txt")
PRELOADED = (  # slow to import, and the same for every mutant
    "pytest", "hypothesis", "torch", "torch._dynamo", "torchaudio", "accelerate", "pandas",
    "huggingface_hub.hub_mixin", "scipy.fft", "soundfile", "librosa.core.audio", "librosa.filters",
    "librosa.sequence", "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image",
    "num2words", "safetensors.torch",
)  # fmt: skip
NEEDED_SHARE = 0.95  # of the mutants have to be killed
PASSED, NOT_COLLECTED = 0, 2  # pytest's exit codes; between them, some failed


class Mutant(NamedTuple):
    """One deliberate break."""

    file: str
    function: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file} {self.function}: {self.old} => {self.new}"


def read_list(text: str) -> Iterator[Mutant]:
    """Parse the list."""
    file, tests = "", ()
    for line in re.sub(r"\n[ \t]+", " ", text).split("\n"):
        kind, _, rest = line.partition(" ")
        if kind == "@":
            file, tests = rest, ()
        elif kind == "?":
            tests = tuple(rest.split())
        elif line and kind != "#":
            found = re.fullmatch(r"([\w.]+|\*): (.+) => (.+)", line)
            if not (found and file and tests):
                raise ValueError(f"{line}: is no mutant, or no file and tests stand before it")
            yield Mutant(file, *found.groups(), tests)


def parse(code: str) -> ast.expr | ast.stmt:
    """Parse one expression or one statement."""
    with suppress(SyntaxError):
        return ast.parse(code, mode="eval").body
    (statement,) = ast.parse(code).body
    return statement


def mutate(source: str, mutant: Mutant) -> str:
    """Replace the mutant's code in a source, whose formatting and comments are lost.

    Raises:
        ValueError, SyntaxError: when the mutant does not fit the source.
    """
    tree = scope = ast.parse(source)
    for name in filter(None, mutant.function.replace("*", "").split(".")):
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = [x for x in ast.walk(scope) if isinstance(x, kinds) and x.name == name]
        if len(found) != 1:
            raise ValueError(f"there are {len(found)} functions or classes named {name}")
        scope = found[0]
    old, new = parse(mutant.old), parse(mutant.new)
    if isinstance(new, ast.stmt) and isinstance(old, ast.expr):
        old = ast.Expr(old)
    wanted = ast.dump(old)
    found = [node for node in ast.walk(scope) if ast.dump(node) == wanted]
    if len(found) != 1:
        raise ValueError(f"this code is there {len(found)} times instead of once")

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is found[0] else self.generic_visit(node)

    return ast.unparse(ast.fix_missing_locations(Replace().visit(tree)))


def find_mistakes(mutants: list[Mutant]) -> Iterator[str]:
    """Say which mutants do not apply to the code as it is."""
    for mutant in mutants:
        try:
            mutate((REPO / mutant.file).read_text(encoding="utf-8"), mutant)
        except (ValueError, SyntaxError, OSError) as error:
            yield f"{mutant}: {error}"


def copy_repository(folder: Path) -> None:
    """Copy the files that git tracks or would track, as they stand in the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, folder / name)


def fork_tests(tests: tuple[str, ...], folder: Path, limit: int) -> int:
    """Start pytest on the copy in a folder, for `limit` seconds at most, and return its pid."""
    (folder / "tmp").mkdir()
    if child := os.fork():
        return child
    code = -1
    try:
        os.setsid()
        signal.alarm(limit)  # which ends the process
        os.chdir(folder / "copy")
        os.environ["TMPDIR"], tempfile.tempdir = str(folder / "tmp"), None
        output = os.open(folder / "output", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        flags = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
        code = sys.modules["pytest"].main([*flags, *(f"tests/{test}" for test in tests)])
        sys.stdout.flush()
    finally:  # whatever happens, the fork must not go on as its parent does
        os._exit(code)


def run_jobs(sound: Path, jobs: list[Mutant], n_jobs: int, limit: int) -> Iterator[tuple]:
    """Run each mutant's tests on a copy of the sound code that has it.

    Yields:
        The mutant, pytest's exit code (below 0: ended by a signal), what failed, and seconds.
    """
    waiting, running = jobs[::-1], {}
    try:
        while waiting or running:
            while waiting and len(running) < n_jobs:
                job, folder = waiting.pop(), Path(tempfile.mkdtemp(dir=sound.parent))
                shutil.copytree(sound, folder / "copy")
                if job.file:
                    file = folder / "copy" / job.file
                    file.write_text(mutate(file.read_text("utf-8"), job), "utf-8")
                pid = fork_tests(job.tests, folder, limit)
                running[pid] = job, folder, time.monotonic()
            pid, status = os.wait()
            job, folder, begun = running.pop(pid)
            with suppress(ProcessLookupError):  # what the tests have left running
                os.killpg(pid, signal.SIGKILL)
            output = (folder / "output").read_text("utf-8", "replace").strip()
            failure = re.search(r"^(?:FAILED|ERROR) \S*?::([^\s\[]+)", output, re.MULTILINE)
            shutil.rmtree(folder, ignore_errors=True)
            code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - begun
            what = failure[1] if failure else output.rpartition("\n")[2][:200]
            what = "took too long" if code == -signal.SIGALRM else what
            yield job, code, what, seconds
    finally:
        for pid in running:
            os.killpg(pid, signal.SIGKILL)


def try_mutants(mutants: list[Mutant], n_jobs: int, limit: int) -> list[Mutant]:
    """Try each mutant, print what became of it, and return the survivors."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:] = [path for path in sys.path if Path(path).resolve() not in (REPO, REPO / "tests")]
    for name in PRELOADED:  # every run of tests is a fork of this process, and reads its own copy
        import_module(name)
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    groups = [tuple(group) for _, group in groupby(tests, lambda test: test.split("::")[0])]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants_") as scratch:
        sound = Path(scratch) / "sound"
        copy_repository(sound)
        checks = [Mutant("", "", "", "", group) for group in groups]
        for job, code, what, _ in run_jobs(sound, checks, n_jobs, 10 * limit):
            if code != PASSED:
                sys.exit(f"mutants.py: {' '.join(job.tests)} fails without a mutant ({what})")
        for job, code, what, seconds in run_jobs(sound, mutants, n_jobs, limit):
            if code > NOT_COLLECTED:
                sys.exit(f"mutants.py: {job}: pytest ended with {code} ({what})")
            verdict = "SURVIVED" if code == PASSED else "killed  "
            print(f"{verdict} {seconds:4.0f} s  {job}  [{what}]", flush=True)
            survivors += [job] if code == PASSED else []
    return survivors


def main() -> None:
    """Exit with 1 when too many mutants survive."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", metavar="TEXT", default="", help="mutants that hold this text")
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    parser.add_argument("--jobs", type=int, default=2, help="at once (default: %(default)s)")
    limit_help = "seconds until a mutant's tests are ended (default: %(default)s)"
    parser.add_argument("--limit", type=int, default=120, help=limit_help)
    args = parser.parse_args()
    mutants = [mutant for mutant in read_list(LIST.read_text("utf-8")) if args.only in str(mutant)]
    if not mutants:
        sys.exit(f"mutants.py: --only {args.only}: no mutant holds this text")
    if mistakes := list(find_mistakes(mutants)):
        sys.exit("\n".join(f"mutants.py: {mistake}" for mistake in mistakes))
    if args.list:
        print(*mutants, f"{len(mutants)} mutants", sep="\n")
        return
    begun = time.monotonic()
    survivors = try_mutants(mutants, args.jobs, args.limit)
    n_killed, minutes = len(mutants) - len(survivors), (time.monotonic() - begun) / 60
    print("", *(f"survived: {mutant}" for mutant in survivors), sep="\n")
    print(f"killed {n_killed} of {len(mutants)} in {minutes:.1f} minutes")
    sys.exit(n_killed < NEEDED_SHARE * len(mutants))


if __name__ == "__main__":
    main()
