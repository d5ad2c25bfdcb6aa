"""A target as JSON, and back; what comes back is checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping

from .target import TargetSpec


def spec_to_json(spec: TargetSpec) -> dict[str, object]:
    """Plain data, compact, from which `spec_from_json` makes an equal spec."""
    raise NotImplementedError


def spec_from_json(found: Mapping[str, object]) -> TargetSpec:
    """The spec; InvalidInput for what is none, or is larger than a target can be."""
    raise NotImplementedError
