"""A model with another vocabulary: rows copied where both tokenizers have a token, predicted from words, or drawn."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from paramsmith.destination import Destination
from paramsmith.device import parse_bytes
from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.writing.output import check_apart
from paramsmith.hypernet.writing.provenance import NAME, Generation, Origin, described, planned_outputs, recorded
from paramsmith.hypernet.writing.sources import Source, source_of
from paramsmith.hypernet.writing.stream import SHARD_SIZE
from paramsmith.progress import Progress
from paramsmith.shards import plan_files
from paramsmith.staging import Writer

from .asking import Nearness, coordinates_of, primitives_of
from .assemble import Expansion, places
from .baselines import BASELINES
from .files import beside
from .model import Model
from .recording import record
from .tokens import Match, Tokenizer, matched
from .train import fitted, prepared
from .wordfile import WordVectors, read_words
from .words import Bags, words_of_tokens

Method = Literal["hyperofa", "ofa", "ridge", "mean", "random"]
Reference = str | os.PathLike[str]
_CHECKED = 512  # copied tokens that are predicted as well, to see whether the generator knows this source


@dataclass(frozen=True)
class VocabularyReport:
    """What was written. `counts`: rows copied, predicted, drawn.

    `nearness`: of predictions for tokens that were copied to their rows, and `mean` of the mean row to them; these
    tokens were trained on, so it tells whether generator, words and source belong together, not how good it is.
    """

    path: Path
    rows: int
    counts: Mapping[str, int]
    nearness: Mapping[str, Nearness]
    nbytes: int
    seconds: float
    generation: Generation

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        near = {name: asdict(found) for name, found in self.nearness.items()}
        told: dict[str, object] = {"output": str(self.path), "rows": self.rows, **self.counts, "nearness": near}
        return {**told, "bytes": self.nbytes, "seconds": self.seconds, "warnings": list(self.warnings)}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        found = []
        if {"predicted", "mean"} <= self.nearness.keys():
            own, mean = self.nearness["predicted"].cosine, self.nearness["mean"].cosine
            if own <= mean:
                near = f"cosine {own:.3f}, the mean row {mean:.3f}"
                found.append(f"predictions for tokens of the source are no nearer to their rows than chance: {near}")
        if self.counts["drawn"] > self.rows / 2:
            found.append(f"{self.counts['drawn']:,} of {self.rows:,} rows are drawn at random: no word covers them")
        return tuple(found)


def generate_vocabulary(
    generator: Reference | Generator,
    source: Reference,
    tokenizer: Reference,
    words: Reference | WordVectors | None,
    output: Reference,
    *,
    match: Match = "marks",
    factorised: bool = False,
    shard_size: str | int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> VocabularyReport:
    """What `paramsmith generate GENERATOR --like SOURCE --vocabulary TOKENIZER --words FILE -o OUTPUT` does.

    `generator`: a trained `hyperofa`, or ofa, ridge, mean or random. The rest as in `expand_vocabulary`.
    """
    named = not isinstance(generator, Generator) and str(generator) in BASELINES and not os.path.exists(generator)
    return expand_vocabulary(
        source,
        tokenizer,
        words,
        output,
        method=str(generator) if named else "hyperofa",  # type: ignore[arg-type]
        generator=None if named else generator,
        match=match,
        factorised=factorised,
        shard_size=shard_size,
        seed=seed,
        force=force,
        progress=progress,
    )


def expand_vocabulary(
    source: Reference,
    tokenizer: Reference,
    words: Reference | WordVectors | None,
    output: Reference,
    *,
    method: Method = "hyperofa",
    generator: Reference | Generator | None = None,
    rank: int | None = None,
    match: Match = "marks",
    factorised: bool = False,
    source_tokenizer: Reference | None = None,
    most_words: int | None = None,
    course: Mapping[str, object] | None = None,
    shard_size: str | int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> VocabularyReport:
    """Write `source` with the vocabulary of `tokenizer`: an ordinary model folder.

    Tokens that both have are copied, bit for bit (`match`: see `matched`). Of the others those that words contain are
    predicted by `method`: a `generator`, or one trained here, `ofa`, `ridge` or `mean`; the rest is drawn from N(mean,
    std) of each column, as are all by `random`, which needs no words. An untied head gets rows by the same method.
    Everything else is copied byte for byte; config.json gets the new size and ids.

    `rank`: of the factors that are predicted; baselines predict whole rows without one. `factorised`: coordinates and
    primitives are written apart, as X.coordinates.weight and X.primitives.weight, for a model that multiplies them.
    Raises InvalidInput, Refused or Failed.
    """
    started = time.perf_counter()
    if method not in get_args(Method):
        raise InvalidInput(f"{printable(method)!r} is no method of new rows", f"one of {', '.join(get_args(Method))}")
    target = Tokenizer.open(Path(tokenizer))
    check_apart(Path(output), [Path(path) for path in (source, tokenizer) if os.path.exists(path)])
    _check_free(Path(output), force)
    with Model.open(source, source_tokenizer, progress) as model:
        copied = matched(model.tokenizer, target, match)
        copied = {new: old for new, old in copied.items() if old < model.known}
        vectors = None if method == "random" else _vectors(words, most_words)
        new = _predict(model, target, vectors, copied, _Asked(method, generator, rank, course, seed))
        made_of, made = places(target.size, copied, new.tokens)
        expansion = Expansion(
            model.matrices, model.known, made_of, made, new.coordinates, new.primitives, seed, factorised
        )
        said = {"method": method, "match": match, "factorised": factorised, "rows": expansion.counts}
        told = record(model, target, vectors, new.generator, expansion.specs(), seed, said)
        _write(expansion, model, told, target, _Place(Path(output), shard_size, force), progress)
        nearness = _nearness(model, copied, new)
    seconds = time.perf_counter() - started
    nbytes = sum(spec.nbytes for spec in expansion.specs())
    return VocabularyReport(Path(output), target.size, expansion.counts, nearness, nbytes, seconds, told)


@dataclass(frozen=True)
class _Asked:
    method: Method
    generator: Reference | Generator | None
    rank: int | None
    course: Mapping[str, object] | None
    seed: int


@dataclass(frozen=True)
class _Place:
    output: Path
    shard_size: str | int | None
    force: bool


@dataclass(frozen=True)
class _New:
    """Predictions: for new tokens (n), and for some that are copied."""

    tokens: Tensor
    coordinates: Tensor  # (n, rank)
    primitives: Tensor | None
    checked: Tensor
    again: Tensor  # (checked, rank)
    generator: Origin | None = None


def _predict(
    model: Model, target: Tokenizer, vectors: WordVectors | None, copied: Mapping[int, int], asked: _Asked
) -> _New:
    """What is predicted of the tokens that are not copied and have words."""
    if vectors is None:
        none = torch.empty(0, dtype=torch.int64)
        factors = model.factors(asked.rank) if asked.rank is not None else None
        width = model.matrices.columns if factors is None else factors.rank
        empty = torch.empty(0, width)
        return _New(none, empty, None if factors is None else factors.primitives, none, empty)
    bags = words_of_tokens(target.split, vectors.words, target.size)
    there = bags.sizes > 0
    there[torch.tensor(sorted(target.special), dtype=torch.int64)] = False
    held = torch.zeros(target.size, dtype=torch.bool)
    held[torch.tensor(list(copied), dtype=torch.int64)] = True
    tokens, checked = (torch.nonzero(there & which)[:, 0] for which in (~held, held))
    checked = checked[:: max(1, len(checked) // _CHECKED)]
    both = bags.select(torch.cat([tokens, checked]))
    made, primitives, generator = _coordinates(model, vectors, both, asked)
    return _New(tokens, made[: len(tokens)], primitives, checked, made[len(tokens) :], generator)


def _coordinates(
    model: Model, vectors: WordVectors, bags: Bags, asked: _Asked
) -> tuple[Tensor, Tensor | None, Origin | None]:
    if asked.method != "hyperofa":
        known = model.vocabulary(vectors, model.bags(vectors), asked.rank, asked.seed)
        made = BASELINES[asked.method](known, bags)
        return made, known.primitives if asked.rank is not None else None, None
    found = _generator(model, vectors, asked)
    hypernetwork = found.generator.hypernetwork
    primitives = primitives_of(hypernetwork)
    if primitives.shape[1] != model.matrices.columns:
        told = f"makes rows of {primitives.shape[1]:,} numbers, and the source has {model.matrices.columns:,}"
        raise InvalidInput(f"the generator {told}", "it was trained on another model")
    width = found.generator.shapes.get("set", (0, 0))[1]
    if width != vectors.width:
        fact = f"the words have {vectors.width:,} numbers each, and the generator was trained on {width:,}"
        raise InvalidInput(fact, "give the word vectors that it was trained on")
    return coordinates_of(hypernetwork, vectors.vectors, bags), primitives, found.origin


def _generator(model: Model, vectors: WordVectors, asked: _Asked) -> Source:
    """The generator that was given, or one that is trained here."""
    if asked.generator is not None:
        return source_of(asked.generator, seed=asked.seed)
    options = {} if asked.rank is None else {"rank": asked.rank}
    made = prepared(model, vectors, asked.seed, options)
    fitted(made.generator, made.vocabulary, asked.course, seed=asked.seed)
    return source_of(made.generator)


def _nearness(model: Model, copied: Mapping[int, int], new: _New) -> dict[str, Nearness]:
    if not len(new.checked):
        return {}
    truth = model.rows(torch.tensor([copied[token] for token in new.checked.tolist()]))
    made = new.again if new.primitives is None else new.again @ new.primitives
    mean = model.pieces.moments()[0].expand_as(truth)
    return {"predicted": Nearness.of(made, truth), "mean": Nearness.of(mean, truth)}


def _write(
    expansion: Expansion, model: Model, asked: Generation, target: Tokenizer, place: _Place, progress: Progress | None
) -> None:
    single = place.output.name if place.output.suffix == ".safetensors" else None
    aliases = dict(model.checkpoint.aliases)
    layout = plan_files(expansion.specs(), parse_bytes(place.shard_size or SHARD_SIZE), single, aliases)
    with Writer(place.output, layout, asked.key, force=place.force) as writer:
        expansion.fill(writer, progress)
        model.checkpoint.check_unchanged()
        if single is None:
            files = beside(model.checkpoint.config, model.checkpoint.folder, expansion.rows, target)
            for name, path in files.copies.items():
                writer.add_copy(path, name)
            outputs = {**planned_outputs(layout), **described(files.data), **recorded(files.copies)}
            whole = asked.model_copy(update={"outputs": outputs})
            for name, data in {**files.data, NAME: whole.to_bytes()}.items():
                writer.add_file(name, data)
        writer.publish()


def _check_free(output: Path, force: bool) -> None:
    """Refused, before anything is trained or read, where nothing may be written."""
    place = Destination(output, force=force)
    before = place.staging.exists()
    place.claim()
    place.leave(keep=before)


def _vectors(words: Reference | WordVectors | None, most: int | None) -> WordVectors:
    if words is None:
        raise InvalidInput("new rows are predicted from word vectors, and there are none", "give --words FILE")
    return words if isinstance(words, WordVectors) else read_words(words, most)
