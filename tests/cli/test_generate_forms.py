"""`paramsmith generate --base`, and what `merge` then does with it; `merge --space latent`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from paramsmith.cli.app import cli
from paramsmith.hypernet.generator import Generator
from tests.hypernet.conftest import stub_parts  # noqa: F401 - a fixture
from tests.hypernet.stubparts import small_spec
from tests.hypernet.test_forms import QUERY, VALUE, bert, head, low_rank

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, a generator of heads, and one of adapters; the working directory."""
    bert(tmp_path / "base")
    head().save_pretrained(tmp_path / "heads")
    low_rank().save_pretrained(tmp_path / "adapters")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)))


class TestGenerate:
    def test_a_head(self, folder: Path) -> None:
        done = invoke("generate", "heads", "-o", "out", "--base", "base", "--as", "head")
        assert (done.exit_code, done.stderr) == (0, "")
        found = load_file("out/model.safetensors")
        assert torch.equal(found["classifier.weight"], head().sample()[0]["classifier.weight"])

    def test_an_adapter(self, folder: Path) -> None:
        words = ("generate", "adapters", "-o", "out", "--base", "base", "--as", "adapter", "--alpha", 4, "--json")
        told = json.loads(invoke(*words).stdout)
        assert set(told["samples"][0]["files"]) >= {"adapter_model.safetensors", "adapter_config.json"}
        assert json.loads(Path("out/adapter_config.json").read_text())["lora_alpha"] == 4

    def test_what_would_be_written(self, folder: Path) -> None:
        words = ("generate", "heads", "--base", "base", "--as", "head", "--dry-run", "--json")
        told = json.loads(invoke(*words).stdout)
        assert told["tensors"] == len(load_file("base/model.safetensors"))
        assert told["files"] == ["model.safetensors"]

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--as", "head"], "add --base MODEL"),
            (["--base", "base"], "say --as head"),
            (["--base", "base", "--as", "whole"], "is not one of"),
            (["--base", "base", "--as", "head", "--dtype", "bf16"], "leave --dtype out"),
            (["--vocabulary", "t", "--like", "m", "--base", "base"], "--base does not go with --vocabulary"),
        ],
    )
    def test_refused(self, folder: Path, words: list[str], told: str) -> None:
        done = invoke("generate", "heads", "-o", "out", *words)
        assert (done.exit_code, Path("out").exists()) == (2, False)
        assert told in done.stderr


def test_generated_adapters_merge_by_ties(folder: Path) -> None:
    done = invoke("generate", "adapters", "-o", "tuned", "--base", "base", "--as", "delta", "-n", 2, "--alpha", 2)
    assert done.exit_code == 0, done.output
    words = ("--method", "ties", "--base", "base", "--density", 1.0, "-o", "merged", "--compile", "never")
    done = invoke("merge", "tuned/0", "tuned/1", *words)
    assert done.exit_code == 0, done.output
    base, merged, *tuned = (load_file(f"{name}/model.safetensors") for name in ("base", "merged", "tuned/0", "tuned/1"))
    changed = {name for name, values in merged.items() if not torch.equal(values, base[name])}
    assert changed == {f"{QUERY}.weight", f"{VALUE}.weight"}
    for name in changed:
        first, second = (model[name] - base[name] for model in tuned)
        agree = first.sign() == second.sign()
        mean = (first + second) / 2
        torch.testing.assert_close((merged[name] - base[name])[agree], mean[agree], atol=1e-5, rtol=1e-4)


class TestLatent:
    def words(self, *more: object) -> Result:
        return invoke("merge", "0.safetensors", "1.safetensors", "--space", "latent", *more)

    @pytest.fixture
    def models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
        Generator.build("gaussian", spec=small_spec(), condition={"vector": (2,)}).save_pretrained(tmp_path / "gen")
        monkeypatch.chdir(tmp_path)
        for i in (0, 1):
            save_file({slot.name: torch.full(slot.shape, i + 1.0) for slot in small_spec().slots}, f"{i}.safetensors")
        return []

    def test_merges(self, models: list[torch.Tensor]) -> None:
        done = self.words("--codec", "gen", "-o", "out", "--weight", "1,3")
        assert done.exit_code == 0, done.output
        assert "from 2 models; their codec loses" in done.stdout
        torch.testing.assert_close(load_file("out/model.safetensors")["layer.0.bias"], torch.full((6,), 1.75))
        told = json.loads(self.words("--codec", "gen", "-o", "again", "--json").stdout)
        assert told["weights"] == [0.5, 0.5]

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["-o", "out"], "--codec GENERATOR"),
            (["--codec", "gen"], "add -o OUT"),
            (["--codec", "gen", "-o", "out", "--method", "ties"], "--method does not go with --space latent"),
            (["--codec", "gen", "-o", "out", "--density", "0.2"], "--density does not go with --space latent"),
            (["--codec", "gen", "-o", "out", "--weight", "mlp=0.2"], "is not one number a model"),
            (["--codec", "gen", "-o", "out", "--weight", "1,2,3"], "3 weights for 2 models"),
            (["--codec", "gen", "-o", "out", "--device", "cuda"], "--device does not go with"),
        ],
    )
    def test_refused(self, models: list[torch.Tensor], words: list[str], told: str) -> None:
        done = self.words(*words)
        assert (done.exit_code, Path("out").exists()) == (2, False), done.output
        assert told in done.stderr

    def test_a_codec_without_the_space(self, models: list[torch.Tensor]) -> None:
        done = invoke("merge", "0.safetensors", "1.safetensors", "--codec", "gen", "-o", "out")
        assert done.exit_code == 2
        assert "add --space latent" in done.stderr
