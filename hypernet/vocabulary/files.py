"""What lies beside the weights of a model with another vocabulary: its config, its tokenizer, the rest as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from paramsmith.companions import companions, output_config
from paramsmith.inputs import read_json
from paramsmith.model_config import MAX_CONFIG, TEXT_SECTIONS, ModelConfig

from .tokens import ROLES, Tokenizer

# Of the companions of a model, those that its tokenizer consists of.
_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*",
    "normalizer.json",
    "tekken.json",
    "bpe.codes",
    "dict.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
)
_GENERATION = "generation_config.json"


def new_config(config: ModelConfig, rows: int, target: Tokenizer) -> bytes:
    """config.json with the new number of tokens, and the ids of the new special tokens.

    An id whose token the new tokenizer does not have becomes null. What would run code is removed, as in every output.
    """
    raw = json.loads(output_config(config, None, None, None))
    sections = [raw, *(raw[key] for key in TEXT_SECTIONS if isinstance(raw.get(key), dict))]
    for section in sections:
        if "vocab_size" in section or (section is sections[-1] and not any("vocab_size" in s for s in sections)):
            section["vocab_size"] = rows
        section |= new_ids(section, target)
    return (json.dumps(raw, indent=2) + "\n").encode()


def new_ids(section: Mapping[str, object], target: Tokenizer) -> dict[str, object]:
    """Those of the keys `bos_token_id` and the like that a section has, with the ids of the new tokenizer.

    What starts a decoder keeps its role: it is the padding's, or the end's, where it was.
    """
    found: dict[str, object] = {}
    for role in ROLES:
        key = f"{role}_token_id"
        if section.get(key) is not None:
            found[key] = target.roles.get(role)
    starts = section.get("decoder_start_token_id")
    if starts is not None:
        same = [role for role in ("pad", "bos", "eos", "cls") if section.get(f"{role}_token_id") == starts]
        found["decoder_start_token_id"] = target.roles.get(same[0]) if same else None
    return found


@dataclass(frozen=True)
class Beside:
    """Files to write, and files to copy, by the names they will have."""

    data: dict[str, bytes]
    copies: dict[str, Path]


def beside(config: ModelConfig | None, folder: Path | None, rows: int, target: Tokenizer) -> Beside:
    """Config, the new tokenizer's files, and of the source's companions those that are none of its tokenizer's."""
    data = {} if config is None else {"config.json": new_config(config, rows, target)}
    copies = dict(_tokenizer_files(target))
    for path in companions(folder) if folder is not None else []:
        name = path.relative_to(folder or path).as_posix()
        if name in copies or is_tokenizer_file(name):
            continue
        if name == _GENERATION:
            said, _ = read_json(path, MAX_CONFIG)
            data[name] = (json.dumps({**said, **new_ids(said, target)}, indent=2) + "\n").encode()
        else:
            copies[name] = path
    return Beside(data, copies)


def is_tokenizer_file(name: str) -> bool:
    """Whether a companion belongs to the tokenizer.

    >>> is_tokenizer_file("tokenizer_config.json"), is_tokenizer_file("preprocessor_config.json")
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in _TOKENIZER)


def _tokenizer_files(target: Tokenizer) -> dict[str, Path]:
    found = {"tokenizer.json": target.path}
    folder = target.folder
    for path in companions(folder) if folder is not None else []:
        name = path.relative_to(folder or path).as_posix()
        if is_tokenizer_file(name):
            found.setdefault(name, path)
    return found
