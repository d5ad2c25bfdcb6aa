"""Training a sampler on a zoo, stage by stage: its statistics, its codec, an alignment if there is one, its prior."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.evaluation.reconstruction import Reconstruction, check_reconstruction, reconstruction
from paramsmith.hypernet.latents import Pairs
from paramsmith.hypernet.moments import Moments
from paramsmith.hypernet.sampler import Sampler
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.zoos.build import episode_of
from paramsmith.hypernet.zoos.index import Split
from paramsmith.hypernet.zoos.smallness import run_count, warn_few
from paramsmith.hypernet.zoos.zoo import Member, Zoo
from paramsmith.params import Params
from paramsmith.parts import objectives

from .alignment import regression_loss, siglip_loss, soft_clip_loss

_HELD = 1 << 26  # numbers of latents and conditions that are kept in memory, 256 MB each
_AT_ONCE = 256  # networks encoded at once
_JUDGED = 64  # networks by which a codec is judged


class Stages(Params):
    """How many steps go to what; the rest is the prior's."""

    batch: int = Field(64, ge=1, le=65_536, description="networks a step, all of one architecture")
    codec_steps: int = Field(0, ge=0, description="steps for the codec, before all others")
    align_steps: int = Field(0, ge=0, description="steps in which the condition's codes are brought near to latents")
    align: Literal["siglip", "clip", "regression"] = Field(
        "siglip", description="the loss of these; regression makes codes of standardised latents, whose scale it sets"
    )
    margin: float = Field(0.02, ge=0, allow_inf_nan=False, description="score that a codec may lose at most")


@dataclass(frozen=True)
class Group:
    """Networks of one architecture, asked for in the same shapes, with their numbers in the zoo."""

    spec: TargetSpec
    members: tuple[Member, ...]
    numbers: tuple[int, ...]

    @property
    def parts(self) -> Iterator[list[int]]:
        """Places within it, as many as are encoded at once."""
        for start in range(0, len(self.members), _AT_ONCE):
            yield list(range(start, min(start + _AT_ONCE, len(self.members))))


@dataclass(frozen=True)
class CodecLoss(Reconstruction):
    """What the codec loses, and of which split the networks are that it was seen by; of `train`, it is too hopeful."""

    split: Split = "train"


