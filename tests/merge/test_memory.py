"""The plan is kept: the budget, the peak it foretells, and every byte it says will be read and written."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramsmith import checkpoint, disk, inputs
from paramsmith.merge import RunOptions, plan, run
from paramsmith.recipe import ModelEntry, Recipe
from tests.merge.folders import ended, start

MEGA = 1 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base and two models of 160 MB each."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"layers.{i}.w": torch.randn((16, MEGA), generator=generator).bfloat16() for i in range(5)}
        save_file(tensors, folder / f"{name}.safetensors")
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_peak_memory(models: Path, tmp_path: Path, method: str) -> None:
    """A process of its own, which keeps the budget, and what the plan foretells within it."""
    files = [models / f"{name}.safetensors" for name in ("a", "b")]
    words = ["merge", *files, "--method", method, *(["--base", models / "base.safetensors"] * (method == "ties"))]
    more = ["-o", tmp_path / "out", "--memory", "320MB", "--compile", "never", "--threads", "2", "--json"]
    done = ended(start(*words, *more))
    assert done.code == 0, done
    foretold = json.loads(done.out)["plan"]["peak_memory"]
    assert done.peak <= foretold <= 320_000_000, (done.peak, foretold)


@dataclass
class Counted:
    """Bytes that went through the operating system."""

    read: int = 0
    written: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Count what tensors' readers read and what is written at positions in files."""
    total, lock = Counted(), threading.Lock()
    preadv, pwrite = os.preadv, os.pwrite

    def reading(fd: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(fd, buffers, offset)
        with lock:
            total.read += count
        return count

    def writing(fd: int, data: memoryview, offset: int) -> int:
        count = pwrite(fd, data, offset)
        with lock:
            total.written += count
        return count

    assert checkpoint.os is disk.os is inputs.os is os
    monkeypatch.setattr(os, "preadv", reading)
    monkeypatch.setattr(os, "pwrite", writing)
    return total


def small(folder: Path, count: int = 3) -> list[Path]:
    paths = [folder / f"{number}.safetensors" for number in range(count)]
    for seed, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"{i}.w": torch.randn((3, 500_000), generator=generator) for i in range(2)}
        save_file({**tensors, "steps": torch.arange(1000), "b": torch.ones(77)}, path)
    return paths


@pytest.mark.parametrize(
    ("method", "parameters", "surveys"),
    [
        ("linear", {}, 0),
        ("task_arithmetic", {}, 0),
        ("slerp", {}, 1),
        ("dare", {"rescale": "l1"}, 1),
        ("ties", {}, 1),
    ],
)
def test_bytes_read_and_written_are_those_of_the_plan(
    tmp_path: Path, counted: Counted, method: str, parameters: dict[str, object], surveys: int
) -> None:
    base, *paths = small(tmp_path)
    entries = tuple(ModelEntry(model=str(path)) for path in paths)
    based = str(base) if method in ("task_arithmetic", "dare", "ties") else None
    recipe = Recipe(method=method, models=entries, base=based, parameters=parameters)
    options = RunOptions(compile="never", memory="8GB")
    planned = plan(recipe, tmp_path / "out", options)
    assert (counted.read, counted.written) == (0, 0)
    assert planned.passes == 1 + surveys
    done: list[tuple[int, int]] = []
    options = RunOptions(compile="never", memory="8GB", progress=lambda now, all_: done.append((now, all_)))
    run(recipe, tmp_path / "out", options)
    # the sample that places the bracket of an order statistic is planned to its size, and drawn in whole chunks
    chunks = planned.bytes_read * 0.001 if method == "ties" else 0
    assert abs(counted.read - planned.bytes_read) <= chunks
    assert done[-1][1] == planned.bytes_read
    assert done[-1][0] == min(counted.read, planned.bytes_read)
    header = 8 * 1024
    out = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert planned.bytes_written <= counted.written <= planned.bytes_written + header
    assert counted.written - out < 200  # the lock's line
