"""What it takes to predict maps, to fit them instead, to install them, to move the slider, and to sample with them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from ..fitting import lineas
from ..folding import fold_maps
from ..pipeline import Pipeline, StepMaps, steerings
from ..postcard.captions import in_concept, scene_prompts
from ..transport import TransportMaps
from .timing import Clock, Seconds, interleaved, ratio, spread

CONCEPT, SCENE, SEED = "watercolor", "a red house", 7
FIT_STEPS, FIT_SAMPLES, FIT_BATCH = 1000, 32, 8  # as in the evaluation
SHORT_FITS = (1, 5)  # optimisation steps from which the time of a whole fit is extrapolated


@dataclass(frozen=True)
class Subject:
    """What is measured: a pipeline, by which clock, and maps of one concept."""

    pipeline: Pipeline
    clock: Clock
    maps: StepMaps

    @classmethod
    def of(cls, pipeline: Pipeline, clock: Clock) -> Subject:
        """With maps predicted for one concept."""
        return cls(pipeline, clock, pipeline.maps(pipeline.embed_text(CONCEPT)))

    def install(self, strength: float = 1.0, maps: StepMaps | None = None) -> None:
        """Steering made anew, installed on the network and taken away."""
        for steering in steerings(self.maps if maps is None else maps, strength):
            with steering.installed(self.pipeline.backbone.network, noise_level=1.0, batch=1, dtype=torch.float32):
                pass


def predicting(subject: Subject, repeats: int) -> dict[str, Any]:
    """Encoding words and a picture, the hypernetwork, installing, and words to installed in one go."""
    pipeline = subject.pipeline
    embedding, picture = pipeline.embed_text(CONCEPT), pipeline.generate(SCENE, SEED)[0]
    times = interleaved(
        {
            "seconds": lambda: subject.install(1.0, pipeline.maps(pipeline.embed_text(CONCEPT))),
            "encode_text_seconds": lambda: pipeline.embed_text(CONCEPT),
            "encode_image_seconds": lambda: pipeline.embed_image(picture),
            "hypernetwork_seconds": lambda: pipeline.maps(embedding),
            "install_seconds": subject.install,
        },
        repeats,
        subject.clock,
    )
    return _all_spreads("predict", times)


def fitting(subject: Subject, repeats: int, whole: bool) -> dict[str, Any]:
    """One concept's LinEAS maps against predicting them. whole=False: a few steps, extrapolated linearly."""
    pipeline = subject.pipeline
    assert pipeline.hypernetwork is not None
    sites = pipeline.hypernetwork.sites
    source = scene_prompts(FIT_SAMPLES, 0)
    target, seeds = in_concept(source, CONCEPT), list(range(FIT_SAMPLES))

    def fit(iterations: int) -> TransportMaps:
        return lineas(
            pipeline.backbone, sites, source, target, seeds, iterations=iterations, batch=FIT_BATCH, learning_rate=0.02
        )

    def predict() -> None:
        for _ in range(10):
            subject.install(1.0, pipeline.maps(pipeline.embed_text(CONCEPT)))

    fit(1)
    predict()
    few, more = SHORT_FITS
    if whole:
        times = interleaved({"predict": predict, "fit": lambda: fit(FIT_STEPS)}, repeats, subject.clock, 0)
        seconds, per_step = times["fit"], [value / FIT_STEPS for value in times["fit"]]
    else:
        cases = {"few": lambda: fit(few), "predict": predict, "more": lambda: fit(more)}
        times = interleaved(cases, repeats, subject.clock, 0)
        per_step = [max(0.0, (b - a) / (more - few)) for a, b in zip(times["few"], times["more"])]
        seconds = [a + (FIT_STEPS - few) * step for a, step in zip(times["few"], per_step)]
    return {
        "fit.steps": FIT_STEPS,
        "fit.extrapolated": not whole,
        **spread("fit.seconds", seconds),
        **spread("fit.step_seconds", per_step),
        **spread("ratio.fit_over_predict", ratio(seconds, [value / 10 for value in times["predict"]])),
    }


def sampling(subject: Subject, repeats: int) -> dict[str, Any]:
    """A picture unsteered, steered live and with folded maps; moving the slider; encoding and installing, beside it."""
    pipeline, backbone = subject.pipeline, subject.pipeline.backbone
    strengths = cycle((0.8, 0.9))  # moved to and fro
    conditioning, noise = backbone.encode([SCENE]), backbone.noise([SEED])
    live = steerings(subject.maps)

    def sample(of: Any = backbone, steering: Any = ()) -> None:
        with torch.no_grad():
            of.decode(of.sample(conditioning, noise, steps=pipeline.steps_default, steering=steering))

    cases: dict[str, Any] = {
        "unsteered": sample,
        "live": lambda: sample(steering=live),
        "slider_live": lambda: subject.install(next(strengths)),
        "encode": lambda: pipeline.embed_text(CONCEPT),
        "install": subject.install,
    }
    if isinstance(
        subject.maps, TransportMaps
    ):  # one set of maps for all steps; several do not fit into one set of weights
        folded = _Folded(backbone, subject.maps)
        cases |= {"folded": lambda: sample(folded.backbone), "slider_folded": lambda: folded.set(next(strengths))}
    times = interleaved(cases, repeats, subject.clock)
    found: dict[str, Any] = spread("picture.seconds", times["unsteered"])
    for name, key in (
        ("live", "ratio.live_over_unsteered"),
        ("folded", "ratio.folded_over_unsteered"),
        ("slider_live", "ratio.slider_live_over_picture"),
        ("slider_folded", "ratio.slider_folded_over_picture"),
        ("encode", "ratio.encode_over_picture"),
        ("install", "ratio.install_over_picture"),
    ):
        found |= spread(key, ratio(times[name], times["unsteered"]) if name in times else [])
    return found


class _Folded:
    """A copy of the network that takes maps into its weights."""

    def __init__(self, backbone: Any, maps: TransportMaps) -> None:
        self.maps, self.plain, self.backbone = maps, backbone.network, copy.copy(backbone)
        self.backbone.network = copy.deepcopy(backbone.network)
        self.set(1.0)

    @torch.no_grad()
    def set(self, strength: float) -> None:
        """Fold at another strength, from the plain weights."""
        for name, value in fold_maps(self.plain, self.maps, strength).items():
            self.backbone.network.get_parameter(name).copy_(value)


def _all_spreads(prefix: str, times: Seconds) -> dict[str, Any]:
    return {key: value for name, values in times.items() for key, value in spread(f"{prefix}.{name}", values).items()}
