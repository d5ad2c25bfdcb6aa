"""What the tests of writing share: a small model of three files, written in pieces, also by processes of their own."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

from paramsmith.dtypes import DTYPES
from paramsmith.header import TensorSpec
from paramsmith.shards import Layout, plan_files
from paramsmith.staging import Writer

ROOT = Path(__file__).resolve().parents[2]
CUT = 170  # bytes; divides no tensor, so that the last cut of each is short

# What the tests' own processes run; only the standard library and ours, so they start at once.
PROGRAM = """
    import os, random, resource, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from tests.shared.staged import plan, cuts, content, fill, is_there
    from paramsmith.errors import ParamsmithError
    from paramsmith.staging import Writer
    target = Path({target!r})
"""


def specs() -> list[TensorSpec]:
    shapes = {"z.weight": (50, 40), "a.weight": (1, 1999), "empty": (0, 7), "scalar": (), "big": (3, 1234)}
    return [TensorSpec(name, DTYPES["BF16"], shape) for name, shape in shapes.items()]


def plan(single: str | None = None, shard_size: int | None = 6000) -> Layout:
    return plan_files(specs(), shard_size, single)


def content(name: str, nbytes: int) -> bytes:
    return random.Random(name).randbytes(nbytes)


def cuts(seed: int = 0) -> list[tuple[str, int, int]]:
    """Every byte of every tensor, in pieces, in random order."""
    found = [
        (spec.name, start, min(start + CUT, spec.nbytes)) for spec in specs() for start in range(0, spec.nbytes, CUT)
    ]
    random.Random(seed).shuffle(found)
    return found


def fill(writer: Writer, name: str, start: int, end: int) -> None:
    nbytes = next(spec.nbytes for spec in specs() if spec.name == name)
    writer.write(name, start, memoryview(content(name, nbytes))[start:end])
    writer.finish([(name, start, end)])


def staged(
    target: Path, *steps: Callable[[Writer], object], key: str = "k", force: bool = False, layout: Layout | None = None
) -> None:
    """Open a writer and do these steps with it."""
    with Writer(target, layout or plan(), key, force=force) as writer:
        for step in steps:
            step(writer)


def fill_all(writer: Writer, seed: int = 0) -> None:
    for cut in cuts(seed):
        fill(writer, *cut)


def complete(target: Path, key: str = "k", *, force: bool = False, layout: Layout | None = None) -> None:
    staged(target, fill_all, Writer.publish, key=key, force=force, layout=layout)


def interrupt(writer: Writer) -> None:
    """Write ten pieces, then act as Ctrl-C does."""
    writer.remember("threshold", 0.1 + 0.2)
    for cut in cuts()[:10]:
        fill(writer, *cut)
    raise KeyboardInterrupt


@functools.cache
def reference() -> dict[str, bytes]:
    """The files of an undisturbed run."""
    with tempfile.TemporaryDirectory() as folder:
        complete(Path(folder, "out"))
        return listing(Path(folder, "out"))


def old_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("old")
    return folder


def is_there(target: Path) -> bool:
    return os.path.lexists(target)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def start(target: Path, body: str) -> subprocess.Popen[str]:
    program = textwrap.dedent(PROGRAM).format(root=str(ROOT), target=str(target)) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def output_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out
