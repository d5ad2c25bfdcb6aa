"""What each parameter of a module is for, and how its layer would draw it: told by the types of the layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .rolenames import How, Shape, Trait, as_head, drawn_with, head_among, said_deviation, trait_by_name, uniform_std

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Traits:
    """The trait of each parameter by name, the weight that was taken for the head, and how it was found.

    `how`: `classes` (the number of outputs was given), `name`, `last` (the last matrix of all), or `none`.
    """

    by_name: dict[str, Trait]
    head: str | None
    how: How


def traits_of(module: nn.Module, classes: int | None = None) -> Traits:
    """The traits of all parameters, tied ones once, under their first name.

    Layers of torch, and transformers' Conv1D, are known; of others, names and shapes speak, and no standard deviation
    is known. A module whose `config` has an `initializer_range` draws all weights with it, and its biases are zero.
    InvalidInput where `classes` are asked for and no layer has so many outputs.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(remove_duplicate=False)}
    owners = dict(module.named_modules(remove_duplicate=False))
    found: dict[int, list[tuple[str, Trait]]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append((name, _trait(name, owners, shapes)))
    traits = {same[0][0]: _of_tied([trait for _, trait in same]) for same in found.values()}
    candidates = {name: shapes[name] for name in traits if _may_be_head(traits[name], name, owners, shapes)}
    last = next((same[0][0] for same in reversed(found.values()) if len(shapes[same[0][0]]) > 1), None)
    plain = last is not None and traits[last].role == "matrix"
    looked_up = any(traits[same[0][0]].role == "embedding" and len(same) > 1 for same in found.values())
    head, how = head_among(candidates, classes, ordered=plain and not looked_up)
    if head is not None:
        traits.update(as_head(head, traits, shapes))
    deviation = initializer_range(module)
    return Traits({name: drawn_with(trait, deviation) for name, trait in traits.items()}, head, how)


def initializer_range(module: nn.Module) -> float | None:
    """The standard deviation that a module's `config` says its weights are drawn with; None where it says nothing."""
    return said_deviation(getattr(getattr(module, "config", None), "initializer_range", None))


def _trait(name: str, owners: dict[str, nn.Module], shapes: dict[str, Shape]) -> Trait:
    place, _, leaf = name.rpartition(".")
    owner = owners[place]
    for types, rule in _RULES:
        if isinstance(owner, types):
            trait = rule(owner, leaf, shapes[name])
            break
    else:
        trait = _conv1d(leaf, owner) if type(owner).__name__ == "Conv1D" else None
    if trait is None:
        trait = replace(trait_by_name(name, shapes), std=None)
    if trait.role == "embedding" and trait_by_name(name, shapes).role == "position":
        trait = replace(trait, role="position")
    return trait


def _of_tied(traits: list[Trait]) -> Trait:
    """The trait of a tied tensor: that of an embedding if it is one anywhere, else that of its first name."""
    return next((trait for trait in traits if trait.role == "embedding"), traits[0])


def _linear(owner: nn.Module, leaf: str, shape: Shape) -> Trait | None:
    if not isinstance(owner, nn.Linear):
        return None
    fan_in = max(1, owner.in_features)
    if leaf == "bias" and isinstance(owner, NonDynamicallyQuantizableLinear):
        return Trait("bias", fan_in, 0.0)  # the attention around it sets it to zero
    plain = type(owner).reset_parameters is nn.Linear.reset_parameters
    return _weight_or_bias(leaf, shape, fan_in, uniform_std(fan_in) if plain else None)


def _conv(owner: nn.Module, leaf: str, shape: Shape) -> Trait | None:
    if not isinstance(owner, _ConvNd):
        return None
    area = math.prod(owner.kernel_size)
    std = uniform_std(area * owner.weight.shape[1])
    fan_in = area * owner.in_channels // owner.groups
    if isinstance(owner, _ConvTransposeNd):  # each output is reached by one in `stride` positions of the kernel
        reached = math.prod(-(-k // s) for k, s in zip(owner.kernel_size, owner.stride, strict=True))
        fan_in = reached * owner.in_channels // owner.groups
    return _weight_or_bias(leaf, shape, max(1, fan_in), std)


def _bilinear(owner: nn.Module, leaf: str, shape: Shape) -> Trait | None:
    if not isinstance(owner, nn.Bilinear):
        return None
    std = uniform_std(owner.in1_features)
    return _weight_or_bias(leaf, shape, owner.in1_features * owner.in2_features, std)


def _embedding(owner: nn.Module, leaf: str, shape: Shape) -> Trait | None:
    return Trait("embedding", 1, 1.0) if leaf == "weight" else None


def _norm(owner: nn.Module, leaf: str, shape: Shape) -> Trait | None:
    return Trait("norm_shift" if leaf == "bias" else "norm_scale", 1)


def _attention(owner: nn.Module, leaf: str, shape: Shape) -> Trait | None:
    if leaf in ("bias_k", "bias_v"):
        return Trait("bias", 1, 1.0 / math.sqrt(shape[-1]))  # Glorot's normal, of a tensor (1, 1, width)
    if leaf == "in_proj_bias":
        return Trait("bias", getattr(owner, "embed_dim", 1), 0.0)
    if leaf.endswith("_proj_weight"):
        return Trait("matrix", shape[1], math.sqrt(2.0 / (shape[0] + shape[1])))  # Glorot's uniform
    return None


def _recurrent(owner: nn.Module, leaf: str, shape: Shape) -> Trait | None:
    std = uniform_std(getattr(owner, "hidden_size", 1))
    weight = getattr(owner, leaf.replace("bias", "weight"), None)
    fan_in = weight.shape[-1] if isinstance(weight, nn.Parameter) else shape[-1]
    return Trait("bias" if leaf.startswith("bias") else "matrix", max(1, fan_in), std)


def _prelu(owner: nn.Module, leaf: str, shape: Shape) -> Trait | None:
    return Trait("bias", 1, 0.0)  # drawn as a quarter: a slope, which is added to like a bias


def _weight_or_bias(leaf: str, shape: Shape, fan_in: int, std: float | None) -> Trait | None:
    if leaf == "bias":
        return Trait("bias", fan_in, std)
    if leaf == "weight":
        return Trait("matrix" if len(shape) == 2 else "kernel", fan_in, std)
    return None  # a weight in two parts, which names tell apart


def _conv1d(leaf: str, owner: nn.Module) -> Trait | None:
    """The layer of transformers' GPT-2, whose weight is (inputs, outputs)."""
    weight = getattr(owner, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
        return None
    return _weight_or_bias(leaf, tuple(weight.shape), weight.shape[0], 0.02 if leaf == "weight" else 0.0)


def _may_be_head(trait: Trait, name: str, owners: dict[str, nn.Module], shapes: dict[str, Shape]) -> bool:
    pointwise = isinstance(owners[name.rpartition(".")[0]], _ConvNd) and math.prod(shapes[name][2:]) == 1
    return trait.role == "matrix" or (trait.role == "kernel" and pointwise)


_Rule = Callable[[nn.Module, str, Shape], Trait | None]
_RULES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], _Rule], ...] = (
    (nn.Linear, _linear),
    (_ConvNd, _conv),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (_NORMS, _norm),
    (nn.MultiheadAttention, _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    (nn.Bilinear, _bilinear),
    (nn.PReLU, _prelu),
)
