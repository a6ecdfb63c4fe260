# ruff: noqa: T201 (a command speaks to a person)
"""Writes the texts that the page shows: locales/<language>/nodeDefs.json and main.json, and the lists of inputs and outputs in the help pages.

    python docs/make_locales.py          writes them
    python docs/make_locales.py todo     only lists what is not translated, and what is translated but no longer used

English comes from the schemas of the nodes. The other languages come from docs/translations/<language>.json, which translates
English to the other language text by text: so a text that is changed in a node is missing there, and a test says so.

The page asks for web/docs/<node id>/<language>.md, then for web/docs/<node id>.md, hence a copy of the English page there for
languages without a page of their own. English has both, because the browser complains about the first, missing one otherwise.
"""
from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

from pack import load_pack  # noqa: E402

LOCALES, PAGES, TABLES = ROOT / "locales", ROOT / "web" / "docs", ROOT / "docs" / "translations"
LANGUAGES = ("de", "ja", "zh")
ALSO = "\n\nAlso called: "
LISTS_OF_FILES = {("HyperTransportLoad", "file"), ("HyperTransportLoadEncoder", "encoder"), ("HyperTransportLoadEncoder", "vision"),
                  ("HyperTransportLoadMaps", "maps_file")}  # combos whose options depend on the machine
WORDS = {
    "en": {"default": "default", "optional": "optional", "advanced": "advanced", "text": "text",
           "folded": "Advanced inputs are folded away: right-click the node and choose *Show Advanced*."},
    "de": {"default": "Vorgabe", "optional": "optional", "advanced": "erweitert", "text": "Text",
           "folded": "Erweiterte Eingänge sind weggeklappt: Rechtsklick auf den Node, dann *Show Advanced*."},
    "ja": {"default": "初期値", "optional": "任意", "advanced": "詳細", "text": "テキスト",
           "folded": "詳細な入力は折りたたまれています。ノードを右クリックして *Show Advanced* を選びます。"},
    "zh": {"default": "默认", "optional": "可选", "advanced": "高级", "text": "文本",
           "folded": "高级输入默认折叠：右键单击节点，选择 *Show Advanced*。"},
}
Translate = Callable[[str], str]


def schemas() -> list[Any]:
    """The schema of every node."""
    return [node.GET_SCHEMA() for node in load_pack().nodes.NODES]


def description(schema: Any) -> str:
    """The description with the words to search by at its end, whether or not the host has a place of its own for them."""
    aliases = getattr(schema, "search_aliases", None)
    return schema.description + (f"{ALSO}{', '.join(aliases)}." if aliases and ALSO not in schema.description else "")


def node_texts(schema: Any, translate: Translate) -> dict[str, Any]:
    """The texts of a node as nodeDefs.json has them; outputs are counted."""
    body, _, also = description(schema).partition(ALSO)
    words = translate(body) + (f"\n\n{translate(ALSO.strip() + ' ' + also)}" if also else "")
    inputs = {entry.id: _texts(entry.id, entry.tooltip, translate) for entry in schema.inputs or ()}
    outputs = {str(number): _texts(entry.display_name or entry.io_type, entry.tooltip, translate)
               for number, entry in enumerate(schema.outputs or ())}
    return {"display_name": translate(schema.display_name), "description": words, "inputs": inputs, "outputs": outputs}


def _texts(name: str, tooltip: str, translate: Translate) -> dict[str, str]:
    return {"name": translate(name), "tooltip": translate(tooltip or "")}


def escaped(value: Any) -> Any:
    """Signs that mean something to the page's own templates, written so that they are shown."""
    if isinstance(value, Mapping):
        return {key.replace(".", "_"): escaped(inner) for key, inner in value.items()}
    return re.sub(r"[{}@|]", lambda found: f"{{'{found.group()}'}}", value)


def node_defs(translate: Translate) -> dict[str, Any]:
    """nodeDefs.json."""
    return escaped({schema.node_id: node_texts(schema, translate) for schema in schemas()})


def categories(translate: Translate) -> dict[str, Any]:
    """main.json: the names of our menus below the pack's own."""
    names = sorted({name for schema in schemas() for name in schema.category.split("/")[1:]})
    return {"nodeCategories": {name: translate(name) for name in names}}


def same(text: str) -> str:
    """English to English."""
    return text


