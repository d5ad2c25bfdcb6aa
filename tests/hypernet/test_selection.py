"""Selectors: what they keep, what they may see, and how layers are ranked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.selection.drawing import draws
from paramsmith.hypernet.selection.judging import judged
from paramsmith.hypernet.selection.roles import Data, Shown, Weights, score_of
from paramsmith.hypernet.selection.selectors import BestOf, Bootstrap, GreedyLayers, MeanOf
from paramsmith.hypernet.selection.spectrum import layers_of, ranked, signal_to_noise, top
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.training.tasks import Classification, FunctionTask
from tests.hypernet.stubparts import small_spec

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = TargetSpec((Slot("w", (3, 4), "F32", "head", 4, class_axis=0), Slot("b", (3,), "F32", "bias", 4, class_axis=0)))
DATA = Data({}, {"x": torch.zeros(2, 4)}, {"x": torch.ones(2, 4)})


def number(values: dict[int, float]) -> Any:
    """Candidates that are their score."""
    return lambda i, names=None: {"w": torch.full((3, 4), values[i]), "b": torch.zeros(3)}


def first(weights: Weights, batch: Any) -> float:
    return float(weights["w"].flatten()[0])


class TestRoles:
    def test_the_report_cannot_be_reached_from_what_a_selector_is_given(self) -> None:
        shown = DATA.shown()
        assert not hasattr(shown, "__dict__")
        held = [getattr(shown, name) for name in Shown.__slots__]
        assert all(value is not DATA.report for value in held)
        assert not any(torch.equal(t, DATA.report["x"]) for value in held for t in value.values())

    @pytest.mark.parametrize("selector", [BestOf(k=1), MeanOf(k=1), GreedyLayers(k=1), Bootstrap(k=2, keep=2)])
    def test_a_selector_refuses_all_of_the_data(self, selector: Any) -> None:
        extra: dict[str, tuple[Any, ...]] = {"MeanOf": (HEAD,), "GreedyLayers": ({}, ()), "Bootstrap": (None,)}
        with pytest.raises(TypeError, match="shown"):
            selector.select(number({0: 1.0}), DATA, first, *extra.get(type(selector).__name__, ()))

    def test_the_score_sees_the_selection_alone(self) -> None:
        seen: list[Tensor] = []

        def score(weights: Weights, batch: Any) -> float:
            seen.append(batch["x"])
            return first(weights, batch)

        BestOf(k=2).select(number({0: 1.0, 1: 2.0}), DATA.shown(), score)
        assert len(seen) == 2
        assert all(torch.equal(x, DATA.selection["x"]) for x in seen)

    def test_a_row_in_both_is_refused(self) -> None:
        x, y = torch.arange(8.0).view(4, 2), torch.tensor([0, 1, 0, 1])
        Data({}, {"x": x[:2], "y": y[:2]}, {"x": x[2:], "y": y[2:]})
        with pytest.raises(InvalidInput, match="1 of the rows"):
            Data({}, {"x": x[:3], "y": y[:3]}, {"x": x[2:], "y": y[2:]})

    def test_no_rows(self) -> None:
        with pytest.raises(InvalidInput, match="selection has no rows"):
            Data({}, {}, {"x": torch.zeros(1)})
        with pytest.raises(InvalidInput, match="report has 1 and 2 rows"):
            Data({}, {"x": torch.zeros(1)}, {"x": torch.zeros(1), "y": torch.zeros(2)})

    def test_of_an_episode_with_the_score_of_its_task(self) -> None:
        target = Target.of(torch.nn.Linear(4, 3), classes=3)
        x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
        task = Classification(target, x[:6], y[:6], x[6:], y[6:])
        episode = task.episode(torch.Generator(), "test")
        assert isinstance(episode, Episode)
        data = Data.of_episode(episode)
        wrong = {"weight": torch.zeros(3, 4), "bias": torch.tensor([1.0, 0.0, 0.0])}
        assert score_of(task, target)(wrong, data.shown().selection) == pytest.approx(1 / 3)


class TestBestOf:
    def test_keeps_the_best_and_tells_all(self) -> None:
        found = BestOf(k=4).select(number({0: 0.5, 1: 3.0, 2: math.nan, 3: 3.0}), DATA.shown(), first)
        assert found.kept == 1
        assert found.weights["w"][0, 0] == 3
        assert found.scores[:2] == (0.5, 3.0)
        assert math.isnan(found.scores[2])
        told = found.record(rows=2)
        assert (told["selector"], told["k"], told["kept"], told["rank"], told["rows"]) == ("best_of", 4, 1, 1, 2)
        assert told["steps"] == [{"first": 0, "scores": [0.5, 3.0, None, 3.0]}]

    def test_none(self) -> None:
        with pytest.raises(Failed, match="none of 2 scores"):
            BestOf(k=2).select(number({0: math.nan, 1: math.nan}), DATA.shown(), first)

    def test_is_judged_beside_one_sample_and_the_oracle(self) -> None:
        draw = number({0: 1.0, 1: 3.0, 2: 2.0})
        found = BestOf(k=3).select(draw, DATA.shown(), first)
        told = judged(found, draw, DATA, lambda weights, batch: -first(weights, batch))
        assert (told.selected, told.mean, told.oracle, told.k) == (-3, -2, -1, 3)
        assert told.std == pytest.approx((2 / 3) ** 0.5)


class TestMeanOf:
    def test_mean(self) -> None:
        found = MeanOf(k=3).select(number({0: 1.0, 1: 2.0, 2: 6.0}), DATA.shown(), first, HEAD)
        assert (found.weights["w"][0, 0], found.score, found.kept) == (3, 3, None)
        assert found.scores == (1, 2, 6)
        assert found.weights["w"].dtype == torch.float32

    def test_hidden_layers_are_refused_unless_they_are_aligned(self) -> None:
        with pytest.raises(InvalidInput, match="hidden layers"):
            MeanOf(k=2).select(number({0: 1.0, 1: 2.0}), DATA.shown(), first, small_spec())
        MeanOf(k=2, aligned=True).select(number({0: 1.0, 1: 2.0}), DATA.shown(), first, small_spec())


class TestGreedyLayers:
    def test_never_worse_than_what_it_begins_with(self) -> None:
        begin = {"a": torch.tensor(1.0), "b": torch.tensor(1.0), "c": torch.tensor(1.0)}
        offered = {0: 0.0, 1: 2.0, 2: 0.5, 3: 0.9}

        def draw(number: int, names: Any = None) -> Weights:
            return {name: torch.tensor(offered[number]) for name in names}

        def total(weights: Weights, batch: Any) -> float:
            return float(sum(weights.values(), torch.tensor(0.0)))

        found = GreedyLayers(k=2).select(draw, DATA.shown(), total, begin, [["a"], ["b", "c"]])
        assert {name: float(value) for name, value in found.weights.items()} == {"a": 2, "b": 1, "c": 1}
        assert [step.kept for step in found.steps] == [1, None]
        assert [step.scores for step in found.steps] == [(2, 4), (3, pytest.approx(3.8))]
        assert (found.before, found.score) == (3, 4)
        assert found.record(2)["steps"][1] == {  # type: ignore[index]
            "first": 2,
            "scores": [3, pytest.approx(3.8)],
            "tensors": ["b", "c"],
            "kept": None,
        }
        assert begin["a"] == 1

    def test_layers_that_are_not_there(self) -> None:
        for order in ([], [[]], [["q"]]):
            with pytest.raises(InvalidInput):
                GreedyLayers(k=1).select(number({}), DATA.shown(), first, {"w": torch.ones(1)}, order)


class TestBootstrap:
    def test_the_survivors_are_the_anchors(self) -> None:
        seen = []

        def around(anchors: list[Weights], which: int) -> Any:
            seen.append((which, [first(anchor, None) for anchor in anchors]))
            return number({0: 10.0, 1: 4.5, 2: 0.0, 3: 0.0})

        draw = number({0: 1.0, 1: 5.0, 2: 4.0, 3: 2.0})
        found = Bootstrap(k=4, keep=2, rounds=2).select(draw, DATA.shown(), first, around)
        assert seen == [(1, [5.0, 4.0])]
        assert found.score == 10
        assert len(found.scores) == 8

    def test_more_than_there_are(self) -> None:
        with pytest.raises(InvalidInput, match="cannot be kept"):
            Bootstrap(k=2, keep=3).select(number({}), DATA.shown(), first, lambda a, i: number({}))


@pytest.mark.usefixtures("stub_parts")
def test_candidates_are_the_samples_of_the_generator() -> None:
    generator = Generator.build("stub", spec=small_spec(), fixed=True)
    spec = generator.target()
    draw = draws(generator.model, {}, spec, seed=3)
    whole = generator.sample(n=3, seed=3)
    for i in (2, 0):
        assert all(torch.equal(values, whole[i][name]) for name, values in draw(i).items())
    part = draw(1, {"layer.1.bias"})
    assert list(part) == ["layer.1.bias"]
    assert torch.equal(part["layer.1.bias"], whole[1]["layer.1.bias"])


class TestSpectrum:
    def test_by_hand(self) -> None:
        # S = 9 5 4 3 1: quartiles 3 and 5, edge 2/1.349 (1 + sqrt(5/7)) = 2.7356
        weight = torch.zeros(7, 5)
        weight[range(5), range(5)] = torch.tensor([3.0, 9.0, 1.0, 5.0, 4.0])
        assert signal_to_noise(weight) == pytest.approx(21 / 1 / 9)
        assert signal_to_noise(weight.T.reshape(5, 7, 1, 1)) == pytest.approx(21 / 9)
        # twice as large: half the ratio, as it is over the largest
        assert signal_to_noise(2 * weight) == pytest.approx(21 / 18)

    def test_nothing_to_rank(self) -> None:
        assert signal_to_noise(torch.zeros(3, 3)) == 0
        for wrong in (torch.ones(3), torch.zeros(0, 2), torch.tensor([[math.nan]])):
            with pytest.raises(InvalidInput):
                signal_to_noise(wrong)

    def test_ranks_within_a_type(self) -> None:
        spec = small_spec()
        weights = {slot.name: torch.zeros(slot.shape) for slot in spec.slots}
        weights["layer.0.weight"] = torch.diag(torch.tensor([9.0, 1, 1, 1, 0.9, 0.8]))
        weights["layer.1.weight"] = torch.diag(torch.tensor([9.0, 4, 3, 2, 1, 0.5]))
        ranking = ranked(weights, spec)
        assert [name for name, _ in ranking] == ["layer.0.weight", "layer.1.weight"]
        assert top(ranking, 0.5) == ("layer.0.weight",)
        assert layers_of(spec, top(ranking)) == (("layer.0.weight", "layer.0.bias"),)
        with pytest.raises(InvalidInput):
            top(ranking, 0)


@pytest.mark.parametrize("problem", [KeyError("y"), SystemExit(7), RecursionError("deep")])
def test_a_score_that_raises_is_told_of(problem: BaseException) -> None:
    def judge(run: Any, batch: Any) -> Tensor:
        raise problem

    target = Target.of(torch.nn.Linear(4, 3), torch.zeros(1, 4))
    score = score_of(FunctionTask(lambda rng, split: Episode(target, {}, {}), judge, judge), target)
    with pytest.raises(Failed, match=f"the task's score raised {type(problem).__name__}"):
        score({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, {"x": torch.zeros(1, 4)})
