"""The concepts of the Postcard world: what each is called and how it looks."""
from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

Colour = tuple[float, float, float]

SUBJECT_COLOURS: dict[str, Colour] = {
    "red": (.88, .14, .12), "orange": (.98, .53, .08), "yellow": (.99, .87, .12), "green": (.18, .68, .22), "blue": (.13, .32, .92),
    "purple": (.55, .16, .72), "pink": (1., .52, .74), "brown": (.48, .28, .14), "white": (.97, .97, .97), "black": (.16, .16, .18)}

PALETTE: dict[str, Colour] = {
    "crimson": (.78, .08, .20), "copper": (.74, .42, .20), "golden": (.97, .78, .18), "emerald": (.07, .56, .33), "teal": (.04, .55, .58),
    "azure": (.22, .62, .98), "indigo": (.24, .18, .58), "violet": (.60, .32, .88), "rose": (.97, .55, .68), "silver": (.70, .73, .78),
    "mint": (.58, .92, .72), "charcoal": (.24, .25, .28)}

PAPER: Colour = (.97, .95, .90)
NIGHT: Colour = (.08, .09, .20)


@dataclass(frozen=True)
class Concept:
    """One concept: its canonical words, other words for it, and the recipe of its look.

    `structure` names a look of `structures.LOOKS`, or a scene when `scene` is true. `inks` are the colours of the structure's
    inks in order (3, or 6 for a scene). `opacity` is how opaquely the subject is printed over the background (1 = fully).
    """

    name: str
    category: str
    structure: str
    inks: tuple[Colour, ...]
    phrases: tuple[str, ...] = ()
    scene: bool = False
    veil: str = "none"
    veil_colour: Colour = (1., 1., 1.)
    opacity: float = .9


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return tuple(round(x + (y - x) * t, 4) for x, y in zip(a, b))  # type: ignore[return-value]


