"""A loopback Hub for the tests of this folder: its address and login in the environment, an empty cache, no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.hubstub import WRITE_TOKEN, HubStub

TRANSPORTS = ("basic", "multipart", "xet")


@pytest.fixture
def transport() -> str:
    """How large files travel; tests parametrize it over TRANSPORTS."""
    return "basic"


@pytest.fixture
def hub(tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    """A running Hub, and this process (and its children) logged in there as alice."""
    how = {"basic": {}, "multipart": {"multipart_threshold": 1000, "part_size": 1500}, "xet": {"xet": "local"}}
    with HubStub(tmp_path / "hub", **how[transport]) as running:
        environment = {
            "HF_ENDPOINT": running.url,
            "HF_TOKEN": WRITE_TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_HUB_DISABLE_XET": "" if transport == "xet" else "1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # the client reads its environment once, when it is imported
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", transport != "xet")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", environment["HF_HUB_CACHE"])
        monkeypatch.setattr("paramsmith.hub.WAITS", (0.01, 0.01, 0.01, 0.01))
        yield running
        leaks = [request for request in running.requests if request.get("leak")]
        assert not leaks, leaks
