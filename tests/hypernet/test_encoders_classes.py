"""Encoders of a few examples of each class: prototypes, classes, the set transformer, columns."""

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

F = 6
SMALL = {"hidden": 8, "inducing": 3, "between": 10}
BY_CLASS: list[tuple[str, dict[str, Any]]] = [
    ("prototypes", {}),
    ("classes", {}),
    ("classes", {"hidden": [7]}),
    ("set_transformer", {**SMALL, "pool": False}),
]
POOLED: list[tuple[str, dict[str, Any]]] = [("set_transformer", SMALL), ("set_transformer", {**SMALL, "norm": True})]
FIXED: list[tuple[str, dict[str, Any]]] = [("columns", {}), ("prototypes", {"flat": True})]
names = pytest.mark.parametrize(("name", "options"), [*BY_CLASS, *POOLED, *FIXED])


def spec(classes: int = 3) -> TargetSpec:
    return TargetSpec((Slot("head", (classes, F), "F32", "head", F, None, 0),))


def encoder(name: str, width: int | None = None, shape: Any = (3, 4, F), **options: Any) -> Any:
    own = {"prototypes": 3 * F if options.get("flat") else F}.get(name, 5)
    part = encoders.find(name)
    with seeded(0):
        return part.make(validated(part.params, options, name), Site(width or own, spec(), {"classes": shape})).eval()


def asked(batch: int = 2, classes: int = 3, several: int = 4) -> dict[str, Tensor]:
    return {"classes": torch.randn(batch, classes, several, F, generator=torch.Generator().manual_seed(1))}


@names
def test_conditions_are_as_one_by_one(name: str, options: dict[str, Any]) -> None:
    made, given = encoder(name, **options), asked(5)
    many = made(given, spec())
    assert many.shape[:2] == (5, 3 if getattr(made, "by_class", False) else 1)
    for i in range(5):
        torch.testing.assert_close(made({"classes": given["classes"][i : i + 1]}, spec())[0], many[i])
    assert not torch.allclose(many[0], many[1])


@names
def test_what_is_learned_has_gradients_everywhere(name: str, options: dict[str, Any]) -> None:
    made = encoder(name, **options)
    learned = dict(made.named_parameters())
    assert bool(learned) == (name != "prototypes")
    if learned:
        made(asked(), spec()).square().sum().backward()
    # keys move nothing where a set attends to a single member, nor where only their bias does
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned.values())
    assert all(p.grad.any() for key, p in learned.items() if ".key." not in key and p.grad is not None)


@names
def test_wrong_conditions(name: str, options: dict[str, Any]) -> None:
    made, given = encoder(name, **options), asked()["classes"]
    for wrong in (None, given[0], given[..., :5], given[:, :, :0]):
        with pytest.raises(InvalidInput, match=r"a condition is `classes`, \(B, k, n, 6\), and there is"):
            made({} if wrong is None else {"classes": wrong}, spec())
    for wrong in (given[:, :2], torch.cat([given, given], 1)):
        with pytest.raises(InvalidInput, match=rf"is for {wrong.shape[1]} classes, and .* number is 3"):
            made({"classes": wrong}, spec())
    with pytest.raises(InvalidInput, match="not finite"):
        made({"classes": torch.full_like(given, torch.nan)}, spec())
    for shape in ((), (3, F), (3, 4, 0)):
        with pytest.raises(InvalidInput, match=f"the encoder '{name}' wants a condition `classes`"):
            encoder(name, shape=shape, **options)


@names
def test_built_without_memory(name: str, options: dict[str, Any]) -> None:
    from paramsmith.hypernet.skeleton import _no_memory

    with _no_memory():
        told = {key: t.shape for key, t in encoder(name, **options).state_dict().items()}
    assert told == {key: t.shape for key, t in encoder(name, **options).state_dict().items()}


@pytest.mark.parametrize(("name", "options"), [*BY_CLASS, *POOLED])
def test_any_number_of_classes_and_examples(name: str, options: dict[str, Any]) -> None:
    made = encoder(name, shape=(0, 0, F), **options)
    for classes, several in ((1, 1), (2, 7), (9, 3)):
        code = made(asked(2, classes, several), spec(classes))
        assert code.shape[:2] == (2, classes if made.by_class else 1)
        assert bool(torch.isfinite(code).all())


@pytest.mark.parametrize(("name", "options"), BY_CLASS)
def test_classes_in_another_order_have_their_codes_in_that_order(name: str, options: dict[str, Any]) -> None:
    made, given = encoder(name, **options), asked()["classes"]
    order, codes = [2, 0, 1], made({"classes": given}, spec())
    assert made.by_class
    torch.testing.assert_close(made({"classes": given[:, order]}, spec()), codes[:, order])
    assert not torch.allclose(codes[:, order], codes)


@pytest.mark.parametrize(("name", "options"), [*BY_CLASS, *POOLED])
def test_examples_have_no_order(name: str, options: dict[str, Any]) -> None:
    made, given = encoder(name, **options), asked()["classes"]
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(6)])
    mixed = given.gather(2, order.view(2, 3, 4, 1).expand(-1, -1, -1, F))
    torch.testing.assert_close(made({"classes": mixed}, spec()), made({"classes": given}, spec()))
    # but it does matter which class an example is of
    swapped = given.clone()
    swapped[:, 0, 0], swapped[:, 1, 0] = given[:, 1, 0], given[:, 0, 0]
    assert not torch.allclose(made({"classes": swapped}, spec()), made({"classes": given}, spec()), atol=1e-4)


