import datetime
import subprocess
import sys

import edfio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutating import FUZZ, mutated, refusal_of

from p2es.demographics import Sex
from p2es.errors import RecordError
from p2es.formats import edf
from p2es.leads import law_residuals
from p2es.recording import LazySamples, SignalKind


def steps(seconds, fs, seed=0, bits=15):
    return np.random.default_rng(seed).integers(-(2**bits), 2**bits, seconds * fs)


def channel(label="ECG II", fs=100, unit="uV", *, seconds=10, bdf=False, seed=0, physical=(-5000, 5000), digital=None):
    cls, dtype = (edfio.BdfSignal, np.int32) if bdf else (edfio.EdfSignal, np.int16)
    counts = steps(seconds, fs, seed, 23 if bdf else 15).astype(dtype)
    if digital:
        counts = np.clip(counts, *digital).astype(dtype)
    return cls.from_digital(
        counts, fs, label=label, physical_dimension=unit, physical_range=physical, digital_range=digital
    )


def write(path, signals, **options):
    cls = edfio.Bdf if isinstance(signals[0], edfio.BdfSignal) else edfio.Edf
    options.setdefault("data_record_duration", 1)
    cls(signals, **options).write(path)
    return path


def read(path, name="r"):
    skipped = []
    return list(edf.read(path, name, "s", skipped)), skipped


def refusal(path):
    with pytest.raises(RecordError) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    return refused.value.reason


def patch(path, at, text, width=8):
    raw = bytearray(path.read_bytes())
    raw[at : at + width] = text.encode().ljust(width)
    path.write_bytes(raw)


def discontinuous(path, onsets, *, fs=100):
    """Write an EDF+D by hand: the library of the oracle writes continuous files only."""
    labels = ["ECG I", "EDF Annotations"]
    per, marks = fs, 16
    fixed = ["0", "X X X X", "Startdate X X X X", "01.01.20", "00.00.00", "768", "EDF+D", str(len(onsets)), "1", "2"]
    head = "".join(t.ljust(w) for t, w in zip(fixed, edf._FIXED, strict=True))
    fields = [labels, ["", ""], ["mV", ""], ["-1", "-1"], ["1", "1"], ["-32768"] * 2, ["32767"] * 2, ["", ""]]
    fields += [[str(per), str(marks)], ["", ""]]
    head += "".join("".join(t.ljust(w) for t in f) for f, w in zip(fields, edf._PER_SIGNAL, strict=True))
    body = b""
    for k, onset in enumerate(onsets):
        body += (np.arange(per) + per * k).astype("<i2").tobytes()
        body += (b"" if onset is None else f"{onset:+g}".encode() + b"\x14\x14\0").ljust(2 * marks, b"\0")
    path.write_bytes(head.encode() + body)
    return path


@pytest.mark.parametrize("bdf", [False, True])
def test_samples_are_those_of_another_reader_in_millivolt(tmp_path, bdf):
    signals = [channel("ECG I", 250, "uV", bdf=bdf), channel("ECG aVF", 100, "mV", bdf=bdf, physical=(3, -2), seed=1)]
    signals += [channel("Pleth", 125, "", bdf=bdf, seed=2), channel("EEG Fz", 200, "uV", bdf=bdf)]
    signals += [channel("SpO2", 1, "%", bdf=bdf)]
    path = write(tmp_path / "a.edf", signals)
    (recording,), skipped = read(path)
    assert (skipped, recording.record, recording.person) == ([], "r", "a")
    oracle = (edfio.read_bdf if bdf else edfio.read_edf)(path)
    assert [(s.name, s.lead, s.kind, s.fs_hz, s.unit) for s in recording.signals] == [
        ("ECG I", "I", SignalKind.ECG, 250, "mV"),
        ("ECG aVF", "aVF", SignalKind.ECG, 100, "mV"),
        ("Pleth", None, SignalKind.PPG, 125, ""),
    ]
    for signal, factor in zip(recording.signals, (1e-3, 1.0, 1.0), strict=True):
        other = oracle.get_signal(signal.name)
        np.testing.assert_allclose(signal.read(), other.data * factor, rtol=1e-6, atol=1e-6)
        span = np.ptp(other.digital.astype(float)) / np.ptp(other.data * factor)
        assert abs(signal.gain) == pytest.approx(span)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2500), st.integers(0, 2500), st.sampled_from([250, 1250, 2500]), st.booleans(), st.booleans())
