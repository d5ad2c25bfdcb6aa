"""A measurement that is killed or interrupted at any moment goes on where it was, to the same bytes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paramsmith import resumable
from paramsmith.errors import Failed
from paramsmith.merge.measure import measure_fisher, measure_gram, measure_moments
from paramsmith.merge.task import Batch, ModelTask
from tests.merge.folders import leftovers
from tests.merge.measure.nets import call, cut, examples, net, saved, task_of

MEASURES: dict[str, Callable[..., object]] = {
    "fisher": measure_fisher,
    "gram": measure_gram,
    "moments": measure_moments,
}
# one pass over the data for a few tensors at a time
HOW: dict[str, dict[str, object]] = {
    "fisher": {"estimator": "sampled", "seed": 3, "chunk": 2, "memory": 5000},
    "gram": {"memory": 8 * 16 * 16},
    "moments": {"memory": 16 * 16},
}
CHILD = """
import sys
from pathlib import Path
from paramsmith import resumable
from paramsmith.checkpoint import Checkpoint
from tests.merge.measure.nets import cut, examples
from tests.merge.measure.test_measure_resume import HOW, MEASURES, counted

resumable.INTERVAL = 0.0
kind, folder = sys.argv[1], Path(sys.argv[2])
task, _ = counted(cut(examples("words", 20), 2), stuck=folder / "stuck", after=14)
with Checkpoint.open(folder / "model.safetensors") as checkpoint:
    MEASURES[kind](task, checkpoint, folder / "out.safetensors", **HOW[kind])
"""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every batch."""
    monkeypatch.setattr(resumable, "INTERVAL", 0.0)
    monkeypatch.setattr("paramsmith.merge.measure.passes._SHARE", 1e9)


def counted(
    batches: list[Batch], *, stuck: Path | None = None, after: int | None = None
) -> tuple[ModelTask, list[int]]:
    """A task that notes how many examples go through the model; its data can stop at the file `stuck` for good."""
    seen: list[int] = []
    left = None if after is None else iter(range(after))

    def data() -> Iterator[Batch]:
        for batch in batches:
            if left is not None and stuck is not None and next(left, None) is None:
                stuck.touch()
                time.sleep(600)
            yield batch

    def count(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(len(batch["x"]))
        return call(model, batch)

    return ModelTask(net("words"), data, count), seen


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_killed(kind: str, tmp_path: Path) -> None:
    checkpoint, out = saved(net("words"), tmp_path), tmp_path / "out.safetensors"
    task, seen = counted(cut(examples("words", 20), 2))
    MEASURES[kind](task, checkpoint, out, **HOW[kind])
    expected, whole = out.read_bytes(), sum(seen)
    out.unlink()
    child = subprocess.Popen([sys.executable, "-c", CHILD, kind, tmp_path], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (tmp_path / "stuck").exists():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    child.kill()
    child.communicate()
    assert not out.exists()
    assert leftovers(tmp_path) == [".out.safetensors.partial"]
    seen.clear()
    MEASURES[kind](task, checkpoint, out, **HOW[kind])
    assert out.read_bytes() == expected
    assert sum(seen) < whole
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", MEASURES)
def test_interrupted_after_every_batch(kind: str, tmp_path: Path) -> None:
    batches = cut(examples("words"), 3)
    checkpoint, out = saved(net("words"), tmp_path), tmp_path / "out.safetensors"
    MEASURES[kind](task_of(net("words"), batches), checkpoint, out, **HOW[kind])
    expected = out.read_bytes()
    out.unlink()
    steps, done = 0, False
    while not done:
        told: list[tuple[int, int]] = []

        def stop(at: int, total: int, told: list[tuple[int, int]] = told, most: int = steps) -> None:
            told.append((at, total))
            if len(told) > most % len(batches) + 1:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            MEASURES[kind](task_of(net("words"), batches), checkpoint, out, progress=stop, **HOW[kind])
            done = True
        assert done == out.exists()
        assert leftovers(tmp_path) == ([] if done else [".out.safetensors.partial"])
        steps += 1
        assert steps < 100
    assert steps > 2
    assert out.read_bytes() == expected


def test_other_data_or_arguments_after_an_interruption(tmp_path: Path) -> None:
    """Other arguments start anew; other data is noticed, and told."""
    batches = cut(examples("words"), 3)
    checkpoint, out = saved(net("words"), tmp_path), tmp_path / "out.safetensors"

    def stop(at: int, total: int) -> None:
        if at > 6:
            raise KeyboardInterrupt

    def measure(batches: list[Batch], **how: object) -> None:
        measure_fisher(task_of(net("words"), batches), checkpoint, out, estimator="empirical", **how)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        measure(batches, progress=stop)
    other = examples("words")
    other["x"][0, 0] += 1
    with pytest.raises(Failed, match="the data is not what it was"):
        measure(cut(other, 3))
    assert leftovers(tmp_path) == []
    measure(cut(other, 3))
    expected = out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        measure(batches, progress=stop, force=True)
    measure(cut(other, 3), chunk=3, force=True)  # another piece of work, which owes nothing to the first
    assert len(out.read_bytes()) == len(expected)


def test_data_that_differs_from_pass_to_pass(tmp_path: Path) -> None:
    first = iter([True])

    def data() -> list[Batch]:
        batches = cut(examples("words"), 3)
        return batches if next(first, False) else batches[:2]

    task = ModelTask(net("words"), data, call)
    with pytest.raises(Failed, match="the data is not what it was"):
        measure_fisher(task, saved(net("words"), tmp_path), tmp_path / "out.safetensors", **HOW["fisher"])  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensors_of_zeros_after_an_interruption(tmp_path: Path) -> None:
    """What earlier passes found counts, also when the last one finds nothing."""
    model = net("words")
    unused = torch.nn.Sequential(model, torch.nn.Linear(4, 4).double())
    checkpoint, out = saved(unused, tmp_path), tmp_path / "out.safetensors"
    batches = cut(examples("words"), 3)

    def stop(at: int, total: int, calls: list[int] = []) -> None:  # noqa: B006
        calls.append(at)
        if len(calls) > 6:
            raise KeyboardInterrupt

    def measure(**how: object) -> None:
        task = ModelTask(unused, lambda: batches, lambda model, batch: call(model[0], batch))
        included = "/^0.down.bias$|^1.weight$/"
        measure_fisher(task, checkpoint, out, estimator="empirical", include=included, memory=200, **how)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        measure(progress=stop)
    measure()
    found = load_file(out)
    assert bool(found["0.down.bias"].any())
    assert not bool(found["1.weight"].any())
