"""mergekit's documents run as they are; gradients, filters and flags have the values they say, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.merge.folders import WIDTH, config_of, failed, llama, llamas, merge, save
from tests.merge.test_output import assert_equal, logits

LAYERS = 4


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with a base and models a, b, c of four layers."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        save(tmp_path / name, llama(seed, layers=LAYERS), num_hidden_layers=LAYERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


BASE, A, B, C = (llama(seed, layers=LAYERS) for seed in range(4))


def made(folder: Path, text: str, *words: str) -> dict[str, Tensor]:
    """What a recipe makes."""
    (folder / "recipe.yaml").write_text(text)
    done = merge("recipe.yaml", "-o", "out", "--force", *words)
    assert done.code == 0, done
    return load_file(folder / "out" / "model.safetensors")


def layer(name: str) -> int | None:
    return int(name.split(".")[2]) if ".layers." in name else None


def along(anchors: list[float], name: str) -> float:
    """A gradient's value: t = index / (layers - 1), 0 outside the layers, linear between equidistant anchors."""
    index = layer(name)
    place = (0 if index is None else index / (LAYERS - 1)) * (len(anchors) - 1)
    left = min(math.floor(place), len(anchors) - 2)
    return anchors[left] + (place - left) * (anchors[left + 1] - anchors[left])


def close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor.to(found[name].dtype), rtol=1e-5, atol=1e-6)


def slerped(t: float, first: Tensor, second: Tensor) -> Tensor:
    x, y = first.double(), second.double()
    angle = torch.arccos((x * y).sum() / x.norm() / y.norm())
    return (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)


# -- as in mergekit's documents --------------------------------------------------------------


def test_linear(here: Path) -> None:
    found = made(
        here,
        """
models:
  - model: a
    parameters:
      weight: 1.0
  - model: b
    parameters:
      weight: 0.3
  - model: c
    parameters:
      weight: 0.5
merge_method: linear
dtype: float16
""",
    )
    assert {t.dtype for t in found.values()} == {torch.float16}
    assert config_of(here / "out")["torch_dtype"] == "float16"
    close(found, {n: ((A[n].double() + 0.3 * B[n] + 0.5 * C[n]) / 1.8).half() for n in A})


SLERP = """
slices:
  - sources:
      - model: a
        layer_range: [0, 4]
      - model: b
        layer_range: [0, 4]
merge_method: slerp
base_model: {base}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float32
"""


@pytest.mark.parametrize("base", ["a", "b"])
def test_slerp_with_gradients_and_filters(here: Path, base: str) -> None:
    """t = 0 is the base, wherever it stands in the list."""
    found = made(here, SLERP.format(base=base))
    first, second = (A, B) if base == "a" else (B, A)
    for name, tensor in found.items():
        t = 0.5
        if "self_attn" in name:
            t = along([0, 0.5, 0.3, 0.7, 1], name)
        elif "mlp" in name:
            t = along([1, 0.5, 0.7, 0.3, 0], name)
        torch.testing.assert_close(tensor.double(), slerped(t, first[name], second[name]), rtol=1e-5, atol=1e-6)


def test_ties(here: Path) -> None:
    text = """
models:
  - model: a
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: b
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: c
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: base
parameters:
  normalize: true
  int8_mask: true
dtype: float32
"""
    found = made(here, text)
    wanted = {}
    for name, start in BASE.items():
        densities = (along([1, 0.7, 0.1], name), 0.5, 0.33)
        weights = (1.0, along([0, 0.3, 0.7, 1], name), 0.5 if "mlp" in name else 0.0)
        wanted[name] = start + elected([m[name] - start for m in (A, B, C)], densities, weights)
    close(found, wanted)


def elected(deltas: list[Tensor], densities: tuple[float, ...], weights: tuple[float, ...]) -> Tensor:
    """mergekit's TIES of one tensor: keep int(density n) entries, elect by the weighted sum, divide by what agrees."""
    kept = []
    for delta, density in zip(deltas, densities, strict=True):
        count = max(1, int(density * delta.numel()))
        least = delta.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(delta.abs() >= least, delta, 0.0))
    stacked = torch.stack([w * k for w, k in zip(weights, kept, strict=True)])
    factors = torch.tensor(weights).view(-1, *[1] * deltas[0].ndim)
    majority = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = torch.stack(kept).sign() == majority
    divisor = (factors * agrees).sum(0)
    return torch.where(agrees, stacked, 0.0).sum(0) / torch.where(divisor.abs() < 1e-8, 1.0, divisor)


