"""On a mesh each matrix is whitened once, by one device, and little is sent."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.programs import Program
from helpers import gradient, polar64
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from egd_optax import MatrixAxes, diagnostics, egd, polar, scale_by_egd

pytestmark = pytest.mark.usefixtures("quick_compilation")
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
LAYOUTS = {
    "rows": P(("a", "b"), None),
    "columns": P(None, ("a", "b")),
    "both": P("b", "a"),
    "one axis": P("a", None),
    "replicated": P(),
}
MEBIBYTE = 2**20


def mesh_of(kind="auto", **sizes):
    sizes = sizes or {"a": 4, "b": 2}
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(KINDS[kind],) * len(sizes)
    )


def compiled(optimizer, leaves, mesh=None):
    """Return the program of an update, of shapes with shardings."""
    with jax.set_mesh(mesh or mesh_of()):
        state = optimizer.init(leaves)
        return jax.jit(optimizer.update).lower(leaves, state).compile()


def compiled_alone(optimizer, leaves):
    return jax.jit(optimizer.update).lower(leaves, optimizer.init(leaves)).compile()


def shapes(count, spec, mesh, dtype="float32"):
    sharding = NamedSharding(mesh, spec)
    return [jax.ShapeDtypeStruct((256, 1024), dtype, sharding=sharding) for _ in range(count)]


SLOW = pytest.mark.slow
CASES = [
    ("rows", 24, polar.NewtonSchulz(steps=5), "auto"),
    ("columns", 24, polar.NewtonSchulz(steps=5), "explicit"),
    ("both", 24, polar.NewtonSchulz(steps=2), "auto"),
    ("one axis", 10, polar.NewtonSchulz(steps=5), "auto"),
    ("replicated", 10, polar.NewtonSchulz(steps=5), "auto"),
    *(
        pytest.param(layout, count, method, kind, marks=SLOW)
        for layout in LAYOUTS
        for count in (24, 10)
        for method in (polar.Auto(), polar.SVD(), polar.NewtonSchulz(), polar.Randomized(16))
        for kind in KINDS
        if (layout, kind) not in {("replicated", "explicit"), ("one axis", "explicit")}
    ),
]


@pytest.mark.parametrize(("layout", "count", "method", "kind"), CASES)
def test_each_matrix_is_whitened_once(layout, count, method, kind):
    """A device's work is its share, the last one filled up; what it receives, twice its share.

    Where an axis of the mesh does not cut the leaves, they are gathered along it at the end.
    """
    mesh = mesh_of(kind)
    optimizer = scale_by_egd(method, mesh_axes=("a", "b") if kind == "auto" else None)
    executable = compiled(optimizer, shapes(count, LAYOUTS[layout], mesh), mesh)
    program = Program(executable.as_text())
    one = jax.ShapeDtypeStruct((256, 1024), "float32")
    alone = Program(jax.jit(lambda x: polar.polar_factor(x, method)).lower(one).compile().as_text())
    share = -(-count // 8)
    assert program.product_flops <= 1.01 * share * alone.product_flops
    large = [one for one in program.collectives if one.size > 1000]  # a sketch's count is sent, too
    assert len(large) <= {"replicated": 1, "one axis": 3}.get(layout, 2)
    whole = {"replicated": 8, "one axis": 2 + 8 / 4}.get(layout, 2)
    assert program.received <= 1.01 * whole * share * MEBIBYTE
    part = {"replicated": count, "one axis": count / 4}.get(layout, count / 8)
    assert executable.memory_analysis().temp_size_in_bytes <= (4.1 * share + part) * MEBIBYTE


def test_exact_over_one_axis_that_cuts_rows():
    """An eighth of one device's work; a device's share to and fro; the gradients' memory reused."""
    mesh = mesh_of(d=8)
    leaves = shapes(24, P("d", None), mesh)
    optimizer = scale_by_egd(mesh_axes="d")
    with jax.set_mesh(mesh):
        update = jax.jit(lambda leaves: optimizer.update(leaves, optimizer.init(leaves))[0])
        donated = jax.jit(update, donate_argnums=0).lower(leaves).compile()
    alone = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    whole = Program(compiled_alone(scale_by_egd(), alone).as_text())
    program = Program(donated.as_text())
    assert program.product_flops <= 1.2 / 8 * whole.product_flops
    assert [one.kind for one in program.collectives] == ["all-to-all"] * 2
    assert program.received <= 2.5 * 3 * MEBIBYTE
    assert donated.memory_analysis().alias_size_in_bytes == 3 * MEBIBYTE


