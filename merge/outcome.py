"""What the result consists of besides merged tensors: its files, config, companions and recipe."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.companions import companions, output_config
from paramsmith.device import parse_bytes
from paramsmith.hub import Reference
from paramsmith.lineage import NAME, RECIPE, Lineage
from paramsmith.memory import StateDict
from paramsmith.model_config import TEXT_SECTIONS
from paramsmith.recipe import Recipe, dump_recipe
from paramsmith.shards import Layout, plan_files

from .job import Job

if TYPE_CHECKING:
    from paramsmith.model_config import ModelConfig
    from paramsmith.staging import Writer

# What the Hub's own tools write.
SHARD_SIZE = "5GB"


def layout_of(job: Job, target: Path) -> Layout:
    """The output files."""
    single = target.name if target.suffix == ".safetensors" else None
    size = parse_bytes(job.recipe.shard_size or SHARD_SIZE)
    return plan_files([task.spec for task in job.tasks], size, single)


def write_companions(job: Job, writer: Writer, target: Path, lineage: Lineage) -> None:
    """Config, tokenizer and the like from the base or first model; the recipe that makes this again; the lineage."""
    if target.suffix == ".safetensors":
        return
    reference = job.reference
    if reference.config is not None:
        dtypes = {task.spec.dtype for task in job.tasks if task.spec.dtype.kind == "float"}
        dtype = dtypes.pop() if len(dtypes) == 1 else None
        config = _restacked(reference.config, job)
        writer.add_file("config.json", output_config(config, dtype, job.tied, job.layers))
    if reference.folder is not None:
        for path in companions(reference.folder):
            writer.add_copy(path, path.relative_to(reference.folder).as_posix())
    writer.add_file(RECIPE, dump_recipe(rooted(job)).encode())
    writer.add_file(NAME, lineage.to_bytes())


def _restacked(config: ModelConfig, job: Job) -> ModelConfig:
    """The config with what it says layer by layer (`layer_types`) as it is of the layers that were stacked."""
    if job.recipe.slices is None:
        return config
    by_label = {model.label: model.config or config for model in job.models}
    sources = [part.sources[0] for part in job.recipe.slices]
    layers = [(by_label[source.model].text, i) for source in sources for i in range(*source.layer_range)]
    raw = copy.deepcopy(config.raw)
    section = next((raw[key] for key in TEXT_SECTIONS if isinstance(raw.get(key), dict)), raw)
    for key, said in config.text.items():
        listed = (
            isinstance(said, list) and len(said) == config.num_layers and all(isinstance(word, str) for word in said)
        )
        if listed and "layer" in key:
            section[key] = [_at(text.get(key), i, said[0]) for text, i in layers]  # type: ignore[index]
    return replace(config, raw=raw)


def _at(words: object, index: int, otherwise: object) -> object:
    return words[index] if isinstance(words, list) and index < len(words) else otherwise


def rooted(job: Job) -> Recipe:
    """The recipe with absolute paths and, for what is on the Hub, commits: it runs from anywhere, to the same bytes."""
    recipe, pins = job.recipe, pinned(job)

    def root(model: str) -> str:
        return pins.get(model) or (model if Reference.parse(model) else str(Path(model).absolute()))

    models = tuple(
        e.model_copy(update={"model": root(e.model), "statistics": e.statistics and root(e.statistics)})
        for e in recipe.models
    )
    slices = recipe.slices and tuple(
        p.model_copy(update={"sources": tuple(s.model_copy(update={"model": root(s.model)}) for s in p.sources)})
        for p in recipe.slices
    )
    base = root(recipe.base) if recipe.base else None
    coefficients = recipe.coefficients and root(recipe.coefficients)
    return recipe.model_copy(update={"models": models, "base": base, "slices": slices, "coefficients": coefficients})


def pinned(job: Job) -> dict[str, str]:
    """{reference as it was given: with its commit} for the inputs that are on the Hub."""
    inputs = (*job.models, *([job.base] if job.base else []), *job.statistics)
    return {each.label: each.pinned for each in inputs if not isinstance(each, StateDict) and each.pinned}
