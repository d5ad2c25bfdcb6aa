"""Embeddings as factors, word vectors from files, words of tokens, vocabularies that match, and the baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.vocabulary import baselines, wordfile
from paramsmith.hypernet.vocabulary.data import Vocabulary
from paramsmith.hypernet.vocabulary.factorise import factorise
from paramsmith.hypernet.vocabulary.wordfile import read_words
from paramsmith.hypernet.vocabulary.words import Bags, words_of_tokens

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLES = Path(__file__).parent.parent / "oracles"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


# factorise


def signs(found: Tensor, wanted: Tensor) -> Tensor:
    """The sign of each row that makes it the other's."""
    return (found * wanted).sum(1).sign()


@pytest.mark.parametrize("transposed", [False, True])
def test_factors_are_the_oracles_up_to_signs(transposed: bool) -> None:
    oracle = json.loads((ORACLES / "hyperofa_loss_sizes_factorisation.json").read_text())["factorisation"]
    embeddings = torch.tensor(oracle["E"])
    if transposed:  # fewer rows than columns go another way
        u, s, v = torch.linalg.svd(embeddings.mT.double(), full_matrices=False)
        found = factorise([embeddings.mT], oracle["keep"])
        torch.testing.assert_close(found.coordinates @ found.primitives, (u[:, :2] * s[:2] @ v[:2]).float())
        return
    found = factorise([embeddings], oracle["keep"])
    wanted = torch.tensor(oracle["primitives_P"])
    sign = signs(found.primitives, wanted)
    close = {"rtol": 0, "atol": 2e-6}
    torch.testing.assert_close(found.values, torch.tensor(oracle["singular_values"]), **close)
    torch.testing.assert_close(found.primitives * sign[:, None], wanted, **close)
    torch.testing.assert_close(found.coordinates * sign, torch.tensor(oracle["coordinates_F"]), **close)
    left = float((embeddings - found.coordinates @ found.primitives).norm())
    assert left == pytest.approx(oracle["frobenius_error"], rel=1e-6)
    assert bool((found.primitives.gather(1, found.primitives.abs().argmax(1, keepdim=True)) > 0).all())


def test_pieces_and_threads_change_no_bit_of_the_factors() -> None:
    embeddings = drawn(200, 12)
    whole, cut = factorise([embeddings], 5), factorise(embeddings.split(7), 5)
    torch.testing.assert_close(whole.coordinates, cut.coordinates, rtol=1e-5, atol=1e-7)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = factorise(embeddings.split(7), 5)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(cut.coordinates, again.coordinates)
    assert torch.equal(cut.primitives, again.primitives)


def test_two_matrices_share_coordinates_and_count_alike() -> None:
    shared = torch.linalg.qr(drawn(100, 3))[0]
    embedding, head = shared @ drawn(3, 8, seed=1), 1e-4 * shared @ drawn(3, 6, seed=2)
    found = factorise([torch.cat([embedding, head], 1)], 3, (8, 6))
    made = found.coordinates @ found.primitives
    torch.testing.assert_close(made[:, :8], embedding, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[:, 8:], head, rtol=1e-4, atol=1e-9)
    noisy = torch.cat([drawn(100, 8), 1e-4 * drawn(100, 6, seed=3)], 1)
    even = factorise([noisy], 4, (8, 6))
    made = even.coordinates @ even.primitives
    kept = [
        float(((even.coordinates @ even.primitives)[:, s].norm() / noisy[:, s].norm()) ** 2)
        for s in (slice(8), slice(8, 14))
    ]
    assert min(kept) > 0.2  # without weights the small one would be left out


