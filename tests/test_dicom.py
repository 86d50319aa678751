import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutating import FUZZ, mutated, refusal_of
from pydicom import Dataset, FileDataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    TwelveLeadECGWaveformStorage,
)
from pydicom.waveforms import multiplex_array

from p2es.demographics import Demographics, Sex
from p2es.errors import RecordError
from p2es.formats import dicom
from p2es.leads import LEADS, law_residuals
from p2es.recording import SignalKind

TYPES = {"SB": ("<i1", 8), "SS": ("<i2", 16), "SL": ("<i4", 32), "US": ("<u2", 16)}


def coded(value, meaning, scheme="MDC"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def channel(code="2:2", meaning="Lead II", *, unit="uV", sensitivity=2.5, **options):
    item = Dataset()
    item.ChannelSourceSequence = [coded(code, meaning)]
    if sensitivity is not None:
        item.ChannelSensitivity = str(sensitivity)
        item.ChannelSensitivityUnitsSequence = [coded(unit, unit, "UCUM")]
        item.ChannelSensitivityCorrectionFactor = "1"
        item.ChannelBaseline = "0"
    for keyword, value in options.items():
        setattr(item, keyword, value)
    return item


def group(channels, samples, *, fs=500, form="SS", offset=0, originality="ORIGINAL", **options):
    item = Dataset()
    code, bits = TYPES[form]
    item.MultiplexGroupTimeOffset = str(offset)
    item.WaveformOriginality = originality
    item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = len(channels), len(samples)
    item.SamplingFrequency = str(fs)
    item.ChannelDefinitionSequence = list(channels)
    item.WaveformBitsAllocated, item.WaveformSampleInterpretation = bits, form
    raw = np.ascontiguousarray(samples).astype(code).tobytes()
    item.add_new("WaveformData", "OB" if bits == 8 else "OW", raw + bytes(len(raw) % 2))
    for keyword, value in options.items():
        setattr(item, keyword, value)
    return item


def write(path, *groups, syntax=ExplicitVRLittleEndian, **options):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = TwelveLeadECGWaveformStorage, "1.2.3"
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = meta.MediaStorageSOPClassUID, "1.2.3", "ECG"
    dataset.PatientID, dataset.PatientName = "P-77", "Doe^Jane"
    for keyword, value in options.items():
        setattr(dataset, keyword, value)
    if groups:
        dataset.WaveformSequence = list(groups)
    dataset.save_as(path, enforce_file_format=True)
    return path


def steps(count, channels=1, seed=0):
    return np.random.default_rng(seed).integers(-100, 100, (count, channels))


def read(path, name="r"):
    skipped = []
    return list(dicom.read(path, name, "s", skipped)), skipped


def refusal(path):
    with pytest.raises(RecordError) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    return refused.value.reason


@pytest.mark.parametrize("form", ["SB", "SS", "SL"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_steps_become_millivolt_by_sensitivity_correction_and_baseline(tmp_path, form, syntax):
    channels = [
        channel("2:2", "Lead II"),
        channel("5.6.3-9-3", "Lead V1", unit="mV", sensitivity=0.01, ChannelBaseline="-0.5"),
        channel("2:62", "aVR", ChannelSensitivityCorrectionFactor="1.25"),
        channel("2:16", "Lead X"),
        channel("2:61", "Lead III", sensitivity=None),
        channel("150452", "Plethysmogram", unit="1", sensitivity=1),
        channel("2:18949", "Arterial pressure", unit="mm[Hg]"),
    ]
    data = steps(1001, len(channels))
    (recording,), skipped = read(write(tmp_path / "a.dcm", group(channels, data, form=form), syntax=syntax))
    ecg, ppg = SignalKind.ECG, SignalKind.PPG
    found = [(s.lead, s.kind, s.unit, s.gain) for s in recording.signals]
    assert (skipped, recording.person) == ([], "P-77")
    assert found == [
        ("II", ecg, "mV", 400),
        ("V1", ecg, "mV", 100),
        ("aVR", ecg, "mV", 320),
        (None, ecg, "mV", 400),
        ("III", ecg, "unknown", 1),
        (None, ppg, "1", 1),
    ]
    scales = [(2.5e-3, 0), (0.01, -0.5), (3.125e-3, 0), (2.5e-3, 0), (1, 0), (1, 0)]
    for k, (signal, (scale, offset)) in enumerate(zip(recording.signals, scales, strict=True)):
        np.testing.assert_allclose(signal.read(), data[:, k] * scale + offset, rtol=1e-6)
        np.testing.assert_array_equal(signal.read(100, 200), signal.read()[100:200])


def test_the_waveform_of_the_library_reads_as_the_library_reads_it():
    path = get_testdata_file("waveform_ecg.dcm", download=False)
    (recording,), skipped = read(Path(path))
    theirs = multiplex_array(dcmread(path), 0, as_raw=False)
    assert (skipped, recording.duration_s) == ([], 10)
    assert [signal.lead for signal in recording.signals] == [*LEADS]
    for k, signal in enumerate(recording.signals):
        np.testing.assert_allclose(signal.read(), theirs[:, k] / 1000, rtol=1e-6, atol=1e-9)
    assert recording.demographics == Demographics(42.0, Sex.FEMALE)
    residuals = law_residuals(np.stack([recording.leads[lead].read() for lead in LEADS]))
    assert np.abs(residuals).max() < 0.63e-3


def test_big_endian_is_read_as_it_is(tmp_path):
    data = steps(1000, seed=3) * 300
    # The library writes bytes as they are: those of the samples must be swapped by whoever gives them.
    path = write(tmp_path / "a.dcm", group([channel()], data.astype("<i2").byteswap()), syntax=ExplicitVRBigEndian)
    (recording,), _ = read(path)
    np.testing.assert_allclose(recording.signals[0].read(), data[:, 0] * 2.5e-3, rtol=1e-6)


def test_a_lead_is_what_its_code_says_and_none_where_the_name_says_another(tmp_path):
    channels = [channel("2:1", "Lead I"), channel("2:2", "Lead V5"), channel("x", "Lead aVF (Goldberger)")]
    (recording,), (told,) = read(write(tmp_path / "a.dcm", group(channels, steps(100, 3))))
    assert [s.lead for s in recording.signals] == ["I", None, "aVF"]
    assert told.reason == "header"


def test_padding_is_missing_and_skew_is_a_start(tmp_path):
    data = steps(100, 2)
    data[10:20, 0] = -32768
    channels = [channel(), channel("2:3", "Lead V1", ChannelSampleSkew="-5")]
    item = group(channels, data)
    item.add_new("WaveformPaddingValue", "OW", b"\x00\x80")
    (recording,), _ = read(write(tmp_path / "a.dcm", item))
    assert np.flatnonzero(np.isnan(recording.signals[0].read())).tolist() == list(range(10, 20))
    assert [s.start_s for s in recording.signals] == pytest.approx([0.01, 0])


def test_groups_are_recordings_and_those_that_begin_together_one(tmp_path):
    pulse = channel("150452", "Plethysmogram", unit="1", sensitivity=1)
    groups = [
        group([channel()], steps(1000)),
        group([pulse], steps(250), fs=125),
        group([channel()], steps(500), offset=9000),
    ]
    recordings, skipped = read(write(tmp_path / "a.dcm", *groups))
    assert (skipped, [r.record for r in recordings]) == ([], ["r/part-1", "r/part-2"])
    assert [[s.fs_hz for s in r.signals] for r in recordings] == [[500, 125], [500]]


def test_median_beats_are_no_recordings(tmp_path):
    beats = group([channel()], steps(600), originality="DERIVED")
    (recording,), _ = read(write(tmp_path / "a.dcm", group([channel()], steps(5000)), beats))
    assert recording.duration_s == 10
    assert refusal(write(tmp_path / "a.dcm", beats)) == "no_signal"
    (recording,), _ = read(write(tmp_path / "a.dcm", group([channel()], steps(5000), originality="DERIVED")))
    assert recording.duration_s == 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"PatientAge": "045Y", "PatientSex": "F"}, Demographics(45, Sex.FEMALE)),
        ({"PatientAge": "095Y", "PatientSex": "O"}, Demographics(90)),
        ({"PatientAge": "018M"}, Demographics(1.5)),
        ({"PatientBirthDate": "19531123", "StudyDate": "20021122"}, Demographics(48)),
        ({"PatientSize": "1.75", "PatientWeight": "70"}, Demographics(None, None, 175, 70)),
        ({"PatientSize": "175", "PatientWeight": "700"}, Demographics(None, None, 175)),
        ({"PatientSize": "6"}, Demographics()),
    ],
)
def test_demographics_are_kept_and_nothing_else_of_the_person(tmp_path, options, expected):
    (recording,), _ = read(write(tmp_path / "a.dcm", group([channel()], steps(100)), **options))
    known, stated = recording.demographics, expected
    np.testing.assert_allclose(known.to_array(), stated.to_array())
    for word in ("Doe", "Jane", "1953", "2002"):
        assert word not in repr(recording)


