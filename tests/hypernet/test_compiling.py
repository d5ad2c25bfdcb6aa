"""`--compile` reaches what a step of training calls, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.training.compiling import compiled, networks
from paramsmith.hypernet.zoos.index import Entry
from paramsmith.hypernet.zoos.writing import ZooWriter
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, COUNT = 4, 12
SPEC = TargetSpec(
    (Slot("weight", (3, 6), "F32", "head", 6, 0.1, 0), Slot("bias", (3,), "F32", "bias", 6, 0.0, 0)),
)
PRESETS: dict[str, dict[str, Any]] = {
    "flow": {"steps": 2},
    "pdiff": {"rank": 4, "steps": 2},
    "igpg": {"codes": 4, "chunk": 4},
    "d2nwg": {"steps": 2},
}
SLOW = ("d2nwg", "pdiff")  # seconds each


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often each compiled graph was run; what is compiled runs as it is, as there may be no compiler."""
    counts: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        number = len(counts)
        counts.append(0)

        def call(*given: Any) -> Any:
            counts[number] += 1
            return graph(*given)

        return call

    compile_as = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_as(module, backend=backend))
    torch.compiler.reset()
    yield counts
    torch.compiler.reset()


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    rng = torch.Generator().manual_seed(0)
    made = {slot.name: torch.randn(COUNT, *slot.shape, generator=rng) for slot in SPEC.slots}
    asked = [{"classes": torch.randn(3, 5, 6, generator=rng)} for _ in range(COUNT)]
    with ZooWriter(tmp_path / "zoo") as writer:
        writer.add(SPEC, made, [Entry(path="?", task=i) for i in range(COUNT)], asked)
        return Zoo.open(writer.publish())


def built(preset: str) -> Generator:
    return Generator.build(preset, spec=SPEC, condition={"classes": (3, 5, 6)}, batch=8, **PRESETS[preset])


def test_a_sampler_learns_and_draws_the_same(zoo: Zoo, graphs: list[int]) -> None:
    plain, fast = built("flow"), built("flow")
    expected = plain.fit(zoo, {"steps": STEPS}).losses
    assert not graphs
    assert fast.fit(zoo, {"steps": STEPS, "compile": True}).losses == pytest.approx(expected, rel=1e-5)
    assert sum(graphs) >= STEPS, "every step runs what was compiled"
    assert len(graphs) <= 2, "and it is compiled once, or once more for another shape"
    before = sum(graphs)
    asked = {"classes": torch.randn(3, 5, 6)}
    torch.testing.assert_close(fast.sample(asked)[0], plain.sample(asked)[0], rtol=1e-3, atol=1e-4)
    assert sum(graphs) == before, "drawing is as it is for a generator from a file"
    assert list(fast.model.state_dict()) == list(plain.model.state_dict())


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PRESETS]
)
def test_what_is_compiled_is_called(preset: str, zoo: Zoo, graphs: list[int]) -> None:
    generator = built(preset)
    assert networks(generator.model)
    generator.fit(zoo, {"steps": STEPS, "compile": True})
    assert sum(graphs) >= STEPS


def test_a_failed_training_leaves_nothing_compiled(graphs: list[int]) -> None:
    network = Double()

    def stopped() -> None:
        with compiled(network):
            network(torch.zeros(1, 2))
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stopped()
    assert graphs == [1]
    network(torch.zeros(1, 2))
    assert graphs == [1]
