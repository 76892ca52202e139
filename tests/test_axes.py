"""All forms of `axes`, the same for `egd`, `scale_by_egd`, `infer_axes` and the monitor."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import normal

from egd_optax import MatrixAxes, diagnostics, egd, infer_axes, scale_by_egd
from egd_optax._axes import literal_axes
from egd_optax._matrix_view import view_of
from egd_optax._selection import leaves_by_path

IN_OUT, OUT_IN = MatrixAxes(0, 1), MatrixAxes(1, 0)
PARAMS = normal(
    {"a": {"kernel": (2, 3), "kernel_b": (2, 3), "bias": (3,)}, "b": [(4, 2, 3), (2, 5)]}
)
STACK = {"b/0": MatrixAxes(-2, -1)}
NO_A = {"a/kernel": None, "a/kernel_b": None}


def matrices(axes):
    return {leaf.path: leaf.axes for leaf in literal_axes(PARAMS, axes).leaves}


def orders(axes):
    """Order of each leaf's axes: batch, rows, columns."""
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(PARAMS).items()}
    return {path: v and view_of(0, path, shapes[path], v).order for path, v in axes.items()}


@pytest.mark.parametrize(
    ("axes", "differs"),
    [
        (STACK, {}),
        ({**STACK, "a": OUT_IN}, {"a/kernel": OUT_IN, "a/kernel_b": OUT_IN}),  # found anywhere
        ({**STACK, "a/kernel": OUT_IN}, {"a/kernel": OUT_IN}),  # a whole path: that leaf alone
        ({**STACK, "a/kern": OUT_IN, "a/kernel": None}, {"a/kernel": None, "a/kernel_b": OUT_IN}),
        ({**STACK, "b/": OUT_IN, "b/1": None}, {"b/0": OUT_IN, "b/1": None}),  # the last one wins
        ({"b/1": None, **STACK, "b/": OUT_IN}, {"b/0": OUT_IN, "b/1": OUT_IN}),
        ({"b": [STACK["b/0"], OUT_IN], "a": None}, NO_A | {"b/1": OUT_IN}),  # a prefix
        ({"a": {"kernel": OUT_IN}, "b": STACK["b/0"]}, {"a/kernel": OUT_IN}),
        ({"a": {"kernel": OUT_IN, "bias": None}, "b": STACK["b/0"]}, {"a/kernel": OUT_IN}),
        (lambda params: {**STACK, "a/kernel": OUT_IN}, {"a/kernel": OUT_IN}),
        (lambda params: MatrixAxes(-2, -1), {}),
        (
            lambda params: infer_axes(params, overrides={**STACK, "a/kernel": OUT_IN}),
            {"a/kernel": OUT_IN},
        ),
        (infer_axes(PARAMS, overrides={**STACK, "b/1": None}), {"b/1": None}),
        ({**infer_axes(PARAMS, overrides=STACK), "a/kernel": OUT_IN}, {"a/kernel": OUT_IN}),
    ],
)
def test_forms_of_axes(axes, differs):
    expected = {
        "a/kernel": IN_OUT,
        "a/kernel_b": IN_OUT,
        "b/0": STACK["b/0"],
        "b/1": IN_OUT,
    } | differs
    assert orders(matrices(axes)) == orders(expected)


def test_optax_s_dimension_numbers_are_taken_wherever_matrix_axes_are():
    muon = getattr(optax.contrib, "MuonDimensionNumbers", None)
    if muon is None:
        pytest.skip("this Optax has none")
    turned, stack = muon(1, 0), muon(-2, -1)
    assert matrices({"b/0": stack, "a": turned})["a/kernel"] == OUT_IN
    assert set(matrices(stack).values()) == {MatrixAxes(-2, -1)}
    assert matrices({"a": turned, "b": stack})["b/1"] == MatrixAxes(-2, -1)
    assert matrices(lambda params: {"a": None, "b": stack})["a/kernel"] is None
    assert infer_axes(PARAMS, overrides={"a": turned})["a/kernel"] == OUT_IN
    egd(0.1, axes={"b/0": stack}).init(PARAMS)
    diagnostics.spectrum_monitor(axes={"b/0": stack}).init(PARAMS)


