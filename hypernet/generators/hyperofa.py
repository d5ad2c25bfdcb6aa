"""HYPEROFA: embedding rows of a new vocabulary, from the vectors of the words that its tokens occur in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.params import Params
from paramsmith.parts import generators

# The paper's is Adam at 1e-4 for hundreds of epochs; a deep set is small enough to go faster.
COURSES: dict[bool, dict[str, object]] = {
    True: {"steps": 3000, "lr": 2e-3, "warmup": 50, "schedule": "cosine"},
    False: {"steps": 20_000, "lr": 1e-4, "optimizer": "adam", "warmup": 200, "schedule": "cosine", "clip": 1.0},
}


class HyperOFA(Params):
    """Options of `hyperofa`."""

    kind: Literal["deepsets", "bilstm", "setformer"] = Field(
        "deepsets", description="how the words of a token are put together; bilstm is the paper's"
    )
    rank: int = Field(100, ge=1, description="coordinates of a row (the paper: 100, 200, 400)")
    hidden: int | None = Field(None, ge=1, description="width inside; 128, of bilstm 800, and 1600 from rank 400 on")
    layers: int = Field(2, ge=1, le=64, description="layers over the words (the paper: 2, for many languages 4)")
    heads: int = Field(4, ge=1, description="attention heads of the setformer")
    dropout: float | None = Field(None, ge=0, lt=1, description="0.4 of bilstm and setformer, else 0.1")
    contrast: float = Field(0.1, ge=0, le=1, description="share of the contrast in the loss")
    temperature: float = Field(0.25, gt=0, description="of the contrast: 0.5 for one language, 0.25 for many")
    batch: int = Field(256, ge=2, description="tokens a step")


@generators("hyperofa", HyperOFA, paper="arXiv:2504.21018")
def hyperofa(options: HyperOFA, site: Site) -> Design:
    """A row of an embedding from the set of word vectors of its token: row = f(set) P.

    P (rank, columns) are the primitives of the source's factorised embeddings, E = F P; f learns the rows of F. The
    word vectors are any that cover both vocabularies. The default f is a deep set, which did as well as the paper's
    bidirectional LSTM at a fraction of its time.

    Paper: HYPEROFA, arXiv:2504.21018.
    """
    if site.spec is None or "set" not in site.condition:
        raise InvalidInput(
            "hyperofa learns from the embeddings of a model and word vectors", "give --like MODEL --words FILE"
        )
    paper = options.kind == "bilstm"
    hidden = options.hidden or (128 if not paper else 1600 if options.rank >= 400 else 800)
    dropout = options.dropout if options.dropout is not None else (0.1 if options.kind == "deepsets" else 0.4)
    encoder = {"kind": options.kind, "hidden": hidden, "layers": options.layers, "dropout": dropout}
    encoder |= {"heads": options.heads} if options.kind == "setformer" else {}
    loss = {"contrast": options.contrast, "temperature": options.temperature, "batch": options.batch}
    return Design(
        width=hidden if options.kind == "deepsets" else 2 * options.rank,
        encoder=Chosen("words", encoder),
        decoder=Chosen("factors", {"rank": options.rank}),
        base=Chosen("zeros"),
        scale=Chosen("none"),
        objective=Chosen("rows", loss),
        course=COURSES[options.kind == "deepsets"],
    )
