"""Postcard Model in the host: its CLIP, sampling and latents are the core's, and it is loaded once."""

from __future__ import annotations

import logging

import pytest
import torch

from pack import load_pack, pack_module, run_node

PROMPTS = [
    "a small red house on the left",
    "a blue boat in snow",
    "",
    "a picture of a yellow cat, watercolour, teal mosaic",
    "hosue and quasarfoobar",
]


@pytest.fixture(scope="module")
def postcard() -> tuple:
    return run_node(pack_module("nodes.postcard").PostcardModelNode)


@pytest.fixture(scope="module")
def pipeline():
    load_pack()
    return pack_module("hypertransport_core.pipeline").Pipeline.load(steered=False)


def encode(clip, text: str) -> torch.Tensor:
    import nodes as host_nodes

    (conditioning,) = host_nodes.CLIPTextEncode().encode(clip, text)
    return conditioning


def ksample(model, conditioning, latent, seed: int = 0, steps: int = 4, cfg: float = 1.0, **more):
    import nodes as host_nodes

    with torch.inference_mode():
        (out,) = host_nodes.common_ksampler(
            model,
            seed,
            steps,
            cfg,
            more.pop("sampler", "euler"),
            more.pop("scheduler", "simple"),
            conditioning,
            conditioning,
            latent,
            **more,
        )
    return out["samples"]


def test_loaded_once(postcard: tuple) -> None:
    again = run_node(pack_module("nodes.postcard").PostcardModelNode)
    assert all(one is other for one, other in zip(postcard, again, strict=True))
    node = pack_module("nodes.postcard").PostcardModelNode
    assert node.fingerprint_inputs() == node.fingerprint_inputs()
    assert not any(p.is_inference() or p.requires_grad for p in postcard[0].model.parameters())


@pytest.mark.parametrize("text", PROMPTS)
def test_stock_text_encode_gives_the_cores_conditioning(postcard: tuple, pipeline, text: str) -> None:
    ((cond, more),) = encode(postcard[1], text)
    torch.testing.assert_close(cond, pipeline.backbone.encode([text]), atol=1e-6, rtol=0)
    torch.testing.assert_close(more["pooled_output"], pipeline.encoder.encode_text([text]), atol=1e-6, rtol=0)
    ids, _ = pipeline.encoder.clip.tokenize([text])
    assert [entry[0] for entry in postcard[1].tokenize(text)["postcard"][0]] == ids[0].tolist()


def test_prompt_weights(postcard: tuple) -> None:
    clip = postcard[1]
    plain, weighted, more = (encode(clip, text)[0][0] for text in ("a red house", "a (red:1.3) house", "a (red) house"))
    tokens = clip.tokenize("a (red:1.3) house", return_word_ids=True)["postcard"][0]
    assert [(entry[1], entry[2]) for entry in tokens[:6]] == [
        (1.0, 0),
        (1.0, 1),
        (1.3, 2),
        (1.0, 3),
        (1.0, 0),
        (1.0, 0),
    ] and len(tokens) == 24
    empty = encode(clip, "")[0][0]
    torch.testing.assert_close(weighted[:, 2], empty[:, 2] + 1.3 * (plain - empty)[:, 2], atol=1e-5, rtol=0)
    others = [i for i in range(24) if i != 2]
    assert torch.equal(weighted[:, others], plain[:, others]) and not torch.equal(more, plain)
    assert torch.equal(encode(clip, r"a \(red\) house")[0][0], plain)
    assert torch.equal(encode(clip, "a (red:0) house")[0][0][:, 2], empty[:, 2])
    assert [word for _, word in clip.tokenizer.untokenize(clip.tokenize("red house")["postcard"][0])][:4] == [
        "<begin>",
        "red",
        "house",
        "<end>",
    ]


