"""The pages of the book that compute: seconds and bytes in chromium, and how far from Python.

    python benchmarks/live_page.py [--n 30]

n names of emoji, half of them Chinese, each with a seed of its own, at the page's own steps and
guidance, held against `ddpm_edu.systems.draw`; then a ring of points in the playground, until the
network is trained and has drawn samples. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from figures import provenance

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/browser"), str(ROOT / "book/live")]
import build
from labdriver import chromium, new_page, served

from ddpm_edu import load
from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.systems import draw

PIXELS = """() => [...document.getElementById('picture').getContext('2d')
    .getImageData(0, 0, 64, 64).data]"""


def drawn(page, count: int) -> float:
    """Wait for the page's picture number `count`; its seconds, by the page's own clock."""
    is_there = "count => document.body.dataset.drawn === `${count}`"
    page.wait_for_function(is_there, arg=count, timeout=120_000)
    return float(page.evaluate("document.body.dataset.seconds"))


def pictures(page, url: str, n: int) -> dict:
    """n names, drawn in the page and in Python."""
    sd, shown, pick = load("emoji"), emoji(), random.Random(0)
    index = pick.sample(range(len(shown)), n)
    start = time.perf_counter()
    page.goto(url)
    drawn(page, 1)
    first, seconds, far = time.perf_counter() - start, [], []
    busy = processor(page)
    for k, i in enumerate(index):
        prompt = (shown.names, shown.chinese)[k % 2][i]
        page.fill("#prompt", prompt)
        page.fill("#seed", str(i))
        page.click("#draw")
        seconds.append(drawn(page, k + 2))
        ours = torch.tensor(page.evaluate(PIXELS)).view(64, 64, 4)[..., :3]
        x = draw(sd, prompt, seeds=i, progress=False)[0]
        far.append((ours - (x * 127.5 + 127.5).round().permute(1, 2, 0)).abs())
    off = torch.stack(far)
    return {
        "first_picture_s": round(first, 2),
        "median_s": round(statistics.median(seconds), 2),
        "slowest_s": round(max(seconds), 2),
        "processor_s": round((processor(page) - busy) / n, 2),
        "worst_level_of_255": int(off.max()),
        "numbers_off": int((off > 0).sum()),
        "numbers": off.numel(),
    }


def playground(page, url: str) -> dict:
    """Seconds from choosing a ring to the samples of the trained network, and those of processor."""
    page.goto(url)
    start, busy = time.perf_counter(), processor(page)
    page.get_by_role("button", name="ring").click()
    trained = "document.querySelector('figure').dataset.drawn === '1'"
    page.wait_for_function(trained, timeout=120_000)
    seconds = time.perf_counter() - start
    return {
        "playground_s": round(seconds, 1),
        "playground_processor_s": round(processor(page) - busy, 1),
    }


def processor(page) -> float:
    """Processor seconds that the page's process has taken so far."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=30, help="names (30)")
    args = parser.parse_args()
    result = {**provenance(), "load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser, new_page(browser) as page:
        out = Path(folder)
        build.playground(out)
        build.live(out)
        (out / "playground.html").write_text(
            "<!doctype html><div id=here></div><script src=playground.js></script>"
            "<script>playground(document.getElementById('here'));</script>"
        )
        loaded = [file for file in out.iterdir() if file.stem not in ("disk", "playground")]
        result["bytes"] = sum(file.stat().st_size for file in loaded)
        with served(out) as url:
            result |= pictures(page, f"{url}/index.html", args.n)
            result |= playground(page, f"{url}/playground.html")
        result["chromium"] = browser.version
    print(json.dumps(result))


if __name__ == "__main__":
    main()
