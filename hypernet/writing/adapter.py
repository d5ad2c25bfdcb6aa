"""A low rank adapter in PEFT's format: adapter_config.json and adapter_model.safetensors.

X.lora_A.weight (r, in) and X.lora_B.weight (out, r) of the generator are stored as base_model.model.X.lora_A.weight and
so on; tensors that belong to no pair are whole ones, `modules_to_save`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.tokens.views import lora_pairs
from paramsmith.inputs import place
from paramsmith.shards import Layout, plan_files

from .base import ADAPTED, Base
from .cards import adapter_card
from .changes import delta_changes, module_of
from .output import Sample
from .provenance import Generation
from .stream import Outline

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SPELT = {"lora_down": "lora_A", "lora_up": "lora_B"}


@dataclass(frozen=True)
class Adapter:
    """What an adapter says of itself. `alpha` None: that of each pair is its rank, so that the update is B A."""

    pairs: tuple[tuple[Slot, Slot], ...]
    whole: tuple[Slot, ...]
    base: Base | None
    alpha: float | None

    @classmethod
    def of(cls, spec: TargetSpec, base: Base | None, alpha: float | None) -> Adapter:
        """Of the low rank pairs of a target, held against the base. InvalidInput without any, or for half a one."""
        by_name = {slot.name: slot for slot in spec.slots}
        pairs = [(by_name[down], by_name[up]) for down, up in lora_pairs(spec.slots)]
        if not pairs:
            fact = "an adapter is made of low rank pairs, and this generator makes none"
            raise InvalidInput(fact, "it should be of a zoo of adapters: tensors x.lora_A.weight and x.lora_B.weight")
        paired = {slot.name for pair in pairs for slot in pair}
        rest = tuple(slot for slot in spec.slots if slot.name not in paired)
        alone = next((slot.name for slot in rest if module_of(slot.name) != slot.name), None)
        if alone is not None:
            fact = f"{printable(alone)}: is one of a low rank pair, and the other is not there, or does not fit it"
            raise InvalidInput(fact, "generate both")
        if base is not None:
            delta_changes(spec, base, alpha)  # which says what does not fit
        return cls(tuple(pairs), rest, base, alpha)

    def shaped(self, sample: Sample) -> Sample:
        """This sample as an adapter. InvalidInput for a single file."""
        if sample.path.suffix == ".safetensors":
            fact = f"{place(sample.path)}: is one file, and an adapter has a config beside its tensors"
            raise InvalidInput(fact, "name a folder: -o OUT")
        told = sample.generation.model_copy(update={"form": "adapter", "base": self.base.origin if self.base else None})
        outline = AdapterOutline(sample.outline.spec, sample.outline.dtype)
        return AdapterSample(sample.model, outline, sample.condition, told, sample.path, adapter=self)

    def config(self) -> dict[str, object]:
        """adapter_config.json, with the fields that PEFT's LoraConfig has had since 0.5."""
        ranks = {module_of(down.name).removeprefix(ADAPTED): down.shape[0] for down, _ in self.pairs}
        rank = Counter(ranks.values()).most_common(1)[0][0]
        others = {name: own for name, own in ranks.items() if own != rank}
        origin = self.base.origin if self.base else None
        return {
            "alpha_pattern": others if self.alpha is None else {},
            "auto_mapping": None,
            "base_model_name_or_path": origin.reference if origin else None,
            "bias": "none",
            "fan_in_fan_out": bool(self.base and self.base.is_transposed),
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": rank if self.alpha is None else self.alpha,
            "lora_dropout": 0.0,
            "modules_to_save": sorted({_owner(slot.name) for slot in self.whole}) or None,
            "peft_type": "LORA",
            "r": rank,
            "rank_pattern": others,
            "revision": origin.commit if origin else None,
            "target_modules": sorted(ranks),
            "task_type": None,
            "use_dora": False,
            "use_rslora": False,
        }


class AdapterOutline(Outline):
    """The same tensors under PEFT's names, and no buffers."""

    @cached_property
    def stored(self) -> dict[str, str]:
        """The name that each slot is stored under."""
        return {slot.name: peft_name(slot.name) for slot in self.spec.slots}

    @cached_property
    def buffers(self) -> dict[str, object]:  # type: ignore[override]
        """None: an adapter has none."""
        return {}

    def layout(self, target: Path, shard_size: str | int | None, metadata: Mapping[str, str]) -> Layout:
        """One file, as PEFT reads no other."""
        return plan_files(self.tensors, None, WEIGHTS, metadata)


@dataclass(frozen=True)
class AdapterSample(Sample):
    """A sample that is written as an adapter."""

    adapter: Adapter = field(kw_only=True)

    def card(self, whole: Generation) -> bytes:
        """README.md."""
        modules: Sequence[str] = [module_of(down.name).removeprefix(ADAPTED) for down, _ in self.adapter.pairs]
        return adapter_card(whole, modules, self.path.absolute().name)

    def described(self) -> dict[str, bytes]:
        """adapter_config.json."""
        return {CONFIG: (json.dumps(self.adapter.config(), indent=2, sort_keys=True) + "\n").encode()}


def peft_name(name: str) -> str:
    """What PEFT calls a tensor of an adapter in its file.

    >>> peft_name("h.0.q.lora_A.default.weight"), peft_name("base_model.model.h.0.q.lora_B.weight")
    ('base_model.model.h.0.q.lora_A.weight', 'base_model.model.h.0.q.lora_B.weight')
    """
    parts = [_SPELT.get(part, part) for part in name.removeprefix(ADAPTED).split(".")]
    at = next((i for i, part in enumerate(parts) if part.startswith("lora_")), None)
    if at is not None:
        # X.lora_A.NAME.weight, and X.lora_embedding_A.NAME, with the name of the adapter that was active
        own = parts[at + 1 :]
        parts = [*parts[: at + 1], *(["weight"] if own[-1:] == ["weight"] else [])]
    return ADAPTED + ".".join(parts)


def _owner(name: str) -> str:
    return name.removeprefix(ADAPTED).rpartition(".")[0]
