"""Labelled contact sheets: rows and columns of small pictures with words beside them, drawn with Pillow."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .images import save_picture

PAPER, INK, FAINT, EDGE = (250, 248, 243), (38, 38, 44), (126, 124, 120), (214, 210, 202)
MARGIN, GAP, CORNER = 28, 10, 6  # pixels
TITLE_SIZE, LABEL_SIZE, NOTE_SIZE = 26, 19, 15  # pixels
SEPARATOR = 14  # extra pixels above a row that starts a new group


class SheetError(ValueError):
    """Pictures or labels that do not make a sheet; the message is one sentence with the cure."""


@dataclass
class Row:
    """One row of a sheet.

    pictures: (3, H, W) floats in [0, 1], or None for an empty cell; label: words at the left; note: smaller words below
    them; thumbnail: a picture (3, H, W) of any size at the left, above the words; starts_group: leave some room above.
    """

    pictures: Sequence[Tensor | None]
    label: str = ""
    note: str = ""
    thumbnail: Tensor | None = None
    starts_group: bool = False


def contact_sheet(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    title: str = "",
    subtitle: str = "",
    footer: str = "",
    upscale: int = 3,
) -> Tensor:
    """Draw a sheet: (3, H, W) float32 in [0, 1].

    columns: a heading per column; upscale: whole factor by which every picture is enlarged, pixels stay crisp. Pictures
    of one sheet share one size; the height of a row is that of its pictures. Raises SheetError.
    """
    from PIL import Image, ImageDraw

    side_y, side_x = _picture_size(rows, columns)
    cell_w, cell_h = side_x * upscale, side_y * upscale
    label_w = _label_width(rows, cell_w)
    title_font, label_font, note_font = _font(TITLE_SIZE), _font(LABEL_SIZE), _font(NOTE_SIZE)
    left = MARGIN + (label_w + 2 * GAP if label_w else 0)
    width = left + len(columns) * (cell_w + GAP) - GAP + MARGIN
    title_lines, subtitle_lines, footer_lines = (
        wrap(text, font, width - 2 * MARGIN)
        for text, font in ((title, title_font), (subtitle, note_font), (footer, note_font))
    )
    top = (
        MARGIN
        + len(title_lines) * (TITLE_SIZE + 8)
        + len(subtitle_lines) * (NOTE_SIZE + 6)
        + (GAP if title_lines else 0)
    )
    heading_lines = [wrap(name, label_font, cell_w) for name in columns]
    headings = max((len(lines) for lines in heading_lines), default=0) * (LABEL_SIZE + 5) + GAP
    gaps = sum(SEPARATOR for row in rows[1:] if row.starts_group)
    height = (
        top
        + headings
        + len(rows) * (cell_h + GAP)
        - GAP
        + gaps
        + (len(footer_lines) * (NOTE_SIZE + 6) + 2 * GAP if footer_lines else 0)
        + MARGIN
    )
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _lines(draw, MARGIN, MARGIN, title_lines, title_font, INK, 8)
    _lines(draw, MARGIN, y, subtitle_lines, note_font, FAINT, 6)
    for number, lines in enumerate(heading_lines):
        x = left + number * (cell_w + GAP)
        first = top + headings - GAP + 3 - len(lines) * (LABEL_SIZE + 5)
        for line, text in enumerate(lines):
            draw.text(
                (x + (cell_w - label_font.getlength(text)) / 2, first + line * (LABEL_SIZE + 5)), text, INK, label_font
            )
    y = top + headings
    for number, row in enumerate(rows):
        y += SEPARATOR if number and row.starts_group else 0
        _draw_label(sheet, draw, row, MARGIN, y, label_w, cell_h)
        for column, picture in enumerate(row.pictures):
            if picture is not None:
                _paste(sheet, draw, _enlarged(picture, upscale), left + column * (cell_w + GAP), y)
        y += cell_h + GAP
    _lines(draw, MARGIN, y + GAP, footer_lines, note_font, FAINT, 6)
    return _to_tensor(sheet)


def save_sheet(path: str | Path, sheet: Tensor, texts: dict[str, str] | None = None) -> None:
    """Write a sheet as PNG, whole or not at all. Raises FileError."""
    save_picture(path, sheet, texts)


def wrap(text: str, font: Any, width: float, most_lines: int = 6) -> list[str]:
    """Words of a text in lines no wider than `width` pixels; a word that is too wide is cut, and so is what needs too
    many lines."""
    lines: list[str] = []
    for word in printable(text).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(shortened(word, font, width))
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], shortened(lines[most_lines - 1] + "…", font, width)]
    return lines


def shortened(text: str, font: Any, width: float) -> str:
    """The text, or as much of it as fits `width` pixels and an ellipsis."""
    text = text.rstrip()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def printable(text: str) -> str:
    """The text in letters that the font shipped with Pillow has: accents are dropped, unknown signs become a question
    mark."""
    kept = []
    for character in text:
        if character in "…·±“”" or " " <= character <= "~":
            kept.append(character)
        elif character.isspace():
            kept.append(" ")
        else:
            kept.append("".join(c for c in unicodedata.normalize("NFKD", character) if " " <= c <= "~") or "?")
    return "".join(kept)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _picture_size(rows: Sequence[Row], columns: Sequence[str]) -> tuple[int, int]:
    pictures = [picture for row in rows for picture in row.pictures if picture is not None]
    if not pictures:
        raise SheetError("The sheet has no pictures, expected at least one: add a row.")
    for row in rows:
        if len(row.pictures) != len(columns):
            raise SheetError(
                f"The row '{row.label}' has {len(row.pictures)} pictures for {len(columns)} columns; give one per "
                "column, None for an empty cell."
            )
    sizes = {tuple(picture.shape) for picture in pictures}
    if len(sizes) != 1 or len(pictures[0].shape) != 3 or pictures[0].shape[0] != 3:
        raise SheetError(
            f"The pictures have the shapes {sorted(sizes)}, expected one shape (3, height, width): resize them first."
        )
    return int(pictures[0].shape[1]), int(pictures[0].shape[2])


def _label_width(rows: Sequence[Row], cell_w: int) -> int:
    if not any(row.label or row.note or row.thumbnail is not None for row in rows):
        return 0
    widest = max(
        (_font(LABEL_SIZE).getlength(word) for row in rows for word in printable(row.label).split()), default=0.0
    )
    return int(min(max(widest, 150), 1.4 * cell_w, 260))


def _lines(
    draw: Any, x: float, y: float, lines: Sequence[str], font: Any, colour: tuple[int, int, int], gap: int
) -> float:
    for line in lines:
        draw.text((x, y), line, colour, font)
        y += font.size + gap
    return y


def _draw_label(sheet: Any, draw: Any, row: Row, x: int, y: int, width: int, height: int) -> None:
    """Thumbnail, words and note, one below another and together centred in the height of the row."""
    if not width:
        return
    label_font, note_font = _font(LABEL_SIZE), _font(NOTE_SIZE)
    label, note = wrap(row.label, label_font, width, 4), wrap(row.note, note_font, width, 4)
    words = len(label) * (LABEL_SIZE + 5) + len(note) * (NOTE_SIZE + 4)
    thumbnail = None
    if row.thumbnail is not None and height - words - GAP > 24:
        thumbnail = _fitted(row.thumbnail, width, min(height - words - GAP, 120))
    total = words + (thumbnail.shape[1] + GAP if thumbnail is not None else 0)
    at: float = y + max(0, (height - total) // 2)
    if thumbnail is not None:
        _paste(sheet, draw, thumbnail, x, at)
        at += thumbnail.shape[1] + GAP
    at = _lines(draw, x, at, label, label_font, INK, 5)
    _lines(draw, x, at, note, note_font, FAINT, 4)


def _enlarged(picture: Tensor, factor: int) -> Tensor:
    return picture.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def _fitted(picture: Tensor, width: int, height: int) -> Tensor:
    """The picture, scaled to fit in width x height; small ones are enlarged by whole factors."""
    factor = min(width / picture.shape[2], height / picture.shape[1])
    if factor >= 1:
        return _enlarged(picture, int(factor))
    size = (max(1, int(picture.shape[1] * factor)), max(1, int(picture.shape[2] * factor)))
    return functional.interpolate(picture[None], size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(
        0, 1
    )


def _paste(sheet: Any, draw: Any, picture: Tensor, x: float, y: float) -> None:
    from PIL import Image, ImageDraw

    values = (picture.detach().float().cpu().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    image = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
    corners = Image.new("L", image.size, 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, image.width - 1, image.height - 1), CORNER, fill=255)
    x = int(x)
    sheet.paste(image, (x, int(y)), corners)
    draw.rounded_rectangle((x, int(y), x + image.width - 1, int(y) + image.height - 1), CORNER, outline=EDGE)


def _to_tensor(image: Any) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255.0
