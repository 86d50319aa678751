import gzip
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutating import FUZZ, mutated, refusal_of

from p2es.errors import RecordError
from p2es.formats import vital
from p2es.recording import SignalKind

NOON = 1_600_000_000.0


def text(value):
    return struct.pack("<L", len(value.encode())) + value.encode()


def packet(kind, data):
    return struct.pack("<BL", kind, len(data)) + data


def device(number, name):
    return packet(9, struct.pack("<L", number) + text(name) + text(name) + text("COM1"))


def track(number, name, *, unit="mV", fs=100.0, form=5, gain=1e-3, offset=0.0, shape=1, on=1):
    described = struct.pack("<HBB", number, shape, form) + text(name) + text(unit)
    described += struct.pack("<ffLfddBL", -1, 1, 0, fs, gain, offset, 0, on)
    return packet(0, described)


def record(number, time_s, values, code="<i2"):
    values = np.asarray(values).astype(code)
    head = struct.pack("<HdHL", 10, time_s, number, values.size)
    return packet(1, head + values.tobytes())


def vitalfile(*packets, packed=None):
    header = struct.pack("<hLLdd", -540, 0, 0, NOON, NOON) + (b"" if packed is None else bytes([packed]))
    return b"VITA" + struct.pack("<LH", 3, len(header)) + header + b"".join(packets)


def write(path, *packets, packed=None):
    path.write_bytes(gzip.compress(vitalfile(*packets, packed=packed), 1))
    return path


def blocks(number, values, *, start_s=NOON, fs=100, size=100, code="<i2", jitter=0.0):
    rng = np.random.default_rng(0)
    for at in range(0, len(values), size):
        yield record(number, start_s + at / fs + rng.uniform(-jitter, jitter), values[at : at + size], code)


def read(path, name="r"):
    skipped = []
    return list(vital.read(path, name, "s", skipped)), skipped


def refusal(path):
    with pytest.raises(RecordError) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    return refused.value.reason


def ramp(count, seed=0):
    return np.random.default_rng(seed).integers(-30000, 30000, count)


def monitor(seconds=10):
    """Two ECGs, a pulse wave, a pressure wave and a saturation, as a SNUADC and a Solar 8000 give them."""
    n = 100 * seconds
    return [
        device(1, "SNUADC"),
        device(2, "Solar8000"),
        track(1, "ECG_II"),
        track(2, "ECG_V5", unit="uV", gain=0.5, offset=20.0),
        track(3, "PLETH", unit="unitless", form=1, gain=0.0),
        track(4, "ART", unit="mmHg"),
        track(5, "PLETH_SPO2", unit="%", on=2, shape=2, form=1),
        *(block for k in (1, 2, 4) for block in blocks(k, ramp(n, k))),
        *blocks(3, ramp(n, 3) / 7, code="<f4"),
        packet(1, struct.pack("<HdHf", 10, NOON, 5, 97.0)),
        packet(6, b"\x05\x01\x00\x01\x00"),
    ]


def test_waves_come_in_millivolt_with_lead_gain_and_clock(tmp_path):
    (recording,), skipped = read(write(tmp_path / "1234.vital", *monitor()))
    assert (skipped, recording.record, recording.person, recording.duration_s) == ([], "r", "1234", 10)
    found = [(s.name, s.kind, s.lead, s.unit, s.fs_hz, s.start_s, s.gain) for s in recording.signals]
    assert found == [
        ("SNUADC/ECG_II", SignalKind.ECG, "II", "mV", 100, 0, 1000),
        ("SNUADC/ECG_V5", SignalKind.ECG, "V5", "mV", 100, 0, 2000),
        ("SNUADC/PLETH", SignalKind.PPG, None, "unitless", 100, 0, None),
    ]
    two, five, pulse = (signal.read() for signal in recording.signals)
    np.testing.assert_allclose(two, ramp(1000, 1) / 1000, rtol=1e-6)
    np.testing.assert_allclose(five, (ramp(1000, 2) * 0.5 + 20) / 1000, rtol=1e-6)
    np.testing.assert_allclose(pulse, ramp(1000, 3) / 7, rtol=1e-6)


