"""The shipped concept set: its counts, split and prompts, and that the checker finds planted faults of every kind."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hypertransport_core.commands import main
from hypertransport_core.concepts import (
    BUILTIN,
    Concept,
    ConceptError,
    builtin_concepts,
    generic_scenes,
    load_concepts,
    split_concepts,
)
from hypertransport_core.concepts.builtin import CATEGORIES, concept_words
from hypertransport_core.concepts.checks import KINDS, LAST_DEATH, check, grammar_fault, key, stems
from hypertransport_core.concepts.tokens import CLIP_TOKENS, estimated_tokens, token_counter
from hypertransport_core.concepts.wording import ConceptWords, clumsiness, in_words

TABLE_4 = [124, 100, 99, 80, 80, 77, 64, 61, 47, 44]


@pytest.fixture(scope="module")
def sets() -> dict[str, tuple[Concept, ...]]:
    return {name: builtin_concepts(name) for name in BUILTIN}


def test_shape(sets):
    assert list(CATEGORIES.values()) == TABLE_4 and sum(TABLE_4) + 1 == 777
    for concepts in sets.values():
        assert [sum(c.category == category for c in concepts) for category in CATEGORIES] == TABLE_4
        assert {len(set(c.prompts)) for c in concepts} == {32}
    assert len(generic_scenes()) >= 128 and len(set(generic_scenes())) == len(generic_scenes())
    assert sum(len(c.prompts) for c in sets["styles-777"]) + 32 == 24864
    assert len({p for concepts in sets.values() for c in concepts for p in c.prompts}) > 49000


def test_split_is_the_papers(sets):
    split = split_concepts(sets["styles-777"])
    assert (len(split.train) + len(split.validation), len(split.heldout)) == (609, 167)
    for category, count in CATEGORIES.items():
        assert sum(c.category == category for c in split.heldout) == math.ceil(0.21 * count)
    free = split_concepts(sets["styles-777-free"])
    assert [c.name for c in free.heldout] == [c.name for c in split.heldout], "the style of prompts moves no concept"


def test_matched_prompts_show_the_generic_scenes_in_their_order(sets):
    for concept in sets["styles-777"]:
        for scene, prompt in zip(generic_scenes(32), concept.prompts):
            assert scene.lower() in prompt.lower()
    free = {prompt for c in sets["styles-777-free"] for prompt in c.prompts}
    assert not any(scene in prompt for scene in generic_scenes(8) for prompt in free)


def test_more_prompts_begin_with_the_same_ones():
    few, many = builtin_concepts(count=4)[100], builtin_concepts(count=40)[100]
    assert many.prompts[:4] == few.prompts and len(set(many.prompts)) == 40
    with pytest.raises(ConceptError, match="expected 1000"):
        builtin_concepts(count=1000)
    with pytest.raises(ConceptError, match="expected one of styles-777"):
        builtin_concepts("styles")


def test_prompts_are_proper_and_vary(sets):
    for concepts in sets.values():
        for concept in concepts:
            assert not [p for p in concept.prompts if grammar_fault(p)]
            assert not [p for p in concept.prompts if p.lower().count(" with ") > 2]
            begins = Counter(tuple(re.findall(r"\w+", p.lower())[:3]) for p in concept.prompts)
            assert max(begins.values()) <= 14, f"prompts of {concept.name} begin alike: {begins.most_common(1)}"
    prompts = [p for concepts in sets.values() for c in concepts for p in c.prompts]
    assert 0.1 < sum(p[0].isupper() for p in prompts) / len(prompts) < 0.6
    assert sum(clumsiness(p) > 0 for p in prompts) / len(prompts) < 0.06


def test_own_words_are_complete():
    for words in concept_words():
        assert len(words.phrases) == 2 and len(words.details) == 3, words.name
        assert len(words.pictures) == 2 or words.category in ("Environmental Settings", "Historical Periods"), (
            words.name
        )
        assert bool(words.died) == (words.category == "Individual Artists")
        assert words.died <= LAST_DEATH
        assert not [text for text in (*words.phrases, *words.details) if grammar_fault(text)], words.name


def planted(concepts, kind):
    """The list with one fault of a kind, and the other arguments of the check."""
    one, two = concepts[0], concepts[1]
    scenes, heldout, died, shape = (
        list(generic_scenes(32)),
        [c.name for c in split_concepts(concepts).heldout],
        {"Giotto": 1337},
        dict(CATEGORIES),
    )
    changed = list(concepts)
    if kind == "shape":
        changed.pop()
    elif kind == "duplicate":
        changed[0] = replace(one, prompts=(two.prompts[0].upper() + "!", *one.prompts[1:]))
    elif kind == "near-duplicate":
        longest = max(one.prompts, key=len)
        changed[0] = replace(one, prompts=(longest + " today", longest, *[p for p in one.prompts if p != longest][1:]))
    elif kind == "leak":
        train = next(i for i, c in enumerate(concepts) if c.name not in heldout)
        changed[train] = replace(
            changed[train], prompts=(f"a cat beside {heldout[3]}s, at noon", *changed[train].prompts[1:])
        )
    elif kind == "length":
        changed[0] = replace(
            one, prompts=("a cat and " + ", ".join(f"dog number {i}" for i in range(40)), *one.prompts[1:])
        )
    elif kind == "grammar":
        changed[0] = replace(one, prompts=("an cat sleeping on a stone", *one.prompts[1:]))
    elif kind == "artist":
        died["Somebody Modern"] = 1973
    else:
        scenes[0] = "a pale watercolor on a wall"
    return check(changed, heldout, scenes, died=died, shape=shape, prompts_per_class=32, count_tokens=estimated_tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_checker_finds_what_is_planted(sets, kind):
    # a tenth of every category, so that each check takes a moment
    few = [c for i, c in enumerate(sets["styles-777"]) if i % 40 == 0 or c.name == "watercolor painting"]
    base = {str(p) for p in check(few, [], generic_scenes(32), count_tokens=estimated_tokens)}
    assert not base
    found = [p for p in planted(few, kind) if p.kind != "shape" or kind == "shape"]
    assert {p.kind for p in found} == {kind}, [str(p) for p in found]


def test_checker_finds_close_names_shared_phrases_and_undated_artists():
    concepts = [
        Concept("low-poly model", phrases=("in low poly",)),
        Concept("low poly models", phrases=("in low-poly",)),
        Concept("fog"),
    ]
    assert [p.kind for p in check(concepts)] == ["near-duplicate"] * 2
    assert [str(p) for p in check([Concept("x")], died={"x": 0})] == ["artist: x: no year of death is given"]
    close = check(
        [Concept("fog", prompts=("a cat on the old red mat by a door", "a cat on the old red mat by the door"))]
    )
    assert [p.kind for p in close] == ["near-duplicate"]
    assert not check([Concept("fog", prompts=("a cat on the mat", "an owl in a tree"))])


def test_leaks_are_seen_through_plurals_hyphens_and_kinds_of_pictures():
    train = Concept("neon", prompts=("a vase, charcoal, white paper", "two tilt shift miniatures"))
    concepts = [
        train,
        Concept("charcoal drawing"),
        Concept("tilt-shift miniature"),
        Concept("Cubism"),
        Concept("a Cubist poster"),
    ]
    found = check(concepts, ["charcoal drawing", "tilt-shift miniature", "Cubism"])
    assert sorted(p.concept for p in found if p.kind == "leak") == [
        "Cubism",
        "charcoal drawing",
        "tilt-shift miniature",
    ]
    assert key("oil painting") == ("oil", "painting"), "'oil' alone would be found everywhere"
    assert stems("Cézanne's Hills") == ("cezanne", "hill")


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("an hour in a uniform", True),
        ("an LED wall", True),
        ("a ukiyo-e print", True),
        ("an 8-bit owl", True),
        ("an X-ray", True),
        ("a unicorn and an uncle", True),
        ("a European", True),
        ("A hut. A loose sketch with fog.", True),
        ("a hour", False),
        ("an unicorn", False),
        ("a owl", False),
        ("the the cat", False),
        ("a cat , asleep", False),
        ("a cat  asleep", False),
        ("a cat in in the style of fog", False),
        ("a cat in the style of in fog", False),
        ("a cat, in the style of", False),
        ("a {s} cat", False),
        ("a cat,asleep", False),
        (" a cat", False),
        ("a cat,", False),
    ],
)
def test_grammar_rules(text, fine):
    assert (grammar_fault(text) == "") is fine, grammar_fault(text)


def test_wording_never_repeats_and_says_when_it_must():
    words = ConceptWords("fog", "weather", (), ("in fog",), ("wet air", "dim lamps"))
    out = in_words(["a cat"] * 10, words)
    assert len(set(out)) == 10
    with pytest.raises(ValueError, match="too often"):
        in_words(["a cat"] * 500, words)
    long = ConceptWords("x", "y", ("a picture in pale tones",), ("in pale tones",), ("fog", "salt and sand"))
    texts = in_words([f"a cat {i}" for i in range(40)], long)
    assert not [t for t in texts if "tones of a cat" in t or "salt and sand and" in t or "and salt and" in t]


def test_tokens_are_counted_as_clip_does_and_estimated_from_above(sets):
    prompts = [p for c in sets["styles-777"][::7] for p in c.prompts] + [
        "Dürer's 35mm, e-ink: don't!!",
        "a naïve café №5",
    ]
    assert max(map(estimated_tokens, prompts)) <= CLIP_TOKENS
    tokenizer = pytest.importorskip("open_clip.tokenizer", exc_type=ImportError).SimpleTokenizer()
    count, how = token_counter()
    assert "counted" in how and "estimated" in token_counter(estimate=True)[1]
    for prompt in prompts:
        exact = len(tokenizer.encode(prompt)) + 2
        assert count(prompt) == exact <= estimated_tokens(prompt), prompt


def test_command_checks_the_shipped_set(capsys):
    assert main(["concepts", "--check", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"classes": 777, "prompts_per_class": 32, "test": 167, "train": 609, "problems": 0}
    assert err.startswith("Tokens were") and err.count("\n") == 1


def test_command_lists_and_shows(capsys):
    assert main(["concepts"]) == 0 and "609" in capsys.readouterr().out
    assert main(["concepts", "--list"]) == 0 and len(capsys.readouterr().out.splitlines()) == 776
    assert main(["concepts", "--prompts", "Claude monet"]) == 0 and len(capsys.readouterr().out.splitlines()) == 32
    assert main(["concepts", "--prompts", "generic"]) == 0 and len(capsys.readouterr().out.splitlines()) == 160
    assert main(["concepts", "--prompts", "monet"]) == 2 and "did you mean Claude Monet?" in capsys.readouterr().err
    assert main(["concepts", "--json", "-"]) == 2 and "add --check" in capsys.readouterr().err


def test_command_takes_the_users_list(capsys, tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text("name,prompts\nfog,a cat in fog|an cat in dense fog\nfence,\n", encoding="utf-8")
    target = tmp_path / "numbers.json"
    assert main(["concepts", "--concepts", str(mine), "--check", "--json", str(target)]) == 1
    err = capsys.readouterr().err
    assert "grammar: fog: 'an cat' should be 'a cat'" in err and "generic: fence:" in err
    assert json.loads(target.read_text())["classes"] == 3
    mine.write_text("name\nfog\nFog\n", encoding="utf-8")
    assert main(["concepts", "--concepts", str(mine)]) == 2 and "(lines 2 and 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.csv", 'name,part\nfog,\n\n"a ""b""",best\n', 4),
        ("a.json", '{"concepts": [\n "fog",\n {"name": "x",\n "part": "best"}\n]}', 3),
        ("a.json", '[\n\n{"name": 3}]', 3),
        ("a.toml", '[[concepts]]\nname = """a\n[[concepts]]\n"""\n\n[[concepts]]\nname = "x"\ncolour = 3\n', 6),
        ("a.csv", "name,part\nfog\n", 2),
        ("a.json", '[\n"fog",,\n]', 2),
        ("a.toml", "[[concepts]]\nname = fog\n", 2),
    ],
)
def test_errors_name_the_line(tmp_path, name, text, line):
    path: Path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConceptError, match=rf"(?i)\bline {line}\b"):
        load_concepts(path)


def test_training_takes_the_set_by_name():
    from hypertransport_core.training.config import TrainingConfig
    from hypertransport_core.training.presets import chosen_concepts, chosen_scenes

    config = TrainingConfig(concepts="styles-777", prompts_per_concept=64, blocks=32)
    split = chosen_concepts(config, lambda: None)
    scenes = chosen_scenes(config, lambda count: [])
    assert len(split.heldout) == 167 and scenes == generic_scenes(64)
    assert all(scene.lower() in prompt.lower() for scene, prompt in zip(scenes, split.train[0].prompts))
