"""Examples of classes as one code by attention, as in D2NWG; and its other encoder, a layer across the examples."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.attention import Induced, Pooled, SelfAttending
from paramsmith.hypernet.encoders.examples import drawn, examples_in, examples_of
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders

_SLOPE = 0.01


class SetTransformer(Params):
    """Options of the encoder `set_transformer`."""

    shots: int | None = Field(None, ge=1, le=65_536, description="examples of a class that a step of training draws")
    hidden: int = Field(128, ge=1, le=65_536, description="width inside")
    heads: int = Field(2, ge=1, le=256, description="attention heads")
    inducing: int = Field(32, ge=1, le=65_536, description="learned members by way of which a set attends to itself")
    between: int = Field(512, ge=1, le=65_536, description="width of what is known of a class")
    norm: bool = Field(False, description="whether layers are normalised")
    pool: bool = Field(True, description="one code for all classes; without, one a class")


@encoders("set_transformer", SetTransformer, paper="arXiv:2402.18153")
class SetTransformerEncoder(nn.Module):
    """Codes (B, 1, width) of `classes` (B, k, n, F): D2NWG's encoder of a dataset, in no order of examples or classes.

    The examples of each class, then what is known of the classes, go through twice induced attention, pooling and
    twice attention, with a linear layer behind: a Set Transformer (arXiv:1810.00825) each. In training `shots` examples
    are drawn anew at every step. Without `pool` the second is left out: (B, k, width), one code a class. InvalidInput
    for conditions of another number of features, or of another number of classes than the target.

    Paper: Diffusion-Based Neural Network Weights Generation, arXiv:2402.18153.
    """

    def __init__(self, options: SetTransformer, site: Site) -> None:
        super().__init__()
        _, _, self.features = examples_of(site, "set_transformer", options.shots)
        if options.hidden % options.heads:
            fact = f"{options.heads} heads do not divide a width of {options.hidden}"
            raise InvalidInput(fact, "give a width inside that is a multiple of the heads")
        self.shots, self.by_class = options.shots, not options.pool
        self.within = _block(self.features, options.between if options.pool else site.width, options)
        self.across = _block(options.between, site.width, options) if options.pool else None

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, 1, width), or (B, k, width)."""
        examples = examples_in(condition, spec, self.features)
        examples = drawn(examples, self.shots if self.training else None)
        classes: Tensor = self.within(examples.flatten(0, 1)).unflatten(0, examples.shape[:2])[:, :, 0]
        return classes if self.across is None else self.across(classes)


class Columns(Params):
    """Options of the encoder `columns`."""

    hidden: int = Field(4, ge=1, le=65_536, description="combinations of the examples")


@encoders("columns", Columns, paper="arXiv:2402.18153")
class ColumnsEncoder(nn.Module):
    """Codes (B, 1, width): `hidden` combinations of all k n examples of `classes` (B, k, n, F), then a linear layer.

    code = V leaky_relu(W x + b), x (k n, F). It goes by the order of examples and classes; fewer of them use the first
    columns of W. D2NWG's other encoder. InvalidInput for a site that has any number of them, and for more of them.

    Paper: Diffusion-Based Neural Network Weights Generation, arXiv:2402.18153.
    """

    def __init__(self, options: Columns, site: Site) -> None:
        super().__init__()
        classes, several, self.features = examples_of(site, "columns")
        if not classes * several:
            fact = "the encoder 'columns' wants a fixed number of classes, and of examples of each"
            raise InvalidInput(fact, "use set_transformer for any number")
        self.examples = nn.Linear(classes * several, options.hidden)
        self.code = nn.Linear(options.hidden * self.features, site.width)

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, 1, width)."""
        held = examples_in(condition, spec, self.features).flatten(1, 2)  # (B, k n, F)
        weight = self.examples.weight
        if held.shape[1] > weight.shape[1]:
            fact = f"the condition has {held.shape[1]} examples, and this generator takes {weight.shape[1]}"
            raise InvalidInput(fact, "give fewer")
        mixed = torch.einsum("bmf,hm->bfh", held, weight[:, : held.shape[1]]) + self.examples.bias
        code: Tensor = self.code(functional.leaky_relu(mixed, _SLOPE).flatten(1))
        return code[:, None]


def _block(inputs: int, outputs: int, options: SetTransformer) -> nn.Sequential:
    """(B, n, inputs) -> (B, 1, outputs)."""
    hidden, heads, norm = options.hidden, options.heads, options.norm
    return nn.Sequential(
        Induced(inputs, hidden, heads, options.inducing, norm=norm),
        Induced(hidden, hidden, heads, options.inducing, norm=norm),
        Pooled(hidden, heads, norm=norm),
        SelfAttending(hidden, hidden, heads, norm=norm),
        SelfAttending(hidden, hidden, heads, norm=norm),
        nn.Linear(hidden, outputs),
    )
