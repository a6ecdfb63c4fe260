"""Load HyperTransport: a hypernetwork from `models/hypertransport`."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..hypertransport_core.files import FileError, read_header
from ..hypertransport_core.weights_io import HYPERNETWORK, load_hypernetwork
from .folders import files_of_kind, find_file, fingerprint
from .sockets import HyperTransport, node_schema


class LoadHyperTransport(io.ComfyNode):
    """models/hypertransport/*.safetensors -> HYPERTRANSPORT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportLoad",
            display_name="Load HyperTransport",
            search_aliases=["hypernetwork", "steering", "activation steering", "transport", "concept"],
            description="Loads a hypernetwork: it turns any concept, in words or shown by a picture, into maps that "
            "steer one base "
            "model. Files live in models/hypertransport; one for the Postcard model comes with this pack.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files_of_kind(HYPERNETWORK),
                    tooltip="A hypernetwork in models/hypertransport. It fits the base model and the concept encoder "
                    "that "
                    "it was trained with; both are named in the file and checked.",
                ),
            ],
            outputs=[
                HyperTransport.Output(
                    "weights",
                    display_name="weights",
                    tooltip="The hypernetwork, for HyperTransport Steer or Predict Maps.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Refused before anything runs: files that are gone, damaged or of another kind."""
        try:
            kind = read_header(find_file(file))[0].get("kind")
        except FileError as error:
            return str(error)
        if kind != HYPERNETWORK:
            return f"{file} is a '{kind}' file, expected a '{HYPERNETWORK}' file: choose another"
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        try:
            return fingerprint(find_file(file))
        except FileError:
            return file

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        with torch.inference_mode(False):  # the server's own mode makes tensors that nothing can be trained through
            return io.NodeOutput(load_hypernetwork(find_file(file)))


NODES: tuple[type[io.ComfyNode], ...] = (LoadHyperTransport,)