def test_squares_take_more_memory_by_those_at_work():
    """Twelve times the two that a device works on at once, beside its share and its part."""
    mesh = mesh_of(d=8)
    layout = NamedSharding(mesh, P("d", None))
    leaves = [jax.ShapeDtypeStruct((512, 512), "float32", sharding=layout)] * 24
    memory = compiled(scale_by_egd(mesh_axes="d"), leaves, mesh).memory_analysis()
    assert memory.temp_size_in_bytes <= (4 * 3 + 3 + 12 * 2) * MEBIBYTE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_values_of_other_dtypes_arrive(dtype):
    mesh = mesh_of()
    leaves = placed(mesh, dtype)
    method = polar.NewtonSchulz(steps=2)
    spread = scale_by_egd(method, axes=MatrixAxes(-2, -1), mesh_axes=("a", "b"))
    plain = scale_by_egd(method, axes=MatrixAxes(-2, -1))
    with jax.set_mesh(mesh):
        updates, _ = jax.jit(spread.update)(leaves, spread.init(leaves))
    alone = jax.device_put(jax.device_get(leaves), jax.devices()[0])
    expected, _ = plain.update(alone, plain.init(alone))
    for name, update in updates.items():  # round-off of the last digit of its dtype
        assert update.dtype == dtype
        close = max(float(jnp.finfo(dtype).eps), 1e-5)
        np.testing.assert_allclose(
            np.asarray(update, "complex64"), np.asarray(expected[name], "complex64"), atol=close
        )


def test_short_leaves_travel_short():
    mesh = mesh_of()
    sizes = [
        Program(
            compiled(
                scale_by_egd(polar.NewtonSchulz(steps=2), mesh_axes=("a", "b")),
                shapes(8, LAYOUTS["both"], mesh, dtype),
                mesh,
            ).as_text()
        ).received
        for dtype in ("bfloat16", "float32")
    ]
    assert 2 * sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("shape", "spec", "axes", "groups"),
    [
        ((8, 64, 96), P("expert", "data"), MatrixAxes(1, 2), "0,1},{2,3},{4,5},{6,7"),
        ((4, 8, 64, 96), P(None, "expert", "data"), MatrixAxes(2, 3), "0,1},{2,3},{4,5},{6,7"),
        ((3, 3, 32, 64), P(None, None, ("expert", "data")), MatrixAxes((0, 1, 2), 3), None),
        ((64, 8, 16), P(None, "data", "expert"), MatrixAxes(0, (1, 2)), None),
        ((64, 288), P(("expert", "data"), None), MatrixAxes(0, 1, groups=3), None),
    ],
    ids=["experts", "layers of experts", "input channels", "heads", "fused rows"],
)
def test_each_axis_may_be_cut(shape, spec, axes, groups):
    """Sent are a device's shares, to and fro; an axis that cuts a batch axis is not crossed."""
    mesh = mesh_of(expert=4, data=2)
    sharding = NamedSharding(mesh, spec)
    leaves = [jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)] * 8
    method = polar.NewtonSchulz(steps=2)
    optimizer = scale_by_egd(method, axes=axes, mesh_axes=("expert", "data"), mesh_cut="stack")
    executable = compiled(optimizer, leaves, mesh)
    found = set(re.findall(r"replica_groups=\{\{(\S+)\}\},", executable.as_text()))
    assert found == {groups or "0,1,2,3,4,5,6,7"}
    program = Program(executable.as_text())
    assert [one.kind for one in program.collectives] == ["all-to-all"] * 2
    assert program.received == 2 * math.prod(shape) * 4  # an eighth of eight leaves, twice
    draw = np.random.default_rng(0).standard_normal
    values = [draw(shape, dtype=np.float32) for _ in leaves]
    plain = scale_by_egd(method, axes=axes)
    updates, _ = executable(jax.device_put(values, sharding), optimizer.init(values))
    expected, _ = plain.update(values, plain.init(values))
    chex.assert_trees_all_close(jax.device_get(updates), expected, atol=1e-5)


