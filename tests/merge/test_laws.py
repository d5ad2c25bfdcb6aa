"""What holds for every registered merge method in every flavour, unasked."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from paramsmith.params import Setting, validated
from paramsmith.registry import MergeMethod, methods
from paramsmith.surveys import Sum
from tests.merge.flavours import ALL, Flavour, run, state_dict

SHAPES = {"embed.w": (11, 4), "layers.0.w": (5, 8), "layers.1.w": (40,), "layers.1.b": (1,), "scale": ()}
PRECISIONS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BASED = [pytest.param(f, b, id=f"{f}{'-with_base' if b and len(f.bases) == 2 else ''}") for f in ALL for b in f.bases]
flavours = pytest.mark.parametrize("flavour", ALL, ids=str)
flavours_and_bases = pytest.mark.parametrize(("flavour", "based"), BASED)
each_method = pytest.mark.parametrize("method", methods().values(), ids=list(methods()))


def given(flavour: Flavour, based: bool, models: int = 3, dtype: torch.dtype = torch.float32) -> tuple[list, Any]:
    made = [state_dict(seed, SHAPES, dtype) for seed in range(flavour.count(models))]
    return made, state_dict(99, SHAPES, dtype) if based else None


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    assert all(same_bits(found[name], wanted[name]) for name in found)


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], atol: float = 1e-5) -> None:
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=atol, rtol=1e-5)


def per_model(method: MergeMethod, values: list[float]) -> dict[str, object]:
    """A value for each model of every per-model parameter, within its bounds: all of ours take (0, 1]."""
    return {
        method.params.model_fields[name].alias or name: list(values)
        for name, kind in method.params.settings().items()
        if kind == "model"
    }


@flavours_and_bases
def test_permuting_the_models_changes_nothing(flavour: Flavour, based: bool) -> None:
    if not flavour.method.symmetric:
        pytest.skip("not declared symmetric")
    models, base = given(flavour, based)
    values = [0.25, 0.5, 0.75][: len(models)]
    first = flavour.merge(models, base, **per_model(flavour.method, values))
    for order in itertools.permutations(range(len(models))):
        chosen = per_model(flavour.method, [values[i] for i in order])
        assert_close(flavour.merge([models[i] for i in order], base, **chosen), first)


@flavours_and_bases
def test_copies_of_one_model_give_it_back(flavour: Flavour, based: bool) -> None:
    if not flavour.method.copies:
        pytest.skip("does not promise it")
    options = {**flavour.options, **({"normalize": True} if "normalize" in flavour.options else {})}
    models, base = given(flavour, based, 1)
    for count in {flavour.count(n) for n in (1, 2, 5)}:
        copies = [{name: t.clone() for name, t in models[0].items()} for _ in range(count)]
        assert_close(flavour.merge(copies, base, **options), models[0])


def test_some_method_promises_copies_and_some_symmetry() -> None:
    """The laws above are not skipped everywhere."""
    assert {"linear", "karcher"} <= {f.method.name for f in ALL if f.method.copies}
    assert {"linear", "ties", "pcb"} <= {f.method.name for f in ALL if f.method.symmetric}


@flavours
@pytest.mark.parametrize("dtype", PRECISIONS, ids=lambda d: str(d).removeprefix("torch."))
def test_the_zero_parameter_at_zero_gives_the_base(flavour: Flavour, dtype: torch.dtype) -> None:
    if flavour.method.zero is None:
        pytest.skip("has none")
    models, base = given(flavour, True, dtype=dtype)
    assert_same_bits(flavour.merge(models, base, **{flavour.method.zero: 0}), base)


@flavours
def test_the_zero_parameter_at_zero_keeps_the_sign_of_zeros(flavour: Flavour) -> None:
    if flavour.method.zero is None:
        pytest.skip("has none")
    base = {"w": torch.tensor([-0.0, 0.0, 1.0, -0.0])}
    models = [{"w": torch.tensor(row)} for row in ([1.0, 2.0, 3.0, 0.0], [-2.0, 1.0, 0.5, -0.0])]
    assert_same_bits(flavour.merge(models, base, **{flavour.method.zero: 0}), base)


@flavours_and_bases
def test_names_shapes_and_dtypes_are_kept(flavour: Flavour, based: bool) -> None:
    for dtype in PRECISIONS:
        models, base = given(flavour, based, dtype=dtype)
        merged = flavour.merge(models, base)
        assert list(merged) == list(models[0])
        for name, tensor in merged.items():
            assert (tensor.shape, tensor.dtype) == (models[0][name].shape, dtype)
            assert tensor.isfinite().all()
        if dtype == torch.float32:
            stored = flavour.merge(models, base, dtype="float16")
            assert_same_bits(stored, {name: t.half() for name, t in merged.items()})


@flavours_and_bases
def test_bfloat16_models_give_the_float32_result_rounded_once(flavour: Flavour, based: bool) -> None:
    models, base = given(flavour, based, dtype=torch.bfloat16)
    wide = [{name: t.float() for name, t in m.items()} for m in models]
    exact = flavour.merge(wide, base and {name: t.float() for name, t in base.items()})
    assert_same_bits(flavour.merge(models, base), {name: t.bfloat16() for name, t in exact.items()})


@flavours_and_bases
def test_models_of_different_dtypes_can_be_mixed(flavour: Flavour, based: bool) -> None:
    models, base = given(flavour, based, dtype=torch.bfloat16)
    wide = [models[0], *({name: t.float() for name, t in m.items()} for m in models[1:])]
    assert_same_bits(flavour.merge(wide, base), flavour.merge(models, base))


@flavours_and_bases
@pytest.mark.parametrize("kind", ["zeros", "constant", "equal", "one_zero", "opposites", "sparse", "base"])
def test_degenerate_models_give_no_nan(flavour: Flavour, based: bool, kind: str) -> None:
    shapes = {**SHAPES, "empty": (0, 3)}
    base = state_dict(99, shapes) if based else None
    first = base or {name: torch.zeros(shape) for name, shape in shapes.items()}
    noise = [state_dict(seed, shapes) for seed in range(flavour.count(3))]
    changes = {
        "zeros": lambda i, n: n * 0,
        "constant": lambda i, n: n * 0 + 0.5,
        "equal": lambda i, n: noise[0][name],
        "one_zero": lambda i, n: n * (i > 0),
        "opposites": lambda i, n: noise[0][name] * (-1) ** i,
        "sparse": lambda i, n: n * (torch.arange(n.numel()).view(n.shape) % 4 == i),
        "base": lambda i, n: n * 0,
    }
    models = []
    for i, model in enumerate(noise):
        models.append({})
        for name, tensor in model.items():
            models[-1][name] = first[name] + changes[kind](i, tensor)
    assert all(t.isfinite().all() for t in flavour.merge(models, base).values())


@flavours_and_bases
def test_one_model_will_do_where_the_method_takes_one(flavour: Flavour, based: bool) -> None:
    if flavour.method.models[0] > 1:
        pytest.skip("needs more")
    models, base = given(flavour, based, 1)
    merged = flavour.merge(models, base)
    assert all(t.isfinite().all() for t in merged.values())
    if flavour.method.base == "required":
        assert any(not torch.equal(merged[name], base[name]) for name in merged)  # type: ignore[index]


@flavours
def test_the_seed_decides_what_chance_does(flavour: Flavour) -> None:
    if flavour.method.name == "atlas":
        pytest.skip("draws where there are learned factors for several partitions: test_coefficients.py")
    models, base = given(flavour, flavour.bases[-1])
    once, again = (flavour.merge(models, base, seed=7) for _ in range(2))
    assert_same_bits(once, again)
    other = flavour.merge(models, base, seed=8)
    assert any(not torch.equal(once[name], other[name]) for name in once) == flavour.method.random


def test_chance_depends_on_the_tensors_name_and_the_models_place() -> None:
    """Equal tensors under two names, and equal models in two places, are dropped differently; order is of no matter."""
    model = {"a": torch.ones(500), "b": torch.ones(500)}
    base = {name: torch.zeros(500) for name in model}
    random = next(f for f in ALL if f.method.name == "dare")
    one = random.merge([model], base)
    assert not torch.equal(one["a"], one["b"])
    turned = random.merge([dict(reversed(model.items()))], dict(reversed(base.items())))
    assert torch.equal(turned["a"], one["a"])
    two = random.merge([{n: t * 0 for n, t in model.items()}, model], base)
    assert not torch.equal(two["a"], one["a"])


@flavours_and_bases
def test_inputs_are_left_as_they_were(flavour: Flavour, based: bool) -> None:
    models, base = given(flavour, based)
    kept = [{name: t.clone() for name, t in m.items()} for m in models]
    merged = flavour.merge(models, base)
    for before, after in zip(kept, models, strict=True):
        assert_same_bits(after, before)
    pointers = {t.data_ptr() for m in [*models, base or {}] for t in m.values()}
    assert pointers.isdisjoint(t.data_ptr() for t in merged.values())


@flavours
def test_parameters_survive_plain_data(flavour: Flavour) -> None:
    params = flavour.method.params
    per_layer = {"value": {"gradient": [0.25, 0.5]}, "filter": "mlp&!layers[0:2]"}
    varied = {
        params.model_fields[name].alias or name: [per_layer, {"value": [0.5, 0.75] if kind == "model" else 0.5}]
        for name, kind in params.settings().items()
    }
    for said in ({}, flavour.options, {**flavour.options, **varied}):
        made = validated(params, said, flavour.method.name)
        again = validated(params, json.loads(json.dumps(plain(made))), flavour.method.name)
        assert again == made
        assert plain(again) == plain(made)


def plain(options: BaseModel) -> dict[str, object]:
    found = {}
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        found[field.alias or name] = value.plain() if isinstance(value, Setting) else value
    return found


@each_method
def test_methods_are_documented(method: MergeMethod) -> None:
    assert inspect.getdoc(method.function), "no docstring"
    assert method.doc.splitlines()[0].endswith((".", ":")) or "." in method.doc.splitlines()[0]
    if method.name != "passthrough":
        assert "Paper:" in method.doc or "Source:" in method.doc
        assert ("Paper:" in method.doc) == bool(method.paper)
    assert method.paper in method.doc
    for name, field in method.params.model_fields.items():
        assert field.description, f"{name} is not described"
        assert not name.endswith("_") or field.alias, f"{name} needs an alias"
    if method.zero:
        assert any(method.zero == (f.alias or n) for n, f in method.params.model_fields.items())
    assert method.params(), "a method can be asked for without parameters"


@flavours_and_bases
def test_nan_spoils_its_own_element_only(flavour: Flavour, based: bool) -> None:
    """Unless the method looks at whole tensors; and it is told of."""
    models, base = given(flavour, based)
    models[0]["layers.0.w"][2, 3] = math.nan
    merged, warnings = run(models, base, flavour.method.name, **flavour.options)
    spoilt = {name for name, t in merged.items() if t.isnan().any()}
    assert spoilt <= {"layers.0.w"}
    if flavour.method.unchanged is not None:
        return  # bytes that are only copied are not looked at
    assert any("model 1: layers.0.w holds NaN" in w for w in warnings)
    if flavour.method.granularity == "element" and not any(isinstance(s, Sum) for s in flavour.surveys()):
        assert int(merged["layers.0.w"].isnan().sum()) <= 1
