"""The results page: prose with places for numbers, all of which come from the results file.

`[[key|form]]` stands for a number: `%` percent, `%~` percent with its interval, `.3` decimals, `.3~` with interval, `n` a
count, `x` "times", `s` as it is. `[[table:name]]` stands for a table, `[[sheets:gallery]]` for pictures. Lines between
`[[if:key]]` and `[[end]]` are for pages that have the key's number, between `[[unless:key]]` and `[[end]]` for others. The
prose itself holds no number that was measured.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomically
from . import other_runs
from .page_cells import NOT_MEASURED, formatted
from .page_tables import TABLES
from .page_text import TEMPLATE

PLACE = re.compile(r"\[\[([^\[\]|:]+)\|([^\[\]|]+)\]\]")
TABLE = re.compile(r"\[\[table:(\w+)\]\]")
PICTURE = re.compile(r"\[\[picture:([\w-]+\.\w+)\|([^\[\]|]+)\]\]\n*")
SHEETS = re.compile(r"\[\[sheets:(\w+)\|([^\[\]|]+)\]\]\n*")
BLOCK = re.compile(r"\[\[(if|unless):([^\[\]|]+)\]\]\n(.*?)\[\[end\]\]\n", re.DOTALL)
FOLDER = "results"  # of charts and sheets, beside the page


def page(flat: Mapping[str, Any], pictures: Sequence[str], template: str = TEMPLATE) -> str:
    """The page in Markdown. pictures: names of the files there are; a picture that is missing is left out.

    A number whose key is missing or None reads "not measured"; a template that names a key no run can have is caught by
    the tests.
    """
    text = BLOCK.sub(lambda m: m[3] if (flat.get(m[2]) is not None) == (m[1] == "if") else "", template)
    text = TABLE.sub(lambda match: TABLES[match[1]](flat), text)
    text = PICTURE.sub(lambda match: _picture(match[1], match[2], pictures), text)
    text = SHEETS.sub(lambda match: _sheets(match[1], match[2], pictures), text)
    return PLACE.sub(lambda match: formatted(flat, match[1], match[2]), text)


def _picture(name: str, words: str, pictures: Sequence[str]) -> str:
    return f"![{words}]({FOLDER}/{name})\n\n" if name in pictures else ""


def _sheets(kind: str, words: str, pictures: Sequence[str]) -> str:
    found = sorted(
        (name for name in pictures if name.startswith(f"{kind}-")), key=lambda name: int(re.findall(r"\d+", name)[-1])
    )
    return "".join(_picture(name, words, pictures) for name in found)


def write_page(folder: Path, flat: Mapping[str, Any], pictures: Sequence[str]) -> None:
    """results.md, whole or not at all. Raises FileError."""
    text = page(flat, pictures)
    write_atomically(folder / "results.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(path: Path, flat: Mapping[str, Any]) -> None:
    """Every single number, one a line: key, value, low and high of its interval, the command that made it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "value", "low", "high", "command"])
    for key, value in sorted(flat.items()):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = flat.get(f"interval.{key}") or (None, None)
            writer.writerow([key, value, "" if low is None else low, "" if high is None else high, _command(flat, key)])
    text = out.getvalue()
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _command(flat: Mapping[str, Any], key: str) -> str:
    """What made a number: the page's run, one with another seed, or a report of another training that was named to it."""
    if key.startswith("also."):
        return other_runs.COMMAND
    seed = key.split(".")[1] if key.startswith("again.") else ""
    return str(flat.get(f"again.{seed}.command", flat["command"]))


def keys_of(template: str = TEMPLATE) -> list[str]:
    """The keys that a template names."""
    return [match[1] for match in PLACE.finditer(template)]


__all__ = ["NOT_MEASURED", "keys_of", "page", "write_csv", "write_page"]
