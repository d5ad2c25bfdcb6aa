"""The ranked table: every score from tasks and checkpoints to rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import Failed, InvalidInput
from paramsmith.memory import StateDict
from paramsmith.merge.rank import (
    Source,
    complementarity,
    descend,
    features_of,
    logme,
    positive_flips,
    predictions_of,
    rank,
    select,
    sfda,
)
from paramsmith.merge.task import ModelTask

LABELS = torch.arange(36) % 3
INPUTS = torch.randn(36, 4, generator=torch.Generator().manual_seed(0)) + functional.one_hot(LABELS, 4)
GENERAL = 2 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1))


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def made(path: str, inputs: Tensor = INPUTS, labels: Tensor | None = LABELS) -> ModelTask:
    model = net(0)
    model.load_state_dict(load_file(path))
    batch = {"x": inputs} if labels is None else {"x": inputs, "labels": labels}
    return ModelTask(model, lambda: [batch], lambda model, batch: model(batch["x"]))


def general(path: str) -> ModelTask:
    return made(path, GENERAL, None)


def own(path: str) -> ModelTask:
    seed = int(Path(path).stem.removeprefix("model"))
    return made(path, INPUTS + 0.3 * seed, LABELS.roll(seed))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base and three models, of which the second and third have learned the task, one better than the other."""
    folder = tmp_path_factory.mktemp("models")
    names = []
    for seed in range(4):
        model = net(0)
        if seed == 1:
            model.load_state_dict({name: t + 0.05 * torch.randn_like(t) for name, t in model.state_dict().items()})
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range((0, 0, 40, 10)[seed]):
            functional.cross_entropy(model(INPUTS), LABELS).backward()
            optimizer.step()
            optimizer.zero_grad()
        names.append(str(folder / f"model{seed}.safetensors"))
        save_file(model.state_dict(), names[-1])
    return names


def scores(ranking: Any) -> dict[str, float]:
    return {row.model: row.score for row in ranking.rows}


@pytest.mark.parametrize(("by", "score"), [("logme", logme), ("sfda", sfda)])
def test_features_are_judged(paths: list[str], by: Any, score: Callable[[Tensor, Tensor], float]) -> None:
    models = paths[1:]
    found = rank(models, None, made, by=by)
    assert scores(found) == {path: score(*features_of(made(path))) for path in models}
    assert [row.model for row in found.rows] == [models[1], models[2], models[0]]  # as well as they know the task
    assert found.higher_is_better


@pytest.mark.parametrize("then", ["logme", "sfda"])
@pytest.mark.parametrize("rescaled", [True, False])
def test_ped_moves_features_first(paths: list[str], then: Any, rescaled: bool) -> None:
    judge = {"logme": logme, "sfda": sfda}[then]
    found = rank(paths, None, made, by="ped", then=then, general=general if rescaled else None)
    for row in found.rows:
        features, labels = features_of(made(row.model))
        reference = features_of(general(row.model), labelled=False)[0] if rescaled else None
        moved = descend(features, labels, reference)
        assert row.score == judge(moved.features, labels)
        assert row.details == {then: judge(features, labels), "steps": len(moved.changes)}
    assert found.by == f"ped+{then}"
    plain, other = (rank(paths, None, made, by="ped", then=then, general=g) for g in (None, general))
    assert scores(plain) != scores(other)


def test_classes_that_cannot_part_are_told(paths: list[str]) -> None:
    def same(path: str) -> ModelTask:
        return made(path, INPUTS[:1].repeat(6, 1), torch.arange(6) % 2)

    found = rank(paths[:1], None, same, by="ped")
    assert found.notes == (f"{paths[0]}: 1 pairs of classes have one mean, and did not part",)


