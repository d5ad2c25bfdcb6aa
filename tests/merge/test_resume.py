"""Killed, interrupted or terminated at any moment: no output, or a whole one; the same command completes it."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramsmith.errors import Refused
from paramsmith.merge import RunOptions, merge, run
from paramsmith.recipe import ModelEntry, Recipe
from paramsmith.staging import Writer
from tests.merge.folders import Done, contents, ended, failed, leftovers, start

# The journal is written often, so that there is something to resume after a tenth of a second's work.
OFTEN = "from paramsmith.staging import Writer; Writer.journal_interval = 0.02"
ROWS = 1 << 10


@dataclass(frozen=True)
class Bench:
    """Models on the disk, and what an undisturbed run makes of them."""

    folder: Path
    expected: dict[str, bytes]
    seconds: float

    def recipe(self, **changed: object) -> Recipe:
        base, *models = models_in(self.folder)
        entries = tuple(ModelEntry(model=str(m)) for m in models)
        plain = Recipe(method="ties", models=entries, base=str(base), shard_size="30MB", parameters={"density": 0.3})
        return plain.model_copy(update=changed)

    def words(self, out: Path) -> list[str]:
        base, *models = models_in(self.folder)
        words = ["merge", *models, "--base", base, "--method", "ties", "--density", "0.3", "-o", out]
        return [str(word) for word in (*words, "--shard-size", "30MB", "--compile", "never", "--threads", "2")]


def models_in(folder: Path) -> list[Path]:
    return [folder / f"{name}.safetensors" for name in ("base", "a", "b", "c")]


def bench(folder: Path, rows: int) -> Bench:
    """A base and three models of four tensors each, `rows` x 8 kB in all, and their merge."""
    for seed, path in enumerate(models_in(folder)):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"layers.{i}.w": torch.randn((rows // 4, 4096), generator=generator) for i in range(4)}
        save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)
    made, began = Bench(folder, {}, 0.0), time.monotonic()
    run(made.recipe(), folder / "expected", RunOptions(compile="never", threads=2, memory="8GB"))
    expected = {name: data for name, data in contents(folder / "expected").items() if name.endswith(".safetensors")}
    return Bench(folder, expected, time.monotonic() - began)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("small"), 3 * ROWS)


def staged(child: subprocess.Popen[str], out: Path) -> None:
    """Wait until the child has begun to write."""
    until = time.monotonic() + 60
    while not (out.parent / f".{out.name}.partial" / "journal").exists():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


def weights(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(out).items() if name.endswith(".safetensors")}


def completed(made: Bench, out: Path, monkeypatch: pytest.MonkeyPatch, **changed: object) -> int:
    """Run to the end, check the bytes; how many an earlier run had finished."""
    resumed: list[int] = []
    enter = Writer.__enter__

    def noting(self: Writer) -> Writer:
        enter(self)
        resumed.append(self.resumed_bytes)
        return self

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "__enter__", noting)
        run(made.recipe(**changed), out, RunOptions(compile="never", threads=2, memory="8GB", force=True))
    if not changed:
        assert weights(out) == made.expected
    assert leftovers(out.parent) == []
    return resumed[0]


def killed(made: Bench, folder: Path, shares: list[float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kill a run at each of these shares of its life, and complete each: what each left to resume from, -1 for all."""
    resumed, life = [], made.seconds
    for number, share in enumerate(shares):
        out = folder / str(number) / "out"
        out.parent.mkdir()
        child = start(*made.words(out), before=OFTEN)
        staged(child, out)
        time.sleep(life * share)
        child.kill()
        child.communicate()
        if out.exists():  # it came too late
            assert weights(out) == made.expected
            assert (out / "recipe.yaml").exists()
            resumed.append(-1)
            life *= max(0.5, share)
        else:
            resumed.append(0)
        found = completed(made, out, monkeypatch)
        resumed[-1] = resumed[-1] or found
    return resumed


