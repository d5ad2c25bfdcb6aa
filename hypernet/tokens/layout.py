"""How a target is cut into N tokens of T numbers: a stream of its tensors, gathered with padding, and back exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.targets.target import Slot, TargetSpec

from .cutting import TILE, Kind, cut, natural_width
from .places import FEATURES, places_of
from .segments import PADDING, Cut, Segment

__all__ = ["FEATURES", "Kind", "Layout", "layout_of"]
FORMAT = 1  # of the map itself: another one, another fingerprint
# A layout is refused when it takes more than the target's own numbers, so many times over, and this; and in any case
# when there are more tokens, or more numbers in them, than a generator could ever draw at once.
_TIMES, _SLACK, MAX_TOKENS, MAX_IN_TOKENS = 64, 1 << 24, 1 << 22, 1 << 31


@dataclass(frozen=True, eq=False)
class Layout:
    """A target in tokens. `width` is T; `names` are the tensors that are cut; `layout_of` makes and checks it.

    `own`: numbers at the end of each token that are none of the target's, but its own mean and the like.
    """

    spec: TargetSpec
    kind: Kind
    width: int
    names: tuple[str, ...]
    tile: tuple[int, int] = TILE
    own: int = 0

    def __len__(self) -> int:
        """N."""
        return self.cut.count

    @cached_property
    def cut(self) -> Cut:
        """The map itself."""
        return cut(self.spec, self.kind, self.width - self.own, self.names, self.tile)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Those of the target's tensors that are cut, in its order."""
        wanted = set(self.names)
        return tuple(slot for slot in self.spec.slots if slot.name in wanted)

    @property
    def places(self) -> Places:
        """Where each token stands; `mask` (N, T) is False where it is padded."""
        if torch.empty(0).is_meta:  # a generator is being built without memory
            held = torch.empty(len(self), dtype=torch.int64)
            mask = torch.empty(len(self), self.width, dtype=torch.bool)
            return Places(torch.empty(len(self), FEATURES), held, held, mask)
        return self._places

    @cached_property
    def _places(self) -> Places:
        return places_of(self.spec.slots, self.cut, self.own)

    @cached_property
    def _segments(self) -> dict[str, list[Segment]]:
        found: dict[str, list[Segment]] = {slot.name: [] for slot in self.slots}
        for segment in self.cut.segments:
            if segment.slot != PADDING:
                found[self.spec.slots[segment.slot].name].append(segment)
        return found

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {slot.name: slot.shape for slot in self.slots}

    def with_classes(self, classes: int) -> Layout:
        """The same for another number of classes."""
        made = replace(self, spec=self.spec.with_classes(classes))
        _check(made)
        return made

    def tokens(
        self,
        tensors: Mapping[str, Tensor],
        factors: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """(B, *shape) by slot -> (B, N, T), padded with 0; each tensor times its factor, where there are some.

        InvalidInput, naming it, for a tensor that is missing or of another shape.
        """
        first, batch = self.check(tensors)
        size = self.width - self.own
        made = torch.empty(batch, len(self) * size, dtype=dtype, device=first.device)
        for segment in self.cut.segments:
            extents = [batch, *(extent for extent, _, _ in segment.axes)]
            place = made.as_strided(extents, [made.stride(0), *(t for _, _, t in segment.axes)], segment.at)
            if segment.slot == PADDING:
                place.zero_()
                continue
            name = self.spec.slots[segment.slot].name
            flat = _flat(tensors[name], batch)
            strides = [flat.stride(0), *(step for _, step, _ in segment.axes)]
            values = flat.as_strided(extents, strides, flat.storage_offset() + segment.start)
            _copied(values, place, 1.0 if factors is None else factors[name])
        cut_up = made.view(batch, len(self), size)
        return functional.pad(cut_up, (0, self.own)) if self.own else cut_up

    def tensors(
        self, tokens: Tensor, names: Iterable[str] | None = None, factors: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """(B, N, T) -> (B, *shape) by slot: all of them, or those that are named, each times its factor.

        Without factors they are views of the tokens, where they can be. InvalidInput for tokens of another layout, and
        for a name of no slot that is cut.
        """
        if tokens.dim() != 3 or tokens.shape[1:] != (len(self), self.width):
            fact = f"tokens are (B, {len(self)}, {self.width}), and there are {tuple(tokens.shape)}"
            raise InvalidInput(fact, "use the layout that they were made with")
        stream = _flat(tokens[..., : self.width - self.own], len(tokens))
        wanted = self.names if names is None else names
        return {name: self._tensor(stream, name, None if factors is None else factors[name]) for name in wanted}

    def span(self, name: str) -> slice:
        """The tokens among which the numbers of a tensor stand. InvalidInput for one that is not cut."""
        if name not in self._segments:
            raise _absent(name)
        size = self.width - self.own
        ends = [(s.at, s.at + sum((e - 1) * t for e, _, t in s.axes)) for s in self._segments[name]]
        return slice(min(first for first, _ in ends) // size, max(last for _, last in ends) // size + 1)

    def _tensor(self, stream: Tensor, name: str, factor: float | None) -> Tensor:
        shape = self._shapes.get(name)
        if shape is None:
            raise _absent(name)
        segments, batch, size = self._segments[name], len(stream), prod(shape)
        if (factor is None or _learns(stream)) and len(segments) == 1 and segments[0].is_whole(size):
            made = _seen(stream, segments[0]).reshape(batch, *shape)
            return made if factor is None else made * factor
        made = stream.new_empty(batch, size)
        for segment in segments:
            extents, steps = [e for e, _, _ in segment.axes], [s for _, s, _ in segment.axes]
            place = made.as_strided([batch, *extents], [made.stride(0), *steps], segment.start)
            _copied(_seen(stream, segment), place, 1.0 if factor is None else factor)
        return made.view(batch, *shape)

    def check(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """The first tensor, and B. InvalidInput, naming it, for a tensor that is missing or of another shape."""
        return check(tensors, self.slots)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides where a number stands: equal fingerprints, interchangeable tokens."""
        slots = [[slot.name, list(slot.shape), slot.role, slot.class_axis] for slot in self.spec.slots]
        told = [FORMAT, self.kind, self.width, list(self.tile), self.own, sorted(self.names), slots]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def check(tensors: Mapping[str, Tensor], slots: Sequence[Slot]) -> tuple[Tensor, int]:
    """The first tensor, and B. InvalidInput, naming it, for a tensor that is missing or of another shape."""
    first = tensors.get(slots[0].name, torch.empty(0))
    batch = len(first) if first.dim() else 0
    for slot in slots:
        found = tensors.get(slot.name)
        if found is None:
            raise InvalidInput(f"tensor {printable(slot.name)} is missing", "give all that the target has")
        if tuple(found.shape) != (batch, *slot.shape):
            fact = f"tensor {printable(slot.name)} is {list(found.shape)}, where {[batch, *slot.shape]} is wanted"
            raise InvalidInput(fact, "a network of another architecture has other tokens")
    return first, batch


def layout_of(
    spec: TargetSpec,
    kind: Kind = "row",
    width: int | None = None,
    names: Sequence[str] | None = None,
    tile: tuple[int, int] = TILE,
    own: int = 0,
) -> Layout:
    """The layout of a target, of all its tensors or of those that are named.

    `width`: T, with the `own` numbers; None or 0: what suits the kind. InvalidInput for names that are none of the
    target's, sizes that are none, and a layout of far more numbers than the target has.
    """
    known = [slot.name for slot in spec.slots]
    strange = next((name for name in names or () if name not in set(known)), None)
    if strange is not None:
        raise InvalidInput(f"{printable(strange)}: is no tensor of the target", "name those it has")
    wanted = set(known if names is None else names)
    chosen = tuple(name for name in known if name in wanted)
    if not chosen:
        raise InvalidInput("no tensor of the target is to be cut into tokens", "let some be generated")
    if (width is not None and width < 0) or min(tile) < 1 or own < 0:
        raise InvalidInput(f"tokens cannot be of {width} numbers in tiles of {list(tile)}", "give sizes above 0")
    asked = width or natural_width(spec, kind, chosen, tile) + own
    if asked <= own or (kind == "patch" and asked - own != prod(tile)):
        fact = f"tokens of {asked} numbers have no room for {'a tile of ' + str(list(tile)) if asked > own else 'any'}"
        raise InvalidInput(fact, "leave the width out, or make it fit")
    made = Layout(spec, kind, asked, chosen, tile, own)
    _check(made)
    return made


def _check(layout: Layout) -> None:
    """InvalidInput for a layout that no generator could draw; only sizes are looked at."""
    numbers = sum(prod(slot.shape) for slot in layout.slots)
    count, total = len(layout), len(layout) * layout.width
    if count > MAX_TOKENS or total > min(MAX_IN_TOKENS, _TIMES * numbers + _SLACK):
        fact = f"{count:,} tokens of {layout.width:,} numbers are too many for a target of {numbers:,} numbers"
        raise InvalidInput(fact, "choose a width or a kind of layout that suits it, or let fewer tensors be generated")


def _absent(name: str) -> InvalidInput:
    return InvalidInput(f"{printable(name)}: stands in no token of this layout", "ask for one that does")


def _flat(tensor: Tensor, batch: int) -> Tensor:
    """(B, ...) as rows of numbers that are neighbours in memory."""
    flat = tensor.reshape(batch, -1)
    return flat if flat.shape[1] == 1 or flat.stride(1) == 1 else flat.contiguous()


def _seen(stream: Tensor, segment: Segment) -> Tensor:
    """A segment of tokens (B, N U), as a view (B, *extents)."""
    extents, strides = [e for e, _, _ in segment.axes], [t for _, _, t in segment.axes]
    place = stream.storage_offset() + segment.at
    return stream.as_strided([len(stream), *extents], [stream.stride(0), *strides], place)


def _copied(values: Tensor, place: Tensor, factor: float) -> None:
    """Write values times a factor in one go, or in two where the type changes, or a gradient has to pass."""
    if factor == 1.0:
        place.copy_(values)
    elif values.dtype != place.dtype or _learns(values):
        place.copy_(values).mul_(factor)
    else:
        torch.mul(values, factor, out=place)


def _learns(tensor: Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()
