"""RegMean++: against the recursion written out, and finished by the merge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput
from paramsmith.merge import merge
from paramsmith.merge.measure import Report, measure_gram, measure_sequential_grams
from paramsmith.merge.measure.regmean_plusplus import _layer
from paramsmith.merge.task import ModelTask
from paramsmith.statistics import Statistics
from tests.merge.folders import leftovers
from tests.merge.measure.nets import call, cut, saved, task_of

OFF = 0.8


class Block(nn.Module):
    """Two layers, the second of which sees what the first of the same model makes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(torch.tanh(self.up(x)) * self.gate(x)))


class Network(nn.Module):
    """A stem, numbered blocks, a head; numbered otherwise than they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.blocks, self.stem = nn.Linear(6, 3), nn.ModuleList([Block(), Block()]), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def network(seed: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Network().double()
        with torch.no_grad():
            for block in made.blocks:
                block.norm.running_mean.normal_()
                block.norm.running_var.uniform_(0.5, 2)
                block.norm.weight.uniform_(0.5, 2)
    return made.eval()


def stored(model: nn.Module, file: Path) -> Checkpoint:
    """With the buffers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().clone() for name, t in model.state_dict().items()}, file)
    return Checkpoint.open(file)


def inputs(seed: int, count: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).double() * (seed + 1)


def solved(weights: list[Tensor], grams: list[Tensor], share: list[float]) -> Tensor:
    shrunk = [s * (OFF * g + (1 - OFF) * torch.diag(g.diagonal())) for g, s in zip(grams, share, strict=True)]
    return sum(w @ g for w, g in zip(weights, shrunk, strict=True)) @ torch.linalg.inv(sum(shrunk))  # type: ignore[call-overload]


@torch.no_grad()
def by_hand(models: list[Network], data: list[Tensor], share: list[float]) -> tuple[Network, list[dict[str, Tensor]]]:
    """The merge, and the Grams of every model: layers before are merged, those within a block are the model's own."""
    merged = network(99)
    states = [model.state_dict() for model in models]
    total = sum(share)
    merged.load_state_dict(
        {name: sum(s * st[name] for s, st in zip(share, states, strict=True)) / total for name in states[0]}
    )
    grams: list[dict[str, Tensor]] = [{} for _ in models]
    hidden = list(data)
    for stage in ("stem", "blocks.0", "blocks.1", "head"):
        for model, x, found in zip(models, hidden, grams, strict=True):
            for name, module in model.get_submodule(stage).named_modules():
                if isinstance(module, nn.Linear):
                    key = f"{stage}.{name}.weight" if name else f"{stage}.weight"
                    module.register_forward_pre_hook(
                        lambda _, given, found=found, key=key: found.update(
                            {key: given[0].T @ given[0] / len(given[0])}
                        )
                    )
            model.get_submodule(stage)(x)
        for name in [key for key in grams[0] if key.startswith(stage)]:
            weights = [state[name] for state in states]
            merged.get_parameter(name).copy_(solved(weights, [g[name].float().double() for g in grams], share))
        hidden = [merged.get_submodule(stage)(x) for x in hidden]
    return merged, grams


