"""`paramsmith push`: what it prints, what it refuses, and how it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paramsmith.cli import app
from paramsmith.errors import InvalidInput
from paramsmith.upload import files_of
from tests.hub.hubstub import WRITE_TOKEN, HubStub
from tests.shared.staged import listing

REPO = "alice/merged"
CARD = b"---\nlicense: mit\n---\n# A model\n"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What cards were asked for; they say little here."""
    asked: list[tuple[str, str | None]] = []

    def to_publish(folder: Path, repo: str, licence: str | None) -> tuple[dict[str, Path | bytes], tuple[str, ...]]:
        asked.append((folder.name, licence))
        return {**files_of(folder), "README.md": CARD, "merge.json": b"{}"}, ("careful",)

    def described_file(path: Path, *, licence: str | None) -> bytes:
        asked.append((path.name, licence))
        return CARD

    monkeypatch.setattr("paramsmith.merge.publishing.to_publish", to_publish)
    monkeypatch.setattr("paramsmith.merge.describe.described_file", described_file)
    return asked


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app.cli, ["push", *(str(word) for word in words)])


def model(folder: Path, *, card: bool = True) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "config.json").write_text("{}")
    if card:
        (folder / "README.md").write_bytes(CARD)
    return folder


def stored(hub: HubStub) -> dict[str, bytes]:
    return {name: hub.read(REPO, name) for name in hub.files(REPO) if name != ".gitattributes"}


def test_prints_the_commit(hub: HubStub, tmp_path: Path) -> None:
    done = invoke(model(tmp_path / "out"), REPO)
    commit = hub.store.repos[f"model/{REPO}"]["branches"]["main"]
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"{REPO}: 3 files, 2.1 kB\n{hub.url}/{REPO}/commit/{commit}\n"
    assert stored(hub) == listing(tmp_path / "out")
    assert hub.store.repos[f"model/{REPO}"]["commits"][commit]["title"] == "Upload out with paramsmith"
    again = invoke(tmp_path / "out", REPO, "-q")
    assert again.stdout == f"{hub.url}/{REPO}/commit/{commit}\n"
    assert invoke(tmp_path / "out", REPO).stdout.startswith(f"{REPO}: unchanged, 3 files")
    assert WRITE_TOKEN not in done.output + again.output


def test_json(hub: HubStub, tmp_path: Path) -> None:
    told = json.loads(invoke(model(tmp_path / "out"), REPO, "--json").stdout)
    commit = hub.store.repos[f"model/{REPO}"]["branches"]["main"]
    url = f"{hub.url}/{REPO}/commit/{commit}"
    expected = {"repo": REPO, "commit": commit, "url": url, "files": 3, "nbytes": 2081}
    assert told == {**expected, "pull_request": None, "unchanged": False}
    failed = json.loads(invoke(tmp_path / "out", "merged", "--json").stdout)
    assert failed["error"]["exit_code"] == 2


def test_pull_request_and_branch_and_force(hub: HubStub, tmp_path: Path) -> None:
    out = model(tmp_path / "out")
    assert invoke(out, REPO, "--private").exit_code == 0
    assert hub.store.repos[f"model/{REPO}"]["private"]
    (out / "config.json").write_text('{"a": 1}')
    refused = invoke(out, REPO)
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert refused.stderr.startswith(f"error: {REPO}: is not empty (3 files; config.json is another there)\nhint: ")
    proposed = invoke(out, REPO, "--create-pr")
    assert f"pull request: {hub.url}/{REPO}/discussions/1\n" in proposed.stdout
    assert invoke(out, REPO, "--revision", "v2").exit_code == 0
    assert stored(hub) != listing(out)
    assert invoke(out, REPO, "--force").exit_code == 0
    assert stored(hub) == listing(out)


