"""Compiling what training calls at every step, for as long as the training lasts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from paramsmith.hypernet.sampler import Sampler

_CALLED = {"denoiser", "net", "encoder", "decoder"}


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Let the networks of a model be compiled, in place: its tensors keep their names.

    Afterwards they are as they were, so that a generator draws the same before it is saved and after it is loaded.
    """
    chosen = networks(model)
    for network in chosen:
        network.compile()
    try:
        with warnings.catch_warnings():
            # torch's own, about codes that have a gradient, as it looks at what it is to compile
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning)
            yield
    finally:
        for network in chosen:
            network._compiled_call_impl = None  # what `compile` sets, and nothing takes back


def networks(model: nn.Module) -> list[nn.Module]:
    """What training calls as a whole: a hypernetwork, or the networks of a sampler's prior and codec, by their names.

    These are `denoiser`, `net`, `encoder` and `decoder`, wherever they lie in these parts.
    """
    if not isinstance(model, Sampler):
        return [model]
    named = [each for part in (model.prior, model.codec) for each in part.named_modules()]
    paths = [(name.split("."), module) for name, module in named]
    return [module for (*above, own), module in paths if own in _CALLED and not _CALLED & {*above}]
