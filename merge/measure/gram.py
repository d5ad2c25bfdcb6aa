"""The Gram matrices of what a model's weights multiply, as a statistics file: what RegMean needs of a model's data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.merge.task import Task

from .activations import Asked, Sums, measure_inputs
from .passes import Progress
from .subject import Report


def measure_gram(
    task: Task,
    checkpoint: Checkpoint,
    output: str | os.PathLike[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    include: str | None = None,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure G = E[x xᵀ], the mean over positions, for every weight of a linear layer or convolution; write float32.

    x is what the weight multiplies: (in,) for a linear layer, a patch (channels of a group x kernel,) for a
    convolution, so that G is (in, in), or (groups, d, d) for a convolution of several groups. Positions that the
    attention_mask of a batch leaves out do not count. Weights with the same inputs, such as query, key and value, share
    a matrix, which the file holds once. Weights that are also an embedding are left out.

    The sums are float64, 8 bytes an entry, beside the model: where they do not all fit in `memory`, the data is gone
    over again for the next ones. `seed` is noted in the file, nothing is drawn. InvalidInput for data that cannot be
    used, Refused when one matrix alone does not fit, Failed for what is not finite; nothing is written then.

    Paper: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv:2212.09849.
    """
    asked = Asked(limit, seed, memory, include, device, force, progress)
    return measure_inputs(task, checkpoint, Path(output), "gram", GRAM, asked)


def _products(x: Tensor) -> dict[str, Tensor]:
    """The products are of the inputs' precision, at least float32; it is their sums that would lose digits."""
    return {"": torch.bmm(x.transpose(1, 2), x)}  # (groups, d, d)


def _mean(sums: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    mean = sums[""] / count
    return {"": mean[0] if len(mean) == 1 else mean}


GRAM = Sums(_products, _mean, ("",), lambda groups, d: 8 * groups * d * d)
