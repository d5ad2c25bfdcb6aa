"""Generated adapters and heads in the programs that they are for: PEFT, transformers, and our own merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from paramsmith.cli.app import cli
from tests.hypernet.test_forms import LABELS, QUERY, VALUE, WIDTH, bert, product

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # peft asks transformers by an old name
]

COUNT, RANK, ALPHA, CLASSES = 24, 2, 6, 7
MODULES = (QUERY, VALUE)
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
SAMPLERS, ASKED = ("ridge", "gaussian", "flow"), ("--task", "vector=0.25")
FLOW = ("--steps", 20, "-p", "steps=4", "-p", "batch=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a zoo of adapters for it that PEFT wrote, one of heads, and a sampler of each that was trained."""
    where = tmp_path_factory.mktemp("work")
    model, rng = bert(where / "base"), torch.Generator().manual_seed(0)
    _adapters(model, where / "adapters", rng)
    _heads(where / "heads", rng)
    for name in SAMPLERS:
        run("train", name, "--zoo", where / "adapters", "-o", where / name, *(FLOW if name == "flow" else ()))
    run("train", "flow", "--zoo", where / "heads", "-o", where / "headed", *FLOW)
    return where


def run(*words: object) -> None:
    """A command that has to do its work."""
    done = CliRunner().invoke(cli, [*map(str, words), "--quiet"])
    assert done.exit_code == 0, done.output


def model_of(folder: Path) -> Any:
    """What transformers loads, with all of its tensors from the files."""
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def adapter_of(level: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Low rank pairs that go with a level, and some noise."""
    fixed, found = torch.Generator().manual_seed(1), {}
    for module in MODULES:
        for half, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK))):
            mean, slope = torch.randn(2, *shape, generator=fixed)
            noise = 0.01 * torch.randn(shape, generator=rng)
            found[f"base_model.model.{module}.lora_{half}.weight"] = mean + level * slope + noise
    return found


@torch.no_grad()
def _adapters(model: Any, zoo: Path, rng: torch.Generator) -> None:
    """A folder an adapter, as PEFT saves them."""
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[module[5:] for module in MODULES])
    tuned, lines = peft.get_peft_model(model, config), []
    for i in range(COUNT):
        level = i / COUNT
        peft.set_peft_model_state_dict(tuned, adapter_of(level, rng))
        tuned.save_pretrained(str(zoo / str(i)), save_embedding_layers=False)
        (zoo / str(i) / "README.md").unlink()
        lines.append({"path": f"{i}/adapter_model.safetensors", "condition": {"vector": [level]}, "run": str(i)})
    (zoo / "zoo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _heads(zoo: Path, rng: torch.Generator) -> None:
    """Heads of 3 classes, each with features of examples."""
    zoo.mkdir()
    lines = []
    for i in range(COUNT):
        means = torch.randn(LABELS, WIDTH, generator=rng)
        save_file({"weight": means, "bias": -means.square().sum(1) / 2}, zoo / f"{i}.safetensors")
        examples = means[:, None] + 0.1 * torch.randn(LABELS, 6, WIDTH, generator=rng)
        lines.append({"path": f"{i}.safetensors", "condition": {"classes": examples.tolist()}, "run": str(i)})
    (zoo / "zoo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class TestAdapter:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_peft_computes_base_and_update(self, name: str, folder: Path, tmp_path: Path) -> None:
        asked = (*ASKED, "--base", folder / "base", "--alpha", ALPHA, "--seed", 3)
        run("generate", folder / name, *asked, "--as", "adapter", "-o", tmp_path / "adapter")
        pairs = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert pairs.keys() == load_file(folder / "adapters" / "0" / "adapter_model.safetensors").keys()
        tuned = peft.PeftModel.from_pretrained(model_of(folder / "base"), tmp_path / "adapter").eval()
        by_hand, plain = model_of(folder / "base"), model_of(folder / "base")
        with torch.no_grad():
            for module in MODULES:
                by_hand.get_submodule(module).weight += product(pairs, module) * (ALPHA / RANK)
            found, expected, before = (each(TOKENS).logits for each in (tuned, by_hand, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (found - before).abs().max() > 1e-4, "the adapter changes something"

    def test_is_near_those_of_the_zoo(self, folder: Path, tmp_path: Path) -> None:
        run("generate", folder / "ridge", *ASKED, "-o", tmp_path / "plain.safetensors")
        made, wanted = load_file(tmp_path / "plain.safetensors"), adapter_of(0.25, torch.Generator().manual_seed(9))
        for name, values in wanted.items():
            torch.testing.assert_close(made[name], values, rtol=0, atol=0.1)

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_merged_by_ties_it_is_what_peft_merges(self, name: str, folder: Path, tmp_path: Path) -> None:
        asked = (*ASKED, "--base", folder / "base", "--alpha", ALPHA, "--seed", 3)
        run("generate", folder / name, *asked, "--as", "adapter", "-o", tmp_path / "adapter")
        run("generate", folder / name, *asked, "--as", "delta", "-o", tmp_path / "tuned")
        ties = ("--method", "ties", "--base", folder / "base", "--density", 1.0, "--lambda", 1.0, "--compile", "never")
        run("merge", tmp_path / "tuned", *ties, "-o", tmp_path / "merged")
        loaded = peft.PeftModel.from_pretrained(model_of(folder / "base"), tmp_path / "adapter")
        expected = loaded.merge_and_unload().state_dict()
        found, before = model_of(tmp_path / "merged").state_dict(), model_of(folder / "base").state_dict()
        assert found.keys() == expected.keys()
        for tensor, values in expected.items():
            torch.testing.assert_close(found[tensor], values, rtol=1e-5, atol=1e-6)
        changed = {tensor for tensor in found if not torch.equal(found[tensor], before[tensor])}
        assert changed == {f"{module}.weight" for module in MODULES}


class TestHead:
    def test_transformers_loads_it_alone_and_merged(self, folder: Path, tmp_path: Path) -> None:
        examples = torch.randn(2, CLASSES, 6, WIDTH, generator=torch.Generator().manual_seed(4))
        save_file({"classes": examples}, tmp_path / "asked.safetensors")
        asked = ("--task", tmp_path / "asked.safetensors", "--classes", CLASSES)
        run("generate", folder / "headed", *asked, "--base", folder / "base", "--as", "head", "-o", tmp_path / "out")
        run("generate", folder / "headed", *asked, "-o", tmp_path / "bare")
        base, models = model_of(folder / "base").state_dict(), [model_of(tmp_path / "out" / i) for i in "01"]
        for number, model in enumerate(models):
            assert (model.config.num_labels, model(TOKENS).logits.shape) == (CLASSES, (2, CLASSES))
            bare = load_file(tmp_path / "bare" / str(number) / "model.safetensors")
            for name, values in model.state_dict().items():
                own = name.removeprefix("classifier.")
                assert torch.equal(values, bare[own] if own != name else base[name]), name
        run("merge", *(tmp_path / "out" / i for i in "01"), "--method", "linear", "-o", tmp_path / "merged")
        merged, (one, two) = model_of(tmp_path / "merged"), (model.classifier for model in models)
        assert merged.config.num_labels == CLASSES
        torch.testing.assert_close(merged.classifier.weight, (one.weight + two.weight) / 2)
        torch.testing.assert_close(merged.classifier.bias, (one.bias + two.bias) / 2)
