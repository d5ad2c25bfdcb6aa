"""Residual vector quantisation: vectors as the sum of one code of each of several books."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from paramsmith.hypernet.seeding import bits

_AT_ONCE = 1 << 20  # distances computed at once
_PER_CODE, _LARGEST = 256, 1 << 26  # vectors a code, and numbers in all, that codes are found on


def nearest(vectors: Tensor, book: Tensor, temperature: float = 0.0) -> Tensor:
    """The nearest code (n,) of a book (codes, d) for each vector (n, d).

    With a temperature, code k is drawn with a probability proportional to exp(-|x - e_k|² / temperature), by Gumbel
    noise from torch's global generator.
    """
    found = [vectors.new_zeros(0, dtype=torch.int64)]
    squares = book.square().sum(1)
    for part in torch.split(vectors, max(1, _AT_ONCE // len(book))):
        near = 2 * part @ book.T - squares  # (b, codes): |x|² less the squared distance
        if temperature > 0:
            noise = torch.rand_like(near).clamp_(1e-20, 1 - 1e-7)
            near = near / temperature - (-noise.log()).log()
        found.append(near.argmax(1))
    return torch.cat(found)


def quantised(vectors: Tensor, books: Tensor, temperature: float = 0.0) -> tuple[Tensor, Tensor]:
    """Codes (n, levels) and residuals (levels + 1, n, d), the first the vectors: r_{l+1} = r_l - e_l, e_l nearest r_l.

    >>> books = torch.tensor([[[0.0], [10.0]], [[-1.0], [1.0]]])
    >>> [found.squeeze().tolist() for found in quantised(torch.tensor([[9.0]]), books)]
    [[1, 0], [9.0, -1.0, 0.0]]
    """
    codes, residuals = [], [vectors]
    for book in books:
        codes.append(nearest(residuals[-1], book, temperature))
        residuals.append(residuals[-1] - book[codes[-1]])
    return torch.stack(codes, 1), torch.stack(residuals)


def looked_up(codes: Tensor, books: Tensor) -> Tensor:
    """The sums (..., d) of the codes (..., levels) of books (levels, codes, d)."""
    return torch.stack([book[codes[..., level]] for level, book in enumerate(books)]).sum(0)


def sums_by_code(vectors: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How many vectors (n, d) have each code (count,), and their sums (count, d); the same every time."""
    counts, sums = vectors.new_zeros(count), vectors.new_zeros(count, vectors.shape[1])
    if vectors.device.type == "cpu":
        return counts.index_add_(0, codes, torch.ones_like(vectors[:, 0])), sums.index_add_(0, codes, vectors)
    several = max(1, _AT_ONCE // count)  # elsewhere index_add_ adds in any order
    for part, own in zip(torch.split(vectors, several), torch.split(codes, several), strict=True):
        member = one_hot(own, count).to(part)  # (b, count)
        counts += member.sum(0)
        sums += member.T @ part
    return counts, sums


def uniform_sample(batches: Iterator[Tensor], codes: int, seed: int) -> Tensor:
    """Vectors (n, d) drawn evenly from batches of them, in random order; the same however they are batched."""
    kept, first, limit = torch.zeros(0), 0, 0
    priorities = torch.zeros(0, dtype=torch.int64)
    for vectors in batches:
        limit = max(codes, min(_PER_CODE * codes, _LARGEST // vectors.shape[1]))
        own = bits(seed, "sample", (len(vectors),), first=first % (1 << 30)).long().to(vectors.device)
        first += len(vectors)
        kept = torch.cat([kept.to(vectors).reshape(-1, vectors.shape[1]), vectors])
        priorities = torch.cat([priorities.to(own), own])
        priorities, order = priorities.sort(stable=True)
        kept, priorities = kept[order[:limit]], priorities[:limit]
    return kept


def k_means(vectors: Tensor, count: int, iterations: int) -> Tensor:
    """Codes (count, d) near vectors (n, d) in random order: Lloyd's iteration from the first of them.

    Codes that no vector is nearest to move to vectors that are far from theirs, each as likely as its squared distance
    is large. Where there are fewer vectors than codes, the others are 0.
    """
    known = min(count, len(vectors))
    book = vectors[:known].clone()
    for _ in range(iterations if known else 0):
        codes = nearest(vectors, book)
        counts, sums = sums_by_code(vectors, codes, known)
        dead = (counts == 0).nonzero()[:, 0]
        moved = sums / counts.clamp_min(1)[:, None]
        if len(dead):
            moved[dead] = vectors[_spread_out((vectors - book[codes]).square().sum(1), len(dead))]
        book = moved
    return torch.cat([book, book.new_zeros(count - known, vectors.shape[1])])


def residual_k_means(vectors: Tensor, levels: int, count: int, iterations: int) -> Tensor:
    """Books (levels, count, d): each of the residuals that those before leave."""
    books = []
    for _ in range(levels):
        books.append(k_means(vectors, count, iterations))
        vectors = vectors - books[-1][nearest(vectors, books[-1])]
    return torch.stack(books)


def _spread_out(weights: Tensor, count: int) -> Tensor:
    """Numbers (count,) of vectors in random order, likelier the larger their weights (n,): evenly along their sum."""
    sums = weights.double().cpu().cumsum(0)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count * sums[-1]
    return torch.searchsorted(sums, places).clamp_max(len(sums) - 1).to(weights.device)
