"""Every method against its formula (formulas.py) on random models full of ties, zeros and exact cancellations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from paramsmith.merge import merge_state_dicts
from tests.merge import formulas
from tests.merge.test_oracles import masked_dare

SHAPES = st.sampled_from([[(1,)], [(7,)], [(3, 4), (5,)], [(2, 3, 2), (), (4, 1)], [(1, 1), (30,), (8, 8)]])
SEEDS = st.integers(0, 2**32 - 1)
WEIGHTS = [1.0, 0.5, 2.0, 0.25, -0.5]  # exact in float32, so that sums cancel in it as they do on paper


class Case:
    """Models on a coarse grid over several tensors, and the same as whole vectors and tensor by tensor."""

    def __init__(self, seed: int, shapes: Sequence[tuple[int, ...]], models: int, coarse: bool = True) -> None:
        self.rng = np.random.default_rng(seed)
        self.shapes = list(shapes)
        self.sizes = [int(np.prod(s, dtype=int)) for s in shapes]
        count = sum(self.sizes)
        if coarse:
            self.deltas = self.rng.integers(-4, 5, (models, count)) / 4
        else:
            self.deltas = self.rng.normal(size=(models, count))
            self.deltas[:, self.rng.random(count) < 0.2] = 0.0
        self.base = self.rng.integers(-8, 9, count) / 8

    def pick(self, options: Sequence[float], models: int) -> list[float]:
        return [float(x) for x in self.rng.choice(options, models)]

    def state(self, vector: np.ndarray, dtype: torch.dtype) -> dict[str, Tensor]:
        parts = np.split(vector, np.cumsum(self.sizes)[:-1])
        return {
            f"layers.{i}.w": torch.tensor(part, dtype=dtype).reshape(shape)
            for i, (part, shape) in enumerate(zip(parts, self.shapes, strict=True))
        }

    def each(self) -> list[np.ndarray]:
        """The task vectors, tensor by tensor."""
        return np.split(self.deltas, np.cumsum(self.sizes)[:-1], axis=1)

    def engine(
        self, method: str, parameters: Mapping[str, object], *, based: bool = True, dtype: torch.dtype = torch.float32
    ) -> np.ndarray:
        """The merged update (or model) as one vector."""
        models = [self.state(d + (self.base if based else 0), dtype) for d in self.deltas]
        base = self.state(self.base, dtype) if based else None
        merged = merge_state_dicts(models, base=base, method=method, threads=1, **parameters)
        found = np.concatenate([merged[f"layers.{i}.w"].double().numpy().ravel() for i in range(len(self.sizes))])
        return found - (self.base if based else 0)


def close(found: np.ndarray, wanted: np.ndarray, atol: float = 2e-6) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=atol)


@given(SEEDS, SHAPES, st.integers(1, 5), st.booleans())
def test_linear(seed: int, shapes: list[tuple[int, ...]], models: int, normalize: bool) -> None:
    case = Case(seed, shapes, models)
    weight = case.pick([0.3, 1.0, 2.5], models)
    found = case.engine("linear", {"weight": weight, "normalize": normalize}, based=False)
    close(found, formulas.linear(case.deltas, weight, normalize))


@given(SEEDS, SHAPES, st.integers(1, 5), st.booleans())
def test_task_arithmetic(seed: int, shapes: list[tuple[int, ...]], models: int, normalize: bool) -> None:
    case = Case(seed, shapes, models)
    weight = case.pick(WEIGHTS, models)
    found = case.engine("task_arithmetic", {"weight": weight, "normalize": normalize, "lambda": 0.5})
    close(found, formulas.task_arithmetic(case.deltas, weight, 0.5, normalize), atol=1e-5)


@given(SEEDS, SHAPES, st.integers(1, 5), st.booleans(), st.sampled_from(["total", "frequency"]))
@settings(max_examples=60)
def test_ties_over_the_whole_model(
    seed: int, shapes: list[tuple[int, ...]], models: int, normalize: bool, majority: str
) -> None:
    case = Case(seed, shapes, models)
    weight, density = case.pick(WEIGHTS, models), case.pick([0.1, 0.2, 0.5, 0.9, 1.0], models)
    found = case.engine(
        "ties",
        {"weight": weight, "density": density, "normalize": normalize, "lambda": 0.5, "majority_sign_method": majority},
    )
    close(found, 0.5 * formulas.ties(case.deltas, density, weight, "native", normalize, majority))


@pytest.mark.parametrize("flavour", ["mergekit", "peft"])
@given(SEEDS, SHAPES, st.integers(1, 5), st.booleans(), st.sampled_from(["total", "frequency"]))
@settings(max_examples=50)
def test_ties_tensor_by_tensor(
    flavour: str, seed: int, shapes: list[tuple[int, ...]], models: int, normalize: bool, majority: str
) -> None:
    case = Case(seed, shapes, models)
    weight, density = case.pick(WEIGHTS, models), case.pick([0.1, 0.2, 0.5, 0.9, 1.0], models)
    settings = {"weight": weight, "density": density, "normalize": normalize, "flavour": flavour}
    found = case.engine("ties", {**settings, "majority_sign_method": majority})
    wanted = [formulas.ties(d, density, weight, flavour, normalize, majority) for d in case.each()]
    close(found, np.concatenate(wanted))


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
@given(SEEDS, SHAPES, st.integers(1, 4), st.sampled_from([0.1, 0.2, 0.5, 0.9]))
@settings(max_examples=50)
def test_ties_of_the_authors(how: str, seed: int, shapes: list[tuple[int, ...]], models: int, share: float) -> None:
    case = Case(seed, shapes, models)
    settings = {"flavour": "paper", "density": share, "normalize": how == "mean", "largest": how == "max"}
    close(case.engine("ties", settings), formulas.authors_ties(case.deltas, share, how))


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_ties_of_the_authors_where_even_the_majority_is_undecided(how: str) -> None:
    vectors = np.array([[1.0, -2.0, 3.0], [-1.0, 2.0, -3.0]])
    case = Case(0, [(3,)], 2)
    case.deltas = vectors
    settings = {"flavour": "paper", "density": 0.5, "normalize": how == "mean", "largest": how == "max"}
    found = case.engine("ties", settings)
    close(found, formulas.authors_ties(vectors, 0.5, how))
    close(found, {"max": np.zeros(3)}.get(how, np.array([0.0, -2.0, -3.0])))


@given(SEEDS, st.integers(1, 4), st.sampled_from(["paper", "l1", "none"]), st.booleans())
@settings(max_examples=60)
def test_dare_with_given_masks(seed: int, models: int, rescale: str, normalize: bool) -> None:
    case = Case(seed, [(12,)], models)
    masks = case.rng.integers(0, 2, case.deltas.shape).astype(float)
    weight, density = case.pick(WEIGHTS[:4], models), case.pick([0.25, 0.5, 1.0], models)
    kept = formulas.dare(case.deltas, masks, density, rescale)
    common: dict[str, object] = {"weight": weight, "density": density, "rescale": rescale, "normalize": normalize}
    blocks = torch.tensor(case.deltas), torch.tensor(masks)
    found = masked_dare(*blocks, {**common, "lambda": 0.5}).double().numpy()
    close(found, formulas.task_arithmetic(kept, weight, 0.5, normalize))
    if rescale == "l1":
        return  # factors that are not exact decide elections by their rounding
    for flavour in ("native", "mergekit", "peft"):
        for majority in ("total", "frequency"):
            chosen = {**common, "elect": True, "flavour": flavour, "majority_sign_method": majority}
            found = masked_dare(*blocks, chosen).double().numpy()
            close(found, formulas.elected(kept, weight, flavour, normalize, majority))


def test_dare_keeps_the_share_asked_for_and_the_mean() -> None:
    """What the engine draws: independent entries, density of them kept, the mean unchanged by 1/density."""
    models = [{"w": torch.ones(300_000)}, {"w": torch.full((300_000,), 2.0)}]
    base = {"w": torch.zeros(300_000)}
    merged = merge_state_dicts(models, base=base, method="dare", density=[0.1, 0.7])["w"]
    for value, share in ((0.0, 0.27), (10.0, 0.03), (2 / 0.7, 0.63), (10 + 2 / 0.7, 0.07)):
        seen = torch.isclose(merged, torch.tensor(value)).double().mean().item()
        assert abs(seen - share) < 5 * (share * (1 - share) / 300_000) ** 0.5
    lag = (merged[1:] > 9).double() - 0.1, (merged[:-1] > 9).double() - 0.1
    assert abs((lag[0] * lag[1]).mean().item()) < 5 * 0.09 / 300_000**0.5


@given(SEEDS, SHAPES, st.floats(-0.5, 1.5), st.booleans())
@settings(max_examples=60)
def test_slerp(seed: int, shapes: list[tuple[int, ...]], t: float, based: bool) -> None:
    case = Case(seed, shapes, 2)
    place = int(case.rng.integers(len(shapes)))
    first = sum(case.sizes[:place])
    part = slice(first, first + case.sizes[place])
    kind = case.rng.integers(4)
    if kind == 0:
        case.deltas[0, part] = 0.0
    elif kind == 1:
        case.deltas[1, part] = -2 * case.deltas[0, part]
    elif kind == 2:
        case.deltas[1, part] = case.deltas[0, part] + case.rng.integers(-1, 2, case.sizes[place]) / 2**12
    wanted = np.concatenate([formulas.slerp(*d, t) for d in case.each()])
    close(case.engine("slerp", {"t": t}, based=based, dtype=torch.float64), wanted, atol=1e-9)
    close(case.engine("slerp", {"t": t}, based=based), wanted, atol=3e-5)


def test_slerp_follows_a_gradient_over_the_layers() -> None:
    case = Case(5, [(4,)] * 5, 2)
    found = case.engine("slerp", {"t": {"gradient": [0, 1, 0.5]}}, based=False)
    wanted = [formulas.slerp(*d, t) for d, t in zip(case.each(), (0, 0.5, 1, 0.75, 0.5), strict=True)]
    close(found, np.concatenate(wanted))


@given(SEEDS, SHAPES, st.integers(1, 5), st.booleans())
@example(0, [(1,)], 2, False)
@settings(max_examples=60)
def test_karcher(seed: int, shapes: list[tuple[int, ...]], models: int, based: bool) -> None:
    case = Case(seed, [*shapes, (40,)], models, coarse=False)
    weight = case.pick([0.5, 1.0, 3.0], models)
    case.deltas += 1.5  # in one half of the sphere, where the mean is unique
    if case.rng.random() < 0.5:
        case.deltas[case.rng.integers(models), : case.sizes[0]] = 0.0
    wanted = np.concatenate([formulas.karcher(d, weight, 500, 1e-13) for d in case.each()])
    found = case.engine("karcher", {"weight": weight, "max_iter": 500, "tol": 1e-13}, based=based, dtype=torch.float64)
    lone = slice(sum(n == 1 for n in case.sizes[:1]), None)  # one element has two directions: no mean between them
    np.testing.assert_allclose(found[lone], wanted[lone], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("zero_at", [None, 0, 1, 2])
def test_karcher_of_opposites_is_finite_and_on_their_line(seed: int, zero_at: int | None) -> None:
    """No direction is their mean; the iteration stays at the first that has one."""
    vector = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    rows = [vector, -2 * vector]
    if zero_at is not None:
        rows.insert(zero_at, torch.zeros(50))
    merged = merge_state_dicts([{"w": row} for row in rows], method="karcher")["w"]
    torch.testing.assert_close(merged, vector * 3 / len(rows))


@pytest.mark.parametrize("variant", ["reference", "nlp", "vision", "vision_es", "paper"])
@given(SEEDS, st.integers(1, 4), st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.sampled_from([30, 150, 700]))
@settings(max_examples=20)
def test_pcb(variant: str, seed: int, models: int, ratio: float, count: int) -> None:
    case = Case(seed, [(count // 2,), (3, 3), (count - count // 2 - 9,)], models, coarse=False)
    case.deltas[:, 1::7] = case.deltas[:, :1]  # equal columns: equal scores
    case.deltas *= 0.7
    scale = case.pick([1.0, 1.2, 0.8], models)
    if variant == "paper":
        weights, values = formulas.pcb_paper_weights(case.deltas, ratio), case.deltas
    else:
        weights, values = formulas.pcb_weights(case.deltas, ratio, variant)
    case.base = np.zeros_like(case.base)  # adding it would round what must stay equal apart
    found = case.engine("pcb", {"variant": variant, "ratio": ratio, "lambda": scale}, dtype=torch.float64)
    close(found, formulas.weighted_mean(weights, values, scale), atol=1e-9)
