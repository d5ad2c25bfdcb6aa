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


@dataclass(frozen=True)
class LatentMerge:
    """What was written. `lost`: of each model, |decode(encode(w)) - w| / |w|, what its codec alone costs."""

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
    first. Tensors that the generator does not make, and buffers, are those of its template and of the first model.
    Paper: LS-Merge. InvalidInput for a generator without a codec, for a model of another target, for weights that are
    not finite, or sum to 0.
    """
    source = source_of(generator)
    sampler = source.generator.model
    if not isinstance(sampler, Sampler):
        raise InvalidInput("this generator has no codec to merge with", "give one that draws weights: flow, say")
    shares = _shares(weights, len(models))
    check_apart(output, [Path(model) for model in models if Path(model).exists()])
    spec, total, lost, origins = sampler.target(), None, [], []
    buffers: dict[str, Tensor] = {}
    for number, (model, share) in enumerate(zip(models, shares, strict=True)):
        with Checkpoint.open(model) as checkpoint, torch.no_grad(), one_thread_an_operation():
            checkpoint.fetch(list(checkpoint.tensors))
            if number == 0:
                spec = _spec(sampler, checkpoint)
                buffers = {b.name: read_tensor(checkpoint, b.name) for b in spec.buffers if checkpoint.info(b.name)}
            held = {name: values[None].to(sampler.device) for name, values in _read(checkpoint, spec).items()}
            latent = sampler.encoded(held, spec)
            lost.append(_lost(held, sampler.restored(latent, spec)))
            total = share * latent.double() if total is None else total + share * latent.double()
            origins.append(origin_of(checkpoint).model_dump(mode="json"))
    if total is None:
        raise InvalidInput("there are no models to merge", "name two or more")
    with torch.no_grad(), one_thread_an_operation():
        made = {name: values[0] for name, values in sampler.restored(total.float(), spec).items()}
    told = asked(spec, {}, target="the generator's own", seed=0, index=0)
    record = {"latent_merge": {"models": origins, "weights": list(shares), "lost": lost}}
    sample = Sample(
        sampler, Outline(spec), {}, Generation(generator=source.origin, asked=told), output, None, shard_size
    )
    written = write_held(sample, {**made, **buffers}, record, force=force)
    return LatentMerge(written, shares, tuple(lost), _warnings(spec))


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


def _read(checkpoint: Checkpoint, spec: TargetSpec) -> dict[str, Tensor]:
    """All slots, fp32. InvalidInput, naming it, for a tensor that is missing or of another shape."""
    made = {}
    for slot in spec.slots:
        names = [name for name in (slot.name, *slot.copies) if checkpoint.info(name) is not None]
        info = checkpoint.info(names[0]) if names else None
        if info is None or info.shape != slot.shape:
            told = "is missing" if info is None else f"is {list(info.shape)}, not {list(slot.shape)}"
            fact = f"{printable(checkpoint.label)}: tensor {printable(slot.name)} {told}"
            raise InvalidInput(fact, "give models of the generator's target")
        made[slot.name] = read_tensor(checkpoint, names[0]).float()
    return made


def _lost(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """The relative error of a reconstruction, over all numbers."""
    error = math.fsum(float((after[name].double() - w.double()).square().sum()) for name, w in before.items())
    size = math.fsum(float(w.double().square().sum()) for w in before.values())
    return math.sqrt(error / size) if size else 0.0


def _warnings(spec: TargetSpec) -> tuple[str, ...]:
    names = [buffer.name for buffer in spec.buffers if buffer.name.endswith("running_var")]
    if not names:
        return ()
    return (f"{printable(names[0])}: running statistics are those of the first model: measure them again with data",)
