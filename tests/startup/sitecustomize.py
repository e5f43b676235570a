"""Imported by every Python process that the tests start: a run draws no figures unless AVVP_TEST_FIGURES is set.

Drawing takes nine tenths of the CPU time of a run as small as the tests train. `conftest.py` installs the same in pytest
itself; the fixture `figures` turns drawing on for a test and for all processes that it starts.
"""

import importlib.util
import os
import sys
from types import ModuleType

SWITCH = "AVVP_TEST_FIGURES"
MODULE = "avvp_dist.report.pictures"


class FiguresOnRequest(ModuleType):
    """Stands in for the module whose function ``draw`` makes the figures of a run; imports the real one when it is used."""

    _real: ModuleType | None = None

    def draw(self, *arguments: object, **options: object) -> list[object]:
        """Return the real function's result, or no figures."""
        return self.__getattr__("draw_figures")(*arguments, **options) if os.environ.get(SWITCH) else []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._real is None:
            spec = importlib.util.find_spec("avvp_dist.report")
            path = os.path.join(spec.submodule_search_locations[0], MODULE.rpartition(".")[2] + ".py")
            spec = importlib.util.spec_from_file_location(f"{MODULE}_drawn", path)
            self._real = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self._real)
        return getattr(self._real, "draw" if name == "draw_figures" else name)


sys.modules.setdefault(MODULE, FiguresOnRequest(MODULE))