def translations(language: str) -> dict[str, str]:
    """English to another language, as in docs/translations."""
    path = TABLES / f"{language}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def used() -> list[str]:
    """Every English text that needs a translation, once."""
    found: dict[str, None] = {}

    def note(text: str) -> str:
        found[text] = None
        return text

    node_defs(note)
    categories(note)
    return [text for text in found if text]


def to_do(language: str) -> tuple[list[str], list[str]]:
    """(texts without a translation, translations of texts that are gone)."""
    table, wanted = translations(language), used()
    return [text for text in wanted if not table.get(text)], [text for text in table if text not in wanted]


def list_of_inputs(schema: Any, language: str, translate: Translate) -> str:
    """A line per input for a help page: name, range and default, meaning. No table: the page shows help in a narrow column."""
    rows = [(entry.id, [*_facts(schema.node_id, entry, WORDS[language])], entry.tooltip) for entry in schema.inputs or ()]
    lines = [_line(*row, language, translate) for row in rows]
    if any(entry.as_dict().get("advanced") for entry in schema.inputs or ()):
        lines += ["", WORDS[language]["folded"]]
    return "\n".join(lines)


def list_of_outputs(schema: Any, language: str, translate: Translate) -> str:
    """A line per output for a help page: name, type, meaning."""
    rows = [(entry.display_name or entry.io_type, [entry.io_type], entry.tooltip) for entry in schema.outputs or ()]
    return "\n".join(_line(*row, language, translate) for row in rows)


def _facts(node_id: str, entry: Any, words: Mapping[str, str]) -> Iterator[str]:
    about = entry.as_dict()
    low, high, default = about.get("min"), about.get("max"), about.get("default")
    if entry.io_type == "COMBO":
        options = [str(option) for option in about.get("options", ())]
        if (node_id, entry.id) not in LISTS_OF_FILES and len(options) < 10:
            yield " / ".join(options)
    elif entry.io_type in ("INT", "FLOAT"):
        yield f"{_number(low)} … {_number(high)}"
    else:
        yield words["text"] if entry.io_type == "STRING" else entry.io_type
    if default not in (None, "") and len(str(default)) < 40:
        yield f"{words['default']} {_number(default)}"
    if entry.optional and entry.io_type not in ("INT", "FLOAT", "COMBO"):
        yield words["optional"]
    if about.get("advanced"):
        yield words["advanced"]


def _number(value: Any) -> str:
    return f"{value:g}".replace("-", "−") if isinstance(value, (int, float)) and abs(value) < 1e5 else str(value)


def _line(name: str, facts: list[str], tooltip: str | None, language: str, translate: Translate) -> str:
    shown = translate(name)
    first = f"**`{name}`**" if language == "en" or shown == name else f"**{shown}** `{name}`"
    return f"- {first}{' (' + ', '.join(facts) + ')' if facts else ''}: {translate(tooltip or '')}".replace("\n", " ")


def with_lists(page: str, schema: Any, language: str, translate: Translate) -> str:
    """A help page with its lists written anew between their marks."""
    for name, make in (("inputs", list_of_inputs), ("outputs", list_of_outputs)):
        lines = make(schema, language, translate)
        block = f"<!-- {name} -->\n{lines}\n<!-- /{name} -->".replace("\\", r"\\")
        page = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", block, page, flags=re.DOTALL)
    return page


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file: (path, text as it should be)."""
    for language in ("en", *LANGUAGES):
        table = translations(language)
        translate = same if language == "en" else lambda text, table=table: table.get(text) or text
        for name, content in (("nodeDefs", node_defs(translate)), ("main", categories(translate))):
            yield LOCALES / language / f"{name}.json", json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        for schema in schemas():
            path = PAGES / schema.node_id / f"{language}.md"
            if path.is_file():
                page = with_lists(path.read_text(encoding="utf-8"), schema, language, translate)
                yield path, page
                if language == "en":
                    yield PAGES / f"{schema.node_id}.md", page


def main(arguments: list[str]) -> None:
    """See above; ends with 1 when a translation is missing."""
    logging.getLogger().setLevel(logging.ERROR)
    for path, text in files() if not arguments else ():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    missing = 0
    for language in LANGUAGES:
        lacking, gone = to_do(language)
        missing += len(lacking)
        print(f"{language}: {len(lacking)} not translated, {len(gone)} no longer used")
        for text in lacking if arguments else ():
            print("  +", json.dumps(text, ensure_ascii=False))
        for text in gone if arguments else ():
            print("  -", json.dumps(text, ensure_ascii=False))
    if missing:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
