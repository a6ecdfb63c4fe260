"""The judges of the Postcard world: a small convolutional network, trained on renders only, that names concept, subject and colour.

It never sees a generated picture in training and takes no part in training anything it scores.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files
from ..network_state import built
from .concepts import concepts
from .render import COLOURS
from .subjects import SUBJECTS

KIND = "postcard_judge"


@dataclass
class Verdict:
    """Probabilities, float32: `concept` (B, concepts + 1; the last is *no concept*), `subject` (B, subjects), `colour` (B, colours)."""

    concept: Tensor
    subject: Tensor
    colour: Tensor


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return nn.functional.max_pool2d(x + self.second(x), 2)


class _Mixing(nn.Module):
    """A look around within each channel, then a mixture of channels, added to what was there (ConvNeXt, arXiv
    2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mix = nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, 3 * width, 1), nn.GELU(),
                                 nn.Conv2d(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.around(x))


def _blocks(widths: Sequence[int]) -> nn.Sequential:
    """Convolutions with pooling: every width halves the side, so four of them leave 4 x 4."""
    return nn.Sequential(*(_Block(a, b) for a, b in zip((3, *widths), widths)))


def _patches(widths: Sequence[int]) -> nn.Sequential:
    """Patches of 4 x 4 pixels that look around and are merged by twos: three widths leave 4 x 4."""
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(zip((3, *widths), widths)):
        side = 2 if number else 4
        layers += [nn.Conv2d(a, b, side, side), _Mixing(b), _Mixing(b)]
    return nn.Sequential(*layers)


ARCHITECTURES = {"blocks": (_blocks, (32, 64, 96, 160)), "patches": (_patches, (64, 128, 192))}


class Judge(nn.Module):
    """Three heads over one of two kinds of trunk; input (B, 3, 64, 64) in [0, 1].

    architecture: `blocks`, or `patches`, which shares no kind of layer with it but plain convolutions, so that two judges
    do not err alike; widths: of its stages, which leave 4 x 4 places.
    """

    def __init__(self, widths: Sequence[int] | None = None, architecture: str = "blocks") -> None:
        super().__init__()
        make, usual = ARCHITECTURES[architecture]
        widths = tuple(widths or usual)
        self.widths, self.architecture = widths, architecture
        self.blocks = make(widths)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * 16, 384), nn.ReLU())
        self.concept = nn.Linear(384, len(concepts()) + 1)
        self.subject = nn.Linear(384, len(SUBJECTS))
        self.colour = nn.Linear(384, len(COLOURS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of concept, subject, colour."""
        h = self.trunk(self.blocks(images * 2 - 1))
        return self.concept(h), self.subject(h), self.colour(h)

    @torch.no_grad()
    def verdict(self, images: Tensor) -> Verdict:
        """Probabilities for pictures (B, 3, 64, 64) in [0, 1], without gradient; in evaluation mode, please."""
        return Verdict(*(logits.float().softmax(-1) for logits in self(images.float())))

    def save(self, path: str | Path, header: dict[str, object] | None = None) -> None:
        """fp16 safetensors; raises FileError."""
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        files.save_file(path, tensors, KIND, {**(header or {}), "widths": list(self.widths),
                                              "architecture": self.architecture, "concepts": [c.name for c in concepts()],
                                              "subjects": list(SUBJECTS), "colours": list(COLOURS)}, {})

    @classmethod
    def load(cls, path: str | Path) -> Judge:
        """In evaluation mode; raises FileError for a damaged file or one made for another list of concepts."""
        tensors, header = files.load_file(path, KIND)
        known, widths = header.get("concepts"), header.get("widths")
        if not isinstance(known, list) or not isinstance(widths, list):
            raise files.FileError(f"{path} names neither its concepts nor its widths, expected both in its header: "
                                  "download the file again, or train it with "
                                  "python -m hypertransport_core.postcard.train_judge")
        if known != [c.name for c in concepts()]:
            raise files.FileError(f"{path} judges {len(known)} concepts that are not this version's {len(concepts())}: "
                                  "train it again with python -m hypertransport_core.postcard.train_judge")
        architecture = header.get("architecture", "blocks")  # the only one there was at first
        return built(lambda: cls(tuple(widths), architecture), {"widths": widths}, tensors, path).train(False)
