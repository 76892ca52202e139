"""One run: log, checkpoints, a picture, and text from the model at the end.

Killed at any point, the same command goes on from the last checkpoint and ends with the same bits:
the batches are a function of seed and step, and all else is in the checkpoint. What the log has
from after the checkpoint is written again.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from arena.space import Settings, traced
from common.checks import difference
from common.environment import environment
from common.files import check_writable, locked
from tqdm import tqdm

from language.config import Config
from language.corpus import Corpus
from language.course import Point, Program, State
from language.figures import Curve, draw
from language.optimizers import OPTIMIZERS, choices_of

Line: TypeAlias = dict[str, Any]
HEADER, STEP, RESUMED, END = "language", "step", "resumed", "end"
SAMPLE = 400  # bytes of text at the end


class DivergedError(ValueError):
    """A loss is not finite."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        folder: of the log, the picture and the checkpoints.
        config: the model and its training.
        optimizer: name of the optimizer.
        settings: its numbers and choices, a value for each knob.
        seed: of the initial values and the batches.
        text: what is read.

    Raises:
        ValueError: a seed that NumPy or JAX does not take.
    """

    folder: Path
    config: Config
    optimizer: str
    settings: Settings
    seed: int
    text: Corpus

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"a seed lies in [0, 2^31), got {self.seed}; 0, say")

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def picture(self) -> Path:
        return self.folder / "loss.png"

    def recipe(self) -> Line:
        """Return what decides the result."""
        return {
            "config": self.config.to_json(),
            "optimizer": self.optimizer,
            "settings": self.settings,
            "seed": self.seed,
            "corpus": self.text.facts,
        }


def train(run: Run) -> Line:
    """Train to the end, from wherever the folder's last checkpoint is, and return the last line.

    Raises:
        ValueError: the folder holds another run, or a window does not fit into the text.
        DivergedError: the loss is not finite; what was logged before is kept.
        OSError: the folder cannot be written, or another command trains in it.
    """
    run.text.check_context(run.config.context)
    check_writable(run.log)
    with locked(run.folder, wait=False), _checkpoints(run.folder) as checkpoints:
        lines = _lines_so_far(run, checkpoints.latest_step() or 0)
        if lines[-1]["kind"] != END:
            _go_on(run, lines, checkpoints)
    draw([curve(run, lines)], run.picture)
    return lines[-1]


def read(path: Path) -> list[Line]:
    """Return the lines of a log; it is replaced as a whole, so none is cut off.

    Raises:
        ValueError: the file is no log of a run.
    """
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        numbered = all("step" in line for line in lines[1:] if line["kind"] != END)
        if lines[0]["kind"] == HEADER and numbered:
            return lines
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    raise ValueError(
        f"a run's log has a header and then numbered steps, and {path} has not; move it away"
    )


def _lines_so_far(run: Run, last: int) -> list[Line]:
    """Return the lines up to the last checkpoint; refuse what is of another run."""
    if not run.log.exists():
        if last:
            raise ValueError(
                f"checkpoints belong to a log, and there is no {run.log}; choose another --folder"
            )
        return [{"kind": HEADER, **run.recipe(), **environment()}]
    header, *lines = read(run.log)
    for name, value in json.loads(json.dumps(run.recipe())).items():
        if header.get(name) != value:
            raise ValueError(
                f"a folder holds one run, and {run.folder} was made with "
                f"{difference(name, header.get(name), value)}; give the same options to go on "
                "with it, or another --folder"
            )
    if lines and lines[-1]["kind"] == END:
        return [header, *lines]
    return [header, *(line for line in lines if line["step"] <= last)]


def _go_on(run: Run, lines: list[Line], checkpoints: ocp.CheckpointManager) -> None:
    """Train, and add each validation to the log, then to the checkpoints."""
    entry = OPTIMIZERS[run.optimizer]
    program = Program(run.config, entry, run.text, choices_of(run.settings))
    print(program.recipe.axes)
    values = traced(entry.numbers, run.settings)
    after, state = _restored(checkpoints, program.start(values, run.seed))
    if after:
        print(f"going on after step {after}")
        lines.append({"kind": RESUMED, "step": after})
    write(run.log, lines)
    print("compiling ...", flush=True)
    program.compile(values, state)
    with tqdm(total=run.config.steps, initial=after, unit="step", disable=None) as bar:
        for point in program.course(values, state, run.seed, after, bar.update):
            _check_finite(run, point)
            lines.append(_line(run, lines, point))
            write(run.log, lines)
            state = point.state
            saved = {"leaves": jax.tree.leaves(state)}
            checkpoints.save(point.step, args=ocp.args.StandardSave(saved))
            bar.set_postfix(train=f"{point.loss:.3f}", validation=f"{point.validation:.3f}")
    lines.append(_end(run, program, lines, state))
    checkpoints.wait_until_finished()
    write(run.log, lines)


def _check_finite(run: Run, point: Point) -> None:
    if not (math.isfinite(point.loss) and math.isfinite(point.validation)):
        raise DivergedError(
            f"the loss must stay finite, and {OPTIMIZERS[run.optimizer].title} has {point.loss} in "
            f"training and {point.validation} in validation at step {point.step}; lower the "
            "learning rate, and name another --folder"
        )


def _line(run: Run, lines: list[Line], point: Point) -> Line:
    """Return a validation's line: seconds are those of all steps so far, without validations."""
    before = [line["seconds"] for line in lines if line["kind"] == STEP]
    return {
        "kind": STEP,
        "step": point.step,
        "tokens": point.step * run.config.tokens,
        "loss": point.loss,
        "validation": point.validation,
        "seconds": round(sum(before[-1:]) + point.seconds, 3),
    }


