"""Whether an optional package is installed, found out without importing it."""

import importlib.metadata
import importlib.util


def is_installed(module: str, package: str | None = None) -> bool:
    """Return whether a module can be imported, or its `package` is known to be installed. A mere folder of that name is none.

    >>> is_installed("torch"), is_installed("there.is.none")
    (True, False)
    """
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the package around it is missing
        return False
    if found is not None and found.origin is not None:
        return True
    try:
        return bool(importlib.metadata.version(package or module))
    except importlib.metadata.PackageNotFoundError:
        return False
