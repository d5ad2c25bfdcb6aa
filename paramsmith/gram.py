"""Gram matrices of the model vectors, and the geometric means that need nothing else.

A mean on the sphere of N vectors is a linear combination of them whose coefficients depend on their N x N Gram matrix
only: one survey, a little float64 algebra, one linear pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Two vectors closer than this are interpolated linearly (the value every implementation of slerp uses).
PARALLEL = 0.9995
ZERO_NORM = 1e-8
# Lengths are roots of Gram products, so they are noise below the root of float64's: what is shorter has cancelled.
CANCELLED = 1e-6
# Directions whose share of a Gram is smaller are noise of the float32 it was stored in.
RANK = 1e-7


def pair_products(block: Tensor) -> Tensor:
    """Products of every pair of models i >= j, float64: (models, n) -> (pairs, n); their sums are the Gram matrix."""
    wide = block.double()
    return torch.stack([wide[i] * wide[j] for i in range(len(wide)) for j in range(i + 1)])


def gram_matrix(sums: Tensor) -> Tensor:
    """The symmetric matrix (models, models) from the sums of `pair_products`.

    >>> gram_matrix(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    size = int((8 * len(sums) + 1) ** 0.5) // 2
    gram = sums.new_zeros(size, size)
    rows, columns = torch.tril_indices(size, size)
    gram[rows, columns] = sums
    gram[columns, rows] = sums
    return gram


def slerp_coefficients(gram: Tensor, t: float) -> Tensor:
    """Coefficients (2, 1) of spherical interpolation, t = 0 giving the first vector.

    sin((1-t)W)/sin W and sin(tW)/sin W with W the angle between the vectors; 1-t and t where |cos W| > 0.9995.

    >>> slerp_coefficients(torch.eye(2), 0.5).squeeze().tolist()
    [0.7071067690849304, 0.7071067690849304]
    """
    norms = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(norms > ZERO_NORM, norms, torch.ones_like(norms))
    cosine = (gram[0, 1] / (scale[0] * scale[1])).clamp(-1, 1)
    if cosine.abs() > PARALLEL:
        pair = torch.stack([1 - cosine.new_tensor(t), cosine.new_tensor(t)])
    else:
        angle = torch.arccos(cosine)
        pair = torch.stack([torch.sin((1 - t) * angle), torch.sin(t * angle)]) / torch.sin(angle)
    return pair[:, None]


def karcher_coefficients(gram: Tensor, weight: Sequence[float], max_iter: int, tol: float) -> Tensor:
    """Coefficients (models, 1) of the weighted Riemannian mean of directions, scaled by the weighted mean norm.

    On unit vectors u_i = x_i/|x_i|, from their normalised weighted mean: T = sum_i a_i (W_i/sin W_i)(u_i - cos W_i u),
    u <- cos|T| u + sin|T| T/|T|, until |T| < tol. A zero vector has no direction but counts, with norm 0, in the scale.
    Everything stays in the span of the u_i, so u and T are coefficient vectors and inner products are Gram products.
    """
    alpha = torch.tensor(weight, dtype=torch.float64) / sum(weight)
    norms = gram.double().diagonal().clamp_min(0).sqrt()
    alive = norms > ZERO_NORM
    inverse = torch.where(alive, 1 / torch.where(alive, norms, 1.0), 0.0)
    unit = gram.double() * inverse[:, None] * inverse
    share = torch.where(alive, alpha, 0.0)
    if not alive.any() or share.sum() == 0:
        return torch.zeros(len(norms), 1, dtype=torch.float64)
    share = share / share.sum()
    mean = _normalised(share, unit)
    for _ in range(max_iter):
        cosine = (unit @ mean).clamp(-1, 1)
        angle = 2 * torch.atan2((2 - 2 * cosine).clamp_min(0).sqrt(), (2 + 2 * cosine).clamp_min(0).sqrt())
        sine = torch.sin(angle)
        # nothing leads from a direction to its opposite, so that one does not pull
        opposite = (sine < CANCELLED) & (cosine < 0)
        pull = share * torch.where(opposite, 0.0, torch.where(angle > 1e-12, angle / sine.clamp_min(1e-300), 1.0))
        tangent = pull - (pull * cosine).sum() * mean
        length = (tangent @ unit @ tangent).clamp_min(0).sqrt()
        if length < tol:
            break
        mean = _normalised(torch.cos(length) * mean + torch.sin(length) / length * tangent, unit)
    return (mean * inverse * (alpha * norms).sum())[:, None]


def regmean_solve(weights: Tensor, grams: Tensor, off_diagonal: float = 1.0) -> Tensor:
    """The W closest to all W_i in the sense of their inputs: W = (sum_i W_i G_i)(sum_i G_i)^+.

    `weights` (models, out, in); `grams` (models, in, in), or (models, groups, in, in) where the outputs fall into as
    many equal groups; -> (out, in), float64. It is solved for the difference from the mean of `weights`, which is kept
    in directions that no input has. Entries of the Grams off their diagonal count `off_diagonal` times.

    >>> grams = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]])
    >>> regmean_solve(torch.tensor([[[0.0, 0.0]], [[4.0, 6.0]]]), grams).tolist()
    [[3.0, 3.0]]
    """
    models, outputs, inputs = weights.shape
    wide, gram = weights.double(), grams.double().view(models, -1, inputs, inputs)
    gram = off_diagonal * gram + (1 - off_diagonal) * torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
    mean = wide.mean(0)
    apart = (wide - mean).view(models, gram.shape[1], -1, inputs)  # (models, groups, out / groups, in)
    change = _divided((apart @ gram).sum(0), gram.sum(0))
    merged: Tensor = mean + change.reshape(outputs, inputs)
    return merged


def _divided(right: Tensor, gram: Tensor) -> Tensor:
    """X with X G = R for symmetric G >= 0, by its pseudo-inverse where G is nearly singular: (groups, out, in)."""
    size = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(size > 0, 1 / torch.where(size > 0, size, 1.0), 0.0)  # inputs of one size: a fairer rank
    even = gram * scale[..., :, None] * scale[..., None, :]
    values, vectors = torch.linalg.eigh(even)
    known = values > values[..., -1:].clamp_min(0) * RANK
    inverse = torch.where(known, 1 / torch.where(known, values, 1.0), 0.0)
    turned = (right * scale[..., None, :]) @ vectors
    solved: Tensor = ((turned * inverse[..., None, :]) @ vectors.mT) * scale[..., None, :]
    return solved


def _normalised(coefficients: Tensor, unit: Tensor) -> Tensor:
    length = (coefficients @ unit @ coefficients).clamp_min(0).sqrt()
    if length > CANCELLED:
        return coefficients / length
    # they cancel: any of those that count is as good a start, so the first
    first = int(torch.nonzero(coefficients)[0])
    return torch.eye(len(unit), dtype=unit.dtype)[first]