LONG = polar.NewtonSchulz("three_steps")
METHODS = [
    polar.SVD(),
    polar.Halley(),
    polar.NewtonSchulz(),
    polar.Randomized(8),
    polar.SubspaceIteration(8),
]


def placed(mesh, dtype=np.float32):
    """Return leaves of many layouts, some of which share a stack, and their axes."""
    a, b = mesh.axis_names
    draw = np.random.default_rng(0).standard_normal
    layouts = {
        "rows": ((16, 40), P((a, b), None)),
        "columns": ((16, 40), P(None, (b, a))),
        "both": ((16, 40), P(b, a)),
        "whole": ((16, 40), P()),
        "tall": ((40, 16), P(a, b)),
        "odd": ((15, 41), P()),
        "experts": ((4, 16, 40), P(a, b, None)),
        "layers": ((3, 16, 40), P(None, None, (a, b))),
        "layers of experts": ((3, 4, 16, 40), P(None, a, None, b)),
        "vector": ((16,), P(b)),
    }
    return {
        name: jax.device_put(draw(shape).astype(dtype), NamedSharding(mesh, spec))
        for name, (shape, spec) in layouts.items()
    }


@pytest.mark.parametrize(
    ("method", "kind", "cut"),
    [
        (polar.Halley(), "auto", "matrix"),
        (polar.SubspaceIteration(8), "auto", None),
        (LONG, "explicit", None),
        pytest.param(LONG, "auto", "matrix", marks=SLOW),
        *(
            pytest.param(method, kind, cut, marks=SLOW)
            for method in METHODS
            for kind in KINDS
            for cut in (None, "stack", "matrix")
        ),
    ],
    ids=str,
)
def test_spread_equals_plain(method, kind, cut):
    """Two steps: values to 1e-5, and shapes, dtypes and layouts of updates and states alike.

    Sums in another order change long steps more: their slope multiplies round-off.
    """
    close = 1e-3 if method == LONG and cut == "matrix" else 1e-5
    mesh = mesh_of(kind)
    names = ("a", "b") if kind == "auto" else None
    leaves = placed(mesh)
    if cut == "matrix":  # its longer side is cut in eight
        del leaves["odd"]
    plain = scale_by_egd(method, axes=MatrixAxes(-2, -1))
    spread = scale_by_egd(method, axes=MatrixAxes(-2, -1), mesh_axes=names, mesh_cut=cut)
    with jax.set_mesh(mesh):
        state = jax.device_put(spread.init(leaves), NamedSharding(mesh, P()))
        step = jax.jit(spread.update)
        first, after = step(leaves, state)
        second, last = step(jax.tree.map(lambda x: -x, leaves), after)
    alone = jax.device_put(jax.device_get(leaves), jax.devices()[0])
    expected, middle = plain.update(alone, plain.init(alone))
    chex.assert_trees_all_close(jax.device_get(first), expected, atol=close)
    expected, end = plain.update(jax.tree.map(lambda x: -x, alone), middle)
    chex.assert_trees_all_close(jax.device_get(second), expected, atol=close)
    if cut != "matrix":  # sums in another order may turn the sign of a basis vector
        chex.assert_trees_all_close(jax.device_get(last), jax.device_get(end), atol=1e-5)
    for name, leaf in leaves.items():
        assert second[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), name
    for before, now in zip(*map(jax.tree.leaves, (state, last)), strict=True):
        assert (now.shape, now.dtype) == (before.shape, before.dtype)
        assert now.sharding.is_equivalent_to(before.sharding, now.ndim)


def test_transposes_share_a_stack_and_functions_keep_their_shapes():
    leaves = [jnp.ones((3, 5)), jnp.ones((5, 3))]
    optimizer = scale_by_egd(polar.SVD())
    text = jax.jit(optimizer.update).lower(leaves, optimizer.init(leaves)).as_text()
    assert len(set(re.findall(r"func.func private @(_scaled\w*)", text))) == 1
    seen = []
    scale_by_egd(lambda x: seen.append(x.shape) or x).update(leaves, scale_by_egd().init(leaves))
    assert {*seen} == {(3, 5), (5, 3)}


