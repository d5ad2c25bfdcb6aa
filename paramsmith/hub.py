"""The Hub: what a reference names, a session with the user's own login, what a repository holds, refusals as sentences.

Whoever talks to the Hub does it through `ask`, so that a hiccup is retried everywhere and an error never carries what
the client's own messages hold: signed addresses. The token is the login's; it is never asked for, shown or stored.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from paramsmith import __version__
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
MAIN = "main"
# Seconds before each further attempt at a request that failed in passing.
WAITS = (1.0, 2.0, 4.0, 8.0)
_PASSING = {408, 409, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 300.0
_NAME = r"[A-Za-z0-9_][\w.-]{0,95}"
_REVISION = r"refs/(?:pr|convert)/[\w.-]+|[^/@\s]+"
_FULL = re.compile(rf"(?P<repo>{_NAME}(?:/{_NAME})?)(?:@(?P<revision>{_REVISION}))?(?:/(?P<path>[^@]+))?", re.ASCII)
_SHORT = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^@\s]+))?", re.ASCII)
_LOCAL = (".safetensors", ".json", ".yaml", ".yml")  # a file that is not there is a mistyped path, not a repository
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What the client raises, most special first; what to say, and what to do.
_REFUSALS = (
    ("GatedRepoError", "is gated", "ask for access on its page, then: hf auth login"),
    ("RepositoryNotFoundError", "is not on the hub, or not for you to see", "check the name, or log in: hf auth login"),
    ("RevisionNotFoundError", "has no such revision", "leave the revision out, or give a branch, tag or commit"),
    ("RemoteEntryNotFoundError", "has no such file", "check the name"),
    ("DisabledRepoError", "was disabled by the hub", ""),
    ("OfflineModeIsEnabled", "is not in the cache, and the network is switched off", "unset HF_HUB_OFFLINE"),
    ("LocalTokenNotFoundError", "needs a login", "log in first: hf auth login"),
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of models, a revision of it (None: its main branch) and a file in it ("": the whole)."""

    repo: str
    revision: str | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """What `text` names on the Hub; None for a local path, which wins where it exists.

        `user/repo`, `user/repo@revision`, `hf://user/repo@revision/file.safetensors`. InvalidInput for hf:// with
        anything else behind it.

        >>> Reference.parse("hf://user/repo@refs/pr/1/fisher.safetensors")
        Reference(repo='user/repo', revision='refs/pr/1', path='fisher.safetensors')
        >>> Reference.parse("./user/repo") is None
        True
        """
        explicit = text.startswith(SCHEME)
        if not explicit and (os.path.lexists(text) or text.endswith(_LOCAL)):
            return None
        found = (_FULL if explicit else _SHORT).fullmatch(text.removeprefix(SCHEME).rstrip("/"))
        if found is None or _strange(found["repo"]) or _strange(found.groupdict().get("path") or ""):
            if explicit:
                hint = "hf://user/repo, hf://user/repo@revision or hf://user/repo@revision/file.safetensors"
                raise InvalidInput(f"{printable(text)}: names nothing on the hub", hint)
            return None
        revision = found["revision"]
        return cls(found["repo"], unquote(revision) if revision else None, found.groupdict().get("path") or "")

    def at(self, commit: str) -> Reference:
        """The same, pinned to a commit."""
        return Reference(self.repo, commit, self.path)

    @property
    def commit(self) -> str | None:
        """The revision, where it is a commit already."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        """As `parse` reads it."""
        revision = f"@{self.revision}" if self.revision else ""
        needs_scheme = self.path or "/" not in self.repo
        return f"{SCHEME if needs_scheme else ''}{self.repo}{revision}{'/' if self.path else ''}{self.path}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository: its size in bytes, and the hash of its content.

    `sha256` is there for files of the large file storage, `oid` (git's hash of the content) for all others.
    """

    path: str
    size: int
    sha256: str | None
    oid: str

    @property
    def etag(self) -> str:
        """What the cache calls the content."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Snapshot:
    """What a repository holds at one commit; not `complete`: what the cache knows of it, the Hub being out of reach."""

    repo: str
    commit: str
    files: Mapping[str, RemoteFile]
    complete: bool = True

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:12]}"


def session() -> HfApi:
    """The client, logged in as the user is; quiet, as its own messages hold signed addresses."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.logging import set_verbosity
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    set_verbosity(logging.CRITICAL)
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    return HfApi(endpoint=endpoint, library_name="paramsmith", library_version=__version__)


def cache_folder() -> Path:
    """The Hub's cache, shared with every other tool."""
    from huggingface_hub import constants

    set_now = os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
    return Path(os.path.expandvars(set_now)).expanduser().absolute()


