"""What a codec loses, by numbers and by score."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import Failed
from paramsmith.hypernet.evaluation.reconstruction import Reconstruction, check_reconstruction, reconstruction
from paramsmith.hypernet.protocols import Batch, Episode, Run
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.training.tasks import FunctionTask

pytestmark = pytest.mark.usefixtures("one_thread")


class Scaled:
    """A codec that gives every weight back as a multiple, or as what it is told."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0) -> None:
        self.factor, self.offset = factor, offset

    def encoded(self, tensors: Mapping[str, Tensor], spec: TargetSpec) -> Tensor:
        return torch.cat([tensors[slot.name].flatten(1) for slot in spec.slots], 1)[:, None]

    def restored(self, latent: Tensor, spec: TargetSpec) -> dict[str, Tensor]:
        sizes = [torch.Size(slot.shape).numel() for slot in spec.slots]
        parts = (latent[:, 0] * self.factor + self.offset).split(sizes, 1)
        return {slot.name: part.unflatten(1, slot.shape) for slot, part in zip(spec.slots, parts, strict=True)}


TARGET = Target.of(nn.Linear(3, 2), torch.zeros(1, 3))


def networks(count: int = 6) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {s.name: torch.randn(count, *s.shape, generator=rng) for s in TARGET.spec.slots}


def in_batches(held: dict[str, Tensor], size: int) -> list[tuple[dict[str, Tensor], TargetSpec]]:
    count = len(next(iter(held.values())))
    return [({n: t[i : i + size] for n, t in held.items()}, TARGET.spec) for i in range(0, count, size)]


def measure(run: Run, batch: Batch) -> Tensor:
    """Minus the distance of the outputs from those that are wanted."""
    return -(run(batch["x"]) - batch["y"]).abs().mean()


TASK = FunctionTask(lambda rng, split: episodes(networks())[0], lambda run, batch: -measure(run, batch), measure)


def episodes(held: dict[str, Tensor]) -> list[Episode]:
    """One a network, whose own outputs are what is wanted of it: its score is 0."""
    x = torch.eye(3)
    count = len(next(iter(held.values())))
    wanted = [TARGET.call({n: t[i] for n, t in held.items()}, x) for i in range(count)]
    return [Episode(TARGET, {}, query={"x": x, "y": y}) for y in wanted]


def test_a_codec_that_loses_nothing() -> None:
    held = networks()
    report = reconstruction(Scaled(), in_batches(held, 4), TASK, episodes(held))
    assert report == Reconstruction(6, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert report.lost == 0
    check_reconstruction(report, 0.0)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_errors_are_relative(size: int) -> None:
    held = networks()
    report = reconstruction(Scaled(0.75), in_batches(held, size))
    assert report.networks == 6
    assert report.error == pytest.approx(0.25)
    assert report.worst == pytest.approx(0.25)
    flat = torch.cat([held[s.name].flatten(1) for s in TARGET.spec.slots], 1).double()
    around = (flat - flat.mean(0)).square().sum()
    assert report.unexplained == pytest.approx(float(0.0625 * flat.square().sum() / around))
    assert report.before is report.after is report.lost is None
    check_reconstruction(report, 0.0)  # nobody knows what it costs


def test_the_mean_of_the_zoo_explains_nothing() -> None:
    held = {name: tensor - tensor.mean(0) for name, tensor in networks().items()}
    report = reconstruction(Scaled(0.0), in_batches(held, 4))
    assert report.unexplained == pytest.approx(1.0)
    assert report.error == 1.0


def test_networks_are_scored_on_their_own_episodes() -> None:
    held = networks()
    report = reconstruction(Scaled(offset=1.0), in_batches(held, 4), TASK, episodes(held))
    assert report.before == 0
    assert report.after == pytest.approx(-2.0)  # with inputs of one 1: the weight and the bias, each 1 too large
    assert report.lost == pytest.approx(2.0)
    with pytest.raises(Failed, match=r"loses 2 of the score \(0 before, -2 after, 6 networks\); at most 0.02"):
        check_reconstruction(report, 0.02)
    check_reconstruction(report, 2.5)
    assert report.to_json()["lost"] == report.lost


def test_the_first_networks_alone_may_have_episodes() -> None:
    held = networks()
    few = episodes(held)[:2]
    wrong = Episode(TARGET, {}, query={"x": torch.eye(3), "y": few[1].query["y"] + 1})
    report = reconstruction(Scaled(), in_batches(held, 4), TASK, [few[0], wrong])
    assert report.before == pytest.approx(-0.5)
    assert report.networks == 6


def test_numbers_that_are_not_finite_are_refused() -> None:
    report = reconstruction(Scaled(float("nan")), in_batches(networks(), 4))
    with pytest.raises(Failed, match="not finite"):
        check_reconstruction(report, 1e9)


def test_a_score_that_is_not_a_number_is_a_loss() -> None:
    with pytest.raises(Failed, match="loses nan"):
        check_reconstruction(Reconstruction(1, 0.1, 0.1, 0.1, 0.9, float("nan")), 1.0)


def test_no_networks() -> None:
    with pytest.raises(Failed, match="no networks"):
        reconstruction(Scaled(), [])


def test_a_task_that_raises_is_named() -> None:
    def broken(run: Run, batch: Batch) -> Tensor:
        raise ValueError("no such luck")

    held = networks()
    task = FunctionTask(TASK.draw, broken, broken)
    with pytest.raises(Failed, match="the task's score raised ValueError: no such luck"):
        reconstruction(Scaled(), in_batches(held, 4), task, episodes(held))
