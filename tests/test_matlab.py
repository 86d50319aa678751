import struct
import time
import zlib

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2es.errors import RecordError
from p2es.formats import find_records, load_mapping, read, shipped
from p2es.formats.matlab import read as read_matlab
from p2es.leads import LEADS, law_residuals
from p2es.recording import LazySamples, SignalKind

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def twelve(samples=3000, seed=0):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(0, 0.02, (12, samples)), axis=1)


def write_cpsc(path, data, sex="Female", age=61):
    scipy.io.savemat(path, {"ECG": {"sex": sex, "age": age, "data": data}}, do_compression=True)
    return path


def refusal(path, *mappings):
    with pytest.raises(RecordError) as refused:
        list(read_matlab(path, path.name, "s", [], mappings))
    assert "\n" not in str(refused.value)
    return refused.value.reason


def test_a_structure_of_version_5_comes_back(tmp_path):
    data = twelve()
    (recording,) = read(find_records(str(write_cpsc(tmp_path / "A0001.mat", data)))[0], "cpsc")
    assert (recording.person, recording.demographics.age_years, recording.demographics.sex) == ("A0001", 61, "F")
    assert tuple(recording.leads) == LEADS
    for k, lead in enumerate(LEADS):
        signal = recording.leads[lead]
        assert (signal.unit, signal.fs_hz, signal.gain) == ("mV", 500.0, 1000.0)
        np.testing.assert_allclose(signal.read(), data[k], rtol=1e-6)


def test_variables_are_those_that_scipy_reads(tmp_path):
    from p2es.formats.matlab5 import Version5

    rng = np.random.default_rng(0)
    arrays = {
        f"a_{kind}": (100 * rng.normal(size=shape)).astype(kind)
        for kind, shape in zip(
            ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"),
            [(3, 4), (1, 9), (9, 1), (2, 2), (0, 5), (1, 1), (7, 3), (5, 5), (1, 2), (2, 1)],
            strict=True,
        )
    }
    cell = np.array([["II", "V"]], dtype=object)
    nested = {"x": {"y": {"z": np.arange(4.0)}, "name": "sternum"}, "cell": cell}
    for packed in (False, True):
        scipy.io.savemat(tmp_path / "x.mat", {**arrays, **nested, "c": np.array([[1 + 2j]])}, do_compression=packed)
        file, oracle = Version5(tmp_path / "x.mat"), scipy.io.loadmat(tmp_path / "x.mat")
        for name in arrays:
            matrix = file.matrix(name, None)
            rows = [matrix.load(0, k, 0, matrix.shape[1]) for k in range(matrix.shape[0])]
            np.testing.assert_array_equal(np.reshape(rows, matrix.shape), oracle[name].astype("f8"))
        assert file.texts("cell") == ("II", "V")
        assert file.text("x.name", None) == "sternum"
        np.testing.assert_array_equal(file.matrix("x.y.z", None).load(0, 0, 0, 4), oracle["x"][0, 0]["y"][0, 0]["z"][0])
        assert not file.has("c")
        assert not file.has("x.y.w")


def test_a_matrix_with_times_is_read_by_columns_and_its_sentinels_are_missing(tmp_path):
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(4000, 6))
    matrix[100:120, 0] = -32768 / 1880
    matrix[200:220, 4] = -16.384
    t = (np.arange(4000) + 1.0)[:, None] / 125
    scipy.io.savemat(tmp_path / "x.mat", {"signal": matrix, "time": t})
    (recording,) = read(find_records(str(tmp_path))[0], "icu")
    two, chest, ppg = recording.signals
    assert [(s.name, s.kind, s.lead, s.fs_hz) for s in recording.signals] == [
        ("II", SignalKind.ECG, "II", 125.0),
        ("V", SignalKind.ECG, None, 125.0),
        ("PLETH", SignalKind.PPG, None, 125.0),
    ]
    assert np.flatnonzero(np.isnan(two.read())).tolist() == list(range(100, 120))
    assert np.flatnonzero(np.isnan(ppg.read())).tolist() == list(range(200, 220))
    np.testing.assert_allclose(chest.read(), matrix[:, 1], rtol=1e-6)


