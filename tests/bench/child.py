"""What a merge takes, measured from inside a process of its own: imports first, then one merge and nothing else.

python -m tests.bench.child merge < SPEC        SPEC as JSON, see Spec; the result is the last line of stdout, as JSON
python -m tests.bench.child facts
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# What a merge imports only when it runs.
LAZY = ("merge.engine", "merge.outcome", "merge.passes", "merge.setup", "staging", "gram", "kernels", "order")


@dataclass(frozen=True)
class Spec:
    """One merge, and whether to forget its inputs first."""

    models: list[str]
    output: str
    method: str
    base: str | None = None
    parameters: dict[str, object] = field(default_factory=dict)
    compile: str = "auto"
    device: str = "cpu"
    cold: bool = False
    drop: bool = False  # with cold: the machine's whole page cache too, where that is allowed


@dataclass(frozen=True)
class Measured:
    """What one run took: seconds, seconds of processor, bytes of memory at the peak, bytes that came from the disk."""

    seconds: float
    cpu: float | None = None
    peak: int | None = None
    disk: int | None = None
    gpu: int | None = None
    path: str = ""


@dataclass(frozen=True)
class Facts:
    """What only torch and paramsmith know about the machine."""

    torch: str
    threads: int
    gpu: str | None
    no_compiler: str | None


def merge_here(spec: Spec) -> Measured:
    """Run a merge in this process, after everything it needs is imported."""
    import importlib

    import torch

    from paramsmith.merge import RunOptions, run
    from paramsmith.recipe import ModelEntry, Recipe
    from paramsmith.registry import find_method

    for name in LAZY:
        importlib.import_module(f"paramsmith.{name}")
    find_method(spec.method)
    models = tuple(ModelEntry(model=model) for model in spec.models)
    recipe = Recipe(method=spec.method, models=models, base=spec.base, parameters=spec.parameters)
    options = RunOptions(device=spec.device, compile=spec.compile)  # type: ignore[arg-type]
    on_gpu = spec.device != "cpu"
    if on_gpu:
        torch.zeros(1, device=spec.device)  # the first use of a device takes seconds
    if spec.cold:
        folders = [Path(model) for model in (*spec.models, *([spec.base] if spec.base else []))]
        forget([file for folder in folders for file in folder.glob("*.safetensors")], spec.drop)
    disk, cpu = read_from_disk(), time.process_time()
    report = run(recipe, spec.output, options)
    return Measured(
        report.seconds,
        time.process_time() - cpu,
        _peak(),
        None if disk is None else (read_from_disk() or 0) - disk,
        torch.cuda.max_memory_allocated() if on_gpu else None,
        report.path,
    )


def forget(files: Sequence[Path], drop: bool) -> None:
    """Take files out of the page cache; `drop`: everything else too, where this process may."""
    os.sync()  # only what is on the disk can be forgotten
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    if drop and os.geteuid() == 0:
        try:
            Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")
        except OSError as problem:  # a container's root may not; the column of bytes from the disk tells
            print(f"the page cache was not dropped: {problem}", file=sys.stderr)


def read_from_disk() -> int | None:
    """Bytes this process had fetched from storage so far; None where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)


def facts() -> Facts:
    """What torch finds here."""
    import torch

    from paramsmith.device import pick_threads
    from paramsmith.kernels import compiler_missing

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Facts(torch.__version__, pick_threads(None), gpu, compiler_missing())


def _peak() -> int:
    """The most memory this process held; not getrusage, which starts from what the parent held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    told = facts() if sys.argv[1] == "facts" else merge_here(Spec(**json.load(sys.stdin)))
    print(json.dumps(asdict(told)))
