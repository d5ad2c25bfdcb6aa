"""GHN-3's decoder: the middle of a kernel, repeated along its channels; heads for one number of classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear, relu

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.decoders.conv_tile import ConvTile, ConvTileDecoder, square, tiled
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.target import Role, Slot, TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parent.parent / "oracles/ghn_tiling_example.json").read_text())
D, SIDE, CLASSES = 8, 6, 5


def slot(shape: tuple[int, ...], role: Role = "kernel", name: str = "w", class_axis: int | None = None) -> Slot:
    return Slot(name, shape, "F32", role, 1, class_axis=class_axis)


@pytest.fixture(scope="module")
def decoder() -> ConvTileDecoder:
    with seeded(0):
        made = ConvTileDecoder(ConvTile(kernel=SIDE, classes=CLASSES), Site(D))
    with torch.no_grad():  # biases start at zero: a test that leaves one out must not pass
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return made


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return torch.randn(2, 3, D, generator=torch.Generator().manual_seed(0))


def in_full(decoder: ConvTileDecoder, codes: Tensor) -> Tensor:
    """All of the kernel, at every place: (B, S, d out, d in, s, s)."""
    places = relu(decoder.fc(codes)).view(*codes.shape[:2], 4 * D, SIDE, SIDE).permute(0, 1, 3, 4, 2)
    return decoder.conv(places).view(*codes.shape[:2], SIDE, SIDE, D, D).permute(0, 1, 4, 5, 2, 3)


def test_tiling_is_the_reference_s() -> None:
    rows, columns = ORACLE["target_shape"]
    made = tiled(tiled(torch.tensor(ORACLE["predicted"]), 0, rows), 1, columns)
    assert made.tolist() == ORACLE["result"]


@pytest.mark.parametrize(
    ("sides", "middle"),
    [
        ((1, 1), (slice(3, 4), slice(3, 4))),
        ((3, 3), (slice(2, 5), slice(2, 5))),
        ((2, 5), (slice(2, 4), slice(1, 6))),
        ((6, 6), (slice(0, 6), slice(0, 6))),
    ],
)
def test_kernels_are_the_middle(
    decoder: ConvTileDecoder, codes: Tensor, sides: tuple[int, int], middle: tuple[slice, slice]
) -> None:
    full = in_full(decoder, codes)[..., middle[0], middle[1]]
    exact = decoder(codes, [slot((D, D, *sides))] * 3)
    torch.testing.assert_close(exact, full)
    small = decoder(codes, [slot((3, 2, *sides))] * 3)
    torch.testing.assert_close(small, full[:, :, :3, :2])
    large = decoder(codes, [slot((2 * D + 3, D + 1, *sides))] * 3)
    torch.testing.assert_close(large[:, :, :D, :D], full)
    torch.testing.assert_close(large[:, :, D : 2 * D, :D], full)
    torch.testing.assert_close(large[:, :, 2 * D :, D:], full[:, :, :3, :1])


def test_matrices_are_the_place_in_the_middle(decoder: ConvTileDecoder, codes: Tensor) -> None:
    made = decoder(codes, [slot((4, 20), "matrix")] * 3)
    torch.testing.assert_close(made[..., :D], in_full(decoder, codes)[:, :, :4, :, 3, 3])
    torch.testing.assert_close(made[..., D : 2 * D], made[..., :D])


@pytest.mark.parametrize("sides", [(9, 9), (1, 11), (8, 3)])
def test_larger_kernels_are_interpolated(decoder: ConvTileDecoder, codes: Tensor, sides: tuple[int, int]) -> None:
    made = decoder(codes, [slot((4, 3, *sides))] * 3)
    assert made.shape == (2, 3, 4, 3, *sides)
    first = [SIDE // 2 - min(size, SIDE) // 2 for size in sides]
    small = in_full(decoder, codes)[:, :, :4, :3, first[0] :, first[1] :][..., : sides[0], : sides[1]]
    for sample in range(2):
        torch.testing.assert_close(made[sample, 1], interpolate(small[sample, 1], sides, mode="bilinear"))


def test_heads_are_linear_over_the_output_channels(decoder: ConvTileDecoder, codes: Tensor) -> None:
    made = decoder(codes, [slot((CLASSES, 11), "head", class_axis=0)] * 3)
    middle = in_full(decoder, codes)[..., 3, 3]  # (B, S, d out, d in)
    want = torch.einsum("cd,bsdi->bsci", decoder.head.weight, relu(middle)) + decoder.head.bias[:, None]
    torch.testing.assert_close(made[..., :D], want)
    torch.testing.assert_close(made[..., D:], want[..., :3])
    turned = decoder(codes, [slot((11, CLASSES), "head", class_axis=1)] * 3)
    assert torch.equal(turned, made.transpose(-1, -2))
    as_kernel = decoder(codes, [slot((CLASSES, 11, 1, 1), "head", class_axis=0)] * 3)
    assert torch.equal(as_kernel[..., 0, 0], made)


def test_vectors_are_two_a_code(decoder: ConvTileDecoder, codes: Tensor) -> None:
    pair = decoder.vector(codes).view(2, 3, 2, D)
    for role, row in (("norm_scale", 0), ("bias", 1), ("norm_shift", 1)):
        made = decoder(codes, [slot((2 * D + 1,), role)] * 3)  # type: ignore[arg-type]
        torch.testing.assert_close(made[..., :D], pair[:, :, row])
        torch.testing.assert_close(made[..., D:], torch.cat([pair[:, :, row], pair[:, :, row, :1]], dim=-1))
    assert torch.equal(decoder(codes, [slot((), "norm_scale")] * 3), pair[:, :, 0, 0])
    assert decoder(codes, [slot((4, 1, 1), "norm_scale")] * 3).shape == (2, 3, 4, 1, 1)
    bias = decoder(codes, [slot((CLASSES,), "bias", class_axis=0)] * 3)
    torch.testing.assert_close(bias, linear(relu(pair[:, :, 1]), decoder.head_bias.weight, decoder.head_bias.bias))


def test_positions_are_a_kernel_laid_out_as_tokens(decoder: ConvTileDecoder, codes: Tensor) -> None:
    tokens = decoder(codes, [slot((1, 9, 12), "position")] * 3)
    kernel = decoder(codes, [slot((1, 12, 3, 3))] * 3)
    torch.testing.assert_close(tokens, kernel.flatten(-2).transpose(-1, -2))
    large = decoder(codes, [slot((1, 64, 12), "position")] * 3)  # 8 x 8, of a side of 6
    torch.testing.assert_close(large, decoder(codes, [slot((1, 12, 8, 8))] * 3).flatten(-2).transpose(-1, -2))


def test_extra_tokens_are_fixed_by_the_name(decoder: ConvTileDecoder, codes: Tensor) -> None:
    slots = [slot((1, 10, 12), "position", name) for name in "abc"]
    made = decoder(codes, slots)
    torch.testing.assert_close(made[:, :, :, 1:], decoder(codes, [slot((1, 9, 12), "position")] * 3))
    first = made[:, :, 0, 0]  # (B, S, D)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0, 0], first[0, 1])
    assert torch.equal(decoder(codes[:, 1:2], slots[1:2])[:, 0, 0, 0], first[:, 1])
    wide = decoder(codes[:1, :1], [slot((1, 2 + 16, 4000), "position", "a")])
    assert wide[0, 0, 0, :2].std().item() == pytest.approx(0.02, rel=0.05)


def test_positions_of_no_square_are_matrices(decoder: ConvTileDecoder, codes: Tensor) -> None:
    assert square((1, 14, 8)) == 0
    made = decoder(codes, [slot((1, 14, 12), "position")] * 3)
    assert torch.equal(made[:, :, 0], decoder(codes, [slot((14, 12), "matrix")] * 3))
    assert decoder(codes, [slot((14, 12), "position")] * 3).shape == (2, 3, 14, 12)


def test_last_layers_start_small() -> None:
    with seeded(0):
        made = ConvTileDecoder(ConvTile(kernel=2, classes=50), Site(16))
    for layer in (made.conv[-1], made.vector[-1], made.head):
        assert not layer.bias.any()
        bound = layer.in_features**-0.5 / 5  # of torch's own: uniform up to 1 / sqrt(inputs)
        assert 0.97 * bound < layer.weight.abs().max().item() <= bound


@pytest.mark.parametrize("shape", [(7, 8), (7,)])
def test_another_number_of_classes_is_refused(decoder: ConvTileDecoder, shape: tuple[int, ...]) -> None:
    head = slot(shape, "head", "fc", class_axis=0)
    with pytest.raises(InvalidInput, match=r"^fc is for 7 classes; this generator is for 5$") as caught:
        decoder.check(TargetSpec((slot((3, 3, 3, 3)), head)))
    assert "logah" in caught.value.hint


def test_kernels_of_three_sides_are_refused(decoder: ConvTileDecoder) -> None:
    with pytest.raises(InvalidInput, match="stem is a kernel of 3 sides; this generator makes at most 2"):
        decoder.check(TargetSpec((slot((3, 3, 3, 3, 3), name="stem"),)))


def test_a_decoder_beyond_all_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(InvalidInput, match=r"the most is 10,000,000,000"):
        ConvTileDecoder(ConvTile(kernel=256), Site(768))


def test_gradients_reach_only_the_middle(decoder: ConvTileDecoder, codes: Tensor) -> None:
    decoder.zero_grad()
    decoder(codes, [slot((3, 2, 3, 3))] * 3).square().sum().backward()
    assert decoder.fc.weight.grad is not None
    reached = decoder.fc.weight.grad.view(4 * D, SIDE, SIDE, D).abs().sum((0, 3)) > 0
    want = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    want[2:5, 2:5] = True
    assert torch.equal(reached, want)
    decoder.zero_grad()
