"""Puts deliberate defects into a copy of the code, one at a time, and looks which the tests notice.

    python tests/mutants.py                       # all of mutants.txt
    python tests/mutants.py --only evaluate.py    # those of a file, or whose text holds this
    python tests/mutants.py --list

tests/mutants.txt is the list. A line `@ FILE: TESTS` begins the defects of a file, with the test
files or node ids, without "tests/", that should notice. A defect is lines that begin with "- ", a
text that the file holds exactly once, and lines that begin with "+ ", what stands there instead.
"? TESTS" names other tests for this defect alone, and "~ REASON" says why it may go unnoticed. A
blank line ends it, and "#" begins a comment. A defect whose text is not found exactly once is an
error: the list has to move with the code.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from multiprocessing import SimpleQueue, get_context
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".txt")
PRELOADED = (
    "pytest", "hypothesis", "torch", "torch._dynamo", "torchaudio", "accelerate", "pandas",
    "huggingface_hub.hub_mixin",
    "scipy.fft", "soundfile", "librosa.core.audio", "librosa.filters", "librosa.sequence",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image", "num2words",
    "safetensors.torch",
)  # fmt: skip
FOLDER = Path()  # a worker's copy of the repository
NEEDED_SHARE = 0.95  # of the defects must be noticed
PASSED, FAILED, NOT_COLLECTED, INTERNAL_ERROR = 0, 1, 2, 3  # pytest's exit codes


class Mutant(NamedTuple):
    """A deliberate defect."""

    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]  # test files or node ids, relative to tests/
    reason: str  # why it may survive; empty when it must not

    def __str__(self) -> str:
        old, new = (" / ".join(map(str.strip, x.split("\n"))) for x in self[1:3])
        return f"{self.file}: {old}  ->  {new or '(nothing)'}"


class ListError(Exception):
    """A mistake in the list, told in one sentence."""


def read_list(path: Path) -> Iterator[Mutant]:
    """The mutants of the list, in its order; ListError where a line has no meaning."""
    file, file_tests, parts = "", "", {}

    def finish() -> Iterator[Mutant]:
        if parts:
            if not file or "-" not in parts or "+" not in parts:
                raise ListError(f"{path.name}: the defect before line {number} is incomplete")
            tests = tuple(" ".join(parts.get("?", [file_tests])).split())
            text, replacement = ("\n".join(parts[sign]) for sign in "-+")
            yield Mutant(file, text, replacement, tests, " ".join(parts.get("~", [])))
        parts.clear()

    number = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        sign, content = line[:1], line[2:]
        if sign in ("", "@"):
            yield from finish()
        if sign == "@":
            file, _, file_tests = content.partition(": ")
        elif sign and sign in "-+?~" and line[1:2] in ("", " "):
            parts.setdefault(sign, []).append(content)
        elif sign not in ("", "#"):
            raise ListError(f"{path.name} line {number}: begins with none of @ - + ? ~ #")
    yield from finish()


def mutate(source: str, mutant: Mutant) -> str:
    """The source with the defect; ListError when it does not apply, or is no Python."""
    if (n_found := source.count(mutant.text)) != 1:
        raise ListError(f"{mutant}: the text is there {n_found} times instead of once")
    mutated = source.replace(mutant.text, mutant.replacement)
    try:
        compile(mutated, mutant.file, "exec")
    except SyntaxError as error:
        raise ListError(f"{mutant}: is no Python ({error})") from None
    return mutated


def copy_tracked_files(folder: Path) -> None:
    """What git tracks, as it stands in the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, folder / name)


def start_worker(folders: SimpleQueue) -> None:
    """Begins a worker process: takes a copy for its own and imports what nearly all tests need.

    Every run of tests is a fork of it, which begins in a fraction of the time that these imports
    take. Nothing of the repository is imported here: the forks read the copy.
    """
    global FOLDER
    FOLDER = Path(folders.get())
    os.environ["OMP_NUM_THREADS"] = "1"
    # No bytecode: a file that changes twice within a second could be taken from its old one.
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    sys.path[:] = [path for path in sys.path if Path(path).resolve() not in (REPO, REPO / "tests")]
    for name in PRELOADED:
        import_module(name)


