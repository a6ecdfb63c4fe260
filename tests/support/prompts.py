"""API prompts for the server tests: one steered picture of the Postcard world, and the same without steering."""
from __future__ import annotations

from typing import Any

STEER, SAVE = "steer", "save"


def picture(prompt: str = "a red house", seed: int = 7, batch_size: int = 1, steps: int = 4) -> dict[str, Any]:
    """Postcard without steering; the picture is output `save`. The model goes into `sample`, by the input `model`."""
    return {
        "world": {"class_type": "HyperTransportPostcard", "inputs": {}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 1], "text": prompt}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 1], "text": ""}},
        "latent": {"class_type": "HyperTransportEmptyPostcardLatent", "inputs": {"batch_size": batch_size, "width": 64, "height": 64}},
        "sample": {"class_type": "KSampler", "inputs": {
            "model": ["world", 0], "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0],
            "seed": seed, "steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        }},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["world", 2]}},
        SAVE: {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "test"}},
    }


def steered(concept: str = "teal mosaic", strength: float = 1.0, *, file: str = "postcard_hypernetwork.safetensors", **picture_options: Any) -> dict[str, Any]:
    """`picture`, steered by words; further inputs of the node `steer` may be set in the result."""
    prompt = picture(**picture_options)
    prompt["weights"] = {"class_type": "HyperTransportLoad", "inputs": {"file": file}}
    prompt["concept"] = {"class_type": "HyperTransportConceptEncoder", "inputs": {"encoder": ["world", 3], "text": concept, "mode": "average"}}
    prompt[STEER] = {"class_type": "HyperTransportSteer", "inputs": {
        "model": ["world", 0], "weights": ["weights", 0], "concept": ["concept", 0], "strength": strength, "start_percent": 0.0, "end_percent": 1.0,
    }}
    prompt["sample"]["inputs"]["model"] = [STEER, 0]
    return prompt
