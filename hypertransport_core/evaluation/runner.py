"""Running an evaluation: pictures of every method and concept, judged on the spot; only verdicts are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import facts_digest
from ..fitting.image_adapter import ImageAdapterFile
from ..pipeline import Pipeline
from ..postcard.captions import in_concept
from ..postcard.clip import PostcardCLIP
from ..postcard.concepts import concepts, split
from ..postcard.judge import Judge
from .fits import SAMPLES, Fitter, FitSettings, cost_of_slider_step, cost_of_step, made_with
from .measures import STRENGTHS, Judged, Scenes, concept_number, fresh_scenes, judged, scores
from .methods import DEAR, METHODS, NO_MAPS, QUICK_FITS, Change, Methods, lineas_steps, stratified
from .progress import Progress
from .second_clip import SecondClip
from .truths import NO_CONCEPT, Nearness, Renders, scene_truth
from .yardsticks import PICTURED, Measured, Yardsticks, sign

WORLD_SEED = 70_000
MORE_SCENES_SEED = 10_000  # of the scenes beside the session's, added to its own
PREDICTIONS = 15  # timed predictions; the first ones warm caches up and are left out


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure. concepts: how many held-out ones (None = all); prompts: scenes per concept; rise_prompts: scenes
    for the rise of ours from words over strength, at least `prompts`; steps: of sampling; fit_concepts: on how many of
    the concepts the dear methods run; world: pictures for the world's own bars; renders: for the judge's."""

    concepts: int | None = None
    prompts: int = 16
    rise_prompts: int = 32  # at 1/4 the concept's probability is 1e-4: a mean of few scenes falls or rises by chance
    seed: int = 90_000
    steps: int = 4
    methods: tuple[str, ...] = METHODS
    fit_concepts: int = 9
    world: int = 612
    renders: int = 2000
    fit: FitSettings = field(default_factory=FitSettings)


@dataclass
class Result:
    """Everything measured: {method: {concept: {measure: value}}}, ours from words over strength, distances, seconds,
    bars. pictured: {(method, concept): {judge: one number per picture}}, see `Session.merits`."""

    heldout: list[str] = field(default_factory=list)
    fitted: list[str] = field(default_factory=list)
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    unsteered: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    subject_curves: dict[str, list[float]] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)
    nearest: dict[str, str] = field(default_factory=dict)
    speed: dict[str, float | bool | None] = field(default_factory=dict)
    world: dict[str, float] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0
    shown: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    examples: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    strengths: dict[str, dict[float, dict[str, float]]] = field(default_factory=dict)
    pictured: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)
    looks: dict[tuple[str, str], Judged] = field(default_factory=dict)


def evaluate(
    pipeline: Pipeline,
    judge: Judge,
    settings: EvaluationSettings,
    *,
    adapter: ImageAdapterFile | None = None,
    quiet: bool = False,
) -> Result:
    """Measure all methods on held-out concepts, the cheap ones first. What outlasts a stopped run is the cache of
    fits. adapter: of the method image_adapter."""
    session = Session(pipeline, judge, settings, adapter=adapter, quiet=quiet)
    session.progress.total = total_cost(session)
    result = session.compare()
    result.speed = speed(session.methods, result.heldout, session.fitter, bool(result.scores.get("lineas_1000")))
    session.progress.finish()
    return result


@dataclass(frozen=True)
class Look:
    """Pictures of the session's scenes and all that is known about them; clip: the concept whose words the second CLIP
    finds nearest to each, int64 (n,), where there is one."""

    pictures: Tensor
    judged: Judged
    near: Nearness
    clip: Tensor | None = None

    def scores(self, plain: Look, renders: Renders, concept: int) -> dict[str, float]:
        """All measures, see `measures.scores`; moved: distance to the unsteered pictures; clip: share whose nearest
        words for the second CLIP are the concept's, NaN without one."""
        likeness = renders.similarity(self.pictures, plain.pictures)
        return scores(self.judged, plain.judged, concept, self.near, plain.near, likeness) | {
            "moved": float((self.pictures - plain.pictures).square().mean((1, 2, 3)).sqrt().mean()),
            "clip": float("nan") if self.clip is None else float((self.clip == concept).float().mean()),
        }


