"""The architecture that a user points at: a function, a config, a checkpoint on this machine or of the Hub."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import DTYPES, DType, parse_dtype
from paramsmith.errors import Failed, GenerateWarning, InvalidInput, printable
from paramsmith.hypernet.stored import read_tensor
from paramsmith.inputs import place, read_json
from paramsmith.model_config import MAX_CONFIG
from paramsmith.userfile import call_user, named_function
from paramsmith.weightfiles import INDEX_SUFFIX, PICKLES, SUFFIX

from .architecture import MissingLibrary, build, named, relabelled
from .calling import Target
from .capture import chain
from .describe import described, lacks_values, spec_of
from .exampleinputs import example_inputs
from .roles import traits_of
from .storednames import as_stored
from .target import TargetSpec

Inputs: TypeAlias = tuple[Tensor, ...] | Mapping[str, Tensor]
CONFIG = "config.json"


@dataclass(frozen=True)
class Like:
    """An architecture to generate for.

    `target`: the network, to be run; None where only its tensors are known, are stored under other names, or where
    another number of classes was asked for. `folder`: where tokenizers and the like can be copied from. `inputs`: an
    example, of which only the shapes mean anything.
    """

    label: str
    spec: TargetSpec
    target: Target | None = None
    folder: Path | None = None
    inputs: Inputs = ()
    stored: str | None = None

    @property
    def config(self) -> Mapping[str, object] | None:
        """What config.json says."""
        return self.spec.config

    def own(self) -> dict[str, Tensor]:
        """The values of the buffers that the target keeps as they are, of those that it has a value for."""
        kept = [buffer for buffer in self.spec.buffers if buffer.fill is None]
        if self.stored is not None and kept:
            with Checkpoint.open(self.stored) as checkpoint:
                return {b.name: read_tensor(checkpoint, b.name) for b in kept if checkpoint.info(b.name) is not None}
        held = dict(self.target.module.named_buffers(remove_duplicate=False)) if self.target is not None else {}
        return {b.name: held[b.name] for b in kept if b.name in held and not held[b.name].is_meta}


def open_like(reference: str, *, classes: int | None = None, capture: bool = True) -> Like:
    """Open what `--like` names, without reading weights.

    - `file.py:function`, which returns a module, or a module and example inputs (a tensor, a tuple, or a mapping). It
      is called on the meta device, and, if that fails or the values of buffers are needed, on the CPU.
    - a config.json, or a folder with one and no weights: the model of transformers or diffusers that it names. No code
      but that of these libraries is run.
    - a checkpoint: a folder, a .safetensors file, `user/name` of the Hub. Tensors are named as they are stored; where
      the architecture is not known, their names and shapes tell all.

    `classes`: for so many classes, whatever the number there. `capture`: with the graph. InvalidInput or Failed says
    what is wrong.
    """
    path, colon, _ = reference.rpartition(":")
    if colon and path.endswith(".py"):
        return _of_function(reference, classes, capture)
    config = _config_alone(Path(reference))
    if config is not None:
        return _of_config(config, reference, classes, capture)
    return _of_checkpoint(reference, classes, capture)


def _of_function(reference: str, classes: int | None, capture: bool) -> Like:
    function = named_function(reference, "function that builds a module")
    module, inputs = _built(function, reference)
    spec = spec_of(module)
    target = Target(
        module, spec if classes is None or _has(spec, classes) else spec_of(module, _known(module, classes))
    )
    if capture:
        target = target.captured(inputs) if inputs else _chained(target, reference)
    if classes is None or _has(target.spec, classes):
        return Like(reference, target.spec, target, None, inputs)
    return Like(reference, target.spec.with_classes(classes), None, None, inputs)


def _of_config(path: Path, label: str, classes: int | None, capture: bool) -> Like:
    raw, _ = read_json(path, MAX_CONFIG)
    raw = raw if classes is None else relabelled(raw, classes, place(path))
    target, inputs = _target(build(raw, place(path)), capture, classes, path.parent)
    dtype = _said_dtype(raw).code
    slots = tuple(replace(slot, dtype=dtype) for slot in target.spec.slots)
    target = target.described(replace(target.spec, slots=slots, config=raw))
    return Like(label, target.spec, target, path.parent, inputs)


def _of_checkpoint(label: str, classes: int | None, capture: bool) -> Like:
    with Checkpoint.open(label) as checkpoint:
        for told in checkpoint.warnings:
            warnings.warn(told, GenerateWarning, stacklevel=3)
        raw = checkpoint.config.raw if checkpoint.config else None
        where = f"{printable(label)}: config.json"
        if raw is not None and classes is not None:
            raw = relabelled(raw, classes, where)
        module = None if raw is None else _module(raw, where)
        target, inputs = None, dict[str, Tensor]()
        if module is None:
            spec = _of_names(checkpoint, classes)
            spec = replace(spec, graph=chain(spec) if capture else None)
        else:
            target, inputs = _target(module, capture, classes, where)
            spec = as_stored(target.spec, module, checkpoint)
        spec = replace(spec, config=raw)
        if target is not None:
            same = all(a.name == b.name for a, b in zip(spec.slots, target.spec.slots, strict=True))
            target = target.described(spec) if same else None
        folder = checkpoint.whole_folder(weights=False)
        return Like(label, spec, target, folder, inputs, checkpoint.pinned or label)


def _of_names(checkpoint: Checkpoint, classes: int | None) -> TargetSpec:
    spec, how = described(checkpoint)
    if classes is None:
        return spec
    return (spec if how != "none" else described(checkpoint, classes)[0]).with_classes(classes)


def _module(raw: Mapping[str, object], where: str) -> nn.Module | None:
    """The network of a checkpoint, if its config names one that the libraries know."""
    if named(raw) is None:
        return None
    try:
        return build(raw, where)
    except MissingLibrary:
        raise
    except InvalidInput as problem:
        warnings.warn(f"{problem.fact}; its tensors are taken as a chain", GenerateWarning, stacklevel=4)
        return None


def _target(
    module: nn.Module, capture: bool, classes: int | None, where: str | Path
) -> tuple[Target, dict[str, Tensor]]:
    """A model of the libraries, which was built for so many classes."""
    spec = spec_of(module)
    target = Target(module, spec if classes is None or _has(spec, classes) else spec_of(module, classes))
    inputs = example_inputs(module)
    if capture:
        target = target.captured(inputs) if inputs else _chained(target, str(where))
    return target, inputs


def _chained(target: Target, where: str) -> Target:
    told = f"{printable(where)}: no example of its inputs is known, so that its tensors are taken as a chain"
    warnings.warn(told, GenerateWarning, stacklevel=4)
    return target.described(replace(target.spec, graph=chain(target.spec)))


def _has(spec: TargetSpec, classes: int) -> bool:
    return any(slot.class_axis is not None and slot.shape[slot.class_axis] == classes for slot in spec.slots)


def _known(module: nn.Module, classes: int) -> int | None:
    """The number of classes to look for the head by: what is asked for, if nothing else tells."""
    return classes if traits_of(module).how == "none" else None


def _built(function: Callable[[], object], reference: str) -> tuple[nn.Module, Inputs]:
    """On the meta device where that can be, and what was drawn is not missed."""
    with torch.random.fork_rng(devices=[]):
        with suppress(Failed), torch.device("meta"):  # not everything can be built there
            module, inputs = _returned(call_user(function, reference), reference)
            if not lacks_values(module):
                return module, inputs
        return _returned(call_user(function, reference), reference)


def _returned(found: object, reference: str) -> tuple[nn.Module, Inputs]:
    module, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, ())
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    if isinstance(module, nn.Module):
        if isinstance(inputs, Mapping) and all(isinstance(value, Tensor) for value in inputs.values()):
            return module, {str(name): value for name, value in inputs.items()}
        if isinstance(inputs, tuple | list) and all(isinstance(value, Tensor) for value in inputs):
            return module, tuple(inputs)
    told = type(found).__name__ if not isinstance(found, tuple) else ", ".join(type(each).__name__ for each in found)
    fact = f"{printable(reference)}: gave {printable(told)}"
    raise InvalidInput(fact, "return a torch.nn.Module, or a module and its example inputs")


def _config_alone(path: Path) -> Path | None:
    """The config.json that is meant, where it stands without weights."""
    if path.suffix == ".json" and not path.name.endswith(INDEX_SUFFIX) and not path.is_dir():
        return path
    config = path / CONFIG
    if not path.is_dir() or not (config.exists() or config.is_symlink()):
        return None
    weights = (SUFFIX, INDEX_SUFFIX, *PICKLES)
    return None if any(entry.name.endswith(weights) for entry in path.iterdir()) else config


def _said_dtype(raw: Mapping[str, object]) -> DType:
    """The type of the weights that a config.json names; 32 bits where it names none that can be generated."""
    for key in ("dtype", "torch_dtype"):
        said = raw.get(key)
        if isinstance(said, str):
            try:
                found = parse_dtype(said)
            except InvalidInput:
                continue
            if found.kind == "float":
                return found
    return DTYPES["F32"]
