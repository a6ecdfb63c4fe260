"""Running an evaluation: pictures of every method and concept, judged on the spot; only verdicts are kept."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..pipeline import Pipeline, StepMaps
from ..postcard.captions import in_concept
from ..postcard.concepts import concepts, split
from ..postcard.judge import Judge
from .measures import STRENGTHS, Judged, Scenes, concept_number, fresh_scenes, judged, kept
from .methods import DEAR, METHODS, SAMPLES, Fitter, FitSettings, Methods, cost_of_step, stratified

WORLD_SEED = 70_000
PREDICTIONS = 15  # timed predictions; the first ones warm caches up and are left out


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure. concepts: how many held-out ones (None = all); prompts: scenes per concept; steps: of sampling;
    fit_concepts: on how many of the concepts the dear methods run; world: pictures for the world's own bars; renders:
    for the judge's."""

    concepts: int | None = None
    prompts: int = 16
    seed: int = 90_000
    steps: int = 4
    methods: tuple[str, ...] = METHODS
    fit_concepts: int = 9
    world: int = 612
    renders: int = 2000
    fit: FitSettings = field(default_factory=FitSettings)


@dataclass
class Result:
    """Everything measured: {method: {concept: {measure: value}}}, mean probabilities over strength, distances, seconds,
    bars."""

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
    examples: dict[tuple[str, str], Tensor] = field(default_factory=dict)


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

    def finish(self) -> None:
        """End the line of a terminal."""
        if not self.quiet and sys.stderr.isatty():
            _tell(f"\r{'':<110}\r")


def _tell(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def evaluate(pipeline: Pipeline, judge: Judge, settings: EvaluationSettings, *, quiet: bool = False) -> Result:
    """Measure all methods on held-out concepts, the cheap ones first. What outlasts a stopped run is the cache of
    fits."""
    names = stratified(
        split()["heldout"], settings.concepts if settings.concepts is not None else len(split()["heldout"])
    )
    result = Result(names, stratified(names, settings.fit_concepts))
    progress = Progress(_total_cost(settings, len(names), len(result.fitted)), quiet)
    started = time.monotonic()
    assert pipeline.hypernetwork is not None
    fitter = Fitter(pipeline, pipeline.hypernetwork.sites, settings.fit, progress)
    methods = Methods(pipeline, fitter)
    scenes = fresh_scenes(settings.prompts, settings.seed)
    look = _Look(pipeline, judge, settings.steps, result, progress)
    _world(pipeline, judge, settings, result, look)
    plain = look(scenes, scenes.prompts, None, 1.0, "unsteered", "")
    result.unsteered = {"subject": float(plain.subject.float().mean()), "colour": float(plain.colour.float().mean())}
    for name in names:
        result.nearest[name], result.distances[name] = methods.nearest(name)
    for method in sorted(settings.methods, key=lambda m: (m in DEAR, METHODS.index(m))):
        for name in result.fitted if method in DEAR else names:
            _one(result, look, methods, method, name, scenes, plain)
    result.speed = speed(methods, names, fitter)
    result.seconds = time.monotonic() - started
    progress.finish()
    return result


class _Look:
    """Makes pictures and has them judged, counting both."""

    def __init__(
        self, pipeline: Pipeline, judge: Judge, steps: int, result: Result, progress: Callable[[float, str], None]
    ) -> None:
        self.pipeline, self.judge, self.steps, self.result, self.progress = pipeline, judge, steps, result, progress

    def __call__(
        self, scenes: Scenes, prompts: Sequence[str], maps: StepMaps | None, strength: float, method: str, concept: str
    ) -> Judged:
        pictures = self.pipeline.generate(prompts, scenes.seeds, maps, strength, steps=self.steps)
        self.result.images += len(pictures)
        if strength == 1.0:
            self.result.examples[method, concept] = pictures[0]
        self.progress(len(pictures) * self.steps, f"{method}, {concept}" if concept else method)
        return judged(self.judge, pictures, scenes.subject, scenes.colour)


def _one(result: Result, look: _Look, methods: Methods, method: str, name: str, scenes: Scenes, plain: Judged) -> None:
    """One method on one concept; for ours from words the strengths in between as well."""
    number, maps = concept_number(name), methods.maps(method, name)
    found = look(scenes, methods.prompts(method, name, scenes.prompts), maps, 1.0, method, name)
    result.scores.setdefault(method, {})[name] = {
        "concept": float(found.named(number).float().mean()),
        "subject": kept(plain.subject, found.subject),
        "colour": kept(plain.colour, found.colour),
        "probability": found.probability(number),
    }
    if method == "ours_text":
        between = [look(scenes, scenes.prompts, maps, strength, method, name) for strength in STRENGTHS[1:-1]]
        steps = [plain, *between, found]
        result.curves[name] = [step.probability(number) for step in steps]
        result.subject_curves[name] = [kept(plain.subject, step.subject) for step in steps]


def _world(pipeline: Pipeline, judge: Judge, settings: EvaluationSettings, result: Result, look: _Look) -> None:
    """The bars of the world itself: prompts that name any concept; the judge on renders; retrieval by the CLIP."""
    from ..postcard.train_clip import retrieval
    from ..postcard.train_judge import accuracy

    if settings.world:
        scenes = fresh_scenes(settings.world, WORLD_SEED)
        order = torch.randperm(len(concepts()), generator=torch.Generator().manual_seed(WORLD_SEED)).tolist()
        numbers = torch.tensor([order[index % len(order)] for index in range(len(scenes))])
        prompts = [
            in_concept([prompt], concepts()[number].name)[0] for prompt, number in zip(scenes.prompts, numbers.tolist())
        ]
        found = look(scenes, prompts, None, 1.0, "world", "")
        result.world = {
            "postcard.subject": float(found.subject.float().mean()),
            "postcard.colour": float(found.colour.float().mean()),
            "postcard.concept": float((found.concept.argmax(1) == numbers).float().mean()),
        }
    if settings.renders:
        rates = accuracy(judge, settings.renders)
        result.world["judge.renders"] = sum(rates.values()) / len(rates)
        result.world.update({f"judge.renders_{head}": rate for head, rate in rates.items()})
        clip = getattr(pipeline.encoder, "clip", None)
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
    ):
        seconds = fitter.fresh(kind, iterations)
        found[key] = statistics.median(seconds) if seconds else None
    if found["speed.fit_seconds"]:
        found["speed.ratio"] = found["speed.fit_seconds"] / statistics.median(times)
    return found


def _total_cost(settings: EvaluationSettings, heldout: int, fitted: int) -> float:
    """All work in network rows, roughly."""
    longest, shortest = settings.fit.iterations
    pictures = settings.world + settings.prompts
    rows = 0.0
    for method in settings.methods:
        count = fitted if method in DEAR else heldout
        pictures += count * settings.prompts * (4 if method == "ours_text" else 1)
        iterations = {"lineas_1000": longest, "nearest": longest, "lineas_50": shortest}.get(method, 0)
        rows += count * (iterations * cost_of_step(settings.fit) + (2 * SAMPLES if method == "mean_act" else 0))
    return rows + pictures * settings.steps
