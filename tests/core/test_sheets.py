from __future__ import annotations

import pytest
import torch

from hypertransport_core.sheets import (
    MARGIN,
    Row,
    SheetError,
    _font,
    contact_sheet,
    printable,
    save_sheet,
    shortened,
    wrap,
)


def pictures(count: int, side: int = 8) -> list[torch.Tensor]:
    return list(torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)))


def test_every_pixel_of_a_picture_is_on_the_sheet_enlarged() -> None:
    picture = pictures(1, 16)[0]
    sheet = contact_sheet([Row([picture])], ["a"], upscale=3)
    assert sheet.shape[0] == 3 and sheet.dtype == torch.float32 and 0 <= float(sheet.min()) and float(sheet.max()) <= 1
    assert sheet.shape[2] == 2 * MARGIN + 48
    enlarged = picture.repeat_interleave(3, 1).repeat_interleave(3, 2)
    inner = enlarged[:, 12:-12, 12:-12]  # corners are round, edges have a line
    windows = sheet.unfold(1, inner.shape[1], 1).unfold(2, inner.shape[2], 1)
    assert float((windows - inner[:, None, None]).abs().amax((0, 3, 4)).min()) < 1 / 255


def test_size_follows_rows_columns_and_labels() -> None:
    plain = contact_sheet([Row(pictures(2))], ["a", "b"])
    wider = contact_sheet([Row(pictures(2), "teal mosaic")], ["a", "b"])
    taller = contact_sheet([Row(pictures(2)), Row(pictures(2), starts_group=True)], ["a", "b"], title="a red house")
    assert wider.shape[2] > plain.shape[2] and wider.shape[1] == plain.shape[1]
    assert taller.shape[1] > plain.shape[1]


def test_labels_leave_ink() -> None:
    empty = contact_sheet([Row(pictures(1))], [""])
    titled = contact_sheet([Row(pictures(1))], ["strength 1"], title="x", footer="y")
    assert float((titled < 0.4).float().sum()) > float((empty < 0.4).float().sum())


def test_empty_cells_thumbnails_and_long_words() -> None:
    rows = [Row([None, pictures(1, 64)[0]], "a very " * 60, "note " * 60, torch.rand(3, 300, 40))]
    assert contact_sheet(rows, ["a", "b"], title="word " * 200, subtitle="s " * 300).isfinite().all()


@pytest.mark.parametrize(
    "rows, columns",
    [
        ([], ["a"]),
        ([Row([None])], ["a"]),
        ([Row(pictures(2))], ["a"]),
        ([Row([*pictures(1, 8), *pictures(1, 9)])], ["a", "b"]),
    ],
)
def test_refuses_in_one_sentence(rows: list[Row], columns: list[str]) -> None:
    with pytest.raises(SheetError) as error:
        contact_sheet(rows, columns)
    assert "\n" not in str(error.value)


def test_wrapping_fits_the_width() -> None:
    font = _font(19)
    lines = wrap("an unbelievablyunbelievablyunbelievably long word and more of it " * 5, font, 120, 4)
    assert len(lines) == 4 and all(font.getlength(line) <= 120 for line in lines) and lines[-1].endswith("…")
    assert wrap("", font, 100) == [] and shortened("abc", font, 1000) == "abc"


def test_unknown_signs_become_readable() -> None:
    assert printable("Café λ\n½") == "Cafe ? 12" or printable("Café λ\n½").startswith("Cafe ?")
    assert printable("日本") == "??"


def test_saved_as_png(tmp_path) -> None:
    from PIL import Image

    sheet = contact_sheet([Row(pictures(1))], ["a"])
    save_sheet(tmp_path / "deep" / "sheet.png", sheet, {"prompt": "é"})
    with Image.open(tmp_path / "deep" / "sheet.png") as image:
        assert image.size == (sheet.shape[2], sheet.shape[1]) and image.info["prompt"] == "é"
