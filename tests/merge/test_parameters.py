"""Which value a parameter has at one tensor: model entry, then recipe, then default; and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from paramsmith.errors import InvalidInput
from paramsmith.memory import StateDict
from paramsmith.merge.job import Job, prepare
from paramsmith.recipe import ModelEntry, Recipe


def job(parameters: Mapping[str, object], *own: Mapping[str, object], method: str = "task_arithmetic") -> Job:
    """Two models of four layers and an embedding, as a merge sees them."""
    names = ["embed.w", *(f"layers.{i}.mlp.w" for i in range(4))]
    entries = tuple(ModelEntry(model=f"m{i}", parameters=dict(o)) for i, o in enumerate(own or ({}, {})))
    recipe = Recipe(method=method, models=entries, parameters=dict(parameters))
    held = [StateDict({n: torch.ones(1) for n in names}, f"m{i}") for i in range(len(entries))]
    return prepare(recipe, held, StateDict({n: torch.zeros(1) for n in names}, "base"))


def weights(made: Job) -> dict[str, tuple[float, ...]]:
    return {task.spec.name: dict(task.numbers)["weight"] for task in made.tasks}


def test_a_models_own_value_comes_before_the_recipes_and_that_before_the_default() -> None:
    assert set(weights(job({})).values()) == {(1.0, 1.0)}
    assert set(weights(job({"weight": 0.5})).values()) == {(0.5, 0.5)}
    assert set(weights(job({"weight": [0.5, 0.25]}, {}, {"weight": 2})).values()) == {(0.5, 2.0)}
    own = {"weight": {"value": 3, "filter": "layers[1:3]"}}
    found = weights(job({"weight": {"value": 0.5, "filter": "layers[2:]"}}, own, {}))
    # what no filter reaches falls through
    assert list(found.values()) == [(1, 1), (1, 1), (3, 1), (3, 0.5), (0.5, 0.5)]


def test_gradients_run_over_the_layers_of_the_model() -> None:
    found = weights(job({"weight": {"gradient": [0, 3]}}))
    assert [v[0] for v in found.values()] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"weight": [1, 2, 3]}, "weight has 3 values for 2 models"),
        ({"lambda": [1, 2]}, "lambda takes one value, not 2"),
        ({"wieght": 1}, "wieght"),
    ],
)
def test_wrong_counts_are_refused(parameters: Mapping[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        job(parameters)


@pytest.mark.parametrize("own", [{"wieght": 1}, {"weight": [1, 2]}, {"lambda": 0.5}, {"normalize": True}], ids=str)
def test_what_a_single_model_cannot_say_is_refused(own: Mapping[str, object]) -> None:
    """A value for other models, or for the whole merge, must not be dropped in silence."""
    with pytest.raises(InvalidInput, match=next(iter(own))):
        job({}, own, {})


def test_values_that_cannot_be_used_together_are_refused_with_the_tensors_name() -> None:
    with pytest.raises(InvalidInput, match="linear: the weights sum to zero"):
        job({"weight": [1, -1]}, method="linear")
    with pytest.raises(InvalidInput, match=r"linear at layers\.2\.mlp\.w: the weights sum to zero"):
        job({"weight": [{"value": [1, -1], "filter": "layers[2:3]"}, {"value": 1}]}, method="linear")
    with pytest.raises(InvalidInput, match="karcher: the weights of a mean must not be negative"):
        job({"weight": [1, -0.5]}, method="karcher")
