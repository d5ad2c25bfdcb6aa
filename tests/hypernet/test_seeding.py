"""Random tensors by name: the same everywhere, in any order, in any cut; and as random as they should be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paramsmith.hypernet.seeding import bits, drawn_seed, normal, seeded, uniform

pytestmark = pytest.mark.usefixtures("one_thread")

Draw = Callable[..., Tensor]
each = pytest.mark.parametrize("draw", [uniform, normal, bits])
sizes = st.integers(1, 7)


@each
@given(large=st.tuples(sizes, sizes, sizes), small=st.tuples(sizes, sizes, sizes), first=st.integers(0, 6))
def test_a_small_tensor_is_the_corner_of_a_large_one(
    draw: Draw, large: tuple[int, ...], small: tuple[int, ...], first: int
) -> None:
    whole = draw(3, "a.weight", large)
    cut = tuple(min(sides) for sides in zip(large, small, strict=True))
    start = min(first, large[0] - 1)
    rows = min(cut[0], large[0] - start)
    corner = draw(3, "a.weight", (rows, *cut[1:]), first=start)
    assert torch.equal(whole[start : start + rows, : cut[1], : cut[2]], corner)


@each
def test_blocks_change_nothing(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(1, "k", (50, 30))
    monkeypatch.setattr("paramsmith.hypernet.seeding.BLOCK", 64)
    assert torch.equal(draw(1, "k", (50, 30)), whole)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        assert torch.equal(draw(1, "k", (50, 30)), whole)


@each
def test_another_seed_or_key_is_another_draw(draw: Draw) -> None:
    found = [draw(seed, key, (40,)) for seed in (0, 1, 2**63 - 1) for key in ("a", "b", "0/a")]
    assert len({tuple(values.tolist()) for values in found}) == len(found)
    assert len(set(found[0].tolist())) == 40


@each
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (0, 3), (2, 1, 1, 2)])
def test_any_shape(draw: Draw, shape: tuple[int, ...]) -> None:
    made = draw(0, "a", shape)
    assert made.shape == shape
    assert made.dtype == (torch.int32 if draw is bits else torch.float32)


def test_another_process_draws_the_same_and_torch_is_left_alone() -> None:
    code = (
        "import torch; from paramsmith.hypernet.seeding import uniform, normal\n"
        "print(uniform(5, 'x', (3,)).tolist(), normal(5, 'x', (3,)).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    state = torch.random.get_rng_state()
    assert out.strip() == f"{uniform(5, 'x', (3,)).tolist()} {normal(5, 'x', (3,)).tolist()}"
    assert torch.equal(torch.random.get_rng_state(), state)


def test_numbers_are_those_of_any_machine() -> None:
    """Integers and exact products alone: a code kept with its seed must mean the same weights for ever."""
    assert bits(0, "a", (2, 2)).tolist() == [[-1206085805, 1902669534], [437541468, 1470741372]]
    assert uniform(7, "fc.weight", (3,), 2.0).tolist() == [
        -0.39038240909576416,
        -0.6117697954177856,
        0.8288670778274536,
    ]


@pytest.mark.parametrize(("draw", "std", "fourth"), [(uniform, 3**-0.5, 0.2), (normal, 1.0, 3.0)])
def test_moments(draw: Draw, std: float, fourth: float) -> None:
    values = draw(11, "w", (500, 800)).double()
    assert abs(values.mean()) < 4 * std / 400_000**0.5
    assert values.std().item() == pytest.approx(std, rel=5e-3)
    assert (values**4).mean().item() == pytest.approx(fourth, rel=2e-2)
    assert values.abs().min() > 0
    assert values.abs().max() < (1.0 if draw is uniform else 5.6)


def test_a_matrix_has_the_singular_values_of_independent_entries() -> None:
    """Marchenko and Pastur: those of an m x n matrix of unit variance lie in sqrt(n) +- sqrt(m)."""
    found = torch.linalg.svdvals(normal(2, "w", (200, 800)).double())
    assert found.max().item() == pytest.approx(800**0.5 + 200**0.5, rel=0.02)
    assert found.min().item() == pytest.approx(800**0.5 - 200**0.5, rel=0.04)


def test_draws_of_different_names_seeds_and_rows_are_uncorrelated() -> None:
    rows = torch.cat([normal(seed, key, (20, 4000)) for seed in (0, 1) for key in ("a", "b")]).double()
    correlation = torch.corrcoef(rows) - torch.eye(80)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_seeds_of_what_is_made() -> None:
    state = torch.random.get_rng_state()
    with seeded(4):
        first = drawn_seed(), drawn_seed()
    with seeded(4):
        assert (drawn_seed(), drawn_seed()) == first
    assert first[0] != first[1]
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.device("meta"):
        assert drawn_seed() == 0
        assert uniform(0, "a", (4, 2), device="meta").shape == (4, 2)


@pytest.mark.cuda
@each
def test_cuda_draws_the_same(draw: Draw) -> None:
    here, there = draw(9, "w", (300, 70)), draw(9, "w", (300, 70), device="cuda").cpu()
    if draw is normal:
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(here, there)
