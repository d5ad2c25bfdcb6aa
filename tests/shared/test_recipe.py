"""Recipes: both spellings, every mistake at once, and hostile YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramsmith.errors import InvalidInput
from paramsmith.recipe import ModelEntry, Recipe, Slice, SliceSource, dump_recipe, load_recipe, parse_recipe

NATIVE = """
method: ties
base: b
models:
  - a
  - {model: c, weight: 0.3}
  - model: d
    parameters: {weight: [{value: 0.1, filter: mlp}, {value: 0.2}]}
parameters: {density: 0.2, lambda: {gradient: [0, 1]}}
dtype: bfloat16
missing: base
seed: 7
shard_size: 5GB
"""


def parse(text: str) -> Recipe:
    return parse_recipe(text, "recipe.yaml")


def mistakes(text: str) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    return caught.value.fact.splitlines()


def test_native() -> None:
    recipe = parse(NATIVE)
    assert recipe.method == "ties"
    assert recipe.base == "b"
    assert [m.model for m in recipe.models] == ["a", "c", "d"]
    assert recipe.models[1].parameters == {"weight": 0.3}
    assert recipe.models[2].parameters == {"weight": [{"value": 0.1, "filter": "mlp"}, {"value": 0.2}]}
    assert recipe.parameters == {"density": 0.2, "lambda": {"gradient": [0, 1]}}
    assert (recipe.dtype, recipe.missing, recipe.seed, recipe.shard_size) == ("bfloat16", "base", 7, "5GB")
    assert recipe.warnings == ()


def test_all_mistakes_at_once_with_lines_and_nearest() -> None:
    found = mistakes(
        "method: ties\nbase: b\nwieght: 3\nnormalize: true\nmoddels: []\nmodels:\n  - model: a\n    wieght: 0.3\n"
        "  - {model: c, parameters: {density: 2, weight: x}}\nparameters: {lamda: 2}\nseed: -1\nmissing: bas\n"
        "shard_size: big\ndtype: bfloat61\n"
    )
    text = "\n".join(found)
    assert [int(line.split(":")[1]) for line in found] == [3, 4, 5, 8, 9, 9, 10, 11, 12, 13, 14]
    assert 'recipe.yaml:3: unknown key "wieght" (did you mean "weight"?) under parameters:' in text
    assert "recipe.yaml:4" in text
    assert "move it under parameters:" in text
    assert '"moddels" (did you mean "models"?)' in text
    assert 'unknown parameter "wieght" of ties (did you mean "weight"?)' in text
    assert '"lamda" of ties (did you mean "lambda"?)' in text
    assert '(did you mean "base"?)' in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a recipe is a mapping"),
        ("[1]", "a recipe is a mapping"),
        ("models: [a]", "no method given"),
        ("method: linear", "no models given"),
        ("method: liner\nmodels: [a]", 'did you mean "linear"'),
        ("method: linear\nmethod: ties\nmodels: [a]", 'recipe.yaml:2: duplicate key "method" (first on line 1)'),
        ("method: linear\nmerge_method: linear\nmodels: [a]", "two names for one thing"),
        ("method: linear\nmodels: [a@v1]", "is no user/name@revision"),
        ("method: linear\nmodels: [a+lora]", "LoRA"),
        ("method: linear\nmodels: [{modle: a}]", 'did you mean "model"'),
        ("method: linear\nmodels: [{model: {path: a, revision: x}}]", '"a@x" does not exist'),
        ("method: linear\nmodels: [a]\nmodules: {}", "modules is not supported yet"),
        ("method: linear\nmodels: [a]\nchat_template: auto", "chat_template is not supported yet"),
        ("method: linear\nmodels: [a]\ntokenizer_source: union", "only base is"),
        ("method: linear\nmodels: [a]\ntokenizer: {source: union}", "only base is"),
        ("method: linear\nmodels: [a]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]", "exclude each other"),
        ("method: linear\nslices: [{sources: [{model: a, layer_range: [0, -1]}]}]", "layer_range is [first, end)"),
        ("method: linear\nslices: [{sources: [{model: a}]}]", "no `layer_range"),
        ("method: linear\nmodels: [{model: a, normalize: true}]", "not set model by model"),
        ("method: linear\nmodels: [a]\nparameters: {weight: .nan}", "not a finite number"),
        ("method: linear\nmodels: [a]\nparameters: 3", "must be a mapping"),
    ],
)
def test_mistakes(text: str, told: str) -> None:
    assert any(told in line for line in mistakes(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: !!python/object/apply:os.system [x]", "tags are not allowed"),
        ("a: !x 1", "tags are not allowed"),
        ("[" * 100_000, "levels deep"),
        ("a: &a [*a]", "alias of itself"),
        (
            "x0: &x0 [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"x{i}: &x{i} [{','.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9)),
            "expands to more",
        ),
        ("a: 1\n---\nb: 2", "a second document"),
        ("a: [1\nb: 2", "recipe.yaml:2: not valid YAML"),
        ("a: \x01", "not valid YAML"),
        ("a: " + "x" * 1_100_000, "more than 1,000,000 bytes"),
        ("a: " + "9" * 5000, "not a number that can be read"),
        ("? [a]\n: b", "a key must be a word"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "merge keys"),
    ],
)
def test_hostile_yaml(text: str, told: str) -> None:
    found = mistakes(text)
    assert any(told in line for line in found)
    assert all(len(line) < 400 for line in found)


def test_aliases_and_references() -> None:
    recipe = parse("method: linear\nmodels: [{model: &m {model: {path: 2024-01-01}}}, 17]\nbase: *m")
    assert [m.model for m in recipe.models] == ["2024-01-01", "17"]
    assert recipe.base == "2024-01-01"


def test_a_path_that_exists_may_hold_any_sign(tmp_path: Path) -> None:
    (tmp_path / "a+b@c").mkdir()
    assert parse(f"method: linear\nmodels: ['{tmp_path / 'a+b@c'}']").models[0].model.endswith("a+b@c")


def test_mergekit_delta_method() -> None:
    recipe = parse(
        "merge_method: dare-ties\nbase_model: b\nmodels:\n- model: b\n- model: a\n  parameters:\n    weight: 0.3\n"
        "    density: [0.1, 1]\n- model: c\n  layer_range: [0, 2]\nparameters: {int8_mask: true, rescale: false}\n"
        "dtype: torch.bfloat16\ntokenizer_source: base\n"
    )
    assert recipe.method == "dare"
    assert [m.model for m in recipe.models] == ["a", "c"]
    assert recipe.models[0].parameters == {"weight": 0.3, "density": {"gradient": [0.1, 1]}}
    assert recipe.parameters["rescale"] == "none"
    assert recipe.parameters["elect"] is True
    assert recipe.parameters["density"] == 1.0
    assert [w.partition(": ")[2] for w in recipe.warnings] == [
        "line 10: layer_range under models has no effect; slices take it",
        'line 1: "dare-ties" read as dare_ties',
        "line 11: int8_mask has no effect here",
    ]


@pytest.mark.parametrize(
    ("method", "parameters", "ours", "expected"),
    [
        ("ties", "{density: 0.5}", "ties", {"density": 0.5, "flavour": "mergekit"}),
        ("dare_linear", "{rescale: 1}", "dare", {"rescale": "l1", "elect": False, "density": 1.0}),
        ("task_arithmetic", "{density: 0.5, rescale: true, normalize: 1.0}", "task_arithmetic", {"normalize": 1.0}),
    ],
)
def test_mergekit_parameters(method: str, parameters: str, ours: str, expected: dict[str, object]) -> None:
    recipe = parse(f"merge_method: {method}\nbase_model: b\nmodels: [{{model: a}}]\nparameters: {parameters}")
    assert (recipe.method, recipe.parameters) == (ours, expected)


def test_mergekit_base_that_is_an_input() -> None:
    linear = parse("merge_method: linear\nbase_model: z\nmodels: [{model: a, parameters: {weight: 1}}]")
    assert [m.model for m in linear.models] == ["a", "z"]
    slerp = parse("merge_method: slerp\nbase_model: b\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0, 1]}")
    assert ([m.model for m in slerp.models], slerp.base) == (["b", "a"], None)
    assert slerp.parameters == {"t": {"gradient": [0, 1]}}
    karcher = parse("merge_method: karcher\nbase_model: b\nmodels: [{model: a}]")
    assert ([m.model for m in karcher.models], karcher.base) == (["a", "b"], None)


def test_mergekit_methods_we_lack() -> None:
    assert "mergekit's method sce is not supported yet" in mistakes("merge_method: sce\nmodels: [{model: a}]")[0]
    assert 'did you mean "dare_ties"' in mistakes("merge_method: dare_tise\nmodels: [{model: a}]")[0]


def test_slices() -> None:
    text = (
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 4]}]\n"
        "- sources: [{model: b, layer_range: [2, 6]}]\n  residual_weight: 1\n"
    )
    recipe = parse(text)
    assert recipe.slices is not None
    assert [s.sources[0].layer_range for s in recipe.slices] == [(0, 4), (2, 6)]
    assert recipe.models == ()
    assert "residual_weight has no effect" in recipe.warnings[0]
    assert parse(dump_recipe(recipe)) == recipe
    uneven = "method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]"
    assert "same number of layers" in mistakes(uneven)[0]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + NATIVE.encode())
    assert load_recipe(path) == parse(NATIVE)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load_recipe(path)
    with pytest.raises(InvalidInput, match="no such file"):
        load_recipe(tmp_path / "none.yaml")


names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="@+\0"), min_size=1, max_size=20)
numbers = st.floats(-9, 9) | st.integers(-9, 9)
shares = st.floats(0.001, 1)


def settings_of(values: st.SearchStrategy[float]) -> st.SearchStrategy[object]:
    one = values | st.builds(lambda v: {"gradient": v}, st.lists(values, min_size=1, max_size=4))
    rule = st.builds(lambda v, f: {"value": v, "filter": f}, one, st.sampled_from(["mlp", "/a.*b/", "!x&y"]))
    return one | st.lists(rule, min_size=1, max_size=3)


entries = st.builds(
    ModelEntry,
    model=names,
    parameters=st.fixed_dictionaries({}, optional={"weight": settings_of(numbers), "density": settings_of(shares)}),
)
sources = st.builds(SliceSource, model=names, layer_range=st.integers(0, 9).map(lambda a: (a, a + 4)))
slices = st.lists(
    st.builds(Slice, sources=st.lists(sources, min_size=1, max_size=2).map(tuple)), min_size=1, max_size=3
)
recipes = st.builds(
    Recipe,
    method=st.just("ties"),
    models=st.lists(entries, min_size=1, max_size=3).map(tuple),
    base=st.none() | names,
    parameters=st.fixed_dictionaries({}, optional={"lambda": settings_of(numbers), "normalize": st.booleans()}),
    dtype=st.sampled_from([None, "bfloat16", "F32"]),
    missing=st.sampled_from(["error", "base", "skip"]),
    seed=st.integers(0, 2**63 - 1),
    shard_size=st.none() | st.just("5GB") | st.integers(1, 10**12),
)


@settings(max_examples=40)
@given(recipes, st.none() | slices.map(tuple))
def test_dump_then_parse_is_the_same_recipe(recipe: Recipe, parts: tuple[Slice, ...] | None) -> None:
    if parts:
        recipe = recipe.model_copy(update={"models": (), "slices": parts})
    text = dump_recipe(recipe)
    assert parse(text) == recipe
    assert dump_recipe(parse(text)) == text


@settings(max_examples=60)
@given(st.text(max_size=200))
def test_any_text_is_answered_with_sentences(text: str) -> None:
    told = mistakes(text)
    assert all(line.startswith("recipe.yaml:") for line in told)
