"""`p2es translate` of files: what comes out, and what is said when nothing can."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from p2es.demographics import Demographics
from p2es.errors import InputError, RecordError
from p2es.leads import law_residuals
from p2es.recording import SignalKind
from p2es.simulator import simulate_person
from p2es.simulator.archive import write_wfdb
from pipelines import translate

OPTIONS = translate.TranslateOptions(samples=20, evaluations=2, max_windows=2)


def changed(recording, change):
    """Give the recording with its PPG samples changed."""
    signals = tuple(
        dataclasses.replace(s, samples=change(s.samples.copy())) if s.kind is SignalKind.PPG else s
        for s in recording.signals
    )
    return dataclasses.replace(recording, signals=signals)


def loaded(trained):
    return translate.LoadedModel(trained[0], "7", "abc")


@pytest.fixture(scope="module")
def recording():
    return simulate_person(3, 0, 42.0)


def test_a_file_becomes_a_table_and_figures_marked_synthetic(recording, trained, settings, tmp_path):
    header = write_wfdb(recording, tmp_path / "archive")
    done = translate.files(str(header), loaded(trained), settings, OPTIONS)
    assert done.windows == 2
    assert [path.rsplit("-", 1)[-1] for path in done.figures] == ["ecg.png", "II.png"] * 2
    for path in done.figures:
        with Image.open(path) as image:
            assert "SYNTHETIC" in image.info["Comment"]
    (table,) = (pq.read_table(path) for path in sorted(p for p in tmp_path.rglob("*.parquet")))
    assert table.schema.metadata[b"synthetic"] == b"true"
    for column in ("ecg_mv", "median_mv"):
        ecg = np.array(table[column].to_pylist(), np.float32).reshape(-1, 12, 1280)
        assert np.isfinite(ecg).all()
        assert np.abs(law_residuals(ecg)).max() < 1e-3
    low, high = (np.array(table[name].to_pylist()) for name in ("low_mv", "high_mv"))
    assert (low <= high).all()


def test_the_person_of_the_command_line_replaces_the_files(recording, trained, settings, tmp_path):
    header = str(write_wfdb(recording, tmp_path / "archive"))
    tables = []
    for person in (Demographics(25), Demographics(85)):
        folder = translate.files(header, loaded(trained), settings, OPTIONS, person).folder
        (path,) = sorted(p for p in tmp_path.rglob("*.parquet") if str(p).startswith(folder))
        tables.append(np.array(pq.read_table(path)["ecg_mv"].to_pylist()))
    assert np.abs(tables[0] - tables[1]).max() > 1e-3


def test_a_folder_is_translated_as_far_as_it_can_be(recording, trained, settings, tmp_path):
    write_wfdb(recording, tmp_path / "archive")
    other = dataclasses.replace(recording, record="broken")
    header = write_wfdb(other, tmp_path / "archive")
    header.with_suffix(".dat").unlink()
    done = translate.files(str(tmp_path / "archive"), loaded(trained), settings, OPTIONS)
    assert done.windows == 2
    assert done.refused == {"missing_file": 1}


def only_ecg(recording):
    return dataclasses.replace(recording, signals=recording.of_kind(SignalKind.ECG))


SPOILT = {
    "no PPG": (only_ecg, "PPG"),
    "a flat line": (lambda r: changed(r, lambda x: np.zeros_like(x)), "PPG"),
    "NaN throughout": (lambda r: changed(r, lambda x: np.full_like(x, np.nan)), "PPG"),
    "noise": (lambda r: changed(r, lambda x: np.random.default_rng(0).normal(size=x.size).astype(x.dtype)), "PPG"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_cannot_be_translated_is_one_clear_line_and_leaves_nothing(recording, trained, settings, tmp_path, what):
    spoil, says = SPOILT[what]
    header = write_wfdb(spoil(recording), tmp_path / "archive")
    with pytest.raises((InputError, RecordError)) as caught:
        translate.files(str(header), loaded(trained), settings, OPTIONS)
    assert says.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_unknown_rate_is_told(recording, trained, settings, tmp_path):
    header = write_wfdb(recording, tmp_path / "archive")
    first, rest = header.read_text().split("\n", 1)
    fields = first.split()
    fields[2] = "nan"
    header.write_text(" ".join(fields) + "\n" + rest)
    with pytest.raises(RecordError, match="rate"):
        translate.files(str(header), loaded(trained), settings, OPTIONS)


def test_real_ppg_of_an_icu_is_translated_beside_the_recorded_lead(recordings, trained, settings):
    options = dataclasses.replace(OPTIONS, max_windows=3)
    done = translate.files(str(recordings / "wfdb" / "mixedsignals.hea"), loaded(trained), settings, options)
    assert done.windows == 3
    assert any(path.endswith("lead-II.png") for path in done.figures)
