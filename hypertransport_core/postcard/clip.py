"""The small CLIP of the Postcard world: a `transformers` CLIPModel with a word-level vocabulary.

Its text tokens condition the Postcard model; its projected vectors are the concept embeddings of the Postcard
hypernetworks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .. import broken_torchvision, files
from ..encoders.base import EncoderError
from ..encoders.preprocess import normalise, resize_and_crop
from ..encoders.transformers_clip import first_line
from ..network_state import load_into

CONTEXT_LENGTH = 24
TEXT_WIDTH = 192
PROJECTION_WIDTH = 128
IMAGE_SIZE = 64
LAYERS = {"text": 4, "vision": 6}  # of the CLIP that conditions the Postcard model
KIND = "postcard_clip"
_WORD = re.compile(r"[^\W_]+")


class WordTokenizer:
    """Words to ids. 0 = padding, 1 = begin, 2 = unknown, then the vocabulary in its order, and last (highest) the end
    token.

    The end token has the highest id because CLIP pools either at argmax(ids) (old files) or at the first end token (new
    files); so both rules, and every `transformers` version, find the same position.
    """

    pad_id = 0
    begin_id = 1
    unknown_id = 2

    def __init__(self, vocabulary: Sequence[str], length: int = CONTEXT_LENGTH) -> None:
        """vocabulary: distinct lower-case words of letters and digits only; raises ValueError otherwise."""
        self.vocabulary = list(vocabulary)
        self.length = length
        wrong = [word for word in self.vocabulary if not _WORD.fullmatch(word) or word != word.lower()]
        if wrong:
            raise ValueError(f"the vocabulary holds {wrong[0]!r}, expected single lower-case words of letters and "
                             "digits: split texts with words_of() first")
        self._ids = {word: index + 3 for index, word in enumerate(self.vocabulary)}
        if len(self._ids) != len(self.vocabulary):
            raise ValueError(f"the vocabulary of {len(self.vocabulary)} words has {len(self._ids)} distinct ones: "
                             "remove doubles")
        self.end_id = len(self.vocabulary) + 3

    @property
    def size(self) -> int:
        """Number of ids: the words and the four special tokens."""
        return self.end_id + 1

    def word_id(self, word: str) -> int:
        """Id of a lower-case word; a misspelling goes to the nearest known word, anything else to `unknown_id`."""
        known = self._ids.get(word)
        if known is None:
            near = self._nearest(word)
            known = self._ids[near] if near is not None else self.unknown_id
            if len(self._ids) < 100_000:  # remembers answers, within bounds
                self._ids[word] = known
        return known

    def _nearest(self, word: str) -> str | None:
        allowed = 0 if len(word) < 4 else 1 if len(word) < 7 else 2
        best, best_distance = None, allowed + 1
        for candidate in self.vocabulary:
            if len(candidate) < 3 or abs(len(candidate) - len(word)) >= best_distance:
                continue
            distance = edit_distance(word, candidate, best_distance)
            if distance < best_distance:
                best, best_distance = candidate, distance
        return best

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """texts: B strings -> ids (B, length) long and mask (B, length) bool, True at begin, words and end.

        Words beyond length - 2 are left out.
        """
        ids = torch.full((len(texts), self.length), self.pad_id, dtype=torch.long)
        for row, text in enumerate(texts):
            words = [self.word_id(word) for word in words_of(text)[:self.length - 2]]
            line = [self.begin_id, *words, self.end_id]
            ids[row, :len(line)] = torch.tensor(line)
        return ids, ids != self.pad_id


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, split at white space and punctuation."""
    return _WORD.findall(text.lower())


def read_over(words: Sequence[str]) -> str:
    """What a user is told of words in a prompt that the CLIP was never taught."""
    return f"Postcard was never taught {', '.join(map(repr, words))} in a prompt, and reads over it."


def edit_distance(first: str, second: str, limit: int) -> int:
    """Insertions, deletions, replacements and swaps of neighbours from one word to the other, counted up to `limit`."""
    before: list[int] = []
    previous = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        row = [i]
        for j, b in enumerate(second, 1):
            cost = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        if min(row) >= limit and min(previous) >= limit:
            return limit
        before, previous = previous, row
    return min(previous[-1], limit)


