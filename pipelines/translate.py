"""Translate real PPG: a file, a folder, or a dataset (then as a Ray Data job)."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from p2es import plot
from p2es.demographics import Demographics
from p2es.errors import DatasetError, InputError, RecordError
from p2es.formats import RecordRef, find_records, read
from p2es.leads import LEADS
from p2es.model import P2Es
from p2es.segmenting import segment
from p2es.translator import Translation
from p2es.windows import FS_HZ, Window, collate, decode
from p2es_platform.settings import Settings

log = logging.getLogger(__name__)

NOTICE = "SYNTHETIC: drawn by a model from a pulse wave; not a recording. Not for diagnosis."

# Not of fixed size: pyarrow 25 cannot read a missing one back ("expected size 15360 but index 1 had size 0").
_SIGNAL = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        pa.field("window_id", pa.string()),
        pa.field("record", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("ecg_mv", _SIGNAL),
        pa.field("median_mv", _SIGNAL),
        pa.field("low_mv", _SIGNAL),
        pa.field("high_mv", _SIGNAL),
        pa.field("ppg_quality", pa.float32()),
        pa.field("heart_rate_bpm", pa.float32()),
        pa.field("rhythm", pa.string()),
        pa.field("model_version", pa.string()),
        pa.field("model_sha256", pa.string()),
    ],
    metadata={"synthetic": "true", "notice": NOTICE, "leads": ",".join(LEADS), "fs_hz": f"{FS_HZ:g}"},
)
"""A row a window; signals are (12, 1280) flattened, millivolt. `ecg_mv` is one draw."""


@dataclass(frozen=True)
class TranslateResult:
    """What was written.

    Attributes
    ----------
    folder : str
    windows : int
    figures : tuple of str
    refused : dict
        Reason to count, of windows and records that could not be translated.
    """

    folder: str
    windows: int
    figures: tuple[str, ...]
    refused: dict[str, int]


@dataclass(frozen=True)
class TranslateOptions:
    """How to translate."""

    samples: int = 20
    """Draws a window, for the band."""
    evaluations: int = 10
    """Network evaluations a draw."""
    seed: int = 0
    max_windows: int = 3
    """Windows of each record, spread evenly over its good ones; 0 takes all."""


@dataclass(frozen=True)
class LoadedModel:
    """A model and the version it answers for."""

    model: P2Es
    version: str
    sha256: str

    @property
    def caution(self) -> str:
        """What to say of a model that has never seen a real person; empty for others."""
        if not self.model.provenance.get("trained_on_simulated_people_only", False):
            return ""
        return "The model knows simulated people only: rate follows the pulse, lead shapes tell nothing of this person."


def files(
    path: str,
    loaded: LoadedModel,
    settings: Settings,
    options: TranslateOptions,
    person: Demographics | None = None,
) -> TranslateResult:
    """Translate a file or a folder of recordings.

    Parameters
    ----------
    path : str
    person : Demographics, optional
        Replaces what the files say.

    Raises
    ------
    InputError
        When nothing in `path` could be translated; the message has the reasons.
    """
    folder = settings.folder("translations", _file_name(path))
    figures: list[str] = []
    refused: dict[str, int] = {}
    written = 0
    references = find_records(path)
    for reference in tqdm(references, desc="translate", unit="record", disable=len(references) == 1):
        try:
            windows = _good_windows(reference, options.max_windows, refused)
        except RecordError as error:
            if len(references) == 1:
                raise
            refused[error.reason] = refused.get(error.reason, 0) + 1
            continue
        rows = []
        name = _record_name(reference)
        for index, window in enumerate(windows):
            window = window if person is None else _with_person(window, person)
            try:
                drawn = translate_windows(loaded.model, [window], options)[0]
            except InputError as error:
                refused[str(error)] = refused.get(str(error), 0) + 1
                continue
            rows.append(_row(window, name, drawn, loaded))
            figures += _figures(folder, f"{name}-{index}", window, drawn, loaded)
        if rows:
            _write(folder / f"{name}.parquet", rows)
            written += len(rows)
    if not written:
        reasons = "; ".join(f"{reason} ({count}x)" for reason, count in refused.items()) or "no recording with a PPG"
        raise InputError(f"nothing in {path} could be translated: {reasons}")
    return TranslateResult(str(folder), written, tuple(figures), refused)


def translate_windows(model: P2Es, windows: Sequence[Window], options: TranslateOptions) -> list[Translation]:
    """Translate windows as stored; the seed of a window is its own, whatever else is translated with it."""
    batch = collate(windows, model.denoiser.config.ppg_channels)
    ppg = np.where(batch.ppg_mask[:, None], batch.ppg, np.nan).astype(np.float32)
    return model.sample(
        ppg,
        [window.demographics for window in windows],
        fs_hz=FS_HZ,
        samples=options.samples,
        evaluations=options.evaluations,
        seeds=[_seed(options.seed, window) for window in windows],
    )


def _seed(seed: int, window: Window) -> int:
    """Give each window a seed of its own: one for all would draw the same noise and delay everywhere."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{window.window_id}".encode()).digest()[:6], "big")


