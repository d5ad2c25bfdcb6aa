"""What the engine finds for a survey is exact: against a sort, a sum and the ends of the whole data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from paramsmith import order
from paramsmith.blocks import CUT, sample
from paramsmith.errors import InvalidInput
from paramsmith.memory import StateDict
from paramsmith.merge import merge_state_dicts
from paramsmith.merge import survey as survey_module
from paramsmith.merge.api import RunOptions
from paramsmith.merge.job import prepare
from paramsmith.merge.passes import Runner
from paramsmith.merge.setup import prepare_setup
from paramsmith.merge.survey import run_survey
from paramsmith.recipe import ModelEntry, Recipe
from paramsmith.surveys import Extremes, OrderStatistic, Scope, Sum, Survey

SIZES = {"a": (90_001,), "b": (300, 301), "c": (5,), "d": ()}
COUNT = 90_001 + 90_300 + 6
Models = Sequence[Mapping[str, Tensor]]


def surveyed(models: Models, survey: Survey, block: int = CUT, threads: int = 2) -> dict[str, np.ndarray]:
    """The survey's values, by tensor or under the empty name."""
    entries = tuple(ModelEntry(model=f"model {i + 1}") for i in range(len(models)))
    held = [StateDict(m, e.model) for m, e in zip(models, entries, strict=True)]
    job = prepare(Recipe(method="linear", models=entries), held, None)
    job = replace(job, method=replace(job.method, surveys=lambda options: [survey]))
    setup, _ = prepare_setup(job, RunOptions(memory=1 << 40, threads=threads, compile="never", block=block))
    runner = Runner(job, setup, lambda nbytes: None)
    return {key: value.numpy() for key, value in run_survey(survey, job.merged, runner).items()}


def statistic(ranks: Callable[[int], Sequence[int]], scope: Scope, models: int = 2) -> OrderStatistic:
    return OrderStatistic("s", lambda block, seen, p: block, lambda count, p: [list(ranks(count))] * models, scope)


