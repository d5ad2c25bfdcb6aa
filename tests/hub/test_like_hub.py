"""An architecture of the Hub: told by its headers and config, without its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from paramsmith.hypernet.targets.like import open_like
from tests.hub.hubstub import HubStub
from tests.hub.repositories import publish, sent


def test_no_weights_are_fetched(hub: HubStub, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    tensors = {"fc.weight": torch.ones(512, 512), "fc.bias": torch.ones(512)}
    save_file({**tensors, "position_ids": torch.arange(4)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("[1]")
    publish(hub, "alice/model", folder)
    here, there = open_like(str(folder)), open_like("alice/model")
    assert sent(hub) < (folder / "model.safetensors").stat().st_size / 2
    assert there.spec.slots == here.spec.slots
    assert there.folder is not None
    assert (there.folder / "tokenizer.json").read_text() == "[1]"
    assert there.stored is not None
    assert there.stored.startswith("alice/model@")
    assert there.own()["position_ids"].tolist() == here.own()["position_ids"].tolist() == [0, 1, 2, 3]
