"""Families of architectures: what is drawn, that it runs, that unseen ones are unseen, what options are refused."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import pytest
import torch

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.families import gpt, vit
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.family import Pool, between, family
from paramsmith.parts import families

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Mapping[str, object]] = {
    "mlp": {"inputs": 12, "classes": 3},
    "cnn": {"image": 8, "channels": 1, "classes": 3, "widths": (8, 16)},
    "cnn of batch norms": {"image": 8, "channels": 1, "classes": 3, "widths": (8, 16), "norm": "batch"},
    "vit": {"image": 8, "channels": 1, "classes": 3, "layers": (1, 2), "dims": (12, 24), "step": 4},
    "gpt": {"words": 11, "context": 6, "layers": (1, 2), "dims": (8, 16), "heads": 2},
}
each_family = pytest.mark.parametrize("name", SMALL)


def small(name: str, **options: object) -> Pool:
    found = family(name.partition(" ")[0], **{"count": 4, "test_count": 2, **SMALL[name], **options})
    assert isinstance(found, Pool)
    return found


def weights(target: Target, count: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    lead = (count,) if count else ()
    return {slot.name: 0.2 * torch.randn(*lead, *slot.shape, generator=rng) for slot in target.spec.slots}


def inputs(name: str, rows: int = 5) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    if name == "gpt":
        return torch.randint(11, (rows, 6), generator=rng)
    return torch.randn(rows, 12, generator=rng) if name == "mlp" else torch.randn(rows, 1, 8, 8, generator=rng)


def test_every_family_is_tested() -> None:
    assert {name.partition(" ")[0] for name in SMALL} == set(families.all())


@each_family
def test_a_family_is_the_same_for_the_same_seed(name: str) -> None:
    """And torch's own generator is as it was; a target is made once."""
    before = torch.get_rng_state()
    pool, again, other = small(name), small(name), small(name, seed=1)
    assert pool.architectures() == again.architectures()
    assert pool.architectures("test") == again.architectures("test")
    assert pool.architectures() != other.architectures()
    drawn = [pool.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0)]
    assert drawn[0] is drawn[1]
    assert torch.equal(before, torch.get_rng_state())


@each_family
def test_unseen_architectures_are_not_trained_on(name: str) -> None:
    pool = small(name, count=1000, test_count=1000)
    trained, unseen = pool.architectures(), pool.architectures("test")
    assert len(set(trained)) == len(trained)
    assert not set(trained) & set(unseen)
    assert unseen
    if name == "vit":  # there are fewer than are asked for: a fifth is held out
        assert len(unseen) == (len(trained) + len(unseen)) // 5


@each_family
def test_its_networks_run_side_by_side(name: str) -> None:
    """The graph is that of the operations; many networks at once give what one after the other does, gradients too."""
    target = small(name).sample(torch.Generator().manual_seed(0))
    assert target.spec.graph is not None
    assert target.spec.graph.source == "export"
    held, x = weights(target, 3), inputs(name)
    made = target.call_many(held, x, shared=True)
    assert made.shape == ((3, 5, 6, 11) if name == "gpt" else (3, 5, 3))
    for i in range(3):
        torch.testing.assert_close(target.call({n: w[i] for n, w in held.items()}, x), made[i])
    leaves = {n: w.requires_grad_() for n, w in held.items()}
    slopes = torch.autograd.grad(target.call_many(leaves, x, shared=True).square().sum(), list(leaves.values()))
    assert all(bool((slope != 0).any()) for slope in slopes)


def test_the_networks_of_gpt_look_back_only() -> None:
    target = small("gpt").sample(torch.Generator().manual_seed(0))
    held, tokens = weights(target), inputs("gpt")
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    a, b = target.call(held, tokens), target.call(held, changed)
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4:], b[:, 4:])


def test_batch_norms_keep_no_statistics() -> None:
    spec = small("cnn of batch norms").sample(torch.Generator().manual_seed(0)).spec
    assert not spec.buffers
    assert {slot.role for slot in spec.slots} >= {"kernel", "norm_scale", "norm_shift", "head"}


def test_the_defaults_of_transformers_are_those_of_the_paper() -> None:
    """Widths by depth, heads that divide, sizes up to 10 and 30 million."""
    assert (vit.ViT().count, gpt.GPT().count) == (1000, 1000)
    pool = vit.vit(vit.ViT(count=12, test_count=4))
    for split in ("train", "test"):
        for layers, width, heads in pool.architectures(split):
            low, high = vit.dims_of(layers)
            assert 3 <= layers <= 9
            assert low <= width <= high
            assert width % 32 == 0 == width % heads
    words = gpt.gpt(gpt.GPT(count=4, test_count=1))
    for layers, width in words.architectures():
        low, high = gpt.dims_of(layers)
        assert low <= width <= high
        assert width % 8 == 0
    target = words.target(words.architectures()[0])
    assert sum(prod(slot.shape) for slot in target.spec.slots) <= 30_000_000
    head = next(slot for slot in target.spec.slots if slot.role == "head")
    assert head.shape[0] == 50257
    assert not any(slot.copies for slot in target.spec.slots)
    assert next(slot for slot in target.spec.slots if slot.role == "embedding").std == 0.02


def test_any_of_the_pool_may_be_drawn() -> None:
    pool = small("mlp", layers=(1, 1))
    drawn = {pool.sample(torch.Generator().manual_seed(seed)).spec.slots[0].shape[0] for seed in range(40)}
    assert drawn == {width for (width,) in pool.architectures()}


def test_unseen_ones_may_be_larger() -> None:
    pool = small("mlp", layers=(1, 2), test={"layers": (5, 6), "widths": (128, 128)}, test_count=2)
    assert {len(a) for a in pool.architectures()} == {1, 2}
    assert pool.architectures("test") == [(128,) * 6, (128,) * 5]
    target = pool.sample(torch.Generator().manual_seed(0), "test")
    assert target.spec.slots[2].shape == (128, 128)


def test_widths_are_drawn_evenly_or_by_their_logarithms() -> None:
    rng = np.random.default_rng(0)
    even = [between(rng, (16, 64), 4) for _ in range(2000)]
    logs = [between(rng, (16, 64), 4, log=True) for _ in range(2000)]
    for drawn in (even, logs):
        assert set(drawn) == set(range(16, 65, 4))
    assert np.mean(even) == pytest.approx(40, abs=1)
    assert np.median(logs) == pytest.approx(32, abs=4)  # half of them below the geometric mean
    assert between(rng, (5, 5), 3, log=True) == 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": (3, 1)}, "the least and the most"),
        ({"layers": (0, 1)}, "the least and the most"),
        ({"widht": (3, 4)}, "there is no parameter widht"),
        ({"count": 0}, "count"),
        ({"test": {"widht": 3}}, "the architectures to test on: there is no parameter widht"),
        ({"activation": "sin"}, "activation"),
    ],
)
def test_wrong_options(options: Mapping[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        family("mlp", **options)


def test_wrong_families() -> None:
    with pytest.raises(InvalidInput, match="no family of architectures is called 'mpl'"):
        family("mpl")
    with pytest.raises(InvalidInput, match="patches of 3 do not divide an image of 8"):
        family("vit", image=8, patch=3)
    with pytest.raises(InvalidInput, match="no architecture to train on"):
        small("mlp", most_parameters=3).architectures()
    with pytest.raises(InvalidInput, match="no architecture to test on"):
        small("mlp", layers=(1, 1), widths=(8, 8)).sample(torch.Generator(), "test")
