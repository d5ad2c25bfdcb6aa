"""A row of numbers as one code: hyperparameters, coefficients, coordinates."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.perceptron import leaky_layers
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Number, Params
from paramsmith.parts import encoders

Encoding = Literal["cos_sin", "pair", "unit", "raw"]
_ROUNDING = 1e-5  # of an interval: how far outside a number may lie that was meant for its end


def _listed(value: object) -> object:
    return (value,) if isinstance(value, int | float) else value


Ends = Annotated[tuple[Number, ...], BeforeValidator(_listed)]
Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], BeforeValidator(_listed)]


class Vector(Params):
    """Options of the encoder `vector`."""

    encoding: Encoding = Field("cos_sin", description="how numbers enter; cos_sin and pair want an interval")
    low: Ends | None = Field(None, description="lower ends of the intervals: one, or one a coordinate; else 0 or none")
    high: Ends | None = Field(None, description="upper ends: one, or one a coordinate; else 1 or none")
    hidden: Widths = Field((), description="widths before the code's own")
    body: bool = Field(True, description="whether layers follow; without, the encoded numbers are the code")
    init: Literal["fan_out", "fan_in"] = Field("fan_out", description="Kaiming's: variance 2/outputs or 2/inputs")


@encoders("vector", Vector, paper="arXiv:2304.07645")
class VectorEncoder(nn.Module):
    """Codes (B, 1, width) of `vector` (B, k): encoded, then layers with leaky ReLU, whose biases begin at 0.

    With ends, coordinate i enters as g = (v - low) / (high - low). Then, of k coordinates,

    - cos_sin: cos(pi g/2) and sin(pi g/2), 2k numbers of squared norm k whatever is asked for (MIP)
    - pair:    g and 1 - g, 2k numbers
    - unit:    g over its norm, k numbers; zeros stay zeros
    - raw:     g itself, k numbers

    Without biases such a network would answer c times as loud to an input c times as large; the norm of `cos_sin`
    does not depend on the input. InvalidInput for a site without such a condition, and for a number that is outside its
    interval or not finite.

    Paper: Magnitude Invariant Parametrizations, arXiv:2304.07645.
    """

    low: Tensor
    high: Tensor

    def __init__(self, options: Vector, site: Site) -> None:
        super().__init__()
        shape = site.condition.get("vector", ())
        if len(shape) != 1 or not shape[0]:
            hint = 'let each episode of the task say it: Episode(target, {"vector": numbers}, query)'
            raise InvalidInput("the encoder 'vector' wants a condition `vector` of (k,) numbers", hint)
        self.encoding: Encoding = options.encoding
        (self.count,) = shape
        self._bound(options)
        widths = [self.count * (2 if self.encoding in ("cos_sin", "pair") else 1), *options.hidden, site.width]
        if not options.body and (options.hidden or widths[0] != site.width):
            fact = f"without layers the code of {self.count} numbers by {self.encoding} has a width of {widths[0]}"
            raise InvalidInput(fact, "leave `hidden` out and make the width so")
        self.body = leaky_layers(widths[0], widths[1:] if options.body else (), options.init)

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, 1, width)."""
        code: Tensor = self.body(self.encoded(self._checked(condition)))
        return code[:, None]

    def encoded(self, vector: Tensor) -> Tensor:
        """What the layers get of (B, k): (B, k or 2k).

        >>> from paramsmith.hypernet.targets.target import TargetSpec
        >>> VectorEncoder(Vector(), Site(8, condition={"vector": (1,)})).encoded(torch.tensor([[0.0], [0.5]]))
        tensor([[1.0000, 0.0000],
                [0.7071, 0.7071]])
        """
        g = (vector - self.low) / (self.high - self.low) if self.bounded else vector
        if self.encoding == "cos_sin":
            angle = g * (math.pi / 2)
            return torch.cat([angle.cos(), angle.sin()], dim=1)
        if self.encoding == "pair":
            return torch.cat([g, 1 - g], dim=1)
        if self.encoding == "unit":
            return nn.functional.normalize(g, dim=1)
        return g

    def _bound(self, options: Vector) -> None:
        """The intervals, as buffers that the options restore."""
        low, high = options.low, options.high
        if (low is None) != (high is None):
            given, lacking = ("high", "low") if low is None else ("low", "high")
            raise InvalidInput(f"the encoder 'vector' is given {given} without {lacking}", "give both, or neither")
        self.bounded = low is not None or self.encoding in ("cos_sin", "pair")
        for name, ends in (("low", low or (0.0,)), ("high", high or (1.0,))):
            if len(ends) not in (1, self.count):
                fact = f"the encoder 'vector' is given {len(ends)} numbers as {name}, for {self.count} coordinates"
                raise InvalidInput(fact, "give one for all, or one a coordinate")
            values = torch.tensor(ends, dtype=torch.float32).expand(self.count).clone()
            self.register_buffer(name, values, persistent=False)
        empty = [i for i in range(self.count) if not _at(low or (0.0,), i) < _at(high or (1.0,), i)]
        if empty:
            raise InvalidInput(f"low is not below high at coordinate {empty[0]} of the condition", "swap them?")

    def _checked(self, condition: Condition) -> Tensor:
        vector = condition.get("vector")
        if vector is None or vector.dim() != 2 or vector.shape[1] != self.count:
            found = "nothing" if vector is None else "x".join(map(str, vector.shape))
            raise InvalidInput(
                f"a condition is `vector`, (B, {self.count}), and there is {found}", "give a row for each"
            )
        vector = vector.to(self.low.dtype)
        good = torch.isfinite(vector)
        if self.bounded:
            slack = _ROUNDING * (self.high - self.low)
            good = good & (vector >= self.low - slack) & (vector <= self.high + slack)
        if not bool(good.all()):
            raise self._wrong(vector, good)
        return vector

    def _wrong(self, vector: Tensor, good: Tensor) -> InvalidInput:
        row, place = (int(i) for i in (~good).nonzero()[0])
        value = float(vector[row, place])
        where = f"coordinate {place} of the condition" + (f" {row}" if len(vector) > 1 else "")
        if not math.isfinite(value):
            return InvalidInput(f"{where} is {value}", "give finite numbers")
        ends = f"{float(self.low[place]):g} to {float(self.high[place]):g}"
        return InvalidInput(f"{where} is {value:g}, outside {ends}", "this generator knows nothing beyond")


def _at(ends: tuple[float, ...], place: int) -> float:
    return ends[place if len(ends) > 1 else 0]
