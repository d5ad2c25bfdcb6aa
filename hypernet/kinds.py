"""The two kinds of models that a generator can have, by the names under which they are saved. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paramsmith.parts import Parts, bases, codecs, decoders, encoders, priors, scales


@dataclass(frozen=True)
class Kind:
    """A component of a generator: its name, where its class is, and the registered parts that its config names."""

    name: str
    module: str
    class_name: str
    parts: Mapping[str, Parts]

    @property
    def config(self) -> str:
        """The file of its config."""
        return f"{self.name}/config.json"

    @property
    def tensors(self) -> str:
        """The file of its tensors."""
        return f"{self.name}/diffusion_pytorch_model.safetensors"

    @property
    def pair(self) -> list[str]:
        """As `model_index.json` has it."""
        return [self.module, self.class_name]


HYPERNETWORK = Kind(
    "hypernetwork",
    "paramsmith.hypernet.hypernetwork",
    "Hypernetwork",
    {"encoder": encoders, "decoder": decoders, "base": bases, "scale": scales},
)
SAMPLER = Kind(
    "sampler", "paramsmith.hypernet.sampler", "Sampler", {"encoder": encoders, "codec": codecs, "prior": priors}
)
KINDS = {kind.name: kind for kind in (HYPERNETWORK, SAMPLER)}
