"""The hash of a network: of its weights, whatever file they are in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from paramsmith.memory import as_bytes


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the weights of a network: name, shape and fp32 values of each tensor, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].float().cpu().contiguous()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(as_bytes(values))
    return digest.hexdigest()