def curve(run: Run, lines: list[Line]) -> Curve:
    """Return the losses of a run's log."""
    points = [line for line in lines if line["kind"] == STEP]
    return Curve(
        OPTIMIZERS[run.optimizer].title,
        [line["step"] for line in points],
        [line["seconds"] for line in points],
        [line["validation"] for line in points],
        [line["loss"] for line in points],
    )


def _end(run: Run, program: Program, lines: list[Line], state: State) -> Line:
    """Return the last line: what came out, a hash of it, and text."""
    prompt = run.text.validation[: run.config.context].astype(np.int32)
    drawn = program.network.continued(state.params, prompt, SAMPLE, run.seed)
    digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state)))
    last = max((line for line in lines if line["kind"] == STEP), key=lambda line: line["step"])
    return {
        "kind": END,
        "validation": last["validation"],
        "state": digest.hexdigest(),
        "prompt": prompt.astype(np.uint8).tobytes().decode("utf-8", "replace"),
        "text": drawn.decode("utf-8", "replace"),
    }


@contextlib.contextmanager
def _checkpoints(folder: Path) -> Iterator[ocp.CheckpointManager]:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    with ocp.CheckpointManager((folder / "steps").resolve(), options=options) as checkpoints:
        yield checkpoints


def _restored(checkpoints: ocp.CheckpointManager, state: State) -> tuple[int, State]:
    """Return the last checkpoint's step and state; 0 and the given one if there is none."""
    last = checkpoints.latest_step()
    if last is None:
        return 0, state
    leaves, structure = jax.tree.flatten(state)
    like = {"leaves": [ocp.utils.to_shape_dtype_struct(leaf) for leaf in leaves]}
    try:
        saved = checkpoints.restore(last, args=ocp.args.StandardRestore(like))
    except Exception as error:  # what Orbax raises depends on the file and on its damage
        raise ValueError(
            f"checkpoint {checkpoints.directory / str(last)} cannot be read "
            f"({str(error).partition(chr(10))[0][:200]}); delete it to go on from the one before"
        ) from error
    return last, jax.tree.unflatten(structure, saved["leaves"])


def write(path: Path, lines: list[Line]) -> None:
    """Replace the log, wholly or not at all."""
    whole = path.with_suffix(".part")
    whole.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    whole.replace(path)
