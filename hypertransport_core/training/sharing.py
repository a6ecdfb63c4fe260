"""A training step and its validation, shared out to the processes of a group: same numbers as in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..hypernetworks import Hypernetwork
from ..transport import TransportMaps
from .batches import Draw
from .distribution import Group
from .validation import MapsOf, Probe


Backward = Callable[[Hypernetwork, Draw], dict[str, float]]
"""Adds the gradient of a step's mean loss over its concepts; returns losses: of the base model or of teachers."""


def shared_backward(group: Group, network: Hypernetwork, backward: Backward, batch: Draw) -> dict[str, float]:
    """`backward` where each process has its share of the step's concepts; then all hold the whole step's gradient and
    losses. Shares may differ in size and may be empty: each counts by its concepts.
    """
    k, share = len(batch.concepts), group.share(len(batch.concepts))
    if group.count == 1:
        return backward(network, batch)
    found = dict.fromkeys(("loss", "transport", "paired"), 0.0)
    with group.together():
        if share.stop > share.start:
            own = _part(batch, share, len(batch.scenes) // k)
            found = backward(_seen_by(network, batch, share), own)
    weight, parameters = (share.stop - share.start) / k, list(network.parameters())
    losses = [value * weight for value in found.values()]
    sums = group.total([*losses, *(float(p.grad is not None) for p in parameters)])
    # A parameter without a gradient in one process stays without one only where it has none in all of them.
    for parameter, processes in zip(parameters, sums[len(found) :]):
        if processes:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.mul_(weight)
    group.add(p.grad for p in parameters if p.grad is not None)
    return dict(zip(found, sums))


def _part(batch: Draw, share: slice, n: int) -> Draw:
    rows = slice(share.start * n, share.stop * n)
    return replace(
        batch,
        concepts=batch.concepts[share],
        embeddings=batch.embeddings[share],
        scenes=batch.scenes[rows],
        seeds=batch.seeds[rows],
        strengths=batch.strengths[share],
    )


def _seen_by(network: Hypernetwork, batch: Draw, share: slice) -> Hypernetwork:
    """The network, or with dropout one that runs on all of the step's concepts for some of them: the units that are
    dropped then do not depend on how many processes there are.
    """
    if not getattr(network, "dropout", 0.0):
        return network
    return cast(Hypernetwork, _OnAll(network, batch.embeddings, share))


class _OnAll:
    def __init__(self, network: Hypernetwork, embeddings: Tensor, share: slice) -> None:
        self.network, self.embeddings, self.share, self.steps = network, embeddings, share, network.steps

    def __call__(self, part: Tensor, *level: Any) -> TransportMaps:
        maps = self.network(self.embeddings.to(part.device), *level)
        return TransportMaps(maps.sites, maps.scale[self.share], maps.shift[self.share])


class SharedProbe(Probe):
    """A probe whose processes measure different concepts, in the same parts as one process would."""

    def __init__(self, group: Group, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.group = group

    def _chunks(self) -> Iterator[list[int]]:
        for number, chunk in enumerate(super()._chunks()):
            if number % self.group.count == self.group.index:
                yield chunk

    def measure(self, maps_of: MapsOf) -> dict[str, Tensor]:
        """As `Probe.measure`, of all concepts, in every process."""
        with self.group.together():
            sums = super().measure(maps_of)
        self.group.add(sums.values())
        return sums
