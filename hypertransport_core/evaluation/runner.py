"""Running an evaluation: pictures of every method and concept, judged on the spot; only verdicts are kept."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..fitting.image_adapter import ImageAdapterFile
from ..pipeline import Pipeline
from ..postcard.captions import in_concept
from ..postcard.clip import PostcardCLIP
from ..postcard.concepts import concepts, split
from ..postcard.judge import Judge
from .fits import SAMPLES, Fitter, FitSettings, cost_of_slider_step, cost_of_step
from .measures import STRENGTHS, Judged, Scenes, concept_number, fresh_scenes, judged, scores
from .methods import DEAR, METHODS, NO_MAPS, QUICK_FITS, Change, Methods, stratified
from .second_clip import SecondClip
from .truths import NO_CONCEPT, Nearness, Renders, scene_truth

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


class Progress:
    """Share done and time left on stderr: on one line of a terminal, else a line now and then."""

    def __init__(self, total: float, quiet: bool = False) -> None:
        self.total, self.done, self.quiet = max(total, 1.0), 0.0, quiet
        self.started = self.told = time.monotonic()

    def __call__(self, amount: float, text: str) -> None:
        from ..training.progress import duration

        self.done += amount
        now, live = time.monotonic(), sys.stderr.isatty()
        if self.quiet or now - self.told < (0.5 if live else 10.0):
            return
        self.told = now
        share = min(self.done / self.total, 0.999)
        left = duration((now - self.started) * (1 / share - 1)) if share > 0.001 else "some time"
        line = f"{share:4.0%}  {left} left  {text}"
        _tell(f"\r{line[:110]:<110}" if live else f"{line}\n")

    def spared(self, amount: float) -> None:
        """So much of the work need not be done."""
        self.total = max(self.total - amount, 1.0)

    def finish(self) -> None:
        """End the line of a terminal."""
        if not self.quiet and sys.stderr.isatty():
            _tell(f"\r{'':<110}\r")


def _tell(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


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
    session.progress.total = total_cost(settings, len(session.result.heldout), len(session.result.fitted))
    result = session.compare()
    result.speed = speed(session.methods, result.heldout, session.fitter)
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
        quiet: bool = False,
    ) -> None:
        """Draws the scenes and makes their unsteered pictures; the progress bar does not know its total yet. second:
        another judge, which is asked for preferences only; second_clip: another than the conditioning one;
        adapter: of the method image_adapter."""
        if pipeline.hypernetwork is None:
            raise ValueError("The pipeline has no hypernetwork, but an evaluation needs one; load it with one.")
        self.pipeline, self.judge, self.second, self.settings = pipeline, judge, second, settings
        self.second_clip = None if second_clip is None else SecondClip(second_clip)
        self.started = time.monotonic()
        heldout = split()["heldout"]
        names = stratified(heldout, len(heldout) if settings.concepts is None else settings.concepts)
        self.result = Result(names, stratified(names, settings.fit_concepts))
        self.progress = Progress(1.0, quiet)
        self.fitter = Fitter(pipeline, pipeline.hypernetwork.sites, settings.fit, self.progress, self.progress.spared)
        self.methods = Methods(pipeline, self.fitter, adapter)
        self.set_scenes(fresh_scenes(settings.prompts, settings.seed))

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
        result, number, maps = self.result, concept_number(name), self.methods.maps(method, name)
        prompts, what = self.methods.prompts(method, name, self.scenes.prompts), f"{method}, {name}"
        found = self.look(prompts, maps, 1.0, number, what)
        result.scores.setdefault(method, {})[name] = found.scores(self.plain, self.renders, number)
        result.examples[method, name] = found.pictures[result.shown[name]]
        result.pictured[method, name] = self.merits(found, number)
        if method == "ours_text":
            result.looks[method, name] = found.judged
            off = Look(self.plain.pictures, self.plain.judged, self.renders.near(self.plain.pictures, number), self.plain.clip)
            looks = {0.0: off, 1.0: found}
            looks |= {s: self.look(prompts, maps, s, number, what) for s in STRENGTHS[1:-1]}
            steps = [looks[s] for s in STRENGTHS]
            result.strengths[name] = {
                s: look.scores(self.plain, self.renders, number) for s, look in zip(STRENGTHS, steps)
            }
            for strength, look in zip(STRENGTHS, steps):
                result.examples[f"{method} {strength:g}", name] = look.pictures[result.shown[name]]
            result.curves[name] = self._rise(name, maps, number, steps)
            result.subject_curves[name] = [result.strengths[name][s]["subject"] for s in STRENGTHS]

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
        clip = getattr(session.pipeline.encoder, "clip", None)
        if clip is not None:
            with torch.no_grad():
                result.world["clip.retrieval_heldout"] = retrieval(clip, split()["heldout"])


def speed(methods: Methods, names: Sequence[str], fitter: Fitter) -> dict[str, float | bool | None]:
    """Seconds to predict (encode, hypernetwork, install) and to fit, medians of this run: a fit read from the cache was
    timed beside other work, so it does not count, and one is made anew where there is no other."""
    longest, shortest = fitter.settings.iterations
    if any(count == longest for _, count in fitter.seconds) and not fitter.fresh("lineas:", longest):
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


def total_cost(settings: EvaluationSettings, heldout: int, fitted: int) -> float:
    """All work in network rows, roughly."""
    longest, shortest = settings.fit.iterations
    pictures = settings.world + settings.prompts
    rows = 0.0
    for method in settings.methods:
        count = fitted if method in DEAR else heldout
        pictures += count * (4 * settings.rise_prompts if method == "ours_text" else settings.prompts)
        iterations = {"lineas_1000": longest, "nearest": longest, "lineas_50": shortest}.get(method, 0)
        rows += count * (iterations * cost_of_step(settings.fit) + (2 * SAMPLES if method in QUICK_FITS else 0))
        rows += count * settings.fit.slider_iterations * cost_of_slider_step() if method == "slider_lora" else 0
    return rows + pictures * settings.steps
