"""Sets of words as codes: padding, order, empty sets, hostile conditions, and the sizes that the paper states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.words import Words, WordsEncoder
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.vocabulary.data import site_of

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parent.parent / "oracles" / "hyperofa_loss_sizes_factorisation.json").read_text())
KINDS = ("deepsets", "bilstm", "setformer")
SPEC = TargetSpec((Slot("row", (6,), "F32", "embedding", 1),))
SIZES = {  # layers, hidden, rank
    "HN-R-100": (2, 800, 100),
    "HN-R-200": (2, 800, 200),
    "HN-R-400": (2, 1600, 400),
    "HN-X-100": (4, 800, 100),
    "HN-X-200": (4, 800, 200),
    "HN-X-400": (4, 1600, 400),
}


def encoder(kind: str, **options: object) -> WordsEncoder:
    torch.manual_seed(0)
    chosen = Words.model_validate({"kind": kind, "hidden": 8, "layers": 2, **options})
    return WordsEncoder(chosen, Site(5, SPEC, {"set": (0, 3)})).eval()


def code(made: WordsEncoder, words: Tensor, mask: Tensor | None = None) -> Tensor:
    condition = {"set": words} if mask is None else {"set": words, "mask": mask}
    with torch.no_grad():
        return made(condition, SPEC)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_whatever_it_holds(kind: str) -> None:
    made, words = encoder(kind), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    padded = words.clone()
    padded[~mask] = float("nan")
    found = code(made, torch.cat([padded, torch.full((2, 5, 3), 1e30)], 1), torch.cat([mask, torch.zeros(2, 5) > 0], 1))
    assert found.shape == (2, 1, 5)
    for row, size in enumerate((3, 1)):
        torch.testing.assert_close(found[row : row + 1], code(made, words[row : row + 1, :size]))


@pytest.mark.parametrize("kind", KINDS)
def test_holes_within_a_set_are_no_words_either(kind: str) -> None:
    made, words = encoder(kind), torch.randn(1, 4, 3)
    mask = torch.tensor([[False, True, False, True]])
    torch.testing.assert_close(code(made, words, mask), code(made, words[:, [1, 3]]))


@pytest.mark.parametrize("kind", ["deepsets", "setformer"])
def test_a_set_has_no_order(kind: str) -> None:
    made, words = encoder(kind), torch.randn(2, 5, 3)
    torch.testing.assert_close(code(made, words), code(made, words[:, [3, 0, 4, 2, 1]]))


def test_an_lstm_reads_in_both_directions() -> None:
    made, words = encoder("bilstm"), torch.randn(1, 5, 3)
    for place in (0, 2, 4):
        changed = words.clone()
        changed[:, place] += 1
        assert (code(made, changed) - code(made, words)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_set_has_a_code_and_a_gradient_without_nan(kind: str) -> None:
    made = encoder(kind).train()
    mask = torch.tensor([[False, False], [True, True]])
    found = made({"set": torch.randn(2, 2, 3), "mask": mask}, SPEC)
    found.square().sum().backward()
    assert torch.isfinite(found).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())
    assert not torch.equal(found[0], found[1])


def test_words_come_in_standardised() -> None:
    made, words = encoder("deepsets"), torch.randn(1, 4, 3)
    before = code(made, words)
    vectors = torch.randn(100, 3)
    vectors = (vectors - vectors.mean(0)) / (vectors - vectors.mean(0)).square().mean().sqrt()
    made.standardise(vectors * 7 + 3)
    torch.testing.assert_close(code(made, words * 7 + 3), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"set": torch.zeros(2, 3)},
        {"set": torch.zeros(2, 4, 2)},
        {"set": torch.zeros(2, 0, 3)},
        {"set": torch.zeros(2, 4, 3), "mask": torch.ones(2, 3)},
        {"set": torch.full((1, 1, 3), float("nan"))},
    ],
)
def test_a_condition_that_is_no_set_is_refused(condition: dict[str, Tensor]) -> None:
    with pytest.raises(InvalidInput):
        encoder("deepsets")(condition, SPEC)


def test_a_site_without_sets_and_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InvalidInput, match="wants a condition `set`"):
        WordsEncoder(Words(), Site(5, SPEC, {"vector": (3,)}))
    with pytest.raises(InvalidInput, match="3 heads do not divide"):
        encoder("setformer", heads=3)


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_sizes(name: str) -> None:
    layers, hidden, rank = SIZES[name]
    with torch.device("meta"):
        options = {"kind": "bilstm", "layers": layers, "hidden": hidden, "rank": rank}
        made = Generator.build("hyperofa", site_of(200, 768), **options).hypernetwork
    count = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert count == ORACLE["trainable_parameters"][name]


def test_the_papers_sizes_follow_from_the_rank() -> None:
    with torch.device("meta"):
        made = Generator.build("hyperofa", site_of(200, 768), kind="bilstm", rank=400).hypernetwork
    assert sum(p.numel() for p in made.parameters()) == ORACLE["trainable_parameters"]["HN-R-400"]
