"""Distil a classifier that you do not trust, without data, and escape its out-of-distribution trap.

>>> import atesc
>>> print(atesc.find_traps(teacher, size=32))
>>> print(atesc.distill(teacher, student, size=32))

A teacher and a student are plain `nn.Module`s: images in [0,1], N x C x H x W, in; logits out.
The names below are imported when they are first used, so that `import atesc` takes no time.
"""

__version__ = "0.2.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from atesc.data.tasks import load_task
    from atesc.inside.errors import AtescError
    from atesc.method.distill import distill
    from atesc.method.objectives import ATEsc, CalibratedKD, DecoyEscape, PlainKD
    from atesc.method.splitter import PGDSplitter, RadiusSplitter
    from atesc.method.traps import find_traps
    from atesc.synthesis.cmi import CMI
    from atesc.synthesis.dfq import DFQ
    from atesc.synthesis.nayer import NAYER
    from atesc.teachers.saved import load_model
    from atesc.teachers.training import train_ntl

_MODULES = {
    "data.tasks": ["load_task"],
    "inside.errors": ["AtescError"],
    "method.distill": ["distill"],
    "method.objectives": ["ATEsc", "CalibratedKD", "DecoyEscape", "PlainKD"],
    "method.splitter": ["PGDSplitter", "RadiusSplitter"],
    "method.traps": ["find_traps"],
    "synthesis.cmi": ["CMI"],
    "synthesis.dfq": ["DFQ"],
    "synthesis.nayer": ["NAYER"],
    "teachers.saved": ["load_model"],
    "teachers.training": ["train_ntl"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    "Import a name of the face when it is first used."
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'atesc' has no attribute {name!r}")
    value = getattr(import_module(f"atesc.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
