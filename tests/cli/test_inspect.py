"""`paramsmith inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from paramsmith.cli.app import cli


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {"layers.0.w": torch.zeros(3, 4).bfloat16(), "steps": torch.ones((), dtype=torch.int64)}
    save_file({**tensors, "evil\x1b[31m": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"format": "p\x1bt"})
    return tmp_path / "m.safetensors"


def test_table(model: Path) -> None:
    done = CliRunner().invoke(cli, ["inspect", str(model)])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert any(line.split() == ["layers.0.w", "BF16", "3x4", "24", "m.safetensors"] for line in lines)
    assert any(line.split() == ["all", "3", "15", "40"] for line in lines)
    assert "\x1b" not in done.stdout
    assert "metadata format: p\\x1bt" in lines


def test_json_and_filter(model: Path) -> None:
    told = json.loads(CliRunner().invoke(cli, ["inspect", str(model), "--json", "--tensors", "layers"]).stdout)
    assert [tensor["name"] for tensor in told["tensors"]] == ["layers.0.w"]
    assert told["totals"]["parameters"] == 12
    assert told["metadata"] == {"format": "p\x1bt"}


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["inspect", str(tmp_path / "none"), "--json"])
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
