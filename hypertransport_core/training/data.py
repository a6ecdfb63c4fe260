"""The collected data of a run: per concept a file with sorted block means, word embeddings and picture embeddings.

Files are those of `checkpoints`. One untouched pass per prompt and noise level; nothing of a concept is written before
all of it is there, so that a killed collection goes on with the next concept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..capture import MOMENTS, PooledCapture
from ..checkpoints import load_checkpoint
from ..concepts import Concept
from ..encoders.base import unit
from ..files import FileError, facts_digest, sites_from_header, sites_to_header
from ..measuring import next_latents
from ..sites import site_slices, total_channels
from ..wasserstein import block_means, coarsen
from .collecting import collect_together
from .config import ConfigError, TrainingConfig
from .distribution import Group
from .embeddings import EmbeddingBank
from .presets import World, precision_of
from .states import save_whole

if TYPE_CHECKING:
    from .responses import Responses

# Larger numbers than these have no place in half precision.
LARGEST_HALF = 6e4


def derived_seed(seed: int, *labels: str | int) -> int:
    """A seed in [0, 2**62) for one purpose, made from the run's seed anew, so no stream has to be carried along."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *labels]).encode()).digest()[:8], "big") >> 2


def seeds_for(count: int, seed: int, *labels: str | int) -> list[int]:
    """`count` noise seeds in [0, 2**31) for one purpose."""
    generator = torch.Generator().manual_seed(derived_seed(seed, *labels))
    return torch.randint(2**31 - 1, (count,), generator=generator).tolist()


