"""A line of text under a node, on the page."""

from __future__ import annotations

import logging
import sys
from typing import Any

from comfy_api.latest import io, ui


def with_text(node: type[io.ComfyNode], text: str, *outputs: Any) -> io.NodeOutput:
    """A node's outputs with a text for people: kept in the history, and drawn under the node where the page can.

    The page draws a `text` output under its own nodes only, so it is sent as progress text too; that needs
    `io.Hidden.unique_id` in the node's schema. Without a running server nothing is sent.
    """
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    unique_id = getattr(getattr(node, "hidden", None), "unique_id", None)
    send = getattr(server, "send_progress_text", None)
    if send is not None and unique_id is not None:
        try:
            send(text, unique_id)
        except Exception as error:  # a page that has gone must not stop the run
            logging.debug("No text was shown under node %s: %s", unique_id, error)
    return io.NodeOutput(*outputs, ui=ui.PreviewText(text))
