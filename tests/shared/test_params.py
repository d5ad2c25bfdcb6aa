"""Settings in every form they can be written, the tensors they reach, and what is said about mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from paramsmith.errors import InvalidInput
from paramsmith.params import (
    Layer,
    Number,
    Params,
    PerModel,
    PerTensor,
    Resolved,
    Share,
    matches,
    parse_option,
    validated,
)


class Demo(Params):
    """One of each."""

    weight: PerModel[Number] = Field(1.0, description="w")
    density: PerModel[Share] = Field(0.5, description="d")
    lambda_: PerTensor[Number] = Field(1.0, alias="lambda", description="l")
    flag: bool = Field(False, description="f")
    kind: Literal["a", "b"] = Field("a", description="k")
    count: int = Field(3, ge=1, description="c")


def made(**values: object) -> Demo:
    return validated(Demo, values, "demo")


def at(plain: object, name: str = "layers.1.mlp.up", index: int | None = 1, count: int = 5, model: int = 0) -> object:
    return made(weight=plain).weight.at(model, name, None if index is None else Layer(index=index, count=count))


def test_one_value_is_for_all() -> None:
    assert [at(0.5, model=m) for m in range(3)] == [0.5] * 3
    assert at(2) == 2.0
    assert at("0.5") == 0.5  # as a number of the command line or YAML's 1e-5 may come
    assert not made(weight=0.5).weight.varies


def test_a_list_is_one_value_a_model() -> None:
    for plain in ([0.25, 0.5, 0.75], (0.25, 0.5, 0.75)):
        assert [at(plain, model=m) for m in range(3)] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("anchors", "wanted"),
    [
        ([0, 1], [0, 0.25, 0.5, 0.75, 1]),
        ([0, 1, 0], [0, 0.5, 1, 0.5, 0]),
        ([0.5], [0.5] * 5),
        ([0, 0.5, 1, 1], [0, 0.375, 0.75, 1, 1]),
        ([1, 0, 1, 0, 1, 0, 1], [1, 0.5, 0, 0.5, 1]),
    ],
)
def test_a_gradient_is_linear_between_its_anchors(anchors: list[float], wanted: list[float]) -> None:
    assert [at({"gradient": anchors}, index=i) for i in range(5)] == pytest.approx(wanted)
    assert at({"gradient": anchors}, index=None) == anchors[0], "outside the layers t is 0"
    assert at({"gradient": anchors}, index=0, count=1) == anchors[-1], "of one layer t is 1, as in mergekit"


def test_gradients_and_filters_make_a_setting_vary() -> None:
    for plain in ({"gradient": [0, 1]}, {"value": 1, "filter": "mlp"}, [{"value": 1, "filter": "a"}, {"value": 0}]):
        assert made(weight=plain).weight.varies
    assert not made(weight={"gradient": [1]}).weight.varies
    assert not made(weight={"value": 1, "filter": "*"}).weight.varies


def test_the_first_filter_that_matches_wins() -> None:
    rules = [
        {"value": 0.1, "filter": "mlp&up"},
        {"value": 0.2, "filter": "mlp"},
        {"value": 0.3, "filter": "*"},
        {"value": 0.4},
    ]
    assert at(rules) == 0.1
    assert at(rules, "layers.1.mlp.down") == 0.2
    assert at(rules, "embed") == 0.3
    assert at(rules[:2], "embed") is None
    assert at({"value": 0.2, "filter": "mlp"}, "embed") is None


def test_values_of_a_rule_may_differ_by_model_and_layer() -> None:
    rules = [{"value": [0.1, 0.2], "filter": "mlp"}, {"value": {"gradient": [0, 1]}}]
    assert [at(rules, model=m) for m in (0, 1)] == [0.1, 0.2]
    assert [at(rules, "norm", model=m) for m in (0, 1)] == [0.25, 0.25]
    each = [{"gradient": [0, 1]}, 0.5]
    assert [at(each, model=m) for m in (0, 1)] == [0.25, 0.5]
    chains = [[{"value": 0.1, "filter": "mlp"}, {"value": 0.2}], [{"value": 0.3}]]
    assert [at(chains, model=m) for m in (0, 1)] == [0.1, 0.3]
    assert [at(chains, "norm", model=m) for m in (0, 1)] == [0.2, 0.3]


@pytest.mark.parametrize(
    ("wanted", "name", "index", "hit"),
    [
        ("*", "x", None, True),
        (None, "x", None, True),
        ("mlp", "layers.1.mlp.up", 1, True),
        ("mlp", "layers.1.attn", 1, False),
        ("!mlp", "layers.1.attn", 1, True),
        ("!mlp", "layers.1.mlp.up", 1, False),
        ("m.p", "mlp", None, False),
        ("/m.p/", "a.mlp.b", None, True),
        ("/^m.p/", "a.mlp.b", None, False),
        ("!/^m.p/", "a.mlp.b", None, True),
        ("/(q|k)&?_proj$/", "attn.q_proj", None, True),
        ("layers[0:2]", "x", 1, True),
        ("layers[0:2]", "x", 2, False),
        ("layers[:2]", "x", 0, True),
        ("layers[6:]", "x", 7, True),
        ("layers[-2:]", "x", 6, True),
        ("layers[-2:]", "x", 5, False),
        ("layers[:-1]", "x", 7, False),
        ("layers[:]", "x", 3, True),
        ("layers[:]", "embed", None, False),
        ("!layers[:]", "embed", None, True),
        ("mlp&layers[2:4]", "layers.3.mlp", 3, True),
        ("mlp&layers[2:4]", "layers.3.attn", 3, False),
        ("mlp&!layers[2:4]", "layers.5.mlp", 5, True),
        ("mlp&!up&!layers[2:4]", "layers.5.mlp.up", 5, False),
    ],
)
def test_filters(wanted: str | None, name: str, index: int | None, hit: bool) -> None:
    assert matches(wanted, name, None if index is None else Layer(index=index, count=8)) is hit


def test_a_list_of_filters_must_all_match() -> None:
    plain = {"value": 0.5, "filter": ["mlp", "!up"]}
    assert (at(plain, "mlp.down"), at(plain, "mlp.up")) == (0.5, None)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("0.5", 0.5),
        ("3", 3),
        ("-1", -1),
        ("1e-5", 1e-5),
        ("true", True),
        ("False", False),
        ("paper", "paper"),
        ("0.3,0.5,0.2", [0.3, 0.5, 0.2]),
        ("0..0.5..1", {"gradient": [0, 0.5, 1]}),
        ("0..1,0.5", [{"gradient": [0, 1]}, 0.5]),
        ("mlp=0.5", {"value": 0.5, "filter": "mlp"}),
        ("mlp=0.3,0.5", {"value": [0.3, 0.5], "filter": "mlp"}),
        ("mlp&layers[0:8]=0..1", {"value": {"gradient": [0, 1]}, "filter": "mlp&layers[0:8]"}),
        ("!mlp=1", {"value": 1, "filter": "!mlp"}),
        ("/mlp.*weight$/=0.5", {"value": 0.5, "filter": "/mlp.*weight$/"}),
        ("/a=b/=0.5", {"value": 0.5, "filter": "/a=b/"}),
    ],
)
def test_the_command_lines_grammar(text: str, plain: object) -> None:
    assert parse_option(text) == plain
    assert type(parse_option(text)) is type(plain)


@pytest.mark.parametrize("text", ["", "=", "=0.5", ",", "0.3,", "..", "1..", "mlp=", "a..b", "0.5,x"])
def test_what_the_grammar_cannot_mean_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        made(weight=parse_option(text))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"wieght": 1}, "there is no parameter wieght"),
        ({"weight": math.nan}, "weight: Input should be a finite number"),
        ({"weight": [1, math.inf]}, "weight: Input should be a finite number"),
        ({"weight": "much"}, "weight: .*found much"),
        ({"weight": []}, "weight"),
        ({"weight": None}, "weight"),
        ({"weight": {"gradient": []}}, "a gradient is a list of one or more values"),
        ({"weight": {"gradient": 3}}, "a gradient is a list of one or more values"),
        ({"weight": {"value": 1, "fliter": "mlp"}}, "unknown key 'fliter'"),
        ({"weight": {"filter": "mlp"}}, "weight"),
        ({"weight": {"value": 1, "filter": "/(/"}}, "is no regular expression"),
        ({"weight": {"value": 1, "filter": "/open"}}, "without closing it"),
        ({"weight": {"value": 1, "filter": "layers[a:b]"}}, "is no layer range"),
        ({"weight": {"value": 1, "filter": "a&&b"}}, "an empty filter"),
        ({"weight": {"value": 1, "filter": "!"}}, "an empty filter"),
        ({"weight": [{"value": [1, 2], "filter": "a"}, {"value": [1, 2, 3]}]}, "different numbers of models"),
        ({"density": 0}, "density: Input should be greater than 0"),
        ({"density": [0.5, 1.5]}, "density: Input should be less than or equal to 1"),
        ({"density": {"gradient": [0.5, 2]}}, "density: Input should be less than or equal to 1"),
        ({"density": [{"value": 2, "filter": "a"}, {"value": 0.5}]}, "density: Input should be less than"),
        ({"kind": "c"}, "kind: Input should be 'a' or 'b'"),
        ({"count": 0}, "count: Input should be greater than or equal to 1"),
        ({"count": 2.5}, "count: Input should be a valid integer"),
        ({"flag": "perhaps"}, "flag: Input should be a valid boolean"),
    ],
)
def test_mistakes_are_told_with_the_parameters_name(values: Mapping[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as caught:
        made(**values)
    assert str(caught.value).startswith("demo: ")


def test_all_mistakes_are_told_at_once_and_printably() -> None:
    with pytest.raises(InvalidInput) as caught:
        made(weight="\x1b[31m", density=7, nonsense=1)
    assert all(name in str(caught.value) for name in ("weight", "density", "nonsense"))
    assert "\x1b" not in str(caught.value)


def test_params_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        made().count = 5  # type: ignore[misc]


def test_aliases_and_kinds() -> None:
    assert made(**{"lambda": 0.5}) == made(lambda_=0.5)
    assert Demo.settings() == {"weight": "model", "density": "model", "lambda_": "tensor"}


def test_resolved_parameters_are_attributes_and_no_others() -> None:
    p = Resolved(Demo(), {"weight": torch.ones(2, 1)}, {"weight": (1.0, 1.0)})
    assert p.weight.shape == (2, 1)
    assert p.values("weight") == (1.0, 1.0)
    with pytest.raises(AttributeError):
        _ = p.wieght


NUMBERS = st.floats(-10, 10)
VALUES = NUMBERS | st.lists(NUMBERS, min_size=1, max_size=4).map(lambda anchors: {"gradient": anchors})
FILTERS = st.sampled_from(["mlp", "!mlp", "/a.*b/", "layers[0:3]", "mlp&layers[-2:]", "*"])
RULE = st.fixed_dictionaries({"value": VALUES | st.lists(VALUES, min_size=3, max_size=3)}, optional={"filter": FILTERS})
PLAIN = VALUES | st.lists(VALUES, min_size=1, max_size=3) | RULE | st.lists(RULE, min_size=1, max_size=3)


@given(PLAIN)
def test_settings_survive_plain_data(plain: object) -> None:
    once = made(weight=plain)
    again = made(weight=once.weight.plain())
    assert again == once
    assert again.weight.plain() == once.weight.plain()
    assert Demo.model_validate_json(once.model_dump_json()) == once