# category -> structure -> (words with {c}, other words, colours, on dark paper?)
_PATTERNS: dict[str, dict[str, tuple[str, tuple[str, ...], str, bool]]] = {
    "illustration styles": {
        "stripes": ("{c} stripes", ("{c} striped pattern", "striped in {c}"), "crimson teal golden azure violet charcoal", False),
        "dots": ("{c} polka dots", ("{c} dotted pattern", "dotted in {c}"), "crimson emerald copper indigo rose azure", False),
        "gingham": ("{c} gingham", ("{c} checked cloth",), "teal crimson golden violet mint", False),
        "chevrons": ("{c} chevrons", ("{c} zigzag pattern",), "copper indigo rose emerald azure", False),
        "rays": ("{c} sunburst", ("{c} rays",), "golden crimson teal silver violet", False)},
    "digital methods": {
        "halftone": ("{c} halftone", ("{c} halftone print",), "copper teal crimson indigo emerald violet", False),
        "scanlines": ("{c} scanlines", ("{c} crt screen",), "emerald azure rose charcoal copper", False),
        "mesh": ("{c} wireframe", ("{c} grid lines",), "teal golden violet crimson silver", False),
        "dither": ("{c} dithering", ("{c} dithered fade",), "indigo copper mint crimson azure", False),
        "glitch": ("{c} glitch", ("{c} broken signal",), "rose teal charcoal golden emerald", False),
        "circuit": ("{c} circuit", ("{c} circuit board",), "emerald copper azure violet crimson", False)},
    "art techniques": {
        "crosshatch": ("{c} crosshatching", ("{c} hatched drawing",), "charcoal crimson teal indigo copper", False),
        "stipple": ("{c} stippling", ("{c} stippled drawing",), "charcoal emerald violet crimson azure", False),
        "mosaic": ("{c} mosaic", ("{c} tiles",), "teal golden rose indigo copper emerald", False),
        "brush": ("{c} brushstrokes", ("{c} brushwork",), "azure crimson golden emerald violet", False),
        "crossstitch": ("{c} cross stitch", ("{c} embroidery",), "crimson indigo emerald rose charcoal", False),
        "woodcut": ("{c} woodcut", ("{c} carved print",), "copper charcoal teal crimson violet", False)},
    "artistic movements": {
        "rings": ("{c} op art", ("{c} concentric rings",), "charcoal crimson azure golden violet", False),
        "de_stijl": ("{c} de stijl", ("{c} neoplastic blocks",), "crimson azure golden emerald violet", False),
        "deco_fans": ("{c} art deco", ("{c} deco fans",), "golden teal rose indigo silver", False),
        "bauhaus": ("{c} bauhaus", ("{c} quarter circles",), "crimson azure copper emerald charcoal", False),
        "suprematist": ("{c} suprematism", ("{c} suprematist bars",), "charcoal crimson indigo teal golden", False),
        "pop": ("{c} pop art", ("{c} pop quarters",), "rose golden azure mint crimson", False)},
    "photography and cinema": {
        "vignette": ("{c} vignette", ("{c} dark corners",), "charcoal indigo crimson teal copper", False),
        "bokeh": ("{c} bokeh", ("{c} blurred lights",), "golden azure rose emerald violet", True),
        "spotlight": ("{c} spotlight", ("{c} stage light",), "charcoal crimson indigo emerald copper", False),
        "light_leak": ("{c} light leak", ("{c} leaked film",), "crimson golden violet azure copper", False),
        "double_exposure": ("{c} double exposure", ("{c} overlaid hills",), "teal rose silver indigo copper", False),
        "film_strip": ("{c} film strip", ("{c} film reel",), "charcoal copper teal crimson violet", False)},
    "historical periods": {
        "meander": ("{c} ancient roman border", ("{c} meander border",), "crimson teal golden indigo charcoal", False),
        "egyptian": ("{c} ancient egyptian bands", ("{c} pyramid bands",), "golden azure copper emerald crimson", False),
        "sixties": ("{c} sixties waves", ("{c} psychedelic waves",), "rose golden mint violet teal", False),
        "aztec": ("{c} aztec steps", ("{c} stepped frieze",), "copper teal crimson golden indigo", False),
        "victorian": ("{c} victorian frame", ("{c} scalloped frame",), "crimson emerald indigo rose charcoal", False),
        "baroque": ("{c} baroque damask", ("{c} damask wallpaper",), "golden crimson emerald violet silver", False)},
    "fantasy genres": {
        "aurora": ("{c} aurora", ("{c} northern lights",), "emerald violet azure rose mint", True),
        "fairy_dust": ("{c} fairy dust", ("{c} sparkles",), "golden rose mint azure violet", True),
        "bubbles": ("{c} magic bubbles", ("{c} floating bubbles",), "azure rose emerald violet copper", False),
        "crystals": ("{c} crystals", ("{c} crystal cave",), "violet teal rose azure emerald", False),
        "flames": ("{c} flames", ("{c} dragon fire",), "crimson azure emerald violet golden", False),
        "portal": ("{c} portal", ("{c} glowing ring",), "violet teal golden crimson azure", True)},
    "color treatments": {
        "wash": ("{c} wash", ("{c} tinted", "washed in {c}"), "crimson copper golden emerald teal azure indigo violet rose mint charcoal", False)},
}

_DUOTONES = ("golden crimson", "teal rose", "azure indigo", "mint teal", "rose violet", "golden emerald", "silver charcoal", "copper indigo",
             "mint rose", "golden azure", "violet charcoal", "emerald indigo")
_SPLITS = ("teal copper", "rose azure", "golden violet", "mint crimson", "indigo golden", "emerald rose")

# (high sky, low sky, ambient colour, ambient share, light, veil, veil colour)
_TIMES: dict[str, tuple[Colour, Colour, Colour, float, Colour, str, Colour]] = {
    "at dawn": ((.62, .70, .92), (1., .80, .74), (1., .78, .78), .22, (1., .97, .85), "none", (1., 1., 1.)),
    "at noon": ((.26, .58, .96), (.72, .88, 1.), (1., 1., .94), .05, (1., 1., .90), "none", (1., 1., 1.)),
    "at dusk": ((.38, .20, .52), (.99, .52, .24), (.72, .32, .36), .38, (1., .88, .55), "none", (1., 1., 1.)),
    "at night": ((.03, .04, .16), (.12, .15, .38), (.06, .08, .28), .62, (.98, .96, .75), "stars", (1., 1., .9)),
    "in fog": ((.80, .83, .85), (.88, .89, .90), (.84, .86, .88), .45, (.95, .95, .95), "fog", (.90, .91, .92)),
    "in rain": ((.34, .40, .48), (.55, .62, .69), (.36, .42, .52), .40, (.90, .93, .97), "rain", (.80, .88, .98))}