def test_any_stretch_is_that_part_of_the_whole(tmp_path, a, b, per_record, bdf, large):
    path = tmp_path / f"{per_record}{bdf}.edf"
    if not path.exists():
        signals = [channel("PPG", 250, "", bdf=bdf), channel("V1", 50, "mV", bdf=bdf)]
        write(path, signals, data_record_duration=per_record / 250)
    before, edf._BLOCK_BYTES = edf._BLOCK_BYTES, 10 if large else 1 << 22
    try:
        (recording,), _ = read(path)
        whole = recording.signals[0].read()
        start, stop = min(a, b), max(a, b)
        np.testing.assert_array_equal(recording.signals[0].read(start, stop), whole[start:stop])
        assert isinstance(recording.signals[0].samples, LazySamples)
        assert whole.dtype == np.float32
    finally:
        edf._BLOCK_BYTES = before


def test_the_unit_may_stand_in_the_label_and_must_not_contradict_the_header(tmp_path):
    signals = [channel("ECG II [uV]", unit=""), channel("ECG V1 (mV)", unit="uV"), channel("ir", unit="")]
    (recording,), (told,) = read(write(tmp_path / "a.edf", signals))
    assert [(s.name, s.lead, s.unit) for s in recording.signals] == [("ECG II [uV]", "II", "mV"), ("ir", None, "")]
    assert (told.reason, "says mV, its header uV" in str(told)) == ("header", True)
    assert np.abs(recording.leads["II"].read()).max() <= 5.0


