"""A push is there as a whole, byte for byte, in one commit, or not at all, whatever the Hub and the network do."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from paramsmith import upload as upload_module
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused
from paramsmith.staging import Writer
from paramsmith.upload import Pushed, Target, Upload, files_of, push_files
from tests.hub.conftest import TRANSPORTS
from tests.hub.hubstub import READ_TOKEN, WRITE_TOKEN, Handler, HubStub
from tests.hub.repositories import publish
from tests.shared.staged import ROOT, cuts, fill, fill_all, interrupt, listing, plan, reference, staged

REPO = "alice/merged"
CARD = b"---\nlicense: mit\nbase_model: [a/b, c/d]\n---\n# Merged\n"
FOR_EVER = 1_000_000
each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits seconds between its own attempts."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))


def weights(seed: int, nbytes: int = 4000) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def model(folder: Path, shards: int = 1, seed: int = 0) -> Path:
    """A folder as a merge leaves it, its weights in one file or in several with an index."""
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    files = {name: weights(seed + i) for i, name in enumerate(names if shards > 1 else ["model.safetensors"])}
    if shards > 1:
        index = {"metadata": {}, "weight_map": {f"t{i}": name for i, name in enumerate(names)}}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    files |= {"README.md": CARD, "config.json": b"{}", "merges.txt": b"", "1_Pooling/config.json": b'{"a": 1}'}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def push(folder: Path, repo: str = REPO, title: str = "a merge", **target: object) -> Pushed:
    return push_files(files_of(folder), Target(repo, **target), title)  # type: ignore[arg-type]


def commits(hub: HubStub, repo: str = REPO) -> int:
    """How many were made, besides the one a repository begins with."""
    found = hub.store.repos.get(f"model/{repo}")
    return len(found["commits"]) - 1 if found else 0


def stored(hub: HubStub, repo: str = REPO, revision: str = "main") -> dict[str, bytes]:
    names = [name for name in hub.files(repo, revision) if name != ".gitattributes"]
    return {name: hub.read(repo, name, revision) for name in names}


def requests(hub: HubStub, method: str, part: str) -> list[dict[str, object]]:
    return [r for r in hub.requests if r["method"] == method and part in str(r["path"])]


# --- what arrives


@pytest.mark.parametrize("shards", [1, 3])
@each_transport
def test_one_commit_and_the_same_bytes(
    hub: HubStub,
    tmp_path: Path,
    transport: str,
    shards: int,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import snapshot_download

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

    folder, seen = model(tmp_path / "out", shards), []
    pushed = push_files(files_of(folder), Target(REPO), "a merge", lambda done, total: seen.append((done, total)))
    nbytes = sum(len(data) for data in listing(folder).values())
    url = f"{hub.url}/{REPO}/commit/{pushed.commit}"
    assert pushed == Pushed(REPO, pushed.commit, url, len(listing(folder)), nbytes)
    assert (seen[-1], seen == sorted(seen)) == ((nbytes, nbytes), True)
    repository = hub.store.repos[f"model/{REPO}"]
    assert (commits(hub), repository["branches"]["main"]) == (1, pushed.commit)
    assert repository["commits"][pushed.commit]["title"] == "a merge"
    assert stored(hub) == listing(folder)
    assert len(requests(hub, "PUT", "/lfs/")) == (shards if transport == "basic" else 0)
    assert len(requests(hub, "PUT", "/parts/")) == (3 * shards if transport == "multipart" else 0)
    assert bool(requests(hub, "GET", "xet-write-token")) == (transport == "xet")
    assert all("paramsmith/" in str(r["agent"]) for r in requests(hub, "POST", "/commit/"))
    there = Path(snapshot_download(REPO, cache_dir=tmp_path / "another", endpoint=hub.url))
    assert {name: data for name, data in listing(there).items() if name != ".gitattributes"} == listing(folder)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    paths = [r["path"] for r in hub.requests]
    last = max(number for number, path in enumerate(paths) if "/commit/" in path)
    assert f"/api/models/{REPO}/tree/{pushed.commit}" in paths[last:]  # the commit was looked at once it was made
    assert WRITE_TOKEN not in json.dumps(hub.requests)


@each_transport
def test_again_is_no_second_commit(hub: HubStub, tmp_path: Path, transport: str) -> None:
    folder = model(tmp_path / "out", 2)
    first = push(folder)
    hub.requests.clear()
    again = push(folder)
    assert (again.commit, again.unchanged, again.files) == (first.commit, True, first.files)
    assert push(folder, force=True).unchanged
    assert commits(hub) == 1
    assert not [r for r in hub.requests if r["method"] == "PUT"]


@each_transport
def test_files_come_while_others_are_written(hub: HubStub, tmp_path: Path, transport: str) -> None:
    """Each weight file is given to the upload by its path in the staging folder, and published before it is sent."""
    gate, held = threading.Event(), []
    original = Upload._send
    with pytest.MonkeyPatch.context() as patch, Upload(Target(REPO), fresh=True) as upload:
        patch.setattr(Upload, "_send", lambda self, files: (gate.wait(30), original(self, files)))

        def tell(path: Path) -> None:
            held.append(path)
            upload.add(path.name, path)

        with Writer(tmp_path / "out", plan(), "k", on_file=tell) as writer:
            fill_all(writer)
            writer.publish()
        gate.set()
        for name, path in files_of(tmp_path / "out").items():
            if name not in {path.name for path in held}:
                upload.add(name, path)
        upload.add("README.md", CARD)
        upload.check()
        pushed = upload.commit("a merge")
    assert not any(path.exists() for path in held)
    assert len(held) == 3
    assert stored(hub) == {**reference(), "README.md": CARD}
    assert (commits(hub), pushed.unchanged) == (1, False)


def test_branch(hub: HubStub, tmp_path: Path) -> None:
    push(model(tmp_path / "one"))
    folder = model(tmp_path / "two", 2, seed=5)
    pushed = push(folder, revision="v2/rc.1")  # begins empty, whatever main holds
    repository = hub.store.repos[f"model/{REPO}"]
    assert repository["branches"]["v2/rc.1"] == pushed.commit
    assert stored(hub, revision="v2/rc.1") == listing(folder)
    assert stored(hub) == listing(tmp_path / "one")
    assert push(folder, revision="v2/rc.1").unchanged


def test_pull_request(hub: HubStub, tmp_path: Path) -> None:
    push(model(tmp_path / "one", 2))
    folder = model(tmp_path / "two", 1, seed=5)
    pushed = push(folder, create_pr=True)
    assert pushed.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert stored(hub, revision="refs/pr/1") == listing(folder)  # the shards of the old model are gone
    assert stored(hub) == listing(tmp_path / "one")
    again = push(folder, create_pr=True)
    assert (again.pull_request, again.commit, again.unchanged) == (pushed.pull_request, pushed.commit, True)
    assert len(hub.store.repos[f"model/{REPO}"]["prs"]) == 1


def test_private(hub: HubStub, tmp_path: Path) -> None:
    folder = model(tmp_path / "out")
    push(folder, private=True)
    assert hub.store.repos[f"model/{REPO}"]["private"]
    push(folder, "alice/public")
    with pytest.raises(Refused, match="public for all to see"):
        push(folder, "alice/public", private=True)


# --- a target that holds something


def test_other_files_are_not_mixed_with(hub: HubStub, tmp_path: Path) -> None:
    old = model(tmp_path / "old", 3)
    (old / "notes.txt").write_text("mine")
    first = push(old)
    new = model(tmp_path / "new", 1, seed=9)
    hub.requests.clear()
    for change in (lambda: None, lambda: (new / "model.safetensors").unlink(), lambda: (new / "x.json").touch()):
        change()
        if not (new / "model.safetensors").exists():
            (new / "model-00001-of-00003.safetensors").write_bytes(b"another")
        with pytest.raises(
            Refused, match=r"alice/merged: is not empty \(9 files; \S+ is (not among them|another there)"
        ):
            push(new)
    assert not [r for r in hub.requests if r["method"] != "GET" and not str(r["path"]).endswith("preupload/main")]
    assert hub.store.repos[f"model/{REPO}"]["branches"]["main"] == first.commit


def test_a_part_of_what_is_there_is_refused(hub: HubStub, tmp_path: Path) -> None:
    old = model(tmp_path / "old", 3)
    push(old)
    for name in ("model.safetensors.index.json", "model-00002-of-00003.safetensors"):
        (old / name).unlink()
    with pytest.raises(Refused, match="is not empty"):
        push(old)


def test_fresh_target_is_asked_for_before_the_work(hub: HubStub, tmp_path: Path) -> None:
    push(model(tmp_path / "old"))
    with pytest.raises(Refused, match="is not empty"), Upload(Target(REPO), fresh=True):
        pytest.fail("entered")


@each_transport
def test_force_replaces_the_model_and_keeps_the_rest(hub: HubStub, tmp_path: Path, transport: str) -> None:
    old = model(tmp_path / "old", 3)
    (old / "notes.txt").write_text("mine")
    push(old)
    new = model(tmp_path / "new", 1, seed=9)
    pushed = push(new, force=True)
    assert stored(hub) == {**listing(new), "notes.txt": b"mine"}
    assert commits(hub) == 2
    assert push(new, force=True) == Pushed(REPO, pushed.commit, pushed.url, pushed.files, pushed.nbytes, None, True)


# --- what is in the way


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        (("GET", "whoami", 401), InvalidInput, "the login is not valid"),
        (("POST", "repos/create", 403), InvalidInput, "the login may not do this"),
        (("POST", "repos/create", 404), InvalidInput, "there is no user or organisation alice"),
        (("POST", "preupload", 403), InvalidInput, "the login may not do this"),
        (("POST", "objects/batch", 403), InvalidInput, "the login may not do this"),
        (("POST", "/commit/", 403), InvalidInput, "the login may not do this"),
        (("POST", "/commit/", 400), Failed, "the hub answered 400"),
        (("PUT", "/lfs/", 403), InvalidInput, "may not do this"),
    ],
)
def test_refusals(
    hub: HubStub, tmp_path: Path, fault: tuple[str, str, int], kind: type[ParamsmithError], told: str
) -> None:
    hub.fault(fault[0], fault[1], status=fault[2], times=FOR_EVER)
    with pytest.raises(kind, match=told) as caught:
        push(model(tmp_path / "out"))
    assert_clean(hub, caught.value)
    assert commits(hub) == 0


@pytest.mark.parametrize("transport", ["xet"])
@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [(403, InvalidInput, "the login may not do this"), (404, Failed, "no xet storage"), (400, Failed, "answered 400")],
)
def test_refusals_of_xet(
    hub: HubStub, tmp_path: Path, transport: str, status: int, kind: type[ParamsmithError], told: str
) -> None:
    hub.fault("GET", "xet-write-token", status=status, times=FOR_EVER)
    with pytest.raises(kind, match=rf"model\.safetensors: .*{told}") as caught:
        push(model(tmp_path / "out"))
    assert_clean(hub, caught.value)
    assert commits(hub) == 0


def assert_clean(hub: HubStub, error: ParamsmithError) -> None:
    text = f"{error.fact} {error.hint}"
    assert REPO in text
    assert not any(secret in text for secret in ("http", "sig=", WRITE_TOKEN, hub.url))


@pytest.mark.parametrize(
    ("token", "repo", "told"),
    [
        ("", REPO, "needs a login"),
        ("hf_wrong", REPO, "the login is not valid"),
        (READ_TOKEN, "bob/x", "the login may not do this"),
        (READ_TOKEN, "acme/there", "the login may not do this"),
        (WRITE_TOKEN, "nobody/x", "the login may not do this"),
    ],
)
def test_logins(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, told: str
) -> None:
    publish(hub, "acme/there", {})
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InvalidInput, match=told):
        push(model(tmp_path / "out"), repo)
    assert not [r for r in hub.requests if r["method"] == "PUT"]


def test_offline(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidInput, match="the network, which is switched off"):
        push(model(tmp_path / "out"))
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["merged", "a/b/c", "a/b--c", "a/..", "a/b.git", "-a/b", "a/b\n", "a b/c", "", "a/"])
def test_names_of_repositories(repo: str) -> None:
    with pytest.raises(InvalidInput, match="not the name of a repository"), Upload(Target(repo)):
        pytest.fail("entered")


@pytest.mark.parametrize("revision", ["", "-x", "a..b", "a b", "a/", "x.lock", "f" * 40, "a//b"])
def test_names_of_branches(revision: str) -> None:
    with pytest.raises(InvalidInput, match="not the name of a branch"), Upload(Target(REPO, revision)):
        pytest.fail("entered")


def test_branch_of_a_pull_request_must_exist(hub: HubStub, tmp_path: Path) -> None:
    for target in ({"revision": "v9", "create_pr": True}, {"revision": "refs/pr/7"}):
        with pytest.raises(InvalidInput, match="there is no such branch"):
            push(model(tmp_path / "out"), **target)


# --- faults, each with its outcome

PLACES = [
    ("GET", "whoami", "basic"),
    ("POST", "repos/create", "basic"),
    ("GET", f"/api/models/{REPO}$", "basic"),
    ("GET", "/revision/", "basic"),
    ("POST", "/branch/", "basic"),
    ("GET", "/commits/", "basic"),
    ("GET", "/tree/", "basic"),
    ("POST", "validate-yaml", "basic"),
    ("POST", "preupload", "basic"),
    ("POST", "objects/batch", "basic"),
    ("PUT", "/lfs/", "basic"),
    ("POST", "objects/verify", "basic"),
    ("PUT", "/parts/", "multipart"),
    ("POST", "complete_multipart", "multipart"),
    ("POST", "/commit/", "basic"),
    ("POST", "/commit/", "xet"),
]
ENDLESS: list[tuple[str, str, str, dict[str, object]]] = [
    *((*place, {"status": 503}) for place in PLACES if place[1] != "objects/verify"),
    *((*place, {"drop": True}) for place in PLACES if place[1] in ("whoami", "preupload", "/lfs/", "/commit/")),
]
PASSING: dict[str, dict[str, object]] = {
    "503 twice": {"status": 503, "times": 2},
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "dropped": {"drop": True},
    "not the Hub's": {"status": 502, "body": "<html>", "times": 2, "headers": {"Content-Type": "text/html"}},
    "503 at the second": {"status": 503, "skip": 1},
}
MANY = ("validate-yaml", "preupload", "/lfs/", "/tree/", "/commit/")  # asked for more than once, or by more than one


def happens(fault: str, path: str, transport: str) -> bool:
    """Every kind of fault at the requests that are made in a way of their own; two kinds at all others."""
    return fault in ("503 twice", "dropped") or (path in MANY and transport == "basic")


IN_PASSING = [(*place, fault) for place in PLACES for fault in PASSING if happens(fault, place[1], place[2])]


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry-After is in whole seconds."""
    monkeypatch.setattr("paramsmith.hub.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(Upload, "_pause", lambda self, seconds: None)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(("method", "path", "transport", "fault"), IN_PASSING, ids=lambda value: value.strip("/$"))
def test_failures_in_passing(
    hub: HubStub,
    tmp_path: Path,
    method: str,
    path: str,
    transport: str,
    fault: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.fault(method, path, **PASSING[fault])  # type: ignore[arg-type]
    folder = model(tmp_path / "out", 2)
    target = {"revision": "v2"} if path in ("/revision/", "/branch/", "/commits/") else {}
    pushed = push(folder, **target)
    repository = hub.store.repos[f"model/{REPO}"]
    assert repository["branches"][str(target.get("revision", "main"))] == pushed.commit
    assert stored(hub, revision=pushed.commit) == listing(folder)
    assert commits(hub) == 1
    assert not pushed.unchanged
    assert capfd.readouterr() == ("", "")  # the client would tell of its attempts, with signed addresses


@pytest.mark.parametrize("transport", ["xet"])
def test_failure_in_passing_of_what_the_rust_library_asks(hub: HubStub, tmp_path: Path, transport: str) -> None:
    """It has its own pauses, of a second."""
    hub.fault("GET", "xet-write-token", status=503)
    folder = model(tmp_path / "out")
    push(folder)
    assert (commits(hub), stored(hub)) == (1, listing(folder))


LOST = [("POST", "repos/create"), ("POST", "/branch/"), ("POST", "preupload"), ("PUT", "/lfs/"), ("POST", "/commit/")]


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("method", "path"), LOST, ids=lambda value: value.strip("/"))
def test_done_and_nobody_told(hub: HubStub, tmp_path: Path, method: str, path: str, times: int) -> None:
    hub.fault(method, path, lose_reply=True, times=times)
    folder = model(tmp_path / "out", 2)
    pushed = push(folder, revision="v2")
    assert (commits(hub), stored(hub, revision="v2")) == (1, listing(folder))
    assert hub.store.repos[f"model/{REPO}"]["branches"]["v2"] == pushed.commit


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("force", [False, True])
def test_lost_reply_and_then_a_run_of_its_own(hub: HubStub, tmp_path: Path, force: bool) -> None:
    """The commit was made, and then nothing could be reached: the same command finds it."""
    if force:
        push(model(tmp_path / "old", 2))
    hub.fault("POST", "/commit/", lose_reply=True)
    hub.fault("GET", f"/api/models/{REPO}$", status=503, times=FOR_EVER, skip=1 if force else 2)
    folder = model(tmp_path / "out", 1, seed=4)
    with pytest.raises(Failed, match="the hub answered 503"):
        push(folder, force=force)
    hub.faults.clear()
    assert push(folder, force=force).unchanged
    assert commits(hub) == 1 + force


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("how", [{"lose_reply": True}, {"status": 503}, {"drop": True}])
def test_one_pull_request(hub: HubStub, tmp_path: Path, how: dict[str, object]) -> None:
    push(model(tmp_path / "one"))
    hub.fault("POST", "/commit/", **how)  # type: ignore[arg-type]
    pushed = push(model(tmp_path / "two", 1, seed=5), create_pr=True)
    assert hub.store.repos[f"model/{REPO}"]["prs"] == {"refs/pr/1": pushed.commit}
    assert pushed.pull_request == f"{hub.url}/{REPO}/discussions/1"


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(("method", "path", "transport", "how"), ENDLESS, ids=lambda value: str(value).strip("/$"))
def test_failures_for_ever(
    hub: HubStub, tmp_path: Path, method: str, path: str, transport: str, how: dict[str, object]
) -> None:
    """Nothing half is left, the sentence says where, and the same command does it once the Hub is back.

    A verification that never answers ends well: the next batch says that the content is there.
    """
    hub.fault(method, path, times=FOR_EVER, **how)  # type: ignore[arg-type]
    folder = model(tmp_path / "out", 2)
    target = {"revision": "v2"} if path in ("/revision/", "/branch/", "/commits/") else {}
    with pytest.raises(Failed, match=r"the hub (answered 503|cannot be reached)") as caught:
        push(folder, **target)
    assert_clean(hub, caught.value)
    assert commits(hub) == 0
    hub.faults.clear()
    push(folder, **target)
    assert (commits(hub), stored(hub, revision=str(target.get("revision", "main")))) == (1, listing(folder))


def test_comparison_that_cannot_be_made(hub: HubStub, tmp_path: Path) -> None:
    hub.fault("GET", "/tree/", status=503, times=FOR_EVER, skip=1)
    folder = model(tmp_path / "out")
    with pytest.raises(Failed, match="the commit is made, but was not verified"):
        push(folder)
    hub.faults.clear()
    assert push(folder).unchanged


def test_comparison_finds_a_difference(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = hub.store.add_commit

    def spoiled(repo: object, branch: str, tree: dict[str, dict[str, object]], *rest: object, **parent: object) -> str:
        if "config.json" in tree:
            tree["config.json"] = {**tree["config.json"], "oid": "0" * 40}
        return str(original(repo, branch, tree, *rest, **parent))

    monkeypatch.setattr(hub.store, "add_commit", spoiled)
    with pytest.raises(Failed, match=r"alice/merged@\w{12}: config.json is not what was sent"):
        push(model(tmp_path / "out"))


@pytest.mark.parametrize("status", [None, 409, 503])
@pytest.mark.parametrize("create_pr", [False, True])
def test_someone_else_pushes(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, create_pr: bool
) -> None:
    """Between our look at the head and our commit."""
    from huggingface_hub import HfApi

    original, theirs = HfApi.create_commit, []

    def late(self: HfApi, *words: object, **named: object) -> object:
        if not theirs:
            theirs.append(publish(hub, REPO, {"theirs.txt": b"hello"}))
        return original(self, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "create_commit", late)
    if status:
        hub.fault("POST", "/commit/", status=status)
    with pytest.raises(Failed, match="someone else has pushed meanwhile") as caught:
        push(model(tmp_path / "out"), create_pr=create_pr)
    assert theirs[0] in caught.value.fact
    assert stored(hub) == {"theirs.txt": b"hello"}
    assert len(requests(hub, "POST", "/commit/")) == (2 if status and create_pr else 1)


def test_exists_meanwhile(hub: HubStub, tmp_path: Path) -> None:
    """409: somebody made the repository between our look and our request; an answer that is not JSON."""
    hub.fault("POST", "repos/create", lose_reply=True)
    hub.fault("POST", "repos/create", status=409, body="exists")
    folder = model(tmp_path / "out")
    push(folder)
    assert stored(hub) == listing(folder)


def test_too_large_for_the_hub(hub: HubStub, tmp_path: Path) -> None:
    hub.max_lfs = 100
    with pytest.raises(Failed, match=r"model.safetensors: the hub does not take it"):
        push(model(tmp_path / "out"))


@each_transport
def test_target_that_ignores_files(
    hub: HubStub, tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub takes the list of the repository where a push brings none, and the client leaves out what it names."""
    ignored, original = "*.json\n*.safetensors\n", Handler._json

    def of_the_repository(self: Handler) -> dict[str, object]:
        body: dict[str, object] = original(self)
        return {"gitIgnore": ignored, **body} if "/preupload/" in self.p else body

    monkeypatch.setattr(Handler, "_json", of_the_repository)
    publish(hub, REPO, {".gitignore": ignored.encode()})
    folder = model(tmp_path / "out")
    push(folder, force=True)
    assert stored(hub) == {**listing(folder), ".gitignore": ignored.encode()}


# --- interruptions

PUSH = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from paramsmith.upload import Target, files_of, push_files
push_files(files_of(Path({folder!r})), Target({repo!r}), "a merge")
"""


def start(folder: Path) -> subprocess.Popen[str]:
    code = PUSH.format(root=str(ROOT), folder=str(folder), repo=REPO)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_on_the_way(hub: HubStub, tmp_path: Path, number: signal.Signals) -> None:
    folder = model(tmp_path / "out", 4)
    hub.fault("PUT", "/lfs/", skip=2, delay=60)
    process = start(folder)
    while hub.faults[-1]["left"] and process.poll() is None:
        time.sleep(0.02)
    begun = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert time.monotonic() - begun < 25  # the third file would take a minute
    assert commits(hub) == 0
    hub.requests.clear()
    push(folder)
    assert (commits(hub), stored(hub)) == (1, listing(folder))
    assert len(requests(hub, "PUT", "/lfs/")) == 2  # the first two were there already


@each_transport
@pytest.mark.parametrize("changed", ["while it is sent", "before it is sent"])
def test_file_that_changes(
    hub: HubStub, tmp_path: Path, transport: str, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one, which is read on its way; small ones are read once, before."""
    from huggingface_hub import HfApi

    monkeypatch.setattr("paramsmith.outgoing._IN_MEMORY", 1000)
    folder = model(tmp_path / "out")
    path, original = folder / "model.safetensors", HfApi.preupload_lfs_files

    def late(self: HfApi, repo: str, operations: list[object], **named: object) -> None:
        large = any(getattr(operation, "path_in_repo", "") == path.name for operation in operations)
        if large and changed == "before it is sent":
            path.write_bytes(weights(77, 5000))
        original(self, repo, operations, **named)  # type: ignore[arg-type]
        if large and changed == "while it is sent":
            path.write_bytes(weights(77))

    monkeypatch.setattr(HfApi, "preupload_lfs_files", late)
    with pytest.raises(Failed, match=r"model\.safetensors: was changed by another program while it was sent"):
        push(folder)
    assert commits(hub) == 0


def test_large_files_by_path(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramsmith.outgoing._IN_MEMORY", 1000)
    folder = model(tmp_path / "out", 2)
    push(folder)
    assert stored(hub) == listing(folder)
    assert push(folder).unchanged
    descriptors = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [target for target in descriptors if str(folder) in target]


def test_leaving_early_commits_nothing(hub: HubStub, tmp_path: Path) -> None:
    folder = model(tmp_path / "out", 3)

    def interrupted() -> None:
        with Upload(Target(REPO)) as upload:
            for name, path in files_of(folder).items():
                upload.add(name, path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert "the same command goes on" in caught.value.__notes__[0]
    assert commits(hub) == 0
    push(folder)
    assert stored(hub) == listing(folder)


def test_what_the_background_met_is_raised(hub: HubStub, tmp_path: Path) -> None:
    hub.fault("POST", "objects/batch", status=403, times=FOR_EVER)
    folder = model(tmp_path / "out")
    with Upload(Target(REPO)) as upload:
        upload.add("model.safetensors", folder / "model.safetensors")
        upload._thread.join(30)
        calls: list[Callable[[], object]] = [upload.check, lambda: upload.add("a", b""), lambda: upload.commit("x")]
        for call in calls:
            with pytest.raises(InvalidInput, match=r"model\.safetensors: the login may not do this"):
                call()
    assert commits(hub) == 0


# --- which files


def test_what_is_never_pushed(tmp_path: Path) -> None:
    folder, outside = model(tmp_path / "out"), tmp_path / "secret.json"
    outside.write_text("secret")
    expected = set(listing(folder))
    for name in (".env", ".git/config", ".cache/x.json", "1_Pooling/.hidden", "a/b/deep.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name in ("pytorch_model.bin", "a.PKL", "training.pt", "x.ckpt"):
        (folder / name).write_bytes(b"\x80\x04")
    (folder / "out.json").symlink_to(outside)
    (folder / "env.json").symlink_to(".env")
    (folder / "dangling.json").symlink_to("nowhere")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "parent").symlink_to("..")
    (folder / "inside.json").symlink_to("config.json")
    os.mkfifo(folder / "pipe.json")
    assert files_of(folder).keys() == expected | {"inside.json"}
    assert list(files_of(folder)) == sorted(files_of(folder))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        files_of(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidInput, match="holds no weights"):
        files_of(tmp_path)
    folder = model(tmp_path / "out", 3)
    (folder / "model-00002-of-00003.safetensors").rename(tmp_path / "blob")
    (folder / "model-00002-of-00003.safetensors").symlink_to(tmp_path / "blob")
    with pytest.raises(InvalidInput, match=r"names model-00002-of-00003.safetensors, which is not among the files"):
        files_of(folder)


HOSTILE = ["../x", "/x", "a/../x", "a/b/c", "x\n", "x\x1b[31m", "\udc80", "a\\b", ".git", "a/.git", "", "a:b", "a//b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(hub: HubStub, tmp_path: Path, name: str) -> None:
    with Upload(Target(REPO)) as upload:
        for call in (lambda: upload.add(name, b"x"), upload.check, lambda: upload.commit("x")):
            with pytest.raises(InvalidInput, match="not a name for a file on the hub") as caught:
                call()
    assert caught.value.fact.isprintable()
    assert commits(hub) == 0


@pytest.mark.parametrize("name", ["x\n.json", "a\\b.json", "x\x1b[31m.json"])
def test_hostile_names_in_a_folder(tmp_path: Path, name: str) -> None:
    (model(tmp_path / "out") / name).write_text("x")
    with pytest.raises(InvalidInput, match="not a name for a file on the hub"):
        files_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (b"---\na: [\n---\n", r"not that of a model card \(line"),
        (b"---\n- a\n- b\n---\n", "not that of a model card"),
        (b"---\n1: 2\n---\n", "not that of a model card"),
        (b"---\nlicense: \xff\n---\n", "is not UTF-8"),
        (b"---\nbase_model: {a: b}\n---\n", 'does not accept its front matter: "base_model" must be'),
        (b"---\nbase_model_relation: child\n---\n", "does not accept its front matter"),
    ],
)
def test_card_is_found_wrong_before_anything_is_sent(hub: HubStub, tmp_path: Path, card: bytes, told: str) -> None:
    folder = model(tmp_path / "out")
    (folder / "README.md").write_bytes(card)
    with pytest.raises(InvalidInput, match=f"README.md: .*{told}"):
        push(folder)
    assert not [r for r in hub.requests if r["method"] == "PUT" or "batch" in str(r["path"])]
    assert commits(hub) == 0


def test_card_without_front_matter(hub: HubStub, tmp_path: Path) -> None:
    folder = model(tmp_path / "out")
    (folder / "README.md").write_text("# no front matter\n")
    push(folder)
    assert stored(hub) == listing(folder)


def test_added_twice(hub: HubStub) -> None:
    with Upload(Target(REPO)) as upload:
        upload.add("a.json", b"{}")
        with pytest.raises(ValueError, match="twice"):
            upload.add("a.json", b"{}")


def test_contents_in_memory(hub: HubStub) -> None:
    data = {"fisher.safetensors": weights(3), "README.md": CARD}
    pushed = push_files(data, Target(REPO), "statistics")
    assert stored(hub) == data
    tree = hub.store.repos[f"model/{REPO}"]["commits"][pushed.commit]["tree"]
    assert tree["fisher.safetensors"]["lfs"] == hashlib.sha256(data["fisher.safetensors"]).hexdigest()
    with pytest.raises(InvalidInput, match="nothing to push"):
        push_files({}, Target(REPO), "nothing")


# --- the hook of the writer


def test_writer_tells_of_each_file_once(tmp_path: Path) -> None:
    told: list[tuple[str, bytes]] = []

    def tell(path: Path) -> None:
        told.append((path.name, path.read_bytes()))
        raise RuntimeError("its own affair")

    with Writer(tmp_path / "out", plan(), "k", on_file=tell) as writer:
        fill_all(writer)
        writer.publish()
    assert len(told) == 3
    assert dict(told) == {name: data for name, data in reference().items() if name.endswith(".safetensors")}


def test_writer_tells_of_what_an_earlier_run_finished(tmp_path: Path) -> None:
    first = plan().files[0]

    def stop(writer: Writer) -> None:
        for name, start_, end in cuts():
            if name in first.tensors:
                fill(writer, name, start_, end)
        interrupt_later(writer)

    def interrupt_later(writer: Writer) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        staged(tmp_path / "out", stop)
    told: list[str] = []
    with Writer(tmp_path / "out", plan(), "k", on_file=lambda path: told.append(path.name)) as writer:
        for _ in range(500):
            if told:
                break
            time.sleep(0.01)
        assert told == [first.name]
        fill_all(writer)
        writer.publish()
    assert sorted(told) == [file.name for file in plan().files]


def test_writer_without_all_bytes_tells_nothing(tmp_path: Path) -> None:
    told: list[Path] = []
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "out", plan(), "k", on_file=told.append) as writer:
        interrupt(writer)
    assert told == []


def test_module_says_what_it_offers() -> None:
    assert {"Pushed", "Target", "Upload", "files_of", "push_files"} == set(upload_module.__all__)
