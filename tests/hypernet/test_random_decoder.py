"""Weights as random combinations of a code: the formula, its gradients, the same matrices everywhere, no memory."""

from __future__ import annotations

import json
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paramsmith.hypernet.decoders.random import Matrix, Random, RandomDecoder
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "doh_reconstructed_example.json").read_text())
CPU = torch.device("cpu")
KINDS = ["dense", "rademacher", "sparse"]
PINNED = {
    "dense": [0.8259420990943909, -3.0422770977020264, -3.680659294128418],
    "rademacher": [4.041451930999756, -0.5773502588272095, -0.5773502588272095],
    "sparse": [0.5773502588272095, -4.041451930999756, -5.196152210235596],
}
each = pytest.mark.parametrize("kind", KINDS)


def decoder(kind: str, **options: Any) -> RandomDecoder:
    return RandomDecoder(Random.model_validate({"kind": kind, **options}), Site(40))


def slots(*shape: int, count: int = 2) -> list[Slot]:
    return [Slot(f"layers.{i}.weight", shape, "F32", "matrix", 50) for i in range(count)]


def codes(samples: int, count: int, columns: int = 40) -> Tensor:
    return torch.randn(samples, count, columns, generator=torch.Generator().manual_seed(0))


def whole(matrix: Matrix) -> Tensor:
    """The matrix itself."""
    return matrix.entries(range(matrix.rows), CPU) * matrix.factor


@each
def test_weights_are_the_matrix_times_the_code(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramsmith.hypernet.decoders.random.BLOCK", 256)  # several blocks, the last cut short
    made, own, z = decoder(kind), slots(7, 5), codes(3, 2)
    found = made(z, own)
    assert found.shape == (3, 2, 7, 5)
    for place, slot in enumerate(own):
        want = z[:, place] @ whole(made.matrix(slot, 40)).T
        torch.testing.assert_close(found[:, place].flatten(1), want)
    assert torch.equal(made(z[:1, :1], own[:1]), found[:1, :1]) or torch.allclose(
        made(z[:1, :1], own[:1]), found[:1, :1]
    )


@each
def test_gradients_to_the_code(kind: str) -> None:
    """Of the first and of the second order, against the matrix itself and against differences."""
    made, own = decoder(kind, nonzeros=4), slots(3, 2)
    z = codes(2, 2, 6).double().requires_grad_()
    matrices = [whole(made.matrix(slot, 6)).double() for slot in own]
    made(z, own).square().sum().backward()
    want = torch.stack([2 * z[:, i].detach() @ g.T @ g for i, g in enumerate(matrices)], 1)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, want, rtol=1e-6, atol=1e-7)

    def function(z: Tensor) -> Tensor:
        return made(z, own)

    assert torch.autograd.gradcheck(function, (z.detach().requires_grad_(),))
    assert torch.autograd.gradgradcheck(function, (z.detach().requires_grad_(),))


