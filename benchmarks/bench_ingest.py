"""Windows a second of `p2es ingest` against the same readers in a plain loop. `python benchmarks/bench_ingest.py`."""

import dataclasses
import itertools
import tempfile
from pathlib import Path

from common import interleaved, table

from p2es.formats import find_records, read
from p2es.segmenting import segment
from p2es.windows import encode
from p2es_platform.cluster import connect
from p2es_platform.settings import Settings
from pipelines import ingest, simulate
from pipelines.recipes import SimulateConfig, demo

PEOPLE = 96


def main() -> None:
    """Print the table; the first round of Ray, which starts the workers, does not count."""
    recipe = dataclasses.replace(demo(), simulate=SimulateConfig(people=PEOPLE))
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(storage=folder, secret="benchmark")  # type: ignore[call-arg]
        with connect(settings, local_cpus=2, object_store_mb=256):
            archive = simulate.run(recipe, settings).folder
            names = (f"round-{k}" for k in itertools.count())

            def loop() -> int:
                windows = [
                    window
                    for reference in find_records(archive)
                    for recording in read(reference, "simulated")
                    for window in segment(recording, step_s=10.0, ids=settings.hashed_id).windows
                ]
                (Path(folder) / "bare.arrow").write_bytes(encode(windows).to_batches()[0].serialize())
                return len(windows)

            def over_ray() -> int:
                return ingest.run(recipe, settings, archive=archive, name=next(names)).windows

            over_ray()
            rates = interleaved({"plain loop (bare)": loop, "p2es ingest, Ray Data, 2 CPUs": over_ray}, rounds=2)
    table(f"ingest of {PEOPLE} simulated records of 82 s", "windows/s", rates, "plain loop (bare)")


if __name__ == "__main__":
    main()
