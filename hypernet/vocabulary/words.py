"""Which words a token occurs in: every word whose tokenisation contains it, as the set that stands for the token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

MOST = 256  # words a token
_PIECE = 10_000  # words tokenised at once

Split = Callable[[Sequence[str]], Sequence[Sequence[int]]]  # texts -> the token ids of each


@dataclass(frozen=True)
class Bags:
    """Sets of words, one a token: bag i is `members[starts[i] : starts[i + 1]]`, numbers of words in rising order."""

    starts: Tensor  # (bags + 1) int64
    members: Tensor  # (all together) int64

    @classmethod
    def of(cls, bags: Iterable[Sequence[int]]) -> Bags:
        """Bags from lists.

        >>> Bags.of([[2, 5], [], [1]]).sizes.tolist()
        [2, 0, 1]
        """
        held = list(bags)
        starts = torch.tensor([0, *map(len, held)]).cumsum(0)
        return cls(starts, torch.tensor([word for bag in held for word in bag], dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def sizes(self) -> Tensor:
        """Words a bag, (bags)."""
        return self.starts.diff()

    def select(self, chosen: Tensor) -> Bags:
        """These bags, by number, in this order."""
        sizes = self.sizes[chosen]
        starts = torch.zeros(len(chosen) + 1, dtype=torch.int64)
        starts[1:] = sizes.cumsum(0)
        moved = torch.repeat_interleave(self.starts[chosen] - starts[:-1], sizes)
        return Bags(starts, self.members[torch.arange(len(moved)) + moved])

    def padded(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Words of these bags side by side and which of them are there: (B, n) int64 with zeros behind, (B, n) bool.

        >>> members, mask = Bags.of([[2, 5], [], [1]]).padded(torch.tensor([0, 2]))
        >>> members.tolist(), mask.tolist()
        ([[2, 5], [1, 0]], [[True, True], [True, False]])
        """
        sizes = self.sizes[chosen]
        n = max(1, int(sizes.max()) if len(sizes) else 1)
        mask = torch.arange(n) < sizes[:, None]  # (B, n)
        members = torch.zeros(mask.shape, dtype=torch.int64)
        places = self.starts[chosen][:, None] + torch.arange(n)
        members[mask] = self.members[places[mask]]
        return members, mask

    def means(self, vectors: Tensor) -> Tensor:
        """The mean vector of each bag, (bags, width); zeros for an empty one."""
        return functional.embedding_bag(self.members, vectors, self.starts, mode="mean", include_last_offset=True)


def words_of_tokens(split: Split, words: Sequence[str], tokens: int, most: int = MOST) -> Bags:
    """For each of `tokens` tokens, the first `most` words whose tokenisation contains it.

    A word is tokenised four times: as it is and capitalised, each at the start of a text and after a space. As files of
    word vectors have the frequent words first, those are the ones that stay. `split` gives no special tokens.

    >>> letters = {"a": 0, "b": 1, " ": 2, "A": 3}
    >>> split = lambda texts: [[letters[c] for c in text if c in letters] for text in texts]
    >>> bags = words_of_tokens(split, ["ab", "b"], 4)
    >>> bags.padded(torch.arange(4))[0].tolist()
    [[0, 0], [0, 1], [0, 1], [0, 0]]
    """
    counts = np.zeros(tokens, np.int64)
    kept: list[NDArray[np.int64]] = []  # (pairs, 2): token, word
    for found in _pairs(split, words, tokens):
        order = np.argsort(found[:, 0], kind="stable")
        found = found[order]
        token = found[:, 0]
        first = np.searchsorted(token, token)  # where the token's run begins
        place = counts[token] + np.arange(len(token)) - first
        fits = place < most
        kept.append(found[fits])
        counts += np.bincount(token[fits], minlength=tokens)
    pairs = np.concatenate(kept) if kept else np.empty((0, 2), np.int64)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    starts = np.concatenate([[0], counts.cumsum()])
    return Bags(torch.from_numpy(starts), torch.from_numpy(pairs[:, 1].copy()))


def _pairs(split: Split, words: Sequence[str], tokens: int) -> Iterator[NDArray[np.int64]]:
    """(token, word), each pair once, words in rising order; a piece of the words at a time."""
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE]
        pieces: list[NDArray[np.int64]] = []
        for form in (str, _spaced, str.capitalize, _spaced_capital):
            ids = [list(found) for found in split([form(word) for word in piece])]
            word = np.repeat(np.arange(start, start + len(piece)), [len(found) for found in ids])
            token = np.fromiter((t for found in ids for t in found), np.int64, len(word))
            pieces.append(np.stack([word, token], 1))
        found = np.unique(np.concatenate(pieces), axis=0)  # sorted by word, then token
        yield found[(found[:, 1] >= 0) & (found[:, 1] < tokens)][:, ::-1]


def _spaced(word: str) -> str:
    return " " + word


def _spaced_capital(word: str) -> str:
    return " " + word.capitalize()
