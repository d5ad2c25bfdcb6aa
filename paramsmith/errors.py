"""Every error a user can cause: one line of fact, one line of hint, an exit code. Caught once, in the command line."""

from __future__ import annotations


class ParamsmithError(Exception):
    """A failure with a sentence for the user.

    `fact` says what is wrong and where (file, tensor, expected, found), lower case, one line; `hint` says what to do.
    Text taken from an input must go through `printable` first.
    """

    exit_code = 1

    def __init__(self, fact: str, hint: str = "") -> None:
        super().__init__(fact)
        self.fact = fact
        self.hint = hint


class InvalidInput(ParamsmithError):
    """The invocation, the recipe or an input is wrong; found before any tensor is read."""

    exit_code = 2


class Refused(ParamsmithError):
    """A guard said no: memory, disk, an existing or locked output."""

    exit_code = 3


class Failed(ParamsmithError):
    """Something broke while running: a full disk, an input that changed, a value that may not be."""

    exit_code = 1


class MergeWarning(UserWarning):
    """Something about the inputs that a caller in Python should know; commands print it."""


class GenerateWarning(UserWarning):
    """Something about a target or a generator that a caller in Python should know; commands print it."""


def printable(text: object, limit: int = 120) -> str:
    """Make text from an input safe for a terminal: control characters escaped, the middle of long text cut out.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    >>> len(printable("x" * 1_000_000)) < 160
    True
    """
    raw = str(text)
    if len(raw) > limit:
        raw = f"{raw[: limit // 2]}...({len(raw):,} characters)...{raw[-limit // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in raw)
