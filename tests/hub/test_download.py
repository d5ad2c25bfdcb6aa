"""Downloads: the right bytes or an error, whatever the server, the network or a kill does; nothing fetched twice."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import WeakFileLock

from paramsmith import hub as hub_module
from paramsmith import hubcache, partial, transfer
from paramsmith.download import cached, download, fetch, missing_bytes, read_range, remember_revision
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused
from paramsmith.hub import Reference, RemoteFile, Snapshot, repo_folder, snapshot
from tests.hub.conftest import TRANSPORTS
from tests.hub.hubstub import WRITE_TOKEN, Handler, HubStub, git_blob_id, lfs_pointer

REPO = "alice/model"
BIG, SMALL = "model.safetensors", "config.json"
CONTENT = {BIG: random.Random(1).randbytes(400_000), SMALL: b'{"model_type": "llama"}\n' * 50}
STORED, DIRECT = r"/lfs/", r"/resolve/"  # paths of the storage host and of the Hub itself


def upload(hub: HubStub, folder: Path, files: Mapping[str, bytes]) -> Snapshot:
    """A repository filled by the client, by the transport of the test."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    api = HfApi(endpoint=hub.url, token=WRITE_TOKEN)
    api.create_repo(REPO, exist_ok=True)
    api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="files")
    return snapshot(Reference(REPO))


def put(hub: HubStub, files: Mapping[str, bytes]) -> Snapshot:
    """A repository filled on the server's own disk, which is quicker."""
    store = hub.store
    repo = store.repos.get(f"model/{REPO}") or store.create("model", REPO, False, "alice")
    before = repo["branches"]["main"]
    tree = dict(repo["commits"][before]["tree"])
    for name, data in files.items():
        oid, sha = git_blob_id(data), None
        if name.endswith(".safetensors"):
            sha = hashlib.sha256(data).hexdigest()
            Path(store.lfs_path(sha)).write_bytes(data)
            oid = git_blob_id(lfs_pointer(sha, len(data)))
        else:
            store.put_git(data)
        tree[name] = {"oid": oid, "size": len(data), "lfs": sha, "xet": None}
    store.add_commit(repo, "main", tree, "files", "", "alice", before)
    found = snapshot(Reference(REPO))
    forget(hub)
    return found


