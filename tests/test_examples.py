"""Every example runs as its reader would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LEARNING = {"data_aware_digits", "doh_image", "few_shot_digits", "mip_rotated_digits", "self_tuning_digits"}
LONG = LEARNING | {"class_token_heads", "hyperofa_synthetic", "meta_init_digits", "real_text_tasks"}
LONG |= {"whole_perceptrons"}


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in LONG else [], id=path.stem) for path in EXAMPLES],
)
def test_example(path: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(path), "--quick"],
        cwd=tmp_path,  # an example needs nothing from where it is started, and leaves nothing there
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert not result.stderr
    assert not list(tmp_path.iterdir())