def arithmetic(config: TrainingConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The dtype in which the base model computes."""
    return torch.autocast(device.type, torch.bfloat16) if precision_of(config, device) == "bf16" else nullcontext()


def renoised(world: World, clean: Tensor, noise: Tensor, levels: Sequence[float], number: int) -> Tensor:
    """Latents at a later noise level t with a given clean part; of a flow from 1, (1 - t) clean + t noise."""
    return stepped(world, noise, clean, noise, levels[0], levels[number])


def stepped(world: World, x: Tensor, clean: Tensor, noise: Tensor, level: float, following: float) -> Tensor:
    """Latents of the next sampling step from x and its clean prediction; noise: what the run began with."""
    advance = getattr(world.backbone, "advance", None)
    if advance is None:
        return next_latents(x, clean, level, following)
    return advance(x, clean, level, following, noise)


def levels_of(world: World, config: TrainingConfig) -> list[float]:
    """The noise levels at which the base model is called, noisiest first, without the final 0."""
    return [float(level) for level in world.backbone.noise_levels(config.sampling_steps) if level > 0]


def network_device(world: World) -> torch.device:
    """Where the base model is."""
    return next(world.backbone.network.parameters()).device


class DataFolder:
    """Collected data in a folder, for one run's sites and pooling; several runs with fewer sites may share it.

    Raises ConfigError when the folder was collected for something else, FileError for what the disk refuses.
    """

    def __init__(self, folder: str | Path, world: World, config: TrainingConfig) -> None:
        self.folder, self.world, self.config = Path(folder), world, config
        pattern = config.pattern or None
        self.sites = tuple(world.backbone.sites(config.site_set, pattern))
        self.collected_sites = (
            tuple(world.backbone.sites(config.collect_site_set, pattern)) if config.collect_site_set else self.sites
        )
        self.pooling = config.pooling
        self.levels = levels_of(world, config)
        self.width = world.encoder.width + config.response  # of what the hypernetwork reads
        self.responses: Responses | None = None
        self.key = self._key()
        self.adopt()

    # -- what is collected --------------------------------------------------------------------------------------------

    def _key(self) -> dict[str, Any]:
        """Everything, beside concepts, sites and pooling, on which the numbers depend."""
        c, world = self.config, self.world
        scenes = hashlib.sha256("\n".join(world.scenes).encode()).hexdigest()[:16]
        return {
            "backbone": world.backbone.family,
            "weights": facts_digest(world.backbone.fingerprint()),
            "encoder": world.encoder.encoder_id,
            "scenes": scenes,
            "templates": list(world.templates),
            "levels": self.levels,
            "prompts_per_concept": c.prompts_per_concept,
            "samples_per_prompt": c.samples_per_prompt,
            "blocks": c.blocks,
            "images_per_concept": c.images_per_concept,
            "seed": c.seed_of_data(),
            "precision": precision_of(c, network_device(world)),
            **({"inputs": c.inputs} if c.inputs == "sampled" else {}),
            **world.facts,
        }

    @property
    def source_path(self) -> Path:
        """The file of the generic class."""
        return self.folder / "source.safetensors"

    def _adopt_or_refuse(self) -> None:
        if not self.source_path.is_file():
            return
        header = _header(self.source_path)
        for name in {**header["key"], **self.key}:
            theirs, mine = header["key"].get(name), self.key.get(name)
            if theirs != mine:
                share = f"set collect_seed to {theirs}, " if name == "seed" else ""
                raise ConfigError(
                    f"The data in {self.folder} were collected with {name} = {_short(theirs)}, "
                    f"expected {_short(mine)} as the settings say: {share}choose another data folder, or remove this one."
                )
        self.collected_sites = sites_from_header(header, self.source_path)
        known = {site.path: site for site in self.collected_sites}
        for site in self.sites:
            if known.get(site.path) != site:
                raise ConfigError(
                    f"The data in {self.folder} lack the site '{site.path}', expected all {len(self.sites)} sites of "
                    f"'{self.config.site_set}': choose another data folder, or collect anew with collect_site_set."
                )
        if header["pooling"] != self.pooling and self.pooling != "mean":  # which is part of every other
            raise ConfigError(
                f"The data in {self.folder} were pooled as '{header['pooling']}', expected '{self.pooling}': choose "
                "another data folder."
            )
        self.pooling = header["pooling"]

    def _columns(self) -> Tensor | None:
        """Which columns of the stored tables are the run's; None = all."""
        if self.collected_sites == self.sites and self.pooling == self.config.pooling:
            return None
        where = site_slices(self.collected_sites)
        index = torch.cat([torch.arange(where[site.path].start, where[site.path].stop) for site in self.sites])
        width = total_channels(self.collected_sites)
        return torch.cat([index + moment * width for moment in range(MOMENTS[self.config.pooling])])

    def path_of(self, concept: Concept) -> Path:
        """The file of a concept: its words, made harmless, and a hash that keeps similar ones apart."""
        words = re.sub(r"[^a-z0-9]+", "_", concept.name.lower()).strip("_")[:60]
        code = hashlib.sha256(concept.name.encode()).hexdigest()[:10]
        return self.folder / "concepts" / f"{words}-{code}.safetensors"

    def has(self, concept: Concept) -> bool:
        """Whether a whole file with the present prompts of this concept is there."""
        path = self.path_of(concept)
        if not path.is_file():
            return False
        try:
            header = load_checkpoint(path)["header"]
        except (ValueError, KeyError):
            return False
        if self.config.store_predictions and not header.get("predictions"):
            return False
        return header.get("prompts") == self._prompts_hash(concept) and header.get("source") == self.source_hash()

    def _prompts_hash(self, concept: Concept) -> str:
        prompts = self.world.prompts(concept, self.config.prompts_per_concept)
        return hashlib.sha256(json.dumps([concept.name, prompts, list(concept.phrases)]).encode()).hexdigest()[:16]

    def source_hash(self) -> str:
        """Tells apart what was collected for different models, encoders, scenes, sites or settings."""
        return facts_digest([self.key, sites_to_header(self.collected_sites), self.pooling])

    @property
    def collected(self) -> int:
        """Samples collected of the generic class and of each concept."""
        return self.config.prompts_per_concept * self.config.samples_per_prompt

    def seeds(self, concept: Concept | None = None) -> list[int]:
        """Noise seeds of a concept's samples, its own, so that all see many noises; None: those of the generic class."""
        return seeds_for(self.collected, self.config.seed_of_data(), "collect", *([concept.name] if concept else []))

    # -- collecting ---------------------------------------------------------------------------------------------------

    def missing(self, concepts: Iterable[Concept]) -> list[Concept]:
        """The concepts not collected yet."""
        return [c for c in concepts if not self.source_path.is_file() or not self.has(c)]

    def collect(
        self,
        concepts: Sequence[Concept],
        report: Callable[[int, int, str], None] = lambda done, of, name: None,
        group: Group | None = None,
    ) -> None:
        """Collect the generic class and the concepts that are not there, with the processes of the group and whoever
        else works on this folder; `report(done, of, name)` follows each and may raise.
        """
        collect_together(self, concepts, report, group or Group())

    def adopt(self) -> None:
        """Take over sites and pooling of what is in the folder. Raises ConfigError when it was collected for something
        else, FileError when it cannot be read."""
        self._adopt_or_refuse()
        self.columns = self._columns()

    def collect_source(self) -> None:
        """Compute and write the generic class."""
        features, _, _ = self._observe(list(self.world.scenes), 0, self.seeds(), keep=False)
        flat = features.double()
        header = {"key": self.key, "sites": sites_to_header(self.collected_sites), "pooling": self.pooling}
        self._save(
            self.source_path,
            {"header": header, "mean": flat.mean(1).float(), "std": flat.std(1, unbiased=False).float()},
            "The generic statistics",
        )

    def _collect_concept(self, concept: Concept) -> None:
        prompts = self.world.prompts(concept, self.config.prompts_per_concept)
        features, pictures, predictions = self._observe(
            prompts, self.config.images_per_concept, self.seeds(concept), self.config.store_predictions
        )
        width = self.world.encoder.width
        images = self.world.encoder.encode_images(pictures).float().cpu() if len(pictures) else torch.zeros(0, width)
        tensors = {
            "table": _packed(block_means(features, self.config.blocks)),
            "text": self._text(concept),
            "images": images,
        }
        if self.config.store_predictions:
            tensors["predictions"] = _packed(predictions)
        for name in ("text", "images"):
            if tensors[name].shape[-1] != width:
                raise ConfigError(
                    f"The encoder {self.world.encoder.encoder_id} gave {name} vectors of width "
                    f"{tensors[name].shape[-1]}, expected {width} as it declares: use matching weights."
                )
        header = {
            "concept": concept.name,
            "category": concept.category,
            "prompts": self._prompts_hash(concept),
            "source": self.source_hash(),
            "predictions": self.config.store_predictions,
        }
        self._save(self.path_of(concept), {"header": header, **tensors}, f"The data of '{concept.name}'")

    @staticmethod
    def _save(path: Path, state: dict[str, Any], what: str) -> None:
        """Write a file whole or not at all, and remove what a killed process left of it."""
        save_whole(path, state, what)
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            partial.unlink(missing_ok=True)

    def _text(self, concept: Concept) -> Tensor:
        rows = []
        for words in (concept.name, *concept.phrases):
            vectors = self.world.encoder.encode_text([template.format(words) for template in self.world.templates])
            rows.append(unit(vectors.float().cpu().mean(0)))
        return torch.stack(rows)

    @torch.no_grad()
    def _observe(
        self, prompts: Sequence[str], pictures: int, seeds: Sequence[int], keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(levels, samples, D) pooled activations of the untouched network, the first `pictures` results (P, 3, H, W),
        and predictions (levels, samples, *latent) where they are to be kept.

        At later levels the input is built from the prediction at the first, or with `inputs = "sampled"` sampled step by
        step, as in training, so both see the same kind of latents.
        """
        backbone, device = self.world.backbone, network_device(self.world)
        texts = [prompt for _ in range(self.config.samples_per_prompt) for prompt in prompts]
        features: list[list[Tensor]] = [[] for _ in self.levels]
        images: list[Tensor] = []
        predictions: list[list[Tensor]] = [[] for _ in self.levels]
        for start in range(0, len(texts), self.config.batch):
            part = slice(start, start + self.config.batch)
            conditioning, noise = backbone.encode(texts[part]).to(device), backbone.noise(seeds[part]).to(device)
            x, clean, wanted = noise, noise, pictures - sum(len(i) for i in images)
            with arithmetic(self.config, device):
                for number, level in enumerate(self.levels):
                    last, prediction = number + 1 == len(self.levels), noise
                    # Where no picture and no later level is made of the prediction, a pass may end at its last site.
                    needed = keep or (wanted > 0 if last else number == 0 or self.config.inputs == "sampled")
                    with PooledCapture(
                        backbone.network, self.collected_sites, self.pooling, stop_after_last_site=not needed
                    ) as capture:
                        prediction = backbone.denoise(x, level, conditioning).float()
                    features[number].append(capture.features().float().cpu())
                    if keep:
                        predictions[number].append(prediction.half().cpu())
                    clean = prediction if number == 0 else clean
                    if last:
                        x = prediction
                    elif self.config.inputs == "sampled":
                        x = stepped(self.world, x, prediction, noise, level, self.levels[number + 1])
                    else:
                        x = renoised(self.world, clean, noise, self.levels, number + 1)
                if wanted > 0:
                    images.append(backbone.decode(x[:wanted]).float().cpu())
        found = torch.cat(images) if images else torch.zeros(0, 3, 1, 1)
        table = torch.stack([torch.cat(parts) for parts in features])
        if not bool(table.isfinite().all()):
            raise ConfigError(
                f"The base model gave activations that are not finite for '{texts[0]}', expected finite numbers: use "
                'precision = "fp32" or other weights.'
            )
        kept = torch.stack([torch.cat(parts) for parts in predictions]) if predictions[0] else torch.zeros(0)
        return table, found, kept

    # -- reading ------------------------------------------------------------------------------------------------------

    def source(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over samples of the generic class, (levels, D) each."""
        tensors = _load(self.source_path)
        return self._own(tensors["mean"]), self._own(tensors["std"])

    def embeddings(self, concepts: Sequence[Concept], means: dict[str, Tensor] | None = None) -> EmbeddingBank:
        """Word and picture embeddings of some concepts; means: see `EmbeddingBank`. Raises FileError."""
        found: dict[str, list[Tensor]] = {"text": [], "images": []}
        for concept in concepts:
            tensors = _load(self.path_of(concept))
            for name, parts in found.items():
                parts.append(tensors[name].clone())  # itself it would keep the whole file in memory
            if self.responses is not None:
                found["text"][-1] = self.responses.text(found["text"][-1], concept)
                found["images"][-1] = self.responses.images(found["images"][-1])
        return EmbeddingBank(found["text"], found["images"], means)

    def predictions(self, concept: Concept, levels: Sequence[int], samples: Sequence[int]) -> Tensor:
        """Stored predictions under a concept's prompts, (levels, samples, *latent) fp32. Raises FileError."""
        return self._stored(concept, "/predictions", [(level, sample) for level in levels for sample in samples]).unflatten(
            0, (len(levels), len(samples))
        )

    def targets(self, concept: Concept, level: int, blocks: int) -> Tensor:
        """Sorted block means (blocks, D) fp32 of one concept at one noise level, read from the disk's cache."""
        return coarsen(self._own(self._stored(concept, "/table", [level])[0]), blocks)

    def _stored(self, concept: Concept, name: str, indices: Sequence[Any]) -> Tensor:
        """Parts of a tensor in a concept's file, fp32, one below the other; nothing else is read. Raises FileError."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path_of(concept)), "pt") as file:
                stored = file.get_slice(name)
                return torch.stack([stored[index] for index in indices]).float()
        except (SafetensorError, OSError) as error:
            raise FileError(
                f"{self.path_of(concept)} cannot be read any more ({type(error).__name__}), expected the collected "
                "data: run the collect stage again."
            ) from error

    def _own(self, values: Tensor) -> Tensor:
        return values if self.columns is None else values[..., self.columns]


def _load(path: Path) -> dict[str, Any]:
    try:
        return load_checkpoint(path)
    except ValueError as error:
        raise _unreadable(path) from error


def _header(path: Path) -> dict[str, Any]:
    """The header of the generic statistics. Raises FileError, also for a file of another kind."""
    header = _load(path).get("header")
    if not isinstance(header, dict) or not isinstance(header.get("key"), dict) or "pooling" not in header:
        raise _unreadable(path)
    return header


def _unreadable(path: Path) -> FileError:
    return FileError(f"{path} cannot be read, expected collected data: remove it and run the collect stage again.")


def _packed(table: Tensor) -> Tensor:
    return table.half() if float(table.abs().max()) < LARGEST_HALF else table.float()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
