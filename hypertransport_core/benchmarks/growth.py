"""How costs grow with sites, channels, rows and concepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from ..hypernetworks import MLPHypernetwork
from ..sites import Site
from ..steering import Steering
from ..transport import TransportMaps
from .steering_costs import SCENE, Subject
from .timing import interleaved, ratio, spread

SITE_SHARES = (0.1, 0.25, 0.5, 1.0)
TRAINING_NAMES = ("snow", "watercolor", "sepia", "mosaic")


def by_sites(subject: Subject, repeats: int) -> dict[str, Any]:
    """One network call, steered live at some of the sites, evenly spread, over the unsteered call."""
    first, calling = _first(subject), _caller(subject, 1)
    cases: dict[str, Any] = {"plain": calling(None)}
    for share in SITE_SHARES:
        count = max(1, round(share * len(first.sites)))
        chosen = [first.sites[number * len(first.sites) // count] for number in range(count)]
        cases[str(count)] = calling(first.onto(chosen))
    times = interleaved(cases, repeats, subject.clock)
    found: dict[str, Any] = {}
    for name in list(times)[1:]:
        found |= spread(f"growth.sites.{name}.live_over_unsteered", ratio(times[name], times["plain"]))
    return found


def by_rows(subject: Subject, repeats: int, rows: Sequence[int]) -> dict[str, Any]:
    """One network call of a batch, every row with maps of its own, over the unsteered call of the same batch."""
    first = _first(subject)
    found: dict[str, Any] = {}
    cases: dict[str, Any] = {}
    for count in rows:
        maps = TransportMaps(first.sites, first.scale.repeat(count, 1), first.shift.repeat(count, 1))
        calling = _caller(subject, count)
        cases[f"plain {count}"], cases[f"live {count}"] = calling(None), calling(maps)
    times = interleaved(cases, repeats, subject.clock)
    for count in rows:
        found |= spread(
            f"growth.rows.{count}.live_over_unsteered", ratio(times[f"live {count}"], times[f"plain {count}"])
        )
        per_row = [value / count for value in times[f"live {count}"]]
        found |= spread(f"growth.rows.{count}.live_row_over_one", ratio(per_row, times[f"live {rows[0]}"]))
    return found


def by_channels(subject: Subject, repeats: int, channels: Sequence[int]) -> dict[str, Any]:
    """A hypernetwork of the default widths that predicts maps of so many channels, over the one of the fewest."""
    cases: dict[str, Any] = {}
    found: dict[str, Any] = {}
    embedding = torch.randn(1, 768, device=subject.clock.device)
    for count in channels:
        network = MLPHypernetwork([Site("site", "mlp", count)], 768).eval().to(subject.clock.device)
        found[f"growth.channels.{count}.parameters"] = sum(parameter.numel() for parameter in network.parameters())
        cases[str(count)] = lambda network=network: _predict(network, embedding)
    times = interleaved(cases, repeats, subject.clock)
    for count in channels:
        fewest = times[str(channels[0])]
        found |= spread(f"growth.channels.{count}.predict_seconds", times[str(count)])
        found |= spread(f"growth.channels.{count}.predict_over_fewest", ratio(times[str(count)], fewest))
    return found


def by_concepts(subject: Subject, repeats: int, concepts: Sequence[int]) -> dict[str, Any]:
    """Encoding and predicting so many concepts in one go, per concept, over one alone."""
    pipeline = subject.pipeline
    cases: dict[str, Any] = {}
    for count in concepts:
        names = [TRAINING_NAMES[number % len(TRAINING_NAMES)] for number in range(count)]
        cases[str(count)] = lambda names=names: pipeline.maps([pipeline.embed_text(name) for name in names])
        embeddings = [pipeline.embed_text(name) for name in names]
        cases[f"hypernetwork {count}"] = lambda embeddings=embeddings: pipeline.maps(embeddings)
    times = interleaved(cases, repeats, subject.clock)
    found: dict[str, Any] = {}
    for count in concepts:
        for prefix, key in (("", "predict_each_over_one"), ("hypernetwork ", "hypernetwork_each_over_one")):
            each = [value / count for value in times[f"{prefix}{count}"]]
            found |= spread(f"growth.concepts.{count}.{key}", ratio(each, times[f"{prefix}{concepts[0]}"]))
    return found


@torch.no_grad()
def _predict(network: MLPHypernetwork, embedding: torch.Tensor) -> TransportMaps:
    return network(embedding)


def _caller(subject: Subject, rows: int) -> Callable[[TransportMaps | None], Callable[[], None]]:
    """Maps, or None, to a function that calls the network once on `rows` rows with them."""
    backbone = subject.pipeline.backbone
    x, conditioning = backbone.noise(range(rows)), backbone.encode([SCENE] * rows)

    def caller(maps: TransportMaps | None) -> Callable[[], None]:
        steering = None if maps is None else Steering(maps)

        @torch.no_grad()
        def call() -> None:
            with (
                nullcontext() if steering is None else steering.installed(backbone.network, noise_level=1.0, batch=rows)
            ):
                backbone.denoise(x, 1.0, conditioning)

        return call

    return caller


def _first(subject: Subject) -> TransportMaps:
    return subject.maps if isinstance(subject.maps, TransportMaps) else subject.maps[0]
