"""The licence of a merge: the one that all its inputs state, or the one that its maker names. It is never guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from paramsmith.card import Card
from paramsmith.errors import InvalidInput, printable

OTHER = "other"
# Where the card of a merge lists the licences of its inputs, and what it calls them together.
HEADING = "Licences of the inputs"
NAME, LINK = "licences-of-the-inputs", "README.md#licences-of-the-inputs"
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_SHOWN = 20


def check_id(licence: str) -> str:
    """A licence as the Hub spells it. InvalidInput for what cannot be one."""
    found = licence.strip().lower()
    if not _ID.fullmatch(found):
        raise InvalidInput(f"{printable(licence)}: is no licence", "the hub's words: apache-2.0, mit, llama3, other")
    return found


def agreed(stated: Sequence[tuple[str, Card]], chosen: str | None = None) -> tuple[dict[str, str], tuple[str, ...]]:
    """The licence of a merge of these inputs, (name, card) each, as keys of its front matter; and warnings.

    InvalidInput, naming every input, when they differ and none is `chosen`.
    """
    warnings = [f"{printable(name)}: {card.problem}: it states no licence" for name, card in stated if _silenced(card)]
    if chosen is not None:
        licence = check_id(chosen)
        known = {card.license for _, card in stated if card.license}
        if known - {licence} and licence != OTHER:
            others = ", ".join(sorted(known - {licence}))
            warnings.append(f"the licence {licence} was chosen; inputs state {others}")
        named = {"license_name": NAME, "license_link": LINK} if licence == OTHER else {}
        return {"license": licence, **named}, tuple(warnings)
    found = {_whole(card) for _, card in stated}
    if found == {None}:
        return {}, (*warnings, "no input states a licence: neither does this merge")
    (first, *more) = sorted(found, key=str)
    if more or first is None or (first[0] == OTHER and not first[1]):
        listed = "; ".join(f"{printable(name)}: {spoken(card)}" for name, card in stated[:_SHOWN])
        rest = f"; and {len(stated) - _SHOWN} more" if len(stated) > _SHOWN else ""
        fact = f"the inputs do not state one licence: {listed}{rest}"
        raise InvalidInput(fact, "say which the result has: --license ID, or --license other")
    keys = zip(("license", "license_name", "license_link"), first, strict=True)
    return {key: value for key, value in keys if value}, tuple(warnings)


def spoken(card: Card) -> str:
    """What a card states of its licence, in a few words."""
    if card.license is None:
        return "none"
    named = card.license == OTHER and card.license_name
    return f"{card.license} ({printable(card.license_name, 80)})" if named else card.license


def _whole(card: Card) -> tuple[str, str | None, str | None] | None:
    """What makes two licences one; `other` is many, told apart by their names."""
    if card.license is None:
        return None
    other = card.license == OTHER
    return (card.license, card.license_name if other else None, card.license_link if other else None)


def _silenced(card: Card) -> bool:
    return bool(card.problem) and card.license is None
