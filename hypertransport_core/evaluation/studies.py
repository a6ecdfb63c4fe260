"""Questions beyond strength 1: the best strength, stronger, removed, two at once, other words, other seeds, preferred."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..pipeline import StepMaps, each_map
from ..postcard.captions import in_concept
from ..postcard.concepts import by_name, split
from ..step_maps import combine
from ..transport import TransportMaps
from .measures import Scenes, concept_number, judged, kept, mean
from .methods import DEAR, stratified
from .runner import Session
from .truths import NO_CONCEPT, Renders, scene_truth
from .yardsticks import PICTURED, Measured

GRID = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.25, 1.5)
BEYOND = (1.25, 1.5, 2.0)
WAYS = ("sum", "sequence", "mix", "prompting", "one_only")
REMOVALS = ("negative", "negative_image", "inverse", "mean_act_inverse")
WORDINGS = ("phrase", "typo", "unknown_word")
UNKNOWN_WORD = "zorblen"
NEAR_TOP = 5  # a concept is present when it is among the judge's so many most probable ones
WIDER = (15, 30)  # more lenient readings, reported beside it
SEEDS_SEED = 120_000
CHOSEN_WITH = {"nearest": "lineas_1000"}  # maps of the same kind take the same strength

PerConcept = dict[str, dict[str, float]]


@dataclass(frozen=True)
class StudySettings:
    """validation: concepts on which strengths are chosen; validation_fits: on how many of them for methods of 1000
    steps; scenes: per concept in the studies (at most the session's); pairs: of concepts; seeds: per prompt for
    diversity."""

    validation: int = 9
    validation_fits: int = 1
    scenes: int = 4
    pairs: int = 100
    seeds: int = 6


@dataclass
class Studies:
    """What came out, per concept or pair where it can be: {name of the part: {concept: {measure: value}}}."""

    choice: dict[str, dict[float, float]] = field(default_factory=dict)
    chosen_on: dict[str, list[str]] = field(default_factory=dict)
    best: dict[str, PerConcept] = field(default_factory=dict)
    beyond: dict[str, dict[float, dict[str, float]]] = field(default_factory=dict)
    identical: bool | None = None
    removal: dict[str, PerConcept] = field(default_factory=dict)
    composition: dict[str, PerConcept] = field(default_factory=dict)
    wordings: dict[str, PerConcept] = field(default_factory=dict)
    diversity: dict[str, PerConcept] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)

    def strength(self, method: str) -> float:
        """The strength chosen for a method."""
        tried = self.choice.get(CHOSEN_WITH.get(method, method), {})
        known = {strength: share for strength, share in tried.items() if share == share}
        return max(known, key=lambda s: (known[s], -abs(s - 1))) if known else 1.0


def choose_strengths(session: Session, studies: Studies, settings: StudySettings, methods: Sequence[str]) -> None:
    """For every method with maps: the share of pictures that show the concept and keep subject and colour, at every
    strength of GRID, on validation concepts. The held-out ones are not looked at."""
    names = stratified(split()["validation"], settings.validation)
    some = _Part(session, settings.scenes)
    for method in methods:
        if method == "prompting" or method in CHOSEN_WITH:
            continue
        used = stratified(names, settings.validation_fits) if method in DEAR else names
        if not used:
            continue
        found: dict[float, list[float]] = {strength: [] for strength in GRID}
        for name in used:
            for strength, share in some.over_grid(method, name).items():
                found[strength].append(share)
        studies.choice[method] = {strength: mean(values) for strength, values in found.items()}
        studies.chosen_on[method] = list(used)


def at_best_strength(session: Session, studies: Studies, methods: Sequence[str]) -> None:
    """Every method on the held-out concepts at the strength chosen; at 1 nothing is made twice."""
    for method in methods:
        strength, done = studies.strength(method), session.result.scores.get(method, {})
        there = method == "prompting" or strength == 1.0
        called = method if there else best_of(method)
        studies.best[method] = done if there else {}
        for name in done:
            lacking = method in PICTURED and (called, name) not in session.result.examples
            if lacking or not there:
                studies.best[method][name] = session.measured(method, name, strength, called, pictured=True)


def best_of(method: str) -> str:
    """What a method at the strength chosen for it is called among pictures."""
    return f"{method} at its best"


def stronger(session: Session, studies: Studies) -> None:
    """Ours from words beyond strength 1; and whether strength 0 gives the unsteered pictures bit for bit."""
    for name in session.result.heldout:
        maps, number = session.methods.maps("ours_text", name), concept_number(name)
        studies.beyond[name] = {}
        for strength in BEYOND:
            look = session.look(session.scenes.prompts, maps, strength, number, f"strength {strength:g}, {name}")
            studies.beyond[name][strength] = look.scores(session.plain, session.renders, number)
            studies.examples.setdefault(("strength", name), []).append(look.pictures[session.result.shown[name]])
    maps = session.methods.maps("ours_text", session.result.heldout[0])
    off = session.generate(session.scenes.prompts, session.scenes.seeds, maps, 0.0, "strength 0")
    studies.identical = bool(torch.equal(off, session.plain.pictures))


def remove(session: Session, studies: Studies, settings: StudySettings) -> None:
    """The concept is in the prompt; maps are to take it out again. gone: share of pictures that showed it and no longer
    do; plain: that now show no concept at all; subject, colour: kept; joint: plain with both, of the pictures that
    showed all three; error: distance to the render without concept."""
    some = _Part(session, settings.scenes)
    for name in session.result.heldout:
        number, prompts = concept_number(name), in_concept(some.scenes.prompts, name)
        shown = session.generate(prompts, some.scenes.seeds, None, what=f"removal, {name}")
        before = some.judged(shown)
        ours, theirs = session.methods.steering("ours_text", name), session.methods.steering("mean_act", name)
        tried: dict[str, tuple[StepMaps, float]] = {
            "negative": (ours, -1.0),
            "negative_image": (session.methods.steering("ours_image", name), -1.0),
            "inverse": (each_map(ours, TransportMaps.inverse), 1.0),
            "mean_act_inverse": (each_map(theirs, TransportMaps.inverse), studies.strength("mean_act")),
        }
        for way, (maps, strength) in tried.items():
            pictures = session.generate(prompts, some.scenes.seeds, maps, strength, f"removal, {way}, {name}")
            after = some.judged(pictures)
            named, plain = before.named(number), after.named(after.concept.shape[1] - 1)
            studies.removal.setdefault(way, {})[name] = {
                "gone": kept(named, ~after.named(number)),
                "plain": kept(named, plain),
                "subject": kept(before.subject, after.subject),
                "colour": kept(before.colour, after.colour),
                "joint": kept(named & before.subject & before.colour, plain & after.subject & after.colour),
                "error": float(some.renders.near(pictures, NO_CONCEPT).error.mean()),
            }
            studies.examples.setdefault(("removal", name), [shown[0]]).append(pictures[0])
        studies.examples["removal", name].append(session.plain.pictures[0])


def pairs_of(names: Sequence[str], count: int) -> list[tuple[str, str]]:
    """`count` pairs of concepts from different categories, in an order that no one chose: that of a hash."""
    every = [(a, b) for a, b in combinations(names, 2) if by_name()[a].category != by_name()[b].category]
    return sorted(every, key=lambda pair: hashlib.sha256("+".join(pair).encode()).hexdigest())[:count]


def compose(session: Session, studies: Studies, settings: StudySettings) -> None:
    """Two concepts at once, by the sum of maps, one after another, from the mean embedding, and by naming both.

    both_present: share of pictures in which both are among the judge's NEAR_TOP most probable; top_two and others: among
    so many; one_only: the same question on pictures steered by the first alone."""
    some = _Part(session, settings.scenes)
    for pair in pairs_of(session.result.heldout, settings.pairs):
        embeddings = [session.pipeline.embed_text(name) for name in pair]
        maps = [session.pipeline.maps(one) for one in embeddings]
        steps = [[m] if isinstance(m, TransportMaps) else list(m) for m in maps]
        ways: dict[str, tuple[Sequence[str], StepMaps | None]] = {
            "sum": (some.scenes.prompts, _as_maps(combine(steps, "sum"))),
            "sequence": (some.scenes.prompts, _as_maps(combine(steps, "sequence"))),
            "mix": (some.scenes.prompts, session.pipeline.maps(session.pipeline.mix(embeddings))),
            "prompting": (in_concept(in_concept(some.scenes.prompts, pair[0]), pair[1]), None),
            "one_only": (some.scenes.prompts, maps[0]),
        }
        both = torch.tensor([concept_number(name) for name in pair])
        for way, (prompts, used) in ways.items():
            pictures = session.generate(prompts, some.scenes.seeds, used, 1.0, f"{way} of {' and '.join(pair)}")
            found = some.judged(pictures)
            order = found.concept.argsort(1, descending=True)
            studies.composition.setdefault(way, {})[" + ".join(pair)] = {
                "both_present": _both(order[:, :NEAR_TOP], both),
                "top_two": _both(order[:, :2], both),
                **{f"top_{count}": _both(order[:, :count], both) for count in WIDER},
                "subject": kept(some.plain.subject, found.subject),
                "colour": kept(some.plain.colour, found.colour),
            }
            studies.examples.setdefault(("composition", " + ".join(pair)), []).append(pictures[0])


def reword(session: Session, studies: Studies, settings: StudySettings) -> None:
    """The concept in other words, misspelt, and beside a word that no one knows; `name` is the usual spelling on the
    same scenes and concepts."""
    some = _Part(session, settings.scenes)
    for name in session.result.heldout:
        number = concept_number(name)
        usual = session.result.looks["ours_text", name].named(number)[: len(some.scenes)].float()
        for wording, make in _WORDINGS.items():
            words = make(name)
            if words:
                maps = session.pipeline.maps(session.pipeline.embed_text(words))
                pictures = session.generate(some.scenes.prompts, some.scenes.seeds, maps, 1.0, f"{wording}, {name}")
                share = float(some.judged(pictures).named(number).float().mean())
                studies.wordings.setdefault(wording, {})[name] = {"concept": share, "name": float(usual.mean())}


def vary(session: Session, studies: Studies, settings: StudySettings, methods: Sequence[str]) -> None:
    """One prompt that leaves the place open, several seeds: mean distance (root mean square) between two pictures."""
    prompts = ["a red house"] * settings.seeds
    seeds = [SEEDS_SEED + index for index in range(settings.seeds)]
    plain = _spread(session.generate(prompts, seeds, None, what="diversity"))
    for name in session.result.heldout:
        studies.diversity.setdefault("unsteered", {})[name] = {"distance": plain}
        for method in methods:

            def make(method: str = method, name: str = name) -> Measured:
                maps, words = session.methods.maps(method, name), session.methods.prompts(method, name, prompts)
                distance = _spread(session.generate(words, seeds, maps, 1.0, "diversity"))
                return Measured({"distance": distance}, images=len(seeds))

            what = f"diversity, {len(seeds)} seeds{session.methods.made_by(method)}"
            studies.diversity.setdefault(method, {})[name] = session.recall(method, name, what, make).scores


def preferences(session: Session, studies: Studies, method: str) -> dict[str, dict[str, float]]:
    """Ours from words against a method, both at the strengths chosen, picture by picture: {judge: {concept: share that
    ours wins, a tie counts half}}, by all judges of `Session.merits`."""
    found: dict[str, dict[str, float]] = {}
    for name in [name for name in studies.best.get(method, {}) if name in studies.best.get("ours_text", {})]:
        kept_pictures = session.result.pictured
        ours, theirs = (
            kept_pictures.get((best_of(m), name), kept_pictures[m, name]) for m in ("ours_text", method)
        )
        for judge, a in ours.items():
            b = theirs[judge]
            found.setdefault(judge, {})[name] = float(((a > b).float() + (a == b).float() / 2).mean())
    return found


class _Part:
    """The session's first scenes: enough where there are many concepts or strengths."""

    def __init__(self, session: Session, count: int) -> None:
        whole = session.scenes
        self.session = session
        self.scenes = Scenes(whole.prompts[:count], whole.seeds[:count], whole.subject[:count], whole.colour[:count])
        noise = session.pipeline.backbone.noise(self.scenes.seeds).cpu()
        self.renders = Renders(scene_truth(self.scenes.prompts, self.scenes.subject, self.scenes.colour, noise))
        self.pictures = session.plain.pictures[:count]
        self.plain = self.judged(self.pictures)

    def judged(self, pictures: Tensor) -> Any:
        return judged(self.session.judge, pictures, self.scenes.subject, self.scenes.colour)

    def over_grid(self, method: str, name: str) -> dict[float, float]:
        """At every strength of GRID the share of the pictures right before that show the concept and the right subject
        and colour."""
        session, scenes, before = self.session, self.scenes, self.plain.subject & self.plain.colour

        def make() -> Measured:
            maps, shares = session.methods.maps(method, name), {}
            for strength in GRID:
                found = self.judged(session.generate(scenes.prompts, scenes.seeds, maps, strength, f"validation, {method}"))
                right = found.named(concept_number(name)) & found.subject & found.colour
                shares[f"{strength:g}"] = kept(before, right)
            return Measured(shares, images=len(GRID) * len(scenes))

        what = f"strengths {' '.join(f'{s:g}' for s in GRID)}, {len(scenes)} scenes{session.methods.made_by(method)}"
        shares = session.recall(method, name, what, make).scores
        return {strength: shares[f"{strength:g}"] for strength in GRID}


def _both(top: Tensor, both: Tensor) -> float:
    return float((top[:, :, None] == both).any(1).all(1).float().mean())


def _as_maps(steps: Sequence[TransportMaps]) -> StepMaps:
    return steps[0] if len(steps) == 1 else steps


def _spread(pictures: Tensor) -> float:
    distances = torch.pdist(pictures.float().flatten(1)) / pictures[0].numel() ** 0.5
    return float(distances.mean())


def typo(name: str) -> str:
    """The name with two inner letters of its longest word swapped; empty when that changes nothing."""
    words = name.split()
    place = max(range(len(words)), key=lambda index: len(words[index]))
    word = words[place]
    middle = len(word) // 2
    words[place] = word[: middle - 1] + word[middle] + word[middle - 1] + word[middle + 1 :]
    return " ".join(words) if " ".join(words) != name and len(word) > 3 else ""


_WORDINGS: dict[str, Callable[[str], str]] = {
    "phrase": lambda name: next(iter(by_name()[name].phrases), ""),
    "typo": typo,
    "unknown_word": lambda name: f"{UNKNOWN_WORD} {name}",
}
