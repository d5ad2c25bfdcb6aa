"""Rows of data as batches of tensors: tokens, images and labels, for models of the transformers library."""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.merge.task import IGNORED

from .data import Row

MASKED = 0.15  # the share of tokens that a masked language model has to find, arXiv:1810.04805


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def __call__(self, text: list[str], pair: list[str] | None, /, **options: object) -> Mapping[str, list[list[int]]]:
        """Token numbers and what goes with them, a list for each text."""
        ...


class ImageProcessor(Protocol):
    """What is needed of an image processor."""

    def __call__(self, images: list[object], *, return_tensors: str) -> Mapping[str, Tensor]:
        """The pixel values, (images, channels, height, width)."""
        ...


@dataclass(frozen=True)
class Labels:
    """How the values of a column become labels: numbers of classes, or for regression floats (examples, values)."""

    column: str
    classes: int
    names: Mapping[str, int]
    regression: bool = False

    def of(self, row: Row) -> int | tuple[float, ...]:
        """The label of one row. InvalidInput, with the nearest name, for what is no class, or no number."""
        value = row[self.column]
        if self.regression:
            return self._floats(row, value)
        word = str(int(value)) if _is_whole(value) else value
        if isinstance(word, str) and word in self.names:
            return self.names[word]
        if isinstance(word, str) and word.isdecimal() and len(word) < 10 and int(word) < self.classes:
            return int(word)
        raise self._unknown(row, value)

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The labels of a batch: whole numbers (examples,), or floats (examples, values)."""
        dtype = torch.float32 if self.regression else torch.int64
        return {"labels": torch.tensor([self.of(row) for row in rows], dtype=dtype)}

    def _floats(self, row: Row, value: object) -> tuple[float, ...]:
        values: Sequence[object] = value if isinstance(value, list | tuple) else [value]
        try:
            found = tuple(float(str(v)) for v in values)
        except ValueError:
            found = ()
        if len(found) != self.classes or not all(map(math.isfinite, found)):
            what = "a finite number" if self.classes == 1 else f"a list of {self.classes} finite numbers"
            raise InvalidInput(f"{row.where}: {printable(repr(value))} is not {what}", "the model is for regression")
        return found

    def _unknown(self, row: Row, value: object) -> InvalidInput:
        near = difflib.get_close_matches(str(value), self.names, 1)
        known = printable(", ".join(self.names))
        hint = f"did you mean {printable(near[0])!r}? " if near else ""
        fact = f"{row.where}: {printable(repr(value))} is none of the model's {self.classes} classes"
        return InvalidInput(fact, f"{hint}its labels are {known}, or 0 to {self.classes - 1}")


def _is_whole(value: object) -> TypeGuard[int | float]:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def check_rows(rows: Iterable[Row], labels: Labels | None, inspect: Callable[[Row], object]) -> None:
    """Read all rows once, before a model is loaded. InvalidInput for a row that cannot be used, or only one class."""
    seen: set[object] = set()
    row = None
    for row in rows:
        inspect(row)
        if labels is not None:
            seen.add(labels.of(row))
    if labels is not None and row is not None and len(seen) == 1 and not labels.regression and labels.classes > 1:
        file = row.where.rpartition(": ")[0]
        told = printable(row[labels.column])
        hint = "give data of two classes or more; with --limit of a sorted file add --shuffle"
        raise InvalidInput(f"{file}: all examples have the label {told!r}", hint)


@dataclass(frozen=True)
class Texts:
    """How the texts of one column, or of the pairs of two, become tokens."""

    columns: tuple[str, ...]
    tokenizer: Tokenizer
    length: int
    words: int  # rows of the embedding
    padding: int
    inputs: frozenset[str]  # what the model takes

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, perhaps `token_type_ids`: (examples, tokens), padded on the right."""
        told = self._tokens(rows)
        told.pop("special_tokens_mask", None)
        return self._padded(rows, told)

    def next_tokens(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """For causal language models: `labels` are the tokens that follow, (examples, tokens - 1)."""
        if self.length < 2:
            raise InvalidInput("texts are cut at one token, after which nothing follows", "give a greater --max-length")
        batch = self.batch(rows)
        follow, real = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:] == 1
        return {**batch, "labels": torch.where(real, follow, IGNORED)}

    def masked(self, rows: Sequence[Row], seed: int, mask: int) -> dict[str, Tensor]:
        """For masked language models: `labels` are the tokens under the mask, which depend on seed and row alone."""
        told = self._tokens(rows)
        special = told.pop("special_tokens_mask")
        batch = self._padded(rows, told)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for at, row in enumerate(rows):
            chosen = _chosen(np.array(special[at]) == 0, seed, row.number)
            labels[at, chosen] = batch["input_ids"][at, chosen]
            batch["input_ids"][at, chosen] = mask
        return {**batch, "labels": labels}

    def _tokens(self, rows: Sequence[Row]) -> dict[str, list[list[int]]]:
        texts = [[text_of(row, column) for row in rows] for column in self.columns]
        pair = texts[1] if len(texts) > 1 else None
        options = {"truncation": True, "max_length": self.length, "return_special_tokens_mask": True}
        told = dict(self.tokenizer(texts[0], pair, **options))
        for row, tokens in zip(rows, told["input_ids"], strict=True):
            if tokens and max(tokens) >= self.words:
                fact = f"{row.where}: the tokenizer gives token {max(tokens):,}, the model has {self.words:,}"
                raise InvalidInput(fact, "the tokenizer beside the model belongs to another one")
            if len(tokens) > self.length:
                fact = f"{self.length} tokens are less than the tokenizer adds to a text"
                raise InvalidInput(fact, "give a greater --max-length")
        return told

    def _padded(self, rows: Sequence[Row], told: Mapping[str, list[list[int]]]) -> dict[str, Tensor]:
        width = max(2, *map(len, told["input_ids"]))  # two, so that even a short text has a token to follow
        told = {**told, "attention_mask": [[1] * len(tokens) for tokens in told["input_ids"]]}
        fill = {"input_ids": self.padding}
        return {
            name: torch.tensor([one + [fill.get(name, 0)] * (width - len(one)) for one in lists])
            for name, lists in told.items()
            if name in self.inputs
        }


