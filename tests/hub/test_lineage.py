"""merge.json: what a merge records, how it is completed, what is read of it and what is refused; `verify`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hashing import sha256_of
from paramsmith.hub import repo_folder
from paramsmith.lineage import NAME, Lineage, lineage_of, local_names, read_lineage, without_paths
from paramsmith.merge.describe import describe, write_card
from paramsmith.merge.recording import completed
from paramsmith.recipe import Recipe, Slice, SliceSource
from tests.hub.hubstub import HubStub
from tests.hub.lineages import command, merged, models, on_hub, ran, texts
from tests.hub.repositories import damage, publish
from tests.merge.folders import contents

PARAMETERS = {"density": 0.5}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return merged(tmp_path / "out", models(tmp_path), parameters=PARAMETERS)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_recorded_at_the_merge(out: Path, tmp_path: Path) -> None:
    lineage = lineage_of(out)
    assert [(each.role, each.reference, each.repo) for each in lineage.inputs] == [
        ("base", "base", None),
        ("model", "first", None),
        ("model", "second", None),
    ]
    weights = lineage.inputs[1].files["model.safetensors"]
    assert weights.size == (tmp_path / "first/model.safetensors").stat().st_size
    assert weights.header is not None
    assert weights.sha256 is None
    assert lineage.inputs[1].files["config.json"].sha256 == sha256(tmp_path / "first/config.json")
    assert (lineage.method, lineage.arithmetic, lineage.torch) == ("ties", "eager", torch.__version__)
    assert lineage.recipe["base"] == "base"
    assert lineage.outputs["model.safetensors"].size == (out / "model.safetensors").stat().st_size
    assert str(tmp_path) not in (out / NAME).read_text()


def test_the_same_merge_gives_the_same_bytes_wherever_it_is_run(out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    for name in ("base", "first", "second"):
        shutil.copytree(tmp_path / name, elsewhere / name)
        os.utime(elsewhere / name / "model.safetensors", (1, 1))
    other = merged(elsewhere / "out", [str(elsewhere / n) for n in ("base", "first", "second")], parameters=PARAMETERS)
    assert (other / NAME).read_bytes() == (out / NAME).read_bytes()
    both = [made[NAME] for made in (describe(out).files, describe(other).files)]
    assert both[0] == both[1]


def test_warnings_lose_their_paths(tmp_path: Path) -> None:
    given = models(tmp_path / "secret home")
    weights = load_file(Path(given[1]) / "model.safetensors")
    save_file({**weights, "extra.weight": torch.ones(2)}, Path(given[1]) / "model.safetensors")
    lineage = lineage_of(merged(tmp_path / "out", given, parameters=PARAMETERS))
    assert any("extra.weight" in warning for warning in lineage.warnings)
    assert lineage.warnings[0].startswith("first: ")
    assert "secret" not in lineage.to_bytes().decode()


def test_words_that_are_no_paths_stay() -> None:
    said = "https://example.com/a/b and 1/2 of a/b, not /etc/shadow or /srv/.ssh/id"
    assert without_paths(said, {}) == "https://example.com/a/b and 1/2 of a/b, not shadow or id"
    assert local_names(["x/a", "y/a", "z/a-2", "."])[:3] == ["a", "a-2", "a-2-2"]


def test_completed_has_every_hash(out: Path, tmp_path: Path) -> None:
    (out / "tokenizer_notes").mkdir()
    (out / "tokenizer_notes" / "note.txt").write_text("hello")
    lineage, warnings = completed(lineage_of(out), out)
    assert not warnings
    for each in lineage.inputs:
        for name, file in each.files.items():
            assert file.sha256 == sha256(tmp_path / each.reference / name)
    assert set(lineage.outputs) == {"config.json", "model.safetensors", "tokenizer_notes/note.txt"}
    assert all(file.sha256 == sha256(out / name) for name, file in lineage.outputs.items())
    assert completed(lineage, out)[0] == lineage


def test_what_a_push_leaves_behind_is_not_described(out: Path, tmp_path: Path) -> None:
    (out / "a/b").mkdir(parents=True)
    for name in ("pytorch_model.BIN", "a/b/deep.txt", ".hidden", "a/kept.txt"):
        (out / name).write_text("x")
    (tmp_path / "outside.txt").write_text("x")
    (out / "link.txt").symlink_to(tmp_path / "outside.txt")
    os.mkfifo(out / "pipe")
    assert set(completed(lineage_of(out), out)[0].outputs) == {"config.json", "model.safetensors", "a/kept.txt"}


def test_an_input_that_changed_is_named(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "first/model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InvalidInput, match=r"first/model.safetensors: .*"):
        completed(lineage_of(out), out)
    save_file({"other": torch.zeros(3)}, path)
    with pytest.raises(InvalidInput, match=r"first/model.safetensors: has changed since the merge"):
        completed(lineage_of(out), out)


def test_an_output_that_changed_is_named(out: Path) -> None:
    whole = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"model.safetensors: is missing"):
        completed(lineage_of(out), out)
    (out / "model.safetensors").write_bytes(whole)
    write_card(out)
    (out / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InvalidInput, match=r"model.safetensors: has changed since it was described"):
        write_card(out)


def test_an_input_that_is_gone_stays_unknown(out: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "second")
    lineage, warnings = completed(lineage_of(out), out)
    assert lineage.inputs[2].files["model.safetensors"].sha256 is None
    assert lineage.inputs[1].files["model.safetensors"].sha256
    assert warnings == ("second is no longer there: its hash stays unknown",)


def later(path: Path, than: Path) -> None:
    """As if the file had been written a second after the other."""
    at = than.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(at, at))


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_an_input_that_is_newer_than_the_merge_stays_unknown(out: Path, tmp_path: Path) -> None:
    flip_last(tmp_path / "first/model.safetensors")
    later(tmp_path / "first/model.safetensors", out / NAME)
    told = "first/model.safetensors is newer than the merge: its hash stays unknown"
    for _ in range(2):  # after the first, merge.json is the newer one
        assert told in write_card(out).warnings
        os.utime(out / NAME, (2**32, 2**32))
        lineage = lineage_of(out)
        assert lineage.inputs[1].files["model.safetensors"].sha256 is None
        assert lineage.inputs[2].files["model.safetensors"].sha256
        assert lineage.warnings == (told,)
    assert (out / "README.md").read_text().count(told) == 1


def test_weights_that_are_newer_than_the_merge(out: Path) -> None:
    flip_last(out / "model.safetensors")
    later(out / "model.safetensors", out / NAME)
    told = "model.safetensors is newer than the merge; it is described as it is now"
    done = command("card", out)
    assert done.exit_code == 0, done.output
    assert told in done.stderr
    assert lineage_of(out).outputs["model.safetensors"].sha256 == sha256(out / "model.safetensors")
    write_card(out)
    assert (out / "README.md").read_text().count(told) == 1, "and the next card still says so"


def test_an_input_that_is_damaged_in_the_cache(hub: HubStub, tmp_path: Path) -> None:
    out = merged(tmp_path / "out", on_hub(hub, tmp_path / "local"), parameters=PARAMETERS)
    path = next(repo_folder("alice/first").glob("snapshots/*/model.safetensors"))
    flip_last(path)
    with pytest.raises(Failed, match=r"alice/first/model.safetensors: is damaged in the cache") as problem:
        completed(lineage_of(out), out)
    assert "remove it" in problem.value.hint
    path.resolve().unlink()
    hub.requests.clear()
    assert completed(lineage_of(out), out)[1] == ()
    assert not [r for r in hub.requests if r["path"].endswith(".safetensors")], "it is not fetched for that"


def test_another_recipe_is_not_taken_for_it(out: Path) -> None:
    recipe = (out / "recipe.yaml").read_text()
    (out / "recipe.yaml").write_text(recipe.replace("density: 0.5", "density: 0.6"))
    with pytest.raises(InvalidInput, match=r"is not the recipe that merge.json tells of"):
        describe(out)
    (out / "recipe.yaml").unlink()
    with pytest.raises(InvalidInput, match=r"holds no recipe.yaml"):
        describe(out)


def test_slices_and_two_folders_of_one_name(tmp_path: Path) -> None:
    one, two = (models(tmp_path / home)[1 + number] for number, home in enumerate(("x", "y")))
    Path(two).rename(tmp_path / "y/first-too")
    (tmp_path / "y/first").rename(tmp_path / "y/gone")
    (tmp_path / "y/first-too").rename(tmp_path / "y/first")
    sources = [SliceSource(model=str(m), layer_range=(0, 1)) for m in (one, tmp_path / "y/first")]
    recipe = Recipe(method="passthrough", slices=tuple(Slice(sources=(s,)) for s in sources))
    lineage, _ = completed(lineage_of(ran(tmp_path / "out", recipe)), tmp_path / "out")
    assert [each.reference for each in lineage.inputs] == ["first", "first-2"]
    assert all(each.files["model.safetensors"].sha256 for each in lineage.inputs)


BAD = {
    "outputs": {"../out": {"size": 1}},
    "outputs ": {"/etc/passwd": {"size": 1}},
    "outputs  ": {"a\\b": {"size": 1}},
    "outputs   ": {"a": {"size": -1}},
    "outputs    ": {"a": {"size": 1, "sha256": "zz"}},
    "format": 2,
    "arithmetic": "magic",
    "surprise": 1,
    "inputs": [{"role": "model", "reference": "a", "repo": "../x", "commit": None, "path": "", "files": {}}],
    "inputs ": [{"role": "model", "reference": "a", "repo": "a/b", "commit": "main", "path": "", "files": {}}],
    "inputs  ": [{"role": "model", "reference": "a", "repo": "a/b", "commit": "0" * 40, "path": "../c", "files": {}}],
    "recipe": {"method": json.loads("[" * 60 + "]" * 60)},
    "recipe ": [],
}


@pytest.mark.parametrize(("key", "value"), BAD.items())
def test_what_a_stranger_may_write(key: str, value: object, out: Path) -> None:
    said = json.loads((out / NAME).read_text())
    (out / NAME).write_text(json.dumps({**said, key.strip(): value}))
    with pytest.raises(InvalidInput, match=r"merge.json: ") as problem:
        read_lineage(out / NAME)
    assert problem.value.fact.isprintable()


def test_what_is_no_lineage(tmp_path: Path) -> None:
    path = tmp_path / NAME
    for data in (b"[]", b"{", b"\xff", b'{"format": 1, "format": 1}', b"{}", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(InvalidInput, match=r"merge\.json"):
            read_lineage(path)
    with path.open("wb") as file:
        file.truncate(30_000_000)
    with pytest.raises(InvalidInput, match="at most 20,000,000"):
        read_lineage(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidInput, match="a named pipe"):
        read_lineage(path)


def test_hashing(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(3_000_001))
    (tmp_path / "empty").touch()
    steps: list[tuple[int, int]] = []
    found = sha256_of([big, tmp_path / "empty", big], lambda done, total: steps.append((done, total)))
    assert found == {big: sha256(big), tmp_path / "empty": hashlib.sha256().hexdigest()}
    assert steps[-1] == (3_000_001, 3_000_001)
    with pytest.raises(InvalidInput, match="none"):
        sha256_of([big, tmp_path / "none"])


def test_a_file_that_grows_while_it_is_hashed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)

    def grow(done: int, total: int) -> None:
        with path.open("ab") as file:
            file.write(b"y" if path.stat().st_size == 3_000_000 else b"")

    with pytest.raises(Failed, match="changed while being read"):
        sha256_of([path], grow)


# ------------------------------------------------------------------------------------------------ verify


def test_verify_a_folder(out: Path) -> None:
    unfinished = command("verify", out)
    assert unfinished.exit_code == 2
    assert "paramsmith card" in unfinished.stderr
    write_card(out)
    done = command("verify", out)
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["ok", "config.json"],
        ["ok", "model.safetensors"],
        ["ok", "recipe.yaml"],
    ]
    assert command("verify", out, "-q").stdout == ""
    assert json.loads(command("verify", out, "--json").stdout)["verified"] is True


def test_verify_finds_every_difference(out: Path) -> None:
    write_card(out)
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    (out / "config.json").unlink()
    (out / "recipe.yaml").write_text("method: linear\nmodels: [a]\n")
    (out / "modeling.py").write_text("import os")
    (out / "NOTICE.txt").write_text("a text does no harm")
    done = command("verify", out)
    assert done.exit_code == 1
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == [
        "differs",
        "differs",
        "extra",
        "extra",
        "missing",
    ]
    told = json.loads(command("verify", out, "--json").stdout)
    assert {f["name"] for f in told["files"] if f["status"] == "differs"} == {"model.safetensors", "recipe.yaml"}
    for name in ("modeling.py", "NOTICE.txt"):
        (out / name).unlink()
    assert command("verify", out).exit_code == 1


def test_weights_that_became_a_dangling_link_or_a_pipe(out: Path, tmp_path: Path) -> None:
    write_card(out)
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to(tmp_path / "none")
    (out / "config.json").unlink()
    os.mkfifo(out / "config.json")
    done = command("verify", out)
    assert done.exit_code == 1
    assert "differs  config.json\ndiffers  model.safetensors\n" in done.stdout


def test_a_text_beside_the_model_is_no_difference(out: Path) -> None:
    write_card(out)
    (out / "NOTICE.txt").write_text("x")
    assert command("verify", out).exit_code == 0
    (out / "second.safetensors").write_bytes(b"")
    assert command("verify", out).exit_code == 1


def test_verify_without_lineage(tmp_path: Path) -> None:
    assert command("verify", tmp_path).exit_code == 2
    assert command("verify", tmp_path / "none").exit_code == 2


def pushed(hub: HubStub, out: Path) -> None:
    """As a push leaves it: what `described` gives over the files of the folder."""
    publish(hub, "alice/merged", {**contents(out), **describe(out).files})


@pytest.fixture
def published(hub: HubStub, tmp_path: Path) -> Path:
    out = merged(tmp_path / "out", on_hub(hub, tmp_path / "local"), parameters=PARAMETERS)
    pushed(hub, out)
    return out


def test_verify_a_repository(published: Path, hub: HubStub, tmp_path: Path) -> None:
    hub.requests.clear()
    done = command("verify", "alice/merged")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    fetched = [r["path"] for r in hub.requests if r["path"].endswith(".safetensors")]
    assert not fetched, "the listing has the hash"
    done = command("verify", "hf://alice/merged@main", "--read")
    assert done.exit_code == 0
    assert "ok       model.safetensors" in done.stdout


def test_verify_a_repository_that_was_changed(published: Path, hub: HubStub) -> None:
    files = contents(published)
    publish(hub, "alice/merged", {"model.safetensors": files["model.safetensors"][:-1] + b"\1"})
    done = command("verify", "alice/merged")
    assert done.exit_code == 1
    assert "differs  model.safetensors" in done.stdout
    publish(hub, "alice/merged", {"model.safetensors": files["model.safetensors"], "config.json": b"{}"})
    assert "differs  config.json" in command("verify", "alice/merged").stdout
    publish(hub, "alice/merged", {"config.json": files["config.json"], "evil.py": b"x"})
    assert "extra    evil.py" in command("verify", "alice/merged").stdout


def test_only_reading_finds_a_flipped_bit_in_the_storage(published: Path, hub: HubStub) -> None:
    damage(hub, "alice/merged", "model.safetensors")
    assert command("verify", "alice/merged").exit_code == 0
    done = command("verify", "alice/merged", "--read")
    assert done.exit_code == 1
    assert "model.safetensors" in done.output


def test_verify_out_of_reach_of_the_hub(
    published: Path, hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paramsmith.download import fetch, remember_revision
    from paramsmith.hub import Reference, snapshot

    reference = Reference("alice/merged")
    held = snapshot(reference)
    here = fetch(held, list(held.files))
    remember_revision(reference, held)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = command("verify", "alice/merged")
    assert (done.exit_code, "differs" in done.stdout) == (0, False), done.output
    assert "the hub was not reached" in done.stderr
    flip_last(here["model.safetensors"])  # its name is still that of the right content
    done = command("verify", "alice/merged")
    assert done.exit_code == 1
    assert "differs  model.safetensors" in done.stdout
    here["model.safetensors"].resolve().unlink()
    done = command("verify", "alice/merged")
    assert done.exit_code == 0, done.output
    assert "not here model.safetensors" in done.stdout
    assert "missing" not in done.stdout
    told = json.loads(command("verify", "alice/merged", "--json").stdout)
    assert told["verified"] is False
    assert "not reached" in told["warnings"][0]
    here[NAME].unlink()
    done = command("verify", "alice/merged")
    assert done.exit_code == 2
    assert "merge.json is not in the cache" in done.stderr


def test_a_repository_without_lineage(hub: HubStub, tmp_path: Path) -> None:
    on_hub(hub, tmp_path)
    done = command("verify", "alice/base")
    assert done.exit_code == 2
    assert "alice/base" in done.stderr
    publish(hub, "alice/base", {NAME: b'{"format": 1, "outputs": {"../../x": {"size": 1}}}'})
    done = command("verify", "alice/base")
    assert done.exit_code == 2
    assert "merge.json" in done.stderr
    assert command("verify", "hf://alice/base/model.safetensors").exit_code == 2


def test_inputs_of_the_hub_are_recorded_with_commit_and_hash(published: Path, hub: HubStub, tmp_path: Path) -> None:
    lineage = Lineage.model_validate_json(hub.read("alice/merged", NAME))
    repos = {name: hub.store.repos[hub.store.key("model", f"alice/{name}")] for name in ("base", "first")}
    heads = {name: repo["branches"]["main"] for name, repo in repos.items()}
    first = lineage.inputs[1]
    assert (first.reference, first.repo, first.commit) == ("alice/first", "alice/first", heads["first"])
    assert first.files["model.safetensors"].sha256 == sha256(tmp_path / "local/first/model.safetensors")
    assert lineage.recipe["base"] == f"alice/base@{heads['base']}"
    assert lineage.on_hub
    assert heads["first"] in hub.read("alice/merged", "recipe.yaml").decode()


def test_a_folder_of_the_cache_is_the_repository(hub: HubStub, tmp_path: Path) -> None:
    from paramsmith.download import fetch
    from paramsmith.hub import Reference, snapshot

    folders = []
    for repo in on_hub(hub, tmp_path / "local"):
        reference = Reference.parse(repo)
        assert reference is not None
        held = snapshot(reference)
        folders.append(str(fetch(held, ["config.json", "model.safetensors"])["config.json"].parent))
    out = merged(tmp_path / "out", folders, parameters=PARAMETERS)
    lineage = lineage_of(out)
    assert [each.repo for each in lineage.inputs] == ["alice/base", "alice/first", "alice/second"]
    weights = lineage.inputs[1].files["model.safetensors"]
    assert weights.sha256 == sha256(tmp_path / "local/first/model.safetensors")
    files = describe(out).files
    assert str(tmp_path) not in texts(files)
    assert b"license: mit" in files["README.md"]
