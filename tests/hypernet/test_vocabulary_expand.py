"""A model gets another vocabulary: which rows are copied to the bit, predicted, drawn, and what lies beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("tokenizers")

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, Refused
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.vocabulary import baselines
from paramsmith.hypernet.vocabulary.assemble import Expansion
from paramsmith.hypernet.vocabulary.expand import expand_vocabulary, generate_vocabulary
from paramsmith.hypernet.vocabulary.files import new_ids
from paramsmith.hypernet.vocabulary.matrices import Matrices
from paramsmith.hypernet.vocabulary.model import Model
from paramsmith.hypernet.vocabulary.tokens import Tokenizer, matched
from paramsmith.hypernet.vocabulary.train import train_hyperofa
from paramsmith.hypernet.vocabulary.words import words_of_tokens
from paramsmith.hypernet.writing.provenance import completed
from tests.hypernet import new_vocabulary as small

pytestmark = pytest.mark.usefixtures("one_thread")

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class World:
    """Source, target tokenizer and words in a folder; what comes out of expanding."""

    def __init__(self, folder: Path, **options: object) -> None:
        (folder / "source").mkdir()
        self.folder = folder
        self.source = small.source(folder / "source", **options)  # type: ignore[arg-type]
        self.target = small.target(folder / "target")
        self.words, self.vectors = small.words(folder)

    def expand(self, name: str = "out", **options: object) -> dict[str, Tensor]:
        method = {"method": "ofa", **options}
        self.report = expand_vocabulary(self.source, self.target, self.words, self.folder / name, **method)  # type: ignore[arg-type]
        return self.tensors(name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for file in sorted((self.folder / name).glob("*.safetensors")):
            found |= load_file(file)
        return found

    @property
    def old(self) -> dict[str, Tensor]:
        return load_file(self.source / "model.safetensors")

    def kinds(self) -> tuple[dict[int, int], Tensor, Tensor]:
        """Rows copied, predicted and drawn, found anew."""
        old, new = Tokenizer.open(self.source), Tokenizer.open(self.target)
        copied = matched(old, new)
        listed = [line.split()[0] for line in self.words.read_text().splitlines()[1:]]
        covered = words_of_tokens(new.split, listed, new.size).sizes > 0
        rest = torch.tensor([i not in copied for i in range(new.size)])
        return copied, torch.nonzero(rest & covered)[:, 0], torch.nonzero(rest & ~covered)[:, 0]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_rows_of_shared_tokens_are_copied_to_the_bit_and_the_rest_is_as_it_was(world: World) -> None:
    found, old = world.expand(), world.old
    copied, predicted, drawn = world.kinds()
    size = Tokenizer.open(world.target).size
    assert min(len(copied), len(predicted), len(drawn)) > 3
    assert world.report.counts == {"copied": len(copied), "predicted": len(predicted), "drawn": len(drawn)}
    assert list(found) == list(old)
    for name in (EMBEDDING, HEAD):
        assert found[name].shape == (size, small.WIDTH)
        for new, was in copied.items():
            assert torch.equal(found[name][new], old[name][was])
    for name in old.keys() - {EMBEDDING, HEAD, "lm_head.bias"}:
        assert torch.equal(found[name], old[name])
    known = small.word_piece().get_vocab_size()
    assert found["lm_head.bias"][list(copied)].tolist() == [float(was) for was in copied.values()]
    assert set(found["lm_head.bias"][torch.cat([predicted, drawn])].tolist()) == {(known - 1) / 2}


def test_predicted_rows_are_the_methods_and_head_and_embedding_have_the_same_weights(world: World) -> None:
    found, old = world.expand(), world.old
    _, predicted, _ = world.kinds()
    both = torch.cat([found[EMBEDDING], found[HEAD]], 1)[predicted]
    with Model.open(world.source) as model:
        from paramsmith.hypernet.vocabulary.wordfile import read_words

        vectors = read_words(world.words)
        known = model.vocabulary(vectors, model.bags(vectors), None)
        bags = words_of_tokens(Tokenizer.open(world.target).split, vectors.words, len(found[EMBEDDING]))
    torch.testing.assert_close(both, baselines.ofa(known, bags.select(predicted)))
    assert float(old[EMBEDDING].max()) == 1e6  # padding, which nothing was learned from
    assert float(both.abs().max()) < 10


def test_drawn_rows_have_the_spread_of_the_trained_ones(tmp_path: Path) -> None:
    world = World(tmp_path, dtype=torch.bfloat16)
    found, old = world.expand(method="random"), world.old
    copied, _, _ = world.kinds()
    rest = torch.tensor([i for i in range(len(found[EMBEDDING])) if i not in copied])
    assert world.report.counts["predicted"] == 0
    assert found[EMBEDDING].dtype == torch.bfloat16
    trained = small.word_piece().get_vocab_size()
    for name in (EMBEDDING, HEAD):
        rows, own = found[name][rest].float(), old[name][:trained].float()
        spread = own.std(0)
        assert bool(((rows.mean(0) - own.mean(0)).abs() < 0.3 * spread).all())
        torch.testing.assert_close(rows.std(0), spread, rtol=0.2, atol=0)
    assert not torch.equal(found[EMBEDDING][rest].float() * 0.01, found[HEAD][rest].float())
    again, other = world.expand("again", method="random"), world.expand("other", method="random", seed=1)
    assert torch.equal(found[EMBEDDING], again[EMBEDDING])
    assert not torch.equal(found[EMBEDDING], other[EMBEDDING])


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    world = World(tmp_path, tied=True)
    assert HEAD not in world.expand()
    with Checkpoint.open(tmp_path / "out") as made:
        assert made.aliases == {HEAD: EMBEDDING}
        assert made.warnings == []


def test_config_and_files_are_those_of_the_new_vocabulary(world: World) -> None:
    world.expand(shard_size=3000)
    out, size = world.folder / "out", Tokenizer.open(world.target).size
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == size
    assert [config[f"{role}_token_id"] for role in ("pad", "bos", "eos", "sep")] == [1, 0, 2, None]
    assert "auto_map" not in config
    assert config["hidden_size"] == small.WIDTH
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": 2, "temperature": 0.5}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (world.target / name).read_bytes()
    assert (out / "preprocessor_config.json").read_bytes() == (world.source / "preprocessor_config.json").read_bytes()
    assert not (out / "vocab.txt").exists()
    assert len(list(out.glob("*.safetensors"))) > 1
    with Checkpoint.open(out) as made:
        assert made.tensors[EMBEDDING].shape == (size, small.WIDTH)
        with safe_open(made.tensors[EMBEDDING].file, "pt") as file:
            assert file.metadata()["format"] == "pt"


def test_what_is_told_holds_and_names_no_place(world: World) -> None:
    world.expand()
    told = completed(world.folder / "out")
    assert told.asked.values is not None
    assert told.asked.values["method"] == "ofa"
    assert told.asked.values["rows"] == world.report.counts
    assert str(world.folder) not in (world.folder / "out" / "generation.json").read_text()
    world.expand("again")
    first, second = ((world.folder / name / "generation.json").read_bytes() for name in ("out", "again"))
    assert first == second


def test_factors_are_written_apart(world: World) -> None:
    whole, found = world.expand(rank=10), world.expand("factors", rank=10, factorised=True)
    copied, predicted, drawn = world.kinds()
    coordinates = found["model.embed_tokens.coordinates.weight"]
    assert coordinates.shape == (len(whole[EMBEDDING]), 10)
    assert EMBEDDING not in found
    assert "lm_head.coordinates.weight" not in found
    for name in ("model.embed_tokens", "lm_head"):
        primitives = found[f"{name}.primitives.weight"]
        assert primitives.shape == (small.WIDTH, 10)
        made, wanted = coordinates @ primitives.mT, whole[f"{name}.weight"]
        torch.testing.assert_close(made[predicted], wanted[predicted], rtol=1e-4, atol=1e-5)
        near = torch.cosine_similarity(made[list(copied)], wanted[list(copied)], dim=1)
        assert 0.5 < float(near.mean()) < 0.999
    spread = coordinates[list(copied)].std(0)
    torch.testing.assert_close(coordinates[drawn].std(0), spread, rtol=0.5, atol=0)
    with Model.open(world.source) as model:
        factors = model.factors(10)
    for new, was in copied.items():
        torch.testing.assert_close(coordinates[new], factors.coordinates[was], rtol=1e-4, atol=1e-5)
    with Checkpoint.open(world.folder / "factors") as made_of:
        assert made_of.config is not None
    with pytest.raises(InvalidInput, match="needs a rank"):
        world.expand("none", factorised=True)


def test_an_interrupted_expansion_goes_on_to_the_same_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramsmith.hypernet.vocabulary.assemble.CHUNK", 32)
    world.expand("whole", method="ridge")
    kept, calls = Expansion._whole_rows, []

    def stopped(self: Expansion, start: int, end: int, writer: object) -> object:
        calls.append(start)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return kept(self, start, end, writer)  # type: ignore[arg-type]

    monkeypatch.setattr(Expansion, "_whole_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        world.expand("out", method="ridge")
    assert not (world.folder / "out").exists()
    monkeypatch.setattr(Expansion, "_whole_rows", kept)
    world.expand("out", method="ridge")
    first, second = ((world.folder / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert first == second


def test_a_generator_is_trained_kept_and_used(world: World) -> None:
    course = {"steps": 5, "log_every": 5}
    done = train_hyperofa(world.source, world.words, world.folder / "gen", course=course, options={"hidden": 16})
    assert done.generator.preset is not None
    assert done.generator.preset[1]["rank"] == 2 * small.WIDTH  # embedding and head
    assert set(done.nearness) == {"hyperofa", "ofa", "ridge", "mean", "random", "ceiling"}
    assert done.nearness["ceiling"].cosine == pytest.approx(1, abs=1e-4)
    report = generate_vocabulary(world.folder / "gen", world.source, world.target, world.words, world.folder / "out")
    again = generate_vocabulary(done.generator, world.source, world.target, world.words, world.folder / "again")
    assert report.counts == again.counts
    assert report.counts["predicted"] > 3
    for name, tensor in world.tensors("again").items():
        assert torch.equal(tensor, world.tensors("out")[name])
    told = json.loads((world.folder / "out" / "generation.json").read_text())
    assert told["generator"]["reference"] == "gen"
    assert told["generator"]["files"]
    assert report.to_json()["predicted"] == report.counts["predicted"]
    named = generate_vocabulary("ofa", world.source, world.target, world.words, world.folder / "ofa")
    assert named.generation.generator.reference == "ofa"
    here = expand_vocabulary(world.source, world.target, world.words, world.folder / "here", course=course, rank=3)
    assert here.generation.generator.preset == "hyperofa"


def test_a_generator_of_another_source_or_other_words_is_refused_or_told_of(world: World, tmp_path: Path) -> None:
    made = train_hyperofa(world.source, world.words, course={"steps": 2}, options={"hidden": 8, "rank": 3}).generator
    (tmp_path / "tied").mkdir()
    tied = small.source(tmp_path / "tied", tied=True)
    with pytest.raises(InvalidInput, match="makes rows of 16 numbers, and the source has 8"):
        generate_vocabulary(made, tied, world.target, world.words, tmp_path / "out")
    (tmp_path / "wide").mkdir()
    wide, _ = small.words(tmp_path / "wide", dim=7)
    with pytest.raises(InvalidInput, match="7 numbers each, and the generator was trained on 6"):
        generate_vocabulary(made, world.source, world.target, wide, tmp_path / "out")
    plain = _other_generator()
    with pytest.raises(InvalidInput, match="makes no embedding rows"):
        generate_vocabulary(plain, world.source, world.target, world.words, tmp_path / "out")
    with torch.no_grad():
        made.hypernetwork.decoder.head.bias += 1e3  # type: ignore[union-attr, operator]
    report = generate_vocabulary(made, world.source, world.target, world.words, tmp_path / "out")
    assert "no nearer to their rows than chance" in report.warnings[0]


def _other_generator() -> Generator:
    from paramsmith.hypernet.hypernetwork import Hypernetwork
    from paramsmith.hypernet.protocols import Chosen, Design
    from paramsmith.hypernet.vocabulary.data import site_of

    parts = (Chosen("words"), Chosen("dense"), Chosen("zeros"), Chosen("none"), Chosen("rows"))
    return Generator(Hypernetwork.of(Design(4, *parts), site_of(6, 16)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "magic"}, "'magic' is no method"),
        ({"words": None}, "there are none"),
        ({"rank": 99}, "rank 99 asked for"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    world: World, change: dict[str, object], told: str
) -> None:
    asked = {"source": world.source, "tokenizer": world.target, "words": world.words, "method": "ridge", **change}
    with pytest.raises(InvalidInput, match=told):
        expand_vocabulary(output=world.folder / "out", **asked)  # type: ignore[arg-type]
    assert not (world.folder / "out").exists()


def test_with_its_own_vocabulary_a_model_stays_what_it_is_without_its_padding(world: World) -> None:
    report = expand_vocabulary(world.source, world.source, world.words, world.folder / "out", method="ofa")
    assert report.counts == {"copied": small.word_piece().get_vocab_size(), "predicted": 0, "drawn": 0}
    for name in (EMBEDDING, HEAD):
        assert torch.equal(world.tensors("out")[name], world.old[name][:-3])


def test_outputs_that_are_there_or_are_inputs_are_refused(world: World) -> None:
    world.expand()
    with pytest.raises(Refused, match="already exists"):
        world.expand()
    world.expand(force=True)
    with pytest.raises(InvalidInput, match="overlap"):
        world.expand("source", force=True)


def test_a_tokenizer_that_is_another_models_is_refused(world: World) -> None:
    with pytest.raises(InvalidInput, match="has ids up to 272, and the embedding 67 rows"):
        world.expand(source_tokenizer=world.target)
    with pytest.raises(InvalidInput, match="has no tokenizer beside it"):
        expand_vocabulary(world.source / "model.safetensors", world.target, None, world.folder / "o", method="random")


def rewritten(folder: Path, **tensors: Tensor | None) -> None:
    held = {**load_file(folder / "model.safetensors"), **tensors}
    save_file({n: t for n, t in held.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})


def test_models_whose_vocabulary_is_not_understood_are_refused(world: World) -> None:
    rows = torch.zeros(1000, small.WIDTH)
    config = json.loads((world.source / "config.json").read_text())
    (world.source / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    changes = {EMBEDDING: rows, HEAD: rows.clone(), "lm_head.bias": torch.zeros(1000)}
    rewritten(world.source, **changes, **{"model.per_layer_tokens.weight": torch.zeros(1000, 3)})
    with Checkpoint.open(world.source) as opened, pytest.raises(InvalidInput, match=r"per_layer_tokens.* not known"):
        Matrices.of(opened)
    rewritten(world.source, **{"model.per_layer_tokens.weight": None, "decoder.embed_tokens.weight": torch.zeros(7, 8)})
    with Checkpoint.open(world.source) as opened, pytest.raises(InvalidInput, match="has 7"):
        Matrices.of(opened)
    rewritten(world.source, **{"decoder.embed_tokens.weight": None, EMBEDDING: None})
    with Checkpoint.open(world.source) as opened, pytest.raises(InvalidInput, match="no token embedding"):
        Matrices.of(opened)


def test_what_starts_a_decoder_keeps_its_role(world: World) -> None:
    target = Tokenizer.open(world.target)
    assert new_ids({"decoder_start_token_id": 7, "eos_token_id": 7, "pad_token_id": 1}, target) == {
        "eos_token_id": 2,
        "pad_token_id": 1,
        "decoder_start_token_id": 2,
    }
    assert new_ids({"decoder_start_token_id": 9, "vocab_size": 3}, target) == {"decoder_start_token_id": None}


def test_the_head_of_a_masked_model_is_known(tmp_path: Path) -> None:
    rows = torch.zeros(500, 4)
    tensors = {"bert.embeddings.word_embeddings.weight": rows, "cls.predictions.bias": torch.zeros(500)}
    save_file(
        {**tensors, "bert.embeddings.position_embeddings.weight": torch.zeros(512, 4)}, tmp_path / "m.safetensors"
    )
    with Checkpoint.open(tmp_path / "m.safetensors") as opened:
        found = Matrices.of(opened)
        assert [info.name for info in found.matrices] == ["bert.embeddings.word_embeddings.weight"]
        assert [info.name for info in found.biases] == ["cls.predictions.bias"]
