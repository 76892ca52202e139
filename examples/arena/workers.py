"""Processes that work on jobs, each with one core of its own, and report result by result."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from grokking.session import one_blas_thread

from arena.execute import AnyJob, execute
from arena.field import load
from arena.plan import Job
from arena.record import Line


class WorkerFailed(RuntimeError):
    """A job ended by an error, or its process by a signal."""


class Worker:
    """A process and the job that it has.

    Args:
        source: name or file of the task, to be loaded there.
        core: which of this machine's cores it has for itself; None means all of them.
    """

    def __init__(self, source: str, core: int | None):
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        arguments = (source, there, core, os.getpid())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        there.close()
        self.job: AnyJob | None = None
        self.known: set[tuple[str, int]] = set()

    def start(self, job: AnyJob) -> None:
        """Hand over a job."""
        self.job = job
        if isinstance(job, Job):
            self.known.add((job.optimizer, job.batch))
        with contextlib.suppress(OSError):  # if it has ended, `receive` says why
            self.connection.send(job)

    def receive(self) -> Line | None:
        """Return a result's line, or None as the job is done.

        Raises:
            WorkerFailed: it ended by an error.
        """
        name = getattr(self.job, "optimizer", "timing")
        try:
            kind, content = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise WorkerFailed(
                f"a worker's process ended while it had {name}; was its memory used up? What was "
                "logged is kept; start again, with one worker if so"
            ) from error
        if kind == "failed":
            raise WorkerFailed(f"{name} must run on this task, and it fails:\n{content}")
        if kind == "done":
            self.job = None
            return None
        return content

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


class Pool:
    """Some workers; leaving the `with` block ends them."""

    def __init__(self, source: str, count: int, pinned: bool = True):
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}; 2 is the default")
        self.workers = [Worker(source, i if pinned else None) for i in range(count)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()

    @property
    def idle(self) -> list[Worker]:
        """The workers without a job."""
        return [worker for worker in self.workers if worker.job is None]

    @property
    def running(self) -> list[AnyJob]:
        """The jobs at work."""
        return [worker.job for worker in self.workers if worker.job is not None]

    def results(self) -> Iterator[Line]:
        """Wait for something to happen, and yield the lines that came."""
        busy = {worker.connection: worker for worker in self.workers if worker.job is not None}
        for connection in wait(list(busy)):
            line = busy[connection].receive()  # type: ignore
            if line is not None:
                yield line


def _serve(source: str, connection: Connection, core: int | None, parent: int) -> None:
    """Work on the jobs that come, until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if core is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))  # before JAX counts them
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    try:
        field = load(source)
        with one_blas_thread():
            while True:
                for line in execute(field, connection.recv()):
                    connection.send(("line", line))
                connection.send(("done", None))
    except Exception as error:
        connection.send(("failed", _told(error)))


def _told(error: Exception) -> str:
    return "".join(traceback.format_exception(error, limit=-3)).strip()


def _end_with(parent: int) -> Any:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
