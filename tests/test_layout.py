"""The rules of the house that a machine can check: where code lies, who imports whom, how long things get."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("merge", "hypernet", "cli")

# Who may import whom; "paramsmith" stands for the shared layer, the modules directly in the package.
ALLOWED = {
    "paramsmith": {"paramsmith"},
    "merge": {"paramsmith", "merge"},
    "hypernet": {"paramsmith", "hypernet"},
    "cli": {"paramsmith", "merge", "hypernet", "cli"},
}
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}
MAX_FILE, MAX_METHOD_FILE, MAX_BODY = 300, 80, 40

# The shared modules that read headers and recipes: what they serve (help, inspect, plans) must not wait for torch.
TORCHLESS = (
    "errors",
    "dtypes",
    "header",
    "checkpoint",
    "model_config",
    "companions",
    "shards",
    "journal",
    "recipe",
    "params",
)
HEAVY = ("torch", "scipy", "transformers", "diffusers", "accelerate", "huggingface_hub")

TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ""}
MACHINE_PATH = re.compile(r"(?<![\w.~<>{}-])/(?:work|tmp|opt|root|home|mnt|Users)/[\w.]")
REGISTRY = re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host|file:///")
URL_HOST = re.compile(r"\bhttps?://(?:[^\s/@]*@)?([\w.-]+)")
PUBLIC = re.compile(
    r"(?:.*\.)?(?:arxiv\.org|openreview\.net|doi\.org|github\.com|huggingface\.co|hf\.co|apache\.org|pytorch\.org"
    r"|python\.org|www\.w3\.org|keepachangelog\.com|semver\.org|json-schema\.org|example(?:\.\w+)?|test|invalid)"
    r"|git-lfs|localhost|127\.0\.0\.1"
)


def test_links_are_checked_out() -> None:
    """First, because everything else fails with it, and less clearly."""
    broken = [name for name in LINKED if not (ROOT / "paramsmith" / name).is_dir()]
    assert not broken, (
        f"paramsmith/{{{','.join(broken)}}} should be symbolic links to ../{{{','.join(broken)}}}, and this checkout "
        "has none: run `git config core.symlinks true && git checkout -- paramsmith` on a file system that has links"
    )
    for name in LINKED:
        assert (ROOT / "paramsmith" / name).samefile(ROOT / name)


def sources() -> list[Path]:
    """Every Python file of the package, each once, under the folder it really lies in."""
    shared = (ROOT / "paramsmith").glob("*.py")
    linked = (file for name in LINKED for file in (ROOT / name).rglob("*.py"))
    return sorted([*shared, *linked])


def label(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


each_source = pytest.mark.parametrize("file", sources(), ids=label)


def dotted(file: Path) -> str:
    """The name that the file is imported by."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "paramsmith" else ("paramsmith", *parts))


