"""Encoders of embeddings of texts and of scalars, and several encoders at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import validated
from paramsmith.parts import encoders

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = TargetSpec((Slot("body", (2, 2), "F32", "matrix", 2), Slot("head", (3, 2), "F32", "head", 2, None, 0)))
SHAPES = {"classes": (3, 4, 6), "text": (7,), "vector": (2,)}


def encoder(kind: str, /, width: int = 5, shapes: dict[str, tuple[int, ...]] = SHAPES, **options: Any) -> Any:
    part = encoders.find(kind)
    with seeded(0):
        return part.make(validated(part.params, options, kind), Site(width, SPEC, shapes)).eval()


def asked(batch: int = 4) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {name: torch.randn(batch, *shape, generator=rng) for name, shape in SHAPES.items()}


# Texts


def test_a_text_is_one_embedding() -> None:
    made, given = encoder("text", hidden=[9]), asked()
    first, _, last = made.body
    wanted = last(nn.functional.gelu(first(given["text"])))
    torch.testing.assert_close(made(given, SPEC)[:, 0], wanted)
    normed = encoder("text", norm=True)
    torch.testing.assert_close(normed({"text": 3 * given["text"]}, SPEC), normed(given, SPEC), atol=1e-4, rtol=0)


def test_a_text_is_the_mean_of_the_words_that_are_there() -> None:
    made = encoder("text", shapes={"text": (0, 7), "mask": (0,)})
    words = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    filled = torch.where(mask[..., None].bool(), words, torch.nan)
    code = made({"text": filled, "mask": mask}, SPEC)
    means = torch.stack([words[0, :2].mean(0), words[1, 1:].mean(0), torch.zeros(7)])
    torch.testing.assert_close(code[:, 0], made.body(means))
    torch.testing.assert_close(made({"text": words}, SPEC)[:, 0], made.body(words.mean(1)))
    with pytest.raises(InvalidInput, match="the mask of a condition is 3x3"):
        made({"text": words, "mask": mask[:, :3]}, SPEC)
    with pytest.raises(InvalidInput, match=r"is `text`, \(B, n, 7\), and there is 3x7"):
        made({"text": words[:, 0]}, SPEC)


# Scalars


def test_features_of_scalars() -> None:
    made = encoder("scalars", hidden=[6])
    assert made.body[0].in_features == 2 * 257
    assert made.rates[[0, -1]].tolist() == [1, 2**20]
    torch.testing.assert_close(made.rates[1:] / made.rates[:-1], torch.full((127,), 2 ** (20 / 127)))
    small = encoder("scalars", frequencies=3, octaves=2)
    wanted = [[0.4794, 0.8415, 0.9093, 0.8776, 0.5403, -0.4161, 0.5], [0, 0, 0, 1, 1, 1, 0]]
    torch.testing.assert_close(small.features(torch.tensor([[0.5, 0.0]]))[0], torch.tensor(wanted), atol=1e-4, rtol=0)
    assert not made.state_dict().keys() - {key for key, _ in made.named_parameters()}


def test_scalars_by_another_name() -> None:
    made = encoder("scalars", name="goal", shapes={"goal": (2,), "vector": (9,)})
    goal = asked()["vector"]
    assert made({"goal": goal, "vector": torch.zeros(4, 9)}, SPEC).shape == (4, 1, 5)
    with pytest.raises(InvalidInput, match=r"a condition is `goal`, \(B, 2\), and there is nothing"):
        made({"vector": goal}, SPEC)


@pytest.mark.parametrize("name", ["text", "scalars"])
def test_wrong_conditions(name: str) -> None:
    made, key = encoder(name), {"text": "text", "scalars": "vector"}[name]
    good = asked()[key]
    for wrong in ({}, {key: good[0]}, {key: good[:, :1]}):
        with pytest.raises(InvalidInput, match=f"a condition is `{key}`"):
            made(wrong, SPEC)
    with pytest.raises(InvalidInput, match="not finite"):
        made({key: good / 0}, SPEC)
    for shapes in ({}, {key: (0,)}, {key: (1, 2, 3)}):
        with pytest.raises(InvalidInput, match=f"the encoder '{name}' wants a condition `{key}`"):
            encoder(name, shapes=shapes)


# Several


def both() -> Any:
    return encoder("joined", sources=[{"name": "prototypes", "width": 6}, {"name": "text"}, {"name": "empty"}])


def test_codes_are_added_behind_layers() -> None:
    made, given = both(), asked()
    assert made.by_class
    found = [source(given, SPEC) for source in made.sources]
    assert [tuple(code.shape) for code in found] == [(4, 3, 6), (4, 1, 5), (1, 1, 5)]
    one, two, three = (layer(code) for layer, code in zip(made.layers, found, strict=True))
    wanted = one + two + three
    torch.testing.assert_close(made(given, SPEC), wanted)
    order = [2, 0, 1]
    turned = {**given, "classes": given["classes"][:, order]}
    torch.testing.assert_close(made(turned, SPEC), wanted[:, order])


def test_codes_side_by_side() -> None:
    sources = [{"name": "prototypes", "width": 6}, {"name": "scalars", "width": 2, "options": {"frequencies": 4}}]
    made, given = encoder("joined", 8, sources=sources, how="concatenate"), asked()
    code = made(given, SPEC)
    assert torch.equal(code[..., :6], given["classes"].mean(2))
    assert torch.equal(code[..., 6:], made.sources[1](given, SPEC).expand(-1, 3, -1))
    with pytest.raises(InvalidInput, match=r"codes of width 6 \+ 2 side by side have another width than 9"):
        encoder("joined", 9, sources=sources, how="concatenate")


def test_without_a_code_a_class_there_is_one() -> None:
    made = encoder("joined", sources=[{"name": "text"}, {"name": "scalars"}])
    assert not made.by_class
    assert made(asked(), SPEC).shape == (4, 1, 5)


@pytest.mark.parametrize("how", ["add", "concatenate"])
def test_training_goes_without_a_source_now_and_then(how: str) -> None:
    sources = [{"name": "text", "width": 2}, {"name": "scalars", "width": 3}]
    made, given = encoder("joined", sources=sources, how=how, dropout=0.3), asked(2000)
    whole = made(given, SPEC)
    made.train()
    with seeded(0):
        code = made(given, SPEC)
    parts = [source(given, SPEC) for source in made.sources]
    if how == "add":
        parts = [layer(part) for layer, part in zip(made.layers, parts, strict=True)]
        options = {(a, b): a * parts[0] + b * parts[1] for a in (0, 1) for b in (0, 1)}
    else:
        options = {(a, b): torch.cat([a * parts[0], b * parts[1]], 2) for a in (0, 1) for b in (0, 1)}
    share = {kept: (code - one).abs().amax((1, 2)).lt(1e-6).float().mean().item() for kept, one in options.items()}
    assert sum(share.values()) == pytest.approx(1)
    assert [share[kept] for kept in ((0, 0), (0, 1), (1, 0), (1, 1))] == pytest.approx(
        [0.09, 0.21, 0.21, 0.49], abs=0.04
    )
    made.dropout = 0.0
    assert torch.equal(made(given, SPEC), whole)


def test_what_is_not_joined() -> None:
    with pytest.raises(InvalidInput, match="the encoder 'graph' goes by the graph of the target"):
        encoder("joined", 8, sources=[{"name": "graph", "options": {"heads": 4}}, {"name": "text"}])
    made = encoder("joined", sources=[{"name": "text"}, {"name": "scalars"}])
    given = asked()
    with pytest.raises(InvalidInput, match="the sources of a condition are for 4x1 and 3x1 codes"):
        made({**given, "vector": given["vector"][:3]}, SPEC)
    with pytest.raises(InvalidInput, match="a condition is `text`"):
        made({"vector": given["vector"]}, SPEC)
    with pytest.raises(InvalidInput, match="no condition encoder is called 'texts'"):
        encoder("joined", sources=[{"name": "texts"}])
    with pytest.raises(InvalidInput, match="encoder text: there is no parameter depth"):
        encoder("joined", sources=[{"name": "text", "options": {"depth": 3}}])


def test_a_code_a_slot_is_not_joined() -> None:
    made = encoder("joined", sources=[{"name": "text"}])

    class Slots(nn.Module):
        def forward(self, condition: Any, spec: TargetSpec) -> Tensor:
            return torch.zeros(1, len(spec.slots), 5)

    made.sources[0] = Slots()
    with pytest.raises(InvalidInput, match="the encoder 'text' has a code a slot"):
        made(asked(), SPEC)


def test_conditions_are_as_one_by_one() -> None:
    made, given = both(), asked()
    many = made(given, SPEC)
    for i in range(4):
        alone = made({name: held[i : i + 1] for name, held in given.items()}, SPEC)
        torch.testing.assert_close(alone[0], many[i])


@pytest.mark.parametrize("name", ["text", "scalars", "joined"])
def test_built_without_memory(name: str) -> None:
    from paramsmith.hypernet.skeleton import _no_memory

    def shapes() -> dict[str, torch.Size]:
        made = both() if name == "joined" else encoder(name)
        return {key: held.shape for key, held in made.state_dict().items()}

    with _no_memory():
        told = shapes()
    assert told == shapes()
