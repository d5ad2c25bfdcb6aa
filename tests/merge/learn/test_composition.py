"""Streamed composition and its gradients, against the authors' values, autograd and a merge of the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from paramsmith.coefficients import Coefficients
from paramsmith.errors import InvalidInput
from paramsmith.memory import StateDict
from paramsmith.merge import merge
from paramsmith.merge.learn import composition as compositions
from paramsmith.merge.learn.composition import Composition, as_tensor
from paramsmith.merge.learn.partitions import held_map, partition_map
from paramsmith.merge.task import ModelTask
from paramsmith.ops import stream_word, uniform
from paramsmith.statistics import weights_digest
from tests.merge.learn.toys import Encoder, Opened, on_x, oracle, oracle_models, oracle_task


def oracle_run(coefficients: Tensor, task: ModelTask | None = None, **more: Any) -> tuple[Composition, Tensor, Tensor]:
    """(composition, outputs, gradients) of the oracle's mean cross-entropy."""
    task, (base, models) = task or oracle_task(), oracle_models()
    batch = next(iter(task.batches()))
    with Composition([task], base, models, **more) as composition:
        composition.compose(coefficients.expand(composition.shape))
        outputs = task.outputs(task.model, batch)
        nn.functional.cross_entropy(outputs, batch["labels"]).backward()
        return composition, outputs.detach(), composition.gradients()


def close(found: Tensor, wanted: object, atol: float) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(wanted).double(), atol=atol, rtol=0)


def test_blocks_are_those_of_the_authors() -> None:
    """Their arithmetic in float32, as the oracle has it beside their float16: 1e-6; float16: 3e-4."""
    said = oracle()
    coefficients = torch.tensor(said["blockwise"]["coef"])[:, :, None]
    task = oracle_task()
    composition, outputs, slopes = oracle_run(coefficients, task)
    assert list(composition.names) == said["blocks"]
    close(outputs, said["blockwise_fp32_composition"]["output"], 1e-6)
    close(slopes[:, :, 0], said["blockwise_fp32_composition"]["grad_wrt_coef"], 1e-6)
    close(outputs, said["blockwise"]["output"], 3e-4)
    close(slopes[:, :, 0], said["blockwise"]["grad_wrt_coef"], 3e-4)
    for name, parameter in task.model.named_parameters():
        close(parameter.detach(), said["blockwise_fp32_composition"]["merged_parameters"][name], 1e-6)


def test_zero_is_the_base() -> None:
    said = oracle()["zero_coef"]
    _, outputs, slopes = oracle_run(torch.zeros(1, 1, 1))
    close(outputs, said["output"], 1e-6)
    close(slopes[:, :, 0], said["grad_wrt_coef"], 1e-4)  # theirs are in float16


def test_isotropic_gradients_are_sums_over_the_tensors() -> None:
    said = oracle()["isotropic"]
    _, outputs, slopes = oracle_run(torch.tensor(said["coef"]).view(2, 1, 1))
    close(outputs, said["output"], 3e-4)
    close(slopes.sum((1, 2)), said["grad_wrt_coef"], 3e-4)