def test_an_id_that_deidentification_left_is_no_person(tmp_path):
    (recording,), _ = read(write(tmp_path / "rec7.dcm", group([channel()], steps(100)), PatientID="ANONYMOUS"))
    assert recording.person == "rec7"


def test_a_bad_group_or_channel_is_told_and_the_rest_is_read(tmp_path):
    short = group([channel()], steps(100))
    short.NumberOfWaveformSamples = 500
    flat = group([channel(), channel("2:3", "Lead V1", sensitivity=0)], steps(100, 2), offset=1)
    rate = group([channel()], steps(100), fs=0, offset=2)
    recordings, skipped = read(write(tmp_path / "a.dcm", short, flat, rate))
    assert [len(r.signals) for r in recordings] == [1, 1]
    assert [r.signals[0].samples.size for r in recordings] == [100, 100]
    assert [error.reason for error in skipped] == ["truncated", "header", "rate"]


def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path):
    path = tmp_path / "a.dcm"
    assert refusal(write(path)) == "no_signal"
    assert refusal(write(path, group([channel("x", "Respiration")], steps(100)))) == "no_signal"
    assert refusal(write(path, group([channel()], steps(100), fs=0))) == "rate"
    assert refusal(write(path, group([channel()], steps(100), WaveformBitsAllocated=12))) == "header"
    assert refusal(write(path, group([channel()], steps(100), NumberOfWaveformChannels=3))) == "header"
    assert refusal(write(path, group([channel()], steps(100)), syntax=DeflatedExplicitVRLittleEndian)) == "compressed"
    path.write_bytes(b"not DICOM" * 100)
    assert refusal(path) == "header"
    assert refusal(tmp_path / "b.dcm") == "missing_file"
    with path.open("wb") as file:
        file.truncate(dicom.MAX_BYTES + 1)
    assert refusal(path) == "too_large"


