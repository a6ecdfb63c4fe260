"""The image-prompt adapter: off is off exactly, what it adds is the paper's second attention, nothing outlives a call,
and a file gives it back or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypertransport_core.encoders.base import ConceptEmbedding, centre
from hypertransport_core.files import FileError, check_fits, load_file, save_file
from hypertransport_core.fitting.image_adapter import ImageAdapter, load_image_adapter
from hypertransport_core.postcard.unet import PostcardUNet, UNetConfig
from hypertransport_core.sites import SiteError

WIDTH = 128
MEANS = {"image": torch.linspace(-0.1, 0.1, WIDTH), "image_map": torch.eye(WIDTH) + 0.01}


@pytest.fixture()
def network() -> PostcardUNet:
    torch.manual_seed(3)
    network = PostcardUNet(UNetConfig(model_channels=32)).eval().requires_grad_(False)
    for parameter in network.parameters():  # fresh ones end in zeros, which would hide everything
        if not bool(parameter.any()):
            parameter.normal_(std=0.05)
    return network


def learned(network: nn.Module, tokens: int = 4) -> ImageAdapter:
    """An adapter whose values are not zero any more."""
    torch.manual_seed(4)
    adapter = ImageAdapter.beside(network, WIDTH, tokens).requires_grad_(False)
    for layer in adapter.values:
        layer.weight.normal_()
    return adapter


def called(network: PostcardUNet) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x, context = torch.randn(2, 48, 16, 16, generator=generator), torch.randn(2, 6, 192, generator=generator)
    with torch.no_grad():
        return network(x, torch.full((2,), 700.0), context)


def pictures(count: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(6)), dim=-1)


def test_untrained_and_at_strength_0_it_changes_no_bit(network: PostcardUNet) -> None:
    plain = called(network)
    with ImageAdapter.beside(network, WIDTH).installed(network, pictures(1)):
        assert torch.equal(called(network), plain)
    adapter = learned(network)
    with adapter.installed(network, pictures(1), 0.0):
        assert torch.equal(called(network), plain)
        assert not any("forward" in module.__dict__ for module in network.modules())
    with adapter.installed(network, pictures(1), 1e-3):
        assert not torch.equal(called(network), plain)


def test_nothing_outlives_the_block_nor_an_exception(network: PostcardUNet) -> None:
    before, plain = {name: value.clone() for name, value in network.state_dict().items()}, called(network)
    adapter = learned(network)
    with pytest.raises(ZeroDivisionError), adapter.installed(network, pictures(1)):
        called(network)
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(called(network), plain)
    lacking = PostcardUNet(UNetConfig(model_channels=32, transformer_depth_middle=-1))
    with pytest.raises(SiteError), adapter.installed(lacking, pictures(1)):
        pass
    assert not any("forward" in module.__dict__ for module in lacking.modules())


def test_it_adds_a_second_attention_before_the_output_projection(network: PostcardUNet) -> None:
    adapter, embeddings, x, context = learned(network), pictures(2), torch.randn(2, 9, 64), torch.randn(2, 5, 192)
    place = next(i for i, site in enumerate(adapter.sites) if site.path.startswith("middle_block"))
    layer = network.get_submodule(adapter.sites[place].path.removesuffix(".to_out"))

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    def attended(keys: Tensor, values: Tensor) -> Tensor:
        found = nn.functional.scaled_dot_product_attention(heads(layer.to_q(x)), heads(keys), heads(values))
        return found.transpose(1, 2).flatten(2)

    tokens = adapter.tokens(embeddings)
    assert tokens.shape == (2, 4, 192)
    text = attended(layer.to_k(context), layer.to_v(context))
    shown = attended(adapter.keys[place](tokens), adapter.values[place](tokens))
    for strength in (1.0, 0.25, -1.0):
        with adapter.installed(network, embeddings, strength):
            torch.testing.assert_close(layer(x, context), layer.to_out[0](text + strength * shown))


def test_every_row_sees_its_own_picture_and_one_picture_serves_all(network: PostcardUNet) -> None:
    adapter, embeddings = learned(network), pictures(2)
    alone = []
    for row in embeddings:
        with adapter.installed(network, row[None]):
            alone.append(called(network))
    with adapter.installed(network, embeddings):
        together = called(network)
    torch.testing.assert_close(together, torch.stack([alone[0][0], alone[1][1]]), atol=1e-5, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_keys_start_as_the_text_s_and_gradients_reach_all_weights(network: PostcardUNet) -> None:
    adapter = ImageAdapter.beside(network, WIDTH)
    assert len(adapter.sites) == sum(name.endswith("attn2") for name, _ in network.named_modules())
    for key, site in zip(adapter.keys, adapter.sites):
        assert torch.equal(key.weight, network.get_submodule(site.path.removesuffix("to_out") + "to_k").weight)
    for layer in adapter.values:
        nn.init.normal_(layer.weight)
    with adapter.installed(network, pictures(2)):
        network(torch.randn(2, 48, 16, 16), torch.full((2,), 500.0), torch.randn(2, 3, 192)).sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in adapter.parameters())
    with pytest.raises(SiteError, match="has no sites"):
        without = UNetConfig(model_channels=32, transformer_depth=0, transformer_depth_middle=0)
        ImageAdapter.beside(PostcardUNet(without), WIDTH)


@pytest.fixture()
def file(network: PostcardUNet, tmp_path: Path) -> Path:
    learned(network, tokens=3).save(
        tmp_path / "adapter.safetensors", family="postcard", fingerprint={}, encoder_id="one", means=MEANS,
        training={"steps": 7},
    )
    return tmp_path / "adapter.safetensors"


def test_it_is_the_same_from_a_file_which_knows_how_to_centre(network: PostcardUNet, file: Path) -> None:
    before, again = learned(network, tokens=3), load_image_adapter(file)
    assert again.header["training"] == {"steps": 7} and again.adapter.sites == before.sites
    assert not again.adapter.training
    for name, value in before.state_dict().items():
        assert torch.equal(again.adapter.state_dict()[name], value.half().float()), name
    picture = ConceptEmbedding(pictures(1)[0], "one", "image", "a picture")
    prompt = again.prompt(picture)
    torch.testing.assert_close(prompt.embeddings, centre(picture, MEANS).vector[None], atol=1e-6, rtol=0)
    assert not torch.allclose(prompt.embeddings[0], picture.vector)
    with prompt.installed(network, 0.5), torch.no_grad():
        shown = called(network)
    with again.adapter.installed(network, prompt.embeddings, 0.5):
        assert torch.equal(called(network), shown)


def test_a_file_for_something_else_is_refused_in_one_sentence(network: PostcardUNet, file: Path) -> None:
    header = load_image_adapter(file).header
    assert check_fits(header, file, network=network, family="postcard", encoder_id="one", encoder_width=WIDTH) == []
    other = PostcardUNet(UNetConfig(model_channels=64))
    for options in ({"encoder_id": "two"}, {"encoder_width": 64}, {"family": "sdxl"}, {"network": other}):
        with pytest.raises(FileError, match=r"adapter\.safetensors"):
            check_fits(header, file, **options)


def test_hostile_files_are_one_sentence(file: Path) -> None:
    tensors, header = load_file(file)
    config = header["config"]
    cases = {
        "lacks its configuration": (tensors, {key: value for key, value in header.items() if key != "config"}),
        "or the mean of pictures": ({k: v for k, v in tensors.items() if k != "mean.image"}, header),
        "means of the shapes": (tensors | {"mean.image": torch.zeros(7)}, header),
        "claims": (tensors, header | {"config": config | {"tokens": 10**9}}),
        "cannot be built": (tensors, header | {"config": config | {"heads": [3] * len(config["heads"])}}),
        "with the shape": (tensors, header | {"config": config | {"tokens": 2}}),
        "lacks the tensor": ({k: v for k, v in tensors.items() if k != "network.norm.weight"}, header),
    }
    for words, (held, about) in cases.items():
        save_file(file, held, "image_adapter", about)
        with pytest.raises(FileError, match=words) as refused:
            load_image_adapter(file)
        assert "\n" not in str(refused.value)
    save_file(file, tensors, "low_rank", header)
    with pytest.raises(FileError, match="expected 'image_adapter'"):
        load_image_adapter(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(FileError):
        load_image_adapter(file)
