"""A generator as an artifact: saved, loaded and shared as diffusers does it, in safetensors, without foreign code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from paramsmith import __version__
from paramsmith.dtypes import parse_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.params import validated
from paramsmith.parts import generators

from .artifact import FORMAT, INDEX, files_of, open_artifact
from .hypernetwork import Hypernetwork
from .kinds import HYPERNETWORK, KINDS, SAMPLER, Kind
from .latents import Sampling
from .loading import own_memory, silent, without_entry
from .model import WeightModel
from .protocols import Condition, Design, SamplerDesign, Site
from .sampler import Sampler
from .seeding import seeded
from .targets.target import TargetSpec
from .writing.conditions import batched, one_of
from .writing.draws import Draws
from .writing.samples import count_samples, sample_seed, state_dicts

if TYPE_CHECKING:
    from paramsmith.progress import Progress
    from paramsmith.upload import Pushed

    from .training.loop import FitReport
    from .training.metrics import Log

_ONE_FILE = "1000TB"  # a generator has one file of tensors, whatever its size


class Generator(DiffusionPipeline):
    """What makes weights: `sample` gives them as state dicts, `paramsmith generate` writes them as checkpoints.

    It has one model, a `hypernetwork` or a `sampler`. `seconds`: how long the training took; None where nobody knows.
    `learned_from`: of the networks of a zoo, as `zoos.contents.learned_from` says.
    """

    _optional_components = list(KINDS)  # noqa: RUF012 - as the base declares it; one of them is missing

    def __init__(
        self,
        hypernetwork: Hypernetwork | None = None,
        sampler: Sampler | None = None,
        format: int = FORMAT,  # noqa: A002 - named as in the file
        paramsmith: str = __version__,
        seconds: float | None = None,
        learned_from: str | None = None,
    ) -> None:
        super().__init__()
        if (hypernetwork is None) == (sampler is None):
            raise ValueError("a generator has a hypernetwork or a sampler")
        self.register_modules(hypernetwork=hypernetwork, sampler=sampler)  # type: ignore[no-untyped-call]
        told = {"format": FORMAT, "paramsmith": __version__, "seconds": seconds, "learned_from": learned_from}
        self.register_to_config(**told)  # type: ignore[no-untyped-call]
        self.hypernetwork: Hypernetwork
        self.sampler: Sampler
        self.seconds = seconds
        self.learned_from = learned_from

    @classmethod
    def of(cls, model: WeightModel, seconds: float | None = None, learned_from: str | None = None) -> Self:
        """A generator with this model."""
        if isinstance(model, Sampler):
            return cls(sampler=model, seconds=seconds, learned_from=learned_from)
        if isinstance(model, Hypernetwork):
            return cls(model, seconds=seconds, learned_from=learned_from)
        raise TypeError(f"{type(model).__name__} is no kind of model that a generator has")

    @property
    def model(self) -> WeightModel:
        """What the weights come from."""
        return self.hypernetwork or self.sampler

    @property
    def kind(self) -> Kind:
        """Which of the two it is."""
        return HYPERNETWORK if self.hypernetwork is not None else SAMPLER

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
        design: Design | SamplerDesign = part.make(chosen, site)
        where = replace(site, width=design.width)
        with seeded(seed):
            if isinstance(design, SamplerDesign):
                return cls.of(Sampler.of(design, where, told).eval())
            return cls.of(Hypernetwork.of(design, where, told).eval())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of a condition, without the leading axis."""
        return {name: tuple(shape) for name, shape in self.model.config["condition"].items()}

    @property
    def preset(self) -> tuple[str, dict[str, object]] | None:
        """The name and the options it was built with."""
        said = self.model.config.get("preset")
        return (str(said["name"]), dict(said.get("options", {}))) if said else None

    def design(self) -> Design | SamplerDesign:
        """What its preset stands for: also the objective, and how it is trained."""
        if self.preset is None:
            raise InvalidInput("this generator was made of parts, not of a preset", "say how it is to be trained")
        name, options = self.preset
        part = generators.find(name)
        where = Site(0, self.model.spec, self.shapes)
        hint = f"see: paramsmith generators {name}"
        made: Design | SamplerDesign = part.make(validated(part.params, options, f"generator {name}", hint), where)
        return made

    def target(self, like: TargetSpec | None = None, classes: int | None = None) -> TargetSpec:
        """The target of a sample. InvalidInput where this generator cannot make it."""
        spec = self.model.target(like)
        if classes is None:
            return spec
        if classes < 1:
            raise InvalidInput(f"{classes} classes cannot be told apart", "give 1 or more")
        wanted = spec.with_classes(classes)
        if self.kind is HYPERNETWORK and self.model.spec is not None and wanted.hash != spec.hash:
            raise InvalidInput("this generator was made for another number of classes", "leave --classes out")
        return self.model.target(wanted)

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
        steps: int | None = None,
        guidance: float = 1.0,
    ) -> list[dict[str, Tensor]]:
        """n samples for one condition, or one for each of many: state dicts on the CPU, tied tensors as one.

        Sample i has a seed of its own, made of `seed` and i, and the bytes that `paramsmith generate` writes for it.
        Buffers that have no fixed value are left out. Of a sampler, `steps` are those of its prior, and `guidance` w
        draws from null + w (asked - null), where it was trained without a condition too. InvalidInput for a condition
        or a target that does not fit, and for steps or guidance where there are none.
        """
        how = Sampling(steps, guidance)
        self.model.check_sampling(how)
        held, many = batched(condition or {}, self.shapes)
        spec, chosen = self.target(like, classes), parse_dtype(dtype) if dtype else None
        held = {name: tensor.to(self.device) for name, tensor in held.items()}
        seeds, draws = [sample_seed(seed, i) for i in range(count_samples(n, many))], Draws(self.model, held, seed, how)
        if many == 1 or self.kind is SAMPLER:  # which draws many side by side, as it draws one
            return state_dicts(draws, spec, held if many > 1 else one_of(held, 0), seeds, chosen)
        return [state_dicts(draws, spec, one_of(held, i), seeds[i : i + 1], chosen, i)[0] for i in range(many)]

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
        from .zoos.contents import learned_from

        design = self.design()
        chosen = validated(Course, {**design.course, **(course or {})}, "the course", "see: paramsmith train --help")
        report = fit(self.model, objective_for(design, self, source), chosen, progress=progress, log=log)
        self.seconds = (self.seconds or 0.0) + report.seconds
        self.learned_from = learned_from(source)
        return report

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the base takes keywords that would run code of strangers
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, torch_dtype: torch.dtype | None = None
    ) -> Self:
        """A generator from its folder or from the Hub (`user/name@revision`), checked before anything is loaded.

        InvalidInput names what is wrong with it.
        """
        found = open_artifact(pretrained_model_name_or_path)
        with silent(), seeded(0):
            made = super().from_pretrained(
                found.folder,
                torch_dtype=torch_dtype,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,  # parts that keep tensors which are not saved make them as they are built
            )
        if not isinstance(made, cls):
            raise TypeError(f"{type(made)} was loaded in place of a generator")
        own_memory(made.model)
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
            for name in files_of(self.kind):
                with open(place.files / name, "rb") as file:
                    sync_data(file.fileno(), place.files / name)
            for folder in (place.files / self.kind.name, place.files):
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
        # the library's files are for nobody else to read
        os.chmod(folder / self.kind.tensors, (folder / INDEX).stat().st_mode)
        card = folder / "README.md"
        if not os.path.lexists(card) or ours(card):
            replace_file(card, generator_card(self, name))

    def _forget_place(self) -> None:
        """A path of this machine, which diffusers notes where something was loaded from, is for nobody else."""
        for held in (self, self.model):
            without_entry(held, "_name_or_path")
