"""Cards: what is read of strangers', what licence follows, and what is written, whatever names the inputs have."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file

from paramsmith.card import MAX_CARD, Card, parse_card, read_card
from paramsmith.checkpoint import Checkpoint
from paramsmith.coefficients import Coefficients
from paramsmith.errors import InvalidInput, Refused
from paramsmith.licences import agreed
from paramsmith.lineage import NAME, PICTURE, README, RECIPE
from paramsmith.markdown import code, fenced, front_matter, prose
from paramsmith.merge.describe import check_licences, describe, described_file, ours, write_card
from paramsmith.recipe import load_recipe
from paramsmith.statistics import About
from tests.hub.hubstub import HubStub
from tests.hub.lineages import command, merged, model, models, on_hub, texts

MIT = "---\nlicense: mit\n---\n"
LANGUAGES = ["---\nlanguage: [no, en, de]\npipeline_tag: fill-mask\n---\n", "---\nlanguage:\n- de\n- no\n---\n# x\n"]


def front(files: dict[str, bytes]) -> dict[str, object]:
    """The front matter of a card, as other tools read it."""
    found: dict[str, object] = yaml.safe_load(files[README].decode().split("---\n")[1])
    return found


def body_of(files: dict[str, bytes]) -> str:
    return files[README].decode().split("---\n", 2)[2]


# ---------------------------------------------------------------------------------------- reading a card

HOSTILE = {
    "bomb": "a: &a [x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nlicense: *c",
    "alias of itself": "license: &a [*a]",
    "duplicate": "license: mit\nlicense: apache-2.0",
    "list": "license: [mit, apache-2.0]",
    "mapping": "license: {mit: yes}",
    "number": "license: 1.0",
    "long": f"license: {'m' * 2000}",
    "very long": f"license: {'m' * 900_000}",
    "newline": 'license: "mit\\n---\\ntags: [pwned]"',
    "html": "license: <script>alert(1)</script>",
    "escape": 'license: "\\x1b[31mmit"',
    "tag": "license: !!python/object/apply:os.system [touch PWNED]",
    "not a mapping": "- license\n- mit",
    "a word": "license",
    "deep": "license: " + "[" * 3000,
    "tab": "license:\t\tmit\n\tx: y",
    "flow": "{license: mit, license: gpl}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_states_nothing(name: str) -> None:
    card = parse_card(f"---\n{HOSTILE[name]}\n---\n# Title\n")
    assert card.license is None
    assert card.problem.isprintable()
    assert card.problem, "and it says why"


def test_files_that_are_no_cards(tmp_path: Path) -> None:
    path = tmp_path / README
    assert read_card(path) == Card()
    path.write_bytes(b"---\nlicense: mit\xff\n---\n")
    assert "UTF-8" in read_card(path).problem
    path.write_bytes(b"---\nlicense: mit\n---\n" + b"x" * MAX_CARD)
    assert "1,000,021 bytes" in read_card(path).problem
    path.unlink()
    os.mkfifo(path)
    assert read_card(path).problem
    path.unlink()
    path.symlink_to(tmp_path / "none")
    assert read_card(path).problem


def test_what_cards_state() -> None:
    assert parse_card("# no front matter\nlicense: mit\n") == Card()
    assert parse_card("---\nlicense: mit\n") == Card()
    assert parse_card("---\n---\nlicense: mit\n") == Card()
    assert parse_card("\ufeff---\nlicense: mit\n---\n".lstrip("\ufeff")).license == "mit"
    assert parse_card("---\r\nlicense: MIT\r\n---\r\n").license == "mit"
    assert parse_card("---\nlanguage: no\n---\n").language == ("no",)
    said = parse_card("---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\n---\n")
    assert (said.license, said.license_name, said.license_link) == ("other", "llama3", "LICENSE")


def test_a_long_list_of_results_is_skipped() -> None:
    results = "model-index:\n" + "- name: x\n  value: .nan\n" * 8000
    card = parse_card(f"---\nlicense: mit\n{results}language:\n- en\n- de\npipeline_tag: fill-mask\n---\n")
    assert card == Card("mit", language=("en", "de"), pipeline_tag="fill-mask")


# ---------------------------------------------------------------------------------------------- licences

OTHER = Card("other", "llama3", "LICENSE")


@pytest.mark.parametrize(
    ("cards", "chosen", "keys"),
    [
        ([Card("mit"), Card("mit")], None, {"license": "mit"}),
        ([Card(), Card()], None, {}),
        ([Card("mit"), Card("gpl-3.0")], "GPL-3.0", {"license": "gpl-3.0"}),
        ([Card(), Card("mit")], "mit", {"license": "mit"}),
        ([OTHER, OTHER], None, {"license": "other", "license_name": "llama3", "license_link": "LICENSE"}),
        (
            [Card("mit"), OTHER],
            "other",
            {
                "license": "other",
                "license_name": "licences-of-the-inputs",
                "license_link": "README.md#licences-of-the-inputs",
            },
        ),
    ],
)
def test_the_licence(cards: list[Card], chosen: str | None, keys: dict[str, str]) -> None:
    assert agreed([(str(i), card) for i, card in enumerate(cards)], chosen)[0] == keys


@pytest.mark.parametrize(
    "cards",
    [
        [Card("mit"), Card("apache-2.0")],
        [Card("mit"), Card()],
        [Card("mit"), Card(problem="README.md cannot be read")],
        [OTHER, Card("other", "gemma", "LICENSE")],
        [Card("other"), Card("other")],
    ],
)
def test_a_licence_is_never_guessed(cards: list[Card]) -> None:
    with pytest.raises(InvalidInput, match="do not state one licence") as problem:
        agreed([("one", cards[0]), ("two", cards[1])])
    assert f"one: {cards[0].license or 'none'}" in problem.value.fact
    assert f"two: {cards[1].license or 'none'}" in problem.value.fact
    assert "--license" in problem.value.hint


def test_what_is_no_licence() -> None:
    for said in ("", "mit\nx: y", "<b>", "m" * 99, "a b"):
        with pytest.raises(InvalidInput, match="is no licence"):
            agreed([("one", Card())], said)


def test_a_choice_against_the_inputs_is_said() -> None:
    assert agreed([("one", Card("gpl-3.0"))], "mit")[1] == ("the licence mit was chosen; inputs state gpl-3.0",)


def test_before_the_merge(hub: HubStub, tmp_path: Path) -> None:
    (repo,) = on_hub(hub, tmp_path, [MIT])
    local = model(tmp_path / "local", 1, "---\nlicense: apache-2.0\n---\n")
    with Checkpoint.open(repo) as one, Checkpoint.open(local) as two:
        with pytest.raises(InvalidInput, match=r"alice/base: mit; .*local: apache-2.0"):
            check_licences([one, two])
        check_licences([one, two], "mit")
        check_licences([one, one])
    with Checkpoint.open(local / "model.safetensors") as bare:
        assert "no input states a licence" in check_licences([bare])[0]


# ------------------------------------------------------------------------------------------------ writing


def test_front_matter_means_the_same_to_every_reader() -> None:
    words = ["no", "on", "Y", "1e-3", "1_0", "0x1f", "1:30", "2024-01-01", "~", "null", "=", "<<", "", " a", "a ", "-"]
    words += [
        "a: b",
        "a #b",
        "a\nlicense: gpl\n---\n",
        "\x1b[31m",
        "\u202eabc",
        "é",
        "😀",
        "'",
        '"',
        "*a",
        "&a",
        "!b",
        "%",
    ]
    fields = {"license": "no", "language": words, "tags": ["merge"], "base_model": []}
    text = front_matter(fields)
    assert text.startswith("---\n")
    assert text.endswith("---\n")
    assert text.count("\n---\n") == 1
    assert yaml.safe_load(text[4:-4]) == fields


def test_the_head_of_a_merge(tmp_path: Path) -> None:
    files = describe(merged(tmp_path / "out", models(tmp_path, [*LANGUAGES, LANGUAGES[0]]))).files
    assert front(files) == {
        "library_name": "transformers",
        "tags": ["merge", "paramsmith", "ties"],
        "language": ["no", "de"],
        "pipeline_tag": "fill-mask",
    }
    assert "no input states a licence" in body_of(files)


def test_a_merge_of_the_hub(hub: HubStub, tmp_path: Path) -> None:
    files = describe(merged(tmp_path / "out", on_hub(hub, tmp_path / "local"))).files
    assert front(files) == {
        "base_model": ["alice/base", "alice/first", "alice/second"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "paramsmith", "ties"],
        "license": "mit",
    }
    text = body_of(files)
    head = hub.store.repos[hub.store.key("model", "alice/first")]["branches"]["main"]
    assert f"[`alice/first`](https://huggingface.co/alice/first/tree/{head})" in text
    assert "paramsmith reproduce out" in text
    assert f"model: alice/first@{head}" in text
    assert set(files) == {README, NAME, RECIPE, PICTURE}


def test_no_path_of_this_machine_is_published(tmp_path: Path) -> None:
    home = tmp_path / "someone's home"
    out = merged(home / "out", models(home, [MIT] * 3), parameters={"weight": [0.25, 0.75]})
    write_card(out)
    files = describe(out).files
    assert str(tmp_path) not in texts(files)
    assert "someone" not in texts(files)
    assert files[NAME] == (out / NAME).read_bytes()
    assert "someone" in (out / RECIPE).read_text(), "the one in the folder runs here"
    text = body_of(files)
    assert "| model | `first` |" in text
    assert "`0.25` |" in text
    assert "arxiv.org/abs/2306.01708" in text
    assert "paramsmith reproduce" not in text
    (tmp_path / "r.yaml").write_bytes(files[RECIPE])
    assert [entry.model for entry in load_recipe(tmp_path / "r.yaml").models] == ["first", "second"]
    assert files[RECIPE].startswith(b"# Inputs that are not on the hub")


def test_the_same_card_every_time(tmp_path: Path) -> None:
    out = merged(tmp_path / "out", models(tmp_path, [MIT] * 4))
    assert describe(out).files == describe(out).files


def test_numbers_only_with_a_base(tmp_path: Path) -> None:
    files = describe(merged(tmp_path / "out", models(tmp_path, [MIT] * 2), "linear")).files
    assert PICTURE not in files
    assert "Task vectors" not in body_of(files)
    with_base = describe(merged(tmp_path / "out2", models(tmp_path, [MIT] * 3))).files
    assert f"]({PICTURE})" in body_of(with_base)
    ElementTree.fromstring(with_base[PICTURE])


NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1)) ![y](http%3A evil)",
    "a | b | `c` ```` d",
    "www.evil.example user@evil.example",
    "*bold* _it_ # head\u202e\u200b",
    "\x1b[31mred\n\n<h1>new</h1>",
    "&lt;b&gt; </code></pre><b>",
]


class Page(HTMLParser):
    """The elements of a page, their attributes, and the text outside of code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words = ""
        self._inside = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._inside += tag == "code"

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "code"

    def handle_data(self, data: str) -> None:
        self.words += "" if self._inside else data


