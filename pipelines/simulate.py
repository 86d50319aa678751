"""Simulate people as a WFDB archive, on Ray."""

import errno
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import ray
from tqdm import tqdm

from p2es.errors import ConfigError, DatasetError, P2EsError
from p2es.recording import Recording
from p2es.simulator import VERSION, simulate_person
from p2es.simulator.archive import write_wfdb
from p2es_platform.settings import Settings
from pipelines.recipes import Recipe, SimulateConfig, fingerprint

BATCH_PEOPLE = 16
"""People a task makes: about 2 s of work, so that starting a task costs little."""
_SHORTEST_S = 12.0
"""One window and its margins."""


@dataclass(frozen=True)
class SimulateResult:
    """Where the archive is, and what it took."""

    folder: str
    people: int
    seconds: float
    """Wall time."""
    reused: bool


def archive_url(recipe: Recipe, settings: Settings, population: str = "healthy") -> str:
    """Give the folder of the recipe's archive: another configuration or simulator version, another folder."""
    parts = [recipe.name, *([] if population == "healthy" else [population])]
    return settings.path("archives", "-".join([*parts, fingerprint(recipe.simulate, population, VERSION)]))


def run(recipe: Recipe, settings: Settings, population: str = "healthy") -> SimulateResult:
    """Write the recipe's simulated people as a WFDB archive; one that is whole already is reused.

    Ray must be running. The file `RECORDS`, written last, marks the archive as whole. A run that was cut
    short is taken up at the batch where it stopped. The truth behind each record is in `truth/`, one JSON
    line a person.

    Parameters
    ----------
    recipe : Recipe
    settings : Settings
    population : str
        `other` gives people whose settings are kept out of training.

    Raises
    ------
    ConfigError
        When the recipe asks for something that cannot be simulated.
    DatasetError
        When the storage is full.
    """
    started = time.monotonic()
    config = recipe.simulate
    _check(config)
    url = archive_url(recipe, settings, population)
    files, root = fsspec.core.url_to_fs(url)
    # Ray, never a glob, says what is in the archive: a folder may hold what an interrupted run left.
    if files.exists(f"{root}/RECORDS"):
        people = len(files.cat_file(f"{root}/RECORDS").split())
        if people == config.people:
            return SimulateResult(url, people, time.monotonic() - started, reused=True)
    names = _run_batches(config, population, url)
    _write(url, "RECORDS", "".join(f"{name}\n" for name in names).encode())
    return SimulateResult(url, len(names), time.monotonic() - started, reused=False)


def _check(config: SimulateConfig) -> None:
    if config.people < 1:
        raise ConfigError(f"simulate.people is {config.people}: ask for at least 1")
    if not _SHORTEST_S <= config.duration_s <= 86_400:
        raise ConfigError(f"simulate.duration_s is {config.duration_s:g}: give {_SHORTEST_S:g} to 86400 s")
    if config.seed < 0:
        raise ConfigError(f"simulate.seed is {config.seed}: give 0 or more")


def _run_batches(config: SimulateConfig, population: str, url: str) -> list[str]:
    """Give the names of all records, in order."""
    task = ray.remote(num_cpus=1, max_retries=3)(simulate_batch)
    starts = range(0, config.people, BATCH_PEOPLE)
    batches = [range(start, min(start + BATCH_PEOPLE, config.people)) for start in starts]
    pending = {task.remote(config, population, batch, url): k for k, batch in enumerate(batches)}
    names: dict[int, list[str]] = {}
    with tqdm(total=config.people, desc="simulate", unit="person", mininterval=1.0, leave=False) as bar:
        while pending:
            (done, *_), _ = ray.wait(list(pending), num_returns=1)
            batch = pending.pop(done)
            names[batch] = _result(done, list(pending))
            bar.update(len(names[batch]))
    return [name for k in range(len(batches)) for name in names[k]]


def _result(done: Any, pending: list[Any]) -> list[str]:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        for other in pending:
            ray.cancel(other)
        if isinstance(error.cause, P2EsError):
            raise error.cause from None
        raise


def simulate_batch(config: SimulateConfig, population: str, people: Sequence[int], url: str) -> list[str]:
    """Write the records of some people, and their truth last; a batch that is there is left as it is.

    Returns
    -------
    list of str
        Names of the records, in the order of `people`.
    """
    files, root = fsspec.core.url_to_fs(url)
    truth = f"truth/{people[0]:07d}-{len(people)}.jsonl"
    if files.exists(f"{root}/{truth}"):
        return [json.loads(line)["record"] for line in files.cat_file(f"{root}/{truth}").splitlines()]
    rows = []
    try:
        for index in people:
            recording = simulate_person(config.seed, index, config.duration_s, population)
            _write_record(recording, url)
            rows.append({"record": recording.record, "person": recording.person, **recording.provenance})
        _write(url, truth, "".join(json.dumps(row) + "\n" for row in rows).encode())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(f"no space left in {url}: free some and run again, nothing is lost") from None
        raise
    return [str(row["record"]) for row in rows]


def _write_record(recording: Recording, url: str) -> None:
    if "://" not in url:
        write_wfdb(recording, Path(url))
        return
    files, root = fsspec.core.url_to_fs(url)
    with tempfile.TemporaryDirectory() as folder:
        header = write_wfdb(recording, Path(folder))
        for path in [*(path for path in Path(folder).iterdir() if path != header), header]:
            files.put_file(str(path), f"{root}/{path.name}")


def _write(url: str, name: str, content: bytes) -> None:
    """Write a small file whole or not at all."""
    if "://" in url:
        files, root = fsspec.core.url_to_fs(url)
        files.pipe_file(f"{root}/{name}", content)
        return
    target = Path(url) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".writing-", delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(target)