def imported(name: str, package: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of everything that a module imports, anywhere in it; also by importlib with a literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            assert above or not node.level, f"{name}:{node.lineno} leaves the package by a relative import"
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                target = node.args[0].value
                yield node.lineno, package + target if target.startswith(".") else target


def room(target: str) -> str | None:
    """Which of the four a dotted name belongs to; None for anything else."""
    parts = target.split(".")
    if parts[0] in LINKED:
        return f"top-level {parts[0]}"
    if parts[0] != "paramsmith":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LINKED else "paramsmith"


def violations(name: str, package: str, text: str) -> list[str]:
    """The imports of a module that go against the arrows."""
    here = room(name)
    assert here is not None
    found = [(line, target, room(target)) for line, target in imported(name, package, ast.parse(text))]
    return [
        f"{name}:{line} imports {target}" for line, target, there in found if there and there not in ALLOWED[here]
    ] + [f"{name}:{line} leaves its folder by a relative import" for line in escapes(package, here, ast.parse(text))]


def escapes(package: str, here: str, tree: ast.AST) -> Iterator[int]:
    """Lines whose relative import climbs out of the folder: across folders, names are absolute."""
    depth = len(package.split(".")) - (1 if here == "paramsmith" else 2)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > depth + 1:
            yield node.lineno


@each_source
def test_imports_follow_the_arrows(file: Path) -> None:
    name = dotted(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    assert not violations(name, package, file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("paramsmith.stream", "from paramsmith import merge"),
        ("paramsmith.stream", "def f():\n    import paramsmith.merge.engine"),
        ("paramsmith.stream", "from .merge import engine"),
        ("paramsmith.stream", "import importlib\nimportlib.import_module('paramsmith.cli')"),
        ("paramsmith.merge.engine", "from paramsmith.hypernet import train"),
        ("paramsmith.merge.engine", "from paramsmith import cli"),
        ("paramsmith.merge.engine", "from ..errors import Failed"),
        ("paramsmith.merge.methods.ties", "from ...errors import Failed"),
        ("paramsmith.merge.engine", "import merge"),
        ("paramsmith.cli.app", "from merge.engine import run"),
    ],
)
def test_wrong_imports_are_seen(name: str, text: str) -> None:
    assert violations(name, name.rpartition(".")[0], text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("paramsmith.merge.methods.ties", "from ..deltas import extract\nfrom paramsmith.ops import mean"),
        ("paramsmith.cli.app", "from paramsmith.merge import merge\nfrom .render import table\nimport click"),
        ("paramsmith.stream", "import torch\nfrom paramsmith.errors import Failed"),
    ],
)
def test_right_imports_pass(name: str, text: str) -> None:
    assert not violations(name, name.rpartition(".")[0], text)


def test_no_module_for_anything_and_everything() -> None:
    vague = [label(file) for file in sources() if VAGUE & {part.strip("_") for part in dotted(file).split(".")}]
    assert not vague, f"name these after what they do: {vague}"


@each_source
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    is_method = file.parent == ROOT / "merge" / "methods" and file.name != "__init__.py"
    limit = MAX_METHOD_FILE if is_method else MAX_FILE
    lines = len(text.splitlines())
    assert lines <= limit, f"{label(file)} has {lines} lines; the most is {limit}"
    long = [(name, size) for name, size in bodies(ast.parse(text)) if size > MAX_BODY]
    assert not long, f"{label(file)}: bodies of more than {MAX_BODY} lines: {long}"


def bodies(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, lines of the body, its docstring apart) of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            yield node.name, (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def run_python(code: str) -> str:
    """What a fresh interpreter prints; started in the root, so that the checkout is what it imports."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_is_quick_because_torch_stays_unimported() -> None:
    code = f"""
import sys
sys.argv = ["paramsmith", "--help"]
from paramsmith.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    out = run_python(code)
    assert "Usage" in out
    assert out.splitlines()[-1] == "heavy: []"


def test_headers_and_recipes_are_read_without_torch() -> None:
    present = [f"paramsmith.{name}" for name in TORCHLESS if (ROOT / "paramsmith" / f"{name}.py").exists()]
    code = f"""
import importlib, sys
for name in ["paramsmith", *{present!r}]:
    importlib.import_module(name)
    assert "torch" not in sys.modules, f"importing {{name}} imports torch"
"""
    run_python(code)


def text_files() -> list[Path]:
    """What is, or is about to be, in the repository; without git, every file outside hidden and built folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = [label(file) for file in ROOT.rglob("*")]
        listed = [name for name in listed if not re.search(r"(^|/)(\.(?!ci/)|__pycache__/|build/|dist/)", name)]
    files = [ROOT / name for name in listed if name]
    return sorted(file for file in files if file.suffix in TEXT and file.is_file() and not file.is_symlink())


def test_nothing_names_a_machine() -> None:
    """No path of one computer, no registry, no host that the public cannot reach."""
    found = []
    for file in text_files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            hosts = [host for host in URL_HOST.findall(line) if not PUBLIC.fullmatch(host)]
            if MACHINE_PATH.search(line) or (REGISTRY.search(line) and file != Path(__file__).resolve()) or hosts:
                found.append(f"{label(file)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)
