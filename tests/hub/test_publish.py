"""From models of the Hub to a model on the Hub: one command, one commit, and the same bytes on another machine."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.merge import Push, RunOptions, run
from paramsmith.recipe import Recipe, entries
from paramsmith.target import Target
from tests.hub.conftest import TRANSPORTS
from tests.hub.hubstub import WRITE_TOKEN, HubStub
from tests.hub.repositories import publish
from tests.merge.folders import command_line, ended, failed, leftovers, llama, save, start
from tests.merge.folders import merge as command

each_transport = pytest.mark.parametrize("transport", TRANSPORTS)
CARD = "---\nlicense: apache-2.0\nlanguage: [en, de]\npipeline_tag: text-generation\n---\n# {}\n"
TARGET = "alice/merged"


@pytest.fixture
def models(tmp_path: Path, hub: HubStub) -> list[str]:
    """A base and two tunes of it, on the Hub alone."""
    names = []
    for seed, name in enumerate(("base", "one", "two")):
        folder = save(tmp_path / "made" / name, llama(seed))
        (folder / "README.md").write_text(CARD.format(name))
        (folder / "tokenizer.json").write_text('{"kept": true}')
        publish(hub, f"alice/{name}", folder)
        names.append(f"alice/{name}")
    shutil.rmtree(tmp_path / "made")
    return names


def merged(models: list[str], out: Path, **push: object) -> object:
    recipe = Recipe(method="ties", models=entries(models[1:]), base=models[0], shard_size="2kB")
    options = RunOptions(compile="never", push=Push(Target(TARGET, **push)))  # type: ignore[arg-type]
    return run(recipe, out, options)


def commits(hub: HubStub, repo: str = TARGET) -> list[str]:
    """Titles, without the one that made the repository."""
    found = hub.store.repos[f"model/{repo}"]
    return [c["title"] for c in found["commits"].values() if c["parent"]]


@each_transport
def test_merge_push_pull_reproduce(
    hub: HubStub, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--method", "ties", "--base", models[0], "--shard-size", "2kB", "--push", TARGET]
    done = command(*models[1:], "-o", tmp_path / "out", *words)
    assert done.code == 0, done.err
    commit = hub.store.resolve(hub.store.repos[f"model/{TARGET}"], "main")
    assert done.out.splitlines()[-1] == f"{hub.url}/{TARGET}/commit/{commit}"
    assert len(commits(hub)) == 1
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    pulled = command_line("pull", TARGET, "-o", tmp_path / "pulled")
    assert pulled.code == 0, pulled.err
    shards = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    for name in (*shards, "model.safetensors.index.json", "config.json", "tokenizer.json"):
        assert (tmp_path / "pulled" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    lineage = json.loads((tmp_path / "pulled/merge.json").read_text())
    assert all(file["sha256"] for file in lineage["outputs"].values())
    assert str(tmp_path) not in "".join(
        p.read_text() for p in (tmp_path / "pulled").iterdir() if p.suffix in (".md", ".yaml")
    )
    assert command_line("verify", TARGET).code == 0
    again = command_line("reproduce", TARGET, "-o", tmp_path / "again")
    assert again.code == 0, again.out + again.err
    said = json.dumps(hub.requests) + done.err + done.out
    assert WRITE_TOKEN not in said


def test_the_card_says_where_it_comes_from(hub: HubStub, models: list[str], tmp_path: Path) -> None:
    merged(models, tmp_path / "out")
    from huggingface_hub import HfApi

    info = HfApi(endpoint=hub.url, token=WRITE_TOKEN).model_info(TARGET)
    for tag in ("merge", "paramsmith", "ties", "license:apache-2.0", *(f"base_model:merge:{m}" for m in models)):
        assert tag in (info.tags or []), tag
    assert info.card_data is not None
    assert info.card_data.base_model == models
    assert info.card_data.language == ["en", "de"]
    assert info.card_data.pipeline_tag == "text-generation"


def test_files_go_while_the_merge_goes_on(hub: HubStub, tmp_path: Path) -> None:
    """The first shard is on the Hub before the last one is written."""
    models = [
        str(save(tmp_path / name, llama(seed, words=30_000), vocab_size=30_000)) for seed, name in enumerate("ab")
    ]
    order: list[str] = []

    def progress(done: int, total: int) -> None:
        until = time.monotonic() + 20
        if done > 0.7 * total and not order:
            while time.monotonic() < until and not any(r["method"] == "PUT" for r in list(hub.requests)):
                time.sleep(0.02)
            order.extend(r["path"] for r in hub.requests if r["method"] == "PUT")

    recipe = Recipe(method="linear", models=entries(models), shard_size="900kB")
    run(recipe, tmp_path / "out", RunOptions(compile="never", threads=1, progress=progress, push=Push(Target(TARGET))))
    assert order
    assert len(commits(hub)) == 1


def test_transformers_loads_what_was_pushed(hub: HubStub, models: list[str], tmp_path: Path) -> None:
    merged(models, tmp_path / "out")
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "assert torch.isfinite(model(torch.tensor([[1, 2]])).logits).all()\nprint('loaded', flush=True)\n"
    )
    done = ended(start(before=f"import sys; sys.argv[1:] = [{TARGET!r}]\n{code}\nsys.exit()"))
    assert done.out.strip() == "loaded", done.err


def test_what_is_refused_before_any_weight(hub: HubStub, models: list[str], tmp_path: Path) -> None:
    publish(hub, "alice/other-licence", {"README.md": b"---\nlicense: llama3\n---\n"})
    publish(hub, "alice/full", {"notes.txt": b"mine"})
    hub.requests.clear()
    out = tmp_path / "out"
    failed(command(*models[1:], "-o", out, "--push", "alice/full"), 3, "alice/full", "is not empty")
    failed(command(*models[1:], "-o", out, "--push", "bob/merged"), 2, "bob/merged")
    failed(command(*models[1:], "-o", out, "--push", "merged"), 2, "merged")
    failed(command(*models[1:], "-o", out, "--private"), 2, "--private is about a push")
    failed(command(*models[1:], "-o", tmp_path / "one.safetensors", "--push", TARGET), 2, "one.safetensors")
    weights = save(tmp_path / "licensed", llama(5))
    (weights / "README.md").write_text(CARD.format("x").replace("apache-2.0", "mit"))
    publish(hub, "alice/licensed", weights)
    failed(command(models[1], "alice/licensed", "-o", out, "--push", TARGET), 2, "licence")
    assert not out.exists()
    assert not [r for r in hub.requests if r["method"] in ("PUT", "POST") and "/lfs" in r["path"]]
    assert command(models[1], "alice/licensed", "-o", out, "--push", TARGET, "--license", "mit").code == 0


def test_a_failed_push_keeps_the_merge(hub: HubStub, models: list[str], tmp_path: Path) -> None:
    hub.fault("POST", r"/commit/", status=403, times=100)
    with pytest.raises(InvalidInput) as caught:
        merged(models, tmp_path / "out")
    assert "paramsmith push" in caught.value.hint
    assert list((tmp_path / "out").glob("*.safetensors"))
    assert not commits(hub)
    hub.faults.clear()
    puts = len([r for r in hub.requests if r["method"] == "PUT"])
    done = command_line("push", tmp_path / "out", TARGET)
    assert done.code == 0, done.err
    assert len(commits(hub)) == 1
    again = [r for r in hub.requests if r["method"] == "PUT"][puts:]
    assert not again


def test_a_file_that_cannot_be_sent_does_not_stop_the_merge(hub: HubStub, models: list[str], tmp_path: Path) -> None:
    hub.fault("POST", r"/objects/batch", status=400, times=100)
    with pytest.raises((Failed, InvalidInput, Refused)):
        merged(models, tmp_path / "out")
    assert list((tmp_path / "out").glob("*.safetensors"))
    assert not commits(hub)
    assert not leftovers(tmp_path)


def test_killed_while_merging_and_pushing(hub: HubStub, models: list[str], tmp_path: Path) -> None:
    words = [
        "merge",
        *models[1:],
        "-o",
        tmp_path / "out",
        "--shard-size",
        "2kB",
        "--push",
        TARGET,
        "--compile",
        "never",
    ]
    hub.fault("PUT", r"/lfs/", delay=60, skip=1, times=1)
    child = start(*words)
    until = time.monotonic() + 60
    while time.monotonic() < until and not [r for r in hub.requests if r["method"] == "PUT"]:
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    child.kill()
    child.communicate()
    assert not commits(hub)
    hub.faults.clear()
    sent = {r["path"] for r in hub.requests if r["method"] == "PUT"}
    hub.requests.clear()
    if (tmp_path / "out").exists():
        words = ["push", tmp_path / "out", TARGET]
    done = ended(start(*words))
    assert done.code == 0, done.err
    assert len(commits(hub)) == 1
    assert not sent & {r["path"] for r in hub.requests if r["method"] == "PUT"}
    assert command_line("verify", TARGET).code == 0
