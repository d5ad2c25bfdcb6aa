"""The text of a merge's card: Markdown whose every word from an input is shown as a word (see markdown.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paramsmith.card import Card
from paramsmith.drawing import MOST_SERIES, Panel, Series, drawing
from paramsmith.licences import HEADING, spoken
from paramsmith.lineage import PICTURE, Input, Lineage
from paramsmith.markdown import code, fenced, paper_link, prose, table
from paramsmith.recipe import Recipe, dump_recipe
from paramsmith.registry import methods

from .drift import OTHER, Drift

_MOST_WARNINGS, _MOST_ROWS = 30, 200
_LOCAL = "# Inputs that are not on the hub go by the name of their folder; merge.json has the sha256 of their files.\n"


@dataclass(frozen=True)
class Told:
    """What a card is written from. `name` is the title, `repo` where it will be on the Hub, `note` why no `drift`."""

    lineage: Lineage
    name: str
    repo: str | None
    cards: tuple[tuple[str, Card], ...]
    warnings: tuple[str, ...]
    drift: Drift | None = None
    note: str = ""


def body(told: Told) -> str:
    """The card below its front matter."""
    lineage = told.lineage
    models = sum(each.role == "model" for each in lineage.inputs)
    base = " with a base" if lineage.inputs and lineage.inputs[0].role == "base" else ""
    plural = "s" * (models != 1)
    sections = [
        f"# {code(told.name)}",
        f"A merge of {models} model{plural}{base} by {code(lineage.method)}, made with paramsmith.",
        *_method(lineage.method),
        "## Inputs",
        _inputs(lineage),
        *_numbers(told),
        "## Recipe",
        fenced(published_recipe(lineage), "yaml"),
        *_again(told),
        "## Made with",
        _made_with(lineage),
        *_warnings(told),
        f"## {HEADING}",
        _licences(told.cards),
    ]
    return "\n\n".join(sections) + "\n"


def published_recipe(lineage: Lineage) -> str:
    """recipe.yaml without a path of anybody's machine."""
    text = dump_recipe(Recipe.model_validate(lineage.recipe))
    return text if lineage.on_hub else _LOCAL + text


def picture(lineage: Lineage, drift: Drift) -> bytes:
    """The norms and cosines of the task vectors by layer, as SVG."""
    names = [each.reference for each in lineage.models if each.role == "model"]
    layers = [layer.name for layer in drift.layers]
    norms = [Series(name, tuple(layer.norm(i) for layer in drift.layers)) for i, name in enumerate(names)]
    panels = [Panel("norm of the task vector / norm of the base", tuple(norms))]
    if len(names) > 1:
        panels.append(Panel(_angle_title(len(names)), tuple(_angles(names, drift))))
    return drawing("Task vectors by layer", layers, panels)


def _angle_title(count: int) -> str:
    pairs = count * (count - 1) // 2 <= MOST_SERIES
    return "cosine between task vectors" if pairs else "mean cosine with the other task vectors"


def _angles(names: Sequence[str], drift: Drift) -> Iterator[Series]:
    """A line a pair; of more pairs than can be drawn, a line a model."""
    count = len(names)
    if count * (count - 1) // 2 <= MOST_SERIES:
        for i in range(count):
            for j in range(i + 1, count):
                yield Series(f"{names[i]} · {names[j]}", tuple(layer.cosine(i, j) for layer in drift.layers))
        return
    for i, name in enumerate(names):
        means = []
        for layer in drift.layers:
            found = [c for j in range(count) if j != i and (c := layer.cosine(i, j)) is not None]
            means.append(sum(found) / len(found) if found else None)
        yield Series(name, tuple(means))


def _method(name: str) -> list[str]:
    method = methods().get(name)
    if method is None:
        return []
    paper = f" Paper: {paper_link(method.paper)}." if method.paper else ""
    return [f"{code(name)}: {prose(method.doc.partition(chr(10))[0])}{paper}"]


def _inputs(lineage: Lineage) -> str:
    names, values = _per_model(Recipe.model_validate(lineage.recipe))
    rows, number = [], 0
    for each in lineage.inputs[:_MOST_ROWS]:
        mine = values[number] if each.role == "model" and number < len(values) else [""] * len(names)
        number += each.role == "model"
        commit = code(each.commit[:12]) if each.commit else ""
        rows.append([each.role, _shown(each), commit, _hashes(each), *mine])
    return table(["", "input", "commit", "sha256", *map(code, names)], rows)


def _shown(each: Input) -> str:
    if each.repo is None:
        return code(each.reference)
    inner = f" {code(each.path)}" if each.path else ""
    return f"[{code(each.repo)}](https://huggingface.co/{each.repo}/tree/{each.commit}){inner}"


