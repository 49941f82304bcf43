"""Not a test: train_taco.py in processes forked from one that has imported all that it needs.

Such a run takes as long as its training does, without the ten seconds in which a new Python imports
torch, accelerate, librosa and matplotlib. It draws nothing unless asked to. What the start of a
Python, the launcher or the pictures do is tested where `launch` of runs.py is called.
"""

import atexit
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import torch

import train_taco
from mutants import PRELOADED
from runs import draw_nothing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))
LONGEST_SECONDS = 300.0


def process_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """What the launcher tells each process of several by its environment."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def run_here(
    flags: list[str], environment: dict[str, str], start_method: str, folder: Path,
    before: Callable[[], None] | None, pictures: bool,
) -> None:  # fmt: skip
    """train_taco.py in this process, which is a new one; it writes to two files in the folder."""
    # For loader processes: multiprocessing would have a fork server's children use one as well.
    multiprocessing.set_start_method(start_method, force=True)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = open(folder / name, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        os.dup2(file.fileno(), number)
        setattr(sys, name, file)
    torch.set_num_threads(1)
    if not pictures:
        draw_nothing()
    if before:
        before()
    train_taco.main(flags)


class ForkedRun:
    """A run in the background, on the CPU, in one process or in several.

    Args:
        flags: train_taco.py's.
        processes: how many; they find each other as the launcher's do.
        before: called in each process before train_taco.py's main, to change what that does; a
            function of a module, or a partial of one.
        pictures: whether it draws, which is most of the time of a tiny run.
    """

    def __init__(
        self, flags: list, processes: int = 1, before: Callable[[], None] | None = None,
        pictures: bool = False,
    ) -> None:  # fmt: skip
        self.outputs = tempfile.TemporaryDirectory()
        self.folder = Path(self.outputs.name)
        for name in ("stdout", "stderr"):
            (self.folder / name).touch()
        # Kept from other runs: bound here with SO_REUSEADDR, which lets the first process listen.
        self.holder = socket.socket()
        self.holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.holder.bind(("127.0.0.1", 0))
        port = self.holder.getsockname()[1]
        common = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        self.processes = []
        for rank in range(processes):
            own = process_variables(rank, processes, port) if processes > 1 else {}
            arguments = (
                list(map(str, flags)), common | own, multiprocessing.get_start_method(),
                self.folder, before, pictures,
            )  # fmt: skip
            self.processes.append(CONTEXT.Process(target=run_here, args=arguments))
        for process in self.processes:
            process.start()
        atexit.register(self.kill)  # or pytest's end would wait for a run that a test has left

    @property
    def pid(self) -> int:
        """The first process's."""
        return self.processes[0].pid

    def read(self, name: str) -> str:
        """What all processes have written so far: "stdout" or "stderr"."""
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")

    def wait_for_line(self, words: str, times: int = 1) -> None:
        """Until so many lines of stdout hold these words, one of each process perhaps."""
        end = time.monotonic() + LONGEST_SECONDS
        while self.read("stdout").count(words) < times:
            if time.monotonic() > end or not any(p.is_alive() for p in self.processes):
                self.kill()
                raise AssertionError(f"no line {words!r}: {self.read('stderr')[-2000:]}")
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        """To every process, as the launcher passes it on."""
        for process in self.processes:
            os.kill(process.pid, number)

    def kill(self) -> None:
        """SIGKILL, where it has not ended; what a process has started itself lives on."""
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, seconds: float = LONGEST_SECONDS) -> CompletedProcess:
        """The end of the run, with the exit status of the first process that failed, else 0."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        late = [process.pid for process in self.processes if process.is_alive()]
        self.kill()
        atexit.unregister(self.kill)
        self.holder.close()
        said = self.read("stdout"), self.read("stderr")
        self.outputs.cleanup()
        assert not late, f"the run has not ended within {seconds} s: {said[1][-2000:]}"
        codes = [process.exitcode for process in self.processes]
        return CompletedProcess("train_taco.py", next(filter(None, codes), 0), *said)


def train(flags: list, processes: int = 1, check: bool = True, **options) -> CompletedProcess:
    """A run to its end; `options` are ForkedRun's. With `check`, it has to succeed."""
    done = ForkedRun(flags, processes, **options).wait()
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def hold(step: int, release: Path | None = None) -> None:
    """For `before`: the run waits in this step for a signal, or for the file `release`.

    It prints "held" when it begins to, so that what a test does next happens in that step, however
    fast or busy the machine is.
    """
    train_step = train_taco.train_step

    def held_step(run, batches, number):
        if number == step:
            print("held", flush=True)
            end = time.monotonic() + LONGEST_SECONDS
            while not (run.interrupt.pending or (release and release.exists())):
                assert time.monotonic() < end, "nobody has released this run"
                time.sleep(0.01)
        return train_step(run, batches, number)

    train_taco.train_step = held_step
