"""Workflows for checkpoints that a user has, and the blueprint: what make_workflows.py writes besides those that run as shipped."""
from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from graph_writer import BLUE, GREEN, GREY, ORANGE, PURPLE, Graph

DMD2 = """\
## DMD2 in four steps, with your own files
It does not run before they are there:

| folder in `models` | file | by name on Hugging Face |
| --- | --- | --- |
| `checkpoints` | `sd_xl_base_1.0.safetensors` | stabilityai/stable-diffusion-xl-base-1.0 |
| `loras` | `dmd2_sdxl_4step_lora_fp16.safetensors` | tianweiy/DMD2 (not for commercial use) |
| `clip_vision` | the CLIP that the weights name, with both towers | laion or openai, see *Load Concept Encoder* |
| `hypertransport` | `dmd2_sdxl_hypernetwork.safetensors` | yours, from `train_hypernet.py` |

1. Choose your files in the loaders (press R to refresh the lists), press **Run**, move **strength**.
2. No hypernetwork for this model? *Fit Maps* (workflow 10) learns a concept with these loaders.

Four steps need the sampler `lcm` and *DMD2 Sigmas*: 999, 749, 499, 249. Guidance is off."""

NITRO = """\
## Nitro-1-PixArt in one step, with your own files
It does not run before they are there:

| folder in `models` | file | by name on Hugging Face |
| --- | --- | --- |
| `diffusion_models` | `nitro_1_pixart.safetensors`: its transformer, named so by you | amd/Nitro-1-PixArt |
| `text_encoders` | `t5xxl_fp16.safetensors` | comfyanonymous/flux_text_encoders |
| `vae` | `sdxl_vae.safetensors` | stabilityai/sdxl-vae |
| `clip_vision` | the CLIP that the weights name, with both towers | laion or openai, see *Load Concept Encoder* |
| `hypertransport` | `nitro_1_pixart_hypernetwork.safetensors` | yours, from `train_hypernet.py` |

1. Choose your files in the loaders (press R to refresh the lists), press **Run**, move **strength**.
2. No hypernetwork for this model? *Fit Maps* (workflow 10) learns a concept with these loaders.

*One-Step Sampling* at timestep 400 scales the noise as the model expects; the stock nodes alone make it pale."""

PROMPT, CONCEPT = "a red house beside a lake", "stained glass"


def _concept(graph: Graph, file: str) -> tuple[Any, Any, Any]:
    """Weights, the encoder they name, the concept."""
    weights = graph.node("HyperTransportLoad", file=file, width=360)
    encoder = graph.node("HyperTransportLoadEncoder", encoder="automatic", weights=weights.out(), width=360, height=160)
    concept = graph.node("HyperTransportConceptEncoder", encoder=encoder.out(), text=CONCEPT, width=360, height=222)
    return weights, encoder, concept


def dmd2(info: Mapping[str, Any]) -> Graph:
    graph = Graph(info)
    note = graph.note(DMD2, width=560, height=350, title="Which file goes where")
    checkpoint = graph.node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors", width=360)
    lora = graph.node(
        "LoraLoaderModelOnly", model=checkpoint.out("model"), lora_name="dmd2_sdxl_4step_lora_fp16.safetensors", strength_model=1.0, width=360
    )
    latent = graph.node("EmptyLatentImage", width_=1024, height_=1024, batch_size=1, width=360)
    weights, encoder, concept = _concept(graph, "dmd2_sdxl_hypernetwork.safetensors")
    prompt = graph.node("CLIPTextEncode", title="Prompt", clip=checkpoint.out("clip"), text=PROMPT, width=360, height=110)
    graph.corner(note, "Model: SDXL with the DMD2 LoRA", BLUE, [checkpoint, lora, latent])
    graph.group("What to draw, and how", GREEN, [prompt, weights, encoder, concept])
    steer = graph.node("HyperTransportSteer", model=lora.out(), weights=weights.out(), concept=concept.out(), width=320)
    graph.group("Steer", PURPLE, [steer])
    noise = graph.node("RandomNoise", noise_seed=7)
    guider = graph.node("BasicGuider", model=steer.out(), conditioning=prompt.out())
    sampler = graph.node("KSamplerSelect", sampler_name="lcm")
    sigmas = graph.node("HyperTransportDMD2Sigmas", model=steer.out())
    _sample(graph, noise, guider, sampler.out(), sigmas.out(), latent, checkpoint.out("vae"), [noise, guider, sampler, sigmas], "12_dmd2")
    return graph


def nitro(info: Mapping[str, Any]) -> Graph:
    graph = Graph(info)
    note = graph.note(NITRO, width=560, height=380, title="Which file goes where")
    unet = graph.node("UNETLoader", unet_name="nitro_1_pixart.safetensors", weight_dtype="default", width=360)
    clip = graph.node("CLIPLoader", clip_name="t5xxl_fp16.safetensors", type="pixart", device="default", width=360)
    vae = graph.node("VAELoader", vae_name="sdxl_vae.safetensors", width=360)
    latent = graph.node("EmptyLatentImage", width_=1024, height_=1024, batch_size=1, width=360)
    weights, encoder, concept = _concept(graph, "nitro_1_pixart_hypernetwork.safetensors")
    prompt = graph.node("CLIPTextEncode", title="Prompt", clip=clip.out(), text=PROMPT, width=360, height=110)
    graph.corner(note, "Model: Nitro-1-PixArt", BLUE, [unet, clip, vae, latent])
    graph.group("What to draw, and how", GREEN, [prompt, weights, encoder, concept])
    steer = graph.node("HyperTransportSteer", model=unet.out(), weights=weights.out(), concept=concept.out(), width=320)
    graph.group("Steer", PURPLE, [steer])
    noise = graph.node("RandomNoise", noise_seed=7)
    guider = graph.node("BasicGuider", model=steer.out(), conditioning=prompt.out())
    one = graph.node("HyperTransportOneStep", model=steer.out(), timestep=400)
    _sample(graph, noise, guider, one.out("sampler"), one.out("sigmas"), latent, vae.out(), [noise, guider, one], "13_nitro")
    return graph


