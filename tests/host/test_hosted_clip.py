"""A user's CLIP in the host's care: where it computes, in what, and that it can be moved away and back."""

from __future__ import annotations

import pytest
import torch

from pack import pack_module

PICTURES = torch.rand(3, 3, 40, 50, generator=torch.Generator().manual_seed(0))
WORDS = ["a red house", "snow " * 90]


@pytest.fixture
def management():
    """The host's memory management."""
    import comfy.model_management

    return comfy.model_management


@pytest.fixture
def encoder():
    """A small random CLIP as a folder or file would be loaded."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
    vision = {**text, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config={**text, "eos_token_id": 49407}, vision_config=vision, projection_dim=32))
    tokenizer = CLIPTokenizer.from_pretrained(str(pack_module("nodes.encoders").TOKENIZER))
    return pack_module("hypertransport_core.encoders.transformers_clip").TransformersClipEncoder(model, tokenizer)


def test_equals_the_core_and_survives_being_moved_away(encoder, management) -> None:
    before = encoder.encode_text(WORDS), encoder.encode_images(PICTURES)
    clip = pack_module("nodes.hosted_clip").HostedClip(encoder)
    assert clip.patcher not in management.loaded_models()
    with torch.inference_mode():
        assert torch.equal(clip.encode_text(WORDS), before[0]) and clip.patcher in management.loaded_models()
        management.unload_all_models()
        assert clip.patcher not in management.loaded_models()
        assert torch.equal(clip.encode_images(PICTURES), before[1])
    assert clip.patcher.load_device == management.text_encoder_device()
    assert clip.encoder_id == encoder.encoder_id and len(repr(clip)) < 100


def test_the_host_counts_and_frees_its_weights(encoder) -> None:
    clip = pack_module("nodes.hosted_clip").HostedClip(encoder)
    clip.encode_text(WORDS)
    weights = sum(p.numel() * p.element_size() for p in encoder.model.parameters())
    assert weights <= clip.patcher.loaded_size() <= weights + 10_000  # buffers too
    freed = clip.patcher.partially_unload(clip.patcher.offload_device, 1000)  # what the host does when room lacks
    assert 1000 <= freed < weights
    first = clip.encode_text(WORDS)
    assert clip.patcher.loaded_size() >= weights and torch.isfinite(first).all()


@pytest.mark.parametrize("device, flag, dtype", [
    ("cpu", None, torch.float32), ("cpu", "fp16_text_enc", torch.float32), ("cuda", None, torch.float16),
    ("cuda", "bf16_text_enc", torch.bfloat16), ("cuda", "fp32_text_enc", torch.float32),
    ("cuda", "fp8_e4m3fn_text_enc", torch.float16), ("mps", None, torch.float16),
])
def test_dtype_is_the_host_s(device: str, flag: str | None, dtype: torch.dtype, monkeypatch) -> None:
    from comfy.cli_args import args

    if flag:
        monkeypatch.setattr(args, flag, True)
    assert pack_module("nodes.hosted_clip").clip_dtype(torch.device(device)) == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_points_the_same_way(encoder, dtype: torch.dtype, monkeypatch) -> None:
    module = pack_module("nodes.hosted_clip")
    before = encoder.encode_text(WORDS), encoder.encode_images(PICTURES)
    monkeypatch.setattr(module, "clip_dtype", lambda device: dtype)
    clip = module.HostedClip(encoder)
    after = clip.encode_text(WORDS), clip.encode_images(PICTURES)
    for one, other in zip(before, after):
        assert other.dtype == torch.float32
        assert (one * other).sum(-1).min() > 0.999
