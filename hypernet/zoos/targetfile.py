"""`targets.json`: what the networks of a zoo are, with graph and head, which names and shapes alone do not tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.specfile import spec_from_json, spec_to_json
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.inputs import place, read_json

TARGETS = "targets.json"
_MAX_BYTES = 1_000_000_000
_MAX_TARGETS = 100_000


def read_targets(path: Path) -> list[TargetSpec]:
    """The targets, none where there is no such file. InvalidInput for a file that is something else."""
    if not path.exists():
        return []
    found, _ = read_json(path, _MAX_BYTES)
    told = found.get("targets")
    if set(found) != {"targets"} or not isinstance(told, list) or len(told) > _MAX_TARGETS:
        raise InvalidInput(f"{place(path)}: is no list of targets", 'it holds {"targets": [...]}')
    made = []
    for number, one in enumerate(told):
        if not isinstance(one, dict):
            raise InvalidInput(f"{place(path)}: targets[{number}] is no object", "paramsmith zoo build writes it")
        try:
            made.append(spec_from_json(one))
        except InvalidInput as problem:
            raise InvalidInput(f"{place(path)}: targets[{number}]: {problem.fact}", problem.hint) from None
    return made


def targets_bytes(targets: Sequence[TargetSpec]) -> bytes:
    """The file that holds these."""
    told = {"targets": [spec_to_json(spec) for spec in targets]}
    return (json.dumps(told, separators=(",", ":")) + "\n").encode()
