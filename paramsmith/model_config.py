"""What a model's config.json says, and whether the tensors agree with it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from paramsmith.errors import InvalidInput, printable
from paramsmith.inputs import place, read_json
from paramsmith.ties import has_language_head, tied_names

if TYPE_CHECKING:
    from paramsmith.header import TensorInfo

__all__ = ["ModelConfig", "check_config", "has_language_head", "layer_index", "read_config", "tied_names"]

MAX_CONFIG = 10_000_000
# Where a model of several parts keeps what concerns its language model.
TEXT_SECTIONS = ("text_config", "llm_config", "language_config")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embed_tokens|word_embeddings|wte|embed_in|shared|tok_embeddings)\.weight$")
_FEED_FORWARD = re.compile(r"\.(?:mlp\.(?:gate_proj|up_proj)|intermediate\.dense)\.weight$")
_LAYER_LISTS = {"layers", "layer", "h", "blocks", "block"}
# Keys under which architectures give a second count of layers, or a second width, that the tensors may follow.
_LAYER_WORDS = ("layer", "depth", "block", "stage")
_WIDTH_WORDS = ("intermediate", "ffn", "ff_dim", "d_ff", "mlp", "inner", "expert")
_EXTRA_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers", "num_mtp_modules")
_ABSURD_LAYERS = 100_000


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """config.json as it was read.

    `tie` is what it says about tied embeddings: None when it says nothing, which each architecture reads its own way.
    """

    raw: dict[str, object]
    path: Path
    tie: bool | None
    num_layers: int | None
    digest: str

    @property
    def tied(self) -> bool:
        """Whether config.json says that head and embedding are tied."""
        return self.tie is True

    @property
    def text(self) -> Mapping[str, object]:
        """The part that describes the language model: the whole, or the section of a model of several parts."""
        return text_section(self.raw)


def read_config(folder: Path) -> ModelConfig | None:
    """Read `folder`/config.json; None when there is none. InvalidInput when it is not one strict JSON object."""
    path = folder / "config.json"
    if not path.exists() and not path.is_symlink():
        return None
    raw, data = read_json(path, MAX_CONFIG)
    text = text_section(raw)
    said = [section["tie_word_embeddings"] for section in (raw, text) if "tie_word_embeddings" in section]
    tie = said[0] if said and isinstance(said[0], bool) else None
    layers = next((text[key] for key in LAYER_KEYS if _is_int(text.get(key))), None)
    return ModelConfig(raw, path, tie, layers if isinstance(layers, int) else None, hashlib.sha256(data).hexdigest())


def text_section(raw: Mapping[str, object]) -> Mapping[str, object]:
    """The nested section of the language model where there is one, else `raw` itself."""
    for key in TEXT_SECTIONS:
        section = raw.get(key)
        if isinstance(section, dict):
            return section
    return raw


def layer_index(name: str) -> int | None:
    """The layer a tensor belongs to: the first part of its name that is a number.

    >>> layer_index("model.layers.12.mlp.experts.3.up_proj.weight"), layer_index("lm_head.weight")
    (12, None)
    """
    found = _layer(name)
    return None if found is None else found[1]


def check_config(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """InvalidInput, naming config.json and the key, where config.json certainly contradicts the tensors.

    Only certain contradictions count: embeddings may have more rows than the vocabulary, several stacks of layers may
    have several lengths, and a key whose meaning depends on the architecture is not judged.
    """
    quantization = next((s for s in (config.raw, config.text) if isinstance(s.get("quantization_config"), dict)), None)
    if quantization is not None:
        fact = f"{place(config.path)}: quantization_config says that the weights are quantised"
        raise InvalidInput(fact, "integers must never be averaged: dequantise the model first")
    embeddings = [i.shape for name, i in tensors.items() if _EMBEDDINGS.search(name) and len(i.shape) == 2]
    _check_vocabulary(config, embeddings)
    _check_hidden_size(config, embeddings, tensors)
    _check_layers(config, tensors)
    _check_intermediate_size(config, tensors)


def _check_vocabulary(config: ModelConfig, embeddings: Sequence[tuple[int, ...]]) -> None:
    wanted = config.text.get("vocab_size")
    if embeddings and _is_int(wanted) and all(shape[0] < wanted for shape in embeddings):
        found = f"the embedding has {max(shape[0] for shape in embeddings):,} rows"
        _contradiction(config, "vocab_size", wanted, found)


def _check_hidden_size(
    config: ModelConfig, embeddings: Sequence[tuple[int, ...]], tensors: Mapping[str, TensorInfo]
) -> None:
    wanted = config.text.get("hidden_size")
    if not embeddings or not _is_int(wanted) or any(shape[1] == wanted for shape in embeddings):
        return
    # Factorised embeddings are narrower than the model: its norms and biases are the second witness.
    if not any(info.shape == (wanted,) for info in tensors.values()):
        _contradiction(config, "hidden_size", wanted, f"the embedding has {embeddings[0][1]:,} columns")


def _check_layers(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    key = next((key for key in LAYER_KEYS if _is_int(config.text.get(key))), None)
    wanted = config.num_layers
    if key is None or wanted is None:
        return
    stacks: dict[str, set[int]] = {}
    for name in tensors:
        found = _layer(name)
        if found is not None and found[0].rpartition(".")[2] in _LAYER_LISTS:
            stacks.setdefault(found[0], set()).add(found[1])
    if not stacks and wanted <= _ABSURD_LAYERS:
        return
    lengths = {len(s) for s in stacks.values()} | {max(s) + 1 for s in stacks.values()}
    extra = {0} | {number for name in _EXTRA_LAYERS for number in _numbers(config.text.get(name))}
    stated = set(_stated(config.raw, _LAYER_WORDS))
    if not any(length - more in stated for length in lengths for more in extra):
        found_layers = ", ".join(f"{printable(s)} has {len(i):,}" for s, i in sorted(stacks.items())[:3])
        _contradiction(config, key, wanted, found_layers or "there is no such list of layers")


def _check_intermediate_size(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    wanted = config.text.get("intermediate_size")
    rows = {i.shape[0] for name, i in tensors.items() if len(i.shape) == 2 and _FEED_FORWARD.search(name)}
    if rows and _is_int(wanted) and rows.isdisjoint(_stated(config.raw, _WIDTH_WORDS)):
        _contradiction(config, "intermediate_size", wanted, f"the feed-forward layers have {min(rows):,} rows")


def _contradiction(config: ModelConfig, key: str, wanted: object, found: str) -> None:
    fact = f"{place(config.path)}: {key} is {printable(wanted)}, but {found}"
    raise InvalidInput(fact, "config.json belongs to another model, or weights are missing; download the model again")


def _layer(name: str) -> tuple[str, int] | None:
    """(name of the list of layers, number of the layer); numbers of more than nine digits number no layer."""
    start = 0
    for part in name.split("."):
        if part.isascii() and part.isdecimal() and len(part) <= 9:
            return name[: max(start - 1, 0)], int(part)
        start += len(part) + 1
    return None


def _stated(raw: object, words: tuple[str, ...], under: bool = False, depth: int = 0) -> Iterator[int]:
    """Every whole number that stands under a key with one of `words` in it, at any depth."""
    if under:
        yield from _numbers(raw)
    if depth < 8 and isinstance(raw, dict):
        for key, value in raw.items():
            yield from _stated(value, words, any(word in key for word in words), depth + 1)


def _numbers(found: object) -> list[int]:
    candidates = found if isinstance(found, list) else [found]
    return [number for number in candidates if _is_int(number)]


def _is_int(found: object) -> TypeGuard[int]:
    return type(found) is int
