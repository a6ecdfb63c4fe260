"""The postcard preset with small random weights: the whole command."""

from __future__ import annotations

import json

import pytest
import torch

from hypertransport_core.postcard import unet
from hypertransport_core.postcard.captions import vocabulary
from hypertransport_core.postcard.clip import PostcardCLIP
from hypertransport_core.postcard.concepts import concepts
from hypertransport_core.postcard.train_generator import save_model
from hypertransport_core.training import cli
from hypertransport_core.weights_io import load_hypernetwork


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    PostcardCLIP(list(vocabulary())).save(folder / "clip.safetensors")
    config = unet.UNetConfig(model_channels=32)
    network = unet.PostcardUNet(config)
    save_model(
        folder / "model.safetensors",
        {name: value + 0.02 * torch.randn_like(value) for name, value in network.state_dict().items()},
        config,
        {},
    )
    return folder


def test_from_concepts_to_a_weights_file(tmp_path, weights):
    chosen = [{"name": c.name, "category": c.category, "phrases": list(c.phrases)} for c in concepts()[::24]]
    (tmp_path / "concepts.json").write_text(json.dumps(chosen))
    small = [
        "--prompts-per-concept",
        "4",
        "--blocks",
        "4",
        "--samples-per-concept",
        "4",
        "--concepts-per-step",
        "2",
        "--images-per-concept",
        "2",
        "--steps",
        "2",
        "--sampling-steps",
        "2",
        "--width",
        "32",
        "--strip-concepts",
        "1",
        "--tensorboard",
        "false",
        "--paired-weight",
        "1",
        "--device",
        "cpu",
    ]
    assert (
        cli.main(
            [
                "--preset",
                "postcard",
                "--output",
                str(tmp_path / "run"),
                "--weights",
                str(weights / "model.safetensors"),
                "--encoder-weights",
                str(weights / "clip.safetensors"),
                "--concepts",
                str(tmp_path / "concepts.json"),
                *small,
            ]
        )
        == 0
    )
    loaded = load_hypernetwork(tmp_path / "run/hypernetwork.safetensors")
    assert loaded.header["backbone"]["family"] == "postcard" and loaded.hypernetwork.embedding_dim == 128
    assert list((tmp_path / "run/strips").glob("*.png"))


def test_missing_weights_are_one_sentence(tmp_path, capsys):
    assert (
        cli.main(
            [
                "--output",
                str(tmp_path / "run"),
                "--weights",
                "none.safetensors",
                "--encoder-weights",
                "none.safetensors",
            ]
        )
        == 1
    )
    assert "encoder_weights is 'none.safetensors', expected a file" in capsys.readouterr().err
