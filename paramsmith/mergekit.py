"""mergekit's recipes in our terms: its method names, its parameters, its rules about the base.

Only documents that say `merge_method:` come here; what mergekit ignores silently is ignored with a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from paramsmith.errors import printable
from paramsmith.located_yaml import Located, Problems, nearest
from paramsmith.recipe_schema import Draft, DraftSlice, Entry
from paramsmith.registry import MergeMethod


@dataclass(frozen=True, slots=True)
class Translation:
    """Our method for one of mergekit's: `pins`, its variant and defaults where ours differ; `idle`, no effect.

    `base_is_input`: the base is one of the models, not something to subtract; `base_first`: it is the one at t = 0.
    """

    method: str
    pins: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    base_is_input: bool = False
    base_first: bool = False


MERGEKIT_METHODS: Mapping[str, Translation] = {
    "linear": Translation("linear", base_is_input=True),
    "slerp": Translation("slerp", base_is_input=True, base_first=True),
    "karcher": Translation("karcher", {"max_iter": 10, "tol": 1e-5}, base_is_input=True),
    "passthrough": Translation("passthrough"),
    "task_arithmetic": Translation("task_arithmetic", idle=("density", "rescale")),
    "ties": Translation("ties", {"flavour": "mergekit", "density": 1.0}),
    "dare_linear": Translation("dare", {"elect": False, "rescale": "l1", "density": 1.0}),
    "dare_ties": Translation("dare", {"elect": True, "rescale": "l1", "density": 1.0, "flavour": "mergekit"}),
    "breadcrumbs": Translation("breadcrumbs", {"elect": False}),
    "breadcrumbs_ties": Translation("breadcrumbs", {"elect": True}),
    "della_linear": Translation("della", {"elect": False}),
    "della": Translation("della", {"elect": True}),
    "nuslerp": Translation("nuslerp"),
    "multislerp": Translation("multislerp"),
    "sce": Translation("sce"),
    "model_stock": Translation("model_stock"),
    "nearswap": Translation("nearswap"),
    "arcee_fusion": Translation("arcee_fusion"),
    "ram": Translation("ram"),
    "ramplus_tl": Translation("ramplus_tl"),
}
ALWAYS_IDLE = ("int8_mask", "embed_slerp")  # int8_mask saves memory there and changes no value


def translate(draft: Draft, known: Mapping[str, MergeMethod], problems: Problems) -> MergeMethod | None:
    """Rewrite a draft in place from mergekit's terms to ours; the method, or None when there is none of that name."""
    written = draft.method
    name = written if written in MERGEKIT_METHODS else written.replace("-", "_").lower()
    if name != written and name in MERGEKIT_METHODS:
        draft.warnings.append(f'line {draft.method_line}: "{printable(written)}" read as {name}')
    rule = MERGEKIT_METHODS.get(name, Translation(name))
    if rule.method not in known:
        if name in MERGEKIT_METHODS:
            problems.add(draft.method_line, f"mergekit's method {name} is not supported yet (known: {_names(known)})")
        elif written:
            more = {*known, *(n for n, r in MERGEKIT_METHODS.items() if r.method in known)}
            problems.add(draft.method_line, f'unknown method "{printable(written)}"{nearest(written, more)}')
        return None
    method = known[rule.method]
    draft.method = method.name
    _base(draft, rule, method, problems)
    _lone(draft, method)
    takes = {f.alias or n for n, f in method.params.model_fields.items()}
    for scope in draft.scopes():
        _parameters(scope, rule, takes, draft.warnings)
    for key, value in rule.pins.items():
        if key in takes and key not in draft.parameters:
            draft.parameters[key] = Located(value, draft.method_line, str(value))
    return method


def _names(known: Iterable[str]) -> str:
    return ", ".join(sorted(known))


def _base(draft: Draft, rule: Translation, method: MergeMethod, problems: Problems) -> None:
    """Where mergekit's base_model stands: subtracted from the models, or an input like the others."""
    if draft.base is None:
        return
    listed = any(entry.model == draft.base for entry in draft.models)
    if not (rule.base_is_input or method.base == "unused"):
        draft.models = [entry for entry in draft.models if entry.model != draft.base]  # its delta is zero by name
        for part in draft.slices or ():
            _without_base(part, draft.base, problems)
        return
    if draft.models and not listed and method.models[1] != 1:
        draft.models.append(Entry(draft.base, draft.method_line))
    if rule.base_first:
        draft.models.sort(key=lambda entry: entry.model != draft.base)
        for part in draft.slices or ():
            part.sources.sort(key=lambda entry: entry.model != draft.base)
    if method.base != "unused":
        draft.base = None  # ours would subtract it


def _without_base(part: DraftSlice, base: str, problems: Problems) -> None:
    """A slice's entry for the base: ours takes of the base the layers that the first model has there."""
    kept = [entry for entry in part.sources if entry.model != base]
    if kept and any(entry.layers != kept[0].layers for entry in part.sources if entry.model == base):
        problems.add(part.line, "other layers of the base than of the first model are not supported yet")
    part.sources = kept or part.sources


def _lone(draft: Draft, method: MergeMethod) -> None:
    """Where a method takes one model, what is said of that model is said of the slice, or of the whole recipe."""
    if method.models != (1, 1):
        return
    tensorwise = [name for name, kind in method.params.settings().items() if kind == "tensor"]
    wanted = [method.params.model_fields[name].alias or name for name in tensorwise]
    lists = [(draft.models, draft.parameters), *((part.sources, part.parameters) for part in draft.slices or ())]
    for entries, parameters in lists:
        for name in wanted if len(entries) == 1 else ():
            if name in entries[0].parameters:
                parameters[name] = entries[0].parameters.pop(name)


def _parameters(scope: dict[str, Located], rule: Translation, takes: set[str], warnings: list[str]) -> None:
    for key in list(scope):
        item = scope[key]
        idle = key in rule.idle and key not in takes
        if key in ALWAYS_IDLE or idle or (key == "rescale" and key not in takes and _off(item)):
            warnings.append(f"line {item.line}: {key} has no effect here")
            del scope[key]
            continue
        if key == "rescale" and "rescale" in rule.pins and isinstance(item.value, bool | int | float):
            text = "l1" if item.value else "none"
            item = Located(text, item.line, text)
        scope[key] = _setting(item)


def _off(item: Located) -> bool:
    return item.value in (False, 0, 0.0) and not isinstance(item.value, str)


def _setting(item: Located) -> Located:
    """mergekit's list of numbers is a gradient over the layers; ours is one value a model, so it is spelt out."""
    if isinstance(item.value, list) and not any(isinstance(i.value, dict | list) for i in item.value):
        return replace(item, value={"gradient": Located(item.value, item.line)})
    if isinstance(item.value, list):
        return replace(item, value=[_setting(i) for i in item.value])
    if isinstance(item.value, dict) and "value" in item.value:
        return replace(item, value={**item.value, "value": _setting(item.value["value"])})
    return item
