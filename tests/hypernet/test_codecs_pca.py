"""The codec `pca`: numpy's decomposition is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.codecs import principal as components
from paramsmith.hypernet.codecs.pca import Pca, PcaCodec
from paramsmith.hypernet.codecs.principal import principal
from tests.hypernet.stublayout import batches, networks, rows, site

pytestmark = pytest.mark.usefixtures("one_thread")


def fitted(layout: Any, tokens: torch.Tensor, size: int = 7, **options: Any) -> PcaCodec:
    codec = PcaCodec(Pca(**options), site(layout))
    codec.fit(batches(layout, tokens, size))
    return codec


@pytest.mark.parametrize("count", [20, 90], ids=["dual", "direct"])  # fewer, or more, than the 49 numbers of a network
@pytest.mark.parametrize("held", [1 << 26, 100], ids=["at once", "in pieces"])
def test_components_are_those_of_a_singular_value_decomposition(
    count: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "_HELD", held)
    layout = rows()
    tokens = networks(layout, count, rank=8)
    codec = fitted(layout, tokens, rank=6)
    vectors = tokens.flatten(1).double().numpy()
    mean = vectors.mean(0)
    _, singular, right = np.linalg.svd(vectors - mean, full_matrices=False)
    right = right[:6] * np.sign(right[:6][range(6), np.abs(right[:6]).argmax(1)])[:, None]
    np.testing.assert_allclose(codec.mean[0], mean, atol=1e-6)
    np.testing.assert_allclose(codec.singular[0], singular[:6], rtol=1e-5)
    np.testing.assert_allclose(codec.components[0], right, atol=1e-5)
    latent = codec.encode(tokens, layout)
    np.testing.assert_allclose(latent[:, 0], (vectors - mean) @ right.T, atol=1e-4)
    np.testing.assert_allclose(
        codec.decode(latent, layout).flatten(1), mean + (vectors - mean) @ right.T @ right, atol=1e-4
    )


@pytest.mark.parametrize("count", [20, 90])
def test_batches_of_any_size_give_the_same_components(count: int) -> None:
    layout = rows()
    tokens = networks(layout, count)
    one, other = (fitted(layout, tokens, size, rank=3) for size in (3, count))
    torch.testing.assert_close(one.components, other.components, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [3, 4, 9, 12])
def test_there_are_at_most_half_as_many_components_as_networks(count: int) -> None:
    layout = rows()
    tokens = networks(layout, count, rank=30)
    codec = fitted(layout, tokens, rank=40)
    assert codec.components.shape[1] == 40
    assert int(codec.count) == count // 2
    assert codec.places(layout).mask.sum() == count // 2
    assert (codec.components[0, count // 2 :] == 0).all()
    assert (codec.encode(tokens, layout)[..., count // 2 :] == 0).all()
    away = codec.decode(codec.encode(tokens, layout), layout) - tokens
    assert away.norm(dim=(1, 2)).min() > 0.01 * tokens.norm(dim=(1, 2)).max()  # no network is held exactly


def test_directions_of_rounding_are_no_components() -> None:
    layout = rows()
    line = torch.arange(20.0)[:, None, None] * networks(layout, 1)
    codec = fitted(layout, line, rank=8)
    assert int(codec.count) == 1
    torch.testing.assert_close(codec.decode(codec.encode(line, layout), layout), line, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per", ["network", "token"])
def test_whitened_coordinates_have_unit_variance(per: str) -> None:
    layout = rows()
    tokens = networks(layout, 40)
    plain = fitted(layout, tokens, rank=2, per=per)
    white = fitted(layout, tokens, rank=2, per=per, whiten=True)
    latent = white.encode(tokens, layout)
    together = [latent[:, :4].flatten(0, 1), latent[:, 4:].flatten(0, 1)] if per == "token" else [latent[:, 0]]
    for vectors in together:
        torch.testing.assert_close(vectors.std(0), torch.ones(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        white.decode(latent, layout), plain.decode(plain.encode(tokens, layout), layout), rtol=1e-4, atol=1e-4
    )


def test_tokens_of_one_tensor_share_their_components() -> None:
    layout = rows(padding=1)
    tokens = networks(layout, 30)
    codec = fitted(layout, tokens, rank=3, per="token")
    for group, where, width in ((0, slice(0, 4), 7), (1, slice(4, 7), 4)):
        vectors = tokens[:, where].flatten(0, 1).double().numpy()[:, :width]
        _, singular, right = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        right = right[:3] * np.sign(right[:3][range(3), np.abs(right[:3]).argmax(1)])[:, None]
        np.testing.assert_allclose(codec.singular[group], singular[:3], rtol=1e-5)
        np.testing.assert_allclose(codec.components[group, :, :width], right, atol=1e-5)
    assert (codec.components[2] == 0).all()  # tokens of padding belong to no tensor
    assert codec.places(layout).mask.sum(1).tolist() == [3] * 7 + [0]


def test_a_network_that_was_never_seen_comes_back_as_well_as_its_directions_are_known() -> None:
    layout = rows()
    codec = fitted(layout, networks(layout, 40), rank=3)
    fresh = networks(layout, 10, seed=1)
    away = codec.decode(codec.encode(fresh, layout), layout) - fresh
    assert away.norm() < 0.02 * fresh.norm()  # the noise, of 0.01


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_networks_are_refused(count: int) -> None:
    layout = rows()
    with pytest.raises(InvalidInput, match="fewer than 3 networks"):
        fitted(layout, networks(layout, count))


def test_matrices_that_are_too_large_to_decompose_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "LARGEST", 10)
    layout = rows()
    with pytest.raises(InvalidInput, match="12 vectors of 49 numbers have a matrix of 12 rows"):
        fitted(layout, networks(layout, 12))


def test_the_number_that_is_zero_everywhere_has_no_part_in_a_component() -> None:
    vectors = torch.randn(12, 1, 5, generator=torch.Generator().manual_seed(0))
    vectors[..., 2] = 4.0
    mask = torch.ones(1, 5, dtype=torch.bool)
    found = principal(lambda: iter([(vectors, torch.zeros(1, dtype=torch.int64), mask)]), 1, 3)
    assert found.components[0, :, 2].abs().max() < 1e-12
    assert found.components.dtype == torch.float64
    assert int(found.count) == 3
