"""What is made of a sample: a checkpoint of its own, or, with a base model, something that is used with that.

checkpoint  the tensors that are generated, as a model
head        the base, its head replaced by what is generated
delta       the base plus what is generated, differences or low rank pairs: `merge --base BASE` takes them out again
adapter     low rank pairs in PEFT's format, with or without a base to hold them against
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from paramsmith.dtypes import DType
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.target import TargetSpec

from .base import Base
from .changes import delta_changes, head_changes

if TYPE_CHECKING:
    from .job import Request, Shaping


def form_of(request: Request, spec: TargetSpec, dtype: DType | None) -> Shaping | None:
    """What makes of a sample what is asked for; None for a checkpoint of its own. InvalidInput where it cannot be."""
    _check(request, dtype)
    if request.form == "checkpoint":
        return None
    base = Base.of(os.fspath(request.base)) if request.base is not None else None
    if request.form == "adapter" or base is None:
        from .adapter import Adapter

        return Adapter.of(spec, base, request.alpha)
    from .onto import Onto

    if request.form == "delta":
        return Onto("delta", base, delta_changes(spec, base, request.alpha))
    changes = head_changes(spec, base)
    same = all(base.tensors[change.name].shape == change.shape for change in changes)
    made = Onto("head", base, changes, None if same else spec.classes)
    if not same and base.config is None:
        raise InvalidInput("the base has another number of classes, and no config.json to say so in", "name a folder")
    return made


def _check(request: Request, dtype: DType | None) -> None:
    """Options that do not go together."""
    if request.form == "checkpoint" and request.base is not None:
        raise InvalidInput("a base is given, and not what to make with it", "say --as head, delta or adapter")
    if request.form in ("head", "delta") and request.base is None:
        raise InvalidInput(f"a {request.form} is put into a model, and none is given", "add --base MODEL")
    if request.form in ("head", "delta") and dtype is not None:
        raise InvalidInput("what is put into a base is stored as it is there", "leave --dtype out")
    if request.alpha is not None:
        if request.form not in ("delta", "adapter"):
            raise InvalidInput("alpha is a factor on low rank pairs", "say --as adapter or delta, or leave it out")
        if not 0 < request.alpha < float("inf"):
            raise InvalidInput(f"an alpha of {request.alpha}", "give a number above 0")
