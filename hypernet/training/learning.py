"""From a preset and something to learn from to a saved generator: what `paramsmith train` does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paramsmith import __version__
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Design, Objective, SamplerDesign, Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.writing.cards import README, generator_card
from paramsmith.hypernet.zoos.contents import learned_from
from paramsmith.hypernet.zoos.zoo import Zoo
from paramsmith.memory import StateDict, as_bytes
from paramsmith.params import validated
from paramsmith.parts import generators, objectives
from paramsmith.progress import Progress
from paramsmith.resumable import Resumable
from paramsmith.statistics import weights_digest

from .course import Course
from .loop import FitReport, check_steps, fit
from .metrics import FILE, Log
from .tasks import is_task, site_of

RESULT = "result.json"


@dataclass(frozen=True)
class Trained:
    """What was trained: `result` is what the objective found besides, such as tuned hyperparameters."""

    output: Path
    preset: str
    generator: Generator
    course: Course
    fit: FitReport
    result: Mapping[str, object] | None

    @property
    def parameters(self) -> int:
        """How many numbers the generator has."""
        return sum(parameter.numel() for parameter in self.generator.model.parameters())

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        told: dict[str, object] = {"output": str(self.output), "generator": self.preset, "parameters": self.parameters}
        found = {} if self.result is None else {"result": dict(self.result)}
        return {**told, **self.fit.to_json(), "course": self.course.model_dump(mode="json"), **found}


def train(
    preset: str,
    source: object,
    output: str | os.PathLike[str],
    *,
    options: Mapping[str, object] | None = None,
    course: Mapping[str, object] | None = None,
    site: Site | None = None,
    force: bool = False,
    progress: Progress | None = None,
    log: Log | None = None,
) -> Trained:
    """Train a preset on a task or a zoo, or go on where that was interrupted, and save the generator in a folder.

    `options` are the preset's; `course` what differs from how the preset is trained. `site` says for which target and
    condition, where the source does not. InvalidInput, Refused or Failed, the output then being as it was.
    """
    given: dict[str, Any] = dict(options or {})
    path = Path(output)
    validated(generators.find(preset).params, given, f"generator {preset}", f"see: paramsmith generators {preset}")
    place = site or site_for(source)
    said = validated(Course, course or {}, "the course", "see: paramsmith train --help")
    generator = Generator.build(preset, place, **{"seed": said.seed, **given})
    design = generator.design()
    chosen = validated(Course, {**design.course, **(course or {})}, "the course", "see: paramsmith train --help")
    objective = objective_for(design, generator, source)
    check_steps(objective, chosen)
    hypernetwork: nn.Module = generator.model
    key = _key(hypernetwork, design, chosen, source)
    logs = path.parent / f"{path.name}.logs"
    run = partial(fit, hypernetwork, objective, chosen, progress=progress, log=log, logs=logs)
    if int(os.environ.get("RANK", "0")):  # torchrun's: the first process alone has to do with the output
        report = run()
        made = _finished(generator, report, source)
    else:
        with Resumable(path, key, force=force, single=False) as keeper:
            report = run(keeper=keeper)
            made = _finished(generator, report, source)
            _save(keeper, path.name, made, report, objective)
    return Trained(path, preset, made, chosen, report, _result(objective))


def site_for(source: object) -> Site:
    """The target, if it is always the same, and the condition's shapes: what the source says, or a task's episodes."""
    said = getattr(source, "site", None)
    if isinstance(said, Site):
        return said
    if is_task(source):
        return site_of(source)
    raise InvalidInput(f"{type(source).__name__} is nothing to learn from", "give a task or a Zoo")


def objective_for(design: Design | SamplerDesign, generator: Generator, source: object) -> Objective:
    """What a design minimises, for a generator and what it learns from; on a zoo, regression in place of a task's."""
    if not design.objective.name:
        name = generator.preset[0] if generator.preset else "it"
        raise InvalidInput(f"{name} needs no training", f"paramsmith generate {name} ...")
    named, options = design.objective.name, dict(design.objective.options)
    if named == "tasks" and isinstance(source, Zoo):
        named, options = "regression", {name: options[name] for name in ("meta_batch",) if name in options}
    part = objectives.find(named)
    chosen = validated(part.params, options, f"the objective {part.name}", "its options come from the preset")
    made: Objective = part.make(chosen, generator.model, source)
    return made


def _key(hypernetwork: nn.Module, design: Design | SamplerDesign, course: Course, source: object) -> str:
    """What tells one training from another: what it begins with, how it goes on, and what it sees."""
    begun = weights_digest(StateDict(hypernetwork.state_dict(), "the generator"))
    goal = [design.objective.name, dict(design.objective.options)]
    told = [__version__, torch.__version__, begun, goal, course.identity, source_digest(source)]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def source_digest(source: object) -> str:
    """Tells what is learned from from other things: by its own `digest`, or a task by its code and a few episodes."""
    said = getattr(source, "digest", None)
    if isinstance(said, str):
        return said
    digest = hashlib.sha256()
    for file in sorted(_code_files(source)):
        digest.update(file.read_bytes())
    rng = torch.Generator().manual_seed(1)
    with seeded(0):  # for what a task draws from torch's own generator
        episodes = [source.episode(rng, "train") for _ in range(3)]  # type: ignore[attr-defined]
    for episode in episodes:
        digest.update(episode.target.spec.hash.encode())
        for part in (episode.condition, episode.query, episode.support):
            for name, tensor in sorted(part.items()):
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(as_bytes(tensor.detach().cpu().contiguous().reshape(-1)))
    return digest.hexdigest()


def _code_files(task: object) -> set[Path]:
    """The files that a task, the functions in it and the module of its target are written in."""
    parts: Iterator[object] = iter([type(task), *vars(task).values()] if hasattr(task, "__dict__") else [type(task)])
    found: set[Path] = set()
    for part in parts:
        module = getattr(part, "module", None)
        for held in (
            part,
            getattr(part, "loss", None),
            type(module).forward if isinstance(module, nn.Module) else None,
        ):
            code = getattr(held, "__code__", None)
            if code is not None and Path(code.co_filename).is_file():
                found.add(Path(code.co_filename))
    return found


def _finished(generator: Generator, report: FitReport, source: object) -> Generator:
    return Generator.of(generator.model, report.seconds, learned_from(source))


def _save(keeper: Resumable, name: str, generator: Generator, report: FitReport, objective: Objective) -> None:
    folder = keeper.begin_folder()
    generator.save_pretrained(folder)
    (folder / README).write_bytes(generator_card(generator, name))  # which is not that of the folder it is staged in
    (folder / FILE).write_text(report.metrics, encoding="utf-8")
    result = _result(objective)
    if result is not None:
        (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    keeper.publish_folder()


def _result(objective: Objective) -> Mapping[str, object] | None:
    """What an objective found besides the weights, if its `result()` says so, as plain data."""
    result = getattr(objective, "result", None)
    found = result() if callable(result) else None
    if is_dataclass(found) and not isinstance(found, type):
        found = asdict(found)
    return {str(name): _plain(value) for name, value in found.items()} if isinstance(found, Mapping) else None


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    return {str(name): _plain(item) for name, item in value.items()} if isinstance(value, Mapping) else value
