"""Merged folders with their lineage, small, from folders and from the Hub; and commands that are run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result

from paramsmith.cli import app
from paramsmith.lineage import NAME
from paramsmith.merge import RunOptions, run
from paramsmith.merge.api import _opened
from paramsmith.merge.recording import recorded
from paramsmith.merge.setup import prepare_setup
from paramsmith.recipe import Recipe, entries
from tests.hub.hubstub import HubStub
from tests.hub.repositories import publish
from tests.merge.folders import llama, save


def model(folder: Path, seed: int, card: str | bytes | None = None) -> Path:
    """A tiny model of its own numbers, near the one of seed 0, with a card."""
    near = {name: 0.1 * tensor for name, tensor in llama(seed).items()} if seed else {}
    tensors = {name: tensor + near.get(name, torch.zeros(())) for name, tensor in llama(0).items()}
    save(folder, tensors)
    if card is not None:
        (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    return folder


def models(home: Path, cards: Sequence[str | bytes | None] = (None,) * 3) -> list[str]:
    """A base and fine-tunes of it."""
    names = ("base", "first", "second", "third", "fourth", "fifth", "sixth", "seventh")
    return [str(model(home / names[seed], seed, card)) for seed, card in enumerate(cards)]


def on_hub(
    hub: HubStub, home: Path, cards: Sequence[str | bytes | None] = ("---\nlicense: mit\n---\n",) * 3
) -> list[str]:
    """The same, in repositories."""
    found = []
    for folder in map(Path, models(home, cards)):
        publish(hub, f"alice/{folder.name}", folder)
        found.append(f"alice/{folder.name}")
    return found


def merged(out: Path, given: Sequence[str], method: str = "ties", **more: Any) -> Path:
    """A merge of them, the first being the base, with its merge.json."""
    base = None if method == "linear" else given[0]
    listed = given if base is None else given[1:]
    recipe = Recipe(method=method, base=base, models=entries(listed), **more)
    return ran(out, recipe)


def ran(out: Path, recipe: Recipe) -> Path:
    """A recipe run, with the merge.json."""
    options = RunOptions(compile="never", threads=1)
    report = run(recipe, out, options)
    if not (out / NAME).exists():
        with ExitStack() as stack:
            job = _opened(recipe, stack)
            lineage = recorded(job, prepare_setup(job, options)[0], report.warnings)
        (out / NAME).write_bytes(lineage.to_bytes())
    return out


def command(name: str, *words: object) -> Result:
    """A command, whether or not the application lists it yet."""
    app.COMMANDS.setdefault(name, "")
    return CliRunner().invoke(app.cli, [name, *map(str, words)])


def texts(files: Mapping[str, bytes]) -> str:
    """All that would be published, as one text."""
    return "\n".join(data.decode() for data in files.values())
