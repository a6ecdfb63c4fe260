"""Concept nodes: the core's embeddings, encoders from the user's own files, and refusals in one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pack import awaited, load_pack, pack_module, run_node


@pytest.fixture(scope="module")
def concepts():
    return pack_module("nodes.concepts")


@pytest.fixture(scope="module")
def pipeline():
    load_pack()
    return pack_module("hypertransport_core.pipeline").Pipeline.load()


@pytest.fixture(scope="module")
def encoder():
    return pack_module("nodes.postcard").postcard_encoder()


def encoded(encoder, text: str = "", images: torch.Tensor | None = None, **more):
    (concept,) = run_node(
        pack_module("nodes.concepts").ConceptEncoderNode, encoder=encoder, text=text, images=images, **more
    )
    return concept


def pictures(count: int, height: int = 80, width: int = 60, seed: int = 0) -> torch.Tensor:
    """An IMAGE batch."""
    coarse = torch.rand(count, 3, 5, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1).contiguous()


def same(one, other, tolerance: float = 1e-6) -> None:
    assert (one.encoder_id, one.width) == (other.encoder_id, other.width)
    torch.testing.assert_close(one.vector, other.vector, atol=tolerance, rtol=0)


# Concept Encoder


@pytest.mark.parametrize("text", ["teal mosaic", "  snow\n", "Art Nouveau, {strange} (words)"])
def test_words_equal_the_pipeline(encoder, pipeline, text: str) -> None:
    same(encoded(encoder, text), pipeline.embed_text(text), 0.0)
    assert encoded(encoder, text).source == text.strip()


def test_pictures_equal_the_pipeline(encoder, pipeline) -> None:
    batch = pictures(3)
    expected = pipeline.embed_image(batch.movedim(-1, 1))
    made = encoded(encoder, "", batch)
    same(made, expected, 1e-5)
    assert made.modality == "image" and not made.parts
    alpha = torch.cat([batch, torch.rand(*batch.shape[:3], 1)], -1)
    same(encoded(encoder, "\n ", alpha), made, 0.0)


def test_maps_equal_the_pipeline(encoder, pipeline) -> None:
    weights = pack_module("hypertransport_core.weights_io").load_hypernetwork(pipeline_file(pipeline))
    predicted = pack_module("nodes.interception").predict(weights, encoded(encoder, "teal mosaic")).steps[0]
    expected = pipeline.maps(pipeline.embed_text("teal mosaic"))
    torch.testing.assert_close(predicted.shift, expected.shift, atol=1e-5, rtol=1e-4)


def pipeline_file(pipeline) -> Path:
    module = pack_module("hypertransport_core.pipeline")
    return module.WEIGHTS / module.HYPERNETWORK_FILE


def test_lines_are_phrasings_of_one_concept(encoder, pipeline) -> None:
    made = encoded(encoder, "snow\n\nsnowy winter\n")
    both = [pipeline.embed_text(words).vector for words in ("snow", "snowy winter")]
    torch.testing.assert_close(made.vector, torch.nn.functional.normalize(sum(both), dim=0), atol=1e-6, rtol=0)
    assert made.modality == "text" and made.vector.ndim == 1


def test_image_weights(encoder) -> None:
    batch = pictures(3)
    one, two, _ = (encoded(encoder, "", batch[i : i + 1]).vector for i in range(3))
    made = encoded(encoder, "", batch, image_weights=" 1, -0.5; 0 ")
    torch.testing.assert_close(made.vector, torch.nn.functional.normalize(one - 0.5 * two, dim=0), atol=1e-5, rtol=0)
    same(encoded(encoder, "", batch, image_weights="2, 2, 2"), encoded(encoder, "", batch))


def test_words_and_pictures_count_the_same(encoder, pipeline) -> None:
    batch = pictures(5)
    made = encoded(encoder, "snow", batch)
    words, shown = encoded(encoder, "snow"), encoded(encoder, "", batch)
    assert made.modality == "mixed"
    torch.testing.assert_close(
        made.vector, torch.nn.functional.normalize(words.vector + shown.vector, dim=0), atol=1e-6, rtol=0
    )
    centre = pack_module("hypertransport_core.encoders.base").centre
    parts = sum(centre(part, pipeline.means).vector for part in (words, shown))
    torch.testing.assert_close(
        centre(made, pipeline.means).vector, torch.nn.functional.normalize(parts, dim=0), atol=1e-6, rtol=0
    )


def test_one_per_row(encoder, pipeline) -> None:
    batch = pictures(2)
    made = encoded(encoder, "snow\nteal mosaic", batch, mode="one per row")
    assert made.vector.shape == (4, encoder.width)
    single = [
        pipeline.embed_text("snow"),
        pipeline.embed_text("teal mosaic"),
        *(pipeline.embed_image(p.movedim(-1, 0)) for p in batch),
    ]
    torch.testing.assert_close(made.vector, torch.stack([one.vector for one in single]), atol=1e-5, rtol=0)
    centre = pack_module("hypertransport_core.encoders.base").centre
    torch.testing.assert_close(centre(made, pipeline.means).vector, pipeline.centred(single), atol=1e-5, rtol=0)
    weights = pack_module("hypertransport_core.weights_io").load_hypernetwork(pipeline_file(pipeline))
    maps = pack_module("nodes.interception").predict(weights, made).steps[0]
    torch.testing.assert_close(maps.shift, pipeline.maps(single).shift, atol=1e-4, rtol=1e-3)
    assert encoded(encoder, "snow", mode="one per row").vector.ndim == 1


def test_unknown_words_are_a_warning(encoder, caplog: pytest.LogCaptureFixture) -> None:
    node = pack_module("nodes.concepts").ConceptEncoderNode
    shown = node.execute(encoder, "teal quasarfoobar").ui.as_dict()["text"][0]
    assert "quasarfoobar" in shown and "quasarfoobar" in caplog.text
    assert "Warning" not in node.execute(encoder, "teal mosaic").ui.as_dict()["text"][0]


@pytest.mark.parametrize(
    "inputs,match",
    [
        ({}, "nothing to encode"),
        ({"text": " \n"}, "nothing to encode"),
        ({"images": 2, "image_weights": "1"}, "1 numbers for 2 pictures"),
        ({"images": 2, "image_weights": "1, two"}, "numbers with commas"),
        ({"images": 2, "image_weights": "0, 0"}, "cancel out"),
        ({"images": 2, "image_weights": "1, 1", "mode": "one per row"}, "leave them empty"),
    ],
)
def test_refusals(encoder, inputs: dict, match: str) -> None:
    if "images" in inputs:
        inputs = {**inputs, "images": pictures(inputs["images"])}
    with pytest.raises(ValueError, match=match) as caught:
        encoded(encoder, **inputs)
    assert "\n" not in str(caught.value)


def test_concepts_print_short(encoder) -> None:
    made = encoded(encoder, "snow\nteal mosaic\n" + "rain " * 100, mode="one per row")
    assert len(str(made)) < 250 and len(str(encoder)) < 100


# Mix Concepts


def mixed(*pairs):
    inputs = {}
    for number, (concept, weight) in enumerate(pairs, 1):
        inputs |= {f"concept_{number}": concept, f"weight_{number}": weight}
    return run_node(pack_module("nodes.concepts").MixConcepts, **inputs)[0]


def test_mix_equals_the_pipeline(encoder, pipeline) -> None:
    snow, mosaic, shown = encoded(encoder, "snow"), encoded(encoder, "teal mosaic"), encoded(encoder, "", pictures(2))
    same(mixed((snow, 1.0), (mosaic, -0.5), (shown, 0.25)), pipeline.mix([snow, mosaic, shown], [1.0, -0.5, 0.25]))
    assert mixed((snow, 2.0), (mosaic, 0.0)) is snow
    same(mixed((snow, 1.0), (mosaic, 1.0)), mixed((snow, 2.0), (mosaic, 2.0)))


def test_mix_row_by_row(encoder) -> None:
    rows, one = encoded(encoder, "snow\nteal mosaic", mode="one per row"), encoded(encoder, "", pictures(1))
    made = mixed((rows, 1.0), (one, 0.5))
    single = [mixed((encoded(encoder, words), 1.0), (one, 0.5)).vector for words in ("snow", "teal mosaic")]
    torch.testing.assert_close(made.vector, torch.stack(single), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="2 and 3 rows"):
        mixed((rows, 1.0), (encoded(encoder, "snow\nrain\nsun", mode="one per row"), 1.0))


def test_mix_refusals(encoder) -> None:
    snow = encoded(encoder, "snow")
    with pytest.raises(ValueError, match="every weight is 0"):
        mixed((snow, 0.0), (snow, 0.0))
    with pytest.raises(ValueError, match="cancel out"):
        mixed((snow, 1.0), (snow, -1.0))


# Load Concept Encoder


def transformers_clip(seed: int = 0):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    text = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "eos_token_id": 49407,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": 32,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()


@pytest.fixture(scope="module")
def model():
    return transformers_clip()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Empty folders of the host's, in place of those of this machine."""
    import folder_paths

    for kind in ("text_encoders", "clip_vision"):
        (tmp_path / kind).mkdir()
        extensions = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], extensions))
        monkeypatch.delitem(folder_paths.filename_list_cache, kind, raising=False)
    return SimpleNamespace(text=tmp_path / "text_encoders", vision=tmp_path / "clip_vision")


