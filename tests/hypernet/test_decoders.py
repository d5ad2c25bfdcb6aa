"""Decoders for one target: dense and chunked heads; and the one that makes nothing."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.decoders.chunked import Chunked, ChunkedDecoder
from paramsmith.hypernet.decoders.dense import Dense, DenseDecoder
from paramsmith.hypernet.decoders.none import NoDecoder
from paramsmith.hypernet.decoders.shapes import MOST
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import Params

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 6
SPEC = TargetSpec(
    (
        Slot("0.weight", (8, 4), "F32", "matrix", 4),
        Slot("0.bias", (8,), "F32", "bias", 4),
        Slot("1.weight", (8, 8), "F32", "matrix", 8),
        Slot("1.bias", (8,), "F32", "bias", 8),
        Slot("2.weight", (8, 8), "F32", "matrix", 8),
        Slot("2.bias", (8,), "F32", "bias", 8),
        Slot("head.weight", (3, 8), "F32", "head", 8, class_axis=0),
        Slot("scale", (), "F32", "norm_scale", 1),
    )
)


def of(*names: str) -> list[Slot]:
    return [slot for slot in SPEC.slots if slot.name in names]


def built(kind: str, seed: int = 0, **options: Any) -> DenseDecoder | ChunkedDecoder:
    with seeded(seed):
        if kind == "dense":
            return DenseDecoder(Dense(**options), Site(WIDTH, SPEC))
        return ChunkedDecoder(Chunked(**options), Site(WIDTH, SPEC))


def codes(samples: int, slots: int) -> Tensor:
    return torch.randn(samples, slots, WIDTH, generator=torch.Generator().manual_seed(0))


each = pytest.mark.parametrize(
    ("kind", "options"),
    [("dense", {}), ("dense", {"hidden": (5, 7)}), ("dense", {"bias": False}), ("chunked", {"chunk": 10})],
    ids=str,
)


@each
def test_shapes_and_the_batch_axis(kind: str, options: dict[str, Any]) -> None:
    decoder = built(kind, **options)
    for group in SPEC.groups:
        slots = [SPEC.slots[number] for number in group]
        assert decoder(codes(1, len(slots)), slots).shape == (1, len(slots), *slots[0].shape)
        assert decoder(codes(4, len(slots)), slots).shape == (4, len(slots), *slots[0].shape)


@each
def test_any_part_of_a_group_is_as_in_the_whole(kind: str, options: dict[str, Any]) -> None:
    decoder = built(kind, **options)
    slots, asked = of("0.bias", "1.bias", "2.bias"), codes(2, 3)
    whole = decoder(asked, slots)
    for places in ([0], [2], [1, 2], [0, 2], [2, 0]):
        part = decoder(asked[:, places], [slots[place] for place in places])
        torch.testing.assert_close(part, whole[:, places])


@each
def test_slots_of_a_group_differ_though_they_share_a_code(kind: str, options: dict[str, Any]) -> None:
    decoder = built(kind, **options)
    made = decoder(codes(1, 1).expand(-1, 3, -1), of("0.bias", "1.bias", "2.bias"))
    assert len({tuple(row) for row in made[0].tolist()}) == 3


@each
def test_every_parameter_learns(kind: str, options: dict[str, Any]) -> None:
    decoder = built(kind, **options)
    loss = torch.zeros(())
    for group in SPEC.groups:
        slots = [SPEC.slots[number] for number in group]
        loss = loss + decoder(codes(2, len(slots)), slots).square().sum()
    loss.backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dense_is_a_head_a_tensor() -> None:
    decoder = built("dense", hidden=(5,))
    assert isinstance(decoder, DenseDecoder)
    asked = codes(2, 2)
    hidden = nn.functional.leaky_relu(asked @ decoder.body[0].weight.T, 0.01)
    group = next(i for i, numbers in enumerate(SPEC.groups) if SPEC.slots[numbers[0]].name == "1.weight")
    with torch.no_grad():
        decoder.biases[group].fill_(0.5)
    made = decoder(asked, of("1.weight", "2.weight"))
    for place in range(2):
        want = hidden[:, place] @ decoder.heads[group][place].T + 0.5
        torch.testing.assert_close(made[:, place], want.view(2, 8, 8))


@pytest.mark.parametrize("init", ["fan_out", "fan_in", "zero"])
def test_how_heads_start(init: str) -> None:
    """MIP: the variance of each block is 2 / its own number of rows; biases are zero everywhere."""
    spec = TargetSpec((Slot("a", (20, 50), "F32", "matrix", 50), Slot("b", (500,), "F32", "bias", 50)))
    with seeded(0):
        decoder = DenseDecoder(Dense(init=init, hidden=(64,)), Site(32, spec))
    for head in decoder.heads:
        want = {"fan_out": sqrt(2 / head.shape[1]), "fan_in": sqrt(2 / 64), "zero": 0.0}[init]
        assert head.std().item() == pytest.approx(want, rel=0.02)
    assert decoder.body[0].weight.std().item() == pytest.approx(sqrt(2 / 64), rel=0.05)
    assert not any(bias.any() for bias in [*decoder.biases, decoder.body[0].bias])
    if init == "zero":
        made = decoder(torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0)), spec.slots[:1])
        assert not made.any()


def test_dense_holds_what_it_says() -> None:
    total = sum(prod(slot.shape) for slot in SPEC.slots)
    count = lambda decoder: sum(parameter.numel() for parameter in decoder.parameters())  # noqa: E731
    assert count(built("dense")) == total * (WIDTH + 1)
    assert count(built("dense", bias=False, hidden=(16,))) == total * 16 + WIDTH * 16 + 16


def test_chunked_pieces() -> None:
    """A tensor of 64 numbers in pieces of 10: seven of them, the last cut to 4."""
    decoder = built("chunked", chunk=10, embedding=3, hidden=(9,))
    assert isinstance(decoder, ChunkedDecoder)
    group = next(i for i, numbers in enumerate(SPEC.groups) if SPEC.slots[numbers[0]].name == "1.weight")
    assert decoder.pieces[group].shape == (2, 7, 3)
    asked = codes(2, 2)
    made = decoder(asked, of("1.weight", "2.weight")).flatten(2)  # (2, 2, 64)
    for piece in range(7):
        told = torch.cat([asked[1, 1], decoder.pieces[group][1, piece]])
        want = decoder.head(nn.functional.leaky_relu(decoder.body[0](told), 0.01))
        torch.testing.assert_close(made[1, 1, piece * 10 : piece * 10 + 10], want[: 4 if piece == 6 else 10])


def test_chunked_starts_with_unit_variance() -> None:
    spec = TargetSpec((Slot("a", (200, 500), "F32", "matrix", 50),))
    with seeded(0):
        decoder = ChunkedDecoder(Chunked(chunk=500, embedding=64), Site(64, spec))
    made = decoder(torch.randn(8, 1, 64, generator=torch.Generator().manual_seed(0)), spec.slots)
    assert 0.8 < made.std().item() < 1.2
    assert not built("chunked", init="zero")(codes(1, 1), of("0.weight")).any()


@pytest.mark.parametrize("kind", ["dense", "chunked"])
def test_without_a_target_there_is_nothing_to_build(kind: str) -> None:
    make, options = (DenseDecoder, Dense()) if kind == "dense" else (ChunkedDecoder, Chunked())
    with pytest.raises(InvalidInput, match=f"the decoder '{kind}' is for one target"):
        make(options, Site(WIDTH))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dense", "chunked"])
def test_another_target_is_refused(kind: str) -> None:
    decoder = built(kind)
    decoder.check(SPEC)
    for other in (Slot("0.weight", (4, 8), "F32", "matrix", 8), Slot("new", (8, 4), "F32", "matrix", 4)):
        with pytest.raises(
            InvalidInput, match=f"the decoder '{kind}' was built for another target, without {other.name}"
        ):
            decoder.check(TargetSpec((other,)))


@pytest.mark.parametrize("kind", ["dense", "chunked"])
def test_more_than_memory_holds_is_refused_before_any_is_taken(kind: str) -> None:
    wide = TargetSpec((Slot("a", (100_000, 100_000), "F32", "matrix", 1),))
    make, options = (DenseDecoder, Dense()) if kind == "dense" else (ChunkedDecoder, Chunked(chunk=1))
    with pytest.raises(InvalidInput, match=r"the most is 10,000,000,000") as caught:
        make(options, Site(WIDTH, wide))  # type: ignore[arg-type]
    assert f"{MOST:,}" in caught.value.fact
    assert "chunked, lowrank" in caught.value.hint


def test_none_makes_zeros() -> None:
    decoder = NoDecoder(Params(), Site(WIDTH))
    made = decoder(codes(2, 3), of("0.bias", "1.bias", "2.bias"))
    assert made.shape == (2, 3, 8)
    assert not made.any()
    assert not list(decoder.parameters())


@each
def test_runs_under_vmap(kind: str, options: dict[str, Any]) -> None:
    decoder = built(kind, **options)
    asked, slots = codes(5, 2).unsqueeze(1), of("1.weight", "2.weight")
    made = torch.vmap(lambda code: decoder(code, slots))(asked)
    torch.testing.assert_close(made[3], decoder(asked[3], slots))