class Session:
    """One pipeline, judge and set of scenes with what was measured on them so far."""

    def __init__(
        self,
        pipeline: Pipeline,
        judge: Judge,
        settings: EvaluationSettings,
        *,
        second: Judge | None = None,
        second_clip: PostcardCLIP | None = None,
        adapter: ImageAdapterFile | None = None,
        yardsticks: Path | None = None,
        quiet: bool = False,
    ) -> None:
        """Draws the scenes and makes their unsteered pictures; the progress bar does not know its total yet. second:
        another judge, which is asked for preferences only; second_clip: another than the conditioning one;
        adapter: of the method image_adapter; yardsticks: folder where measurements of other methods are kept. Raises
        FileError for one that was measured otherwise."""
        if pipeline.hypernetwork is None:
            raise ValueError("The pipeline has no hypernetwork, but an evaluation needs one; load it with one.")
        self.pipeline, self.judge, self.second, self.settings = pipeline, judge, second, settings
        self.second_clip = None if second_clip is None else SecondClip(second_clip)
        self.started = time.monotonic()
        heldout = split()["heldout"]
        names = stratified(heldout, len(heldout) if settings.concepts is None else settings.concepts)
        self.result = Result(names, stratified(names, settings.fit_concepts))
        self.progress = Progress(1.0, quiet)
        self.fitter = Fitter(pipeline, pipeline.hypernetwork.sites, settings.fit, self.progress, self.progress.more)
        self.methods = Methods(pipeline, self.fitter, adapter)
        scenes = fresh_scenes(settings.prompts, settings.seed)
        self.yardsticks = Yardsticks(yardsticks, {} if yardsticks is None else self._facts(scenes))
        self.set_scenes(scenes)

    def _facts(self, scenes: Scenes) -> dict[str, Any]:
        """What the measurements of other methods depend on."""
        backbone, clip = self.pipeline.backbone, self.second_clip
        return {
            "seed": self.settings.seed,
            "prompts": self.settings.prompts,
            "steps": self.settings.steps,
            "base": facts_digest(backbone.fingerprint()),
            "encoder": self.pipeline.without_response().encoder.encoder_id,
            "sites": facts_digest([site.path for site in self.fitter.sites]),
            "judge": sign(self.judge),
            "judge_2": sign(self.second),
            "clip_2": None if clip is None else sign(clip.encoder.clip),
            "scenes": facts_digest([scenes.prompts, scenes.seeds]),
            "fits": facts_digest(made_with(self.settings.fit)),
        }

    def set_scenes(self, scenes: Scenes) -> None:
        """Work on these scenes from now on."""
        self.scenes = scenes
        noise = self.pipeline.backbone.noise(scenes.seeds).cpu()
        self.renders = Renders(scene_truth(scenes.prompts, scenes.subject, scenes.colour, noise))
        self.plain = self.look(scenes.prompts, None, 1.0, NO_CONCEPT, "unsteered")
        more = max(0, self.settings.rise_prompts - len(scenes)) if "ours_text" in self.settings.methods else 0
        self.more_scenes = fresh_scenes(more, self.settings.seed + MORE_SCENES_SEED)
        self.more_plain = self._more(None, 0.0, "unsteered") if more else None

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], maps: Change | None, strength: float = 1.0, what: str = ""
    ) -> Tensor:
        """Pictures, counted."""
        steps = self.settings.steps
        if isinstance(maps, NO_MAPS):
            with maps.installed(self.pipeline.backbone.network, strength):
                pictures = self.pipeline.generate(prompts, seeds, steps=steps)
        else:
            pictures = self.pipeline.generate(prompts, seeds, maps, strength, steps=steps)
        self.result.images += len(pictures)
        self.progress(len(pictures) * self.settings.steps, what)
        return pictures

    def look(
        self, prompts: Sequence[str], maps: Change | None, strength: float, concept: int, what: str = ""
    ) -> Look:
        """Pictures of prompts that go with the scenes, one each, judged for a concept (its index)."""
        pictures = self.generate(prompts, self.scenes.seeds, maps, strength, what)
        verdict = judged(self.judge, pictures, self.scenes.subject, self.scenes.colour)
        clip = None if self.second_clip is None else self.second_clip.nearest(pictures)
        return Look(pictures, verdict, self.renders.near(pictures, concept), clip)

    def merits(self, look: Look, concept: int) -> dict[str, Tensor]:
        """One number per picture, higher is better, from each judge: of a network the probability of the concept, the
        subject and the colour together; of the renderer the distance to the render of the same truth, negative."""
        found = {"network": look.judged.merit(concept), "renderer": -look.near.error}
        if self.second is not None:
            verdict = judged(self.second, look.pictures, self.scenes.subject, self.scenes.colour)
            found["network_2"] = verdict.merit(concept)
        return found

    def compare(self) -> Result:
        """The world's own bars, and all methods of the settings at strength 1 on held-out concepts."""
        result, settings = self.result, self.settings
        _world(self)
        plain = self.plain.judged
        result.unsteered = {"subject": float(plain.subject.float().mean()), "colour": float(plain.colour.float().mean())}
        result.unsteered |= {name: float(getattr(self.plain.near, name).float().mean()) for name in ("place", "size")}
        result.unsteered["error"] = float(self.plain.near.error.mean())
        for place, name in enumerate(result.heldout):
            result.shown[name] = place % len(self.scenes)
            result.prompts[name] = self.scenes.prompts[result.shown[name]]
            result.examples["unsteered", name] = self.plain.pictures[result.shown[name]]
            result.nearest[name], result.distances[name] = self.methods.nearest(name)
        order = sorted(settings.methods, key=settings.methods.index)
        for name in result.heldout:  # concept by concept, since its renders are made once
            for method in order:
                if method not in DEAR:
                    self.one(method, name)
        for name in result.fitted:
            for method in order:
                if method in DEAR:
                    self.one(method, name)
        result.seconds = time.monotonic() - self.started
        return result

    def one(self, method: str, name: str) -> None:
        """One method on one concept; for ours from words the strengths in between as well."""
        if method == "ours_text":
            self._over_strength(name)
        else:
            self.result.scores.setdefault(method, {})[name] = self.measured(method, name, 1.0, method)

    def measured(
        self, method: str, name: str, strength: float, called: str, *, pictured: bool = False
    ) -> dict[str, float]:
        """The scores of a method on a concept at a strength, made now or taken over; its picture and what the judges find
        are the result's, as those of `called`. pictured: a sheet needs the picture."""
        result, number = self.result, concept_number(name)

        def make() -> Measured:
            prompts = self.methods.prompts(method, name, self.scenes.prompts)
            maps, what = self.methods.maps(method, name), f"{method} at {strength:g}, {name}"
            return self._kept(self.look(prompts, maps, strength, number, what), name)

        what = f"strength {strength:g}, picture {result.shown[name]}{self.methods.made_by(method)}"
        found = self.recall(method, name, what, make, pictured=pictured and method in PICTURED)
        if found.picture is not None:
            result.examples[called, name] = found.picture
        result.pictured[called, name] = found.merits
        return found.scores

    def recall(
        self,
        method: str,
        name: str,
        what: str,
        make: Callable[[], Measured],
        *,
        pictured: bool = False,
    ) -> Measured:
        """`Yardsticks.recall`, counting the pictures of what is taken over."""
        found, known = self.yardsticks.recall(method, name, what, make, pictured=pictured)
        if known:
            self.result.images += found.images
        return found

    def pictures_ahead(self, method: str, name: str, count: int) -> int:
        """Network rows of some pictures of a method on a concept, 0 where what they are for is known."""
        return 0 if self.yardsticks.knows(method, name) else count * self.settings.steps

    def fit_ahead(self, method: str, name: str) -> float:
        """Work of a method's fit to a concept in network rows, roughly, 0 where it is there or nothing needs it."""
        known = self.yardsticks.knows(method, name) or self.methods.has_fit(method, name)
        return 0.0 if known else fit_cost(method, self.settings)

    def _kept(self, look: Look, name: str) -> Measured:
        number = concept_number(name)
        scores, merits = look.scores(self.plain, self.renders, number), self.merits(look, number)
        return Measured(scores, merits, look.pictures[self.result.shown[name]], len(look.pictures))

    def _over_strength(self, name: str) -> None:
        """Ours from words at all strengths up to 1."""
        result, number, maps = self.result, concept_number(name), self.methods.maps("ours_text", name)
        near = self.renders.near(self.plain.pictures, number)
        looks = {0.0: Look(self.plain.pictures, self.plain.judged, near, self.plain.clip)}
        for strength in STRENGTHS[1:]:
            looks[strength] = self.look(self.scenes.prompts, maps, strength, number, f"ours_text, {name}")
        whole, shown = self._kept(looks[1.0], name), result.shown[name]
        steps = {strength: look.scores(self.plain, self.renders, number) for strength, look in looks.items()}
        for strength, look in looks.items():
            result.examples[f"ours_text {strength:g}", name] = look.pictures[shown]
        result.strengths[name], result.scores.setdefault("ours_text", {})[name] = steps, whole.scores
        result.examples["ours_text", name] = looks[1.0].pictures[shown]
        result.pictured["ours_text", name], result.looks["ours_text", name] = whole.merits, looks[1.0].judged
        result.curves[name] = self._rise(name, maps, number, list(looks.values()))
        result.subject_curves[name] = [scores["subject"] for scores in steps.values()]

    def _rise(self, name: str, maps: Change | None, number: int, steps: Sequence[Look]) -> list[float]:
        """The mean probability of a concept at STRENGTHS, over the scenes of the looks and more of them."""
        found = [look.judged.concept[:, number] for look in steps]
        if self.more_plain is not None:
            more = [self.more_plain, *(self._more(maps, s, f"rise, {name}") for s in STRENGTHS[1:])]
            found = [torch.cat([few, verdict.concept[:, number]]) for few, verdict in zip(found, more)]
        return [float(values.mean()) for values in found]

    def _more(self, maps: Change | None, strength: float, what: str) -> Judged:
        scenes = self.more_scenes
        pictures = self.generate(scenes.prompts, scenes.seeds, maps, strength, what)
        return judged(self.judge, pictures, scenes.subject, scenes.colour)