def test_gradients_are_those_of_autograd(paths: list[str]) -> None:
    base, *models = paths
    found = rank(models, base, made)
    start, ends = load_file(base), [load_file(path) for path in models]
    task = made(base)
    for path, end in zip(models, ends, strict=True):
        factors = {name: torch.zeros((), requires_grad=True) for name in start}
        weights = {name: start[name] + factors[name] * (end[name] - start[name]) for name in start}
        outputs = torch.func.functional_call(task.model, weights, (INPUTS,))
        slopes = torch.autograd.grad(functional.cross_entropy(outputs, LABELS), list(factors.values()))
        row = next(row for row in found.rows if row.model == path)
        assert row.score == pytest.approx(sum(abs(float(s)) for s in slopes), rel=1e-4)
        assert row.details["slope"] == pytest.approx(sum(float(s) for s in slopes), rel=1e-4)
    assert found.rows[0].model == models[1]
    assert found.rows[0].details["slope"] < 0
    assert found.rows[-1].model == models[0]


def test_gradients_of_a_body_under_another_head(paths: list[str]) -> None:
    """A base without a head still ranks: what it lacks stays as the task has it."""
    base, *models = [
        StateDict({name: t for name, t in load_file(path).items() if name.startswith("0.")}, path) for path in paths
    ]
    task = made(paths[2])
    head = task.model.state_dict()["2.weight"].clone()
    found = rank(models, base, task)
    assert {row.model for row in found.rows} == set(paths[1:])
    assert all(row.score > 0 for row in found.rows)
    assert torch.equal(task.model.state_dict()["2.weight"], head)


def test_flips_with_and_without_a_base(paths: list[str]) -> None:
    base, *models = paths
    predicted = {path: predictions_of(made(path))[0] for path in paths}
    found = rank(models, base, made, by="flips")
    for row in found.rows:
        assert row.score == positive_flips(predicted[row.model], predicted[base], LABELS)
        assert row.details["negative_flips"] == positive_flips(predicted[base], predicted[row.model], LABELS)
        assert row.details["accuracy"] == pytest.approx(float((predicted[row.model] == LABELS).double().mean()))
    assert found.rows[0].model == models[1]
    assert found.names == (*models, base)
    wanted = complementarity([predicted[path] for path in found.names], LABELS)
    assert torch.equal(torch.tensor(found.pairs, dtype=torch.float64), wanted)
    alone = rank(models, None, made, by="flips")
    pairs = torch.tensor(alone.pairs, dtype=torch.float64)
    assert pairs.shape == (3, 3)
    for row in alone.rows:
        place = models.index(row.model)
        assert row.score == pytest.approx(float(pairs[place].sum()) / 2)
        assert row.details["negative_flips"] == pytest.approx(float(pairs[:, place].sum()) / 2)


def test_osborn_chooses_a_set(paths: list[str]) -> None:
    models = paths[1:]
    given = []
    for path in models:
        near, far = made(path), own(path)
        given.append(Source(features_of(far)[0], predictions_of(far)[0], features_of(near)[0], predictions_of(near)[0]))
    wanted = select(given, LABELS, 2)
    found = rank(models, None, made, by="osborn", sources=own, count=2)
    assert [row.model for row in found.rows] == [models[i] for i in wanted.chosen]
    assert [row.score for row in found.rows] == list(wanted.costs)
    assert found.rows[0].details == {"domain": wanted.domain[wanted.chosen[0]], "task": wanted.task[wanted.chosen[0]]}
    assert found.pairs == wanted.cohesion
    assert not found.higher_is_better
    assert len(rank(models, None, made, by="osborn", sources=own).rows) == 3


@pytest.mark.parametrize("by", ["gradient", "logme", "ped", "flips"])
def test_one_task_may_take_every_models_weights(paths: list[str], by: Any) -> None:
    base, *models = paths
    wanted = rank(models, base, made, by=by)
    shared = made(paths[2])
    assert rank(models, base, shared, by=by) == wanted
    assert rank(models, base, [shared], by=by) == wanted
    held = [StateDict(load_file(path), path) for path in paths]
    assert rank(held[1:], held[0], shared, by=by) == wanted


