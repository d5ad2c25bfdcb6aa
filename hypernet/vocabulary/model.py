"""The model whose vocabulary is to change: its checkpoint, its tokenizer, its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput
from paramsmith.inputs import place
from paramsmith.progress import Progress

from .data import Vocabulary
from .factorise import Factors, factorise
from .matrices import Matrices, Pieces
from .tokens import Tokenizer
from .wordfile import WordVectors
from .words import Bags, words_of_tokens


@dataclass(frozen=True)
class Model:
    """A source, opened."""

    matrices: Matrices
    tokenizer: Tokenizer

    @classmethod
    @contextmanager
    def open(
        cls,
        reference: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Model]:
        """A folder or a model of the Hub; `tokenizer`: where it does not lie beside the weights. InvalidInput."""
        with Checkpoint.open(reference) as checkpoint:
            matrices = Matrices.of(checkpoint)
            checkpoint.fetch(list(checkpoint.tensors), progress)
            checkpoint.fetch_companions()
            where = Path(tokenizer) if tokenizer is not None else checkpoint.folder
            if where is None:
                fact = f"{place(checkpoint.path)}: a file of weights has no tokenizer beside it"
                raise InvalidInput(fact, "name the folder of the model")
            found = Tokenizer.open(where)
            if found.size > matrices.rows:
                told = f"has ids up to {found.size - 1:,}, and the embedding {matrices.rows:,} rows"
                raise InvalidInput(f"{place(found.path)}: {told}", "it is another model's tokenizer")
            yield cls(matrices, found)

    @property
    def checkpoint(self) -> Checkpoint:
        """Its tensors."""
        return self.matrices.checkpoint

    @property
    def known(self) -> int:
        """Rows that have a token; padding behind them was never trained."""
        return self.tokenizer.size

    @property
    def pieces(self) -> Pieces:
        """The rows that have a token, all matrices side by side."""
        return self.matrices.side_by_side(self.known)

    def rows(self, chosen: Tensor) -> Tensor:
        """These rows, (n, columns) float32."""
        held = [self.pieces.between(row, row + 1) for row in chosen.tolist()]
        return torch.cat(held) if held else torch.empty(0, self.matrices.columns)

    def bags(self, words: WordVectors) -> Bags:
        """The words of each token."""
        return words_of_tokens(self.tokenizer.split, words.words, self.known)

    def factors(self, rank: int | None) -> Factors:
        """The rows factorised; with no rank as they are, which takes memory for all of them."""
        if rank is not None:
            return factorise(self.pieces, rank, self.matrices.widths)
        whole = torch.cat(list(self.pieces))
        return Factors(whole, torch.eye(whole.shape[1]), torch.empty(0))

    def vocabulary(self, words: WordVectors, bags: Bags, rank: int | None, seed: int = 0) -> Vocabulary:
        """What can be learned from: its tokens that have words."""
        return Vocabulary.of(words.vectors, bags, self.factors(rank), seed)
