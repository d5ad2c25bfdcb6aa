"""Learned coefficients: from a file into a merge, and refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramsmith.checkpoint import Checkpoint
from paramsmith.coefficients import Coefficients, uniform_over
from paramsmith.errors import InvalidInput
from paramsmith.merge import merge, merge_state_dicts
from paramsmith.statistics import weights_digest
from tests.merge.folders import merge as command

SHAPES = {"embed.w": (6, 5), "layers.0.w": (70, 1000), "layers.1.b": (5,)}
NAMES = ("base", "a", "b")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A base and two models."""
    made = {name: tmp_path / f"{name}.safetensors" for name in NAMES}
    for seed, path in enumerate(made.values()):
        generator = torch.Generator().manual_seed(seed)
        save_file({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}, path)
    return made


def learned(files: dict[str, Path], **more: Any) -> Coefficients:
    digests = {}
    for name, path in files.items():
        with Checkpoint.open(path) as model:
            digests[name] = weights_digest(model)
    given = {"method": "task_arithmetic", "models": (digests["a"], digests["b"]), "base": digests["base"]}
    return Coefficients(**{**given, "default": uniform_over([0.0, 0.25]), **more})


def test_values_are_used_tensor_by_tensor(files: dict[str, Path], tmp_path: Path) -> None:
    found = learned(files, values={"layers.0.w": ((0.5,), (-1.0,))}, learned={"steps": 3})
    found.save(tmp_path / "c.json")
    done = command(
        files["a"], files["b"], "--base", files["base"], "--coefficients", tmp_path / "c.json", "-o", tmp_path / "m"
    )
    assert done.code == 0, done.err
    merged, (base, a, b) = load_file(tmp_path / "m" / "model.safetensors"), (load_file(files[n]) for n in NAMES)
    for name in SHAPES:
        factors = (0.5, -1.0) if name == "layers.0.w" else (0.0, 0.25)
        wanted = base[name] + (factors[0] * (a[name] - base[name]) + factors[1] * (b[name] - base[name]))
        torch.testing.assert_close(merged[name], wanted)
    assert command(tmp_path / "m" / "recipe.yaml", "-o", tmp_path / "again").code == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "m" / "model.safetensors"
    ).read_bytes()
    merge([files["a"], files["b"]], tmp_path / "third", base=files["base"], coefficients=tmp_path / "c.json")
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == (
        tmp_path / "m" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_file_is_read_as_it_was_written(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    values = {"layers.0.w": ((0.1, 0.2, 1 / 3), (1e-30, -4.0, 5.0))}
    found = learned(
        files, method="atlas", values=values, default=((0.0,) * 3,) * 2, parameters={"partitions": 3}, seed=5
    )
    found.save(tmp_path / f"c.{suffix}")
    assert Coefficients.load(tmp_path / f"c.{suffix}") == found


def test_partitions_have_factors_of_their_own(files: dict[str, Path], tmp_path: Path) -> None:
    """Equal factors give task arithmetic; the seed decides which entry is whose, and threads and blocks do not."""

    def run(seed: int, factors: tuple[tuple[float, ...], ...], name: str, **more: Any) -> torch.Tensor:
        made = learned(files, method="atlas", default=factors, parameters={"partitions": len(factors[0])}, seed=seed)
        made.save(tmp_path / f"{name}.json")
        models = [files["a"], files["b"]]
        merge(
            models, tmp_path / f"{name}.safetensors", base=files["base"], coefficients=tmp_path / f"{name}.json", **more
        )
        return load_file(tmp_path / f"{name}.safetensors")["layers.0.w"]

    base, a, b = (load_file(files[name])["layers.0.w"] for name in NAMES)
    same = run(0, ((0.5,) * 4, (0.25,) * 4), "same")
    torch.testing.assert_close(same, base + 0.5 * (a - base) + 0.25 * (b - base))
    masks = [run(0, (tuple(float(k == j) for j in range(4)), (0.0,) * 4), f"only{k}") != base for k in range(4)]
    assert torch.stack(masks).sum(0).max() == 1
    assert all(0.2 < float(mask.float().mean()) < 0.3 for mask in masks)
    both = run(0, ((1.0, 0.0), (0.0, 1.0)), "both")
    other = run(1, ((1.0, 0.0), (0.0, 1.0)), "other")
    assert not torch.equal(both, other)
    # one map for all models: an entry follows the one or the other
    assert bool((torch.isclose(both, a, atol=1e-5) | torch.isclose(both, b, atol=1e-5)).all())
    assert torch.equal(both, run(0, ((1.0, 0.0), (0.0, 1.0)), "cut", threads=2, block=1 << 16))


def test_one_row_is_for_all_models(files: dict[str, Path], tmp_path: Path) -> None:
    merged = []
    for name, default in (("one", ((0.25,),)), ("two", ((0.25,), (0.25,)))):
        learned(files, method="pcb", parameter="lambda_", default=default).save(tmp_path / f"{name}.json")
        given = {"base": files["base"], "coefficients": tmp_path / f"{name}.json"}
        merge([files["a"], files["b"]], tmp_path / f"{name}.safetensors", **given)
        merged.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert merged[0] == merged[1]


def test_a_parameter_that_the_method_lacks_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    learned(files, parameter="density").save(tmp_path / "c.json")
    with pytest.raises(InvalidInput, match="task_arithmetic has no density"):
        merge([files["a"], files["b"]], tmp_path / "m", base=files["base"], coefficients=tmp_path / "c.json")


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "out of range": (
        {"method": "ties", "parameter": "density", "default": ((7.0,), (0.5,))},
        "less than or equal to 1",
    ),
    "shares unknown to the method": ({"default": ((1.0, 2.0), (3.0, 4.0))}, "2 values a tensor"),
    "other partitions": (
        {"method": "atlas", "default": ((1.0, 2.0), (3.0, 4.0)), "parameters": {"partitions": 3}},
        "2 values a tensor",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_values_that_the_method_cannot_take_are_refused(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    changed, said = UNFIT[name]
    learned(files, **changed).save(tmp_path / "c.json")
    with pytest.raises(InvalidInput, match=said):
        merge([files["a"], files["b"]], tmp_path / "m", base=files["base"], coefficients=tmp_path / "c.json")
    assert not (tmp_path / "m").exists()


def test_what_the_file_says_is_not_contradicted(files: dict[str, Path], tmp_path: Path) -> None:
    learned(files, method="ties", parameters={"density": 0.2}).save(tmp_path / "c.json")
    given: dict[str, Any] = {"base": files["base"], "coefficients": tmp_path / "c.json", "method": "ties"}
    with pytest.raises(InvalidInput, match="already gives density"):
        merge([files["a"], files["b"]], tmp_path / "m", density=0.9, **given)
    merge([files["a"], files["b"]], tmp_path / "m", density=0.2, **given)


def test_a_packed_file_without_tensors_is_whole(files: dict[str, Path], tmp_path: Path) -> None:
    made = learned(files)
    made.save(tmp_path / "c.safetensors")
    assert Coefficients.load(tmp_path / "c.safetensors") == made
    text = "[" * 100_000
    save_file({"w": torch.zeros(2, 1).double()}, tmp_path / "c.safetensors", {"paramsmith.coefficients": text})
    with pytest.raises(InvalidInput, match="is no file of coefficients"):
        Coefficients.load(tmp_path / "c.safetensors")


WRONG = {
    "other models": (["b", "a"], {}, "was not learned with"),
    "fewer models": (["a"], {}, "is about 2 models, 1 given"),
    "another method": (["a", "b"], {"--method": "ties"}, "these are coefficients of task_arithmetic, not of ties"),
    "twice": (["a", "b"], {"--weight": "0.3"}, "already gives weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_coefficients_that_do_not_fit_are_refused(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    learned(files).save(tmp_path / "c.json")
    models, flags, said = WRONG[name]
    words = [word for pair in flags.items() for word in pair]
    listed = [files[m] for m in models]
    done = command(
        *listed, "--base", files["base"], "--coefficients", tmp_path / "c.json", "-o", tmp_path / "out", *words
    )
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    learned(files).save(tmp_path / "c.json")
    save_file({n: torch.zeros(s) for n, s in SHAPES.items()}, tmp_path / "other.safetensors")
    models = [files["a"], files["b"]]
    with pytest.raises(InvalidInput, match="learned with another base"):
        merge(models, tmp_path / "out", base=tmp_path / "other.safetensors", coefficients=tmp_path / "c.json")


DAMAGED = {
    "not json": ("{", "is not valid JSON"),
    "something else": ("{}", "is no file of coefficients"),
    "nan": ({"default": [["nan"], [0.0]]}, "not finite"),
    "a number too few": ({"default": [[0.0]] * 3}, "values for 3 models, not 2"),
    "ragged": ({"values": {"w": [[0.0], [1.0, 2.0]]}}, "same number of values"),
    "unknown key": ({"surprise": 1}, "surprise"),
    "no models": ({"models": []}, "models"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    changed, said = DAMAGED[name]
    plain = json.loads(learned(files).to_bytes(packed=False))
    (tmp_path / "c.json").write_text(changed if isinstance(changed, str) else json.dumps({**plain, **changed}))
    with pytest.raises(InvalidInput, match=said) as problem:
        Coefficients.load(tmp_path / "c.json")
    assert "c.json" in problem.value.fact


def test_excluded_tensors_are_the_first_models_whatever_the_others_have() -> None:
    models = [{"body": torch.zeros(2), "head": torch.ones(3)}, {"body": torch.ones(2), "head": torch.ones(7)}]
    merged = merge_state_dicts(models, exclude=["head"])
    assert merged["head"].tolist() == [1.0] * 3
    assert merged["body"].tolist() == [0.5] * 2
    with pytest.raises(InvalidInput, match="head has shape"):
        merge_state_dicts(models)
    base = {"body": torch.zeros(2), "head": torch.zeros(1)}
    assert merge_state_dicts(models, base=base, method="task_arithmetic", exclude=["/^h/"])["head"].tolist() == [0.0]


def test_an_excluded_tensor_that_others_lack_is_no_warning(tmp_path: Path) -> None:
    save_file({"body": torch.full((2,), 3.0)}, tmp_path / "a.safetensors")
    save_file({"body": torch.ones(2), "head": torch.ones(3)}, tmp_path / "b.safetensors")
    words = (tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", tmp_path / "m.safetensors")
    assert any("left out" in warning for warning in command(*words).warnings)
    done = command(*words, "--exclude", "head", "--force")
    assert (done.code, done.warnings) == (0, [])
    assert command(*words, "--exclude", "/[/", "--force").code == 2


def test_a_filter_that_excludes_nothing_is_told_of(files: dict[str, Path], tmp_path: Path) -> None:
    words = (files["a"], files["b"], "-o", tmp_path / "m.safetensors", "--exclude", "heads", "--exclude", "layers[1:]")
    assert command(*words).warnings == ["nothing is excluded by heads: no tensor has such a name"]


def test_another_seed_than_the_files_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    learned(files, method="atlas", default=((1.0, 0.0),) * 2, parameters={"partitions": 2}, seed=3).save(
        tmp_path / "c.json"
    )
    given = {"base": files["base"], "coefficients": tmp_path / "c.json"}
    merge([files["a"], files["b"]], tmp_path / "m.safetensors", seed=3, **given)
    with pytest.raises(InvalidInput, match="learned with the seed 3, not 7"):
        merge([files["a"], files["b"]], tmp_path / "other.safetensors", seed=7, **given)
