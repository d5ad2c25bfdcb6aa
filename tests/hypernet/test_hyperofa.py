"""HYPEROFA: its loss, its batches, the preset, and that training it beats the neighbours of OFA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.objectives.rows import Rows, RowsObjective, grouped, rows_loss, shown_words
from paramsmith.hypernet.training.course import Course
from paramsmith.hypernet.training.loop import fit
from paramsmith.hypernet.vocabulary.asking import Nearness, coordinates_of, judged
from paramsmith.hypernet.vocabulary.data import Vocabulary, condition_of
from paramsmith.hypernet.vocabulary.factorise import factorise
from paramsmith.hypernet.vocabulary.train import told
from paramsmith.hypernet.vocabulary.words import Bags

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parent.parent / "oracles" / "hyperofa_loss_sizes_factorisation.json").read_text())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world(tokens: int = 500, dim: int = 12, columns: int = 16) -> tuple[Tensor, Tensor, Bags]:
    """Rows that depend on what the words of a token have in common, not linearly: rows, vectors, bags."""
    draw = rng(1)
    latent = torch.randn(tokens, 8, generator=draw)
    rows = torch.tanh(0.7 * latent @ torch.randn(8, 16, generator=draw)) @ torch.randn(16, columns, generator=draw)
    sizes = torch.randint(1, 9, (tokens,), generator=draw)
    owner = torch.repeat_interleave(torch.arange(tokens), sizes)
    vectors = latent[owner] @ torch.randn(8, dim, generator=draw) + 0.5 * torch.randn(len(owner), dim, generator=draw)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return rows, vectors, Bags(starts, torch.arange(len(owner)))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    rows, vectors, bags = world()
    known = torch.arange(400)
    return Vocabulary.of(vectors, bags.select(known), factorise([rows[known]], 6))


def test_the_loss_is_the_oracles() -> None:
    found = ORACLE["loss"]
    made, wanted = torch.tensor(found["pred"]), torch.tensor(found["target"])
    total, told_apart, relative = (
        rows_loss(made, wanted, share, found["temperature"]).item() for share in (found["lam"], 1.0, 0.0)
    )
    assert total == pytest.approx(found["total"], rel=1e-6)
    assert told_apart == pytest.approx(found["contrastive"], rel=1e-6)
    assert relative == pytest.approx(found["scaled_l1"], rel=1e-6)


def test_the_loss_does_not_care_how_large_coordinates_are() -> None:
    made, wanted = torch.randn(5, 3, generator=rng()), torch.randn(5, 3, generator=rng(1))
    torch.testing.assert_close(rows_loss(made * 1e-3, wanted * 1e-3), rows_loss(made, wanted))


def test_a_batch_has_sets_of_about_equal_sizes_and_every_set_is_as_likely() -> None:
    sizes = torch.randint(1, 200, (640,), generator=rng())
    counts, spread, draw = torch.zeros(640), 0.0, rng(1)
    for _ in range(2000):
        found = grouped(sizes, 16, draw)
        assert len(found) == len(found.unique()) == 16
        counts[found] += 1
        spread += float(sizes[found].float().std()) / 2000
    assert spread < 0.15 * float(sizes.float().std())
    assert counts.mean() == 50
    assert 20 <= counts.min() <= counts.max() <= 90  # 50 +- 6 standard deviations
    low, high = sizes.argsort()[:64], sizes.argsort()[-64:]
    assert abs(float(counts[low].mean() - counts[high].mean())) < 5


def test_fewer_sets_than_a_batch_are_one_batch() -> None:
    assert sorted(grouped(torch.tensor([3, 1, 2]), 16, rng()).tolist()) == [0, 1, 2]


def test_words_are_shuffled_always_and_left_out_sometimes() -> None:
    bags = Bags.of([range(10), range(10, 14), [20]] * 200)
    sets = bags.padded(torch.arange(600))
    members, mask = shown_words(sets, 0.0, 0.5, rng())
    assert torch.equal(mask, sets[1])
    assert torch.equal(members.sort(1).values, sets[0].sort(1).values)
    assert (members != sets[0]).any(1)[::3].float().mean() > 0.99
    members, mask = shown_words(sets, 0.5, 0.5, rng())
    assert bool((members[~mask] == 0).all())
    left = mask.sum(1)
    assert int(left[::3].min()) == 5
    assert bool((left[2::3] == 1).all())
    assert 0.3 < float((left[::3] < 10).float().mean()) < 0.5  # half of them, of which a sixth stay whole
    for row in (0, 1, 300):
        assert set(members[row][mask[row]].tolist()) <= set(sets[0][row][sets[1][row]].tolist())
        assert len(members[row][mask[row]].unique()) == left[row]


def test_a_loss_depends_on_its_generator_alone(vocabulary: Vocabulary) -> None:
    made = Generator.build("hyperofa", vocabulary.site, rank=6, hidden=8).hypernetwork
    objective = RowsObjective(Rows(batch=16), made, vocabulary)
    before = torch.get_rng_state()
    first, other, again = (objective.loss(0, rng(seed)).item() for seed in (3, 4, 3))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_not_in_training_is_never_drawn(vocabulary: Vocabulary) -> None:
    shares = vocabulary.shares
    everything = torch.cat(list(shares.values()))
    assert sorted(everything.tolist()) == list(range(400))
    assert [len(shares[share]) for share in ("train", "validation", "test")] == [388, 10, 2]
    made = Generator.build("hyperofa", vocabulary.site, rank=6, hidden=8).hypernetwork
    objective = RowsObjective(Rows(batch=16), made, vocabulary)
    assert torch.equal(objective.pairs, shares["train"])


def test_a_generator_makes_rows_and_keeps_what_it_needs_for_them(vocabulary: Vocabulary, tmp_path: Path) -> None:
    made = Generator.build("hyperofa", vocabulary.site, rank=6, hidden=8)
    fit(made.hypernetwork, RowsObjective(Rows(batch=16), made.hypernetwork, vocabulary), Course(steps=3))
    made.save(tmp_path / "generator")
    again = Generator.from_pretrained(tmp_path / "generator")
    asked = vocabulary.condition(torch.tensor([0, 7]))
    rows = [sample["row"] for sample in again.sample(asked)]
    coordinates = coordinates_of(again.hypernetwork, vocabulary.vectors, vocabulary.bags)[[0, 7]]
    torch.testing.assert_close(torch.stack(rows), coordinates @ vocabulary.primitives, rtol=1e-4, atol=1e-6)
    assert torch.equal(again.hypernetwork.decoder.primitives, vocabulary.primitives)
    assert float(again.hypernetwork.encoder.spread) != 1


def test_a_trained_deep_set_beats_ofa(vocabulary: Vocabulary) -> None:
    rows, _, bags = world()
    made = Generator.build("hyperofa", vocabulary.site, rank=6, hidden=64)
    course = Course(steps=300, lr=3e-3, schedule="cosine")
    objective = RowsObjective(Rows(batch=64), made.hypernetwork, vocabulary)
    report = fit(made.hypernetwork, objective, course)
    asked = torch.arange(400, 500)
    found = judged(vocabulary, bags.select(asked), rows[asked], made.hypernetwork)
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert found["ceiling"].cosine > found["hyperofa"].cosine > found["ofa"].cosine + 0.03
    assert found["ofa"].cosine > 0.3 > abs(found["random"].cosine)
    assert not told(found) or found["ridge"].cosine >= found["hyperofa"].cosine
    assert next(iter(found)) == "hyperofa"
    said = objective.result()
    assert said["unseen tokens"] == 12
    assert isinstance(said["cosine"], dict)
    assert said["cosine"]["hyperofa"] > said["cosine"]["ofa"] > said["cosine"]["mean"]


def test_a_baseline_that_is_as_good_is_told_first() -> None:
    near = {
        name: Nearness(cosine, 1.0) for name, cosine in (("hyperofa", 0.5), ("ridge", 0.6), ("ofa", 0.1), ("mean", 0))
    }
    (said,) = told(near)
    assert said == "ridge does as well on tokens kept apart: cosine 0.600, here 0.500"
    assert told({**near, "ridge": Nearness(0.4, 1.0)}) == ()


def test_what_is_asked_at_once_changes_nothing(vocabulary: Vocabulary) -> None:
    made = Generator.build("hyperofa", vocabulary.site, kind="bilstm", rank=6, hidden=8).hypernetwork
    together = coordinates_of(made, vocabulary.vectors, vocabulary.bags)
    for pair in (0, 5, 399):
        alone = coordinates_of(made, vocabulary.vectors, vocabulary.bags.select(torch.tensor([pair])))
        torch.testing.assert_close(alone[0], together[pair], rtol=1e-5, atol=1e-7)


def test_other_sources_and_generators_are_refused(vocabulary: Vocabulary) -> None:
    made = Generator.build("hyperofa", vocabulary.site, rank=6, hidden=8).hypernetwork
    with pytest.raises(InvalidInput, match="learns from a vocabulary"):
        RowsObjective(Rows(), made, object())
    with pytest.raises(InvalidInput, match="rank 17 is more than the 16 columns"):
        Generator.build("hyperofa", vocabulary.site, rank=17)
    with pytest.raises(InvalidInput, match="primitives"):
        RowsObjective(Rows(), Generator.build("hyperofa", vocabulary.site, rank=5).hypernetwork, vocabulary)
    with pytest.raises(InvalidInput, match="too few"):
        Vocabulary(vocabulary.vectors, Bags.of([[0]]), vocabulary.targets[:1], vocabulary.primitives)


def test_conditions_are_padded_with_nothing() -> None:
    vectors = torch.arange(6.0).view(3, 2)
    held = condition_of(Bags.of([[2], [0, 1]]), vectors, torch.tensor([0, 1]))
    assert held["set"].tolist() == [[[4.0, 5.0], [0.0, 0.0]], [[0.0, 1.0], [2.0, 3.0]]]
    assert held["mask"].tolist() == [[True, False], [True, True]]
