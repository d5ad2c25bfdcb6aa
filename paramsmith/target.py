"""Where a push goes: the repository made ready, its head, its pull requests, and what it says of a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused, printable
from paramsmith.hub import Snapshot, ask, listed, offline, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_PART = r"[A-Za-z0-9_](?:[\w.-]{0,94}\w)?"
_REPO = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_BRANCH = re.compile(r"(?!-|.*(?:\.\.|//|\.lock$|[./]$))[\w][\w./-]{0,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3}) ")
_LAST_REQUESTS = 10  # pull requests that are looked at, newest first


@dataclass(frozen=True)
class Target:
    """Where a push goes: a repository of models, a branch of it (None: main), and how it is treated.

    `private` is for a repository that has to be made; a public one is refused with it. With `force` what is there may
    be replaced; so it may in a pull request, `create_pr`, which replaces nothing by itself. `beside`: what is there
    stays, its card too, and only a file of the same name can be in the way.
    """

    repo: str
    revision: str | None = None
    private: bool = False
    create_pr: bool = False
    force: bool = False
    beside: bool = False

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    def check(self) -> None:
        """InvalidInput where the Hub has no such names."""
        if not _REPO.fullmatch(self.repo) or ".." in self.repo or "--" in self.repo or self.repo.endswith(".git"):
            fact = f"{printable(self.repo)}: not the name of a repository"
            raise InvalidInput(fact, "give user/name, or organisation/name")
        if self.revision is None:
            return
        if not _BRANCH.fullmatch(self.revision) or _COMMIT.fullmatch(self.revision):
            raise InvalidInput(f"{printable(self.revision)}: not the name of a branch", "a push goes to a branch")


def prepare(api: HfApi, target: Target) -> Snapshot:
    """The head of the target, made where it is missing. InvalidInput without a login, or with one that may not write.

    Refused for a public repository when a private one is asked for.
    """
    target.check()
    if offline():
        raise InvalidInput(f"{target}: a push needs the network, which is switched off", "unset HF_HUB_OFFLINE")
    ask(target.repo, api.whoami, first=True)
    found = _info(api, target.repo) or _create(api, target)
    if target.private and not found.private:
        hint = "leave --private out, or choose another name"
        raise Refused(f"{target.repo}: is there already, and public for all to see", hint)
    if target.revision:
        found = _branch(api, target)
    _check_rights(api, target)
    return listed(api, str(target), target.repo, found.sha or "")


def head(api: HfApi, target: Target) -> Snapshot:
    """What is at the target now."""
    info = ask(str(target), lambda: api.model_info(target.repo, revision=target.revision))
    return listed(api, str(target), target.repo, info.sha or "")


def open_requests(api: HfApi, target: Target) -> Iterator[tuple[int, Snapshot]]:
    """The newest pull requests that are open: their numbers and what is in them."""
    refs = ask(target.repo, lambda: api.list_repo_refs(target.repo, include_pull_requests=True)).pull_requests or []
    numbers = {int(ref.ref.rpartition("/")[2]): ref for ref in refs if ref.ref.rpartition("/")[2].isdecimal()}
    for number in sorted(numbers, reverse=True)[:_LAST_REQUESTS]:
        found = ask(target.repo, partial(api.get_discussion_details, target.repo, number))
        if found.status in ("open", "draft"):
            yield number, listed(api, target.repo, target.repo, numbers[number].target_commit)


def check_card(api: HfApi, target: Target, data: bytes) -> None:
    """InvalidInput for a README.md whose front matter is none, or not one the Hub accepts."""
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    hint = "mend the lines between the two --- at its top"
    try:
        text = data.decode()
        ModelCard(text)
    except UnicodeDecodeError:
        raise InvalidInput("README.md: is not UTF-8 text", "save it as UTF-8") from None
    except Exception as problem:  # noqa: BLE001 - whatever the parser or the card's own checks raise
        mark = getattr(problem, "problem_mark", None)
        where = f" (line {mark.line + 2})" if mark is not None else ""
        raise InvalidInput(f"README.md: its front matter is not that of a model card{where}", hint) from None

    def validated() -> None:
        document = {"content": text, "repoType": "model"}
        answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json=document, headers=build_hf_headers())
        if answer.status_code == 400:
            raise InvalidInput(f"README.md: the hub does not accept its front matter: {_said(answer.text)}", hint)
        hf_raise_for_status(answer)

    ask(f"{target}: README.md", validated)


def xet_failure(what: str, problem: ConnectionError) -> ParamsmithError:
    """The one exception of the Xet library as a sentence. It has tried again by itself, for up to two minutes."""
    found = _XET_STATUS.search(str(problem))
    match found and found[1]:
        case "401" | "403":
            return InvalidInput(f"{printable(what)}: the login may not do this", "check: hf auth whoami")
        case "404":
            return Failed(f"{printable(what)}: the hub has no xet storage", "HF_HUB_DISABLE_XET=1 does without it")
        case None:
            fact = f"{printable(what)}: the storage of the hub cannot be reached"
            return Failed(fact, "check the connection; what is done is kept")
        case status:
            return Failed(f"{printable(what)}: the storage of the hub answered {status}", "try again later")


def _info(api: HfApi, repo: str, revision: str | None = None) -> ModelInfo | None:
    """What the Hub says of a revision; None where there is no such repository or revision."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def found() -> ModelInfo | None:
        try:
            return api.model_info(repo, revision=revision)
        except GatedRepoError:
            raise
        except RevisionNotFoundError:
            return None
        except RepositoryNotFoundError:
            if revision:
                raise
            return None

    return ask(repo, found)


