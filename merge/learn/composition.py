"""A base plus scaled task vectors, composed into live models and differentiated by one ordinary backward pass.

θ^(j) = θ_0^(j) + Σ_i λ_i^(j) τ_i^(j)  and  ∂L/∂λ_i^(j) = <∂L/∂θ^(j), τ_i^(j)>, for each task vector τ_i = θ_i - θ_0 and
each tensor j. The task vectors are a stream, read from the files once to compose and once for the gradients: what is
held is the model and its gradients, however many vectors there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from paramsmith.blocks import CUT, Block, cut
from paramsmith.coefficients import Coefficients
from paramsmith.device import one_thread_an_operation, pick_threads
from paramsmith.dtypes import DType
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import TensorInfo
from paramsmith.merge.task import Task, tensor_names
from paramsmith.model_config import layer_index
from paramsmith.params import Layer, check_filters, matches
from paramsmith.statistics import Readable
from paramsmith.stream import Scratch, read_block, run_workers

from .partitions import held_map

T = TypeVar("T")
# Elements below which a second thread costs more than it does.
_ALONE = 1 << 20

Prepare = Callable[[Tensor], Tensor]  # task vectors (models, n) to what is composed of them


@dataclass(frozen=True)
class _Source:
    """One model's tensor, open for reading."""

    read: Callable[[int, memoryview], None]
    dtype: DType


@dataclass(frozen=True)
class _Composed:
    """One tensor: where its values come from, base first, and the parameters that take it."""

    index: int
    count: int
    sources: tuple[_Source, ...]
    parameters: tuple[nn.Parameter, ...]
    partition: Tensor | None  # (count,)


class Composition:
    """The tensors that the tasks' models, the base and all models have, composed in place. A context manager.

    Inside it only what is composed asks for gradients, and the models are in eval mode. Coefficients are (models,
    tensors, partitions), the tensors in the order of `names`. `prepare` turns a block's task vectors into others.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        base: Readable,
        models: Sequence[Readable],
        *,
        exclude: Sequence[str] = (),
        partitions: int = 1,
        seed: int = 0,
        threads: int | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        self.bodies = list({id(task.model): task.model for task in tasks}.values())
        self.partitions, self._prepare = partitions, prepare
        self._models = len(models)
        taking, left = _taking(tasks, base, models, exclude)
        self.names = tuple(name for name in base.tensors if name in taking)
        self.warnings = _warnings(left)
        everyone = (base, *models)
        self._tensors = []
        for index, name in enumerate(self.names):
            sources = tuple(_Source(model.reader(name), model.tensors[name].dtype) for model in everyone)
            count = base.tensors[name].count
            partition = held_map(name, count, partitions, seed) if partitions > 1 else None
            self._tensors.append(_Composed(index, count, sources, tuple(taking[name]), partition))
        widest = any(source.dtype.code == "F64" for tensor in self._tensors for source in tensor.sources)
        self._wide = torch.float64 if widest else torch.float32
        self._threads = pick_threads(threads) if sum(tensor.count for tensor in self._tensors) > _ALONE else 1
        self._scratch = Scratch(torch.device("cpu"))
        self._before: list[tuple[nn.Parameter, bool]] = []
        self._modes: list[tuple[nn.Module, bool]] = []

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of coefficients: models, tensors, partitions."""
        return self._models, len(self.names), self.partitions

    @property
    def nbytes(self) -> int:
        """Bytes that one reading of the stream takes."""
        return sum(t.count * s.dtype.itemsize for t in self._tensors for s in t.sources)

    def __enter__(self) -> Self:
        wanted = {id(parameter) for parameter in self.parameters}
        for body in self.bodies:
            self._modes += [(module, module.training) for module in body.modules()]
            body.eval()
            for parameter in body.parameters():
                self._before.append((parameter, parameter.requires_grad))
                parameter.requires_grad_(id(parameter) in wanted)
                parameter.grad = None
                if not parameter.is_contiguous():
                    parameter.data = parameter.data.contiguous()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()
        for parameter, required in self._before:
            parameter.requires_grad_(required)
        for module, training in self._modes:
            module.training = training
        self._before, self._modes = [], []

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are composed, of all models."""
        return [parameter for tensor in self._tensors for parameter in tensor.parameters]

    def compose(self, coefficients: Tensor, *, alone: bool = False) -> None:
        """Give the parameters the values that the coefficients (models, tensors, partitions) say; `alone` no base."""
        wide = coefficients.detach().cpu().to(self._wide)

        def work(block: Block[_Composed], scratch: Scratch) -> None:
            tensor, start = block.task, block.spans[0].start
            base, deltas = self._deltas(block, scratch)
            base = base.zero_() if alone else base
            own = wide[:, tensor.index]  # (models, partitions)
            if tensor.partition is None:
                merged = torch.addmv(base, deltas.T, own[:, 0])
            else:
                merged, places = base.clone(), tensor.partition[start : start + block.count].int()
                for delta, values in zip(deltas, own, strict=True):
                    merged.addcmul_(delta, values.index_select(0, places))
            for parameter in tensor.parameters:
                parameter.data.view(-1)[start : start + block.count].copy_(merged)

        self._over(cut(self._tensors, CUT), work)

    def gradients(self) -> Tensor:
        """Of the coefficients, from the gradients that the parameters hold: float64 (models, tensors, partitions)."""
        blocks = list(cut(self._tensors, CUT))
        numbered = [(number, block) for number, block in enumerate(blocks)]
        parts = torch.zeros(len(blocks), self._models, self.partitions, dtype=torch.float64)

        def work(item: tuple[int, Block[_Composed]], scratch: Scratch) -> None:
            number, block = item
            span, tensor = block.spans[0], block.task
            slopes = self._slopes(tensor, span.start, span.count)
            if slopes is None:
                return
            _, deltas = self._deltas(block, scratch)
            if tensor.partition is None:
                parts[number, :, 0] = deltas @ slopes
                return
            places = tensor.partition[span.start : span.start + span.count]
            for row, delta in enumerate(deltas):
                parts[number, row] = torch.bincount(places, (delta * slopes).double(), minlength=self.partitions)

        self._over(numbered, work)
        total = torch.zeros(len(self.names), self._models, self.partitions, dtype=torch.float64)
        for number, block in numbered:
            total[block.task.index] += parts[number]
        return total.transpose(0, 1)

    def forget(self) -> None:
        """Let go of the parameters' gradients."""
        for body in self.bodies:
            for parameter in body.parameters():
                parameter.grad = None

    def _over(self, items: Iterable[T], work: Callable[[T, Scratch], None]) -> None:
        if self._threads > 1:
            run_workers(items, work, self._threads, torch.device("cpu"))
            return
        with one_thread_an_operation(), torch.inference_mode():
            for item in items:
                work(item, self._scratch)

    def _deltas(self, block: Block[_Composed], scratch: Scratch) -> tuple[Tensor, Tensor]:
        """The base (n,) and the task vectors (models, n) of a block, in buffers that the next block takes over."""
        rows = read_block(block, scratch, self._wide)
        if rows.dtype != self._wide:
            rows = scratch.take("wide", tuple(rows.shape), self._wide).copy_(rows)
        deltas = rows[1:].sub_(rows[0])
        return rows[0], self._prepare(deltas) if self._prepare else deltas

    def _slopes(self, tensor: _Composed, start: int, count: int) -> Tensor | None:
        total = None
        for parameter in tensor.parameters:
            if parameter.grad is None:
                continue
            held = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            part = held.reshape(-1)[start : start + count].to("cpu", self._wide)
            total = part if total is None else total + part
        return total


