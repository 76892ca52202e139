"""Decisions as a table: in a terminal, in a notebook, and to paste."""

import jax
import jax.numpy as jnp
from flax import nnx

from egd_optax import MatrixAxes, infer_axes
from egd_optax.models import DecoderTransformer


def test_the_table_says_what_why_and_how_to_change_it():
    params = nnx.to_pure_dict(
        nnx.state(DecoderTransformer(9, 4, width=16, rngs=nnx.Rngs(0)), nnx.Param)
    )
    table = str(infer_axes(params | {"zoo": jnp.ones((2, 3, 4))}, overrides={"1/mlp/expand": None}))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "Unknown: 1. Whitened: 11. Left out: 10. No matrices: 16."
    assert lines[2:5] == ["overrides={", '"zoo": MatrixAxes(rows=1, columns=2), # 2 of 3 x 4', "}"]
    assert lines[5] == "leaf shape matrix done why"
    assert lines[6] == "zoo (2, 3, 4) - unknown which axes are inputs?"
    kernel = "(64, 16) 64 x 16 (0 x 1) whitened matrix: in x out"
    assert f"blocks/*/mlp/contract/kernel (2) {kernel}" in lines
    out = "(4, 4, 16) 16 x 16 ((0, 1) x 2) whitened attention: (heads head_dim) x out"
    assert f"blocks/*/attention/out/kernel (2) {out}" in lines
    assert "blocks/1/mlp/expand/kernel (16, 64) - left out left out by your axes" in lines
    assert lines[-2].startswith('overrides={"path": MatrixAxes')
    assert lines[-1].startswith("A guess by names and shapes; infer_axes(params, loss, batch)")


def many_layers():
    """500 leaves; one kind is unknown in each layer, and one leaf alone."""
    layer = {
        "q": (8, 8),
        "odd<>": (3, 16, 2, 4),
        "norm": {"scale": (8, 1)},
        "w" * 24: {"w": (8, 4)},
    }
    shapes = {"layers": [layer] * 125, "stem": {"kernel": (7, 7, 3, 8)}}
    shapes["last"] = {"weight": (8, 3, 5, 5)}
    return jax.tree.map(jnp.zeros, shapes, is_leaf=lambda node: isinstance(node, tuple))


def test_what_the_table_suggests_can_be_pasted_and_settles_all():
    params = many_layers()
    table = infer_axes(params)
    lines = str(table).splitlines()
    start, end = lines.index("overrides={"), lines.index("}")
    overrides = eval("\n".join(lines[start : end + 1]).removeprefix("overrides="))
    settled = infer_axes(params, overrides=overrides)
    assert len(table.unknown) == 127
    assert not settled.unknown
    assert settled["layers/7/odd<>"] == MatrixAxes(2, 3)
    assert settled["stem/kernel"] == MatrixAxes((0, 1, 2), 3)
    assert settled["last/weight"] == MatrixAxes((1, 2, 3), 0)


def test_a_suggestion_names_no_leaf_that_is_known():
    params, known = many_layers(), {"layers/7/odd<>": None, "stem": None, "last": None}
    lines = str(infer_axes(params, overrides=known)).splitlines()
    start, end = lines.index("overrides={"), lines.index("}")
    pasted = eval("\n".join(lines[start : end + 1]).removeprefix("overrides="))
    settled = infer_axes(params, overrides=known | pasted)
    assert not settled.unknown
    assert settled["layers/7/odd<>"] is None
    assert settled["layers/17/odd<>"] == MatrixAxes(2, 3)


def test_many_leaves_read_well_in_a_terminal_and_a_notebook():
    table = infer_axes(many_layers())
    lines = str(table).splitlines()
    assert len(table.leaves) == 502
    assert len(lines) < 20
    assert max(map(len, lines)) <= 120
    page = table._repr_html_()
    assert page.count("<tr>") == 1 + 6
    assert "odd&lt;&gt; (125)" in page
    assert page.index("Unknown: 127") < page.index("<table>") < page.index("A guess by names")