def test_the_recursion_and_the_merge(tmp_path: Path) -> None:
    """Grams to float32, the merged weights to 1e-9: they are solved from the same Grams."""
    data, share = [inputs(0, 40), inputs(1, 30), inputs(2, 50)], [1.0, 2.0, 0.5]
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    checkpoints = [stored(network(n), path) for n, path in enumerate(paths)]
    models = [network(n) for n in range(3)]
    tasks = [task_of(model, cut({"x": x}, 16)) for model, x in zip(models, data, strict=True)]
    outputs = [tmp_path / f"gram{n}.safetensors" for n in range(3)]
    told: list[tuple[int, int]] = []
    reports = measure_sequential_grams(
        tasks, checkpoints, outputs, weight=share, off_diagonal=OFF, progress=lambda d, t: told.append((d, t))
    )
    assert [report.examples for report in reports] == [40, 30, 50]
    assert reports[0] == Report(outputs[0], "gram", 40, reports[0].seconds, ())
    assert told == [(n, 4) for n in range(1, 5)]
    expected, grams = by_hand([network(n) for n in range(3)], data, share)
    for checkpoint, out, gram in zip(checkpoints, outputs, grams, strict=True):
        with Statistics.open(out, "gram") as found:
            found.check_model(checkpoint)
            assert found.about.estimator == "sequential"
            assert set(found.names) == set(gram)
            assert found.info("blocks.1.gate.weight") is found.tensors["blocks.1.up.weight"]
        for name, values in load_file(out).items():
            torch.testing.assert_close(values.double(), gram[name], rtol=1e-6, atol=1e-6)
    merge(paths, tmp_path / "merged.safetensors", method="regmean", statistics=outputs, off_diagonal=OFF, weight=share)
    merged = load_file(tmp_path / "merged.safetensors")
    for name, values in expected.state_dict().items():
        if values.is_floating_point():
            torch.testing.assert_close(merged[name], values, rtol=1e-9, atol=1e-9, msg=name)
    for n, model in enumerate(models):  # put back
        for name, values in network(n).state_dict().items():
            assert torch.equal(model.state_dict()[name], values)
        assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_the_first_layer_is_that_of_regmean(tmp_path: Path) -> None:
    tasks = [task_of(network(n), cut({"x": inputs(n, 20)}, 8)) for n in range(2)]
    checkpoints = [saved(network(n), tmp_path / str(n)) for n in range(2)]
    outputs = [tmp_path / f"gram{n}.safetensors" for n in range(2)]
    measure_sequential_grams(tasks, checkpoints, outputs)
    measure_gram(tasks[0], checkpoints[0], tmp_path / "plain.safetensors")
    plain, found = load_file(tmp_path / "plain.safetensors"), load_file(outputs[0])
    assert torch.equal(plain["stem.weight"], found["stem.weight"])
    assert all(not torch.equal(plain[name], found[name]) for name in plain if name != "stem.weight")


def test_interrupted_at_every_layer(tmp_path: Path) -> None:
    data = [inputs(n, 20) for n in range(2)]
    checkpoints = [saved(network(n), tmp_path / str(n)) for n in range(2)]
    outputs = [tmp_path / f"gram{n}.safetensors" for n in range(2)]

    def run(most: int = 99) -> int:
        seen: list[int] = []

        def counting(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            seen.append(1)
            return call(model, batch)

        def stop(done: int, total: int) -> None:
            if done >= most:
                raise KeyboardInterrupt

        tasks = [ModelTask(network(n), lambda x=x: cut({"x": x}, 8), counting) for n, x in enumerate(data)]  # type: ignore[misc, arg-type]
        measure_sequential_grams(tasks, checkpoints, outputs, progress=stop)
        return len(seen)

    whole = run()
    expected = [out.read_bytes() for out in outputs]
    [out.unlink() for out in outputs]
    for most in range(1, 5):
        with pytest.raises(KeyboardInterrupt):
            run(most)
        assert not any(out.exists() for out in outputs)
    assert run() < whole
    assert [out.read_bytes() for out in outputs] == expected
    assert leftovers(tmp_path) == []


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    model, other = network(0), network(1)
    checkpoints = [saved(model, tmp_path / "a"), saved(other, tmp_path / "b")]
    tasks = [task_of(m, [{"x": inputs(0, 8)}]) for m in (model, other)]
    outputs = [tmp_path / "g0.safetensors", tmp_path / "g1.safetensors"]
    for how, told in (
        ({"outputs": outputs[:1]}, "2 tasks, 2 models, 1 outputs and 2 weights"),
        ({"weight": [1.0]}, "2 tasks, 2 models, 2 outputs and 1 weights"),
        ({"weight": [0.0, 0.0]}, "the weights are"),
        ({"tasks": [tasks[0], tasks[0]], "checkpoints": [checkpoints[0]] * 2}, "two tasks share one model in memory"),
        ({"tasks": tasks[::-1]}, "is not what the task's model holds"),
        ({"limit": 9}, "9 examples are asked for, the data has 8"),
    ):
        given = {"tasks": tasks, "checkpoints": checkpoints, "outputs": outputs, **how}
        with pytest.raises(InvalidInput, match=told):
            measure_sequential_grams(**given)  # type: ignore[arg-type]
    larger = nn.Sequential(nn.Linear(4, 3).double())
    with pytest.raises(InvalidInput, match="differ in"):
        measure_sequential_grams(
            [tasks[0], task_of(larger, [{"x": inputs(0, 8)}])], [checkpoints[0], saved(larger, tmp_path / "c")], outputs
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("path", "layer"),
    [("", ""), ("stem", "stem"), ("a.b.12.c.3", "a.b.12"), ("0", "0"), ("layer1.conv", "layer1.conv")],
)
def test_layers(path: str, layer: str) -> None:
    assert _layer(path) == layer