def clip_config(vocabulary_size: int, **changes: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `transformers.CLIPConfig`; `changes` = {text_config: {...}, vision_config: {...}} override
    sizes."""
    shared = {"hidden_size": TEXT_WIDTH, "num_attention_heads": 4, "intermediate_size": 768,
              "projection_dim": PROJECTION_WIDTH}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": vocabulary_size - 1}
    text = {**shared, **tokens, "vocab_size": vocabulary_size, "num_hidden_layers": LAYERS["text"],
            "max_position_embeddings": CONTEXT_LENGTH}
    vision = {**shared, "num_hidden_layers": LAYERS["vision"], "image_size": IMAGE_SIZE, "patch_size": 8}
    return {"text_config": {**text, **changes.get("text_config", {})},
            "vision_config": {**vision, **changes.get("vision_config", {})}, "projection_dim": PROJECTION_WIDTH}


class PostcardCLIP(nn.Module):
    """`transformers.CLIPModel` (attribute `model`, with `model.logit_scale` for training) and its tokenizer
    (`tokenizer`)."""

    encoder_id = "postcard-clip"
    width = PROJECTION_WIDTH

    def __init__(self, vocabulary: Sequence[str], layers: Mapping[str, int] = LAYERS) -> None:
        """A fresh model with random weights over the words of `vocabulary`; layers: how many the towers `text` and
        `vision` have. Raises ValueError for a faulty vocabulary, EncoderError without a working transformers."""
        super().__init__()
        try:
            with broken_torchvision.set_aside():
                from transformers import CLIPConfig, CLIPModel
        except Exception as error:  # a broken installation fails in many ways
            raise EncoderError(f"transformers cannot be imported ({first_line(error)}), expected a working "
                               "installation: install or repair the package 'transformers'") from error
        self.tokenizer = WordTokenizer(vocabulary)
        towers = {f"{tower}_config": {"num_hidden_layers": count} for tower, count in layers.items()}
        self.config = clip_config(self.tokenizer.size, **towers)
        self.model = CLIPModel(CLIPConfig(**self.config))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.logit_scale.device

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B strings -> ids (B, 24) long and mask (B, 24) bool, on the model's device."""
        ids, mask = self.tokenizer(texts)
        return ids.to(self.device), mask.to(self.device)

    def text_tokens(self, ids: Tensor) -> Tensor:
        """ids (B, 24) -> last hidden states (B, 24, 192) after the final layer norm.

        Padding is never attended to; states at padding positions depend on the words and the position only.
        """
        return self._text(ids).last_hidden_state

    def encode_ids(self, ids: Tensor) -> Tensor:
        """ids (B, 24) -> unit vectors (B, 128) float32; gradients flow."""
        return functional.normalize(self.model.text_projection(self._text(ids).pooler_output).float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """B strings -> unit vectors (B, 128) float32; gradients flow."""
        return self.encode_ids(self.tokenize(texts)[0])

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], any size -> unit vectors (B, 128) float32; gradients flow. Raises ValueError for
        other shapes."""
        pixels = normalise(resize_and_crop(images.to(self.device), IMAGE_SIZE), (0.5,) * 3, (0.5,) * 3)
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.logit_scale.dtype)).pooler_output
        return functional.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def _text(self, ids: Tensor) -> Any:
        mask = (ids != WordTokenizer.pad_id).long()
        return self.model.text_model(input_ids=ids, attention_mask=mask)

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32, header: dict[str, Any] | None = None,
             modelspec: dict[str, str] | None = None) -> None:
        """Write one safetensors file whose names load strictly into `transformers.CLIPModel`; raises FileError."""
        tensors = {name: value.detach().to(dtype) for name, value in self.model.state_dict().items()}
        own = {"vocabulary": self.tokenizer.vocabulary, "config": self.config}
        files.save_file(path, tensors, KIND, {**(header or {}), **own}, modelspec or {})

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype = torch.float32) -> PostcardCLIP:
        """Read what `save` wrote, in evaluation mode; raises FileError for anything else, EncoderError without transformers."""
        tensors, header = files.load_file(path, KIND)
        vocabulary = header.get("vocabulary")
        if not isinstance(vocabulary, list) or not all(isinstance(word, str) for word in vocabulary):
            raise files.FileError(f"{path} carries no list of words for its text tower, expected 'vocabulary' in its "
                                  "header: download or train the file again")
        embedded = tensors.get("text_model.embeddings.token_embedding.weight", torch.empty(0)).shape[:1]
        if embedded != (len(vocabulary) + 4,):
            raise files.FileError(f"{path} lists {len(vocabulary)} words but embeds {list(embedded)}, expected four "
                                  "more than words: download or train the file again")
        layers = _layers(tensors, header.get("config", clip_config(len(vocabulary) + 4)), path)
        try:
            clip = cls(vocabulary, layers)
        except EncoderError:
            raise  # no fault of the file
        except ValueError as error:
            raise files.FileError(f"{path} cannot be used: {error}") from error
        load_into(clip.model, tensors, path)
        return clip.to(dtype).train(False)


def _layers(tensors: Mapping[str, Tensor], config: Any, path: str | Path) -> dict[str, int]:
    """How many layers each tower has in a file's tensors; raises FileError where its header says otherwise, so that
    no header makes us build more than the file holds."""
    held = {
        tower: len({name.split(".")[3] for name in tensors if name.startswith(f"{tower}_model.encoder.layers.")})
        for tower in LAYERS
    }
    try:
        claimed = {tower: config[f"{tower}_config"]["num_hidden_layers"] for tower in LAYERS}
    except (TypeError, LookupError):
        claimed = None
    if claimed != held:
        raise files.FileError(f"{path} describes the layers {claimed} but holds {held}, expected both to agree: "
                              "download or train the file again")
    return held
