"""Element types: the codes of the safetensors format, what they are called in torch, what users call them."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from paramsmith.errors import InvalidInput, printable

if TYPE_CHECKING:
    import torch

Kind = Literal["float", "integer", "bool", "float8", "complex", "packed"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: its code in a file, its width in bits, what may be done with it, its name in torch.

    Elements of kind "packed" are narrower than a byte: take sizes from `bits`, not from `itemsize`.
    """

    code: str
    bits: int
    kind: Kind
    torch_name: str | None

    @property
    def itemsize(self) -> int:
        """Bytes an element takes; 0 for types narrower than a byte."""
        return self.bits // 8


def _table(*rows: tuple[str, int, Kind, str | None]) -> dict[str, DType]:
    return {code: DType(code, bits, kind, torch_name) for code, bits, kind, torch_name in rows}


# The order is the format's own: a file is laid out from the last row up to the first.
DTYPES: dict[str, DType] = _table(
    ("BOOL", 8, "bool", "bool"),
    ("F4", 4, "packed", "float4_e2m1fn_x2"),
    ("F6_E2M3", 6, "packed", None),
    ("F6_E3M2", 6, "packed", None),
    ("U8", 8, "integer", "uint8"),
    ("I8", 8, "integer", "int8"),
    ("F8_E5M2", 8, "float8", "float8_e5m2"),
    ("F8_E4M3", 8, "float8", "float8_e4m3fn"),
    ("F8_E8M0", 8, "float8", "float8_e8m0fnu"),
    ("F8_E4M3FNUZ", 8, "float8", "float8_e4m3fnuz"),
    ("F8_E5M2FNUZ", 8, "float8", "float8_e5m2fnuz"),
    ("I16", 16, "integer", "int16"),
    ("U16", 16, "integer", "uint16"),
    ("F16", 16, "float", "float16"),
    ("BF16", 16, "float", "bfloat16"),
    ("I32", 32, "integer", "int32"),
    ("U32", 32, "integer", "uint32"),
    ("F32", 32, "float", "float32"),
    ("C64", 64, "complex", "complex64"),
    ("F64", 64, "float", "float64"),
    ("I64", 64, "integer", "int64"),
    ("U64", 64, "integer", "uint64"),
)

_BY_TORCH_NAME = {dtype.torch_name: dtype for dtype in DTYPES.values() if dtype.torch_name is not None}
_SPOKEN = {"half": "F16", "float": "F32", "double": "F64", "fp16": "F16", "fp32": "F32", "fp64": "F64", "long": "I64"}
_BY_NAME = (
    {code.lower(): dtype for code, dtype in DTYPES.items()}
    | dict(_BY_TORCH_NAME)
    | {name: DTYPES[code] for name, code in _SPOKEN.items()}
)


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch type of `dtype`; InvalidInput where torch has none (6-bit floats).

    >>> torch_dtype(DTYPES["BF16"])
    torch.bfloat16
    """
    import torch

    found = getattr(torch, dtype.torch_name, None) if dtype.torch_name is not None else None
    if not isinstance(found, torch.dtype):
        raise InvalidInput(f"elements of type {dtype.code} cannot be represented in this version of torch")
    return found


def from_torch(dtype: torch.dtype) -> DType:
    """The file format's type of a torch type; InvalidInput where the format has none (complex128, quantised).

    >>> import torch
    >>> from_torch(torch.float16).code
    'F16'
    """
    found = _BY_TORCH_NAME.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise InvalidInput(f"tensors of type {dtype} cannot be stored in a safetensors file")
    return found


def parse_dtype(name: str) -> DType:
    """What a user calls an element type: torch's name, the file's code or a common short form, in any case.

    >>> parse_dtype("bf16").code, parse_dtype("torch.float32").code, parse_dtype("Half").code
    ('BF16', 'F32', 'F16')
    """
    wanted = name.strip().lower().removeprefix("torch.")
    found = _BY_NAME.get(wanted)
    if found is None:
        nearest = get_close_matches(wanted[:64], _BY_NAME, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "for example float32, bfloat16 or float16"
        raise InvalidInput(f"unknown dtype {printable(name)!r}", hint)
    return found
