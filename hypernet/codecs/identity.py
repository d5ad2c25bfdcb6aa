"""No codec: latents are the tokens themselves."""

from __future__ import annotations

from torch import Tensor, nn

from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.tokens.layout import Layout
from paramsmith.params import Params
from paramsmith.parts import codecs


class Identity(Params):
    """Options of the codec `identity`: none."""


@codecs("identity", Identity)
class IdentityCodec(nn.Module):
    """latent = tokens, (L, D) = (N, T), at the places of the layout; for any number of classes."""

    def __init__(self, options: Identity, site: Site) -> None:
        super().__init__()

    def places(self, layout: Layout) -> Places:
        """Those of the layout."""
        return layout.places

    def encode(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) as it is."""
        return tokens

    def decode(self, latent: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) as it is."""
        return latent
