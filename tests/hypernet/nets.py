"""Networks that the tests of commands name as file.py:function."""

from __future__ import annotations

from torch import nn


def net() -> nn.Module:
    """Several tensors, of several shapes, one tied."""
    made = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 9), nn.Linear(9, 20, bias=False))
    return made.append(nn.BatchNorm1d(20))