def test_partitions_with_the_authors_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs compose only matrices, so only these have coefficients here; float16 again."""
    said = oracle()["partition_K3"]
    by_name = {name: said["partition_index_by_shape"][str(tuple(p.shape))] for name, p in Encoder().named_parameters()}
    maps = {name: torch.tensor(places, dtype=torch.uint8).flatten() for name, places in by_name.items()}
    monkeypatch.setattr(compositions, "held_map", lambda name, count, partitions, seed: maps[name])
    matrix = torch.tensor([name.endswith("weight") and not name.startswith("ln") for name in oracle()["blocks"]])
    coefficients = torch.tensor(said["coef"]) * matrix[:, None]
    _, outputs, slopes = oracle_run(coefficients, partitions=3)
    close(outputs, said["output"], 3e-4)
    close(slopes * matrix[:, None], said["grad_wrt_coef"], 3e-4)


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@settings(max_examples=40)
@given(
    shapes=st.lists(st.sampled_from([(1,), (7,), (3, 5), (70_001,)]), min_size=1, max_size=2),
    count=st.integers(1, 3),
    partitions=st.sampled_from([1, 2, 300]),
    dtype=st.sampled_from(DTYPES),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_autograd(
    shapes: list[tuple[int, ...]], count: int, partitions: int, dtype: torch.dtype, threads: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    body = nn.ParameterDict({f"w{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)})
    mixing = {name: torch.randn(p.shape, generator=generator) for name, p in body.items()}

    def forward(model: nn.Module, batch: object) -> Tensor:
        return sum((torch.sin(p) * mixing[n]).sum() for n, p in model.named_parameters()).view(1, 1)  # type: ignore[union-attr,return-value]

    task = ModelTask(body, list, forward)
    everyone = [
        StateDict({n: torch.randn(p.shape, generator=generator).to(dtype) for n, p in body.items()}, f"{i}")
        for i in range(count + 1)
    ]
    base, models = everyone[0], everyone[1:]
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(compositions, "_ALONE", 0)  # so that there are threads
    with (
        monkeypatch.context(),
        Composition([task], base, models, partitions=partitions, seed=seed, threads=threads) as composition,
    ):
        coefficients = torch.randn(composition.shape, generator=generator)
        composition.compose(coefficients)
        found = {name: parameter.detach().clone() for name, parameter in body.items()}
        forward(body, None).sum().backward()
        slopes = composition.gradients()
    free = coefficients.double().requires_grad_(True)
    whole = {}
    for j, name in enumerate(composition.names):
        first = base.origin[name].double()
        places = partition_map(name, first.numel(), partitions, seed).view(first.shape)
        terms = [free[i, j][places] * (m.origin[name].double() - first) for i, m in enumerate(models)]
        whole[name] = first + sum(terms)
        torch.testing.assert_close(found[name], whole[name].detach().float(), atol=2e-5, rtol=1e-5)
    sum((torch.sin(whole[n]) * mixing[n]).sum() for n in whole).backward()  # type: ignore[union-attr]
    assert free.grad is not None
    scale = float(free.grad.abs().max()) + 1
    torch.testing.assert_close(slopes, free.grad, atol=2e-5 * scale, rtol=0)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compositions, "_ALONE", 0)
    generator = torch.Generator().manual_seed(0)
    tensors = [{"weight": torch.randn(300, 1000, generator=generator)} for _ in range(4)]
    base, *models = [StateDict(t, f"{i}") for i, t in enumerate(tensors)]
    seen = []
    for threads in (1, 2, 5):
        for partitions in (1, 4):
            layer = nn.Linear(1000, 300, bias=False)
            task = ModelTask(layer, list, on_x)
            with Composition([task], base, models, partitions=partitions, threads=threads) as composition:
                composition.compose(torch.linspace(-1, 1, 3 * partitions).view(composition.shape))
                layer(torch.ones(2, 1000)).square().sum().backward()
                seen.append((partitions, layer.weight.detach().clone(), composition.gradients()))
    for partitions in (1, 4):
        first, *others = [entry[1:] for entry in seen if entry[0] == partitions]
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("partitions", [1, 3, 700])
def test_a_merge_with_the_same_coefficients_gives_the_same_model(
    opened: Opened, tmp_path: Path, partitions: int
) -> None:
    """Within a rounding or two of float32; what is no parameter stays the base's."""
    with Composition(opened.tasks, opened.base, opened.models, partitions=partitions, seed=7) as composition:
        values = torch.randn(composition.shape, generator=torch.Generator().manual_seed(1))
        composition.compose(values)
    made = Coefficients(
        method="atlas",
        parameters={"partitions": partitions},
        models=tuple(weights_digest(model) for model in opened.models),
        base=weights_digest(opened.base),
        values=dict(zip(composition.names, values.transpose(0, 1).tolist(), strict=True)),
        default=((0.0,) * partitions,) * 2,
        seed=7,
    )
    assert torch.equal(as_tensor(made, composition.names), values)
    made.save(tmp_path / "c.safetensors")
    paths, base = [model.path for model in opened.models], opened.base.path
    merge(paths, tmp_path / "m.safetensors", base=base, method="atlas", coefficients=tmp_path / "c.safetensors")
    merged, before = load_file(tmp_path / "m.safetensors"), load_file(base)
    for name, tensor in opened.net.state_dict().items():
        if name in composition.names:
            torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=1e-6)
            assert torch.equal(tensor, before[name]) == name.startswith("head")  # which was not tuned
        else:
            assert torch.equal(merged[name], before[name])
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("partitions", [2, 3, 80, 256, 257, 1200])
def test_partitions_are_what_the_engine_draws_for_its_first_model(partitions: int) -> None:
    """Keys of the engine's own, through its uniform numbers."""
    count, name, seed = 70_000, "layers.0.w", 5
    key = torch.tensor([stream_word(seed, 0, name, model) for model in (-1, 0, 1)], dtype=torch.int32)
    draws = uniform(key, torch.tensor([0], dtype=torch.int32), torch.arange(count, dtype=torch.int32))[0]
    found = partition_map(name, count, partitions, seed)
    assert torch.equal(found, (draws * partitions).floor().long())
    assert torch.equal(found, held_map(name, count, partitions, seed).long())
    assert (int(found.min()), int(found.max())) == (0, partitions - 1)
    shares = found.bincount(minlength=partitions) / count
    assert float((shares * partitions - 1).abs().max()) < 6 * (partitions / count) ** 0.5
    assert not torch.equal(found, partition_map(name, count, partitions, seed + 1))
    assert not torch.equal(found, partition_map("layers.1.w", count, partitions, seed))


