"""Weights as tokens and back: views, then the normaliser, then the layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from paramsmith.errors import GenerateWarning, InvalidInput, printable
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import validated

from .components import energy, of_components
from .fixed import Fixed
from .layout import Layout, check, layout_of
from .normalise import OWN, Normaliser, entry_shape, with_own, without_own
from .options import Tokens, policies_of
from .views import unviewed, viewed

_REMEMBERED = 8  # numbers of classes
_ROUNDING = 1e-6  # share of the squares of matrices that is no loss

Networks = Callable[[], Iterator[tuple[Mapping[str, Tensor], TargetSpec]]]


class Tokenizer(nn.Module):
    """Its statistics are buffers: of the normaliser, of the templates of what is not generated, of a delta's bases.

    `rules` says what is done with each tensor: those of the policy "recalibrate" come from the template, and want data.
    """

    def __init__(self, options: Tokens, spec: TargetSpec) -> None:
        super().__init__()
        self.options, self.spec = options, spec
        self.rules = policies_of(options, spec)
        self.generated = tuple(slot for slot in spec.slots if self.rules[slot.name].policy == "generate")
        kept = {s.name: s.shape for s in spec.slots if self.rules[s.name].policy in ("template", "recalibrate")}
        self._layouts: dict[TargetSpec, Layout] = {}
        self.layout(spec)  # which refuses what is too large before anything is made
        cut = self._layouts[spec].slots
        self.normaliser = Normaliser(options.normaliser, cut)
        self.template = Fixed(kept)
        self.base = Fixed({s.name: entry_shape(s) for s in cut} if "delta" in options.views else {})

    @classmethod
    def of(cls, options: Mapping[str, Any], spec: TargetSpec) -> Tokenizer:
        """The tokenizer of these options (see `Tokens`) for a target. InvalidInput for what is none, or too large."""
        return cls(validated(Tokens, options, "the tokens", "see: paramsmith generators"), spec)

    def layout(self, spec: TargetSpec) -> Layout:
        """How a target of these tensors, with any number of classes, is cut."""
        if spec in self._layouts:
            return self._layouts[spec]
        if self._layouts:
            made = self._layouts[self.spec].with_classes(_classes_of(spec, self.spec))
        else:
            names, told = [slot.name for slot in self.generated], self.options
            own = OWN if told.normaliser == "token" else 0
            seen = of_components(spec, told.rank) if "svd" in told.views else spec
            made = layout_of(seen, told.layout, told.width + own if told.width else None, names, told.tile, own)
        if len(self._layouts) < _REMEMBERED:
            self._layouts[spec] = made
        return made

    def fit(self, networks: Networks) -> None:
        """Statistics and template from the weights (B, *shape) of a zoo, batch by batch, in fp64.

        The zoo is read once, or twice where there is a template. A GenerateWarning says what of matrices a rank leaves
        out. InvalidInput for a zoo that is empty, and for a tensor, which is named, that is missing, of another shape,
        or not finite.
        """
        count = 0
        whole_energy = kept_energy = 0.0

        def whole() -> Iterator[dict[str, Tensor]]:
            nonlocal count, whole_energy, kept_energy
            for tensors, spec in networks():
                count += 1
                seen = self._seen(tensors, spec)
                if "svd" in self.options.views:
                    every, kept = energy(tensors, seen, self.generated)
                    whole_energy, kept_energy = whole_energy + every, kept_energy + kept
                yield self._less_base(seen, torch.float64)

        if self.template.shapes:
            self.template.fit(self._chosen(self._kept(tensors) for tensors, _ in networks()))
        if self.base.shapes:
            self.base.fit(self._chosen(self._base_of(tensors, spec) for tensors, spec in networks()))
        self.normaliser.fit(whole())
        if not count:
            raise InvalidInput("there are no networks to fit the tokens to", "give a zoo that has some to train on")
        if kept_energy < (1 - _ROUNDING) * whole_energy:
            share = 100 * (1 - kept_energy / whole_energy)
            told = f"{self.options.rank} components of each matrix leave out {share:.3g} % of their squares"
            warnings.warn(GenerateWarning(told), stacklevel=2)

    def tokens(self, tensors: Mapping[str, Tensor], spec: TargetSpec, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) by slot -> (B, N, T); in fp64, exact for a normaliser that subtracts a mean too.

        InvalidInput, naming the tensor, for one that is missing, of another shape, or not finite.
        """
        layout, factors = self.layout(spec), self.normaliser.factors()
        held = self._viewed(tensors, spec, dtype)
        if factors is None:
            held = {name: self.normaliser(tensor, name, dtype) for name, tensor in held.items()}
        made = layout.tokens(held, factors, dtype)
        return with_own(made, layout.places.mask.to(made.device)) if layout.own else made

    def tensors(self, tokens: Tensor, spec: TargetSpec, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """(B, N, T) -> (B, *shape) by slot, fp32: all, or those that are named.

        Those of the template are as they are there, one for all B: not to be changed in place.
        """
        layout = self.layout(spec)
        by_name = {slot.name: slot for slot in spec.slots}
        wanted = list(by_name) if names is None else list(names)
        strange = next((name for name in wanted if name not in by_name), None)
        if strange is not None:
            raise InvalidInput(f"{printable(strange)}: is no tensor of the target", "ask for one that it has")
        generated = [name for name in wanted if self.rules[name].policy == "generate"]
        if layout.own:
            tokens = _own_undone(tokens, layout, generated)
        factors = self.normaliser.factors()
        undone = None if factors is None else {name: 1.0 / factor for name, factor in factors.items()}
        cut = layout.tensors(tokens, generated, undone)
        return {
            name: self._restored(cut[name], by_name[name]) if name in cut else self._fixed(by_name[name], tokens)
            for name in wanted
        }

    def _viewed(
        self, tensors: Mapping[str, Tensor], spec: TargetSpec, dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        """What is generated, in all views."""
        return self._less_base(self._seen(tensors, spec), dtype)

    def _less_base(self, held: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        if self.base.shapes:
            return {name: (tensor.double() - self.base.get(name).double()).to(dtype) for name, tensor in held.items()}
        return held

    def _restored(self, tensor: Tensor, slot: Slot) -> Tensor:
        if self.normaliser.subtracts:
            tensor = self.normaliser.undo(tensor, slot.name)
        if self.base.shapes:
            tensor = tensor.double() + self.base.get(slot.name).double()
        return unviewed(tensor, slot, self.options.views).float()

    def _fixed(self, slot: Slot, tokens: Tensor) -> Tensor:
        """What is not generated, for every B."""
        rule = self.rules[slot.name]
        if rule.policy == "constant" and rule.value is not None:
            return torch.full((len(tokens), *slot.shape), rule.value, device=tokens.device)
        held = self.template.get(slot.name)
        if held.shape != slot.shape:
            fact = f"tensor {printable(slot.name)} is from a template of {list(held.shape)}, not {list(slot.shape)}"
            raise InvalidInput(fact, "its number of classes is fixed")
        return held.expand(len(tokens), *slot.shape)

    def _chosen(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Of a zoo, what a template is the mean of: its first network alone, or all."""
        if self.options.template == "mean":
            yield from batches
            return
        yield from ({name: tensor[:1] for name, tensor in held.items()} for held in islice(batches, 1))

    def _kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is not generated. InvalidInput names what is missing, of another shape, or not finite."""
        made: dict[str, Tensor] = {}
        for name, shape in self.template.shapes.items():
            found = tensors.get(name)
            if found is None or found.shape[1:] != shape:
                told = "is missing" if found is None else f"is {list(found.shape[1:])}, not {list(shape)}"
                raise InvalidInput(f"tensor {printable(name)} of a template {told}", "give networks that have it")
            made[name] = found
        _check_finite(made)
        return made

    def _base_of(self, tensors: Mapping[str, Tensor], spec: TargetSpec) -> dict[str, Tensor]:
        """What a delta is from, in the other views: of classes, their mean."""
        axes = {slot.name: slot.class_axis for slot in spec.slots}
        return {
            name: tensor if (axis := axes[name]) is None else tensor.double().mean(axis + 1, keepdim=True)
            for name, tensor in self._seen(tensors, spec).items()
        }

    def _seen(self, tensors: Mapping[str, Tensor], spec: TargetSpec) -> dict[str, Tensor]:
        """What is generated, checked, in the views that need no statistics."""
        self.layout(spec)  # refuses another target
        slots = [slot for slot in spec.slots if self.rules[slot.name].policy == "generate"]
        held = {slot.name: tensors[slot.name] for slot in slots if slot.name in tensors}
        check(held, slots)
        _check_finite(held)
        return viewed(held, slots, self.options.views, self.options.rank)


def _own_undone(tokens: Tensor, layout: Layout, names: Iterable[str]) -> Tensor:
    """The tokens that hold these tensors without what is each one's own; the others are not to be looked at."""
    made = torch.empty_like(tokens)
    for first, stop in {(span.start, span.stop) for span in map(layout.span, names)}:
        made[:, first:stop] = without_own(tokens[:, first:stop])
    return made


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """InvalidInput names the first tensor with a number that is not finite. Each is read once."""
    if not tensors:
        return
    ends = torch.stack([end.double() for held in tensors.values() for end in held.detach().aminmax()])
    if not bool(ends.isfinite().all()):
        name = next(name for name, held in tensors.items() if not bool(held.isfinite().all()))
        raise InvalidInput(f"tensor {printable(name)} holds values that are not finite", "leave this network out")


def _classes_of(spec: TargetSpec, own: TargetSpec) -> int:
    """The number of classes of a target. InvalidInput where it differs from one's own in more than that."""
    if spec.classes is None or own.classes is None or own.with_classes(spec.classes) != spec:
        raise InvalidInput("these tokens were made for another target", "only the number of classes may be another")
    return spec.classes
