"""Simulate people as a WFDB archive, on Ray."""

import errno
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import ray
from tqdm import tqdm

from p2es.errors import DatasetError, P2EsError
from p2es.formats.simulated import SimulateConfig, in_whole_frames
from p2es.recording import Recording
from p2es.simulator import VERSION, simulate
from p2es.simulator.archive import write_wfdb
from p2es.simulator.truth import Truth
from p2es_platform.settings import Settings
from pipelines.recipes import Recipe, fingerprint

BATCH_S = 2.0
"""Work of a task: so much that starting it costs little, so little that none is long waited for."""
# CPU seconds to simulate and write a recording, and for each second of it (measured, 12 leads at 250 Hz and a PPG).
_RECORD_S, _SECOND_S = 0.15, 0.0012
_BYTES_A_SECOND = 80_000
"""Memory of a recording that is being made, of 250 Hz: 60 kB measured for simulating a day, and room for writing."""
_LONG_S = 3600.0
"""A longer recording asks Ray for its memory: a day takes 5.2 GB to simulate, four at once end the machine."""


@dataclass(frozen=True)
class SimulateResult:
    """Where the archive is, and what it took."""

    folder: str
    people: int
    records: int
    """People times days."""
    seconds: float
    """Wall time."""
    reused: bool


def archive_url(recipe: Recipe, settings: Settings, population: str | None = None) -> str:
    """Give the folder of the recipe's archive: another configuration or simulator version, another folder."""
    config = _of(recipe.simulate, population)
    parts = [recipe.name, *([] if config.population == "healthy" else [config.population])]
    return settings.path("archives", "-".join([*parts, fingerprint(config, VERSION)]))


def _of(config: SimulateConfig, population: str | None) -> SimulateConfig:
    return config if population is None else replace(config, population=population)


def run(recipe: Recipe, settings: Settings, population: str | None = None) -> SimulateResult:
    """Write the recipe's simulated people as a WFDB archive; one that is whole already is reused.

    Ray must be running. The file `RECORDS`, written last, marks the archive as whole. A run that was cut
    short is taken up at the batch where it stopped. The truth behind each record is in its annotations and
    in `truth/`, one JSON line a record.

    Parameters
    ----------
    recipe : Recipe
    settings : Settings
    population : str, optional
        Instead of the recipe's: `other` gives people whose settings are kept out of training.

    Raises
    ------
    ConfigError
        When there is no such population.
    DatasetError
        When the storage is full.
    """
    started = time.monotonic()
    config = _of(recipe.simulate, population)
    url = archive_url(recipe, settings, population)
    files, root = fsspec.core.url_to_fs(url)
    # Ray, never a glob, says what is in the archive: a folder may hold what an interrupted run left.
    if files.exists(f"{root}/RECORDS"):
        records = len(files.cat_file(f"{root}/RECORDS").split())
        if records == config.records:
            return SimulateResult(url, config.people, records, time.monotonic() - started, reused=True)
    names = _run_batches(config, url)
    _write(url, "RECORDS", "".join(f"{name}\n" for name in names).encode())
    return SimulateResult(url, config.people, len(names), time.monotonic() - started, reused=False)


def batches_of(config: SimulateConfig) -> list[range]:
    """Cut the recordings into batches of about `BATCH_S` of work; what they are depends on the configuration alone."""
    each_s = _RECORD_S + _SECOND_S * config.duration_s * config.ecg_fs_hz / 250
    size = max(round(BATCH_S / each_s), 1)
    return [range(start, min(start + size, config.records)) for start in range(0, config.records, size)]


def _run_batches(config: SimulateConfig, url: str) -> list[str]:
    """Give the names of all records, in order."""
    batches = batches_of(config)
    task = ray.remote(num_cpus=1, memory=_memory(config), max_retries=3)(simulate_batch)
    pending = {task.remote(config, batch, url): k for k, batch in enumerate(batches)}
    names: dict[int, list[str]] = {}
    with tqdm(total=config.records, desc="simulate", unit="record", mininterval=1.0, leave=False) as bar:
        while pending:
            (done, *_), _ = ray.wait(list(pending), num_returns=1)
            batch = pending.pop(done)
            names[batch] = _result(done, list(pending))
            bar.update(len(names[batch]))
    return [name for k in range(len(batches)) for name in names[k]]


def _memory(config: SimulateConfig) -> int | None:
    """Give the bytes that a task asks for: those of a long recording, or what the largest node has if that is less."""
    if config.duration_s <= _LONG_S:
        return None
    wanted = int(_BYTES_A_SECOND * config.duration_s * config.ecg_fs_hz / 250)
    return min(wanted, max(int(node["Resources"].get("memory", wanted)) for node in ray.nodes()))


def _result(done: Any, pending: list[Any]) -> list[str]:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        for other in pending:
            ray.cancel(other)
        if isinstance(error.cause, P2EsError):
            raise error.cause from None
        raise


def simulate_batch(config: SimulateConfig, numbers: Sequence[int], url: str) -> list[str]:
    """Write some of the recordings, and their truth last; a batch that is there is left as it is.

    Parameters
    ----------
    config : SimulateConfig
    numbers : sequence of int
        Which, of `config.records`.
    url : str
        Of the archive.

    Returns
    -------
    list of str
        Names of the records, in the order of `numbers`.
    """
    files, root = fsspec.core.url_to_fs(url)
    truth = f"truth/{numbers[0]:07d}-{len(numbers)}.jsonl"
    if files.exists(f"{root}/{truth}"):
        return [json.loads(line)["record"] for line in files.cat_file(f"{root}/{truth}").splitlines()]
    try:
        rows = [_write_record(config, number, url) for number in numbers]
        _write(url, truth, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(f"no space left in {url}: free some and run again, nothing is lost") from None
        raise
    return [str(row["record"]) for row in rows]


def _write_record(config: SimulateConfig, number: int, url: str) -> dict[str, Any]:
    """Write one recording with its annotations, and give the row of its truth."""
    index, day = config.person_and_day(number)
    made = simulate(
        config.seed, index, config.duration_s, config.population, day=day, ecg_fs_hz=config.ecg_fs_hz
    )  # fmt: skip
    _publish(in_whole_frames(made.recording), made.truth, url)
    return {
        "record": made.recording.record,
        "person": made.recording.person,
        "seed": config.seed,
        "population": config.population,
        "index": index,
        "day": day,
        **made.truth.scalars(),
    }


def _publish(recording: Recording, truth: Truth, url: str) -> None:
    if "://" not in url:
        write_wfdb(recording, Path(url), truth)
        return
    files, root = fsspec.core.url_to_fs(url)
    with tempfile.TemporaryDirectory() as folder:
        header = write_wfdb(recording, Path(folder), truth)
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
