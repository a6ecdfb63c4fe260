"""The whole method behind one small interface: load, embed a concept, predict maps, make pictures.

pipeline = Pipeline.load("weights")
maps = pipeline.maps(pipeline.embed_text("teal mosaic"))
pictures = pipeline.generate(["a red house"], seeds=[7], maps=maps, strength=0.75)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .encoders.base import ConceptEmbedding, ConceptEncoder, average, centre
from .encoders.concept import concept_from_text, concepts_from_pictures, one_concept, unknown_words
from .encoders.response import ResponseEncoder, response_encoder
from .files import FileError, check_fits, read_header
from .images import load_picture
from .steering import Envelope, Steering
from .transport import TransportMaps
from .weights_io import HYPERNETWORK, load_hypernetwork

if TYPE_CHECKING:
    from .backbones.protocol import Backbone
    from .hypernetworks.base import Hypernetwork

_PACKAGE = Path(__file__).resolve().parent
# Beside the package in a clone or in custom_nodes, within it where it was installed as a wheel.
WEIGHTS = _PACKAGE / "weights" if (_PACKAGE / "weights").is_dir() else _PACKAGE.parent / "weights"
MODEL_FILE, CLIP_FILE, JUDGE_FILE = "postcard.safetensors", "postcard_clip.safetensors", "postcard_judge.safetensors"
HYPERNETWORK_FILE = "postcard_hypernetwork.safetensors"
PICTURE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".jfif",
    ".ppm",
)
BATCH = 32  # pictures in one call of the network

StepMaps = TransportMaps | Sequence[TransportMaps]
"""One set of maps for all sampling steps, or one for each of several equal stretches of noise level, noisiest first."""


class PipelineError(ValueError):
    """A request that cannot be served; the message is one sentence with the cure."""


class Pipeline:
    """A text-to-image model, a concept encoder and a hypernetwork that belong together. Nothing in it changes after
    loading."""

    def __init__(
        self,
        backbone: Backbone,
        encoder: ConceptEncoder,
        hypernetwork: Hypernetwork | None = None,
        *,
        means: Mapping[str, Tensor] | None = None,
        templates: Sequence[str] = ("{}",),
        header: Mapping[str, Any] | None = None,
    ) -> None:
        """means: what `encoders.base.centred` takes, from the hypernetwork's file; templates: sentences whose mean
        embedding stands for a concept in words; header: what the hypernetwork's file says about itself."""
        self.backbone, self.encoder = backbone, encoder
        self.hypernetwork = None if hypernetwork is None else hypernetwork.eval()
        self.means, self.templates, self.header = dict(means or {}), tuple(templates), dict(header or {})

    @classmethod
    def load(
        cls,
        folder: str | Path | None = None,
        *,
        hypernetwork: str | Path | None = None,
        device: torch.device | str = "cpu",
        steered: bool = True,
    ) -> Pipeline:
        """Load the Postcard world from a weights folder (the one shipped with this package unless given).

        hypernetwork: a file, or the name of one in the folder; without it the folder's
        `postcard_hypernetwork.safetensors` or its only hypernetwork. steered=False: go without a hypernetwork; such a
        pipeline cannot predict maps. Raises FileError, in one sentence, for whatever is missing, damaged or made for something else.
        """
        from .postcard.captions import TEMPLATES

        folder = WEIGHTS if folder is None else Path(folder)
        backbone, encoder = load_postcard(folder, device)
        if not steered:
            return cls(backbone, encoder, templates=TEMPLATES)
        loaded = load_hypernetwork(find_hypernetwork(folder, hypernetwork))
        if loaded.reader is not None:
            encoder = response_encoder(encoder, backbone, loaded.reader)
        check_fits(
            loaded.header,
            loaded.path,
            network=backbone.network,
            family=backbone.family,
            encoder_id=encoder.encoder_id,
            encoder_width=encoder.width,
        )
        return cls(
            backbone,
            encoder,
            loaded.hypernetwork.to(device),
            means=loaded.means,
            templates=TEMPLATES,
            header=loaded.header,
        )

    @property
    def steps_default(self) -> int:
        """Sampling steps when none are asked for."""
        return int(self.backbone.steps_default)

    def without_response(self) -> Pipeline:
        """The same model with concepts read by the encoder alone, not by the model's response, and no hypernetwork."""
        encoder = self.encoder.encoder if isinstance(self.encoder, ResponseEncoder) else self.encoder
        return Pipeline(self.backbone, encoder, templates=self.templates)

    def embed_text(self, concept: str) -> ConceptEmbedding:
        """A concept in words: one unit vector (E,), the mean over several phrasings. Raises EncoderError when empty."""
        return concept_from_text(self.encoder, concept, self.templates)

    def embed_image(
        self, picture: str | Path | Tensor | Sequence[str | Path | Tensor], source: str = ""
    ) -> ConceptEmbedding:
        """A concept shown by one picture or several: one unit vector (E,), their mean.

        picture: a path to a file of any usual kind and size, or (3, H, W) or (N, 3, H, W) floats in [0, 1]. Raises
        FileError for a file that is no picture, ValueError for a tensor of another shape.
        """
        several = [picture] if isinstance(picture, (str, Path, Tensor)) else list(picture)
        names = [Path(item).name for item in several if not isinstance(item, Tensor)]
        pictures = [item if isinstance(item, Tensor) else load_picture(item) for item in several]
        return one_concept(concepts_from_pictures(self.encoder, pictures), source=source or ", ".join(names))

    def embed(self, concept: str | Path | Tensor) -> ConceptEmbedding:
        """`embed_image` for a path to a picture or a tensor, `embed_text` for other words."""
        return (
            self.embed_image(concept)
            if isinstance(concept, Tensor) or is_picture(concept)
            else self.embed_text(str(concept))
        )

    def mix(self, embeddings: Sequence[ConceptEmbedding], weights: Sequence[float] | None = None) -> ConceptEmbedding:
        """One concept between several, words and pictures alike; negative weights lead away. Raises EncoderError."""
        return average(embeddings, weights)

    def centred(self, embeddings: ConceptEmbedding | Sequence[ConceptEmbedding]) -> Tensor:
        """What the hypernetwork reads: (N, E), every modality's mean gone."""
        items = [embeddings] if isinstance(embeddings, ConceptEmbedding) else list(embeddings)
        return torch.stack([centre(item.single(), self.means).vector for item in items])

    @torch.no_grad()
    def maps(self, embeddings: ConceptEmbedding | Sequence[ConceptEmbedding]) -> StepMaps:
        """The maps of one concept (one row) or of several (one row each): one pass through the hypernetwork.

        A hypernetwork with maps per step gives a list, one per step. Raises PipelineError without a hypernetwork.
        """
        if self.hypernetwork is None:
            raise PipelineError("No hypernetwork is loaded, so no maps can be predicted; load the pipeline with one.")
        every = self.hypernetwork.all_steps(self.centred(embeddings).to(self.hypernetwork.source_mean.device))
        items = [embeddings] if isinstance(embeddings, ConceptEmbedding) else embeddings
        about = {
            "concept": "; ".join(item.source for item in items),
            "encoder": self.encoder.encoder_id,
            "backbone": self.backbone.family,
        }
        named = [TransportMaps(maps.sites, maps.scale, maps.shift, {**maps.info, **about}) for maps in every]
        return named[0] if len(named) == 1 else named

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        maps: StepMaps | None = None,
        strength: float | Tensor = 1.0,
        *,
        steps: int | None = None,
        envelope: Envelope | None = None,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Pictures (B, 3, H, W) float32 in [0, 1], one per prompt and seed; one prompt or one seed serves all.

        maps: of one concept for all pictures, with one row per picture, or any number with `rows`, long (B,), naming
        the row of each (-1: none). strength: λ, one for all or (B,); 0 is bit-identical to no maps, 1 the full map,
        other values extrapolate. steps: of the sampler, 4 for Postcard. envelope: over which noise levels to steer;
        mask: where, see `Steering`. Raises PipelineError, SteeringError.
        """
        prompts, seeds = _paired(prompts, seeds)
        steps = self.steps_default if steps is None else int(steps)
        if steps < 1:
            raise PipelineError(f"The number of sampling steps is {steps}, but must be at least 1.")
        parts = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, min(start + BATCH, len(prompts)))
            used, power, chosen, where = _part_of(part, len(prompts), maps, strength, rows, mask)
            steering = [] if used is None else steerings(used, power, envelope=envelope, mask=where)
            latents = self.backbone.sample(
                self.backbone.encode(prompts[part]),
                self.backbone.noise(seeds[part]),
                steps=steps,
                steering=steering,
                rows=chosen,
            )
            parts.append(self.backbone.decode(latents).float().cpu())
        return torch.cat(parts)

    def unknown_words(self, text: str) -> list[str]:
        """Words of a concept or prompt that the embedded CLIP was never taught, and knows no spelling close to."""
        return unknown_words(self.encoder, text)


def is_picture(concept: str | Path) -> bool:
    """Whether a concept is a path to a picture rather than words: it ends like one, or it is a file that exists."""
    path = Path(concept)
    try:
        return isinstance(concept, Path) or path.suffix.lower() in PICTURE_SUFFIXES or path.is_file()
    except (OSError, ValueError):  # words too long or strange for a file system
        return False


def steerings(
    maps: StepMaps, strength: float | Tensor = 1.0, *, envelope: Envelope | None = None, mask: Tensor | None = None
) -> list[Steering]:
    """What to install for maps: one `Steering`, or one per set of maps, each over its own stretch of noise level."""
    if isinstance(maps, TransportMaps):
        return [Steering(maps, strength, envelope=envelope, mask=mask)]
    outer = envelope or Envelope()
    out = []
    for number, one in enumerate(maps):
        start, end = 1 - number / len(maps), 1 - (number + 1) / len(maps)
        inner = Envelope(min(start, outer.start), max(end, outer.end))
        out.append(Steering(one, strength, envelope=inner, mask=mask))
    return out


def each_map(maps: StepMaps, change: Any) -> StepMaps:
    """`change(maps)` for one set of maps, or for every set of several: `each_map(maps, TransportMaps.inverse)`."""
    return change(maps) if isinstance(maps, TransportMaps) else [change(one) for one in maps]


def load_postcard(folder: Path, device: torch.device | str = "cpu") -> tuple[Backbone, ConceptEncoder]:
    """The Postcard model and its CLIP from a weights folder. Raises FileError."""
    from .encoders.postcard_clip import PostcardClipEncoder
    from .postcard.clip import PostcardCLIP
    from .postcard.model import PostcardBackbone

    model_file, clip_file = (weights_file(folder, name) for name in (MODEL_FILE, CLIP_FILE))
    clip = PostcardCLIP.load(clip_file).to(device)
    backbone = PostcardBackbone.load(model_file, clip)
    return backbone, PostcardClipEncoder(clip)


def weights_file(folder: Path, name: str) -> Path:
    """A file of the Postcard world in a weights folder: MODEL_FILE, CLIP_FILE or JUDGE_FILE. Raises FileError."""
    if not (folder / name).is_file():
        raise FileError(
            f"{folder} holds no {name}, expected the weights of the Postcard world: check --weights, or download "
            "the package again"
        )
    return folder / name


def find_hypernetwork(folder: Path, wanted: str | Path | None = None) -> Path:
    """The hypernetwork file to use: the wanted one (a path or a name in the folder), the usual one, or the only one.
    Raises FileError."""
    if wanted is not None:
        path = Path(wanted)
        found = next((p for p in (path, folder / path, folder / f"{wanted}.safetensors") if p.is_file()), None)
        if found is None:
            raise FileError(f"{path} is not there, nor is it in {folder}, expected a hypernetwork file: check the name")
        return found
    if (folder / HYPERNETWORK_FILE).is_file():
        return folder / HYPERNETWORK_FILE
    several = [path for path in sorted(folder.glob("*.safetensors")) if _is_hypernetwork(path)]
    if len(several) != 1:
        raise FileError(
            f"{folder} holds {len(several)} hypernetworks, expected {HYPERNETWORK_FILE} or exactly one: "
            + ("name the one to use" if several else "train one with train_hypernet.py, or download the package again")
        )
    return several[0]


def _is_hypernetwork(path: Path) -> bool:
    try:
        return read_header(path)[0].get("kind") == HYPERNETWORK
    except FileError:
        return False  # other tools' files may lie in the folder too


def _paired(prompts: str | Sequence[str], seeds: int | Sequence[int]) -> tuple[list[str], list[int]]:
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
    count = max(len(prompts), len(seeds))
    if not prompts or not seeds or {len(prompts), len(seeds)} - {1, count}:
        raise PipelineError(
            f"Got {len(prompts)} prompts and {len(seeds)} seeds; give one of each per picture, or a single one for all."
        )
    return prompts * (count // len(prompts)), seeds * (count // len(seeds))


def _part_of(
    part: slice, count: int, maps: StepMaps | None, strength: float | Tensor, rows: Tensor | None, mask: Tensor | None
) -> tuple[StepMaps | None, float | Tensor, Tensor | None, Tensor | None]:
    """Maps, strength, rows and mask of some of `count` pictures."""
    if maps is None:
        return None, strength, None, None
    first = maps if isinstance(maps, TransportMaps) else maps[0]
    if isinstance(strength, Tensor) and strength.numel() == 1:
        strength = float(strength)
    if isinstance(strength, Tensor) and strength.numel() != count:
        raise PipelineError(f"Got {strength.numel()} strengths for {count} pictures; give one, or one per picture.")
    index = rows
    if index is None:
        if first.rows not in (1, count):
            raise PipelineError(
                f"Got maps of {first.rows} concepts for {count} pictures; give one, one per picture, or name rows."
            )
        index = torch.arange(count) if first.rows > 1 else torch.zeros(count, dtype=torch.long)
    elif index.shape != (count,) or index.dtype != torch.long:
        raise PipelineError(
            f"rows has the shape {tuple(index.shape)} and dtype {index.dtype}, expected long ({count},): one map row "
            "per picture."
        )
    where = mask[part] if mask is not None and mask.ndim == 3 and mask.shape[0] == count else mask
    power = strength[part].float() if isinstance(strength, Tensor) else strength
    if first.rows == 1 and not bool((index < 0).any()):
        return maps, power, None, where
    index = index[part]
    # One row of maps per picture, so that maps, strengths and pictures count alike.
    used = each_map(maps, lambda one: _pick(one, index.clamp(min=0)))
    return used, power, index >= 0, where


def _pick(maps: TransportMaps, index: Tensor) -> TransportMaps:
    if maps.rows == 1:
        return maps
    return TransportMaps(maps.sites, maps.scale[index], maps.shift[index], dict(maps.info))
