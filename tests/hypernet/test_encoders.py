"""The plain encoders: nothing asked for, a vector, a set."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.empty import Empty, EmptyEncoder
from paramsmith.hypernet.encoders.set import Set, SetEncoder
from paramsmith.hypernet.encoders.vector import Vector, VectorEncoder
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import validated
from paramsmith.parts import encoders

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "mip_hyperlight_behaviour.json").read_text())
SPEC = TargetSpec((Slot("w", (2, 2), "F32", "matrix", 2), Slot("b", (2,), "F32", "bias", 2)))


def vector(count: int, width: int = 8, **options: Any) -> VectorEncoder:
    with seeded(0):
        return VectorEncoder(validated(Vector, options, "vector"), Site(width, SPEC, {"vector": (count,)}))


def sets(dim: int = 3, width: int = 8, **options: Any) -> SetEncoder:
    with seeded(0):
        return SetEncoder(validated(Set, options, "set"), Site(width, SPEC, {"set": (0, dim)}))


def rows(*values: float) -> dict[str, Tensor]:
    return {"vector": torch.tensor([values])}


# Nothing asked for


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_empty_is_one_learned_code(init: Any) -> None:
    with seeded(0):
        encoder = EmptyEncoder(Empty(std=0.5, init=init), Site(40_000))
    code = encoder({}, SPEC)
    assert code.shape == (1, 1, 40_000)
    assert code.std().item() == pytest.approx(0.5, rel=0.02)
    assert (code.abs().max() < 0.5 * sqrt(3)) == (init == "uniform")
    assert [p.numel() for p in encoder.parameters()] == [40_000]
    code.sum().backward()
    assert encoder.code.grad is not None


# A vector


def test_encodings_of_the_oracle() -> None:
    given, both = torch.tensor([ORACLE["encode_cos_sin"]["input"]]), ORACLE["encode_cos_sin"]
    found = vector(4).encoded(given)
    torch.testing.assert_close(found[0], torch.tensor(both["output"]), atol=5e-7, rtol=0)
    assert found.square().sum().item() == pytest.approx(both["squared_norm"])
    pair = vector(4, encoding="pair").encoded(given)
    torch.testing.assert_close(pair[0], torch.tensor(ORACLE["encode_z_1mz"]))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6))
def test_the_norm_of_an_encoding_does_not_tell_the_input(values: list[float]) -> None:
    found = vector(len(values)).encoded(torch.tensor([values]))
    assert found.square().sum().item() == pytest.approx(len(values), rel=1e-5)


def test_unit_and_raw() -> None:
    unit, raw = vector(2, encoding="unit"), vector(2, encoding="raw")
    torch.testing.assert_close(unit.encoded(torch.tensor([[3.0, 4.0], [0.0, 0.0]])), torch.tensor([[0.6, 0.8], [0, 0]]))
    assert raw.encoded(torch.tensor([[3.0, -4.0]])).tolist() == [[3.0, -4.0]]
    scaled = vector(2, encoding="raw", low=[-4, 0], high=[4, 10])
    torch.testing.assert_close(scaled.encoded(torch.tensor([[2.0, 5.0]])), torch.tensor([[0.75, 0.5]]))


@pytest.mark.parametrize("init", ["fan_out", "fan_in"])
def test_how_layers_begin(init: str) -> None:
    encoder = vector(100, width=300, hidden=(200,), init=init)
    layers = [layer for layer in encoder.body if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(200, 200), (300, 200)]
    for layer in layers:
        fan = layer.out_features if init == "fan_out" else layer.in_features
        assert layer.weight.std().item() == pytest.approx(sqrt(2 / fan), rel=0.02)
        assert not layer.bias.any()


def test_layers_follow_each_other_with_leaky_relus() -> None:
    encoder = vector(1, width=4, hidden=(3,))
    code = encoder(rows(0.25), SPEC)
    assert code.shape == (1, 1, 4)
    hidden = vector(1).encoded(torch.tensor([[0.25]]))
    for layer in (encoder.body[0], encoder.body[2]):
        assert isinstance(layer, nn.Linear)
        hidden = nn.functional.leaky_relu(hidden @ layer.weight.T + layer.bias, 0.01)
    torch.testing.assert_close(code[:, 0], hidden)


def test_without_a_body_the_numbers_are_the_code() -> None:
    encoder = vector(3, width=3, encoding="raw", body=False)
    assert not list(encoder.parameters())
    assert encoder({"vector": torch.tensor([[1.0, -20.0, 3.0]])}, SPEC).tolist() == [[[1.0, -20.0, 3.0]]]
    with pytest.raises(InvalidInput, match="has a width of 6"):
        vector(3, width=3, body=False)


def test_many_conditions_are_as_one_by_one() -> None:
    encoder = vector(2, hidden=(16,))
    many = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    together = encoder({"vector": many}, SPEC)
    assert together.shape == (5, 1, 8)
    for i in range(5):
        torch.testing.assert_close(encoder({"vector": many[i : i + 1]}, SPEC), together[i : i + 1])


@pytest.mark.parametrize(
    ("options", "values", "told"),
    [
        ({}, (0.5, 1.5), "coordinate 1 of the condition is 1.5, outside 0 to 1"),
        ({}, (-0.01, 0.5), "coordinate 0 of the condition is -0.01, outside 0 to 1"),
        ({"low": [0, -5], "high": [1, 5], "encoding": "raw"}, (0.5, 7.0), "coordinate 1 .* is 7, outside -5 to 5"),
        ({"encoding": "raw"}, (0.5, float("nan")), "coordinate 1 of the condition is nan"),
        ({"encoding": "unit"}, (float("inf"), 0.5), "coordinate 0 of the condition is inf"),
    ],
)
def test_what_lies_outside_is_named(options: dict[str, Any], values: tuple[float, ...], told: str) -> None:
    encoder = vector(2, **options)
    with pytest.raises(InvalidInput, match=told):
        encoder(rows(*values), SPEC)


def test_the_row_is_named_too_and_rounding_forgiven() -> None:
    encoder = vector(1, low=0.1, high=0.7)
    with pytest.raises(InvalidInput, match="coordinate 0 of the condition 2 is 3"):
        encoder({"vector": torch.tensor([[0.1], [0.7], [3.0]])}, SPEC)
    ends = torch.tensor([[0.1], [0.7], [0.7000001]], dtype=torch.float64)
    assert encoder({"vector": ends}, SPEC).isfinite().all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"low": 0}, "low without high"),
        ({"high": [1, 2]}, "high without low"),
        ({"low": [0, 0, 0], "high": [1, 1, 1]}, "3 numbers as low, for 2 coordinates"),
        ({"low": [0, 1], "high": 1}, "low is not below high at coordinate 1"),
        ({"low": float("nan"), "high": 1}, "finite number"),
        ({"hidden": [0]}, "greater than or equal to 1"),
        ({"encoding": "sin"}, "encoding"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        vector(2, **options)


@pytest.mark.parametrize("condition", [{}, {"vector": torch.zeros(2)}, {"vector": torch.zeros(1, 3)}])
def test_a_condition_of_another_shape(condition: dict[str, Tensor]) -> None:
    with pytest.raises(InvalidInput, match=r"a condition is `vector`, \(B, 2\)"):
        vector(2)(condition, SPEC)


@pytest.mark.parametrize("shapes", [{}, {"vector": ()}, {"vector": (2, 2)}, {"vector": (0,)}, {"set": (4, 3)}])
def test_a_generator_without_a_vector(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(InvalidInput, match="wants a condition `vector`"):
        VectorEncoder(Vector(), Site(4, SPEC, shapes))


# A set


def asked(samples: int = 2, members: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(samples, members, generator=generator) < 0.7
    mask[:, 0] = True
    return {"set": torch.randn(samples, members, 3, generator=generator), "mask": mask}


def test_a_set_has_no_order_and_no_padding() -> None:
    encoder, given = sets(), asked(4, 6)
    code = encoder(given, SPEC)
    assert code.shape == (4, 1, 8)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(encoder({name: t[:, order] for name, t in given.items()}, SPEC), code)
    filled = torch.where(given["mask"][..., None], given["set"], torch.nan)
    assert torch.equal(encoder({**given, "set": filled}, SPEC), code)
    for sample in range(4):
        alone = given["set"][sample, given["mask"][sample]][None]
        torch.testing.assert_close(encoder({"set": alone}, SPEC), code[sample : sample + 1])


def test_a_set_is_its_mean_member() -> None:
    encoder, given = sets(), asked(1, 4)
    members = given["set"][0, given["mask"][0]]
    torch.testing.assert_close(encoder(given, SPEC)[0, 0], encoder.rho(encoder.phi(members).mean(0)))
    twice = {"set": torch.cat([given["set"]] * 2, 1), "mask": torch.cat([given["mask"]] * 2, 1)}
    torch.testing.assert_close(encoder(twice, SPEC), encoder(given, SPEC))
    other = encoder({"set": given["set"] + 1, "mask": given["mask"]}, SPEC)
    assert not torch.allclose(other, encoder(given, SPEC))


def test_an_empty_set_has_a_code() -> None:
    encoder, given = sets(), asked(2, 3)
    given["mask"][1] = False
    code = encoder(given, SPEC)
    torch.testing.assert_close(code[1, 0], encoder.rho(torch.zeros(128)))
    code.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_sets_that_are_none() -> None:
    encoder, given = sets(), asked()
    for wrong in ({}, {"set": given["set"][0]}, {"set": given["set"][..., :2]}):
        with pytest.raises(InvalidInput, match=r"a condition is `set`, \(B, n, 3\)"):
            encoder(wrong, SPEC)
    with pytest.raises(InvalidInput, match="the mask of a condition is 2x4"):
        encoder({"set": given["set"], "mask": torch.ones(2, 4)}, SPEC)
    with pytest.raises(InvalidInput, match="not finite"):
        encoder({"set": torch.full((1, 2, 3), torch.inf)}, SPEC)
    with pytest.raises(InvalidInput, match="wants a condition `set`"):
        SetEncoder(Set(), Site(4, SPEC, {"vector": (3,)}))


@pytest.mark.parametrize("name", ["empty", "vector", "set"])
def test_encoders_are_registered_and_built_without_memory(name: str) -> None:
    from paramsmith.hypernet.skeleton import _no_memory

    part, site = encoders.find(name), Site(8, SPEC, {"vector": (2,), "set": (0, 3)})
    with _no_memory():
        made = part.make(part.params(), site)
    told = {key: tensor.shape for key, tensor in made.state_dict().items()}
    assert told == {key: tensor.shape for key, tensor in part.make(part.params(), site).state_dict().items()}
