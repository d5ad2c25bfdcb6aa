"""Running targets: one set of weights or many, equal results, gradients, and a module that is never touched."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.calling import Target, first_tensor
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.target import TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")


class TiedReader(nn.Module):
    """Embedding, attention, and a head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Embedding(9, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 9, bias=False)
        self.out.weight = self.look.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.block(self.look(words)) * self.scale)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(4, 5, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        return self.body(values)[0]


class Branching(nn.Linear):
    def forward(self, values: Tensor) -> Tensor:
        found = super().forward(values)
        return found if found.sum() > 0 else -found


def convolution() -> nn.Module:
    tracked = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), tracked, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (5, 4)),
    "convolution and norms": (convolution, (2, 1, 8, 8)),
    "tied reader": (TiedReader, (2, 6)),
    "lstm": (Recurrent, (2, 3, 4)),
    "branch on values": (lambda: Branching(4, 3), (2, 4)),
}
each_module = pytest.mark.parametrize("name", MODULES)


def weights_for(spec: TargetSpec, count: int | None = None) -> dict[str, Tensor]:
    """Weights, (count, *shape) or (*shape)."""
    rng, lead = torch.Generator().manual_seed(1), () if count is None else (count,)
    return {slot.name: 0.3 * torch.randn(*lead, *slot.shape, generator=rng) for slot in spec.slots}


def input_of(name: str, *lead: int) -> Tensor:
    shape, rng = (*lead, *MODULES[name][1]), torch.Generator().manual_seed(2)
    return torch.randint(9, shape, generator=rng) if name == "tied reader" else torch.randn(shape, generator=rng)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@each_module
def test_many_at_once_are_as_one_by_one(name: str, shared: bool, training: bool) -> None:
    target = Target.of(MODULES[name][0]().train(training), capture=False)
    weights, inputs = weights_for(target.spec, 3), input_of(name) if shared else input_of(name, 3)
    many = target.call_many(weights, inputs, shared=shared)
    one = [target.call({n: w[i] for n, w in weights.items()}, inputs if shared else inputs[i]) for i in range(3)]
    torch.testing.assert_close(many, torch.stack(one), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(many[0], many[1])
    with torch.no_grad():  # where torch has faster paths for attention
        torch.testing.assert_close(target.call_many(weights, inputs, shared=shared), many, rtol=1e-4, atol=1e-5)


@each_module
def test_a_call_is_what_the_module_gives_with_these_weights(name: str) -> None:
    module = MODULES[name][0]().train(name == "convolution and norms")
    target, inputs = Target.of(module, capture=False), input_of(name)
    weights = weights_for(target.spec)
    loaded = copy.deepcopy(module)
    with torch.no_grad():
        for own, parameter in loaded.named_parameters():
            parameter.copy_(weights[own])
    torch.testing.assert_close(target.call(weights, inputs), loaded(inputs))


@each_module
def test_gradients_reach_every_weight(name: str) -> None:
    target = Target.of(MODULES[name][0](), capture=False)
    weights = {n: w.requires_grad_() for n, w in weights_for(target.spec, 2).items()}
    target.call_many(weights, input_of(name), shared=True).pow(3).sum().backward()
    for own, weight in weights.items():
        if own != "0.bias" or name != "convolution and norms":  # a batch norm takes the bias before it out
            assert weight.grad is not None, own
            assert all(g.abs().sum() > 0 for g in weight.grad), own


def test_second_derivatives_pass_through_attention() -> None:
    target = Target.of(TiedReader(), capture=False)
    weights, words = weights_for(target.spec), input_of("tied reader")

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return target.call(weights, words).pow(2).mean()

    def adapted(weights: dict[str, Tensor]) -> Tensor:
        slope = torch.func.grad(loss)(weights)
        return loss({n: weights[n] - 0.1 * slope[n] for n in weights})

    found = torch.func.grad(adapted)(weights)
    assert all(torch.isfinite(g).all() for g in found.values())


@pytest.mark.parametrize("training", [True, False])
@each_module
def test_the_module_is_never_touched(name: str, training: bool) -> None:
    module = MODULES[name][0]().train(training)
    before = {n: (id(t), t.detach().clone()) for n, t in module.state_dict(keep_vars=True).items()}
    attributes = {n: set(vars(m)) for n, m in module.named_modules()}
    rng = torch.random.get_rng_state()
    target = Target.of(module, capture=False)
    weights = weights_for(target.spec, 2)
    target.call_many(weights, input_of(name), shared=True)
    target.call({n: w[0] for n, w in weights.items()}, input_of(name))
    target.in_mode(not training)
    after = module.state_dict(keep_vars=True)
    assert {n: id(t) for n, t in after.items()} == {n: i for n, (i, _) in before.items()}
    assert all(torch.equal(after[n], t) for n, (_, t) in before.items())
    assert all(m.training == training for m in module.modules())
    assert {n: set(vars(m)) for n, m in module.named_modules()} == attributes
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_what_a_module_notes_while_it_runs_is_not_in_the_users() -> None:
    class Noting(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            self.seen = values
            return super().forward(values)

    module = Noting(4, 3)
    target = Target.of(module, capture=False)
    target.call(weights_for(target.spec), torch.zeros(1, 4))
    assert not hasattr(module, "seen")


def test_buffers_that_a_forward_writes_to_begin_anew_at_each_call() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, values: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(values) * self.calls

    target = Target.of(Counting(), capture=False)
    weights = weights_for(target.spec)
    first, second = (target.call(weights, torch.ones(1, 4)) for _ in range(2))
    assert torch.equal(first, second)


def test_in_inference_a_batch_norm_uses_what_a_generated_checkpoint_holds() -> None:
    module = nn.BatchNorm1d(3)
    module(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) + 5)  # its own statistics, of other weights
    target = Target.of(module.eval(), capture=False)
    values = torch.arange(12.0).reshape(4, 3)
    fresh = nn.BatchNorm1d(3).eval()
    weights = {"weight": torch.ones(3), "bias": torch.zeros(3)}
    torch.testing.assert_close(target.call(weights, values), fresh(values))
    torch.testing.assert_close(target.in_mode(True).call(weights, values), nn.BatchNorm1d(3)(values))
    torch.testing.assert_close(target.in_mode(True).in_mode(False).call(weights, values), fresh(values))


def test_a_module_of_the_meta_device_runs() -> None:
    with torch.device("meta"):
        module = convolution()
    real, weights = Target.of(convolution(), capture=False), None
    for training in (True, False):
        target = Target.of(module.train(training), capture=False)
        weights = weights or weights_for(target.spec, 2)
        inputs = input_of("convolution and norms")
        expected = real.in_mode(training).call_many(weights, inputs, shared=True)
        torch.testing.assert_close(target.call_many(weights, inputs, shared=True), expected)


def test_a_buffer_of_the_meta_device_has_no_value() -> None:
    with torch.device("meta"):
        module = TiedReader()
    target = Target.of(module, capture=False)  # which has a spec all the same
    with pytest.raises(InvalidInput, match="scale: is a buffer without a value"):
        target.call(weights_for(target.spec), input_of("tied reader"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("weight"), "lack weight"),
        (lambda w: w.update(more=torch.ones(1)), "have more"),
    ],
)
def test_weights_of_other_names_are_refused(change: Callable[[dict[str, Tensor]], object], told: str) -> None:
    target = Target.of(nn.Linear(4, 3), capture=False)
    weights = weights_for(target.spec)
    change(weights)
    with pytest.raises(InvalidInput, match=told):
        target.call(weights, torch.ones(1, 4))