def _world(session: Session) -> None:
    """The bars of the world itself: prompts that name any concept; the judge on renders; retrieval by the CLIP."""
    from ..postcard.train_clip import retrieval
    from ..postcard.train_judge import accuracy

    settings, result = session.settings, session.result
    if settings.world:
        scenes = fresh_scenes(settings.world, WORLD_SEED)
        order = torch.randperm(len(concepts()), generator=torch.Generator().manual_seed(WORLD_SEED)).tolist()
        numbers = torch.tensor([order[index % len(order)] for index in range(len(scenes))])
        prompts = [
            in_concept([prompt], concepts()[number].name)[0] for prompt, number in zip(scenes.prompts, numbers.tolist())
        ]
        pictures = session.generate(prompts, scenes.seeds, None, what="world")
        found = judged(session.judge, pictures, scenes.subject, scenes.colour)
        result.world = {
            "postcard.subject": float(found.subject.float().mean()),
            "postcard.colour": float(found.colour.float().mean()),
            "postcard.concept": float((found.concept.argmax(1) == numbers).float().mean()),
        }
    if settings.renders:
        rates = accuracy(session.judge, settings.renders)
        result.world["judge.renders"] = sum(rates.values()) / len(rates)
        result.world.update({f"judge.renders_{head}": rate for head, rate in rates.items()})
        if session.second is not None:
            rates = accuracy(session.second, settings.renders)
            result.world["judge_2.renders"] = sum(rates.values()) / len(rates)
        if session.second_clip is not None:
            result.world["clip_2.renders"] = session.second_clip.right_on_renders(split()["heldout"])
        clip = getattr(session.pipeline.without_response().encoder, "clip", None)
        if clip is not None:
            with torch.no_grad():
                result.world["clip.retrieval_heldout"] = retrieval(clip, split()["heldout"])


