"""Markdown that shows text from strangers as text: no HTML, no link, no picture and no cell of a table comes of it.

Such text stands in code, inside a line or fenced, where nothing else has a meaning; the fence is longer than any run of
backticks inside.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from paramsmith.errors import printable

# Words of YAML 1.1 that are no strings there, though they are in 1.2.
_OLD_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ._/-]*(?<! )")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})(v\d+)?")


def code(text: object, limit: int = 200) -> str:
    """Text as code inside a line.

    >>> code("a `<script>`")
    '`` a `<script>` ``'
    """
    shown = printable(text, limit).strip() or "-"
    ticks = "`" * (_longest(shown) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """Lines of text as a block of code; what a terminal or a page might act on is escaped."""
    lines = [printable(line, 100_000) for line in text.rstrip("\n").split("\n")]
    fence = "`" * max(3, _longest(text) + 1)
    return "\n".join([fence + language, *lines, fence])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; a bar inside one does not end it, not even in code."""
    lines = [columns, ["---"] * len(columns), *rows]
    safe = [[re.sub(r"(?<!\\)\|", r"\|", cell) for cell in cells] for cells in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in safe)


def prose(text: str) -> str:
    """Words of ours or of a plug-in as words: signs that Markdown or HTML knows are escaped.

    >>> prose("a <b> *c*")
    'a &lt;b&gt; \\\\*c\\\\*'
    """
    plain = printable(text, 500).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|~!@])", r"\\\1", plain).replace("://", "&#58;//").replace("www.", "www&#46;")


def paper_link(paper: str) -> str:
    """A paper as a link, when it is one of arXiv; else in words.

    >>> paper_link("arXiv:2306.01708")
    '[arXiv:2306.01708](https://arxiv.org/abs/2306.01708)'
    """
    found = _ARXIV.fullmatch(paper)
    return f"[{paper}](https://arxiv.org/abs/{found[1]})" if found else prose(paper)


def front_matter(fields: Mapping[str, str | Sequence[str]]) -> str:
    """The head of a card; readers of YAML 1.1 and 1.2 get the same from it."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 2**20
    yaml.allow_unicode = False
    yaml.Representer = _Representer
    yaml.representer.ignore_aliases = lambda *_: True
    stream = io.StringIO()
    yaml.dump({key: v if isinstance(v, str) else list(v) for key, v in fields.items()}, stream)
    return f"---\n{stream.getvalue()}---\n"


class _Representer(SafeRepresenter):
    def represent_str(self, data: str) -> ScalarNode:
        """Quoted, unless any reader takes it for the same string."""
        plain = _PLAIN.fullmatch(data) and data.lower() not in _OLD_WORDS
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')


_Representer.add_representer(str, _Representer.represent_str)


def _longest(text: str) -> int:
    """The longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
