"""Positive rescaling: functions stay, and networks that differ in scale become one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from paramsmith.errors import InvalidInput
from paramsmith.matching import PermutationSpec
from paramsmith.permutations import permutation_spec
from paramsmith.rescaling import unit_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False), nn.LeakyReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 3)).double()


def spec_and_weights() -> tuple[nn.Module, PermutationSpec, dict[str, Tensor]]:
    module = network()
    held = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    return module, permutation_spec({name: tuple(t.shape) for name, t in held.items()}), held


def test_the_function_stays_and_rows_have_unit_length() -> None:
    module, spec, held = spec_and_weights()
    made = unit_rows(spec, held)
    x = torch.randn(6, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(
        functional_call(module, made, x), functional_call(module, held, x), rtol=1e-10, atol=1e-12
    )
    rows = made["0.weight"].flatten(1).square().sum(1) + made["0.bias"].square()
    torch.testing.assert_close(rows, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(made["2.weight"].flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))


def test_networks_that_differ_in_scale_become_one() -> None:
    _, spec, held = spec_and_weights()
    first, second = torch.rand(5, dtype=torch.float64) + 0.1, torch.rand(7, dtype=torch.float64) * 100
    other = {name: tensor.clone() for name, tensor in held.items()}
    other["0.weight"] *= first[:, None, None, None]
    other["0.bias"] *= first
    other["2.weight"] /= first[:, None, None]
    other["5.weight"] *= second[:, None]
    other["5.bias"] *= second
    other["7.weight"] /= second
    both = {name: torch.stack([held[name], other[name]]) for name in held}
    for name, pair in unit_rows(spec, both).items():
        torch.testing.assert_close(pair[0], pair[1])
        torch.testing.assert_close(pair[0], unit_rows(spec, held)[name])


def test_units_that_are_zero_stay() -> None:
    _, spec, held = spec_and_weights()
    held["0.weight"][2], held["0.bias"][2] = 0, 0
    made = unit_rows(spec, held, ["0"])
    assert torch.equal(made["2.weight"][:, 2], held["2.weight"][:, 2])
    assert all(bool(tensor.isfinite().all()) for tensor in made.values())
    assert torch.equal(made["5.weight"], held["5.weight"])  # units that were not named


def test_units_that_cannot_be_rescaled() -> None:
    norm = permutation_spec({"0.weight": (6, 4), "1.weight": (6,), "1.bias": (6,), "2.weight": (3, 6)})
    with pytest.raises(InvalidInput, match=r"1\.weight: belongs to a norm"):
        unit_rows(norm, {})
    added = PermutationSpec({"a.weight": ("p", None), "b.weight": ("p", None), "c.weight": (None, "p")})
    with pytest.raises(InvalidInput, match="2 layers put out the units p"):
        unit_rows(added, {})
    with pytest.raises(InvalidInput, match="q: is no permutation"):
        unit_rows(added, {}, ["q"])
