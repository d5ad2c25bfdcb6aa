"""What a generator is made of, by name: small registries that a package of yours may add to.

    @decoders("lowrank", LowRank, paper="arXiv:2405.16287")
    class LowRankDecoder(nn.Module): ...

Modules that register are found through the entry-point group `paramsmith.generators`, ours too.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from paramsmith.errors import InvalidInput, printable
from paramsmith.params import Params
from paramsmith.registry import load_entry_point

ENTRY_POINTS, OURS = "paramsmith.generators", "paramsmith.hypernet.parts"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Part:
    """A registered part: what makes it, and the options that it takes."""

    kind: str
    name: str
    make: Callable[..., Any]
    params: type[Params]
    paper: str

    @property
    def doc(self) -> str:
        """The docstring of what makes it."""
        return (self.make.__doc__ or "").strip()


class Parts:
    """One registry. Called, it is the decorator that registers; what is decorated is returned as it is."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}

    def __call__(self, name: str, params: type[Params] = Params, *, paper: str = "") -> Callable[[F], F]:
        """Register under `name` what is made as `make(params, ...)`; the protocols are in hypernet/protocols.py."""

        def register(make: F) -> F:
            if name in self._parts:
                both = f"{self._parts[name].make.__module__} and {make.__module__}"
                raise ValueError(f"the {self.kind} {name!r} is registered twice: by {both}")
            self._parts[name] = Part(self.kind, name, make, params, paper)
            return make

        return register

    def all(self) -> dict[str, Part]:
        """Every part by name: ours and those of installed plug-ins, in order of name."""
        for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.value != OURS):
            load_entry_point(point)
        return dict(sorted(self._parts.items()))

    def find(self, name: str) -> Part:
        """The part of that name; InvalidInput with the nearest match otherwise."""
        if name in self._parts:  # looking for plug-ins again takes longer than building a small generator
            return self._parts[name]
        known = self.all()
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name.replace("-", "_").lower(), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise InvalidInput(f"no {self.kind} is called {printable(name)!r}", hint)


encoders = Parts("condition encoder")  # what is asked for -> codes
decoders = Parts("decoder")  # codes -> raw tensors
bases = Parts("base")  # what raw tensors are added to
scales = Parts("scale")  # raw tensors -> tensors of the right size
codecs = Parts("codec")  # tokens of a network -> latents, and back
priors = Parts("prior")  # what latents are drawn from
objectives = Parts("objective")  # what training minimises
families = Parts("family of architectures")  # what training draws targets from
generators = Parts("generator")  # a preset of the parts above
