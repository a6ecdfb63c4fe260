"""The shipped world through the nodes: a steered Postcard in the host is the core's own steered Postcard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pack import load_pack, pack_module, run_node

from hypertransport_core.pipeline import HYPERNETWORK_FILE, Pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any, Any]:
    """(model, weights, concept) as the server makes them: in inference mode."""
    nodes = {node.GET_SCHEMA().node_id: node for node in load_pack().nodes.NODES}
    with torch.inference_mode():
        model, *_, encoder = run_node(nodes["HyperTransportPostcard"])
        (weights,) = run_node(nodes["HyperTransportLoad"], file=HYPERNETWORK_FILE)
        words = pack_module("hypertransport_core.encoders.concept").concept_from_text(encoder, "teal mosaic")
    return model, weights, words


def steer(shipped: tuple[Any, Any, Any], strength: float, **options: Any) -> Any:
    node = load_pack().nodes.steer.HyperTransportSteer
    model, weights, words = shipped
    every = {"start_percent": 0.0, "end_percent": 1.0, **options}
    with torch.inference_mode():
        return run_node(node, model=model, weights=weights, concept=words, strength=strength, **every)[0]


def host_picture(pipeline: Pipeline, model: Any, steps: int = 4) -> torch.Tensor:
    """What KSampler with euler, simple, cfg 1 gives, from the core's own noise."""
    import comfy.sample

    noise, context = pipeline.backbone.noise([7]), pipeline.backbone.encode(["a red house"])
    cond = [[context, {}]]
    with torch.inference_mode():
        latent = torch.zeros_like(noise)
        return comfy.sample.sample(model, noise, steps, 1.0, "euler", "simple", cond, cond, latent, disable_pbar=True)


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0, -0.5])
def test_the_nodes_make_the_pictures_of_the_core(pipeline, shipped, strength):
    maps = pipeline.maps(pipeline.embed_text("teal mosaic"))
    picture = pipeline.generate(["a red house"], seeds=[7], maps=maps, strength=strength, steps=4)
    latents = host_picture(pipeline, steer(shipped, strength))
    torch.testing.assert_close(pipeline.backbone.decode(latents), picture, atol=2e-3, rtol=0)
    if strength:
        plain = pipeline.generate(["a red house"], seeds=[7], steps=4)
        assert (picture - plain).abs().mean() > 0.01, "and the concept shows"


def test_live_and_folded_postcards_are_the_same(pipeline, shipped):
    live, folded = (host_picture(pipeline, steer(shipped, 1.0, mode=mode)) for mode in ("live", "folded"))
    torch.testing.assert_close(folded, live, atol=1e-3, rtol=0)
