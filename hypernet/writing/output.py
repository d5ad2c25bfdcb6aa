"""One sample as a folder that loads like any checkpoint, or as a single file; complete, or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from paramsmith.companions import companions, output_config
from paramsmith.errors import InvalidInput
from paramsmith.header import TensorSpec
from paramsmith.hypernet.model import Decodes
from paramsmith.hypernet.protocols import Condition
from paramsmith.inputs import place
from paramsmith.model_config import ModelConfig
from paramsmith.shards import Layout
from paramsmith.staging import Writer

from .cards import README, checkpoint_card
from .provenance import NAME, Generation, check_outputs, described, planned_outputs, read_generation, recorded
from .samples import sample_seed
from .stream import Outline, fill

CONFIG = "config.json"


@dataclass(frozen=True)
class Written:
    """One sample on the disk. `resumed`: how many of its bytes an earlier run had written."""

    path: Path
    index: int
    nbytes: int
    files: tuple[str, ...]
    resumed: int = 0


@dataclass(frozen=True)
class Sample:
    """One sample to write. `condition` has a leading axis of 1; `folder`: where tokenizer and the like are copied from.

    `generation` is what will be told of it, but for the files.
    """

    model: Decodes
    outline: Outline
    condition: Condition
    generation: Generation
    path: Path
    folder: Path | None = None
    shard_size: str | int | None = None

    @cached_property
    def layout(self) -> Layout:
        """The files of tensors; each says in its metadata how they came to be."""
        asked = self.generation.asked
        said: dict[str, object] = {
            "generator": self.generation.generator.id,
            "spec": asked.spec,
            "condition": asked.condition,
        }
        said |= {"seed": asked.seed, "index": asked.index, "steps": asked.steps, "guidance": asked.guidance}
        metadata = {f"paramsmith.{key}": str(value) for key, value in said.items() if value is not None}
        return self.planned(metadata)

    def planned(self, metadata: Mapping[str, str]) -> Layout:
        """The files, with these words in them."""
        return self.outline.layout(self.path, self.shard_size, metadata)

    @property
    def stored(self) -> Sequence[TensorSpec]:
        """The tensors that are written."""
        return self.outline.tensors

    @property
    def held(self) -> int:
        """About how many bytes are in memory until it is written, beside the chunks in flight."""
        return 0

    @property
    def key(self) -> str:
        """What tells this output from any other, for going on with it."""
        return self.generation.key

    @property
    def seed(self) -> int:
        """The seed that the weights are drawn with."""
        return sample_seed(self.generation.asked.seed, self.generation.asked.index)

    @cached_property
    def copies(self) -> dict[str, Path]:
        """The files that are copied, by name: tokenizer and the like."""
        found = [] if self.folder is None else companions(self.folder)
        return {path.relative_to(self.folder or path).as_posix(): path for path in found}

    @cached_property
    def beside(self) -> dict[str, bytes]:
        """What is written beside the tensors: config, card, and what the sample was made from."""
        if self.path.suffix == ".safetensors":
            return {}
        files = self.described()
        outputs = {**planned_outputs(self.layout), **described(files), **recorded(self.copies)}
        whole = self.generation.model_copy(update={"outputs": outputs})
        return {**files, README: self.card(whole), NAME: whole.to_bytes()}

    def card(self, whole: Generation) -> bytes:
        """README.md."""
        return checkpoint_card(whole, self.outline, self.path.absolute().name)

    def described(self) -> dict[str, bytes]:
        """What says how it is to be loaded."""
        config = self._config()
        return {CONFIG: config} if config is not None else {}

    def fill(self, writer: Writer, threads: int, tell: Callable[[int], None]) -> None:
        """Generate and write all of its tensors."""
        number = self.generation.asked.index
        fill(writer, self.model, self.outline, self.condition, self.seed, number, threads, tell)

    def is_done(self) -> bool:
        """Whether an earlier run has published just this: the same generation, and files as it tells of."""
        if self.path.suffix == ".safetensors" or not (self.path / NAME).is_file():
            return False
        try:
            found = read_generation(self.path)
            check_outputs(self.path, found)
        except InvalidInput:
            return False
        return found.key == self.generation.key

    def _config(self) -> bytes | None:
        """config.json as it was, with the type of the weights where it is one of transformers'."""
        raw = self.outline.spec.config
        if raw is None:
            return None
        if self.outline.is_diffusers:
            return (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()
        dtypes = {tensor.dtype for tensor in self.outline.tensors if tensor.dtype.kind == "float"}
        config = ModelConfig(dict(raw), Path(CONFIG), None, None, "")
        return output_config(config, dtypes.pop() if len(dtypes) == 1 else None, None, None)


def write_sample(sample: Sample, threads: int, force: bool, tell: Callable[[int], None]) -> Written:
    """Generate a sample into its place. Interrupted or killed, the same call goes on, to the same bytes.

    Refused where something is there already, unless forced; Failed where a value is not finite.
    """
    layout, index = sample.layout, sample.generation.asked.index
    files = tuple(file.name for file in layout.files)
    with Writer(sample.path, layout, sample.key, force=force) as writer:
        resumed = writer.resumed_bytes
        sample.fill(writer, threads, tell)
        if sample.beside:
            for name, path in sample.copies.items():
                writer.add_copy(path, name)
            for name, data in sample.beside.items():
                writer.add_file(name, data)
        writer.publish()
    return Written(sample.path, index, layout.nbytes, (*files, *sample.beside), resumed)


def check_apart(path: Path, inputs: Sequence[Path], generator: Path | None = None) -> None:
    """InvalidInput where an input would lie in the output, or the output in the generator, wherever links lead."""
    mine = Path(os.path.realpath(path))  # unlike Path.resolve, also of a link that leads to itself
    for each in (*inputs, *([generator] if generator else [])):
        home = Path(os.path.realpath(each))
        if mine == home or mine in home.parents or (each is generator and home in mine.parents):
            fact = f"{place(path)}: the output and the input {place(each)} overlap"
            raise InvalidInput(fact, "choose an output of its own")