def test_dicom_is_known_by_its_content(tmp_path):
    assert dicom.is_mine(write(tmp_path / "a.bin", group([channel()], steps(10))).read_bytes()[:4096])
    assert not dicom.is_mine(b"DICM")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    made = [
        group([channel(), channel("2:3", "Lead V1")], steps(50, 2)),
        group([channel("x", "PPG", unit="1")], steps(20)),
    ]
    options = {"PatientAge": "045Y", "PatientSize": "1.8"}
    syntaxes = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
    return [write(folder / f"{k}", *made, syntax=s, **options).read_bytes() for k, s in enumerate(syntaxes)]


@FUZZ
@given(data=st.data())
def test_whatever_is_done_to_a_file_only_typed_errors_come_out(tmp_path, valid, data):
    words = (
        b"\xff" * 4,
        b"\0" * 4,
        b"SQ",
        b"UN",
        b"\xfe\xff\x00\xe0",
        b"\xfe\xff\xdd\xe0",
        b"nan ",
        b"1e99",
        b"\x00\x54\x00\x01",
    )
    path = tmp_path / "f.dcm"
    path.write_bytes(data.draw(mutated(valid, words=words)))
    refusal_of(dicom.read, path)


@pytest.mark.parametrize(("tag", "reasons"), [(b"\x00\x54\x00\x01SQ", []), (b"\x00\x54\x10\x10OW", ["header"])])
def test_a_length_of_4_gib_is_not_allocated_and_not_believed(tmp_path, valid, tag, reasons):
    """Of the waveform sequence, which is the last of the file and whole, and of the first group's samples."""
    raw = bytearray(valid[1])
    at = raw.index(tag) + 8
    raw[at : at + 4] = b"\xfe\xff\xff\xff"
    path = tmp_path / "f.dcm"
    path.write_bytes(raw)
    code = (
        "import resource, sys; from pathlib import Path; import pydicom; from p2es.formats import dicom\n"
        "from p2es.errors import RecordError; skipped = []\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try: list(dicom.read(Path(sys.argv[1]), 'r', 's', skipped))\n"
        "except RecordError as error: skipped.append(error)\n"
        "print(*(error.reason for error in skipped))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == reasons
