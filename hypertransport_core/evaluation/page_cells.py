"""What stands in the cells of the results page's tables, from the results file alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "not measured"
Flat = Mapping[str, Any]


def formatted(flat: Flat, key: str, form: str) -> str:
    """A number in words; NOT_MEASURED where there is none."""
    value = flat.get(key)
    if value is None:
        return NOT_MEASURED
    if form == "s":
        return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    if form == "n":
        return f"{value:,.0f}"
    if form == "x":
        return f"{value:,.0f} times" if value >= 100 else f"{value:.2f} times"
    plain = form.rstrip("~")

    def unit(number: float) -> str:
        if plain != "%":
            return f"{number:{plain}f}"
        # Rounded, nearly all is not all.
        return f"{100 * number:.1f}" if 0.995 <= number < 0.9995 else f"{100 * number:.0f}"

    text, bounds = unit(value), flat.get(f"interval.{key}") or [None, None]
    text += " %" if plain == "%" else ""
    if not form.endswith("~") or None in bounds:
        return text
    return f"{text} ({unit(bounds[0])} to {unit(bounds[1])})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; NOT_MEASURED without rows."""
    if not rows:
        return NOT_MEASURED[:1].upper() + NOT_MEASURED[1:] + "."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def decided(flat: Flat, key: str) -> str:
    """A verdict with its difference in points; NOT_MEASURED where there is none."""
    verdict = flat.get(f"{key}.verdict")
    return f"{_strong(verdict)} {signed(flat, key)}" if verdict else NOT_MEASURED


def _strong(verdict: str) -> str:
    return f"**{verdict}**" if verdict in ("wins", "loses") else verdict


def signed(flat: Flat, key: str) -> str:
    """A difference of shares in points, with its interval; NOT_MEASURED where there is none."""
    value, bounds = flat.get(key), flat.get(f"interval.{key}") or [None, None]
    if value is None or None in bounds:
        return NOT_MEASURED
    return f"{100 * value:+.0f} ({100 * bounds[0]:+.0f} to {100 * bounds[1]:+.0f})"
