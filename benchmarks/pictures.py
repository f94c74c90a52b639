"""The pictures at the head of the README: the pair browser in a real JupyterLab, on the tiny organism,
and the arms of `make reproduce`, from the results that are committed. They go to notebooks/pictures.

    .venv/bin/python -m benchmarks.pictures
"""

from __future__ import annotations

import argparse
import base64
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab import cut, jupyter_lab
from benchmarks.loop import ROOT
from benchmarks.reproduce import RESULTS
from benchmarks.tables import AGAINST, HABIT
from probekit import charts, effects
from probekit.experiments import results

PICTURES = ROOT / "notebooks" / "pictures"
ARMS = ("baseline", AGAINST, "bottom filter", "filter", "oracle filter", "swap")
PIXELS = """async (png) => {
  const picture = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
  const { width, height } = picture;
  const canvas = new OffscreenCanvas(width, height).getContext('2d');
  canvas.drawImage(picture, 0, 0);
  const bytes = new Blob([canvas.getImageData(0, 0, width, height).data]);
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(bytes);
  });
  return [width, height, url.split(',')[1]];
}"""


def main() -> None:
    """Make the pictures anew."""
    makers = {"arms": arms, "pairs": pairs}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("--only", choices=makers, help="which picture; without it, both")
    only = parser.parse_args().only
    PICTURES.mkdir(exist_ok=True)
    for name, make in makers.items():
        if only in (None, name):
            make()


def arms() -> None:
    """arms.svg and arms-dark.svg: the habit after training on each edit of the data."""
    paths = [path for name in ARMS for path in sorted(RESULTS.glob(f"{name.replace(' ', '-')}-[0-9].json"))]
    table = effects.effect_table(results(paths), metric=HABIT, against=AGAINST)
    chart = charts.arms_chart(table)
    for name, dark in (("arms", False), ("arms-dark", True)):
        (PICTURES / f"{name}.svg").write_text(charts.to_svg(chart, dark=dark) + "\n", encoding="utf-8")
    print(chart.description)


def pairs() -> None:
    """pairs.png: the pair browser of notebook 03, two pairs marked."""
    with tempfile.TemporaryDirectory() as home, jupyter_lab(Path(home)) as lab:
        cut(Path(home) / "notebooks" / "03_trace_it_to_pairs.ipynb", "marked = pk.filter_ids")
        with lab.opened("03_trace_it_to_pairs.ipynb", window=(1340, 1100), pixels=2) as notebook:
            if found := notebook.run_all():
                raise RuntimeError(f"Notebook 03 failed: {'; '.join(found)}")
            grid = notebook.page.get_by_role("grid", name="Pairs by rank")
            for row in (1, 2):
                grid.locator("tbody tr").nth(row).click()
                notebook.page.keyboard.press("m")
            notebook.page.get_by_text("2 pairs marked").first.wait_for()
            picture = notebook.page.locator(".probekit-pairs:visible").first.screenshot()
            width, height, rgba = notebook.page.evaluate(PIXELS, base64.b64encode(picture).decode())
            colours = np.frombuffer(base64.b64decode(rgba), np.uint8).reshape(height, width, 4)[..., :3]
            (PICTURES / "pairs.png").write_bytes(palette_png(colours))


def palette_png(colours: NDArray[np.uint8]) -> bytes:
    """Colours [height, width, 3] as a PNG with a palette: a third of what a browser's screenshot takes.

    Colours alike in the first four bits of each channel become the most frequent of them, so grounds and
    lines keep theirs. Raises ValueError for more than 256 kinds of colour: that is a photograph.
    """
    height, width, _ = colours.shape
    flat = colours.reshape(-1, 3)
    known, index, counts = np.unique(flat, axis=0, return_inverse=True, return_counts=True)
    kinds, kind_of = np.unique(known >> 4, axis=0, return_inverse=True)
    if len(kinds) > 256:
        raise ValueError(f"The picture has {len(kinds)} kinds of colour, and a palette holds 256.")
    palette = np.zeros((len(kinds), 3), np.uint8)
    rarest_first = np.argsort(counts)
    palette[kind_of[rarest_first]] = known[rarest_first]  # of several to one place, the last stays
    rows = kind_of[index].astype(np.uint8).reshape(height, width)
    no_filter = np.zeros((height, 1), np.uint8)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(np.hstack([no_filter, rows]).tobytes(), 9)),
        (b"IEND", b""),
    )
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


if __name__ == "__main__":
    main()
