"""Aligning zoos: what is in one order stays, the rest is brought into one, and functions stay as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from paramsmith.errors import GenerateWarning, InvalidInput, Refused
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.zoos.align import RECORD, REFERENCE, Aligned, align
from paramsmith.hypernet.zoos.index import Entry
from paramsmith.hypernet.zoos.writing import ZooWriter
from paramsmith.hypernet.zoos.zoo import Zoo
from paramsmith.matching import PermutationSpec, apply_permutation
from paramsmith.permutations import permutation_spec

pytestmark = pytest.mark.usefixtures("one_thread")
Nets = dict[str, Tensor]  # (B, *shape)


def perceptron(classes: int = 3, width: int = 12) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(2, 8, 3, 1, 1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 6, 3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def spec_of(module: nn.Module, *shape: int) -> TargetSpec:
    return Target.of(module, torch.zeros(2, *shape)).spec


def copies(module: nn.Module, count: int, noise: float, seed: int = 0) -> Nets:
    """Networks that differ a little from one, which is why there is a right order."""
    torch.manual_seed(seed)
    held = {name: torch.randn(p.shape) for name, p in module.named_parameters()}
    return {name: t + noise * torch.randn(count, *t.shape) for name, t in held.items()}


def shuffled(nets: Nets, group_norms: bool = True) -> Nets:
    spec = permutation_spec({name: tuple(t.shape[1:]) for name, t in nets.items()}, group_norms=group_norms)
    sizes = spec.sizes({name: tuple(t.shape[1:]) for name, t in nets.items()})
    count = len(next(iter(nets.values())))
    order = {name: torch.stack([torch.randperm(size) for _ in range(count)]) for name, size in sizes.items()}
    return apply_permutation(spec, order, nets)


def written(folder: Path, spec: TargetSpec, nets: Nets, entries: Sequence[Mapping[str, object]] = ()) -> Zoo:
    count = len(next(iter(nets.values())))
    told = [Entry.model_validate({"path": "?", **(entries[i] if entries else {})}) for i in range(count)]
    conditions = [{"vector": torch.tensor([float(i)])} for i in range(count)]
    with ZooWriter(folder) as writer:
        writer.add(spec, nets, told, conditions)
        writer.publish()
    return Zoo.open(folder)


def loaded(folder: Path) -> Nets:
    zoo = Zoo.open(folder)
    return zoo.batch(zoo.members)


def spread(nets: Nets) -> float:
    return sum(float((t - t.mean(0)).square().sum()) for t in nets.values())


@pytest.mark.parametrize("kind", ["perceptron", "convolutional"])
def test_networks_come_into_one_order(tmp_path: Path, kind: str) -> None:
    """Up to a permutation of all, that from which they were taken; each computes what it did."""
    module, shape = (perceptron(), (6,)) if kind == "perceptron" else (convolutional(), (2, 4, 4))
    spec = spec_of(module, *shape)
    nets = copies(module, 12, noise=0.1)
    mixed = shuffled(nets, group_norms=False)
    made = align(written(tmp_path / "zoo", spec, mixed), tmp_path / "aligned")
    found = loaded(tmp_path / "aligned")
    assert not made.shared
    assert made.stay < 0.3
    assert spread(found) == pytest.approx(spread(nets), rel=1e-4)
    assert made.after < 0.02 < 0.5 < made.before
    x = torch.randn(7, *shape)
    for i in range(12):
        before = functional_call(module, {name: t[i] for name, t in mixed.items()}, x)
        after = functional_call(module, {name: t[i] for name, t in found.items()}, x)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
        first = next(iter(found))
        assert torch.equal(found[first][i].sort(0).values, mixed[first][i].sort(0).values)


def test_one_initialisation_is_left_alone(tmp_path: Path) -> None:
    """Far from it too, where matching would find something a little nearer to the mean."""
    torch.manual_seed(0)
    nets = copies(perceptron(), 30, noise=1.9)
    made = align(written(tmp_path / "zoo", spec_of(perceptron(), 6), nets), tmp_path / "aligned")
    assert (made.shared, made.rounds) == (True, 0)
    assert 0.4 < made.stay < 1
    assert made.before == made.after > 0.3
    found = loaded(tmp_path / "aligned")
    assert all(torch.equal(found[name], nets[name]) for name in nets)


@pytest.mark.parametrize("count", [2, 3, 40])
def test_independent_networks_are_told_from_copies(tmp_path: Path, count: int) -> None:
    nets = {
        name: torch.cat([copies(perceptron(), 1, 0.0, seed=i)[name] for i in range(count)])
        for name in copies(perceptron(), 1, 0.0)
    }
    made = align(written(tmp_path / "zoo", spec_of(perceptron(), 6), nets), tmp_path / "aligned")
    assert not made.shared
    assert abs(made.stay) < 0.3
    assert made.after < made.before


def test_others_follow_those_to_train_on(tmp_path: Path) -> None:
    """And nothing is learned from them: without them, the reference is the same."""
    spec = spec_of(perceptron(), 6)
    mixed = shuffled(copies(perceptron(), 10, noise=0.1))
    entries = [
        {"split": "test" if i in (2, 7) else "train", "task": f"t{i}", "metrics": {"score": 0.5}} for i in range(10)
    ]
    zoo = written(tmp_path / "zoo", spec, mixed, entries)
    align(zoo, tmp_path / "aligned")
    aligned = Zoo.open(tmp_path / "aligned")
    told = [{**m.entry.model_dump(), "sha256": None} for m in zoo.members]
    assert [{**m.entry.model_dump(), "sha256": None} for m in aligned.members] == told
    assert all(a.entry.sha256 != b.entry.sha256 for a, b in zip(aligned.members[1:], zoo.members[1:], strict=True))
    assert [float(m.condition["vector"]) for m in aligned.members] == list(range(10))
    assert spread(aligned.batch(aligned.members)) < 0.05 * spread(mixed)
    reference = load_file(tmp_path / "aligned" / REFERENCE)
    held = aligned.batch(aligned.of("train"))
    assert all(torch.allclose(reference[name], held[name].mean(0), atol=1e-6) for name in reference)
    rest = [i for i in range(10) if i not in (2, 7)]
    alone = written(tmp_path / "alone", spec, {name: t[rest] for name, t in mixed.items()})
    align(alone, tmp_path / "without")
    same = load_file(tmp_path / "without" / REFERENCE)
    assert all(torch.equal(reference[name], same[name]) for name in reference)


def test_checkpoints_of_a_run_stay_together(tmp_path: Path) -> None:
    """They are one network on its way, and get one permutation."""
    spec = spec_of(perceptron(), 6)
    starts = shuffled(copies(perceptron(), 5, noise=0.3))
    nets = {name: torch.repeat_interleave(t, 4, 0) for name, t in starts.items()}
    nets = {name: t + 0.5 * torch.randn(t.shape) for name, t in nets.items()}
    entries = [{"task": "t", "run": i // 4, "step": i % 4} for i in range(20)]
    align(written(tmp_path / "zoo", spec, nets, entries), tmp_path / "aligned")
    found = loaded(tmp_path / "aligned")
    moved = 0
    for run in range(5):
        rows = range(4 * run, 4 * run + 4)
        orders = {tuple((found["0.bias"][r][:, None] == nets["0.bias"][r]).int().argmax(1).tolist()) for r in rows}
        assert len(orders) == 1
        moved += orders != {tuple(range(12))}
    assert moved >= 3


def test_heads_of_several_sizes(tmp_path: Path) -> None:
    """What is compared is what all networks have; the head moves along."""
    nets = copies(perceptron(), 8, noise=0.1)
    mixed = shuffled(nets)
    few = {name: t[:4, :2] if name.startswith("4.") else t[:4] for name, t in mixed.items()}
    many = {name: t[4:] for name, t in mixed.items()}
    with ZooWriter(tmp_path / "zoo") as writer:
        for spec, held in ((spec_of(perceptron(2), 6), few), (spec_of(perceptron(3), 6), many)):
            writer.add(spec, held, [Entry.model_validate({"path": "?"})] * 4, [{}] * 4)
        writer.publish()
    made = align(Zoo.open(tmp_path / "zoo"), tmp_path / "aligned")
    aligned = Zoo.open(tmp_path / "aligned")
    low, high = (aligned.batch(aligned.members[part]) for part in (slice(0, 4), slice(4, 8)))
    assert made.after < 0.02
    whole = {name: torch.cat([low[name], high[name][:, :2] if name.startswith("4.") else high[name]]) for name in low}
    wanted = {name: t[:, :2] if name.startswith("4.") else t for name, t in nets.items()}
    assert spread(whole) == pytest.approx(spread(wanted), rel=1e-4)


def test_the_same_twice_and_what_is_told(tmp_path: Path) -> None:
    def loss(net: Mapping[str, Tensor]) -> float:
        return float(functional_call(perceptron(), dict(net), torch.ones(1, 6)).square().mean())

    zoo = written(tmp_path / "zoo", spec_of(perceptron(), 6), shuffled(copies(perceptron(), 8, noise=0.1)))
    made = [align(zoo, tmp_path / name, seed=3, loss=loss) for name in ("one", "two")]
    assert {**made[0].to_json(), "output": ""} == {**made[1].to_json(), "output": ""}
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {RECORD, REFERENCE, "zoo.jsonl"} <= set(names)
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    record = json.loads((tmp_path / "one" / RECORD).read_text())
    assert record["axes"]["2.weight"] == ["2", "0"]
    assert record["mean_of"] == {m.label: m.entry.sha256 for m in zoo.members}
    assert abs(record["barrier"]["after"]) < 0.3 * abs(record["barrier"]["before"])
    again: Aligned = align(Zoo.open(tmp_path / "one"), tmp_path / "again")
    assert again.shared
    assert again.stay == 1.0


def test_a_few_at_once_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = shuffled(copies(perceptron(), 9, noise=0.3))
    entries = [{"run": i // 2, "split": "test" if i > 6 else "train"} for i in range(9)]
    zoo = written(tmp_path / "zoo", spec_of(perceptron(), 6), mixed, entries)
    whole = align(zoo, tmp_path / "whole")
    monkeypatch.setattr("paramsmith.hypernet.zoos.align._TOGETHER", 2 * zoo.members[0].numbers)
    parts = align(zoo, tmp_path / "parts")
    assert parts.after == pytest.approx(whole.after)
    one, other = loaded(tmp_path / "whole"), loaded(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_aligned(tmp_path: Path) -> None:
    spec = spec_of(perceptron(), 6)
    nets = copies(perceptron(), 3, noise=0.1)
    zoo = written(tmp_path / "zoo", spec, nets)
    with pytest.raises(InvalidInput, match="0 rounds of alignment"):
        align(zoo, tmp_path / "out", rounds=0)
    with pytest.raises(InvalidInput, match=r"2\.weight: is not among the tensors of the spec"):
        align(zoo, tmp_path / "out", spec=PermutationSpec({"0.weight": ("p", None), "0.bias": ("p",)}))
    with pytest.raises(Refused, match="zoo"):
        align(zoo, tmp_path / "zoo")
    test = written(tmp_path / "test", spec, nets, [{"split": "test"}] * 3)
    with pytest.raises(InvalidInput, match="has no networks to train on"):
        align(test, tmp_path / "out")
    with ZooWriter(tmp_path / "two") as writer:
        for width in (12, 13):
            held = copies(perceptron(3, width), 1, 0.1)
            writer.add(spec_of(perceptron(3, width), 6), held, [Entry.model_validate({"path": "?"})], [{}])
        writer.publish()
    with pytest.raises(InvalidInput, match="is of another architecture"):
        align(Zoo.open(tmp_path / "two"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Residual(nn.Module):
    """Its names are those of a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.c = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.c(x + torch.relu(self.b(x)))