def test_unknown_words_are_named_in_the_log(postcard: tuple, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        postcard[1].tokenize("a quasarfoobar house " + "red " * 30)
    assert "quasarfoobar" in caplog.text and "left out" in caplog.text


def test_stock_nodes_on_the_clip(postcard: tuple) -> None:
    import nodes as host_nodes

    clip = host_nodes.CLIPSetLastLayer().set_last_layer(postcard[1], -2)[0]
    house, boat = encode(clip, "a house"), encode(clip, "a boat")
    assert torch.equal(house[0][0], encode(postcard[1], "a house")[0][0])
    average = host_nodes.ConditioningAverage().addWeighted(house, boat, 0.5)[0]
    torch.testing.assert_close(average[0][0], (house[0][0] + boat[0][0]) / 2)
    assert host_nodes.ConditioningConcat().concat(house, boat)[0][0][0].shape == (1, 48, 192)


def test_ksampler_equals_the_pipeline(postcard: tuple, pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.sample

    model, clip, vae, _ = postcard
    noise = pipeline.backbone.noise([7, 8])
    monkeypatch.setattr(comfy.sample, "prepare_noise", lambda *_: noise)
    prompt = "a small red house on the left, snow"
    (latent,) = run_node(pack_module("nodes.postcard").EmptyPostcardLatent, batch_size=2)
    assert latent["samples"].shape == (2, 48, 16, 16)
    pictures = vae.decode(ksample(model, encode(clip, prompt), latent))
    torch.testing.assert_close(pictures.movedim(-1, 1), pipeline.generate(prompt, [7, 8]), atol=1e-4, rtol=0)


def test_hosts_own_noise_decides_place_and_warmth(postcard: tuple) -> None:
    import comfy.sample

    model, clip, vae, _ = postcard
    coupling = pack_module("hypertransport_core.postcard.coupling")
    latent = {"samples": torch.zeros(16, 48, 16, 16)}
    pictures = vae.decode(ksample(model, encode(clip, "a red ball"), latent, seed=3))
    assert pictures.shape == (16, 64, 64, 3) and 0.05 < float(pictures.std()) and torch.isfinite(pictures).all()
    noise = comfy.sample.prepare_noise(latent["samples"], 3)
    # The subject is where the noise is brightest, so far-apart places make unlike pictures; the picture's own warmth
    # follows the noise's.
    warmth = (pictures[..., 0] - pictures[..., 2]).mean((1, 2))
    assert float(torch.corrcoef(torch.stack([warmth, coupling.warmth_of(noise)]))[0, 1]) > 0.8
    assert len(coupling.place_of(noise).unique()) > 3


@pytest.mark.parametrize(
    "name,shift",
    [
        ("ModelSamplingSD3", 1.0),
        ("ModelSamplingSD3", 3.0),
        ("ModelSamplingAuraFlow", 1.73),
        ("ModelSamplingFlux", None),
    ],
)
def test_flow_schedules_of_the_host_keep_the_model_right(postcard: tuple, name: str, shift: float | None) -> None:
    from comfy_extras import nodes_model_advanced

    model, clip, vae, _ = postcard
    node = getattr(nodes_model_advanced, name)()
    patched = getattr(node, node.FUNCTION)(*((model, shift) if shift else (model, 1.15, 0.5, 512, 512)))[0]
    conditioning, latent = encode(clip, "a red house in the middle"), {"samples": torch.zeros(2, 48, 16, 16)}
    plain, shifted, again = (ksample(one, conditioning, latent, seed=5, steps=8) for one in (model, patched, model))
    assert torch.equal(plain, again)
    if shift == 1.0:
        torch.testing.assert_close(shifted, plain, atol=1e-5, rtol=0)
    assert float((plain - shifted).abs().mean()) < 0.15 < float(plain.std())


def test_other_noise_rules_are_refused_in_one_sentence(postcard: tuple) -> None:
    from comfy_extras import nodes_model_advanced

    model, clip = postcard[:2]
    patched = nodes_model_advanced.ModelSamplingDiscrete().patch(model, "eps", False)[0]
    with pytest.raises(ValueError, match="EPS.*expected a flow"):
        ksample(patched, encode(clip, "a house"), {"samples": torch.zeros(1, 48, 16, 16)})
    assert torch.isfinite(ksample(model, encode(clip, "a house"), {"samples": torch.zeros(1, 48, 16, 16)})).all()
