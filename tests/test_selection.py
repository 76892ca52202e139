"""Paths of leaves, and masks by pattern."""

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from egd_optax import matching
from egd_optax._selection import leaves_by_path

TREE = {"a": {"kernel": 0, "bias": 1}, "b": [{"kernel": 2}, {"scale": 3}]}


def test_matching_selects_by_path():
    assert matching("kernel")(TREE) == {
        "a": {"kernel": True, "bias": False},
        "b": [{"kernel": True}, {"scale": False}],
    }
    assert matching("^b/", "bias", exclude="scale")(TREE) == {
        "a": {"kernel": False, "bias": True},
        "b": [{"kernel": True}, {"scale": False}],
    }


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: matching("kernle")(TREE), r"'kernle' matches no leaf .*'a/bias', 'a/kernel'"),
        (lambda: matching("kernel", "haed")(TREE), "'haed' matches no leaf"),
        (lambda: matching("kernel", exclude="typo")(TREE), "'typo' matches no leaf"),
        (lambda: matching("kernel", exclude="kern")(TREE), "No leaf matches"),
        (lambda: matching(), "at least one pattern"),
        (lambda: matching(["a", "b"]), "one by one"),
        (lambda: matching("("), "is no regular expression"),
    ],
)
def test_what_selects_nothing_is_an_error(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_masked_part_may_hold_no_match():
    """One of a partition's groups need not hold every pattern, nor any."""
    inner = optax.masked(optax.scale(2.0), matching("kernel"))
    whole = optax.partition({"x": inner, "y": inner}, {"a": "x", "b": "y", "c": "y"})
    params = {"a": {"kernel": jnp.ones(2)}, "b": jnp.ones(2), "c": jnp.ones(2)}
    updates, _ = whole.update(params, whole.init(params), params)
    assert updates["a"]["kernel"][0] == 2
    assert updates["b"][0] == updates["c"][0] == 1


def test_paths_are_the_same_with_nnx_variables_and_without():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    paths = ["bias", "kernel"]
    assert list(leaves_by_path(nnx.state(model, nnx.Param))) == paths
    assert list(leaves_by_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))) == paths


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="Two leaves have the path 'a/b'"):
        leaves_by_path({"a": {"b": 1}, "a/b": 2})
