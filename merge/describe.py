"""What goes beside a merge for others to read: its card, its complete lineage, the recipe, a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from paramsmith.card import Card, card_of
from paramsmith.checkpoint import Checkpoint
from paramsmith.disk import replace_file
from paramsmith.errors import Failed, InvalidInput, Refused, printable
from paramsmith.hub import snapshot
from paramsmith.inputs import place, read_json
from paramsmith.licences import agreed
from paramsmith.lineage import NAME, PICTURE, README, RECIPE, Lineage, cached_reference, lineage_of, paired
from paramsmith.markdown import front_matter
from paramsmith.model_config import MAX_CONFIG
from paramsmith.progress import Progress
from paramsmith.recipe import load_recipe
from paramsmith.seal import ours, sealed

from .cardtext import Told, body, picture, published_recipe
from .drift import Drift, measure_drift
from .filecard import described_file
from .recording import completed

__all__ = ["Description", "check_licences", "describe", "described_file", "write_card"]


@dataclass(frozen=True)
class Description:
    """The files to publish beside a merge, by name, and what its maker should know."""

    files: dict[str, bytes]
    warnings: tuple[str, ...]
    written: tuple[str, ...] = ()  # those of them that were put into the folder


def describe(
    folder: Path, *, licence: str | None = None, repo: str | None = None, progress: Progress | None = None
) -> Description:
    """Hash what the merge was made from and what it made, and write about it; `repo` is where it will be on the Hub.

    InvalidInput when it is no merged folder, a file has changed since, or the inputs do not state one licence.
    """
    lineage = lineage_of(folder)
    recipe = folder / RECIPE
    if not recipe.exists():
        raise InvalidInput(f"{place(folder)}: holds no {RECIPE}", "paramsmith merge writes it beside the weights")
    texts = paired(load_recipe(recipe), lineage, place(recipe))
    cards = _cards(lineage, texts)
    keys, unclear = agreed(cards, licence)
    lineage, gone = completed(lineage, folder, progress)
    drift, note = _drift(lineage, texts, progress)
    warnings = (*unclear, *gone)
    name = repo or folder.resolve().name
    told = Told(lineage, name, repo, cards, warnings, drift, note)
    head = front_matter(_fields(lineage, [card for _, card in cards], keys, folder))
    files = {
        README: sealed(f"{head}\n{body(told)}"),
        NAME: lineage.to_bytes(),
        RECIPE: published_recipe(lineage).encode(),
    }
    if drift is not None:
        files[PICTURE] = picture(lineage, drift)
    return Description(files, (*warnings, *([note] if note else [])))


def write_card(
    folder: Path, *, licence: str | None = None, force: bool = False, progress: Progress | None = None
) -> Description:
    """Describe a merged folder, and put card, lineage and picture into it. Refused over a card of somebody's own."""
    card = folder / README
    if not force and os.path.lexists(card) and not ours(card):
        raise Refused(f"{place(card)}: was written or edited by somebody", "--force replaces it")
    made = describe(folder, licence=licence, progress=progress)
    # the recipe in the folder has the paths that run here; merge.json goes last, as it says that all is there
    names = tuple(name for name in (PICTURE, README, NAME) if name in made.files)
    for name in names:
        replace_file(folder / name, made.files[name])
    if PICTURE not in names:
        (folder / PICTURE).unlink(missing_ok=True)
    return replace(made, written=names)


def check_licences(models: Sequence[Checkpoint], licence: str | None = None) -> tuple[str, ...]:
    """Before a merge that will be published: InvalidInput when its licence would have to be guessed; warnings else."""
    cards = []
    for model in models:
        held = model.snapshot
        cached = cached_reference(model.path) if held is None else None
        found = card_of(None, snapshot(cached)) if cached else card_of(model.folder, held)
        cards.append((model.label, found))
    return agreed(cards, licence)[1]


def _cards(lineage: Lineage, texts: Sequence[str]) -> tuple[tuple[str, Card], ...]:
    found = []
    for each, text in zip(lineage.inputs, texts, strict=True):
        if each.role in ("base", "model"):
            folder = Path(text) if os.path.isdir(text) else None
            found.append((each.repo or each.reference, card_of(folder, snapshot(each.hub) if each.hub else None)))
    return tuple(found)


def _drift(lineage: Lineage, texts: Sequence[str], progress: Progress | None) -> tuple[Drift | None, str]:
    """Norms and cosines of the task vectors, of weights that are here; else why not."""
    used = [text for each, text in zip(lineage.inputs, texts, strict=True) if each.role in ("base", "model")]
    if not lineage.models or lineage.models[0].role != "base" or len(used) < 2:
        return None, ""
    absent = "the weights of {} are not on this machine: the task vectors were not compared"
    with ExitStack() as stack:
        opened = []
        for each, text in zip(lineage.models, used, strict=True):
            try:
                model = stack.enter_context(Checkpoint.open(text))
            except (InvalidInput, Failed):
                return None, absent.format(printable(each.reference))
            if model.missing(model.tensors):
                return None, absent.format(printable(each.reference))
            opened.append(model)
        return measure_drift(opened[0], opened[1:], progress=progress), ""


def _fields(
    lineage: Lineage, cards: Sequence[Card], licence: dict[str, str], folder: Path
) -> dict[str, str | Sequence[str]]:
    """The front matter: what the Hub finds and groups models by."""
    repos = list(dict.fromkeys(each.repo for each in lineage.models if each.repo))
    fields: dict[str, str | Sequence[str]] = {}
    if repos:
        fields |= {"base_model": repos, "base_model_relation": "merge"}
    config = read_json(folder / "config.json", MAX_CONFIG)[0] if (folder / "config.json").exists() else {}
    fields["library_name"] = "transformers" if config.get("architectures") else "paramsmith"
    fields["tags"] = list(dict.fromkeys(["merge", "paramsmith", lineage.method]))
    fields |= licence
    common = [word for word in cards[0].language if all(word in card.language for card in cards)] if cards else []
    if common:
        fields["language"] = common
    tags = {card.pipeline_tag for card in cards if card.pipeline_tag}
    return fields | ({"pipeline_tag": tags.pop()} if len(tags) == 1 else {})
