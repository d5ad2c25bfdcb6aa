"""Running a target with weights that are not its own: one set of them, or many side by side."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from paramsmith.errors import InvalidInput, printable

from .describe import spec_of
from .statistics import is_statistic
from .target import TargetSpec

if TYPE_CHECKING:
    from typing import Self

_OUTPUTS = ("logits", "last_hidden_state", "sample", "prediction")  # of what transformers and diffusers give
_BEYOND_VMAP = re.compile(r"vmap|[Bb]atching rule|data-dependent")


class Target:
    """A module that runs with weights by name, and what it consists of.

    The module is copied, without its parameters, in the mode that it is in; the module itself is never touched, and
    what it does to itself while running is done to the copy and forgotten. Batch norms that are trained use the
    statistics of their batch, as ever, and keep none; in inference they use those a generated checkpoint would have:
    the fill of `spec.buffers`. Dropout of a module in training draws from torch's global generator.
    """

    def __init__(self, module: nn.Module, spec: TargetSpec) -> None:
        check_matches(module, spec)
        self.spec = spec
        self._pristine = skeleton(module)
        self.module = _without_running_statistics(copy.deepcopy(self._pristine))
        self._buffers: dict[torch.device, dict[str, Tensor]] = {}
        self._one_by_one = False
        # of norms: a network of a zoo has its own; while training, norms keep none
        self._kept = {name for name, _ in self.module.named_buffers() if is_statistic(name)}
        self._let = {buffer.name for buffer in spec.buffers if is_statistic(buffer.name)}

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *example_inputs: Tensor,
        capture: bool = True,
        classes: int | None = None,
        **keywords: Tensor,
    ) -> Self:
        """A target with the spec of the module, and its graph where an input is given to follow through it.

        `classes` as in `describe.spec_of`. InvalidInput for modules that no weights can be generated for.
        """
        made = cls(module, spec_of(module, classes))
        inputs: tuple[Tensor, ...] | Mapping[str, Tensor] = keywords or example_inputs
        return made.captured(inputs) if capture and inputs else made

    @property
    def given(self) -> nn.Module:
        """The module as it was given, its parameters on the meta device: not to be changed."""
        return self._pristine

    def captured(self, inputs: tuple[Tensor, ...] | Mapping[str, Tensor]) -> Self:
        """The same target, its spec with the graph of what these inputs go through."""
        from .capture import capture

        return self.described(replace(self.spec, graph=capture(self.module, inputs, self.spec)))

    def described(self, spec: TargetSpec) -> Self:
        """The same target with another spec of the same tensors."""
        check_matches(self.module, spec)
        other = copy.copy(self)
        other.spec, other._buffers = spec, {}
        return other

    def in_mode(self, training: bool) -> Self:
        """The same target in training or in inference."""
        return type(self)(copy.deepcopy(self._pristine).train(training), self.spec)

    def call(self, weights: Mapping[str, Tensor], *inputs: Tensor, **keywords: Tensor) -> Tensor:
        """Outputs with these weights, by name as in the spec; running statistics may be among them, and are used.

        Of what a model of transformers or diffusers gives, the logits, or the last hidden state.
        """
        weights = self._checked(weights)
        device = next(iter(weights.values())).device
        with plain_attention(device):
            return first_tensor(
                torch.func.functional_call(self.module, {**self._own(device), **weights}, inputs, keywords)
            )

    def call_many(
        self, weights: Mapping[str, Tensor], *inputs: Tensor, shared: bool = False, **keywords: Tensor
    ) -> Tensor:
        """Outputs (B, ...) with weights (B, *shape) and inputs (B, ...), or one input for all when `shared`.

        One vmapped call, equal to B of `call` up to rounding; B calls where torch cannot vmap the module (an LSTM, a
        branch on values). What is random in it differs from model to model.
        """
        weights = self._checked(weights)
        device = next(iter(weights.values())).device
        own = self._own(device)

        def run(weights: dict[str, Tensor], inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> Tensor:
            return first_tensor(torch.func.functional_call(self.module, {**own, **weights}, inputs, keywords))

        over = None if shared else 0
        together = torch.vmap(run, in_dims=(0, over, over), randomness="different")
        if not self._one_by_one:
            try:
                with plain_attention(device):
                    return together(dict(weights), inputs, keywords)
            except RuntimeError as problem:
                if not _BEYOND_VMAP.search(str(problem)):
                    raise
                self._one_by_one = True
        return self._looped(weights, inputs, keywords, shared)

    def _looped(
        self,
        weights: Mapping[str, Tensor],
        inputs: tuple[Tensor, ...],
        keywords: Mapping[str, Tensor],
        shared: bool,
    ) -> Tensor:
        outputs = []
        for i in range(len(next(iter(weights.values())))):
            own = {name: stacked[i] for name, stacked in weights.items()}
            mine = inputs if shared else tuple(stacked[i] for stacked in inputs)
            named = keywords if shared else {name: stacked[i] for name, stacked in keywords.items()}
            outputs.append(self.call(own, *mine, **named))
        return torch.stack(outputs)

    def _checked(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights, with those running statistics alone that the norms use. InvalidInput where they do not fit."""
        if len(weights) == len(self.spec.slots) and all(slot.name in weights for slot in self.spec.slots):
            return weights
        known = {slot.name for slot in self.spec.slots}
        lacking, strange = sorted(known - set(weights)), sorted(set(weights) - known - self._let)
        if not lacking and not strange:
            return {name: value for name, value in weights.items() if name in known or name in self._kept}
        told = f"lack {printable(lacking[0])}" if lacking else f"have {printable(strange[0])}, which it has not"
        raise InvalidInput(f"the weights for the target {told}", "give each tensor of its spec once, by its first name")

    def _own(self, device: torch.device) -> dict[str, Tensor]:
        """The buffers, for one call. InvalidInput for one without a value."""
        if device not in self._buffers:
            self._buffers[device] = buffer_values(self.module, self.spec, device)
        return {name: value.clone() for name, value in self._buffers[device].items()}  # a forward may write into them


