"""A sampler asked for many things at once: drawn side by side, each with the bytes that it has alone."""

from __future__ import annotations

import pytest
import torch

from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.writing.conditions import one_of
from paramsmith.hypernet.writing.samples import sample_seed, state_dicts

pytestmark = pytest.mark.usefixtures("one_thread")

MANY, STEPS = 21, 3
SPEC = TargetSpec((Slot("weight", (3, 6), "F32", "head", 6, 0.1, 0), Slot("bias", (3,), "F32", "bias", 6, 0.0, 0)))
ASKED = {"classes": torch.randn(MANY, 3, 5, 6, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def generator() -> Generator:
    made = Generator.build("flow", spec=SPEC, condition={"classes": (3, 5, 6)}, steps=STEPS)
    rng = torch.Generator().manual_seed(1)
    for parameter in made.model.prior.parameters():  # none is 0, so that all that is asked for counts
        parameter.data.normal_(std=0.1, generator=rng)
    return made


@pytest.mark.parametrize("number", [0, 7, 15, 16, 20])
def test_each_is_as_it_is_alone(number: int, generator: Generator) -> None:
    made = generator.sample(ASKED, seed=2)
    alone = state_dicts(generator.model, SPEC, one_of(ASKED, number), [sample_seed(2, number)], None, number)[0]
    assert all(torch.equal(made[number][name], values) for name, values in alone.items())
    others = [other for i, other in enumerate(made) if i != number]
    assert not any(torch.equal(other["weight"], alone["weight"]) for other in others)


def test_they_are_drawn_side_by_side(generator: Generator) -> None:
    denoiser = generator.model.prior.denoiser
    counted: list[int] = []
    handle = denoiser.register_forward_hook(lambda module, given, found: counted.append(len(found)))
    assert len(generator.sample(ASKED)) == MANY
    handle.remove()
    assert counted == [16] * STEPS * 2, "21 in two batches of 16, and not 21 batches"
