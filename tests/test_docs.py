"""What the manuals show is what happens: tables are current, code runs, recipes parse, links lead somewhere."""

from __future__ import annotations

import importlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from paramsmith import registry
from paramsmith.cli.app import cli
from paramsmith.recipe import parse_recipe
from tests import docs

ROOT = docs.ROOT
PAGES = [*docs.MANUALS, ROOT / "merge" / "HUB.md"]
PAGES += [ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
each_manual = pytest.mark.parametrize("path", docs.MANUALS, ids=lambda path: path.relative_to(ROOT).as_posix())


@dataclass(frozen=True)
class Code:
    """One block of a page and the line it begins on."""

    kind: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name in its first line, when that is a comment with one."""
        found = re.match(r"# ([\w.-]+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None


def blocks(path: Path) -> list[Code]:
    text = path.read_text(encoding="utf-8")
    return [Code(m[1], m[2], text.count("\n", 0, m.start()) + 2) for m in BLOCK.finditer(text)]


# -- the tables ------------------------------------------------------------------------------


def test_the_tables_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_table_is_seen_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- methods -->\nold\n<!-- /methods -->\nafter\n<!-- bench -->\nkept\n<!-- /bench -->\n")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "MANUALS", (page,))
    assert docs.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    text = page.read_text()
    assert "| `ties` |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n<!-- bench -->\nkept\n<!-- /bench -->\n")


def test_every_table_has_its_place() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in docs.MANUALS)
    for name in (*docs.TABLES, "bench"):
        assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- /{name} -->\n") == 1, name


def test_every_option_is_in_the_manual() -> None:
    from paramsmith.cli.merge import command
    from paramsmith.cli.merge_options import ParameterOption

    manual = (ROOT / "merge" / "README.md").read_text(encoding="utf-8")
    options = [o for o in command.params if o.param_type_name == "option" and not isinstance(o, ParameterOption)]
    assert len(options) > 15
    missing = [word for option in options for word in option.opts if f"`{word}" not in manual]
    assert not missing


def test_the_first_page_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 220


def test_every_example_is_described() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in (ROOT / "examples").glob("*.py") if f"({path.name})" not in page]


# -- the code --------------------------------------------------------------------------------


@each_manual
def test_the_blocks_of_a_manual_run(path: Path, folder: Path) -> None:
    """In order, in one folder: Python is executed, lines that begin with `paramsmith` succeed, recipes parse."""
    told = blocks(path)
    assert {"python", "sh"} <= {code.kind for code in told}
    for code in told:
        where = f"{path.relative_to(ROOT)}:{code.line}"
        if code.file:
            (folder / code.file).write_text(code.text, encoding="utf-8")
        if code.kind == "python":
            run_python(code, where)
        elif code.kind == "yaml":
            assert parse_recipe(code.text, where).method
        elif code.kind == "toml":
            install(folder, code.text)
        elif code.kind == "sh":
            for line in code.text.splitlines():
                assert line.startswith("paramsmith "), f"{where}: a line that is not run: {line}"
                run_command(line, where)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with models named as in the manuals; what is registered there is forgotten afterwards."""
    from paramsmith.cli.merge import command

    for seed, name in enumerate(("base", "math", "code", "chat")):
        save_model(tmp_path / name, seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_METHODS", dict(registry.methods()))
    monkeypatch.setattr(command, "_from_methods", None)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def save_model(folder: Path, seed: int) -> None:
    """A tiny Llama of four layers, near the one of seed 0."""
    shapes = {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,)}
    for layer in range(4):
        place = f"model.layers.{layer}."
        shapes |= {f"{place}self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
        shapes |= {f"{place}mlp.up_proj.weight": (16, 8), f"{place}mlp.down_proj.weight": (8, 16)}
        shapes |= {f"{place}input_layernorm.weight": (8,)}
    start, own = (torch.Generator().manual_seed(s) for s in (0, seed))
    first = {name: torch.randn(shape, generator=start) for name, shape in shapes.items()}
    tuned = {name: x + (0.1 * torch.randn(x.shape, generator=own) if seed else 0) for name, x in first.items()}
    folder.mkdir(parents=True)
    save_file({name: x.bfloat16() for name, x in tuned.items()}, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "vocab_size": 32,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")


def run_python(code: Code, where: str) -> None:
    """Execute a block; one that is a file is imported, as it would be by whoever installs it."""
    if code.file:
        importlib.invalidate_caches()
        importlib.import_module(code.file.removesuffix(".py"))
        return
    with redirect_stdout(io.StringIO()):
        exec(compile("\n" * (code.line - 1) + code.text, where, "exec"), {"__name__": "block"})


def run_command(line: str, where: str) -> None:
    done = CliRunner().invoke(cli, shlex.split(line)[1:])
    assert done.exit_code == 0, f"{where}: {line}\n{done.output}"
    assert done.stdout, f"{where}: {line} says nothing"


def install(folder: Path, entry_points: str) -> None:
    """What pip leaves of a package with these entry points, whose modules lie in the folder."""
    import tomllib

    about = folder / "my_methods-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    groups = tomllib.loads(entry_points)["project"]["entry-points"]
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for points in groups.values():  # so that only the entry point can have registered them
        for name, module in points.items():
            sys.modules.pop(module)
            del registry._METHODS[name]
    importlib.invalidate_caches()


# -- the pointers ----------------------------------------------------------------------------


@each_page
def test_pointers_name_tests_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    pointers = re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", text)
    assert pointers or path not in docs.MANUALS
    for file, test in pointers:
        assert (ROOT / file).is_file(), file
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test}"


@each_page
def test_links_resolve(path: Path) -> None:
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.relative_to(ROOT)}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{path.relative_to(ROOT)}: {target}"


def anchors(path: Path) -> set[str]:
    """The headings of a page as their links are written."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