@pytest.mark.parametrize("sizes", [{"a": 4, "b": 2}, {"a": 8, "b": 1}], ids=str)
def test_a_share_is_of_all_layouts(sizes):
    """Both kernels of a feed-forward layer, cut by rows: no layout is filled up by itself."""
    mesh = mesh_of(**sizes)
    by_rows = NamedSharding(mesh, P(("b", "a"), None))
    kernels = {"up": (64, 256), "down": (256, 64)}
    leaves = {
        f"{name}{layer}": jax.ShapeDtypeStruct(shape, "float32", sharding=by_rows)
        for name, shape in kernels.items()
        for layer in range(12)
    }
    method = polar.NewtonSchulz(steps=2)
    optimizer = scale_by_egd(method, mesh_axes=("a", "b"))
    program = compiled(optimizer, leaves, mesh)
    read = Program(program.as_text())
    one = jax.ShapeDtypeStruct((64, 256), "float32")
    alone = Program(jax.jit(lambda x: polar.polar_factor(x, method)).lower(one).compile().as_text())
    assert read.product_flops <= 1.01 * 3 * alone.product_flops
    assert [one.kind for one in read.collectives] == ["all-to-all"] * 2
    values = {name: gradient(leaf.shape, seed) for seed, (name, leaf) in enumerate(leaves.items())}
    state = optimizer.init(values)
    updates, _ = program(jax.device_put(values, by_rows), state)
    chex.assert_trees_all_close(updates, scale_by_egd(method).update(values, state)[0], atol=1e-5)


@pytest.mark.parametrize(("count", "all_reduces"), [(2, True), (3, False)])
def test_few_matrices_are_cut_up(count, all_reduces):
    """The rule: where a device then has less to do, 2 (1024 / 8 + 512) against 1024 + 512."""
    mesh = mesh_of()
    optimizer = scale_by_egd(polar.NewtonSchulz(steps=2), mesh_axes=("a", "b"))
    text = compiled(optimizer, shapes(count, LAYOUTS["columns"], mesh), mesh).as_text()
    assert ("all-reduce(" in text) == all_reduces
    assert ("all-to-all(" in text) != all_reduces


def test_a_large_matrix_is_cut_up():
    mesh = mesh_of()
    leaf = jax.ShapeDtypeStruct((2**15, 2**16), "float32", sharding=NamedSharding(mesh, P("a")))
    optimizer = scale_by_egd(polar.NewtonSchulz(steps=2), mesh_axes=("a", "b"))
    text = compiled(optimizer, [leaf] * 8, mesh).as_text()
    assert "all-reduce(" in text


def test_experts_are_not_cut_up():
    """Two long matrices on eight devices: the rule would cut them, and gather the experts."""
    mesh = mesh_of(a=2, b=4)
    sharding = NamedSharding(mesh, P("a", "b", None))
    leaf = jax.ShapeDtypeStruct((2, 64, 1024), "float32", sharding=sharding)
    optimizer = scale_by_egd(
        polar.NewtonSchulz(steps=2), axes=MatrixAxes(1, 2), mesh_axes=("a", "b")
    )
    read = Program(compiled(optimizer, [leaf], mesh).as_text())
    assert [one.kind for one in read.collectives] == ["all-to-all"] * 2


@pytest.mark.parametrize("cut", ["stack", "matrix"])
def test_layouts_of_one_shape_stay_apart(cut):
    mesh = mesh_of(a=8)
    optimizer = scale_by_egd(polar.NewtonSchulz(steps=2), mesh_axes="a", mesh_cut=cut)
    layouts = [P(), P("a", None)]
    leaves = [
        jax.ShapeDtypeStruct((32, 64), "float32", sharding=NamedSharding(mesh, layout))
        for layout in layouts
    ]
    updates, _ = compiled(optimizer, leaves, mesh).output_shardings
    pairs = zip(updates, leaves, strict=True)
    assert all(one.is_equivalent_to(leaf.sharding, 2) for one, leaf in pairs)


