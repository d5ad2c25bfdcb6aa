"""Time things: merges in children, whole processes, the yardstick; all beside each other, the best of several."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.child import Facts, Measured, Spec, forget, read_from_disk
from tests.bench.models import ROOT, WEIGHTS
from tests.bench.parallel_copy import parallel_copy

# No run may wait for a network that it does not need.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
START = "from paramsmith.cli.app import main; main()"


class RunFailed(Exception):
    """A run that ended badly; says what it said last."""


@dataclass(frozen=True)
class Timing:
    """The best of several runs; of memory, the most."""

    seconds: float
    cpu: float | None
    peak: int | None
    disk: int | None
    gpu: int | None
    path: str

    @classmethod
    def of(cls, runs: Sequence[Measured]) -> Timing:
        """What of several runs is reported."""
        return cls(
            min(run.seconds for run in runs),
            min((run.cpu for run in runs if run.cpu is not None), default=None),
            max((run.peak for run in runs if run.peak is not None), default=None),
            max((run.disk for run in runs if run.disk is not None), default=None),
            max((run.gpu for run in runs if run.gpu is not None), default=None),
            runs[-1].path,
        )


def side_by_side(things: Sequence[Callable[[], Measured]], runs: int, uncounted: Sequence[int] = ()) -> list[Timing]:
    """Run things in turn, so that what disturbs one disturbs the others; those `uncounted` once before."""
    for number in uncounted:
        things[number]()
    counted = [[thing() for thing in things] for _ in range(runs)]
    return [Timing.of(column) for column in zip(*counted, strict=True)]


def merge_apart(spec: Spec) -> Measured:
    """Run one merge in a process of its own; its output is removed."""
    try:
        told = child("tests.bench.child", ["merge"], json.dumps(asdict(spec)))
    finally:
        remove(Path(spec.output))
    return Measured(**json.loads(told))


def machine_facts() -> Facts:
    """What torch finds here, asked of a child: this process stays small."""
    return Facts(**json.loads(child("tests.bench.child", ["facts"], "")))


def child(module: str, arguments: Sequence[str], text: str) -> str:
    """Run a module of ours in a process of its own; the last line it prints."""
    command, environment = [sys.executable, "-m", module, *arguments], {**os.environ, **OFFLINE}
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RunFailed(_last_words(done.stderr, done.returncode))
    return done.stdout.splitlines()[-1]


def whole_process(command: Sequence[str | Path], output: Path | None = None) -> Measured:
    """Run a command from start to exit: wall, processor and peak memory with its own children; the output is removed.

    The kernel counts a child's peak from what its parent held when it started it: keep this process small.
    """
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        environment = {**os.environ, **OFFLINE}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if output:
                remove(output)
        process.returncode = os.waitstatus_to_exitcode(status)  # it is reaped: nobody must wait for it again
        if process.returncode:
            said.seek(0)
            raise RunFailed(_last_words(said.read().decode(errors="replace"), process.returncode))
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def paramsmith() -> list[str]:
    """The start of a command line: the installed command, or this checkout's where there is none."""
    installed = Path(sys.executable).with_name("paramsmith")
    return [str(installed)] if installed.exists() else [sys.executable, "-c", START]


def copy(models: Sequence[str], output: Path, threads: int, *, cold: bool = False, drop: bool = False) -> Measured:
    """The yardstick for the same inputs."""
    files = [Path(model, WEIGHTS) for model in models]
    if cold:
        forget(files, drop)
    disk, cpu = read_from_disk(), time.process_time()
    try:
        seconds = parallel_copy(files, output, threads)
    finally:
        remove(output)
    read = None if disk is None else (read_from_disk() or 0) - disk
    return Measured(seconds, time.process_time() - cpu, disk=read)


def remove(output: Path) -> None:
    """Remove an output, a file or a folder, if it is there."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def _last_words(text: str, status: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"exit status {status}: {'; '.join(lines[-2:]) or 'no word'}"
