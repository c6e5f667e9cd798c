"""The class challenge: one network, N seconds, 1 to 8 evaluations, and a board. Notebook 18."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "rules": "Rules Clock network points",
        "judge": "judged processes",
        "results": "Result read write collected pictures",
        "board": "",
        "oral": "QUESTIONS",
        "entries": "",
    },
)
