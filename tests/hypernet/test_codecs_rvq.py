"""The codec `rvq`: codebooks, codes, and those that follow an encoder."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.codecs.codebooks import (
    k_means,
    looked_up,
    nearest,
    quantised,
    residual_k_means,
    sums_by_code,
    uniform_sample,
)
from paramsmith.hypernet.codecs.learned_codes import Averages
from paramsmith.hypernet.codecs.rvq import ComputedRvq, LearnedRvq, Rvq, rvq
from paramsmith.hypernet.seeding import seeded
from tests.hypernet.stublayout import batches, networks, rows, site

pytestmark = pytest.mark.usefixtures("one_thread")


def fitted(layout: Any, tokens: Tensor, size: int = 7, **options: Any) -> Any:
    codec = rvq(Rvq(**{"chunk": 2, "codes": 8, **options}), site(layout))
    assert isinstance(codec, ComputedRvq)
    codec.fit(batches(layout, tokens, size))
    return codec


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_code_is_nearest() -> None:
    vectors, book = drawn(500, 5), drawn(9, 5, seed=1)
    assert torch.equal(nearest(vectors, book), torch.cdist(vectors, book).argmin(1))


def test_gumbel_noise_draws_codes_by_their_distance() -> None:
    vectors, book = torch.zeros(20_000, 1), torch.tensor([[1.0], [2.0], [3.0]])
    torch.manual_seed(0)
    shares = nearest(vectors, book, temperature=4.0).bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.softmax(-(book[:, 0] ** 2) / 4, 0), atol=0.01, rtol=0)
    assert (nearest(vectors, book, temperature=1e-6) == 0).all()


def test_codes_add_up() -> None:
    books = drawn(3, 7, 4)
    vectors = drawn(40, 4, seed=1)
    codes, residuals = quantised(vectors, books)
    torch.testing.assert_close(looked_up(codes, books) + residuals[-1], vectors)
    for level in range(3):
        assert torch.equal(codes[:, level], nearest(residuals[level], books[level]))


def test_sums_are_those_of_each_code() -> None:
    vectors, codes = drawn(50, 3), torch.arange(50) % 4
    counts, sums = sums_by_code(vectors, codes, 5)
    assert counts.tolist() == [13, 13, 12, 12, 0]
    torch.testing.assert_close(sums[1], vectors[codes == 1].sum(0))


def test_k_means_finds_clusters_and_moves_codes_that_nothing_is_near() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    vectors = (centres[:, None] + 0.1 * drawn(4, 50, 2)).flatten(0, 1)
    vectors[:8] = centres[0]  # what it begins with: one point, eight times, so that seven codes are dead
    book = k_means(vectors, 8, 10)
    assert len(nearest(vectors, book).unique()) == 8
    assert torch.cdist(centres, book).min(1).values.max() < 0.2


def test_codes_beyond_the_vectors_are_zero() -> None:
    vectors = drawn(3, 2)
    book = k_means(vectors, 5, 4)
    assert torch.equal(book[:3], vectors)
    assert (book[3:] == 0).all()


def test_each_level_halves_what_is_left() -> None:
    vectors = drawn(2000, 2)
    books = residual_k_means(vectors, 3, 16, 10)
    left = [residual.square().mean().item() for residual in quantised(vectors, books)[1]]
    assert all(after < 0.3 * before for before, after in pairwise(left))


def test_a_sample_is_the_same_however_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = drawn(3000, 2)
    one, other = (uniform_sample(iter(vectors.split(size)), 4, seed=3) for size in (100, 3000))
    assert torch.equal(one, other)
    assert len(one) == 4 * 256
    assert len(one.unique(dim=0)) == 4 * 256
    first = (one[:, None] == vectors[:1500]).all(2).any(1).float().mean()
    assert 0.42 < first < 0.58  # as many from the first half as from the second
    assert not torch.equal(one, uniform_sample(iter([vectors]), 4, seed=4))


def test_two_levels_beat_one_and_more_codes_beat_fewer() -> None:
    layout = rows()
    tokens, fresh = networks(layout, 200, rank=12), networks(layout, 40, seed=1, rank=12)

    def away(**options: Any) -> float:
        codec = fitted(layout, tokens, **options)
        return float((codec.decode(codec.encode(fresh, layout), layout) - fresh).norm() / fresh.norm())

    assert away(levels=2) < 0.6 * away(levels=1)
    assert away(levels=1, codes=64) < 0.6 * away(levels=1)
    assert away(levels=4, codes=64) < 0.1


def test_codes_and_latents() -> None:
    layout = rows(padding=1)
    tokens = networks(layout, 60)
    codec = fitted(layout, tokens)
    codes = codec.codes_of(tokens, layout)
    there = codec.places(layout).mask
    assert codes.shape == (60, 8 * 4, 2)
    assert codes.dtype == torch.int64
    assert there.sum(1).bool().tolist() == [True] * 16 + [True, True, False, False] * 3 + [False] * 4
    assert (codes[:, ~there[:, 0]] == 0).all()
    assert torch.equal(codec.encode(tokens, layout), codes.float())
    restored = codec.tokens_of(codes, layout)
    assert torch.equal(codec.decode(codes + 0.4, layout), restored)
    wild = torch.tensor([float("nan"), 1e9, -1e9, float("inf")]).repeat(16)[:32, None].expand(1, 32, 2)
    assert torch.isfinite(codec.decode(wild, layout)).all()


def test_latents_may_be_vectors() -> None:
    layout = rows()
    tokens = networks(layout, 60)
    codec = fitted(layout, tokens, latent="vectors")
    plain = fitted(layout, tokens)
    latent = codec.encode(tokens, layout)
    assert latent.shape == (60, 28, 2)
    torch.testing.assert_close(codec.decode(latent, layout), plain.decode(plain.encode(tokens, layout), layout))
    moved = codec.decode(latent + 1e-2, layout) - codec.decode(latent, layout)
    torch.testing.assert_close(moved, 1e-2 * layout.places.mask.expand_as(moved), rtol=1e-3, atol=1e-6)


def test_places_of_chunks_are_those_of_their_tokens() -> None:
    layout = rows(classes=3)
    places = fitted(layout, networks(layout, 9)).places(layout)
    assert places.classes.tolist() == [-1] * 16 + [0] * 4 + [1] * 4 + [2] * 4
    assert places.slots.tolist() == [0] * 16 + [1] * 12
    assert len(places.features.unique(dim=0)) == 28
    whole = fitted(layout, networks(layout, 9), chunk=7).places(layout)
    assert torch.equal(whole.features, layout.places.features)


def test_batches_of_any_size_and_seeds() -> None:
    layout = rows()
    tokens = networks(layout, 60)
    assert torch.equal(fitted(layout, tokens, 60).books, fitted(layout, tokens, 4).books)
    assert not torch.equal(fitted(layout, tokens).books, fitted(layout, tokens, seed=1).books)


def test_a_zoo_of_no_numbers_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not one chunk"):
        fitted(rows(), torch.zeros(0, 7, 7))


def test_averages_go_to_the_means_of_their_vectors() -> None:
    books = torch.tensor([[[-1.0], [1.0]]])
    averages = Averages(books, 0.5, 0.1)
    averages.usage.fill_(10.0)
    averages.sums.copy_(books * 10)
    vectors = torch.tensor([[-3.0]] * 10 + [[3.0]] * 10)
    averages.follow(books, vectors[None], nearest(vectors, books[0])[:, None])
    torch.testing.assert_close(books, torch.tensor([[[-2.0], [2.0]]]))
    for _ in range(30):
        averages.follow(books, vectors[None], nearest(vectors, books[0])[:, None])
    torch.testing.assert_close(books, torch.tensor([[[-3.0], [3.0]]]))


def test_codes_that_nothing_uses_come_back() -> None:
    books = torch.tensor([[[0.0], [1000.0], [2000.0], [3000.0]]])
    averages = Averages(books, 0.5, 0.05)
    averages.usage.fill_(25.0)
    averages.sums.copy_(books * 25)
    vectors = drawn(100, 1)
    torch.manual_seed(0)
    before = len(nearest(vectors, books[0]).unique())
    for _ in range(40):
        averages.follow(books, vectors[None], nearest(vectors, books[0])[:, None])
    assert before == 1
    assert len(nearest(vectors, books[0]).unique()) == 4
    assert (vectors - books[0][nearest(vectors, books[0])]).square().mean() < 0.25 * vectors.square().mean()


def test_numbers_that_are_not_finite_move_no_code() -> None:
    layout = rows()
    tokens = networks(layout, 30)
    with seeded(0):
        codec = rvq(Rvq(chunk=2, codes=8, learned=True, width=16, vector=4), site(layout))
    assert isinstance(codec, LearnedRvq)
    torch.manual_seed(0)
    bad = torch.where(torch.arange(30)[:, None, None] == 3, torch.nan, tokens)
    codec.train().loss(bad, layout)
    assert (codec.books == 0).all()
    codec.loss(tokens, layout)
    begun = {key: value.clone() for key, value in codec.state_dict().items()}
    assert begun["books"].any()
    assert not torch.isfinite(codec.loss(bad, layout))
    assert all(torch.equal(value, begun[key]) for key, value in codec.state_dict().items())


def test_learned_codes_follow_in_training_alone() -> None:
    layout = rows()
    tokens = networks(layout, 30)
    with seeded(0):
        codec = rvq(Rvq(chunk=2, codes=8, learned=True, width=16, vector=4), site(layout))
    assert isinstance(codec, LearnedRvq)
    assert not hasattr(codec, "fit")
    torch.manual_seed(0)
    codec.train().loss(tokens, layout)
    begun = codec.books.clone()
    assert begun.abs().sum() > 0
    codec.eval().loss(tokens, layout)
    assert torch.equal(codec.books, begun)
    codec.train().loss(2 * tokens, layout)
    assert not torch.equal(codec.books, begun)
    assert "averages.usage" in codec.state_dict()


def test_the_loss_is_its_equation() -> None:
    layout = rows()
    tokens = networks(layout, 6)
    with seeded(0):
        codec = rvq(Rvq(chunk=7, codes=8, learned=True, width=16, vector=4, commitment=0.5), site(layout))
    assert isinstance(codec, LearnedRvq)
    codec.books.copy_(drawn(2, 8, 4))
    z = codec.eval().encoder(tokens, codec.places(layout).features)
    codes, _ = quantised(z.flatten(0, 1), codec.books)
    sums = [looked_up(codes[:, : level + 1], codec.books[: level + 1]).view_as(z) for level in range(2)]
    wrong = (codec.decoder(sums[-1], codec.places(layout).features) - tokens)[:, layout.places.mask]
    expected = wrong.square().mean() + 0.5 * torch.stack([z - e for e in sums]).square().mean()
    found = codec.loss(tokens, layout)
    torch.testing.assert_close(found, expected)
    restored = codec.decode(codec.encode(tokens, layout), layout)
    torch.testing.assert_close((restored - tokens)[:, layout.places.mask], wrong)


def test_gradients_go_straight_through_the_codes() -> None:
    layout = rows()
    tokens = networks(layout, 6)
    with seeded(0):
        codec = rvq(Rvq(chunk=7, codes=8, learned=True, width=16, vector=4, commitment=0.0), site(layout))
    assert isinstance(codec, LearnedRvq)
    torch.manual_seed(0)
    codec.train().loss(tokens, layout).backward()
    slope = codec.encoder.out.weight.grad
    assert slope is not None
    assert slope.abs().sum() > 0
