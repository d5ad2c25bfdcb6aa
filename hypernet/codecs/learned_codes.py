"""Codebooks that follow an encoder while it is trained, and the layers around them."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import silu

from .codebooks import residual_k_means, sums_by_code

_SMALL, _FIRST_STEPS = 1e-5, 10


class Perceptron(nn.Module):
    """x (B, L, n) and features (L, F) -> (B, L, m), by two hidden layers, of which the first sees both."""

    def __init__(self, numbers: int, features: int, width: int, out: int) -> None:
        super().__init__()
        self.numbers, self.features = nn.Linear(numbers, width), nn.Linear(features, width)
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, out)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """(B, L, m)."""
        found: Tensor = self.out(silu(self.hidden(silu(self.numbers(x) + self.features(features)))))
        return found


class Averages(nn.Module):
    """Moving averages that codebooks (levels, codes, d) are made of.

    usage_k <- decay usage_k + (1 - decay) n_k, sums_k <- decay sums_k + (1 - decay) (sum of the n_k vectors of code k),
    e_k = sums_k / usage_k, the usage smoothed. A code of less than `dead` times the mean usage becomes a vector of the
    batch, drawn from torch's global generator, with the mean usage. Several processes count together.

    Paper: van den Oord et al., 2017, arXiv:1711.00937, appendix A.1.
    """

    usage: Tensor
    sums: Tensor

    def __init__(self, books: Tensor, decay: float, dead: float) -> None:
        super().__init__()
        self.decay, self.dead = decay, dead
        self.register_buffer("usage", torch.zeros(books.shape[:2]))
        self.register_buffer("sums", torch.zeros(books.shape))

    @torch.no_grad()
    def begin(self, books: Tensor, vectors: Tensor) -> None:
        """Before the first step, write codes near the vectors (n, d) of its batch into the books; later, nothing."""
        if bool(self.usage.any()):
            return
        levels, count = self.usage.shape
        order = torch.randperm(len(vectors), device=vectors.device)
        found = _of_first(residual_k_means(vectors[order], levels, count, _FIRST_STEPS))
        if bool(found.isfinite().all()):
            books.copy_(found)
            self.usage.fill_(len(vectors) / count)
            self.sums.copy_(books * self.usage[..., None])

    @torch.no_grad()
    def follow(self, books: Tensor, residuals: Tensor, codes: Tensor) -> None:
        """Move the books towards the residuals (levels, n, d) that have these codes (n, levels).

        A batch with numbers that are not finite moves nothing: the step that it is of is skipped as well.
        """
        for level, (book, usage, sums) in enumerate(zip(books, self.usage, self.sums, strict=True)):
            vectors = residuals[level]
            counted, summed = (_of_all(x) for x in sums_by_code(vectors, codes[:, level], len(book)))
            drawn = _of_first(vectors[torch.randint(len(vectors), (len(book),), device=book.device)])
            good = (summed.isfinite().all() & drawn.isfinite().all()).expand(len(book))
            after, total = usage.lerp(counted, 1 - self.decay), sums.lerp(summed, 1 - self.decay)
            mean = after.mean()
            dead = after < self.dead * mean
            usage.copy_(torch.where(good, torch.where(dead, mean, after), usage))
            sums.copy_(torch.where(good[:, None], torch.where(dead[:, None], drawn * mean, total), sums))
            smoothed = (usage + _SMALL) * (usage.sum() / (usage + _SMALL).sum())
            book.copy_(torch.where(good[:, None], sums / smoothed[:, None], book))


def _of_all(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def _of_first(tensor: Tensor) -> Tensor:
    """What the first process has."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        tensor = tensor.contiguous()
        distributed.broadcast(tensor, 0)
    return tensor
