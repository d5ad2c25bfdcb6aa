"""Tokenizers as tables of tokens, and which token of one vocabulary is which of another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paramsmith.errors import InvalidInput, printable
from paramsmith.inputs import open_regular, place, read_at, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Fast

Match = Literal["exact", "marks", "loose"]
MAX_TOKENIZER = 500_000_000
MAX_TOKENS = 10_000_000
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ALIKE = {"bos": "cls", "cls": "bos", "eos": "sep", "sep": "eos"}  # what a model without the role has in its place
_SPACE, _BYTES, _PIECE = "\u2581", "\u0120", "##"  # how tokenizers write that a token begins, or continues, a word


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer: the id of each token, the special ones, and those by role; `folder` holds its other files."""

    path: Path
    folder: Path | None
    ids: Mapping[str, int]
    special: frozenset[int]
    roles: Mapping[str, int]  # bos, eos, unk, sep, pad, cls, mask
    digest: str
    fast: Fast

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """A folder with tokenizer.json, or that file. InvalidInput says what is wrong; nothing in it is run."""
        folder = path if path.is_dir() else None
        file = path / "tokenizer.json" if folder else path
        if folder and not file.exists():
            hint = 'transformers writes one: AutoTokenizer.from_pretrained("FOLDER").save_pretrained("FOLDER")'
            raise InvalidInput(f"{place(path)}: there is no tokenizer.json in it", hint)
        data = _bytes_of(file)
        fast = _parsed(file, data)
        found: dict[str, int] = fast.get_vocab(with_added_tokens=True)
        ids = dict(sorted(found.items(), key=lambda item: item[1]))  # they come in any order
        if not ids or max(ids.values()) >= MAX_TOKENS:
            fact = f"{place(file)}: {'has no tokens' if not ids else 'has an id too large for any vocabulary'}"
            raise InvalidInput(fact, "the file is damaged; download it again")
        special = frozenset(i for i, token in fast.get_added_tokens_decoder().items() if token.special)
        roles = {role: ids[token] for role, token in _roles(file.parent).items() if token in ids}
        return cls(file, folder, ids, special | set(roles.values()), roles, hashlib.sha256(data).hexdigest(), fast)

    @property
    def size(self) -> int:
        """Rows that an embedding needs: the largest id and one."""
        return max(self.ids.values()) + 1

    def split(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text's tokens, special ones left out."""
        found = self.fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[i for i in each.ids if i not in self.special] for each in found]

    @cached_property
    def meanings(self) -> dict[int, tuple[bytes, bool]]:
        """What each token that is not special stands for: its text, and whether it begins a word."""
        style = self._style()
        return {i: _meaning(token, style) for token, i in self.ids.items() if i not in self.special}

    def _style(self) -> str:
        """The mark that this vocabulary writes, "" where it has whole words only."""
        if type(self.fast.model).__name__ == "WordPiece":
            return _PIECE
        counts = {mark: sum(token.startswith(mark) for token in self.ids) for mark in (_SPACE, _BYTES, _PIECE)}
        best = max(counts, key=lambda mark: counts[mark])
        return best if counts[best] else ""


def matched(source: Tokenizer, target: Tokenizer, how: Match = "marks") -> dict[int, int]:
    """Tokens of `target` that `source` has as well: {id in target: id in source}.

    Special tokens match by content, else by role. Others: `exact`, the same string; `marks`, the same text and both at
    the start of a word or both inside, however the tokenizers write that, where punctuation is the same either way;
    `loose`, also the same text whatever its case and place, as OFA does.
    """
    found = _special(source, target)
    if how == "exact":
        known = {token: i for token, i in source.ids.items() if i not in source.special}
        return found | {i: known[t] for t, i in target.ids.items() if i not in target.special and t in known}
    tables: list[dict[object, int]] = [{}, {}, {}]
    for i, meaning in sorted(source.meanings.items()):
        for table, key in zip(tables, _keys(meaning, how), strict=False):
            if key is not None:
                table.setdefault(key, i)
    for i, meaning in sorted(target.meanings.items()):
        for table, key in zip(tables, _keys(meaning, how), strict=False):
            if key is not None and key in table:
                found[i] = table[key]
                break
    return found


def _keys(meaning: tuple[bytes, bool], how: Match) -> list[object]:
    """What a token is found by, the strictest first."""
    text, begins = meaning
    shown = text.decode(errors="replace")
    mark = None if any(letter.isalnum() for letter in shown) or not shown.strip() else text
    loose = shown.strip().casefold() or None
    return [(text, begins), mark, *([loose] if how == "loose" else [])]


def _special(source: Tokenizer, target: Tokenizer) -> dict[int, int]:
    roles = source.roles
    found = {
        i: source.ids[t] for t, i in target.ids.items() if i in target.special and source.ids.get(t) in source.special
    }
    for role, i in target.roles.items():
        kept = roles.get(role, roles.get(_ALIKE.get(role, "")))
        if kept is not None:
            found.setdefault(i, kept)
    return found


def _meaning(token: str, style: str) -> tuple[bytes, bool]:
    if style == _PIECE:
        return token.removeprefix(_PIECE).encode(), not token.startswith(_PIECE)
    if style == _SPACE:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            with_value = token[3:5]
            if all(letter in "0123456789ABCDEF" for letter in with_value):
                return bytes([int(with_value, 16)]), False
        return token.removeprefix(_SPACE).replace(_SPACE, " ").encode(), token.startswith(_SPACE)
    if style == _BYTES:
        text = bytes(_BYTE_OF[letter] for letter in token) if all(letter in _BYTE_OF for letter in token) else None
        if text is not None:
            return text.removeprefix(b" "), text.startswith(b" ")
    return token.encode(errors="replace"), True


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with: printable ones as they are, the others from 256 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_letters()


def _bytes_of(file: Path) -> bytes:
    fd, status = open_regular(file)
    try:
        if status.st_size > MAX_TOKENIZER:
            raise InvalidInput(f"{place(file)}: is {status.st_size:,} bytes long; at most {MAX_TOKENIZER:,} are read")
        return read_at(file, fd, 0, status.st_size)
    finally:
        os.close(fd)


def _parsed(file: Path, data: bytes) -> Fast:
    try:
        from tokenizers import Tokenizer as Fast
    except ImportError:
        hint = "pip install 'paramsmith[transformers]'"
        raise InvalidInput("tokenizers are read by the tokenizers package, which is not installed", hint) from None
    try:
        found = Fast.from_str(data.decode())
        found.no_truncation()
        found.no_padding()
    except BaseException as problem:
        # the parser raises Exception itself, and a panic of it is no Exception
        if isinstance(problem, Exception) or type(problem).__name__ == "PanicException":
            told = printable(str(problem).partition("\n")[0])
            raise InvalidInput(f"{place(file)}: is no tokenizer: {told}", "download it again") from None
        raise
    return found


def _roles(folder: Path) -> dict[str, str]:
    """The special tokens by role, from the files beside tokenizer.json."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).exists():
            continue
        said, _ = read_json(folder / name, MAX_TOKENIZER)
        for role in ROLES:
            token = said.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[role] = token
    return found
