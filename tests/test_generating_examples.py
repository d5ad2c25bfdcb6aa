"""What the small reproductions say: the directions that the papers report, where they are trained for less long too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str) -> str:
    told = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=True)
    return told.stdout


def row(told: str, name: str) -> list[float]:
    """The figures of a row of a table."""
    (line,) = re.findall(rf"^{re.escape(name)}  +(.*)", told, re.MULTILINE)
    return [float(figure) for figure in re.findall(r"(?<![±\d.])-?\d+\.?\d*", line)]


@pytest.mark.slow
def test_a_meta_learned_start_is_ahead_after_two_steps() -> None:
    told = run("meta_init_digits.py", "--quick")
    ahead = row(told, "maml")[2] - max(row(told, "random")[2], row(told, "mean image")[2])
    assert ahead > 3  # dB


@pytest.mark.slow
def test_mip_needs_half_the_steps_of_the_plain_hypernetwork() -> None:
    told = run("mip_rotated_digits.py", "--quick")
    assert row(told, "mip")[0] <= row(told, "plain")[0] / 2


@pytest.mark.slow
def test_tuned_dropout_is_as_good_as_the_best_fixed_one() -> None:
    told = run("self_tuning_digits.py", "--seeds", "1")
    fixed = [row(told, f"fixed at {rate}") for rate in (0.05, 0.3, 0.5, 0.7)]
    best = min(fixed)  # by validation loss
    for start in (0.05, 0.5):
        tuned = row(told, f"tuned from {start}")
        assert tuned[1] < 1.05 * best[1]
        assert 0.05 < tuned[3] < 0.5  # the rates went from either side to where they belong


@pytest.mark.slow
def test_few_numbers_and_a_seed_draw_nearly_as_well_as_that_many_weights() -> None:
    told = run("doh_image.py", "--seeds", "1")
    doh, small, whole = (
        [float(psnr) for psnr in re.findall(rf"^{way} +[\d,]+ +[\d.]+ +([\d.]+)$", told, re.MULTILINE)]
        for way in ("doh", "small", "whole")
    )
    assert len(doh) == len(small) == len(whole) == 3
    assert doh == sorted(doh)  # it wants large steps
    assert max(small) - 1 < max(doh) < max(whole)
