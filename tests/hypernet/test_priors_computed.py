"""Priors that are computed, not trained: what they keep of a zoo, what they give, for any number of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import erf, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paramsmith.errors import Failed, GenerateWarning, InvalidInput
from paramsmith.hypernet.latents import Pairs, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import normal
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import validated
from paramsmith.parts import priors

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = ("kde", "nearest", "noise_copy")
COMPUTED = ("mean", "gaussian", "ridge", *KEPT)
F, D, CLASSES = 5, 4, 3  # width of a code, numbers of a position, classes of the site's target


def spec(classes: int = CLASSES) -> TargetSpec:
    return TargetSpec((Slot("body", (2, 4), "F32", "matrix", 2), Slot("head", (classes, D), "F32", "head", D, None, 0)))


def places(classes: int = CLASSES, body: int = 2, numbers: int = D) -> Places:
    """A row of the head for each class, and `body` positions, one of them behind the head."""
    of = [-1] * (body - 1) + list(range(classes)) + [-1] * min(body, 1) if body else list(range(classes))
    found = torch.tensor(of, dtype=torch.int64)
    mask = torch.ones(len(of), numbers, dtype=torch.bool)
    mask[found < 0, -1:] = body == 0  # the last number of the body's positions is padding
    return Places(torch.randn(len(of), 2), found, (found >= 0).long(), mask)


def prior(name: str, width: int = F, latent: Any = (2 + CLASSES, D), **options: Any) -> Any:
    part = priors.find(name)
    return part.make(validated(part.params, options, name), Site(width, spec(), latent=latent))


def batch(rng: torch.Generator, n: int, where: Places, first: int = 0, width: int = F, one: bool = False) -> Pairs:
    """Random networks with a code a class, whose mean the positions of no class have; or with one code each."""
    latent = torch.where(where.mask, torch.randn(n, *where.mask.shape, generator=rng), 0.0)
    codes = torch.randn(n, 1 if one else int(where.classes.max()) + 1, width, generator=rng)
    return Pairs(latent, codes if one else by_class(codes, where), where, tuple(range(first, first + n)))


def by_class(codes: Tensor, where: Places) -> Tensor:
    return torch.cat([codes, codes.mean(1, keepdim=True)], 1)[:, where.classes]


def zoo(*batches: Pairs) -> Callable[[], Iterator[Pairs]]:
    return lambda: iter(batches)


def noise(seeds: Sequence[int]) -> Any:
    """A seed a sample; or one of all, which is faster, where there are hundreds."""
    if len(seeds) > 20:
        return lambda key, shape: normal(seeds[0], key, (len(seeds), *shape))
    return lambda key, shape: torch.stack([normal(seed, key, shape) for seed in seeds])


def draw(made: Any, asked: Tensor, where: Places, seeds: Sequence[int] | None = None) -> Tensor:
    found: Tensor = made.sample(asked, where, noise(range(len(asked)) if seeds is None else seeds), Sampling())
    assert found.shape == (len(asked), *where.mask.shape)
    assert not found[:, ~where.mask].any()
    return found


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# What holds for all of them


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("one", [False, True])
def test_what_is_saved_has_shapes_that_no_zoo_changes(name: str, one: bool, rng: torch.Generator) -> None:
    from paramsmith.hypernet.skeleton import _no_memory

    options = {"members": 8} if name in KEPT else {}
    with _no_memory():
        told = {key: (tuple(t.shape), t.dtype) for key, t in prior(name, **options).state_dict().items()}
    for classes in (2, CLASSES, 6):
        made = prior(name, **options)
        made.fit(zoo(batch(rng, 3, places(), one=one), batch(rng, 4, places(classes), 3, one=one)))
        held = made.state_dict()
        assert {key: (tuple(t.shape), t.dtype) for key, t in held.items()} == told
        assert not list(made.parameters())
        # and they are all there is: another with the same buffers draws the same
        other = prior(name, **options)
        other.load_state_dict(held)
        asked = batch(rng, 2, places(4), one=one).asked
        assert torch.equal(draw(made, asked, places(4)), draw(other, asked, places(4)))


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("one", [False, True])
def test_a_sample_depends_on_its_condition_and_seed_alone(name: str, one: bool, rng: torch.Generator) -> None:
    made = prior(name)
    made.fit(zoo(batch(rng, 20, places(), one=one)))
    asked, where = batch(rng, 5, places(), one=one).asked, places()
    before = torch.get_rng_state()
    found = draw(made, asked, where, [9, 8, 7, 6, 5])
    assert torch.equal(torch.get_rng_state(), before)
    for i in range(5):
        torch.testing.assert_close(draw(made, asked[i : i + 1], where, [9 - i]), found[i : i + 1])
    other = draw(made, asked, where, [1, 2, 3, 4, 11])
    assert torch.equal(other, found) == (name in ("mean", "ridge", "nearest"))


@pytest.mark.parametrize("name", COMPUTED)
def test_how_a_zoo_is_cut_into_batches_changes_nothing(name: str, rng: torch.Generator) -> None:
    whole = batch(rng, 23, places())
    cuts = [0, 1, 9, 23]
    parts = [Pairs(whole.latent[a:b], whole.asked[a:b], whole.places, whole.members[a:b]) for a, b in pairwise(cuts)]
    made, other = prior(name), prior(name)
    made.fit(zoo(whole))
    other.fit(zoo(*parts))
    for key, held in made.state_dict().items():
        torch.testing.assert_close(held, other.state_dict()[key])


@pytest.mark.parametrize("name", [*COMPUTED, "prototype"])
def test_what_cannot_be_drawn_or_learned_from(name: str, rng: torch.Generator) -> None:
    body = 0 if name == "prototype" else 2
    made = prior(name, width=D if name == "prototype" else F)
    width = D if name == "prototype" else F
    asked = batch(rng, 1, places(body=body), width=width).asked
    with pytest.raises(InvalidInput, match="knows no network yet"):
        draw(made, asked, places(body=body))
    with pytest.raises(InvalidInput, match="no networks to learn from"):
        made.fit(zoo())
    if name != "prototype":
        made.fit(zoo(batch(rng, 12, places())))
        other = batch(rng, 1, places(body=3))
        with pytest.raises(InvalidInput, match=r"2 positions and 1 a class, and the target has 3 positions"):
            draw(made, other.asked, other.places)
        with pytest.raises(InvalidInput, match="networks of the zoo have 2 positions"):
            made.fit(zoo(batch(rng, 2, places()), other))
    with pytest.raises(InvalidInput, match="shape of a latent"):
        priors.find(name).make(priors.find(name).params(), Site(F, spec()))


@pytest.mark.parametrize("name", COMPUTED)
def test_numbers_that_are_not_finite_are_nothing_to_learn_from(name: str, rng: torch.Generator) -> None:
    for field in ("latent", "asked"):
        held = batch(rng, 3, places())
        getattr(held, field)[1, 2, 0] = torch.nan
        with pytest.raises(Failed, match="of the zoo holds a number that is not finite"):
            prior(name).fit(zoo(batch(rng, 3, places()), held))


@pytest.mark.parametrize("name", COMPUTED)
def test_a_prior_that_is_too_large_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"the prior '{name}' would hold .* numbers"):
        prior(name, latent=(1 << 20, 1 << 12))


# Mean and Gaussian


def test_mean_and_deviation_of_positions(rng: torch.Generator) -> None:
    held, where = batch(rng, 50, places()), places()
    mean, gaussian = prior("mean"), prior("gaussian")
    mean.fit(zoo(held))
    gaussian.fit(zoo(held))
    asked = held.asked[:1].expand(4000, -1, -1)
    torch.testing.assert_close(draw(mean, asked[:1], where)[0], held.latent.mean(0))
    drawn = draw(gaussian, asked, where)
    torch.testing.assert_close(drawn.mean(0), held.latent.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(0), held.latent.std(0, correction=0), atol=0.1, rtol=0)
    # no two numbers go together
    flat = drawn[:, where.mask]
    assert torch.corrcoef(flat.T).fill_diagonal_(0).abs().max() < 0.1


def test_networks_with_other_numbers_of_classes_share_a_row(rng: torch.Generator) -> None:
    few, many = batch(rng, 7, places(2)), batch(rng, 5, places(6), 7)
    mean, gaussian = prior("mean"), prior("gaussian")
    for made in (mean, gaussian):
        made.fit(zoo(few, many))
    rows = torch.cat([few.latent[:, few.places.classes >= 0].flatten(0, 1), many.latent[:, 1:7].flatten(0, 1)])
    body = torch.cat([few.latent[:, [0, 3]], many.latent[:, [0, 7]]])
    found = draw(mean, few.asked[:1], places(4))[0]
    torch.testing.assert_close(found[1:5], rows.mean(0).expand(4, -1))
    torch.testing.assert_close(found[[0, 5]], body.mean(0))
    assert gaussian.form.tolist() == [2, 1, 0]
    torch.testing.assert_close(gaussian.std[2], rows.std(0, correction=0))
    torch.testing.assert_close(gaussian.std[:2], body.std(0, correction=0))


def test_another_number_of_classes_than_all_had_gets_the_mean_over_rows(rng: torch.Generator) -> None:
    held = batch(rng, 9, places())
    held.latent[:, 1] += 3  # what lies between classes counts too
    mean, gaussian = prior("mean"), prior("gaussian")
    for made in (mean, gaussian):
        made.fit(zoo(held))
    rows = held.latent[:, 1:4].flatten(0, 1)
    torch.testing.assert_close(draw(mean, held.asked[:1], places(7))[0, 1:8], rows.mean(0).expand(7, -1))
    drawn = draw(gaussian, held.asked[:1].expand(3000, -1, -1), places(7))[:, 2]
    torch.testing.assert_close(drawn.std(0), rows.std(0, correction=0), atol=0.1, rtol=0)


def test_a_number_that_never_changes_is_drawn_as_it_is() -> None:
    where = places(body=0)
    latent = torch.full((10, *where.mask.shape), 0.1)
    made = prior("gaussian")
    made.fit(zoo(Pairs(latent, torch.zeros(10, 1, F), where, tuple(range(10)))))
    assert torch.equal(draw(made, torch.zeros(3, 1, F), where), latent[:3])


# Kept networks


def test_kernels_stand_on_networks_of_the_zoo(rng: torch.Generator) -> None:
    held, where = batch(rng, 6, places()), places()
    asked = held.asked[:1].expand(300, -1, -1)

    def rows(**options: Any) -> Tensor:
        made = prior("kde", bandwidth=0, **options)
        made.fit(zoo(held))
        drawn = draw(made, asked, where)
        same = (drawn[:, None] == held.latent[None]) | ~where.mask
        # (300, 6, L): which network each position is of; all six occur
        return (same.any(1).all(2) if options["per"] == "number" else same.all(3)).float()

    of = rows(per="network")
    assert torch.equal(of.sum(1), torch.ones(300, 5))
    assert (of.argmax(1) == of.argmax(1)[:, :1]).all()
    of = rows(per="position")
    assert torch.equal(of.sum(1), torch.ones(300, 5))
    assert not (of.argmax(1) == of.argmax(1)[:, :1]).all(1).float().mean() > 0.05
    share = of.mean((0, 2))
    assert share.min() > 0.1
    assert share.max() < 0.25
    assert bool(rows(per="number").all())


def test_the_width_of_a_kernel(rng: torch.Generator) -> None:
    held, where = batch(rng, 32, places()), places()
    held.latent[:, 1] *= 5
    std = held.latent.std(0, correction=0)
    made = prior("kde", per="network")
    made.fit(zoo(held))
    torch.testing.assert_close(made.std[[2, 3, 4]], std[1:4])  # the body's two come first
    asked = held.asked[:1].expand(2000, -1, -1)
    plain = prior("kde", per="network", bandwidth=0)
    plain.fit(zoo(held))
    width = (draw(made, asked, where) - draw(plain, asked, where)).std(0)  # the same seeds draw the same networks
    torch.testing.assert_close(width, 32**-0.2 * std, rtol=0.1, atol=0)


def test_members_are_drawn_evenly() -> None:
    made = prior("kde", members=4)
    made.count.fill_(4)
    ends = torch.tensor([-9.0, -0.7, -0.6, -0.01, 0.01, 0.6, 0.7, 9.0])
    assert made.any_member(ends).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [int(2 * (1 + erf(float(z) / sqrt(2)))) for z in ends[:-1]] == [0, 0, 1, 1, 2, 2, 3]


def test_of_a_large_zoo_networks_are_kept_evenly(rng: torch.Generator) -> None:
    held = batch(rng, 37, places())
    made = prior("nearest", members=10)
    with pytest.warns(GenerateWarning, match="keeps 10 of 37 networks: it is given members=10"):
        made.fit(zoo(held))
    kept = [int((held.latent[:, [0, 4, 1, 2, 3]] == latent).all((1, 2)).nonzero()) for latent in made.latents]
    assert kept == list(range(0, 37, 4))
    one = prior("nearest", members=1)
    with pytest.warns(GenerateWarning):
        one.fit(zoo(held))
    assert one.count == 1
    assert torch.equal(draw(one, held.asked[:1], places())[0], held.latent[0])


@pytest.mark.parametrize(("numbers", "members"), [(4, 1024), (100_000, 671), (1 << 23, 16)])
def test_how_many_networks_are_kept_depends_on_their_size(numbers: int, members: int) -> None:
    from paramsmith.hypernet.skeleton import _no_memory

    with _no_memory():
        assert len(prior("kde", latent=(1, numbers)).latents) == members
        assert len(prior("kde", latent=(1, numbers), members=20).latents) == 20


def test_the_nearest_network_by_one_code(rng: torch.Generator) -> None:
    held, where = batch(rng, 30, places(), one=True), places()
    made = prior("nearest")
    made.fit(zoo(held))
    assert torch.equal(draw(made, held.asked + 0.01, where), held.latent)
    asked = torch.randn(9, 1, F, generator=rng)
    nearest = torch.cdist(asked[:, 0], held.asked[:, 0]).argmin(1)
    assert torch.equal(draw(made, asked, where), held.latent[nearest])
    several = prior("nearest", neighbours=3)
    several.fit(zoo(held))
    order = torch.cdist(asked[:, 0], held.asked[:, 0]).argsort(1)[:, :3]
    torch.testing.assert_close(draw(several, asked, where), held.latent[order].mean(1))


def test_of_equally_near_networks_the_first_counts(rng: torch.Generator) -> None:
    held = batch(rng, 8, places(), one=True)
    same = Pairs(held.latent, held.asked[:1].expand(8, -1, -1), held.places, held.members)
    made = prior("nearest")
    made.fit(zoo(same))
    assert torch.equal(draw(made, same.asked[:1], places())[0], held.latent[0])


def test_standardised_codes_weigh_all_numbers_alike(rng: torch.Generator) -> None:
    held = batch(rng, 30, places(), one=True)
    held.asked[..., 0] *= 1000
    made = prior("nearest", standardise=True)
    made.fit(zoo(held))
    asked = held.asked[4:5] + torch.tensor([300.0, 0, 0, 0, 0])
    assert torch.equal(draw(made, asked, places())[0], held.latent[4])


def test_each_class_gets_the_row_of_the_nearest_class(rng: torch.Generator) -> None:
    few, many = batch(rng, 7, places(2)), batch(rng, 5, places(3), 7)
    made = prior("nearest")
    made.fit(zoo(few, many))
    where = places(6)
    picked = [(few, 3, 1), (many, 2, 2), (many, 2, 0), (few, 0, 0), (many, 4, 1), (few, 3, 1)]  # network and class
    codes = torch.stack([held.asked[i, 1 + c] for held, i, c in picked])[None]
    found = draw(made, by_class(codes + 0.01, where), where)[0]
    assert torch.equal(found[1:7], torch.stack([held.latent[i, 1 + c] for held, i, c in picked]))
    # the body is that of the network with the nearest mean
    means = torch.cat([few.asked.mean(1), many.asked.mean(1)])
    body = torch.cat([few.latent[:, [0, 3]], many.latent[:, [0, 4]]])
    nearest = (means - by_class(codes + 0.01, where).mean(1)).norm(dim=1).argmin()
    assert torch.equal(found[[0, 7]], body[nearest])


def test_classes_in_another_order_get_their_rows_in_that_order(rng: torch.Generator) -> None:
    order = [2, 0, 1]
    for name in ("nearest", "ridge"):
        made = prior(name)
        made.fit(zoo(batch(rng, 40, places())))
        codes, where = torch.randn(1, 3, F, generator=rng), places()
        one, other = (draw(made, by_class(each, where), where)[0, 1:4] for each in (codes, codes[:, order]))
        torch.testing.assert_close(one[order], other)
        assert not torch.allclose(one, other)


def test_a_network_with_fewer_classes_gives_its_rows_in_turn(rng: torch.Generator) -> None:
    held = batch(rng, 4, places(2), one=True)
    made = prior("nearest")
    made.fit(zoo(held))
    found = draw(made, held.asked[1:2], places(5))[0]
    assert torch.equal(found[1:6], held.latent[1, [1, 2, 1, 2, 1]])
    assert torch.equal(found[[0, 6]], held.latent[1, [0, 3]])


def test_noise_is_as_large_as_it_is_told(rng: torch.Generator) -> None:
    held, where = batch(rng, 12, places()), places()
    held.latent[:, 1] *= 10
    made, copy = prior("noise_copy", amplitude=0.1), prior("nearest")
    for each in (made, copy):
        each.fit(zoo(held))
    asked = held.asked[3:4].expand(3000, -1, -1)
    base = draw(copy, asked[:1], where)[0]
    gap = draw(made, asked, where) - base
    rms = (base.square().sum(1) / where.mask.sum(1)).sqrt()
    torch.testing.assert_close(gap.square().mean(0).sum(1).div(where.mask.sum(1)).sqrt(), 0.1 * rms, rtol=0.05, atol=0)
    assert torch.equal(base[1:4], held.latent[3, 1:4])
    still = prior("noise_copy", amplitude=0)
    still.fit(zoo(held))
    assert torch.equal(draw(still, asked[:1], where)[0], base)


def test_noise_on_random_networks(rng: torch.Generator) -> None:
    held, where = batch(rng, 5, places()), places()
    made = prior("noise_copy", amplitude=0, of="random")
    made.fit(zoo(held))
    drawn = draw(made, held.asked[:1].expand(200, -1, -1), where)
    of = (drawn[:, None] == held.latent[None]).all((2, 3))
    assert torch.equal(of.sum(1), torch.ones(200, dtype=torch.int64))
    assert of.float().mean(0).min() > 0.05


# Ridge


def closed_form(codes: Tensor, latent: Tensor, alpha: float) -> np.ndarray[Any, Any]:
    """(d + 1, n) by numpy: of [codes, 1], the constant not held down."""
    x, y = codes.double().numpy(), latent.double().numpy()
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    level = alpha * len(x) * x.var(0).mean()
    return np.linalg.solve(ones.T @ ones + level * np.diag([1.0] * x.shape[1] + [0.0]), ones.T @ y)


def test_ridge_is_numpys_closed_form(rng: torch.Generator) -> None:
    held, where = batch(rng, 30, places(), one=True), places()
    made = prior("ridge", alpha=0.03)
    made.fit(zoo(held))
    wanted = closed_form(held.asked[:, 0], held.latent.flatten(1), 0.03)
    asked = torch.randn(6, 1, F, generator=rng)
    found = asked[:, 0].double().numpy() @ wanted[:-1] + wanted[-1]
    torch.testing.assert_close(draw(made, asked, where).flatten(1).double(), torch.from_numpy(found), atol=1e-5, rtol=0)
    assert made.alpha.tolist() == pytest.approx([0.03] * 5)


def test_ridge_with_a_code_a_class_has_one_map_for_all_rows(rng: torch.Generator) -> None:
    few, many = batch(rng, 9, places(2)), batch(rng, 8, places(4), 9)
    made = prior("ridge", alpha=0.1)
    made.fit(zoo(few, many))
    rows = [(held.asked[:, 1:-1].flatten(0, 1), held.latent[:, 1:-1].flatten(0, 1)) for held in (few, many)]
    wanted = closed_form(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]), 0.1)
    torch.testing.assert_close(made.maps[2].double(), torch.from_numpy(wanted), atol=1e-5, rtol=0)
    ends = torch.cat([few.asked[:, 0], many.asked[:, 0]]), torch.cat([few.latent[:, -1], many.latent[:, -1]])
    torch.testing.assert_close(made.maps[1].double(), torch.from_numpy(closed_form(*ends, 0.1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [None, 1e-6])
def test_ridge_is_exact_where_rows_are_linear_in_prototypes(alpha: float | None, rng: torch.Generator) -> None:
    map_, constant = torch.randn(F, D, generator=rng), torch.randn(D, generator=rng)

    def linear(n: int, classes: int, first: int = 0) -> Pairs:
        held = batch(rng, n, places(classes, body=0), first)
        return Pairs(held.asked @ map_ + constant, held.asked, held.places, held.members)

    made = prior("ridge", latent=(CLASSES, D), alpha=alpha)
    made.fit(zoo(linear(20, CLASSES), linear(10, 5, 20)))
    for classes in (2, 3, 5, 8):
        held = linear(4, classes)
        torch.testing.assert_close(draw(made, held.asked, held.places), held.latent, atol=1e-4, rtol=0)
    assert made.alpha[0].item() == pytest.approx(1e-6)


def test_ridge_with_a_code_a_slot_keeps_rows_apart(rng: torch.Generator) -> None:
    where = places()
    codes = torch.randn(25, 2, F, generator=rng)  # of body and head
    latent = batch(rng, 25, where).latent
    made = prior("ridge", alpha=0.01)
    made.fit(zoo(Pairs(latent, codes[:, where.slots], where, tuple(range(25)))))
    assert made.form.tolist() == [2, 1, CLASSES]
    wanted = closed_form(codes[:, 1], latent[:, 2], 0.01)  # the row of class 1
    torch.testing.assert_close(made.maps[3].double(), torch.from_numpy(wanted), atol=1e-5, rtol=0)


@pytest.mark.parametrize("one", [False, True])
def test_ridge_joins_rows_when_another_number_of_classes_comes_late(one: bool, rng: torch.Generator) -> None:
    first, second = batch(rng, 11, places(1 if not one else 3), one=one), batch(rng, 12, places(2), 11, one=one)
    late, early = prior("ridge", alpha=0.1), prior("ridge", alpha=0.1)
    late.fit(zoo(first, second))
    early.fit(zoo(second, first))
    assert late.form.tolist() == early.form.tolist() == [2, 1, 0]
    torch.testing.assert_close(late.maps, early.maps)


def test_ridge_chooses_its_regularisation_by_every_tenth_network(rng: torch.Generator) -> None:
    from paramsmith.hypernet.priors.ridge import ALPHAS

    where, wide = places(body=0), 20
    codes = torch.randn(40, 1, wide, generator=rng)
    latent = 0.5 * codes[..., :1] + torch.randn(40, CLASSES, D, generator=rng)  # much noise: it has to be held down
    made = prior("ridge", width=wide, latent=(CLASSES, D))
    made.fit(zoo(Pairs(latent, codes, where, tuple(range(40)))))
    out = torch.arange(40) % 10 == 9

    def error(alpha: float) -> float:
        wanted = closed_form(codes[~out, 0], latent[~out].flatten(1), alpha)
        found = codes[out, 0].double().numpy() @ wanted[:-1] + wanted[-1]
        return float(np.square(found - latent[out].flatten(1).double().numpy()).sum())

    best = min(ALPHAS, key=error)
    assert best > 1e-2
    assert made.alpha.tolist() == pytest.approx([best] * CLASSES)
    wanted = torch.from_numpy(closed_form(codes[:, 0], latent.flatten(1), best))  # and then all of them count
    torch.testing.assert_close(made.maps.double(), wanted.unflatten(1, (CLASSES, D)).transpose(0, 1), atol=1e-5, rtol=0)


def test_ridge_holds_down_what_is_noise_and_nothing_else(rng: torch.Generator) -> None:
    def half(n: int, classes: int, first: int = 0) -> Pairs:
        held = batch(rng, n, places(classes), first)
        rows = held.places.classes >= 0
        held.latent[:, rows] = held.asked[:, rows, :D]  # the head follows its codes, the body nothing
        return held

    made = prior("ridge")
    made.fit(zoo(half(60, 3), half(60, 4, 60)))
    found = half(3, 5)
    torch.testing.assert_close(draw(made, found.asked, found.places)[:, 1:6], found.latent[:, 1:6], atol=1e-4, rtol=0)
    assert made.alpha[:2].min() >= 0.1
    assert made.alpha[2].item() == pytest.approx(1e-6)


def test_ridge_of_codes_that_say_nothing_is_the_mean(rng: torch.Generator) -> None:
    held, where = batch(rng, 8, places(), one=True), places()
    made = prior("ridge")
    made.fit(zoo(Pairs(held.latent, torch.full((8, 1, F), 0.3), where, held.members)))
    torch.testing.assert_close(draw(made, held.asked[:1], where)[0], held.latent.mean(0))
    assert made.alpha.tolist() == pytest.approx([1e-4] * 5)  # too few networks to choose by


# The nearest-prototype head


def heads(rng: torch.Generator, n: int, classes: int, first: int = 0) -> Pairs:
    """Heads of three times their prototypes, and something that a softmax does not see."""
    where = places(classes, body=0, numbers=F + 1)
    asked = torch.randn(n, classes, F, generator=rng)
    rows = torch.cat([3 * asked, torch.zeros(n, classes, 1)], 2) + torch.randn(n, 1, F + 1, generator=rng)
    return Pairs(rows, asked, where, tuple(range(first, first + n)))


def test_the_prototype_head_says_the_nearest_mean(rng: torch.Generator) -> None:
    made = prior("prototype", latent=(CLASSES, F + 1))
    made.fit(zoo(heads(rng, 30, 3), heads(rng, 30, 5)))
    assert made.scale.item() == pytest.approx(3, rel=1e-5)
    where, means = places(4, body=0, numbers=F + 1), torch.randn(2, 4, F, generator=rng)
    head = draw(made, means, where)
    inputs = torch.randn(2, 100, F, generator=rng)
    logits = inputs @ head[:, :, :-1].transpose(1, 2) + head[:, None, :, -1]
    assert torch.equal(logits.argmax(2), torch.cdist(inputs, means).argmin(2))
    gaps = torch.cdist(inputs, means).square()
    torch.testing.assert_close(logits - logits[..., :1], -1.5 * (gaps - gaps[..., :1]), atol=1e-4, rtol=0)
    fixed = prior("prototype", latent=(CLASSES, F), scale=0.5)
    fixed.fit(
        zoo(Pairs(heads(rng, 3, 3).latent[:, :, :F], means[:1, :3].expand(3, -1, -1), places(3, 0, F), (0, 1, 2)))
    )
    torch.testing.assert_close(draw(fixed, means[:, :3], places(3, 0, F)), 0.5 * means[:, :3])


def test_where_there_is_no_prototype_head(rng: torch.Generator) -> None:
    with pytest.raises(InvalidInput, match="makes rows of 5 weights and a bias, not of 4 numbers"):
        prior("prototype")
    made = prior("prototype", latent=(CLASSES, F + 1))
    held = heads(rng, 4, 3)
    with pytest.raises(InvalidInput, match="do not point to the means"):
        made.fit(zoo(Pairs(-held.latent, held.asked, held.places, held.members)))
    with pytest.raises(InvalidInput, match="one code for all classes"):
        made.fit(zoo(Pairs(held.latent, held.asked[:, :1], held.places, held.members)))
    with pytest.raises(InvalidInput, match="a head alone"):
        made.fit(zoo(batch(rng, 2, places(numbers=F + 1))))


# How it is cut does not matter either


@pytest.mark.parametrize("name", COMPUTED)
def test_classes_with_several_positions_each(name: str, rng: torch.Generator) -> None:
    def where(classes: int) -> Places:
        found = torch.tensor([*range(classes), -1, *range(classes)])  # weights of a row, and its bias further on
        slots = torch.tensor([0] * classes + [1] + [2] * classes)
        return Places(torch.zeros(len(found), 1), found, slots, torch.ones(len(found), D, dtype=torch.bool))

    made = prior(name, latent=(7, D))
    few, many = batch(rng, 12, where(3)), batch(rng, 12, where(2), 12)
    made.fit(zoo(few, many))
    assert made.form.tolist()[:2] == [1, 2]
    found = draw(made, batch(rng, 2, where(5)).asked, where(5))
    assert bool(torch.isfinite(found).all())
    if name == "mean":
        for part in (slice(0, 5), slice(6, 11)):
            small = slice(0, 3) if part.start == 0 else slice(4, 7)
            less = slice(0, 2) if part.start == 0 else slice(3, 5)
            rows = torch.cat([few.latent[:, small].flatten(0, 1), many.latent[:, less].flatten(0, 1)])
            torch.testing.assert_close(found[0, part], rows.mean(0).expand(5, -1))
    if name == "nearest":
        codes = few.asked[4, [0, 1, 2]][None] + 0.01
        assert torch.equal(
            draw(made, by_class(codes, where(3)), where(3))[0, [0, 1, 2, 4, 5, 6]], few.latent[4, [0, 1, 2, 4, 5, 6]]
        )


def test_classes_with_unequal_positions_stand_for_themselves(rng: torch.Generator) -> None:
    found = torch.tensor([0, 0, 1])
    where = Places(torch.zeros(3, 1), found, torch.zeros(3, dtype=torch.int64), torch.ones(3, D, dtype=torch.bool))
    held = batch(rng, 5, where, one=True)
    made = prior("mean", latent=(3, D))
    made.fit(zoo(held))
    assert made.form.tolist() == [3, 0, 0]
    torch.testing.assert_close(draw(made, held.asked[:1], where)[0], held.latent.mean(0))
