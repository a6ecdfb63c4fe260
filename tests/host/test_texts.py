"""What the page shows: locales in four languages, and a help page with a picture for every node."""
from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from comfy_boot import PACK

PAGES, LOCALES = PACK / "web" / "docs", PACK / "locales"
LANGUAGES = ("en", "de", "ja", "zh")
MADE_BY = "run `python docs/make_locales.py`"
MOST_BYTES = 60_000


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """docs/make_locales.py."""
    spec = importlib.util.spec_from_file_location("make_locales", PACK / "docs" / "make_locales.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def schemas(made: ModuleType) -> list[Any]:
    return made.schemas()


def defs(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def flat(value: Any, path: str = "") -> dict[str, str]:
    """{dotted path: text}."""
    if isinstance(value, str):
        return {path: value}
    return {inner: text for key, part in value.items() for inner, text in flat(part, f"{path}.{key}").items()}


def pictures_of(page: str) -> list[str]:
    return re.findall(r'<img src="([^"]+)"', page)


def test_generated_files_are_as_the_nodes_say(made: ModuleType) -> None:
    stale = [str(path.relative_to(PACK)) for path, text in made.files() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    assert not stale, MADE_BY


def test_english_is_the_schemas(made: ModuleType, schemas: list[Any]) -> None:
    english = defs("en")
    assert set(english) == {schema.node_id for schema in schemas}
    for schema in schemas:
        texts = english[schema.node_id]
        assert texts["display_name"] == schema.display_name and schema.description.split("\n")[0] in texts["description"]
        assert [*texts["inputs"]] == [entry.id for entry in schema.inputs or ()]
        assert [*texts["outputs"]] == [str(number) for number in range(len(schema.outputs or ()))]


def test_every_text_is_there(schemas: list[Any]) -> None:
    """In English first: every node has a description, every input and output a tooltip."""
    for language in LANGUAGES:
        empty = [path for path, text in flat(defs(language)).items() if not text.strip()]
        assert not empty, language


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_language_is_complete_and_translated(made: ModuleType, language: str) -> None:
    missing, gone = made.to_do(language)
    assert not missing and not gone, f"put these into docs/translations/{language}.json, then {MADE_BY}"
    english, other = flat(defs("en")), flat(defs(language))
    assert [*english] == [*other]
    left = [path for path, text in english.items() if len(text) > 30 and other[path] == text]
    assert not left


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_numbers_and_names_survive_translation(made: ModuleType, language: str) -> None:
    """Ranges, folders, options and node classes are the same in every language."""
    kept = r"models/\w+|%\w+%|KSampler\w*|SamplerCustomAdvanced|\b(?:live|folded|auto|sum|average|small|full)(?=:)|\d\d+(?:\.\d+)?|-\d+"
    lost = []
    for text, translation in made.translations(language).items():
        plain = translation.replace("−", "-")
        lost += [(word, text, translation) for word in re.findall(kept, text) if word not in plain]
    assert not lost


@pytest.mark.parametrize("language", LANGUAGES)
def test_where_taking_away_is_spoken_of_it_says_for_which_weights(language: str) -> None:
    """A negative strength takes a concept away only where the weights learned it, and the exact inverse is for the others."""
    texts = defs(language)
    steer, with_maps = (texts[f"HyperTransport{name}"]["inputs"]["strength"]["tooltip"] for name in ("Steer", "SteerWithMaps"))
    column = texts["HyperTransportStrengthSheet"]["inputs"]["strengths"]["tooltip"]
    assert steer == with_maps
    assert all("removal_share" in text and "-1 =" in text.replace("−", "-") for text in (steer, column))
    assert "removal_share" in texts["HyperTransportInvertMaps"]["description"]
    pages = [page for page in PAGES.glob(f"*/{language}.md") if "pictures/steer-removal.jpg" in page.read_text(encoding="utf-8")]
    assert [page.parent.name for page in pages] == ["HyperTransportSteer"] and "removal_share" in pages[0].read_text(encoding="utf-8")


def test_signs_of_the_pages_own_templates_are_escaped() -> None:
    for language in LANGUAGES:
        raw = [path for path, text in flat(defs(language)).items() if re.search(r"[{}@|]", re.sub(r"\{'[{}@|]'\}", "", text))]
        assert not raw, language


def test_every_node_has_a_help_page(schemas: list[Any]) -> None:
    for schema in schemas:
        page = PAGES / schema.node_id / "en.md"
        assert page.is_file(), schema.node_id
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {schema.display_name}\n"), schema.node_id
        assert pictures_of(text), f"{schema.node_id} has no picture"
        assert (PAGES / f"{schema.node_id}.md").read_text(encoding="utf-8") == text, MADE_BY
        for name in [*(entry.id for entry in schema.inputs or ()), *(entry.display_name for entry in schema.outputs or ())]:
            assert f"`{name}`" in text, (schema.node_id, name)


def test_pages_belong_to_nodes(schemas: list[Any]) -> None:
    ids = {schema.node_id for schema in schemas}
    assert {path.name.removesuffix(".md") for path in PAGES.iterdir()} == ids | {"pictures"}
    assert {path.name for path in PAGES.glob("*/*.md")} <= {f"{language}.md" for language in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_are_whole_in_every_language(schemas: list[Any], language: str) -> None:
    """The same pictures as in English, the lists filled, every input named."""
    for schema in schemas:
        page = PAGES / schema.node_id / f"{language}.md"
        if not page.is_file():
            continue  # the page falls back to English
        text = page.read_text(encoding="utf-8")
        assert pictures_of(text) == pictures_of((PAGES / schema.node_id / "en.md").read_text(encoding="utf-8")), page
        assert all(f"`{entry.id}`" in text for entry in schema.inputs or ()), page
        assert text.count("<!-- ") == text.count("<!-- /") * 2 and "{{" not in text, page
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert all(row.endswith("|") for row in rows), page


@pytest.mark.parametrize("node_id", ["HyperTransportSteer", "HyperTransportConceptEncoder", "HyperTransportPostcard", "HyperTransportLoad"])
def test_main_nodes_have_pages_in_every_language(node_id: str) -> None:
    assert {path.stem for path in (PAGES / node_id).glob("*.md")} == set(LANGUAGES)


def test_pictures_are_there_small_and_used() -> None:
    used = {name for page in PAGES.rglob("*.md") for name in pictures_of(page.read_text(encoding="utf-8"))}
    there = {path.relative_to(PAGES).as_posix(): path.stat().st_size for path in (PAGES / "pictures").iterdir()}
    assert used == set(there)
    assert not {name: size for name, size in there.items() if size > MOST_BYTES}
    painters = re.findall(r"@picture\ndef (\w+)", (PACK / "docs" / "picture_painters.py").read_text(encoding="utf-8"))
    assert {f"pictures/{name.replace('_', '-')}.jpg" for name in painters} == used


def test_the_archive_keeps_the_pages() -> None:
    """The registry's rules are those of .gitignore, where `docs/` without a slash before it would take web/docs too."""
    rules = [line for line in (PACK / ".comfyignore").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    for name in ("web", "docs/", "locales"):
        assert not any(fnmatch.fnmatch(name.rstrip("/"), rule.rstrip("/")) for rule in rules if not rule.startswith("/")), name


def test_the_host_is_told_where_they_are() -> None:
    text = (PACK / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^WEB_DIRECTORY = "\./(\w+)"', text, re.MULTILINE)
    assert found and (PACK / found.group(1) / "docs") == PAGES


@pytest.mark.parametrize("column, family", [(0, "sd15"), (0, "sdxl"), (1, "pixart"), (2, "flux")])
def test_block_names_on_the_page_of_steer_are_those_of_the_models(made: ModuleType, column: int, family: str) -> None:
    """Every site of a model ends with a name that the page lists for its kind."""
    from tiny_hosts import tiny_host

    text = (PAGES / "HyperTransportSteer" / "en.md").read_text(encoding="utf-8")
    sites = tiny_host(family).sites("everything")
    for kind in {site.kind for site in sites}:
        cells = re.search(rf"^\| `{kind}` \|(.*)\|$", text, re.MULTILINE).group(1).split(" | ")
        names = [re.escape(name.lstrip(".")).replace("N", r"\d+") for name in re.findall(r"`([^`]+)`", cells[column])]
        odd = [site.path for site in sites if site.kind == kind and not any(re.search(rf"(?:^|\.){name}$", site.path) for name in names)]
        assert not odd, kind