def test_leaves_that_are_not_on_the_mesh_yet():
    leaves = [np.asarray(gradient(seed=seed)) for seed in range(3)]
    optimizer = scale_by_egd(polar.SVD(), mesh_axes=("a", "b"))
    with jax.set_mesh(mesh_of()):
        updates, _ = jax.jit(optimizer.update)(leaves, optimizer.init(leaves))
    chex.assert_trees_all_close(updates, [polar64(leaf) for leaf in leaves], atol=1e-5)


def test_a_part_of_two_groups_is_gathered():
    """Eight parts of three groups of columns: the leaves are whole on each device for a while."""
    mesh = mesh_of(a=8)
    sharding = NamedSharding(mesh, P(None, "a"))
    leaves = [jax.device_put(gradient((16, 96), seed), sharding) for seed in range(8)]
    optimizer = scale_by_egd(polar.SVD(), axes=MatrixAxes(0, 1, groups=3), mesh_axes="a")
    with jax.set_mesh(mesh):
        updates, _ = jax.jit(optimizer.update)(leaves, optimizer.init(leaves))
    for update, leaf in zip(updates, leaves, strict=True):
        groups = np.split(np.asarray(leaf), 3, axis=1)
        np.testing.assert_allclose(update, np.hstack([*map(polar64, groups)]), atol=1e-5)
        assert update.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize(
    ("sizes", "spec"),
    [({"x": 8}, P("x")), ({"a": 8}, P(None, "a")), ({"b": 2, "a": 4}, P("a", "b"))],
)
def test_leaves_on_another_mesh_are_whitened(sizes, spec):
    """Than that of jax.set_mesh, which may have axes of other names; they stay where they are."""
    sharding = NamedSharding(mesh_of(**sizes), spec)
    leaves = [jax.device_put(gradient((16, 40), seed), sharding) for seed in range(9)]
    optimizer = scale_by_egd(polar.SVD(), mesh_axes=("a", "b"))
    with jax.set_mesh(mesh_of()):
        updates, _ = jax.jit(optimizer.update)(leaves, optimizer.init(leaves))
    for update, leaf in zip(updates, leaves, strict=True):
        np.testing.assert_allclose(update, polar64(leaf), atol=1e-5)
        assert update.sharding.is_equivalent_to(sharding, 2)


def test_a_first_leaf_off_the_mesh_hides_no_axis():
    """Under explicit sharding the axes are those of any leaf's type."""
    mesh = mesh_of("explicit")
    cut = NamedSharding(mesh, P(("a", "b"), None))
    leaves = {"a": np.asarray(gradient((16, 40)))}
    with jax.set_mesh(mesh):
        leaves |= {f"b{i}": jax.device_put(gradient((16, 40), i), cut) for i in range(8)}
        leaves["c"] = np.asarray(gradient((8, 24)))  # alone in its stack
        optimizer = scale_by_egd(polar.NewtonSchulz(), mesh_cut="stack")
        program = jax.jit(optimizer.update).lower(leaves, optimizer.init(leaves)).compile()
    assert [one.kind for one in Program(program.as_text()).collectives].count("all-to-all") == 2


def test_a_tall_matrix_of_a_function_is_cut_along_its_rows():
    """By the rule, as a wide one is along its columns."""
    mesh = mesh_of()
    leaf = jax.ShapeDtypeStruct((4096, 64), "float32", sharding=NamedSharding(mesh, P("a")))
    optimizer = scale_by_egd(lambda x: x @ (x.T @ x), mesh_axes=("a", "b"))
    program = Program(compiled(optimizer, [leaf], mesh).as_text())
    assert any(one.kind == "all-reduce" for one in program.collectives)
    assert program.received < 4096 * 64 * 4


