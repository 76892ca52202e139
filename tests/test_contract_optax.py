"""What Optax asks of the optimizers that others contribute to it: its own tests, on rows of egd."""

import importlib.util
import re
from unittest import mock

import jax.numpy as jnp
import pytest
from absl.testing import parameterized

from egd_optax import egd, polar

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS: list[dict] = [
    {},  # a learning rate and nothing else
    {"momentum": 0.9, "nesterov": True, "method": polar.SubspaceIteration(2)},
    {"weight_decay": 1e-4, "decay": "decoupled", "method": polar.Halley()},
]


def three_axes(dtype):
    """A target of the same kind as Optax's, with three axes and no name that explains them."""
    final = jnp.array([[[3.0, -2.0], [1.0, 4.0]], [[0.5, 1.0], [-1.0, 2.0]]], dtype)
    return jnp.zeros_like(final), final, lambda params: jnp.sum((params - final) ** 2)


def optax_contract(module):
    """The module of tests in Optax's wheel, its table of optimizers replaced by `ROWS`.

    Its decorators read the table at import, so a second copy is made under another `product`;
    targets (and ours), dtypes and checks stay Optax's own.
    """
    product = parameterized.product
    rows = tuple(
        {"opt_name": "egd", "opt_kwargs": {"learning_rate": 1e-3, **row}}
        | {"wrapper_name": None, "wrapper_kwargs": None}
        for row in ROWS
    )
    spec = importlib.util.find_spec(module)
    copy = importlib.util.module_from_spec(spec)

    def rows_product(*tables, target=(), **grid):
        more = {"target": (*target, three_axes)} if target else {}
        return product(*[rows for _ in tables], **more, **grid)

    with mock.patch.object(parameterized, "product", rows_product):
        spec.loader.exec_module(copy)
    copy._get_opt_factory = {"egd": egd}.__getitem__
    return copy


# Some of Optax's targets are one vector.
@pytest.mark.filterwarnings("ignore:egd whitens nothing here")
@pytest.mark.usefixtures("optax_promotes")
class TestContributed(optax_contract("optax.contrib._common_test").ContribTest):
    """As users compile, all optimizations on."""

    def test_the_targets_of_three_axes_are_among_them(self):
        names = [name for name in dir(self) if re.fullmatch(r"test_optimizers\d+", name)]
        assert len(names) == 5 * len(ROWS)
