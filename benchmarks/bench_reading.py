"""Reading a dataset for training against bare pyarrow; bytes on disk. `python benchmarks/bench_reading.py`."""

import argparse
import dataclasses
import io
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import cost_table, measured

from p2es.windows import decode
from p2es_platform.cluster import connect
from p2es_platform.dataset import Dataset
from p2es_platform.settings import Settings
from pipelines import ingest, simulate
from pipelines.recipes import SimulateConfig, demo

SIGNALS = ["ecg", "ecg_scale_mv", "ecg_stored", "ppg", "ppg_scale", "ppg_mask"]


def scaled(batch: pa.RecordBatch, name: str, scale: str) -> int:
    """Turn the stored counts of a batch into float32; give how many."""
    rows = [row for row in batch[name].to_pylist() if row]
    factors = np.repeat([x for x in batch[scale].to_pylist() if x], [len(row) // 2 for row in rows])
    return (np.frombuffer(b"".join(rows), "<i2") * factors.astype(np.float32)).size


def main() -> None:
    """Print the tables: windows a second, time to the first batch, bytes a window."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    recipe = dataclasses.replace(demo(), simulate=SimulateConfig(people=args.people, duration_s=122.0))
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(storage=folder, secret="benchmark")  # type: ignore[call-arg]
        with connect(settings, local_cpus=2, object_store_mb=128):
            archive = simulate.run(recipe, settings).folder
            url = ingest.run(recipe, settings, archive=archive, name="reading").url
        paths = Dataset.open(url).shard_paths("train")

        def bare() -> int:
            """Read the same int16 and scale it to float32, straight from pyarrow: no lead completed, nothing masked."""
            rows = 0
            for path in paths:
                for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=SIGNALS):
                    rows += (
                        batch.num_rows
                        if scaled(batch, "ecg", "ecg_scale_mv") and scaled(batch, "ppg", "ppg_scale")
                        else 0
                    )
            return rows

        def stored() -> int:
            return len(Dataset.open(url).store("train"))

        def streamed() -> int:
            return sum(len(batch) for batch in Dataset.open(url).batches("train"))

        def decoded() -> int:
            return sum(len(decode(table)) for table in Dataset.open(url).read_windows("train"))

        started = time.perf_counter()
        store = Dataset.open(url).store("train", limit=64)
        store.batch(np.arange(32))
        first_s = time.perf_counter() - started
        ways = {
            "pyarrow, scaled to float32 (bare)": bare,
            "Dataset.batches: scaled, 12 leads, masks": streamed,
            "Dataset.store, as training reads": stored,
            "decode to windows": decoded,
        }
        costs = measured(ways, rounds=args.rounds)
        cost_table(f"reading {Dataset.open(url).rows('train')} windows", "window", costs,
                   "pyarrow, scaled to float32 (bare)")  # fmt: skip
        print(f"time to the first batch: {first_s:.2f} s")
        sizes(Dataset.open(url))


def sizes(dataset: Dataset) -> None:
    """Print bytes a window beside float32 with zstd."""
    rows = sum(shard.rows for shard in dataset.shards())
    ours = sum(shard.bytes for shard in dataset.shards()) / rows
    windows = decode(next(iter(dataset.read_windows("train"))))
    ecg = np.stack([window.ecg for window in windows if window.ecg is not None])
    ppg = np.stack([window.ppg for window in windows if window.ppg is not None])
    plain = pa.table({
        "ecg": pa.FixedSizeListArray.from_arrays(pa.array(ecg.ravel()), ecg[0].size),
        "ppg": pa.FixedSizeListArray.from_arrays(pa.array(ppg.ravel()), ppg[0].size),
    })  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(plain, sink, compression="zstd", use_dictionary=False, row_group_size=64)
    theirs = len(sink.getvalue()) / len(ecg)
    print(f"\nbytes a window: {ours:.0f}; float32 with zstd (bare): {theirs:.0f}; ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
