"""Worlds to train in around a model of the host that is there already: prompts are fixed random vectors, one per word.

They enter through a CLIP object of the host and its `extra_conds`, so everything after the text encoder is real. Import
only where the host is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch


class Words:
    """Tokenizer: one token per word, and only as many as the text has unless told otherwise, like T5's for PixArt."""

    least = 1

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        pass

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, tokenizer_options: dict = {}, **kwargs: Any
    ) -> dict:
        words = text.split()
        words += [""] * (max(self.least, tokenizer_options.get("w_min_length", 1)) - len(words))
        return {"w": [[(word, 1.0) for word in words]]}

    def state_dict(self) -> dict:
        return {}


def word_clip(context: int, pooled: int, least: int = 1) -> Any:
    """A CLIP socket's object whose words are fixed random vectors; every prompt has at least `least` of them."""
    import comfy.sd

    class Encoder(torch.nn.Module):
        def __init__(self, device: Any = None, dtype: Any = None, model_options: Any = None) -> None:
            super().__init__()
            self.dtypes = {torch.float32}

        def set_clip_options(self, options: dict) -> None:
            pass

        def reset_clip_options(self) -> None:
            pass

        def encode_token_weights(self, tokens: dict) -> tuple:
            def vector(word: str, width: int) -> torch.Tensor:
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:6], "big")
                return torch.randn(width, generator=torch.Generator().manual_seed(seed))

            words = [word for word, _ in tokens["w"][0]]
            states = torch.stack([vector(w, context) for w in words])[None]
            return states, torch.stack([vector("p" + w, pooled) for w in words]).mean(0)[None] if pooled else None

        def load_sd(self, sd: dict) -> None:
            pass

    target = SimpleNamespace(params={}, clip=Encoder, tokenizer=type("Padded", (Words,), {"least": least}))
    return comfy.sd.CLIP(target, parameters=0)


def random_world(
    host: Any, config: Any, train: Sequence[str], validation: Sequence[str] = (), encoder: Any = None, least: int = 1
) -> Any:
    """What `host_worlds.host_world` makes of the config's preset, around `host` (a TinyHost); without a VAE, and with
    Postcard's concept encoder unless another is given."""
    from hypertransport_core.backbones.host_files import HostModel
    from hypertransport_core.concepts import Concept, ConceptSplit, generic_scenes
    from hypertransport_core.encoders.concept import templates_of
    from hypertransport_core.training import host_recipes, host_worlds, presets

    loaded = HostModel(host.model, word_clip(host.family.context, host.family.pooled, least), None)
    backbone = host_worlds.build_backbone(host_recipes.RECIPES[config.preset], config, loaded)
    scenes = generic_scenes(config.prompts_per_concept)
    longest = max([*train, *validation], key=lambda name: len(name.split()))
    backbone.pad_to_longest([*scenes, *presets.append_words(scenes, longest)])
    if encoder is None:
        encoder = host_worlds.concept_encoder("weights/postcard_clip.safetensors", torch.device("cpu"))
    split = ConceptSplit(*(tuple(Concept(name, "look", (), ()) for name in names) for names in (train, validation, ())))
    return presets.World(
        backbone, encoder, split, scenes, templates_of(encoder), facts=host_worlds.facts_of(config, backbone)
    )
