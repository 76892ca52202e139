"""A leaf as (batch, m, n) and back."""

import numpy as np
import pytest

from egd_optax import MatrixAxes
from egd_optax._matrix_view import view_of


@pytest.mark.parametrize(
    ("axes", "subscripts", "sizes"),
    [
        (MatrixAxes(0, 1), "abcd->cdab", (20, 2, 3)),
        (MatrixAxes((2, 0), 3), "abcd->bcad", (3, 8, 5)),
        (MatrixAxes(-1, (0, -2)), "abcd->bdac", (3, 5, 8)),
    ],
)
def test_the_matrix_is_einsums_and_the_way_back_is_exact(axes, subscripts, sizes):
    leaf = np.arange(120.0).reshape(2, 3, 4, 5)
    view = view_of(0, "leaf", leaf.shape, axes)
    stack = view.to_stack(leaf)
    np.testing.assert_array_equal(stack, np.einsum(subscripts, leaf).reshape(sizes))
    np.testing.assert_array_equal(view.to_leaf(stack, like=leaf), leaf)


@pytest.mark.parametrize("axes", [(0, 3, 3), ((0, 1), (3, 2), 2), ((2, 1), 3, 6)])
def test_groups_are_equal_parts_of_the_columns_side_by_side(axes):
    leaf = np.arange(144.0).reshape(2, 3, 4, 6)
    rows, columns, groups = axes
    view = view_of(0, "leaf", leaf.shape, MatrixAxes(rows, columns, groups))
    whole = view_of(0, "leaf", leaf.shape, MatrixAxes(rows, columns)).to_stack(leaf)
    parts = [part for matrix in whole for part in np.split(matrix, groups, axis=1)]
    stack = view.to_stack(leaf)
    assert stack.shape == (view.batch, view.m, view.n)
    np.testing.assert_array_equal(stack, parts)
    np.testing.assert_array_equal(view.to_leaf(stack, like=leaf), leaf)


def test_groups_of_another_number_name_the_leaf():
    with pytest.raises(ValueError, match=r"'a/kernel'.* its 3 columns are not 2 equal parts"):
        view_of(0, "a/kernel", (2, 3), MatrixAxes(0, 1, groups=2))
    for groups in (0, 1.5, "3", True):
        with pytest.raises(ValueError, match="groups must be an integer of at least 1"):
            MatrixAxes(0, 1, groups=groups)


@pytest.mark.parametrize(
    ("rows", "columns"), [((), 0), (0, ()), (0, 0), ((0, 1), 1), ("a", 1), (False, True), (0.0, 1)]
)
def test_matrix_axes_refuses_what_is_no_axes(rows, columns):
    with pytest.raises(ValueError, match="none twice"):
        MatrixAxes(rows, columns)


@pytest.mark.parametrize("axes", [MatrixAxes(0, 5), MatrixAxes(0, -3), MatrixAxes(-3, 1)])
def test_axes_that_do_not_fit_name_the_leaf(axes):
    with pytest.raises(ValueError, match=r"do not fit leaf 'a/kernel' of shape \(2, 3\)"):
        view_of(0, "a/kernel", (2, 3), axes)


def test_lists_and_numpy_s_integers_are_welcome_and_hash():
    assert hash(MatrixAxes([0, 1], [2])) == hash(MatrixAxes((0, 1), (2,)))
    axes = MatrixAxes(np.int64(0), [np.int32(1)], groups=np.int64(3))
    assert repr(axes) == "MatrixAxes(rows=0, columns=1, groups=3)"
