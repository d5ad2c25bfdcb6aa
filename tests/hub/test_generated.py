"""Generators and what they generate, on the Hub: pushed by the command or from Python, fetched, and checked again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from paramsmith.cli.app import cli
from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.hypernet.artifact import INDEX, files_of, open_artifact
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.kinds import HYPERNETWORK
from paramsmith.hypernet.writing.generation import generate
from tests.hub.hubstub import HubStub
from tests.hypernet.conftest import stub_parts  # noqa: F401 - a fixture
from tests.hypernet.stubparts import small_spec
from tests.shared.staged import listing

TENSORS, FILES = HYPERNETWORK.tensors, files_of(HYPERNETWORK)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]

REPO = "alice/gen"


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def stored(hub: HubStub, repo: str = REPO) -> dict[str, bytes]:
    return {name: hub.read(repo, name) for name in hub.files(repo) if name != ".gitattributes"}


def fixed(seed: int = 0) -> Generator:
    return Generator.build("stub", spec=small_spec(), fixed=True, seed=seed)


@pytest.fixture
def pushed(hub: HubStub) -> HubStub:
    fixed().push_to_hub(REPO)
    return hub


def test_a_saved_generator_is_pushed_as_it_is(hub: HubStub, tmp_path: Path) -> None:
    fixed().save(tmp_path / "gen")
    done = invoke("push", tmp_path / "gen", REPO)
    assert done.exit_code == 0, done.output
    assert stored(hub) == listing(tmp_path / "gen")
    assert set(stored(hub)) == {*FILES, "README.md"}


def test_from_python_the_same(pushed: HubStub, tmp_path: Path) -> None:
    fixed().save_pretrained(tmp_path / "gen")
    there, here = stored(pushed), listing(tmp_path / "gen")
    card = there.pop("README.md").decode()
    del here["README.md"]
    assert there == here
    assert card.startswith("---\nlibrary_name: paramsmith\n")
    assert "# `alice/gen`" in card
    assert fixed().push_to_hub(REPO).unchanged
    with pytest.raises(Refused, match="not empty"):
        fixed(seed=1).push_to_hub(REPO)
    assert not fixed(seed=1).push_to_hub(REPO, force=True).unchanged


def test_is_fetched_by_name(pushed: HubStub, tmp_path: Path) -> None:
    back = Generator.from_pretrained(REPO)
    (a,), (b,) = back.sample(seed=3), fixed().sample(seed=3)
    assert all(torch.equal(a[name], b[name]) for name in b)
    commit = pushed.store.repos[f"model/{REPO}"]["branches"]["main"]
    found = open_artifact(f"{REPO}@{commit}")
    assert (found.repo, found.commit) == (REPO, commit)
    assert found.sha256[TENSORS] == hashlib.sha256(stored(pushed)[TENSORS]).hexdigest()
    done = invoke("generate", REPO, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "out" / "generation.json").read_text())["generator"]
    assert (told["reference"], told["repo"], told["commit"]) == (REPO, REPO, commit)
    assert f"huggingface.co/{REPO}/tree/{commit}" in (tmp_path / "out" / "README.md").read_text()


def test_is_checked_like_any_other(hub: HubStub, tmp_path: Path) -> None:
    fixed().save(tmp_path / "gen")
    index = json.loads((tmp_path / "gen" / INDEX).read_text())
    (tmp_path / "gen" / INDEX).write_text(json.dumps({**index, "hypernetwork": ["os", "system"]}))
    assert invoke("push", tmp_path / "gen", REPO).exit_code == 0
    done = invoke("generate", REPO, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "os.system" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_generator(hub: HubStub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert invoke("push", tmp_path / "model", "alice/model").exit_code == 0
    with pytest.raises(InvalidInput, match="is no generator: it has no model_index"):
        Generator.from_pretrained("alice/model")
    with pytest.raises((InvalidInput, Failed), match="alice/nothing"):
        Generator.from_pretrained("alice/nothing")


def test_what_was_generated_is_pushed_with_its_hashes(hub: HubStub, tmp_path: Path) -> None:
    generate(fixed(), tmp_path / "out", shard_size=300)
    before = listing(tmp_path / "out")
    done = invoke("push", tmp_path / "out", "alice/out")
    assert done.exit_code == 0, done.output
    there = stored(hub, "alice/out")
    told = json.loads(there.pop("generation.json"))
    assert there == {name: data for name, data in before.items() if name != "generation.json"}
    for name, record in told["outputs"].items():
        assert record["sha256"] == hashlib.sha256(there[name]).hexdigest()
    shard = tmp_path / "out" / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes() + b"x")
    refused = invoke("push", tmp_path / "out", "alice/other")
    assert refused.exit_code == 2
    assert "alice/other" not in {name.removeprefix("model/") for name in hub.store.repos}
