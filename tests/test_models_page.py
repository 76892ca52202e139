"""The worked page is what its script makes of the models now."""

import importlib
import pathlib
import re
import sys

import jax
import programs

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "docs" / "hooks"))
models_page = importlib.import_module("models_page")


def test_the_page_of_models_is_made_by_its_script(strict):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        page = models_page.page()
    kept = models_page.PAGE.read_text()
    if jax.__version_info__ < (0, 10):  # older versions name other lines of an expression
        page, kept = (re.sub(r"\.py:\d+", ".py", text) for text in (page, kept))
    assert page == kept, "run `make pages`"
    assert page.count("\nleaf ") == len(programs.PROGRAMS) == 12
