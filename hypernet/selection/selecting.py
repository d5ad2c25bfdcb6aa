"""Selectors by name, each made ready for one job: its options, and what it needs besides samples and a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.sampler import Sampler
from paramsmith.hypernet.stored import read_tensor
from paramsmith.hypernet.targets.statistics import is_statistic
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.writing.base import origin_of
from paramsmith.hypernet.writing.job import Job
from paramsmith.hypernet.writing.provenance import Origin
from paramsmith.hypernet.writing.samples import sample_seed
from paramsmith.params import validated

from .drawing import Draw, around
from .outputs import Select
from .reading import network_of
from .roles import Score, Shown, Weights
from .selectors import BestOf, Bootstrap, GreedyLayers, MeanOf, Selected
from .spectrum import layers_of, ranked

Selector: TypeAlias = Literal["best_of", "mean_of", "greedy_layers", "bootstrap"]

SELECTORS: tuple[Selector, ...] = get_args(Selector)
_ROUNDS = 1 << 32  # from here on, numbers of the seeds of later rounds; no sample has any of them
_SHARE = 5  # of the candidates of a round, one in so many is kept, as in the paper of bootstrap
_HINT = "see: paramsmith generate --help"


@dataclass(frozen=True)
class Selecting:
    """By which selector, and of how many samples (None: its own number).

    `aligned` lets networks with hidden layers be averaged; `base` is the network that `greedy_layers` begins with.
    InvalidInput for what does not go together.
    """

    selector: Selector
    k: int | None = None
    aligned: bool = False
    base: str | None = None

    def __post_init__(self) -> None:
        """Look at what goes together."""
        if self.selector not in SELECTORS:
            raise InvalidInput(f"there is no selector {self.selector!r}", f"one of {', '.join(SELECTORS)}")
        if self.selector == "greedy_layers" and self.base is None:
            raise InvalidInput("greedy_layers begins with a network, and none is given", "add --base MODEL")
        if self.selector != "greedy_layers" and self.base is not None:
            raise InvalidInput(f"{self.selector} does not begin with a network", "leave the base out")
        if self.selector != "mean_of" and self.aligned:
            raise InvalidInput(f"{self.selector} averages nothing that could be aligned", "leave --aligned out")


@dataclass(frozen=True)
class Ready:
    """A selector, given a score; how many candidates it scores; and the network that it begins with, if it does."""

    by: Callable[[Score], Select]
    candidates: int
    begun: Origin | None = None


def ready(how: Selecting, job: Job) -> Ready:
    """The selector that is meant. InvalidInput where it is not for the generator, or for the target, of this job."""
    return _READY[how.selector](how, job)


def _best_of(how: Selecting, job: Job) -> Ready:
    selector = validated(BestOf, _counts(how), "-k of best_of", _HINT)
    return Ready(lambda score: lambda draw, spec, shown: selector.select(draw, shown, score), selector.k)


def _mean_of(how: Selecting, job: Job) -> Ready:
    selector = validated(MeanOf, {**_counts(how), "aligned": how.aligned}, "-k of mean_of", _HINT)
    selector.check_target(job.outline.spec)
    return Ready(lambda score: lambda draw, spec, shown: selector.select(draw, shown, score, spec), selector.k)


def _greedy_layers(how: Selecting, job: Job) -> Ready:
    """In the order of `spectrum`."""
    if how.base is None:
        raise ValueError("greedy_layers begins with a network")
    selector = validated(GreedyLayers, _counts(how), "-k of greedy_layers", _HINT)
    begin, origin = _begin(how.base, job.outline.spec)
    order = layers_of(job.outline.spec, [name for name, _ in ranked(begin, job.outline.spec)])
    if not order:
        fact = "greedy_layers goes by the singular values of hidden layers, and the target has none"
        raise InvalidInput(fact, "take best_of, or mean_of")

    def by(score: Score) -> Select:
        return lambda draw, spec, shown: selector.select(draw, shown, score, begin, order)

    return Ready(by, selector.k * len(order), origin)


def _bootstrap(how: Selecting, job: Job) -> Ready:
    """Later rounds have seeds of their own."""
    sampler = job.source.generator.model
    if not isinstance(sampler, Sampler):
        raise InvalidInput("bootstrap draws around latents, and a hypernetwork has none", "take best_of")
    keep = {"keep": max(2, how.k // _SHARE)} if how.k is not None else {}
    selector = validated(Bootstrap, {**_counts(how), **keep}, "-k of bootstrap", _HINT)

    def by(score: Score) -> Select:
        def select(draw: Draw, spec: TargetSpec, shown: Shown) -> Selected:
            def near(anchors: list[Weights], number: int) -> Draw:
                return around(sampler, anchors, spec, sample_seed(job.seed, _ROUNDS + number))

            return selector.select(draw, shown, score, near)

        return select

    return Ready(by, selector.k * selector.rounds)


_READY: dict[Selector, Callable[[Selecting, Job], Ready]] = {
    "best_of": _best_of,
    "mean_of": _mean_of,
    "greedy_layers": _greedy_layers,
    "bootstrap": _bootstrap,
}


def _counts(how: Selecting) -> dict[str, object]:
    return {} if how.k is None else {"k": how.k}


def _begin(base: str, spec: TargetSpec) -> tuple[Weights, Origin]:
    """A network with its running statistics, and what is told of it. InvalidInput where it is of another target."""
    with Checkpoint.open(base) as checkpoint:
        checkpoint.fetch(list(checkpoint.tensors))
        weights = network_of(checkpoint, spec)
        for buffer in spec.buffers:
            info = checkpoint.info(buffer.name)
            if is_statistic(buffer.name) and info is not None and info.shape == buffer.shape:
                weights[buffer.name] = read_tensor(checkpoint, buffer.name).float()
        return weights, origin_of(checkpoint)