def text_of(row: Row, column: str) -> str:
    """The text in a column. InvalidInput when it is not text, or blank."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        told = "is blank" if isinstance(value, str) else f"holds {type(value).__name__}, not text"
        raise InvalidInput(f"{row.where}: the column {printable(column)!r} {told}", "mend the row, or leave it out")
    return value


def _chosen(plain: NDArray[np.bool_], seed: int, number: int) -> NDArray[np.int64]:
    """The positions to mask, of those that are plain words: 15 % of them, and one at least where there are any."""
    drawn = np.random.Philox(key=[seed, number]).random_raw(len(plain)) / 2.0**64
    drawn[~plain] = 2.0
    wanted = max(1, round(MASKED * int(plain.sum()))) if plain.any() else 0
    return np.sort(np.argsort(drawn, kind="stable")[:wanted])


@dataclass(frozen=True)
class Images:
    """How the images of a column become pixels: paths, beside the data file if they are relative, or encoded bytes."""

    column: str
    processor: ImageProcessor
    mode: str  # of PIL: RGB, or L for one channel

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`pixel_values`: (examples, channels, height, width)."""
        images = [self._open(row) for row in rows]
        return {"pixel_values": self.processor(images, return_tensors="pt")["pixel_values"].to(torch.float32)}

    def _open(self, row: Row) -> object:
        from PIL import Image

        bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
        try:
            with Image.open(image_of(row, self.column)) as image:
                return image.convert(self.mode)
        except (OSError, ValueError, SyntaxError, *bombs) as error:
            told = printable(str(error).partition("\n")[0])
            fact = f"{row.where} is no image that can be read: {told}"
            raise InvalidInput(fact, "mend it, or leave it out") from None


def image_of(row: Row, column: str) -> Path | io.BytesIO:
    """Where an image is: a file, or the bytes in the row. InvalidInput when it is neither."""
    value = row[column]
    if isinstance(value, Mapping):  # as parquet files of image data sets have it
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if not isinstance(value, str | Path):
        fact = f"{row.where}: the column {printable(column)!r} holds {type(value).__name__}, not an image"
        raise InvalidInput(fact, "give the path of a file, or its bytes")
    path = row.folder / value
    if not path.is_file():
        raise InvalidInput(f"{row.where}: there is no file {printable(path, 300)}", "paths begin at the data file")
    return path
