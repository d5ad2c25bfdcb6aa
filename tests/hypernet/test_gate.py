"""Gates: the layer of a Self-Tuning Network, number by number, through a hypernetwork."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.decoders.gate import Gate, GateDecoder
from paramsmith.hypernet.generators.stn import Stn, stn
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.target import Slot, TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "stn_hyperlinear.json").read_text())
SPEC = TargetSpec(
    (
        Slot("0.weight", (5, 1, 3, 3), "F32", "kernel", 9),
        Slot("0.bias", (5,), "F32", "bias", 9),
        Slot("1.weight", (4, 5), "F32", "matrix", 5),
        Slot("1.bias", (4,), "F32", "bias", 5),
        Slot("2.weight", (4, 5), "F32", "matrix", 5),
        Slot("gain", (), "F32", "norm_scale", 1),
    )
)


def built(spec: TargetSpec, width: int, seed: int = 0, **options: Any) -> Hypernetwork:
    site = Site(width, spec, {"vector": (width,)})
    with seeded(seed):
        return Hypernetwork.of(stn(Stn(**options), site), site)


def decoder(width: int = 3, **options: Any) -> GateDecoder:
    with seeded(0):
        return GateDecoder(Gate(**options), Site(width, SPEC))


def of(*names: str) -> list[Slot]:
    return [slot for slot in SPEC.slots if slot.name in names]


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_oracle(factor: float) -> None:
    """One set of weights an example; the reference's V holds the gates of the weight, then those of the bias."""
    told = {
        name: torch.tensor(ORACLE[name], dtype=torch.float32) for name in ("W", "W_h", "b", "b_h", "V", "x", "lam", "y")
    }
    layer = nn.Linear(3, 2)
    spec = TargetSpec((Slot("weight", (2, 3), "F32", "matrix", 3), Slot("bias", (2,), "F32", "bias", 3)))
    made = built(spec, 2)
    base, gates = made.base, made.decoder
    assert isinstance(gates, GateDecoder)
    with torch.no_grad():
        base.theta["weight"].copy_(told["W"])
        base.theta["bias"].copy_(told["b"])
        base.factor.fill_(factor)
        for place, (second, opened) in enumerate(((told["W_h"], told["V"][:2]), (told["b_h"], told["V"][2:]))):
            gates.weights[place].copy_(second[None])
            gates.gates[place].copy_(opened[None])
    weights = made({"vector": told["lam"]})
    for example in range(2):
        own = {name: tensor[example] for name, tensor in weights.items()}
        y = functional_call(layer, own, (told["x"][example],))
        plain = told["W"] @ told["x"][example] + told["b"]
        torch.testing.assert_close(y, told["y"][example] + (factor - 1) * plain, rtol=0, atol=1e-6)


def test_rows_of_any_tensor_are_gated() -> None:
    made, lam = decoder(std=1.0), torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0))
    for group in SPEC.groups:
        slots = [SPEC.slots[number] for number in group]
        found = made(lam.expand(-1, len(slots), -1), slots)
        assert found.shape == (4, len(slots), *slots[0].shape)
        number = made.places.group(slots)
        for place, slot in enumerate(slots):
            weights, gates = made.weights[number][place], made.gates[number][place]
            for sample in range(4):
                opened = gates @ lam[sample, 0]
                want = (
                    torch.stack([o * w for o, w in zip(opened, weights, strict=True)])
                    if slot.shape
                    else opened * weights
                )
                torch.testing.assert_close(found[sample, place], want)


def test_part_of_a_group_is_as_in_the_whole() -> None:
    made, lam = decoder(), torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = made(lam, of("1.weight", "2.weight"))
    torch.testing.assert_close(made(lam[:, 1:], of("2.weight")), whole[:, 1:])


def test_how_it_begins() -> None:
    """W_h as the target, V as N(0, 0.01**2): at first the hyperparameters hardly matter; none at all at lam = 0."""
    spec = TargetSpec((Slot("w", (100, 80), "F32", "matrix", 80),))
    with seeded(0):
        made = GateDecoder(Gate(), Site(30, spec))
    assert made.weights[0].abs().max() <= 1 / 80**0.5
    assert made.weights[0].std().item() == pytest.approx(1 / 240**0.5, rel=0.03)
    assert made.gates[0].std().item() == pytest.approx(0.01, rel=0.05)
    assert not made(torch.zeros(1, 1, 30), spec.slots).any()
    assert sum(p.numel() for p in made.parameters()) == 100 * 80 + 100 * 30


def test_everything_learns() -> None:
    made, lam = built(SPEC, 2), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    weights: dict[str, Tensor] = made({"vector": lam})
    torch.stack([tensor.square().sum() for tensor in weights.values()]).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_one_target_and_hyperparameters() -> None:
    with pytest.raises(InvalidInput, match="is for one target"):
        GateDecoder(Gate(), Site(2))
    with pytest.raises(InvalidInput, match="stn tunes hyperparameters"):
        stn(Stn(), Site(0, SPEC))
    with pytest.raises(InvalidInput, match="another target"):
        decoder().check(TargetSpec((Slot("other", (2,), "F32", "bias", 1),)))
