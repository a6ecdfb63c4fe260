"""Concept encoders over small random CLIPs, and preprocessing."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize as unit_rows

from hypertransport_core.encoders import (ConceptEmbedding, ConceptEncoder, EncoderError, embed_images, embed_text)
from hypertransport_core.encoders.preprocess import CLIP_MEAN, CLIP_STD, normalise, resize_and_crop
from hypertransport_core.encoders.transformers_clip import TransformersClipEncoder
from hypertransport_core.files import FileError

SIZE = 32


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def vector(*shape: int) -> torch.Tensor:
    return unit_rows(torch.randn(*shape), dim=-1)


def embedding(modality: str = "text", *shape: int, **more) -> ConceptEmbedding:
    return ConceptEmbedding(vector(*(shape or (6,))), more.pop("encoder_id", "e"), modality,
                            more.pop("source", modality), **more)


# preprocessing

@pytest.mark.parametrize(("height", "width"),
                         [(32, 32), (1, 1), (31, 33), (500, 20), (20, 500), (3, 4000), (129, 128), (1, 7)])
def test_any_size_becomes_a_square_in_range(height: int, width: int) -> None:
    made = resize_and_crop(torch.rand(2, 3, height, width), SIZE)
    assert made.shape == (2, 3, SIZE, SIZE) and 0 <= made.min() and made.max() <= 1


def test_right_size_is_untouched_and_constant_stays_constant() -> None:
    images = torch.rand(1, 3, SIZE, SIZE)
    assert torch.equal(resize_and_crop(images, SIZE), images)
    assert torch.allclose(resize_and_crop(torch.full((1, 3, 77, 50), 0.25), SIZE), torch.tensor(0.25), atol=1e-5)


def test_the_middle_is_kept() -> None:
    images = torch.zeros(1, 3, SIZE, 3 * SIZE)
    images[..., SIZE:2 * SIZE] = 1
    assert torch.equal(resize_and_crop(images, SIZE), torch.ones(1, 3, SIZE, SIZE))


@pytest.mark.parametrize("images",
                         [torch.rand(3, 8, 8), torch.rand(1, 4, 8, 8), torch.rand(1, 8, 8, 3), torch.rand(0, 3, 8, 8),
                                    torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 3, 8, 8), float("nan"))])
def test_wrong_pictures_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        resize_and_crop(images, SIZE)


@pytest.mark.parametrize(("height", "width"), [(80, 60), (60, 81), (24, 24), (33, 200), (200, 34)])
def test_parity_with_transformers_own_image_processor(height: int, width: int) -> None:
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    try:
        from transformers import CLIPImageProcessor

        processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    except Exception as error:  # some versions need a torchvision that is not there
        pytest.skip(str(error))
    grid = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 5, width), indexing="ij")
    smooth = torch.stack([grid[0].sin(), grid[1].cos(), (grid[0] * grid[1]).sin()]) * 0.5 + 0.5
    values = (smooth * 255).round().to(torch.uint8)
    picture = image.fromarray(numpy.ascontiguousarray(values.permute(1, 2, 0).numpy()))
    theirs = processor(images=picture, return_tensors="pt")["pixel_values"]
    ours = normalise(resize_and_crop(values[None].float() / 255, SIZE), CLIP_MEAN, CLIP_STD)
    # Theirs rounds to whole bytes after resizing, and clips between its two passes: a few levels where enlarging
    # overshoots.
    levels = (ours - theirs).abs() * torch.tensor(CLIP_STD).view(1, 3, 1, 1) * 255
    assert levels.mean() < 0.4 and levels.max() < (1.1 if min(height, width) > SIZE else 4)


# transformers

def tiny_clip(seed: int = 0):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "projection_dim": 12}
    return CLIPModel(CLIPConfig(text_config={**shared, "vocab_size": 60, "max_position_embeddings": 10,
                                             "bos_token_id": 58, "eos_token_id": 59,
                                             "pad_token_id": 59},
                                vision_config={**shared, "image_size": SIZE, "patch_size": 8}, projection_dim=12))


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer of single letters: its files as OpenAI's look, made on the spot."""
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "c a", "ca", "ca t</w>", "cat</w>", ".</w>",
                  ",</w>"][:58]
    vocabulary = {token: index for index, token in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 10, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TransformersClipEncoder:
    return TransformersClipEncoder.from_folder(folder)


def test_transformers_encoder_is_an_encoder(encoder: TransformersClipEncoder) -> None:
    assert isinstance(encoder, ConceptEncoder) and encoder.width == 12
    texts, images = encoder.encode_text(["a cat", "dog", "x" * 80]), encoder.encode_images(torch.rand(2, 3, 50, 40))
    for vectors, count in ((texts, 3), (images, 2)):
        assert vectors.shape == (count, 12) and vectors.dtype == torch.float32 and not vectors.requires_grad
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(count), atol=1e-5)


