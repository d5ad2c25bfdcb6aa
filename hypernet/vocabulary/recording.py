"""What is told of a model with another vocabulary: generation.json, as of everything that is generated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from paramsmith.header import TensorSpec
from paramsmith.hypernet.writing.provenance import Asked, Generation, Origin
from paramsmith.lineage import local_names

from .model import Model
from .tokens import Tokenizer
from .wordfile import WordVectors


def record(
    model: Model,
    target: Tokenizer,
    words: WordVectors | None,
    generator: Origin | None,
    specs: Sequence[TensorSpec],
    seed: int,
    said: Mapping[str, object],
) -> Generation:
    """By what, for which source, tokenizer and words, and how: `said`. The files of the output are still to be told.

    Source, tokenizer and words are known by hashes; a source of the Hub by its repository and commit.
    """
    tokens, vectors = target.digest, words.digest if words is not None else None
    shapes = json.dumps([[spec.name, list(spec.shape)] for spec in specs])
    return Generation(
        generator=generator or Origin(reference=str(said["method"])),
        asked=Asked(
            target=model.checkpoint.pinned or local_names([model.checkpoint.label])[0],
            spec=hashlib.sha256(shapes.encode()).hexdigest(),
            condition=hashlib.sha256(json.dumps([tokens, vectors]).encode()).hexdigest(),
            values={**said, "tokenizer": tokens, "words": vectors, "source": _source(model)},
            seed=seed,
            index=0,
        ),
    )


def _source(model: Model) -> dict[str, object]:
    """Size and header of each file, without the time at which it was written."""
    told: dict[str, object] = {}
    for name, file in model.checkpoint.fingerprint().items():
        told[name] = {k: v for k, v in file.items() if k != "mtime_ns"} if isinstance(file, Mapping) else file
    return told