def test_times_with_a_gap_make_two_recordings(tmp_path):
    t = (np.arange(2000) + 1000 * (np.arange(2000) >= 900))[:, None] / 125.0
    scipy.io.savemat(tmp_path / "x.mat", {"signal": np.tile(np.arange(2000.0)[:, None], 6), "time": t})
    first, second = read(find_records(str(tmp_path))[0], "icu")
    assert [first.record, second.record] == ["x.mat/part-1", "x.mat/part-2"]
    assert [first.signals[0].samples.size, second.signals[0].samples.size] == [900, 1100]
    assert second.signals[0].read()[0] == 900.0


def test_columns_that_the_file_names_otherwise_are_refused(tmp_path):
    content = {"signal": np.ones((500, 6)), "time": np.arange(500.0)[:, None] / 125}
    names = ["II", "V", "ABP", "PAP", "PLETH", "RESP"]
    scipy.io.savemat(tmp_path / "a.mat", {**content, "header": np.array([names], dtype=object)})
    assert len(list(read_matlab(tmp_path / "a.mat", "a", "s", []))) == 1
    scipy.io.savemat(tmp_path / "b.mat", {**content, "header": np.array([names[::-1]], dtype=object)})
    assert refusal(tmp_path / "b.mat") == "layout"


def write_73(path, build):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        build(file, h5py)
    data = bytearray(path.read_bytes())
    data[:128] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    path.write_bytes(data)
    return path


def test_segments_of_version_7_3_are_a_recording_each(tmp_path):
    segments = np.random.default_rng(0).normal(size=(3, 2, 1250))

    def build(file, h5py):
        group = file.create_group("Subj_Wins")
        store = file.create_group("#refs#")
        for field, values in (
            ("ECG_Raw", [s[0][None] for s in segments]),
            ("PPG_Raw", [s[1][None] for s in segments]),
            ("Age", [np.array([[age]]) for age in (50.0, 51.0, 300.0)]),
            ("Gender", [np.array([[ord(c)]], dtype=np.uint16) for c in "MFM"]),
        ):
            references = np.empty((1, 3), dtype=h5py.ref_dtype)
            for k, value in enumerate(values):
                references[0, k] = store.create_dataset(f"{field}{k}", data=value).ref
            group.create_dataset(field, data=references, dtype=h5py.ref_dtype)

    path = write_73(tmp_path / "p000160.mat", build)
    found = list(read(find_records(str(path))[0], "mimic"))
    assert [r.record for r in found] == ["p000160.mat/1", "p000160.mat/2", "p000160.mat/3"]
    assert [(r.person, r.demographics.age_years, r.demographics.sex) for r in found] == [
        ("p000160", 50.0, "M"), ("p000160", 51.0, "F"), ("p000160", 90.0, "M"),
    ]  # fmt: skip
    for recording, segment in zip(found, segments, strict=True):
        for signal, values in zip(recording.signals, segment, strict=True):
            assert signal.fs_hz == 125.0
            np.testing.assert_allclose(signal.read(), values, rtol=1e-6)


MAPPING = """
name = "long"
kind = "mat"
[match]
variables = ["data"]
[rate]
fs_hz = 500.0
source = "a test"
[[signals]]
at = "data[1]"
name = "II"
kind = "ecg"
unit = "uV"
"""


def test_a_long_matrix_of_version_7_3_is_read_where_it_is_asked_for(tmp_path):
    (tmp_path / "m.toml").write_text(MAPPING)
    values = np.arange(6_000_000, dtype=np.float32).reshape(-1, 1) % 5000

    def build(file, _):
        file.create_dataset("data", data=np.hstack([values, -values]), chunks=(65536, 2), compression="gzip")

    path = write_73(tmp_path / "x.mat", build)
    (recording,) = read_matlab(path, "x", "s", [], (load_mapping(tmp_path / "m.toml"),))
    (signal,) = recording.signals
    assert isinstance(signal.samples, LazySamples)
    np.testing.assert_allclose(signal.read(4_000_123, 4_010_000), -values[4_000_123:4_010_000, 0] / 1000, rtol=1e-6)


