"""The default hypernetwork: an MLP with a narrow bottleneck before one linear head for all sites."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..sites import Site
from .base import Hypernetwork


class MLPHypernetwork(Hypernetwork):
    """LayerNorm -> Linear -> GELU -> residual (Linear -> GELU), `depth` times -> bottleneck -> head of 2 ΣC.

    The head dominates the size: bottleneck * 2 ΣC numbers, 75 M on the norms of SDXL at 128. Several hundred concepts
    do not support a higher rank. An MLP is the paper's default too (HyperTransport, arXiv 2605.08254); the widths are
    ours.

    width, bottleneck: layer widths; depth: residual layers; dropout: on the hidden layers, 0 to below 1, training only.
    """

    kind = "mlp"

    def __init__(self, sites: Sequence[Site], embedding_dim: int, *, steps: int = 1, width: int = 1024,
                 bottleneck: int = 128, depth: int = 1, dropout: float = 0.0,
                 scale: str = "bounded") -> None:
        super().__init__(sites, embedding_dim, steps=steps, scale=scale)
        self.width, self.bottleneck, self.depth, self.dropout = int(width), int(bottleneck), int(depth), float(dropout)
        self.norm = nn.LayerNorm(embedding_dim)
        self.inlet = nn.Linear(embedding_dim, width)
        self.step_offset = nn.Parameter(torch.zeros(steps, width)) if steps > 1 else None
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.narrow = nn.Linear(width, bottleneck)
        self.head = nn.Linear(bottleneck, 2 * self.channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if self.step_offset is not None:
            # About the spread of the inlet's output, so steps differ at once.
            nn.init.normal_(self.step_offset, std=0.5)

    def features(self, embedding: Tensor, step: int) -> Tensor:
        """What the bottleneck reads, (B, width)."""
        hidden = self.inlet(self.norm(embedding))
        if self.step_offset is not None:
            hidden = hidden + self.step_offset[step]
        hidden = self._drop(functional.gelu(hidden))
        for layer in self.layers:
            hidden = hidden + self._drop(functional.gelu(layer(hidden)))
        return hidden

    def raw(self, embedding: Tensor, step: int) -> Tensor:
        """Raw outputs (B, 2 ΣC)."""
        return self.head(self.narrow(self.features(embedding, step)))

    def head_parameters(self) -> list[nn.Parameter]:
        """Weight and bias of the head."""
        return list(self.head.parameters())

    def _drop(self, hidden: Tensor) -> Tensor:
        return functional.dropout(hidden, self.dropout, self.training)
