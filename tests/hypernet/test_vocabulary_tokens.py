"""Tokenizers: what their tokens mean, which token of one is which of another, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.vocabulary.tokens import Match, Tokenizer, matched
from tests.hypernet.new_vocabulary import byte_level, save_tokenizer, target, word_piece


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Tokenizer, Tokenizer]:
    source = save_tokenizer(
        word_piece(), tmp_path / "a", pad="[PAD]", cls="[CLS]", sep="[SEP]", unk="[UNK]", mask="[MASK]"
    )
    return Tokenizer.open(source), Tokenizer.open(target(tmp_path / "b"))


def named(pair: tuple[Tokenizer, Tokenizer], how: Match) -> dict[str, str]:
    source, new = pair
    tokens = [{i: token for token, i in each.ids.items()} for each in (source, new)]
    return {tokens[1][i]: tokens[0][j] for i, j in matched(source, new, how).items()}


def test_tokens_mean_their_text_and_whether_they_begin_a_word(pair: tuple[Tokenizer, Tokenizer]) -> None:
    source, new = pair
    assert source.meanings[source.ids["##ing"]] == (b"ing", False)
    assert source.meanings[source.ids["the"]] == (b"the", True)
    assert new.meanings[new.ids["\u0120the"]] == (b"the", True)
    assert new.meanings[new.ids["ing"]] == (b"ing", False)
    assert new.meanings[new.ids["\u0120"]] == (b"", True)
    assert new.meanings[new.ids["\u00c3"]] == (b"\xc3", False)  # half of a letter
    assert not source.special & source.meanings.keys()


def test_marks_are_read_and_not_compared(pair: tuple[Tokenizer, Tokenizer]) -> None:
    found = named(pair, "marks")
    assert found["\u0120the"] == "the"
    assert found["\u0120cat"] == "cat"
    assert found["ing"] == "##ing"
    assert found["a"] == "##a"
    assert found[","] == ","  # punctuation is the same wherever it stands
    assert "the" not in found  # inside a word, which the source has no token for
    assert "P" not in found


def test_exact_compares_strings(pair: tuple[Tokenizer, Tokenizer]) -> None:
    found = named(pair, "exact")
    assert found["the"] == "the"
    assert found["a"] == "a"
    assert "\u0120the" not in found
    assert "ing" not in found


def test_loose_forgets_case_and_place_but_prefers_the_same(pair: tuple[Tokenizer, Tokenizer]) -> None:
    found = named(pair, "loose")
    assert found["the"] == "the"
    assert found["A"] == "a"
    assert found["a"] == "##a"
    assert "\u0120c" in found
    assert named(pair, "marks").items() <= found.items()


@pytest.mark.parametrize("how", ["exact", "marks", "loose"])
def test_special_tokens_go_by_their_role(pair: tuple[Tokenizer, Tokenizer], how: Match) -> None:
    found = named(pair, how)
    assert {new: found[new] for new in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")} == {
        "<s>": "[CLS]",
        "<pad>": "[PAD]",
        "</s>": "[SEP]",
        "<unk>": "[UNK]",
        "<mask>": "[MASK]",
    }


def test_a_vocabulary_matches_itself(tmp_path: Path) -> None:
    for made in (word_piece(), byte_level()):
        one = Tokenizer.open(save_tokenizer(made, tmp_path / "t"))
        for how in ("exact", "marks"):
            found = matched(one, one, how)
            assert all(new == old for new, old in found.items())
            assert len(found) == len(one.ids)


def test_the_mark_of_sentence_pieces(tmp_path: Path) -> None:
    pieces = [
        ("<unk>", 0.0),
        ("\u2581the", -1.0),
        ("the", -2.0),
        ("<0x41>", -3.0),
        ("\u2581", -4.0),
        ("\u2581\u2581a", -5.0),
    ]
    made = Fast(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    one = Tokenizer.open(save_tokenizer(made, tmp_path / "t"))
    told = {token: one.meanings.get(i) for token, i in one.ids.items()}
    assert told["\u2581the"] == (b"the", True)
    assert told["the"] == (b"the", False)
    assert told["<0x41>"] == (b"A", False)
    assert told["\u2581\u2581a"] == (b" a", True)


def test_texts_are_split_without_special_tokens(pair: tuple[Tokenizer, Tokenizer]) -> None:
    source, new = pair
    assert source.split(["the cats", ""]) == [[source.ids[t] for t in ("the", "cat", "##s")], []]
    assert new.split([" the"]) == [[new.ids["\u0120the"]]]
    assert source.split(["[MASK] \u4e2d"]) == [[]]  # a special token, and one that is not known


def test_a_file_alone_is_a_tokenizer(tmp_path: Path) -> None:
    folder = target(tmp_path / "b")
    alone, whole = Tokenizer.open(folder / "tokenizer.json"), Tokenizer.open(folder)
    assert alone.folder is None
    assert alone.digest == whole.digest
    assert alone.roles == whole.roles
    assert whole.size == len(whole.ids)
    assert list(whole.ids.values()) == list(range(whole.size))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no tokenizer.json"),
        (b"{}", "is no tokenizer"),
        (b"\xff\xfe", "is no tokenizer"),
        (b"[[[[", "is no tokenizer"),
        (b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}', "has no tokens"),
        (b'{"version":"1.0","model":{"type":"WordLevel","unk_token":"a","vocab":{"a":4000000000}}}', "too large"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, text: bytes | None, told: str) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_bytes(text)
    with pytest.raises(InvalidInput, match=told):
        Tokenizer.open(tmp_path)


def test_roles_are_read_from_either_file_and_form(tmp_path: Path) -> None:
    folder = save_tokenizer(byte_level(), tmp_path / "t")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "none"}))
    assert Tokenizer.open(folder).roles == {"bos": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}, "bos_token": None}))
    assert Tokenizer.open(folder).roles == {"bos": 0, "pad": 1}
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InvalidInput, match=r"tokenizer_config\.json"):
        Tokenizer.open(folder)
