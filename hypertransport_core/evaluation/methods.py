"""The methods compared on a held-out concept: each turns a concept's name into prompts and maps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..encoders.base import ConceptEmbedding
from ..fitting.image_adapter import ImageAdapterFile, ImagePrompt
from ..fitting.slider_lora import LowRank
from ..pipeline import Pipeline, StepMaps, steerings
from ..postcard.captions import in_concept
from ..postcard.concepts import by_name, split
from ..postcard.render import concept_index, random_truth, render
from ..transport import TransportMaps
from .fits import RATES, SAMPLES, Fitter, FitSettings
from .yardsticks import sign

METHODS = ("ours_text", "ours_image", "prompting", "lineas_1000", "lineas_50", "nearest", "mean_act")
MORE = ("ours_images_4", "linear_act", "linear_act_once", "iti_c", "ridge", "mean_map", "slider_lora", "image_adapter")
EVERY = METHODS + MORE
DEAR = ("lineas_1000", "nearest", "slider_lora")  # a minute or more per concept: run on a subset
QUICK_FITS = ("mean_act", "linear_act", "linear_act_once", "iti_c")  # statistics only, no optimisation
SEVERAL = 4  # reference pictures of ours_images_4
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the ridge regression, in mean eigenvalues

NO_MAPS = (LowRank, ImagePrompt)
Change = StepMaps | LowRank | ImagePrompt
"""What a method does to the network: maps, or without maps a low-rank slider or a picture shown to an adapter."""


class Methods:
    """Maps and prompts of every method for a concept."""

    def __init__(self, pipeline: Pipeline, fitter: Fitter, adapter: ImageAdapterFile | None = None) -> None:
        self.pipeline, self.fitter, self.adapter = pipeline, fitter, adapter
        self.train, self.validation = split()["train"], split()["validation"]
        self._plain = pipeline.without_response()  # which concepts are near each other, and what an adapter is shown
        self._train_vectors = torch.stack([self._plain.embed_text(name).vector for name in self.train])
        self.ridge_penalty: float | None = None

    def prompts(self, method: str, concept: str, scenes: Sequence[str]) -> list[str]:
        """The prompts that a method's pictures are made from."""
        return in_concept(scenes, concept) if method == "prompting" else list(scenes)

    def made_by(self, method: str) -> str:
        """What tells the weights that a method has of its own, empty for one without."""
        return f", adapter {sign(self.adapter.adapter)}" if method == "image_adapter" and self.adapter else ""

    def maps(self, method: str, concept: str) -> Change | None:
        """What a method steers with; None for prompting. Raises ValueError for an unknown method."""
        longest, shortest = self.fitter.settings.iterations
        if method == "prompting":
            return None
        if method == "ours_text":
            return self.pipeline.maps(self.pipeline.embed_text(concept))
        if method == "ours_image":
            return self.pipeline.maps(self.pipeline.embed_image(reference(concept), concept))
        if method == "ours_images_4":
            return self.pipeline.maps(self.shown(concept, SEVERAL))
        if method == "lineas_1000":
            return self.fitter.lineas(concept, longest)
        if method == "lineas_50":
            return self.fitter.lineas(concept, shortest)
        if method == "nearest":
            return self.fitter.lineas(self.nearest(concept)[0], longest)
        if method == "slider_lora":
            return self.fitter.slider(concept)
        if method == "image_adapter":
            return self._prompted(concept)
        if method in QUICK_FITS:
            return self.fitter.quick(method, concept)
        if method == "ridge":
            return self._ridge(concept)
        if method == "mean_map":
            return self._mean_map
        raise ValueError(f"There is no method '{method}'; choose from {', '.join(EVERY)}.")

    def has_fit(self, method: str, concept: str) -> bool:
        """Whether a method's fit to a concept is there already; False for a method without one."""
        settings = self.fitter.settings
        if method in QUICK_FITS:
            return self.fitter.has(method, concept)
        if method == "slider_lora":
            return self.fitter.has(method, concept, settings.slider_iterations)
        steps = lineas_steps(method, settings)
        return steps > 0 and self.fitter.has("lineas", self.nearest(concept)[0] if method == "nearest" else concept, steps)

    def steering(self, method: str, concept: str) -> StepMaps:
        """`maps` of a method that has some. Raises ValueError for one without."""
        maps = self.maps(method, concept)
        if maps is None or isinstance(maps, NO_MAPS):
            raise ValueError(f"The method '{method}' has no maps; choose one that steers.")
        return maps

    def _prompted(self, concept: str) -> ImagePrompt:
        if self.adapter is None:
            raise ValueError("The method 'image_adapter' needs an adapter, but there is none; train one or leave it out.")
        return self.adapter.prompt(self._plain.embed_image(reference(concept), concept))

    def shown(self, concept: str, pictures: int) -> ConceptEmbedding:
        """The embedding of a concept that so many reference pictures show, each with another subject."""
        return self.pipeline.embed_image([reference(concept, number) for number in range(pictures)], concept)

    def nearest(self, concept: str) -> tuple[str, float]:
        """The training concept whose text embedding is nearest, and its cosine distance (1 - cosine)."""
        cosines = self._train_vectors @ self._plain.embed_text(concept).vector
        best = int(cosines.argmax())
        return self.train[best], 1 - float(cosines[best])

    def predict_seconds(self, concept: str) -> float:
        """Seconds from words to a steered network: encode, predict, install."""
        started = time.perf_counter()
        for steering in steerings(self.pipeline.maps(self.pipeline.embed_text(concept))):
            with steering.installed(self.pipeline.backbone.network, noise_level=1.0, batch=1, dtype=torch.float32):
                pass
        return time.perf_counter() - started

    @cached_property
    def _mean_map(self) -> StepMaps:
        """The mean of our maps over all training concepts: what is left when the concept is not listened to."""
        every = self.pipeline.maps([self.pipeline.embed_text(name) for name in self.train])
        steps = [every] if isinstance(every, TransportMaps) else list(every)
        means = [
            TransportMaps(m.sites, m.scale.mean(0, keepdim=True), m.shift.mean(0, keepdim=True), {"operation": "mean"})
            for m in steps
        ]
        return means[0] if len(means) == 1 else means

    def _ridge(self, concept: str) -> TransportMaps:
        vector = self.pipeline.centred(self.pipeline.embed_text(concept)).double()
        shift = self._regression.predict(vector).float()
        return TransportMaps(self.fitter.sites, torch.ones_like(shift), shift, {"operation": "ridge"})

    @cached_property
    def _regression(self) -> Ridge:
        """From embeddings to Mean-AcT shifts, learnt from all training concepts; the penalty is the one that predicts
        the validation concepts' shifts best, every channel in its own units."""
        known = self._vectors(self.train), self.fitter.mean_shifts(self.train).shift.double()
        unseen = self.validation
        vectors, shifts = self._vectors(unseen), self.fitter.mean_shifts(unseen).shift.double()
        spread = known[1].std(0).clamp(min=1e-12)
        tried = [Ridge(*known, penalty) for penalty in PENALTIES]
        errors = [float(((one.predict(vectors) - shifts) / spread).square().mean()) for one in tried]
        best = errors.index(min(errors))
        self.ridge_penalty = PENALTIES[best]
        return tried[best]

    def _vectors(self, names: Sequence[str]) -> Tensor:
        return self.pipeline.centred([self.pipeline.embed_text(name) for name in names]).double()