_PLACES: dict[str, tuple[Colour, Colour, Colour]] = {  # far, near, detail
    "snowy field": ((.84, .90, .98), (.97, .98, 1.), (.66, .78, .92)), "desert": ((.90, .70, .40), (.96, .80, .50), (.78, .54, .28)),
    "seaside": ((.10, .46, .72), (.95, .86, .62), (.55, .82, .94)), "forest": ((.10, .42, .22), (.26, .30, .14), (.34, .20, .10)),
    "meadow": ((.44, .72, .30), (.54, .82, .30), (.98, .40, .55)), "mountains": ((.46, .46, .58), (.32, .48, .36), (.36, .36, .46)),
    "city": ((.40, .38, .46), (.26, .26, .30), (.50, .50, .56))}

_PLAIN: tuple[Concept, ...] = (
    Concept("blueprint", "illustration styles", "grid_paper", (PAPER, (.10, .25, .62), (.75, .85, 1.)), ("technical blueprint",), opacity=.8),
    Concept("chalkboard", "illustration styles", "marble", ((.15, .27, .22), (.45, .55, .50), PAPER), ("chalk on a blackboard",), opacity=.85),
    Concept("newspaper", "illustration styles", "newsprint", ((.88, .86, .80), (.30, .30, .30), PAPER), ("old newsprint",)),
    Concept("pirate map", "illustration styles", "mesh", ((.90, .76, .50), (.78, .60, .34), PAPER), ("treasure map",)),
    Concept("sepia", "color treatments", "vignette", ((.93, .82, .62), (.42, .27, .14), PAPER), ("sepia tone", "old brown photograph"), opacity=.75),
    Concept("black and white", "color treatments", "ramp", (PAPER, (.95, .95, .95), (.12, .12, .12)), ("monochrome", "greyscale"), opacity=.85),
    Concept("rainbow", "color treatments", "bands", (PAPER, (.98, .45, .35), (.35, .75, .95)), ("rainbow colors",)),
    Concept("neon", "color treatments", "mesh", ((.06, .02, .14), (1., .10, .85), PAPER), ("neon glow",), opacity=.95),
    Concept("night vision", "photography and cinema", "scanlines", ((.10, .30, .12), (.30, .80, .30), PAPER), ("night vision goggles",),
            veil="tint", veil_colour=(.2, .8, .25)),
    Concept("letterbox", "photography and cinema", "ramp", (PAPER, (.55, .68, .80), (.86, .80, .70)), ("cinema bars", "widescreen"),
            veil="letterbox", veil_colour=(0., 0., 0.)),
    Concept("instant photo", "photography and cinema", "ramp", (PAPER, (.70, .82, .84), (.94, .86, .66)), ("polaroid",),
            veil="frame", veil_colour=(1., 1., .98)),
    Concept("film grain", "photography and cinema", "wash", (PAPER, (.62, .60, .58), PAPER), ("grainy film",), veil="grain", veil_colour=(.1, .1, .1)),
    Concept("autumn leaves", "environmental settings", "leaves", ((.96, .90, .76), (.86, .36, .08), (.95, .70, .10)), ("fall foliage",)),
    Concept("blizzard", "environmental settings", "ramp", (PAPER, (.62, .72, .84), (.86, .90, .96)), ("snowstorm",), veil="snowfall"),
    Concept("coral reef", "environmental settings", "underwater",
            ((.10, .60, .82), (.05, .35, .66), (.98, .50, .40), (.90, .80, .55), (.98, .35, .55), (.9, 1., 1.)), ("undersea",), scene=True),
    Concept("deep sea", "environmental settings", "underwater",
            ((.02, .20, .40), (.01, .07, .20), (.10, .18, .25), (.06, .10, .14), (.08, .40, .32), (.5, .9, 1.)), ("ocean abyss",), scene=True),
    Concept("marble", "art techniques", "marble", ((.95, .95, .96), (.50, .50, .56), PAPER), ("polished marble",)),
    Concept("stained glass", "art techniques", "mosaic", ((.08, .08, .10), (.95, .45, .20), PAPER), ("leaded glass",), opacity=.8),
    Concept("pixel night", "digital methods", "dither", ((.10, .12, .30), (.35, .20, .60), PAPER), ("retro game",)),
    Concept("matrix code", "digital methods", "circuit", ((.02, .06, .03), (.15, .95, .35), PAPER), ("green code",)),
    Concept("carnival", "fantasy genres", "confetti", (PAPER, (.98, .25, .45), (.20, .60, .98)), ("confetti party",)),
    Concept("haunted", "fantasy genres", "portal", ((.10, .07, .14), (.45, .85, .35), PAPER), ("haunted night", "spooky"), opacity=.85),
    Concept("constructivism", "artistic movements", "rays", ((.93, .88, .76), (.78, .12, .10), PAPER), ("soviet poster",)),
    Concept("dada collage", "artistic movements", "bauhaus", ((.90, .84, .66), (.16, .16, .18), PAPER), ("dadaist",)),
    Concept("medieval parchment", "historical periods", "meander", ((.92, .82, .60), (.62, .20, .12), PAPER), ("illuminated manuscript",)),
    Concept("eighties sunset", "historical periods", "bands", (PAPER, (.98, .40, .60), (.42, .16, .62)), ("retro synthwave",)),
)