@each
def test_blocks_change_no_entry(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, own, z = decoder(kind), slots(30, 20), codes(1, 2)
    matrix, first = made.matrix(own[0], 40), made(z, own)
    entries = matrix.entries(range(600), CPU)
    assert torch.equal(matrix.entries(range(130, 170), CPU), entries[130:170])
    monkeypatch.setattr("paramsmith.hypernet.decoders.random.BLOCK", 1000)
    torch.testing.assert_close(made(z, own), first)


@each
def test_weights_have_the_spread_of_the_target(kind: str) -> None:
    """Var(theta) = n Var(G) Var(z)."""
    made = decoder(kind, latent_std=0.5, least=0.03)
    z = 0.5 * codes(20, 1, 500)
    of = [
        (Slot("a", (60, 50), "F32", "matrix", 50), 1 / sqrt(150)),
        (Slot("b", (60, 50), "F32", "matrix", 50, 0.02), 0.02),
        (Slot("c", (3000,), "F32", "norm_scale", 1), 0.03),  # begins as a constant
        (Slot("d", (3000,), "F32", "bias", 50, 0.0), 0.03),
    ]
    for slot, std in of:
        found = made(z, [slot])
        assert found.std().item() == pytest.approx(std, rel=0.03)
        assert abs(found.mean().item()) < std / 10


@each
def test_entries(kind: str) -> None:
    matrix = decoder(kind).matrix(slots(40, 50)[0], 300)
    entries = matrix.entries(range(2000), CPU)
    if kind == "sparse":
        assert int((entries != 0).sum(1).max()) == 16
        assert entries.abs().sum(1).max() <= 16
        assert entries.square().sum(1).mean().item() == pytest.approx(16, rel=0.1)  # a place may come twice
        assert (entries != 0).sum(0).float().mean().item() == pytest.approx(2000 * 16 / 300, rel=0.05)
    else:
        assert entries.square().mean().item() == pytest.approx(1, rel=0.01)
        assert entries.abs().max() <= sqrt(3)
    if kind == "rademacher":
        assert set(entries.unique().tolist()) == {-1.0, 1.0}
    assert abs(entries.mean().item()) < 0.01
    other = decoder(kind, seed=1).matrix(slots(40, 50)[0], 300).entries(range(2000), CPU)
    correlation = torch.corrcoef(torch.stack([entries.flatten(), other.flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.01


def test_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """With numpy's matrices in place of ours: G_l ~ U of a seed a tensor, and each tensor's own deviation."""
    z = np.random.RandomState(0).uniform(-1, 1, ORACLE["latent_dim"])
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in ORACLE["values"].items()}
    torch.testing.assert_close(torch.tensor(z), values["z"], rtol=0, atol=1e-8)
    siren = [  # first layer U(+-1/in), further ones U(+-sqrt(6/in)/30), biases U(+-1/sqrt(in))
        Slot("w1", (6, 2), "F32", "matrix", 2, 1 / 2 / sqrt(3)),
        Slot("b1", (6,), "F32", "bias", 2, 1 / sqrt(2) / sqrt(3)),
        Slot("w2", (1, 6), "F32", "matrix", 6, sqrt(6 / 6) / 30 / sqrt(3)),
        Slot("b2", (1,), "F32", "bias", 6, 1 / sqrt(6) / sqrt(3)),
    ]
    seeds = {slot.name: seed for seed, slot in enumerate(siren, 1)}

    def numpys(matrix: Matrix, part: range, device: torch.device) -> Tensor:
        drawn = np.random.RandomState(seeds[matrix.key]).uniform(-1, 1, (matrix.rows, matrix.columns))
        return torch.tensor(drawn[part.start : part.stop] * sqrt(3))

    monkeypatch.setattr(Matrix, "entries", numpys)
    made = decoder("dense", latent_std=1 / sqrt(3))
    for slot in siren:
        found = made(torch.tensor(z).view(1, 1, -1), [slot])[0, 0]
        torch.testing.assert_close(found, values[slot.name], rtol=0, atol=2e-8)


def test_weights_are_those_of_any_machine() -> None:
    """A code that is kept with its seed must mean the same weights for ever."""
    slot = Slot("w", (3,), "F32", "bias", 1, 1.0)
    for kind, want in PINNED.items():
        found = decoder(kind, seed=9)(torch.tensor([[[1.0, 2.0, 4.0]]]), [slot])
        assert found.flatten().tolist() == pytest.approx(want, rel=1e-6), kind


def test_no_matrix_is_ever_whole() -> None:
    """The largest tensor that a pass makes holds the weights, not a matrix of a thousand times as many numbers."""
    own, columns = slots(200, 250, count=1), 1000
    biggest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal biggest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                biggest = max(biggest, made.numel())
            return made

    z = codes(1, 1, columns).requires_grad_()
    with Watch():
        decoder("dense")(z, own).sum().backward()
    assert z.grad is not None
    assert biggest <= 1 << 18
    assert prod((200, 250)) * columns > 100 * biggest


def test_nothing_is_stored() -> None:
    for kind in KINDS:
        assert not list(decoder(kind).parameters())
        assert not decoder(kind).state_dict()


@pytest.mark.cuda
@each
def test_cuda_makes_the_same_entries(kind: str) -> None:
    matrix = decoder(kind).matrix(slots(30, 20)[0], 70)
    there = matrix.entries(range(600), torch.device("cuda"))
    assert torch.equal(there.cpu(), matrix.entries(range(600), CPU))
