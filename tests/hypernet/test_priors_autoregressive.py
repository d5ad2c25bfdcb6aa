"""The prior `autoregressive`: blocks, caches, codes drawn by chance or the likeliest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Sampling
from paramsmith.hypernet.priors.autoregressive import Autoregressive, AutoregressivePrior, Block, blocks
from paramsmith.parts import priors
from tests.hypernet.latentplaces import WIDTH, noise_of, paired, places_of, site_of, trained, woken

pytestmark = pytest.mark.usefixtures("one_thread")

B, L, LEVELS, CODES = 3, 11, 2, 8


def prior_of(levels: int = LEVELS, **options: Any) -> AutoregressivePrior:
    torch.manual_seed(0)
    prior = AutoregressivePrior(Autoregressive(codes=CODES, **options), site_of(L, levels))
    woken(prior)
    with torch.no_grad():  # so that what was read matters
        prior.before.mul_(50)
        prior.above.mul_(50)
        for head in prior.heads:
            head[-1].weight.mul_(4)  # type: ignore[index, union-attr, operator]
    return prior


def codes_of(count: int = B, levels: int = LEVELS, length: int = L) -> Tensor:
    return torch.randint(CODES, (count, length, levels), generator=torch.Generator().manual_seed(2)).float()


def asked_of(count: int = B, length: int = L) -> Tensor:
    return torch.randn(count, length, WIDTH, generator=torch.Generator().manual_seed(4))


def whole(prior: AutoregressivePrior, codes: Tensor, asked: Tensor, length: int = L) -> Tensor:
    return prior.logits(codes.long(), asked, places_of(length, codes.shape[2]), Block(0, 0, length))


def test_is_registered() -> None:
    assert priors.find("autoregressive").make is AutoregressivePrior


@torch.no_grad()
def test_a_code_is_told_by_those_before_it_alone() -> None:
    prior, codes, asked = prior_of(), codes_of(), asked_of()
    told = whole(prior, codes, asked)
    assert told.shape == (B, L, LEVELS, CODES)
    changed = codes.clone()
    changed[:, 4, 0] = (changed[:, 4, 0] + 1) % CODES
    differs = ((whole(prior, changed, asked) - told).abs().amax((0, 3)) > 1e-5).flatten().tolist()
    assert differs == [False] * (4 * LEVELS + 1) + [True] * (L * LEVELS - 4 * LEVELS - 1)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 3}])
def test_samples_with_a_cache_are_those_without(options: dict[str, Any], guidance: float) -> None:
    prior, asked, places = prior_of(**options), asked_of(), places_of(L, LEVELS)
    found = prior.sample(asked, places, noise_of(range(B)), Sampling(guidance=guidance))
    chances = torch.special.ndtr(noise_of(range(B))("codes", (L, LEVELS)).double())
    codes = torch.zeros(B, L, LEVELS)
    for i in range(L):
        for level in range(LEVELS):
            told = whole(prior, codes, asked)[:, i, level]
            none = whole(prior, codes, prior.null.code.expand_as(asked))[:, i, level]
            logits = none + guidance * (told - none)
            codes[:, i, level] = drawn(logits, chances[:, i, level], **options)
    assert torch.equal(found, codes)
    assert len(found.unique()) > 3


def drawn(logits: Tensor, chances: Tensor, temperature: float = 1.0, top_k: int = CODES) -> Tensor:
    """One code of each row, row by row."""
    rows = []
    for row, chance in zip(logits.double(), chances, strict=True):
        if not temperature:
            rows.append(int(row.argmax()))
            continue
        kept = sorted(range(CODES), key=lambda code: -float(row[code]))[:top_k]
        weights = [float((row[code] / temperature).exp()) if code in kept else 0.0 for code in range(CODES)]
        below = [code for code in range(CODES) if sum(weights[: code + 1]) <= float(chance) * sum(weights)]
        rows.append(len(below))
    return torch.tensor(rows, dtype=torch.float32)


@torch.no_grad()
def test_codes_are_drawn_as_often_as_their_probability_says() -> None:
    prior = prior_of()
    logits = torch.tensor([0.1, 0.0, 0.5, 0.1, 0.0, 0.2, 0.05, 0.05]).log().expand(2000, -1)
    chances = torch.special.ndtr(torch.randn(2000, generator=torch.Generator().manual_seed(0)).double())
    found = torch.bincount(prior._chosen(logits, chances), minlength=CODES) / 2000
    torch.testing.assert_close(found, logits[0].exp(), rtol=0, atol=0.04)
    assert not found[[1, 4]].any()
    last = torch.tensor([1 - 2e-8], dtype=torch.float64)  # as near to 1 as a normal number takes it
    assert int(prior._chosen(torch.tensor([[1.0, 2.0, -torch.inf]]), last)) == 1


def test_a_sample_depends_on_its_seed_and_condition_alone() -> None:
    prior, asked, places = prior_of(context=6), asked_of(), places_of(L, LEVELS)
    together = prior.sample(asked, places, noise_of(range(B)), Sampling())
    assert torch.equal(together, prior.sample(asked, places, noise_of(range(B)), Sampling()))
    for i in range(B):
        assert torch.equal(prior.sample(asked[i : i + 1], places, noise_of([i]), Sampling())[0], together[i])
    assert not torch.equal(together, prior.sample(asked, places, noise_of([5, 6, 7]), Sampling()))
    one = prior.sample(asked[:, :1], places, noise_of(range(B)), Sampling())
    assert torch.equal(one, prior.sample(asked[:, :1].expand(-1, L, -1), places, noise_of(range(B)), Sampling()))


@pytest.mark.parametrize(
    ("length", "context", "tail", "wanted"),
    [
        (5, 8, 2, [(0, 0, 5)]),
        (8, 8, 2, [(0, 0, 8)]),
        (9, 8, 2, [(0, 0, 8), (6, 8, 9)]),
        (20, 8, 2, [(0, 0, 8), (6, 8, 14), (12, 14, 20)]),
    ],
)
def test_blocks(length: int, context: int, tail: int, wanted: list[tuple[int, int, int]]) -> None:
    assert [tuple(block) for block in blocks(length, context, tail)] == wanted


@torch.no_grad()
def test_in_blocks_as_in_one_where_it_fits() -> None:
    places, asked = places_of(L, LEVELS), asked_of()
    once, long = (prior_of(context=size).sample(asked, places, noise_of(range(B)), Sampling()) for size in (L, 1000))
    assert torch.equal(once, long)
    cut = prior_of(context=6, tail=2)
    found = cut.sample(asked, places, noise_of(range(B)), Sampling())
    assert torch.equal(found[:, :6], once[:, :6])  # the first block reads the same
    # a later block reads the tail of the one before, and no more: what is drawn is what its logits say of that
    chances = torch.special.ndtr(noise_of(range(B))("codes", (L, LEVELS)).double())
    for block in [*blocks(L, 6, 2)][1:]:
        logits = cut.logits(found.long(), asked, places, block)
        for level in range(LEVELS):
            for i in range(block.start, block.end):
                wanted = drawn(logits[:, i - block.start, level], chances[:, i, level])
                assert torch.equal(found[:, i, level], wanted)
    block = Block(4, 6, 10)
    logits = cut.logits(found.long(), asked, places, block)
    for place, matters in ((2, False), (5, True)):
        other = found.clone()
        other[:, place] = (other[:, place] + 1) % CODES
        assert bool((cut.logits(other.long(), asked, places, block) != logits).any()) is matters


def test_loss_is_the_mean_over_all_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over blocks, each as often as it has positions; without padding."""
    prior, places = prior_of(context=6, tail=2, dropout=0.0), places_of(L, LEVELS)
    codes, asked = codes_of(), asked_of()
    places.mask[3] = False
    places.mask[10, 1] = False
    for block in blocks(L, 6, 2):
        with torch.no_grad():
            chances = prior.logits(codes.long(), asked, places, block).log_softmax(-1)
            new = slice(block.start, block.end)
            wrong = -chances.gather(-1, codes[:, new].long()[..., None])[..., 0]
            wanted = (wrong * places.mask[new]).sum() / (B * places.mask[new].sum())
        for drawn_place in range(block.start, block.end):
            monkeypatch.setattr(torch, "randint", lambda *_, drawn_place=drawn_place: torch.tensor(drawn_place))
            torch.testing.assert_close(prior.loss(codes, asked, places), wanted)


