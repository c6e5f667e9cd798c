"""Plots with captions and alt text, and widgets. All notebooks."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "plot": "axes figure curves loss_curve image_grid",
        "widgets": "SliderPicture SliderImage Slider Choice Toggle Text Film DragPoint predict "
        "predictions",
    },
)
