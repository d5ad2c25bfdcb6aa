"""What the weights of networks are: hashes of them, which are copies of others, and which are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paramsmith.errors import InvalidInput

from .digest import digest_of
from .member import Member
from .zoo import Zoo, architectures

_TOGETHER = 64  # networks read at once
DIGITS, _KEPT = 16, 4096  # of a hash that is kept, and hashes


def digests(zoo: Zoo, members: Sequence[Member] | None = None) -> dict[str, str | None]:
    """The hash of each network, by label, from its values; None for one that is not finite.

    Those that were found before are not read again.
    """
    chosen = zoo.members if members is None else members
    for group in architectures([member for member in chosen if member.label not in zoo.hashes]):
        for start in range(0, len(group), _TOGETHER):
            zoo.hashes.update(_digests(zoo, group[start : start + _TOGETHER]))
    return {member.label: zoo.hashes[member.label] for member in chosen}


def learned_from(source: object) -> str | None:
    """What is kept of the networks of a zoo that a generator learned from; None for anything but a zoo.

    It is the first 16 digits of each hash, the 4,096 least of them: of fewer networks these are all, and of more a
    sample that gives away who trained on what was held out.
    """
    if not isinstance(source, Zoo):
        return None
    found = {digest[:DIGITS] for digest in digests(source, source.of("train")).values() if digest is not None}
    return " ".join(sorted(found)[:_KEPT])


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
