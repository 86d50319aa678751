"""What all readers have in common, seen through `p2es.formats`."""

import subprocess
import sys

import numpy as np
import pytest
from archive_files import write_archive, write_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2es.errors import RecordError
from p2es.formats import ReadOptions, RecordRef, content_files, find_records, load_people, read, survey
from p2es.simulator import simulate_person
from p2es.simulator.archive import write_wfdb

FORMATS = ("wfdb", "csv", "parquet", "matlab", "edf", "vital", "dicom", "aecg", "unknown", "link", "missing")


def write_csv(path, header, columns, form="%.6g"):
    np.savetxt(path, np.stack(columns, axis=1), delimiter=", ", header=header, comments="", fmt=form)


def test_finding_and_importing_load_no_heavy_library(tmp_path):
    write_archive(tmp_path / "archive")
    heavy = {
        "wfdb",
        "pandas",
        "pyarrow",
        "h5py",
        "pydicom",
        "edfio",
        "vitaldb",
        "matplotlib",
        "ray",
        "torch",
        "scipy.io",
    }
    code = (
        "import sys; from p2es.formats import find_records; "
        f"found = find_records({str(tmp_path / 'archive')!r}); "
        f"assert len(found) == 12; print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(kind=st.sampled_from(FORMATS), data=st.binary(max_size=600))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_given_to_any_reader_are_a_reason(tmp_path, kind, data):
    path = tmp_path / ("x.hea" if kind == "wfdb" else "x.bin")
    path.write_bytes(data)
    reference = RecordRef(str(path), kind, "x", len(data))
    if kind in {"edf", "vital", "dicom", "aecg"}:
        pytest.importorskip(f"p2es.formats.{kind}")
    with pytest.raises(RecordError) as refused:
        list(read(reference, "s"))
    assert "\n" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert refused.value.reason.replace("_", "").isalpha()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_has_gone_since_it_was_found_is_a_reason(tmp_path, kind):
    if kind in {"edf", "vital", "dicom", "aecg"}:
        pytest.importorskip(f"p2es.formats.{kind}")
    reference = RecordRef(str(tmp_path / "gone.hea"), kind, "gone", 5)
    with pytest.raises(RecordError):
        list(read(reference, "s"))
    assert content_files(reference) == []


def test_tables_of_people_are_joined_whatever_the_format(tmp_path):
    write_record(tmp_path / "records500" / "00000", "00007_hr")
    (tmp_path / "ptbxl_database.csv").write_text("ecg_id,patient_id,age,sex,height,weight\n7,99.0,61,1,,70\n")
    people = load_people(tmp_path / "ptbxl_database.csv")
    (reference,) = find_records(str(tmp_path))
    (plain,) = read(reference, "s")
    (joined,) = read(reference, "s", options=ReadOptions(people=(people,)))
    assert plain.demographics.age_years is None
    assert (joined.person, joined.demographics.age_years, joined.demographics.sex) == ("99", 61.0, "F")
    for one, two in zip(plain.signals, joined.signals, strict=True):
        np.testing.assert_array_equal(one.read(), two.read())


def test_the_content_of_a_record_is_all_its_files(tmp_path):
    write_wfdb(simulate_person(0, 0, 12.0), tmp_path)
    (one,) = find_records(str(tmp_path))
    assert {path.suffix for path in content_files(one)} == {".hea", ".dat", ".atr"}


@pytest.mark.parametrize("names", [["PLETH", "V", "AVR", "II"], ["II", "PLETH", "V"], ["MCL", "III", "PLETH", "ABP"]])
def test_columns_of_bidmc_are_found_by_name_whatever_their_order(tmp_path, names):
    t = np.arange(2000) / 125
    values = {name: np.sin(t * (k + 1)) for k, name in enumerate(names)}
    write_csv(tmp_path / "x_Signals.csv", "Time [s], " + ", ".join(names), [t, *values.values()])
    (recording,) = read(find_records(str(tmp_path))[0], "s")
    assert recording.person == "x"
    assert {signal.name for signal in recording.signals} == set(names) - {"ABP"}
    for signal in recording.signals:
        assert signal.fs_hz == 125.0
        np.testing.assert_allclose(signal.samples, values[signal.name], atol=1e-5)
    assert set(recording.leads) <= {"II", "III", "aVR"}


@pytest.mark.parametrize("text", ["age,sex\n5,F\n", "", "\0\0\0", "ECG,PPG,RSP\n1,2,3\n"])
def test_a_csv_of_no_declared_layout_is_told(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(RecordError) as refused:
        list(read(find_records(str(tmp_path))[0], "s"))
    assert refused.value.reason == "layout"


def test_ecg_of_real_recordings_is_millivolt_or_unknown_and_every_lead_is_a_standard_one(recordings):
    counted = 0
    for reference in survey(recordings).records:
        try:
            for recording in read(reference, "s"):
                counted += 1
                assert recording.duration_s > 0
                assert all(signal.unit in {"mV", "unknown"} for signal in recording.leads.values())
                assert recording.person
        except RecordError as error:
            assert error.reason  # noqa: PT017 - which ones are refused is told in test_find
    assert counted >= 170
