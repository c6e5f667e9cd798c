"""plot: colours that can be told apart, pictures whose alt text survives, tiles that keep every pixel."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_edu.errors import OptionError, ShapeError
from ddpm_edu.show import plot


def shown(picture) -> np.ndarray:
    """The pixels a browser would show: decoded from the HTML, not taken from the object."""
    source = re.search(
        r'src="data:image/(?:png|webp);base64,([^"]+)"', picture._repr_mimebundle_()["text/html"]
    ).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"))


def luminance(color) -> float:
    """WCAG 2 relative luminance of an sRGB colour."""
    from matplotlib.colors import to_rgb

    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_colours_are_okabe_and_ito():
    matplotlib_colors = pytest.importorskip("matplotlib").colors
    if "okabe_ito" not in getattr(matplotlib_colors, "color_sequences", {}):
        known = [
            "#000000",
            "#E69F00",
            "#56B4E9",
            "#009E73",
            "#F0E442",
            "#0072B2",
            "#D55E00",
            "#CC79A7",
        ]
    else:
        known = [
            matplotlib_colors.to_hex(c).upper()
            for c in __import__("matplotlib").color_sequences["okabe_ito"]
        ]
    assert sorted(plot.OKABE_ITO.values()) == sorted(known)


def test_every_series_has_its_own_colour_and_its_own_dash():
    fig, ax = plot.axes()
    lines = plot.curves(ax, [0, 1], {str(i): [i, i + 1] for i in range(8)})
    assert len({line.get_color() for line in lines}) == 8
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 8


def test_text_in_a_series_colour_can_be_read_on_white():
    for color in plot.OKABE_ITO.values():
        assert 1.05 / (luminance(plot.darker(color)) + 0.05) >= 4.5


def test_direct_labels_stand_at_the_ends_and_do_not_overlap():
    fig, ax = plot.axes(6, 3)
    plot.curves(ax, [0, 1], {"one": [0, 0.5], "two": [1, 0.5], "three": [0.5, 0.505]})
    plot.pixels(fig)
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert [text.get_text() for text in ax.texts] and len(boxes) == 3
    assert all(low.y1 <= high.y0 + 2 for low, high in zip(boxes, boxes[1:]))
    assert all(box.x1 <= fig.bbox.width for box in boxes), "a label is cut off"


def test_curves_refuses_what_does_not_fit():
    fig, ax = plot.axes()
    with pytest.raises(OptionError, match="at least one curve"):
        plot.curves(ax, [0, 1], {})
    with pytest.raises(ShapeError, match="'bad' has shape"):
        plot.curves(ax, [0, 1], {"bad": [1, 2, 3]})


@pytest.mark.parametrize(
    "words",
    [{"alt": "", "caption": "c"}, {"alt": "a", "caption": "  "}, {"alt": None, "caption": "c"}],
)
def test_alt_and_caption_are_required(words):
    with pytest.raises(OptionError, match="is empty"):
        plot.figure(plot.axes()[0], **words)
    with pytest.raises(OptionError, match="is empty"):
        plot.image_grid(np.zeros((1, 1, 4, 4)), **words)


def test_figure_keeps_alt_text_safe_on_one_line_and_white():
    fig, ax = plot.axes(4, 2)
    ax.plot([0, 1])
    picture = plot.figure(fig, alt='x < "y" & z', caption="a <b>bold</b> claim")
    bundle = picture._repr_mimebundle_()
    assert 'alt="x &lt; &quot;y&quot; &amp; z"' in bundle["text/html"]
    assert "<b>" not in bundle["text/html"] and "\n" not in bundle["text/html"]
    assert bundle["text/plain"] == '[picture: x < "y" & z]'
    image = shown(picture)
    assert image.shape == (400, 800, 3) and (image[0, 0] == 255).all()  # sharp on any screen
    assert '" width="400" style' in bundle["text/html"]


def test_a_pyplot_figure_is_closed():
    plt = pytest.importorskip("matplotlib.pyplot")
    fig = plt.figure()
    plot.figure(fig, alt="nothing", caption="Nothing.")
    assert fig.number not in plt.get_fignums()


def test_plot_itself_leaves_pyplot_alone():
    import subprocess
    import sys

    code = "import sys; from ddpm_edu.show import plot; plot.axes(); assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_small_webp_of_a_curve_is_small_and_looks_the_same():
    fig, ax = plot.axes(7, 3)
    plot.curves(
        ax, np.linspace(0, 1, 200), {"a": np.linspace(0, 1, 200), "b": np.linspace(1, 0, 200) ** 2}
    )
    image = plot.pixels(fig)
    small = plot.small_webp(image)
    assert len(small) < 0.7 * len(plot.png(image, 9))
    assert (
        np.abs(np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int) - image).mean()
        < 0.5
    )


def test_small_webp_keeps_photographs_in_full_colour():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(plot.small_webp(image)))) == image).all()


def test_tile_puts_every_image_where_it_belongs():
    levels = [0, 40, 80, 120, 160, 200, 254]
    x = (torch.tensor(levels) / 127.5 - 1).reshape(7, 1, 1, 1).expand(7, 1, 5, 4)
    sheet = plot.tile(x, columns=3, gap=2)
    assert sheet.shape == (3 * 5 + 2 * 2, 3 * 4 + 2 * 2) and sheet.dtype == np.uint8
    for i in range(7):
        top, left = i // 3 * 7, i % 3 * 6
        assert (sheet[top : top + 5, left : left + 4] == levels[i]).all()
    assert (
        (sheet[5:7] == 255).all() and (sheet[:, 4:6] == 255).all() and (sheet[14:, 6:] == 255).all()
    )


def test_tile_colour_and_clipping():
    x = np.zeros((2, 3, 4, 4))
    x[1, 0], x[1, 1], x[1, 2] = 9, -9, 1
    sheet = plot.tile(x)
    assert sheet.shape == (4, 9, 3)
    assert tuple(sheet[0, 0]) == (128, 128, 128) and tuple(sheet[0, 8]) == (255, 0, 255)


@pytest.mark.parametrize("shape", [(3, 28, 28), (2, 2, 8, 8), (0, 1, 8, 8)])
def test_tile_refuses_other_shapes(shape):
    with pytest.raises(ShapeError, match="expected"):
        plot.tile(np.zeros(shape))


def test_tile_refuses_no_columns():
    with pytest.raises(OptionError, match="columns is 0"):
        plot.tile(np.zeros((2, 1, 4, 4)), 0)


def test_image_grid_shows_the_pixels_sharp():
    x = np.random.default_rng(0).uniform(-1, 1, (6, 1, 8, 8))
    image = shown(plot.image_grid(x, columns=3, zoom=4, alt="noise", caption="Noise."))
    assert (image[::8, ::8, 0] == plot.tile(x, 3, gap=2)).all()  # two stored pixels a screen pixel
    assert (image == np.repeat(np.repeat(image[::8, ::8], 8, 0), 8, 1)).all()


@pytest.mark.parametrize(
    "count, columns, size, labels, wide",
    [
        (10, 10, 28, None, 745),
        (10, 10, 28, ["row"], 700),
        (3, 3, 64, None, 784),
        (1, 1, 28, None, 224),
    ],
)
def test_a_grid_fills_the_page_unless_it_is_tiny(count, columns, size, labels, wide):
    x = np.zeros((count, 1, size, size))
    picture = plot.image_grid(x, columns=columns, row_labels=labels, alt="a", caption="c")
    assert wide <= picture.width <= 800 and shown(picture).shape[1] // 2 == picture.width


def test_long_labels_shrink_until_they_fit_and_formulas_are_measured_as_set():
    x = -np.ones((4, 1, 30, 30))
    names = ["an apple that is green", "b", "c", "d"]
    picture = plot.image_grid(x, labels=names, alt="a", caption="c")
    image = shown(picture)
    assert picture.width <= 800
    above = image[:30].min(axis=(0, 2)) < 128  # columns of pixels with type in them
    first, second = np.flatnonzero(np.diff(above.astype(int)) == 1)[[0, -1]]
    assert above.sum() < image.shape[1] / 2 and first > 0 and second > image.shape[1] * 3 // 4
    assert plot.text_width(r"$\bar\alpha_t$") < plot.text_width("alpha_bar") / 2


def test_labels_leave_the_pixels_as_they_are():
    x = np.random.default_rng(0).uniform(-1, 1, (6, 3, 8, 8))
    image = shown(
        plot.image_grid(
            x,
            columns=3,
            zoom=4,
            row_labels=["x_t", "x_0"],
            column_labels="abc",
            alt="noise",
            caption="Noise.",
        )
    )
    sheet = plot.enlarge(plot.tile(x, 3, gap=2), 8)
    assert (image[-sheet.shape[0] :, -sheet.shape[1] :] == sheet).all()
    assert (image[: -sheet.shape[0]] < 128).any() and (image[:, : -sheet.shape[1]] < 128).any(), (
        "the texts are missing"
    )


def test_labels_must_be_one_each():
    for name in "labels", "row_labels", "column_labels":
        with pytest.raises(ShapeError, match=f"{name} has 9 texts"):
            plot.image_grid(
                np.zeros((6, 1, 8, 8)), columns=3, alt="a", caption="c", **{name: "123456789"}
            )


SCORES = [
    {"sampler": "DDIM", "right": 0.98, "Frechet": 0.41, "steps": 10},
    {"sampler": "<Heun>", "right": 1.0, "Frechet": 0.5, "steps": 10},
]


def test_a_table_has_its_best_in_bold_and_its_numbers_formatted():
    table = plot.table(
        SCORES,
        caption="-1 %.",
        formats={"right": ".0%"},
        best={"right": max, "Frechet": min, "steps": min},
    )
    page, plain = (table._repr_mimebundle_()[kind] for kind in ("text/html", "text/plain"))
    assert table.bold == {(1, 1), (0, 2), (0, 3), (1, 3)}
    assert re.findall("<b>(.*?)</b>", page) == ["0.41", "10", "100\xa0%", "10"]
    assert "&lt;Heun&gt;" in page and "\N{MINUS SIGN}1\xa0%." in page
    assert plain.splitlines()[1].split() == ["DDIM", "98%", "0.41", "10"]


def test_a_table_refuses_what_does_not_fit():
    for rows in [], [{"a": 1}, {"b": 1}]:
        with pytest.raises(OptionError, match="^rows"):
            plot.table(rows, caption="c")
    with pytest.raises(OptionError, match="^best names loss"):
        plot.table(SCORES, caption="c", best={"loss": min})
    with pytest.raises(OptionError, match="caption is empty"):
        plot.table(SCORES, caption="")


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("from -1.5 to 3%", "from −1.5 to 3\xa0%"),
        ("[-1, 1] and 10^-3", "[−1, 1] and 10^−3"),
        ("2-3 digits, x-1, SD-1, 2306-05", "2-3 digits, x-1, SD-1, 2306-05"),
    ],
)
def test_captions_have_real_minus_signs_and_a_space_before_per_cent(text, wanted):
    assert plot.typeset(text) == wanted


def test_running_mean_is_exact_for_a_constant_and_for_the_formula():
    assert np.allclose(plot.running_mean([3.0] * 20, 0.9), 3, rtol=0, atol=1e-12)
    values = np.random.default_rng(0).normal(size=30)
    weights = 0.8 ** np.arange(29, -1, -1)
    assert np.isclose(plot.running_mean(values, 0.8)[-1], (weights * values).sum() / weights.sum())


def test_loss_curve():
    fig, ax = plot.axes()
    healthy, broken = plot.loss_curve(
        ax, {"healthy": [4, 2, 1], "broken": [4, 4, 4]}, every=10, smooth=0
    )
    assert list(healthy.get_xdata()) == [10, 20, 30] and list(healthy.get_ydata()) == [4, 2, 1]
    assert ax.get_yscale() == "log" and {t.get_text() for t in ax.texts} == {"healthy", "broken"}
    for losses in [], {}, {"empty": []}:
        with pytest.raises(OptionError, match="losses is empty"):
            plot.loss_curve(ax, losses)
    with pytest.raises(OptionError, match="smooth is 1"):
        plot.loss_curve(ax, [1], smooth=1)


def test_plane():
    fig, ax = plot.axes(3, 3)
    dots = plot.plane(ax, [[0, 0], [1, 2]], limits=(-4, 4))
    assert ax.get_xlim() == ax.get_ylim() == (-4, 4) and dots.get_offsets().tolist() == [
        [0, 0],
        [1, 2],
    ]
    with pytest.raises(ShapeError, match=r"needs \(n, 2\)"):
        plot.plane(ax, [1, 2, 3])
