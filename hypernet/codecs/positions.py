"""What codecs share: the layout they are made for, how large they may be, and features of positions of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.tokens.layout import Layout

MOST = 1 << 31  # numbers in one codec: 8 GB; far more than a mistyped size should be allowed to ask for


def layout_of(site: Site, codec: str) -> Layout:
    """The layout of the site. InvalidInput where it has none."""
    if site.layout is None:
        raise InvalidInput(f"the codec {codec!r} wants to know how the target is cut", "it is a part of a sampler")
    return site.layout


def affordable(numbers: int, codec: str) -> None:
    """InvalidInput where a codec would hold more than MOST numbers; to be called before any is made."""
    if numbers > MOST:
        fact = f"the codec {codec!r} would hold {numbers:,} numbers; the most is {MOST:,}"
        raise InvalidInput(fact, "make it smaller, or use one that sees a token at a time: rvq, token_vae")


def check_same(layout: Layout, shape: tuple[int, int], codec: str) -> None:
    """InvalidInput for a layout of other than (N, T) = `shape`, as another number of classes gives."""
    found = (len(layout), layout.width)
    if found != shape:
        told = f"{found[0]:,} tokens of {found[1]:,} numbers"
        fact = (
            f"the codec {codec!r} was made for {shape[0]:,} tokens of {shape[1]:,} numbers, and the target has {told}"
        )
        raise InvalidInput(fact, "its number of classes is fixed; rvq and token_vae take any")


def sinusoids(numbers: Tensor, width: int) -> Tensor:
    """Features (L, width) of positions (L,): sin and cos of p / 10000^(i / (width/2)) in turn, scaled to mean square 1.

    >>> sinusoids(torch.tensor([0, 1]), 3)
    tensor([[0.0000, 1.4142, 0.0000],
            [1.1900, 0.7641, 0.0030]])
    """
    pairs = (width + 1) // 2
    rates = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float32) / max(1, width / 2))
    angles = numbers[:, None].float() * rates  # (L, pairs)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width] * 2**0.5
