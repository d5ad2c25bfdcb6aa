from __future__ import annotations

import pytest
import torch

from paramsmith.dtypes import DTYPES, from_torch, parse_dtype, torch_dtype
from paramsmith.errors import InvalidInput

IN_TORCH = [dtype for dtype in DTYPES.values() if dtype.torch_name is not None]


@pytest.mark.parametrize("dtype", IN_TORCH, ids=lambda dtype: dtype.code)
def test_every_type_is_torchs_and_back(dtype):
    found = torch_dtype(dtype)
    assert from_torch(found) is dtype
    assert found.is_floating_point == (dtype.kind in ("float", "float8", "packed"))
    assert found.is_complex == (dtype.kind == "complex")
    if dtype.kind != "packed":
        assert found.itemsize == dtype.itemsize == dtype.bits // 8


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("bfloat16", "BF16"),
        ("BF16", "BF16"),
        ("torch.bfloat16", "BF16"),
        (" Float32 ", "F32"),
        ("fp16", "F16"),
        ("half", "F16"),
        ("float", "F32"),
        ("f8_e4m3", "F8_E4M3"),
        ("int64", "I64"),
    ],
)
def test_parse_dtype(name, code):
    assert parse_dtype(name) is DTYPES[code]


def test_parse_dtype_offers_the_nearest():
    with pytest.raises(InvalidInput) as caught:
        parse_dtype("bfloat61\x1b[0m")
    assert "bfloat61" in caught.value.fact
    assert "\x1b" not in caught.value.fact
    assert "bfloat16" in caught.value.hint


def test_types_without_a_counterpart():
    with pytest.raises(InvalidInput, match="F6_E2M3"):
        torch_dtype(DTYPES["F6_E2M3"])
    with pytest.raises(InvalidInput, match="complex128"):
        from_torch(torch.complex128)
