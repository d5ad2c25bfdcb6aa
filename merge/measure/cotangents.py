"""What to pull back through a model for each estimator of the Fisher: gradients of a log-likelihood at the outputs.

With J the Jacobian of an example's outputs, the Fisher's diagonal of that example is the sum of (Jᵀ v)² over

exact       classes c:  v = sqrt(P_c) (e_c - P);       regression, outputs o:  v = e_o
sampled     draws s:    v = (e_y - P) / sqrt(draws),  y drawn from P at every position;
                        regression: v = noise / sqrt(draws), noise standard normal
empirical   once:       v = e_y - P with the label y;  regression: v = label - output

A sequence's log-likelihood is the sum over its positions, so one v holds all of them. P is the model's own prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.errors import Failed, InvalidInput
from paramsmith.merge.task import IGNORED, Batch, Likelihood, check_labels

Estimator: TypeAlias = Literal["exact", "sampled", "empirical"]


@dataclass(frozen=True)
class Draws:
    """How samples are drawn: by (seed, number of the example in the data, draw), so that batches do not matter."""

    seed: int
    count: int = 1


def cotangents(
    estimator: Estimator, likelihood: Likelihood, outputs: Tensor, batch: Batch, first: int, draws: Draws
) -> Iterator[Tensor]:
    """The v of all examples of a batch, shaped as the outputs, one after another; `first` is the first one's number.

    outputs (examples, classes) or (examples, ..., classes), for regression of any shape. InvalidInput for labels that
    do not fit and for an estimator that cannot be had; Failed, naming the example, for a loss that is not finite.
    """
    if likelihood == "regression":
        return _regression(estimator, outputs.detach(), batch, first, draws)
    return _categorical(estimator, outputs.detach(), batch, first, draws)


def _categorical(estimator: Estimator, outputs: Tensor, batch: Batch, first: int, draws: Draws) -> Iterator[Tensor]:
    labels = _labels(outputs, batch)
    if estimator == "exact" and outputs.ndim > 2:
        fact = f"outputs of the shape {list(outputs.shape)} have one class a position: they cannot be summed exactly"
        raise InvalidInput(fact, "classes^positions terms: use the estimator sampled")
    counted = _counted(outputs, batch, labels)
    chances = outputs.float().softmax(-1) if outputs.dtype != torch.float64 else outputs.softmax(-1)
    _check_finite(chances[..., 0].masked_fill(~counted, 0.0), first, "the model's outputs are")
    if estimator == "exact":
        for c in range(outputs.shape[-1]):
            root = chances[:, c, None].sqrt()
            yield (root * (functional.one_hot(torch.tensor(c), outputs.shape[-1]).to(chances) - chances)).to(outputs)
        return
    if estimator == "empirical":
        if labels is None:
            raise InvalidInput("the data has no labels", "give the batches a tensor called labels, or use sampled")
        known = torch.where(counted, labels, 0)
        losses = -outputs.to(chances.dtype).log_softmax(-1).gather(-1, known[..., None])[..., 0]
        _check_finite(losses.masked_fill(~counted, 0.0), first, "the loss is")
        yield _residual(chances, known, counted, 1.0).to(outputs)
        return
    for draw in range(draws.count):
        taken = _drawn(chances, counted, first, draws.seed, draw)
        yield _residual(chances, taken, counted, draws.count**-0.5).to(outputs)


def _regression(estimator: Estimator, outputs: Tensor, batch: Batch, first: int, draws: Draws) -> Iterator[Tensor]:
    _check_finite(outputs, first, "the model's outputs are")
    flat = outputs.reshape(len(outputs), -1)
    if estimator == "exact":
        for place in range(flat.shape[1]):
            yield functional.one_hot(torch.tensor(place), flat.shape[1]).to(flat).expand_as(flat).view(outputs.shape)
    elif estimator == "empirical":
        labels = batch.get("labels")
        if labels is None:
            raise InvalidInput("the data has no labels", "give the batches a tensor called labels, or use sampled")
        if labels.numel() != outputs.numel():
            fact = f"labels have the shape {list(labels.shape)}, the outputs {list(outputs.shape)}"
            raise InvalidInput(fact, "one label a value that the model predicts")
        residual = labels.to(outputs).reshape(outputs.shape) - outputs
        _check_finite(residual, first, "the loss is")
        yield residual
    else:
        for draw in range(draws.count):
            noise = [
                _generator(draws.seed, first + row, draw).standard_normal(flat.shape[1]) for row in range(len(flat))
            ]
            scaled = torch.from_numpy(np.stack(noise)) * draws.count**-0.5
            yield scaled.to(outputs).view(outputs.shape)


def _labels(outputs: Tensor, batch: Batch) -> Tensor | None:
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        fact = f"outputs of the shape {list(outputs.shape)} have one class, whose probability is 1 whatever the weights"
        raise InvalidInput(fact, "a model of one number is a regression: set the task's likelihood")
    labels = batch.get("labels")
    if labels is not None:
        check_labels(labels, outputs.shape[-1])
        if labels.shape != outputs.shape[:-1]:
            fact = f"labels have the shape {list(labels.shape)}, the outputs {list(outputs.shape)}"
            raise InvalidInput(fact, "one label an example, or one a position")
    return labels


def _counted(outputs: Tensor, batch: Batch, labels: Tensor | None) -> Tensor:
    """Which positions belong to the likelihood: those with a label, else those that are not padding."""
    if labels is not None:
        return labels != IGNORED
    mask = batch.get("attention_mask")
    if outputs.ndim > 2 and mask is not None and mask.shape == outputs.shape[:-1]:
        return mask != 0
    return torch.ones(outputs.shape[:-1], dtype=torch.bool, device=outputs.device)


def _residual(chances: Tensor, taken: Tensor, counted: Tensor, factor: float) -> Tensor:
    """(e_y - P) times the factor at the positions that count."""
    residual = (-chances).scatter_add(-1, taken[..., None], torch.ones_like(chances[..., :1]))
    return torch.where(counted[..., None], factor * residual, torch.zeros_like(residual))


def _drawn(chances: Tensor, counted: Tensor, first: int, seed: int, draw: int) -> Tensor:
    """A class for every position that counts, from the inverse of the cumulative distribution."""
    taken = torch.zeros(counted.shape, dtype=torch.long, device=chances.device)
    for row in range(len(chances)):
        here = counted[row]
        uniform = torch.from_numpy(_generator(seed, first + row, draw).random(here.numel())).to(chances.device)
        summed = chances[row][here].double().cumsum(-1)  # (positions that count, classes)
        wanted = uniform.view(here.shape)[here][..., None] * summed[..., -1:]
        taken[row][here] = torch.searchsorted(summed, wanted, right=True)[..., 0].clamp_max(chances.shape[-1] - 1)
    return taken


def _generator(seed: int, example: int, draw: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, draw, example]))


def _check_finite(values: Tensor, first: int, what: str) -> None:
    """Failed, naming the example, for a row with NaN or an infinity."""
    finite = torch.isfinite(values.reshape(len(values), -1)).all(1)
    if not bool(finite.all()):
        example = first + int((~finite).nonzero()[0])
        raise Failed(f"example {example:,}: {what} not finite", "look at the example, and at the model's weights")
