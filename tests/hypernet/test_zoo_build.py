"""Building zoos: networks trained side by side are those trained alone, and what is written says what they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.hypernet.protocols import Batch, Episode, Run
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.tasks import Classification, FunctionTask
from paramsmith.hypernet.writing.samples import sample_seed
from paramsmith.hypernet.zoos.build import build, episode_of
from paramsmith.hypernet.zoos.inspection import inspect
from paramsmith.hypernet.zoos.training import Rows
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = pytest.mark.usefixtures("one_thread")

TARGETS = {k: Target.of(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, k)), torch.zeros(1, 3)) for k in (2, 3)}


def blobs(rng: torch.Generator, split: str, classes: int | None = None, rows: int = 0) -> Episode:
    """Points around one centre a class; half of the draws have three classes, and more rows."""
    k = classes or int(torch.randint(2, 4, (), generator=rng))
    centres = 3 * torch.randn(k, 3, generator=rng) + (10 if split == "test" else 0)

    def points(count: int) -> Batch:
        y = torch.arange(count) % k
        return {"x": centres[y] + 0.1 * torch.randn(count, 3, generator=rng), "y": y}

    return Episode(TARGETS[k], {"centres": centres}, points(12), points(rows or 8 * k))


def loss(run: Run, batch: Batch) -> Tensor:
    return functional.cross_entropy(run(batch["x"]), batch["y"])


def score(run: Run, batch: Batch) -> Tensor:
    return (run(batch["x"]).argmax(-1) == batch["y"]).float().mean()


TASK = FunctionTask(blobs, loss, score)


def test_a_zoo_of_a_task(tmp_path: Path) -> None:
    """In the order of the episodes, each with its condition, seed, scores; of several numbers of classes."""
    told: list[tuple[int, int]] = []
    found = build(
        TASK, 8, tmp_path / "zoo", steps=60, lr=0.05, test=2, progress=lambda done, total: told.append((done, total))
    )
    assert (found.networks, found.files) == (10, 2)
    assert told[-1] == (600, 600)
    assert told == sorted(told)
    assert any("expect copies" in text for text in found.warnings)
    zoo = Zoo.open(tmp_path / "zoo")
    assert [len(zoo.of(split)) for split in ("train", "validation", "test")] == [8, 0, 2]  # type: ignore[arg-type]
    assert zoo.site.condition == {"centres": (0, 3)}
    assert zoo.site.spec is not None
    assert zoo.site.spec.graph is not None
    for number, member in enumerate(zoo.members):
        assert member.entry.episode == sample_seed(0, number)
        episode = episode_of(TASK, member)
        assert torch.equal(episode.condition["centres"], member.condition["centres"])
        assert float(member.condition["centres"].mean()) > 5 or member.entry.split == "train"
        weights = zoo.load(member)
        run = lambda x, target=episode.target, held=weights: target.call(held, x)  # noqa: E731
        assert member.entry.metrics["score"] == float(score(run, episode.query)) > 0.6
        assert member.entry.metrics["loss"] == pytest.approx(float(loss(run, episode.query)), rel=1e-5)
        assert (member.entry.step, member.entry.seed, member.entry.run) == (60, 0, f"0-{number}")
    assert 0.9 < found.metrics["score"] == pytest.approx(sum(m.entry.metrics["score"] for m in zoo.members) / 10)
    assert not inspect(zoo).changed


def test_side_by_side_is_one_after_the_other(tmp_path: Path) -> None:
    """Each network has what Adam alone would give it, on rows that depend on its own seed alone."""
    task = FunctionTask(lambda rng, split: blobs(rng, split, 2, rows=10), loss, score)
    build(task, 3, tmp_path / "few", steps=20, lr=0.02, batch_size=4, init="independent", seed=5)
    build(task, 5, tmp_path / "more", steps=20, lr=0.02, batch_size=4, init="independent", seed=5)
    few, more = Zoo.open(tmp_path / "few"), Zoo.open(tmp_path / "more")
    for a, b in zip(few.members, more.members, strict=False):
        for name, tensor in few.load(a).items():
            torch.testing.assert_close(tensor, more.load(b)[name])
    build(task, 3, tmp_path / "start", steps=0, init="independent", seed=5)
    member = few.members[1]
    start = Zoo.open(tmp_path / "start")
    weights = {name: x.clone().requires_grad_(True) for name, x in start.load(start.members[1]).items()}
    episode = episode_of(task, member)
    rows = Rows([episode.support], [sample_seed(member.entry.episode or 0, 2)])
    adam = torch.optim.Adam(weights.values())
    for step in range(20):
        adam.param_groups[0]["lr"] = 0.02 * (1 + math.cos(math.pi * step / 20)) / 2
        batch = {name: x[0] for name, x in rows.drawn(4).items()}
        adam.zero_grad()
        loss(lambda x: episode.target.call(weights, x), batch).backward()
        adam.step()
    for name, tensor in few.load(member).items():
        torch.testing.assert_close(tensor, weights[name].detach(), rtol=1e-4, atol=1e-5)


def test_rows_are_a_networks_own() -> None:
    """Those beyond the end of a short batch are never drawn; what all have in common is held once."""
    common = torch.arange(4.0)
    batches = [{"x": torch.full((n, 2), float(n)), "row": torch.arange(n)} for n in (3, 7)]
    drawn = [Rows(batches, [1, 2]).drawn(50) for _ in range(2)]
    assert drawn[0]["x"].shape == (2, 50, 2)
    assert [x.unique().tolist() for x in drawn[0]["x"]] == [[3.0], [7.0]]
    assert [x.unique().tolist() for x in drawn[0]["row"]] == [[0, 1, 2], [0, 1, 2, 3, 4, 5, 6]]
    assert torch.equal(drawn[0]["row"], drawn[1]["row"])
    shared = Rows([{"x": common}, {"x": common}], [1, 2])
    assert not shared._own
    assert len(shared.drawn(5)["x"]) == 2
    with pytest.raises(InvalidInput, match="no rows"):
        Rows([{"x": torch.zeros(0, 2)}], [0])
    with pytest.raises(InvalidInput, match="differ in shape"):
        Rows([{"x": torch.zeros(2, 2)}, {"x": torch.zeros(2, 3)}], [0, 1])


def test_targets_of_equal_shapes_are_not_mixed(tmp_path: Path) -> None:
    """They may compute something else."""
    other = Target.of(nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 2)))

    def draw(rng: torch.Generator, split: str) -> Episode:
        episode = blobs(rng, split, 2)
        target = other if bool(torch.rand((), generator=rng) < 0.5) else TARGETS[2]
        return Episode(target, {}, episode.query, episode.support)

    task = FunctionTask(draw, loss, score)
    assert build(task, 6, tmp_path / "zoo", steps=3).files == 2
    zoo = Zoo.open(tmp_path / "zoo")
    for member in zoo.members:
        episode, held = episode_of(task, member), zoo.load(member)
        found = float(loss(lambda x, to=episode.target, own=held: to.call(own, x), episode.query))
        assert member.entry.metrics["loss"] == pytest.approx(found, rel=1e-5)


def test_the_same_bytes_again(tmp_path: Path) -> None:
    for name in "ab":
        torch.manual_seed(ord(name))
        build(TASK, 4, tmp_path / name, steps=5)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_one_initialisation_or_many(tmp_path: Path) -> None:
    for init in ("shared", "independent"):
        build(TASK, 12, tmp_path / init, steps=0, init=init)
        zoo = Zoo.open(tmp_path / init)
        firsts = {zoo.load(member)["0.weight"].sum().item() for member in zoo.members}
        assert len(firsts) == (1 if init == "shared" else 12)
        assert len({member.entry.seed for member in zoo.members}) == len(firsts)


def test_tasks_are_told_apart_by_name_or_by_data(tmp_path: Path) -> None:
    """Networks for the same examples are for one task, whatever is drawn besides."""
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    build(Classification(TARGETS[2], x, y, x, y), 3, tmp_path / "same", steps=1, init="independent")
    assert len({m.entry.task for m in Zoo.open(tmp_path / "same").members}) == 1
    build(TASK, 3, tmp_path / "others", steps=1)
    assert len({m.entry.task for m in Zoo.open(tmp_path / "others").members}) == 3

    def named(rng: torch.Generator, split: str) -> Episode:
        episode = blobs(rng, split, 2)
        return Episode(episode.target, {}, episode.query, episode.support, "pair")

    build(FunctionTask(named, loss, score), 3, tmp_path / "named", steps=1)
    assert {m.entry.task for m in Zoo.open(tmp_path / "named").members} == {"pair"}


def test_what_cannot_be_built_leaves_nothing(tmp_path: Path) -> None:
    def without(rng: torch.Generator, split: str) -> Episode:
        episode = blobs(rng, split)
        return Episode(episode.target, {}, episode.query)

    def nan(run: Run, batch: Batch) -> Tensor:
        return loss(run, batch) * math.inf

    cases: list[tuple[FunctionTask, dict[str, object], type[Exception], str]] = [
        (FunctionTask(without, loss, score), {}, InvalidInput, "episode 0 of the task has no support"),
        (FunctionTask(blobs, nan, score), {}, Failed, "left the finite numbers"),
        (FunctionTask(blobs, lambda run, batch: run(batch["x"]), score), {}, Failed, "the task's loss is a tensor"),
        (FunctionTask(blobs, lambda run, batch: torch.ones(()), score), {}, Failed, "does not depend on the weights"),
        (FunctionTask(blobs, loss, lambda run, batch: run(batch["z"])), {}, Failed, "the task's score raised KeyError"),
        (TASK, {"steps": -1}, InvalidInput, "steps: "),
        (TASK, {"init": "other"}, InvalidInput, "init: "),
        (TASK, {"lr": math.nan}, InvalidInput, "lr: "),
        (TASK, {"colour": 1}, InvalidInput, "there is no parameter colour"),
    ]
    for task, options, kind, told in cases:
        with pytest.raises(kind, match=told):
            build(task, 2, tmp_path / "zoo", **{"steps": 2, **options})
    with pytest.raises(InvalidInput, match="a zoo of 0 networks"):
        build(TASK, 0, tmp_path / "zoo")
    assert not list(tmp_path.iterdir())
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "mine").write_text("kept")
    with pytest.raises(Refused, match="already exists"):
        build(TASK, 2, tmp_path / "zoo", steps=1)
    with pytest.raises(Refused, match="holds no model"):
        build(TASK, 2, tmp_path / "zoo", steps=1, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


def test_an_episode_that_is_not_known(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidInput, match=r"a\.safetensors: its episode is not known"):
        episode_of(TASK, Zoo.open(tmp_path).members[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite(tmp_path: Path, value: float) -> None:
    task = FunctionTask(blobs, loss, lambda run, batch: score(run, batch) + value)
    with pytest.raises(Failed, match=f"the task's score of network 0 on its query is {value}"):
        build(task, 2, tmp_path / "zoo", steps=1)
    assert not any(tmp_path.iterdir())


def test_networks_that_are_asked_for_by_different_things(tmp_path: Path) -> None:
    names = iter("ab" * 9)

    def draw(rng: torch.Generator, split: str) -> Episode:
        found = blobs(rng, split, classes=2)
        return replace(found, condition={next(names): found.condition["centres"]})

    with pytest.raises(InvalidInput, match="asked for by a, and by b"):
        build(FunctionTask(draw, loss, score), 4, tmp_path / "zoo", steps=1)
    assert not any(tmp_path.iterdir())
