"""Writes guides/models.md: the table of each model in tests/programs.py, as it is printed.

python docs/hooks/models.py
"""

import sys
from pathlib import Path

from egd_optax import infer_axes
from egd_optax._decisions import LEGEND

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "models.md"
sys.path.insert(0, str(ROOT / "tests"))
INTRODUCTION = """---
made: by `make pages`, from docs/hooks/models.py and tests/programs.py
---
# Twelve models

What `infer_axes(params, loss, batch)` reads off the programs of twelve models, as it is printed. The first choice for
any of them is `egd(lr, axes=infer_axes(params, loss, batch))`; [which layers](which-layers.md) explains the rules. The
reasons name the operation, and the line that it stands in: here one of tests/programs.py or tests/flax_programs.py,
for yours one of your code. Names play no part: a test gives the leaves names by chance and compares with tables written
by hand.
"""
SAYS = {
    "nnx GPT, scanned, fused, tied": """\
Layers without biases under `nnx.scan` and `nnx.remat`: the axis in front is batch. Query, key and value are parts of
one kernel, gate and up of another, and each part is a matrix. The embedding is the head as well: a table.""",
    "linen transformer, scanned": """\
`nn.scan` and `nn.remat` of layers with `DenseGeneral`: heads belong to the columns, or to the rows of `out`. Scales and
biases of stacked layers have two axes and are no matrices.""",
    "ViT": """\
The patches are a convolution. The class token is joined to them, the positions are added.""",
    "ResNet": """\
Convolutions without biases, called stem and shortcut, which no name explains.""",
    "depthwise and grouped": """\
A depthwise convolution is left out. Of one with groups each group is a matrix.""",
    "experts": """\
All experts see all tokens, `einsum("btd,edf->ebtf", x, up)`. Only the next product tells that they are batch. The
router is a matrix like any other.""",
    "LoRA": """\
The frozen base comes in with the examples. One pair meets the data one by one, the other is multiplied out before.""",
    "LSTM": """\
One matrix for each gate, not one for each step of the scan over time.""",
    "Equinox": """\
Weights are out x in.""",
    "einsums": """\
A plain tree with axes in any order: layers taken one by one, query, key and value along an axis of their own, and
a matrix whose transpose decodes.""",
    "the paper's MLP": """\
The network of modular addition. To whiten the last matrix too, name it: `overrides={"readout/kernel": MatrixAxes(0,
1)}`.""",
    "the project's transformer": """\
`egd_optax.models.DecoderTransformer`, its blocks in a list: rows that differ by a number only are one row.""",
}


def page() -> str:
    """Return the page."""
    from programs import PROGRAMS  # of the tests

    parts = [INTRODUCTION]
    for name, make in PROGRAMS.items():
        params, loss, examples, _ = make()
        table = str(infer_axes(params, loss, *examples)).replace(LEGEND, "").rstrip()
        parts.append(f"## {name[0].upper()}{name[1:]}\n\n{SAYS[name]}\n\n```text\n{table}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
