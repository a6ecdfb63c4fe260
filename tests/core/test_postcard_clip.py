"""The Postcard CLIP: its tokenizer, pooling, masking, and that transformers accepts its weights."""

from __future__ import annotations

import pytest
import torch

from hypertransport_core.files import FileError, load_file
from hypertransport_core.postcard.clip import (CONTEXT_LENGTH, PostcardCLIP, WordTokenizer, clip_config, edit_distance,
                                               words_of)

WORDS = "a red blue house boat cat mushroom rocket watercolour at night in the style of".split()


@pytest.fixture(scope="module")
def clip() -> PostcardCLIP:
    torch.manual_seed(0)
    return PostcardCLIP(WORDS).eval()


def test_words_are_split_at_spaces_and_punctuation() -> None:
    assert words_of("A Red-house,\n\t(at) night!  'boat'_cat") == ["a", "red", "house", "at", "night", "boat", "cat"]


def test_ids_begin_words_end_padding() -> None:
    tokenizer = WordTokenizer(WORDS)
    ids, mask = tokenizer(["a RED house", ""])
    assert ids.shape == mask.shape == (2, CONTEXT_LENGTH) and ids.dtype == torch.long and mask.dtype == torch.bool
    assert ids[0, :6].tolist() == [1, 3, 4, 6, tokenizer.end_id, 0]
    assert ids[1, :3].tolist() == [1, tokenizer.end_id, 0]
    assert mask.sum(1).tolist() == [5, 2]
    assert tokenizer.size == len(WORDS) + 4 and int(ids.max()) == tokenizer.size - 1


def test_long_text_is_cut_and_keeps_the_end() -> None:
    tokenizer = WordTokenizer(WORDS)
    ids, mask = tokenizer(["house " * 100])
    assert mask.all() and ids[0, -1] == tokenizer.end_id


@pytest.mark.parametrize(("typed", "meant"), [
    ("hosue", "house"), ("huose", "house"), ("boot", "boat"), ("mushrom", "mushroom"), ("watercolor", "watercolour"),
    ("wattercolor", "watercolour"), ("rokcet", "rocket"),
])
def test_misspelt_words_go_to_the_nearest(typed: str, meant: str) -> None:
    tokenizer = WordTokenizer(WORDS)
    assert tokenizer.word_id(typed) == tokenizer.word_id(meant)


@pytest.mark.parametrize("typed", ["xylophone", "rad", "zz", "elephant", "дом"])
def test_words_far_away_are_unknown(typed: str) -> None:
    assert WordTokenizer(WORDS).word_id(typed) == WordTokenizer.unknown_id


def test_answers_do_not_depend_on_earlier_questions() -> None:
    fresh, used = WordTokenizer(WORDS), WordTokenizer(WORDS)
    for word in ("boot", "boott", "hous"):
        used.word_id(word)
    assert all(fresh.word_id(word) == used.word_id(word) for word in ("boott", "boots", "houses"))


@pytest.mark.parametrize(("first", "second", "distance"),
                         [("", "ab", 2), ("ab", "ba", 1), ("abc", "abd", 1), ("kitten", "sitting", 3)])
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second, 9) == distance == edit_distance(second, first, 9)
    assert edit_distance(first, second, 1) == min(distance, 1)


@pytest.mark.parametrize("vocabulary", [["House"], ["two words"], ["cat", "cat"], [""]])
def test_faulty_vocabulary_is_refused(vocabulary: list[str]) -> None:
    with pytest.raises(ValueError, match="the vocabulary"):
        WordTokenizer(vocabulary)


def test_shapes_and_unit_length(clip: PostcardCLIP) -> None:
    ids, _ = clip.tokenize(["a red house", "boat at night"])
    assert clip.text_tokens(ids).shape == (2, CONTEXT_LENGTH, 192)
    for vectors in (clip.encode_text(["a", "b", "c"]), clip.encode_images(torch.rand(3, 3, 50, 90))):
        assert vectors.shape == (3, 128) and vectors.dtype == torch.float32
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)


def test_pooling_reads_the_end_token(clip: PostcardCLIP) -> None:
    ids, mask = clip.tokenize(["a red house", "cat"])
    ends = mask.sum(1) - 1
    pooled = clip.text_tokens(ids)[torch.arange(2), ends]
    vectors = torch.nn.functional.normalize(clip.model.text_projection(pooled), dim=-1)
    assert torch.allclose(vectors, clip.encode_ids(ids), atol=1e-6)


def test_both_pooling_rules_of_transformers_agree(clip: PostcardCLIP) -> None:
    ids, _ = clip.tokenize(["a red house", "cat at night"])
    tower = clip.model.text_model
    before, tower.eos_token_id = tower.eos_token_id, 2
    try:
        legacy = clip.encode_ids(ids)
    finally:
        tower.eos_token_id = before
    assert torch.equal(legacy, clip.encode_ids(ids))


