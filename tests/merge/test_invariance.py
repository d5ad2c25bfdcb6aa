"""Same inputs, same bytes: whatever the threads, the blocks, and within one rounding whether compiled or not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from paramsmith.blocks import CUT
from paramsmith.kernels import compiler_missing
from tests.merge.flavours import ALL, FEW, Flavour, state_dict

# One tensor of several blocks, one of a part of a cut, and small ones that are packed with others.
SHAPES = {"embed.w": (3, 50_001), "layers.0.w": (70_001,), "layers.1.w": (16, 9), "layers.1.b": (7,), "scale": ()}
WAYS = list(itertools.product((1, 2, 4), (CUT, 2 * CUT, 3 * CUT)))
STEP = torch.finfo(torch.float32).eps
lacking = compiler_missing()
needs_compiler = pytest.mark.skipif(lacking is not None, reason=lacking or "")


@pytest.fixture(scope="module")
def held() -> dict[torch.dtype, list[dict[str, Tensor]]]:
    """A base and three models, in the dtypes asked for."""
    base, *noise = [state_dict(seed, SHAPES) for seed in range(4)]
    models = [base, *({name: base[name] + 0.1 * t for name, t in n.items()} for n in noise)]
    return {d: [{name: t.to(d) for name, t in m.items()} for m in models] for d in (torch.float32, torch.bfloat16)}


def merged(
    flavour: Flavour, held: Mapping[torch.dtype, list[dict[str, Tensor]]], dtype: torch.dtype, **how: object
) -> dict[str, Tensor]:
    base, *models = held[dtype]
    found: dict[str, Tensor] = flavour.merge(
        models[: flavour.count(3)], base if flavour.bases[-1] else None, **{**varied(flavour), **how}
    )
    return found


def varied(flavour: Flavour) -> dict[str, object]:
    """Weights that are not exact in binary, so that another order of addition would show."""
    return {"weight": [0.3, 0.7, 1.1]} if "weight" in flavour.method.params.model_fields else {}


def bits(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


@pytest.mark.parametrize("flavour", ALL, ids=str)
def test_threads_and_blocks_change_no_bit(flavour: Flavour, held: dict[torch.dtype, list[dict[str, Tensor]]]) -> None:
    first = bits(merged(flavour, held, torch.float32, threads=1, block=CUT))
    for threads, block in WAYS[1:]:
        other = bits(merged(flavour, held, torch.float32, threads=threads, block=block))
        assert other == first, f"{threads} threads, blocks of {block}"


@pytest.mark.parametrize("flavour", FEW, ids=str)
def test_threads_and_blocks_change_no_bit_of_mixed_dtypes(
    flavour: Flavour, held: dict[torch.dtype, list[dict[str, Tensor]]]
) -> None:
    """Where sources of several dtypes meet, and groups of tensors differ in theirs."""
    mixed = {torch.float32: [dict(m) for m in held[torch.float32]]}
    for i, model in enumerate(mixed[torch.float32]):
        for name in ("embed.w", "layers.1.b") if i else ("embed.w",):
            model[name] = held[torch.bfloat16][i][name]
    first = bits(merged(flavour, mixed, torch.float32, threads=1, block=CUT))
    for threads, block in ((4, CUT), (2, 3 * CUT)):
        assert bits(merged(flavour, mixed, torch.float32, threads=threads, block=block)) == first


@pytest.mark.parametrize("flavour", FEW, ids=str)
def test_a_tensor_is_merged_the_same_in_other_company(
    flavour: Flavour, held: dict[torch.dtype, list[dict[str, Tensor]]]
) -> None:
    """Unless the method looks at the whole model, a tensor's result depends on that tensor alone."""
    if any(s.scope == "model" for s in flavour.surveys()):
        pytest.skip("looks at the whole model")
    whole = bits(merged(flavour, held, torch.float32))
    for name in SHAPES:
        alone = {torch.float32: [{name: m[name]} for m in held[torch.float32]]}
        assert bits(merged(flavour, alone, torch.float32)) == {name: whole[name]}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("flavour", FEW, ids=str)
def test_compiled_is_eager_within_one_rounding(
    flavour: Flavour,
    held: dict[torch.dtype, list[dict[str, Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
    kernel_folder: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", kernel_folder)
    eager = merged(flavour, held, torch.bfloat16)
    compiled = merged(flavour, held, torch.bfloat16, compile="always", threads=2)
    for name, wanted in eager.items():
        apart = (ordered(compiled[name]) - ordered(wanted)).abs().view(wanted.shape)
        # where the update all but cancels the base, one step of float32 at the base is many of a tiny result
        cancelled = (compiled[name].float() - wanted.float()).abs() <= STEP * held[torch.float32][0][name].abs()
        worst = apart.masked_fill(cancelled, 0).max().item()
        assert worst <= 1, f"{name}: {worst} steps of bfloat16"
    first = bits(merged(flavour, held, torch.bfloat16, compile="always", threads=1, block=CUT))
    assert first == bits(compiled)
    for threads, block in ((1, 3 * CUT), (2, 2 * CUT), (4, CUT)):
        other = merged(flavour, held, torch.bfloat16, compile="always", threads=threads, block=block)
        assert bits(other) == first, f"{threads} threads, blocks of {block}"


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("flavour", [f for f in FEW if f.options.get("flavour") == "mergekit"][:2], ids=str)
def test_compiled_elections_hold_where_the_votes_cancel(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, kernel_folder: str
) -> None:
    """0.3 a - 0.3 a is 0 only if each product is rounded before the sum: a fused one would elect its rounding error."""
    monkeypatch.setenv("XDG_CACHE_HOME", kernel_folder)
    first = state_dict(5, {"w": (100_000,)})
    models = [first, {"w": -first["w"]}, {"w": first["w"] * 0}]
    base = {"w": torch.zeros(100_000)}
    chosen = {"weight": [0.3, 0.3, 0.7]}
    eager = flavour.merge(models, base, **chosen)
    assert torch.equal(eager["w"], flavour.merge(models, base, compile="always", **chosen)["w"])


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where kernels are kept, so that each is compiled once and none is left behind."""
    return str(tmp_path_factory.mktemp("cache"))


def ordered(tensor: Tensor) -> Tensor:
    """Integers in the order of the bfloat16s, neighbours one apart."""
    raw = tensor.reshape(-1).view(torch.int16).int()
    return torch.where(raw >= 0, raw, -32768 - raw)
