"""Fit Maps: maps of one concept from prompts, for any model, without a hypernetwork."""
from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import comfy.model_management as management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..hypertransport_core.fitting.recipe import GENERIC_PROMPTS, METHODS, Recipe, in_scenes, prompt_lines
from ..hypertransport_core.sites import SITE_SETS
from ..hypertransport_core.transport import TransportMaps
from .showing import with_text
from .sockets import Maps, PredictedMaps, advanced, node_schema

SETS = tuple(name for name in SITE_SETS if name != "everything")
MOST_SEED = 2**31 - 1


class FitMaps(io.ComfyNode):
    """Per-concept fits inside the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportFitMaps", display_name="Fit Maps", category="HyperTransport/train",
            description="Learns one concept for any loaded model, from words alone: it compares what the network does for "
                        "plain prompts with what it does for prompts that name the concept. Takes from seconds (Mean-AcT) "
                        "to minutes (LinEAS); no hypernetwork, no pictures, and the model itself is not changed. Save the "
                        "result with Save Maps.",
            search_aliases=("train concept", "LinEAS", "activation steering", "learn style", "slider training"),
            inputs=_inputs(),
            hidden=[io.Hidden.unique_id],
            outputs=[Maps.Output("maps", display_name="maps", tooltip="The concept, for Steer With Maps: strength 0 = off, "
                                                                      "1 = as the prompts said."),
                     io.String.Output("report", display_name="report", tooltip="What was fitted, how long it took, and how "
                                                                               "far the loss fell.")])

    @classmethod
    def execute(cls, model: ModelPatcher, clip: CLIP, latent: dict[str, Any], concept: str, method: str, site_set: str,
                iterations: int, sampling_steps: int, generic_prompts: str, concept_prompts: str = "",
                learning_rate: float = 0.0, samples: int = 16, batch: int = 8, at_once: int = 8,
                fit_seed: int = 0) -> io.NodeOutput:
        recipe = Recipe(method, samples, batch, at_once, iterations, learning_rate, sampling_steps, fit_seed)
        generic = prompt_lines(generic_prompts)
        wanted = prompt_lines(concept_prompts) or in_scenes(generic, concept)
        started = time.perf_counter()
        maps, losses = fit(model, clip, latent["samples"], recipe, site_set, generic, wanted,
                           concept.strip() or " | ".join(wanted)[:60])
        seconds = time.perf_counter() - started
        fell = f"; loss {losses[0]:.3g} at first, {losses[-1]:.3g} at the end" if losses else ""
        report = (f"'{maps.name}' by {method}: {len(maps.steps[0])} sites ({site_set}), "
                  f"{len(recipe.seeds(max(len(generic), len(wanted))))} samples, {seconds:.1f} s{fell}.")
        return with_text(cls, report, maps, report)


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model to learn for. LoRAs before this node count; steering and attention "
                                        "patches do not act while fitting. Its weights are not changed."),
        io.Clip.Input("clip", tooltip="The text encoder of this model, for the prompts below."),
        io.Latent.Input("latent", tooltip="An empty latent of the size to fit at: the size you make pictures in, or half of "
                                          "it to save time and memory. Only the size counts."),
        io.String.Input("concept", default="mosaic", tooltip="The concept in words, as you would add it to a prompt. It "
                                                                   "is put behind every generic prompt."),
        io.Combo.Input("method", options=list(METHODS), default="LinEAS", tooltip=(
            "LinEAS: optimised through the network, best and slowest. Linear-AcT: one pass, scale and shift. Mean-AcT: one "
            "pass, shift only, the weakest but the fastest. The last two look at the first sampling step only.")),
        io.Combo.Input("site_set", options=list(SETS), default="attention_mlp", tooltip=(
            "Which places of the network are steered. attention_mlp: what attention and MLPs put out, the usual choice. "
            "norm: the norms, stronger on texture. mlp: MLPs only. all: attention, MLPs and norms.")),
        io.Int.Input("iterations", default=50, min=1, max=5000, tooltip=(
            "Optimisation steps of LinEAS, 1 to 5000; the other methods ignore it. 50 show the concept, 200 to 1000 "
            "refine it.")),
        io.Int.Input("sampling_steps", default=4, min=1, max=50, tooltip=(
            "Noise levels that LinEAS looks at, 1 to 50, spread evenly over sampling; the time grows with it. 1 for "
            "one-step models, 4 is enough for others.")),
        io.String.Input("generic_prompts", default="\n".join(GENERIC_PROMPTS), multiline=True, tooltip=(
            "Plain scenes without the concept, one per line: what pictures look like before. 8 to 32 different ones are "
            "good.")),
        io.String.Input("concept_prompts", default="", multiline=True, optional=True, tooltip=(
            "Prompts that show the concept, one per line. Empty: every generic prompt with the concept behind it. Best "
            "with the same content in the same order as the generic prompts.")),
        advanced(io.Float.Input("learning_rate", default=0.0, min=0.0, max=1.0, step=0.001, round=False, optional=True,
                                tooltip="Of LinEAS, 0 to 1. 0 = chosen for the number of iterations (10 / iterations). Lower "
                                        "it when the loss jumps.")),
        advanced(io.Int.Input("samples", default=16, min=4, max=512, optional=True, tooltip=(
            "Pictures per prompt set that are compared, 4 to 512; at least one per prompt. More is steadier and "
            "slower."))),
        advanced(io.Int.Input("batch", default=8, min=4, max=64, optional=True, tooltip=(
            "Pictures that LinEAS compares in each iteration, 4 to 64; other methods round the samples up to it. More is "
            "steadier and slower."))),
        advanced(io.Int.Input("at_once", default=8, min=1, max=64, optional=True, tooltip=(
            "Pictures per network call, 1 to 64: lower it when memory runs out. LinEAS then takes one pass more, with the "
            "same result. Linear-AcT is most exact when all samples fit one call."))),
        advanced(io.Int.Input("fit_seed", default=0, min=0, max=MOST_SEED, optional=True, tooltip=(
            "Seed of the noise in the fit. The same seed gives the same maps."))),
    ]


def fit(model: ModelPatcher, clip: CLIP, latent: torch.Tensor, recipe: Recipe, site_set: str, generic: list[str],
        wanted: list[str], name: str) -> tuple[PredictedMaps, list[float]]:
    """(maps, LinEAS's loss after every iteration), with a progress bar in the host; cancelling raises the host's own
    exception and leaves the model as it was."""
    from ..hypertransport_core.backbones.host_backbone import HostBackbone, trainable

    prompts = list(dict.fromkeys([*generic, *wanted]))
    bar = comfy.utils.ProgressBar(len(prompts) + recipe.network_calls(max(len(generic), len(wanted))))

    def tick() -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update(1)

    backbone = HostBackbone(model, clip, latent=latent, before_call=tick)
    backbone.prepare(prompts)
    base, losses = backbone.base, []
    # Only LinEAS sends gradients through the weights, which then must not be inference tensors.
    with trainable(base) if recipe.method == "LinEAS" else nullcontext():
        found = recipe.fit(backbone, backbone.sites(site_set), generic, wanted, lambda _, loss: losses.append(loss))
        backbone_facts = {"family": backbone.family, "fingerprint": backbone.fingerprint()}
    with torch.inference_mode(False):
        maps = TransportMaps(found.sites, found.scale.cpu().clone(), found.shift.cpu().clone(),
                             {**found.info, "concept": name, "backbone": backbone.family})
    return PredictedMaps((maps,), backbone_facts, (0.0, 1.0), name), losses


NODES: tuple[type[io.ComfyNode], ...] = (FitMaps,)