def as_tensor(coefficients: Coefficients, names: Sequence[str]) -> Tensor:
    """The coefficients of these tensors: (models, tensors, partitions), float32."""
    rows = [torch.tensor(coefficients.values.get(name, coefficients.default)) for name in names]
    return torch.stack([row.expand(len(coefficients.models), -1) for row in rows], 1)


def _taking(
    tasks: Sequence[Task], base: Readable, models: Sequence[Readable], exclude: Sequence[str]
) -> tuple[dict[str, list[nn.Parameter]], list[str]]:
    """{tensor: parameters that take it}, and the parameters that stay as they are, by name."""
    if not models:
        raise InvalidInput("no models are given", "name the models that were tuned from the base")
    taking: dict[str, list[nn.Parameter]] = {}
    left: list[str] = []
    wanted = _wanted(base, exclude)
    for task in {id(task.model): task for task in tasks}.values():
        shared = tensor_names(task, _Only(base, wanted))
        for model in models:
            found = tensor_names(task, _Only(model, set(shared.values())))
            shared = {name: stored for name, stored in shared.items() if name in found}
        _check_floats(shared.values(), (base, *models))
        for name, parameter in task.model.named_parameters():
            if name in shared:
                takers = taking.setdefault(shared[name], [])
                takers += [parameter] if all(parameter is not taker for taker in takers) else []  # a shared part, once
            elif name not in left:
                left.append(name)
    return taking, left


def _wanted(base: Readable, exclude: Sequence[str]) -> set[str]:
    """The base's tensors that no filter of `exclude` lets through."""
    check_filters(exclude)
    layers = {name: layer_index(name) for name in base.tensors}
    count = max((index for index in layers.values() if index is not None), default=-1) + 1
    places = {name: None if at is None else Layer(index=at, count=count) for name, at in layers.items()}
    return {n for n, place in places.items() if not any(matches(wanted, n, place) for wanted in exclude)}


def _check_floats(names: Collection[str], models: Sequence[Readable]) -> None:
    for model in models:
        for name in names:
            dtype = model.tensors[name].dtype
            if dtype.kind != "float":
                fact = f"{printable(model.label)}: the tensor {printable(name)} is {dtype.code}, which cannot be scaled"
                raise InvalidInput(fact, "convert or dequantise the model first, or exclude the tensor")


def _warnings(left: Sequence[str]) -> tuple[str, ...]:
    if not left:
        return ()
    names = ", ".join(printable(name, 80) for name in left[:8]) + (", ..." if len(left) > 8 else "")
    return (f"{len(left)} parameter{'s' * (len(left) != 1)} of the task's model stay as they are: {names}",)


class _Only:
    """A model of which some tensors are not looked at."""

    def __init__(self, model: Readable, names: Collection[str]) -> None:
        self.label = model.label
        self._model = model
        self.tensors: dict[str, TensorInfo] = {n: info for n, info in model.tensors.items() if n in names}

    def reader(self, name: str) -> Callable[[int, memoryview], None]:
        """Reads one tensor's bytes."""
        return self._model.reader(name)
