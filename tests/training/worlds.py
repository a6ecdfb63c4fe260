"""Worlds small enough to train in within seconds, and a command line over them for tests in processes of their own."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypertransport_core.concepts import Concept, ConceptSplit
from hypertransport_core.training.config import TrainingConfig
from hypertransport_core.training.presets import World, chosen_concepts, chosen_scenes, register_preset
from tests.support.tiny_backbone import TinyBackbone

COLOURS = ("crimson", "teal", "golden", "violet", "mint", "copper")
LOOKS = ("stripes", "dots", "mosaic", "wash")
SCENES = tuple(f"a {colour} {thing}" for thing in ("house", "boat", "cat", "tree") for colour in ("red", "blue"))
SMALL = {
    "preset": "tiny",
    "precision": "fp32",
    "device": "cpu",
    "prompts_per_concept": 8,
    "blocks": 8,
    "images_per_concept": 4,
    "sampling_steps": 2,
    "width": 32,
    "bottleneck": 16,
    "steps": 12,
    "concepts_per_step": 3,
    "samples_per_concept": 4,
    "warmup": 2,
    "log_every": 3,
    "validate_every": 6,
    "save_every": 4,
    "strip_concepts": 2,
    "tensorboard": False,
    "paired_weight": 0.5,
    "levels_per_step": 2,
    "keep_last": 3,
}


class WordEncoder:
    """Texts and pictures to unit vectors of one space: a sum of fixed random vectors per word, and a projection of the
    picture.
    """

    encoder_id, width = "words-16", 16

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(
            torch.stack([sum((self._word(w) for w in t.split()), torch.zeros(16)) for t in texts]), dim=-1
        )

    def encode_images(self, images: Tensor) -> Tensor:
        flat = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        projection = torch.randn(flat.shape[1], 16, generator=torch.Generator().manual_seed(1))
        return torch.nn.functional.normalize((flat - flat.mean(1, keepdim=True)) @ projection + 1e-3, dim=-1)

    def _word(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:6], "big")
        return torch.randn(16, generator=torch.Generator().manual_seed(seed))


def concepts() -> ConceptSplit:
    every = [Concept(f"{colour} {look}", look, (), (f"{look} in {colour}",)) for look in LOOKS for colour in COLOURS]
    return ConceptSplit(tuple(every[i] for i in range(24) if i % 6 < 4), tuple(every[4::6]), tuple(every[5::6]))


def tiny_world(config: TrainingConfig) -> World:
    return World(
        TinyBackbone(),
        WordEncoder(),
        chosen_concepts(config, concepts),
        chosen_scenes(config, lambda n: SCENES[:n]),
        ("{}", "{} style"),
    )


register_preset("tiny", tiny_world, {k: v for k, v in SMALL.items() if k != "preset"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    from hypertransport_core.training import cli, data

    # Where to die, for tests of kill -9: "collect:3" after 3 concepts, "train:7" after step 7,
    # "save:8" in the middle of writing that checkpoint, "write:3" in the middle of writing the fourth file.
    place, _, count = os.environ.get("DIE_AT", "").partition(":")

    def die() -> None:
        os.kill(os.getpid(), 9)

    if place == "collect":
        original = data.DataFolder._collect_concept
        seen: list[int] = []

        def collect(self: data.DataFolder, concept: Concept) -> None:
            if len(seen) == int(count):
                die()
            seen.append(1)
            original(self, concept)

        data.DataFolder._collect_concept = collect  # type: ignore[method-assign]
    elif place == "train":
        from hypertransport_core.training import loop

        advance = loop.Trainer.advance

        def dying(self: loop.Trainer) -> dict[str, float]:
            if self.step == int(count):
                die()
            return advance(self)

        loop.Trainer.advance = dying  # type: ignore[method-assign]
    elif place in ("save", "write"):
        import hypertransport_core.checkpoints as checkpoints

        write = checkpoints._write
        written: list[str] = []

        def half(tensors: dict[str, Tensor], path: str, metadata: dict[str, str]) -> None:
            write(tensors, path, metadata=metadata)
            written.append(path)
            if f"step-{int(count):08d}" in path if place == "save" else len(written) > int(count):
                with open(path, "rb+") as file:
                    file.truncate(os.path.getsize(path) // 2)
                die()

        checkpoints._write = half
    sys.exit(cli.main(sys.argv[1:]))
