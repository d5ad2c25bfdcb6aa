"""A generated head in a model of the Hub: known by its commit, and no more of it on this machine than its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramsmith.hypernet.writing.generation import generate
from paramsmith.hypernet.writing.provenance import read_generation
from tests.hub.hubstub import HubStub
from tests.hub.repositories import publish
from tests.hypernet.conftest import stub_parts  # noqa: F401 - a fixture
from tests.hypernet.test_forms import WIDTH, head

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]


def test_a_head_in_it(hub: HubStub, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    tensors = {"body.weight": torch.ones(4, WIDTH), "classifier.weight": torch.zeros(3, WIDTH)}
    save_file({**tensors, "classifier.bias": torch.zeros(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]\n")
    commit = publish(hub, "alice/model", folder)
    generate(head(), tmp_path / "there", base="alice/model", form="head")
    generate(head(), tmp_path / "here", base=folder, form="head")
    made, same = (load_file(tmp_path / name / "model.safetensors") for name in ("there", "here"))
    assert all(torch.equal(values, same[name]) for name, values in made.items())
    assert torch.equal(made["body.weight"], tensors["body.weight"])
    assert (tmp_path / "there" / "vocab.txt").is_file()
    there, here = (read_generation(tmp_path / name).base for name in ("there", "here"))
    assert there is not None
    assert here is not None
    assert (there.repo, there.commit) == ("alice/model", commit)
    assert there.files["model.safetensors"].sha256 == here.files["model.safetensors"].sha256
    assert "base_model: alice/model" in (tmp_path / "there" / "README.md").read_text()
    generate(head(), tmp_path / "again", base=f"alice/model@{commit}", form="head")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "there" / "model.safetensors"
    ).read_bytes()
