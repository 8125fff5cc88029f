"""Packages that not every installation has."""

from importlib import import_module
from typing import Any


def optional_package(module: str, needed: str, install: str | None = None) -> Any:
    """A module of a package that may not be there.

    Raises ImportError where it is not: `needed`, which says what needs ("videos need"), with the package and with what
    is to `install`, the package itself when None.
    """
    package = module.split(".", maxsplit=1)[0]
    try:
        import_module(package)
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:  # installed, but broken: its own error says how
            raise
        raise ImportError(
            f"{needed} the package {package}, which is not installed: pip install {install or package}"
        ) from error
