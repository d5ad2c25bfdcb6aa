"""A generator as an artifact: saved, loaded and shared as diffusers does it, in safetensors, without foreign code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from paramsmith import __version__
from paramsmith.dtypes import DType, parse_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.params import validated
from paramsmith.parts import generators

from .artifact import FILES, FORMAT, INDEX, TENSORS, open_artifact
from .hypernetwork import Hypernetwork
from .protocols import Condition, Design, Site
from .seeding import seeded
from .targets.target import TargetSpec
from .writing.conditions import batched, one_of
from .writing.samples import sample_seed, state_dicts

if TYPE_CHECKING:
    from paramsmith.progress import Progress
    from paramsmith.upload import Pushed

    from .training.loop import FitReport
    from .training.metrics import Log

_ONE_FILE = "1000TB"  # a generator has one file of tensors, whatever its size


class Generator(DiffusionPipeline):
    """What makes weights: `sample` gives them as state dicts, `paramsmith generate` writes them as checkpoints.

    `seconds`: how long the training took; None where nobody knows.
    """

    def __init__(
        self,
        hypernetwork: Hypernetwork,
        format: int = FORMAT,  # noqa: A002 - named as in the file
        paramsmith: str = __version__,
        seconds: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(hypernetwork=hypernetwork)  # type: ignore[no-untyped-call]
        told = {"format": FORMAT, "paramsmith": __version__, "seconds": seconds}
        self.register_to_config(**told)  # type: ignore[no-untyped-call]
        self.hypernetwork: Hypernetwork
        self.seconds = seconds

    @classmethod
    def build(
        cls,
        preset: str,
        site: Site | None = None,
        *,
        spec: TargetSpec | None = None,
        condition: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
        **options: object,
    ) -> Self:
        """A fresh generator of a preset, for a target (None: for any) and a condition of these shapes.

        Its tensors are drawn from `seed`; torch's own state stays as it is. InvalidInput for an unknown preset or
        option.
        """
        if site is None:
            site = Site(0, spec, {name: tuple(shape) for name, shape in (condition or {}).items()})
        part = generators.find(preset)
        if "seed" in part.params.model_fields:
            options = {"seed": seed, **options}
        chosen = validated(part.params, options, f"generator {preset}", f"see: paramsmith generators {preset}")
        told = {"name": preset, "options": chosen.model_dump(mode="json")}
        design: Design = part.make(chosen, site)
        with seeded(seed):
            made = Hypernetwork.of(design, replace(site, width=design.width), told)
        return cls(made.eval())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of a condition, without the leading axis."""
        return {name: tuple(shape) for name, shape in self.hypernetwork.config["condition"].items()}

    @property
    def preset(self) -> tuple[str, dict[str, object]] | None:
        """The name and the options it was built with."""
        said = self.hypernetwork.config.get("preset")
        return (str(said["name"]), dict(said.get("options", {}))) if said else None

    def design(self) -> Design:
        """What its preset stands for: also the objective, and how it is trained."""
        if self.preset is None:
            raise InvalidInput("this generator was made of parts, not of a preset", "say how it is to be trained")
        name, options = self.preset
        part = generators.find(name)
        where = Site(0, self.hypernetwork.spec, self.shapes)
        hint = f"see: paramsmith generators {name}"
        made: Design = part.make(validated(part.params, options, f"generator {name}", hint), where)
        return made

    def target(self, like: TargetSpec | None = None, classes: int | None = None) -> TargetSpec:
        """The target of a sample. InvalidInput where this generator cannot make it."""
        spec = self.hypernetwork.target(like)
        if classes is None:
            return spec
        if classes < 1:
            raise InvalidInput(f"{classes} classes cannot be told apart", "give 1 or more")
        wanted = spec.with_classes(classes)
        if self.hypernetwork.spec is not None and wanted.hash != spec.hash:
            raise InvalidInput("this generator was made for another number of classes", "leave --classes out")
        return self.hypernetwork.target(wanted)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition | None = None,
        n: int = 1,
        *,
        seed: int = 0,
        like: TargetSpec | None = None,
        classes: int | None = None,
        dtype: str | None = None,
    ) -> list[dict[str, Tensor]]:
        """n samples for one condition, or one for each of many: state dicts on the CPU, tied tensors as one.

        Sample i has a seed of its own, made of `seed` and i, and the bytes that `paramsmith generate` writes for it.
        Buffers that have no fixed value are left out. InvalidInput for a condition or a target that does not fit.
        """
        held, many = batched(condition or {}, self.shapes)
        spec, chosen = self.target(like, classes), parse_dtype(dtype) if dtype else None
        held = {name: tensor.to(self.device) for name, tensor in held.items()}
        if count_samples(n, many) and many == 1:
            seeds = [sample_seed(seed, i) for i in range(n)]
            return state_dicts(self.hypernetwork, spec, one_of(held, 0), seeds, chosen)
        return [self._one(held, i, spec, seed, chosen) for i in range(many)]

    def _one(self, held: Condition, i: int, spec: TargetSpec, seed: int, dtype: DType | None) -> dict[str, Tensor]:
        own = one_of(held, i)
        return state_dicts(self.hypernetwork, spec, own, [sample_seed(seed, i)], dtype)[0]

    def fit(
        self,
        source: object,
        course: Mapping[str, object] | None = None,
        *,
        progress: Progress | None = None,
        log: Log | None = None,
    ) -> FitReport:
        """Train it on a task or a zoo, as its preset is trained but for what `course` says; in memory, not resumable.

        `paramsmith.hypernet.train` does the same to a folder, and goes on where it was interrupted.
        """
        from .training.course import Course
        from .training.learning import objective_for
        from .training.loop import fit

        design = self.design()
        chosen = validated(Course, {**design.course, **(course or {})}, "the course", "see: paramsmith train --help")
        report = fit(self.hypernetwork, objective_for(design, self, source), chosen, progress=progress, log=log)
        self.seconds = (self.seconds or 0.0) + report.seconds
        return report

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the base takes keywords that would run code of strangers
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, torch_dtype: torch.dtype | None = None
    ) -> Self:
        """A generator from its folder or from the Hub (`user/name@revision`), checked before anything is loaded.

        InvalidInput names what is wrong with it.
        """
        found = open_artifact(pretrained_model_name_or_path)
        with _silent(), seeded(0):
            made = super().from_pretrained(
                found.folder,
                torch_dtype=torch_dtype,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,  # parts that keep tensors which are not saved make them as they are built
            )
        if not isinstance(made, cls):
            raise TypeError(f"{type(made)} was loaded in place of a generator")
        _own_memory(made.hypernetwork)
        made._forget_place()
        return made

    def save_pretrained(  # type: ignore[override]  # safetensors is not a choice
        self, save_directory: str | os.PathLike[str], **unused: object
    ) -> None:
        """Write the generator and its card into a folder; a card of somebody's own stays."""
        said = {name for name, value in unused.items() if value not in (None, False)} - {"safe_serialization"}
        if said or unused.get("safe_serialization") is False:
            wrong = sorted(said)[0] if said else "safe_serialization=False"
            raise InvalidInput(f"a generator is saved as safetensors: {printable(wrong)} is no choice", "leave it out")
        self._write(Path(save_directory), Path(save_directory).resolve().name)

    def save(self, output: str | os.PathLike[str], *, force: bool = False) -> None:
        """Save it so that the folder appears complete or not at all. Refused over another, unless forced."""
        from paramsmith.destination import Destination
        from paramsmith.disk import sync_data, sync_folder

        place = Destination(Path(output), force=force, single=False)
        place.claim()
        try:
            place.clear()
            self._write(place.files, place.target.name)
            for name in FILES:
                with open(place.files / name, "rb") as file:
                    sync_data(file.fileno(), place.files / name)
            for folder in (place.files / "hypernetwork", place.files):
                sync_folder(folder)
            place.publish("")
        finally:
            place.leave(keep=False)

    def push_to_hub(  # type: ignore[override]  # diffusers would put its own card in place of ours
        self, repo_id: str, *, private: bool = False, create_pr: bool = False, force: bool = False
    ) -> Pushed:
        """Put it on the Hub in one commit, as `paramsmith push` does with a saved one."""
        from paramsmith.upload import Target, files_of, push_files

        with tempfile.TemporaryDirectory() as temporary:
            self._write(Path(temporary), repo_id)
            target = Target(repo_id, None, private, create_pr, force)
            return push_files(files_of(Path(temporary)), target, f"Upload {printable(repo_id)} with paramsmith")

    def _write(self, folder: Path, name: str) -> None:
        """The files, with a card under this name."""
        from paramsmith.disk import replace_file
        from paramsmith.seal import ours

        from .writing.cards import generator_card

        self._forget_place()
        super().save_pretrained(folder, safe_serialization=True, max_shard_size=_ONE_FILE)
        os.chmod(folder / TENSORS, (folder / INDEX).stat().st_mode)  # the library's files are for nobody else to read
        card = folder / "README.md"
        if not os.path.lexists(card) or ours(card):
            replace_file(card, generator_card(self, name))

    def _forget_place(self) -> None:
        """A path of this machine, which diffusers notes where something was loaded from, is for nobody else."""
        for held in (self, self.hypernetwork):
            _without(held, "_name_or_path")


def count_samples(n: int, conditions: int) -> int:
    """How many samples are made. InvalidInput for many of each of several conditions."""
    if n < 1:
        raise InvalidInput(f"{n} samples are none", "give 1 or more")
    if n > 1 and conditions > 1:
        raise InvalidInput(f"{conditions} conditions make a sample each, and {n} are asked for", "leave -n out")
    return max(n, conditions)


@torch.no_grad()
def _own_memory(module: torch.nn.Module) -> None:
    """Tensors that lie in the file get memory of their own, aligned as any: sums may round by how they are aligned."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def _without(held: ConfigMixin, key: str) -> None:
    kept = {name: value for name, value in held.config.items() if name != key}
    held._internal_dict = FrozenDict(kept)  # type: ignore[no-untyped-call, has-type]


@contextmanager
def _silent() -> Iterator[None]:
    """No progress bar of diffusers."""
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
