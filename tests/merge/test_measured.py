"""Methods that go with statistics: against reference values, and held against what does not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput
from paramsmith.gram import regmean_solve
from paramsmith.merge import merge, merge_state_dicts
from paramsmith.statistics import About, weights_digest
from tests.merge.folders import Done
from tests.merge.folders import merge as command
from tests.merge.test_oracles import cases, oracle

FISHER = oracle("fisher")
EDGES = FISHER["edge_cases"]


def tensors(plain: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in plain.items()}


@pytest.mark.parametrize("case", FISHER["merge_cases"], ids=range(len(FISHER["merge_cases"])))
def test_fisher_merges_as_its_authors_do(case: dict[str, Any]) -> None:
    names = list(case["merged"])
    models = [{n: t for n, t in tensors(FISHER["models"][m]).items() if n in names} for m in "ab"]
    key = "exact_expectation_over_model_predictive"
    measured = [tensors(FISHER["estimators"][m][key]) for m in "ab"]
    if not case["fishers_used"]:
        merged = merge_state_dicts(models, method="linear", weight=case["coefficients"])
    else:
        merged = merge_state_dicts(
            models,
            method="fisher",
            statistics=measured,
            weight=case["coefficients"],
            normalize=case["normalize_fishers"],
            favor_target=case["favor_target_model"],
            floor=case["fisher_floor"],
        )
    for name, wanted in tensors(case["merged"]).items():
        torch.testing.assert_close(merged[name], wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", EDGES["cases"], ids=range(len(EDGES["cases"])))
def test_fisher_where_information_is_zero(case: dict[str, Any]) -> None:
    given = {name: torch.tensor(values) for name, values in EDGES["inputs"].items()}
    merged = merge_state_dicts(
        [{"w": given["theta0"]}, {"w": given["theta1"]}],
        method="fisher",
        statistics=[{"w": given["F0"]}, {"w": given["F1"]}],
        weight=case["coefficients"],
        normalize=case["normalize_fishers"],
        favor_target=case["favor_target_model"],
    )
    torch.testing.assert_close(merged["w"], torch.tensor(case["merged"]), atol=2e-6, rtol=1e-6)


def test_a_tensor_without_a_fisher_is_averaged() -> None:
    models = [
        {"w": torch.zeros(2), "running_mean": torch.zeros(1)},
        {"w": torch.ones(2), "running_mean": torch.ones(1)},
    ]
    merged = merge_state_dicts(models, method="fisher", statistics=[{"w": torch.ones(2)}] * 2, weight=[1, 3])
    assert merged["running_mean"].tolist() == [0.75]
    torch.testing.assert_close(merged["w"], torch.full((2,), 0.75))


@pytest.mark.parametrize("case", cases("regmean"))
def test_regmean(case: dict[str, Any]) -> None:
    inputs, ratio = case["inputs"], case["params"]["reduce_non_diagonal_ratio"]
    models = [
        {"fc.weight": torch.tensor(w, dtype=torch.float64), "fc.bias": torch.tensor(b, dtype=torch.float64)}
        for w, b in zip(inputs["weights"], inputs["biases"], strict=True)
    ]
    # through the engine Grams are float32; the solve itself is held to the file's own tolerance
    grams = torch.stack([(x := torch.tensor(rows, dtype=torch.float64)).T @ x / len(x) for rows in inputs["inputs"]])
    weights = torch.stack([model["fc.weight"] for model in models])
    wanted = {name: torch.tensor(values, dtype=torch.float64) for name, values in case["output"].items()}
    torch.testing.assert_close(regmean_solve(weights, grams, ratio), wanted["fc.weight"], atol=case["atol"], rtol=0)
    measured = [{"fc.weight": gram} for gram in grams]
    merged = merge_state_dicts(models, method="regmean", statistics=measured, off_diagonal=ratio)
    torch.testing.assert_close(merged["fc.weight"], wanted["fc.weight"], atol=1e-4, rtol=0)
    torch.testing.assert_close(merged["fc.bias"], wanted["fc.bias"], atol=1e-7, rtol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.booleans())
def test_the_regression_mean_has_the_least_error_on_the_inputs(seed: int, groups: int, dead: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, groups * 2, 4, generator=generator, dtype=torch.float64)
    inputs = torch.randn(2, groups, 7, 4, generator=generator, dtype=torch.float64)
    if dead:
        inputs[..., 1] = 0.0

    def error(solution: Tensor) -> float:
        apart = (weights - solution).view(2, groups, 2, 4)
        return float((inputs @ apart.mT).square().sum())

    found = regmean_solve(weights, inputs.mT @ inputs)
    least = error(found)
    for _ in range(5):
        assert error(found + 1e-3 * torch.randn(found.shape, generator=generator, dtype=torch.float64)) >= least
    if dead:
        torch.testing.assert_close(found[:, 1], weights.mean(0)[:, 1])


def test_regmean_keeps_the_base_where_no_input_is() -> None:
    base, model = {"w": torch.tensor([[1.0, 2.0]])}, {"w": torch.tensor([[5.0, 2.0]])}
    other = {"w": torch.tensor([[3.0, 2.0]])}
    gram = {"w": torch.tensor([[2.0, 0.0], [0.0, 0.0]])}
    merged = merge_state_dicts([model, other], base=base, method="regmean", statistics=[gram, gram])
    assert merged["w"].tolist() == [[4.0, 2.0]]


class Pair:
    """Two models of one tensor and a bias in files, and statistics beside them."""

    def __init__(self, folder: Path, kind: str = "fisher") -> None:
        self.folder, self.kind = folder, kind
        self.models = [folder / f"{name}.safetensors" for name in "ab"]
        self.measured = [folder / f"{name}.{kind}.safetensors" for name in "ab"]
        for i, model in enumerate(self.models):
            drawn = torch.randn(3, 4, generator=torch.Generator().manual_seed(i))
            save_file({"w": drawn, "b": drawn[0].clone()}, model)
            self.measure(i)

    def measure(self, number: int, **changed: Any) -> None:
        held = {"w": torch.full((3, 4), number + 1.0)} if self.kind == "fisher" else {"w": torch.eye(4) * (number + 1)}
        with Checkpoint.open(self.models[number]) as model:
            about = {"estimator": "exact", "examples": 4, "model": weights_digest(model), "data": "d"}
        about = About(**{"kind": self.kind, **about, **changed.pop("about", {})})
        save_file({**held, **changed}, self.measured[number], metadata=about.metadata())

    def run(self, *words: object) -> Done:
        listed = [word for path in self.measured for word in ("--statistics", path)]
        return command(
            *self.models, "-o", self.folder / "out.safetensors", "--method", self.kind_method, *listed, *words
        )

    @property
    def kind_method(self) -> str:
        return {"fisher": "fisher", "gram": "regmean"}[self.kind]


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_command_recipe_and_python_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    pair = Pair(tmp_path, kind)
    assert pair.run().code == 0
    once = (tmp_path / "out.safetensors").read_bytes()
    again = tmp_path / "again.safetensors"
    merge(pair.models, again, method=pair.kind_method, statistics=pair.measured, threads=1)
    assert again.read_bytes() == once
    entries = "".join(f"- {{model: {m}, statistics: {s}}}\n" for m, s in zip(pair.models, pair.measured, strict=True))
    (tmp_path / "recipe.yaml").write_text(f"method: {pair.kind_method}\nmodels:\n{entries}")
    assert command(tmp_path / "recipe.yaml", "-o", tmp_path / "third.safetensors").code == 0
    assert (tmp_path / "third.safetensors").read_bytes() == once


HOSTILE = {
    "another model": ({"about": {"model": "0" * 64}}, "is about another model than"),
    "another kind": ({"about": {"kind": "moments"}}, "holds moments, not fisher"),
    "no header": ({"about": {"examples": 1}}, "is no statistics file"),
    "another shape": ({"w": torch.ones(4, 3)}, "tensor w has shape [4, 3], not [3, 4]"),
    "negative": ({"w": -torch.ones(3, 4)}, "tensor w holds negative values"),
    "nan": ({"w": torch.full((3, 4), math.nan)}, "tensor w holds NaN"),
    "zeros": ({"w": torch.zeros(3, 4)}, "all values are zero"),
    "doubles": ({"w": torch.ones(3, 4, dtype=torch.float64)}, "tensor w is F64, not F32"),
    "more tensors": ({"b": torch.ones(4)}, "has nothing about b, but"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_statistics_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    pair = Pair(tmp_path)
    changed, said = HOSTILE[name]
    pair.measure(1, **dict(changed))
    if name == "no header":
        save_file(load_file(pair.measured[1]), pair.measured[1])
    done = pair.run()
    assert done.code == 2
    assert said in done.err
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


@pytest.mark.parametrize(
    ("gram", "said"),
    [
        (-torch.eye(4), "tensor w has a negative diagonal"),
        (torch.eye(4).expand(2, 4, 4).contiguous(), "tensor w has shape [2, 4, 4], not [4, 4]"),  # 3 outputs
        (torch.eye(4).expand(3, 4, 4).contiguous(), "tensor w has shape [3, 4, 4], not [4, 4]"),  # the other has none
        (torch.zeros(0, 4, 4), "tensor w has shape [0, 4, 4], not [4, 4]"),
    ],
)
def test_grams_that_do_not_fit_are_refused(tmp_path: Path, gram: torch.Tensor, said: str) -> None:
    pair = Pair(tmp_path, "gram")
    pair.measure(1, w=gram, other=torch.eye(2))
    done = pair.run()
    assert done.code == 2
    assert said in done.err
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_the_number_of_statistics_is_that_of_the_models(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.measured.pop()
    done = pair.run()
    assert done.code == 2
    assert "1 statistics files for 2 models" in done.err
    with pytest.raises(InvalidInput, match="needs the fisher statistics of every model"):
        merge(pair.models, tmp_path / "out.safetensors", method="fisher")
    with pytest.raises(InvalidInput, match="linear uses no statistics"):
        merge(pair.models, tmp_path / "out.safetensors", statistics=[*pair.measured, *pair.measured])


def test_fishers_given_in_another_order_than_the_models_are_refused(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.measured.reverse()
    assert pair.run().code == 2


def test_the_plan_counts_the_grams(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "gram")
    plan = json.loads(pair.run("--dry-run", "--json").out)
    assert plan["bytes_read"] == 2 * (3 * 4 + 4) * 4 + 2 * 4 * 4 * 4


def test_convolutions_and_transposed_weights_use_their_grams() -> None:
    generator = torch.Generator().manual_seed(0)
    kernels = [{"w": torch.randn(4, 3, 2, 2, generator=generator)} for _ in range(2)]
    drawn = [torch.randn(30, 12, generator=generator) for _ in range(2)]
    grams = [{"w": x.T @ x / 30} for x in drawn]
    merged = merge_state_dicts(kernels, method="regmean", statistics=grams)["w"]
    flat = torch.stack([k["w"].flatten(1) for k in kernels])
    wanted = regmean_solve(flat, torch.stack([g["w"] for g in grams]), 0.9)
    torch.testing.assert_close(merged.flatten(1), wanted.float())
