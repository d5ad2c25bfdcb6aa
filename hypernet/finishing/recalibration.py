"""Running statistics of batch norms, measured again with weights that are not those they were measured with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.hypernet.targets.calling import buffer_values, skeleton
from paramsmith.hypernet.targets.describe import spec_of

from .chain import Change, Step, Weights

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def recalibrate(module: nn.Module, batches: Iterable[Inputs]) -> Step:
    """Mean and variance of what reaches each norm, over unlabelled batches: the mean of those of the batches.

    running_mean = (1/T) sum_t mean_t,  running_var = (1/T) sum_t var_t  (unbiased)

    Only norms with running statistics are in training meanwhile, so that dropout stays off; each hands on what it
    normalised by its own batch. The module is copied without its parameters and never touched. `batches` is gone
    through once a sample, and must be such that it can be: a list. InvalidInput for a module without such norms, for
    weights that are not its own, and for no batches; Failed where a statistic is not finite.
    """

    def step(weights: Weights) -> tuple[dict[str, Tensor], tuple[Change, ...]]:
        own, norms = _prepared(module)
        held = _held(own, norms, weights)  # what the norms count goes into it
        count = 0
        with torch.no_grad():
            for inputs in batches:
                count += 1
                args: tuple[Tensor, ...] = inputs if isinstance(inputs, tuple) else ()
                args = (inputs,) if isinstance(inputs, Tensor) else args
                torch.func.functional_call(own, held, args, dict(inputs) if isinstance(inputs, Mapping) else {})
        if not count:
            raise InvalidInput("there are no batches to measure the norms with", "give at least one")
        made, told = dict(weights), []
        for name in (f"{norm}.{leaf}" if norm else leaf for norm in norms for leaf in _STATISTICS):
            made[name] = held[name].detach().clone()
            if not name.endswith(_STATISTICS[-1]):
                told.append(_change(name, weights.get(name), made[name], count))
        return made, tuple(told)

    return step


def running_statistics(module: nn.Module) -> tuple[str, ...]:
    """The names of the modules that keep running statistics."""
    return tuple(name for name, each in module.named_modules() if _keeps(each))


def _prepared(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in inference, but for its norms, which begin to count, and their names."""
    own = skeleton(module).eval()
    norms = running_statistics(own)
    if not norms:
        raise InvalidInput("the target has no norms with running statistics", "leave recalibration out")
    for name in norms:
        norm = own.get_submodule(name)
        norm.train()
        norm.momentum = None  # type: ignore[assignment]  # a plain mean over batches
    return own, norms


def _held(module: nn.Module, norms: tuple[str, ...], weights: Weights) -> dict[str, Tensor]:
    """All tensors of the module: the given ones, and statistics that begin anew."""
    _check(module, weights)
    device = next(iter(weights.values())).device
    own = buffer_values(module, spec_of(module), device)
    counted = {f"{norm}.{leaf}" if norm else leaf for norm in norms for leaf in _STATISTICS}
    for name in own:
        if name in weights and name not in counted:
            own[name] = weights[name]
        own[name] = own[name].clone()  # a forward writes into it
    return {**own, **{name: weights[name] for name, _ in module.named_parameters()}}


def _keeps(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and bool(module.track_running_stats) and module.running_mean is not None


def _check(module: nn.Module, weights: Weights) -> None:
    for name, parameter in module.named_parameters():
        found = weights.get(name)
        if found is None or found.shape != parameter.shape:
            told = "is missing" if found is None else f"is {list(found.shape)}, not {list(parameter.shape)}"
            raise InvalidInput(f"tensor {printable(name)} {told}", "give the weights of the module that is measured")


def _change(name: str, before: Tensor | None, after: Tensor, count: int) -> Change:
    if not bool(torch.isfinite(after).all()):
        raise Failed(f"tensor {printable(name)}: was measured as a value that is not finite", "draw another sample")
    numbers = after.numel() if before is None else int((before.to(after) != after).sum())
    moved = "" if before is None else f", moved by up to {float((after - before.to(after)).abs().max()):.4g}"
    return Change("recalibration", name, f"measured over {count:,} batches{moved}", numbers)
