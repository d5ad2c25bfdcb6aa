"""Models of the Hub as inputs: what is fetched when, what is refused before, and the same bytes as from a folder."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.hub import Reference
from paramsmith.merge import merge, plan
from paramsmith.recipe import Recipe, entries, load_recipe, parse_recipe
from tests.badinputs import CONFIG
from tests.hub.hubstub import HubStub
from tests.hub.repositories import damage, publish, sent
from tests.merge.folders import command_line, ended, failed, llama, save, start
from tests.merge.folders import merge as command

MODELS = ("alice/base", "alice/first", "alice/second")


@pytest.fixture
def folders(tmp_path: Path, hub: HubStub) -> list[Path]:
    """Three sharded models of two layers, each in a folder and on the Hub under the same name."""
    made = []
    for seed, repo in enumerate(MODELS):
        folder = sharded(tmp_path / "local" / repo, seed)
        (folder / "tokenizer.json").write_text("{}")
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        publish(hub, repo, folder)
        made.append(folder)
    return made


def sharded(folder: Path, seed: int) -> Path:
    """A Llama in four shards."""
    tensors = {name: tensor.contiguous() for name, tensor in llama(seed).items()}
    names = list(tensors)
    folder.mkdir(parents=True)
    where = {}
    for number in range(4):
        part = names[number * len(names) // 4 : (number + 1) * len(names) // 4]
        shard = f"model-{number + 1:05d}-of-00004.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, {"format": "pt"})
        where.update(dict.fromkeys(part, shard))
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name not in ("recipe.yaml", "merge.json")}


def weights(home: Path) -> list[Path]:
    """Whatever large there is under a folder: blobs, partial files."""
    return [p for p in home.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size > 2000]


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "passthrough"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_same_bytes_as_from_folders(
    method: str, stream: bool, folders: list[Path], hub: HubStub, tmp_path: Path
) -> None:
    given = {"method": method, "compile": "never"}
    if method == "ties":
        given |= {"base": True, "density": 0.5}
    count = 1 if method == "passthrough" else 2

    def merged(models: list[str], base: str, out: Path, **more: object) -> dict[str, bytes]:
        how = given | ({"base": base} if given.get("base") else {}) | more
        merge(models[:count], out, **how)  # type: ignore[arg-type]
        return files(out)

    expected = merged([str(f) for f in folders[1:]], str(folders[0]), tmp_path / "expected")
    found = merged(list(MODELS[1:]), MODELS[0], tmp_path / "found", stream=stream)
    assert found == expected
    if stream:
        assert not weights(tmp_path / "home")
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_only_headers_before_an_error(folders: list[Path], hub: HubStub, tmp_path: Path) -> None:
    large, other = llama(8, words=30_000), llama(9, words=30_000)
    other["model.norm.weight"] = torch.zeros(5)
    for name, tensors in (("large", large), ("other", other)):
        publish(hub, f"alice/{name}", save(tmp_path / "local" / name, tensors, vocab_size=30_000))
    hub.requests.clear()
    failed(command("alice/large", "alice/other", "-o", tmp_path / "out"), 2, "model.norm.weight", "alice/other")
    assert 0 < sent(hub) < 2 * ((1 << 16) + 2000)
    assert not weights(tmp_path / "home")
    assert not (tmp_path / "out").exists()


def test_only_the_shards_that_are_needed(folders: list[Path], hub: HubStub, tmp_path: Path) -> None:
    index = json.loads((folders[1] / "model.safetensors.index.json").read_text())["weight_map"]
    shards = sorted(set(index.values()))
    only = [name for name, shard in index.items() if shard == shards[0]]
    with Checkpoint.open("alice/first") as remote:
        size = (folders[1] / shards[0]).stat().st_size
        assert remote.missing(only) == size
        remote.fetch(only)
        assert remote.missing(only) == 0
        assert remote.missing(index) == sum((folders[1] / s).stat().st_size for s in shards[1:])
        with Checkpoint.open(folders[1]) as local:
            for name in only:
                assert content(remote, name) == content(local, name)
    assert [p.stat().st_size for p in weights(tmp_path / "home")] == [size]


def content(opened: Checkpoint, name: str) -> bytes:
    info = opened.info(name)
    assert info is not None
    held = bytearray(info.nbytes)
    opened.read_into(name, 0, memoryview(held))
    return bytes(held)


def test_a_read_brings_the_file(folders: list[Path]) -> None:
    with Checkpoint.open("alice/first") as remote, Checkpoint.open(folders[1]) as local:
        for name in remote.tensors:
            assert content(remote, name) == content(local, name)


def test_the_recipe_pins_the_commit(folders: list[Path], hub: HubStub, tmp_path: Path) -> None:
    commit = hub.store.resolve(hub.store.repos["model/alice/first"], "main")
    merge(["alice/first", "alice/second@main"], tmp_path / "out", compile="never")
    recipe = load_recipe(tmp_path / "out/recipe.yaml")
    assert recipe.models[0].model == f"alice/first@{commit}"
    publish(hub, "alice/first", sharded(tmp_path / "local/newer", 7))
    again = tmp_path / "again"
    merge([entry.model for entry in recipe.models], again, compile="never")
    assert files(again) == files(tmp_path / "out")


def test_offline_from_the_cache(
    folders: list[Path], hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(MODELS[1:], tmp_path / "out", compile="never")
    hub.stop()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    merge(MODELS[1:], tmp_path / "again", compile="never")
    assert files(tmp_path / "again") == files(tmp_path / "out")
    with pytest.raises(InvalidInput, match="alice/base"):
        merge([MODELS[0], MODELS[1]], tmp_path / "third", compile="never")


@pytest.mark.parametrize("stream", [False, True])
def test_a_flipped_bit_is_caught(stream: bool, folders: list[Path], hub: HubStub, tmp_path: Path) -> None:
    damage(hub, "alice/second", "model-00003-of-00004.safetensors")
    with pytest.raises(Failed, match=r"alice/second.*model-00003-of-00004"):
        merge(MODELS[1:], tmp_path / "out", compile="never", stream=stream)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_same_name_wins(
    folders: list[Path], hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "local")
    hub.requests.clear()
    with Checkpoint.open("alice/first") as opened:
        assert opened.snapshot is None
    assert not hub.requests
    with Checkpoint.open("hf://alice/first") as opened:
        assert opened.snapshot is not None


def test_the_plan_tells_the_download(folders: list[Path], hub: HubStub, tmp_path: Path) -> None:
    recipe = Recipe(method="linear", models=entries(MODELS[1:]))
    foretold = plan(recipe, tmp_path / "out")
    assert foretold.bytes_downloaded == sum(p.stat().st_size for f in folders[1:] for p in f.glob("*.safetensors"))
    assert "download" in foretold.describe()
    merge(MODELS[1:], tmp_path / "out", compile="never")
    assert plan(recipe, tmp_path / "other").bytes_downloaded == 0


def test_no_space_for_the_weights(
    folders: list[Path], hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, missing: int) -> None:
        raise Refused("no room")

    monkeypatch.setattr("paramsmith.merge.arrival.check_space", full)
    for stream in (False, True):
        with pytest.raises(Refused, match="no room"):
            merge(MODELS[1:], tmp_path / "out", compile="never", stream=stream)
    assert not weights(tmp_path / "home")


def test_what_is_not_there(hub: HubStub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failed(command("alice/nothing", "alice/nothing2", "-o", out), 2, "alice/nothing")
    failed(command("hf://alice", "hf://a/b/../c", "-o", out), 2, "hf://a")
    failed(command("nowhere/nothing.safetensors", "b", "-o", out), 2, "nowhere/nothing.safetensors", "does not exist")
    publish(hub, "alice/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    failed(command("alice/adapter", "alice/adapter", "-o", out), 2, "alice/adapter", "is an adapter")
    publish(hub, "alice/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    failed(command("alice/pickle", "alice/pickle", "-o", out), 2, "pytorch_model.bin", "is a pickle")


def test_a_revision_of_a_mergekit_recipe(folders: list[Path], hub: HubStub) -> None:
    text = (
        "merge_method: linear\nmodels:\n- model: {model: {path: alice/first, revision: v1}}\n- model: alice/second@v2\n"
    )
    read = parse_recipe(text, "recipe")
    assert [entry.model for entry in read.models] == ["alice/first@v1", "alice/second@v2"]


def test_a_header_is_one_request(folders: list[Path], hub: HubStub) -> None:
    hub.requests.clear()
    with Checkpoint.open("alice/first") as opened:
        assert opened.pinned == str(Reference.parse(f"alice/first@{opened.snapshot.commit}"))  # type: ignore[union-attr]
    assert len([r for r in hub.requests if r["origin"] == "cdn"]) == 4


def test_an_index_that_names_a_shard_that_is_not_there(folders: list[Path], hub: HubStub, tmp_path: Path) -> None:
    tree = {p.name: p.read_bytes() for p in folders[1].iterdir() if "00002-of" not in p.name}
    publish(hub, "alice/partial", tree)
    done = command("alice/partial", "alice/second", "-o", tmp_path / "out")
    failed(done, 2, "alice/partial", "model-00002-of-00004.safetensors")
    assert "/tmp" not in done.err


def test_names_that_no_folder_can_have(hub: HubStub, tmp_path: Path) -> None:
    publish(hub, "alice/long", {"config.json": b"{}", "x" * 300 + ".json": b"{}"})
    publish(hub, "alice/both", {"config.json": b"{}", "config.json/x": b"{}"})
    for name in ("alice/long", "alice/both"):
        failed(command(name, name + "2", "-o", tmp_path / "out"), 2, name)


def test_a_damaged_ref_in_the_cache_does_no_harm(folders: list[Path], hub: HubStub, tmp_path: Path) -> None:
    merge(MODELS[1:], tmp_path / "out", compile="never")
    (tmp_path / "home/hub/models--alice--first/refs/main").write_bytes(b"\xff\xfe\x00")
    merge(MODELS[1:], tmp_path / "again", compile="never")
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_the_cache_in_place_of_the_hub_is_told(
    folders: list[Path], hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(MODELS[1:], tmp_path / "out", compile="never")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    done = command(*MODELS[1:], "-o", tmp_path / "again")
    assert done.code == 0
    assert any("alice/first" in warning and "out of reach" in warning for warning in done.warnings)


def test_what_a_killed_process_left_is_removed(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for name in ("paramsmith-4194305-x", "paramsmith-1-x", "other-4194305-x"):  # the first is no process's number
        (temporary / name / "model").mkdir(parents=True)
    with Checkpoint.open("alice/first"):
        assert len(list(temporary.iterdir())) == 3
    assert sorted(p.name for p in temporary.iterdir()) == ["other-4194305-x", "paramsmith-1-x"]


def test_an_interrupt_while_headers_are_read(folders: list[Path], hub: HubStub) -> None:
    hub.fault("GET", r"^/lfs/", delay=30, times=1)
    child = start("inspect", "alice/first")
    until = time.monotonic() + 60
    while time.monotonic() < until and not any(fault["left"] == 0 for fault in hub.faults):
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    assert ended(child, 20).code == 130


def test_a_task_on_a_model_of_the_hub(hub: HubStub, tmp_path: Path) -> None:
    from tests.merge.pretrained.folders import bert, sentences, write_rows

    publish(hub, "alice/classifier", bert(tmp_path / "made"))
    rows = write_rows(tmp_path / "rows.jsonl", sentences(8))
    out = tmp_path / "fisher.safetensors"
    done = command_line("measure", "fisher", "alice/classifier", "--data", rows, "-o", out)
    assert done.code == 0, done.err
    local = tmp_path / "local.safetensors"
    assert command_line("measure", "fisher", tmp_path / "made", "--data", rows, "-o", local).code == 0
    assert out.read_bytes() == local.read_bytes()