def test_padding_does_not_reach_the_words(clip: PostcardCLIP) -> None:
    ids, mask = clip.tokenize(["a red house"])
    length = int(mask.sum())
    short = clip.model.text_model(input_ids=ids[:, :length]).last_hidden_state
    assert torch.allclose(clip.text_tokens(ids)[:, :length], short, atol=1e-5)
    with torch.no_grad():
        weight = clip.model.text_model.embeddings.token_embedding.weight
        kept = weight[0].clone()
        words = clip.text_tokens(ids)[:, :length]
        weight[0] += 1
        changed = clip.text_tokens(ids)[:, :length]
        weight[0] = kept
    assert torch.allclose(words, changed, atol=1e-6)


def test_batches_do_not_mix(clip: PostcardCLIP) -> None:
    together = clip.encode_text(["cat", "a red house at night"])
    assert torch.allclose(together[:1], clip.encode_text(["cat"]), atol=1e-5)


def test_gradients_and_autocast(clip: PostcardCLIP) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        similar = clip.encode_images(torch.rand(2, 3, 64, 64)) @ clip.encode_text(["cat", "boat"]).T
        (similar * clip.model.logit_scale.exp()).sum().backward()
    assert clip.model.logit_scale.grad is not None and clip.model.text_projection.weight.grad.isfinite().all()
    clip.zero_grad()


def test_file_round_trip_and_transformers_loads_it_strictly(clip: PostcardCLIP, tmp_path) -> None:
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path / "clip.safetensors"
    clip.save(path, header={"training": {"seed": 1}}, modelspec={"title": "Postcard CLIP"})
    again = PostcardCLIP.load(path)
    assert again.tokenizer.vocabulary == WORDS and not again.training
    assert torch.equal(again.encode_text(["a red hosue"]), clip.encode_text(["a red house"]))
    tensors, header = load_file(path, "postcard_clip")
    assert header["training"] == {"seed": 1}
    CLIPModel(CLIPConfig(**clip_config(len(WORDS) + 4))).load_state_dict(tensors, strict=True)


def test_a_smaller_clip_keeps_its_size_in_its_file(clip: PostcardCLIP, tmp_path) -> None:
    small = PostcardCLIP(WORDS, {"text": 1, "vision": 2}).eval()
    small.save(tmp_path / "small.safetensors")
    again = PostcardCLIP.load(tmp_path / "small.safetensors")
    assert len(again.model.text_model.encoder.layers) == 1 and len(again.model.vision_model.encoder.layers) == 2
    pictures = torch.rand(2, 3, 64, 64)
    assert torch.equal(again.encode_images(pictures), small.encode_images(pictures))
    assert torch.equal(again.encode_text(WORDS), small.encode_text(WORDS))


@pytest.mark.parametrize("layers", [3, 10**9, -1, "all", None, {}])
def test_a_header_that_claims_other_layers_is_refused(clip: PostcardCLIP, tmp_path, layers) -> None:
    from hypertransport_core.files import save_file

    config = clip_config(len(WORDS) + 4, vision_config={"num_hidden_layers": layers})
    for wrong in (config, [], None, {"vision_config": 6}):
        header = {"vocabulary": WORDS, "config": wrong}
        save_file(tmp_path / "x.safetensors", dict(clip.model.state_dict()), "postcard_clip", header, {})
        with pytest.raises(FileError, match="x.safetensors describes the layers"):
            PostcardCLIP.load(tmp_path / "x.safetensors")


def test_half_precision_file_is_close(clip: PostcardCLIP, tmp_path) -> None:
    clip.save(tmp_path / "half.safetensors", dtype=torch.float16)
    again = PostcardCLIP.load(tmp_path / "half.safetensors")
    assert next(again.parameters()).dtype == torch.float32
    assert torch.allclose(again.encode_text(["boat"]), clip.encode_text(["boat"]), atol=5e-3)


def test_file_whose_words_do_not_fit_is_refused(clip: PostcardCLIP, tmp_path) -> None:
    from hypertransport_core.files import save_file

    tensors = dict(clip.model.state_dict())
    for vocabulary in (WORDS[:-1], ["Cat"] * len(WORDS), 3, None):
        save_file(tmp_path / "x.safetensors", tensors, "postcard_clip", {"vocabulary": vocabulary}, {})
        with pytest.raises(FileError, match="x.safetensors"):
            PostcardCLIP.load(tmp_path / "x.safetensors")
    tensors.pop("logit_scale")
    save_file(tmp_path / "x.safetensors", tensors, "postcard_clip", {"vocabulary": WORDS}, {})
    with pytest.raises(FileError, match="logit_scale"):
        PostcardCLIP.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 4)])
def test_wrong_picture_shapes_are_refused(clip: PostcardCLIP, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        clip.encode_images(torch.rand(shape))
