"""The bytes of one file of the Hub, by range: asked for again after a failure in passing, the token to the Hub alone.

Small files come from the Hub itself. For a large one it answers with a signed address at the host that stores it, which
is asked without the token until it no longer takes the address. No message carries an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Protocol
from urllib.parse import quote

from paramsmith import __version__
from paramsmith.errors import Failed
from paramsmith.hub import Snapshot, ask, in_passing, session

SILENCE = 60.0  # seconds without a byte after which a connection is given up; there is no limit on the whole
_MOST_REDIRECTS = 10
_RANGE = re.compile(r"bytes (\d+)-")


class _Answer(Protocol):
    """What is used of a response of httpx, which the client has under another name from version 2 on."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def iter_bytes(self) -> Iterator[bytes]: ...


class Source:
    """One file of the Hub at one commit. Thread-safe."""

    def __init__(self, what: str, url: str, size: int) -> None:
        """`what` names the file in messages, `url` is its own at the Hub, `size` its bytes."""
        self._what, self._url, self._size = what, url, size
        self._address: str | None = None  # where the bytes are stored, once the Hub has said so

    def read(
        self, start: int, stop: int, take: Callable[[bytes], None], pause: Callable[[float], object] | None = None
    ) -> None:
        """Hand the bytes from `start` to `stop` to `take`, piece by piece and in order.

        A body that was cut goes on where it ended; the attempts count from the last byte that arrived. `pause` waits
        between them. InvalidInput or Failed names the file.
        """
        while start < stop:
            start = self._more(start, stop, take, pause)

    def _more(
        self, start: int, stop: int, take: Callable[[bytes], None], pause: Callable[[float], object] | None
    ) -> int:
        """Where one request, and those that brought nothing before it, got to."""
        return ask(self._what, lambda: self._once(start, stop, take), pause=pause)

    def _once(self, start: int, stop: int, take: Callable[[bytes], None]) -> int:
        at = start
        try:
            with ExitStack() as stack:
                for piece in self._body(stack, start, stop):
                    take(piece)
                    at += len(piece)
        except Exception as problem:
            if at == start or not in_passing(problem):
                raise
        else:
            if at == start:
                raise self._short(start)
        return at

    def _body(self, stack: ExitStack, start: int, stop: int) -> Iterator[bytes]:
        # what is compressed on the way cannot be asked for by range
        headers = {"Accept-Encoding": "identity"}
        if (start, stop) != (0, self._size):
            headers["Range"] = f"bytes={start}-{stop - 1}"
        answer = self._answer(stack, headers)
        surplus, wanted = self._surplus(answer, start), stop - start
        for piece in answer.iter_bytes():
            rest = piece[surplus : surplus + wanted]
            surplus -= min(surplus, len(piece))
            wanted -= len(rest)
            if rest:
                yield rest
            if not wanted:
                return

    def _surplus(self, answer: _Answer, start: int) -> int:
        """How many bytes come before the one asked for: a server may send the whole file for any range of it."""
        if answer.status_code != 206:
            return start
        found = _RANGE.match(answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) > start:
            raise Failed(f"{self._what}: other bytes came than were asked for", "a proxy on the way may be at fault")
        return start - int(found[1])

    def _answer(self, stack: ExitStack, headers: dict[str, str]) -> _Answer:
        """The response that has the bytes. An address that is refused has expired, most likely: a fresh one, once."""
        for _ in range(2):
            if self._address is None:
                direct = self._ask_hub(stack, headers)
                if direct is not None:
                    return direct
            stored = self._ask_storage(stack, headers)
            if stored is not None:
                return stored
        hint = "try again later; a proxy or firewall on the way may be at fault"
        raise Failed(f"{self._what}: the host that stores it refuses the hub's own address", hint)

    def _ask_hub(self, stack: ExitStack, headers: dict[str, str]) -> _Answer | None:
        """The file, or None when it is stored elsewhere: the address is known then."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        own = build_hf_headers(library_name="paramsmith", library_version=__version__, headers=headers)
        url, home = self._url, None
        for _ in range(_MOST_REDIRECTS):
            request = get_session().stream("GET", url, headers=own, follow_redirects=False, timeout=SILENCE)
            answer = stack.enter_context(request)
            origin = (answer.url.scheme, answer.url.host, answer.url.port)
            home = home or origin
            if not answer.has_redirect_location:
                self._refuse_short(answer)
                hf_raise_for_status(answer)
                if answer.status_code not in (200, 206):
                    raise Failed(f"{self._what}: the hub answered {answer.status_code}")
                return answer
            where = answer.url.join(answer.headers["Location"])
            if (where.scheme, where.host, where.port) != home:
                self._address = str(where)
                return None
            url = str(where)  # a repository under its new name
        raise Failed(f"{self._what}: the hub sends it from one address to another without end")

    def _ask_storage(self, stack: ExitStack, headers: dict[str, str]) -> _Answer | None:
        """The file, from where the Hub said that it is; None when the address is refused."""
        from huggingface_hub import get_session

        address = self._address
        if address is None:  # another thread has just seen it refused
            return None
        request = get_session().stream("GET", address, headers=headers, follow_redirects=True, timeout=SILENCE)
        answer = stack.enter_context(request)
        if answer.status_code == 403:
            self._address = None
            return None
        self._refuse_short(answer)
        # not as the client does it: its errors repeat what the host says, and that may hold the signature
        answer.raise_for_status()
        return answer

    def _refuse_short(self, answer: _Answer) -> None:
        if answer.status_code == 416:
            raise self._short(None)

    def _short(self, size: int | None) -> Failed:
        told = "" if size is None else f": {size:,} bytes came"
        return Failed(f"{self._what}: is shorter than the hub lists it{told}", "the copy on the hub is damaged")


def source(snapshot: Snapshot, name: str) -> Source:
    """The source of one file; the same one each time, so that it is asked only once where the file is stored."""
    url = f"{session().endpoint}/{snapshot.repo}/resolve/{snapshot.commit}/{quote(name)}"
    return _source(f"{snapshot}/{name}", url, snapshot.files[name].size)


@lru_cache(maxsize=1024)
def _source(what: str, url: str, size: int) -> Source:
    return Source(what, url, size)
