"""infer_axes with a loss: what is read off the program is the table written by hand."""

import functools
import resource
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax_programs import cross_entropy, rotated
from fragments import real
from jax.scipy import special
from more_fragments import FRAGMENTS
from programs import PROGRAMS, shuffled

from egd_optax import MatrixAxes, egd, infer_axes
from egd_optax._matrix_view import matrix_views

pytestmark = pytest.mark.usefixtures("as_users_have_it", "quick_compilation")


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


def test_functions_of_one_entry_keep_a_matrix():
    """Those with a derivative; each has a layer of its own."""
    functions = {
        one.__name__: one
        for one in (
            *(jnp.abs, jnp.arccos, jnp.arccosh, jnp.arcsin, jnp.arcsinh, jnp.arctan, jnp.arctanh),
            *(jnp.cbrt, jnp.cos, jnp.cosh, jnp.exp, jnp.exp2, jnp.expm1, jnp.log, jnp.log1p),
            *(jnp.negative, jnp.sin, jnp.sinh, jnp.sqrt, jnp.square, jnp.tan, jnp.tanh),
            *(jax.lax.rsqrt, jax.lax.logistic, special.digamma, special.gammaln, special.erf),
            *(special.erfc, special.erfinv, special.i0e, special.i1e),
        )
    } | {
        "atan2": lambda x: jnp.arctan2(x, 2.0),
        "clamp": lambda x: jnp.clip(x, -1.0, 1.0),
        "complex": lambda x: jnp.imag(jnp.conj(jax.lax.complex(x, -x))),
        "div": lambda x: 1 / x,
        "max, min": lambda x: jnp.maximum(jnp.minimum(x, 1.0), -1.0),
        "pow": lambda x: x**2.5,
        "power": lambda x: x**3,
        "rem": lambda x: jnp.fmod(x, 2.0),
        "select": lambda x: jnp.where(x > 0, x, 0.0),
        "sub": lambda x: 1 - x,
    }
    params = {name: jnp.ones((3, 4)) for name in functions} | {"head": jnp.ones((4, 2))}

    def loss(params, x):
        hidden = sum(function(x @ params[name]) for name, function in functions.items())
        return jnp.mean(hidden @ params["head"])

    table = dict.fromkeys(functions, MatrixAxes(0, 1)) | {"head": "output head"}
    assert_table(infer_axes(params, loss, jnp.ones((2, 3))), table)


@pytest.mark.parametrize("name", FRAGMENTS)
def test_every_way_to_use_a_parameter(name):
    loss, shapes, examples, table = FRAGMENTS[name]
    params = {path: real(*shape) for path, shape in shapes.items()}
    assert_table(infer_axes(params, loss, *examples), table)


def test_modules_themselves_are_parameters():
    """With all that they hold beside parameters: statistics, keys, functions."""
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(6, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)]
    layers += [nnx.Dropout(0.1, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)]
    inferred = infer_axes(nnx.Sequential(*layers), lambda model, x: model(x).mean(), real(4, 6))
    assert_table(inferred, {"layers/0/kernel": MatrixAxes(0, 1), "layers/3/kernel": "output head"})
    mlp = eqx.nn.MLP(6, 3, 8, 1, key=jax.random.key(0))
    inferred = infer_axes(mlp, lambda model, x: jax.vmap(model)(x).mean(), real(4, 6))
    assert_table(inferred, {"layers/0/weight": MatrixAxes(1, 0), "layers/1/weight": "output head"})


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


VARIANTS = {  # each may stand around those before it; a gradient would take remat off
    "bfloat16": in_bfloat16,
    "vmap over examples": over_examples,
    "value_and_grad": jax.value_and_grad,
    "remat": jax.checkpoint,
    "jit": jax.jit,
    "auxiliary outputs": with_more,
}


@pytest.mark.parametrize(
    ("name", "variant"),
    [*((name, "all") for name in PROGRAMS), *zip(PROGRAMS, [*VARIANTS] * 2, strict=True)],
)
def test_what_stands_around_the_loss_changes_nothing(name, variant):
    """All at once around each program, and each by itself around two of them."""
    params, loss, examples, table = program(name)
    for wrap in VARIANTS.values() if variant == "all" else [VARIANTS[variant]]:
        loss = wrap(loss)
    assert_table(infer_axes(params, loss, *examples), table)


def mesh_of_two(kind):
    kinds = (getattr(jax.sharding.AxisType, kind),)
    return jax.make_mesh((2,), ("data",), axis_types=kinds, devices=jax.devices()[:2])


def spread(shape, axis, mesh):
    spec = jax.P(*("data" if i == axis else None for i in range(len(shape))))
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


@pytest.mark.parametrize("name", ["nnx GPT, scanned, fused, tied", "ResNet", "LSTM"])
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


