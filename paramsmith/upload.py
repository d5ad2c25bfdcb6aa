"""Push to the Hub so that it is there as a whole or not at all: content first, then one commit of everything.

Files are sent one by one in the background, also while others are still being written; what was sent and never
committed is seen by nobody, and is not sent again by the next run. The commit names the head it was made for, so it
cannot mix with someone else's. After a lost answer the tree decides whether it happened, and at the end the tree is
compared with what was sent, file by file.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused, printable
from paramsmith.hub import ask, in_passing, listed, session, status_of
from paramsmith.outgoing import ITS_OWN, Outgoing, Wanted, files_of
from paramsmith.progress import Progress
from paramsmith.target import Target, check_card, head, open_requests, prepare, xet_failure

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

__all__ = ["Pushed", "Target", "Upload", "files_of", "push_files"]

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now: the commit, its address, how many files and bytes were pushed.

    `unchanged`: the very same files were there already, and no commit was made.
    """

    repo: str
    commit: str
    url: str
    files: int
    nbytes: int
    pull_request: str | None = None
    unchanged: bool = False


class Upload:
    """A push: a context manager around add and commit. Entering checks the login and makes the repository.

    A target that holds other files is refused, unless forced: with `fresh` on entering; otherwise as soon as a file
    is found to differ, before anything is sent, so that pushing the same again succeeds. Forced, weights and indexes
    that are not pushed go with the same commit, so that no two models mix; other files stay.
    """

    def __init__(self, target: Target, progress: Progress | None = None, *, fresh: bool = False) -> None:
        self._target, self._progress, self._fresh = target, progress, fresh
        self._files: dict[str, Outgoing] = {}
        self._queue: queue.SimpleQueue[Outgoing | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._sent = 0
        self._thread = threading.Thread(target=self._work, name="paramsmith-upload", daemon=True)

    def __enter__(self) -> Self:
        self._api = session()
        self._head = prepare(self._api, self._target)
        replacing = self._target.force or self._target.create_pr or self._target.beside
        self._comparing = not replacing and bool(self._head.files.keys() - {ITS_OWN})
        if self._comparing and self._fresh:
            raise self._occupied("")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()  # what is on its way is not waited for: uncommitted, it does not count
        if isinstance(error, KeyboardInterrupt) and not hasattr(error, "__notes__"):
            error.add_note("what was sent is kept; the same command goes on from here")
        self._queue.put(None)
        if not self._thread.is_alive():
            self._let_go()

    def add(self, name: str, source: Path | bytes, *, hold: bool = True) -> None:
        """Queue one file. It is opened at once, unless not to be held, and may be renamed from then on.

        Raises InvalidInput for a name or a file that cannot be pushed, Refused for a target with other files, and what
        the background ran into; the same again from check and commit.
        """
        self.check()
        if name in self._files:
            raise ValueError(f"{name} is added twice")
        try:
            file = Outgoing(name, source)
            if self._target.beside and name in self._head.files and self._stays(file):
                return
            if self._comparing and name not in self._head.files:
                raise self._occupied(f"; {printable(name)} is not among them")
            if hold:
                file.hold()
        except BaseException as error:
            self._error = error
            raise
        self._files[name] = file
        self._queue.put(file)

    def _stays(self, file: Outgoing) -> bool:
        """Whether the target's own file is kept: a card is. Refused for another that differs, unless forced."""
        if file.name != CARD and not self._target.force and not file.matches(self._head.files[file.name]):
            raise Refused(f"{self._target}: {printable(file.name)} is another there", "--force replaces this file")
        return file.name == CARD

    def check(self) -> None:
        """Raise what the background ran into."""
        if self._error:
            raise self._error

    def commit(self, title: str) -> Pushed:
        """Wait until all is sent, and make one commit of it; then compare what is there with what was sent."""
        self._queue.put(None)
        self._thread.join()
        self.check()
        wanted = Wanted(self._files, self._head, alone=self._comparing, beside=self._target.beside)
        found = self._found_already(wanted)
        if found is None and self._comparing:
            raise self._occupied("")
        commit, request = found or ask(str(self._target), lambda: self._attempt(title, wanted), pause=self._pause)
        if found is None:
            self._verify(commit, wanted)
        self._let_go()
        nbytes = sum(file.nbytes for file in self._files.values())
        url = f"{self._address()}/commit/{commit}"
        return Pushed(self._target.repo, commit, url, len(self._files), nbytes, request, found is not None)

    # --- in the background

    def _work(self) -> None:
        """Send what is queued: large files one at a time as they come, the small ones together at the end."""
        small: list[Outgoing] = []
        try:
            while (file := self._queue.get()) is not None and not self._stopping.is_set():
                if self._comparing:
                    self._compare(file)
                elif file.name == CARD:
                    check_card(self._api, self._target, file.content())
                    small.append(file)
                elif file.is_large:
                    self._send([file])
                else:
                    file.operation()  # reads it
                    small.append(file)
            if small and not self._stopping.is_set():
                self._send(small)
        except BaseException as error:  # noqa: BLE001 - a thread has nobody to raise to: check raises it
            self._error = self._error or error
        finally:
            if self._stopping.is_set():
                self._let_go()

    def _compare(self, file: Outgoing) -> None:
        if not file.matches(self._head.files[file.name]):
            raise self._occupied(f"; {printable(file.name)} is another there")
        self._advance(file)

    def _send(self, files: list[Outgoing]) -> None:
        what = f"{self._target}: {files[0].name if len(files) == 1 else f'{len(files)} files'}"
        try:
            ask(what, lambda: self._transfer(what, files), pause=self._pause)
        except Failed:
            for file in files:
                file.check_unchanged()  # the better reason why the Hub found another content than announced
            raise
        for file in files:
            file.sent()
            self._advance(file)

    def _transfer(self, what: str, files: list[Outgoing]) -> None:
        target, operations = self._target, [file.operation() for file in files]
        try:
            # an empty list of what git ignores: what the target's own one names would be left out in silence
            where = {"revision": target.revision, "create_pr": target.create_pr}
            self._api.preupload_lfs_files(target.repo, operations, **where, gitignore_content="")  # type: ignore[arg-type]
        except RuntimeError as error:  # how the client wraps what happened to one file
            raise error.__cause__ or error from None
        except ConnectionError as error:
            raise xet_failure(what, error) from None
        except ValueError as error:
            if isinstance(error, JSONDecodeError):
                raise ConnectionError from None
            fact = f"{printable(what)}: the hub does not take it into its large file storage"
            raise Failed(fact, "is it larger than the hub allows, or the storage full?") from None

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Failed(f"{self._target}: the push was stopped")

    def _advance(self, file: Outgoing) -> None:
        self._sent += file.nbytes
        if self._progress is not None:
            self._progress(self._sent, sum(file.nbytes for file in list(self._files.values())))

    # --- the commit

    def _attempt(self, title: str, wanted: Wanted) -> tuple[str, str | None]:
        """One try at the commit: its sha and the address of its pull request. A lost answer is made up for here."""
        target = self._target
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the client's, about the card: the Hub has accepted it
                made = self._api.create_commit(
                    target.repo,
                    self._operations(wanted),
                    commit_message=title,
                    revision=target.revision,
                    create_pr=target.create_pr,
                    parent_commit=self._head.commit,
                )
        except Exception as problem:
            broken = isinstance(problem, JSONDecodeError)  # an answer that is not the Hub's: something between us
            if not (broken or in_passing(problem) or status_of(problem) == 412):
                raise
            landed = self._landed(wanted, moved=status_of(problem) == 412)
            if landed is not None:
                return landed
            raise (ConnectionError() if broken else problem) from None
        return made.oid, made.pr_url

    def _operations(self, wanted: Wanted) -> list[CommitOperationAdd | CommitOperationDelete]:
        from huggingface_hub import CommitOperationDelete

        gone = [CommitOperationDelete(name, is_folder=False) for name in sorted(wanted.stale)]
        return [*gone, *(self._files[name].operation() for name in sorted(self._files))]

    def _landed(self, wanted: Wanted, moved: bool) -> tuple[str, str | None] | None:
        """Whether the commit was made although nobody said so; None: not yet. Failed where it cannot be any more."""
        if self._target.create_pr:
            found = self._request(wanted)
            if found is not None or not moved:
                return found
        now = head(self._api, self._target)
        if now.commit == self._head.commit:
            return None
        if not self._target.create_pr and wanted.is_at(now):
            return now.commit, None
        fact = f"{self._target}: someone else has pushed meanwhile: {now.commit}"
        raise Failed(fact, "nothing of this push is visible; look at theirs, then push again")

    def _found_already(self, wanted: Wanted) -> tuple[str, str | None] | None:
        """The commit, and pull request, that holds the very same files already."""
        if wanted.is_at(self._head):
            return self._head.commit, None
        return self._request(wanted) if self._target.create_pr else None

    def _request(self, wanted: Wanted) -> tuple[str, str] | None:
        for number, there in open_requests(self._api, self._target):
            if wanted.is_at(there):
                return there.commit, f"{self._address()}/discussions/{number}"
        return None

    def _verify(self, commit: str, wanted: Wanted) -> None:
        what = f"{self._target.repo}@{commit[:12]}"
        try:
            there = listed(self._api, what, self._target.repo, commit)
        except ParamsmithError as problem:
            fact = f"{problem.fact}; the commit is made, but was not verified"
            raise Failed(fact, "the same command verifies it again") from None
        wanted.check(what, there)

    def _occupied(self, detail: str) -> Refused:
        count = len(self._head.files.keys() - {ITS_OWN})
        fact = f"{self._target}: is not empty ({count} file{'s' * (count != 1)}{detail})"
        force = "afterwards paramsmith push --force" if self._fresh else "--force"
        return Refused(fact, f"choose another name, --create-pr to propose it, or {force} to replace the model")

    def _address(self) -> str:
        return f"{self._api.endpoint}/{self._target.repo}"

    def _let_go(self) -> None:
        for file in list(self._files.values()):
            file.let_go()


def push_files(
    files: Mapping[str, Path | bytes], target: Target, title: str, progress: Progress | None = None
) -> Pushed:
    """Push these files, by name, in one commit; the card first, as nothing is sent before it was found right."""
    if not files:
        raise InvalidInput("there is nothing to push")
    with Upload(target, progress) as upload:
        for name in sorted(files, key=lambda name: (name != CARD, name)):
            upload.add(name, files[name], hold=False)
        return upload.commit(title)
