"""What the tests of learning use together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
def small(one_thread: None) -> None:
    """Everything here is too small for a second thread."""