def real_values(params):
    """Random values of the shapes of parameters, as if they had been initialized."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), "f4"), params)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_training_whitens_what_the_table_says(name):
    shapes, loss, examples, table = program(name)
    params, others = real_values(shapes), optax.adam(1e-3)
    axes = infer_axes(shapes, loss, *examples)
    optimizer = egd(0.02, axes=axes, others=others)

    def step(carry, _):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, *examples)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), (value, gradients, updates)

    start = params, optimizer.init(params)
    _, (losses, *rest) = jax.jit(lambda start: jax.lax.scan(step, start, length=20))(start)
    gradients, updates = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in rest)
    assert losses[-1] < losses[0]
    views = {view.path: view for view in matrix_views(params, axes)}
    assert views.keys() == {path for path, row in table.items() if isinstance(row, MatrixAxes)}
    alone, _ = others.update(gradients, others.init(params), params)
    for path, update in updates.items():
        if path not in views:
            np.testing.assert_allclose(update, alone[path], rtol=1e-4, atol=1e-7)
            continue
        values = np.linalg.svd(views[path].to_stack(np.asarray(update)), compute_uv=False) / 0.02
        assert np.all((np.abs(values - 1) < 0.01) | (values < 0.01)), (path, values)
        assert np.max(values) > 0.99


SEVEN_BILLION = {"tokens": (32_000, 4096), "norm": (4096,), "head": (4096, 32_000)}
LAYER = {"norm": (4096,), "qkv": (4096, 12_288), "out": (4096, 4096)}
LAYER |= {"norm_2": (4096,), "gate_up": (4096, 22_016), "down": (11_008, 4096)}


def llama(params, tokens):
    def norm(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True)) * scale

    x = params["tokens"][tokens]
    for p in params["layers"]:
        heads = (norm(x, p["norm"]) @ p["qkv"]).reshape(*tokens.shape, 3, 32, 128)
        q, k, v = jnp.unstack(heads, axis=-3)
        mixed = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + mixed.reshape(x.shape) @ p["out"]
        gate, up = jnp.split(norm(x, p["norm_2"]) @ p["gate_up"], 2, axis=-1)
        x = x + (jax.nn.silu(gate) * up) @ p["down"]
    return cross_entropy(norm(x, params["norm"]) @ params["head"], tokens)


def test_seven_billion_parameters_take_seconds_and_no_memory():
    """Its 32 layers one by one, in bfloat16; nothing is allocated."""
    shapes = SEVEN_BILLION | {"layers": [LAYER] * 32}
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inferred = infer_axes(params, llama, jax.ShapeDtypeStruct((8, 4096), jnp.int32))
    seconds = time.monotonic() - start
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    rows = {"tokens": "embedding", "head": "output head"}
    for i in range(32):
        for name, groups in {"qkv": 3, "out": 1, "gate_up": 2, "down": 1}.items():
            rows[f"layers/{i}/{name}"] = MatrixAxes(0, 1, groups)
    assert_table(inferred, rows)
    assert seconds < 20, seconds
    assert added < 2**20, added  # KiB


def mean_of(params, x):
    return jnp.mean(jnp.tanh(x @ params["a"]) @ params["b"])


PAIR = {"a": real(8, 4), "b": real(4, 2)}


@pytest.mark.parametrize(
    ("loss", "examples", "error", "says"),
    [
        (mean_of, (real(3, 7),), ValueError, r"cannot be traced: TypeError.*float32\[3, 7\]"),
        (mean_of, (), ValueError, r"cannot be traced: TypeError.*Give the batch.*examples: none"),
        (lambda p: float(p["a"][0, 0]), (), ValueError, "cannot be traced: Concretization"),
        (lambda p, x: x @ p["a"], (real(3, 8),), ValueError, r"scalar.*got float32\[3, 4\]"),
        (lambda p: (p["a"], p["b"].sum()), (), ValueError, r"scalar.*got float32\[8, 4\]"),
        (lambda p: p["a"].sum().astype(int), (), ValueError, r"a real scalar.*got int32\[\]"),
        (lambda p: p["a"].sum() * 1j, (), ValueError, r"a real scalar.*got complex64\[\]"),
        (lambda p: None, (), ValueError, "scalar.*got NoneType without any number"),
        (lambda p: {"loss": p["a"].sum()}, (), ValueError, "got dict with 1 arrays"),
        (lambda p: jax.grad(lambda p: p["a"].sum())(p), (), ValueError, "not its gradient"),
        (lambda p, x: x.sum(), (real(3),), ValueError, "does not use its first argument"),
        (mean_of, ({"a": MatrixAxes(0, 1)},), ValueError, "overrides=..."),
        (None, (real(3, 8),), TypeError, "a batch and no loss"),
        ({"a": MatrixAxes(0, 1)}, (), TypeError, "Pass your own axes by name: overrides="),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_why(loss, examples, error, says):
    with pytest.raises(error, match=says) as refusal:
        infer_axes(PAIR, loss, *examples)
    assert len(str(refusal.value)) < 600


def test_parameters_come_first():
    with pytest.raises(TypeError, match="takes the parameters first"):
        infer_axes(mean_of, PAIR, real(3, 8))
    module = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Give infer_axes the model itself"):
        infer_axes(nnx.state(module), lambda model, x: model(x).mean(), real(4, 8))


def test_text_and_flags_among_the_examples_are_constants():
    batch = {"x": real(3, 8), "names": np.array(["p", "q", "r"]), "train": np.bool_(True)}
    loss = lambda p, batch: mean_of(p, batch["x"]) if batch["train"] else 0.0  # noqa: E731
    assert infer_axes(PAIR, loss, batch)["a"] == MatrixAxes(0, 1)


def test_own_axes_come_first_and_the_reason_names_the_line():
    x = real(3, 8)
    leaves = infer_axes(PAIR, mean_of, x, overrides={"b": MatrixAxes(0, 1)}).leaves
    assert [leaf.axes for leaf in leaves] == [MatrixAxes(0, 1)] * 2
    line = mean_of.__code__.co_firstlineno + 1
    assert leaves[0].reason == f"matrix: dot_general, test_program.py:{line}"
    assert leaves[1].reason == "your axes"
    assert "guess" not in str(infer_axes(PAIR, mean_of, x))
    never = infer_axes({**PAIR, "never": real(2, 2)}, mean_of, x).leaves[2]
    assert (never.axes, never.known) == (None, True)
    assert never.reason == "unused: no gradient of the loss reaches it"
