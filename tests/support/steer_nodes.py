"""What tests of the Steer nodes share: a random hypernetwork through its file, concepts for it, and the node as the host calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pack import load_pack, pack_module, run_node

ENCODER = "test-encoder"
WIDTH = 6


def make_weights(tiny: Any, path: Path, steps: int = 1, site_set: str = "all") -> Any:
    """A hypernetwork for a small model with random weights, through its file."""
    files, io = pack_module("hypertransport_core.files"), pack_module("hypertransport_core.weights_io")
    hypernetworks = pack_module("hypertransport_core.hypernetworks")
    sites = tiny.sites(site_set)
    network = hypernetworks.build_hypernetwork({"kind": "mlp", "sites": sites, "embedding_dim": WIDTH, "steps": steps})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    io.save_hypernetwork(
        path,
        network,
        family=tiny.name,
        fingerprint=files.network_fingerprint(tiny.network, sites),
        encoder_id=ENCODER,
        strength_range=(0.0, 1.5),
    )
    return io.load_hypernetwork(path)


def concept(*seeds: int, encoder: str = ENCODER, source: str = "teal") -> Any:
    base = pack_module("hypertransport_core.encoders.base")
    vectors = torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return base.ConceptEmbedding(vectors[0] if len(seeds) == 1 else vectors, encoder, "text", source)


def node(name: str) -> Any:
    return next(n for n in load_pack().nodes.NODES if n.GET_SCHEMA().node_id == name)


def steer(unet: Any, weights: Any, concept: Any, strength: float = 1.0, **options: Any) -> Any:
    defaults = {"start_percent": 0.0, "end_percent": 1.0}
    return run_node(
        node("HyperTransportSteer"),
        model=unet.model,
        weights=weights,
        concept=concept,
        strength=strength,
        **{**defaults, **options},
    )[0]


def one_sentence(message: str) -> bool:
    return "\n" not in message and ". " not in message.replace(".safetensors", "")
