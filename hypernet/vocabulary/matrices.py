"""The tensors of a model with a row for every token: its embedding, its head where that is another, their biases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import TensorInfo
from paramsmith.inputs import place
from paramsmith.memory import as_bytes
from paramsmith.ties import TIES

CHUNK = 4096  # rows read at once
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|word_embeddings?|tokens_embed|wte|embed_in|shared|tok_embeddings|"
    r"(?<=backbone\.)embeddings?|(?<=funnel\.)embeddings)\.weight$"
)
_HEADS = frozenset(tie.alias for tie in TIES if tie.alias.endswith(".weight"))
_BIASES = frozenset(
    {name.removesuffix("weight") + "bias" for name in _HEADS}
    | {"cls.predictions.bias", "predictions.bias", "lm_head.bias", "final_logits_bias", "vocab_projector.bias"}
)


@dataclass(frozen=True)
class Matrices:
    """The tensors of a checkpoint that a new vocabulary changes. `biases` have one number a token, (rows) or (1, rows).

    The first matrix is the embedding. Those that are tied to it are not stored, and so not here.
    """

    checkpoint: Checkpoint
    matrices: tuple[TensorInfo, ...]
    biases: tuple[TensorInfo, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Matrices:
        """Find them by name. InvalidInput where there is no embedding, or one of several vocabularies."""
        tensors = checkpoint.tensors
        embeddings = [info for name, info in tensors.items() if _EMBEDDING.search(name) and len(info.shape) == 2]
        where = place(checkpoint.path)
        if not embeddings:
            fact = f"{where}: no token embedding is found among its {len(tensors):,} tensors"
            raise InvalidInput(fact, "it should be called like model.embed_tokens.weight")
        rows = embeddings[0].shape[0]
        for info in embeddings:
            if info.shape[0] != rows:
                told = f"{printable(embeddings[0].name)} has {rows:,} rows, {printable(info.name)} {info.shape[0]:,}"
                raise InvalidInput(f"{where}: {told}", "a model with two vocabularies keeps them")
        heads = [info for name, info in tensors.items() if name in _HEADS and info.shape[:1] == (rows,)]
        heads = [info for info in heads if len(info.shape) == 2 and info not in embeddings]
        biases = [info for name, info in tensors.items() if name in _BIASES and info.shape in ((rows,), (1, rows))]
        found = cls(checkpoint, (*embeddings, *heads), tuple(biases))
        found._check(rows)
        return found

    @property
    def rows(self) -> int:
        """Rows of the embedding: as many as the vocabulary has tokens, or more."""
        return self.matrices[0].shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each matrix."""
        return tuple(info.shape[1] for info in self.matrices)

    @property
    def columns(self) -> int:
        """Columns of all matrices side by side."""
        return sum(self.widths)

    def parts(self, wide: Tensor) -> dict[str, Tensor]:
        """(..., columns) cut into the matrices again, by name."""
        cut = torch.split(wide, list(self.widths), dim=-1)
        return {info.name: part for info, part in zip(self.matrices, cut, strict=True)}

    def read(self, info: TensorInfo, start: int, end: int) -> Tensor:
        """Rows of one matrix as they are stored, (end - start, width)."""
        held = torch.empty((end - start, *info.shape[1:]), dtype=torch_dtype(info.dtype))
        if held.numel():
            self.checkpoint.read_into(info.name, start * held[0].nbytes, as_bytes(held))
        return held

    def side_by_side(self, rows: int) -> Pieces:
        """The first so many rows of all matrices, (rows, columns) float32 in pieces, to be gone through many times."""
        return Pieces(self, rows)

    def _check(self, rows: int) -> None:
        """InvalidInput for what cannot be computed with, and for further tensors that are surely of the vocabulary."""
        for info in (*self.matrices, *self.biases):
            if info.dtype.kind != "float":
                raise InvalidInput(
                    f"{printable(info.name)}: is of type {info.dtype.code}", "dequantise the model first"
                )
        config = self.checkpoint.config
        said = [] if config is None else [v for v in config.text.values() if isinstance(v, int)]
        if said.count(rows) > 1 or any(rows == size for info in self.matrices for size in info.shape[1:]):
            return  # another axis may happen to be as long
        known = {info.name for info in (*self.matrices, *self.biases)}
        for name, info in self.checkpoint.tensors.items():
            if name not in known and rows in info.shape and rows > 256:
                fact = f"{printable(name)} {list(info.shape)} seems to be of the vocabulary, and is not known"
                raise InvalidInput(fact, "this architecture's vocabulary cannot be changed yet")


@dataclass(frozen=True)
class Pieces:
    """Rows of all matrices side by side, some at a time."""

    source: Matrices
    rows: int

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.rows, CHUNK):
            yield self.between(start, min(start + CHUNK, self.rows))

    def between(self, start: int, end: int) -> Tensor:
        """(end - start, columns) float32."""
        return torch.cat([self.source.read(info, start, end).float() for info in self.source.matrices], dim=1)

    def squares(self) -> Tensor:
        """The squared norm of each column, float64."""
        return sum((piece.double().square().sum(0) for piece in self), torch.zeros((), dtype=torch.float64))

    def moments(self, onto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each column, or, after `@ onto`, of each coordinate; float32."""
        total, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for piece in self:
            total = total + _onto(piece, onto).sum(0)
        middle = total / self.rows
        for piece in self:  # a second time, so that nothing cancels
            squares = squares + (_onto(piece, onto) - middle).square().sum(0)
        return middle.float(), (squares / max(1, self.rows - 1)).sqrt().float()


def _onto(piece: Tensor, onto: Tensor | None) -> Tensor:
    return piece.double() if onto is None else piece.double() @ onto.double()
