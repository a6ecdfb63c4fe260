from __future__ import annotations

import json
import math

import pytest

from hypertransport_core.concepts import Concept, ConceptError, ConceptSplit, load_concepts, split_concepts


def written(folder, name: str, text: str):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


EXPECTED = (
    Concept("teal stripes", "patterns", ("a cat in teal stripes", "a boat, teal stripes"), ("striped in teal",)),
    Concept("fog"),
)


def test_three_formats_say_the_same(tmp_path):
    entries = [
        {
            "name": "teal stripes",
            "category": "patterns",
            "prompts": list(EXPECTED[0].prompts),
            "phrases": ["striped in teal"],
        },
        "fog",
    ]
    toml = (
        '[[concepts]]\nname = "teal stripes"\ncategory = "patterns"\nprompts = ["a cat in teal stripes", "a boat, '
        'teal stripes"]\n'
        'phrases = ["striped in teal"]\n[[concepts]]\nname = "fog"\n'
    )
    table = (
        'name,category,prompts,phrases\nteal stripes,patterns,"a cat in teal stripes | a boat, teal stripes",'
        "striped in teal\nfog,,,\n"
    )
    assert load_concepts(written(tmp_path, "a.json", json.dumps(entries))) == EXPECTED
    assert load_concepts(written(tmp_path, "b.json", json.dumps({"concepts": entries}))) == EXPECTED
    assert load_concepts(written(tmp_path, "a.toml", toml)) == EXPECTED
    assert load_concepts(written(tmp_path, "a.csv", "\ufeff" + table)) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "[]", "holds 0 concepts"),
        ("a.json", "{}", "expected a list of concepts"),
        ("a.json", "[", "not proper JSON"),
        ("a.json", "[3]", "Entry 1 of"),
        ("a.json", '["fog", " Fog "]', "lists the concept 'Fog' twice, entries 1 and 2"),
        ("a.json", '["fog", "  "]', "Entry 2 of"),
        ("a.json", '[{"category": "x"}]', "has an empty name"),
        ("a.json", '[{"name": "fog", "promts": []}]', "unknown key 'promts'"),
        ("a.json", '[{"name": "fog", "prompts": []}]', "'fog' of .* has 0 prompts"),
        ("a.json", '[{"name": "fog", "prompts": ["a", " "]}]', "an empty text among its prompts"),
        ("a.json", '[{"name": "fog", "prompts": "a"}]', "no list of texts"),
        ("a.json", '[{"name": 5}]', "the name 5, expected a text"),
        ("a.json", '[{"name": "fog", "part": "test"}]', "the part 'test'"),
        ("a.csv", "name,category\nfog\n", "another number of cells"),
        ("a.csv", "name,colour\nfog,red\n", "unknown key 'colour'"),
        ("a.toml", "concepts = 3", "expected a list of concepts"),
        ("a.yaml", "- fog", "ends with '.yaml'"),
        ("a.json", "\0", "not proper JSON"),
    ],
)
def test_faulty_lists_are_refused_in_one_sentence(tmp_path, name, text, words):
    with pytest.raises(ConceptError, match=words) as caught:
        load_concepts(written(tmp_path, name, text))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConceptError, match="cannot be read"):
        load_concepts(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConceptError, match="no UTF-8"):
        load_concepts(tmp_path / "a.json")


def many(count: int, category: str) -> list[Concept]:
    return [Concept(f"{category} {i}", category) for i in range(count)]


def test_the_split_is_stratified_stable_and_whole():
    concepts = many(20, "a") + many(7, "b") + many(1, "c")
    split = split_concepts(concepts)
    assert sorted(c.name for c in split.everything) == sorted(c.name for c in concepts)
    for category, count in (("a", 20), ("b", 7)):
        assert sum(c.category == category for c in split.heldout) == math.ceil(0.21 * count)
    assert [c.category for c in split.train].count("c") == 1
    more = split_concepts([*concepts, Concept("a new", "a")])
    moved = {c.name for c in split.heldout} - {c.name for c in more.heldout}
    assert len(moved) <= 1  # at most the one at the border gives way


def test_named_parts_stay_and_something_must_be_trained_on():
    split = split_concepts([Concept("x", part="heldout"), Concept("y", part="train"), Concept("z", part="validation")])
    assert [tuple(c.name for c in part) for part in (split.train, split.validation, split.heldout)] == [
        ("y",),
        ("z",),
        ("x",),
    ]
    with pytest.raises(ConceptError, match="0 training concepts"):
        split_concepts([Concept("x", part="heldout")])
    with pytest.raises(ConceptError, match="twice"):
        ConceptSplit((Concept("x"),), (), (Concept("X"),))


def test_fewer_concepts_to_train_on_take_turns_over_the_categories():
    split = split_concepts(many(20, "a") + many(7, "b") + many(1, "c"))
    few = split.with_training(5)
    assert [c.category for c in few.train].count("c") == 1 and len(few.train) == 5
    assert [c.category for c in few.train].count("a") == 2 == [c.category for c in few.train].count("b")
    assert (few.validation, few.heldout) == (split.validation, split.heldout)
    assert set(split.with_training(3).train) < set(few.train) and split.with_training(0) is split
    with pytest.raises(ConceptError, match="training_concepts is 99, expected at most the"):
        split.with_training(99)
