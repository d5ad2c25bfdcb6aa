"""Whole tensors of a checkpoint, in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import printable
from paramsmith.memory import as_bytes


def read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor in the shape and type that it is stored in. ValueError where the checkpoint has none of that name."""
    info = checkpoint.info(name)
    if info is None:
        raise ValueError(f"{printable(checkpoint.label)}: has no tensor {printable(name)}")
    values = torch.empty(info.shape, dtype=torch_dtype(info.dtype))
    if values.numel():
        checkpoint.read_into(name, 0, as_bytes(values))
    return values