@pytest.mark.parametrize("licence", [None, "apache-2.0"])
def test_card_of_a_merge_is_written(
    hub: HubStub, tmp_path: Path, written: list[tuple[str, str | None]], licence: str | None
) -> None:
    out = model(tmp_path / "out", card=False)
    (out / "recipe.yaml").write_text("method: linear\n")
    done = invoke(out, REPO, *(["--license", licence] if licence else []))
    assert (done.exit_code, done.stderr) == (0, "warning: careful\n")
    assert written == [("out", licence)]
    assert stored(hub) == {**listing(out), "README.md": CARD, "merge.json": b"{}"}


@pytest.mark.parametrize("name", ["fisher.safetensors", "atlas.json"])
def test_one_file(hub: HubStub, tmp_path: Path, written: list[tuple[str, str | None]], name: str) -> None:
    (tmp_path / name).write_bytes(b"measured")
    assert invoke(tmp_path / name, REPO, "--license", "mit").exit_code == 0
    assert written == [(name, "mit")]
    assert stored(hub) == {name: b"measured", "README.md": CARD}


def test_one_file_goes_beside_a_model(hub: HubStub, tmp_path: Path, written: list[tuple[str, str | None]]) -> None:
    """The model and its card stay, forced or not; another file of the same name is kept unless forced."""
    invoke(model(tmp_path / "out"), REPO)
    file = tmp_path / "fisher.safetensors"
    for content, words, code in ((b"one", (), 0), (b"one", (), 0), (b"two", (), 3), (b"two", ("--force",), 0)):
        file.write_bytes(content)
        done = invoke(file, REPO, *words)
        assert done.exit_code == code, done.output
        kept = b"one" if code else content
        assert stored(hub) == {**listing(tmp_path / "out"), file.name: kept}
    assert len(hub.store.repos[f"model/{REPO}"]["commits"]) == 4  # the first, the model, and the file twice


def test_what_is_not_pushed(hub: HubStub, tmp_path: Path, written: list[tuple[str, str | None]]) -> None:
    out = model(tmp_path / "out", card=False)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    cases = [
        (out, REPO, "has no README.md, and no recipe.yaml"),
        (tmp_path / "notes.txt", REPO, "is neither a folder nor statistics"),
        (tmp_path / "absent.safetensors", REPO, "is not there"),
        (tmp_path / "absent", REPO, "is neither a folder nor"),
        (tmp_path / "empty", REPO, "holds no weights"),
        (out, "merged", "merged: not the name of a repository"),
        (out, "a/b/c", "not the name of a repository"),
    ]
    for path, repo, told in cases:
        done = invoke(path, repo)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert told in done.stderr
        assert "\nhint: " in done.stderr
    (out / "README.md").write_bytes(CARD)
    assert "says the licence itself" in invoke(out, REPO, "--license", "mit").stderr
    assert written == []
    assert hub.requests == []


def test_error_of_the_card_is_passed_on(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disagree(folder: Path, repo: str, licence: str | None) -> dict[str, bytes]:
        raise InvalidInput("the licences of the inputs differ", "add --license")

    monkeypatch.setattr("paramsmith.merge.publishing.to_publish", disagree)
    out = model(tmp_path / "out", card=False)
    (out / "recipe.yaml").write_text("method: linear\n")
    assert invoke(out, REPO).stderr == "error: the licences of the inputs differ\nhint: add --license\n"
    assert hub.requests == []


def test_help_imports_little() -> None:
    code = "import sys; import paramsmith.cli.push; print('huggingface_hub' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_interrupted(hub: HubStub, tmp_path: Path) -> None:
    out = model(tmp_path / "out")
    hub.fault("PUT", "/lfs/", delay=60)
    code = "from paramsmith.cli.app import main; main()"
    command = [sys.executable, "-c", code, "push", str(out), REPO]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while hub.faults[-1]["left"] and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=30)
    assert (process.returncode, printed) == (130, "")
    assert told == "error: interrupted\nhint: what was sent is kept; the same command goes on from here\n"
    assert hub.files(REPO) == [".gitattributes"]
