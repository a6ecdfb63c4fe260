# ruff: noqa: T201 (a command speaks to a person)
"""Takes docs/images/comfyui.jpg: the first workflow on ComfyUI's own page after a run, laid out tightly so that it can be read.

    python docs/make_screenshot.py

Needs what the browser tests need: ComfyUI with its page, playwright and a Chromium. Look at what comes out.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

from comfy_browser import Browser  # noqa: E402
from comfy_server import Server  # noqa: E402
from PIL import Image  # noqa: E402

TARGET = ROOT / "docs" / "images" / "comfyui.jpg"
WIDTH, HEIGHT, SCALE, MOST_BYTES = 1280, 760, 0.88, 200_000
# Type -> [place, size, collapsed]; there are two prompts, of which the second, negative one comes last.
PLACES = {
    "HyperTransportPostcard": [[0, 0], [290, 110], False],
    "HyperTransportLoad": [[0, 155], [290, 60], False],
    "CLIPTextEncode": [[0, 262], [290, 110], False],
    "HyperTransportConceptEncoder": [[0, 420], [290, 215], False],
    "HyperTransportSteer": [[340, 0], [330, 190], False],
    "KSampler": [[340, 245], [330, 262], False],
    "HyperTransportEmptyPostcardLatent": [[340, 560], [200, 60], True],
    "VAEDecode": [[540, 560], [200, 60], True],
    "ImageScale": [[540, 610], [200, 60], True],
    "SaveImage": [[720, 0], [540, 590], False],
}
LAY_OUT = """places => {
    for (const group of [...app.graph.groups]) app.graph.remove(group)
    for (const node of app.graph.nodes.filter(n => n.type === 'MarkdownNote')) app.graph.remove(node)
    const seen = new Set()
    for (const node of app.graph.nodes) {
        const [place, size, collapsed] = seen.has(node.type) ? [[340, 610], [200, 60], true] : places[node.type]
        seen.add(node.type)
        if (collapsed) node.collapse()
        node.pos = place
        node.setSize(size)
    }
    app.canvas.ds.scale = %s
    app.canvas.ds.offset = [90, 125]
    app.canvas.setDirty(true, true)
}"""


def main() -> None:
    """Start the server and the page, run, take the picture."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server.start(Path(folder))
        try:
            with Browser.start() as browser:
                page = browser.open(server, width=WIDTH, height=HEIGHT)
                page.open_template("01_words")
                ran = page.run()
                if ran["status"] != "success":
                    raise SystemExit(str(ran))
                page.wait_for_picture()
                page.page.evaluate(LAY_OUT % SCALE, PLACES)
                picture = Image.open(page.screenshot(Path(folder) / "page.png", settle=2.0)).convert("RGB")
                page.close()
        finally:
            server.stop()
    for quality in range(92, 50, -4):
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= MOST_BYTES:
            break
    TARGET.write_bytes(data.getvalue())
    print(f"{TARGET.name}: {data.tell()} bytes")


if __name__ == "__main__":
    main()
