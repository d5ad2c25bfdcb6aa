"""A zoo whose networks are on the Hub: fetched, pinned to commits, and refused with the name of the entry."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save
from torch import Tensor

from paramsmith.cli.app import cli
from paramsmith.errors import GenerateWarning, InvalidInput
from paramsmith.hypernet.zoos.digest import digest_of
from paramsmith.hypernet.zoos.inspection import inspect
from paramsmith.hypernet.zoos.splitting import save_index, split
from paramsmith.hypernet.zoos.zoo import Zoo
from tests.hub.hubstub import READ_TOKEN, WRITE_TOKEN, HubStub
from tests.hub.repositories import damage, publish, sent

pytestmark = pytest.mark.usefixtures("one_thread")
DOWN, UP = (f"base_model.model.q.lora_{which}.weight" for which in "AB")


def adapter(seed: int, rank: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {DOWN: torch.randn(rank, 6, generator=rng), UP: torch.randn(4, rank, generator=rng)}


def files(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """As PEFT leaves them, with what trainers leave beside them."""
    config = json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "somebody/base"}).encode()
    beside = {"checkpoint-9/adapter_model.safetensors": save(adapter(99, 3)), "tokenizer.json": b"[]"}
    return {"adapter_config.json": config, "adapter_model.safetensors": save(dict(tensors)), **beside}


def listed(folder: Path, lines: Sequence[Mapping[str, object] | str]) -> Path:
    folder.mkdir(exist_ok=True)
    told = (line if isinstance(line, Mapping) else {"path": line} for line in lines)
    (folder / "zoo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    return folder


def refused(folder: Path, *told: str) -> None:
    """One line that names the entry, and neither the cache nor a temporary folder of this machine."""
    with pytest.raises(InvalidInput) as problem:
        Zoo.open(folder)
    said = f"{problem.value.fact}: {problem.value.hint}".replace(str(folder), "")
    assert all(text in said for text in told), said
    assert "\n" not in said
    assert str(folder.parent) not in said  # the cache lies there
    assert tempfile.gettempdir() not in said
    assert problem.value.hint


def test_adapters_of_the_hub_beside_one_of_the_folder(hub: HubStub, tmp_path: Path) -> None:
    commits = {name: publish(hub, f"alice/{name}", files(adapter(i))) for i, name in enumerate(("first", "second"))}
    folder = listed(
        tmp_path / "zoo",
        [
            {"path": "hf://alice/first", "task": "a", "sha256": digest_of(adapter(0))},
            {"path": f"hf://alice/second@{commits['second']}/adapter_model.safetensors", "task": "b"},
            {"path": "mine", "task": "c"},
        ],
    )
    (folder / "mine").mkdir()
    for name, data in files(adapter(2)).items():
        (folder / "mine" / name).parent.mkdir(exist_ok=True)
        (folder / "mine" / name).write_bytes(data)
    zoo = Zoo.open(folder)
    assert [member.label for member in zoo.members] == [
        f"hf://alice/first@{commits['first']}",
        f"hf://alice/second@{commits['second']}/adapter_model.safetensors",
        "mine",
    ]
    before = len(hub.requests)
    held = zoo.batch(zoo.members)
    for i in range(3):
        assert all(torch.equal(held[name][i], tensor) for name, tensor in adapter(i).items())
    assert not inspect(zoo).changed
    assert len(hub.requests) == before  # all that is read lies here
    assert sent(hub, "tokenizer.json") == 0
    save_index(split(zoo, {"test": 0.4}))
    text = (folder / "zoo.jsonl").read_text()
    assert f"hf://alice/first@{commits['first']}" in text
    assert not any(each in text for each in (str(tmp_path), WRITE_TOKEN, "127.0.0.1"))


def test_a_revision_that_moves(hub: HubStub, tmp_path: Path) -> None:
    """It means what it meant when the zoo was opened; a split writes that down."""
    first = publish(hub, "alice/a", files(adapter(0)))
    publish(hub, "alice/b", files(adapter(1)))
    folder = listed(tmp_path / "zoo", ["hf://alice/a@main", "hf://alice/b"])
    opened = Zoo.open(folder)
    digest = opened.digest
    assert Zoo.open(folder).digest == digest
    publish(hub, "alice/a", files(adapter(2)))
    assert torch.equal(opened.load(opened.members[0])[UP], adapter(0)[UP])
    moved = Zoo.open(folder)
    assert moved.digest != digest
    assert torch.equal(moved.load(moved.members[0])[UP], adapter(2)[UP])
    save_index(split(opened, {"test": 0.5}))
    pinned = Zoo.open(folder)
    assert any(member.label == f"hf://alice/a@{first}" for member in pinned.members)
    assert {tuple(pinned.load(member)[UP].flatten().tolist()) for member in pinned.members} == {
        tuple(adapter(seed)[UP].flatten().tolist()) for seed in (0, 1)
    }


def test_what_the_index_states_is_held_against_what_comes(hub: HubStub, tmp_path: Path) -> None:
    publish(hub, "alice/a", files(adapter(0)))
    folder = listed(tmp_path / "zoo", [{"path": "hf://alice/a", "sha256": digest_of(adapter(1))}])
    zoo = Zoo.open(folder)
    with pytest.raises(InvalidInput, match=r"hf://alice/a@\w{40}: is not what the index says it is"):
        zoo.batch(zoo.members)
    assert [label.partition("@")[0] for label in inspect(zoo).changed] == ["hf://alice/a"]


def test_one_network_is_not_on_two_sides(hub: HubStub, tmp_path: Path) -> None:
    """Two names of one commit are one network."""
    commit = publish(hub, "alice/a", files(adapter(0)))
    listed(tmp_path / "zoo", [{"path": "hf://alice/a"}, {"path": f"hf://alice/a@{commit}", "split": "test"}])
    refused(tmp_path / "zoo", "are the same network", "hf://alice/a@")


def test_a_model_in_shards_and_a_stacked_file(hub: HubStub, tmp_path: Path) -> None:
    held = {"a.weight": torch.ones(3, 2), "b.weight": torch.zeros(2, 3)}
    index = {"metadata": {}, "weight_map": {"a.weight": "x.safetensors", "b.weight": "y.safetensors"}}
    shards = {
        "x.safetensors": save({"a.weight": held["a.weight"]}),
        "y.safetensors": save({"b.weight": held["b.weight"]}),
    }
    whole = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **shards}
    publish(hub, "alice/sharded", {f"inner/{name}": data for name, data in whole.items()})
    publish(hub, "alice/many", {"zoo.safetensors": save({name: torch.stack([x, x + 1]) for name, x in held.items()})})
    many = "hf://alice/many/zoo.safetensors"
    zoo = Zoo.open(listed(tmp_path / "zoo", ["hf://alice/sharded/inner", *({"path": many, "row": i} for i in (0, 1))]))
    read = zoo.batch(zoo.members)
    assert read["a.weight"][:, 0, 0].tolist() == [1.0, 1.0, 2.0]
    assert zoo.members[2].label.endswith("/zoo.safetensors[1]")
    refused(listed(tmp_path / "zoo", [{"path": many, "row": 2}]), "hf://alice/many/zoo.safetensors has 2 rows")


def test_what_is_refused(hub: HubStub, tmp_path: Path) -> None:
    here = tmp_path / "zoo"
    sound = publish(hub, "alice/good", files(adapter(0)))
    refused(listed(here, ["hf://alice/good", "hf://alice/none"]), "alice/none", "is not on the hub")
    assert sent(hub, "adapter_model.safetensors") == 0  # nothing comes before all is found
    refused(listed(here, ["hf://alice/good@none"]), "alice/good@none", "no such revision")
    refused(listed(here, ["hf://alice/good/none.safetensors"]), "hf://alice/good/none.safetensors", "has no such file")
    refused(listed(here, ["hf://"]), "hf://", "names nothing on the hub")
    refused(listed(here, ["hf://alice/../x"]), "names nothing on the hub")
    publish(hub, "alice/text", {"README.md": b"# none"})
    refused(listed(here, ["hf://alice/text"]), "hf://alice/text", "holds no weights")
    publish(hub, "alice/pickle", {"adapter_model.bin": b"\x80", "adapter_config.json": b"{}"})
    refused(listed(here, ["hf://alice/pickle"]), "hf://alice/pickle")
    publish(hub, "alice/bad", {"adapter_model.safetensors": b"\xff" * 64})
    refused(listed(here, [f"hf://alice/good@{sound}", "hf://alice/bad"]), "hf://alice/bad")
    publish(hub, "alice/bare", {"model.safetensors": save(adapter(0))})
    refused(listed(here, ["hf://alice/bare"]), "hf://alice/bare", "config.json is missing")
    index = json.dumps({"weight_map": {"a": "x.safetensors"}}).encode()
    publish(hub, "alice/half", {"model.safetensors.index.json": index, "config.json": b"{}"})
    refused(listed(here, ["hf://alice/half"]), "hf://alice/half", "x.safetensors")


def test_bytes_that_are_not_those_the_hub_lists(hub: HubStub, tmp_path: Path) -> None:
    publish(hub, "alice/a", files(adapter(0)))
    damage(hub, "alice/a", "adapter_model.safetensors")
    listed(tmp_path / "zoo", ["hf://alice/a"])
    done = CliRunner().invoke(cli, ["zoo", "inspect", str(tmp_path / "zoo")])
    assert done.exit_code == 1
    assert "alice/a" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_what_may_not_be_seen(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, "acme/hidden", files(adapter(0)), private=True)
    listed(tmp_path / "zoo", ["hf://acme/hidden"])
    assert len(Zoo.open(tmp_path / "zoo")) == 1
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    refused(tmp_path / "zoo", "acme/hidden", "not on the hub, or not for you to see")


def test_without_the_network(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched once is found in the cache; a Hub that is out of reach is said to be."""
    publish(hub, "alice/a", files(adapter(0)))
    listed(tmp_path / "zoo", ["hf://alice/a"])
    digest = Zoo.open(tmp_path / "zoo").digest
    hub.stop()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert Zoo.open(tmp_path / "zoo").digest == digest
    assert any(issubclass(each.category, GenerateWarning) and "out of reach" in str(each.message) for each in told)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    zoo = Zoo.open(tmp_path / "zoo")
    assert torch.equal(zoo.load(zoo.members[0])[UP], adapter(0)[UP])
    refused(listed(tmp_path / "other", ["hf://alice/b"]), "alice/b", "is not in the cache")


