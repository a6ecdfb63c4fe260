"""The Postcard UNet: layout, shapes, fresh behaviour, and that every site is called."""
from __future__ import annotations

import json

import pytest
import torch

from hypertransport_core.postcard.unet import PostcardUNet, UNetConfig, timestep_embedding
from hypertransport_core.sites import find_sites

SMALL = UNetConfig(model_channels=32, context_dim=24, num_head_channels=16)


def inputs(rows: int = 2, side: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, 48, side, side, generator=g), torch.rand(rows, generator=g) * 1000, torch.randn(rows, 5, 24, generator=g)


def randomised(config: UNetConfig = SMALL) -> PostcardUNet:
    torch.manual_seed(0)
    network = PostcardUNet(config)
    for p in network.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return network


def test_names_are_those_of_stable_diffusion() -> None:
    names = set(PostcardUNet(SMALL).state_dict())
    block = "input_blocks.1.1.transformer_blocks.0."
    for name in ("time_embed.0.weight", "time_embed.2.bias", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.0.weight",
                 "input_blocks.1.0.in_layers.2.bias", "input_blocks.1.0.emb_layers.1.weight", "input_blocks.1.0.out_layers.0.bias",
                 "input_blocks.1.0.out_layers.3.weight", "input_blocks.1.1.norm.weight", "input_blocks.1.1.proj_in.weight",
                 block + "attn1.to_q.weight", block + "attn1.to_out.0.bias", block + "attn2.to_k.weight", block + "norm3.weight",
                 block + "ff.net.0.proj.weight", block + "ff.net.2.bias", "input_blocks.1.1.proj_out.bias", "input_blocks.2.0.op.weight",
                 "input_blocks.3.0.skip_connection.weight", "middle_block.1.proj_in.weight", "middle_block.2.out_layers.3.bias",
                 "output_blocks.1.2.conv.weight", "output_blocks.3.1.norm.bias", "out.0.weight", "out.2.bias"):
        assert name in names, name
    assert "input_blocks.1.1.transformer_blocks.0.attn1.to_q.bias" not in names


def test_a_fresh_network_gives_zero_and_learns() -> None:
    network = PostcardUNet(SMALL)
    x, t, context = inputs()
    assert not network(x, t, context).any()
    losses = []
    for _ in range(8):
        loss = (network(x, t, context) - x).square().mean()
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in network.parameters():
                p.sub_(3e-3 * p.grad.sign())
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_every_parameter_and_input_matters() -> None:
    network = randomised()
    x, t, context = (v.requires_grad_() for v in inputs())
    network(x, t, context).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert x.grad.any() and t.grad.any() and context.grad.any()


def test_rows_do_not_see_each_other_and_sides_are_free() -> None:
    network = randomised().eval()
    x, t, context = inputs(3, side=8)
    with torch.no_grad():
        together = network(x, t, context)
        alone = torch.cat([network(x[i:i + 1], t[i:i + 1], context[i:i + 1]) for i in range(3)])
    assert together.shape == x.shape
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_half_precision_training_stays_close() -> None:
    network = randomised()
    inp = inputs()
    with torch.no_grad():
        exact = network(*inp)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(*inp)
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


def test_every_site_is_called_once() -> None:
    network = randomised(UNetConfig(model_channels=32, context_dim=24, transformer_depth=(0, 2)))
    sites = find_sites(network, "everything")
    assert {s.kind for s in sites} == {"self_attention", "cross_attention", "mlp", "norm", "convolution"}
    calls: dict[str, torch.Size] = {}
    for site in sites:
        def hook(_module, _args, output, path=site.path):
            assert path not in calls
            calls[path] = output.shape
        network.get_submodule(site.path).register_forward_hook(hook)
    with torch.no_grad():
        network(*inputs())
    assert all(calls[s.path][s.channel_dim] == s.channels for s in sites)


def test_timestep_embedding_has_cosines_first() -> None:
    got = timestep_embedding(torch.tensor([0.0, 1000.0]), 8)
    angles = 1000 * 10000.0 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(got, torch.stack([torch.tensor([1.0] * 4 + [0.0] * 4), torch.cat([angles.cos(), angles.sin()])]), atol=2e-4, rtol=0)


def test_config_survives_json_and_is_not_consumed() -> None:
    config = UNetConfig(channel_mult=(1, 2, 2), num_res_blocks=(1, 2, 1), transformer_depth=(0, 1, 2))
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    first = config.to_comfy_config()
    first["transformer_depth_output"].clear()
    assert config.to_comfy_config()["transformer_depth"] == [0, 1, 1, 2]
    assert config.to_comfy_config()["transformer_depth_output"] == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("wrong, words", [({"model_channels": 100}, "multiple of 32"), ({"num_res_blocks": (1,)}, "one per level"),
                                          ({"num_heads": 4}, "exactly one"), ({"num_head_channels": 48}, "even split")])
def test_wrong_dimensions_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UNetConfig(**wrong)
    with pytest.raises(ValueError, match="unknown entry 'layers'"):
        UNetConfig.from_dict({"layers": 3})
