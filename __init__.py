"""HyperTransport for ComfyUI: what the host imports. Registers the model folder and the nodes, nothing else.

Nothing of the host is imported before it asks for the nodes, so tests and type checkers can import this file anywhere.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

WEB_DIRECTORY = "./web"  # help pages: web/docs/<node id>/<language>.md, and web/docs/<node id>.md for other languages


async def comfy_entrypoint() -> ComfyExtension:
    """The extension with this pack's nodes (ComfyUI's V3 node API)."""
    from .nodes import HyperTransportExtension, register_model_folder

    register_model_folder()
    return HyperTransportExtension()