@pytest.mark.parametrize("by", ["sfda", "ped", "flips"])
def test_several_tasks_are_averaged(paths: list[str], by: Any) -> None:
    def first(path: str) -> ModelTask:
        return made(path, INPUTS[:18], LABELS[:18])

    def second(path: str) -> ModelTask:
        return made(path, INPUTS[12:], LABELS[12:])

    base, *models = paths
    both = scores(rank(models, base, lambda path: [first(path), second(path)], by=by))
    one, two = (scores(rank(models, base, make, by=by)) for make in (first, second))
    assert both == pytest.approx({path: (one[path] + two[path]) / 2 for path in models})


def test_equal_models_keep_their_order(paths: list[str]) -> None:
    copies = [StateDict(load_file(paths[2]), name) for name in ("c", "a", "b")]
    assert [row.model for row in rank(copies, None, made(paths[0]), by="logme").rows] == ["c", "a", "b"]


def test_the_limit_is_of_each_task(paths: list[str]) -> None:
    found = rank(paths, None, made, by="sfda", limit=12)
    assert scores(found) == {p: sfda(*features_of(made(p, INPUTS[:12], LABELS[:12]))) for p in paths}


def test_json_says_it_all(paths: list[str]) -> None:
    found = rank(paths[1:], paths[0], made, by="flips").to_json()
    told = json.loads(json.dumps(found, allow_nan=False))
    assert [row["rank"] for row in told["models"]] == [1, 2, 3]
    assert {"model", "score", "negative_flips", "accuracy", "rank"} == set(told["models"][0])
    assert told["by"] == "flips"
    assert told["higher_is_better"] is True
    assert len(told["pairs"]["values"]) == len(told["pairs"]["models"]) == 4
    assert told["notes"] == []
    assert "pairs" not in rank(paths[1:], None, made, by="logme").to_json()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "size"}, "nothing ranks by 'size'"),
        ({"by": "ped", "then": "nleep"}, "nothing ranks by 'nleep'"),
        ({"by": "gradient", "base": None}, "the gradient score needs the base"),
        ({"by": "osborn"}, "osborn needs each model's own data"),
        ({"by": "osborn", "sources": own, "count": 4}, "4 of 3 models are to be chosen"),
        ({"by": "logme", "models": []}, "there are no models to rank"),
        ({"by": "flips", "models": ["a"], "base": None}, "one model has nothing to be compared with"),
    ],
)
def test_what_cannot_be_ranked(paths: list[str], options: dict[str, Any], told: str) -> None:
    """Found before any task is made."""

    def never(path: str) -> ModelTask:
        raise AssertionError(path)

    models, base = options.pop("models", paths[1:]), options.pop("base", paths[0])
    with pytest.raises(InvalidInput, match=told):
        rank(models, base, never, **options)


def test_tasks_that_do_not_go_together(paths: list[str]) -> None:
    def other(path: str) -> ModelTask:
        return made(path, labels=LABELS.roll(1 if path == paths[2] else 0))

    for options in ({"by": "flips"}, {"by": "osborn", "sources": own}):
        with pytest.raises(InvalidInput, match=r"model2\.safetensors: its task has other labels than that of .*model1"):
            rank(paths[1:], None, other, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="there is no task"):
        rank(paths, None, lambda path: [], by="logme")
    with pytest.raises(InvalidInput, match=r"model0\.safetensors: all examples have one label"):
        rank(paths, None, lambda path: made(path, labels=torch.zeros_like(LABELS)), by="logme")
    with pytest.raises(InvalidInput, match="takes one task and one source"):
        rank(paths[1:], None, lambda path: [made(path)] * 2, by="osborn", sources=own)
    with pytest.raises(InvalidInput, match="has shape"):
        rank([StateDict({"0.weight": torch.zeros(2, 2)}, "other")], None, made(paths[0]), by="logme")


def test_a_model_that_is_broken(paths: list[str]) -> None:
    broken = StateDict({name: t * float("nan") for name, t in load_file(paths[1]).items()}, "broken")
    for by in ("logme", "flips"):
        with pytest.raises(Failed, match="broken: its outputs on the data hold NaN"):
            rank([broken, broken], None, made(paths[0]), by=by)  # type: ignore[arg-type]
