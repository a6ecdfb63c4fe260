"""A decoupled image-prompt adapter: IP-Adapter (Ye et al., arXiv 2308.06721), what one would use instead to show a
picture to a frozen text-to-image network.

A linear layer and a LayerNorm make a few tokens of a picture's embedding; beside every attention to the text stands a
second one to these tokens, with keys and values of its own and the queries of the first, and what it says is added
before the output projection, times a strength (the paper's section 3.2.2). Values start at zero, so that a fresh
adapter changes nothing.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.base import ConceptEmbedding, centre
from ..files import AGAIN, FileError, load_file, save_file, sites_from_header, sites_to_header
from ..network_state import built
from ..sites import Site, find_sites, site_module
from ..steering import shadowed

KIND = "image_adapter"
TOKENS = 4  # as its authors
_END = ".to_out"


class ImageAdapter(nn.Module):
    """The second attention of every layer that attends to the text.

    sites: the output projections of these layers, in order; heads: of each; embedding_dim: E of a picture's embedding;
    context_dim: D of a text token, which picture tokens share; tokens: made of one picture. Raises ValueError where
    these do not fit together.
    """

    def __init__(self, sites: Sequence[Site], heads: Sequence[int], embedding_dim: int, context_dim: int,
                 tokens: int = TOKENS) -> None:
        super().__init__()
        if len(heads) != len(sites) or any(site.channels % count for site, count in zip(sites, heads)):
            raise ValueError(f"heads are {list(heads)}, expected one number per layer that divides its channels "
                             f"{[site.channels for site in sites]}: use those of the network")
        self.sites, self.heads = tuple(sites), tuple(heads)
        self.embedding_dim, self.context_dim, self.count = embedding_dim, context_dim, tokens
        self.project = nn.Linear(embedding_dim, tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)
        self.keys, self.values = (
            nn.ModuleList(nn.Linear(context_dim, site.channels, bias=False) for site in self.sites) for _ in range(2)
        )
        for parameter in self.values.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def beside(cls, network: nn.Module, embedding_dim: int, tokens: int = TOKENS) -> ImageAdapter:
        """A fresh adapter for a UNet; its keys start as the text's, as its authors start them. Raises SiteError for a
        network without attention to a text, or of another layout."""
        sites = find_sites(network, "attention_mlp", pattern=r"\.attn2\.to_out$")
        layers: list[Any] = [site_module(network, site.path.removesuffix(_END)) for site in sites]
        context = int(layers[0].to_k.in_features)
        adapter = cls(sites, [int(layer.heads) for layer in layers], embedding_dim, context, tokens)
        with torch.no_grad():
            for key, layer in zip(adapter.keys, layers):
                key.load_state_dict(layer.to_k.state_dict())
        return adapter

    def tokens(self, embeddings: Tensor) -> Tensor:
        """Centred embeddings (B, E) -> picture tokens (B, tokens, D)."""
        return self.norm(self.project(embeddings).unflatten(-1, (self.count, self.context_dim)))

    @contextmanager
    def installed(self, network: nn.Module, embeddings: Tensor, strength: float = 1.0) -> Iterator[None]:
        """Inside the block every attention to the text also attends to the pictures; afterwards all is as it was.

        embeddings: centred, (1, E) for all rows of a batch or (B, E); gradients flow. strength: 1 as trained, 0
        installs nothing. Raises SiteError where the network lacks a layer.
        """
        makers: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Tensor]]] = {}
        if strength != 0:
            tokens = self.tokens(embeddings)
            for site, heads, key, value in zip(self.sites, self.heads, self.keys, self.values):
                beside = _Beside(key(tokens), value(tokens), heads, strength)
                makers[site.path.removesuffix(_END) + ".to_q"] = beside.asking
                makers[site.path] = beside.adding
        with shadowed(network, makers):
            yield

    def save(self, path: str | Path, *, family: str, fingerprint: Mapping[str, Any], encoder_id: str,
             means: Mapping[str, Tensor], training: Mapping[str, Any] | None = None) -> None:
        """Write fp16 weights, whole or not at all. family, fingerprint: of the backbone; encoder_id, means: what
        `encoders.base.centred` needs for a new picture; training: JSON-able summary. Raises FileError."""
        tensors = {f"network.{name}": value.half() for name, value in self.state_dict().items()}
        tensors |= {f"mean.{name}": value.float() for name, value in means.items()}
        header = {
            "backbone": {"family": family, "fingerprint": dict(fingerprint)},
            "sites": sites_to_header(self.sites),
            "config": {"heads": list(self.heads), "embedding_dim": self.embedding_dim, "context_dim": self.context_dim,
                       "tokens": self.count},
            "encoder": {"id": encoder_id, "width": self.embedding_dim},
            "training": dict(training or {}),
        }
        save_file(path, tensors, KIND, header)


@dataclass(frozen=True)
class ImagePrompt:
    """An adapter and the picture shown to it: centred embeddings (1, E) or (B, E)."""

    adapter: ImageAdapter
    embeddings: Tensor

    def installed(self, network: nn.Module, strength: float = 1.0) -> AbstractContextManager[None]:
        """See `ImageAdapter.installed`."""
        return self.adapter.installed(network, self.embeddings, strength)


@dataclass(frozen=True)
class ImageAdapterFile:
    """A loaded adapter with what its file says: means as `encoders.base.centred` takes them; header; path, for
    messages."""

    adapter: ImageAdapter
    means: dict[str, Tensor]
    header: dict[str, Any]
    path: Path

    def prompt(self, picture: ConceptEmbedding) -> ImagePrompt:
        """What a picture's embedding does to the network. Raises EncoderError for one of another width."""
        return ImagePrompt(self.adapter, centre(picture.single(), self.means).vector[None])


