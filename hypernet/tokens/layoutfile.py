"""A layout as JSON, and back; what comes back is checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard, get_args

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.targets.specfile import MAX_SLOTS, spec_from_json, spec_to_json
from paramsmith.hypernet.targets.target import TargetSpec

from .cutting import Kind
from .layout import Layout, layout_of

_FIELDS = {"kind", "width", "tile", "own", "names", "target"}
_MOST = 1 << 40  # of any size: what is too large for its target is told by `layout_of`
_HINT = "it was not written by paramsmith, or was changed"


def layout_to_json(layout: Layout) -> dict[str, object]:
    """Plain data, from which `layout_from_json` makes an equal layout; the target without graph and config."""
    told = {"kind": layout.kind, "width": layout.width, "tile": list(layout.tile), "own": layout.own}
    return {**told, "names": list(layout.names), "target": spec_to_json(TargetSpec(layout.spec.slots))}


def layout_from_json(found: Mapping[str, object]) -> Layout:
    """InvalidInput for what is no layout, and for one of far more numbers than its target has."""
    strange = next((key for key in [*found, *_FIELDS] if (key in found) != (key in _FIELDS)), None)
    if strange is not None:
        raise _wrong(f"made of {', '.join(sorted(_FIELDS))}", strange)
    kind = next((known for known in get_args(Kind) if known == found["kind"]), None)
    if kind is None:
        raise _wrong(f"of one of the kinds {', '.join(get_args(Kind))}", found["kind"])
    width, own, tile, names, target = (found[key] for key in ("width", "own", "tile", "names", "target"))
    if not _size(width) or not _size(own) or width < 1:
        raise _wrong("of a width", [width, own])
    if not isinstance(tile, list) or len(tile) != 2 or not _size(tile[0]) or not _size(tile[1]):
        raise _wrong("in tiles of [rows, columns]", tile)
    if not isinstance(names, list) or len(names) > MAX_SLOTS or not all(isinstance(name, str) for name in names):
        raise _wrong("of a list of names", type(names).__name__)
    if not isinstance(target, Mapping):
        raise _wrong("of a target", target)
    return layout_of(spec_from_json(target), kind, width, names, (tile[0], tile[1]), own)


def _size(found: object) -> TypeGuard[int]:
    return type(found) is int and 0 <= found <= _MOST


def _wrong(wanted: str, found: object) -> InvalidInput:
    return InvalidInput(f"a layout of tokens is not {wanted}: {printable(found)}", _HINT)
