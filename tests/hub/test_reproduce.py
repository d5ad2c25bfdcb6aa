"""`paramsmith reproduce`: the same bytes from what merge.json tells, or what differs, or why it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramsmith.errors import InvalidInput, Refused
from paramsmith.lineage import NAME, lineage_of
from paramsmith.merge.describe import describe, write_card
from paramsmith.merge.reproduce import reproduce
from paramsmith.recipe import Recipe, entries
from paramsmith.statistics import About, weights_digest
from tests.hub.hubstub import HubStub
from tests.hub.lineages import command, merged, models, on_hub, ran
from tests.hub.repositories import publish
from tests.merge.folders import contents

HOW = {"parameters": {"density": 0.5, "weight": [0.4, 0.6]}, "seed": 3}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = merged(tmp_path / "out", models(tmp_path), "dare", **HOW)
    write_card(made)
    return made


def test_from_local_folders(out: Path, tmp_path: Path) -> None:
    done = command("reproduce", out)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["same", "config.json"],
        ["same", "model.safetensors"],
    ]
    assert not list(Path.cwd().iterdir()), "what was made is gone again"
    assert json.loads(command("reproduce", out, "--keep", "--json").stdout)["reproduced"] is True
    assert (Path.cwd() / "out.reproduced/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert command("reproduce", out).exit_code == 3
    assert command("reproduce", out, "-o", tmp_path / "again", "-q").stdout == ""
    assert (tmp_path / "again/model.safetensors").exists()


def test_a_difference_is_found(out: Path) -> None:
    said = json.loads((out / NAME).read_text())
    said["outputs"]["model.safetensors"]["sha256"] = "0" * 64
    said["torch"] = "1.0<b>"
    (out / NAME).write_text(json.dumps(said))
    done = command("reproduce", out)
    assert done.exit_code == 1
    assert "different model.safetensors" in done.stdout
    assert "warning: made with torch 1.0<b>, run with" in done.stderr
    assert not list(Path.cwd().iterdir())


def test_an_input_that_changed(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "first/model.safetensors"
    tensors = load_file(path)
    save_file({n: t + 1 for n, t in tensors.items()}, path, {"format": "pt"})
    done = command("reproduce", out)
    assert done.exit_code == 2
    assert "first/model.safetensors: has changed since the merge" in done.stderr
    path.unlink()
    done = command("reproduce", out)
    assert done.exit_code == 2
    assert "is no longer there" in done.stderr
    assert not list(Path.cwd().iterdir())


def test_without_hashes(out: Path, tmp_path: Path) -> None:
    fresh = merged(tmp_path / "fresh", [str(tmp_path / n) for n in ("base", "first", "second")])
    done = command("reproduce", fresh)
    assert done.exit_code == 2
    assert "paramsmith card" in done.stderr


def test_statistics_and_coefficients_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paramsmith.checkpoint import Checkpoint
    from paramsmith.coefficients import Coefficients

    monkeypatch.chdir(tmp_path)
    given = models(tmp_path)[1:]
    files, digests = [], []
    for number, path in enumerate(given):
        with Checkpoint.open(path) as model:
            digests.append(weights_digest(model))
            ones = {name: torch.ones(info.shape) + number for name, info in model.tensors.items()}
        about = About(kind="fisher", estimator="exact", examples=1, model=digests[-1], data="")
        files.append(tmp_path / f"fisher{number}.safetensors")
        save_file(ones, files[-1], about.metadata())
    out = ran(tmp_path / "out", Recipe(method="fisher", models=entries(given, list(map(str, files)))))
    lineage = lineage_of(out)
    assert [(each.role, each.reference) for each in lineage.inputs][2:] == [
        ("statistics", "fisher0.safetensors"),
        ("statistics", "fisher1.safetensors"),
    ]
    write_card(out)
    assert reproduce(str(out)).same
    learned = Coefficients(method="linear", models=tuple(digests), default=((0.3,), (0.7,)))
    learned.save(tmp_path / "c.json")
    recipe = Recipe(method="linear", models=entries(given), coefficients=str(tmp_path / "c.json"))
    out = ran(tmp_path / "out2", recipe)
    write_card(out)
    assert lineage_of(out).inputs[-1].role == "coefficients"
    assert reproduce(str(out)).same
    (tmp_path / "c.json").write_text((tmp_path / "c.json").read_text().replace("0.3", "0.2"))
    with pytest.raises(InvalidInput, match=r"c.json: has changed since the merge"):
        reproduce(str(out))


def push(hub: HubStub, out: Path) -> None:
    publish(hub, "alice/merged", {**contents(out), **describe(out).files})


def test_from_the_hub(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = on_hub(hub, tmp_path / "local")
    out = merged(tmp_path / "out", given, **HOW)
    push(hub, out)
    # the branches move on, the commits do not
    publish(hub, "alice/first", {"model.safetensors": b"something else"})
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(out)
    shutil.rmtree(tmp_path / "local")
    monkeypatch.chdir(tmp_path)
    done = command("reproduce", "alice/merged")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert "same      model.safetensors" in done.stdout
    assert not (tmp_path / "merged.reproduced").exists()


def test_a_repository_with_inputs_that_nobody_else_has(hub: HubStub, tmp_path: Path) -> None:
    push(hub, merged(tmp_path / "out", models(tmp_path)))
    done = command("reproduce", "alice/merged")
    assert done.exit_code == 2
    assert "its input base is not on the hub" in done.stderr


def test_a_lineage_that_was_made_up(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    push(hub, merged(tmp_path / "out", on_hub(hub, tmp_path / "local")))
    sound = json.loads(hub.read("alice/merged", NAME))

    def refused(**changed: object) -> str:
        publish(hub, "alice/merged", {NAME: json.dumps({**sound, **changed}).encode()})
        done = command("reproduce", "alice/merged")
        assert done.exit_code == 2, done.output
        assert not (tmp_path / "merged.reproduced").exists()
        return done.stderr

    models_of = sound["recipe"]["models"]
    assert "method" in refused(recipe={**sound["recipe"], "method": "tise"})
    assert "holds no recipe" in refused(recipe={"method": "ties"})
    assert "holds no recipe" in refused(recipe={**sound["recipe"], "models": [*models_of, {"model": "/etc"}]})
    assert "holds no recipe" in refused(recipe={**sound["recipe"], "coefficients": "/etc/passwd"})
    assert "density" in refused(recipe={**sound["recipe"], "parameters": {"density": 7}})
    local = [{**each, "repo": None, "commit": None, "reference": "/etc"} for each in sound["inputs"]]
    assert "/etc" in refused(inputs=local)
    other = [
        {**each, "files": {**each["files"], "model.safetensors": {"size": 1, "sha256": "0" * 64}}}
        for each in sound["inputs"]
    ]
    assert "is not what it was" in refused(inputs=other)


def test_a_stranger_names_no_file_of_this_machine(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    push(hub, merged(tmp_path / "out", on_hub(hub, tmp_path / "local")))
    said = json.loads(hub.read("alice/merged", NAME))
    mine = str(tmp_path / "local/second")
    files = {name: {**file, "sha256": None} for name, file in said["inputs"][2]["files"].items()}
    said["inputs"][2].update(reference=mine, repo=None, commit=None, files=files)
    said["recipe"]["models"][1]["model"] = mine
    publish(hub, "alice/merged", {NAME: json.dumps(said).encode()})
    done = command("reproduce", "alice/merged")
    assert done.exit_code == 2, done.output
    assert "is not on the hub" in done.stderr
    # nor is a folder here taken for a repository
    push(hub, tmp_path / "out")
    first = json.loads(hub.read("alice/merged", NAME))["inputs"][1]
    (tmp_path / f"alice/first@{first['commit']}").mkdir(parents=True)
    assert command("reproduce", "alice/merged").exit_code == 0


def test_what_is_published_counts(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = merged(tmp_path / "out", on_hub(hub, tmp_path / "local"))
    push(hub, out)
    sound = contents(out)
    publish(hub, "alice/merged", {"model.safetensors": sound["model.safetensors"][:-1] + b"\1"})
    done = command("reproduce", "alice/merged")
    assert done.exit_code == 1, done.output
    assert "different model.safetensors" in done.stdout
    assert "same      config.json" in done.stdout
    config = sound["config.json"]
    publish(hub, "alice/merged", {"model.safetensors": sound["model.safetensors"], "config.json": config[:-1] + b" "})
    assert "different config.json" in command("reproduce", "alice/merged").stdout
    publish(hub, "alice/merged", {"config.json": config})
    assert command("reproduce", "alice/merged").exit_code == 0


def test_where_the_result_goes(out: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="already exists"):
        reproduce(str(out), tmp_path / "first")
    assert (tmp_path / "first/model.safetensors").exists()
    with pytest.raises(InvalidInput, match="the result is a folder"):
        reproduce(str(out), tmp_path / "x.safetensors")
    with pytest.raises(InvalidInput, match="names a part"):
        reproduce("hf://alice/merged/model.safetensors")