def test_transformers_encoder_equals_the_whole_model(encoder: TransformersClipEncoder) -> None:
    batch = encoder.tokenizer(["a cat", "dog eats"], padding=True, return_tensors="pt")
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        whole = encoder.model(**batch, pixel_values=normalise(images, CLIP_MEAN, CLIP_STD))
    assert torch.allclose(encoder.encode_text(["a cat", "dog eats"]), whole.text_embeds, atol=1e-5)
    assert torch.allclose(encoder.encode_images(images), whole.image_embeds, atol=1e-5)


def test_padding_and_batching_change_nothing(encoder: TransformersClipEncoder) -> None:
    assert torch.allclose(encoder.encode_text(["cat", "a dog eats a cat"])[:1], encoder.encode_text(["cat"]), atol=1e-5)
    many = torch.rand(37, 3, SIZE, SIZE)
    assert torch.allclose(encoder.encode_images(many)[-1:], encoder.encode_images(many[-1:]), atol=1e-5)


def test_id_depends_on_the_weights_only(folder: Path, encoder: TransformersClipEncoder) -> None:
    half = TransformersClipEncoder.from_folder(folder, dtype=torch.float16)
    assert half.encoder_id == encoder.encoder_id == "-".join(encoder.encoder_id.split("-"))
    assert encoder.encoder_id.startswith("clip-vit16p8-12-t")
    other = TransformersClipEncoder(tiny_clip(1), encoder.tokenizer)
    assert other.encoder_id != encoder.encoder_id


def test_preprocessor_file_gives_mean_and_std(folder: Path) -> None:
    settings = folder / "preprocessor_config.json"
    try:
        settings.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5]}))
        assert TransformersClipEncoder.from_folder(folder).std == (0.25, 0.5, 0.5)
        settings.write_text("{broken")
        assert TransformersClipEncoder.from_folder(folder).std == CLIP_STD
    finally:
        settings.unlink()


