"""Plots with captions and alt text, and widgets. All notebooks."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "unet": "follow skips draw_unet",
        "plot": "axes figure curves loss_curve image_grid table",
        "widgets": "SliderPicture SliderImage Slider Choice Toggle Text Film PointFilm DragPoint "
        "UNetView Pad Compare Turner predict predictions",
    },
)