def speed(methods: Methods, names: Sequence[str], fitter: Fitter, timed: bool = False) -> dict[str, float | bool | None]:
    """Seconds to predict (encode, hypernetwork, install) and to fit, medians of this run: a fit read from the cache was
    timed beside other work, so it does not count, and where none of many steps was made, one is made; timed: also where
    the run reports such fits without having one."""
    longest, shortest = fitter.settings.iterations
    timed = timed or any(count == longest for _, count in fitter.seconds)
    if timed and not fitter.fresh("lineas:", longest):
        fitter.time_one(names[0], longest)
    times = [methods.predict_seconds(names[index % len(names)]) for index in range(PREDICTIONS)][3:]
    found: dict[str, float | bool | None] = {"speed.predict_seconds": statistics.median(times)}
    for key, kind, iterations in (
        ("speed.fit_seconds", "lineas:", longest),
        ("speed.fit_short_seconds", "lineas:", shortest),
        ("speed.mean_act_seconds", "mean_act:", 0),
        ("speed.slider_seconds", "slider_lora:", fitter.settings.slider_iterations),
    ):
        seconds = fitter.fresh(kind, iterations)
        found[key] = statistics.median(seconds) if seconds else None
    if found["speed.fit_seconds"]:
        found["speed.ratio"] = found["speed.fit_seconds"] / statistics.median(times)
    return found


def fit_cost(method: str, settings: EvaluationSettings) -> float:
    """Work of a method's fit to one concept in network rows, roughly."""
    fit = settings.fit
    slider = fit.slider_iterations * cost_of_slider_step() if method == "slider_lora" else 0.0
    return lineas_steps(method, fit) * cost_of_step(fit) + slider + (2 * SAMPLES if method in QUICK_FITS else 0)


def total_cost(session: Session) -> float:
    """All work ahead of a session in network rows, roughly: less what is known already."""
    settings, result = session.settings, session.result
    rows = float(settings.world + settings.prompts) * settings.steps
    for method in settings.methods:
        pictures = 4 * settings.rise_prompts if method == "ours_text" else settings.prompts
        for name in result.fitted if method in DEAR else result.heldout:
            rows += session.pictures_ahead(method, name, pictures) + session.fit_ahead(method, name)
    return max(1.0, rows)
