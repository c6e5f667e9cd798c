"""Names of a folder that are imported when they are first asked for, so that `import ddpm_edu` stays quick."""

from collections.abc import Callable
from importlib import import_module


def lazily(package: str, names: dict[str, str]) -> tuple[Callable, Callable]:
    """(__getattr__, __dir__) of a package: {module below it: "the names it gives"}; the modules count as names too."""
    home = {name: module for module, given in names.items() for name in given.split()}

    def get(name):
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*home, *names})
