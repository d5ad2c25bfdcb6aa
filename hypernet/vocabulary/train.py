"""Training a generator of embedding rows on the vocabulary that a model has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.generators.hyperofa import HyperOFA
from paramsmith.hypernet.training.course import Course
from paramsmith.hypernet.training.learning import objective_for, train
from paramsmith.hypernet.training.loop import FitReport, fit
from paramsmith.params import validated
from paramsmith.progress import Progress

from .asking import Nearness, judged
from .data import Vocabulary
from .model import Model
from .wordfile import WordVectors, read_words


@dataclass(frozen=True)
class Prepared:
    """A fresh generator, what it learns from, and tokens kept apart: their pairs, and their true rows."""

    generator: Generator
    vocabulary: Vocabulary
    apart: Tensor  # (held) numbers of pairs
    truth: Tensor  # (held, columns)

    def judge(self) -> Mapping[str, Nearness]:
        """How near the generator and the baselines come to the rows that were kept apart."""
        known = self.vocabulary.only(self.vocabulary.shares["train"])
        return judged(known, self.vocabulary.bags.select(self.apart), self.truth, self.generator.hypernetwork)


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    generator: Generator
    fit: FitReport
    nearness: Mapping[str, Nearness]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user has to know first: where the cheap baselines do as well."""
        return (*told(self.nearness), *self.fit.warnings)


def prepare_hyperofa(
    source: str | os.PathLike[str],
    words: str | os.PathLike[str] | WordVectors,
    *,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
    most_words: int | None = None,
    progress: Progress | None = None,
    options: Mapping[str, object] | None = None,
) -> Prepared:
    """A generator `hyperofa` for a model and word vectors, and the `Vocabulary` to fit it on.

    Options are those of the preset; the rank is 100, or the width of the embeddings where that is less. InvalidInput
    says what of model, tokenizer or words cannot be used.
    """
    vectors = words if isinstance(words, WordVectors) else read_words(words, most_words)
    with Model.open(source, tokenizer, progress) as model:
        return prepared(model, vectors, seed, options)


def prepared(model: Model, words: WordVectors, seed: int = 0, options: Mapping[str, object] | None = None) -> Prepared:
    """The same for a model that is open."""
    options = options or {}
    chosen = validated(HyperOFA, options, "generator hyperofa")
    rank = chosen.rank if "rank" in options else min(chosen.rank, model.matrices.columns, model.known)
    bags = model.bags(words)
    vocabulary = model.vocabulary(words, bags, rank, seed)
    apart = torch.cat([vocabulary.shares["validation"], vocabulary.shares["test"]])
    truth = model.rows(torch.nonzero(bags.sizes)[:, 0][apart])
    generator = Generator.build("hyperofa", vocabulary.site, seed=seed, **_named(options, rank))
    return Prepared(generator, vocabulary, apart, truth)


def _named(options: Mapping[str, object], rank: int) -> dict[str, Any]:
    return {**options, "rank": rank}


def train_hyperofa(
    source: str | os.PathLike[str],
    words: str | os.PathLike[str] | WordVectors,
    output: str | os.PathLike[str] | None = None,
    *,
    course: Mapping[str, object] | None = None,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
    most_words: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    options: Mapping[str, object] | None = None,
) -> Trained:
    """Train `hyperofa` on a model's own tokens and their words; saved to `output` where that is given.

    `course` has what differs from the preset's own. Judged on 3 % of the tokens, which it does not see. Interrupted on
    the way to an output, the same call goes on.
    """
    made = prepare_hyperofa(source, words, seed=seed, tokenizer=tokenizer, most_words=most_words, options=options)
    if output is None:
        report = fitted(made.generator, made.vocabulary, course, seed=seed, progress=progress)
        return Trained(made.generator, report, made.judge())
    chosen = made.generator.preset[1] if made.generator.preset else {}
    given = {"seed": seed, **(course or {})}
    found = train("hyperofa", made.vocabulary, output, options=chosen, course=given, force=force, progress=progress)
    return Trained(found.generator, found.fit, replace(made, generator=found.generator).judge())


def fitted(
    generator: Generator,
    vocabulary: Vocabulary,
    course: Mapping[str, object] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> FitReport:
    """Train a generator on a vocabulary by its preset's objective and course, in memory."""
    design = generator.design()
    objective = objective_for(design, generator, vocabulary)
    chosen = validated(Course, {**design.course, "seed": seed, **(course or {})}, "the course")
    return fit(generator.hypernetwork, objective, chosen, progress=progress)


def told(nearness: Mapping[str, Nearness]) -> tuple[str, ...]:
    """A sentence where a baseline is nearer to the tokens kept apart."""
    own = nearness["hyperofa"].cosine
    better = [name for name in ("ridge", "ofa", "mean") if nearness[name].cosine >= own]
    if not better:
        return ()
    return (f"{better[0]} does as well on tokens kept apart: cosine {nearness[better[0]].cosine:.3f}, here {own:.3f}",)