class Ridge:
    """Linear regression with an intercept and a penalty on the squared weights: x (n, E), y (n, C), float64.

    penalty: in units of the mean eigenvalue of x's covariance, positive.
    """

    def __init__(self, x: Tensor, y: Tensor, penalty: float) -> None:
        self._x_mean, self._y_mean = x.mean(0), y.mean(0)
        centred = x - self._x_mean
        gram = centred.T @ centred
        size = penalty * gram.diagonal().mean().clamp(min=1e-30)
        self._weights = torch.linalg.solve(
            gram + size * torch.eye(len(gram), dtype=x.dtype), centred.T @ (y - self._y_mean)
        )

    def predict(self, x: Tensor) -> Tensor:
        """(n, E) -> (n, C)."""
        return (x - self._x_mean) @ self._weights + self._y_mean


def reference(concept: str, number: int = 0) -> Tensor:
    """A postcard (3, 64, 64) that shows a concept, as a user's picture would: subject, colour and place are arbitrary,
    and others for every number."""
    words = concept if number == 0 else f"{concept} {number}"
    seed = int(hashlib.sha256(words.encode()).hexdigest()[:8], 16)
    truth = random_truth(1, torch.Generator().manual_seed(seed), generic=0.0)
    truth.concept = concept_index([concept])
    return render(truth)[0]


def stratified(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names, spread evenly over the categories, each category in its given order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(by_name()[name].category, []).append(name)
    chosen = [
        name
        for place in range(max(map(len, groups.values()), default=0))
        for group in groups.values()
        for name in group[place : place + 1]
    ][:count]
    return [name for name in names if name in chosen]


def lineas_steps(method: str, settings: FitSettings) -> int:
    """Optimisation steps of the LinEAS fit that a method makes, 0 for one without."""
    longest, shortest = settings.iterations
    return {"lineas_1000": longest, "nearest": longest, "lineas_50": shortest}.get(method, 0)


def info_of(settings: FitSettings) -> dict[str, Any]:
    """The settings of the fits, for the report."""
    longest, shortest = settings.iterations
    return {
        "fit.batch": settings.batch,
        "fit.levels": settings.levels,
        "fit.samples": SAMPLES,
        "fit.steps_long": longest,
        "fit.steps_short": shortest,
        "fit.slider_steps": settings.slider_iterations,
        "fit.rate_long": RATES.get(longest, 10.0 / longest),
        "fit.rate_short": RATES.get(shortest, 10.0 / shortest),
    }
