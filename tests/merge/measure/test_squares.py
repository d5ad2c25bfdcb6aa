"""By which way the gradients of single examples are had, and that what cannot be had is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import InvalidInput
from paramsmith.merge.measure.inputs import patches
from paramsmith.merge.measure.probe import probe
from paramsmith.merge.measure.squares import SquaredGradients, as_rows
from paramsmith.merge.task import Batch
from tests.merge.measure.nets import examples, net, task_of


def engine_of(model: nn.Module, batch: Batch) -> SquaredGradients:
    model.eval()
    engine = SquaredGradients(task_of(model, [batch]), dict(model.named_parameters()))
    probe(engine, batch)
    return engine


def squares(engine: SquaredGradients, batch: Batch, cotangent: Tensor) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(as_rows(p.detach())) for name, p in engine.parameters.items()}
    for piece in engine.squares(engine.outputs(batch), cotangent):
        if isinstance(piece.rows, Tensor):
            found[piece.name].index_add_(0, piece.rows, piece.values)
        else:
            found[piece.name][piece.rows] += piece.values
    return found


def mapped(model: nn.Module, batch: Batch, cotangent: Tensor) -> dict[str, Tensor]:
    """The plain way: vmap of the gradient through the whole model."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def term(parameters: dict[str, Tensor], x: Tensor, v: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(model, parameters, (x[None],))
        return (outputs[0] * v).sum()

    found = torch.func.vmap(torch.func.grad(term), in_dims=(None, 0, 0))(parameters, batch["x"], cotangent)
    return {name: as_rows(gradient.square().sum(0)) for name, gradient in found.items()}


# what is left to the whole model: weights used outside their module, and modules that do not keep examples apart
WHOLE = {"reused": {"inner.weight"}, "encoder": set(), "tied": set(), "pooled flat positions": set(), "mlp": set()}


@pytest.mark.parametrize("kind", ["mlp", "sequence mlp", "reused", "convolutions", "tied", "pooled flat positions"])
def test_as_vmap_of_grad(kind: str) -> None:
    model, batch = net(kind).float(), {"x": examples(kind)["x"]}
    if batch["x"].is_floating_point():
        batch = {"x": batch["x"].float()}
    engine = engine_of(model, batch)
    cotangent = torch.randn(engine.outputs(batch).values.shape, generator=torch.Generator().manual_seed(0))
    expected = mapped(model, batch, cotangent)
    for name, found in squares(engine, batch, cotangent).items():
        scale = float(expected[name].max())
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=name)
    assert engine.trust.whole == WHOLE.get(kind, set())


@pytest.mark.parametrize("kind", ["encoder", "unknown norm", "recurrent", "stubborn", "words"])
def test_what_is_left_to_the_whole_model(kind: str) -> None:
    engine = engine_of(net(kind), {"x": examples(kind)["x"]})
    assert engine.trust.whole == WHOLE.get(kind, set())
    assert {type(module).__name__ for module in engine.trust.alone} == {
        "recurrent": {"Whole"},
        "stubborn": {"Stubborn"},
    }.get(kind, set())


def test_positions_before_examples_are_seen() -> None:
    """A layer that sees (positions, examples) has no first dimension of examples, even where the two are as many."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.layer(x.transpose(0, 1))).mean(0))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Turned().double(), torch.randn(6, 3, 4).double()
    engine = engine_of(model, {"x": x})
    assert engine.trust.split == {model.layer: (False,), model.head: (True,)}
    cotangent = torch.ones(6, 2).double()
    expected = mapped(model, {"x": x}, cotangent)
    for name, found in squares(engine, {"x": x}, cotangent).items():
        torch.testing.assert_close(found, expected[name])


def test_examples_that_depend_on_each_other_are_refused() -> None:
    class Centred(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0))

    class Chancy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(functional.dropout(x, 0.5, training=True))

    for model in (Centred(5, 3), Chancy(5, 3)):
        with pytest.raises(InvalidInput, match="depend on the others in its batch, or on chance"):
            engine_of(model, {"x": torch.randn(8, 5, generator=torch.Generator().manual_seed(1))})


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (2, 4, 9, 8)),
        (lambda: nn.Conv1d(3, 6, 4, stride=3, padding=2, groups=3), (2, 3, 10)),
        (lambda: nn.Conv2d(1, 2, 1, padding="valid"), (1, 1, 2, 2)),
        (lambda: nn.Linear(3, 5), (4, 7, 3)),
    ],
)
def test_patches_are_what_a_weight_multiplies(make: object, shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, x = make().double(), torch.randn(shape).double()  # type: ignore[operator]
    found = patches(module, x)  # (rows, groups, positions, d)
    weight = module.weight.flatten(1).view(found.shape[1], -1, found.shape[3])
    made = torch.einsum("rgpd,god->rgop", found, weight).flatten(1, 2)  # (rows, outputs, positions)
    expected = module(x) if isinstance(module, nn.Linear) else module(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made.transpose(1, 2) + module.bias, expected.reshape(len(x), -1, len(module.bias)))
