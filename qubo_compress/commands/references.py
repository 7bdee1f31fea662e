"""``module:function``: the user's own code, imported from the current folder or the Python path, and called."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from qubo_compress._internal.reader import printable
from qubo_compress.errors import OwnCodeFailed, QuboCompressError, WrongUsage, nearest

_REFERENCE = re.compile(
    r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)(?P<attributes>(?:\.[^\W\d]\w*)*)"
)


def refuse_other_than_a_reference(reference: str, where: str) -> None:
    """Raise :class:`WrongUsage` unless the text is ``module:function`` or ``module:function.attribute``."""
    if _REFERENCE.fullmatch(reference) is None:
        raise WrongUsage(
            f"{where}: {printable(reference)!r} is not module:function, such as networks:trained for the function "
            "'trained' of networks.py; module:function.attribute takes an attribute of what it returns"
        )


def called(reference: str, where: str) -> Any:
    """What a function returns that is called without arguments.

    Args:
        reference: ``"module:function"``, or ``"module:function.attribute"`` for an attribute of what it returns.
        where: the setting, for messages.

    Raises:
        WrongUsage: when there is no such module, function or attribute.
        OwnCodeFailed: when importing or calling it raised an error; the message says which, and in which line.

    Example:
        >>> called("platform:python_implementation", "--model") != ""
        True
        >>> called("platform:pyton_version", "--model")
        Traceback (most recent call last):
        qubo_compress.errors.WrongUsage: --model: platform has no 'pyton_version'; did you mean 'python_version'?
    """
    refuse_other_than_a_reference(reference, where)
    found = _REFERENCE.fullmatch(reference)
    assert found is not None  # noqa: S101 - refused above
    module = _imported(found["module"], where)
    function = _attribute(module, found["name"], found["module"], where)
    if not callable(function):
        raise WrongUsage(f"{where}: {found['name']} of {found['module']} is no function; got {type(function).__name__}")
    try:
        value = function()
    except QuboCompressError as cause:
        raise OwnCodeFailed(f"{where}: {reference} raised {_origin(cause)}") from cause
    except (Exception, SystemExit) as cause:
        raise OwnCodeFailed(f"{where}: {reference} raised {_origin(cause)}") from cause
    for name in filter(None, found["attributes"].split(".")):
        value = _attribute(value, name, f"what {reference.partition('.')[0]} returns", where)
    return value


def _imported(name: str, where: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        if cause.name is not None and (name == cause.name or name.startswith(f"{cause.name}.")):
            files = [path.stem for path in Path.cwd().glob("*.py")]
            raise WrongUsage(
                f"{where}: there is no module {name!r} in {here} or on the Python path{nearest(name, files)}"
            ) from cause
        raise OwnCodeFailed(f"{where}: importing {name} raised {_origin(cause)}") from cause
    except (Exception, SystemExit) as cause:
        raise OwnCodeFailed(f"{where}: importing {name} raised {_origin(cause)}") from cause


def _attribute(owner: Any, name: str, called_as: str, where: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as cause:
        known = [known for known in dir(owner) if not known.startswith("_")]
        raise WrongUsage(f"{where}: {called_as} has no {name!r}{nearest(name, known)}") from cause


def _origin(cause: BaseException) -> str:
    """The error in one line, with the last place in code that is not an installed package's."""
    said = f"{type(cause).__name__}: {printable(cause)}"
    if isinstance(cause, SyntaxError) and cause.filename:
        return f"{said} ({cause.filename}, line {cause.lineno})"
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if not frame.filename.startswith("<")]
    own = [frame for frame in frames if "site-packages" not in frame.filename and _is_users(frame.filename)]
    place = (own or frames)[-1:]
    return f"{said} ({place[0].filename}, line {place[0].lineno})" if place else said


def _is_users(filename: str) -> bool:
    ours, standard = Path(__file__).parents[1], Path(traceback.__file__).parent
    return not any(parent in Path(filename).parents for parent in (ours, standard))
