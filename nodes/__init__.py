"""The nodes of the pack, as one ComfyUI extension. Nodes are thin: sockets, texts and checks; the work is in hypertransport_core."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import concepts, encoders, fit, inspect, load, lora, maps, postcard, reference, sampling, sheets, sockets, steer
from .folders import MODEL_FOLDER, WEIGHTS, register_model_folder

__all__ = ["MODEL_FOLDER", "NODES", "WEIGHTS", "HyperTransportExtension", "register_model_folder", "sockets"]

NODES: tuple[type[io.ComfyNode], ...] = (
    *load.NODES,
    *steer.NODES,
    *postcard.NODES,
    *reference.NODES,
    *encoders.NODES,
    *concepts.NODES,
    *sampling.NODES,
    *maps.NODES,
    *lora.NODES,
    *fit.NODES,
    *sheets.NODES,
    *inspect.NODES,
)
"""Every node of the pack, in the order in which they are registered."""


class HyperTransportExtension(ComfyExtension):
    """What `comfy_entrypoint` returns."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes."""
        return list(NODES)
