"""Modules of transformers and diffusers from a config.json alone: on the meta device, and by no code but theirs."""

from __future__ import annotations

import copy
import importlib
import re
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from paramsmith.errors import InvalidInput, ParamsmithError, printable

from .describe import lacks_values
from .target import MAX_NUMBERS

MAX_LAYERS = 10_000  # as Python objects, which a config costs nothing to ask for
MAX_LABELS = 1_000_000
_MAX_PARAMETERS = 2_000_000
_COUNTED = re.compile(r"layers?$|^layers_per_block$|depths?$|^(?:n|num)_(?:.*_)?(?:blocks?|stages?|heads?|experts?)$")
_LABELLED = re.compile(r"^(?:num_)?(?:labels|classes)$")
# May name code of a repository, which the libraries would fetch and run.
_CODE = re.compile(r"auto_map|attn_implementation|experts_implementation|kernel_config|custom_|trust_remote_code")
_FETCHED = ("use_pretrained_backbone", "use_timm_backbone")
_CLASSIFIES = re.compile(r"For(?:Sequence|Image|Token|Audio|Video)Classification$")
_HINT = "check config.json; or give a function that builds the module: file.py:function"


class _OfConfig(Protocol):
    """A class of models; transformers' make one by the first, diffusers' by the second."""

    def _from_config(self, config: object) -> nn.Module: ...

    def from_config(self, config: Mapping[str, object]) -> object: ...


class MissingLibrary(InvalidInput):
    """The library that an architecture is of is not installed."""


def named(raw: Mapping[str, object]) -> str | None:
    """The library whose architecture a config.json names; None for neither."""
    if isinstance(raw.get("_class_name"), str):
        return "diffusers"
    return "transformers" if isinstance(raw.get("model_type"), str) else None


def build(raw: Mapping[str, object], where: str) -> nn.Module:
    """The module that a config.json describes, its parameters on the meta device: nothing is fetched or drawn.

    Its buffers have their values if it is small enough (`describe.lacks_values`), so that it can be run.
    InvalidInput, with `where` in it, for a library that is missing or does not know it, and for sizes beyond reason.
    """
    check_sizes_said(raw, where)
    library = named(raw)
    if library is None:
        raise InvalidInput(f"{where}: names no model_type of transformers and no _class_name of diffusers", _HINT)
    found = _imported(library, where)
    problems = (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError, AttributeError, ArithmeticError)
    refused = (*problems, NotImplementedError, _strict_error())
    make = _of_diffusers if library == "diffusers" else _of_transformers
    try:
        with _quiet(found), _registered(where), torch.random.fork_rng(devices=[]):
            with torch.device("meta"):
                made = make(found, raw, where)
            return make(found, raw, where) if lacks_values(made) else made
    except ParamsmithError:
        raise
    except refused as problem:
        told = printable(" ".join(str(problem).split()) or type(problem).__name__, 300)
        raise InvalidInput(f"{where}: {library} cannot build the model: {told}", _HINT) from problem


def check_sizes_said(raw: Mapping[str, object], where: str) -> None:
    """InvalidInput for whole numbers in a config.json that no model has."""
    for key, value in _numbers(raw):
        limit = MAX_LAYERS if _COUNTED.search(key) else MAX_LABELS if _LABELLED.search(key) else MAX_NUMBERS
        if abs(value) > limit:
            raise InvalidInput(f"{where}: {printable(key)} is {_told(value)}; at most {limit:,} is built", _HINT)