def run_tests(tests: tuple[str, ...], seconds: float) -> tuple[int | None, str]:
    """pytest's exit code, None where it took too long, and the test that failed first."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output.txt"
        child = os.fork()
        if child == 0:
            code = INTERNAL_ERROR
            try:
                os.setsid()
                os.chdir(FOLDER)
                os.environ["TMPDIR"], tempfile.tempdir = scratch, None
                file = os.open(output, os.O_CREAT | os.O_WRONLY)
                for number in (1, 2):
                    os.dup2(file, number)
                flags = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
                code = sys.modules["pytest"].main([*flags, *(f"tests/{test}" for test in tests)])
                sys.stdout.flush()
            finally:  # whatever happens, the fork must not go on as a second worker
                os._exit(code)
        deadline, status = time.monotonic() + seconds, None
        try:
            while status is None and time.monotonic() < deadline:
                time.sleep(0.05)
                pid, code = os.waitpid(child, os.WNOHANG)
                status = os.waitstatus_to_exitcode(code) if pid else None
        finally:
            if status is None:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
        if status is None:
            return None, "took too long"
        said = output.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:FAILED|ERROR) \S*?::([^\s\[]+)", said, re.MULTILINE)
    return status, found[1] if found else said.strip()[-200:]


def judge(mutant: Mutant, seconds: float) -> tuple[bool, str, float]:
    """Whether a test notices it, which, and the seconds that took; ListError when no test ran."""
    begun, path = time.perf_counter(), FOLDER / mutant.file
    source = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutate(source, mutant), encoding="utf-8")
        code, what = run_tests(mutant.tests, seconds)
    finally:
        path.write_text(source, encoding="utf-8")
    if code not in (None, PASSED, FAILED, NOT_COLLECTED):
        raise ListError(f"{mutant}: pytest ended with {code} ({what})")
    return code != PASSED, what, time.perf_counter() - begun


def run(mutants: list[Mutant], n_jobs: int, seconds: float) -> list[Mutant]:
    """Tries each, prints what became of it, and returns the survivors.

    Raises:
        ListError: when tests fail without any defect, as they would notice everything.
    """
    survivors, context = [], get_context("spawn")
    # Tests that start processes of their own end in a fork, whose semaphores nobody counts.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    with tempfile.TemporaryDirectory(prefix="mutants_") as scratch:
        folders = context.SimpleQueue()
        for i in range(n_jobs):
            copy_tracked_files(Path(scratch) / str(i))
            folders.put(str(Path(scratch) / str(i)))
        with ProcessPoolExecutor(n_jobs, context, start_worker, (folders,)) as pool:
            try:
                tests = sorted({(test,) for mutant in mutants for test in mutant.tests})
                sound = pool.map(run_tests, tests, [seconds] * len(tests))
                for (test,), (code, what) in zip(tests, sound, strict=True):
                    if code != PASSED:
                        raise ListError(f"tests/{test} fails without a defect: {what}")
                jobs = {pool.submit(judge, mutant, seconds): mutant for mutant in mutants}
                for job in as_completed(jobs):
                    killed, what, took = job.result()
                    verdict = f"killed    {took:4.0f} s" if killed else f"SURVIVED  {took:4.0f} s"
                    print(f"{verdict}  {jobs[job]}" + (f"  [{what}]" if killed else ""), flush=True)
                    survivors += [] if killed else [jobs[job]]
            finally:
                pool.shutdown(cancel_futures=True)
    return survivors


def main() -> None:
    """Exits with 1 where a survivor has no reason or too many survive."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", metavar="TEXT", help="a file's name, or a part of the defect")
    parser.add_argument("--list", action="store_true", help="show the defects and try none")
    parser.add_argument("--jobs", type=int, default=2, help="at once (default: %(default)s)")
    limit_help = "limit for one defect's tests, in seconds (default: %(default)s)"
    parser.add_argument("--timeout", type=float, default=180, help=limit_help)
    args = parser.parse_args()
    try:
        mutants = list(read_list(LIST))
        if args.only:
            mutants = [m for m in mutants if args.only == m.file or args.only in str(m)]
        if not mutants:
            raise ListError(f"no defect is of a file or holds a text {args.only!r}")
        for mutant in mutants:  # all at once, before the first takes its time
            mutate((REPO / mutant.file).read_text(encoding="utf-8"), mutant)
        if args.list:
            print(*mutants, f"{len(mutants)} defects", sep="\n")
            return
        survivors = run(mutants, args.jobs, args.timeout)
    except (ListError, OSError) as error:
        sys.exit(f"mutants.py: {error}")
    n_killed = len(mutants) - len(survivors)
    print()
    for mutant in survivors:
        print(f"survived  {mutant}\n          {mutant.reason or 'NO REASON IS GIVEN'}")
    print(f"killed {n_killed} of {len(mutants)}: {n_killed / len(mutants):.1%}")
    if n_killed < NEEDED_SHARE * len(mutants) or not all(m.reason for m in survivors):
        sys.exit(1)


if __name__ == "__main__":
    main()
