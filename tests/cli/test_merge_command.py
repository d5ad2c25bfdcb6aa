"""`paramsmith merge`: from words to a recipe; the engine is a stand-in, but in the last test."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import paramsmith.merge as engine
from paramsmith.cli.app import cli
from paramsmith.recipe import ModelEntry, Recipe


@dataclass
class Calls:
    """What the engine was asked for."""

    recipe: Recipe = field(default_factory=lambda: Recipe(method=""))
    output: Path = Path()
    options: dict[str, object] = field(default_factory=dict)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen = Calls()
    told = SimpleNamespace(bytes_written=10**9, to_json=lambda: {"passes": 1}, warnings=(), describe=lambda: "the plan")

    def plan(recipe: Recipe, output: Path, options: dict[str, object]) -> SimpleNamespace:
        seen.recipe, seen.output, seen.options = recipe, output, options
        return told

    def run(recipe: Recipe, output: Path, options: dict[str, object]) -> SimpleNamespace:
        plan(recipe, output, options)
        json_form = {"output": str(output)}
        return SimpleNamespace(
            plan=told,
            seconds=2.0,
            path="eager",
            output=output,
            warnings=("careful",),
            to_json=lambda: json_form,
            pushed=None,
        )

    for name, value in (("plan", plan), ("run", run), ("RunOptions", dict)):
        monkeypatch.setattr(engine, name, value, raising=False)
    return seen


def merge(*words: str) -> Result:
    return CliRunner().invoke(cli, ["merge", *words])


def test_models_and_options(calls: Calls) -> None:
    words = shlex.split(
        "a b -o out --method ties --base c --weight 0.3,0.7 --density mlp=0.5 --density 0.2 --lambda 0..1"
    )
    done = merge(
        *words, "--no-normalize", "--seed", "3", "--memory", "2GB", "--compile", "never", "--shard-size", "5GB"
    )
    assert done.exit_code == 0
    assert done.stdout == "out: 1.0 GB from 2 models in 2.0 s, 500.0 MB/s, eager\n"
    assert done.stderr == "warning: careful\n"
    recipe = calls.recipe
    assert [m.model for m in recipe.models] == ["a", "b"]
    assert (recipe.method, recipe.base, recipe.seed, recipe.shard_size) == ("ties", "c", 3, "5GB")
    assert recipe.parameters == {
        "weight": [0.3, 0.7],
        "density": [{"value": 0.5, "filter": "mlp"}, {"value": 0.2}],
        "lambda": {"gradient": [0, 1]},
        "normalize": False,
    }
    assert calls.options.pop("progress") is not None
    wanted = {
        "memory": "2GB",
        "device": "cpu",
        "compile": "never",
        "strict": False,
        "force": False,
        "stream": False,
        "push": None,
    }
    assert calls.options == wanted


@pytest.mark.parametrize(("words", "value"), [(["true"], True), (["false"], False), ([], True)])
def test_switches_take_a_word_too(calls: Calls, words: list[str], value: bool) -> None:
    assert merge("--normalize", *words, "a", "b", "-o", "out").exit_code == 0
    assert calls.recipe.parameters == {"normalize": value}
    assert [m.model for m in calls.recipe.models] == ["a", "b"]


def test_a_recipe_and_what_overrides_it(calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "merge_method: ties\nbase_model: c\nmodels:\n- {model: a, parameters: {weight: 1, density: 0.9}}\n- model: b\n"
        "parameters: {int8_mask: true, lambda: 0.5}\n"
    )
    done = merge(str(path), "-o", "out", "--density", "0.3", "--base", "d", "-q")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "int8_mask has no effect" in done.stderr
    assert calls.recipe.models == (ModelEntry(model="a", parameters={"weight": 1}), ModelEntry(model="b"))
    assert calls.recipe.parameters == {"lambda": 0.5, "flavour": "mergekit", "density": 0.3}
    assert calls.recipe.base == "d"


def test_dry_run_and_json(calls: Calls) -> None:
    assert merge("a", "b", "--dry-run").stdout == "the plan\n"
    assert json.loads(merge("a", "b", "--dry-run", "--json").stdout) == {"passes": 1}
    assert json.loads(merge("a", "b", "-o", "x", "--json").stdout) == {"output": "x"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "b"], "error: no output given"),
        (["a", "-o", "x", "--wieght", "1"], "did you mean --weight?"),
        (["a", "-o", "x", "--method", "slerp", "--density", "1"], 'method "slerp" has no parameter "density"'),
        (["a", "-o", "x", "--method", "tise"], "did you mean 'ties'?"),
        (["a", "-o", "x", "--weight", "1", "--weight", "2"], "--weight is given twice: 1 and 2"),
        (["a@v1", "-o", "x"], "is no user/name@revision"),
        (["a", "-o", "x", "--dtype", "bfloat"], "bfloat"),
        (["a", "-o", "x", "--shard-size", "big"], "size"),
        (["r.yaml", "a", "-o", "x"], "r.yaml is a recipe"),
        (["r.yaml", "-o", "x"], "r.yaml: no such file"),
    ],
)
def test_mistakes(calls: Calls, words: list[str], told: str) -> None:
    done = merge(*words)
    assert done.exit_code == 2
    assert told in done.stderr
    assert calls.recipe.method == ""


def test_help_names_the_methods_of_each_parameter() -> None:
    text = " ".join(merge("--help").stdout.split())
    assert "--no-normalize" in text
    assert "[dare, task_arithmetic, ties]" in text


@pytest.mark.skipif(not hasattr(engine, "run"), reason="the engine is not there")
def test_a_real_merge(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        save_file({"w": torch.full((4, 4), value)}, tmp_path / f"{name}.safetensors")
    a, b, out = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "out"))
    done = merge(a, b, "-o", out, "--weight", "1,3", "--memory", "4GB", "--compile", "never", "--json")
    assert done.exit_code == 0, done.stdout + done.stderr
    written = next(Path(out).glob("*.safetensors"))
    assert load_file(written)["w"].unique().tolist() == [2.5]