def test_killed_at_two_moments(small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = killed(small, tmp_path, [0.6, 0.9], monkeypatch)
    assert max(resumed) > 0


@pytest.mark.slow
def test_killed_at_thirty_moments(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path_factory.mktemp("large"), 12 * ROWS)
    chance = random.Random(11)
    resumed = killed(made, tmp_path, [chance.uniform(0, 1.1) for _ in range(30)], monkeypatch)
    assert sum(found > 0 for found in resumed) >= 6, resumed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(
    small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    child = start(*small.words(out), before=OFTEN)
    staged(child, out)
    time.sleep(0.3)
    child.send_signal(number)
    done = ended(child)
    failed(done, code, "interrupted" if code == 130 else "terminated")
    assert re.search(r"hint: the same command goes on from here; .*/\.out\.partial", done.err)
    assert not out.exists()
    assert leftovers(tmp_path) == [".out.partial"]
    assert completed(small, out, monkeypatch) >= 0


def test_another_recipe_on_what_was_left_starts_over(
    small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done > total * 3 // 4:
            raise KeyboardInterrupt

    for changed, resumes in (({}, True), ({"parameters": {"density": 0.4}}, False), ({"seed": 1}, False)):
        with pytest.raises(KeyboardInterrupt) as caught:
            run(small.recipe(), out, RunOptions(compile="never", memory="8GB", progress=stop))
        assert "the same command goes on" in caught.value.__notes__[0]
        assert leftovers(tmp_path) == [".out.partial"]
        assert (completed(small, out, monkeypatch, **changed) > 0) is resumes
        [path.unlink() for path in out.iterdir()]
        out.rmdir()


def test_what_was_wrong_with_the_data_is_told_after_a_resumption_too(tmp_path: Path) -> None:
    """Also the faults of the tensors that the interrupted run had finished; --strict must not be fooled."""
    for name in "ab":
        tensors = {f"{i}.w": torch.full((1 << 20,), 1.0) for i in range(4)}
        if name == "b":
            tensors["0.w"][5], tensors["1.w"][:] = float("nan"), 0.0
        save_file(tensors, tmp_path / f"{name}.safetensors")
    recipe = Recipe(method="linear", models=tuple(ModelEntry(model=str(tmp_path / f"{n}.safetensors")) for n in "ab"))

    def stop(done: int, total: int) -> None:
        if done > total * 3 // 4:
            raise KeyboardInterrupt

    options = {"compile": "never", "memory": "8GB", "threads": 1}
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "out", RunOptions(**options, progress=stop))  # type: ignore[arg-type]
    resumed: list[int] = []
    report = run(recipe, tmp_path / "out", RunOptions(**options, progress=lambda d, t: resumed.append(d)))  # type: ignore[arg-type]
    undisturbed = run(recipe, tmp_path / "again", RunOptions(**options))  # type: ignore[arg-type]
    assert len(undisturbed.warnings) == 2
    assert report.warnings == undisturbed.warnings
    assert weights(tmp_path / "out") == weights(tmp_path / "again")


def test_two_writers_on_one_target(small: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    children = [start(*small.words(out)) for _ in range(2)]
    ends = [ended(child) for child in children]
    won, lost = sorted(ends, key=lambda done: done.code)
    assert won.code == 0, ends
    assert_told_who_holds_it(lost)
    assert weights(out) == small.expected
    assert leftovers(tmp_path) == []


def assert_told_who_holds_it(lost: Done) -> None:
    failed(lost, 3, "out ")
    assert "is being written by process" in lost.err or "already exists" in lost.err


def test_a_second_writer_leaves_the_first_ones_work_alone(small: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = start(*small.words(out))
    staged(child, out)
    child.send_signal(signal.SIGSTOP)
    base, *models = models_in(small.folder)
    with pytest.raises(Refused, match=f"is being written by process {child.pid} on host"):
        merge(models, out, base=base, method="ties", compile="never", memory="8GB")
    child.send_signal(signal.SIGCONT)
    assert ended(child).code == 0
    assert weights(out) == small.expected
