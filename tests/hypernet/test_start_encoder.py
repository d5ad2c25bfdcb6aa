"""Asked by the weights that one begins with: a code a token, and a sampler that refines them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.start import Start, StartEncoder, flattened, split
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.tokens.layout import layout_of
from paramsmith.hypernet.tokens.tokenizer import Tokenizer
from paramsmith.hypernet.zoos.index import Entry
from paramsmith.hypernet.zoos.writing import ZooWriter
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.* networks.*:paramsmith.errors.GenerateWarning"),
]


def target(classes: int = 3) -> TargetSpec:
    return spec_of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes)))


def networks(spec: TargetSpec, batch: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {s.name: torch.randn(batch, *s.shape, generator=rng) * 0.3 for s in spec.slots}


def starts(held: dict[str, Tensor], spec: TargetSpec) -> Tensor:
    return torch.stack([flattened({n: t[i] for n, t in held.items()}, spec) for i in range(len(held["0.weight"]))])


def encoder(spec: TargetSpec, size: int = 0, width: int = 8) -> StartEncoder:
    torch.manual_seed(0)
    return StartEncoder(Start(hidden=(16,)), Site(width, spec, {"start": (size,)}, layout_of(spec)))


def test_a_network_as_one_row() -> None:
    spec = target()
    held = networks(spec, 2)
    row = starts(held, spec)
    assert row.shape == (2, 51)
    back = split(row, spec)
    assert all(torch.equal(back[name], held[name]) for name in held)


def test_a_code_a_token() -> None:
    """A code depends on its own token alone, not on the scale of others; any number of classes has its tokens."""
    spec, more = target(), target(5)
    made, held = encoder(spec), networks(spec, 2)
    codes = made({"start": starts(held, spec)}, spec)
    assert codes.shape == (2, len(layout_of(spec)), 8)
    held["2.weight"] *= 7
    other = made({"start": starts(held, spec)}, spec)
    head = layout_of(spec).span("2.weight")
    assert torch.equal(other[:, : head.start], codes[:, : head.start])
    assert not torch.allclose(other[:, head], codes[:, head])
    assert made({"start": starts(networks(more, 2), more)}, more).shape == (2, len(layout_of(more)), 8)
    zero = made({"start": torch.zeros(1, 51)}, spec)
    assert bool(zero.isfinite().all())


def test_what_is_refused() -> None:
    spec = target()
    made = encoder(spec)
    with pytest.raises(InvalidInput, match="has 50 numbers, and the target 51"):
        made({"start": torch.zeros(1, 50)}, spec)
    with pytest.raises(InvalidInput, match="not finite"):
        made({"start": torch.full((1, 51), torch.nan)}, spec)
    with pytest.raises(InvalidInput, match="there is nothing"):
        made({}, spec)
    with pytest.raises(InvalidInput, match="there is 51"):
        made({"start": torch.zeros(51)}, spec)
    with pytest.raises(InvalidInput, match="wants a condition `start`"):
        StartEncoder(Start(hidden=(16,)), Site(8, spec, {"vector": (3,)}, layout_of(spec)))
    with pytest.raises(InvalidInput, match="cut from the target as it is"):
        StartEncoder(Start(hidden=(16,)), Site(8, spec, {"start": (51,)}))
    seen = Tokenizer.of({"views": ["svd"]}, spec).layout(spec)
    with pytest.raises(InvalidInput, match="cut from the target as it is"):
        StartEncoder(Start(hidden=(16,)), Site(8, spec, {"start": (51,)}, seen))
    headless = spec_of(nn.Linear(4, 4), 0)
    with pytest.raises(InvalidInput, match="has 7 numbers, and the target 20"):
        encoder(headless, 7)


def zoo_of(folder: Path, spec: TargetSpec, count: int) -> Zoo:
    """Networks that are each half of what they began with, and a little more."""
    began = networks(spec, count, 1)
    with ZooWriter(folder) as writer:
        held = {name: 0.5 * tensor + 0.1 for name, tensor in began.items()}
        conditions = [{"start": row} for row in starts(began, spec)]
        splits = ["test" if i >= count - 8 else "train" for i in range(count)]
        writer.add(spec, held, [Entry.model_validate({"path": "?", "split": s}) for s in splits], conditions)
        writer.publish()
    return Zoo.open(folder)


@pytest.mark.slow
def test_a_flow_refines_what_it_is_given(tmp_path: Path) -> None:
    """Nearer to what training makes of unseen starts than the mean of the zoo is; saved and loaded too."""
    spec = target()
    zoo = zoo_of(tmp_path / "zoo", spec, 108)
    made = Generator.build("flow", zoo.site, gauge=False, batch=16, dropout=0.0)
    made.fit(zoo, {"steps": 50, "lr": 3e-3, "warmup": 10, "ema": 0.9})
    made.save(tmp_path / "gen")
    again = Generator.from_pretrained(tmp_path / "gen")
    mean = zoo.batch(zoo.of("train"))
    gap = base = 0.0
    for member in zoo.of("test"):
        found = again.sample({"start": member.condition["start"]})[0]
        for name, wanted in zoo.load(member).items():
            gap += float((found[name] - wanted).square().sum())
            base += float((mean[name].mean(0) - wanted).square().sum())
    assert gap < 0.5 * base, gap / base


def test_with_one_code_for_all(tmp_path: Path) -> None:
    """A latent of another length than the tokens gets the mean of their codes."""
    zoo = zoo_of(tmp_path / "zoo", target(), 30)
    made = Generator.build("flow", zoo.site, codec="pca", rank=4)
    made.fit(zoo, {"steps": 2})
    assert "2.bias" in made.sample({"start": zoo.members[0].condition["start"]})[0]
    with pytest.raises(InvalidInput, match=r"`classes` .* or by `vector`"):
        Generator.build("ridge", zoo.site)


def test_an_index_names_rows_of_starts(tmp_path: Path) -> None:
    spec = target()
    held = networks(spec, 3)
    save_file(held, tmp_path / "nets.safetensors")
    save_file({"w": starts(networks(spec, 3, 2), spec)}, tmp_path / "starts.safetensors")
    lines = [
        {
            "path": "nets.safetensors",
            "row": i,
            "condition": {"start": {"file": "starts.safetensors", "tensor": "w", "row": i}},
        }
        for i in range(3)
    ]
    (tmp_path / "zoo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    zoo = Zoo.open(tmp_path)
    assert zoo.site.condition == {"start": (51,)}
    assert Generator.build("flow", zoo.site).shapes == {"start": (51,)}
