"""Paths of leaves, and masks by pattern."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from egd_optax import matching
from egd_optax._selection import leaves_by_path, selected_paths

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


def test_a_tree_of_bools_may_have_nnx_variables_where_the_parameters_have_none():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    bare = nnx.to_pure_dict(state)
    masks = [jax.tree.map(lambda leaf: leaf.ndim == 2, tree) for tree in (state, bare)]
    for tree in (state, bare):
        assert [selected_paths(tree, mask) for mask in masks] == [{"kernel"}] * 2


class Attention(NamedTuple):
    query: Any
    key: Any
    value: Any


def test_a_field_called_value_keeps_its_name_and_boxes_have_none():
    model = nnx.Dict(attention=nnx.Param(Attention(1.0, 2.0, 3.0)))
    paths = ["attention/query", "attention/key", "attention/value"]
    boxed = nn.Partitioned(Attention(1.0, 2.0, 3.0), ("x",))
    for tree in (Attention(1.0, 2.0, 3.0), boxed):
        assert list(leaves_by_path({"attention": tree})) == paths
    assert list(leaves_by_path(nnx.state(model))) == paths
    assert matching("value$")({"attention": boxed})["attention"].value == (False, False, True)


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="Two leaves have the path 'a/b'"):
        leaves_by_path({"a": {"b": 1}, "a/b": 2})