def test_dare_ties_and_task_arithmetic(here: Path) -> None:
    text = """
models:
  - model: base
    # no parameters necessary for base model
  - model: a
    parameters:
      density: 0.53
      weight: 0.4
  - model: b
    parameters:
      density: 0.53
      weight: 0.3
merge_method: {method}
base_model: base
parameters:
  int8_mask: true
dtype: float32
"""
    found = made(here, text.format(method="dare_ties"))
    assert set(found) == set(BASE)
    moved = sum(int((found[n] != BASE[n]).sum()) for n in BASE) / sum(t.numel() for t in BASE.values())
    assert 0.7 < moved < 0.85  # 1 - 0.47 * 0.47
    close(
        made(here, text.format(method="task_arithmetic")),
        {n: BASE[n] + 0.4 * (A[n] - BASE[n]) + 0.3 * (B[n] - BASE[n]) for n in BASE},
    )


FRANKEN = """
slices:
  - sources:
    - model: a
      layer_range: [0, 3]
  - sources:
    - model: b
      layer_range: [1, 4]
merge_method: passthrough
dtype: float32
"""


def moved(tensors: Mapping[str, Tensor], source: int, target: int) -> dict[str, Tensor]:
    here, there = f".layers.{source}.", f".layers.{target}."
    return {n.replace(here, there): t for n, t in tensors.items() if here in n}


def outside(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if layer(n) is None}


def test_layers_stacked_from_two_models(here: Path) -> None:
    found = made(here, FRANKEN)
    embedding = "model.embed_tokens.weight"
    wanted = {**outside(B), embedding: A[embedding]}
    for target, (tensors, source) in enumerate([(A, 0), (A, 1), (A, 2), (B, 1), (B, 2), (B, 3)]):
        wanted |= moved(tensors, source, target)
    assert_equal(found, wanted)
    assert config_of(here / "out")["num_hidden_layers"] == 6
    assert logits(here / "out").isfinite().all()
    again = merge("out/recipe.yaml", "-o", "again")
    assert again.code == 0
    assert_equal(load_file("again/model.safetensors"), wanted)


def test_layers_of_a_deeper_model(here: Path) -> None:
    """The first model named need not have as many layers as the others."""
    save(here / "deep", llama(8, layers=6), num_hidden_layers=6)
    done = merge(recipe(here, FRANKEN.replace("model: b", "model: deep").replace("[1, 4]", "[4, 6]")), "-o", "out")
    assert done.code == 0, done
    assert done.warnings == []
    found = load_file("out/model.safetensors")
    assert config_of(here / "out")["num_hidden_layers"] == 5
    assert_equal(moved(found, 4, 5), moved(llama(8, layers=6), 5, 5))
    too_many = merge(recipe(here, FRANKEN.replace("[1, 4]", "[3, 5]")), "-o", "other")
    failed(too_many, 2, "b has 4 layers", "[3, 5]")


@pytest.mark.parametrize("section", [None, "text_config"])
def test_what_the_config_lists_layer_by_layer_is_stacked_too(here: Path, section: str | None) -> None:
    for name, letters in (("a", "wxyz"), ("b", "stuv")):
        said = {"layer_types": list(letters), "num_hidden_layers": LAYERS, "architectures": ["X", "Y", "Z", "W"]}
        save(here / name, A if name == "a" else B, **({section: said, "num_hidden_layers": None} if section else said))
    made(here, FRANKEN)
    config = config_of(here / "out")
    found = config[section] if section else config
    assert isinstance(found, dict)
    assert found.get("architectures", ["X", "Y", "Z", "W"]) == ["X", "Y", "Z", "W"]
    assert (found["layer_types"], found["num_hidden_layers"]) == (list("wxytuv"), 6)