@pytest.mark.parametrize(
    ("embeddings", "rank", "told"),
    [
        (torch.ones(6, 4), 2, "rank 2 asked for, and the embeddings have rank 1 of 4"),
        (torch.zeros(6, 4), 1, "rank 0 of 4"),
        (torch.full((6, 4), float("nan")), 1, "not finite"),
        (torch.ones(0, 4), 1, "none at all"),
        (drawn(6, 4), 0, "rank 0 asked for"),
    ],
)
def test_embeddings_without_that_rank_are_refused(embeddings: Tensor, rank: int, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        factorise([embeddings], rank)


# word vectors


def written(folder: Path, text: str | bytes, name: str = "words.vec") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_text_of_fasttext_is_read(tmp_path: Path) -> None:
    text = "3 2\nthe 0.5 -1\nnew york 1e-3 2 \n\u00a0 3 4\n"
    found = read_words(written(tmp_path, text))
    assert found.words == ("the", "new york", "\u00a0")
    assert found.vectors.tolist() == [[0.5, -1.0], [pytest.approx(1e-3), 2.0], [3.0, 4.0]]
    assert read_words(written(tmp_path, text), most=1).words == ("the",)
    assert read_words(written(tmp_path, text), most=9).words == found.words
    assert found.digest != read_words(written(tmp_path, text), most=1).digest


def test_many_words_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordfile, "_BLOCK", 4)
    for count in (3, 4, 5, 8, 9):
        lines = [f"w{i} {i}\n" for i in range(count)]
        found = read_words(written(tmp_path, f"{count} 1\n" + "".join(lines)))
        assert found.vectors[:, 0].tolist() == list(range(count))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "line 1: '' is no count"),
        (b"the 0.5\n", "line 1: 'the 0.5' is no count"),
        (b"2 2 2\n", "is no count"),
        (b"9" * 5000, "is no count"),
        (b"1 99999\na 1\n", "at most"),
        (b"0 2\n", "0 words"),
        (b"999999999999 1\na 1\n", "999,999,999,999 words"),
        (b"1000000 300\na 1\n", "1,000,000 words of 300 numbers do not fit into 16 bytes"),
        (b"2 2\na 1 2\nb 1\n", "line 3: has 1 numbers, where the first line says 2"),
        (b"2 2\na 1 2\nb 1 x\n", "line 3: what follows the word 'b' are not 2 numbers"),
        (b"2 2\na 1 2\nb 1 nan\n", "line 3: the vector of 'b' is not finite"),
        (b"2 2\na 1 2\nb 1e39 2\n", "line 3: the vector of 'b' is not finite"),
        (b"2 2\na 1 2\na 3 4\n", "line 3: the word 'a' is in line 2 as well"),
        (b"2 2\na 1 2\n 3 4\n", "line 3: there is no word"),
        (b"2 2\na 1 2\n\xff 3 4\n", "line 3: the word is not UTF-8"),
        (b"2 2\na 1 2\n" + b"b" * 5000 + b" 1 2\n", "line 3: is longer than"),
        (b"2 2\na 1 2\n" + b"b" * 1050 + b" 1 2\n", "line 3: the word is longer"),
        (b"3 2\na 1 2\nb 3 4\n", "ends after 2 words, where the first line says 3"),
        (b"1 2\na 1 2\nb 3 4\n", "line 3: there are more words than the 1"),
        (b"2 2\na 1 2\nb\x1b[31m 1 nan\n", r"b\\\\x1b\[31m"),
    ],
)
def test_a_file_of_words_that_lies_is_refused(tmp_path: Path, text: bytes, told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as refusal:
        read_words(written(tmp_path, text))
    assert "\n" not in refusal.value.fact
    assert "words.vec" in refusal.value.fact


@given(st.binary(max_size=200))
def test_any_bytes_are_words_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = written(tmp_path_factory.mktemp("words"), data)
    try:
        found = read_words(path)
    except InvalidInput:
        return
    assert torch.isfinite(found.vectors).all()
    assert len(found.words) == len(found.vectors)


def test_safetensors_with_the_words_beside_them(tmp_path: Path) -> None:
    vectors = drawn(3, 2).half()
    save_file({"any": vectors}, tmp_path / "w.safetensors")
    written(tmp_path, "a\nb c\nd\n", "w.txt")
    found = read_words(tmp_path / "w.safetensors")
    assert found.words == ("a", "b c", "d")
    assert torch.equal(found.vectors, vectors.float())
    (tmp_path / "w.txt").unlink()
    written(tmp_path, json.dumps(["x", "y", "z"]), "w.json")
    assert read_words(tmp_path / "w.safetensors", most=2).words == ("x", "y")


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (None, "are not beside it"),
        ("a\nb\n", "lists 2 words, and there are 3 vectors"),
        ("a\nb\na\n", "'a' is word 1 as well"),
        ("a\n\nb\n", "word 2: there is no word"),
        (b"\xff\n", "no list of words"),
    ],
)
def test_words_beside_safetensors_that_do_not_fit(tmp_path: Path, listed: str | bytes | None, told: str) -> None:
    save_file({"any": drawn(3, 2)}, tmp_path / "w.safetensors")
    if listed is not None:
        written(tmp_path, listed, "w.txt")
    with pytest.raises(InvalidInput, match=told):
        read_words(tmp_path / "w.safetensors")