def test_the_unit_may_stand_in_the_name_and_must_not_contradict_the_track(tmp_path):
    packets = [track(1, "ECG_II [uV]", unit=""), track(2, "ECG_V5 [uV]", unit="mV"), track(3, "IR", unit="")]
    waves = (block for k in (1, 2, 3) for block in blocks(k, ramp(1000, k)))
    (recording,), (told,) = read(write(tmp_path / "a.vital", *packets, *waves))
    assert [(s.lead, s.kind, s.unit) for s in recording.signals] == [
        ("II", SignalKind.ECG, "mV"),
        (None, SignalKind.PPG, ""),
    ]
    np.testing.assert_allclose(recording.leads["II"].read(), ramp(1000, 1) * 1e-6, rtol=1e-6)
    assert (told.reason, "says uV, its header mV" in str(told)) == ("header", True)


# The package leaves its files open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_the_vitaldb_package_reads_as_that_package_reads_it(tmp_path, packed):
    vitaldb = pytest.importorskip("vitaldb")
    source = write(tmp_path / "a.vital", *monitor(20))
    other = vitaldb.VitalFile(str(source))
    path = tmp_path / "b.vital"
    other.to_vital(str(path), packed=packed)
    (recording,), skipped = read(path)
    assert skipped == []
    again = vitaldb.VitalFile(str(path))
    for signal in recording.signals:
        theirs = again.get_track_samples(signal.name, 1 / 100)
        scale = 1e-3 if signal.name.endswith("V5") else 1.0
        np.testing.assert_allclose(signal.read(), theirs[:2000] * scale, rtol=1e-5, atol=1e-6)


def test_a_long_gap_of_all_tracks_splits_and_a_gap_of_one_is_missing(tmp_path):
    first, second = ramp(500, 1), ramp(300, 2)
    packets = [
        track(1, "ECG_II"),
        track(2, "PLETH", unit=""),
        *blocks(1, first),
        *blocks(1, second, start_s=NOON + 60),
        *blocks(2, first, start_s=NOON + 0.25),
        *blocks(2, second[:100], start_s=NOON + 60),
        *blocks(2, second[:50], start_s=NOON + 62.5),
    ]
    (one, two), skipped = read(write(tmp_path / "a.vital", *packets))
    assert (skipped, one.record, two.record) == ([], "r/part-1", "r/part-2")
    assert [s.start_s for s in one.signals] == [0, 0.25]
    assert [s.samples.size for s in one.signals] == [500, 500]
    pulse = two.signals[1].read()
    assert np.isnan(pulse[100:250]).all()
    np.testing.assert_allclose(pulse[:100], second[:100] / 1000, rtol=1e-6)
    np.testing.assert_allclose(pulse[250:], second[:50] / 1000, rtol=1e-6)
    for start in range(0, 300, 37):
        np.testing.assert_array_equal(two.signals[1].read(start, start + 90), pulse[start : start + 90])


def test_a_short_gap_is_missing_samples_and_jitter_is_none(tmp_path):
    values = ramp(1000)
    (recording,), skipped = read(write(tmp_path / "a.vital", track(1, "ECG_II"), *blocks(1, values, jitter=0.04)))
    assert skipped == []
    np.testing.assert_allclose(recording.signals[0].read(), values / 1000, rtol=1e-6)
    parts = [*blocks(1, values[:500]), *blocks(1, values[500:], start_s=NOON + 5.5)]
    (recording,), skipped = read(write(tmp_path / "a.vital", track(1, "ECG_II"), *parts))
    expected = np.concatenate([values[:500] / 1000, np.full(50, np.nan), values[500:] / 1000])
    np.testing.assert_allclose(recording.signals[0].read(), expected, rtol=1e-6)


