"""YAML from strangers, read into values that know their line: no tags, no bombs, no duplicate keys."""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, DocumentStartEvent, Event, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from paramsmith.errors import InvalidInput, printable

MAX_BYTES = 1_000_000
MAX_DEPTH = 24
MAX_VALUES = 50_000  # counted after aliases are expanded, so that a few lines of anchors cannot become gigabytes

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Located:
    """A YAML value, the line of its key (1-based), and, for a scalar, the text as it was written."""

    value: Scalar | list[Located] | dict[str, Located]
    line: int
    text: str = ""

    def plain(self) -> object:
        """The value as ordinary Python data."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


@dataclass(slots=True)
class Problems:
    """Every mistake found in one document, so that they can be reported together."""

    source: str
    items: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, message: str) -> None:
        """Note one mistake at a line."""
        if (line, message) not in self.items:
            self.items.append((line, message))

    def unknown(self, line: int, what: str, name: str, known: Iterable[str]) -> None:
        """Note a name that is not among the known ones, with the nearest of them."""
        self.add(line, f'unknown {what} "{printable(name)}"{nearest(name, known)}')

    def raise_if_any(self, hint: str = "") -> None:
        """Raise InvalidInput with one line per mistake, in the order of the lines."""
        if self.items:
            lines = (f"{printable(self.source)}:{line}: {message}" for line, message in sorted(self.items))
            raise InvalidInput("\n".join(lines), hint)


def nearest(name: str, known: Iterable[str]) -> str:
    """A question to append to an error: the known name nearest to a misspelt one, or the whole list when short.

    >>> nearest("wieght", ["weight", "density"])
    ' (did you mean "weight"?)'
    >>> nearest("zzz", ["weight", "density"])
    ' (known: density, weight)'
    """
    names = sorted(known)
    found = difflib.get_close_matches(name[:100].lower().replace("-", "_"), names, n=1)
    if found:
        return f' (did you mean "{found[0]}"?)'
    return f" (known: {', '.join(names)})" if 0 < len(names) <= 30 else ""


def read_located(text: str, problems: Problems) -> Located:
    """Parse one YAML document; what cannot be parsed at all raises at once, what can be skipped is noted."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        problems.add(1, f"more than {MAX_BYTES:,} bytes, which no recipe needs")
        problems.raise_if_any()
    node = None
    try:
        _screen(text, problems)
        node = YAML(typ="safe", pure=True).compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add(mark.line + 1 if mark else 1, f"not valid YAML: {printable(error.problem or error.context)}")
    except (YAMLError, ValueError) as error:
        problems.add(1, f"not valid YAML: {printable(str(error).strip().splitlines()[0])}")
    problems.raise_if_any()
    return _Walk(problems).read(node, 0, 1) if node is not None else Located(None, 1)


def _screen(text: str, problems: Problems) -> None:
    """Look at the events, which cost no recursion, before a tree is built: depth, tags, number of documents."""
    depth, documents = 0, 0
    for event in _events(text):
        line = event.start_mark.line + 1 if event.start_mark else 1
        depth += {"+": 1, "-": -1}.get(_sign(event), 0)
        if depth > MAX_DEPTH:
            problems.add(line, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, DocumentStartEvent):
            documents += 1
        if documents > 1:
            problems.add(line, "a second document begins here; a recipe is one document")
        tag = getattr(event, "tag", None)
        if isinstance(event, NodeEvent) and not isinstance(event, AliasEvent) and tag not in (None, "!"):
            problems.add(line, f"tags are not allowed ({printable(tag)})")
        problems.raise_if_any()


def _events(text: str) -> Iterator[Event]:
    yield from YAML(typ="safe", pure=True).parse(io.StringIO(text))


def _sign(event: Event) -> str:
    """`+` for an event that opens a collection, `-` for one that closes it."""
    name = type(event).__name__
    if name in ("MappingStartEvent", "SequenceStartEvent"):
        return "+"
    return "-" if name in ("MappingEndEvent", "SequenceEndEvent") else ""


class _Walk:
    """Nodes to located values; counts what it makes, because an alias makes its whole target again."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.count = 0

    def read(self, node: Node, depth: int, line: int) -> Located:
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            what = "is an alias of itself" if depth > MAX_DEPTH else f"expands to more than {MAX_VALUES:,} values"
            self.problems.add(line, what)
            self.problems.raise_if_any()
        if isinstance(node, MappingNode):
            return Located(self._mapping(node, depth), line)
        if isinstance(node, SequenceNode):
            return Located([self.read(item, depth + 1, item.start_mark.line + 1) for item in node.value], line)
        return Located(self._scalar(str(node.tag), str(node.value), line), line, str(node.value))

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Located]:
        result: dict[str, Located] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                self.problems.add(line, "a key must be a word")
                continue
            if key.value == "<<" and not key.style:
                self.problems.add(line, "merge keys (<<) are not supported; write the keys out")
            elif key.value in result:
                first = result[key.value].line
                self.problems.add(line, f'duplicate key "{printable(key.value)}" (first on line {first})')
            else:
                result[key.value] = self.read(item, depth + 1, line)
        return result

    def _scalar(self, tag: str, text: str, line: int) -> Scalar:
        kind = tag.rpartition(":")[2]
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() in ("true", "yes", "on", "y")
            if kind == "int":
                return _integer(text)
            if kind == "float":
                number = float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
                if not math.isfinite(number):
                    self.problems.add(line, f"{printable(text)} is not a finite number")
                return number
        except ValueError:
            self.problems.add(line, f"{printable(text)} is not a number that can be read")
        return text  # dates and the like stay the text that they are: a model may be called 2024-01-01


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    if digits.lstrip("+-")[:2].lower() in ("0x", "0o", "0b"):
        return int(digits, 0)
    return int(digits, 10)
