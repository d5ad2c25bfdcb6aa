"""What the tests of this folder share."""

from __future__ import annotations

import pytest


@pytest.fixture
def stub_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of tests/hypernet/stubparts.py, forgotten afterwards."""
    from tests.hypernet import stubparts

    for registry in stubparts.REGISTRIES:
        registry.all()  # what comes with paramsmith is registered once, and stays
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    stubparts.register()