HARMLESS = {"h1", "h2", "p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "a", "img", "strong", "em"}


def rendered(text: str) -> Page:
    page = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    assert page.tags <= HARMLESS
    for tag, name, value in page.attributes:
        allowed = {
            "a": name == "href" and str(value).startswith(("https://huggingface.co/", "https://arxiv.org/abs/")),
            "img": name == "alt" or (name == "src" and value == PICTURE),
            "code": name == "class" and str(value).startswith("language-"),
        }
        assert allowed.get(tag, name == "style" and str(value).startswith("text-align")), (tag, name, value)
    assert not re.search(r"://|www\.|@|javascript:", page.words), "what a renderer may make a link of"
    return page


@pytest.mark.parametrize("at", range(len(NASTY)))
def test_nothing_from_an_input_is_more_than_text(at: int, tmp_path: Path) -> None:
    nasty = NASTY[at]
    home = tmp_path / "models"
    given = models(home, [MIT, f'---\nlicense: "{nasty[:20]}"\npipeline_tag: [x]\n---\n{nasty}', MIT])
    name = nasty.replace("/", "-")
    Path(given[1]).rename(home / name)
    weights = load_file(home / name / "model.safetensors")
    dead = weights["model.norm.weight"] * float("nan")
    save_file({**weights, "model.norm.weight": dead, nasty: torch.ones(3)}, home / name / "model.safetensors")
    out = merged(tmp_path / "out", [given[0], str(home / name), given[2]])
    (out / f"x{name}").write_text("added")
    if not f"x{name}".isprintable() or set(f"x{name}") & set("\\:"):
        with pytest.raises(InvalidInput, match="is not the name of a file inside the folder"):
            describe(out, licence="other")
        (out / f"x{name}").unlink()
    files = describe(out, licence="other").files
    page = rendered(body_of(files))
    assert "a" in page.tags
    assert body_of(files).count("\n## ") == len(re.findall(r"^## ", body_of(files), re.MULTILINE))
    assert front(files)["license"] == "other"
    head = files[README].decode()
    assert not [c for c in head if not c.isprintable() and c != "\n"]
    rows = [line for line in head.splitlines() if line.startswith("| model ")]
    plain = [re.sub(r"\\\|", "", line).count("|") for line in rows]
    assert len(set(plain)) == 1, "no cell breaks in two"
    ElementTree.fromstring(files[PICTURE])
    rendered(files[RECIPE].decode().join(["```yaml\n", "\n```\n"]) if "```" not in name else "")


def test_words_of_strangers() -> None:
    for nasty in NASTY:
        rendered(f"# {code(nasty)}\n\n{fenced(nasty)}\n")
        assert Page(MarkdownIt("commonmark", {"html": True}).render(prose(nasty))).tags == {"p"}
    assert fenced("a\n````\nb").splitlines()[0] == "`````"


# ------------------------------------------------------------------------------------------- the command


def test_the_command(tmp_path: Path) -> None:
    out = merged(tmp_path / "out", models(tmp_path, [MIT] * 3))
    done = command("card", out)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert done.stdout == f"{out}: task_vectors.svg, README.md, merge.json\n"
    assert ours(out / README)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert command("card", out, "-q").stdout == ""
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert json.loads(command("card", out, "--json").stdout)["files"] == [PICTURE, README, NAME]


def test_a_card_that_somebody_edited_stays(tmp_path: Path) -> None:
    out = merged(tmp_path / "out", models(tmp_path, [MIT] * 3))
    (out / README).write_text("# mine\n")
    done = command("card", out)
    assert done.exit_code == 3
    assert "--force" in done.stderr
    assert (out / README).read_text() == "# mine\n"
    write_card(out, force=True)
    edited = (out / README).read_text().replace("# `out`", "# My merge")
    (out / README).write_text(edited)
    with pytest.raises(Refused, match="written or edited by somebody"):
        write_card(out)
    assert (out / README).read_text() == edited
    (out / README).unlink()
    (out / README).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused):
        write_card(out)
    write_card(out, force=True)
    assert not (tmp_path / "elsewhere").exists()


