"""What becomes of a push and of a pull when the Hub fails, by fault and transport.

python -m tests.hub.faults        run them all, on the installed client, and print the table
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from paramsmith.errors import ParamsmithError
from paramsmith.hub import Reference, snapshot
from tests.hub.hubstub import WRITE_TOKEN, HubStub
from tests.hub.repositories import damage, publish

REPO = "alice/model"
TRANSPORTS = ("basic", "multipart", "xet")
FILES = {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n", "model.safetensors": bytes(range(256)) * 20}
ENVIRONMENT = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_DISABLE_XET")


@dataclass(frozen=True)
class Fault:
    """A fault, what it strikes, and what must come of it: done, or an error of ours."""

    name: str
    outcome: str
    method: str = ".*"
    path: str = "."
    how: dict[str, object] = field(default_factory=dict)
    only: tuple[str, ...] = TRANSPORTS  # transports that have this endpoint
    prepare: Callable[[HubStub], object] | None = None


def fault(name: str, outcome: str, method: str, path: str, only: tuple[str, ...] = TRANSPORTS, **how: object) -> Fault:
    return Fault(name, outcome, method, path, how, only)


UNKNOWN = {"X-Error-Code": "RepoNotFound"}
LFS, PARTS = ("basic", "multipart"), ("multipart",)
PUSH = [
    Fault("none", "done"),
    fault("401", "InvalidInput", "GET", r"/whoami", status=401, times=99),
    fault("403 on create", "InvalidInput", "POST", r"/repos/create", status=403, times=99),
    fault(
        "404 on preupload",
        "InvalidInput",
        "POST",
        r"/preupload/",
        status=404,
        times=99,
        headers={"X-Error-Code": "RepoNotFound"},
    ),
    Fault("409 on create", "done", prepare=lambda hub: hub.store.create("model", REPO, False, "alice")),
    fault("412 on commit", "Failed", "POST", r"/commit/", status=412, times=99),
    fault("429 on preupload", "done", "POST", r"/preupload/", status=429, headers={"Retry-After": "0"}),
    *(
        fault(f"503 on {what}, twice", "done", method, path, only, status=503, times=2)
        for what, method, path, only in (
            ("create", "POST", r"/repos/create", TRANSPORTS),
            ("validate-yaml", "POST", r"/validate-yaml", TRANSPORTS),
            ("preupload", "POST", r"/preupload/", TRANSPORTS),
            ("batch", "POST", r"/objects/batch", LFS),
            ("the object", "PUT", r"/(lfs|parts)/", LFS),
            ("completion", "POST", r"/complete_multipart", PARTS),
            ("verify", "POST", r"/objects/verify", LFS),
            ("the write token", "GET", r"/xet-write-token", ("xet",)),
            ("commit", "POST", r"/commit/", TRANSPORTS),
            ("the tree", "GET", r"/tree/", TRANSPORTS),
        )
    ),
    fault("503 on commit, for ever", "Failed", "POST", r"/commit/", status=503, times=999),
    fault("connection dropped at preupload", "done", "POST", r"/preupload/", drop=True),
    fault("connection dropped at the object", "done", "PUT", r"/(lfs|parts)/", LFS, drop=True),
    fault("connection dropped at commit", "done", "POST", r"/commit/", drop=True),
    fault("reply of the commit lost", "done", "POST", r"/commit/", lose_reply=True),
    fault("slow commit", "done", "POST", r"/commit/", delay=0.5),
    Fault("target not empty", "Refused", prepare=lambda hub: publish(hub, REPO, {"notes.txt": b"mine"})),
]
PULL = [
    Fault("none", "done"),
    fault("401", "InvalidInput", "GET", r"/api/models/", status=401, times=99),
    fault("403", "InvalidInput", "GET", r"/api/models/", status=403, times=99),
    fault("404", "InvalidInput", "GET", r"/api/models/", status=404, times=99, headers=UNKNOWN),
    Fault("gated", "InvalidInput", prepare=lambda hub: _gate(hub)),
    fault("429 on the file", "done", "(GET|HEAD)", r"/resolve/", status=429, headers={"Retry-After": "0"}),
    fault("503 on the listing, twice", "done", "GET", r"/tree/", status=503, times=2),
    fault("503 on the file, twice", "done", "(GET|HEAD)", r"/resolve/", status=503, times=2),
    fault("503 of the storage, twice", "done", "GET", r"^/lfs/", status=503, times=2),
    fault("503 of the storage, for ever", "Failed", "GET", r"^/lfs/", status=503, times=999),
    fault("connection dropped", "done", "GET", r"^/lfs/", drop=True),
    fault("body cut", "done", "GET", r"^/lfs/", truncate=1000),
    Fault("flipped bit", "Failed", prepare=lambda hub: damage(hub, REPO, "model.safetensors", 9)),
    fault("slow storage", "done", "GET", r"^/lfs/", delay=0.5),
    Fault("listing leads out", "InvalidInput", prepare=lambda hub: publish(hub, REPO, {"../../x": b"x"})),
]  # fmt: skip


@contextmanager
def running(transport: str) -> Iterator[HubStub]:
    """A Hub of that transport, with the login, the cache and no waiting, for a process of its own."""
    from huggingface_hub import constants

    settings = {"basic": {}, "multipart": {"multipart_threshold": 1000, "part_size": 1500}, "xet": {"xet": "local"}}
    with tempfile.TemporaryDirectory() as home, HubStub(Path(home) / "hub", **settings[transport]) as hub:
        xet = transport == "xet"
        values = (hub.url, WRITE_TOKEN, f"{home}/cache", "" if xet else "1")
        quick = mock.patch("paramsmith.hub.WAITS", (0.0,) * 4)
        plain = mock.patch.multiple(constants, HF_HUB_DISABLE_XET=not xet, ENDPOINT=hub.url)
        sleepless = mock.patch("huggingface_hub.utils._http.time.sleep")
        with quick, plain, sleepless, mock.patch.dict(os.environ, dict(zip(ENVIRONMENT, values, strict=True))):
            yield hub


def push(case: Fault, transport: str) -> str:
    """What becomes of a push: done, or the kind of error; and that there are as many commits as there must be."""
    from paramsmith.upload import Target, push_files

    with running(transport) as hub:
        _strike(hub, case)
        try:
            push_files(FILES, Target(REPO), "files")
        except ParamsmithError as problem:
            return _checked(hub, type(problem).__name__, problem, 1 if case.prepare else 0)
        return _checked(hub, "done", None, 1, list(FILES))


def pull(case: Fault, transport: str) -> str:
    """What becomes of a download of what was pushed by that transport; done only with the very bytes."""
    from paramsmith.download import fetch
    from paramsmith.upload import Target, push_files

    with running(transport) as hub:
        push_files(FILES, Target(REPO), "files")
        _strike(hub, case)
        try:
            found = snapshot(Reference(REPO))
            here = fetch(found, list(FILES))
        except ParamsmithError as problem:
            return _checked(hub, type(problem).__name__, problem, 2 if "leads" in case.name else 1)
        assert {name: path.read_bytes() for name, path in here.items()} == FILES
        return _checked(hub, "done", None, 1)


def _strike(hub: HubStub, case: Fault) -> None:
    if case.prepare is not None:
        case.prepare(hub)
    if case.how:
        hub.fault(case.method, case.path, **case.how)


def _checked(
    hub: HubStub, outcome: str, problem: ParamsmithError | None, commits: int, files: list[str] | None = None
) -> str:
    """The outcome, once nothing secret was told and nothing is there that must not be."""
    told = "" if problem is None else f"{problem.fact} {problem.hint}"
    assert not [r for r in hub.requests if r.get("leak") or r.get("stub_error")]
    assert WRITE_TOKEN not in told
    assert "sig=" not in told
    repo = hub.store.repos.get(f"model/{REPO}", {"commits": {}})
    made = [c for c in repo["commits"].values() if c["parent"]]
    assert len(made) == commits, (outcome, len(made), told)
    for name in files or ():
        assert hub.read(REPO, name) == FILES[name], name
    return outcome


def _gate(hub: HubStub) -> None:
    hub.store.repos[f"model/{REPO}"]["gated"] = True
    hub.tokens[WRITE_TOKEN] = {"name": "carol", "role": "write", "orgs": []}


def main() -> None:
    """Print the table of this client."""
    import huggingface_hub

    print(f"huggingface_hub {huggingface_hub.__version__}\n")
    print(f"| fault | {' | '.join(TRANSPORTS)} |\n|---|---|---|---|")
    for what, cases, act in (("push", PUSH, push), ("pull", PULL, pull)):
        for case in cases:
            cells = [act(case, t) if t in case.only else "-" for t in TRANSPORTS]
            print(f"| {what}: {case.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
