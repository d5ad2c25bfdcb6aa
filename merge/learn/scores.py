"""Which task vectors matter, before anything is learned; and a model that is linear in its coefficients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from paramsmith.coefficients import Coefficients
from paramsmith.errors import InvalidInput
from paramsmith.merge.task import IGNORED, Batch, Task, Whole, example_losses
from paramsmith.statistics import Readable

from .composition import Composition, as_tensor
from .feeds import batches_of, check_finite, look_through, on_device, outputs_of


@dataclass(frozen=True)
class GradientScores:
    """∂L/∂λ at λ = 0, the model being the base: `values` float64 (models, tensors), the tensors named in order.

    A negative one says that adding the task vector there lowers the loss. `loss` is the base's.
    """

    names: tuple[str, ...]
    values: Tensor
    loss: float

    @property
    def whole(self) -> Tensor:
        """Σ_j |∂L/∂λ^(j)| of each model."""
        return self.values.abs().sum(1)


def gradient_scores(
    tasks: Sequence[Task],
    base: Readable,
    models: Sequence[Readable],
    *,
    exclude: Sequence[str] = (),
    limit: int | None = None,
    threads: int | None = None,
) -> GradientScores:
    """How each task vector's coefficient at each tensor changes the tasks' loss, at the base: one pass of the data.

    ∂L/∂λ_i^(j) = <∂L/∂θ^(j), τ_i^(j)> with L = Σ_t mean loss of task t (over `limit` examples of each). All models are
    scored by the same backward passes and one reading of their tensors. The tasks' models get the base's weights.

    Paper: Zhang et al., Knowledge composition using task vectors with learned anisotropic scaling, arXiv:2407.02880.
    """
    total = 0.0
    with Composition(tasks, base, models, exclude=exclude, threads=threads) as composition:
        composition.compose(torch.zeros(composition.shape))
        for task in tasks:
            counted = look_through(task, limit).labels
            if not counted:
                raise InvalidInput("the data has no labels that count", f"all of them are {IGNORED}")
            for batch in batches_of(task, limit):
                moved = on_device(task, batch)
                loss = example_losses(outputs_of(task, moved), moved, task.likelihood).sum() / counted
                total += check_finite(loss, "of the base")
                loss.backward()  # type: ignore[no-untyped-call]
        return GradientScores(composition.names, composition.gradients()[:, :, 0].clone(), total)


def strongest(values: Tensor, budget: int) -> Tensor:
    """1 for the `budget` models with the largest magnitude at each tensor, 0 for the others: (models, tensors).

    Of equals the first models count.

    >>> strongest(torch.tensor([[0.1, 2.0], [-0.3, 0.0]]), 1).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    order = values.abs().argsort(dim=0, descending=True, stable=True)[:budget]
    return torch.zeros_like(values).scatter_(0, order, 1.0)


def linearised(
    task: Task, base: Readable, models: Sequence[Readable], coefficients: Coefficients
) -> Callable[[Batch], Tensor]:
    """The outputs of the model linearised at the base, for batches on its device; `accuracy` takes it.

    f(x; θ_0) + J f(x; θ_0) · Σ_i λ_i τ_i, by one forward-mode product a batch. The task's model gets the base's
    weights, to be left alone while the function is used. This is for evaluation: no checkpoint computes it.

    Paper: Ortiz-Jimenez et al., Task arithmetic in the tangent space, arXiv:2305.12827.
    """
    coefficients.check_models(models, base, "the coefficients")
    width = len(coefficients.default[0])
    with Composition([task], base, models, partitions=width, seed=coefficients.seed or 0) as composition:
        composition.compose(as_tensor(coefficients, composition.names), alone=True)
        chosen = {id(parameter) for parameter in composition.parameters}
        whole = Whole(task)
        slopes = {n: p.detach().clone() for n, p in whole.named_parameters() if id(p) in chosen}
        composition.compose(torch.zeros(composition.shape))
    held = {name: parameter.detach() for name, parameter in whole.named_parameters()}

    def outputs(batch: Batch) -> Tensor:
        def at(moved: dict[str, Tensor]) -> Tensor:
            found = functional_call(whole, {**held, **moved}, (batch,))
            if not isinstance(found, Tensor):
                raise InvalidInput(f"the task's outputs are {type(found).__name__}, not a tensor")
            return found

        whole.eval()
        with _plain_kernels():
            both = cast("tuple[Tensor, Tensor]", jvp(at, ({name: held[name] for name in slopes},), (slopes,)))
        return both[0] + both[1]

    return outputs


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Only what has a forward mode, which the fused kernels for attention lack."""
    fused = torch.backends.mha.get_fastpath_enabled()
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", DeprecationWarning)  # torch's own
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