def test_two_bodies_and_other_names() -> None:
    """Composed once for both, each with its own names; gradients are summed."""
    torch.manual_seed(0)
    bodies = [nn.Linear(3, 2), nn.Linear(3, 2)]
    names = {"weight": "w", "bias": "b"}
    tasks = [ModelTask(body, list, on_x, names=names) for body in bodies]
    weights = [{"w": torch.randn(2, 3), "b": torch.randn(2)} for _ in range(3)]
    base, *models = [StateDict(w, f"{i}") for i, w in enumerate(weights)]
    with Composition(tasks, base, models) as composition:
        composition.compose(torch.full(composition.shape, 0.5))
        assert torch.equal(bodies[0].weight, bodies[1].weight)
        torch.testing.assert_close(bodies[0].bias.detach(), 0.5 * (weights[1]["b"] + weights[2]["b"]))
        for body, factor in zip(bodies, (1.0, 2.0), strict=True):
            (factor * body.bias.sum()).backward()
        slopes = composition.gradients()
    assert composition.names == ("w", "b")
    torch.testing.assert_close(slopes[0, 1, 0].float(), 3 * (weights[1]["b"] - weights[0]["b"]).sum())
    assert not slopes[:, 0].any()


def test_heads_and_buffers_stay_and_the_model_is_left_as_it_was(opened: Opened) -> None:
    net = opened.net.train()
    net.head.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with Composition(opened.tasks, opened.base, opened.models, exclude=["head", "/bias$/"]) as composition:
        assert composition.names == ("body.0.weight", "body.1.weight")
        assert not net.training
        assert [n for n, p in net.named_parameters() if p.requires_grad] == list(composition.names)
        composition.compose(torch.ones(composition.shape))
        net(torch.randn(4, 6)).sum().backward()
    assert "4 parameters of the task's model stay as they are: body.0.bias" in composition.warnings[0]
    changed = [name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == list(composition.names)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False, True]
    assert all(p.grad is None for p in net.parameters())


def test_what_a_model_lacks_is_not_composed() -> None:
    layer = nn.Linear(3, 2)
    whole = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    models = [StateDict(whole, "a"), StateDict({"weight": torch.ones(2, 3)}, "b")]
    task = ModelTask(layer, list, on_x)
    assert Composition([task], StateDict(whole, "base"), models).names == ("weight",)


WRONG = {
    "no models": ({"weight": torch.zeros(2, 3)}, [], (), "no models are given"),
    "shape": (
        {"weight": torch.zeros(2, 3)},
        [{"weight": torch.zeros(2, 4)}],
        (),
        r"model 0: weight has shape \[2, 4\]",
    ),
    "base's shape": ({"weight": torch.zeros(5, 3)}, [], (), r"base: weight has shape \[5, 3\]"),
    "names": ({"w": torch.zeros(2, 3)}, [{"w": torch.zeros(2, 3)}], (), "no tensor has the name of a parameter"),
    "integers": ({"weight": torch.zeros(2, 3)}, [{"weight": torch.zeros(2, 3).int()}], (), "weight is I32"),
    "filter": ({"weight": torch.zeros(2, 3)}, [{"weight": torch.zeros(2, 3)}], ["/[/"], "is no regular expression"),
    "all": ({"weight": torch.zeros(2, 3)}, [{"weight": torch.zeros(2, 3)}], ["*"], "no tensor has the name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_models_that_do_not_fit(name: str) -> None:
    base, others, exclude, said = WRONG[name]
    models = [StateDict(weights, f"model {i}") for i, weights in enumerate(others or [base] * (name != "no models"))]
    with pytest.raises(InvalidInput, match=said):
        Composition([ModelTask(nn.Linear(3, 2), list, on_x)], StateDict(base, "base"), models, exclude=exclude)