def dataset(
    url: str, loaded_folder: str, version: str, settings: Settings, options: TranslateOptions
) -> TranslateResult:
    """Translate the test windows of a dataset with Ray Data; Ray must be running.

    Each worker loads the model once; the tables are written beside and renamed when all are whole.
    """
    import shutil

    import ray.data

    from p2es_platform.dataset import Dataset
    from p2es_platform.registry import folder_sha256

    logging.getLogger("ray.data").setLevel(logging.ERROR)

    source = Dataset.open(url)
    paths = source.shard_paths("test")
    if not paths:
        raise DatasetError(f"the dataset {url} has no test windows: ingest more people")
    target = settings.folder("translations", f"{_file_name(url)}-v{version}")
    staging = target.with_name(f".staging-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    results = ray.data.read_parquet(paths).map_batches(
        TranslateBatch,
        fn_constructor_args=(loaded_folder, version, folder_sha256(Path(loaded_folder)), options),
        batch_format="pyarrow",
        batch_size=8,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),
        num_cpus=1,
    )
    results.write_parquet(str(staging))
    drawn = sum(pq.read_metadata(file).num_rows for file in staging.glob("*.parquet")) if staging.exists() else 0
    refused = sum(shard.rows for shard in source.shards("test")) - drawn
    if not drawn:
        raise InputError(f"none of the {refused} test windows of {url} has a PPG good enough to translate")
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return TranslateResult(str(target), drawn, (), {"no PPG, or one too poor": refused} if refused else {})


class TranslateBatch:
    """The worker of a Ray Data job: loads the model once, translates batch after batch."""

    def __init__(self, folder: str, version: str, sha256: str, options: TranslateOptions) -> None:
        import torch

        torch.set_num_threads(1)
        self.loaded = LoadedModel(P2Es.load(Path(folder)), version, sha256)
        self.options = options

    def __call__(self, table: pa.Table) -> pa.Table:
        """Translate a table of `WINDOW_SCHEMA` to one of `SCHEMA`; refused windows are left out, and logged."""
        from p2es.windows import WINDOW_SCHEMA

        rows = []
        for window in decode(table.replace_schema_metadata(WINDOW_SCHEMA.metadata)):
            try:
                drawn = translate_windows(self.loaded.model, [window], self.options)[0]
            except InputError as error:
                log.warning("window %s refused: %s", window.window_id, error)
                continue
            rows.append(_row(window, window.recording, drawn, self.loaded))
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def _good_windows(reference: RecordRef, limit: int, refused: dict[str, int]) -> list[Window]:
    """Cut a record and give the windows that have a usable PPG, spread evenly when there are more than `limit`."""
    windows: list[Window] = []
    for recording in _recordings(reference):
        result = segment(recording, step_s=10.0, ids=lambda *parts: "-".join(parts))
        windows += [window for window in result.windows if window.ppg is not None]
        for reason, count in [*result.rejected.items(), *result.notes.items()]:
            refused[reason] = refused.get(reason, 0) + count
    if not windows:
        raise RecordError(f"{reference.path} has no usable PPG: a signal named PLETH or PPG is needed", "no_ppg")
    if limit and len(windows) > limit:
        windows = [windows[k] for k in np.linspace(0, len(windows) - 1, limit).round().astype(int)]
    return windows


def _recordings(reference: RecordRef) -> Iterator[Any]:
    yield from read(reference, "user")


def _with_person(window: Window, person: Demographics) -> Window:
    """Let what is known of `person` replace what the file says, field by field."""
    said = {name: value for name, value in vars(person).items() if value is not None}
    return replace(window, demographics=replace(window.demographics, **said))


def _row(window: Window, record: str, drawn: Translation, loaded: LoadedModel) -> dict[str, Any]:
    band = drawn.band_mv

    def flat(signal: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        return None if signal is None else signal.reshape(-1)

    return {
        "window_id": window.window_id,
        "record": record,
        "start_s": window.start_s,
        "ecg_mv": flat(drawn.ecg_mv[0]),
        "median_mv": flat(drawn.median_mv),
        "low_mv": flat(None if band is None else band[0]),
        "high_mv": flat(None if band is None else band[1]),
        "ppg_quality": drawn.ppg_quality,
        "heart_rate_bpm": drawn.heart_rate_bpm,
        "rhythm": drawn.rhythm,
        "model_version": loaded.version,
        "model_sha256": loaded.sha256,
    }


def _figures(folder: Path, name: str, window: Window, drawn: Translation, loaded: LoadedModel) -> list[str]:
    """Draw the 12 leads on paper and, where lead II was recorded, the generated one beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{name}-ecg.png"]
    title = f"{name}: drawn from PPG by p2es version {loaded.version}"
    plot.save(
        plot.paper_ecg(drawn.ecg_mv[0], band_mv=drawn.band_mv, ppg=window.ppg, title=title, footer=loaded.caution),
        made[0],
    )
    if window.ecg is not None and window.lead_mask[1]:
        made.append(folder / f"{name}-lead-II.png")
        recorded = np.where(window.lead_mask[:, None], window.ecg, np.nan)
        figure = plot.lead_comparison(
            drawn.ecg_mv[0], recorded, band_mv=drawn.band_mv, ppg=window.ppg, title=title, footer=loaded.caution
        )
        plot.save(figure, made[1])
    return [str(path) for path in made]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".staging")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), staging)
    staging.replace(path)


def _record_name(reference: RecordRef) -> str:
    """Name a record's files by its place in the archive, which no other record shares."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", reference.name.replace("/", "__"))


def _file_name(path: str) -> str:
    name = Path(path.rstrip("/")).name or "translation"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.split("?")[0]).removesuffix(".hea").removesuffix(".csv")