def load_image_adapter(path: str | Path) -> ImageAdapterFile:
    """Read what `ImageAdapter.save` wrote: float32, evaluation mode, on the CPU. Raises FileError for anything else;
    whether it fits a backbone and an encoder `files.check_fits` says."""
    path = Path(path)
    tensors, header = load_file(path, KIND)
    weights, means = (
        {name.removeprefix(part): value.float() for name, value in tensors.items() if name.startswith(part)}
        for part in ("network.", "mean.")
    )
    config = header.get("config")
    if not isinstance(config, dict) or not isinstance(header.get("encoder"), dict) or "image" not in means:
        raise FileError(f"{path} lacks its configuration, its encoder or the mean of pictures, expected all three: "
                        f"{AGAIN}")
    sites = sites_from_header(header, path)
    adapter = built(lambda: ImageAdapter(sites, **config), config, weights, path)
    width = adapter.embedding_dim
    shapes = {name: tuple(mean.shape) for name, mean in means.items()}
    if any(shape != ((width, width) if name.endswith("_map") else (width,)) for name, shape in shapes.items()):
        raise FileError(f"{path} holds means of the shapes {shapes}, expected the width {width} of its adapter: "
                        f"{AGAIN}")
    return ImageAdapterFile(adapter.requires_grad_(False).train(False), means, header, path)


class _Beside:
    """One layer's second attention: it notes the queries of the first and adds what it has to say to the first's
    answer. Makers for `shadowed`; computes in the dtype of the queries."""

    def __init__(self, keys: Tensor, values: Tensor, heads: int, strength: float) -> None:
        self.heads, self.strength = heads, strength
        self.keys, self.values = self._split(keys), self._split(values)
        self.queries: Tensor | None = None

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def asking(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Around the layer's `to_q`."""

        def asked(x: Tensor) -> Tensor:
            self.queries = forward(x)
            return self.queries

        return asked

    def adding(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Around the layer's `to_out`."""

        def added(x: Tensor) -> Tensor:
            assert self.queries is not None  # to_q runs before to_out
            queries, self.queries = self._split(self.queries), None
            keys, values = (part.to(queries.device, queries.dtype) for part in (self.keys, self.values))
            weights = torch.softmax((queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2), dim=-1)
            answer = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
            return forward(x + self.strength * answer.to(x.dtype))

        return added