@objectives("stages", Stages)
class StagesObjective:
    """One batch of networks a step: the loss of the codec, of the alignment, or of the prior on frozen latents.

    What is computed, not trained, is computed when its stage begins: the tokenizer's statistics and the codec's own at
    once, the prior's before its first step. Of several architectures, which are numbers of classes of one, a step
    draws one by how many networks it has.
    """

    def __init__(self, options: Stages, model: Sampler, source: object) -> None:
        if not isinstance(source, Zoo):
            raise InvalidInput("the objective 'stages' learns from a zoo of checkpoints", "give --zoo FOLDER")
        if not isinstance(model, Sampler):
            raise InvalidInput("the objective 'stages' trains samplers", "use the preset's own objective")
        self.options, self.model, self.zoo = options, model, source
        self.groups = _groups(model, source)
        for group in self.groups:
            model.places(group.spec)  # a codec may refuse another number of classes: now, not after an hour
        self.sizes = torch.tensor([len(group.members) for group in self.groups], dtype=torch.float64)
        self._latents: dict[int, Tensor] = {}  # by the number of a group's first network
        self._conditions: dict[int, dict[str, Tensor]] = {}
        self._same: dict[int, Tensor] = {}
        self._moments: tuple[float, float] | None = None  # of all latents
        self._fitted = False
        self.report: CodecLoss | None = None
        warn_few(run_count(source.of("train")))
        model.tokenizer.fit(self._networks)
        fit = getattr(model.codec, "fit", None)
        if callable(fit):
            fit(self._tokens)

    def turns(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """The stages that train something."""
        encoder = list(self.model.encoder.parameters())
        turns = {
            "codec": list(self.model.codec.parameters()) if self.options.codec_steps else [],
            "alignment": encoder if self.options.align_steps else [],
            "prior": [*self.model.prior.parameters(), *encoder] if hasattr(self.model.prior, "loss") else [],
        }
        return {name: parameters for name, parameters in turns.items() if parameters}

    def turn(self, step: int) -> str:
        """The stage of a step."""
        if step < self.options.codec_steps:
            return "codec"
        return "alignment" if step < self.options.codec_steps + self.options.align_steps else "prior"

    def over(self, step: int) -> tuple[str, ...]:
        """The codec once its stage is over: the prior learns latents of the codec that is saved."""
        return () if self.turn(step) == "codec" else ("codec",)

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        """The mean over one batch of networks."""
        turn, (group, chosen) = self.turn(step), self._drawn(rng)
        self.model.codec.train(turn == "codec")
        if turn == "codec":
            tokens = self.model.tokenizer.tokens(self._weights(group, chosen), group.spec)
            found: Tensor = self.model.codec.loss(tokens, self.model.layout(group.spec))
            return found
        if turn == "prior":
            self.finish()
        else:
            self._check_codec()
        latent = self._latent(group, chosen)
        asked = self.model.asked(self._condition(group, chosen), group.spec).expand(len(latent), -1, -1)
        if turn == "alignment":
            pairs = latent.flatten(1), asked.mean(1)
            if self.options.align == "regression":
                mean, std = self._scale()
                return regression_loss((pairs[0] - mean) / std, pairs[1])
            if self.options.align == "clip":
                return soft_clip_loss(*pairs)  # whose targets are soft: networks of one task are alike
            tasks = self._tasks(group)[chosen].to(latent.device)
            return siglip_loss(*pairs, same=tasks[:, None] == tasks)
        loss: Tensor = self.model.prior.loss(latent, asked, self.model.places(group.spec))
        return loss

    def finish(self) -> None:
        """The prior's statistics, or all there is to it: before its first step, or after the last of all."""
        if self._fitted:
            return
        self._check_codec()
        training = self.model.training
        self.model.eval()
        self.model.prior.fit(self._pairs)
        self.model.train(training)
        self._fitted = True

    def result(self) -> CodecLoss | None:
        """What the codec loses, where a task told."""
        return self.report

    def _check_codec(self) -> None:
        """Failed where the codec loses too much of what networks can do; where no task tells, nothing is said.

        Those to choose by judge it, where the zoo has any that a task knows; else those that it was made from, which it
        knows better than others. Those to be judged by are for the end.
        """
        task, codec = self.zoo.task, self.model.codec
        if self.report is not None or task is None or not (hasattr(codec, "fit") or hasattr(codec, "loss")):
            return  # a codec that learns nothing loses nothing
        group, members, split = self._judges()
        if not members:
            return
        training = self.model.training
        self.model.eval()
        tensors = {name: held.to(self.model.device) for name, held in self.zoo.batch(members).items()}
        episodes = [episode_of(task, member) for member in members]
        found = reconstruction(self.model, [(tensors, group.spec)], task, episodes)
        self.model.train(training)
        self.report = CodecLoss(**asdict(found), split=split)
        check_reconstruction(self.report, self.options.margin)

    def _judges(self) -> tuple[Group, list[Member], Split]:
        """Networks by which the codec is judged, all of one group's architecture."""
        for split in ("validation", "train"):
            known = [member for member in self.zoo.of(split) if member.entry.episode is not None]
            for group in self.groups:
                chosen = [member for member in known if member.spec.hash == group.members[0].spec.hash]
                if chosen:
                    return group, chosen[:_JUDGED], split
        return self.groups[0], [], "train"

    def _drawn(self, rng: torch.Generator) -> tuple[Group, list[int]]:
        """A group, and places within it; the same network twice only where there are fewer than a batch."""
        group = self.groups[int(torch.multinomial(self.sizes, 1, generator=rng))]
        count, wanted = len(group.members), self.options.batch
        if count >= wanted:
            return group, torch.randperm(count, generator=rng)[:wanted].tolist()
        return group, torch.randint(count, (wanted,), generator=rng).tolist()

    def _weights(self, group: Group, chosen: Iterable[int]) -> dict[str, Tensor]:
        """(B, *shape) by slot."""
        found = self.zoo.batch([group.members[i] for i in chosen])
        return {name: tensor.to(self.model.device) for name, tensor in found.items()}

    @torch.no_grad()
    def _latent(self, group: Group, chosen: list[int]) -> Tensor:
        """(B, L, D), kept for all networks where there is room."""
        key = group.numbers[0]
        if key not in self._latents and int(self.sizes.sum()) * self.model.places(group.spec).mask.numel() > _HELD:
            latent: Tensor = self.model.encoded(self._weights(group, chosen), group.spec)
            return latent
        if key not in self._latents:
            self._latents[key] = torch.cat([pair.latent for pair in self._of(group, asked=False)])
        return self._latents[key][chosen]

    @torch.no_grad()
    def _scale(self) -> tuple[float, float]:
        """Mean and deviation of all latents, of the frozen codec; padding counts as 0."""
        if self._moments is None:
            batches = (pair.latent for group in self.groups for pair in self._of(group, asked=False))
            found = reduce(Moments.with_more, (Moments.of(latent, (0, 1, 2)) for latent in batches))
            self._moments = float(found.mean), float(found.std) or 1.0
        return self._moments

    def _condition(self, group: Group, chosen: list[int]) -> dict[str, Tensor]:
        """The condition of these networks, (B, ...) each."""
        key, first = group.numbers[0], group.members[0].condition
        if key not in self._conditions:
            if sum(first[name].numel() for name in first) * len(group.members) > _HELD:
                return self._stacked([group.members[i] for i in chosen])
            self._conditions[key] = self._stacked(group.members)
        return {name: tensor[chosen] for name, tensor in self._conditions[key].items()}

    def _tasks(self, group: Group) -> Tensor:
        """(members,) int64: equal for networks of one task; one whose task is not known is alone with it."""
        key = group.numbers[0]
        if key not in self._same:
            known: dict[object, int] = {}
            told = [member.entry.task for member in group.members]
            names = [("network", i) if task is None else ("task", task) for i, task in enumerate(told)]
            self._same[key] = torch.tensor([known.setdefault(name, len(known)) for name in names])
        return self._same[key]

    def _stacked(self, members: Sequence[Member]) -> dict[str, Tensor]:
        """Their conditions, (B, ...) each."""
        names = members[0].condition
        return {name: torch.stack([m.condition[name] for m in members]).to(self.model.device) for name in names}

    def _of(self, group: Group, asked: bool = True) -> Iterator[Pairs]:
        """Latents of a group, batch by batch, and what was asked for."""
        places = self.model.places(group.spec)
        for chosen in group.parts:
            latent = self.model.encoded(self._weights(group, chosen), group.spec)
            codes = latent.new_zeros(len(chosen), 1, 0)
            if asked:
                codes = self.model.asked(self._condition(group, chosen), group.spec).expand(len(chosen), -1, -1)
            yield Pairs(latent, codes, places, tuple(group.numbers[i] for i in chosen))

    @torch.no_grad()
    def _pairs(self) -> Iterator[Pairs]:
        for group in self.groups:
            yield from self._of(group)

    def _networks(self) -> Iterator[tuple[dict[str, Tensor], TargetSpec]]:
        for group in self.groups:
            for chosen in group.parts:
                yield self._weights(group, chosen), group.spec

    @torch.no_grad()
    def _tokens(self) -> Iterator[tuple[Tensor, object]]:
        for tensors, spec in self._networks():
            yield self.model.tokenizer.tokens(tensors, spec), self.model.layout(spec)


def _groups(model: Sampler, zoo: Zoo) -> list[Group]:
    """The networks to train on, by architecture. InvalidInput for one that is not the model's."""
    members = zoo.of("train")
    if not members:
        raise InvalidInput("the zoo has no checkpoints to train on", 'mark some with "split": "train"')
    found: dict[object, list[int]] = {}
    for number, member in enumerate(members):
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in member.condition.items())
        found.setdefault((member.spec.hash, shapes), []).append(number)
    return [
        Group(model.target(members[numbers[0]].spec), tuple(members[i] for i in numbers), tuple(numbers))
        for numbers in found.values()
    ]
