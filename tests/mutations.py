"""Break the library one line at a time, and see which test finds it.

    python tests/mutations.py [WORD ...]

Each mutation is made in a scratch copy, where the quick tests of its module run until the first one
fails. Words choose mutations by their file or description. Prints a table; fails where a mutation
survives, or where its text is not found once in the file, so that it has to be written anew.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
LIMIT = 600  # seconds for the tests of one mutation; a standstill counts as caught
OPTIONS = ("-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--no-header")
FOLDERS = {"polar": ("polar",), "_program": ("test_program.py",)}
TESTS = {
    "_alias": ("test_alias.py",),
    "_axes": ("test_axes.py",),
    "_decisions": ("test_decisions.py", "test_axes.py"),
    "_layers": ("test_infer_axes.py",),
    "_siblings": ("test_infer_axes.py",),
    "_buckets": ("test_buckets.py",),
    "_checks": ("test_traps.py",),
    "_from_muon": ("test_from_muon.py",),
    "_infer_axes": ("test_infer_axes.py", "test_equinox.py"),
    "_matrix_view": ("test_matrix_view.py",),
    "_scaling": ("test_transform.py",),
    "_exchange": ("test_mesh.py",),
    "_mesh": ("test_mesh.py",),
    "_spread": ("test_buckets.py", "test_mesh.py"),
    "_selection": ("test_selection.py",),
    "_transform": ("test_transform.py",),
    "_wrappers": ("test_wrappers.py",),
    "models/transformer": ("models/test_models.py",),
    "diagnostics/_check": ("diagnostics/test_check.py",),
    "diagnostics/_spectra": ("diagnostics/test_monitor.py", "diagnostics/test_report.py"),
}


class Mutation(NamedTuple):
    """A file below egd_optax, its text, what it becomes, and what that breaks."""

    file: str
    text: str
    instead: str
    breaks: str

    @property
    def tests(self) -> tuple[str, ...]:
        folder = self.file.partition("/")[0]
        return FOLDERS[folder] if folder in FOLDERS else TESTS[self.file]


MUTATIONS = [
    Mutation(
        "_alias", 'if decay == "coupled" else', 'if decay != "coupled" else', "decays swapped"
    ),
    Mutation("_alias", "1 / (1 - momentum**count)", "1 + 0 * count", "no debiasing"),
    Mutation("_alias", "momentum ** (count + 1)", "momentum**count", "look-ahead one step short"),
    Mutation("_alias", '1 if average == "before" else -1', "1", "never an average after"),
    Mutation("_alias", "scale_by_learning_rate(", "scale(", "sign of the step"),
    Mutation("_alias", "max_stack_size=max_stack_size", "max_stack_size=None", "bound not passed"),
    Mutation("_alias", "not in selected and", "in selected and", "selection turned round"),
    Mutation(
        "_axes",
        "chosen |= dict.fromkeys(found, value)",
        "chosen = dict.fromkeys(found, value) | chosen",
        "first match wins",
    ),
    Mutation("_axes", "[key] if key in paths else", "", "a whole path as a pattern"),
    Mutation("_axes", 'f"^{re.escape(key)}(/|$)"', 'f"^{re.escape(key)}"', "a prefix of a name"),
    Mutation(
        "_axes",
        "value.reduction_axis, value.output",
        "value.output_axis, value.reduction",
        "Optax's axes swapped",
    ),
    Mutation(
        "_spread",
        "[stack.shape[0] for stack in stacks]\n    factors",
        "[1] * len(stacks)\n    factors",
        "parts mixed up",
    ),
    Mutation("_buckets", "room.get(group, 0):", "room.get(group, 0) + 1:", "stack over its bound"),
    Mutation("_buckets", "leaf.dtype, None if", "None if", "dtypes mixed"),
    Mutation("_checks", "if needed.get(key) != given.get(key)", "if False", "state not checked"),
    Mutation(
        "_infer_axes",
        "MatrixAxes(rows, columns=batch[-1])",
        "MatrixAxes(batch[-1], columns=rows)",
        "Equinox's axes swapped",
    ),
    Mutation(
        "_infer_axes",
        'known=not reason.startswith("unknown")',
        "known=True",
        "unknown leaves in silence",
    ),
    Mutation("_decisions", "leaf: leaf.known)", "leaf: not leaf.known)", "unknown leaves last"),
    Mutation("_layers", "axes.columns, groups)", "axes.columns)", "groups of a layer lost"),
    Mutation("_siblings", "len(shape) - 3, 2", "len(shape) - 3, 1", "heads left in the rows"),
    Mutation("_siblings", "count and len(starts) == 1", "count", "layers by one leaf's word"),
    Mutation("_siblings", "range(layers, len(bias))", "range(len(bias))", "layers among the rows"),
    Mutation("_matrix_view", "key=self.order.__getitem__", "key=None", "no way back"),
    Mutation(
        "_matrix_view", "math.prod(shape[axis] for axis in axes)", "len(group)", "wrong sizes"
    ),
    Mutation(
        "_program/_calls",
        "layouts.without(layouts.in_turn(layout, [0]), [0])",
        "layouts.without(layout, [0])",
        "a scan's layers no batch",
    ),
    Mutation("_program/_mixing", "thin or active", "thin", "positions without a batch a matrix"),
    Mutation("_program/_products", "in_turn(layout, self.batch)", "layout", "batch axis lost"),
    Mutation("_program/_products", "groups > 1 and shape[row] == 1", "False", "depthwise a matrix"),
    Mutation(
        "_program/_products", "record.followed |= result.passed", "pass", "all matrices are heads"
    ),
    Mutation(
        "_program/_record",
        "if any(map(is_real, equation.outvars)):",
        "if False:",
        "unknown operations in silence",
    ),
    Mutation(
        "_program/_record", "self.followed |= passed", "_ = passed", "heads by their gradient alone"
    ),
    Mutation(
        "_program/_uses",
        "MatrixAxes(inputs, tuple(outputs)",
        "MatrixAxes(tuple(outputs), inputs",
        "rows for columns",
    ),
    Mutation(
        "_program/_values", 'lost[leaf] = Lost("unknown", met)', "pass", "axes lost in silence"
    ),
    Mutation(
        "_program/_values", "place.wide_axes <= layout.wide_axes", "True", "axes lost by mixing"
    ),
    Mutation("_program/_layouts", "first.axes if turned else", "", "a symmetric sum is no matrix"),
    Mutation("_program/_calls", "PASSES + 2 * len(carry)", "PASSES", "long loops cut off"),
    Mutation("_program/_record", "self._explained |= met", "pass", "a penalty refused"),
    Mutation(
        "_program/_record", 'part.name == "transpose"', "False", "a gradient's way back is a way on"
    ),
    Mutation("_program/_record", "self.products[number].alone:", "False:", "a wide table whitened"),
    Mutation("_program/_products", "meets and not", "not", "a graph behind the head"),
    Mutation(
        "_program/_mixing", "value.updated or not value.returned", "True", "head behind an update"
    ),
    Mutation("_program/_uses", "if not live:", "if False:", "unused is not said"),
    Mutation("_program/_uses", "parts |= dict.fromkeys(columns, 1)", "pass", "a layer a vector"),
    Mutation("_program/_uses", "parts[outputs[0]])", "1)", "groups lost"),
    Mutation("_axes", "if path not in table:", "if False:", "a table of another tree"),
    Mutation(
        "_decisions",
        "if not leaf.known:\n            raise",
        "if False:\n            raise",
        "unknown left out",
    ),
    Mutation("_program/_uses", "if last:", "if False:", "head rule off"),
    Mutation("_program/_uses", "if not first.is_alike(other)", "if False", "two uses not refused"),
    Mutation("_program/_uses", ' and kind not in ("table", "number")', "", "a tied table refused"),
    Mutation("_from_muon", "return steps.pop()", "return steps.pop() + 1", "one step too many"),
    Mutation("_from_muon", "if has[0] != has[1]:", "if False:", "leaves not compared"),
    Mutation("_scaling", "max(1.0, n / m)", "max(1.0, m / n)", "fan-in for fan-out"),
    Mutation("_selection", "and not any(p.search(name) for p in unwanted)", "", "no exclusion"),
    Mutation("_selection", "if not is_partial(tree):", "if True:", "a masked part must match"),
    Mutation("_exchange", "for name in names), axis]", "for name in names[::-1]), axis]", "blocks"),
    Mutation("_exchange", "        if back:", "        if not back:", "states of other experts"),
    Mutation("_exchange", "and axis not in whole", "", "a part of two groups"),
    Mutation("_exchange", "numbers < end", "numbers <= end", "a layout one matrix too far"),
    Mutation("_exchange", "name not in alone", "name not in cut", "experts travel"),
    Mutation("_mesh", "shared < whole", "shared > whole", "the rule for few matrices"),
    Mutation("_spread", "max(batches) > 1", "max(batches) > 99", "experts are cut up"),
    Mutation("_spread", "joined(*map(_laid_apart, stacks))", "joined(*stacks)", "layouts merge"),
    Mutation(
        "_transform", "method, rule, leaves", "method, lambda m, n: 1, leaves", "scale dropped"
    ),
    Mutation("_transform", "else after)", "else before)", "state stands still"),
    Mutation("_wrappers", "jnp.logical_or(state.switched, exceeded)", "exceeded", "no latch"),
    Mutation("_wrappers", "()) > threshold", "()) >= threshold", "switch at the threshold"),
    Mutation(
        "diagnostics/_check",
        "_LARGEST = 0.4, 1.3",
        "_LARGEST = 0.4, 3.0",
        "a doubled factor passes",
    ),
    Mutation(
        "diagnostics/_check",
        "functools.partial(optimizer.init)",
        "optimizer.init",
        "a plan from an old trace",
    ),
    Mutation("diagnostics/_spectra", "% every == 0", "% every == 1", "measured one step late"),
    Mutation(
        "diagnostics/_spectra",
        "max(resolve_rtol(rtol, matrix.dtype)",
        "max(resolve_rtol(rtol, s.dtype)",
        "bfloat16 by float32's tolerance",
    ),
    Mutation("diagnostics/_spectra", "rows * jnp.conj(vh)", "rows * vh", "missing conj"),
    Mutation(
        "diagnostics/_spectra",
        "least = resolve_rtol(rtol, matrix.dtype)",
        "least = resolve_rtol(rtol, s.dtype)",
        "bfloat16 by float32's tolerance",
    ),
    Mutation("diagnostics/_spectra", "gains < 0.5", "gains > 0.5", "kept energy for dropped"),
    Mutation("polar/_linalg", "_RTOL_IN_EPS = 84.0", "_RTOL_IN_EPS = 840.0", "tolerance times ten"),
    Mutation("polar/_halley", "_finish(scale * x", "_finish(x", "a single pass without the norm"),
    Mutation("polar/_halley", "4.375 * error2", "4.0 * error2", "a coefficient of the filter"),
    Mutation(
        "polar/_lapack",
        "in_turn = one_by_one(cpu)",
        "in_turn = cpu",
        "LAPACK gets batches",
    ),
    Mutation("polar/_linalg", "return jnp.conj(matrix.mT)", "return matrix.mT", "missing conj"),
    Mutation(
        "polar/_linalg",
        "default=lambda a, b: jnp.matmul(a, b,",
        "default=lambda a, b: jnp.matmul(b, b,",
        "another product on accelerators",
    ),
    Mutation("models/transformer", "self.mlp(self.mlp_norm(stream))", "self.mlp(stream)", "a norm"),
    Mutation("polar/_linalg", "rows: b[:, rows]", "rows: a[:, rows]", "b missing in a block"),
    Mutation("polar/_newton_schulz", "b * gramian + above\n", "b * gramian - above\n", "a sign"),
    Mutation("polar/_newton_schulz", "if long:  #", "if not long:  #", "A not made Hermitian"),
    Mutation(
        "polar/_newton_schulz",
        "(jnp.matmul if long else product)(step",
        "product(step",
        "the product of long steps mirrored",
    ),
    Mutation("polar/_coefficients", "+ 1 + error) / 2", "+ 1) / 2", "rows off their center"),
    Mutation(
        "polar/_oriented",
        "largest == 0, 0, jnp.nan",
        "largest == 0, jnp.nan, 0",
        "zero and NaN swapped",
    ),
    Mutation(
        "polar/_sketch",
        "leading = turned[:, -rank:]",
        "leading = turned[:, :rank]",
        "the least directions",
    ),
    Mutation(
        "polar/_stacks",
        "cpu=functools.partial(_in_turns, function, batches)",
        "cpu=jax.vmap(function)",
        "a stack vmapped on CPU",
    ),
    Mutation(
        "polar/_stacks",
        "return (update if method.batches else _one_at_a_time(update))(matrix, state)",
        "return update(matrix, state)",
        "a function of one's own vmapped on CPU",
    ),
    Mutation(
        "polar/_svd", "(f[:, None] + f[None])", "(f[:, None] - f[None])", "a derivative's sign"
    ),
]


def found_by(names: tuple[str, ...], copy: pathlib.Path) -> str | None:
    """Return the first test that fails, None if none does."""
    tests = [str(copy / "tests" / name) for name in names]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *OPTIONS, *tests],
            cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no end after {LIMIT} s"
    failed = re.search(r"^FAILED (?:.*/)?tests/(\S+)", run.stdout, re.MULTILINE)
    if run.returncode != 0 and not failed:  # what cannot be collected finds nothing
        return f"no run: {(run.stdout + run.stderr)[-200:]!r}"
    return failed[1] if failed else None


def verdict(mutation: Mutation, copy: pathlib.Path) -> tuple[bool, str]:
    """Return whether a mutation was caught, and by what."""
    file = copy / "egd_optax" / f"{mutation.file}.py"
    before = file.read_text()
    if before.count(mutation.text) != 1:
        return False, f"NOT APPLICABLE: {before.count(mutation.text)} times {mutation.text!r}"
    file.write_text(before.replace(mutation.text, mutation.instead))
    try:
        test = found_by(mutation.tests, copy)
    finally:
        file.write_text(before)
    return bool(test) and not test.startswith("no run"), test or "SURVIVED"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(w in m.file + m.breaks for w in words)]
    if not chosen:
        sys.exit(f"No mutation has {' or '.join(words)} in its file or description; none was made.")
    caught = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch, "copy")
        for name in ("egd_optax", "tests", "examples"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for tests in {mutation.tests for mutation in chosen}:
            if failed := found_by(tests, copy):
                sys.exit(f"Nothing is broken yet, and {failed} fails.")
        for mutation in chosen:
            fine, test = verdict(mutation, copy)
            caught.append(fine)
            sys.stdout.write(f"{mutation.file:22} {mutation.breaks:34} {test}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{sum(caught)} of {len(chosen)} mutations are caught.\n")
    return 0 if all(caught) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
