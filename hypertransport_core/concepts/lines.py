"""In which line of a file each entry of a concept list begins; nothing where that cannot be told."""

from __future__ import annotations

import csv
import io
import json
import re


def csv_lines(text: str) -> list[int]:
    """The first line of every row but the header."""
    rows = csv.reader(io.StringIO(text), strict=True)
    out, end = [], 0
    for row in rows:
        begin, end = end + 1, rows.line_num
        if row:
            out.append(begin)
    return out[1:]


def json_lines(text: str) -> list[int]:
    """The lines of the elements of the list, or of the list called "concepts"."""
    start = re.match(r"\s*\[", text) or re.search(r'"concepts"\s*:\s*\[', text)
    if not start:
        return []
    out, at, decoder = [], start.end(), json.JSONDecoder()
    while found := re.compile(r"[\s,]*(?=[^\s,\]])").match(text, at):
        out.append(text.count("\n", 0, found.end()) + 1)
        try:
            _, at = decoder.raw_decode(text, found.end())
        except ValueError:
            return []
    return out


def toml_lines(text: str) -> list[int]:
    """The lines of the [[concepts]] headers; none inside of texts over several lines."""
    text = re.sub(r'""".*?"""|\'\'\'.*?\'\'\'', lambda found: "\n" * found.group().count("\n"), text, flags=re.DOTALL)
    return [
        i for i, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*[\"\']?concepts[\"\']?\s*\]\]", line)
    ]
