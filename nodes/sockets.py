"""The pack's own sockets, what they carry, and two helpers that let one node definition serve older and newer hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from comfy_api.latest import io

from ..hypertransport_core.transport import TransportMaps

HyperTransport = io.Custom("HYPERTRANSPORT")
"""A loaded hypernetwork: hypertransport_core.weights_io.HypernetworkFile."""
Encoder = io.Custom("CONCEPT_ENCODER")
"""hypertransport_core.encoders.base.ConceptEncoder; its `templates: tuple[str, ...]`, if any, say how words are put."""
Concept = io.Custom("CONCEPT")
"""hypertransport_core.encoders.base.ConceptEmbedding; vector (E,), or (N, E): one concept per row of the latents."""
Maps = io.Custom("TRANSPORT_MAPS")
"""PredictedMaps."""
Sheet = io.Custom("STRENGTH_SHEET")
"""nodes.sheets.SheetPlan."""

CATEGORY = "HyperTransport"
InputT = TypeVar("InputT", bound=io.Input)


@dataclass(frozen=True, eq=False, repr=False)
class PredictedMaps:
    """What TRANSPORT_MAPS carries.

    steps: one set of maps for all noise levels, or one per equal stretch of it, noisiest first; all of the same rows.
    backbone: {"family": ..., "fingerprint": {...}} as in a file's header["backbone"]; {} = unknown.
    strength_range: recommended (lowest, highest). name: for people, the concept's words.
    """

    steps: tuple[TransportMaps, ...]
    backbone: Mapping[str, Any] = field(default_factory=dict)
    strength_range: tuple[float, float] = (0.0, 1.0)
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not self.steps:
            raise ValueError("There are no maps for any noise level; give one set for all of them, or several.")

    @property
    def rows(self) -> int:
        """How many concepts side by side: 1, or one per row of the latent batch."""
        return max(maps.rows for maps in self.steps)

    def change(self, f: Callable[[TransportMaps], TransportMaps]) -> PredictedMaps:
        """The same with f(maps) for the maps of every noise level."""
        return dataclasses.replace(self, steps=tuple(f(maps) for maps in self.steps))

    def __repr__(self) -> str:
        levels = "" if len(self.steps) == 1 else f", {len(self.steps)} stretches of noise level"
        named = f"{self.name[:60]!r}, " if self.name else ""
        return f"PredictedMaps({named}{self.steps[0]!r}{levels})"


def node_schema(*, search_aliases: Sequence[str] = (), **fields: Any) -> io.Schema:
    """io.Schema with words to search for the node by, where the host knows them; else they end the description."""
    if search_aliases:
        if any(f.name == "search_aliases" for f in dataclasses.fields(io.Schema)):
            fields["search_aliases"] = list(search_aliases)
        else:
            fields["description"] = f"{fields.get('description', '')}\n\nAlso called: {', '.join(search_aliases)}."
    return io.Schema(**{"category": CATEGORY, **fields})


def advanced(entry: InputT) -> InputT:
    """Fold an input away under "advanced" where the front end can."""
    if hasattr(entry, "advanced"):
        entry.advanced = True
    else:
        entry.extra_dict["advanced"] = True
    return entry
