"""The low-rank decoder: what it computes is the reference's expansion, and it computes no more than reaches it."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.decoders.lowrank import LowRank, LowRankDecoder
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.target import Role, Slot, TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parent.parent / "oracles/logah_lowrank_decoder_behaviour.json").read_text())
each_probe = pytest.mark.parametrize("probe", ORACLE["probes"], ids=lambda it: "x".join(map(str, it["max_shape"])))


def slot(shape: tuple[int, ...], role: Role = "kernel", name: str = "w") -> Slot:
    return Slot(name, shape, "F32", role, 1)


def built(width: int, rank: int, K: int, layout: str = "view", seed: int = 0) -> LowRankDecoder:
    with seeded(seed):
        return LowRankDecoder(LowRank(rank=rank, K=K, layout=layout), Site(width))


def as_the_reference(probe: dict[str, Any]) -> tuple[LowRankDecoder, Tensor]:
    """A decoder and a code (1, 1, d) drawn in the order in which the reference draws them, its dead layer included."""
    width, rank, K = probe["in_features"], probe["r"], probe["K"]
    with torch.device("meta"):
        decoder = LowRankDecoder(LowRank(rank=rank, K=K), Site(width))
    with seeded(0):
        sizes = [(width, 4 * width), (4 * width, 8 * width), (8 * width, 2 * rank * rank), (rank, rank), (rank, K)]
        drawn = [nn.Linear(*size) for size in sizes]
        code = torch.randn(1, 1, width)
    decoder.mlp[0], decoder.mlp[2], decoder.code, decoder.expand = drawn[0], drawn[1], drawn[2], drawn[4]
    return decoder, code


def in_full(decoder: LowRankDecoder, codes: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """All of the expansion, cut afterwards."""
    rank, K = decoder.options.rank, decoder.options.K
    code = decoder.code(decoder.mlp(codes)).view(*codes.shape[:2], 2 * rank, rank).relu()
    expanded = decoder.expand(code)  # (B, S, 2r, K)
    if decoder.options.layout == "view":
        a, b = expanded.reshape(*codes.shape[:2], 2 * K, rank).split(K, dim=2)
    else:
        a, b = (half.transpose(-1, -2) for half in expanded.split(rank, dim=2))
    out, into, high, wide = shape
    made = a[:, :, : out * high] @ b[:, :, : into * wide].transpose(-1, -2)
    return made.view(*codes.shape[:2], out, high, into, wide).swapaxes(3, 4)


@each_probe
def test_numbers_are_the_reference_s(probe: dict[str, Any]) -> None:
    decoder, code = as_the_reference(probe)
    made = decoder(code, [slot(tuple(probe["max_shape"]))])
    assert list(made.shape) == [1, *probe["out_shape"]]
    assert made.std().item() == pytest.approx(probe["std"], rel=1e-5)
    assert made.mean().item() == pytest.approx(probe["mean"], rel=1e-3)
    matrix = made[0, 0].swapaxes(1, 2).reshape(probe["max_shape"][0] * probe["max_shape"][2], -1)
    assert int(torch.linalg.matrix_rank(matrix[:256, :256])) == probe["matrix_rank"]


@each_probe
def test_rows_of_the_code_that_learn_are_the_reference_s(probe: dict[str, Any]) -> None:
    decoder, code = as_the_reference(probe)
    decoder(code, [slot(tuple(probe["max_shape"]))]).square().sum().backward()
    assert decoder.code.weight.grad is not None
    rows = decoder.code.weight.grad.view(2 * probe["r"], probe["r"], -1).abs().amax(dim=(1, 2))
    assert len(rows) == probe["code_rows_total"]
    assert rows.nonzero().flatten().tolist() == probe["code_rows_receiving_gradient"]
    out, into, high, wide = probe["max_shape"]
    used = [ceil(size * probe["r"] / probe["K"]) for size in (out * high, into * wide)]
    assert sum(used) == len(probe["code_rows_receiving_gradient"])


@pytest.mark.parametrize("layout", ["view", "transposed"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (5, 7, 1, 1), (40, 3, 3, 3), (12, 40, 1, 1), (8, 8, 5, 2), (3, 40, 7, 1)]
)
def test_cutting_first_changes_nothing(layout: str, shape: tuple[int, int, int, int]) -> None:
    decoder = built(8, 6, 128, layout)
    codes = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    made = decoder(codes, [slot(shape, name="a"), slot(shape, name="b")])
    torch.testing.assert_close(made, in_full(decoder, codes, shape), rtol=1e-5, atol=1e-6)


@given(st.integers(1, 9), st.integers(10, 70), st.data())
def test_cutting_first_changes_nothing_whatever_the_sizes(rank: int, K: int, data: st.DataObject) -> None:
    out, into = data.draw(st.integers(1, K)), data.draw(st.integers(1, K))
    decoder = built(4, rank, K)
    codes = torch.ones(1, 1, 4)
    made = decoder(codes, [slot((out, into), "matrix")])
    torch.testing.assert_close(made, in_full(decoder, codes, (out, into, 1, 1))[..., 0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["view", "transposed"])
def test_gradients_are_those_of_the_full_expansion(layout: str) -> None:
    decoder = built(4, 6, 32, layout).double()
    codes = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = list(decoder.parameters())
    cut = torch.autograd.grad(decoder(codes, [slot((9, 3, 2, 2))]).square().sum(), parameters)
    full = torch.autograd.grad(in_full(decoder, codes, (9, 3, 2, 2)).square().sum(), parameters)
    for ours, theirs in zip(cut, full, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", ["view", "transposed"])
def test_vectors_are_two_a_code(layout: str) -> None:
    decoder = built(8, 6, 64, layout)
    codes = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    pair = in_full(decoder, codes, (2 * 20, 1, 1, 1)).view(2, 3, 2, 20)
    for role, row in (("norm_scale", 0), ("bias", 1), ("norm_shift", 1)):
        made = decoder(codes, [slot((20,), role)] * 3)  # type: ignore[arg-type]
        torch.testing.assert_close(made, pair[:, :, row], rtol=1e-5, atol=1e-6)


def test_kernels_have_their_sides_beside_their_channels() -> None:
    """(out, kh, in, kw) with the two in the middle swapped: row `o kh + y` of A, column `i kw + x` of B."""
    decoder = built(8, 6, 64)
    codes = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    kernel = decoder(codes, [slot((4, 3, 5, 2))])[0, 0]
    matrix = decoder(codes, [slot((20, 6), "matrix")])[0, 0]
    torch.testing.assert_close(kernel[3, 2, 4, 1], matrix[3 * 5 + 4, 2 * 2 + 1])
    torch.testing.assert_close(kernel[1, 0, 3, 1], matrix[1 * 5 + 3, 1])


@pytest.mark.parametrize(
    ("shape", "role", "same"),
    [
        ((1, 10, 6), "position", (10, 6)),
        ((1, 1, 6), "position", (1, 6)),
        ((8, 3, 5), "kernel", (8, 15)),
        ((4, 6, 5), "matrix", (24, 5)),
        ((), "norm_scale", (1,)),
        ((10, 1, 1), "norm_scale", (10,)),
    ],
)
def test_other_numbers_of_axes(shape: tuple[int, ...], role: Role, same: tuple[int, ...]) -> None:
    decoder = built(8, 6, 64)
    codes = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    made = decoder(codes, [slot(shape, role)])
    assert made.shape == (2, 1, *shape)
    alike = decoder(codes, [slot(same, "matrix" if len(same) > 1 else role)])
    assert torch.equal(made.flatten(), alike.flatten())


def test_heads_for_any_number_of_classes() -> None:
    decoder = built(8, 6, 256)
    codes = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    few, many = (decoder(codes, [Slot("head", (c, 16), "F32", "head", 16, class_axis=0)]) for c in (10, 200))
    torch.testing.assert_close(many[:, :, :10], few)
    bias = decoder(codes, [Slot("bias", (100,), "F32", "bias", 16, class_axis=0)])
    assert bias.shape == (1, 1, 100)


def test_too_wide_is_said_before_anything_is_made() -> None:
    decoder = built(8, 6, 32_768)
    fact = r"^mlp.weight is 40,000 wide; this generator makes at most 32,768$"
    with pytest.raises(InvalidInput, match=fact) as caught:
        decoder.check(TargetSpec((slot((4, 4), "matrix"), slot((40_000, 8), "matrix", "mlp.weight"))))
    assert "larger K" in caught.value.hint
    with pytest.raises(InvalidInput, match=r"conv is 51,200 wide"):
        decoder.check(TargetSpec((slot((2, 3200, 1, 16), "kernel", "conv"),)))
    with pytest.raises(InvalidInput, match=r"b is 16,385 wide; this generator makes at most 16,384"):
        decoder.check(TargetSpec((slot((16_385,), "bias", "b"),)))
    decoder.check(TargetSpec((slot((32_768, 32_768), "matrix"), slot((16_384,), "bias"))))


def test_a_decoder_beyond_all_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(InvalidInput, match=r"the most is 10,000,000,000"):
        LowRankDecoder(LowRank(rank=4096), Site(4096))


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that an operation makes; views of what there was do not count."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.known = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in self.known:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("layout", ["view", "transposed"])
def test_nothing_larger_than_the_tensor_is_made(layout: str) -> None:
    """Of 2r x K = 2,097,152 numbers a tensor, 384 x 384 needs 2 x 12,288."""
    decoder = built(64, 32, 32_768, layout)
    codes = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Largest(decoder) as seen:
        decoder(codes, [slot((384, 384), "matrix")])
    assert seen.numbers == 384 * 384
    with torch.no_grad(), Largest(decoder) as seen:
        in_full(decoder, codes, (384, 384, 1, 1))
    assert seen.numbers == 2 * 32 * 32_768


def test_tensors_do_not_depend_on_what_is_decoded_with_them() -> None:
    decoder = built(8, 6, 64)
    codes = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    together = decoder(codes, [slot((10, 7), "matrix")] * 4)
    for sample in range(2):
        for place in range(4):
            alone = decoder(codes[sample : sample + 1, place : place + 1], [slot((10, 7), "matrix")])
            torch.testing.assert_close(alone[0, 0], together[sample, place])


def test_runs_under_vmap() -> None:
    decoder = built(8, 6, 64)
    codes = torch.randn(5, 2, 1, 8, generator=torch.Generator().manual_seed(0))
    made = torch.vmap(lambda code: decoder(code, [slot((10, 7), "matrix")]))(codes)
    torch.testing.assert_close(made[3], decoder(codes[3], [slot((10, 7), "matrix")]))
