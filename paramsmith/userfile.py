"""Functions of a Python file that the user names: `file.py:function`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

from paramsmith.errors import Failed, InvalidInput, ParamsmithError, printable


def named_function(reference: str, what: str) -> Callable[..., object]:
    """The function that `file.py:function` names; `what` it should be says InvalidInput where it names none."""
    path, colon, name = reference.rpartition(":")
    if not colon or not path or not name.isidentifier():
        raise InvalidInput(f"{printable(reference)!r} is no {what}", "write it as file.py:function")
    return load_function(Path(path), name)


def load_function(path: Path, name: str) -> Callable[..., object]:
    """A function of a Python file. InvalidInput when either is not there, Failed when the file raises."""
    if not os.path.isfile(path):
        raise InvalidInput(f"{printable(path)}: does not exist", "a Python file and a function in it: file.py:name")
    whole = path.resolve()
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"_paramsmith_user_{digest}", path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{printable(path)}: is no Python file", "write it as file.py:name")
    module = importlib.util.module_from_spec(spec)
    # as for a script: dataclasses and pickle look the module up, and it may import its neighbours
    sys.modules[module.__name__] = module
    if str(whole.parent) not in sys.path:
        sys.path.append(str(whole.parent))
    call_user(spec.loader.exec_module, str(path), module)
    found: object = getattr(module, name, None)
    if not callable(found):
        raise InvalidInput(f"{printable(path)}: has no function {printable(name)!r}", "write it as file.py:name")
    return found


def call_user(function: Callable[..., object], where: str, *arguments: object) -> object:
    """Call somebody else's code; Failed names it, whatever it raises."""
    try:
        return function(*arguments)
    except ParamsmithError:
        raise
    except (Exception, SystemExit) as problem:  # their code may fail in any way
        told = printable(f"{type(problem).__name__}: {problem}".partition("\n")[0], 300)
        fact = f"{printable(where)} raised {told}"
        raise Failed(fact, "mend it there; PARAMSMITH_DEBUG=1 shows the trace") from problem
