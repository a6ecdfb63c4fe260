"""From a hypernetwork and a concept to maps, remembered: moving a strength slider predicts nothing anew."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch

from ..hypertransport_core.encoders.base import ConceptEmbedding, centre
from ..hypertransport_core.files import check_fits
from ..hypertransport_core.hypernetworks import Hypernetwork
from ..hypertransport_core.transport import TransportMaps
from ..hypertransport_core.weights_io import HypernetworkFile
from .sockets import PredictedMaps

REMEMBERED = 32  # concepts per hypernetwork; the maps of one are a few hundred kilobytes
# Keyed by the network in memory, not by its file: a file may have been written anew since it was read.
_memory: weakref.WeakKeyDictionary[Hypernetwork, OrderedDict[Any, PredictedMaps]] = weakref.WeakKeyDictionary()


def predict(weights: HypernetworkFile, concept: ConceptEmbedding) -> PredictedMaps:
    """The maps of a concept, one row for a vector (E,), N rows for (N, E), for each noise level the file knows.

    The last concepts are remembered. Raises FileError when the concept comes from another encoder than the file names.
    """
    memory = _memory.setdefault(weights.hypernetwork, OrderedDict())
    key = _key(concept)
    if key not in memory:
        memory[key] = _predict(weights, concept)
        if len(memory) > REMEMBERED:
            memory.popitem(last=False)
    memory.move_to_end(key)
    return memory[key]


def _predict(weights: HypernetworkFile, concept: ConceptEmbedding) -> PredictedMaps:
    name = weights.path.name or "The hypernetwork"
    check_fits(weights.header, name, encoder_id=concept.encoder_id, encoder_width=concept.width)
    vector = torch.atleast_2d(centre(concept, weights.means).vector)
    # The host runs nodes in inference mode, whose tensors could never take part in fitting or training.
    with torch.inference_mode(False), torch.no_grad():
        found = weights.hypernetwork.all_steps(vector.to(weights.hypernetwork.source_mean.device))
    backbone = weights.header.get("backbone", {})
    info = {
        "concept": concept.source,
        "modality": concept.modality,
        "encoder": concept.encoder_id,
        "backbone": backbone.get("family", ""),
    }
    steps = tuple(TransportMaps(one.sites, one.scale.cpu(), one.shift.cpu(), {**one.info, **info}) for one in found)
    return PredictedMaps(steps, backbone, weights.strength_range, concept.source)


def _key(concept: ConceptEmbedding) -> tuple:
    parts = tuple((_key(part), float(weight)) for part, weight in concept.parts)
    vector = concept.vector.detach().cpu().contiguous()
    return (
        tuple(vector.shape),
        vector.numpy().tobytes(),
        concept.encoder_id,
        concept.modality,
        concept.centred,
        concept.source,
        parts,
    )