def test_a_licence_is_asked_for(tmp_path: Path) -> None:
    out = merged(tmp_path / "out", models(tmp_path, [MIT, "---\nlicense: gpl-3.0\n---\n", None]))
    done = command("card", out)
    assert done.exit_code == 2
    assert "base: mit; first: gpl-3.0; second: none" in done.stderr
    assert not (out / README).exists()
    assert command("card", out, "--license", "other").exit_code == 0
    text = (out / README).read_text()
    assert 'license_link: "README.md#licences-of-the-inputs"' in text
    assert "## Licences of the inputs" in text
    assert "| `first` | `gpl-3.0` |" in text


def test_what_is_no_merge(tmp_path: Path) -> None:
    for wrong in (model(tmp_path / "model", 0), tmp_path / "none"):
        done = command("card", wrong)
        assert done.exit_code == 2
        assert wrong.name in done.stderr


def test_weights_that_are_not_here_are_not_fetched_for_a_picture(hub: HubStub, tmp_path: Path) -> None:
    import shutil

    out = merged(tmp_path / "out", on_hub(hub, tmp_path / "local"))
    shutil.rmtree(tmp_path / "home")
    hub.requests.clear()
    files = describe(out).files
    assert PICTURE not in files
    assert "not on this machine" in body_of(files)
    large = [r for r in hub.requests if r["path"].endswith(".safetensors") and r.get("sent", 0) > 70_000]
    assert not large


# ------------------------------------------------------------------------------- statistics and coefficients


def test_cards_of_files(tmp_path: Path) -> None:
    about = About(kind="fisher", estimator="exact<b>", examples=7, model="0" * 64, data="1" * 64)
    path = tmp_path / "fisher.safetensors"
    save_file({"w": torch.ones(3)}, path, about.metadata())
    text = described_file(path, licence="mit").decode()
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "library_name": "paramsmith",
        "tags": ["paramsmith", "statistics", "fisher"],
        "license": "mit",
    }
    assert "--method fisher --statistics" in text
    rendered(text.split("---\n", 2)[2])
    for name in ("c.json", "c.safetensors"):
        learned = Coefficients(method="linear", models=("a|b",), default=((1.0,),), learned={"<b>": "x`|y"})
        learned.save(tmp_path / name)
        text = described_file(tmp_path / name).decode()
        assert "license" not in text
        assert "--coefficients" in text
        rendered(text.split("---\n", 2)[2])
    with pytest.raises(InvalidInput):
        described_file(model(tmp_path / "model", 0) / "model.safetensors")
