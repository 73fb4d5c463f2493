"""Independent work side by side, through joblib: one process a core, or the workers of a Dask cluster.

    parallel.run(joblib.delayed(recipes.sft_policy)(rung, demonstrations, seed=seed) for seed in range(5))

Where $RLHF_LAB_SCHEDULER names a Dask scheduler (`python -m rlhf_lab book --scheduler tcp://...` sets it), its workers,
on as many machines as there are, do the work. They must have the same code and see the same cache folder.
"""

import gc
import os
import platform
import uuid
from collections.abc import Callable, Iterable

import joblib

from rlhf_lab import checkpoints
from rlhf_lab.errors import CourseError

SECONDS_TO_CONNECT = 10
# For whoever starts workers. By what Dask sets instead, they give memory back so eagerly that training takes a third
# longer.
WORKER_SETTINGS = {f"distributed.nanny.pre-spawn-environ.MALLOC_{name}_THRESHOLD_": 2**30 for name in ("TRIM", "MMAP")}


class ClusterError(CourseError):
    """The Dask cluster cannot do the work."""


def run(jobs: Iterable[tuple], at_once: int = -1) -> list:
    """Do every `joblib.delayed(function)(...)`, as many at a time as there are cores or workers, each on one thread, or
    `at_once`, where they would share one GPU; the results, in order. Raises ClusterError for a scheduler that does not
    answer and a worker that is not like us."""
    if address := os.environ.get("RLHF_LAB_SCHEDULER"):
        return _run_on_cluster(address, jobs)
    with joblib.parallel_config("loky", n_jobs=at_once, inner_max_num_threads=1):
        return joblib.Parallel()(jobs)


def connect(address: str):
    """A client of the Dask scheduler at this address. Raises ClusterError if none answers."""
    import distributed

    try:
        return distributed.Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error)
    # The client that failed lies in a cycle of references. Its end takes a lock that the start of another client holds:
    # collected during that start, it would wait for itself, forever.
    gc.collect()
    raise ClusterError(
        f"No Dask scheduler answers at {address} ({reason}): start one by 'dask scheduler', or do without."
    )


def _run_on_cluster(address: str, jobs: Iterable[tuple]) -> list:
    cache = checkpoints.cache_folder()
    sign = cache / f".seen-{uuid.uuid4().hex}"
    with checkpoints.writable(cache):
        cache.mkdir(parents=True, exist_ok=True)
        sign.touch()
    try:
        with connect(address) as client:
            if not client.scheduler_info()["workers"]:
                raise ClusterError(f"The Dask scheduler at {address} has no workers: start some with 'dask worker'.")
            with client.as_current(), joblib.parallel_config("dask", n_jobs=-1):
                done = joblib.Parallel()(
                    joblib.delayed(_on_worker)(sign.name, _key(function, args, kwargs), function, args, kwargs)
                    for function, args, kwargs in jobs
                )
    finally:
        sign.unlink()
    for _, uses in done:
        checkpoints.add_to_log(uses)
    return [value for value, _ in done]


def _on_worker(sign: str, key: str | None, function: Callable, args: tuple, kwargs: dict) -> tuple[object, list[dict]]:
    """The value, and what the worker took from the cache or put there for it."""
    place = f"The Dask worker on {platform.node()}"
    if not (checkpoints.cache_folder() / sign).exists():
        raise ClusterError(
            f"{place} does not see our cache: start it with RLHF_LAB_CACHE naming that folder, on a disk of both."
        )
    if _key(function, args, kwargs) != key:
        raise ClusterError(f"{place} has other code or data than we: bring it up to date, and start it again.")
    before = len(checkpoints.log)
    return function(*args, **kwargs), checkpoints.log[before:]


def _key(function: Callable, args: tuple, kwargs: dict) -> str | None:
    return function.key(*args, **kwargs) if hasattr(function, "key") else None