@pytest.mark.parametrize("tensors", [{"a": torch.zeros(3)}, {"a": torch.zeros(3, 2, dtype=torch.int32)}])
def test_tensors_that_are_no_word_vectors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "w.safetensors")
    written(tmp_path, "a\nb\nc\n", "w.txt")
    with pytest.raises(InvalidInput, match="no table of word vectors"):
        read_words(tmp_path / "w.safetensors")


def test_what_is_not_finite_and_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([[1.0], [float("inf")]])}, tmp_path / "w.safetensors")
    written(tmp_path, "a\nb\n", "w.txt")
    with pytest.raises(InvalidInput, match="vector of word 2 is not finite"):
        read_words(tmp_path / "w.safetensors")
    with pytest.raises(InvalidInput, match=r"\.bin is no file of word vectors"):
        read_words(written(tmp_path, b"\x80\x04", "words.bin"))
    with pytest.raises(InvalidInput, match="does not exist"):
        read_words(tmp_path / "none.vec")
    (tmp_path / "folder.vec").mkdir()
    with pytest.raises(InvalidInput, match="a folder"):
        read_words(tmp_path / "folder.vec")


# words of tokens

LETTERS = {letter: i for i, letter in enumerate(" abcABC")}


def letters(texts: Sequence[str]) -> list[list[int]]:
    return [[LETTERS[letter] for letter in text if letter in LETTERS] for text in texts]


def test_a_token_has_the_words_that_it_occurs_in_also_capitalised() -> None:
    bags = words_of_tokens(letters, ["ab", "b", "cc", "xyz"], 7)
    found = {token: set(bags.members[bags.starts[i] : bags.starts[i + 1]].tolist()) for token, i in LETTERS.items()}
    assert found == {" ": {0, 1, 2, 3}, "a": {0}, "b": {0, 1}, "c": {2}, "A": {0}, "B": {1}, "C": {2}}
    assert bags.sizes.sum() == len(bags.members)


def test_only_the_first_words_stay_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["ab", "b", "abc", "cab", "a", "ca"]
    whole = words_of_tokens(letters, listed, 7, most=2)
    assert whole.padded(torch.tensor([1, 2]))[0].tolist() == [[0, 2], [0, 1]]
    monkeypatch.setattr("paramsmith.hypernet.vocabulary.words._PIECE", 2)
    cut = words_of_tokens(letters, listed, 7, most=2)
    assert torch.equal(whole.members, cut.members)
    assert torch.equal(whole.starts, cut.starts)


def test_no_words_no_bags() -> None:
    assert words_of_tokens(letters, [], 4).sizes.tolist() == [0, 0, 0, 0]
    assert words_of_tokens(letters, ["b"], 2).sizes.tolist() == [1, 0]  # ids that the embedding has no row for


@given(st.lists(st.lists(st.integers(0, 5), unique=True, max_size=4).map(sorted), min_size=1, max_size=6), st.data())
def test_bags_come_back_from_padding_and_selection(held: list[list[int]], data: st.DataObject) -> None:
    bags = Bags.of(held)
    chosen = data.draw(st.lists(st.integers(0, len(held) - 1), max_size=8))
    members, mask = bags.padded(torch.tensor(chosen, dtype=torch.int64))
    assert [m[k].tolist() for m, k in zip(members, mask, strict=True)] == [held[i] for i in chosen]
    some = bags.select(torch.tensor(chosen, dtype=torch.int64))
    assert some.sizes.tolist() == [len(held[i]) for i in chosen]
    assert some.members.tolist() == [word for i in chosen for word in held[i]]
    vectors = drawn(6, 2)
    for row, bag in zip(bags.means(vectors), held, strict=True):
        torch.testing.assert_close(row, vectors[bag].mean(0) if bag else torch.zeros(2))


