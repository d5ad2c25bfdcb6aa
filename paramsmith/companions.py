"""The other files of a model folder: what is copied beside the weights, and the config.json of a result."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.errors import InvalidInput
from paramsmith.inputs import open_regular, read_at
from paramsmith.model_config import LAYER_KEYS, TEXT_SECTIONS
from paramsmith.ties import has_language_head

if TYPE_CHECKING:
    from paramsmith.dtypes import DType
    from paramsmith.model_config import ModelConfig

# Names and paths inside the folder; weights, code, indexes, cards and config.json match none of them.
_KEPT = (
    "tokenizer*.json",
    "tokenizer*.model",
    "tokenizer*.model.v[0-9]*",
    "tokenizer*.txt",
    "tokenizer*.jinja",
    "tekken.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "bpe.codes",
    "dict.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "normalizer.json",
    "chat_template*.jinja",
    "chat_template*.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "*processor*.json",
    "feature_extractor*.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_[A-Z]*/config.json",
)
_EXECUTABLE_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
_DTYPE_KEYS = ("dtype", "torch_dtype")
_PICKLE = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04")


def companions(folder: Path) -> list[Path]:
    """The files of `folder` that belong beside merged weights, sorted by path: tokenizer, templates, processors.

    Never weights, pickles, indexes or code. Links are followed to regular files; the paths returned are those in
    `folder`, so that their names are the ones to write.
    """
    candidates = [entry for entry in folder.iterdir() if not entry.is_dir()]
    candidates += [
        inner for entry in folder.iterdir() if entry.is_dir() for inner in entry.iterdir() if not inner.is_dir()
    ]
    kept = [path for path in candidates if _is_companion(path, path.relative_to(folder).as_posix())]
    return sorted(kept, key=lambda path: path.relative_to(folder).as_posix())


def companion_names(names: Iterable[str]) -> list[str]:
    """Those of these names, of files in a model's folder, that `companions` looks at."""

    def matches(name: str) -> bool:
        return any(p.count("/") == name.count("/") and fnmatchcase(name, p) for p in _KEPT)

    return sorted(name for name in names if matches(name) and not name.endswith(".index.json"))


def _is_companion(path: Path, name: str) -> bool:
    if not companion_names([name]):
        return False
    try:
        fd, status = open_regular(path)
    except InvalidInput:
        return False  # a pipe, or a link to nothing: never copied, and nothing of the model is lost with it
    try:
        return not _PICKLE.match(read_at(path, fd, 0, min(status.st_size, 4)))
    finally:
        os.close(fd)


def output_config(config: ModelConfig, dtype: DType | None, tied: bool | None, num_layers: int | None) -> bytes:
    """config.json of a result, from the config of one of its models.

    Order of keys is kept. `dtype` (None: as it is) goes under the key that is there already, `tied` (None: as it is)
    says what the result stores, `num_layers` replaces the count of layers. Whatever would make a loader run code from
    the model's repository is removed, as that code is not copied.
    """
    raw = copy.deepcopy(config.raw)
    _remove_code(raw)
    if dtype is not None and dtype.torch_name is not None:
        _set_dtype(raw, dtype.torch_name)
    if tied is not None:
        _set_tied(raw, tied, has_language_head(config))
    if num_layers is not None:
        section = _text_section(raw)
        key = next((key for key in LAYER_KEYS if type(section.get(key)) is int), LAYER_KEYS[0])
        section[key] = num_layers
    return (json.dumps(raw, indent=2) + "\n").encode()


def _remove_code(found: object) -> None:
    if isinstance(found, dict):
        for key in _EXECUTABLE_CODE:
            found.pop(key, None)
        for value in found.values():
            _remove_code(value)
    elif isinstance(found, list):
        for value in found:
            _remove_code(value)


def _set_dtype(raw: dict[str, object], name: str) -> None:
    keys: list[str] = [key for key in _DTYPE_KEYS if key in raw]
    for key in keys or (_dtype_key(raw),):
        raw[key] = name
    for section, value in raw.items():
        if section.endswith("_config") and isinstance(value, dict):
            value.update({key: name for key in _DTYPE_KEYS if isinstance(value.get(key), str)})


def _dtype_key(raw: dict[str, object]) -> str:
    """transformers renamed the key in 4.56."""
    version = re.match(r"(\d{1,4})\.(\d{1,4})", str(raw.get("transformers_version", "")))
    return "dtype" if version and (int(version[1]), int(version[2])) >= (4, 56) else "torch_dtype"


def _set_tied(raw: dict[str, object], tied: bool, speaks: bool) -> None:
    sections = [s for s in (raw, _text_section(raw)) if "tie_word_embeddings" in s]
    for section in sections:
        section["tie_word_embeddings"] = tied
    # A silent config leaves it to the architecture's default, which may be either.
    if not sections and (tied or speaks):
        raw["tie_word_embeddings"] = tied


def _text_section(raw: dict[str, object]) -> dict[str, object]:
    for key in TEXT_SECTIONS:
        section = raw.get(key)
        if isinstance(section, dict):
            return section
    return raw