def _pattern_concepts() -> list[Concept]:
    out = []
    for category, looks in _PATTERNS.items():
        for structure, (words, others, colours, dark) in looks.items():
            for colour in colours.split():
                c = PALETTE[colour]
                paper = NIGHT if dark else _mix(PAPER, c, .14)
                second = NIGHT if dark else ((.99, .90, .45) if structure == "flames" else (.12, .12, .14))
                out.append(Concept(words.format(c=colour), category, structure, (paper, c, second), tuple(o.format(c=colour) for o in others),
                                   opacity=.8 if structure in ("wash", "vignette") else .9))
    return out


def _tone_concepts() -> list[Concept]:
    out = []
    for words, structure, pairs, other in (("{a} to {b} fade", "ramp", _DUOTONES, "{a} to {b} gradient"),
                                           ("{a} and {b} split", "side_ramp", _SPLITS, "half {a} half {b}")):
        for pair in pairs:
            a, b = pair.split()
            out.append(Concept(words.format(a=a, b=b), "color treatments", structure, (PAPER, PALETTE[a], PALETTE[b]), (other.format(a=a, b=b),)))
    return out


def _scene_concepts() -> list[Concept]:
    out = []
    for place, grounds in _PLACES.items():
        for time, (high, low, ambient, share, light, veil, veil_colour) in _TIMES.items():
            far, near, detail = (_mix(g, ambient, share) for g in grounds)
            bright = light if place in ("desert", "city") else _mix((1., 1., 1.), ambient, share / 2)
            out.append(Concept(f"{place} {time}", "environmental settings", place, (high, low, far, near, detail, bright),
                               (f"{time.split()[-1]} over the {place}",), scene=True, veil=veil, veil_colour=veil_colour))
    return out


GENERIC = Concept("", "generic", "ramp", (PAPER, (.96, .91, .80), (.86, .78, .64)), opacity=1.)


@lru_cache(maxsize=1)
def concepts() -> tuple[Concept, ...]:
    """Every concept, in a fixed order: by category, then name. The generic class is not among them."""
    return tuple(sorted([*_pattern_concepts(), *_tone_concepts(), *_scene_concepts(), *_PLAIN], key=lambda c: (c.category, c.name)))


@lru_cache(maxsize=1)
def by_name() -> dict[str, Concept]:
    """Every concept by its name."""
    return {c.name: c for c in concepts()}


def categories() -> tuple[str, ...]:
    """The names of the categories, sorted."""
    return tuple(sorted({c.category for c in concepts()}))


