"""What the tests of learning use together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.merge.learn.toys import Opened, zoo


@pytest.fixture(scope="session")
def zoo_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A base and two fine-tunes, made once."""
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def opened(zoo_files: tuple[Path, list[Path]]) -> Iterator[Opened]:
    """They, opened, with fresh tasks."""
    made = Opened(*zoo_files)
    yield made
    for model in (made.base, *made.models):
        model.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Operations on a few numbers are slowed down by a second thread, a hundredfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
