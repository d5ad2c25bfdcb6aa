"""The checkpoints that are timed: a base and three fine-tunes, Llama-shaped, made once; and some of tiny tensors.

python -m tests.bench.models FOLDER SIZES        SIZES as JSON; a process of its own, as torch's memory stays with it
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from paramsmith.dtypes import DTYPES
from paramsmith.header import TensorSpec, layout

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("base", "a", "b", "c")
WEIGHTS = "model.safetensors"
METADATA = {"format": "pt"}
BASE, NOISE = 0.02, 0.002  # standard deviations of the base and of what a fine-tune adds


class Unusable(Exception):
    """A folder that cannot be used for the models; says why."""


@dataclass(frozen=True)
class Sizes:
    """The shape of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    vocab: int
    kv: int

    def specs(self) -> list[TensorSpec]:
        """Every tensor, in bf16."""
        hidden, wide = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, hidden)}
        for layer in range(self.layers):
            start = f"model.layers.{layer}."
            for name, rows in (("q", hidden), ("k", self.kv), ("v", self.kv), ("o", hidden)):
                shapes[f"{start}self_attn.{name}_proj.weight"] = (rows, hidden)
            for name, shape in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
                shapes[f"{start}mlp.{name}_proj.weight"] = shape
            shapes[f"{start}input_layernorm.weight"] = (hidden,)
            shapes[f"{start}post_attention_layernorm.weight"] = (hidden,)
        shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab, hidden)}
        return [TensorSpec(name, DTYPES["BF16"], shape) for name, shape in shapes.items()]

    def config(self) -> dict[str, object]:
        """The config.json that goes with it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.kv // 64,
            "vocab_size": self.vocab,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
        }


FULL = Sizes(hidden=2048, intermediate=5632, layers=22, vocab=32000, kv=256)  # 1.1 G parameters, 2.2 GB
QUICK = Sizes(hidden=1024, intermediate=2816, layers=8, vocab=8000, kv=128)  # 0.2 GB


def llamas(folder: Path, sizes: Sizes) -> dict[str, Path]:
    """The folder of each of the four models, made if there are none; Unusable when something else lies there."""
    head, _, size = layout(sizes.specs(), METADATA)
    found = [name for name in NAMES if (folder / name).exists()]
    if found and len(found) < len(NAMES):
        raise Unusable(f"{folder} has only {', '.join(found)} of the models: remove them, or name another folder")
    if not found:
        room = shutil.disk_usage(folder).free
        if room < 6 * size:
            raise Unusable(
                f"{folder} has {room / 1e9:.1f} GB free, and four models and two outputs take {6 * size / 1e9:.1f}"
            )
        make_apart(folder, sizes)
    for name in NAMES:
        weights = folder / name / WEIGHTS
        if not weights.is_file() or weights.stat().st_size != size or _start(weights, len(head)) != head:
            raise Unusable(f"{weights} is not the model wanted here: name another folder")
    return {name: folder / name for name in NAMES}


def make_apart(folder: Path, sizes: Sizes) -> None:
    """Write the four models in a process of its own, so that this one stays small."""
    command = [sys.executable, "-m", "tests.bench.models", str(folder), json.dumps(asdict(sizes))]
    subprocess.run(command, cwd=ROOT, check=True)


def make_llamas(folder: Path, sizes: Sizes) -> None:
    """Write the four models, tensor by tensor, and put them into place when all are whole."""
    import torch

    head, places, _ = layout(sizes.specs(), METADATA)
    random_numbers = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as made:
        with ExitStack() as stack:
            files = _opened(Path(made), head, stack)
            for spec in sizes.specs():
                base = torch.randn(spec.shape, generator=random_numbers) * BASE
                for name, file in files.items():
                    noise = 0 if name == "base" else torch.randn(spec.shape, generator=random_numbers) * NOISE
                    written = (base + noise).bfloat16().view(torch.uint8).flatten().numpy()
                    file.seek(places[spec.name])
                    file.write(written.data)
        for name in NAMES:
            Path(made, name, "config.json").write_text(json.dumps(sizes.config()), encoding="utf-8")
            Path(made, name).rename(folder / name)


def tiny_models(folder: Path, count: int) -> dict[str, Path]:
    """Four files of `count` tensors of 4 x 4 float32, made if they are not there; no config, as bare weights merge."""
    place = folder / f"tiny-{count}"
    specs = [TensorSpec(f"layers.{i}.weight", DTYPES["F32"], (4, 4)) for i in range(count)]
    head, _, size = layout(specs, METADATA)
    if not place.exists():
        numbers = random.Random(0)
        with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as made:
            with ExitStack() as stack:
                for file in _opened(Path(made, place.name), head, stack).values():
                    file.write(array("f", (numbers.gauss(0, BASE) for _ in range(16 * count))).tobytes())
            Path(made, place.name).rename(place)
    if any((place / name / WEIGHTS).stat().st_size != size for name in NAMES):
        raise Unusable(f"{place} holds other models than those wanted here: name another folder")
    return {name: place / name / WEIGHTS for name in NAMES}


def _start(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _opened(folder: Path, head: bytes, stack: ExitStack) -> Mapping[str, BinaryIO]:
    """The four files, with their headers."""

    def files() -> Iterator[tuple[str, BinaryIO]]:
        for name in NAMES:
            (folder / name).mkdir(parents=True)
            file = stack.enter_context((folder / name / WEIGHTS).open("wb"))
            file.write(head)
            yield name, file

    return dict(files())


if __name__ == "__main__":
    make_llamas(Path(sys.argv[1]), Sizes(**json.loads(sys.argv[2])))