def every_rank(count: int) -> list[int]:
    return [0, count // 7, count // 2, max(0, count - 2), count - 1]


def data(kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    rng = np.random.default_rng(11)
    made = {
        "normal": lambda: rng.normal(size=COUNT),
        "heavy_ties": lambda: rng.integers(-2, 3, COUNT) / 4,
        "zeros": lambda: np.zeros(COUNT),
        "signed_zeros": lambda: np.where(rng.random(COUNT) < 0.5, -0.0, 0.0),
        "constant": lambda: np.full(COUNT, 2.5),
        "infinities": lambda: np.where(rng.random(COUNT) < 0.1, rng.choice([-math.inf, math.inf], COUNT), 1.0),
        "sorted": lambda: np.sort(rng.normal(size=COUNT)),
        "one_loud_tensor": lambda: np.concatenate([np.zeros(90_001), rng.normal(size=COUNT - 90_001)]),
    }
    parts = np.split(made[kind](), np.cumsum([math.prod(s) for s in SIZES.values()])[:-1])
    return {n: torch.tensor(p).view(s).to(dtype) for (n, s), p in zip(SIZES.items(), parts, strict=True)}


KINDS = ["normal", "heavy_ties", "zeros", "signed_zeros", "constant", "infinities", "sorted", "one_loud_tensor"]


def flat(model: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([t.double().numpy().ravel() for t in model.values()])


def check(models: Models, found: Mapping[str, np.ndarray], ranks: Callable[[int], Sequence[int]], scope: Scope) -> None:
    """Against a sort of each model, or of each of its tensors."""
    names = [""] if scope == "model" else list(models[0])
    assert set(found) == set(names)
    for name in names:
        for row, model in enumerate(models):
            line = np.sort(flat({name: model[name]} if name else model))
            np.testing.assert_array_equal(found[name][row], line[list(ranks(len(line)))])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_order_statistics_are_those_of_a_sort(kind: str, dtype: torch.dtype, scope: Scope) -> None:
    models = [data(kind, dtype), data("normal", dtype)]
    check(models, surveyed(models, statistic(every_rank, scope)), every_rank, scope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("kind", ["normal", "heavy_ties", "infinities", "signed_zeros"])
def test_a_misled_sample_falls_back_to_the_radix_search(
    kind: str, dtype: torch.dtype, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brackets that hold nothing: the value is found all the same, by reading again."""
    monkeypatch.setattr(survey_module, "bracket", lambda sample, rank, count: (1e30, 2e30))
    calls = counted(monkeypatch)
    models = [data(kind, dtype), data("normal", dtype)]
    check(models, surveyed(models, statistic(every_rank, scope)), every_rank, scope)
    assert len(calls) == (1 if scope == "model" else len(SIZES))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that grows with every radix search."""
    calls: list[object] = []

    class Counted(order.Digits):
        def __init__(self, *arguments: object) -> None:
            calls.append(arguments)
            super().__init__(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(survey_module, "Digits", Counted)
    return calls


def test_data_that_hides_from_the_sample_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything large lies where the sample does not look: a true adversary, with nothing patched but the counter."""
    calls = counted(monkeypatch)
    count = 3_000_000
    tasks = [StateDict({"w": torch.zeros(count)}, "m").tensors["w"]]
    looked = np.zeros(count, dtype=bool)
    for block in sample(tasks, order.sample_size(count, 1 << 22), CUT):
        for span in block.spans:
            looked[span.start : span.start + span.count] = True
    assert 0.01 < looked.mean() < 0.1
    hidden = np.random.default_rng(0).normal(size=count).astype(np.float32)
    models = [{"w": torch.tensor(np.where(looked, np.float32(9), hidden))}]
    ranks = [count // 2]
    found = surveyed(models, statistic(lambda n: ranks, "model", 1))
    np.testing.assert_array_equal(found[""][0], np.sort(models[0]["w"].numpy())[ranks])
    assert calls


def test_brackets_hold_for_honest_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass suffices: else every survey would read the model three times."""
    calls = counted(monkeypatch)
    for kind in KINDS:
        surveyed([data(kind, torch.bfloat16)] * 1, statistic(every_rank, "model", 1))
    assert not calls


def test_too_many_distinct_values_fall_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LIMIT", 1000)
    monkeypatch.setattr(survey_module, "bracket", lambda sample, rank, count: (-math.inf, math.inf))
    calls = counted(monkeypatch)
    models = [data("normal", torch.float32), data("heavy_ties", torch.float32)]
    check(models, surveyed(models, statistic(every_rank, "model")), every_rank, "model")
    assert calls


@pytest.mark.parametrize("forced", [False, True])
def test_nan_counts_as_the_least(forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if forced:
        monkeypatch.setattr(survey_module, "bracket", lambda sample, rank, count: (1e30, 2e30))
    model = data("normal", torch.float32)
    model["a"][::1000] = math.nan
    line = flat(model)
    ordered = np.sort(np.where(np.isnan(line), -math.inf, line))
    ranks = [0, 90, 91, COUNT // 2, COUNT - 1]
    found = surveyed([model], statistic(lambda n: ranks, "model", 1))
    np.testing.assert_array_equal(found[""][0], ordered[ranks])


def test_rows_may_want_different_ranks() -> None:
    models = [data("normal", torch.float32), data("sorted", torch.float32)]
    ranks = [[5, 100], [COUNT - 1, 7]]
    found = surveyed(models, OrderStatistic("s", lambda block, seen, p: block, lambda count, p: ranks))[""]
    wanted = [np.sort(flat(m))[r] for m, r in zip(models, ranks, strict=True)]
    np.testing.assert_array_equal(found, np.stack(wanted))


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_sums_are_exact_to_float64_and_do_not_depend_on_blocks(scope: Scope) -> None:
    models = [data("normal", torch.float32), data("sorted", torch.float32)]
    survey = Sum("s", lambda block, seen, p: block.double(), lambda total, p: total, scope)
    ways = [surveyed(models, survey, block, threads) for block in (CUT, 3 * CUT) for threads in (1, 4)]
    for found in ways:
        for name, value in found.items():
            wanted = [math.fsum(flat({name: m[name]} if name else m)) for m in models]
            np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-9)
            assert value.tobytes() == ways[0][name].tobytes()


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("kind", ["normal", "infinities", "constant"])
def test_extremes_are_the_ends(kind: str, scope: Scope) -> None:
    models = [data(kind, torch.float32), data("normal", torch.float32)]
    found = surveyed(models, Extremes("s", lambda block, seen, p: block, scope))
    for name, value in found.items():
        lines = [flat({name: m[name]} if name else m) for m in models]
        np.testing.assert_array_equal(value, [[line.min(), line.max()] for line in lines])


def test_extremes_with_nan_do_not_depend_on_blocks() -> None:
    model = data("normal", torch.float32)
    model["a"][10] = math.nan
    model["a"][11] = 50.0
    survey = Extremes("s", lambda block, seen, p: block)
    found = [surveyed([model], survey, block)[""] for block in (CUT, 3 * CUT)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0][0], [np.nanmin(flat(model)), 50.0])


MIXED = {"layers.0.w": (10,), "layers.1.w": (10,)}


@pytest.mark.parametrize("method", ["ties", "pcb"])
def test_what_a_survey_of_the_whole_model_uses_cannot_vary_by_tensor(method: str) -> None:
    base = {name: torch.zeros(shape) for name, shape in MIXED.items()}
    models = [{name: torch.arange(1.0, 11.0) for name in MIXED}]
    density = [{"value": 0.1, "filter": "layers.0"}, {"value": 0.5}]
    if method == "ties":
        with pytest.raises(InvalidInput, match="density cannot vary from tensor to tensor"):
            merge_state_dicts(models, base=base, method="ties", density=density)
        found = merge_state_dicts(models, base=base, method="ties", density=density, flavour="mergekit")
        assert [int((t != 0).sum()) for t in found.values()] == [1, 5]
    # what no survey uses may vary
    gradient = {"gradient": [0, 1]}
    more = {"ratio": 0.5} if method == "pcb" else {}
    found = merge_state_dicts(models, base=base, method=method, **more, **{"lambda": gradient})
    assert [bool(t.any()) for t in found.values()] == [False, True]


def test_several_groups_share_one_statistic() -> None:
    """Tensors of different dtypes are read apart, and ranked together."""
    model = data("normal", torch.float32)
    model["b"] = model["b"].bfloat16()
    check([model], surveyed([model], statistic(every_rank, "model", 1)), every_rank, "model")
