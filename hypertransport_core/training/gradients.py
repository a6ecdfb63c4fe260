"""The gradient of one training step, in as many calls of the base model as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..concepts import Concept
from ..hypernetworks import Hypernetwork
from ..transport import TransportMaps
from .batches import Draw, Objective


def backward(
    network: Hypernetwork, objective: Objective, batch: Draw, train_concepts: Sequence[Concept]
) -> dict[str, float]:
    """Add the gradient of a step's loss to the hypernetwork's parameters; returns loss, transport and paired.

    The base model runs in parts; maps are cut from the hypernetwork's graph and joined at the end.
    """
    config, data = objective.config, objective.data
    embeddings = batch.embeddings.to(objective.device)
    per_level = network.steps > 1
    needed = range(max(batch.levels) + 1) if config.inputs == "own" and per_level else batch.levels
    if per_level:
        whole = {level: network(embeddings, level) for level in needed}
    else:
        whole = dict.fromkeys(range(len(data.levels)), network(embeddings))
    leaves = {id(maps): _leaf(maps) for maps in whole.values()}
    k, n = len(batch.concepts), config.samples_per_concept
    size = config.concepts_per_pass or k
    sums = dict.fromkeys(("loss", "transport", "paired"), 0.0)
    for level in batch.levels:
        for start in range(0, k, size):
            part, rows = slice(start, start + size), slice(start * n, (start + size) * n)
            concepts = [train_concepts[i] for i in batch.concepts[part]]
            if config.store_predictions:
                strengths = batch.strengths[part] if config.partial_share else None
                inputs = objective.recall(concepts, batch.scenes[rows], level, strengths)
            else:
                steered = [
                    _rows(whole[i], part).detach() if i in whole else TransportMaps.identity(data.sites)
                    for i in range(level)
                ]
                inputs = objective.prepare(concepts, batch.scenes[rows], batch.seeds[rows], level, steered)
            maps = _rows(leaves[id(whole[level])], part)
            transport, paired = objective.losses(maps, inputs)
            share = k * len(batch.levels)
            loss = objective.total(transport, paired).sum() / share
            loss.backward()
            for name, value in (
                ("loss", loss),
                ("transport", transport.sum() / share),
                ("paired", paired.sum() / share),
            ):
                sums[name] += float(value.detach())
    outputs = {id(maps): maps for maps in whole.values()}
    pairs = [
        (getattr(maps, name), getattr(leaves[key], name).grad)
        for key, maps in outputs.items()
        for name in ("scale", "shift")
    ]
    pairs = [(output, gradient) for output, gradient in pairs if gradient is not None]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
    return sums


def _leaf(maps: TransportMaps) -> TransportMaps:
    return TransportMaps(maps.sites, maps.scale.detach().requires_grad_(), maps.shift.detach().requires_grad_())


def _rows(maps: TransportMaps, part: slice) -> TransportMaps:
    return TransportMaps(maps.sites, maps.scale[part], maps.shift[part])