def hostile_73(kind, tmp_path):
    (tmp_path / "secret").write_bytes(np.arange(1000.0).tobytes())

    def build(file, h5py):
        if kind == "external storage":
            file.create_dataset("data", (500, 2), dtype="f8", external=[(str(tmp_path / "secret"), 0, 8000)])
        elif kind == "external link":
            file["data"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/data")
        elif kind == "soft link":
            file["data"] = h5py.SoftLink("/data")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape=(500, 2), dtype="f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", shape=(500, 2))
            file.create_virtual_dataset("data", layout)
        elif kind == "huge":
            file.create_dataset("data", (10**12, 2), dtype="f8", chunks=(10**6, 2), compression="gzip")
        elif kind == "huge chunks":
            file.create_dataset("data", (10**8, 2), dtype="f8", chunks=(10**8, 2), compression="gzip")
        elif kind == "text":
            file.create_dataset("data", data=np.array([["a", "b"]], dtype=h5py.string_dtype()))
        else:
            file.create_group("data")

    return build


@pytest.mark.parametrize(
    "kind", ["external storage", "external link", "soft link", "virtual", "huge", "huge chunks", "text", "group"]
)
def test_hdf5_that_reaches_outside_or_fills_memory_is_refused(tmp_path, kind):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones((500, 2))
    (tmp_path / "m.toml").write_text(MAPPING)
    path = write_73(tmp_path / "x.mat", hostile_73(kind, tmp_path))
    assert refusal(path, load_mapping(tmp_path / "m.toml")) in {"layout", "too_large", "unreadable"}


def ecg_of_one_variable(folder):
    (folder / "m.toml").write_text(MAPPING.replace('"data"', '"ECG"').replace("data[1]", "ECG"))
    return load_mapping(folder / "m.toml")


def version_5(*elements):
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM" + b"".join(elements)


def element(kind, data):
    return struct.pack("<2I", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def array(kind, sizes, name, *content):
    head = element(6, struct.pack("<2I", kind, 0)) + element(5, struct.pack(f"<{len(sizes)}i", *sizes))
    return element(14, head + element(1, name) + b"".join(content))


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_at_once(tmp_path):
    size = 400 << 20
    start = array(6, (1, size // 8), b"ECG")[8:] + struct.pack("<2I", 9, size)
    start = struct.pack("<2I", 14, len(start) + size) + start
    stream = zlib.compressobj(1)
    packed = stream.compress(start) + b"".join(stream.compress(bytes(1 << 20)) for _ in range(400)) + stream.flush()
    (tmp_path / "x.mat").write_bytes(version_5(struct.pack("<2I", 15, len(packed)) + packed))
    assert len(packed) < 4 << 20
    began = time.monotonic()
    assert refusal(tmp_path / "x.mat", ecg_of_one_variable(tmp_path)) == "too_large"
    assert time.monotonic() - began < 2.0


def test_deep_nesting_and_false_sizes_do_not_reach_the_library(tmp_path):
    deep = array(6, (1, 1), b"", element(9, struct.pack("<d", 1.0)))
    for _ in range(5000):
        deep = array(1, (1, 1), b"", deep)
    for name, content in {
        "deep": array(1, (1, 1), b"ECG", deep),
        "huge": array(6, (2**31 - 1, 2**31 - 1), b"ECG", element(9, bytes(8))),
        "negative": array(6, (-1, 5), b"ECG", element(9, bytes(8))),
        "dimensions": array(6, (1,) * 40, b"ECG", element(9, bytes(8))),
        "object": array(17, (1, 1), b"ECG", element(9, bytes(8))),
    }.items():
        (tmp_path / f"{name}.mat").write_bytes(version_5(content))
        assert refusal(tmp_path / f"{name}.mat", ecg_of_one_variable(tmp_path)) == (
            "layout" if name == "object" else "unreadable"
        )


@pytest.mark.parametrize("cut", [0, 100, 130, 1000, -1, -100])
def test_a_file_cut_short_says_so(tmp_path, cut):
    data = write_cpsc(tmp_path / "A1.mat", twelve(600)).read_bytes()
    (tmp_path / "A1.mat").write_bytes(data[:cut])
    assert refusal(tmp_path / "A1.mat") in {"truncated", "unreadable", "layout"}


@given(data=st.data())
@QUICK
def test_any_damage_ends_in_recordings_or_a_reason(tmp_path, data):
    # Not packed, so that the damage is to what is read and not only to a checksum.
    packed = data.draw(st.booleans())
    path = tmp_path / "A1.mat"
    scipy.io.savemat(path, {"ECG": {"sex": "Male", "age": 5, "data": twelve(50)}}, do_compression=packed)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 900)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged))
    try:
        for recording in read_matlab(path, "A1", "s", []):
            assert all(signal.read().size <= len(damaged) for signal in recording.signals)
    except RecordError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a recording is a good end too


