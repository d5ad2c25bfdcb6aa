"""The mean and variance of what a model's weights multiply, as a statistics file."""

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


def measure_moments(
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
    """Measure, for each input x_j of every weight of a linear layer or convolution, over all positions; write float32:

        NAME/mean  E[x_j]      NAME/var  E[x_j^2] - E[x_j]^2      NAME/norm  sqrt(E[x_j^2])

    They have the shape (in,), or (groups, d) for a convolution of several groups, and are ordered as in the matrices of
    measure_gram, whose diagonal is norm^2. Padding, shared inputs, `memory` and errors are as there.
    """
    asked = Asked(limit, seed, memory, include, device, force, progress)
    return measure_inputs(task, checkpoint, Path(output), "moments", MOMENTS, asked)


def _powers(x: Tensor) -> dict[str, Tensor]:
    wide = x.double()
    return {"sum": wide.sum(1), "squares": wide.square().sum(1)}  # (groups, d)


def _moments(sums: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    mean, square = (t[0] if len(t) == 1 else t for t in (sums["sum"] / count, sums["squares"] / count))
    return {"/mean": mean, "/var": (square - mean.square()).clamp_min(0), "/norm": torch.sqrt(square)}


MOMENTS = Sums(_powers, _moments, ("/mean", "/var", "/norm"), lambda groups, d: 16 * groups * d)