def test_padding_is_drawn_as_zero_and_read_as_such() -> None:
    prior, places, asked = prior_of(), places_of(L, LEVELS), asked_of()
    places.mask[3] = False
    found = prior.sample(asked, places, noise_of(range(B)), Sampling())
    assert not found[:, 3].any()
    assert found[:, 4:].any()


def test_every_parameter_learns_and_any_number_of_levels() -> None:
    for levels in (1, 3):
        prior = prior_of(levels, dropout=0.5)
        torch.manual_seed(0)
        prior.loss(codes_of(levels=levels), asked_of(), places_of(L, levels)).backward()
        silent = [name for name, held in prior.named_parameters() if held.numel() and held.grad is None]
        assert not silent
        found = prior.sample(asked_of(), places_of(L, levels), noise_of(range(B)), Sampling())
        assert found.shape == (B, L, levels)
        assert found.dtype == torch.float32


def test_four_networks_are_memorised() -> None:
    torch.manual_seed(1)
    prior, places = AutoregressivePrior(Autoregressive(codes=CODES, temperature=0.0), site_of(L, 2)), places_of(L, 2)
    codes, asked = codes_of(4), asked_of(4)[:, :1]
    prior.fit(paired(codes, asked, places))
    losses = trained(prior, lambda: (codes, asked), places, 120)
    assert losses[0] > 1.8
    found = prior.eval().sample(asked, places, noise_of(range(4)), Sampling())
    assert float((found == codes).float().mean()) > 0.97


def test_latents_that_are_no_codes() -> None:
    prior, places = prior_of(), places_of(L, LEVELS)
    prior.fit(paired(codes_of(), asked_of(), places))
    for wrong in (0.5, -1.0, float(CODES), torch.nan):
        codes = codes_of()
        codes[1, 2, 0] = wrong
        with pytest.raises(InvalidInput, match="draws codes below 8"):
            prior.fit(paired(codes, asked_of(), places))


def test_what_it_cannot_do() -> None:
    with pytest.raises(InvalidInput, match="would hold"):
        AutoregressivePrior(Autoregressive(codes=65_536), site_of(L, 1000))
    with pytest.raises(InvalidInput, match="a tail of 6"):
        prior_of(context=6, tail=6)
    with pytest.raises(InvalidInput, match="a step a position"):
        prior_of().sample(asked_of(), places_of(L, LEVELS), noise_of(range(B)), Sampling(steps=4))


def test_paper_size() -> None:
    """27.8 M parameters in the paper, for one level of 256 codes."""
    with torch.device("meta"):
        prior = AutoregressivePrior(Autoregressive(codes=256, size="paper"), site_of(L, 1))
    assert sum(held.numel() for held in prior.parameters()) == pytest.approx(26.3e6, rel=0.03)