def test_a_12_lead_recording_keeps_the_lead_laws(tmp_path):
    i, ii = (steps(10, 500, seed) // 8 for seed in (1, 2))
    leads = {"I": i, "II": ii, "III": ii - i, "aVR": -(i + ii) / 2, "aVL": i - ii / 2, "aVF": ii - i / 2}
    leads |= {f"V{k}": steps(10, 500, k) for k in range(1, 7)}
    signals = [
        edfio.EdfSignal(v / 3.2768, 500, label=f"ECG {k}", physical_dimension="uV", physical_range=(-10000, 10000))
        for k, v in leads.items()
    ]
    (recording,), _ = read(write(tmp_path / "a.edf", signals))
    ecg = np.stack([recording.leads[k].read() for k in leads])
    assert np.abs(law_residuals(ecg)).max() < 2 * 20 / 65535
    assert np.abs(ecg).max() > 1


def test_the_patient_field_gives_sex_age_and_code_and_nothing_else(tmp_path):
    patient = edfio.Patient(code="MCH-0234567", sex="F", birthdate=datetime.date(1951, 5, 2), name="Haagse_Harry")
    recording = edfio.Recording(startdate=datetime.date(2002, 3, 1))
    path = write(tmp_path / "a.edf", [channel()], patient=patient, recording=recording)
    (found,), _ = read(path)
    assert (found.person, found.demographics.sex, found.demographics.age_years) == ("MCH-0234567", Sex.FEMALE, 50)
    assert "Harry" not in repr(found)
    assert "1951" not in repr(found)
    patch(path, 8, "Harry de Vries, born 1951", 80)
    (found,), _ = read(path)
    assert (found.person, found.demographics.sex, found.demographics.age_years) == ("a", None, None)
    assert "Harry" not in repr(found)


def test_a_discontinuous_file_is_a_recording_for_each_stretch(tmp_path):
    recordings, skipped = read(discontinuous(tmp_path / "a.edf", [0, 1, 2, 10, 11, 30.5]))
    assert (skipped, [r.record for r in recordings]) == ([], ["r/part-1", "r/part-2", "r/part-3"])
    starts = [round(float(r.signals[0].read()[0] * 32767.5 - 0.5)) for r in recordings]
    assert (starts, [r.duration_s for r in recordings]) == ([0, 300, 500], [3, 2, 1])


def test_a_data_record_without_a_time_is_left_out_and_told(tmp_path):
    recordings, (told,) = read(discontinuous(tmp_path / "a.edf", [0, 1, None, 3, 4]))
    assert ([r.duration_s for r in recordings], told.reason) == ([2, 2], "time_gaps")
    assert refusal(discontinuous(tmp_path / "b.edf", [None, None])) == "time_gaps"


def test_a_cut_file_gives_its_whole_data_records_and_tells(tmp_path):
    path = write(tmp_path / "a.edf", [channel(fs=100)])
    whole = read(path)[0][0].signals[0].read()
    path.write_bytes(path.read_bytes()[:-50])
    (recording,), (told,) = read(path)
    assert told.reason == "truncated"
    np.testing.assert_array_equal(recording.signals[0].read(), whole[:900])
    path.write_bytes(path.read_bytes()[:600])
    assert refusal(path) == "truncated"
    path.write_bytes(path.read_bytes()[:300])
    assert refusal(path) == "truncated"


def test_a_file_cut_while_it_is_read_is_told_and_not_padded(tmp_path):
    path = write(tmp_path / "a.edf", [channel(fs=100)])
    (recording,), _ = read(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RecordError, match="shorter"):
        recording.signals[0].read()


def test_records_that_are_not_declared_are_told_and_minus_one_means_all(tmp_path):
    path = write(tmp_path / "a.edf", [channel(fs=100)])
    patch(path, 236, "4")
    (recording,), (told,) = read(path)
    assert (recording.duration_s, told.reason) == (4, "header")
    patch(path, 236, "-1")
    (recording,), skipped = read(path)
    assert (recording.duration_s, skipped) == (10, [])


# Signal fields of a file of one signal begin at 256: label 16, transducer 80, unit 8, then the limits.
WRONG = """184 512000 header;236 zehn header;236 0 header;236 1e9 header;244 0 rate;244 nan rate;244 -1 rate
244 inf rate;252 0 header;252 9999 header;256 Temp no_signal;360 5000 header;360 x header;376 32767 header
384 -32768 header;376 nan header;472 99999999 truncated;472 0 header;472 -1 header"""


@pytest.mark.parametrize("wrong", WRONG.replace("\n", ";").split(";"))
def test_a_wrong_header_is_refused_with_its_reason(tmp_path, wrong):
    at, text, reason = wrong.split()
    path = write(tmp_path / "a.edf", [channel(fs=100)])
    patch(path, int(at), text, 4 if at == "252" else 8)
    assert refusal(path) == reason


def test_a_channel_without_a_scale_is_told_and_the_others_are_read(tmp_path):
    path = write(tmp_path / "a.edf", [channel("ECG I"), channel("ECG II")])
    patch(path, 256 + 2 * 104, "5000")
    (recording,), (told,) = read(path)
    assert ([s.name for s in recording.signals], told.reason) == (["ECG II"], "header")


def test_an_unknown_unit_is_not_called_millivolt_and_the_lost_code_is_missing(tmp_path):
    path = write(tmp_path / "a.edf", [channel("ECG II", unit="", digital=(-32767, 32767))])
    raw = bytearray(path.read_bytes())
    raw[512 : 512 + 4] = b"\x00\x80\x00\x80"
    path.write_bytes(raw)
    (signal,) = read(path)[0][0].signals
    assert signal.unit == "unknown"
    assert np.isnan(signal.read()[:2]).all()
    assert np.isfinite(signal.read()[2:]).all()


def test_edf_is_known_by_its_content(tmp_path):
    for bdf in (False, True):
        path = write(tmp_path / "a.bin", [channel(bdf=bdf)])
        assert edf.is_mine(path.read_bytes()[:4096])
    assert not edf.is_mine(b"")
    assert not edf.is_mine(b"0" * 300)
    assert not edf.is_mine(b"0       " + b"text, not a header " * 30)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edf")
    plain = write(folder / "p.edf", [channel("ECG I", 50, seconds=4), channel("PPG", 20, "", seconds=4)])
    bdf = write(folder / "b.bdf", [channel("ECG I", 50, seconds=4, bdf=True)])
    return [plain.read_bytes(), bdf.read_bytes(), discontinuous(folder / "d.edf", [0, 1, 5], fs=50).read_bytes()]


_FIELDS = (
    *(word.ljust(8) for word in (b"nan", b"-1", b"1e308", b"0", b"99999999", b"1e-300", b"\xb2", b"+5")),
    b"EDF+D",
)


@FUZZ
@given(data=st.data())
def test_whatever_is_done_to_a_file_only_typed_errors_come_out(tmp_path, valid, data):
    path = tmp_path / "f.edf"
    path.write_bytes(data.draw(mutated(valid, within=1100, words=_FIELDS)))
    refusal_of(edf.read, path)


def test_a_day_of_four_signals_takes_the_memory_of_a_stretch(tmp_path):
    """A day is read stretch by stretch in a process that may grow by little; the same file mapped would be 150 MB."""
    path = tmp_path / "day.edf"
    signals = [
        channel(name, fs, seconds=60) for name, fs in (("ECG I", 250), ("ECG II", 250), ("V1", 250), ("PPG", 125))
    ]
    minute = write(path, signals)
    raw = minute.read_bytes()
    start = 256 * 5
    with path.open("wb") as file:
        file.write(raw[:236] + b"86400   " + raw[244:start])
        for _ in range(1440):
            file.write(raw[start:])
    code = (
        "import resource, sys; from pathlib import Path; from p2es.formats import edf; import numpy as np\n"
        "np.zeros(1)[:1].astype('f4'); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "(r,) = edf.read(Path(sys.argv[1]), 'r', 's', []); total = 0\n"
        "for at in range(0, 86400, 600):\n"
        "    total += sum(s.samples.size for s in r.between(at, at + 600).signals)\n"
        "assert total == 86400 * 875, total\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000
