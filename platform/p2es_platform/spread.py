"""Independent tasks over Ray, or one after the other where no Ray runs: results in the order of the tasks."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from p2es.errors import P2EsError


def spread(
    work: Callable[..., Any],
    shared: Any,
    tasks: Iterable[tuple[Any, ...]],
    *,
    done: Callable[[int], object] | None = None,
    gpus: float = 0.0,
) -> list[Any]:
    """Call `work(shared, *task)` for each task; a task takes one CPU.

    What a task gives must depend on its arguments alone: then the results are the same for any number of workers.

    Parameters
    ----------
    work : callable
        Must survive pickling when Ray runs.
    shared : any
        Sent to each node once.
    tasks : iterable of tuple
        Taken as workers come free, so that no more than a few wait in memory.
    done : callable, optional
        Told the number of a task when its result is there; in any order.
    gpus : float
        Of each task.

    Raises
    ------
    P2EsError
        What a task raised; any other exception comes as Ray's own.
    """
    import ray

    numbered = enumerate(tasks)
    if not ray.is_initialized():
        results = []
        for number, task in numbered:
            results.append(work(shared, *task))
            if done is not None:
                done(number)
        return results
    try:
        found = dict(_over_ray(work, shared, numbered, done, gpus))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, P2EsError):
            raise error.cause from None
        raise
    return [found[number] for number in sorted(found)]


def _over_ray(
    work: Callable[..., Any],
    shared: Any,
    numbered: Iterator[tuple[int, tuple[Any, ...]]],
    done: Callable[[int], object] | None,
    gpus: float,
) -> Iterator[tuple[int, Any]]:
    import ray

    place = ray.put(shared)
    remote = ray.remote(num_cpus=1, num_gpus=gpus)(work)
    # One that runs and one that waits for each CPU: a worker never idles for want of the next.
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[Any, int] = {}
    try:
        for number, task in numbered:
            waiting[remote.remote(place, *task)] = number
            while len(waiting) >= limit:
                yield from _ready(waiting, done)
        while waiting:
            yield from _ready(waiting, done)
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _ready(waiting: dict[Any, int], done: Callable[[int], object] | None) -> Iterator[tuple[int, Any]]:
    import ray

    ready, _ = ray.wait(list(waiting), num_returns=1)
    for reference in ready:
        number = waiting.pop(reference)
        result = ray.get(reference)
        if done is not None:
            done(number)
        yield number, result
