"""Maps that change with the noise level: one set per equal stretch of it, combined stretch by stretch."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm
from typing import Any

from .transport import TransportError, TransportMaps

HOW = ("sum", "sequence", "average")
# More sets than sampling steps would only cost memory.
MOST_STRETCHES = 64


def align(*parts: Sequence[TransportMaps]) -> list[tuple[TransportMaps, ...]]:
    """The same maps of every part, on as many stretches of noise level each: repeated, never mixed.

    Parts of 1, 2 and 3 stretches become 6 each. Raises TransportError when a part is empty or too many come out.
    """
    count = lcm(*(len(part) for part in parts))
    if not 0 < count <= MOST_STRETCHES:
        raise TransportError(f"Maps of {', '.join(str(len(part)) for part in parts)} stretches of noise level have "
                             f"{count} in common, but must have 1 to {MOST_STRETCHES}; combine maps of equal stretches.")
    return [tuple(maps for maps in part for _ in range(count // len(part))) for part in parts]


def combine(parts: Sequence[Sequence[TransportMaps]], how: str = "sum",
            weights: Sequence[float] | None = None) -> tuple[TransportMaps, ...]:
    """Several concepts as one, stretch by stretch.

    sum: departures from the identity add up, whatever the order; sequence: each acts on what those before it left;
    average: like sum with weights scaled to add up to 1. weights: one per part, 1 by default; in a sequence the strength
    of each map. Raises TransportError.
    """
    if how not in HOW:
        raise TransportError(f"There is no way '{how}' to combine maps; choose {', '.join(HOW)}.")
    weights = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
    if len(weights) != len(parts):
        raise TransportError(f"Got {len(weights)} weights for {len(parts)} maps; give one weight per set of maps.")
    return tuple(_combined(stretch, how, weights) for stretch in zip(*align(*parts)))


def _combined(maps: Sequence[TransportMaps], how: str, weights: Sequence[float]) -> TransportMaps:
    if how == "sum":
        return TransportMaps.sum(*maps, weights=weights)
    if how == "average":
        return TransportMaps.mix(maps, weights)
    scaled = [m if w == 1.0 else m.interpolate(w) for m, w in zip(maps, weights)]
    result = scaled[0]
    for following in scaled[1:]:
        result = result.then(following)
    return result


def fingerprint_agreement(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Share of equal sign bits in [0, 1] between two backbones' fingerprints (`files.network_fingerprint`): 1 = the same
    weights, about 0.95 = a fine-tune, 0.5 = unrelated; None when they have no weights in common."""
    a, b = (dict(fingerprint.get("weights", {})) for fingerprint in (one, other))
    common = a.keys() & b.keys()
    differing = sum(bin(int(a[name], 16) ^ int(b[name], 16)).count("1") for name in common)
    return 1 - differing / (4 * sum(len(a[name]) for name in common)) if common else None
