"""Low-rank updates from a code: rank, start, which tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.decoders.lora import Lora, LoraDecoder
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.target import Slot, TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 6
SPEC = TargetSpec(
    (
        Slot("embed.weight", (9, 8), "F32", "embedding", 1),
        Slot("a.weight", (8, 8), "F32", "matrix", 8),
        Slot("b.weight", (8, 8), "F32", "matrix", 8),
        Slot("a.bias", (8,), "F32", "bias", 8),
        Slot("conv.weight", (12, 2, 3, 3), "F32", "kernel", 18),
        Slot("norm.weight", (8,), "F32", "norm_scale", 1),
        Slot("head.weight", (3, 8), "F32", "head", 8, class_axis=0),
    )
)
UPDATED = {"a.weight", "b.weight", "conv.weight", "head.weight"}


def decoder(**options: Any) -> LoraDecoder:
    with seeded(0):
        return LoraDecoder(Lora(**options), Site(WIDTH, SPEC))


def disturbed(made: LoraDecoder) -> LoraDecoder:
    """As after some training: no factor is 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return made


def of(*names: str) -> list[Slot]:
    return [slot for slot in SPEC.slots if slot.name in names]


def codes(samples: int, count: int) -> Tensor:
    return torch.randn(samples, count, WIDTH, generator=torch.Generator().manual_seed(0))


def test_the_first_weights_are_those_of_the_base() -> None:
    made = decoder()
    for slot in SPEC.slots:
        found = made(codes(3, 1), [slot])
        assert found.shape == (3, 1, *slot.shape)
        assert not found.any()


def test_a_begins_as_a_fresh_adapter_whatever_the_code() -> None:
    spec = TargetSpec((Slot("w", (50, 400), "F32", "matrix", 400),))
    with seeded(0):
        made = LoraDecoder(Lora(rank=20), Site(WIDTH, spec))
    a, b = made.a[0], made.b[0]
    assert not a.weight.any()
    assert not b.weight.any()
    assert not b.bias.any()
    assert a.bias.abs().max().item() == pytest.approx(1 / 20, rel=1e-2)
    assert a.bias.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.03)


@pytest.mark.parametrize(("rank", "alpha"), [(2, 4.0), (3, 3.0), (100, 16.0)])
def test_an_update_is_b_times_a(rank: int, alpha: float) -> None:
    made, z = disturbed(decoder(rank=rank, alpha=alpha)), codes(2, 2)
    for names in (("a.weight", "b.weight"), ("conv.weight",), ("head.weight",)):
        slots = of(*names)
        found = made(z[:, : len(slots)], slots)
        group = made.places.group(slots)
        rows, columns = slots[0].shape[0], found[0, 0].numel() // slots[0].shape[0]
        r = min(rank, rows, columns)
        for place in range(len(slots)):
            for sample in range(2):
                a = (made.a[group].weight[place] @ z[sample, place] + made.a[group].bias[place]).view(r, columns)
                b = (made.b[group].weight[place] @ z[sample, place] + made.b[group].bias[place]).view(rows, r)
                want = (b @ a * alpha / r).view(slots[0].shape)
                torch.testing.assert_close(found[sample, place], want, rtol=1e-4, atol=1e-4)
                found_rank = torch.linalg.matrix_rank(found[sample, place].reshape(rows, columns).double(), rtol=1e-5)
                assert int(found_rank) == r


def test_only_matrices_are_updated() -> None:
    made = disturbed(decoder())
    for slot in SPEC.slots:
        assert bool(made(codes(2, 1), [slot]).any()) == (slot.name in UPDATED)


def test_a_filter_chooses_among_them() -> None:
    made = disturbed(decoder(only="a.weight"))
    found = made(codes(2, 2), of("a.weight", "b.weight"))
    assert found[:, 0].any()
    assert not found[:, 1].any()
    assert not made(codes(2, 1), of("conv.weight")).any()
    for wrong, told in (("no such", "passes the filter"), ("/(/", "no regular expression")):
        with pytest.raises(InvalidInput, match=told):
            decoder(only=wrong)


def test_the_update_learns_from_the_first_step() -> None:
    """As in an adapter, B first: while B is 0 nothing changes A."""
    made = decoder()
    made(codes(2, 2), of("a.weight", "b.weight")).sum().backward()
    group = made.places.group(of("a.weight"))
    for name, moves in (("weight", True), ("bias", True)):
        gradient = made.b[group].get_parameter(name).grad
        assert gradient is not None
        assert bool(gradient.any()) == moves
    still = made.a[group].get_parameter("bias").grad
    assert still is not None
    assert not still.any()


def test_one_target() -> None:
    with pytest.raises(InvalidInput, match="is for one target"):
        LoraDecoder(Lora(), Site(2))
    with pytest.raises(InvalidInput, match="another target"):
        decoder().check(TargetSpec((Slot("other", (2,), "F32", "bias", 1),)))
