"""One method over a stack of matrices, and the public `polar_factor`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax._checks import as_array, check_static
from egd_optax.polar._auto import Auto
from egd_optax.polar._lapack import by_platform
from egd_optax.polar._linalg import working_dtype
from egd_optax.polar._method import Custom, PolarMethod, State, checked_update


def as_method(method: PolarMethod | Callable[[jax.Array], jax.Array] | None) -> PolarMethod:
    """Return `method` as a PolarMethod: None is `Auto()`, a function is wrapped."""
    if method is None:
        return Auto()
    check_static("method", method)
    value = method if isinstance(method, PolarMethod) else Custom(method)
    odd = isinstance(method, type) or hasattr(method, "update") or not callable(method)
    if value is not method and odd:
        raise TypeError(
            "method must be None, a value such as egd_optax.polar.SVD(), a function from a matrix "
            f"to its polar factor, or a subclass of egd_optax.polar.PolarMethod, got {method!r}. "
            "Transformations and rates go beside it: optax.chain(scale_by_egd(), optax.sgd(0.02))."
        )
    try:
        hash(method)
    except TypeError as error:
        raise TypeError(
            f"method must hash, so that it is traced once, got {method!r}; make it a frozen "
            "dataclass whose fields hash, such as numbers and tuples."
        ) from error
    return value


def init_stack(method: PolarMethod, stack: jax.ShapeDtypeStruct | jax.Array) -> State:
    """Return the method's states for a `(k, m, n)` stack, each leaf with a leading axis k."""
    state = method.init(jax.ShapeDtypeStruct(stack.shape[1:], working_dtype(stack.dtype)))
    return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], stack.shape[0], axis=0), state)


_trace_once = jax.jit(checked_update, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def update_one(method: PolarMethod, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Return the polar factor of a matrix and the next state; batched on CPU if it may be."""
    update = functools.partial(_trace_once, method)
    return (update if method.batches else _one_at_a_time(update))(matrix, state)


def _one_at_a_time(update: Callable) -> Callable:
    """Return `update` such that, on CPU, a user's `vmap` around it takes the matrices in turn.

    A batched LAPACK call can hang there: see `_lapack`. A method of a user's own that calls LAPACK
    may still batch it in a `vmap` of its derivative.
    """
    in_turn = jax.custom_jvp(by_platform(cpu=update, default=update))
    # The result comes from the loop itself: JAX wants function and rule to batch the same results.
    in_turn.defjvp(lambda x, dx: (in_turn(*x), jax.jvp(update, x, dx)[1]))
    return in_turn


def map_stack(function: Callable, *stacks: Any, batches: bool = False) -> Any:
    """Return `function` of each matrix: `stacks` are trees of arrays with one leading axis.

    CPUs take few matrices in a turn, enough to have work for all cores: as a batch if `batches`
    says that `function` may get one, or else side by side. The others take all at once.
    """
    first = jax.tree.map(lambda x: x[0], stacks)
    if jax.tree.leaves(stacks)[0].shape[0] == 1:
        return jax.tree.map(lambda x: x[None], function(*first))
    return jax.lax.platform_dependent(
        *stacks,
        cpu=functools.partial(_in_turns, function, batches),
        default=jax.vmap(function),
    )


def _in_turns(function: Callable, batches: bool, *stacks: Any) -> Any:
    count, *shape = jax.tree.leaves(stacks)[0].shape
    entries = max(1, math.prod(shape))
    if batches and (entries <= _SMALL or (_MIDDLE < entries <= _LARGE and count > 2)):
        size = max(2, _BATCH // entries)
        return jax.lax.map(lambda one: function(*one), stacks, batch_size=size)
    side_by_side = 4 if _SMALL // 2 <= entries <= _MIDDLE else 1
    return jax.lax.scan(lambda _, one: (None, function(*one)), None, stacks, unroll=side_by_side)[1]


# CPU (docs/benchmarks.md): up to so many entries all of a batch of so many are small enough for the
# caches. Those of middle size are faster side by side, the larger ones two by two, but for memory's
# sake not if there are but two. The largest have work for all cores by themselves.
_BATCH, _SMALL, _MIDDLE, _LARGE = 2**17, 2**14, 2**16, 2**22


@functools.partial(jax.jit, static_argnums=0)
def update_stack(method: PolarMethod, stack: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Return the `(k, m, n)` polar factors of a stack and the next states."""
    return map_stack(functools.partial(update_one, method), stack, state, batches=method.batches)


def polar_factor(
    matrices: jax.Array, method: PolarMethod | Callable[[jax.Array], jax.Array] | None = None
) -> jax.Array:
    """Return the polar factor U V^T = pinv((G G^H)^(1/2)) G of each matrix.

    Args:
        matrices: real or complex floating-point array `(*batch, m, n)`.
        method: a value such as `SVD()`, or a function; see `scale_by_egd`. None: `Auto()`.

    Returns:
        Array of the same shape, dtype and explicit sharding. By this package's methods, zero
        matrices give zeros, and a matrix with a NaN or Inf gives NaN, its neighbors do not.

    Raises:
        ValueError: fewer than two axes.
        TypeError: no array, integer or boolean entries, or something that is not a method.

    Examples:
        >>> import jax.numpy as jnp
        >>> from egd_optax.polar import polar_factor
        >>> print(polar_factor(jnp.diag(jnp.array([4.0, -0.5]))))
        [[ 1.  0.]
         [ 0. -1.]]

    References:
        Higham, Functions of Matrices, SIAM 2008, chapter 8.
    """
    matrices = as_array(matrices, "polar_factor")
    if matrices.ndim < 2:
        raise ValueError(f"polar_factor needs the shape (*batch, m, n), got {matrices.shape}.")
    if not jnp.issubdtype(matrices.dtype, jnp.inexact):
        raise TypeError(f"polar_factor needs floating-point matrices, got {matrices.dtype}.")
    if matrices.size == 0:
        return matrices
    method = as_method(method)
    m, n = matrices.shape[-2:]
    stack = replicated(matrices).reshape(math.prod(matrices.shape[:-2]), m, n)
    stack = stack.mT if (turned := method.turns and m > n) else stack
    factors, _ = update_stack(method, stack, init_stack(method, stack))
    factors = factors.mT if turned else factors
    return sharded_like(factors.reshape(matrices.shape), matrices)


def replicated(leaf: jax.Array) -> jax.Array:
    """Return the leaf on every device where its sharding is part of its type."""
    sharding = explicit_sharding(leaf)
    if sharding is None:
        return leaf
    whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.sharding.reshard(leaf, whole)


def sharded_like(value: jax.Array, like: jax.Array) -> jax.Array:
    """Return the value with the sharding of `like` where that is part of its type."""
    sharding = explicit_sharding(like)
    return value if sharding is None else jax.sharding.reshard(value, sharding)


def explicit_sharding(leaf: Any) -> Any:
    """Return the sharding in the leaf's type, None where the compiler decides."""
    sharding = jax.typeof(leaf).sharding
    explicit = jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
    return sharding if explicit else None