def offline() -> bool:
    """Whether the user forbids the network."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE", "")
    return said.upper() in ("1", "ON", "YES", "TRUE") or bool(constants.HF_HUB_OFFLINE)


def ask(what: str, call: Callable[[], T], *, first: bool = False, pause: Callable[[float], object] | None = None) -> T:
    """The answer of one call of the client. A failure in passing is tried again; InvalidInput or Failed says the rest.

    `what` begins the sentence: what the call is about, for the user. The `first` call of a run does not wait for a
    Hub that cannot be reached at all. `pause` waits for some seconds, in place of time.sleep.
    """
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx of client 1, httpx2 of client 2

    for wait in (*WAITS, None):
        try:
            return call()
        except ParamsmithError:
            raise
        except Exception as problem:  # noqa: BLE001 - whatever the client raises becomes one of ours
            absent = first and isinstance(problem, httpx.ConnectError)
            if wait is None or absent or not in_passing(problem):
                raise told(what, problem) from None
            (pause or time.sleep)(max(wait, min(_asked_to_wait(problem), _LONGEST_WAIT)))
    raise AssertionError("the last attempt returns or raises")


def in_passing(problem: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx of client 1, httpx2 of client 2

    if isinstance(problem, HfHubHTTPError | httpx.HTTPStatusError):
        return status_of(problem) in _PASSING
    unreachable = isinstance(problem, httpx.TransportError | ConnectionError | TimeoutError)
    return unreachable and not isinstance(problem, OfflineModeIsEnabled)


def status_of(problem: Exception) -> int:
    """The HTTP status an error of the client is about; 0 for none."""
    status = getattr(getattr(problem, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0


def told(what: str, problem: Exception) -> ParamsmithError:
    """An error of the client as one of ours: a sentence without addresses, and a hint."""
    from huggingface_hub import errors

    for kind, fact, hint in _REFUSALS:
        if isinstance(problem, getattr(errors, kind)):
            return InvalidInput(f"{printable(what)}: {fact}", hint)
    status = status_of(problem)
    said = printable(getattr(problem, "server_message", None) or "", 200)
    if status in (401, 403):
        fact = "the login is not valid" if status == 401 else "the login may not do this"
        return InvalidInput(f"{printable(what)}: {fact}{f' ({said})' if said else ''}", "check: hf auth whoami")
    if status:
        answer = f"the hub answered {status}{f' ({said})' if said else ''}"
        return Failed(f"{printable(what)}: {answer}", "try again later" if status in _PASSING else "")
    if isinstance(problem, OSError) and problem.errno:
        return Failed(f"{printable(what)}: {printable((problem.strerror or '').lower())}")
    if in_passing(problem):
        return Failed(f"{printable(what)}: the hub cannot be reached", "check the connection; what is done is kept")
    return Failed(
        f"{printable(what)}: {type(problem).__name__} in the client of the hub", "PARAMSMITH_DEBUG=1 shows more"
    )


def snapshot(reference: Reference) -> Snapshot:
    """What the repository holds, at the commit its revision means now; from the cache where the Hub is out of reach.

    InvalidInput where there is no such repository or revision, or where it lists a path that leads out of it.
    """
    what, kept = str(reference), cached_snapshot(reference)
    if offline():
        if kept is None:
            fact = f"{printable(what)}: is not in the cache, and the network is switched off"
            raise InvalidInput(fact, "unset HF_HUB_OFFLINE, or fetch it first: paramsmith pull")
        return kept
    api = session()
    try:
        info = ask(what, lambda: api.model_info(reference.repo, revision=reference.revision), first=True)
        return listed(api, what, reference.repo, info.sha or "")
    except Failed:
        if kept is None:
            raise
        return kept


def listed(api: HfApi, what: str, repo: str, commit: str) -> Snapshot:
    """What the Hub says that the repository holds at a commit, the cache left aside. Raises as `snapshot` does."""
    from huggingface_hub.hf_api import RepoFile

    files = {}
    for entry in ask(what, lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit))):
        if isinstance(entry, RepoFile):
            check_path(what, entry.path)
            lfs = entry.lfs
            files[entry.path] = RemoteFile(entry.path, entry.size, lfs.sha256 if lfs else None, entry.blob_id)
    return Snapshot(repo, commit, files)


def cached_snapshot(reference: Reference) -> Snapshot | None:
    """What the cache holds of the repository at that revision; None when it holds nothing of it."""
    home = repo_folder(reference.repo)
    commit = reference.commit
    if commit is None:
        ref = home / "refs" / (reference.revision or MAIN)
        try:
            commit = ref.read_text().strip()
        except (OSError, ValueError):
            return None
    folder = home / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            # one step only: a blob may be a link itself, into what the cache shares between repositories
            name, etag = path.relative_to(folder).as_posix(), (path.readlink() if path.is_symlink() else path).name
            files[name] = RemoteFile(name, path.stat().st_size, etag if len(etag) == 64 else None, etag)
    return Snapshot(reference.repo, commit, files, complete=False)


def repo_folder(repo: str) -> Path:
    """Where the cache keeps a repository."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_folder() / repo_folder_name(repo_id=repo, repo_type="model")


def check_path(what: str, path: str) -> None:
    """InvalidInput where a file name that came from elsewhere would lead out of the folder it is for."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part or ":" in part or not part.isprintable() for part in parts):
        raise InvalidInput(
            f"{what}: lists the file {printable(path)}, which leads out of it", "do not trust this model"
        )


def _asked_to_wait(problem: Exception) -> float:
    response = getattr(problem, "response", None)
    text = response.headers.get("Retry-After", "") if response is not None else ""
    return float(text) + 1 if text.isdecimal() else 0.0


def _strange(text: str) -> bool:
    return ".." in text or "--" in text.partition("/")[2] or text.endswith((".", ".git"))
