"""Thumbnails of the example workflows: what they draw, on paper, or words for those that cannot run here."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN = 512, 14  # the dialog shows squares
PAPER, INK, FAINT = (250, 249, 245), (34, 33, 38), (120, 118, 112)
LIMIT = 60_000  # bytes


def pictures_card(pictures: Sequence[Any], captions: Sequence[str]) -> bytes:
    """One square picture fills the card, another one lies on paper; two and three stand below one another with their captions beside
    them; four fill a square."""
    card = Image.new("RGB", (SIDE, SIDE), PAPER)
    if len(pictures) == 1:
        picture = pictures[0]
        room = SIDE if picture.width == picture.height else SIDE - 2 * MARGIN
        _put(card, picture, (SIDE - room) // 2, (SIDE - room) // 2, room)
    elif len(pictures) == 4:
        room = (SIDE - 3 * MARGIN) // 2
        for index, picture in enumerate(pictures):
            _put(card, picture, MARGIN + index % 2 * (room + MARGIN), MARGIN + index // 2 * (room + MARGIN), room)
    else:
        room, draw = (SIDE - MARGIN * (len(pictures) + 1)) // len(pictures), ImageDraw.Draw(card)
        left, size = room + 2 * MARGIN, 30
        for index, (picture, caption) in enumerate(zip(pictures, captions)):
            top = MARGIN + index * (room + MARGIN)
            _put(card, picture, MARGIN, top, room)
            words = textwrap.fill(caption, max(8, int((SIDE - left) / (0.56 * size))))
            draw.multiline_text((left + 6, top + room / 2), words, INK, ImageFont.load_default(size), anchor="lm", spacing=8)
    return jpeg(card)


def words_card(title: str, *lines: str) -> bytes:
    """Words only."""
    card = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw = ImageDraw.Draw(card)
    draw.text((SIDE / 2, 200), title, INK, ImageFont.load_default(58), anchor="mm")
    for index, line in enumerate(lines):
        draw.text((SIDE / 2, 275 + 44 * index), line, FAINT, ImageFont.load_default(30), anchor="mm")
    return jpeg(card)


def _put(card: Any, picture: Any, left: int, top: int, room: int) -> None:
    """A picture scaled into a square of `room` pixels, in its middle."""
    scale = min(room / picture.width, room / picture.height)
    small = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    card.paste(small, (left + (room - small.width) // 2, top + (room - small.height) // 2))


def jpeg(card: Any) -> bytes:
    """The bytes of a JPEG of at most LIMIT bytes."""
    for quality in (88, 80, 70, 55, 40, 25):
        buffer = BytesIO()
        card.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= LIMIT:
            break
    return buffer.getvalue()
