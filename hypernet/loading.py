"""What loading a generator takes beside what diffusers does, and what saving leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.utils import logging


@torch.no_grad()
def own_memory(module: torch.nn.Module) -> None:
    """Tensors that lie in the file get memory of their own, aligned as any: sums may round by how they are aligned."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def without_entry(held: ConfigMixin, key: str) -> None:
    """Take an entry out of a config."""
    kept = {name: value for name, value in held.config.items() if name != key}
    held._internal_dict = FrozenDict(kept)  # type: ignore[no-untyped-call, has-type]


@contextmanager
def silent() -> Iterator[None]:
    """No progress bar of diffusers."""
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