def test_without_axes_the_compiler_decides():
    """Then `vmap` and derivatives work under explicit sharding, too."""
    mesh = mesh_of("explicit")
    optimizer = scale_by_egd(polar.SVD(), mesh_axes=())
    with jax.set_mesh(mesh):
        leaf = jax.device_put(gradient(), NamedSharding(mesh, P("a", None)))

        def length(leaf):
            return jnp.sum(optimizer.update(leaf, optimizer.init(leaf))[0] ** 3)

        found = jax.jit(jax.grad(length))(leaf)
        mapped = jax.jit(jax.vmap(lambda leaf: optimizer.update(leaf, optimizer.init(leaf))[0]))
        factors = mapped(jnp.stack([leaf] * 2))
        spread = scale_by_egd(polar.SVD())
        for transform in (jax.vmap, jax.grad):
            with pytest.raises(
                NotImplementedError, match=r"mapped by vmap or diff.*mesh_axes=\(\)"
            ):
                jax.jit(transform(lambda x: jnp.sum(spread.update(x, spread.init(x))[0])))(
                    leaf if transform is jax.grad else jnp.stack([leaf] * 2)
                )
    expected = jax.grad(lambda leaf: jnp.sum(polar.polar_factor(leaf, polar.SVD()) ** 3))(
        gradient()
    )
    chex.assert_trees_all_close(found, expected, atol=1e-4)
    np.testing.assert_allclose(factors, [polar64(gradient())] * 2, atol=1e-5)


def test_the_check_reads_sharded_state():
    """A pattern that misses a fused kernel is found, on a mesh as well."""
    mesh = mesh_of()
    leaves = {"qkv": placed(mesh)["rows"], "up": placed(mesh)["both"]}
    with jax.set_mesh(mesh):
        missed = egd(0.1, matrices="up", mesh_axes=("a", "b"), momentum=0.9)
        check = diagnostics.check_whitening(missed, leaves, state=missed.init(leaves))
    assert check["up"].whitened
    assert check["up"].directions == 16
    assert not check["qkv"].whitened
    assert "not selected" in check["qkv"].reason


def test_training_on_a_mesh_by_egd():
    """`egd` hands over its axes: with a momentum, the step is the polar factor of the gradient."""
    mesh = mesh_of()
    leaves = {name: leaf for name, leaf in placed(mesh).items() if leaf.ndim == 2}
    with jax.set_mesh(mesh):
        optimizer = egd(0.1, momentum=0.9, mesh_axes="a", mesh_cut="stack")
        state = optimizer.init(leaves)
        updates, state = jax.jit(optimizer.update)(leaves, state, leaves)
    for name, update in updates.items():
        expected = -0.1 * polar64(np.asarray(leaves[name]))
        np.testing.assert_allclose(update, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mesh_axes": 3}, TypeError, "name axes of a mesh.*got 3"),
        ({"mesh_axes": ("a", "a")}, ValueError, "no axis twice, got .'a', 'a'."),
        ({"mesh_axes": "a", "mesh_cut": "rows"}, ValueError, "stack, matrix, got 'rows'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        scale_by_egd(**arguments)


def test_axes_that_cannot_be_served():
    leaves = {"block": {"kernel": jnp.ones((4, 6))}}
    optimizer = scale_by_egd(mesh_axes="c")
    with pytest.raises(
        ValueError,
        match=r"mesh_axes='c' needs a mesh.*'block/kernel', float32\[4,6\].*jax.set_mesh",
    ):
        optimizer.update(leaves, optimizer.init(leaves))
    with jax.set_mesh(mesh_of()):
        with pytest.raises(
            ValueError, match=r"the mesh, which has \('a', 'b'\).*'block/kernel', float32\[4,6\]"
        ):
            optimizer.update(leaves, optimizer.init(leaves))
        laid = jax.device_put(leaves, NamedSharding(jax.sharding.get_mesh(), P("a")))
        with pytest.raises(ValueError, match=r"float32\[4,6\] in P\w*\('a'"):
            optimizer.update(laid, optimizer.init(laid))
        inside = scale_by_egd(mesh_axes="a")
        with pytest.raises(
            ValueError, match=r"mesh_axes='a' cannot.*'block/kernel'.*inside shard_map"
        ):
            jax.shard_map(
                lambda x: inside.update(x, inside.init(x))[0], in_specs=P(), out_specs=P()
            )(leaves)
        uneven = scale_by_egd(mesh_axes=("a", "b"), mesh_cut="matrix")
        with pytest.raises(
            ValueError, match=r"'block/kernel' of shape \(4, 6\).*has 6 for 8 devices"
        ):
            uneven.update(leaves, uneven.init(leaves))