def test_what_a_graph_shows(tmp_path: Path) -> None:
    """Connections that skip a layer, and norms of groups, which names and shapes do not tell."""
    zoo = written(tmp_path / "zoo", spec_of(Residual(), 6), copies(Residual(), 3, noise=0.1))
    with pytest.raises(InvalidInput, match="joins what several layers put out"):
        align(zoo, tmp_path / "out")
    grouped = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(4, 8), nn.Flatten(), nn.Linear(32, 3))
    zoo = written(tmp_path / "groups", spec_of(grouped, 2, 4, 4), copies(grouped, 3, noise=0.1))
    with pytest.raises(InvalidInput, match=r"1\.weight: may be of a group norm"):
        align(zoo, tmp_path / "out")


def test_files_alone_show_no_graph(tmp_path: Path) -> None:
    """Where a layer may be skipped, as two have one width, that is said, if anything moves."""
    for width, mixed in ((5, True), (12, True), (12, False)):
        net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, width), nn.Linear(width, 3))
        nets = shuffled(copies(net, 3, 0.1)) if mixed else copies(net, 3, 0.1)
        folder = tmp_path / f"{width} {mixed}"
        folder.mkdir()
        for i in range(3):
            save_file({name: t[i].contiguous() for name, t in nets.items()}, folder / f"{i}.safetensors")
    assert not align(Zoo.open(tmp_path / "5 True"), tmp_path / "out").shared
    assert align(Zoo.open(tmp_path / "12 False"), tmp_path / "same").shared
    with pytest.warns(GenerateWarning, match="graph of the networks is not known: layers are taken to follow"):
        align(Zoo.open(tmp_path / "12 True"), tmp_path / "other")
