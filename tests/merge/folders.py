"""Model folders to merge, the command line in this process and in others, and what every refusal must look like."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from paramsmith.cli.app import cli
from paramsmith.dtypes import DTYPES
from tests.badinputs import CONFIG

START = "from paramsmith.cli.app import main; main()"
# The last line a process writes. What wait4 tells would begin with the peak of the tests' own process.
PEAK = """
import atexit, os, re
def peak():
    with open("/proc/self/status") as status:
        os.write(1, b"\\npeak " + re.search("VmHWM:\\\\s+([0-9]+) kB", status.read())[1].encode())
atexit.register(peak)
"""
WIDTH, INNER, WORDS = 8, 16, 32


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    peak: int = 0  # bytes, of a process of its own

    @property
    def warnings(self) -> list[str]:
        return [line.removeprefix("warning: ") for line in self.err.splitlines() if line.startswith("warning: ")]


def merge(*words: object) -> Done:
    """`paramsmith merge` in this process."""
    done = CliRunner().invoke(cli, ["merge", *map(str, words), "--compile", "never"])
    return Done(done.exit_code, done.stdout, done.stderr)


def command_line(*words: object) -> Done:
    """`paramsmith` in this process."""
    done = CliRunner().invoke(cli, list(map(str, words)))
    return Done(done.exit_code, done.stdout, done.stderr)


def start(*words: object, before: str = "", **options: object) -> subprocess.Popen[str]:
    """`paramsmith` in a process of its own; `before` is code that it runs first."""
    command = [sys.executable, "-c", f"{PEAK}\n{before}\n{START}", *map(str, words)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, **options)  # type: ignore[call-overload, no-any-return]


def ended(process: subprocess.Popen[str], seconds: float = 120) -> Done:
    """Its output, its code and its peak memory; it must end within the seconds."""
    out, err = process.communicate(timeout=seconds)
    out, _, peak = out.rpartition("\npeak ")
    return Done(process.returncode, out, err, int(peak) * 1024)


def failed(done: Done, code: int, *told: str) -> None:
    """One line of fact, one line of hint, nothing else on stderr but warnings, and the words wanted in the fact."""
    assert done.code == code, done
    lines = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], done.err
    assert len(lines[1]) > len("hint: x"), done.err
    for words in told:
        assert words in lines[0], done.err
    assert_clean(done)


def assert_clean(done: Done) -> None:
    """Nothing that a terminal would act on, and no trace."""
    assert "Traceback" not in done.out + done.err
    assert not [c for c in done.out + done.err if c != "\n" and not c.isprintable()]


def leftovers(folder: Path) -> list[str]:
    """What staging may have left beside the outputs."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def save(folder: Path, tensors: Mapping[str, Tensor], **config: object) -> Path:
    """A model folder; a config of None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    said = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def llama(
    seed: int, dtype: torch.dtype = torch.float32, *, layers: int = 2, tied: bool = False, words: int = WORDS
) -> dict[str, Tensor]:
    """The tensors of a tiny Llama: normal numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, WIDTH)}
    for layer in range(layers):
        place = f"model.layers.{layer}."
        shapes |= {f"{place}self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qkvo"}
        shapes |= {f"{place}mlp.{n}_proj.weight": (INNER, WIDTH) for n in ("gate", "up")}
        shapes |= {f"{place}mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{place}{n}_layernorm.weight": (WIDTH,) for n in ("input", "post_attention")}
    shapes["model.norm.weight"] = (WIDTH,)
    if not tied:
        shapes["lm_head.weight"] = (words, WIDTH)
    return {n: (0.1 * torch.randn(shape, generator=generator)).to(dtype) for n, shape in shapes.items()}


def llamas(folder: Path, names: Sequence[str] = ("base", "a", "b", "c"), **how: object) -> list[Path]:
    """Folders of tiny Llamas, each of its own seed."""
    return [save(folder / name, llama(seed, **how)) for seed, name in enumerate(names)]  # type: ignore[arg-type]


def config_of(folder: Path) -> dict[str, object]:
    """Its config.json."""
    said: dict[str, object] = json.loads((folder / "config.json").read_text())
    return said


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stored(dtype: str, shape: Sequence[int], seed: int) -> Tensor:
    """A tensor of a stored dtype, by the format's code."""
    generator = torch.Generator().manual_seed(seed)
    made = getattr(torch, str(DTYPES[dtype].torch_name))
    if DTYPES[dtype].kind == "float":
        return torch.randn(shape, generator=generator).to(made)
    return torch.randint(0, 2, shape, generator=generator).to(made)
