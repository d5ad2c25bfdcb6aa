"""Steps after generation: each is held to what it says it changed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.finishing.chain import Change, Envelope, finish, finite, floored, within
from paramsmith.hypernet.finishing.recalibration import recalibrate, running_statistics

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)]
    return nn.Sequential(*layers)


def batches(count: int = 3, size: int = 16) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(size, 1, 6, 6, generator=rng) * 2 + 1 for _ in range(count)]


def test_the_chain_runs_in_order_and_tells_all() -> None:
    weights = {"n.running_var": torch.tensor([-1.0, 0.5]), "w": torch.ones(4)}
    kept = {name: values.clone() for name, values in weights.items()}
    envelope = Envelope({"w": (0.5, 1.0)})
    made, told = finish(weights, finite(), floored(0.01), within(envelope, slack=0.0, otherwise="scale"))
    assert made["n.running_var"].tolist() == pytest.approx([0.01, 0.5])
    assert float(made["w"].norm()) == pytest.approx(1.0)
    assert [(change.step, change.name, change.count) for change in told] == [
        ("floor", "n.running_var", 1),
        ("envelope", "w", 4),
    ]
    assert all(torch.equal(weights[name], values) for name, values in kept.items())
    assert finish(weights) == (weights, ())


def test_not_finite() -> None:
    with pytest.raises(Failed, match="tensor w: 1 of its 2 values"):
        finish({"w": torch.tensor([math.inf, 0.0])}, finite())


class TestEnvelope:
    def test_of_a_zoo(self) -> None:
        found = Envelope.of({"w": torch.full((4,), size), "n": torch.tensor(3)} for size in (1.0, 3.0, 2.0))
        assert found.norms == {"w": (2.0, 6.0)}
        with pytest.raises(InvalidInput):
            Envelope.of([])

    @pytest.mark.parametrize(("size", "outside"), [(0.7, True), (0.8, False), (3.7, False), (3.8, True)])
    def test_slack(self, size: float, outside: bool) -> None:
        envelope = Envelope.of({"w": torch.full((4,), size)} for size in (1.0, 3.0))
        weights = {"w": torch.full((4,), size), "unknown": torch.full((4,), 1e9)}
        made, told = finish(weights, within(envelope))
        assert bool(told) == outside
        assert made["w"] is weights["w"]
        assert all(change.count == 0 for change in told)
        if outside:
            with pytest.raises(Failed, match="tensor w: norm"):
                finish(weights, within(envelope, otherwise="fail"))

    def test_zeros_stay(self) -> None:
        made, told = finish({"w": torch.zeros(4)}, within(Envelope({"w": (1.0, 2.0)}), otherwise="scale"))
        assert not made["w"].any()
        assert [change.count for change in told] == [0]


class TestRecalibration:
    def test_is_what_torch_does_to_the_module_itself(self) -> None:
        module = net()
        module[1].running_mean.fill_(5.0)
        weights = {name: values.clone() for name, values in module.state_dict().items()}
        kept = {name: values.clone() for name, values in module.state_dict().items()}
        made, told = finish(weights, recalibrate(module, batches()))
        expected = copy.deepcopy(module).eval()
        for place in (1, 5):
            expected[place].reset_running_stats()
            expected[place].momentum = None
            expected[place].train()
        with torch.no_grad():
            for x in batches():
                expected(x)
        for name, values in expected.state_dict().items():
            assert torch.equal(made[name], values), name
        assert all(torch.equal(values, kept[name]) for name, values in module.state_dict().items())
        assert all(torch.equal(values, kept[name]) for name, values in weights.items())
        assert module.training
        changed = {name for name in made if not torch.equal(made[name], kept[name])}
        assert {change.name for change in told} | {"1.num_batches_tracked", "5.num_batches_tracked"} == changed
        assert "moved by up to" in told[0].told

    def test_one_batch_by_hand(self) -> None:
        module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
        weights = {
            "0.weight": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
            "1.weight": torch.ones(2),
            "1.bias": torch.zeros(2),
        }
        x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        made, _ = finish(weights, recalibrate(module, [x]))
        assert made["1.running_mean"].tolist() == [1.0, 4.0]
        assert made["1.running_var"].tolist() == [2.0, 8.0]
        assert made["1.num_batches_tracked"] == 1

    def test_a_module_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            module = net()
        weights = net().state_dict()
        made, _ = finish(weights, recalibrate(module, batches()))
        same, _ = finish(weights, recalibrate(net(), batches()))
        assert all(torch.equal(values, same[name]) for name, values in made.items())

    def test_named_inputs(self) -> None:
        module = nn.BatchNorm1d(2)
        weights = {"weight": torch.ones(2), "bias": torch.zeros(2)}
        x = batches(1)[0].reshape(-1, 2)
        made, _ = finish(weights, recalibrate(module, [{"input": x}]))
        same, _ = finish(weights, recalibrate(module, [(x,)]))
        assert torch.equal(made["running_mean"], same["running_mean"])
        assert running_statistics(module) == ("",)

    def test_refused(self) -> None:
        weights = net().state_dict()
        with pytest.raises(InvalidInput, match="no batches"):
            finish(weights, recalibrate(net(), []))
        with pytest.raises(InvalidInput, match="no norms"):
            finish({"weight": torch.ones(1, 1), "bias": torch.ones(1)}, recalibrate(nn.Linear(1, 1), batches()))
        with pytest.raises(InvalidInput, match=r"0\.weight is missing"):
            finish({}, recalibrate(net(), batches()))
        with pytest.raises(Failed, match="not finite"):
            finish(weights, recalibrate(net(), [torch.full((2, 1, 6, 6), math.nan)]))


def test_a_change_is_plain() -> None:
    assert Change("floor", "a", "b").count == 0
