"""Packages that only some features need, and which extras of gptft install."""

from importlib.util import find_spec

from task_formats import UsageError


def require_package(
    name: str, extra: str, subject: str, *, where: str = "", otherwise: str = ""
) -> None:
    """Raises UsageError if an optional package is not installed.

    Args:
        name: The package as it is imported.
        extra: The extra that installs it.
        subject: What needs it.
        where: The setting or file that asks for it.
        otherwise: What the user can do instead of installing it.
    """
    if find_spec(name) is None:
        cure = f"pip install 'gptft[{extra}]'" + (f", or {otherwise}" if otherwise else "")
        raise UsageError(f"{subject} needs {name}, which is not installed", where=where, cure=cure)
