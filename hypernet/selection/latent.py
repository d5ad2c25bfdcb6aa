"""Merging in the latent space of a generator: encode, average, decode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.device import one_thread_an_operation
from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.sampler import Sampler
from paramsmith.hypernet.stored import read_tensor
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.writing.base import origin_of
from paramsmith.hypernet.writing.held import write_held
from paramsmith.hypernet.writing.job import Named
from paramsmith.hypernet.writing.output import Sample, Written, check_apart
from paramsmith.hypernet.writing.provenance import Generation, asked
from paramsmith.hypernet.writing.sources import source_of
from paramsmith.hypernet.writing.stream import Outline

from .reading import network_of


@dataclass(frozen=True)
class LatentMerge:
    """What was written. `lost`: of each model, |decode(encode(t)) - t| / |t| of its tokens t, what the codec costs."""

    written: Written
    weights: tuple[float, ...]
    lost: tuple[float, ...]
    warnings: tuple[str, ...] = ()


def latent_merge(
    generator: Named,
    models: Sequence[str],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    shard_size: str | int | None = None,
    force: bool = False,
) -> LatentMerge:
    """Write decode(sum_i w_i encode(model i)), with w scaled to sum to 1, all equal unless told.

    The generator gives tokenizer and codec; nothing is drawn. Models are of its target, with as many classes as the
    first. Tensors that it does not generate, from a template, say, are averaged as they are; buffers are those of the
    first model. InvalidInput for a generator without a codec, for a model of another target, for weights that are not
    finite, or sum to 0.
    """
    source = source_of(generator)
    sampler = source.generator.model
    if not isinstance(sampler, Sampler):
        raise InvalidInput("this generator has no codec to merge with", "give one that draws weights: flow, say")
    shares = _shares(weights, len(models))
    check_apart(output, [Path(model) for model in models if Path(model).exists()])
    average = _Average(sampler)
    for model, share in zip(models, shares, strict=True):
        with Checkpoint.open(model) as checkpoint, torch.no_grad(), one_thread_an_operation():
            checkpoint.fetch(list(checkpoint.tensors))
            average.add(checkpoint, share)
    spec = average.spec
    told = asked(spec, {}, target="the generator's own", seed=0, index=0)
    record = {"latent_merge": {"models": average.origins, "weights": list(shares), "lost": average.lost}}
    generation = Generation(generator=source.origin, asked=told)
    sample = Sample(sampler, Outline(spec), {}, generation, output, None, shard_size)
    written = write_held(sample, average.result(), record, force=force)
    return LatentMerge(written, shares, tuple(average.lost), _warnings(spec))


class _Average:
    """Codes, and what has none, summed up model by model, in fp64."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.spec = sampler, sampler.target()
        self.made = {slot.name for slot in sampler.tokenizer.generated}
        self.lost: list[float] = []
        self.origins: list[dict[str, object]] = []
        self._latent: Tensor | None = None
        self._rest: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}

    def add(self, checkpoint: Checkpoint, share: float) -> None:
        """One more model; the first decides how many classes there are."""
        sampler = self.sampler
        if self._latent is None:
            self.spec = _spec(sampler, checkpoint)
            names = [buffer.name for buffer in self.spec.buffers if checkpoint.info(buffer.name)]
            self._buffers = {name: read_tensor(checkpoint, name) for name in names}
        held, layout = network_of(checkpoint, self.spec), sampler.layout(self.spec)
        stacked = {name: values[None].to(sampler.device) for name, values in held.items()}
        tokens = sampler.tokenizer.tokens(stacked, self.spec)
        latent = sampler.codec.encode(tokens, layout)
        self.lost.append(_distance(tokens, sampler.codec.decode(latent, layout)))
        part = share * latent.double()
        self._latent = part if self._latent is None else self._latent + part
        for name in held.keys() - self.made:
            part = share * held[name].double()
            self._rest[name] = self._rest[name] + part if name in self._rest else part
        self.origins.append(origin_of(checkpoint).model_dump(mode="json"))

    def result(self) -> dict[str, Tensor]:
        """The weights, decoded, and the buffers."""
        if self._latent is None:
            raise ValueError("no model was added")
        with torch.no_grad(), one_thread_an_operation():
            made = self.sampler.restored(self._latent.float(), self.spec)
        weights = {slot.name: made[slot.name][0] for slot in self.spec.slots}
        return {**weights, **{name: values.float() for name, values in self._rest.items()}, **self._buffers}


def _shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights that sum to 1. InvalidInput where there are none such."""
    given = [1.0] * count if weights is None else list(weights)
    if count < 1 or len(given) != count:
        raise InvalidInput(f"there are {len(given)} weights for {count} models", "give one a model")
    total = math.fsum(given)
    if not math.isfinite(total) or total == 0:
        raise InvalidInput(f"the weights of the models sum to {total:g}", "give weights whose sum is not 0")
    return tuple(weight / total for weight in given)


def _spec(sampler: Sampler, checkpoint: Checkpoint) -> TargetSpec:
    """The generator's target, for the classes of a model. InvalidInput where it cannot have them."""
    own = sampler.target()
    for slot in own.slots:
        info = checkpoint.info(slot.name)
        if slot.class_axis is not None and info is not None and len(info.shape) == len(slot.shape):
            classes = info.shape[slot.class_axis]
            return own if classes == slot.shape[slot.class_axis] else sampler.target(own.with_classes(classes))
    return own


def _distance(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before|."""
    size = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / size if size else 0.0


def _warnings(spec: TargetSpec) -> tuple[str, ...]:
    names = [buffer.name for buffer in spec.buffers if buffer.name.endswith("running_var")]
    if not names:
        return ()
    return (f"{printable(names[0])}: running statistics are those of the first model: measure them again with data",)