def _hashes(each: Input) -> str:
    known = [f.sha256 for n, f in each.files.items() if n != "config.json"]
    if not known or known[0] is None:
        return "unknown"
    return code(known[0][:16]) + (f" and {len(known) - 1} more" if len(known) > 1 else "")


def _per_model(recipe: Recipe) -> tuple[list[str], list[list[str]]]:
    """The parameters that are given model by model: their names, and a row of values for each model."""
    if recipe.slices is not None:
        return [], []
    count = len(recipe.models)
    lists = {k: v for k, v in recipe.parameters.items() if isinstance(v, list) and len(v) == count and count > 1}
    lists = {k: v for k, v in lists.items() if not any(isinstance(i, dict) for i in v)}
    names = list(dict.fromkeys([*lists, *(key for entry in recipe.models for key in entry.parameters)]))[:8]
    rows = []
    for at, entry in enumerate(recipe.models):
        common = {name: lists[name][at] for name in names if name in lists}
        held = {**common, **entry.parameters}
        rows.append([code(held[name], 60) if name in held else "" for name in names])
    return names, rows


def _numbers(told: Told) -> list[str]:
    if told.drift is None:
        return ["## Task vectors", prose(told.note)] if told.note else []
    drift, names = told.drift, [each.reference for each in told.lineage.models if each.role == "model"]
    rows = []
    for i, name in enumerate(names[:_MOST_ROWS]):
        found = [(norm, layer.name) for layer in drift.layers if (norm := layer.norm(i)) is not None]
        ends = [f"{norm:.3g} ({layer})" for norm, layer in (min(found), max(found))] if found else ["", ""]
        whole = drift.whole.norm(i)
        rows.append([code(name), "" if whole is None else f"{whole:.4g}", *ends])
    columns = ["model", "norm / norm of the base", "least (layer)", "most (layer)"]
    return ["## Task vectors", _caption(drift, len(names)), table(columns, rows), *_cosines(names, drift), _image()]


def _cosines(names: Sequence[str], drift: Drift) -> list[str]:
    if not 2 <= len(names) <= 12:
        return []
    rows = []
    for i, name in enumerate(names):
        found = (drift.whole.cosine(i, j) for j in range(len(names)))
        rows.append([code(name), *("" if c is None else f"{c:.3f}" for c in found)])
    return [table(["cosine", *map(code, names)], rows)]


def _image() -> str:
    return f"![Norms of the task vectors, and cosines between them, by layer]({PICTURE})"


def _caption(drift: Drift, count: int) -> str:
    told = "A task vector is what a model has more than the base. Norms are relative to the base's, "
    told += f"over the floating-point tensors that all have; “{OTHER}” are those outside of layers."
    if drift.left_out:
        told += f" {drift.left_out:,} tensors that differ in shape or are missing somewhere are left out."
    if drift.not_finite:
        told += f" {drift.not_finite:,} entries that are not finite are not counted."
    if count > MOST_SERIES:
        told += f" The picture shows {MOST_SERIES} of {count} models."
    return told


def _again(told: Told) -> list[str]:
    if not told.lineage.on_hub:
        text = "Not all inputs are on the hub: merge.json has the sha256 of those that are not."
        return ["## Make it again", text]
    where = told.repo or told.name
    return ["## Make it again", "The same inputs, the same bytes:", fenced(f"paramsmith reproduce {where}", "sh")]


def _made_with(lineage: Lineage) -> str:
    rows = [
        ["paramsmith", code(lineage.paramsmith)],
        ["torch", code(lineage.torch)],
        ["arithmetic", f"{lineage.arithmetic}, {code(lineage.device)}"],
        ["seed", str(lineage.seed)],
    ]
    return table(["", ""], rows)


def _warnings(told: Told) -> list[str]:
    listed = list(dict.fromkeys([*told.warnings, *told.lineage.warnings]))
    if not listed:
        return []
    more = [f"and {len(listed) - _MOST_WARNINGS:,} more, in merge.json"] if len(listed) > _MOST_WARNINGS else []
    lines = [" ".join(text.split()) for text in [*listed[:_MOST_WARNINGS], *more]]
    return ["## Warnings", fenced("\n".join(lines), "text")]


def _licences(cards: Sequence[tuple[str, Card]]) -> str:
    rows = [
        [code(name), code(spoken(card)), code(card.license_link) if card.license_link else ""] for name, card in cards
    ]
    return table(["input", "states", "link"], rows[:_MOST_ROWS])
