"""`paramsmith pull`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paramsmith import hub as hub_module
from paramsmith.cli import app
from paramsmith.hub import Snapshot, repo_folder
from tests.hub.hubstub import WRITE_TOKEN, HubStub
from tests.hub.test_download import BIG, REPO, flip_bit, forget, put, sent, stored

FILES = {
    BIG: bytes(range(256)) * 400,
    "config.json": b"{}",
    "sub/tokenizer.json": b"[]",
    "fisher.safetensors": b"fisher",
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"onnx",
    "modeling.py": b"code",
}
NEEDED = {".gitattributes", BIG, "config.json", "sub/tokenizer.json", "fisher.safetensors"}
START = "from paramsmith.cli.app import main; main()"


@pytest.fixture
def held(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    monkeypatch.setattr(hub_module, "_LONGEST_WAIT", 0.01)
    monkeypatch.setitem(app.COMMANDS, "pull", "")
    monkeypatch.delenv(app.DEBUG, raising=False)
    return put(hub, FILES)


def pull(*words: object) -> Result:
    return CliRunner().invoke(app.cli, ["pull", *map(str, words)])


def inside(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def home(held: Snapshot) -> Path:
    return repo_folder(REPO) / "snapshots" / held.commit


def test_into_the_cache(hub: HubStub, held: Snapshot) -> None:
    done = pull(REPO)
    assert (done.exit_code, done.stderr) == (0, "")
    size = sum(held.files[name].size for name in NEEDED)
    told = f"{home(held)}: 5 files, {size / 1000:.1f} kB, {size / 1000:.1f} kB downloaded, {REPO}@{held.commit}\n"
    assert done.stdout == told
    assert set(inside(home(held))) == NEEDED
    forget(hub)
    again = pull(f"{REPO}@main", "--json")
    told = json.loads(again.stdout)
    assert (told["commit"], told["path"], told["bytes"]) == (held.commit, str(home(held)), size)
    assert told["bytes_downloaded"] == sent(hub) == 0
    assert {"name": BIG, "bytes": len(FILES[BIG]), "sha256": held.files[BIG].sha256} in told["files"]
    assert pull(REPO, "-q").stdout == f"{home(held)}\n"
    assert (repo_folder(REPO) / "refs" / "main").read_text() == held.commit


def test_into_a_folder(hub: HubStub, held: Snapshot, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = pull(REPO, "-o", out)
    assert (done.exit_code, done.stdout.partition(":")[0]) == (0, str(out))
    expected = {name: hub.read(REPO, name) for name in NEEDED}
    assert inside(out) == expected
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]
    forget(hub)
    refused = pull(REPO, "-o", out, "--all")
    assert (refused.exit_code, sent(hub)) == (3, 0)
    assert refused.stderr == f"error: {out} already exists\nhint: --force replaces it\n"
    assert inside(out) == expected
    assert pull(REPO, "-o", out, "--all", "--force").exit_code == 0
    assert inside(out) == {name: hub.read(REPO, name) for name in held.files}


def test_a_folder_is_there_whole_or_not_at_all(hub: HubStub, held: Snapshot, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hub.fault("GET", r"/resolve/.*/tokenizer\.json", status=404, headers={"X-Error-Code": "EntryNotFound"})
    done = pull(REPO, "-o", out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {held}/sub/tokenizer.json: has no such file")
    assert list(tmp_path.glob("*out*")) == []
    assert pull(REPO, "-o", out).exit_code == 0
    assert set(inside(out)) == NEEDED


def test_which_files(held: Snapshot, tmp_path: Path) -> None:
    for words, expected in (
        (["--all"], set(held.files)),
        (["--include", "*.json"], {"config.json", "sub/tokenizer.json"}),
        (["--include", "*.bin", "--include", "model*"], {"pytorch_model.bin", BIG, "modeling.py"}),
    ):
        told = json.loads(pull(REPO, "--json", *words).stdout)
        assert {file["name"] for file in told["files"]} == expected
    for words, fact in (
        (["--include", "*.gguf"], f"{held}: has no file *.gguf"),
        (["--include", "*", "--all"], "--all and --include exclude each other"),
    ):
        done = pull(REPO, *words)
        assert (done.exit_code, done.stderr.partition("\n")[0]) == (2, f"error: {fact}")


def test_one_file_and_one_folder(hub: HubStub, held: Snapshot, tmp_path: Path) -> None:
    done = pull(f"hf://{REPO}/fisher.safetensors", "-q")
    assert done.stdout == f"{home(held) / 'fisher.safetensors'}\n"
    assert sent(hub) == len(b"fisher")
    out = tmp_path / "f.safetensors"
    assert pull(f"hf://{REPO}@{held.commit}/fisher.safetensors", "-o", out, "-q").stdout == f"{out}\n"
    assert out.read_bytes() == b"fisher"
    assert pull(f"hf://{REPO}/fisher.safetensors", "-o", out).exit_code == 3
    other = tmp_path / "named"
    assert pull(f"hf://{REPO}/config.json", "-o", other).exit_code == 0
    assert other.read_bytes() == b"{}"
    folder = tmp_path / "folder"
    assert pull(f"hf://{REPO}/sub", "-o", folder).exit_code == 0
    assert inside(folder) == {"tokenizer.json": b"[]"}
    assert pull(f"hf://{REPO}/sub", "-q").stdout == f"{home(held) / 'sub'}\n"
    missing = pull(f"hf://{REPO}/nothing.safetensors")
    assert (missing.exit_code, "has no file or folder nothing.safetensors" in missing.stderr) == (2, True)
    assert pull(f"hf://{REPO}/config.json", "--all").exit_code == 2


@pytest.mark.usefixtures("held")
def test_what_names_no_repository(tmp_path: Path) -> None:
    for text, fact in (
        (str(tmp_path), "is a local path"),
        ("gpt2", "is not the name of a repository"),
        ("hf://../x", "names nothing on the hub"),
        ("alice/none", "is not on the hub, or not for you to see"),
        (f"{REPO}@v9", "has no such revision"),
    ):
        done = pull(text)
        assert (done.exit_code, done.stdout) == (2, "")
        assert fact in done.stderr.partition("\n")[0]


def test_a_repository_of_pickles(hub: HubStub, held: Snapshot) -> None:
    tree = hub.store.repos[f"model/{REPO}"]["commits"][held.commit]["tree"]
    del tree[BIG], tree["fisher.safetensors"]
    done = pull(REPO)
    assert done.exit_code == 0
    told = f"warning: {held}: has no safetensors; onnx/model.onnx and 1 more left out, --all takes them\n"
    assert done.stderr == told
    for name in (".gitattributes", "config.json", "sub/tokenizer.json"):
        del tree[name]
    done = pull(REPO)
    assert (done.exit_code, "nothing but pickles" in done.stderr) == (2, True)


def test_no_space(hub: HubStub, held: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 10**6, 260, 260, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    for words in ([], ["-o", tmp_path / "out"]):
        done = pull(REPO, *words)
        assert (done.exit_code, "bytes are needed" in done.stderr) == (3, True)
    assert sent(hub) == 0
    assert list(tmp_path.glob("*out*")) == []


def test_without_the_hub(hub: HubStub, held: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = json.dumps({"weight_map": {"w": "model-1.safetensors"}}).encode()
    sharded = put(hub, {"model.safetensors.index.json": index, "model-1.safetensors": b"shard"})
    assert pull(f"hf://{REPO}/model.safetensors.index.json").exit_code == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = pull(REPO)
    warning = f"warning: {sharded}: the hub was not reached, these are the files that the cache has of it\n"
    assert done.stderr.startswith(warning)
    assert (done.exit_code, "model-1.safetensors: is not in the cache" in done.stderr) == (2, True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert pull(REPO).exit_code == 0
    hub.fault(status=503, times=99)
    done = pull(REPO, "-o", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, warning)
    added = {"model.safetensors.index.json": index, "model-1.safetensors": b"shard"}
    assert inside(tmp_path / "out") == {name: hub.read(REPO, name) for name in NEEDED} | added


@pytest.mark.parametrize("debug", ["", "1"])
def test_neither_token_nor_address_is_printed(hub: HubStub, held: Snapshot, tmp_path: Path, debug: str) -> None:
    flip_bit(stored(hub, held, BIG))
    hub.fault("GET", "/lfs/", status=503, body="sig=abc", times=1)
    hub.fault("GET", "/lfs/", status=404, body="sig=abc", times=1, skip=4)
    environment = {**os.environ, app.DEBUG: debug}
    command = [sys.executable, "-c", START, "pull", f"hf://{REPO}/{BIG}", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "what arrives has the sha256" in done.stderr
    assert debug or len(done.stderr.splitlines()) == 2
    assert not any(secret in done.stderr for secret in ("sig=", WRITE_TOKEN, hub.cdn_url, hub.url))


def test_an_interrupt(hub: HubStub, held: Snapshot, tmp_path: Path) -> None:
    """While the server is silent, too; and the rerun has less to do."""
    where = f"/lfs/{held.files[BIG].sha256}"
    hub.fault("GET", where, truncate=50_000)
    hub.fault("GET", where, delay=20)
    command = [sys.executable, "-c", START, "pull", REPO, "-o", str(tmp_path / "out")]
    before = Path(f"{repo_folder(REPO) / 'blobs' / held.files[BIG].etag}.paramsmith")
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        while process.poll() is None and not (before.exists() and before.stat().st_size == 50_000):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate()
    assert (process.returncode, out) == (130, "")
    kept = "what has been downloaded is kept, and the same command goes on from there"
    assert error == f"error: interrupted\nhint: {kept}\n"
    assert list(tmp_path.glob("*out*")) == []
    told = json.loads(pull(REPO, "-o", tmp_path / "out", "--json").stdout)
    assert told["bytes_downloaded"] <= told["bytes"] - 50_000
    assert (tmp_path / "out" / BIG).read_bytes() == FILES[BIG]
