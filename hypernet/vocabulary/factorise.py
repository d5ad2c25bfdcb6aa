"""Embeddings as coordinates in a few shared directions, by a truncated SVD that reads them once or twice in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from paramsmith.device import one_thread_an_operation
from paramsmith.errors import InvalidInput

# A singular value is known from a Gram matrix to the root of float64's precision.
NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class Factors:
    """E = F P, nearly: coordinates F (rows, rank) and primitives P (rank, columns), float32; all singular values."""

    coordinates: Tensor
    primitives: Tensor
    values: Tensor

    @property
    def rank(self) -> int:
        """How many directions are kept."""
        return self.coordinates.shape[1]


def factorise(pieces: Iterable[Tensor], rank: int, widths: Sequence[int] = ()) -> Factors:
    """The best E = F P of that rank, from E (rows, columns) in pieces of rows, which are gone through twice.

    E = U S V^T;  F = U[:, :rank],  P = diag(S[:rank]) V[:, :rank]^T.  F has orthonormal columns, so its entries are
    about rows^-1/2. The entry of largest size in each row of P is positive. `widths`: the columns are several matrices
    side by side, of these widths, which share F; each counts alike, whatever its size.

    For rows >= columns it takes the eigenvectors of E^T E, float64, so that memory is columns^2 + rows * rank. Raises
    InvalidInput where E has not that rank.

    >>> found = factorise([torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])], 1)
    >>> found.coordinates.tolist(), found.primitives.tolist(), found.values.tolist()
    ([[1.0], [0.0], [0.0]], [[3.0, 0.0]], [3.0, 2.0])

    Paper: OFA, arXiv:2311.08849.
    """
    with one_thread_an_operation():  # so that the number of threads changes no bit
        gram, rows = _gram(pieces)  # (columns, columns)
        weight = even_weights(gram.diagonal(), widths)  # (columns)
        if rows < len(gram):
            wide = torch.cat([piece.double() for piece in pieces]) * weight
            _, values, directions = torch.linalg.svd(wide, full_matrices=False)
        else:
            squares, vectors = torch.linalg.eigh(weight[:, None] * gram * weight)
            values, directions = squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1).mT
        _check(rank, values)
        directions = _signed(directions[:rank])  # (rank, columns)
        lengths = values[:rank]
        onto = (weight[:, None] * directions.mT) / lengths  # (columns, rank)
        coordinates = torch.cat([(piece.double() @ onto).float() for piece in pieces])
        return Factors(coordinates, (lengths[:, None] * directions / weight).float(), values.float())


def even_weights(squares: Tensor, widths: Sequence[int]) -> Tensor:
    """What each column is multiplied by, so that matrices side by side count alike: from the squared norms of columns.

    One over the norm of the matrix that a column belongs to, relative to the first's; 1 for a single matrix.

    >>> even_weights(torch.tensor([3.0, 1.0, 1.0]), (2, 1)).tolist()
    [1.0, 1.0, 2.0]
    """
    weight = torch.ones(len(squares), dtype=torch.float64)
    if len(widths) < 2:
        return weight
    if sum(widths) != len(squares):
        raise ValueError(f"widths {tuple(widths)} are not those of {len(squares)} columns")
    norms = [float(part.sum().sqrt()) for part in torch.split(squares.double(), list(widths))]
    for end, width, norm in zip(accumulate(widths), widths, norms, strict=True):
        if norm > 0 and norms[0] > 0:
            weight[end - width : end] = norms[0] / norm
    return weight


def _gram(pieces: Iterable[Tensor]) -> tuple[Tensor, int]:
    total, rows = torch.zeros((), dtype=torch.float64), 0
    for piece in pieces:
        wide = piece.double()
        total = total + wide.mT @ wide
        rows += len(wide)
    if rows == 0 or not torch.isfinite(total).all():
        raise InvalidInput("the embeddings hold values that are not finite, or none at all", "check the source model")
    return total, rows


def _check(rank: int, values: Tensor) -> None:
    known = int((values > NEGLIGIBLE * values[0]).sum()) if values[0] > 0 else 0
    if not 1 <= rank <= known:
        fact = f"rank {rank:,} asked for, and the embeddings have rank {known:,} of {len(values):,}"
        raise InvalidInput(fact, "choose a smaller rank" if known else "check the source model")


def _signed(directions: Tensor) -> Tensor:
    places = directions.abs().argmax(1, keepdim=True)
    signs: Tensor = directions.gather(1, places).sign()
    return directions * signs
