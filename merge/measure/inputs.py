"""What a weight multiplies: the inputs of linear layers, the patches of convolutions."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

_FLAT = (nn.Conv1d, nn.Conv2d)


def multiplies(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution whose inputs `patches` gives."""
    return type(module) is nn.Linear or is_transposed(module) or is_convolution(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2 in transformers, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d]:
    """Whether it is a convolution over one or two dimensions that pads with zeros, by numbers that it says."""
    return isinstance(module, _FLAT) and type(module) in _FLAT and module.padding_mode == "zeros" and _padded(module)


def _padded(module: nn.Conv1d | nn.Conv2d) -> bool:
    return not isinstance(module.padding, str) or module.padding == "valid"


def width(module: nn.Module) -> tuple[int, int]:
    """(groups, inputs of a group) of such a module."""
    if is_convolution(module):
        return module.groups, module.weight[0].numel()
    shape = module.get_parameter("weight").shape
    return 1, shape[0 if is_transposed(module) else 1]


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """What the weight multiplies: (rows, groups, positions, inputs of a group), rows being the first dimension of x.

    A convolution's inputs are ordered as its weight's: channel of the group, then place in the kernel.

    >>> patches(nn.Conv1d(1, 1, 2, bias=False), torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[[1., 2.],
              [2., 3.]]]])
    """
    if not is_convolution(module):
        return x.reshape(len(x), 1, -1, x.shape[-1])
    wide = x.unsqueeze(2) if isinstance(module, nn.Conv1d) else x
    columns = functional.unfold(
        wide,
        _pair(module.kernel_size, 1),
        dilation=_pair(module.dilation, 1),
        padding=(0, 0) if isinstance(module.padding, str) else _pair(module.padding, 0),
        stride=_pair(module.stride, 1),
    )  # (rows, channels x kernel, positions)
    return columns.view(len(columns), module.groups, -1, columns.shape[2]).transpose(2, 3)


def _pair(values: tuple[int, ...], along: int) -> tuple[int, int]:
    """A convolution over one dimension is one over two, of which the first has the length 1."""
    return (along, values[0]) if len(values) == 1 else (values[0], values[1])


def first_tensor(arguments: tuple[object, ...], keywords: dict[str, object]) -> Tensor | None:
    """What a module with one input was called with."""
    given = [*arguments, *keywords.values()]
    return given[0] if given and isinstance(given[0], Tensor) else None


def as_wide(x: Tensor) -> Tensor:
    """At least float32: sums of half-precision products are not made in half precision."""
    return x if x.dtype == torch.float64 else x.float()