def test_the_command_says_what_is_there(hub: HubStub, tmp_path: Path) -> None:
    for i in range(3):
        publish(hub, f"alice/a{i}", files(adapter(i)))
    listed(tmp_path / "zoo", [f"hf://alice/a{i}" for i in range(3)])
    done = CliRunner().invoke(cli, ["zoo", "inspect", str(tmp_path / "zoo"), "--json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["networks"] == 3
    assert told["architectures"][0]["numbers"] == 20


def test_from_adapters_of_the_hub_to_a_new_one(hub: HubStub, tmp_path: Path) -> None:
    for i in range(3):
        publish(hub, f"alice/a{i}", files(adapter(i)))
    zoo = listed(tmp_path / "zoo", [f"hf://alice/a{i}" for i in range(3)])
    for words in (
        ["train", "mean", "--zoo", str(zoo), "-o", str(tmp_path / "gen")],
        ["generate", str(tmp_path / "gen"), "-o", str(tmp_path / "new"), "--as", "adapter"],
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.stderr
    made = load_file(tmp_path / "new" / "adapter_model.safetensors")
    wanted = torch.stack([adapter(i)[UP] for i in range(3)]).mean(0)
    torch.testing.assert_close(made[UP], wanted, rtol=1e-4, atol=1e-5)
    written = [path for path in (tmp_path / "gen").rglob("*") if path.is_file()]
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in written)