@given(data=st.data())
@QUICK
def test_any_damage_to_hdf5_ends_in_recordings_or_a_reason(tmp_path, data):
    (tmp_path / "m.toml").write_text(MAPPING)
    path = tmp_path / "x.mat"
    if not path.exists():
        write_73(path, lambda file, _: file.create_dataset("data", data=np.ones((300, 2)), chunks=True))
        (tmp_path / "good").write_bytes(path.read_bytes())
    damaged = bytearray((tmp_path / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(512, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        for recording in read_matlab(path, "x", "s", [], (load_mapping(tmp_path / "m.toml"),)):
            assert all(signal.read().size <= 10_000 for signal in recording.signals)
    except RecordError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a recording is a good end too


def test_a_signal_file_of_wfdb_without_its_header_says_which_header(tmp_path):
    scipy.io.savemat(tmp_path / "E1.mat", {"val": np.ones((12, 100), np.int16)}, format="4")
    assert refusal(tmp_path / "E1.mat") == "missing_file"


def test_a_file_of_no_declared_layout_is_told(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"something": np.ones((12, 100))})
    assert refusal(tmp_path / "x.mat") == "layout"


def test_wildppg_is_read_as_its_loader_describes(tmp_path):
    def sensor(fs, size):
        return {"v": np.arange(float(size))[None], "fs": fs}

    places = {
        p: {"ppg_g": sensor(128, 3000), "ppg_ir": sensor(128, 3000), "ppg_r": sensor(128, 3000)}
        for p in ("sternum", "head", "wrist", "ankle")
    }
    places["sternum"]["ecg"] = sensor(128, 3000)
    scipy.io.savemat(tmp_path / "WildPPG_Part_an0.mat", {"id": "an0", "notes": "", **places})
    (recording,) = read(find_records(str(tmp_path))[0], "wildppg")
    assert recording.person == "an0"
    assert len(recording.of_kind(SignalKind.PPG)) == 12
    assert {signal.fs_hz for signal in recording.signals} == {128.0}
    assert recording.leads == {}


def test_cpsc_obeys_einthoven_to_a_microvolt(recordings):
    worst = []
    for reference in find_records(str(recordings / "cpsc2018")):
        (recording,) = read(reference, "cpsc")
        ecg = np.stack([recording.leads[lead].read() for lead in LEADS])
        assert 0.3 < np.percentile(np.abs(ecg), 99) < 5.0
        worst.append(np.abs(law_residuals(ecg)).max(axis=1))
        assert recording.demographics.age_years is not None
        assert recording.demographics.sex is not None
    assert len(worst) == 6
    # I - II + III to single precision, the others to one step of a microvolt.
    assert np.max(worst, axis=0)[0] < 1e-6
    assert np.max(worst) < 1.2e-3


def test_the_icu_files_are_read_and_their_integer_copy_is_not(recordings):
    found = {}
    for reference in find_records(str(recordings / "icu")):
        try:
            found[reference.name] = list(read(reference, "icu"))
        except RecordError as error:
            found[reference.name] = error.reason
    assert found.pop("TestICU") == "no_signal"
    assert len(found) == 3
    missing = {}
    for name, (recording,) in found.items():
        assert recording.person == "TestICU"
        assert [s.name for s in recording.signals] == ["II", "V", "PLETH"]
        assert {s.fs_hz for s in recording.signals} == {125.0}
        # Values are whole steps of the gains that the layout declares.
        for signal in recording.signals:
            steps = signal.read().astype(np.float64) * signal.gain
            np.testing.assert_allclose(steps[np.isfinite(steps)], np.round(steps[np.isfinite(steps)]), atol=2e-2)
        missing[name] = [int(np.isnan(s.read()).sum()) for s in recording.signals]
    assert missing == {
        "TestICUdata.mat": [0, 0, 0], "TestICUdataNOISY.mat": [158, 0, 0], "TestICUdataOLD.mat": [216, 0, 20],
    }  # fmt: skip


def test_mappings_that_only_follow_documentation_say_so():
    untried = {mapping.name for mapping in shipped() if not mapping.tried}
    assert untried == {"senssmarttech", "senssmarttech-wfdb", "wildppg", "pulsedb"}
