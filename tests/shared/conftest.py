"""What the tests of the shared layer use together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import badinputs


@dataclass(frozen=True)
class Corpus:
    """The broken checkpoints, written once: their folder and the entry of each case by its id."""

    root: Path
    cases: dict[str, dict[str, object]]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Every case of tests/badinputs.py."""
    root = tmp_path_factory.mktemp("badinputs")
    badinputs.write_all(str(root))
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    return Corpus(root, {case["id"]: case for case in manifest["cases"]})
