"""What the weights of networks are: hashes of them, which are copies of others, and which are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paramsmith.errors import InvalidInput

from .digest import digest_of
from .member import Member
from .zoo import Zoo, architectures

_TOGETHER = 64  # networks read at once


def digests(zoo: Zoo, members: Sequence[Member] | None = None) -> dict[str, str | None]:
    """The hash of each network, by label, from its values; None for one that is not finite."""
    chosen = zoo.members if members is None else members
    found: dict[str, str | None] = dict.fromkeys(member.label for member in chosen)
    for group in architectures(chosen):
        for start in range(0, len(group), _TOGETHER):
            found.update(_digests(zoo, group[start : start + _TOGETHER]))
    return found


def copies(found: Mapping[str, str | None]) -> list[tuple[str, ...]]:
    """The labels of networks that have the same weights, each such set in the order of the zoo."""
    same: dict[str, list[str]] = {}
    for label, digest in found.items():
        if digest is not None:
            same.setdefault(digest, []).append(label)
    return [tuple(labels) for labels in same.values() if len(labels) > 1]


def _digests(zoo: Zoo, members: Sequence[Member]) -> dict[str, str | None]:
    """Those of one architecture, read together; in halves where one of them is not finite."""
    try:
        held = zoo.reader.batch(members)
    except InvalidInput:
        if len(members) == 1:
            return {members[0].label: None}
        half = len(members) // 2
        return {**_digests(zoo, members[:half]), **_digests(zoo, members[half:])}
    return {m.label: digest_of({name: x[i] for name, x in held.items()}) for i, m in enumerate(members)}
