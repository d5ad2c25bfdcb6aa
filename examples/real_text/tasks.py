"""Four questions about a short text, each with labels that its place gives it: nobody had to annotate anything."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from real_text.pages import Page, Piece, find_pages, sentences
from real_text.python_sources import AREAS, find_modules

LANGUAGES, SECTIONS = ("en", "de", "fr", "es", "pl"), ("1", "2", "3", "5", "8")
SHARES = (0.6, 0.2, 0.2)  # of the files: for training, for choosing, for telling
PER_FILE = 20  # texts of one class from one file, at most


@dataclass(frozen=True)
class Sizes:
    """How many texts a task has to train on, to choose settings by, and to be told by."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Examples:
    """Texts and their classes' numbers."""

    texts: Sequence[str]
    labels: Sequence[int]


@dataclass(frozen=True)
class TextTask:
    """A classification; no file gives texts to two of the three parts."""

    name: str
    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples


class File(Protocol):
    """A manual page or a Python module."""

    path: Path

    def pieces(self) -> list[Piece]:
        """Everything it says."""
        ...


Known = tuple[str, str, Path]  # a text, its class, where it is from


def manual_tasks(folder: Path, sizes: Sizes, seed: int) -> list[TextTask]:
    """language, section, kind and order from the manual pages below a folder."""
    pages = find_pages(folder)
    texts = {page: page.pieces() for page in _some(pages, seed)}
    english = {page: pieces for page, pieces in texts.items() if page.language == "en"}
    language = ((s, page.language, page.path) for page, pieces in texts.items() for s in sentences(pieces))
    section = ((s, page.section, page.path) for page, pieces in english.items() for s in sentences(pieces))
    kinds = ("prose", "item", "code")
    return [
        _task("language", LANGUAGES, ((_few_words(s, seed), c, p) for s, c, p in language), sizes, seed),
        _task("section", SECTIONS, section, sizes, seed),
        _task("kind", kinds, _kinds(english.items()), sizes, seed),
        _task("order", ("written", "shuffled"), _orders(english.items(), seed), sizes, seed),
    ]


def python_tasks(sizes: Sizes, seed: int) -> list[TextTask]:
    """area, kind and order from the standard library."""
    texts = {module: module.pieces() for module in find_modules()}
    area = ((s, module.area, module.path) for module, pieces in texts.items() for s in sentences(pieces))
    return [
        _task("area", tuple(AREAS), area, sizes, seed),
        _task("kind", ("prose", "comment", "code"), _kinds(texts.items()), sizes, seed),
        _task("order", ("written", "shuffled"), _orders(texts.items(), seed), sizes, seed),
    ]


def _some(pages: Sequence[Page], seed: int) -> list[Page]:
    """At most 150 pages of each language and section: reading them all would take longer than it helps."""
    groups = defaultdict(list)
    for page in pages:
        groups[page.language, page.section].append(page)
    wanted = [group for (language, _), group in sorted(groups.items()) if language in LANGUAGES]
    return [page for group in wanted for page in random.Random(seed).sample(group, min(150, len(group)))]


def _kinds(files: Iterable[tuple[File, list[Piece]]]) -> Iterator[Known]:
    """Each piece as it stands, cut to its first words so that its length tells little."""
    for file, pieces in files:
        for piece in pieces:
            words = piece.text.split()[:4]
            if len(words) >= 2:
                yield " ".join(words), piece.kind, file.path


def _orders(files: Iterable[tuple[File, list[Piece]]], seed: int) -> Iterator[Known]:
    """Sentences as they were written, and others with the words of their middle in another order."""
    chance = random.Random(seed)
    for file, pieces in files:
        for number, sentence in enumerate(sentences(pieces)):
            words = sentence.split()[:16]
            middle = words[1:-1]
            chance.shuffle(middle)
            if number % 2:
                words[1:-1] = middle
            yield " ".join(words), "shuffled" if number % 2 else "written", file.path


def _few_words(sentence: str, seed: int) -> str:
    """Three words from somewhere in a sentence: with all of them its language is no question."""
    words = sentence.split()
    start = random.Random(f"{seed} {sentence}").randrange(len(words) - 2)
    return " ".join(words[start : start + 3])


def _task(name: str, classes: tuple[str, ...], known: Iterable[Known], sizes: Sizes, seed: int) -> TextTask:
    """Files dealt to the three parts, then as many texts of every class, each text once."""
    by_file: dict[Path, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for text, label, path in known:
        by_file[path][label].append(text)
    chance, taken = random.Random(f"{seed} {name}"), set[str]()
    files = sorted(by_file)
    chance.shuffle(files)
    parts, start = [], 0
    for share, count in zip(SHARES, (sizes.train, sizes.validation, sizes.test), strict=True):
        stop = start + round(share * len(files))
        parts.append(_examples([by_file[f] for f in files[start:stop]], classes, count, taken, chance))
        start = stop
    return TextTask(name, classes, *parts)


def _examples(
    files: Sequence[dict[str, list[str]]], classes: tuple[str, ...], count: int, taken: set[str], chance: random.Random
) -> Examples:
    """The same number of each class; ends the program where the files have too few."""
    found: list[tuple[str, int]] = []
    each = count // len(classes)
    for number, label in enumerate(classes):
        texts = [t for file in files for t in chance.sample(file[label], min(PER_FILE, len(file[label])))]
        fresh = [text for text in dict.fromkeys(texts) if text not in taken]
        if len(fresh) < each:
            raise SystemExit(f"these texts have {len(fresh)} of the class {label!r} where {each} are needed")
        chosen = chance.sample(fresh, each)
        taken.update(chosen)
        found += [(text, number) for text in chosen]
    chance.shuffle(found)
    return Examples([text for text, _ in found], [label for _, label in found])
