"""Every fault of the table in faults.py ends as it must, and leaves what it must."""

from __future__ import annotations

import pytest

from tests.hub.faults import PULL, PUSH, TRANSPORTS, Fault, pull, push


def pairs(cases: list[Fault]) -> list[object]:
    """Every fault by the plain transport; the others take minutes."""
    return [
        pytest.param(
            case, t, id=f"{case.name}-{t}", marks=[] if t == "basic" or case.only == (t,) else pytest.mark.slow
        )
        for case in cases
        for t in TRANSPORTS
        if t in case.only
    ]


@pytest.mark.parametrize(("case", "transport"), pairs(PUSH))
def test_push(case: Fault, transport: str) -> None:
    assert push(case, transport) == case.outcome


@pytest.mark.parametrize(("case", "transport"), pairs(PULL))
def test_pull(case: Fault, transport: str) -> None:
    assert pull(case, transport) == case.outcome
