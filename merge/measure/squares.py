"""The squared gradient of every example, summed over a batch, for all parameters, after one ordinary backward pass.

The backward pass goes through the whole batch and stops at the results of modules; what each example's gradient is
with respect to their weights follows module by module (uses.py), or by running a module again (replay.py), the whole
model at worst. Which of these is right is found out with the first examples (probe.py), not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from paramsmith.errors import InvalidInput
from paramsmith.merge.task import Batch, Task, Whole, examples_in
from paramsmith.userfile import call_user

from .calls import Call, owners, recorded
from .replay import Replay
from .uses import Use, summed_squares, tabled, uses_of


@dataclass(frozen=True)
class Outputs:
    """What the model made of a batch, and how."""

    batch: Batch
    values: Tensor
    calls: Mapping[nn.Module, Sequence[Call]]
    examples: int


@dataclass(frozen=True)
class Piece:
    """Σ_b (J_bᵀ v_b)² at some rows of a parameter seen as (rows, columns); what comes for the same rows adds up.

    `size` tells how large the terms are that the gradients are sums of; None where nobody knows.
    """

    name: str
    rows: slice | Tensor
    values: Tensor
    size: Callable[[], float] | None


@dataclass
class Trust:
    """What was found out about the modules of a model."""

    # for each tensor among a module's arguments, whether its rows belong to the examples; or they share it
    split: dict[nn.Module, tuple[bool, ...]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)  # parameters that only the whole model gives the gradient of
    alone: set[nn.Module] = field(default_factory=set)  # what vmap cannot run
    widens: bool = True  # whether an embedding that examples share may be given to each of them


@dataclass
class _Plan:
    direct: dict[str, list[tuple[Call, str]]] = field(default_factory=dict)
    again: dict[nn.Module, dict[str, str]] = field(default_factory=dict)  # {module: {its name: the parameter}}
    whole: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)  # in no module that was called


class SquaredGradients:
    """Of a task's model, for parameters given by name. They must require gradients, and the model be in eval mode."""

    def __init__(self, task: Task, parameters: Mapping[str, nn.Parameter]) -> None:
        self.task, self.parameters, self.trust = task, dict(parameters), Trust()
        found = owners(task.model, list(self.parameters.values()))
        self._owners = dict(zip(self.parameters, found, strict=True))
        self.modules = list({id(m): m for held in found for m, _ in held}.values())
        self._whole = Whole(task)
        by_identity = {id(parameter): name for name, parameter in self._whole.named_parameters()}
        self._names = {name: by_identity[id(parameter)] for name, parameter in self.parameters.items()}

    def outputs(self, batch: Batch) -> Outputs:
        """The model's outputs for a batch."""
        examples = examples_in(batch, 0)
        with recorded(self.modules, lambda module, result: self._wider(module, result, examples)) as calls:
            values = task_outputs(self.task, batch, examples)
        return Outputs(batch, values, calls, examples)

    def squares(self, outputs: Outputs, cotangent: Tensor) -> Iterator[Piece]:
        """Σ_b (J_bᵀ v_b)², J_b the Jacobian of an example's outputs, v_b its row of `cotangent`, piece by piece."""
        if not outputs.values.requires_grad:
            return
        plan = self._plan(outputs)
        gradients, unseen = self._pulled(outputs, plan, cotangent)
        for name, calls in plan.direct.items():
            yield from self._direct(name, calls, gradients, outputs.examples)
        for module, names in plan.again.items():
            call = outputs.calls[module][0]
            found = gradients[id(call)]
            if any(g is not None for g in found):
                yield from self._again(Replay.of(call, self.trust.split[module], found, outputs.examples), names)
        whole = [*plan.whole, *unseen]
        if whole:
            n = outputs.examples
            split = (True,) * len(outputs.batch)
            replay = Replay(self._whole, (dict(outputs.batch),), {}, split, (0,), (cotangent,), n)
            yield from self._again(replay, {self._names[name]: name for name in whole})

    def alone(self, batch: Batch, cotangent: Tensor, name: str) -> Tensor | None:
        """The gradient of one example with respect to one parameter, by itself; None when that plays no part."""
        values = task_outputs(self.task, batch, 1)
        if not values.requires_grad:
            return None
        return torch.autograd.grad(values, self.parameters[name], cotangent, allow_unused=True)[0]

    def distrust_vmap(self) -> None:
        """Run the whole model for one example after another from now on."""
        self.trust.alone.add(self._whole)

    def _plan(self, outputs: Outputs) -> _Plan:
        plan = _Plan()
        for name, held in self._owners.items():
            calls = [(call, attribute) for m, attribute in held for call in outputs.calls.get(m, ())]
            # a module with a rule may share its weight with the one it belongs to, which does not use it itself
            calls = [(call, attribute) for call, attribute in calls if tabled(call.module)] or calls
            first = calls[0][0] if calls else None
            if name in self.trust.whole:
                plan.whole.append(name)
            elif first is None:
                plan.unseen.append(name)
            elif all(self._has_rule(call, outputs.examples) for call, _ in calls):
                plan.direct[name] = calls
            elif len(calls) == 1 and self._is_separable(first, outputs.examples):
                plan.again.setdefault(first.module, {})[calls[0][1]] = name
            else:
                plan.whole.append(name)
        return plan

    def _has_rule(self, call: Call, examples: int) -> bool:
        if not tabled(call.module) or not call.untouched() or len(call.tensors) != 1 or len(call.edges) > 1:
            return False
        split = self.trust.split.get(call.module)
        shared = split == (False,) and self.trust.widens and type(call.module) is nn.Embedding
        lengths = [shape[0] for shape in call.shapes] + ([] if shared else [len(call.tensors[0])])
        return (shared or split == (True,)) and all(length % examples == 0 for length in lengths)

    def _is_separable(self, call: Call, examples: int) -> bool:
        split = self.trust.split.get(call.module, ())
        if not call.untouched() or not any(split) or len(split) != len(call.tensors):
            return False
        lengths = [len(t) for t, own in zip(call.tensors, split, strict=True) if own]
        lengths += [shape[0] if shape else 1 for shape in call.shapes]
        return all(length % examples == 0 for length in lengths)

    def _wider(self, module: nn.Module, result: object, examples: int) -> object:
        """An embedding that the examples share, once for each of them, so that each has a gradient of its own."""
        shared = type(module) is nn.Embedding and self.trust.split.get(module) == (False,) and self.trust.widens
        if not shared or examples == 1 or not isinstance(result, Tensor):
            return None
        return result.expand(examples, *(result.shape[1:] if len(result) == 1 else result.shape))

    def _pulled(
        self, outputs: Outputs, plan: _Plan, cotangent: Tensor
    ) -> tuple[dict[int, list[Tensor | None]], list[str]]:
        """{call: gradients of its results}, and the parameters that play a part though no module has them."""
        calls = [call for held in plan.direct.values() for call, _ in held]
        calls = list({id(c): c for c in [*calls, *(outputs.calls[module][0] for module in plan.again)]}.values())
        wanted: list[Tensor | GradientEdge] = [edge for call in calls for edge in call.edges]
        wanted += [self.parameters[name] for name in plan.unseen]
        if not wanted:
            return {}, []
        how = {"retain_graph": True, "allow_unused": True}
        found: Iterator[Tensor | None] = iter(torch.autograd.grad(outputs.values, wanted, cotangent, **how))  # type: ignore[arg-type]
        gradients = {id(call): [next(found) for _ in call.edges] for call in calls}
        return gradients, [name for name, gradient in zip(plan.unseen, found, strict=True) if gradient is not None]

    def _direct(
        self,
        name: str,
        calls: Sequence[tuple[Call, str]],
        gradients: Mapping[int, Sequence[Tensor | None]],
        examples: int,
    ) -> Iterator[Piece]:
        uses: list[Use] = []
        for call, attribute in calls:
            gradient = next(iter(gradients[id(call)]), None)
            if gradient is not None:
                uses.append(uses_of(call, gradient, examples)[attribute])
        if uses:
            whole = as_rows(self.parameters[name])
            for rows, values in summed_squares(uses, examples, len(whole), whole.shape[1], whole.device):
                yield Piece(name, rows, values, lambda: max(use.size() for use in uses))

    def _again(self, replay: Replay, names: Mapping[str, str]) -> Iterator[Piece]:
        replay.maps = replay.module not in self.trust.alone
        size = None if replay.module is self._whole else replay.size
        for squares in replay.squares({local: self.parameters[name] for local, name in names.items()}):
            for local, values in squares.items():
                yield Piece(names[local], slice(None), as_rows(values), size)
        if not replay.maps:
            self.trust.alone.add(replay.module)


def as_rows(tensor: Tensor) -> Tensor:
    """A parameter as (rows, columns)."""
    return tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)


def task_outputs(task: Task, batch: Batch, examples: int) -> Tensor:
    """The outputs of the task's model, with a graph. InvalidInput when they are not one row an example."""
    with torch.enable_grad():
        values = call_user(task.outputs, "the task's outputs", task.model, batch)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        fact = f"the task's outputs are {type(values).__name__}, not a tensor of floating-point numbers"
        raise InvalidInput(fact, "give the logits, or the predictions")
    if not values.ndim or len(values) != examples:
        fact = f"the task's outputs have the shape {list(values.shape)} for {examples} examples"
        raise InvalidInput(fact, "one row an example, in the order of the batch")
    return values