def _sample(graph: Graph, noise: Any, guider: Any, sampler: Any, sigmas: Any, latent: Any, vae: Any, column: list[Any], name: str) -> None:
    sample = graph.node(
        "SamplerCustomAdvanced", noise=noise.out(), guider=guider.out(), sampler=sampler, sigmas=sigmas, latent_image=latent.out(), width=300
    )
    decode = graph.node("VAEDecode", samples=sample.out("denoised_output"), vae=vae, width=300)
    graph.group("Sample", ORANGE, column, [sample, decode])
    save = graph.node("SaveImage", images=decode.out(), filename_prefix=f"HyperTransport/{name}", width=520, height=590)
    graph.group("Picture", GREY, [save])


TEMPLATES: dict[str, Callable[[Mapping[str, Any]], Graph]] = {"12_dmd2_4_step": dmd2, "13_nitro_pixart_1_step": nitro}
CARDS = {
    "12_dmd2_4_step": ("DMD2", "4 steps", "for your SDXL checkpoint"),
    "13_nitro_pixart_1_step": ("Nitro-1-PixArt", "1 step", "for your own files"),
}


def blueprint(info: Mapping[str, Any]) -> dict[str, Any]:
    """The subgraph "Concept steer": MODEL in, steered MODEL out, with file, concept and strength on the outside.

    The format is what the page writes for a published subgraph: one node whose type is the id of the subgraph that the file defines.
    """
    graph = Graph(info)
    weights = graph.node("HyperTransportLoad", file="postcard_hypernetwork.safetensors", width=360)
    encoder = graph.node("HyperTransportLoadEncoder", encoder="automatic", weights=weights.out(), width=360)
    concept = graph.node("HyperTransportConceptEncoder", encoder=encoder.out(), text="teal mosaic", width=360)
    steer = graph.node("HyperTransportSteer", weights=weights.out(), concept=concept.out(), strength=1.0, width=320)
    graph.right = 220
    for column in ([weights, encoder, concept], [steer]):
        graph.group("", GREY, column)
    graph.groups = []
    inside = graph.workflow()
    ends = [  # name outside, inner node, its input, kind
        ("model", steer, "model", "MODEL"), ("images", concept, "images", "IMAGE"), ("file", weights, "file", "COMBO"),
        ("text", concept, "text", "STRING"), ("strength", steer, "strength", "FLOAT"),
        ("start_percent", steer, "start_percent", "FLOAT"), ("end_percent", steer, "end_percent", "FLOAT"),
    ]
    links = [
        {"id": a, "origin_id": b, "origin_slot": c, "target_id": d, "target_slot": e, "type": f} for a, b, c, d, e, f in inside["links"]
    ]
    number = inside["last_link_id"]
    saved = {node["id"]: node for node in inside["nodes"]}
    inputs, outer = [], []
    for slot, (name, node, into, kind) in enumerate(ends):
        number += 1
        names = [one["name"] for one in saved[node.number]["inputs"]]
        if into not in names:
            saved[node.number]["inputs"].append({"name": into, "type": kind, "link": None, "widget": {"name": into}})
            names.append(into)
        saved[node.number]["inputs"][names.index(into)]["link"] = number
        links.append({"id": number, "origin_id": -10, "origin_slot": slot, "target_id": node.number, "target_slot": names.index(into), "type": kind})
        inputs.append({"id": _id(f"input {name}"), "name": name, "type": kind, "linkIds": [number], "localized_name": name, "pos": [160, 100 + 20 * slot]})
        entry: dict[str, Any] = {"name": name, "type": kind, "link": None}
        if kind not in ("MODEL", "IMAGE"):
            entry["widget"] = {"name": name}
        outer.append(entry)
    number += 1
    links.append({"id": number, "origin_id": steer.number, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "MODEL"})
    saved[steer.number]["outputs"][0]["links"] = [number]
    output = {"id": _id("output model"), "name": "model", "type": "MODEL", "linkIds": [number], "localized_name": "model", "pos": [graph.right + 60, 120]}
    subgraph = {
        "id": _id("Concept steer"), "version": 1, "state": {"lastGroupId": 0, "lastNodeId": inside["last_node_id"], "lastLinkId": number, "lastRerouteId": 0},
        "revision": 0, "config": {}, "name": "Concept steer",
        "inputNode": {"id": -10, "bounding": [40, 80, 140, 20 * len(ends) + 40]},
        "outputNode": {"id": -20, "bounding": [graph.right + 40, 80, 120, 60]},
        "inputs": inputs, "outputs": [output], "widgets": [], "nodes": inside["nodes"], "groups": [], "links": links, "extra": {},
    }
    values = [weights.values["file"], concept.values["text"], 1.0, 0.0, 1.0]
    node = {
        "id": 1, "type": subgraph["id"], "title": "Concept steer", "pos": [0, 0], "size": [340, 260], "flags": {}, "order": 0, "mode": 0, "inputs": outer,
        "outputs": [{"name": "model", "type": "MODEL", "links": None}], "properties": {}, "widgets_values": values,
    }
    about = "Steers a model towards a concept in words or shown by pictures: a hypernetwork, the encoder it names, and HyperTransport Steer in one."
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4, "definitions": {"subgraphs": [subgraph]},
        "extra": {"BlueprintDescription": about},
    }


def _id(words: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"HyperTransport {words}"))
