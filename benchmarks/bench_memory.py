"""Memory of an ingest: from n to 10 n records, and for one record of 24 hours. `python benchmarks/bench_memory.py`."""

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

from common import peak_memory_mb

from p2es.simulator import simulate_person
from p2es.simulator.archive import write_wfdb
from p2es_platform.cluster import connect
from p2es_platform.settings import Settings
from pipelines import ingest
from pipelines.recipes import IngestConfig, demo


def people(folder: Path, count: int, duration_s: float) -> Path:
    """Write `count` simulated people."""
    for index in range(count):
        write_wfdb(simulate_person(3, index, duration_s), folder)
    return folder


def long_record(folder: Path, hours: float) -> Path:
    """Write one record of many hours: a simulated stretch of ten minutes, again and again."""
    header = write_wfdb(simulate_person(3, 0, 600.0), folder)
    first, *rest = header.read_text().splitlines()
    fields = first.split()
    times = int(hours * 6)
    fields[3] = str(int(fields[3]) * times)
    # Checksums are of the single stretch; nobody reads them.
    header.write_text("\n".join([" ".join(fields), *rest]) + "\n")
    for signals in list(folder.glob("*.dat")):
        data = signals.read_bytes()
        with signals.open("wb") as file:
            for _ in range(times):
                file.write(data)
    return folder


def main() -> None:
    """Print the peaks and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20, help="n; the larger archive has ten times as many")
    parser.add_argument("--hours", type=float, default=24.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small = people(root / "small", args.records, 122.0)
        large = people(root / "large", 10 * args.records, 122.0)
        hour = long_record(root / "hour", 1.0)
        day = long_record(root / "day", args.hours)
        peaks: dict[str, float] = {}
        ways = {f"{args.records} records": small, f"{10 * args.records} records": large, "1 hour": hour,
                f"{args.hours:g} hours": day}  # fmt: skip
        for name, archive in ways.items():
            settings = Settings(storage=str(root / "storage"), secret="benchmark")  # type: ignore[call-arg]
            recipe = dataclasses.replace(demo(), ingest=IngestConfig(name=name.replace(" ", "-"), task_records=8))
            found: list[float] = []
            # A Ray of its own for each, so that no worker brings memory of the one before.
            with connect(settings, local_cpus=2, object_store_mb=128), peak_memory_mb(found):
                result = ingest.run(recipe, settings, archive=str(archive), name=recipe.ingest.name)
            peaks[name] = found[0]
            print(f"{name:16s} {result.windows:7d} windows  peak {found[0]:7.0f} MB (whole tree, Ray included)")
            shutil.rmtree(root / "storage")
        values = list(peaks.values())
        print(
            f"from n to 10 n: {values[1] / values[0]:.2f}; from 1 hour to {args.hours:g}: {values[3] / values[2]:.2f}"
        )


if __name__ == "__main__":
    main()
