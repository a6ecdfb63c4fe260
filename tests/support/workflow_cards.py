"""Thumbnails of the example workflows: what they draw, on paper, or words for those that cannot run here."""
from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDE, SQUARE, MARGIN, LINE = (576, 324), (512, 512), 14, 26
PAPER, INK, FAINT = (250, 249, 245), (34, 33, 38), (120, 118, 112)
LIMIT = 60_000  # bytes


def pictures_card(pictures: Sequence[Any], captions: Sequence[str]) -> bytes:
    """One picture fills a square; a wide one lies on paper; two and three stand side by side with captions; four are a square."""
    if len(pictures) == 1 and pictures[0].width == pictures[0].height:
        return jpeg(pictures[0].convert("RGB").resize(SQUARE, Image.Resampling.LANCZOS))
    if len(pictures) == 1:
        wide = pictures[0].width > 1.3 * pictures[0].height
        return jpeg(_laid([[pictures[0]]], WIDE if wide else SQUARE, []))
    if len(pictures) == 4:
        return jpeg(_laid([pictures[:2], pictures[2:]], SQUARE, []))
    return jpeg(_laid([pictures], WIDE, captions))


def words_card(title: str, *lines: str) -> bytes:
    """Words only."""
    card = Image.new("RGB", WIDE, PAPER)
    draw = ImageDraw.Draw(card)
    draw.text((WIDE[0] / 2, 120), title, INK, ImageFont.load_default(52), anchor="mm")
    for index, line in enumerate(lines):
        draw.text((WIDE[0] / 2, 185 + 38 * index), line, FAINT, ImageFont.load_default(26), anchor="mm")
    return jpeg(card)


def _laid(rows: Sequence[Sequence[Any]], size: tuple[int, int], captions: Sequence[str]) -> Any:
    """Rows of pictures on paper, each scaled into an equal cell; captions under the only row."""
    card = Image.new("RGB", size, PAPER)
    draw, below = ImageDraw.Draw(card), LINE if captions else 0
    columns = max(map(len, rows))
    cell = ((size[0] - MARGIN * (columns + 1)) // columns, (size[1] - MARGIN * (len(rows) + 1)) // len(rows) - below)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            scale = min(cell[0] / picture.width, cell[1] / picture.height)
            small = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
            left, top = MARGIN + x * (cell[0] + MARGIN), MARGIN + y * (cell[1] + MARGIN)
            card.paste(small, (left + (cell[0] - small.width) // 2, top + (cell[1] - small.height) // 2))
            if captions:
                place = (left + cell[0] / 2, top + (cell[1] + small.height) / 2 + LINE / 2 + 2)
                draw.text(place, captions[x], INK, ImageFont.load_default(17), anchor="mm")
    return card


def jpeg(card: Any) -> bytes:
    """The bytes of a JPEG of at most LIMIT bytes."""
    for quality in (88, 80, 70, 55, 40, 25):
        buffer = BytesIO()
        card.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= LIMIT:
            break
    return buffer.getvalue()
