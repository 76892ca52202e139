"""The worked page is what its script makes of the models now."""

import importlib
import pathlib
import sys

import jax
import programs

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "docs" / "hooks"))
models = importlib.import_module("models")


def test_the_page_of_models_is_made_by_its_script(strict):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        page = models.page()
    assert page == models.PAGE.read_text(), "run `make pages`"
    assert page.count("\nleaf ") == len(programs.PROGRAMS) == 12
