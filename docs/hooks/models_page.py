"""Writes guides/models.md: its template, with the table of each model in tests/programs.py."""

import re
import sys
from pathlib import Path

from egd_optax import infer_axes
from egd_optax._decisions import LEGEND

HERE = Path(__file__).parent
PAGE = HERE.parent / "guides" / "models.md"
sys.path.insert(0, str(HERE.parents[1] / "tests"))


def page() -> str:
    """Return the page."""
    template = (HERE / "models_page.template").read_text(encoding="utf-8")
    return re.sub(r"^\{(.+)\}$", lambda name: _table(name[1]), template, flags=re.M)


def _table(name: str) -> str:
    """Return the table of a model as it is printed, without the legend."""
    from programs import PROGRAMS

    params, loss, examples, _ = PROGRAMS[name]()
    return str(infer_axes(params, loss, *examples)).replace(LEGEND, "").rstrip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
