"""The jobs of the part about tokens: each does what it says, on networks of the sizes that are named."""

from __future__ import annotations

from math import prod

import pytest

from tests.bench.tokens import LAYOUTS
from tests.bench.tokens_child import Job, described, do


@pytest.mark.parametrize("kind", ["tokens", "tensors", "copy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_job_takes_time(kind: str, layout: str) -> None:
    assert do(Job(kind, "tiny", layout)).seconds > 0


@pytest.mark.parametrize(("size", "numbers"), [("ResNet-18", 11_689_512), ("quarter billion", 247_557_120)])
def test_networks_are_of_the_sizes_that_are_named(size: str, numbers: int) -> None:
    assert sum(prod(slot.shape) for slot in described(size).slots) == numbers