def split(fraction: float = .21, validation: float = .10) -> dict[str, tuple[str, ...]]:
    """Stratified split of the concept names: ``train``, ``validation``, ``heldout``.

    `fraction` of every category, rounded up, is held out (reference §4.1: 21 %); of the rest `validation`, rounded up, chooses
    settings. The order inside a category is that of a hash of the name, so adding a concept moves no other.
    """
    parts: dict[str, list[str]] = {"train": [], "validation": [], "heldout": []}
    for category in categories():
        names = sorted((c.name for c in concepts() if c.category == category), key=lambda n: hashlib.sha256(n.encode()).hexdigest())
        held = math.ceil(fraction * len(names))
        chosen = held + math.ceil(validation * (len(names) - held))
        parts["heldout"] += names[:held]
        parts["validation"] += names[held:chosen]
        parts["train"] += names[chosen:]
    return {k: tuple(v) for k, v in parts.items()}


@dataclass(frozen=True)
class Variation:
    """Words that name no concept of the world but that its generator draws all the same, with other words for them."""

    name: str
    category: str
    phrases: tuple[str, ...] = ()


def variations(mixes: int = 120) -> tuple[Variation, ...]:
    """More looks to learn from: known patterns in other colours, other fades, settings between the known ones, two looks mixed.

    Concepts are compositions, and a hypernetwork sees few of them: two hundred do not show that a colour and a pattern are
    independent. None of these is a concept, held out or not, and none holds all words of one that is held out or chooses
    settings. `mixes`: how many pairs of training looks there are. The generator was never trained on any of them.
    """
    parts = split()
    kept_away = [set(name.split()) for part in ("heldout", "validation") for name in parts[part]]
    found: dict[str, Variation] = {}
    grounds = [n for n in parts["train"] if by_name()[n].scene or by_name()[n] in _PLAIN]
    for one in itertools.chain(_recoloured(), _other_fades(), _settings(), _mixed(parts["train"], mixes), _tinted(grounds)):
        words = set(one.name.replace(",", "").split())
        if one.name not in by_name() and not any(words >= other for other in kept_away):
            found.setdefault(one.name, one)
    return tuple(found.values())


def _recoloured() -> Iterator[Variation]:
    for category, looks in _PATTERNS.items():
        for words, others, _, _ in looks.values():
            for colour in PALETTE:
                yield Variation(words.format(c=colour), category, tuple(o.format(c=colour) for o in others))


def _other_fades() -> Iterator[Variation]:
    """Every fourth pair of colours as a fade, every eighth as a split; never a listed pair the other way round."""
    pairs = [f"{a} {b}" for a, b in _hashed(itertools.permutations(PALETTE, 2))]
    for listed, every, words in ((_DUOTONES, 4, "{0} to {1} fade"), (_SPLITS, 8, "{0} and {1} split")):
        taken = {frozenset(pair.split()) for pair in listed}
        for pair in pairs[::every]:
            if frozenset(pair.split()) not in taken:
                yield Variation(words.format(*pair.split()), "color treatments")


def _settings() -> Iterator[Variation]:
    """Two times of day in one place; every other mixture of two places."""
    for place in _PLACES:
        for first, second in itertools.product(("at dawn", "at noon", "at dusk", "at night"), ("in fog", "in rain")):
            yield Variation(f"{place} {first} {second}", "environmental settings")
    for (first, second), time in _hashed(itertools.product(itertools.combinations(_PLACES, 2), _TIMES))[::2]:
        yield Variation(f"{first} and {second} {time}", "environmental settings")


def _tinted(grounds: Sequence[str]) -> Iterator[Variation]:
    """Training settings and single ideas, each in three colours."""
    for ground in grounds:
        for colour in _hashed([f"{colour} {ground}" for colour in PALETTE])[:3]:
            yield Variation(colour, by_name()[ground].category)


def _mixed(train: tuple[str, ...], count: int) -> Iterator[Variation]:
    """A training look printed over a training tint, setting or single idea."""
    grounds = [n for n in train if by_name()[n].scene or n.endswith(" wash") or by_name()[n] in _PLAIN]
    looks = [n for n in train if n not in grounds]
    for look, ground in itertools.islice(zip(_hashed(looks * 2), _hashed(grounds * 9)), count):
        yield Variation(f"{look}, {ground}", by_name()[look].category)


def _hashed(items: Iterable[T]) -> list[T]:
    """In an order that no one chose: that of a hash of each item and its place."""
    return [item for _, item in sorted((hashlib.sha256(f"{item} {place}".encode()).hexdigest(), item) for place, item in enumerate(items))]