def _create(api: HfApi, target: Target) -> ModelInfo:
    """Make the repository. Somebody else, or a request of ours whose answer was lost, may have made it meanwhile."""

    def made() -> None:
        if _status_after(lambda: api.create_repo(target.repo, private=target.private or None)) == 404:
            owner = target.repo.partition("/")[0]
            raise InvalidInput(f"{target.repo}: there is no user or organisation {owner}", "check: hf auth whoami")

    ask(target.repo, made)
    return ask(target.repo, lambda: api.model_info(target.repo))


def _branch(api: HfApi, target: Target) -> ModelInfo:
    """The branch; a new one begins at the repository's first commit, so that it holds nothing of another branch."""
    found, name = _info(api, target.repo, target.revision), target.revision or ""
    if found is not None:
        return found
    if target.create_pr or name.startswith("refs/"):
        raise InvalidInput(f"{target}: there is no such branch", "leave --revision out, or name a branch")
    first = ask(str(target), lambda: api.list_repo_commits(target.repo))[-1].commit_id
    ask(str(target), lambda: _status_after(lambda: api.create_branch(target.repo, branch=name, revision=first)))
    return ask(str(target), lambda: api.model_info(target.repo, revision=name))


def _check_rights(api: HfApi, target: Target) -> None:
    """Ask how the Hub would take an empty file: a login that may not write is told so before any work is done."""
    from huggingface_hub import CommitOperationAdd

    def asked() -> None:
        probe = CommitOperationAdd("README.md", b"")
        api.preupload_lfs_files(
            target.repo, [probe], revision=target.revision, create_pr=target.create_pr, gitignore_content=""
        )

    ask(str(target), asked)


def _status_after(call: Callable[[], object]) -> int:
    """Do it; the status of an answer that the caller knows what to make of: 404, or 409, it is there already."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        call()
    except HfHubHTTPError as problem:
        if status_of(problem) not in (404, 409):
            raise
        return status_of(problem)
    return 200


def _said(body: str) -> str:
    """The first message of an answer to a card."""
    try:
        return printable(json.loads(body)["errors"][0]["message"], 200)
    except (ValueError, LookupError, TypeError):
        return "it does not say why"