def test_a_clock_that_drifts_is_followed_within_the_jitter(tmp_path):
    """The device gives 100.5 samples where it says 100: after ten minutes it would be 3 s off."""
    packets = [record(1, NOON + k, ramp(100 + k % 2, k)) for k in range(600)]
    (recording,), skipped = read(write(tmp_path / "a.vital", track(1, "ECG_II"), *packets))
    assert recording.duration_s == pytest.approx(600, abs=0.2)
    assert [error.reason for error in skipped] == ["time_gaps"]


def test_samples_that_lie_before_others_are_left_out_and_told(tmp_path):
    packets = [*blocks(1, ramp(300)), *blocks(1, ramp(100), start_s=NOON + 1)]
    (recording,), (told,) = read(write(tmp_path / "a.vital", track(1, "ECG_II"), *packets))
    assert (recording.duration_s, told.reason) == (3, "time_gaps")
    assert "100 samples" in str(told)


def test_codes_for_none_and_floats_that_are_none_are_missing(tmp_path):
    packets = [track(1, "ECG_II"), track(2, "PLETH", unit="", form=1), track(3, "PPG", unit="", form=4, gain=1.0)]
    packets += [
        record(1, NOON, [1, -32768, 3]),
        record(2, NOON, [1, 5e9, np.inf], "<f4"),
        record(3, NOON, [1, 255, 3], "u1"),
    ]
    (recording,), _ = read(write(tmp_path / "a.vital", *packets))
    assert [np.isnan(s.read()).tolist() for s in recording.signals] == [
        [False, True, False],
        [False, True, True],
        [False] * 3,
    ]
    (recording,), _ = read(write(tmp_path / "a.vital", *packets, packed=1))
    assert np.isnan(recording.signals[2].read()).tolist() == [False, True, False]


def test_a_signalling_nan_is_missing_and_warns_nobody(tmp_path):
    values = np.array([0x3F800000, 0x7F800001, 0xFFA00000], "<u4").view("<f4")
    packets = [track(1, "ECG_II", form=1), packet(1, struct.pack("<HdHL", 10, NOON, 1, 3) + values.tobytes())]
    (recording,), _ = read(write(tmp_path / "a.vital", *packets))
    assert np.isnan(recording.signals[0].read()).tolist() == [False, True, True]


def test_a_cut_file_gives_what_is_before_the_cut_and_tells(tmp_path):
    path = write(tmp_path / "a.vital", *monitor(60))
    whole = read(path)[0][0].signals[0].read()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (recording,), (told,) = read(path)
    found = recording.signals[0].read()
    assert told.reason == "truncated"
    np.testing.assert_array_equal(found, whole[: found.size])
    path.write_bytes(path.read_bytes()[:40])
    assert refusal(path) == "truncated"
    path.write_bytes(b"")
    assert refusal(path) == "truncated"


