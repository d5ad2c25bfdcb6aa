"""The keys of a recipe: from located YAML to a draft that still knows every line. Native and mergekit's spelling."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from paramsmith.device import parse_bytes
from paramsmith.dtypes import parse_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.hub import Reference
from paramsmith.located_yaml import Located, Problems
from paramsmith.params import matches

MISSING = ("error", "base", "skip")
ROOT_KEYS = [
    *("method", "merge_method", "base", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"),
    *("missing", "seed", "shard_size", "coefficients", "exclude"),
    *("modules", "tokenizer", "tokenizer_source", "chat_template"),
]


@dataclass(slots=True)
class Entry:
    """One model of a draft with its own parameters, and its layers when it stands in a slice."""

    model: str
    line: int
    parameters: dict[str, Located] = field(default_factory=dict)
    layers: tuple[int, int] | None = None
    statistics: str | None = None


@dataclass(slots=True)
class DraftSlice:
    """One slice of a draft: where its layers come from."""

    sources: list[Entry]
    line: int
    parameters: dict[str, Located] = field(default_factory=dict)


@dataclass(slots=True)
class Draft:
    """A recipe as written: well formed, but the method and its parameters are not looked up yet."""

    mergekit: bool
    method: str = ""
    method_line: int = 1
    base: str | None = None
    models: list[Entry] = field(default_factory=list)
    slices: list[DraftSlice] | None = None
    parameters: dict[str, Located] = field(default_factory=dict)
    fields: dict[str, str | int] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    unknown: dict[str, Located] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def entries(self) -> list[Entry]:
        """Every model entry and slice source."""
        return [*self.models, *(source for part in self.slices or () for source in part.sources)]

    def scopes(self) -> list[dict[str, Located]]:
        """Every place where parameters stand: the root, the slices, the entries."""
        return [self.parameters, *(s.parameters for s in self.slices or ()), *(e.parameters for e in self.entries())]


def read_draft(root: Located, problems: Problems) -> Draft:
    """Read the root of a recipe; mistakes go to `problems`."""
    keys = root.value if isinstance(root.value, dict) else {}
    if not isinstance(root.value, dict):
        problems.add(root.line, "a recipe is a mapping of method, models, parameters, ..." + _found(root))
        problems.raise_if_any()
    reader = _Reader(problems, Draft(mergekit="merge_method" in keys), keys)
    reader.read()
    return reader.draft


def reference_problem(model: str) -> str | None:
    """What keeps a model reference from being opened, judged without opening it; None when nothing does.

    A name holding `@` or `+` is a path when it exists as written, and a revision or mergekit's LoRA otherwise.
    """
    if os.path.exists(model):
        return None
    if "+" in model:
        return f'"{printable(model)}" does not exist; if it names a LoRA, merge that into its model first'
    try:
        known = Reference.parse(model) is not None
    except InvalidInput as problem:
        return problem.fact
    if "@" in model and not known:
        return f'"{printable(model)}" does not exist, and is no user/name@revision of the hub either'
    return None


@dataclass(slots=True)
class _Reader:
    problems: Problems
    draft: Draft
    keys: dict[str, Located]

    def read(self) -> None:
        draft, keys = self.draft, self.keys
        draft.unknown = {key: item for key, item in keys.items() if key not in ROOT_KEYS}
        method, base = self._either("method", "merge_method"), self._either("base", "base_model")
        if method:
            draft.method, draft.method_line = self.text(method, "a merge method"), method.line
        elif not any(difflib.get_close_matches(key, ("method", "merge_method")) for key in draft.unknown):
            self.problems.add(1, "no method given: add a line like `method: linear`")
        draft.base = self.reference(base) if base and base.value is not None else None
        draft.parameters = self.mapping(keys.get("parameters"), "parameters")
        if "models" in keys and "slices" in keys:
            self.problems.add(keys["slices"].line, "models and slices exclude each other: keep one")
        if "models" in keys:
            draft.models = [self.entry(item) for item in self.listing(keys["models"], "models")]
        if "slices" in keys:
            draft.slices = [self.slice(item) for item in self.listing(keys["slices"], "slices")]
        if not {"models", "slices", "modules"} & set(keys):
            self.problems.add(1, "no models given: add a list `models:`")
        self._fields()
        if "exclude" in keys:
            item = keys["exclude"]
            listed = self.listing(item, "exclude") if isinstance(item.value, list) else [item]
            draft.exclude = [self.filter(each) for each in listed]
        self._unsupported()

    def _either(self, native: str, other: str) -> Located | None:
        if native in self.keys and other in self.keys:
            self.problems.add(self.keys[other].line, f"{native} and {other} are two names for one thing: keep one")
        return self.keys.get(native) or self.keys.get(other)

    def _fields(self) -> None:
        """The keys with one plain value."""
        for key in ("dtype", "out_dtype", "missing", "seed", "shard_size", "coefficients"):
            item = self.keys.get(key)
            if item is None or item.value is None:
                continue
            try:
                self.draft.fields[key] = self._field(key, item)
            except InvalidInput as problem:
                self.problems.add(item.line, f"{key}: {problem.fact}" + (f" ({problem.hint})" if problem.hint else ""))

    def _field(self, key: str, item: Located) -> str | int:
        if key == "seed":
            return self.natural(item, "seed")
        if key == "shard_size":
            value = item.value if type(item.value) is int else self.text(item, "a size: 5GB")
            parse_bytes(value)
            return value
        text = self.text(item, f"{key}: a word")
        if key == "coefficients":
            return text
        if key == "missing" and text not in MISSING:
            self.problems.unknown(item.line, "value of missing", text, MISSING)
        elif key != "missing" and text:
            parse_dtype(text)
        return text

    def _unsupported(self) -> None:
        for key in ("modules", "chat_template"):
            if key in self.keys:
                self.problems.add(self.keys[key].line, f"{key} is not supported yet: remove it")
        source = self.keys.get("tokenizer_source")
        block = self.keys.get("tokenizer")
        if block and isinstance(block.value, dict) and set(block.value) == {"source"}:
            source = block.value["source"]
        elif block:
            self.problems.add(block.line, "tokenizer is not supported yet: write `tokenizer_source: base`")
        if source and source.value is not None:
            wanted = self.text(source, "tokenizer_source: base")
            if wanted.removeprefix("model:") not in ("", "base", self.draft.base):
                what = f'tokenizer_source "{printable(wanted)}" is not supported yet'
                self.problems.add(source.line, f"{what}: only base is, which takes the base's tokenizer")

    def entry(self, item: Located, *, layers: bool = False) -> Entry:
        if isinstance(item.value, str | int | float) and not layers:
            return Entry(self.reference(item), item.line)
        keys = dict(self.mapping(item, "a model"))
        if "model" not in keys:
            near = next((k for k in keys if difflib.get_close_matches(k, ("model",))), None)
            wrong = f'unknown key "{printable(near)}" (did you mean "model"?)' if near else "this entry has no `model:`"
            self.problems.add(keys[near].line if near else item.line, wrong)
            return Entry("", item.line)
        entry = Entry(self.reference(keys.pop("model")), item.line)
        measured = keys.pop("statistics", None)
        entry.statistics = self.text(measured, "statistics: a file") if measured else None
        span = keys.pop("layer_range", None)
        if span and layers:
            entry.layers = self.span(span)
        elif span:
            self.draft.warnings.append(f"line {span.line}: layer_range under models has no effect; slices take it")
        elif layers:
            self.problems.add(item.line, "this source has no `layer_range: [first, end]`")
        entry.parameters = self.mapping(keys.pop("parameters", None), "parameters")
        for key, value in keys.items():  # beside `model`, as in `- {model: a, weight: 0.3}`
            if key in entry.parameters:
                self.problems.add(value.line, f'"{printable(key)}" is given twice for this model')
            entry.parameters[key] = value
            if self.draft.mergekit:
                self.draft.warnings.append(f'line {value.line}: "{printable(key)}" stands outside parameters; used')
        return entry

    def slice(self, item: Located) -> DraftSlice:
        keys = self.mapping(item, "a slice")
        for key, value in keys.items():
            if key == "residual_weight":
                self.draft.warnings.append(f"line {value.line}: residual_weight has no effect")
            elif key == "base_model" and self.reference(value) != self.draft.base:
                self.problems.add(value.line, "a slice with a base_model of its own is not supported yet")
            elif key not in ("sources", "parameters", "base_model"):
                self.problems.unknown(value.line, "key", key, ("sources", "parameters"))
        if "sources" not in keys:
            self.problems.add(item.line, "this slice has no `sources:`")
        sources = [self.entry(s, layers=True) for s in self.listing(keys.get("sources"), "sources")]
        lengths = {e.layers[1] - e.layers[0] for e in sources if e.layers}
        if len(lengths) > 1:
            self.problems.add(item.line, "the sources of one slice must have the same number of layers")
        return DraftSlice(sources, item.line, self.mapping(keys.get("parameters"), "parameters"))

    def span(self, item: Located) -> tuple[int, int] | None:
        ends = item.plain()
        if isinstance(ends, list) and len(ends) == 2 and all(type(e) is int for e in ends) and 0 <= ends[0] <= ends[1]:
            return ends[0], ends[1]
        self.problems.add(item.line, f"layer_range is [first, end) with 0 <= first <= end{_found(item)}")
        return None

    def reference(self, item: Located) -> str:
        """A model: a path, or mergekit's mapping form of one."""
        if not isinstance(item.value, dict):
            text = self.text(item, "a model: a path")
            wrong = reference_problem(text)
            if wrong:
                self.problems.add(item.line, wrong)
            return text
        keys = item.value
        for key, value in keys.items():
            if key == "override_architecture":
                self.draft.warnings.append(f"line {value.line}: override_architecture has no effect")
            elif key == "lora" and value.value is not None:
                self.problems.add(value.line, "lora is not supported yet: give a local folder that has it applied")
            elif key not in ("model", "path", "lora", "revision"):
                self.problems.unknown(value.line, "key", key, ("model", "path"))
        inner = keys.get("model") or keys.get("path")
        if inner is None:
            self.problems.add(item.line, "a model reference needs `path:`")
            return ""
        revision = keys.get("revision")
        if revision is None or revision.value is None:
            return self.reference(inner)
        text = f"{self.text(inner, 'a model: a path')}@{self.text(revision, 'a revision')}"
        return self.reference(replace(inner, value=text, text=text))

    def text(self, item: Located, expected: str) -> str:
        if isinstance(item.value, dict | list) or item.value is None or isinstance(item.value, bool):
            self.problems.add(item.line, f"expected {expected}{_found(item)}")
            return ""
        if not item.text:
            self.problems.add(item.line, f"expected {expected}, found an empty text")
        return item.text

    def filter(self, item: Located) -> str:
        wanted = self.text(item, "a filter: part of a name, /regex/ or layers[0:8]")
        try:
            matches(wanted or "*", "", None)
        except ValueError as problem:
            self.problems.add(item.line, f"exclude: {problem}")
        return wanted

    def natural(self, item: Located, what: str) -> int:
        if type(item.value) is int and 0 <= item.value < 2**63:
            return item.value
        self.problems.add(item.line, f"{what} is a whole number from 0{_found(item)}")
        return 0

    def listing(self, item: Located | None, what: str) -> list[Located]:
        if item is None:
            return []
        if not isinstance(item.value, list) or not item.value:
            self.problems.add(item.line, f"{what} is a list with at least one entry{_found(item)}")
            return []
        return [replace(i, line=i.line) for i in item.value]

    def mapping(self, item: Located | None, what: str) -> dict[str, Located]:
        if item is None or item.value is None:
            return {}
        if not isinstance(item.value, dict):
            self.problems.add(item.line, f"{what} must be a mapping of names to values{_found(item)}")
            return {}
        return item.value


def _found(item: Located) -> str:
    if isinstance(item.value, Mapping):
        return ", found a mapping"
    if isinstance(item.value, list):
        return ", found a list" if item.value else ", found an empty list"
    return ", found nothing" if item.value is None else f", found {printable(item.text)}"
