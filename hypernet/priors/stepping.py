"""Steps of sampling from a diffusion, x_t = √a z + √(1 - a) e, as functions of a and of a', that of the next time.

They are those of diffusers' DDPM, DDIM and DPMSolverMultistep schedulers, which tests hold them to; here the next time
is that of the grid also where it is not evenly spaced, and the noise is what the caller draws.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import Literal, TypeAlias

from torch import Tensor

Prediction: TypeAlias = Literal["v_prediction", "epsilon", "sample"]


def spaced(times: int, steps: int) -> list[int]:
    """Times of sampling, the last one of training first, and evenly from there ("trailing").

    >>> spaced(1000, 4)
    [999, 749, 499, 249]
    """
    return [round(times - step * times / steps) - 1 for step in range(steps)]


def parted(found: Tensor, x: Tensor, alpha: float, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """z and e of what a denoiser says of x: v = √a e - √(1 - a) z, or one of them."""
    near, far = sqrt(alpha), sqrt(1 - alpha)
    if prediction == "v_prediction":
        return near * x - far * found, near * found + far * x
    if prediction == "epsilon":
        return (x - far * found) / near, found
    return found, (x - near * found) / far


def ddim(data: Tensor, noise: Tensor, after: float) -> Tensor:
    """√a' z + √(1 - a') e. Song et al., arXiv:2010.02502."""
    return sqrt(after) * data + sqrt(1 - after) * noise


def ddpm(data: Tensor, noise: Tensor, alpha: float, after: float, drawn: Tensor) -> Tensor:
    """√a' z + √(1 - a' - s²) e + s n, with n drawn from N(0, 1): a draw from the posterior.

    s² = (1 - a') / (1 - a) (1 - a / a'). Ho et al., arXiv:2006.11239.
    """
    variance = (1 - after) / (1 - alpha) * (1 - alpha / after)
    return sqrt(after) * data + sqrt(1 - after - variance) * noise + sqrt(variance) * drawn


class DpmSolver:
    """DPM-Solver++ of order 2, over one sampling: it remembers the step before. Lu et al., arXiv:2211.01095.

    With l = log √(a / (1 - a)), h and h_ the last differences of l to the next and from the previous time,

        x' = √((1 - a') / (1 - a)) x + √a' (1 - exp(-h)) (z + (z - z_) h / (2 h_))

    The first step is of order 1, without the last term; so is the last, to a' = 1, which gives z.
    """

    def __init__(self) -> None:
        self.before: tuple[Tensor, float] | None = None

    def step(self, x: Tensor, data: Tensor, alpha: float, after: float) -> Tensor:
        """x at the next time."""
        if after == 1:
            return data
        here = log(alpha / (1 - alpha)) / 2
        ahead = log(after / (1 - after)) / 2 - here
        towards = data
        if self.before is not None:
            earlier, place = self.before
            towards = data + (data - earlier) * (ahead / (2 * (here - place)))
        self.before = data, here
        return sqrt((1 - after) / (1 - alpha)) * x + sqrt(after) * (1 - exp(-ahead)) * towards