TAKERS = {
    "egd": lambda axes: egd(0.1, axes=axes).init,
    "chain": lambda axes: scale_by_egd(axes=axes).init,
    "monitor": lambda axes: diagnostics.spectrum_monitor(axes=axes).init,
    "infer": lambda axes: lambda params: infer_axes(params, overrides=axes),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    ("axes", "error", "says"),
    [
        ({"kernle": None}, ValueError, "'kernle' matches no leaf of these: 'a/bias', 'a/kernel'"),
        ({"(": IN_OUT}, ValueError, "is no regular expression"),
        ({"a": (0, 1)}, TypeError, "axes must be None, a MatrixAxes"),
        ({"b/0": MatrixAxes(0, 3)}, ValueError, "do not fit leaf 'b/0'"),
        ({"b": [IN_OUT, IN_OUT, IN_OUT]}, ValueError, "pattern in axes 'b/2' matches no"),
        (lambda params: "kernel", TypeError, "axes must be None"),
        (jnp.ones((400, 400)), TypeError, "axes must be"),
    ],
)
def test_what_does_not_fit_is_refused_everywhere_alike(taker, axes, error, says):
    with pytest.raises(error, match=says) as refusal:
        TAKERS[taker](axes)(PARAMS)
    assert len(str(refusal.value)) < 500


def test_a_subtree_s_name_is_no_prefix_of_another():
    params = normal({name: {"kernel": (3, 4)} for name in ("a", "ab", "b")})
    found = infer_axes(params, overrides={"a": None, "b": {"kernel": OUT_IN}})
    assert found == {"a/kernel": None, "ab/kernel": IN_OUT, "b/kernel": OUT_IN}
    assert infer_axes(params, overrides={"a": None, "b": OUT_IN}) == found


@pytest.mark.parametrize("mask", [False, {"kernel": False}], ids=["subtree", "leaf"])
@pytest.mark.parametrize("key", ["a", "a/kernel"])
def test_the_name_of_what_is_masked_is_no_pattern(mask, key):
    """It would be found in "ba/kernel"."""
    params = normal({name: {"kernel": (3, 4)} for name in ("a", "ba")})
    whiten = optax.masked(scale_by_egd(axes={key: None}), {"a": mask, "ba": True})
    plan = diagnostics.whitening_plan(whiten, params)
    assert plan["ba/kernel"] == IN_OUT


def test_a_masked_part_need_not_hold_every_pattern():
    axes = {**STACK, "a": OUT_IN}
    for make in (lambda: scale_by_egd(axes=axes), lambda: egd(0.1, axes=axes)):
        optax.masked(make(), {"a": True, "b": False}).init(PARAMS)
    more = infer_axes({**PARAMS, "frozen": PARAMS["a"]}, overrides=STACK)
    scale_by_egd(axes=more).init(PARAMS)  # decisions about more leaves than there are


def test_a_tree_of_axes_may_have_integers_for_keys():
    params = {0: jnp.ones((2, 3)), 1: jnp.ones((3, 3))}
    assert infer_axes(params, overrides={0: OUT_IN, 1: None}) == {"0": OUT_IN, "1": None}


def test_three_axes_need_a_word():
    with pytest.raises(ValueError, match=r"'b/0' has shape \(4, 2, 3\).*axes=infer_axes"):
        scale_by_egd().init(PARAMS)


def test_inferred_axes_are_a_mapping_of_what_is_known():
    inferred = infer_axes({"a": {"kernel": jnp.ones((2, 3))}, "x": jnp.ones((2, 3, 4))})
    assert inferred["a/kernel"] == IN_OUT
    assert [leaf.path for leaf in inferred.unknown] == ["x"]
    assert list(inferred) == ["a/kernel", "x"]
    assert len(inferred) == 2
    assert jax.tree.leaves(inferred) == [inferred]
    assert inferred == infer_axes({"a": {"kernel": jnp.ones((2, 3))}, "x": jnp.ones((2, 3, 4))})
    assert inferred != infer_axes({"a": {"kernel": jnp.ones((2, 3))}})
    again = infer_axes({"a": {"kernel": jnp.ones((2, 3))}, "x": jnp.ones((2, 3, 4))})
    assert len({inferred, again, infer_axes({"a": {"kernel": jnp.ones((2, 3))}})}) == 2
    for use in (lambda: {**inferred}, lambda: inferred["x"], lambda: inferred.get("x")):
        with pytest.raises(ValueError, match=r"'x' of shape \(2, 3, 4\) is unknown.*overrides="):
            use()


@pytest.mark.parametrize("make", [functools.partial(egd, 0.1), scale_by_egd])
def test_a_table_of_another_tree_is_refused(make):
    """It would name none of the leaves, and names would decide instead."""
    net = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 4))}
    inferred = infer_axes({"params": net})
    optimizer = make(axes=inferred)
    with pytest.raises(ValueError, match=r"another tree: it has no leaf 'a'.*'params/a'"):
        optimizer.init(net)
    stacked = {"params": {**net, "a": jnp.ones((5, 2, 3))}}
    with pytest.raises(ValueError, match=r"'params/a' has shape \(5, 2, 3\) here and \(2, 3\)"):
        optimizer.init(stacked)
    wider = {"params": {**net, "a": jnp.ones((4, 3))}}
    assert diagnostics.whitening_plan(optimizer, wider).leaves[0].matrix == (1, 4, 3)
