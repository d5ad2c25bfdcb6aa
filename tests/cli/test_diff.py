"""`paramsmith diff`, against plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from paramsmith import compare as compare_module
from paramsmith.cli.app import cli


def save(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file(tensors, path)
    return str(path)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, dict[str, Tensor], dict[str, Tensor]]:
    monkeypatch.setattr(compare_module, "BLOCK", 64)  # so that small tensors are several blocks
    generator = torch.Generator().manual_seed(3)
    a = {f"layers.{i}.w": torch.randn(15, 20, generator=generator).bfloat16() for i in range(2)}
    a |= {"same": torch.arange(5), "c": torch.randn(9, dtype=torch.complex64, generator=generator)}
    b = {**a, "layers.1.w": (a["layers.1.w"] + 0.1).bfloat16(), "c": a["c"] * 2, "new": torch.ones(2)}
    return save(tmp_path / "a.safetensors", a), save(tmp_path / "b.safetensors", b), a, b


def document(*words: str) -> dict[str, dict[str, object]]:
    told = json.loads(CliRunner().invoke(cli, ["diff", *words, "--json"]).stdout)
    return {tensor["name"]: tensor for tensor in told["tensors"]}


def test_numbers(pair: tuple[str, str, dict[str, Tensor], dict[str, Tensor]]) -> None:
    path_a, path_b, a, b = pair
    told = document(path_a, path_b)
    x, y = a["layers.1.w"].double().flatten(), b["layers.1.w"].double().flatten()
    row = told["layers.1.w"]
    assert row["status"] == "different"
    assert row["change"] == pytest.approx(float((y - x).norm() / x.norm()))
    assert row["cosine"] == pytest.approx(float(x.dot(y) / x.norm() / y.norm()))
    assert row["sign_agreement"] == pytest.approx(float((x.sign() == y.sign()).double().mean()))
    assert row["largest"] == pytest.approx(float((y - x).abs().max()))
    assert told["c"]["change"] == pytest.approx(1.0)
    assert {name: row["status"] for name, row in told.items()} == {
        "c": "different",
        "layers.0.w": "identical",
        "layers.1.w": "different",
        "new": "only b",
        "same": "identical",
    }


def test_table_and_stat(pair: tuple[str, str, dict[str, Tensor], dict[str, Tensor]]) -> None:
    path_a, path_b, _, _ = pair
    text = CliRunner().invoke(cli, ["diff", path_a, path_b]).stdout
    assert "2 different, 2 identical, 1 only b" in text
    stat = CliRunner().invoke(cli, ["diff", path_a, path_b, "--stat"]).stdout
    assert any(line.split()[:3] == ["layers.*.w", "2", "1"] for line in stat.splitlines())


def test_exit_code(pair: tuple[str, str, dict[str, Tensor], dict[str, Tensor]]) -> None:
    path_a, path_b, _, _ = pair
    assert CliRunner().invoke(cli, ["diff", path_a, path_b]).exit_code == 0
    assert CliRunner().invoke(cli, ["diff", path_a, path_b, "--exit-code"]).exit_code == 1
    assert CliRunner().invoke(cli, ["diff", path_a, path_a, "--exit-code"]).exit_code == 0


def test_odd_ones(tmp_path: Path) -> None:
    nan = torch.tensor([1.0, float("nan")])
    a = {"nan": nan, "shape": torch.zeros(2), "type": torch.ones(3), "zero": torch.zeros(2), "empty": torch.zeros(0)}
    b = {"nan": nan * 2, "shape": torch.zeros(3), "type": torch.ones(3).half(), "zero": torch.ones(2)}
    b["empty"] = torch.zeros(0)
    both = {"bool": torch.tensor([True, False]), "bytes": torch.arange(9, dtype=torch.uint8)}
    told = document(save(tmp_path / "a.safetensors", {**a, **both}), save(tmp_path / "b.safetensors", {**b, **both}))
    assert told["nan"]["nonfinite"] == 1
    assert told["nan"]["change"] == 1.0
    assert told["shape"]["status"] == "shape"
    assert (told["type"]["status"], told["type"]["change"]) == ("dtype", 0.0)
    assert (told["zero"]["change"], told["zero"]["cosine"]) == (None, 0.0)
    assert told["empty"]["status"] == told["bytes"]["status"] == told["bool"]["status"] == "identical"