@contextmanager
def plain_attention(device: torch.device) -> Iterator[None]:
    """Attention in ordinary operations: on the CPU the fused ones know neither `vmap` nor second derivatives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def skeleton(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters are on the meta device: no memory, and nothing shared with the original.

    InvalidInput for a module that Python cannot copy.
    """
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in module.parameters()
    }
    try:
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, copy.Error) as problem:
        told = printable(f"{type(problem).__name__}: {problem}".partition("\n")[0], 200)
        fact = f"a module of type {type(module).__name__} cannot be copied: {told}"
        raise InvalidInput(fact, "keep in it only parameters, buffers, modules and plain data") from problem


def check_matches(module: nn.Module, spec: TargetSpec) -> None:
    """InvalidInput where the parameters of a module are not those of the spec."""
    own = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    told = {slot.name: slot.shape for slot in spec.slots}
    for name in sorted({*own, *told}):
        if own.get(name) != told.get(name):
            sides = [f"of shape {list(side[name])}" if name in side else "missing" for side in (own, told)]
            fact = f"{printable(name)}: is {sides[0]} in the module, and {sides[1]} in the spec"
            raise InvalidInput(fact, "make the spec from this module")


def buffer_values(module: nn.Module, spec: TargetSpec, device: torch.device) -> dict[str, Tensor]:
    """The buffers of a module, those with a fill in the spec being filled with it.

    InvalidInput for one that has neither a fill nor, the module being on the meta device, a value.
    """
    fills = {buffer.name: buffer.fill for buffer in spec.buffers}
    made: dict[str, Tensor] = {}
    for name, value in module.named_buffers(remove_duplicate=False):
        fill = fills.get(name)
        if fill is not None:
            made[name] = torch.full(tuple(value.shape), fill, dtype=value.dtype, device=device)
        elif value.is_meta:
            fact = f"{printable(name)}: is a buffer without a value, as the module is on the meta device"
            raise InvalidInput(fact, "build the module on the cpu to run it")
        else:
            made[name] = value.to(device)
    return made


def first_tensor(output: object) -> Tensor:
    """The tensor that a model gives: itself, or what libraries call the logits or the state. InvalidInput without."""
    if isinstance(output, Tensor):
        return output
    known = output if isinstance(output, Mapping) else {name: getattr(output, name, None) for name in _OUTPUTS}
    named = (known.get(name) for name in _OUTPUTS)
    rest = output if isinstance(output, tuple | list) else ()
    found = next((value for value in (*named, *rest) if isinstance(value, Tensor)), None)
    if found is None:
        fact = f"the target gives {type(output).__name__}, and no tensor"
        raise InvalidInput(fact, "let its forward return the tensor that the loss is for")
    return found


def _without_running_statistics(module: nn.Module) -> nn.Module:
    """Batch and instance norms that keep no statistics while training, which `vmap` could not follow."""
    for norm in module.modules():
        if isinstance(norm, _NormBase) and norm.training:
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return module