@pytest.fixture(scope="module")
def expected(model):
    """The same model the way the core loads a folder."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(pack_module("nodes.encoders").TOKENIZER))
    return pack_module("hypertransport_core.encoders.transformers_clip").TransformersClipEncoder(model, tokenizer)


def part(model, *prefixes: str) -> dict[str, torch.Tensor]:
    return {name: value.half() for name, value in model.state_dict().items() if name.startswith(prefixes or "")}


def load(**inputs):
    return run_node(pack_module("nodes.encoders").LoadConceptEncoder, **{"encoder": "automatic", **inputs})[0]


def options(name: str) -> list[str]:
    schema = pack_module("nodes.encoders").LoadConceptEncoder.define_schema()
    return next(one.options for one in schema.inputs if one.id == name)


def agree(one, other) -> None:
    assert one.encoder_id == other.encoder_id and one.width == other.width
    words, shown = ["a red house", "snow " * 90], pictures(2).movedim(-1, 1)
    torch.testing.assert_close(one.encode_text(words), other.encode_text(words), atol=2e-3, rtol=0)
    torch.testing.assert_close(one.encode_images(shown), other.encode_images(shown), atol=2e-3, rtol=0)


def weights_for(encoder_id: str, width: int = 48) -> SimpleNamespace:
    header = {"encoder": {"id": encoder_id, "width": width}}
    return SimpleNamespace(header=header, path=Path("my_weights.safetensors"), reader=None)


def test_shipped_encoder_without_any_file(places, encoder) -> None:
    assert options("encoder") == ["automatic", "Postcard (shipped)"] and options("vision") == ["automatic"]
    assert load() is encoder and load(encoder="Postcard (shipped)") is encoder
    plain = pack_module("nodes.postcard").postcard_clip_encoder()
    assert load(weights=weights_for(plain.encoder_id, plain.width)) is plain


def test_one_file_with_both_towers(places, model, expected) -> None:
    save_file(part(model), places.text / "whole.safetensors")
    assert options("encoder")[2:] == ["text_encoders/whole.safetensors"] == options("vision")[1:]
    loaded = load(encoder="text_encoders/whole.safetensors")
    agree(loaded, expected)
    assert load(encoder="text_encoders/whole.safetensors") is loaded
    network = loaded.patcher.model
    assert not any(p.is_inference() or p.is_meta for p in [*network.parameters(), *network.buffers()])
    assert load(weights=weights_for(expected.encoder_id)) is loaded


def test_a_file_per_tower(places, model, expected) -> None:
    save_file(part(model, "text"), places.text / "clip_l.safetensors")
    assert options("encoder")[2:] == ["text_encoders/clip_l.safetensors"] and options("vision") == ["automatic"]
    with pytest.raises(ValueError, match="width 48 too, and no other file there does: put"):
        load(encoder="text_encoders/clip_l.safetensors")
    with pytest.raises(ValueError, match="its text tower is there, the other is not"):
        load(weights=weights_for(expected.encoder_id))
    save_file(part(model, "vision", "visual"), places.vision / "v.safetensors")
    agree(load(encoder="text_encoders/clip_l.safetensors"), expected)
    save_file(part(transformers_clip(1), "vision", "visual"), places.vision / "another.safetensors")
    with pytest.raises(ValueError, match="2 others do .*choose one as vision"):
        load(encoder="text_encoders/clip_l.safetensors")
    agree(load(encoder="text_encoders/clip_l.safetensors", vision="clip_vision/v.safetensors"), expected)
    agree(load(weights=weights_for(expected.encoder_id)), expected)  # by content, whatever the names
    with pytest.raises(ValueError, match="the connected encoder is"):
        load(
            encoder="text_encoders/clip_l.safetensors",
            vision="clip_vision/another.safetensors",
            weights=weights_for(expected.encoder_id),
        )


def test_transformers_folder(places, model, expected) -> None:
    from transformers import CLIPTokenizer

    folder = places.text / "my-clip"
    model.save_pretrained(str(folder))
    CLIPTokenizer.from_pretrained(str(pack_module("nodes.encoders").TOKENIZER)).save_pretrained(str(folder))
    assert options("encoder")[2:] == ["text_encoders/my-clip"]
    agree(load(encoder="text_encoders/my-clip"), expected)
    agree(load(weights=weights_for(expected.encoder_id)), expected)


def test_open_clip_layout_equals_open_clip(places) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8}
    theirs = open_clip.model.CLIP(48, vision, text, quick_gelu=True).eval()
    save_file({name: value.clone() for name, value in theirs.state_dict().items()}, places.text / "open.safetensors")
    module = pack_module("hypertransport_core.encoders.open_clip_encoder")
    agree(
        load(encoder="text_encoders/open.safetensors"),
        module.OpenClipEncoder(theirs, open_clip.get_tokenizer("ViT-L-14")),
    )


def test_only_plausible_files_are_listed(places) -> None:
    save_file({"encoder.block.0.weight": torch.zeros(2, 2)}, places.text / "t5.safetensors")
    save_file(
        {"text_model.embeddings.token_embedding.weight": torch.zeros(9, 4)}, places.text / "no_projection.safetensors"
    )
    (places.text / "broken.safetensors").write_bytes(b"nothing")
    (places.text / "old.pt").write_bytes(b"nothing")
    assert options("encoder") == ["automatic", "Postcard (shipped)"]


def test_missing_encoder_is_named(places) -> None:
    with pytest.raises(ValueError) as caught:
        load(weights=weights_for("clip-vit1024p14-768-t01234567-v89abcdef"))
    said = str(caught.value)
    assert all(
        words in said
        for words in (
            "my_weights.safetensors",
            "clip-vit1024p14-768-t01234567-v89abcdef",
            str(places.text),
            str(places.vision),
            "put",
        )
    )
    assert "\n" not in said
    with pytest.raises(ValueError, match="is no CLIP in"):
        load(encoder="text_encoders/gone.safetensors")


def test_wrong_choice_for_the_weights_is_refused(places) -> None:
    plain = pack_module("nodes.postcard").postcard_clip_encoder()
    with pytest.raises(ValueError, match="my_weights.safetensors reads concepts of") as caught:
        load(encoder="Postcard (shipped)", weights=weights_for("clip-vit1024p14-768-t01234567-v89abcdef", plain.width))
    assert plain.encoder_id in str(caught.value)


def test_damaged_files_are_one_sentence(places, model) -> None:
    state = part(model)
    state.pop("text_model.encoder.layers.1.mlp.fc2.bias")
    save_file(state, places.text / "holes.safetensors")
    with pytest.raises(ValueError, match="holes.safetensors cannot be loaded as a CLIP") as caught:
        load(encoder="text_encoders/holes.safetensors")
    assert "\n" not in str(caught.value)
    small = {**part(model), "text_model.embeddings.token_embedding.weight": torch.zeros(100, 128)}
    save_file(small, places.text / "own_words.safetensors")
    with pytest.raises(ValueError, match="100 tokens.*transformers folder"):
        load(encoder="text_encoders/own_words.safetensors")


def test_fingerprint_follows_the_files(places, model) -> None:
    node = pack_module("nodes.encoders").LoadConceptEncoder
    before = node.fingerprint_inputs(encoder="automatic")
    assert before == node.fingerprint_inputs(encoder="automatic")
    save_file(part(model, "text"), places.text / "clip_l.safetensors")
    assert node.fingerprint_inputs(encoder="automatic") != before


def test_nodes_are_described(concepts) -> None:
    nodes = awaited(load_pack().extension.get_node_list())
    mine = [
        node for node in nodes if node.__module__.rpartition(".")[2] in ("postcard", "encoders", "concepts", "sampling")
    ]
    assert len(mine) == 7
    for node in mine:
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("HyperTransport") and len(schema.description) > 80
        assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