@pytest.mark.parametrize(
    ("packets", "reason"),
    [
        ([], "no_signal"),
        ([track(1, "ART", unit="mmHg"), record(1, NOON, ramp(100))], "no_signal"),
        ([track(1, "ECG_II"), record(1, NOON, [1])], "no_signal"),
        ([track(1, "ECG_II", fs=0.0), record(1, NOON, ramp(100))], "rate"),
        ([track(1, "ECG_II", fs=float("nan")), record(1, NOON, ramp(100))], "rate"),
        ([track(1, "ECG_II", gain=0.0), record(1, NOON, ramp(100))], "header"),
        ([track(1, "ECG_II", form=99), record(1, NOON, ramp(100))], "header"),
        ([track(1, "ECG_II"), record(1, float("nan"), ramp(100))], "time_gaps"),
        ([track(1, "ECG_II"), record(1, -1.0, ramp(100))], "time_gaps"),
        ([track(1, "ECG_II"), packet(1, struct.pack("<HdHL", 10, NOON, 1, 2**32 - 1))], "unreadable"),
        ([track(1, "ECG_II"), packet(1, struct.pack("<HdHL", 2, NOON, 1, 0))], "unreadable"),
        ([struct.pack("<BL", 0, 2**32 - 1)], "header"),
        ([struct.pack("<BL", 7, 2**32 - 1)], "truncated"),
        ([track(k, f"PPG{k}", unit="") for k in range(100)], "header"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path, packets, reason):
    assert refusal(write(tmp_path / "a.vital", *packets)) == reason


def test_bombs_and_broken_streams_are_refused_before_they_fill_anything(tmp_path):
    path = tmp_path / "a.vital"
    zeros = gzip.compress(bytes(1 << 20), 9)
    # A gzip stream may have members: 4 GB of zeros in a record, in 4 MB.
    path.write_bytes(gzip.compress(vitalfile(track(1, "ECG_II")) + struct.pack("<BL", 7, 2**32 - 1)) + zeros * 4096)
    before = time.process_time()
    assert refusal(path) == "too_large"
    assert time.process_time() - before < 10
    # A second of nothing between samples, at the highest rate, a million times.
    gaps = b"".join(record(1, NOON + k * 0.9, [1]) for k in range(2000))
    path.write_bytes(gzip.compress(vitalfile(track(1, "ECG_II", fs=100_000.0)) + gaps))
    assert refusal(path) == "too_large"
    raw = bytearray(write(path, *monitor()).read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert refusal(path) == "unreadable"
    path.write_bytes(b"VITA, but not packed")
    assert refusal(path) == "unreadable"
    assert refusal(tmp_path / "b.vital") == "missing_file"


def test_vital_files_are_known_by_their_content(tmp_path):
    assert vital.is_mine(write(tmp_path / "a.bin", *monitor()).read_bytes()[:4096])
    assert not vital.is_mine(gzip.compress(b"something else"))
    assert not vital.is_mine(b"\x1f\x8b")
    assert not vital.is_mine(b"")


@FUZZ
@given(data=st.data())
def test_whatever_is_done_to_the_packets_only_typed_errors_come_out(tmp_path, data):
    words = (
        struct.pack("<d", float("nan")),
        struct.pack("<d", 1e308),
        struct.pack("<f", 1e9),
        b"\xff" * 4,
        b"\0" * 4,
        b"\x01",
    )
    packets = [
        track(1, "ECG_II"),
        track(2, "PLETH", unit="", form=1),
        *blocks(1, ramp(60), size=20),
        *blocks(2, ramp(60), code="<f4", size=30),
    ]
    raw = data.draw(mutated([vitalfile(*packets), vitalfile(*packets, packed=1)], words=words))
    path = tmp_path / "f.vital"
    path.write_bytes(gzip.compress(raw, 1))
    refusal_of(vital.read, path)


@FUZZ
@given(data=st.data())
def test_whatever_is_done_to_the_gzip_stream_only_typed_errors_come_out(tmp_path, data):
    path = tmp_path / "f.vital"
    path.write_bytes(data.draw(mutated([gzip.compress(vitalfile(*monitor(1)), 6)])))
    refusal_of(vital.read, path)


def test_four_hours_take_the_memory_of_a_few_pieces(tmp_path):
    """Four tracks of 500 Hz would be 115 MB as float32; beyond 16 MB a track they lie on disk."""
    path = tmp_path / "long.vital"
    second = ramp(500)
    with gzip.open(path, "wb", 1) as file:
        file.write(vitalfile(*(track(k, f"ECG_V{k}", fs=500.0) for k in range(1, 5))))
        for at in range(4 * 3600):
            file.write(b"".join(record(k, NOON + at, second) for k in range(1, 5)))
    code = (
        "import resource, sys; from pathlib import Path; from p2es.formats import vital; import numpy as np\n"
        "np.zeros(9).astype('f4'); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "(r,) = vital.read(Path(sys.argv[1]), 'r', 's', []); total = 0\n"
        "for at in range(0, 4 * 3600, 600):\n"
        "    total += sum(s.samples.size for s in r.between(at, at + 600).signals)\n"
        "assert total == 4 * 3600 * 2000, total\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000
