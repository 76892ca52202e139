"""infer_axes with a loss: what is read off the program is the table written by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from fragments import FRAGMENTS, real
from programs import PROGRAMS, shuffled

from egd_optax import MatrixAxes, infer_axes

pytestmark = pytest.mark.usefixtures("as_users_have_it")


@pytest.fixture
def as_users_have_it(strict):
    """Promotion of ranks and dtypes, which the models of libraries use."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def program(name):
    return shuffled(PROGRAMS[name]())


def assert_table(inferred, table):
    """The rows are those of the table: axes, or a reason that begins like this."""
    read = {leaf.path: leaf.axes or leaf.reason for leaf in inferred.leaves}
    as_written = {
        path: row
        if isinstance(row, str) and str(read.get(path)).startswith(row)
        else read.get(path)
        for path, row in table.items()
    }
    assert as_written == table, inferred
    assert read.keys() == table.keys()
    assert {leaf.path for leaf in inferred.unknown} == {
        path for path, row in table.items() if row == "unknown"
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_table_is_the_one_written_by_hand(name):
    params, loss, examples, table = program(name)
    assert_table(infer_axes(params, loss, *examples), table)


@pytest.mark.parametrize("name", FRAGMENTS)
def test_every_way_to_use_a_parameter(name):
    loss, shapes, examples, table = FRAGMENTS[name]
    params = {path: real(*shape) for path, shape in shapes.items()}
    assert_table(infer_axes(params, loss, *examples), table)


def over_examples(loss):
    """The same loss, mapped over two batches; what is frozen is shared."""

    def mapped(params, *examples):
        axes = [None if isinstance(example, dict) else 0 for example in examples]
        two = [
            example if axis is None else jnp.stack([example, example])
            for example, axis in zip(examples, axes, strict=True)
        ]
        return jax.vmap(functools.partial(loss, params), in_axes=axes)(*two).mean()

    return mapped


def in_bfloat16(loss):
    def short(leaf):
        return leaf.astype(jnp.bfloat16)

    return lambda params, *examples: loss(jax.tree.map(short, params), *examples).astype("float32")


def with_more(loss):
    return lambda params, *examples: (loss(params, *examples), {"params": params})


VARIANTS = {
    "jit": jax.jit,
    "value_and_grad": jax.value_and_grad,
    "vmap over examples": over_examples,
    "remat": jax.checkpoint,
    "bfloat16": in_bfloat16,
    "auxiliary outputs": with_more,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_stands_around_the_loss_changes_nothing(name, variant):
    params, loss, examples, table = program(name)
    assert_table(infer_axes(params, VARIANTS[variant](loss), *examples), table)


def mesh_of_two(kind):
    kinds = (getattr(jax.sharding.AxisType, kind),)
    return jax.make_mesh((2,), ("data",), axis_types=kinds, devices=jax.devices()[:2])


def spread(shape, axis, mesh):
    spec = jax.P(*("data" if i == axis else None for i in range(len(shape))))
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


@pytest.mark.parametrize("name", PROGRAMS)
def test_shapes_of_parameters_on_a_mesh(name):
    """The first axis that the devices divide is spread over them."""
    params, loss, examples, table = program(name)
    mesh = mesh_of_two("Auto")

    def first_even(leaf):
        return next((axis for axis, n in enumerate(leaf.shape) if n % 2 == 0), None)

    with jax.set_mesh(mesh):
        there = jax.tree.map(lambda leaf: spread(leaf.shape, first_even(leaf), mesh), params)
        assert_table(infer_axes(there, loss, *examples), table)


SHARDED = {
    "up": ((8, 16), 1, MatrixAxes(0, 1)),
    "down": ((16, 8), 0, MatrixAxes(0, 1)),
    "first": ((4, 8, 6), 0, MatrixAxes(1, 2)),
    "second": ((4, 6, 8), 0, MatrixAxes(1, 2)),
    "whole": ((8, 24), 0, MatrixAxes(0, 1, groups=3)),
    "head": ((8, 3), None, "output head"),
}


def shard(p, x):
    """Columns, rows and experts of one device, and a matrix that is put together."""
    x = x + jax.lax.psum(jax.nn.relu(x @ p["up"]) @ p["down"], "data")
    each = jnp.einsum("etf,efd->etd", jnp.einsum("td,edf->etf", x, p["first"]), p["second"])
    x = x + jax.lax.psum(each.sum(0), "data")
    whole = jax.lax.all_gather(p["whole"], "data", axis=0, tiled=True)
    q, k, v = jnp.split(x @ whole, 3, axis=1)
    return jnp.sum(((q @ k.T) @ v) @ p["head"])


def explicit(p, x):
    """The same with shardings in the types."""
    x = x + jnp.einsum("tf,fd->td", jax.nn.relu(x @ p["up"]), p["down"], out_sharding=jax.P())
    hidden = jnp.einsum("td,edf->etf", x, p["first"])
    x = x + jax.sharding.reshard(jnp.einsum("etf,efd->etd", hidden, p["second"]), jax.P()).sum(0)
    q, k, v = jnp.split(x @ jax.sharding.reshard(p["whole"], jax.P()), 3, axis=1)
    return jnp.sum(((q @ k.T) @ v) @ p["head"])


@pytest.mark.parametrize("loss", [shard, explicit])
def test_shards_are_matrices_of_the_whole(loss):
    mesh = mesh_of_two("Auto" if loss is shard else "Explicit")
    params = {name: spread(shape, axis, mesh) for name, (shape, axis, _) in SHARDED.items()}
    if loss is shard:
        specs = {name: leaf.sharding.spec for name, leaf in params.items()}
        options = {"mesh": mesh, "in_specs": (specs, jax.P()), "out_specs": jax.P()}
        loss = jax.shard_map(shard, check_vma=False, **options)
    with jax.set_mesh(mesh):
        table = {name: row for name, (_, _, row) in SHARDED.items()}
        assert_table(infer_axes(params, loss, real(4, 8)), table)