def relabelled(raw: Mapping[str, object], classes: int, where: str) -> dict[str, object]:
    """The config of the same architecture for another number of classes. InvalidInput where it is no classifier."""
    architectures = raw.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    if not 1 <= classes <= MAX_LABELS:
        raise InvalidInput(f"a model of {classes} classes is not built", f"give 1 to {MAX_LABELS:,}")
    if not any(_CLASSIFIES.search(name) for name in names):
        raise InvalidInput(f"{where}: is no classifier, whose number of classes could be set", "leave --classes out")
    labels = {str(i): f"LABEL_{i}" for i in range(classes)}
    told = {key: value for key, value in raw.items() if key != "num_labels"}
    return {**told, "id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}


def _of_transformers(library: ModuleType, raw: Mapping[str, object], where: str) -> nn.Module:
    known = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    kind = raw["model_type"]
    if kind not in known:
        raise InvalidInput(f"{where}: transformers has no model_type {printable(kind)!r} of its own", _HINT)
    config = known[kind].from_dict({**_harmless(raw), "dtype": "float32"})
    config.use_cache = False
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name is None:
        made = library.AutoModel.from_config(config, trust_remote_code=False)
    else:
        chosen = getattr(library, name, None) if isinstance(name, str) and name.isidentifier() else None
        if not isinstance(chosen, type) or not issubclass(chosen, library.PreTrainedModel):
            raise InvalidInput(f"{where}: transformers has no architecture {printable(name)!r} of its own", _HINT)
        made = cast("_OfConfig", chosen)._from_config(config)
    return _checked(made, where)


def _of_diffusers(library: ModuleType, raw: Mapping[str, object], where: str) -> nn.Module:
    name = str(raw["_class_name"])
    chosen = getattr(library, name, None) if name.isidentifier() else None
    if not isinstance(chosen, type) or not issubclass(chosen, library.ModelMixin):
        raise InvalidInput(f"{where}: diffusers has no model {printable(name)!r}", _HINT)
    return _checked(cast("_OfConfig", chosen).from_config(_harmless(raw)), where)


def _checked(made: object, where: str) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise InvalidInput(f"{where}: gives {type(made).__name__}, not a module", _HINT)
    return made.eval()


def _harmless(raw: Mapping[str, object]) -> dict[str, object]:
    """The config without what may name code or weights that are elsewhere, at any depth."""

    def pruned(value: object) -> object:
        if isinstance(value, Mapping):
            kept = {key: pruned(inner) for key, inner in value.items() if not _CODE.search(str(key))}
            return {**kept, **{key: False for key in _FETCHED if key in kept}}
        return [pruned(inner) for inner in value] if isinstance(value, list) else copy.copy(value)

    told = {key: value for key, value in raw.items() if key not in ("quantization_config", "torch_dtype", "dtype")}
    return {str(key): pruned(value) for key, value in told.items() if not _CODE.search(str(key))}


def _imported(library: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError:
        fact = f"{where}: describes a model of {library}, which is not installed"
        hint = (
            "pip install 'paramsmith[transformers]'; or name the .safetensors file, to use its names and shapes alone"
        )
        raise MissingLibrary(fact, hint) from None


def _strict_error() -> type[Exception]:
    from huggingface_hub.errors import StrictDataclassError

    return StrictDataclassError


@contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """No notes and no warnings of the library; then as it was."""
    logging = library.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(50)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _registered(where: str) -> Iterator[None]:
    """Every parameter of modules that are built goes to the meta device before anything is drawn.

    InvalidInput as soon as there are too many of them, or too many numbers in them.
    """
    count = numbers = 0
    moved: MutableMapping[Tensor, nn.Parameter] = WeakIdKeyDictionary()

    def seen(module: nn.Module, name: str, parameter: Tensor | None) -> nn.Parameter | None:
        nonlocal count, numbers
        count, numbers = count + 1, numbers + (0 if parameter is None else parameter.numel())
        if count > _MAX_PARAMETERS or numbers > MAX_NUMBERS:
            fact = f"{where}: describes a model of more than {MAX_NUMBERS:,} numbers, or {_MAX_PARAMETERS:,} tensors"
            raise InvalidInput(fact, _HINT)
        if parameter is None or parameter.is_meta or is_lazy(parameter):
            return None
        if parameter not in moved:  # one that is registered twice stays one
            empty = torch.empty_like(parameter, device="meta")
            moved[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        return moved[parameter]

    hook = register_module_parameter_registration_hook(seen)  # type: ignore[arg-type]  # may replace what it sees
    try:
        yield
    finally:
        hook.remove()


def _numbers(raw: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    if isinstance(raw, bool):
        return
    if isinstance(raw, int):
        yield key, raw
    elif isinstance(raw, Mapping) and depth < 32:
        for inner, value in raw.items():
            yield from _numbers(value, str(inner).lower(), depth + 1)
    elif isinstance(raw, list) and depth < 32:
        for value in raw:
            yield from _numbers(value, key, depth + 1)


def _told(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**18 else "a number of more than 18 digits"
