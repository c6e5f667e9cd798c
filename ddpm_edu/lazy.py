"""Names of a folder, imported when first asked for, so that `import` is quick. Notebook 00."""

from collections.abc import Callable
from importlib import import_module


def lazily(package: str, names: dict[str, str]) -> tuple[Callable, Callable]:
    """(__getattr__, __dir__) of a package: {module below it: "the names it gives"}.

    The modules count as names too.
    """
    home = {name: module for module, given in names.items() for name in given.split()}

    def get(name):
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*home, *(name for name in names if "." not in name)})
