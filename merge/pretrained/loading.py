"""Models, tokenizers and image processors of local folders, loaded by the transformers library and by nothing else."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import nn

from paramsmith.errors import InvalidInput, MergeWarning, printable
from paramsmith.header import TensorInfo
from paramsmith.inputs import place

ATTENTION = "paramsmith"
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


class Pretrained(Protocol):
    """A class of the library that is made from a folder."""

    def from_pretrained(self, path: Path, **options: object) -> object:
        """What lies in the folder."""
        ...


def transformers_library() -> ModuleType:
    """The library. InvalidInput says what to install where it is missing."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        fact = "running a model on files of data needs transformers, which is not installed"
        hint = "for --data: pip install 'paramsmith[transformers]'; or give --task file.py:make_task"
        raise InvalidInput(fact, hint) from None


@contextmanager
def quiet(library: ModuleType) -> Iterator[None]:
    """No progress bars and no notes of the library; then as it was."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load(source: Pretrained, folder: Path, what: str, **options: object) -> object:
    """A configuration, tokenizer, processor or model; no download, no code of the folder. InvalidInput names both."""
    from huggingface_hub.errors import StrictDataclassError

    problems = (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError, AttributeError)
    try:
        return source.from_pretrained(folder, **_LOCAL, **options)
    except (*problems, StrictDataclassError) as problem:
        told = printable(" ".join(str(problem).split()) or type(problem).__name__, 300)
        fact = f"{place(folder)}: transformers cannot load the {what}: {told}"
        raise InvalidInput(fact, "check the files of the folder, or give --task file.py:make_task") from problem


def load_model(folder: Path, source: Pretrained, attention: str) -> nn.Module:
    """A model in float32, for inference. InvalidInput for weights that the folder lacks or has in another shape."""
    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    asked = {**options, "ignore_mismatched_sizes": True, "attn_implementation": attention}
    loaded = load(source, folder, "model", **asked)
    if not isinstance(loaded, tuple) or not isinstance(loaded[0], nn.Module):
        raise TypeError(f"{source} gave no model")
    model: nn.Module = loaded[0]
    told = loaded[1]
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    lacking = sorted(told["missing_keys"], key=lambda name: (name.startswith(prefix), name))
    if lacking:
        head = not lacking[0].startswith(prefix)
        fact = f"{place(folder)}: the checkpoint has no {'head' if head else 'weights of this name'}: "
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InvalidInput(f"{fact}{printable(lacking[0])}{more}", "fine-tune it first, or choose another --kind")
    for name, found, wanted in sorted(told["mismatched_keys"]):
        fact = f"{place(folder)}: {printable(name)} has shape {list(found)}, but config.json makes it {list(wanted)}"
        raise InvalidInput(fact, "config.json belongs to another model")
    return model.eval()


def load_tokenizer(library: ModuleType, folder: Path) -> object:
    """The tokenizer of a folder. InvalidInput when its files are not there, where the library makes an empty one."""
    tokenizer = load(library.AutoTokenizer, folder, "tokenizer")
    files: Mapping[str, str] = getattr(tokenizer, "vocab_files_names", {})
    if files and not any((folder / name).exists() for name in {*files.values(), "tokenizer.json"}):
        told = " or ".join(sorted(files.values()))
        raise InvalidInput(f"{place(folder)}: has no tokenizer, {told}", "copy it from the model it was tuned from")
    return tokenizer


def plain_attention(library: ModuleType) -> str:
    """The name of the model's own plain attention, with masks made without a look at their values.

    Where every token may see every other, the library leaves a mask out that masks nothing, which `torch.func.vmap`
    cannot follow. The name is for `from_pretrained(..., attn_implementation=...)`; causal models do with `eager`.
    """
    masking = importlib.import_module("transformers.masking_utils")

    def attend(module: nn.Module, *inputs: object, **options: object) -> object:
        plain: Callable[..., object] = sys.modules[type(module).__module__].eager_attention_forward
        return plain(module, *inputs, **options)

    def mask(*shape: object, **options: object) -> object:
        made: object = masking.eager_mask(*shape, **{**options, "allow_is_bidirectional_skip": False})
        return made

    library.AttentionInterface.register(ATTENTION, attend)
    library.AttentionMaskInterface.register(ATTENTION, mask)
    return ATTENTION


def stored_names(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """{parameter: tensor of the checkpoint} where the names differ; a MergeWarning for parameters without a tensor.

    The library renames some architectures while loading. Beyond that, a checkpoint may lack the prefix of the base
    model (`encoder.…` for `bert.encoder.…`) or have one more, keep a tied weight under its other name, and call the
    weights of norms gamma and beta.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    called: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        called.setdefault(id(parameter), []).append(name)
    renamed, found, lost = _renamed(model), {}, []
    for name, parameter in model.named_parameters():
        known = [spelt for own in called[id(parameter)] for spelt in (own, renamed.get(own, own))]
        spelt = [s for own in known for s in (own, own.removeprefix(prefix), prefix + own)]
        stored = next((s for s in [*spelt, *map(_old, spelt)] if s in tensors), None)
        if stored is None:
            lost.append(name)
        elif stored != name:
            found[name] = stored
    if lost:
        told = f"{len(lost)} of the model's parameters are no tensors of the checkpoint, {printable(lost[0])} first"
        warnings.warn(f"{told}: transformers makes them from others, and nothing is known of those", MergeWarning, 3)
    return found


def _renamed(model: nn.Module) -> dict[str, str]:
    """{parameter: its name in a file of the library}, but for those that are made of several tensors or of a part."""
    revert = getattr(importlib.import_module("transformers.core_model_loading"), "revert_weight_conversion", None)
    if revert is None:
        return {}
    named = {name: torch.empty_like(p, device="meta") for name, p in model.named_parameters(remove_duplicate=False)}
    own = {id(tensor): name for name, tensor in named.items()}
    return {own[id(tensor)]: name for name, tensor in revert(model, named).items() if id(tensor) in own}


def _old(name: str) -> str:
    """How TensorFlow's first checkpoints called the weights of a norm."""
    return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name))


def text_positions(model: nn.Module) -> int | None:
    """How many tokens the model has positions for; None where nothing says so."""
    said = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    limits = [said] if isinstance(said, int) and said > 0 else []
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1  # as RoBERTa numbers positions
            limits.append(module.num_embeddings - unused)
    return min(limits, default=None)
