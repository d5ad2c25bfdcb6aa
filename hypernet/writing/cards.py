"""The cards of a generator and of what one has generated: Markdown whose every word from elsewhere is shown as a word.

A card of a checkpoint tells what to expect: initial weights, to be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from paramsmith.markdown import code, fenced, front_matter, paper_link, prose, table
from paramsmith.parts import Part, Parts, generators
from paramsmith.seal import sealed

if TYPE_CHECKING:
    from paramsmith.hypernet.generator import Generator

    from .provenance import Asked, Generation, Origin
    from .stream import Outline

README = "README.md"
_NAMED = 6  # tensors that a card names


def generator_card(generator: Generator, name: str) -> bytes:
    """README.md of a saved generator."""
    model, preset = generator.model, generator.preset
    tags = ["paramsmith", "weight-generation", *([preset[0]] if preset else [])]
    count = sum(parameter.numel() for parameter in model.parameters())
    sections = [
        f"# {code(name)}",
        f"A generator of neural network weights{_by(preset[0] if preset else None)}, made with paramsmith.",
        *_described(preset[0] if preset else None),
        f"It has {count:,} parameters.",
        "## Parts",
        _parts(generator),
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
        f"{count:,} weights in {len(outline.tensors):,} tensors, {_how(generation)}{_by(origin.preset)} with "
        "paramsmith, to begin training from. Nobody has trained them.",
        *_described(origin.preset),
        "## Generated from",
        _asked(generation),
        "generation.json has the hashes of the generator and of the files here. The same generator, asked for the "
        "same, makes the same bytes.",
        *_options((origin.preset, origin.options) if origin.preset else None),
    ]
    return _card(fields, sections)


def onto_card(generation: Generation, changed: Sequence[str], tensors: int, name: str) -> bytes:
    """README.md of a base with something generated in it."""
    origin, base = generation.generator, generation.base
    what = "replaced by" if generation.form == "head" else "changed by"
    some = _some(changed)
    sections = [
        f"# {code(name)}",
        f"{_shown(base) if base else 'A model'}, with {len(changed):,} of its {tensors:,} tensors {what} what was "
        f"generated{_by(origin.preset)} with paramsmith: {some}. The others are as they were.",
        *_told(generation),
    ]
    return _card(_fields(generation), sections)


def adapter_card(generation: Generation, modules: Sequence[str], name: str) -> bytes:
    """README.md of a generated adapter."""
    origin, base = generation.generator, generation.base
    meant = f" for {_shown(base)}" if base else ""
    some = _some(modules)
    sections = [
        f"# {code(name)}",
        f"A low rank adapter{meant}, generated{_by(origin.preset)} with paramsmith, in PEFT's format. It changes "
        f"{some}.",
        *_told(generation),
    ]
    return _card({**_fields(generation), "library_name": "peft"}, sections)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(code, names[:_NAMED])) + more


def _fields(generation: Generation) -> dict[str, str | Sequence[str]]:
    base = generation.base
    fields: dict[str, str | Sequence[str]] = {"tags": ["paramsmith", "generated-weights"]}
    return {**fields, "base_model": base.repo} if base and base.repo else fields


def _told(generation: Generation) -> list[str]:
    origin = generation.generator
    return [
        *_described(origin.preset),
        "## Generated from",
        _asked(generation),
        "generation.json has the hashes of the generator, of the base and of the files here. The same generator, asked "
        "for the same, makes the same bytes.",
        *_options((origin.preset, origin.options) if origin.preset else None),
    ]


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


def _parts(generator: Generator) -> str:
    rows = []
    for role, registry in generator.kind.parts.items():
        chosen = generator.model.config[role]
        if isinstance(chosen, Mapping):
            rows.append([role, code(chosen["name"]), _options_text(chosen.get("options")), _doc(registry, chosen)])
    return table(["", "part", "options", ""], rows)


def _doc(registry: Parts, chosen: Mapping[str, object]) -> str:
    part = registry.all().get(str(chosen["name"]))
    return prose(part.doc.partition("\n")[0]) if part else ""


def _options_text(options: object) -> str:
    return code(json.dumps(options, sort_keys=True), 200) if options else ""


def _target(generator: Generator) -> str:
    spec = generator.model.spec
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
    like = "" if generator.model.spec else " --like CONFIG"
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
    rows += [["sampling", _sampling(asked)]] if _sampling(asked) else []
    rows += [["selected", code(_selection(generation))]] if _selection(generation) else []
    rows += [
        ["seed", f"{asked.seed}, sample {asked.index}"],
        ["paramsmith", code(generation.paramsmith)],
        ["torch", f"{code(generation.torch)}, {code(generation.device)}"],
    ]
    return table(["", ""], rows)


def _sampling(asked: Asked) -> str:
    steps = [f"{asked.steps:,} steps"] if asked.steps is not None else []
    return ", ".join([*steps, *([f"guidance {asked.guidance:g}"] if asked.guidance is not None else [])])


def _how(generation: Generation) -> str:
    """How the tensors came to be."""
    merged = (generation.made or {}).get("latent_merge")
    if not isinstance(merged, Mapping):
        return "generated"
    models = merged.get("models")
    many = f"{len(models):,} models" if isinstance(models, Sequence) else "models"
    return f"the average of {many} in the latent space of a generator,"


def _selection(generation: Generation) -> str:
    """By what it was chosen among samples, if it was."""
    said = (generation.made or {}).get("selected")
    return (
        f"{said.get('selector')}, k = {said.get('k')}, by {said.get('rows')} rows" if isinstance(said, Mapping) else ""
    )


def _shown(origin: Origin) -> str:
    if origin.repo:
        commit = f"/tree/{origin.commit}" if origin.commit else ""
        return f"[{code(origin.repo)}](https://huggingface.co/{origin.repo}{commit})"
    return f"{code(origin.reference)}, {code(origin.id[:16])}"
