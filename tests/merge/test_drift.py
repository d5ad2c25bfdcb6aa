"""How far models went from their base, against the same in a few lines of float64; whatever the threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paramsmith.checkpoint import Checkpoint
from paramsmith.merge import drift as module
from paramsmith.merge.drift import Drift, measure_drift
from tests.merge.folders import llama, save


def measured(folders: list[Path], threads: int = 1) -> Drift:
    opened = [Checkpoint.open(folder) for folder in folders]
    try:
        return measure_drift(opened[0], opened[1:], threads)
    finally:
        for model in opened:
            model.close()


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        save(tmp_path / str(seed), llama(seed, torch.bfloat16 if seed == 2 else torch.float32)) for seed in range(4)
    ]


def naive(seeds: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms relative to the base's, and cosines, over the tensors with `part` in their names."""
    held = [llama(s, torch.bfloat16 if s == 2 else torch.float32) for s in range(seeds)]
    flat = [torch.cat([t.double().flatten() for n, t in sorted(h.items()) if part in n]) for h in held]
    deltas = torch.stack(flat[1:]) - flat[0]
    norms = deltas.norm(dim=1)
    return norms / flat[0].norm(), (deltas @ deltas.T) / norms[:, None] / norms


def test_against_the_definition(folders: list[Path]) -> None:
    found = measured(folders)
    assert [layer.name for layer in found.layers] == ["0", "1", "other"]
    for layer, part in ((found.layers[0], "layers.0."), (found.layers[1], "layers.1."), (found.whole, "")):
        norms, cosines = naive(4, part)
        for i in range(3):
            assert layer.norm(i) == pytest.approx(float(norms[i]), rel=1e-12)
            assert [layer.cosine(i, j) for j in range(3)] == pytest.approx(cosines[i].tolist(), rel=1e-12)
    assert (found.left_out, found.not_finite) == (0, 0)


def test_the_same_at_any_number_of_threads(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOM", 1)  # blocks of 4096: several a tensor
    wide = [
        save(
            f / "wide",
            {"layers.0.w": torch.randn(300, 200, generator=torch.Generator().manual_seed(s))},
            num_hidden_layers=1,
            vocab_size=None,
            hidden_size=None,
            intermediate_size=None,
        )
        for s, f in enumerate(folders)
    ]
    first = measured(wide)
    for threads in (2, 5):
        again = measured(wide, threads)
        assert again.whole.base == first.whole.base
        assert (again.whole.products == first.whole.products).all()


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    tensors = [llama(seed) for seed in range(2)]
    tensors[0]["steps"] = torch.ones(3, dtype=torch.int64)
    tensors[0]["more.weight"] = torch.ones(3)
    tensors[1]["model.norm.weight"][:2] = torch.tensor([float("nan"), float("inf")])
    tensors[0]["model.layers.1.input_layernorm.weight"].zero_()
    found = measured([save(tmp_path / str(i), held) for i, held in enumerate(tensors)])
    assert (found.left_out, found.not_finite) == (1, 2)
    assert all(layer.norm(0) is not None for layer in found.layers)


def test_zeros(tmp_path: Path) -> None:
    same = [save(tmp_path / str(i), llama(0)) for i in range(2)]
    found = measured(same)
    assert found.whole.norm(0) == 0
    assert found.whole.cosine(0, 0) is None
    nothing = [save(tmp_path / f"z{i}", {n: t * i for n, t in llama(1).items()}) for i in range(2)]
    assert measured(nothing).whole.norm(0) is None
