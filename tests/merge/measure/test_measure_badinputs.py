"""Data, labels, tasks and budgets that cannot be used: which error, what it says, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused
from paramsmith.merge.measure import measure_fisher, measure_gram, measure_moments
from paramsmith.merge.task import Batch, ModelTask
from tests.merge.measure.nets import call, cut, examples, net, saved, task_of

MEASURES: dict[str, Callable[..., object]] = {
    "fisher": measure_fisher,
    "gram": measure_gram,
    "moments": measure_moments,
}


def refused(
    folder: Path, kind: type[ParamsmithError], told: str, task: ModelTask, measure: str = "fisher", **how: object
) -> ParamsmithError:
    """The error, after which only the model is there; a fact and a hint of one line each."""
    checkpoint = how.pop("checkpoint", None) or saved(net("mlp"), folder)
    with pytest.raises(kind, match=told) as caught:
        MEASURES[measure](task, checkpoint, folder / "out.safetensors", **how)
    assert type(caught.value) is kind
    assert [path.name for path in folder.iterdir() if path.suffix != ".txt"] == ["model.safetensors"]
    assert caught.value.hint
    assert "\n" not in caught.value.fact + caught.value.hint
    return caught.value


def changed(**batch: object) -> Batch:
    """The examples with something else in them."""
    whole = examples("mlp") | batch
    return {name: t for name, t in whole.items() if isinstance(t, Tensor)}


def labelled(labels: Tensor | None) -> ModelTask:
    return task_of(net("mlp"), [changed(labels=labels)])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.full((11,), 3), "label 3 is outside the model's 3 classes"),
        (torch.full((11,), -1), "label -1 is outside"),
        (torch.zeros(11), "not integers"),
        (torch.zeros(11, 2, dtype=torch.long), r"labels have the shape \[11, 2\]"),
        (torch.zeros(10, dtype=torch.long), "not all its tensors have one row an example"),
        (None, "the data has no labels"),
    ],
)
def test_labels(labels: Tensor | None, told: str, tmp_path: Path) -> None:
    refused(tmp_path, InvalidInput, told, labelled(labels), estimator="empirical")


def test_unlabelled_data_is_enough_for_the_others(tmp_path: Path) -> None:
    for estimator in ("exact", "sampled"):
        measure_fisher(
            labelled(None), saved(net("mlp"), tmp_path), tmp_path / f"{estimator}.safetensors", estimator=estimator
        )


@pytest.mark.parametrize("measure", MEASURES)
def test_data(measure: str, tmp_path: Path) -> None:
    def stops() -> object:
        yield examples("mlp")
        raise OSError("the disk\nis gone")

    model = net("mlp")
    refused(tmp_path, InvalidInput, "the data is empty", task_of(model, []), measure)
    fact = "20 examples are asked for, the data has 11"
    assert (
        "--limit 11" in refused(tmp_path, InvalidInput, fact, task_of(model, cut(changed(), 4)), measure, limit=20).hint
    )
    refused(tmp_path, InvalidInput, "limit is 0", task_of(model, [changed()]), measure, limit=0)
    broken = ModelTask(model, stops, call)  # type: ignore[arg-type]
    refused(tmp_path, Failed, "the task's data raised OSError: the disk$", broken, measure)
    nothing = ModelTask(model, lambda: 3, call)  # type: ignore[arg-type, return-value]
    refused(tmp_path, Failed, "the task's data raised TypeError", nothing, measure)
    lists = ModelTask(model, lambda: [[1, 2]], call)  # type: ignore[arg-type, list-item]
    refused(tmp_path, Failed, "the task's data raised AttributeError", lists, measure)
    missing = ModelTask(model, lambda: [changed()], lambda model, batch: model(batch["y"]))
    refused(tmp_path, Failed, "the task's outputs raised KeyError: 'y'", missing, measure)


# tanh makes of infinity what it makes of a large number, but its slope times infinity is nothing
WRONG = {
    "nan": "example 6: the model's outputs are not finite",
    "inf": "0.weight: the gradient of example 6 is not finite",
}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_example_that_is_not_finite(bad: float, tmp_path: Path) -> None:
    batch = examples("mlp")
    batch["x"][6, 2] = bad
    task = task_of(net("mlp"), cut(batch, 4))
    for estimator in ("exact", "sampled", "empirical"):
        refused(tmp_path, Failed, WRONG[str(bad)], task, estimator=estimator)
    refused(tmp_path, Failed, r"0.weight: its inputs are not finite for example 6$", task, "gram")
    refused(tmp_path, Failed, r"0.weight: its inputs are not finite for example 6$", task, "moments")


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    def forbid(model: nn.Module, batch: Batch) -> Tensor:
        outputs = call(model, batch)
        return outputs.masked_fill(torch.tensor([True, False, False]), -torch.inf)

    batch = changed(labels=torch.tensor([1, 2, 2, 1, 0, 1, 1, 1, 2, 2, 2]))
    task = ModelTask(net("mlp"), lambda: cut(batch, 3), forbid)
    refused(tmp_path, Failed, "example 4: the loss is not finite", task, estimator="empirical")
    measure_fisher(task, saved(net("mlp"), tmp_path), tmp_path / "fine.safetensors", estimator="exact")


def test_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """The square root of a zero: the value is fine, its slope is not."""

    def root(model: nn.Module, batch: Batch) -> Tensor:
        hidden = model[0](batch["x"])
        return model[1:](hidden) + torch.sqrt(hidden[:, :3] * batch["x"][:, :1])

    batch = {"x": examples("mlp")["x"].abs()}
    model = net("mlp")
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.abs_()
    batch["x"][7, 0] = 0
    task = ModelTask(model, lambda: cut(batch, 4), root)
    error = refused(
        tmp_path, Failed, r"0\.\w+: the gradient of example 7 is not finite", task, checkpoint=saved(model, tmp_path)
    )
    assert error.exit_code == 1


def test_nothing_but_zeros(tmp_path: Path) -> None:
    deaf = ModelTask(net("mlp"), lambda: [changed()], lambda model, batch: 0 * call(model, batch).detach())
    refused(tmp_path, InvalidInput, "all values are zero", deaf)
    zeros = {"x": torch.zeros(4, 5).double()}
    first = task_of(net("mlp"), [zeros])
    refused(tmp_path, InvalidInput, "all values are zero", first, "gram", include="0.weight")


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (lambda model, batch: call(model, batch)[:, 0], "one class"),
        (lambda model, batch: call(model, batch)[:, :1], "one class"),
        (lambda model, batch: call(model, batch).sum(), r"the shape \[\] for 1 examples"),
        (lambda model, batch: call(model, batch)[:1].repeat(2, 1), r"the shape \[2, 3\] for 1 examples"),
        (lambda model, batch: call(model, batch).argmax(1), "not a tensor of floating-point numbers"),
        (lambda model, batch: [call(model, batch)], "outputs are list"),
    ],
)
def test_outputs(outputs: Callable[[nn.Module, Batch], Tensor], told: str, tmp_path: Path) -> None:
    refused(tmp_path, InvalidInput, told, ModelTask(net("mlp"), lambda: [changed()], outputs))


def test_arguments(tmp_path: Path) -> None:
    task = labelled(examples("mlp")["labels"])
    refused(tmp_path, InvalidInput, "no estimator is called 'exakt'", task, estimator="exakt")
    refused(tmp_path, InvalidInput, "draws are 3 for the estimator exact", task, draws=3)
    refused(tmp_path, InvalidInput, "draws is 0", task, draws=0, estimator="sampled")
    refused(tmp_path, InvalidInput, "chunk is 0", task, chunk=0)
    refused(tmp_path, InvalidInput, "the seed is -1", task, seed=-1)
    refused(tmp_path, InvalidInput, "'2 GX' is no size", task, memory="2 GX")
    refused(tmp_path, InvalidInput, "no device", task, device="gpu")
    refused(tmp_path, Refused, r"0.weight: its sums take 280 bytes", task, memory=300)
    refused(tmp_path, Refused, r"0.weight: its sums take 200 bytes", task, "gram", memory=190)


def test_another_model(tmp_path: Path) -> None:
    """The statistics of weights that the checkpoint does not hold would be about nothing."""
    model = net("mlp")
    with torch.no_grad():
        model[3].weight[1, 4] += 1e-3
    for measure in MEASURES:
        refused(
            tmp_path, InvalidInput, r"3.weight is not what the task's model holds", task_of(model, [changed()]), measure
        )
    other = task_of(nn.Sequential(nn.Linear(5, 6).double()), [changed()])
    refused(tmp_path, InvalidInput, r"0.weight has shape \[7, 5\], but \[6, 5\]", other)
    model = net("mlp")
    with torch.no_grad():
        model[0].bias.copy_(model[2].bias)
    tied = task_of(model, [changed()], names={"0.bias": "2.bias", "2.bias": "2.bias"})
    refused(tmp_path, InvalidInput, "2.bias of the checkpoint is two parameters", tied)


def test_a_checkpoint_in_half_precision_of_a_model_in_single(tmp_path: Path) -> None:
    """What a task loads may be wider, or narrower, than what is stored."""
    model = net("mlp").to(torch.bfloat16)
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file({**tensors, "extra": torch.ones(2)}, tmp_path / "half.safetensors")
    batch = {"x": examples("mlp")["x"].float()}
    with Checkpoint.open(tmp_path / "half.safetensors") as checkpoint:
        report = measure_fisher(task_of(model.float(), [batch]), checkpoint, tmp_path / "f.safetensors")
    assert report.warnings == (
        f"{tmp_path}/half.safetensors: not measured, as the task's model has no such parameter: extra",
    )


def test_no_weights_to_multiply(tmp_path: Path) -> None:
    embedding = task_of(net("pooled"), [examples("pooled")])
    checkpoint = saved(net("pooled"), tmp_path)
    told = "no weight of a linear layer or convolution is used"
    refused(tmp_path, InvalidInput, told, embedding, "gram", include="embed", checkpoint=checkpoint)


def test_an_output_that_is_there_already(tmp_path: Path) -> None:
    task, checkpoint, out = labelled(None), saved(net("mlp"), tmp_path), tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(Refused, match="already exists"):
        measure_fisher(task, checkpoint, out)
    assert out.read_bytes() == b"mine"
    measure_fisher(task, checkpoint, out, force=True)
    assert out.stat().st_size > 100
