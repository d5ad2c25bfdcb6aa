"""What may be set of a tokenizer, and what that says of each tensor of a target."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.target import Role, Slot, TargetSpec
from paramsmith.params import Number, Params

from . import cutting, normalise
from .views import View

Policy: TypeAlias = Literal["generate", "template", "constant", "recalibrate"]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Rule(Params):
    """What is done with the tensors of a role, or with a word in their name, or with both; with neither, all."""

    policy: Policy = Field(
        description="generate; template: as in the zoo; constant; recalibrate: from data, later, until then as template"
    )
    role: Role | None = Field(None, description="as in the target: matrix, kernel, embedding, head, bias, ...")
    name: str | None = Field(None, min_length=1, max_length=1000, description="part of the name")
    value: Number | None = Field(None, description="of a constant")

    @model_validator(mode="after")
    def _has_value(self) -> Self:
        if (self.policy == "constant") != (self.value is not None):
            raise ValueError("a constant has a value, and nothing else has one")
        return self

    def is_for(self, slot: Slot) -> bool:
        """Whether it speaks of a tensor."""
        return self.role in (None, slot.role) and (self.name is None or self.name in slot.name)


_GENERATE = Rule(policy="generate", role=None, name=None, value=None)
_TEMPLATE = _GENERATE.model_copy(update={"policy": "template"})
_RECALIBRATE = _GENERATE.model_copy(update={"policy": "recalibrate"})


class Tokens(Params):
    """How networks become tokens."""

    layout: cutting.Kind = Field("row", description="how they are cut: flat, tensor, row, patch, neuron")
    width: int | None = Field(None, ge=0, le=1 << 31, description="numbers in a token; 0: what suits the layout")
    tile: tuple[int, int] = Field(cutting.TILE, description="rows and columns of a patch")
    views: tuple[View, ...] = Field((), description="first written as: gauge, log_var, delta, lora_svd, svd")
    rank: int | None = Field(None, ge=1, le=1 << 20, description="of svd: components of a matrix, unless all")
    normaliser: normalise.Kind = Field("pow2", description="none, pow2, meanstd64, coord, center, token")
    policies: tuple[Rule, ...] = Field((), max_length=100, description="which tensors are made; the first rule wins")
    template: Literal["first", "mean"] = Field("first", description="of the zoo: what is not made, and a delta's base")

    @model_validator(mode="after")
    def _has_components(self) -> Self:
        if self.rank is not None and "svd" not in self.views:
            raise ValueError("a rank is of the view svd")
        if "svd" in self.views and "lora_svd" in self.views:
            raise ValueError("low rank pairs are seen by lora_svd, or their matrices by svd, not both")
        return self


def policies_of(options: Tokens, spec: TargetSpec) -> Mapping[str, Rule]:
    """The rule of every slot. InvalidInput where none would be generated.

    Without one of the user's, a tensor of one number is taken from the template, statistics of norms are recalibrated,
    and all else is generated, whatever the number of classes.
    """
    found = {slot.name: _rule(options, slot) for slot in spec.slots}
    if all(rule.policy != "generate" for rule in found.values()):
        raise InvalidInput("no tensor of the target is generated", "change the policies of its tokens")
    return found


def _rule(options: Tokens, slot: Slot) -> Rule:
    said = next((rule for rule in options.policies if rule.is_for(slot)), None)
    if said is not None:
        return said
    if slot.name.rpartition(".")[2] in _STATISTICS:
        return _RECALIBRATE
    return _TEMPLATE if slot.class_axis is None and prod(slot.shape) == 1 else _GENERATE
