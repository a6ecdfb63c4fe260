"""Hypernetworks, transport maps and concepts to and from files of the one format (files.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .encoders.base import ConceptEmbedding, EncoderError, average, centre, stack
from .encoders.response import ResponseReader
from .files import AGAIN, FileError, check_fits, load_file, read_header, save_file, sites_from_header, sites_to_header
from .hypernetworks import Hypernetwork, build_hypernetwork
from .network_state import built
from .transport import TransportMaps

HYPERNETWORK, TRANSPORT_MAPS, CONCEPT = "hypernetwork", "transport_maps", "concept"
_SOURCE = ("source_mean", "source_std")


@dataclass(frozen=True, repr=False)
class HypernetworkFile:
    """A loaded hypernetwork with what its file says about it.

    means: by modality, (E,) float32, and `image_map` (E, E), see `encoders.base.centred`; header: backbone, sites, encoder,
    strength_range, training, licence; path: where it came from, for messages; reader: of the base model's
    responses, where the hypernetwork reads them too (`ResponseEncoder`).
    """

    hypernetwork: Hypernetwork
    means: dict[str, Tensor]
    header: dict[str, Any]
    path: Path = field(default_factory=Path)
    reader: ResponseReader | None = None

    def __repr__(self) -> str:
        family = self.header.get("backbone", {}).get("family", "an unnamed model")
        return f"HypernetworkFile({self.path.name!r}, for {family}, {len(self.hypernetwork.sites)} sites)"

    @property
    def strength_range(self) -> tuple[float, float]:
        """Recommended (lowest, highest) strength."""
        low, high = self.header.get("strength_range", (0.0, 1.0))
        return float(low), float(high)

    @torch.no_grad()
    def maps_for(self, embedding: ConceptEmbedding, step: int | None = None) -> TransportMaps:
        """Maps of one concept (one row; several vectors count as their mean), in float32 on the hypernetwork's device.

        Raises FileError when the embedding comes from another encoder.
        """
        check_fits(self.header, self.path, encoder_id=embedding.encoder_id, encoder_width=embedding.width)
        vector = centre(embedding, self.means).single().vector
        maps = self.hypernetwork(vector[None].to(self.hypernetwork.source_mean.device), step)
        info = {**maps.info, "concept": embedding.source, "modality": embedding.modality,
                "encoder": embedding.encoder_id, "backbone": self.header.get("backbone", {}).get("family", "")}
        return TransportMaps(maps.sites, maps.scale, maps.shift, info)


def save_hypernetwork(path: str | Path, hypernetwork: Hypernetwork, *, family: str, fingerprint: Mapping[str, Any],
                      encoder_id: str, means: Mapping[str, Tensor] | None = None,
                      strength_range: tuple[float, float] = (0.0, 1.0), training: Mapping[str, Any] | None = None,
                      licence: str = "", dtype: torch.dtype = torch.float16,
                      modelspec: Mapping[str, str] | None = None, reader: ResponseReader | None = None) -> None:
    """Write a hypernetwork, whole or not at all.

    family, fingerprint: of the backbone (`network_fingerprint`); encoder_id: whose embeddings it reads; means: what
    `encoders.base.centred` takes; strength_range: recommended (lowest, highest); training: JSON-able summary; dtype: of
    the stored weights, source statistics stay float32; reader: of the responses that are joined to the embeddings it reads.
    Raises FileError.
    """
    state = hypernetwork.state_dict()
    tensors = {f"network.{name}": value if name in _SOURCE else value.to(dtype) for name, value in state.items()}
    tensors.update({f"mean.{modality}": mean.float() for modality, mean in (means or {}).items()})
    config = hypernetwork.config()
    header = {"backbone": {"family": family, "fingerprint": dict(fingerprint)}, "sites": config.pop("sites"),
              "config": config, "encoder": {"id": encoder_id, "width": hypernetwork.embedding_dim},
              "strength_range": list(strength_range), "training": dict(training or {}), "licence": licence}
    if reader is not None:
        kept, header["response"] = reader.to_file()
        tensors.update(kept)
    spec = {"architecture": f"{family}/hypertransport", "license": licence, "implementation": "hypertransport",
            **(modelspec or {})}
    save_file(path, tensors, HYPERNETWORK, header, spec)


def load_hypernetwork(path: str | Path) -> HypernetworkFile:
    """Read what `save_hypernetwork` wrote: float32, evaluation mode, on the CPU. Raises FileError for anything else."""
    path = Path(path)
    tensors, header = load_file(path, HYPERNETWORK)
    weights, means = ({name.removeprefix(part): value.float() for name, value in tensors.items() if name.startswith(part)}
                      for part in ("network.", "mean."))
    _need(header, path, backbone=dict, encoder=dict, config=dict, strength_range=list)
    sites = sites_from_header(header, path)
    config = header["config"]
    network = built(lambda: build_hypernetwork({**config, "sites": sites}), config, weights, path)
    width = network.embedding_dim
    if header["encoder"].get("width") != width or any(
            mean.shape != ((width, width) if name.endswith("_map") else (width,)) for name, mean in means.items()):
        raise FileError(f"{path} names an encoder of width {header['encoder'].get('width')} and means of the shapes "
                        f"{[tuple(mean.shape) for mean in means.values()]}, expected {width} as its network has: "
                        f"{AGAIN}")
    reader = ResponseReader.from_file(tensors, header.get("response"), path)
    return HypernetworkFile(network.requires_grad_(False).train(False), means, header, path, reader)


def record_measured(path: str | Path, measured: Mapping[str, Any]) -> None:
    """Write what was measured of a hypernetwork into its file's header as `measured`, in place of what was there; weights
    and all else stay. measured: JSON-able. Raises FileError; the file then is as it was."""
    tensors, header = load_file(path, HYPERNETWORK)
    _, spec, _ = read_header(path)
    save_file(path, tensors, HYPERNETWORK, {**header, "measured": dict(measured)},
              {key: value for key, value in spec.items() if key.startswith("modelspec.")})


def save_maps(path: str | Path, maps: TransportMaps | Sequence[TransportMaps], *, family: str = "",
              fingerprint: Mapping[str, Any] | None = None, licence: str = "",
              strength_range: tuple[float, float] = (0.0, 1.0), name: str = "",
              modelspec: Mapping[str, str] | None = None) -> None:
    """Write transport maps in float32 with their `info`: one set for all noise levels, or a sequence with one per equal
    stretch of noise level, noisiest first. family, fingerprint: of the backbone; strength_range: recommended (lowest,
    highest); name: for people. Raises FileError.
    """
    steps = [maps] if isinstance(maps, TransportMaps) else list(maps)
    if not steps or any(m.sites != steps[0].sites or m.rows != steps[0].rows for m in steps):
        raise FileError(f"{path} was not written: it got {len(steps)} sets of maps, expected at least one, all of the "
                        "same sites and rows: bring them onto the same sites first")
    backbone = {"family": family, "fingerprint": dict(fingerprint or {})} if family or fingerprint else {}
    header = {"backbone": backbone, "sites": sites_to_header(steps[0].sites), "info": dict(steps[0].info),
              "strength_range": list(strength_range), "name": name, "licence": licence}
    tensors = {"scale": steps[0].scale, "shift": steps[0].shift}
    if len(steps) > 1:
        header["step_infos"] = [dict(m.info) for m in steps]
        tensors = {key: torch.stack([getattr(m, key) for m in steps]) for key in tensors}
    spec = {"architecture": f"{family or 'unknown'}/hypertransport", "license": licence, **(modelspec or {})}
    save_file(path, tensors, TRANSPORT_MAPS, header, spec)


def load_maps(path: str | Path) -> tuple[TransportMaps, dict[str, Any]]:
    """Read (maps, header) of `save_maps`, on the CPU. Raises FileError for anything else, also for several steps."""
    steps, header = load_step_maps(path)
    if len(steps) > 1:
        raise FileError(f"{path} holds maps for {len(steps)} stretches of noise level, expected maps for all of them: "
                        "choose a file with one set of maps")
    return steps[0], header


def load_step_maps(path: str | Path) -> tuple[tuple[TransportMaps, ...], dict[str, Any]]:
    """Read (maps per stretch of noise level, header) of `save_maps`, on the CPU; one set of maps gives one.

    Raises FileError for anything else.
    """
    path = Path(path)
    tensors, header = load_file(path, TRANSPORT_MAPS)
    _need(header, path, backbone=dict, info=dict)
    sites = sites_from_header(header, path)
    width = sum(site.channels for site in sites)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    shape = shapes.get("scale", ())
    if shapes != {"scale": shape, "shift": shape} or len(shape) not in (2, 3) or shape[-1] != width or 0 in shape:
        raise FileError(f"{path} holds tensors of the shapes {shapes}, expected 'scale' and 'shift' of (rows, {width}) "
                        f"or (steps, rows, {width}) for its {len(sites)} sites: {AGAIN}")
    infos = header.get("step_infos", [])
    scales, shifts = (tensors[key].float().reshape(-1, *shape[-2:]) for key in ("scale", "shift"))
    if len(shape) == 2 or len(infos) != len(scales) or not all(isinstance(info, dict) for info in infos):
        infos = [header["info"]] * len(scales)
    return tuple(TransportMaps(sites, a, b, dict(i)) for a, b, i in zip(scales, shifts, infos)), header


def save_concept(path: str | Path, embedding: ConceptEmbedding, *, modelspec: Mapping[str, str] | None = None) -> None:
    """Write a concept embedding with its rows and all parts of an average. Raises FileError."""
    tensors: dict[str, Tensor] = {}
    tree = _concept_tree(embedding, tensors)
    save_file(path, tensors, CONCEPT,
              {"concept": tree, "encoder": {"id": embedding.encoder_id, "width": embedding.width}}, modelspec)


def load_concept(path: str | Path) -> ConceptEmbedding:
    """Read what `save_concept` wrote. Raises FileError for anything else."""
    tensors, header = load_file(path, CONCEPT)
    _need(header, Path(path), concept=dict, encoder=dict)
    try:
        return _concept_from(header["concept"], tensors, header["encoder"]["id"])
    except (EncoderError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} holds no usable concept ({error}), expected vectors with their origin: "
                        f"{AGAIN}") from error


def _concept_tree(embedding: ConceptEmbedding, tensors: dict[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {"modality": embedding.modality, "source": embedding.source, "centred": embedding.centred}
    if embedding.rows:
        return {**tree, "rows": [_concept_tree(row, tensors) for row in embedding.rows]}
    if embedding.parts:
        return {**tree, "parts": [[_concept_tree(part, tensors), weight] for part, weight in embedding.parts]}
    tree["vector"] = f"vector.{len(tensors)}"
    tensors[tree["vector"]] = embedding.vector
    return tree


def _concept_from(tree: Mapping[str, Any], tensors: Mapping[str, Tensor], encoder_id: str) -> ConceptEmbedding:
    if "rows" in tree:
        return replace(stack([_concept_from(row, tensors, encoder_id) for row in tree["rows"]]), source=tree["source"])
    if "parts" not in tree:
        return ConceptEmbedding(tensors[tree["vector"]], str(encoder_id), tree["modality"], tree["source"], (),
                                tree["centred"])
    parts = [_concept_from(part, tensors, encoder_id) for part, _ in tree["parts"]]
    again = average(parts, [weight for _, weight in tree["parts"]])
    return ConceptEmbedding(again.vector, again.encoder_id, again.modality, tree["source"], again.parts, again.centred)


def _need(header: Mapping[str, Any], path: Path, **kinds: type) -> None:
    for key, kind in kinds.items():
        if not isinstance(header.get(key), kind):
            raise FileError(f"{path} has {type(header.get(key)).__name__} under '{key}' in its header, expected "
                            f"{kind.__name__}: {AGAIN}")
