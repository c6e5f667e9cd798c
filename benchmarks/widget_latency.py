"""How long from moving a slider to seeing the picture, and how fast films play, in a real JupyterLab with chromium.

    python benchmarks/widget_latency.py [--moves 40]

The last line is one JSON object. Milliseconds run from the slider's event in the page to the screen frame with the new picture:
page -> kernel -> matplotlib -> page; for the pad from lifting the pen, with image-to-image of the painted system in the kernel. Other work on the machine makes them longer; `load` is the load average before the start.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
import samples
from labdriver import (
    CHROMIUM,
    chromium,
    film_rate,
    jupyterlab,
    latencies,
    new_page,
    open_and_run,
    pen_times,
    write_notebook,
)

MEASURED = {  # name -> (cell, control)
    "slider_picture": (samples.SLIDER_PICTURE, "t"),
    "slider_picture_redraw": (samples.SLIDER_REDRAW, "sigma"),
    "slider_image": (samples.SLIDER_IMAGE, "t"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=40)
    moves = parser.parse_args().moves
    if not CHROMIUM:
        sys.exit(
            "no chromium here: install it (Debian: apt-get install chromium) or set CHROMIUM to its path"
        )
    result = {"load": round(os.getloadavg()[0], 2), "moves": moves}
    with (
        tempfile.TemporaryDirectory() as folder,
        jupyterlab(Path(folder)) as url,
        chromium() as browser,
        new_page(browser) as page,
    ):
        result["chromium"] = browser.version
        write_notebook(
            Path(folder) / "root" / "timing.ipynb",
            samples.SETUP,
            *(cell for cell, _ in MEASURED.values()),
            samples.FILM,
            samples.PAD,
        )
        open_and_run(page, url, "timing.ipynb")
        roots = page.locator(".ddpm-widget")
        roots.nth(len(MEASURED) + 1).wait_for()
        for i, (name, (_, control)) in enumerate(MEASURED.items()):
            roots.nth(i).scroll_into_view_if_needed()
            latencies(roots.nth(i), control, 5)  # warm up
            times = sorted(latencies(roots.nth(i), control, moves))
            result[f"{name}_min_ms"] = round(times[0], 1)
            result[f"{name}_median_ms"] = round(statistics.median(times), 1)
            result[f"{name}_p95_ms"] = round(times[min(len(times) - 1, int(0.95 * len(times)))], 1)
            print(
                f"{name}: median {result[f'{name}_median_ms']} ms, 95 % below {result[f'{name}_p95_ms']} ms",
                flush=True,
            )
        roots.nth(len(MEASURED)).scroll_into_view_if_needed()
        result["film_fps"] = round(film_rate(roots.nth(len(MEASURED)), 3), 1)
        pad = roots.nth(len(MEASURED) + 1)
        pad.scroll_into_view_if_needed()
        pad.get_by_role("button", name="red").click()
        pen_times(pad, 2)  # warm up
        times = pen_times(pad, max(5, moves // 4))
        result["pad_median_ms"], result["pad_max_ms"] = statistics.median(times), max(times)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
