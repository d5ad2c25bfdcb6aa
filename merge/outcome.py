"""What the result consists of besides merged tensors: its files, config, companions and recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.companions import companions, output_config
from paramsmith.device import parse_bytes
from paramsmith.recipe import ModelEntry, Recipe, dump_recipe
from paramsmith.shards import Layout, plan_files

from .job import Job

if TYPE_CHECKING:
    from paramsmith.staging import Writer

# What the Hub's own tools write.
SHARD_SIZE = "5GB"


def layout_of(job: Job, target: Path) -> Layout:
    """The output files."""
    single = target.name if target.suffix == ".safetensors" else None
    size = parse_bytes(job.recipe.shard_size or SHARD_SIZE)
    return plan_files([task.spec for task in job.tasks], size, single)


def write_companions(job: Job, writer: Writer, target: Path) -> None:
    """Config, tokenizer and the like from the base or first model, and the recipe that makes this again."""
    if target.suffix == ".safetensors":
        return
    reference = job.reference
    if reference.config is not None:
        dtypes = {task.spec.dtype for task in job.tasks if task.spec.dtype.kind == "float"}
        dtype = dtypes.pop() if len(dtypes) == 1 else None
        writer.add_file("config.json", output_config(reference.config, dtype, job.tied, job.layers))
    if reference.folder is not None:
        for path in companions(reference.folder):
            writer.add_copy(path, path.relative_to(reference.folder).as_posix())
    writer.add_file("recipe.yaml", dump_recipe(_rooted(job.recipe)).encode())


def _rooted(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that it runs from anywhere."""

    def rooted(model: str) -> str:
        return str(Path(model).absolute())

    models = tuple(ModelEntry(model=rooted(e.model), parameters=e.parameters) for e in recipe.models)
    slices = recipe.slices and tuple(
        p.model_copy(update={"sources": tuple(s.model_copy(update={"model": rooted(s.model)}) for s in p.sources)})
        for p in recipe.slices
    )
    base = rooted(recipe.base) if recipe.base else None
    return recipe.model_copy(update={"models": models, "base": base, "slices": slices})