# baselines


def test_ofas_weights_are_the_oracles() -> None:
    oracle = json.loads((ORACLES / "init_vocab.json").read_text())["ofa"]
    weights, places = baselines.neighbour_weights(
        torch.tensor([oracle["similarities"]], dtype=torch.float64), oracle["k"], oracle["temperature"]
    )
    assert places[0].tolist() == oracle["selected"]
    assert weights[0].tolist() == pytest.approx(oracle["weights"])


def pairs(tokens: int = 60) -> Vocabulary:
    vectors = drawn(tokens, 5)
    bags = Bags.of([[i] for i in range(tokens)])
    return Vocabulary(vectors, bags, vectors @ drawn(5, 3, seed=1) + 2, torch.eye(3))


def test_ridge_finds_what_is_linear_and_ofa_stays_within_its_neighbours() -> None:
    known = pairs()
    asked = drawn(4, 5, seed=2)
    new = Vocabulary(asked, Bags.of([[0], [1], [2], [3]]), torch.zeros(4, 3), torch.eye(3))
    both = Vocabulary(torch.cat([known.vectors, asked]), known.bags, known.targets, known.primitives)
    bags = Bags.of([[60], [61], [62], [63]])
    torch.testing.assert_close(baselines.ridge(both, bags), new.vectors @ drawn(5, 3, seed=1) + 2, rtol=1e-3, atol=1e-3)
    near = baselines.ofa(both, bags)
    assert bool((near >= known.targets.min(0).values).all() & (near <= known.targets.max(0).values).all())
    torch.testing.assert_close(baselines.ofa(both, known.bags, neighbours=1), known.targets)
    torch.testing.assert_close(baselines.mean(both, bags)[2], known.targets.mean(0))


def test_the_penalty_is_the_one_that_leaving_one_out_chooses() -> None:
    x, y = drawn(12, 6).double(), drawn(12, 2, seed=1).double()
    chosen = (1e-3, 0.1, 10.0)
    unit = float(torch.linalg.eigvalsh((x - x.mean(0)).mT @ (x - x.mean(0))).mean())

    def solved(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        even = x - x.mean(0)
        slope = torch.linalg.solve(even.mT @ even + penalty * unit * torch.eye(6), even.mT @ (y - y.mean(0)))
        return slope, y.mean(0) - x.mean(0) @ slope

    def error(penalty: float) -> float:
        total = 0.0
        for i in range(12):
            rest = torch.arange(12) != i
            slope, shift = solved(x[rest], y[rest], penalty)
            total += float(((y[i] - x[i] @ slope - shift) ** 2).sum())
        return total

    best = min(chosen, key=error)
    slope, _ = baselines.ridge_fit(x, y, chosen)
    torch.testing.assert_close(slope, solved(x, y, best)[0])
    assert best != min(chosen, key=lambda p: float(((y - x @ solved(x, y, p)[0] - solved(x, y, p)[1]) ** 2).sum()))


def test_chance_has_the_spread_of_the_rows_and_depends_on_the_seed() -> None:
    known = pairs(2000)
    made = baselines.random(known, Bags.of([[0]] * 2000))
    torch.testing.assert_close(made.mean(0), known.targets.mean(0), rtol=0, atol=0.25)
    torch.testing.assert_close(made.std(0), known.targets.std(0), rtol=0.1, atol=0)
    assert torch.equal(made, baselines.random(known, Bags.of([[0]] * 2000)))
    assert torch.equal(made[:5], baselines.random(known, Bags.of([[0]] * 5)))


def test_every_baseline_has_one_call() -> None:
    known = pairs()
    for name, baseline in baselines.BASELINES.items():
        assert baseline(known, Bags.of([[0], [1, 2]])).shape == (2, 3), name
        assert baseline(known, Bags.of([])).shape == (0, 3), name