@pytest.mark.parametrize(("name", "options"), POOLED)
def test_a_pooled_code_knows_no_order_of_classes(name: str, options: dict[str, Any]) -> None:
    made, given = encoder(name, **options), asked()["classes"]
    assert not made.by_class
    torch.testing.assert_close(made({"classes": given[:, [2, 0, 1]]}, spec()), made({"classes": given}, spec()))


# Shots


@pytest.mark.parametrize(("name", "options"), [*BY_CLASS, *POOLED, FIXED[1]])
def test_shots_are_drawn_in_training_alone(name: str, options: dict[str, Any]) -> None:
    made, given = encoder(name, shots=2, **options), asked()
    whole = encoder(name, **options)(given, spec())
    assert torch.equal(made(given, spec()), whole)
    made.train()
    with seeded(3):
        one, two = made(given, spec()), made(given, spec())
    with seeded(3):
        assert torch.equal(made(given, spec()), one)
    assert not torch.equal(one, two)
    with pytest.raises(InvalidInput, match="there are 1 examples of a class, and 2 are to be drawn"):
        made(asked(several=1), spec())
    with pytest.raises(InvalidInput, match="there are 4 examples of a class, and 5 are to be drawn"):
        encoder(name, shots=5, **options)


def test_shots_are_drawn_evenly_and_none_twice() -> None:
    made = encoder("prototypes", shots=2).train()
    given = {"classes": torch.eye(4).expand(500, 3, 4, 4).contiguous()}
    made.features = 4
    with seeded(0):
        means = made(given, spec())
    assert torch.equal(means.sort(2)[0], torch.tensor([0, 0, 0.5, 0.5]).expand(500, 3, 4))
    torch.testing.assert_close(means.mean((0, 1)), torch.full((4,), 0.25), atol=0.03, rtol=0)
    assert not torch.equal(means[:, 0], means[:, 1])  # each class by itself


# Each by itself


def test_prototypes_are_means() -> None:
    given = asked()
    means = given["classes"].mean(2)
    assert torch.equal(encoder("prototypes")(given, spec()), means)
    assert torch.equal(encoder("prototypes", flat=True)(given, spec()), means.flatten(1)[:, None])
    half = {"classes": given["classes"].half()}
    assert encoder("prototypes")(half, spec()).dtype == torch.float32
    for width, options in ((7, {}), (F, {"flat": True})):
        with pytest.raises(InvalidInput, match=f"has codes of width .*, not {width}"):
            encoder("prototypes", width, **options)
    with pytest.raises(InvalidInput, match="may get any number of classes"):
        encoder("prototypes", shape=(0, 4, F), flat=True)


def test_a_class_is_told_by_itself_and_by_all() -> None:
    made, given = encoder("classes", hidden=[7]), asked()
    means = given["classes"].mean(2)

    def layers(part: nn.Sequential, x: Tensor) -> Tensor:
        first, _, last = part
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        return nn.functional.gelu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias

    wanted = layers(made.own, means) + layers(made.all, means.mean(1))[:, None]
    torch.testing.assert_close(made(given, spec()), wanted)


def test_attention_between_members() -> None:
    from paramsmith.hypernet.encoders.attention import Attending

    with seeded(0):
        block, x, y = Attending(3, 4, 6, 2, norm=True), torch.randn(1, 5, 3), torch.randn(2, 7, 4)
    query, key, value = block.query(x).expand(2, 5, 6), block.key(y), block.value(y)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        weights = (query[..., part] @ key[..., part].transpose(1, 2) / 6**0.5).softmax(2)
        heads.append(weights @ value[..., part])
    h = block.first(query + torch.cat(heads, 2))
    torch.testing.assert_close(block(x, y), block.last(h + torch.relu(block.out(h))))


def test_the_sizes_of_d2nwg() -> None:
    with torch.device("meta"):
        made = encoder("set_transformer", 1024, (0, 0, 512))
    block, width = made.within, 512
    assert (block[0].points.shape, block[5].weight.shape) == ((1, 32, 128), (width, 128))
    assert made.across[5].weight.shape == (1024, 128)
    assert not [name for name, part in made.named_modules() if isinstance(part, nn.LayerNorm)]
    with pytest.raises(InvalidInput, match="3 heads do not divide a width of 128"):
        encoder("set_transformer", heads=3)


def test_columns_are_combinations_of_examples() -> None:
    made, given = encoder("columns"), asked()
    flat = given["classes"].flatten(1, 2).transpose(1, 2)  # (B, F, k n)
    mixed = nn.functional.leaky_relu(made.examples(flat), 0.01)
    torch.testing.assert_close(made(given, spec())[:, 0], made.code(mixed.flatten(1)))
    fewer = {"classes": given["classes"][:, :2]}
    padded = {"classes": torch.cat([given["classes"][:, :2], torch.zeros(2, 1, 4, F)], 1)}
    torch.testing.assert_close(made(fewer, spec(2)), made(padded, spec()))
    with pytest.raises(InvalidInput, match="has 15 examples, and this generator takes 12"):
        made(asked(several=5), spec())
    with pytest.raises(InvalidInput, match="a fixed number of classes"):
        encoder("columns", shape=(0, 4, F))