@pytest.fixture
def held(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    monkeypatch.setattr(hub_module, "_LONGEST_WAIT", 0.01)
    return put(hub, CONTENT)


def answered(hub: HubStub) -> list[dict[str, Any]]:
    """The requests so far; the stub notes them a moment after the last byte has left."""
    while len(hub.requests) < hub._n - vars(hub).get("forgotten", 0):
        time.sleep(0.001)
    return hub.requests


def forget(hub: HubStub) -> None:
    answered(hub)
    vars(hub)["forgotten"] = hub._n
    hub.requests.clear()


def blob(held: Snapshot, name: str) -> Path:
    return repo_folder(held.repo) / "blobs" / held.files[name].etag


def sent(hub: HubStub) -> int:
    """Bytes of files that left the server, of both hosts."""
    return sum(request.get("sent", 0) for request in answered(hub))


def seen(hub: HubStub, path: str) -> int:
    return sum(path in request["path"] for request in answered(hub))


def stored(hub: HubStub, held: Snapshot, name: str) -> Path:
    """The server's own copy of a file."""
    file = held.files[name]
    return Path(hub.store.root, "lfs" if file.sha256 else "git", file.etag)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def says_no_secret(error: BaseException) -> None:
    text = f"{error} {getattr(error, 'hint', '')}"
    assert not any(secret in text for secret in ("sig=", "http", WRITE_TOKEN, "127.0.0.1", "localhost")), text
    assert text == text.replace("\n", " ")


# ---- the bytes, and where they lie


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("reads_xet", [False, True])
def test_the_bytes_of_every_kind_of_file(hub: HubStub, tmp_path: Path, reads_xet: bool) -> None:
    hub.xet_reads = reads_xet and hub.xet is not None
    odd = {"empty.txt": b"", "a b#%20é.json": b"{}", "sub/dir/x.txt": b"x" * 999, "sub/copy.safetensors": CONTENT[BIG]}
    upload(hub, tmp_path / "upload", CONTENT)
    held = upload(hub, tmp_path / "upload", odd)
    forget(hub)
    told: list[tuple[int, int]] = []
    expected = missing_bytes(held, list(held.files))
    found = fetch(held, list(held.files), lambda *now: told.append(now))
    assert {name: path.read_bytes() for name, path in found.items()} == {n: hub.read(REPO, n) for n in held.files}
    assert told[-1] == (expected, expected)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert expected == sum({file.etag: file.size for file in held.files.values()}.values())
    assert sent(hub) == expected
    assert not list(repo_folder(REPO).glob("blobs/*.*")), "nothing is left beside the blobs"


def test_the_layout_is_the_one_of_the_client(hub: HubStub, held: Snapshot) -> None:
    mask = os.umask(0o027)
    try:
        found = fetch(held, list(held.files))
    finally:
        os.umask(mask)
    remember_revision(Reference(REPO), held)
    remember_revision(Reference(REPO, held.commit), held)
    assert [path.name for path in (repo_folder(REPO) / "refs").iterdir()] == ["main"]
    assert os.readlink(found[BIG]) == f"../../blobs/{held.files[BIG].sha256}"
    assert stat.S_IMODE(blob(held, BIG).stat().st_mode) == 0o640
    forget(hub)
    folder = Path(snapshot_download(REPO, local_files_only=True))
    assert {name: folder / name for name in held.files} == found
    assert fetch(held, list(held.files)) == found
    assert missing_bytes(held, list(held.files)) == 0
    assert answered(hub) == []


def test_content_of_another_commit_is_not_fetched_again(hub: HubStub, held: Snapshot) -> None:
    fetch(held, [BIG, SMALL])
    later = put(hub, {SMALL: b"{}"})
    assert later.commit != held.commit
    assert missing_bytes(later, [BIG, SMALL]) == 2
    path = cached(later, BIG)
    assert path is not None
    assert path.is_symlink()
    assert path.parent.name == later.commit
    fetch(later, [BIG, SMALL])
    assert sent(hub) == 2


def test_a_blob_of_another_size_is_replaced(held: Snapshot) -> None:
    path = fetch(held, [BIG])[BIG]
    os.truncate(blob(held, BIG), 100)
    assert cached(held, BIG) is None
    assert fetch(held, [BIG])[BIG].read_bytes() == CONTENT[BIG]
    path.unlink()
    path.symlink_to("nowhere")
    assert fetch(held, [BIG])[BIG].read_bytes() == CONTENT[BIG]


def test_a_file_system_without_links_gets_copies(held: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = fetch(held, [SMALL])[SMALL]
    assert not path.is_symlink()
    assert path.read_bytes() == CONTENT[SMALL]


def test_a_cache_that_cannot_be_written_to(held: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(held, [BIG])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(hubcache, "_link", refuse)
    assert fetch(held, [BIG])[BIG].read_bytes() == CONTENT[BIG]
    assert cached(replace(held, commit="0" * 40), BIG) == blob(held, BIG)
    monkeypatch.setattr(Path, "mkdir", refuse)
    remember_revision(Reference(REPO), held)
    with pytest.raises(Failed, match="read-only"):
        fetch(held, [SMALL])


# ---- faults

PASSING = {
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "408": {"status": 408},
    "500": {"status": 500},
    "503": {"status": 503},
    "dropped": {"drop": True},
    "slow": {"delay": 0.6},
}


@pytest.mark.parametrize("place", [STORED, DIRECT])
@pytest.mark.parametrize("fault", PASSING)
def test_a_failure_in_passing_is_tried_again(
    hub: HubStub, held: Snapshot, fault: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SILENCE", 0.3)
    times = 1 if fault == "slow" else 4
    hub.fault("GET", place, times=times, **PASSING[fault])  # type: ignore[arg-type]
    found = fetch(held, [BIG, SMALL])
    assert {name: path.read_bytes() for name, path in found.items()} == CONTENT
    assert seen(hub, place) == times + (1 if place == STORED else 2)


@pytest.mark.parametrize("name", [BIG, SMALL])
def test_a_body_that_is_cut_goes_on(hub: HubStub, held: Snapshot, name: str) -> None:
    """More often than a request is tried, as each time some bytes come; at most what was on the wire comes twice."""
    hub.fault("GET", name if name == SMALL else STORED, times=9, truncate=len(CONTENT[name]) // 12)
    assert fetch(held, [name])[name].read_bytes() == CONTENT[name]
    assert hub.faults[0]["left"] == 0
    assert sent(hub) == len(CONTENT[name])


@pytest.mark.parametrize(
    ("place", "fault", "kind", "words"),
    [
        (DIRECT, {"status": 401, "headers": {"X-Error-Message": "Invalid credentials"}}, InvalidInput, "login"),
        (DIRECT, {"status": 403}, InvalidInput, "may not do this"),
        (DIRECT, {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, InvalidInput, "is gated"),
        (DIRECT, {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}, InvalidInput, "not on the hub"),
        (DIRECT, {"status": 404, "headers": {"X-Error-Code": "EntryNotFound"}}, InvalidInput, "no such file"),
        (DIRECT, {"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}}, InvalidInput, "no such revision"),
        (DIRECT, {"status": 418}, Failed, "answered 418"),
        (DIRECT, {"status": 304}, Failed, "answered 304"),
        (DIRECT, {"status": 503}, Failed, "answered 503"),
        (DIRECT, {"status": 429, "headers": {"Retry-After": "0"}}, Failed, "answered 429"),
        (DIRECT, {"drop": True}, Failed, "cannot be reached"),
        (DIRECT, {"status": 302, "headers": {"Location": "{}"}}, Failed, "from one address to another"),
        (STORED, {"status": 403, "body": "<Signature>sig=abc</Signature>"}, Failed, "refuses the hub's own address"),
        (STORED, {"status": 404, "body": "sig=abc"}, Failed, "answered 404"),
        (STORED, {"status": 400, "body": "sig=abc"}, Failed, "answered 400"),
        (STORED, {"status": 416}, Failed, "is shorter than the hub lists it"),
        (STORED, {"status": 503, "body": "sig=abc"}, Failed, "answered 503"),
        (STORED, {"drop": True}, Failed, "cannot be reached"),
    ],
)
def test_a_failure_that_stays_is_a_sentence(
    hub: HubStub, held: Snapshot, place: str, fault: dict[str, object], kind: type[ParamsmithError], words: str
) -> None:
    if "Location" in str(fault):
        fault = {**fault, "headers": {"Location": f"/{REPO}/resolve/{held.commit}/{BIG}"}}
    hub.fault("GET", place, times=99, **fault)  # type: ignore[arg-type]
    with pytest.raises(kind) as caught:
        fetch(held, [BIG])
    assert caught.value.fact.startswith(f"{held}/{BIG}: ")
    assert words in caught.value.fact
    says_no_secret(caught.value)
    assert cached(held, BIG) is None
    hub.faults.clear()
    assert fetch(held, [BIG])[BIG].read_bytes() == CONTENT[BIG]


def test_a_gated_repository_and_a_revision_that_is_not_there(hub: HubStub, held: Snapshot) -> None:
    with pytest.raises(InvalidInput, match="no such revision"):
        snapshot(Reference(REPO, "v9"))
    hub.store.repos[f"model/{REPO}"]["gated"] = "auto"
    hub.tokens[WRITE_TOKEN] = {"name": "carol", "role": "write", "orgs": []}
    with pytest.raises(InvalidInput, match="is gated"):
        fetch(held, [BIG])


@pytest.mark.parametrize("name", [BIG, SMALL])
def test_a_flipped_bit_is_found(hub: HubStub, held: Snapshot, name: str) -> None:
    flip_bit(stored(hub, held, name))
    with pytest.raises(Failed) as caught:
        fetch(held, [name])
    algorithm = hashlib.sha256() if name == BIG else hashlib.sha1(b"blob %d\0" % len(CONTENT[name]))
    algorithm.update(stored(hub, held, name).read_bytes())
    assert held.files[name].etag in caught.value.fact
    assert algorithm.hexdigest() in caught.value.fact
    assert caught.value.fact.startswith(f"{held}/{name}: ")
    assert sent(hub) == 2 * len(CONTENT[name]), "once more, and no more"
    assert list(repo_folder(REPO).glob("blobs/*")) == []


def test_a_wrong_beginning_is_thrown_away(hub: HubStub, held: Snapshot) -> None:
    before = Path(f"{blob(held, BIG)}.paramsmith")
    before.parent.mkdir(parents=True)
    before.write_bytes(CONTENT[BIG][:1000] + b"?" + CONTENT[BIG][1001:5000])
    assert fetch(held, [BIG])[BIG].read_bytes() == CONTENT[BIG]
    assert sent(hub) == 2 * len(CONTENT[BIG]) - 5000
    blob(held, BIG).unlink()
    before.write_bytes(b"?" * (len(CONTENT[BIG]) + 1))
    assert fetch(held, [BIG])[BIG].read_bytes() == CONTENT[BIG]


def test_a_copy_on_the_hub_that_is_too_short(hub: HubStub, held: Snapshot) -> None:
    os.truncate(stored(hub, held, BIG), 1000)
    with pytest.raises(Failed, match="is shorter than the hub lists it"):
        fetch(held, [BIG])
    os.truncate(stored(hub, held, SMALL), 0)
    with pytest.raises(Failed, match="is shorter than the hub lists it: 0 bytes came"):
        fetch(held, [SMALL])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_cut_and_a_flipped_bit_however_it_was_uploaded(hub: HubStub, tmp_path: Path) -> None:
    held = upload(hub, tmp_path / "upload", CONTENT)
    forget(hub)
    hub.fault("GET", STORED, truncate=1000)
    hub.fault("GET", STORED, status=503)
    flip_bit(stored(hub, held, SMALL))
    with pytest.raises(Failed, match="the hub lists"):
        fetch(held, [SMALL])
    assert fetch(held, [BIG])[BIG].read_bytes() == CONTENT[BIG]
    assert sent(hub) == len(CONTENT[BIG]) + 2 * len(CONTENT[SMALL])


def test_an_address_that_expired_is_asked_for_again(hub: HubStub, held: Snapshot) -> None:
    assert read_range(held, BIG, 0, 10) == CONTENT[BIG][:10]
    hub._secret = b"another"
    assert read_range(held, BIG, 10, 10) == CONTENT[BIG][10:20]
    assert (seen(hub, "/resolve/"), seen(hub, "/lfs/")) == (2, 3)


def test_a_server_that_knows_no_ranges(hub: HubStub, held: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Handler.send_file

    def whole(self: Handler, path: str, headers: dict[str, str]) -> None:
        del self.headers["Range"]
        original(self, path, headers)

    monkeypatch.setattr(Handler, "send_file", whole)
    for name in (BIG, SMALL):
        size = len(CONTENT[name])
        hub.fault("GET", name if name == SMALL else STORED, truncate=size // 2)
        assert fetch(held, [name])[name].read_bytes() == CONTENT[name]
        blob(held, name).unlink()
        assert read_range(held, name, size // 3, 100) == CONTENT[name][size // 3 :][:100]


@pytest.mark.parametrize("shift", [-7, 7])
def test_another_range_than_asked_for(
    hub: HubStub, held: Snapshot, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Handler.send_file

    def shifted(self: Handler, path: str, headers: dict[str, str]) -> None:
        self.headers.replace_header("Range", f"bytes={100 + shift}-200")
        original(self, path, headers)

    monkeypatch.setattr(Handler, "send_file", shifted)
    if shift < 0:
        assert read_range(held, BIG, 100, 50) == CONTENT[BIG][100:150]
    else:
        with pytest.raises(Failed, match="other bytes came"):
            read_range(held, BIG, 100, 50)


# ---- runs that end early, and several at once

CHILD = """
import sys, time
from paramsmith.download import fetch
from paramsmith.hub import Reference, snapshot
held = snapshot(Reference({repo!r}))
print("ready", flush=True)
sys.stdin.readline()
def tell(done, total):
    if done > {hang}:
        print("here", flush=True)
        time.sleep(60)
print(*fetch(held, [{name!r}], tell).values(), flush=True)
"""


def child(name: str, hang: float = float("inf")) -> subprocess.Popen[str]:
    code = "inf = float('inf')\n" + CHILD.format(repo=REPO, name=name, hang=hang)
    return subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=-1, text=True)


def line(process: subprocess.Popen[str], given: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(given)
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_killed_run_is_gone_on_with(hub: HubStub, held: Snapshot) -> None:
    with child(BIG, hang=200_000) as process:
        assert line(process) == "ready"
        assert line(process, "go\n") == "here"
        process.send_signal(signal.SIGKILL)
    assert cached(held, BIG) is None
    left = missing_bytes(held, [BIG])
    assert 0 < left < 200_000
    forget(hub)
    told: list[tuple[int, int]] = []
    assert fetch(held, [BIG], lambda *now: told.append(now))[BIG].read_bytes() == CONTENT[BIG]
    assert sent(hub) == left
    assert told[-1] == (left, left)


def test_two_processes_fetch_a_file_once(hub: HubStub, held: Snapshot) -> None:
    hub.fault("GET", STORED, delay=0.7)
    with child(BIG) as first, child(BIG) as second:
        assert [line(first), line(second)] == ["ready", "ready"]
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [Path(line(first)).read_bytes(), Path(line(second)).read_bytes()] == [CONTENT[BIG]] * 2
    assert seen(hub, "/lfs/") == 1


def test_the_lock_is_the_one_of_the_client(hub: HubStub, held: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramsmith.download._LOOK", 0.05)
    lock = hub_module.cache_folder() / ".locks" / repo_folder(REPO).name / f"{held.files[BIG].etag}.lock"
    lock.parent.mkdir(parents=True)
    found: list[dict[str, Path]] = []
    with WeakFileLock(lock):
        waiting = threading.Thread(target=lambda: found.append(fetch(held, [BIG])))
        waiting.start()
        waiting.join(0.3)
        blob(held, BIG).parent.mkdir(parents=True, exist_ok=True)
        blob(held, BIG).write_bytes(CONTENT[BIG])
    waiting.join()
    assert found[0][BIG].read_bytes() == CONTENT[BIG]
    assert answered(hub) == []


def test_an_error_stops_the_other_files(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramsmith.download._LOOK", 5.0)
    names = [f"{n}.txt" for n in range(8)]
    held = put(hub, {name: name.encode() for name in names})
    hub.fault("GET", r"/[0-2]\.txt", status=503, headers={"Retry-After": "200"}, times=9)
    hub.fault("GET", r"/3\.txt", status=404, headers={"X-Error-Code": "EntryNotFound"}, delay=0.3)
    with pytest.raises(InvalidInput, match=r"3\.txt: has no such file"):
        fetch(held, names)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("download")] == []
    assert [seen(hub, f"/{n}.txt") <= (n <= 3) for n in range(8)] == [True] * 8


def test_an_interrupt_keeps_what_has_come(hub: HubStub, held: Snapshot) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fetch(held, [BIG], interrupt)
    assert "the same command goes on from there" in caught.value.__notes__[0]
    left = missing_bytes(held, [BIG])
    assert left < len(CONTENT[BIG]) - 100_000
    forget(hub)
    assert fetch(held, [BIG])[BIG].read_bytes() == CONTENT[BIG]
    assert sent(hub) == left


# ---- a server that is not to be trusted, a disk that is full, no network


def test_names_that_lead_elsewhere(hub: HubStub, held: Snapshot, tmp_path: Path) -> None:
    calls: tuple[Callable[[Snapshot, str], object], ...] = (
        lambda evil, name: fetch(evil, [name]),
        lambda evil, name: cached(evil, name),
        lambda evil, name: missing_bytes(evil, [name]),
        lambda evil, name: read_range(evil, name, 0, 9),
        lambda evil, name: download(evil, name, tmp_path / "x"),
    )
    for name in ("../../x", "/x", "a/../../x", "a//x", "..\\x", "c:x", "x\n", ""):
        evil = replace(held, files={name: replace(held.files[SMALL], path=name)})
        for call in calls:
            with pytest.raises(InvalidInput, match="leads out of it"):
                call(evil, name)
    assert answered(hub) == []


def test_a_listing_with_such_a_name(hub: HubStub, held: Snapshot) -> None:
    tree = hub.store.repos[f"model/{REPO}"]["commits"][held.commit]["tree"]
    tree["../../x"] = tree[SMALL]
    with pytest.raises(InvalidInput, match="leads out of it"):
        snapshot(Reference(REPO))


def test_hashes_that_are_none(held: Snapshot) -> None:
    for text in ("../../../x", "", "0" * 39, "0" * 40 + "/x", "Z" * 40):
        with pytest.raises(InvalidInput, match="is not a hash"):
            fetch(Snapshot(REPO, held.commit, {"x": RemoteFile("x", 1, None, text)}), ["x"])
        with pytest.raises(InvalidInput, match="is not a hash"):
            fetch(replace(held, commit=text), [SMALL])
    with pytest.raises(InvalidInput, match="leads out"):
        remember_revision(Reference(REPO, "../../x"), held)


def test_a_name_that_the_repository_does_not_have(held: Snapshot) -> None:
    with pytest.raises(InvalidInput, match=r"shard-2\.safetensors: the repository has no such file"):
        fetch(held, [SMALL, "shard-2.safetensors"])


def test_no_space(hub: HubStub, held: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 10**6, 300, 300, 0, 0, 0, 0, 255))  # 1.2 MB, of which one is kept free
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(Refused, match="1,401,200 bytes are needed, 1,228,800 bytes are free") as caught:
        fetch(held, [BIG, SMALL])
    assert "HF_HUB_CACHE" in caught.value.hint
    with pytest.raises(Refused):
        download(held, BIG, tmp_path / "x")
    assert answered(hub) == []
    fetch(held, [SMALL])


def test_space_that_runs_out(held: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object, at: int) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Failed, match=r"no space left while writing .*paramsmith"):
        fetch(held, [BIG])


@pytest.mark.parametrize("filled_by", ["client", "ours"])
def test_offline_from_the_cache(
    hub: HubStub, held: Snapshot, tmp_path: Path, filled_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if filled_by == "client":
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        snapshot_download(REPO, endpoint=hub.url)
    else:
        fetch(held, list(held.files))
        remember_revision(Reference(REPO), held)
    forget(hub)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kept = snapshot(Reference(REPO))
    assert (kept.commit, kept.complete, set(kept.files)) == (held.commit, False, set(held.files))
    assert kept.files[BIG].sha256 == held.files[BIG].sha256
    assert fetch(kept, [BIG])[BIG].read_bytes() == CONTENT[BIG]
    assert read_range(kept, BIG, 5, 5) == CONTENT[BIG][5:10]
    download(kept, BIG, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT[BIG]
    assert answered(hub) == []


def test_offline_without_the_file(
    hub: HubStub, held: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    calls: tuple[Callable[[], object], ...] = (
        lambda: fetch(held, [BIG]),
        lambda: read_range(held, BIG, 0, 9),
        lambda: download(held, BIG, tmp_path / "x"),
    )
    for call in calls:
        with pytest.raises(InvalidInput, match=rf"{BIG}: is not in the cache, and the network is switched off"):
            call()
    assert answered(hub) == []


def test_the_token_goes_to_the_hub_alone(hub: HubStub, held: Snapshot) -> None:
    """The stub refuses and notes a token at its other host; here that the Hub does get it, after a move as well."""
    old, place = replace(held, repo="alice/old"), f"/{REPO}/resolve/{held.commit}/"
    hub.fault("GET", "/alice/old/resolve/.*json", status=307, headers={"Location": place + SMALL})
    hub.fault("GET", "/alice/old/resolve/.*safetensors", status=307, headers={"Location": hub.url + place + BIG})
    found = fetch(old, [BIG, SMALL])
    assert {name: path.read_bytes() for name, path in found.items()} == CONTENT
    assert sorted((request["origin"], request["auth"]) for request in answered(hub)) == [
        ("cdn", False),
        *[("hub", True)] * 4,
    ]


# ---- parts of a file, and files elsewhere


def test_ranges(hub: HubStub, held: Snapshot) -> None:
    size = len(CONTENT[BIG])
    for start, count in ((0, 8), (0, size), (8, 1000), (size - 5, 100), (size, 1), (size + 9, 9), (0, 0), (-5, 10)):
        expected = CONTENT[BIG][start : start + count] if start >= 0 else b""
        forget(hub)
        assert read_range(held, BIG, start, count) == expected
        assert sent(hub) == len(expected)
    hub.fault("GET", STORED, truncate=1000, times=3)
    assert read_range(held, BIG, 7, 5000) == CONTENT[BIG][7:5007]
    assert seen(hub, "/resolve/") == 0, "where it is stored was asked once"
    assert read_range(held, SMALL, 3, 5) == CONTENT[SMALL][3:8]
    fetch(held, [BIG])
    forget(hub)
    assert read_range(held, BIG, size - 5, 100) == CONTENT[BIG][-5:]
    assert answered(hub) == []


def test_a_file_outside_the_cache(hub: HubStub, held: Snapshot, tmp_path: Path) -> None:
    target = tmp_path / "out" / "x.safetensors"
    with pytest.raises(Failed, match="no such file or directory"):
        download(held, BIG, target)
    target.parent.mkdir()
    hub.fault("GET", STORED, truncate=1000)
    hub.fault("GET", STORED, status=404)
    with pytest.raises(Failed, match="answered 404"):
        download(held, BIG, target)
    assert not target.exists()
    told: list[tuple[int, int]] = []
    forget(hub)
    download(held, BIG, target, lambda *now: told.append(now))
    rest = len(CONTENT[BIG]) - 1000
    assert (sent(hub), told[-1]) == (rest, (rest, rest))
    assert target.read_bytes() == CONTENT[BIG]
    assert cached(held, BIG) is None
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    flip_bit(stored(hub, held, SMALL))
    with pytest.raises(Failed, match="the hub lists"):
        download(held, SMALL, target.with_name("y"))
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("shares", [True, False])
def test_a_file_that_the_cache_has_is_copied(
    hub: HubStub, held: Snapshot, tmp_path: Path, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(held, [BIG])
    forget(hub)
    if not shares:

        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "not between these")

        monkeypatch.setattr(os, "copy_file_range", refuse)
        monkeypatch.setattr(partial, "_PIECE", 1000)
    target = tmp_path / "x"
    download(held, BIG, target)
    assert target.read_bytes() == CONTENT[BIG]
    assert target.stat().st_ino != blob(held, BIG).stat().st_ino, "what is done to the copy stays out of the cache"
    assert answered(hub) == []


@pytest.mark.parametrize("name", [BIG, SMALL])
def test_a_copy_of_what_is_damaged_in_the_cache(hub: HubStub, held: Snapshot, tmp_path: Path, name: str) -> None:
    fetch(held, [name])
    flip_bit(blob(held, name))
    with pytest.raises(Failed, match="is damaged in the cache") as problem:
        download(held, name, tmp_path / "x")
    assert held.repo in problem.value.fact
    assert name in problem.value.fact
    assert str(blob(held, name)) in problem.value.hint
    assert list(tmp_path.glob("*x*")) == [], "neither the copy nor a part of it"
    blob(held, name).unlink()
    download(held, name, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT[name]
