"""The gradient of one training step, in as many calls of the base model as memory allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..concepts import Concept
from ..hypernetworks import Hypernetwork
from ..objective import align, leaf, parts
from ..transport import TransportMaps
from .batches import Draw, Inputs, Objective


def backward(
    network: Hypernetwork, objective: Objective, batch: Draw, train_concepts: Sequence[Concept]
) -> dict[str, float]:
    """Add the gradient of a step's loss to the hypernetwork's parameters; returns loss, transport and paired.

    The base model runs in parts; maps are cut from the hypernetwork's graph and joined at the end. Parts smaller than a
    concept are exact too: all rows are ranked first, without gradient (`objective.align`), in one more pass.
    """
    config = objective.config
    whole = _predicted(network, objective, batch)
    leaves = {id(maps): leaf(maps) for maps in whole.values()}
    k, n = len(batch.concepts), config.samples_per_concept
    pieces = parts(k * n, config.rows_per_pass())
    ranked_first = config.transport_weight > 0 and config.rows_per_pass() < n
    sums = dict.fromkeys(("loss", "transport", "paired"), 0.0)
    share = k * n * len(batch.levels)
    for level in batch.levels:
        maps = leaves[id(whole[level])]
        ranked: list[Inputs] = []
        aligned: Tensor | None = None
        if ranked_first:
            ranked = [_inputs(objective, batch, train_concepts, level, rows, whole) for rows in pieces]
            seen = [objective.pooled(_of(maps, rows, n), inputs) for rows, inputs in zip(pieces, ranked)]
            tables = objective.tables([train_concepts[i] for i in batch.concepts], level)
            assert tables is not None
            aligned = align(torch.cat(seen), tables)
        for number, rows in enumerate(pieces):
            inputs = ranked[number] if ranked_first else _inputs(objective, batch, train_concepts, level, rows, whole)
            own = None if aligned is None else aligned[rows]
            transport, paired = objective.row_losses(_of(maps, rows, n), inputs, own)
            loss = objective.total(transport, paired).sum() / share
            loss.backward()
            for name, value in (
                ("loss", loss),
                ("transport", transport.sum() / share),
                ("paired", paired.sum() / share),
            ):
                sums[name] += float(value.detach())
    _join(whole, leaves)
    return sums


def _predicted(network: Hypernetwork, objective: Objective, batch: Draw) -> dict[int, TransportMaps]:
    """The maps of a step's concepts by level, with their graph, in fp32 whatever the hypernetwork computes in."""
    config = objective.config
    embeddings = batch.embeddings.to(objective.device)
    bf16 = config.hypernetwork_precision == "bf16"
    with torch.autocast(objective.device.type, torch.bfloat16) if bf16 else nullcontext():
        if network.steps == 1:
            return dict.fromkeys(range(len(objective.data.levels)), network(embeddings))
        needed = range(max(batch.levels) + 1) if config.inputs == "own" else batch.levels
        return {level: network(embeddings, level) for level in needed}


def _inputs(
    objective: Objective,
    batch: Draw,
    train_concepts: Sequence[Concept],
    level: int,
    rows: slice,
    whole: Mapping[int, TransportMaps],
) -> Inputs:
    """The material of some rows of a step at a level."""
    config, n = objective.config, objective.config.samples_per_concept
    within = _concepts_of(rows, n)
    concepts = [train_concepts[i] for i in batch.concepts[within]]
    split = rows.start % n or rows.stop % n
    owner = torch.arange(rows.start, rows.stop) // n - within.start if split else None
    if config.store_predictions:
        strengths = batch.strengths[within] if config.partial_share or config.removal_share else None
        return objective.recall(concepts, batch.scenes[rows], level, strengths, owner)
    steered = [
        _of(whole[i], rows, n).detach() if i in whole else TransportMaps.identity(objective.data.sites)
        for i in range(level)
    ]
    return objective.prepare(concepts, batch.scenes[rows], batch.seeds[rows], level, steered, owner)


def _concepts_of(rows: slice, n: int) -> slice:
    return slice(rows.start // n, -(-rows.stop // n))


def _of(maps: TransportMaps, rows: slice, n: int) -> TransportMaps:
    """The maps of the concepts that some rows are of."""
    part = _concepts_of(rows, n)
    return TransportMaps(maps.sites, maps.scale[part], maps.shift[part])


def _join(whole: Mapping[int, TransportMaps], leaves: Mapping[int, TransportMaps]) -> None:
    """Send the gradients gathered in the leaves through the hypernetwork."""
    outputs = {id(maps): maps for maps in whole.values()}
    pairs = [
        (getattr(maps, name), getattr(leaves[key], name).grad)
        for key, maps in outputs.items()
        for name in ("scale", "shift")
    ]
    pairs = [(output, gradient) for output, gradient in pairs if gradient is not None]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
