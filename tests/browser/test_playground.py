"""The playground in chromium: gradients and sampling against torch, drawing by mouse and by keys, training to the end."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labdriver import served

from ddpm_edu import Schedule
from ddpm_edu.diffusion import sample
from ddpm_edu.show.widgets import Playground, base

pytestmark = pytest.mark.browser
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>playground</title><link rel="icon" href="data:,"><link rel="stylesheet" href="widgets.css"><div id="here"></div>
<script type="module">import { alone } from "./playground.js"; alone(document.getElementById("here"));</script></html>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("playground")
    (folder / "index.html").write_text(PAGE)
    (folder / "playground.js").write_text(Playground._esm, encoding="utf-8")
    (folder / "widgets.css").write_text(base.static("widgets.css"), encoding="utf-8")
    with served(folder) as url:
        yield f"{url}/"


def computed(page, body):
    """What a piece of JavaScript returns, with the module as P."""
    return page.evaluate(f"async () => {{ const P = await import('./playground.js'); {body} }}")


NETWORK = "const net = new P.Network(3), {x_t, t, v} = P.batch(Float32Array.from({length: 60}, P.random(4).normal), P.random(5), 37);"


def twin(values):
    """The same network in torch: (x, t) -> v, and its parameters."""
    *weights, b1, b2, b3 = (torch.tensor(p, dtype=torch.float32) for p in values["parameters"])
    widths = values["widths"]
    shapes = [(m, k) for k, m in zip(widths, widths[1:])]
    parameters = [w.view(s) for w, s in zip(weights, shapes)] + [b1, b2, b3]
    for p in parameters:
        p.requires_grad_()
    waves = torch.tensor(values["waves"]).view(-1, 2)
    schedule = Schedule.cosine(values["T"])

    def network(x, t, cond=None):
        bar = schedule.alpha_bar[t.long()].float()
        angle = torch.atan2((1 - bar).sqrt(), bar.sqrt())[:, None] * 2.0 ** torch.arange(6)
        pairs = lambda a: torch.stack([a.cos(), a.sin()], -1).flatten(1)
        h = torch.cat([x, pairs(x @ waves.T), pairs(angle)], 1)
        W, b = parameters[:3], parameters[3:]
        for w, c in zip(W[:2], b[:2]):
            h = F.silu(F.linear(h, w, c))
        return F.linear(h, W[2], b[2])

    return network, parameters, schedule


STATE = "{parameters: net.parameters().map(p => [...p]), widths: P.WIDTHS, waves: [...net.waves], T: P.T}"


def test_gradients_and_adam_are_torchs(page, site):
    page.goto(site)
    got = computed(
        page,
        f"{NETWORK} const before = {STATE}, {{loss, gradient}} = net.gradient(x_t, t, v);"
        "for (let k = 0; k < 3; k++) net.descend(net.gradient(x_t, t, v).gradient, 0.01);"
        f"return {{before, loss, gradient: gradient.map(g => [...g]), after: {STATE}, x_t: [...x_t], t: [...t], v: [...v]}};",
    )
    network, parameters, _ = twin(got["before"])
    x_t, v = (torch.tensor(got[name]).view(-1, 2) for name in ("x_t", "v"))
    t = torch.tensor(got["t"])
    value = F.mse_loss(network(x_t, t), v)
    assert abs(value.item() - got["loss"]) < 1e-5 * value.item()
    for ours, theirs in zip(got["gradient"], torch.autograd.grad(value, parameters)):
        theirs = theirs.flatten()
        assert (torch.tensor(ours) - theirs).abs().max() < 1e-5 * theirs.abs().max()
    adam = torch.optim.Adam(parameters, lr=0.01, betas=(0.9, 0.98))
    for _ in range(3):
        adam.zero_grad()
        F.mse_loss(network(x_t, t), v).backward()
        adam.step()
    after = [torch.tensor(p) for p in got["after"]["parameters"]]
    for ours, theirs in zip(after, parameters):
        assert (ours - theirs.detach().flatten()).abs().max() < 2e-4


def test_schedule_batch_samples_and_score_are_the_packages(page, site):
    page.goto(site)
    got = computed(
        page,
        f"{NETWORK} const x = Float32Array.from({{length: 40}}, P.random(6).normal);"
        "return {alpha_bar: P.alpha_bar, x: [...x], ends: P.sample(net, x).map(f => [f.t, [...f.x]]),"
        f"score: [...P.score(net, x, 30)], state: {STATE}}};",
    )
    network, _, schedule = twin(got["state"])
    np.testing.assert_allclose(got["alpha_bar"], schedule.alpha_bar, rtol=1e-12)
    x = torch.tensor(got["x"]).view(-1, 2)
    times = range(99, 0, -2)
    with torch.no_grad():
        steps = list(sample(network, schedule, x, list(times), predict="v"))
    assert [t for t, _ in got["ends"]] == [*times, -1]
    for (_, ours), theirs in zip(got["ends"][1:], steps):
        assert (torch.tensor(ours).view(-1, 2) - theirs.x_prev).abs().max() < 2e-3
    with torch.no_grad():
        v = network(x, torch.full((len(x),), 30))
    eps = schedule.split(x, v, 30, "v")[1]
    expected = -eps / schedule.signal_noise(30)[1]
    assert (torch.tensor(got["score"]).view(-1, 2) - expected).abs().max() < 1e-3


def test_a_stroke_becomes_samples(page, site):
    """Two strokes by mouse; what the trained network makes of noise lies on them, and fills both."""
    page.goto(site)
    page.get_by_role("button", name="Clear").click()
    box = page.locator("canvas").first.bounding_box()
    for left in (100, 300):
        page.mouse.move(box["x"] + left, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + left, box["y"] + 300, steps=20)
        page.mouse.up()
    finished(page)
    share = page.evaluate(
        """() => { const c = document.querySelectorAll('canvas')[1], w = c.width, d = c.getContext('2d').getImageData(0, 0, w, w).data;
        const bins = [0, 0, 0]; for (let y = 0; y < w; y++) for (let x = 0; x < w; x++) if (d[4 * (y * w + x)] < 60) {
          const u = x / w * 400; bins[Math.abs(u - 100) < 25 ? 0 : Math.abs(u - 300) < 25 ? 1 : 2]++; } return bins; }"""
    )
    left, right, stray = share
    assert min(left, right) > 0.25 * (left + right), share
    assert stray < 0.1 * (left + right), share
    print(page.locator("output.ddpm-said").inner_text())


def finished(page):
    page.wait_for_function(
        "document.querySelector('figure').dataset.drawn === '1'", timeout=200_000
    )


def test_by_keys_alone(page, site):
    """Clear, points by the space key, which train, move the time: and each is said aloud."""
    page.goto(site)
    said = page.locator("output.ddpm-said")
    page.get_by_role("button", name="two moons").focus()
    for _ in range(3):  # two shapes more, then the plane
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "application"
    page.keyboard.press("c")
    assert said.inner_text() == "cleared"
    page.keyboard.press("t")
    assert said.inner_text() == "Draw at least 20 points first."
    for key in ("Shift+ArrowRight", "Space", "Shift+ArrowLeft", "Shift+ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    assert said.inner_text() == "at -0.60, 0.12"
    page.keyboard.press("Space")
    assert said.inner_text() == "12 points more, 24 in all"
    slider = page.get_by_role("slider")
    page.wait_for_function("document.querySelector('input[type=range]').max > 0", timeout=60_000)
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "t = 100 of 100"
    view = page.get_by_role("img")
    assert "pure noise" in view.get_attribute("aria-label")
    slider.press("End")
    assert slider.get_attribute("aria-valuetext") == "t = 0: the finished points"
    for layer in ("density", "points", "paths", "score arrows"):
        box = page.get_by_role("checkbox", name=layer)
        assert box.evaluate(TOGGLED), layer
        was = box.is_checked()
        box.focus()
        page.keyboard.press("Space")
        assert box.is_checked() != was


TOGGLED = """box => { const view = document.querySelectorAll('canvas')[1], before = view.toDataURL();
    box.click(); return view.toDataURL() !== before; }"""  # at once: the training goes on meanwhile


def test_it_fits_a_phone(page, site):
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(site)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_widget_keeps_points_and_a_still():
    points = [[0.5, 1.0], [-1.0, 0.25], [2.0, -2.0]]
    pad = Playground(points, alt="Three points", caption="Draw.")
    assert pad.points == [0.5, 1.0, -1.0, 0.25, 2.0, -2.0]
    assert json.dumps(pad.get_state()["points"]) == json.dumps(pad.points)
    assert "Three points" in pad.page() and len(pad.still()) > 5000
