"""`paramsmith inspect MODEL`: what a checkpoint holds, from its headers alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import printable
from paramsmith.header import TensorInfo, parse_header
from paramsmith.inputs import open_regular

from .output import json_option, show_json, show_table, show_warning, size_text, wants_json

CONFIG_KEYS = [
    "model_type",
    "architectures",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
    "dtype",
    "torch_dtype",
]


@click.command("inspect", short_help="Show what a checkpoint holds.")
@click.argument("model")
@click.option("--tensors", "wanted", metavar="TEXT", default="", help="Only the tensors whose name contains TEXT.")
@json_option
def command(model: str, wanted: str) -> None:
    """Show what the checkpoint MODEL holds: tensors, types, sizes, config, metadata. Reads headers only."""
    with Checkpoint.open(model) as checkpoint:
        tensors = [info for name, info in checkpoint.tensors.items() if wanted in name]
        for warning in checkpoint.warnings:
            show_warning(warning)
        if wants_json():
            show_json(_document(checkpoint, tensors))
        else:
            _show(checkpoint, tensors)


def _document(checkpoint: Checkpoint, tensors: Sequence[TensorInfo]) -> dict[str, object]:
    return {
        "model": checkpoint.label,
        "files": _files(checkpoint),
        "tensors": [
            {
                "name": info.name,
                "dtype": info.dtype.code,
                "shape": list(info.shape),
                "bytes": info.nbytes,
                "file": info.file.name,
            }
            for info in tensors
        ],
        "aliases": checkpoint.aliases,
        "totals": {
            "tensors": len(tensors),
            "parameters": sum(info.count for info in tensors),
            "bytes": sum(info.nbytes for info in tensors),
            "by_dtype": {dtype: {"tensors": n, "parameters": p, "bytes": b} for dtype, n, p, b in _by_dtype(tensors)},
        },
        "config": _config(checkpoint),
        "metadata": _metadata(checkpoint),
    }


def _show(checkpoint: Checkpoint, tensors: Sequence[TensorInfo]) -> None:
    rows = [[i.name, i.dtype.code, _shape(i), f"{i.nbytes:,}", i.file.name] for i in tensors]
    rows += [[alias, "", "", "", f"is {name}"] for alias, name in sorted(checkpoint.aliases.items())]
    show_table(("name", "dtype", "shape", "bytes", "file"), rows, ("bytes",))
    click.echo()
    totals = [[dtype, f"{n:,}", f"{p:,}", f"{b:,}"] for dtype, n, p, b in _by_dtype(tensors)]
    parameters, nbytes = sum(i.count for i in tensors), sum(i.nbytes for i in tensors)
    totals.append(["all", f"{len(tensors):,}", f"{parameters:,}", f"{nbytes:,}"])
    show_table(("dtype", "tensors", "parameters", "bytes"), totals, ("tensors", "parameters", "bytes"))
    click.echo(f"\n{size_text(nbytes)} in {len(_files(checkpoint))} files")
    for title, pairs in (("config", _config(checkpoint)), ("metadata", _metadata(checkpoint))):
        for key, value in pairs.items():
            click.echo(f"{title} {printable(key)}: {printable(value)}")


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The free text that the headers carry; of equal keys the last file's."""
    found: dict[str, str] = {}
    for path in sorted({info.file for info in checkpoint.tensors.values()}):
        fd, _ = open_regular(path)
        try:
            found |= parse_header(path, fd).metadata
        finally:
            os.close(fd)
    return found


def _shape(info: TensorInfo) -> str:
    return "x".join(map(str, info.shape)) or "scalar"


def _files(checkpoint: Checkpoint) -> list[str]:
    return sorted({info.file.name for info in checkpoint.tensors.values()})


def _by_dtype(tensors: Sequence[TensorInfo]) -> list[tuple[str, int, int, int]]:
    """(dtype, tensors, parameters, bytes), the largest first; a tied tensor is stored, and so counted, once."""
    groups: dict[str, tuple[int, int, int]] = {}
    for info in tensors:
        n, parameters, nbytes = groups.get(info.dtype.code, (0, 0, 0))
        groups[info.dtype.code] = (n + 1, parameters + info.count, nbytes + info.nbytes)
    return sorted(((code, *sums) for code, sums in groups.items()), key=lambda row: -row[3])


def _config(checkpoint: Checkpoint) -> dict[str, object]:
    raw = checkpoint.config.raw if checkpoint.config else {}
    return {key: raw[key] for key in CONFIG_KEYS if key in raw}
