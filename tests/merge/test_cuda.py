"""The CUDA path: the same engine, the same result within one rounding of the storage type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramsmith.merge import merge, merge_state_dicts
from paramsmith.registry import MergeMethod, methods

pytestmark = pytest.mark.cuda

SHAPES = {"embed.weight": (3000, 100), "layers.0.weight": (300, 700), "layers.0.bias": (700,), "norm": (5,)}


def models(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    source = torch.Generator().manual_seed(3)
    base = {name: torch.randn(shape, generator=source) for name, shape in SHAPES.items()}
    tuned = [
        {name: (t + 0.01 * torch.randn(t.shape, generator=source)).to(dtype) for name, t in base.items()}
        for _ in range(3)
    ]
    return {name: t.to(dtype) for name, t in base.items()}, tuned


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", methods().values(), ids=lambda m: m.name)
def test_cuda_equals_cpu_within_one_rounding(method: MergeMethod, dtype: torch.dtype) -> None:
    base, tuned = models(dtype)
    given = {"base": None if method.base == "unused" else base, "method": method.name, "seed": 5}
    many = tuned[: method.models[1]]
    here = merge_state_dicts(many, **given)
    there = merge_state_dicts(many, device="cuda", **given)
    again = merge_state_dicts(many, device="cuda", threads=1, block=65536, **given)
    step = torch.finfo(dtype).eps
    for name, wanted in here.items():
        # PCB and TIES choose entries: one whose score is at the cut may fall on either side of it
        close = torch.isclose(there[name].float(), wanted.float(), rtol=2 * step, atol=1e-6)
        assert close.float().mean() > 0.9999, name
        assert torch.equal(there[name], again[name]), name


def test_cuda_merges_files(tmp_path: Path) -> None:
    base, tuned = models(torch.bfloat16)
    for label, tensors in (("base", base), ("a", tuned[0]), ("b", tuned[1])):
        save_file(tensors, tmp_path / f"{label}.safetensors", metadata={"format": "pt"})
    inputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    output = tmp_path / "out.safetensors"
    merge(inputs, output, base=tmp_path / "base.safetensors", method="ties", device="cuda", memory="8GB")
    wanted = merge_state_dicts(tuned[:2], base=base, method="ties", device="cuda")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_file(output).items())
