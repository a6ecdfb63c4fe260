"""Flat TOML files: read with the standard library (or `tomli` before Python 3.11), written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def parse(text: str) -> dict[str, Any]:
    """A TOML document. Raises ValueError for anything else."""
    try:
        import tomllib  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib.loads(text)


def dump(values: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """Texts, numbers, truth values and lists of them as TOML, one key a line, each below its comment."""
    lines = []
    for key, value in values.items():
        if comments and comments.get(key):
            lines.append(f"# {comments[key]}")
        lines.append(f"{key} = {_literal(value)}")
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(item) for item in value)}]"
    # JSON's escapes are those of TOML's basic strings; DEL alone is not escaped by JSON and forbidden in TOML.
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007F") if isinstance(value, str) else repr(value)