def recipe(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_a_scaled_layer(here: Path) -> None:
    """Layers doubled, the copies with their outputs turned down."""
    text = """
slices:
  - sources: [{model: a, layer_range: [0, 4]}]
  - sources:
    - model: a
      layer_range: [2, 4]
      parameters:
        scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]
merge_method: passthrough
dtype: float32
"""
    found = made(here, text)
    assert not found["model.layers.5.mlp.down_proj.weight"].any()
    assert torch.equal(found["model.layers.5.mlp.up_proj.weight"], A["model.layers.3.mlp.up_proj.weight"])
    assert torch.equal(found["model.layers.3.mlp.down_proj.weight"], A["model.layers.3.mlp.down_proj.weight"])
    torch.testing.assert_close(logits(here / "out"), logits(here / "a"))  # what they add is nothing


def test_slices_that_name_the_base_too(here: Path) -> None:
    text = """
slices:
  - sources:
    - {model: base, layer_range: [0, 4]}
    - {model: a, layer_range: [0, 4], parameters: {weight: 0.5}}
    - {model: b, layer_range: [LAYERS], parameters: {weight: [0, 1]}}
merge_method: task_arithmetic
base_model: base
dtype: float32
"""
    found = made(here, text.replace("LAYERS", "0, 4"))
    close(found, {n: t + 0.5 * (A[n] - t) + along([0, 1], n) * (B[n] - t) for n, t in BASE.items()})
    shifted = text.replace("LAYERS", "1, 4").replace("base, layer_range: [0, 4]", "base, layer_range: [0, 3]")
    shifted = shifted.replace("{model: a, layer_range: [0, 4]", "{model: a, layer_range: [1, 4]")
    failed(merge(recipe(here, shifted), "-o", "other"), 2, "other layers of the base")


# -- ours ------------------------------------------------------------------------------------


def test_flags_come_before_the_recipe(here: Path) -> None:
    text = "method: linear\nmodels:\n- {model: a, weight: 0.9}\n- {model: b, weight: 0.1}\n"
    close(made(here, text), {n: 0.9 * A[n] + 0.1 * B[n] for n in A})
    close(made(here, text, "--weight", "0.25,0.75"), {n: 0.25 * A[n] + 0.75 * B[n] for n in A})
    close(made(here, text, "--no-normalize", "--weight", "2"), {n: 2 * A[n] + 2 * B[n] for n in A})
    based = made(here, text, "--method", "task_arithmetic", "--base", "base")
    close(based, {n: BASE[n] + 0.9 * (A[n] - BASE[n]) + 0.1 * (B[n] - BASE[n]) for n in A})
    assert {t.dtype for t in made(here, text, "--out-dtype", "bf16").values()} == {torch.bfloat16}


def test_gradients_and_filters_of_the_command_line(here: Path) -> None:
    words = ["a", "b", "--base", "base", "--method", "task_arithmetic", "-o", "out"]
    weights = ["--weight", "self_attn=0..1", "--weight", "!layers[0:2]&mlp=0.5", "--weight", "/norm.weight$/=2,3"]
    assert merge(*words, *weights, "--weight", "0", "--lambda", "1..0..4").code == 0
    wanted = {}
    for name, start in BASE.items():
        index, first, second = layer(name), 0.0, 0.0
        if "self_attn" in name:
            first = second = along([0, 1], name)
        elif "mlp" in name and index not in (0, 1):
            first = second = 0.5
        elif name.endswith("norm.weight"):
            first, second = 2.0, 3.0
        update = first * (A[name] - start) + second * (B[name] - start)
        wanted[name] = start + along([1, 0, 4], name) * update
    close(load_file("out/model.safetensors"), wanted)


def test_slices_of_our_own_with_a_base(here: Path) -> None:
    """Deltas are taken from the base's layer of the first source's number."""
    text = """
method: task_arithmetic
base: base
slices:
- sources: [{model: a, layer_range: [0, 2], weight: 0.5}, {model: b, layer_range: [0, 2], weight: 0.25}]
- sources: [{model: a, layer_range: [1, 2], weight: 2}]
"""
    found = made(here, text)
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(found[name], BASE[name] + 0.5 * (A[name] - BASE[name]) + 0.25 * (B[name] - BASE[name]))
    torch.testing.assert_close(found[name.replace("1", "2")], BASE[name] + 2 * (A[name] - BASE[name]))
    assert config_of(here / "out")["num_hidden_layers"] == 3
    assert found["lm_head.weight"].shape == (32, WIDTH)


def test_every_mistake_of_a_recipe_is_told(here: Path) -> None:
    llamas(here, ("d",))
    (here / "bad.yaml").write_text("method: tise\nmodels:\n- {mdoel: a}\nparamters: {density: 0.2}\n")
    done = merge("bad.yaml", "-o", "out")
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert all(near in "".join(errors) for near in ("ties", '"model"', "parameters"))
    assert not (here / "out").exists()