@pytest.mark.parametrize("other", [nn.Linear(4, 2), nn.Linear(4, 3, bias=False), nn.Bilinear(2, 2, 3)])
def test_the_spec_of_another_module_is_refused(other: nn.Module) -> None:
    with pytest.raises(InvalidInput, match="in the module, and"):
        Target(nn.Linear(4, 3), spec_of(other))


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = nn.Linear(4, 3)
    module.kept = module.weight * 2  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="cannot be copied"):
        Target.of(module, capture=False)


def test_an_error_of_the_module_stays_its_own() -> None:
    target = Target.of(nn.Linear(4, 3), capture=False)
    with pytest.raises(RuntimeError, match="size"):
        target.call_many(weights_for(target.spec, 2), torch.ones(1, 5), shared=True)


def test_what_is_random_differs_from_model_to_model() -> None:
    target = Target.of(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)), capture=False)
    weights = {name: w.expand(2, *w.shape) for name, w in weights_for(target.spec).items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = target.call_many(weights, torch.ones(1, 64), shared=True)
    assert not torch.equal(first, second)
    still = target.in_mode(False).call_many(weights, torch.ones(1, 64), shared=True)
    assert torch.equal(still[0], still[1])


def test_inputs_by_name() -> None:
    class Named(nn.Linear):
        def forward(self, values: Tensor, factor: Tensor | None = None) -> Tensor:
            return super().forward(values if factor is None else values * factor)

    target = Target.of(Named(4, 3), capture=False)
    weights, values, factor = weights_for(target.spec, 2), torch.ones(2, 5, 4), torch.tensor([2.0, 3.0])
    many = target.call_many(weights, values, factor=factor)
    one = target.call({n: w[1] for n, w in weights.items()}, values[1], factor=factor[1])
    torch.testing.assert_close(many[1], one)


def test_a_target_has_the_graph_of_its_example() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert Target.of(module).spec.graph is None
    assert Target.of(module, torch.zeros(1, 4), capture=False).spec.graph is None
    graph = Target.of(module, torch.zeros(1, 4)).spec.graph
    assert graph is not None
    assert [graph.nodes[i].op for i in graph.node_of] == ["aten.linear", "bias", "aten.linear", "bias"]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (torch.ones(2), 1.0),
        (type("Output", (), {"logits": torch.full((2,), 3.0), "last_hidden_state": torch.ones(2)})(), 3.0),
        ((torch.full((2,), 4.0), None), 4.0),
        ({"loss": torch.ones(2), "logits": torch.full((2,), 5.0)}, 5.0),
    ],
    ids=["tensor", "of a library", "tuple", "dict"],
)
def test_the_tensor_of_an_output(output: object, found: float) -> None:
    assert first_tensor(output)[0] == found


def test_an_output_without_a_tensor_is_refused() -> None:
    with pytest.raises(InvalidInput, match="gives dict, and no tensor"):
        first_tensor({"a": 3})
