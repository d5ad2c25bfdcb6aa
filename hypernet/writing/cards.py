"""The cards of a generator and of what one has generated: Markdown whose every word from elsewhere is shown as a word.

A card of a checkpoint tells what to expect: initial weights, to be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from paramsmith.markdown import code, fenced, front_matter, paper_link, prose, table
from paramsmith.parts import Part, Parts, bases, decoders, encoders, generators, scales
from paramsmith.seal import sealed

if TYPE_CHECKING:
    from paramsmith.hypernet.generator import Generator

    from .provenance import Generation, Origin
    from .stream import Outline

README = "README.md"
_KINDS = (("encoder", encoders), ("decoder", decoders), ("base", bases), ("scale", scales))


def generator_card(generator: Generator, name: str) -> bytes:
    """README.md of a saved generator."""
    hypernetwork, preset = generator.hypernetwork, generator.preset
    tags = ["paramsmith", "hypernetwork", "weight-generation", *([preset[0]] if preset else [])]
    count = sum(parameter.numel() for parameter in hypernetwork.parameters())
    sections = [
        f"# {code(name)}",
        f"A generator of neural network weights{_by(preset[0] if preset else None)}, made with paramsmith.",
        *_described(preset[0] if preset else None),
        f"It has {count:,} parameters.",
        "## Parts",
        _parts(hypernetwork.config),
        "## What it makes",
        _target(generator),
        "## Use",
        fenced(f"paramsmith generate {name}{_flags(generator)} -o OUT", "sh"),
        "Loading it runs no code from here: parts are known by name, tensors are safetensors.",
        *_options(preset),
    ]
    return _card({"library_name": "paramsmith", "tags": tags}, sections)


def checkpoint_card(generation: Generation, outline: Outline, name: str) -> bytes:
    """README.md of a generated checkpoint."""
    config = outline.spec.config or {}
    library = "transformers" if config.get("architectures") else "diffusers" if outline.is_diffusers else "paramsmith"
    origin, count = generation.generator, sum(tensor.count for tensor in outline.tensors)
    fields: dict[str, str | Sequence[str]] = {"library_name": library, "tags": ["paramsmith", "generated-weights"]}
    sections = [
        f"# {code(name)}",
        f"{count:,} weights in {len(outline.tensors):,} tensors, generated{_by(origin.preset)} with paramsmith, "
        "to begin training from. Nobody has trained them.",
        *_described(origin.preset),
        "## Generated from",
        _asked(generation),
        "generation.json has the hashes of the generator and of the files here. The same generator, asked for the "
        "same, makes the same bytes.",
        *_options((origin.preset, origin.options) if origin.preset else None),
    ]
    return _card(fields, sections)


def _card(fields: Mapping[str, str | Sequence[str]], sections: Sequence[str]) -> bytes:
    body = "\n\n".join(sections)
    return sealed(f"{front_matter(fields)}\n{body}\n")


def _by(preset: str | None) -> str:
    return f" by {code(preset)}" if preset else ""


def _described(preset: str | None) -> list[str]:
    part = generators.all().get(preset) if preset else None
    return [_sentence(part)] if part else []


def _sentence(part: Part) -> str:
    paper = f" Paper: {paper_link(part.paper)}." if part.paper else ""
    return f"{code(part.name)}: {prose(part.doc.partition(chr(10))[0])}{paper}"


def _parts(config: Mapping[str, object]) -> str:
    rows = []
    for kind, registry in _KINDS:
        chosen = config[kind]
        if isinstance(chosen, Mapping):
            rows.append([kind, code(chosen["name"]), _options_text(chosen.get("options")), _doc(registry, chosen)])
    return table(["", "part", "options", ""], rows)


def _doc(registry: Parts, chosen: Mapping[str, object]) -> str:
    part = registry.all().get(str(chosen["name"]))
    return prose(part.doc.partition("\n")[0]) if part else ""


def _options_text(options: object) -> str:
    return code(json.dumps(options, sort_keys=True), 200) if options else ""


def _target(generator: Generator) -> str:
    spec = generator.hypernetwork.spec
    if spec is None:
        made = "Weights for any architecture that its parts can make."
    else:
        count = sum(prod(slot.shape) for slot in spec.slots)
        made = (
            f"Weights for one architecture: {count:,} numbers in {len(spec.slots):,} tensors, {code(spec.hash[:16])}."
        )
    asked = ", ".join(f"{code(name)} {'x'.join(map(str, shape))}" for name, shape in generator.shapes.items())
    return f"{made} It is asked for {asked or 'nothing else'}."


def _flags(generator: Generator) -> str:
    like = "" if generator.hypernetwork.spec else " --like CONFIG"
    return like + "".join(f" --task {name}=..." for name in generator.shapes if name.isidentifier())


def _options(preset: tuple[str, dict[str, object]] | None) -> list[str]:
    return (
        ["## Options", fenced(json.dumps(preset[1], indent=2, sort_keys=True), "json")] if preset and preset[1] else []
    )


def _asked(generation: Generation) -> str:
    asked = generation.asked
    rows = [["generator", _shown(generation.generator)], ["for", code(asked.target)]]
    if asked.condition:
        told = (
            code(json.dumps(asked.values, sort_keys=True), 400)
            if asked.values
            else f"sha256 {code(asked.condition[:16])}"
        )
        rows.append(["condition", told])
    rows += [["classes", str(asked.classes)]] if asked.classes else []
    rows += [
        ["seed", f"{asked.seed}, sample {asked.index}"],
        ["paramsmith", code(generation.paramsmith)],
        ["torch", f"{code(generation.torch)}, {code(generation.device)}"],
    ]
    return table(["", ""], rows)


def _shown(origin: Origin) -> str:
    if origin.repo:
        commit = f"/tree/{origin.commit}" if origin.commit else ""
        return f"[{code(origin.repo)}](https://huggingface.co/{origin.repo}{commit})"
    return f"{code(origin.reference)}, {code(origin.id[:16])}"
