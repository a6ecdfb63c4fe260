"""A hypernetwork in the manner of Perceiver IO: learned queries, one per piece of a site, attend to the embedding's
tokens."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..sites import Site
from .base import Hypernetwork, HypernetworkError


class PerceiverHypernetwork(Hypernetwork):
    """The embedding becomes `tokens` tokens; every piece of up to `chunk` channels of a site has a learned query for
    them.

    One linear head serves all pieces, so the size hardly grows with the sites: queries are (ΣC / chunk) * width
    numbers. The paper tried such a variant beside its MLP and found no gain (HyperTransport, arXiv 2605.08254); details
    are ours.

    width: width of tokens and queries, a multiple of `heads`; tokens: tokens per embedding; depth: attention layers;
    chunk: channels per query.
    """

    kind = "perceiver"

    def __init__(self, sites: Sequence[Site], embedding_dim: int, *, steps: int = 1, width: int = 256, heads: int = 4,
                 tokens: int = 8, depth: int = 2, chunk: int = 64, scale: str = "bounded") -> None:
        super().__init__(sites, embedding_dim, steps=steps, scale=scale)
        if min(width, heads, tokens, chunk) < 1 or width % heads:
            raise HypernetworkError(f"A Perceiver got the width {width}, {heads} heads, {tokens} tokens and chunks of "
                                    f"{chunk}; all must be at least 1 and the width a multiple of the heads.")
        self.width, self.heads, self.tokens, self.depth, self.chunk = width, heads, tokens, depth, chunk
        self.norm = nn.LayerNorm(embedding_dim)
        self.inlet = nn.Linear(embedding_dim, tokens * width)
        self.token_offset = nn.Parameter(torch.randn(steps, tokens, width) * 0.5)
        where, pieces = _pieces(sites, chunk)
        self.register_buffer("where", where, persistent=False)
        self.queries = nn.Parameter(torch.randn(pieces, width))
        self.layers = nn.ModuleList(_CrossLayer(width, heads) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * chunk)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def raw(self, embedding: Tensor, step: int) -> Tensor:
        """Raw outputs (B, 2 ΣC)."""
        tokens = self.inlet(self.norm(embedding)).unflatten(1, (self.tokens, self.width)) + self.token_offset[step]
        hidden = self.queries.expand(embedding.shape[0], -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, tokens)
        rho, beta = self.head(self.last_norm(hidden)).split(self.chunk, dim=-1)
        return torch.cat([part.flatten(1)[:, self.where] for part in (rho, beta)], dim=1)

    def head_parameters(self) -> list[nn.Parameter]:
        """Weight and bias of the head that all pieces share."""
        return list(self.head.parameters())


class _CrossLayer(nn.Module):
    """Queries (B, Q, W) attend to tokens (B, T, W); then an MLP; both residual, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.token_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        q = self.to_q(self.query_norm(hidden))
        k, v = self.to_kv(self.token_norm(tokens)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        hidden = hidden + self.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.mlp_norm(hidden))


def _pieces(sites: Sequence[Site], chunk: int) -> tuple[Tensor, int]:
    """(index of every channel among the flattened pieces (ΣC,), number of pieces); a site's last piece may have room
    left."""
    where, pieces = [], 0
    for site in sites:
        where.append(torch.arange(site.channels) + pieces * chunk)
        pieces += -(-site.channels // chunk)
    return torch.cat(where), pieces
