"""Word vectors from a file: text as fastText writes it, or safetensors with its words beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.inputs import open_regular, place, read_at
from paramsmith.memory import as_bytes

MAX_WORDS = 20_000_000
MAX_WIDTH = 8192
MAX_WORD = 1000  # bytes
MAX_NUMBER = 40  # bytes of one number as text
MAX_LIST = 2_000_000_000  # bytes of the words beside safetensors
_BLOCK = 8192  # lines parsed before they are packed
_TEXT = (".vec", ".txt")
_HINT = "the first line says how many words and numbers a word, then a word and its numbers a line"


@dataclass(frozen=True)
class WordVectors:
    """Words, the most frequent first as files have them, and a vector for each: (words, width) float32."""

    words: tuple[str, ...]
    vectors: Tensor

    @property
    def width(self) -> int:
        """Numbers a word."""
        return self.vectors.shape[1]

    @property
    def digest(self) -> str:
        """Tells these word vectors from others."""
        found = hashlib.sha256(json.dumps([self.width, list(self.words)]).encode())
        found.update(as_bytes(self.vectors.contiguous()))
        return found.hexdigest()


def read_words(path: str | os.PathLike[str], most: int | None = None) -> WordVectors:
    """Word vectors of `.vec` or `.txt` (fastText's text), or of `.safetensors` beside a `.txt` or `.json` of words.

    `most`: only the first so many words. InvalidInput names the line: a width that differs, a number that is none or is
    not finite, a word twice, a line without end, a count that is not true. Nothing is allocated on the word of a file.
    """
    file = Path(path)
    if most is not None and most < 1:
        raise InvalidInput(f"{most} words cannot be read", "leave the limit out, or give 1 or more")
    if file.suffix == ".safetensors":
        return _from_safetensors(file, most)
    if file.suffix not in _TEXT:
        hint = "fastText's text (.vec), or .safetensors with the words beside it (.txt or .json)"
        raise InvalidInput(f"{place(file)}: {printable(file.suffix) or 'no ending'} is no file of word vectors", hint)
    return _from_text(file, most)


def _from_text(file: Path, most: int | None) -> WordVectors:
    fd, status = open_regular(file)
    with open(fd, "rb", buffering=1 << 20) as stream:
        count, width = _first_line(file, stream, status.st_size)
        wanted = count if most is None else min(most, count)
        words: dict[str, int] = {}
        blocks: list[NDArray[np.float32]] = []
        lines = _lines(file, stream, MAX_WORD + width * MAX_NUMBER)
        held = np.empty((_BLOCK, width), np.float32)
        for number, line in lines:
            if len(words) == wanted:
                if most is None and line.strip():
                    _refuse(file, number, f"there are more words than the {count:,} of the first line")
                break
            row = len(words) % _BLOCK
            held[row] = _parsed(file, number, line, width, words)
            if row == _BLOCK - 1:
                blocks.append(held.copy())
        if len(words) < wanted:
            fact = f"{place(file)}: ends after {len(words):,} words, where the first line says {count:,}"
            raise InvalidInput(fact, "the download was cut short; download the file again")
        blocks.append(held[: len(words) % _BLOCK].copy())
    return WordVectors(tuple(words), torch.from_numpy(np.concatenate(blocks)))


def _first_line(file: Path, stream: BinaryIO, size: int) -> tuple[int, int]:
    line = stream.readline(100)
    said = line.split()
    if not line.endswith(b"\n") or len(said) != 2 or not all(part.isdigit() and len(part) <= 12 for part in said):
        _refuse(file, 1, f"{printable(line.decode(errors='replace').strip(), 40)!r} is no count of words and numbers")
    count, width = int(said[0]), int(said[1])
    if not 1 <= count <= MAX_WORDS or not 1 <= width <= MAX_WIDTH:
        limits = f"at most {MAX_WORDS:,} words of {MAX_WIDTH:,} numbers are read"
        _refuse(file, 1, f"{count:,} words of {width:,} numbers; {limits}")
    if size < count * (1 + 2 * width):  # a letter, and of each number a space and a digit
        _refuse(file, 1, f"{count:,} words of {width:,} numbers do not fit into {size:,} bytes")
    return count, width


def _lines(file: Path, stream: BinaryIO, longest: int) -> Iterator[tuple[int, bytes]]:
    number = 1
    while line := stream.readline(longest + 1):
        number += 1
        if len(line) > longest:
            _refuse(file, number, f"is longer than {longest:,} bytes")
        yield number, line


def _parsed(file: Path, number: int, line: bytes, width: int, words: dict[str, int]) -> NDArray[np.float64]:
    """The numbers of a line; its word is added to `words`."""
    parts = line.rstrip(b" \t\r\n").rsplit(b" ", width)  # words may have spaces in them
    if len(parts) != width + 1:
        _refuse(file, number, f"has {len(parts) - 1:,} numbers, where the first line says {width:,}")
    try:
        word = parts[0].decode()
    except UnicodeDecodeError:
        _refuse(file, number, "the word is not UTF-8 text")
    if not word or len(parts[0]) > MAX_WORD:
        _refuse(file, number, "there is no word" if not word else f"the word is longer than {MAX_WORD:,} bytes")
    if word in words:
        _refuse(file, number, f"the word {printable(word, 60)!r} is in line {words[word]:,} as well")
    try:
        found = np.array(list(map(float, parts[1:])))
    except ValueError:
        _refuse(file, number, f"what follows the word {printable(word, 60)!r} are not {width:,} numbers")
    if not (np.abs(found) <= np.finfo(np.float32).max).all():
        _refuse(file, number, f"the vector of {printable(word, 60)!r} is not finite")
    words[word] = number
    return found


def _refuse(file: Path, number: int, found: str) -> NoReturn:
    raise InvalidInput(f"{place(file)}: line {number:,}: {found}", _HINT)


def _from_safetensors(file: Path, most: int | None) -> WordVectors:
    beside = next((file.with_suffix(end) for end in (".txt", ".json") if file.with_suffix(end).is_file()), None)
    if beside is None:
        fact = f"{place(file)}: the words are not beside it"
        raise InvalidInput(fact, f"one a line, in {printable(file.with_suffix('.txt').name)}; or a list in .json")
    words = _listed(beside)
    with Checkpoint.open(file) as opened:
        if len(opened.tensors) != 1:
            raise InvalidInput(
                f"{place(file)}: holds {len(opened.tensors):,} tensors, where one (words, width) should be"
            )
        (info,) = opened.tensors.values()
        if info.dtype.kind != "float" or len(info.shape) != 2 or not 1 <= info.shape[1] <= MAX_WIDTH:
            shape = printable(list(info.shape))
            raise InvalidInput(
                f"{place(file)}: {shape} of {info.dtype.code} is no table of word vectors (words, width)"
            )
        if info.shape[0] != len(words) or not words:
            fact = f"{place(beside)}: lists {len(words):,} words, and there are {info.shape[0]:,} vectors"
            raise InvalidInput(fact, "the two files do not belong together")
        held = torch.empty((min(most or len(words), len(words)), info.shape[1]), dtype=torch_dtype(info.dtype))
        opened.read_into(info.name, 0, as_bytes(held))
    vectors = held.float()
    wrong = torch.nonzero(~torch.isfinite(vectors).all(1))
    if len(wrong):
        line = int(wrong[0]) + 1
        raise InvalidInput(f"{place(file)}: the vector of word {line:,} is not finite", "write the file again")
    return WordVectors(words[: len(vectors)], vectors)


def _listed(file: Path) -> tuple[str, ...]:
    fd, status = open_regular(file)
    try:
        if status.st_size > MAX_LIST:
            raise InvalidInput(f"{place(file)}: is {status.st_size:,} bytes long; at most {MAX_LIST:,} are read")
        data = read_at(file, fd, 0, status.st_size)
    finally:
        os.close(fd)
    try:
        text = data.decode()
        found: object = json.loads(text) if file.suffix == ".json" else text.removesuffix("\n").split("\n")
    except (ValueError, RecursionError):
        raise InvalidInput(f"{place(file)}: is no list of words in UTF-8", "one a line, or a JSON list") from None
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise InvalidInput(f"{place(file)}: is no list of words", "one a line, or a JSON list of strings")
    return _distinct(file, found)


def _distinct(file: Path, words: Sequence[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for number, word in enumerate(words, 1):
        if not word or len(word) > MAX_WORD:
            what = "there is no word" if not word else f"the word is longer than {MAX_WORD:,} characters"
            raise InvalidInput(f"{place(file)}: word {number:,}: {what}", "write the list again")
        if word in seen:
            fact = f"{place(file)}: word {number:,}: {printable(word, 60)!r} is word {seen[word]:,} as well"
            raise InvalidInput(fact, "a word has one vector")
        seen[word] = number
    return tuple(seen)
