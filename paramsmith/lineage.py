"""merge.json: what a merge was made from, how, and what came out, so that anyone can check it and make it again.

Nothing in it tells when, where or by whom: the same merge gives the same bytes. An input of this machine goes by the
name of its folder and is known by its hashes; an input of the Hub by repository and commit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from paramsmith.errors import InvalidInput, printable
from paramsmith.hub import SCHEME, Reference
from paramsmith.inputs import place, read_json
from paramsmith.located_yaml import MAX_DEPTH
from paramsmith.recipe import Recipe

NAME, RECIPE, README, PICTURE = "merge.json", "recipe.yaml", "README.md", "task_vectors.svg"
# What describes a merge is not part of what it made.
DESCRIPTIVE = frozenset({NAME, RECIPE, README, PICTURE, ".gitattributes"})
MAX_BYTES = 20_000_000
_MOST_FILES = 100_000
_PATH = re.compile(r"""(?<![\w.:/])/(?:[^\s/:,"']+/)+([^\s/:,"']+)""")

Role = Literal["base", "model", "statistics", "coefficients"]


def inside(name: str) -> str:
    """The name, if it is one of a file in a folder or in one of its subfolders, on any system; else ValueError."""
    parts = name.split("/")
    strange = any(p in ("", ".", "..") or set(p) & set("\\:") or not p.isprintable() for p in parts)
    if strange or len(name) > 1000:
        raise ValueError(f"{printable(name)} is not the name of a file inside the folder")
    return name


def shallow(found: dict[str, object]) -> dict[str, object]:
    """The data, if it is nested no deeper than a recipe is; else ValueError."""
    level: list[object] = [found]
    for _ in range(MAX_DEPTH):
        level = [i for o in level for i in (o.values() if isinstance(o, dict) else o if isinstance(o, list) else ())]
    if level:
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
    return found


Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(inside)]
RepoName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")]


class FileRecord(BaseModel):
    """One file: bytes, sha256 of its safetensors header, sha256 of the whole; None where that is not known (yet)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    size: int = Field(ge=0)
    header: Digest | None = None
    sha256: Digest | None = None


Files = Annotated[dict[FileName, FileRecord], Field(max_length=_MOST_FILES)]


class Input(BaseModel):
    """One thing a merge was made from. `reference`: the name of a local folder or file, or what was given of the Hub.

    `path` is the folder or the file that was meant in the repository, "" for the whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    role: Role
    reference: str = Field(max_length=2000)
    repo: RepoName | None = None
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    path: FileName | Literal[""] = ""
    files: Files

    @property
    def hub(self) -> Reference | None:
        """Where it is on the Hub, at its commit."""
        return Reference(self.repo, self.commit, self.path) if self.repo and self.commit else None

    @property
    def text(self) -> str:
        """What a recipe that is to be published calls it."""
        return str(self.hub or self.reference)

    def remote(self, name: str) -> str:
        """The name in the repository of one of its files."""
        alone = self.path.rpartition("/")[2] in self.files
        folder = self.path.rpartition("/")[0] if alone else self.path
        return f"{folder}/{name}" if folder else name


class Lineage(BaseModel):
    """merge.json. `inputs` are the base, the models in their order, then statistics and coefficients."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    paramsmith: str = Field(max_length=100)
    torch: str = Field(max_length=100)
    method: str = Field(max_length=200)
    arithmetic: Literal["compiled", "eager"]
    device: str = Field("cpu", max_length=100)
    seed: int = 0
    recipe: Annotated[dict[str, object], AfterValidator(shallow)]
    warnings: tuple[str, ...] = ()
    inputs: tuple[Input, ...]
    outputs: Files

    @property
    def models(self) -> tuple[Input, ...]:
        """The base, where there is one, and the models."""
        return tuple(each for each in self.inputs if each.role in ("base", "model"))

    @property
    def on_hub(self) -> bool:
        """Whether everything it was made from is on the Hub."""
        return all(each.hub for each in self.inputs)

    def to_bytes(self) -> bytes:
        """The file: the same lineage, the same bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n").encode()


def read_lineage(path: Path, shown: str = "") -> Lineage:
    """Read a merge.json, whoever wrote it. InvalidInput says what is wrong with it, under the name `shown`."""
    where = shown or place(path)
    try:
        plain, _ = read_json(path, MAX_BYTES)
        return Lineage.model_validate(plain)
    except ValidationError as problem:
        error = problem.errors(include_url=False, include_input=False)[0]
        what = ": ".join(filter(None, (".".join(map(str, error["loc"][:4])), error["msg"])))
        fact = f"{where}: {printable(what.replace('Value error, ', ''), 300)}"
        raise InvalidInput(fact, "it was damaged, or made by another version of paramsmith") from None
    except InvalidInput as problem:
        raise InvalidInput(problem.fact.replace(place(path), where), problem.hint) from None


def lineage_of(folder: Path) -> Lineage:
    """The lineage that lies in a merged folder; InvalidInput where there is none."""
    if not (folder / NAME).exists():
        what = "holds no merge.json" if folder.is_dir() else "is not a folder of a merge"
        raise InvalidInput(f"{place(folder)}: {what}", "paramsmith merge writes it beside the weights")
    return read_lineage(folder / NAME)


def referred(recipe: Recipe) -> list[tuple[Role, str]]:
    """Everything a recipe names, each once: its base, its models, their statistics, its coefficients."""
    listed = [entry.model for entry in recipe.models]
    listed += [source.model for part in recipe.slices or () for source in part.sources]
    named: tuple[tuple[Role, Sequence[str | None]], ...] = (
        ("base", [recipe.base]),
        ("model", listed),
        ("statistics", [entry.statistics for entry in recipe.models]),
        ("coefficients", [recipe.coefficients]),
    )
    return [(role, text) for role, texts in named for text in dict.fromkeys(texts) if text]


def renamed(recipe: Recipe, names: Mapping[tuple[Role, str], str]) -> Recipe:
    """The recipe with other names for what it is made from."""
    models = tuple(
        e.model_copy(
            update={
                "model": names["model", e.model],
                "statistics": e.statistics and names["statistics", e.statistics],
            }
        )
        for e in recipe.models
    )
    slices = recipe.slices and tuple(
        part.model_copy(
            update={"sources": tuple(s.model_copy(update={"model": names["model", s.model]}) for s in part.sources)}
        )
        for part in recipe.slices
    )
    base = recipe.base and names["base", recipe.base]
    coefficients = recipe.coefficients and names["coefficients", recipe.coefficients]
    return recipe.model_copy(update={"models": models, "base": base, "slices": slices, "coefficients": coefficients})


def plain(recipe: Recipe) -> dict[str, object]:
    """The recipe as data, without what is as ever."""
    return recipe.model_dump(mode="json", exclude_defaults=True)


def paired(recipe: Recipe, lineage: Lineage, where: str) -> list[str]:
    """What a recipe calls each input of the lineage. InvalidInput when it is the recipe of another merge."""
    found = referred(recipe)
    if [role for role, _ in found] == [each.role for each in lineage.inputs]:
        names = {old: each.text for old, each in zip(found, lineage.inputs, strict=True)}
        if plain(renamed(recipe, names)) == lineage.recipe:
            return [text for _, text in found]
    raise InvalidInput(
        f"{where}: is not the recipe that merge.json tells of", "run the merge again, or put the recipe back"
    )


def local_names(texts: Sequence[str]) -> list[str]:
    """A name for each path, its last part, that is not another's.

    >>> local_names(["/models/a", "b/", "other/a"])
    ['a', 'b', 'a-2']
    """
    names: list[str] = []
    for text in texts:
        name = printable(Path(os.path.abspath(text)).name or "model", 200)
        copies = (name, *(f"{name}-{number}" for number in range(2, len(texts) + 2)))
        names.append(next(each for each in copies if each not in names))
    return names


def cached_reference(path: Path) -> Reference | None:
    """What of the Hub a path in its cache is, at which commit; None for any other path."""
    parts = path.absolute().parts
    for at in range(len(parts) - 2):
        repo, kind, commit = parts[at : at + 3]
        if repo.startswith("models--") and kind == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", commit):
            name = repo.removeprefix("models--").replace("--", "/")
            inner = "/".join(parts[at + 3 :])
            return Reference.parse(f"{SCHEME}{name}@{commit}{'/' if inner else ''}{inner}")
    return None


def without_paths(text: str, names: Mapping[str, str]) -> str:
    """A message with names in place of the paths they are for, and of any other path its last part.

    >>> without_paths("runs/a: no; see /srv/me/x.yaml: line 3", {"runs/a": "a"})
    'a: no; see x.yaml: line 3'
    """
    for path in sorted(names, key=len, reverse=True):
        if "/" in path:
            for form in {path, printable(path), place(Path(path)), os.path.abspath(path)}:
                text = text.replace(form, names[path])
    return _PATH.sub(r"\1", text)
