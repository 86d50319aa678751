"""`p2es ingest` against a plain loop and a process pool that do the same work. `python benchmarks/bench_ingest.py`.

The same work: find the records, hash them, read, cut into windows (with quality, beats, fingerprint), encode as
Parquet, write and sync, look for copies. The plain loop does it in one process; the pool in two, without Ray but for
the search for copies, which the ingest distributes too.
"""

import argparse
import dataclasses
import hashlib
import itertools
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from common import cost_table, measured

from p2es.formats import RecordRef, content_files, find_records, read
from p2es.segmenting import cut
from p2es_platform.cluster import connect
from p2es_platform.parts import Part, PartWriter
from p2es_platform.settings import Settings
from pipelines import ingest, simulate
from pipelines.copies import without_twins
from pipelines.recipes import IngestConfig, SimulateConfig, demo

CPUS = 2


def one_batch(references: list[RecordRef], url: str, key: str, settings: Settings) -> Part:
    """Do what a task of the ingest does, without Ray."""
    windows = 0
    with PartWriter(url, key, "simulated") as writer:
        for reference in references:
            for path in content_files(reference):
                with path.open("rb") as file:
                    hashlib.file_digest(file, "sha256")
            for recording in read(reference, "simulated"):
                for piece in cut(recording, step_s=10.0, ids=settings.hashed_id, split="train"):
                    writer.add(piece.windows)
                    windows += len(piece.windows)
        return writer.finish({}, candidates=windows)


def whole_loop(archive: str, url: str, settings: Settings) -> int:
    """Do the whole in one process; in one of its own, where no Ray runs that the search for copies would use."""
    return finished(url, [one_batch(find_records(archive), url, "loop", settings)])


def finished(url: str, parts: list[Part]) -> int:
    """Look for copies, as the ingest does before it commits; give the number of windows."""
    return sum(part.rows for part in without_twins(url, parts, [], "leave_out"))


def main() -> None:
    """Print the table; the first round of Ray and of the pool, which starts the workers, does not count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=128)
    parser.add_argument("--duration-s", type=float, default=302.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    simulated = SimulateConfig(people=args.people, duration_s=args.duration_s)
    recipe = dataclasses.replace(demo(), simulate=simulated, ingest=IngestConfig())
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(storage=folder, secret="benchmark")  # type: ignore[call-arg]
        with (
            connect(settings, local_cpus=CPUS, object_store_mb=128),
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone,
            ProcessPoolExecutor(CPUS, mp_context=get_context("spawn")) as pool,
        ):
            archive = simulate.run(recipe, settings).folder
            names = (f"round-{k}" for k in itertools.count())

            def loop() -> int:
                return alone.submit(whole_loop, archive, str(Path(folder) / next(names)), settings).result()

            def over_pool() -> int:
                references = find_records(archive)
                url = str(Path(folder) / next(names))
                size = 8
                batches = [references[k : k + size] for k in range(0, len(references), size)]
                jobs = [pool.submit(one_batch, batch, url, f"{k}", settings) for k, batch in enumerate(batches)]
                return finished(url, [job.result() for job in jobs])

            def over_ray() -> int:
                return ingest.run(recipe, settings, archive=archive, name=next(names)).windows

            over_ray()
            over_pool()
            loop()
            ways = {
                "plain loop (bare)": loop,
                f"process pool of {CPUS}": over_pool,
                f"p2es ingest, {CPUS} CPUs": over_ray,
            }
            costs = measured(ways, rounds=args.rounds)
        spilled = sum(
            path.stat().st_size for path in Path(tempfile.gettempdir()).glob("ray-*/session_*/ray_spilled*/*")
        )
    cost_table(
        f"ingest of {args.people} simulated records of {args.duration_s:g} s, 12 leads and PPG",
        "window", costs, "plain loop (bare)",
    )  # fmt: skip
    ours, theirs = (costs[name].rates for name in (f"p2es ingest, {CPUS} CPUs", f"process pool of {CPUS}"))
    rounds = sorted(mine / pool for mine, pool in zip(ours, theirs, strict=True))
    print(f"wall of the ingest over the pool, each round: {', '.join(f'{ratio:.2f}' for ratio in rounds)}")
    print(f"spilled to disk: {spilled} bytes")


if __name__ == "__main__":
    main()
