"""What tokens take, each job in a process of its own.

python -m tests.bench.tokens_child < JOB        JOB as JSON; the result is the last line of stdout, as JSON
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tests.bench.child import Measured

if TYPE_CHECKING:
    from paramsmith.hypernet.targets.target import TargetSpec

Shapes = dict[str, tuple[int, ...]]
TIMES = 7  # in one process, of which the best counts


@dataclass(frozen=True)
class Job:
    """What to do, with a network of which size, in which layout."""

    kind: str  # tokens, tensors, copy
    size: str
    layout: str


def do(job: Job) -> Measured:
    """Run a job; its output is made anew every time, as is the copy."""
    import torch

    from paramsmith.hypernet.tokens.tokenizer import Tokenizer

    spec = described(job.size)
    rng = torch.Generator().manual_seed(0)
    if job.kind == "copy":
        numbers = torch.randn(sum(torch.Size(slot.shape).numel() for slot in spec.slots), generator=rng)
        work = numbers.clone
    else:
        network = {slot.name: torch.randn(1, *slot.shape, generator=rng) / 32 for slot in spec.slots}
        tokenizer = Tokenizer.of({"layout": job.layout}, spec)
        tokenizer.normaliser.scale.fill_(2.0**-5)
        cut = tokenizer.tokens(network, spec) if job.kind == "tensors" else None
        if cut is not None:
            network.clear()
        work = (lambda: tokenizer.tokens(network, spec)) if cut is None else lambda: tokenizer.tensors(cut, spec)  # type: ignore[assignment]
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        made = work()
        taken.append(time.perf_counter() - started)
        del made
    return Measured(min(taken))


def described(size: str) -> TargetSpec:
    """The target of that size, by shapes alone."""
    from paramsmith.hypernet.targets.rolenames import traits_by_name
    from paramsmith.hypernet.targets.target import Slot, TargetSpec

    shapes = {"ResNet-18": resnet, "quarter billion": llama, "tiny": tiny}[size]()
    traits, _ = traits_by_name(shapes)
    slots = (Slot(name, shapes[name], "F32", t.role, t.fan_in, t.std, t.class_axis) for name, t in traits.items())
    return TargetSpec(tuple(slots))


def resnet() -> Shapes:
    """ResNet-18: 11.7 million numbers."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, before, 3, 3), **norm(f"{name}.bn1", width)}
            shapes |= {f"{name}.conv2.weight": (width, width, 3, 3), **norm(f"{name}.bn2", width)}
            if before != width:
                shapes |= {f"{name}.downsample.0.weight": (width, before, 1, 1), **norm(f"{name}.downsample.1", width)}
            before = width
    return shapes | {"fc.weight": (1000, 512), "fc.bias": (1000,)}


def llama() -> Shapes:
    """A language model of 0.25 billion numbers."""
    width, inner, layers = 1536, 4096, 9
    shapes: Shapes = {"model.embed_tokens.weight": (16_000, width)}
    for layer in range(layers):
        matrices = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 4, width)}
        matrices |= {"self_attn.v_proj": (width // 4, width), "self_attn.o_proj": (width, width)}
        matrices |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.{leaf}.weight": shape for leaf, shape in matrices.items()}
        shapes |= {f"{name}.input_layernorm.weight": (width,), f"{name}.post_attention_layernorm.weight": (width,)}
    return shapes


def tiny() -> Shapes:
    """For a look at the report."""
    return {"0.weight": (16, 8), "0.bias": (16,), "2.weight": (4, 16), "2.bias": (4,)}


def norm(name: str, width: int) -> Shapes:
    """A batch norm's."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


if __name__ == "__main__":
    print(json.dumps(asdict(do(Job(**json.loads(sys.stdin.read()))))))
