"""An untrained Postcard world in a folder: the real file layout with small random networks, for tests of commands and
pipeline."""

from __future__ import annotations

from pathlib import Path

import torch

from hypertransport_core.encoders.postcard_clip import PostcardClipEncoder
from hypertransport_core.files import network_fingerprint, save_file
from hypertransport_core.hypernetworks import MLPHypernetwork
from hypertransport_core.pipeline import CLIP_FILE, HYPERNETWORK_FILE, JUDGE_FILE, MODEL_FILE
from hypertransport_core.postcard.captions import vocabulary
from hypertransport_core.postcard.clip import PostcardCLIP
from hypertransport_core.postcard.judge import Judge
from hypertransport_core.postcard.model import KIND, PostcardBackbone
from hypertransport_core.postcard.unet import PostcardUNet, UNetConfig
from hypertransport_core.weights_io import save_hypernetwork


def write_world(folder: Path, *, steps: int = 1, effect: float = 0.1) -> Path:
    """Write all weights files of a small world. steps: sets of maps of its hypernetwork; effect: size of its maps, 0 =
    identity."""
    torch.manual_seed(11)
    clip = PostcardCLIP(vocabulary())
    network = PostcardUNet(UNetConfig(model_channels=32, channel_mult=(1, 2)))
    with torch.no_grad():
        for parameter in network.parameters():  # fresh ones end in zeros, which would paint nothing
            if parameter.ndim >= 2 and not bool(parameter.any()):
                parameter.normal_(std=0.05)
    clip.save(folder / CLIP_FILE)
    save_file(folder / MODEL_FILE, network.state_dict(), KIND, {"config": network.config.to_dict()})
    Judge((8, 8, 8, 8)).eval().save(folder / JUDGE_FILE, {"training": {"steps": 0}})
    write_hypernetwork(
        folder / HYPERNETWORK_FILE,
        PostcardBackbone(network, clip),
        PostcardClipEncoder(clip),
        steps=steps,
        effect=effect,
    )
    return folder


def write_hypernetwork(
    path: Path, backbone: PostcardBackbone, encoder: PostcardClipEncoder, *, steps: int = 1, effect: float = 0.1
) -> None:
    """Write a hypernetwork with random maps for a backbone and encoder."""
    sites = backbone.sites("attention_mlp")
    hypernetwork = MLPHypernetwork(sites, encoder.width, steps=steps, width=32, bottleneck=8)
    torch.nn.init.normal_(hypernetwork.head.weight, std=effect)
    means = {"text": torch.full((encoder.width,), 0.01), "image": torch.full((encoder.width,), -0.01)}
    save_hypernetwork(
        path,
        hypernetwork,
        family=backbone.family,
        fingerprint=network_fingerprint(backbone.network, sites),
        encoder_id=encoder.encoder_id,
        means=means,
    )
