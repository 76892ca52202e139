"""One method over a stack of matrices, and the public `polar_factor`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax._checks import as_array, check_static
from egd_optax.polar._auto import Auto
from egd_optax.polar._dtypes import working_dtype
from egd_optax.polar._lapack import by_platform
from egd_optax.polar._method import Custom, PolarMethod, State, checked_update
from egd_optax.polar._sharding import replicated, sharded_like


def as_method(method: PolarMethod | Callable[[jax.Array], jax.Array] | None) -> PolarMethod:
    """Return `method` as a PolarMethod: None is `Auto()`, a function is wrapped.

    Raises:
        TypeError: neither None, a method's value nor a function; or a value without a hash.
    """
    if method is None:
        return Auto()
    check_static("method", method)
    value = method if isinstance(method, PolarMethod) else Custom(method)
    odd = isinstance(method, type) or hasattr(method, "update") or not callable(method)
    if value is not method and odd:
        raise TypeError(
            "method must be None, a value such as egd_optax.polar.SVD(), a function from a matrix "
            f"to its polar factor, or a subclass of egd_optax.polar.PolarMethod, got {method!r}. "
            "An Optax transformation goes beside it: optax.chain(transformation, scale_by_egd())."
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


@functools.partial(jax.jit, static_argnums=0)
def _trace_once(method: PolarMethod, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
    return checked_update(method, matrix, state)


@functools.partial(jax.jit, static_argnums=0)
def _update_one(method: PolarMethod, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
    return _one_at_a_time(functools.partial(_trace_once, method))(matrix, state)


def _one_at_a_time(update: Callable) -> Callable:
    """Return `update` such that, on CPU, a user's `vmap` around it takes the matrices in turn.

    Batched products are slow there, and a batched LAPACK call can hang: see `_lapack`. Derivatives
    are those of `update` itself. A method of a user's own that calls LAPACK may still batch it
    there, in a `vmap` of its derivative.
    """
    in_turn = jax.custom_jvp(by_platform(cpu=update, default=update))

    # The result comes from the loop itself: JAX wants function and rule to batch the same results.
    in_turn.defjvp(lambda x, dx: (in_turn(*x), jax.jvp(update, x, dx)[1]))
    return in_turn


def map_stack(function: Callable, *stacks: Any) -> Any:
    """Return `function` of each matrix: `stacks` are trees of arrays with one leading axis.

    Batched products are slow in XLA's CPU backend and right on an accelerator, so CPUs take the
    matrices in turn and the others all at once.
    """
    first = jax.tree.map(lambda x: x[0], stacks)
    if jax.tree.leaves(stacks)[0].shape[0] == 1:
        return jax.tree.map(lambda x: x[None], function(*first))
    return jax.lax.platform_dependent(
        *stacks,
        cpu=lambda *stacks: jax.lax.map(lambda one: function(*one), stacks),
        default=jax.vmap(function),
    )


@functools.partial(jax.jit, static_argnums=0)
def update_stack(method: PolarMethod, stack: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Return the `(k, m, n)` polar factors of a stack and the next states.

    The method is traced once, for one matrix.
    """
    return map_stack(functools.partial(_update_one, method), stack, state)


def polar_factor(
    matrices: jax.Array, method: PolarMethod | Callable[[jax.Array], jax.Array] | None = None
) -> jax.Array:
    """Return the polar factor U V^T = pinv((G G^H)^(1/2)) G of each matrix.

    Every singular value above the method's rank tolerance becomes 1, the others 0.

    Args:
        matrices: real or complex floating-point array `(*batch, m, n)`.
        method: a value such as `SVD()`, or a function from `(m, n)` to `(m, n)`.
            None: `Auto()`, exact on every backend.

    Returns:
        Array of the same shape, dtype and explicit sharding. By this package's methods, zero
        matrices give zeros, and a matrix with a NaN or Inf gives NaN; its neighbours in the batch
        are untouched.

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
        raise ValueError(
            f"polar_factor needs matrices of shape (*batch, m, n), got shape {matrices.shape}."
        )
    if not jnp.issubdtype(matrices.dtype, jnp.inexact):
        raise TypeError(
            f"polar_factor needs floating-point matrices, got dtype {matrices.dtype}; cast first."
        )
    if matrices.size == 0:
        return matrices
    method = as_method(method)
    shape = (math.prod(matrices.shape[:-2]), *matrices.shape[-2:])
    stack = replicated(matrices).reshape(shape)
    factors, _ = update_stack(method, stack, init_stack(method, stack))
    return sharded_like(factors.reshape(matrices.shape), matrices)
