"""A connection to a Ray cluster, and calls of functions as its tasks."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lpe.errors import InputError

RETRIES = 3
"""Times that a call runs again whose process died, or that could not read or write a file."""

STARTS = 6
"""Times that a cluster is started on this machine: Ray waits for 30 seconds, which a busy one may exceed."""


@contextlib.contextmanager
def connected(address: str | None, cpus: int | None, environment: Mapping[str, str]) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine that ends with the block.

    Args:
        address: as Ray takes it, such as "auto"; None: one is started here. cpus: of that one; None: all.
        environment: variables of the workers.

    Raises:
        InputError: Ray is not installed; there is no cluster at the address, or one of another version.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A busy machine takes its time to start a worker or to answer.
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
    os.environ.setdefault("RAY_health_check_timeout_ms", "60000")
    # A task without a GPU sees those of its machine, as without Ray.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = _ray()
    own = {"num_cpus": cpus, "include_dashboard": False} if address is None else {}
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        for attempt in range(STARTS):
            try:
                ray.init(
                    address=address or "local",
                    runtime_env={"env_vars": dict(environment)},
                    logging_level="ERROR",
                    **own,
                )
                break
            except Exception as error:  # Ray has no class of its own for what goes wrong here
                ray.shutdown()
                if address is None and attempt < STARTS - 1 and "timed out" in str(error):
                    continue
                where = "on this machine" if address is None else f"at --address {address}"
                raise InputError(f"cannot use a Ray cluster {where} ({_first_line(error)})") from None
            finally:
                if is_main and handler is not None:
                    signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place
        yield
    finally:
        ray.shutdown()


def put(call: Callable[..., Any]) -> Any:
    """Put a function with most of its arguments where all tasks find it; for :func:`submit`."""
    ray = _ray()
    return ray.put(ray.cloudpickle.dumps(call))


def submit(
    prepare: Callable[[], object], resources: Mapping[str, float], call: Any, *own: Any, after: Any = ()
) -> Any:
    """Call a function as a task.

    Args:
        prepare: called before the function and its arguments are unpickled, such as to load a file in which
            their classes are defined. resources: num_cpus and num_gpus. call: see :func:`put`. own: further
            arguments. after: tasks that are to end first.

    Returns:
        Ray's reference to the result.
    """
    ray = _ray()
    task = ray.remote(max_retries=RETRIES, retry_exceptions=[OSError], **resources)(_called)
    return task.remote(prepare, call, pickle.dumps(own), *after)


def _called(prepare: Callable[[], object], call: bytes, own: bytes, *_: object) -> Any:
    prepare()
    function: Callable[..., Any] = pickle.loads(call)
    return function(*pickle.loads(own))


def result(task: Any, label: str) -> Any:
    """Wait for a task's result.

    Args:
        label: what it is, for an error.

    Raises:
        InputError: of the function; its process died again and again. What else the function raises comes
            as it is, with the traceback of the task.
    """
    ray = _ray()
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise InputError(
            f"{label}: its process died {RETRIES + 1} times ({_first_line(error)}); what was finished is kept"
        ) from None


def results(labels: Mapping[Any, str]) -> Iterator[tuple[str, Any]]:
    """Yield the label and the result of each task as it ends; where one fails, the others are cancelled."""
    ray = _ray()
    pending = list(labels)
    try:
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            yield labels[done], result(done, labels[done])
    finally:
        for task in pending:
            ray.cancel(task, force=True)


def _ray() -> Any:
    """Return the module: without types, for who has it not installed checks types too."""
    try:
        import ray
    except ImportError:
        raise InputError(
            "--engine ray needs Ray; install it by pip install 'low-precision-ensembling[ray]'"
        ) from None
    return ray


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