def test_concepts_from_texts_and_pictures(encoder: TransformersClipEncoder) -> None:
    one, two = embed_text(encoder, [" cat "]), embed_text(encoder, ["cat", "dog"])
    assert one.vector.shape == (12,) and two.vector.shape == (2, 12) and one.source == "cat" and one.modality == "text"
    pictures = embed_images(encoder, torch.rand(2, 3, 9, 9))
    assert pictures.modality == "image" and pictures.source == "2 pictures"
    assert pictures.encoder_id == encoder.encoder_id
    for texts in ([], ["  "], ["cat", ""]):
        with pytest.raises(EncoderError, match="empty"):
            embed_text(encoder, texts)
    with pytest.raises(EncoderError, match="nothing to encode"):
        encoder.encode_text([])


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(("change", "match"), [
    (lambda f: (f / "config.json").unlink(), "no config.json"),
    (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "type 'bert'"),
    (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no .safetensors"),
    (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]), "cut short"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickled bytes"), "old PyTorch checkpoint"),
    (lambda f: [(f / name).unlink() for name in ("vocab.json", "merges.txt", "tokenizer_config.json")],
     "holds no tokenizer"),
    (lambda f: (f / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}'), "tokenizer|cannot be "
                                                                                            "loaded"),
    (lambda f: (f / "vocab.json").write_text("[broken"), "cannot be loaded as a CLIP"),
    (lambda f: (f / "merges.txt").unlink(), "holds no tokenizer"),
    (lambda f: (f / "config.json").write_text(json.dumps({**json.loads((f / "config.json").read_text()),
                                                          "projection_dim": 13})), None),
])
def test_damaged_folders_are_one_sentence(folder: Path, tmp_path: Path, change, match: str) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    change(copy)
    with pytest.raises((EncoderError, FileError), match=match) as caught:
        TransformersClipEncoder.from_folder(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_one_tower_is_not_enough(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = copy_of(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "vision" not in name}, copy / "model.safetensors",
              {"format": "pt"})
    with pytest.raises(EncoderError, match="lacks .* weights"):
        TransformersClipEncoder.from_folder(copy)


# Postcard

def test_postcard_encoder(tmp_path: Path) -> None:
    from hypertransport_core.encoders.postcard_clip import PostcardClipEncoder
    from hypertransport_core.postcard.clip import PostcardCLIP

    clip = PostcardCLIP(["cat", "house"])
    clip.save(tmp_path / "clip.safetensors", dtype=torch.float16)
    first, again = PostcardClipEncoder(clip), PostcardClipEncoder.from_file(tmp_path / "clip.safetensors")
    assert isinstance(again, ConceptEncoder) and first.encoder_id == again.encoder_id
    assert first.encoder_id.startswith("postcard-clip-vit192p8-128-t")
    assert embed_text(again, ["cat"]).width == embed_images(again, torch.rand(1, 3, 70, 64)).width == again.width == 128
    assert not again.encode_text(["cat"]).requires_grad
    assert torch.allclose(again.encode_text(["cat"]), first.encode_text(["cat"]), atol=5e-3)


# open_clip

def test_open_clip_that_cannot_be_imported_is_one_sentence(monkeypatch, tmp_path: Path) -> None:
    from hypertransport_core.encoders import open_clip_encoder

    real = builtins.__import__

    def broken(name, *arguments, **keywords):
        if name == "open_clip":
            raise RuntimeError("operator torchvision::nms does not exist\nand more lines")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", broken)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    with pytest.raises(EncoderError, match="torchvision::nms does not exist.*install both") as caught:
        open_clip_encoder.import_open_clip()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def open_clip_file(tmp_path_factory) -> tuple[str, Path]:
    open_clip = pytest.importorskip("open_clip", exc_type=Exception)
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    config = {"embed_dim": 12, "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8},
              "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}}
    (folder / "tiny-test.json").write_text(json.dumps(config))
    (folder / "tiny-hf.json").write_text(json.dumps({**config, "text_cfg": {"hf_model_name": "some/model"}}))
    open_clip.add_model_config(folder)
    torch.manual_seed(2)
    model = open_clip.create_model("tiny-test")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "tiny.safetensors")
    return "tiny-test", folder / "tiny.safetensors"


def test_open_clip_encoder(open_clip_file: tuple[str, Path]) -> None:
    import open_clip

    from hypertransport_core.encoders.open_clip_encoder import OpenClipEncoder

    name, path = open_clip_file
    encoder = OpenClipEncoder.from_checkpoint(name, path)
    assert isinstance(encoder, ConceptEncoder) and encoder.width == 12 and encoder.size == SIZE
    texts = encoder.encode_text(["a cat", "dog"])
    assert texts.shape == (2, 12) and torch.allclose(texts.norm(dim=-1), torch.ones(2), atol=1e-5)
    model = open_clip.create_model(name, pretrained=str(path)).eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = unit_rows(model.encode_image(normalise(images, CLIP_MEAN, CLIP_STD)), dim=-1)
    assert torch.allclose(encoder.encode_images(images), expected, atol=1e-5)
    assert encoder.encode_images(torch.rand(1, 3, 70, 40)).shape == (1, 12)
    assert encoder.encoder_id.startswith("clip-vit64p8-12-t")
    assert OpenClipEncoder.from_checkpoint(name, path, dtype=torch.bfloat16).encoder_id == encoder.encoder_id


def test_open_clip_refusals(open_clip_file: tuple[str, Path], tmp_path: Path) -> None:
    from hypertransport_core.encoders.open_clip_encoder import OpenClipEncoder

    name, path = open_clip_file
    (tmp_path / "weights.bin").write_bytes(b"x")
    (tmp_path / "pickle.safetensors").write_bytes(b"PK\x03\x04 and so on")
    for arguments, match in (((name, tmp_path / "weights.bin"), "no .safetensors"),
                             ((name, tmp_path / "pickle.safetensors"), "old PyTorch"),
                             (("no-such-net", path), "no architecture 'no-such-net'"),
                             (("hf-hub:some/thing", path), "no architecture"),
                             (("tiny-hf", path), "from the network"), (("ViT-B-32", path), "cannot be loaded as "
                                                                                           "'ViT-B-32'"),
                             ((name, tmp_path / "missing.safetensors"), "cannot be read")):
        with pytest.raises((EncoderError, FileError), match=match) as caught:
            OpenClipEncoder.from_checkpoint(*arguments)
        assert "\n" not in str(caught.value)


def test_same_weights_have_one_id_in_both_libraries() -> None:
    """The tensors that the id is made of, in open_clip's orientation, give the id of transformers."""
    from types import SimpleNamespace as Box

    from hypertransport_core.encoders.open_clip_encoder import _encoder_id
    from hypertransport_core.encoders.transformers_clip import model_encoder_id

    model = tiny_clip()
    visual = Box(conv1=model.vision_model.embeddings.patch_embedding, proj=model.visual_projection.weight.T)
    twin = Box(token_embedding=model.text_model.embeddings.token_embedding,
               text_projection=model.text_projection.weight.T, visual=visual)
    assert _encoder_id(twin, "x") == model_encoder_id(model)
