import csv
import gzip
import os
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2es.errors import ConfigError, RecordError
from p2es.formats import ReadOptions, find_records, load_mapping, read, shipped
from p2es.formats import spool as spooled
from p2es.formats.clock import stretches
from p2es.formats.table import read as read_table
from p2es.recording import LazySamples, SignalKind

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

MAPPING = """
name = "mine"
kind = "table"
[match]
columns = ["time", "pulse"]
[time]
at = "time"
unit_s = 1e-3
[person]
at = "who"
[demographics.age_years]
at = "age"
[demographics.sex]
at = "sex"
codes = { 0 = "M", 1 = "F" }
[[signals]]
at = "pulse"
name = "PPG"
kind = "ppg"
unit = "NU"
[[signals]]
at = "ecg"
name = "II"
kind = "ecg"
unit = "uV"
gain = 2.0
missing = -32768
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.toml").write_text(MAPPING)
    return load_mapping(tmp_path / "mine.toml")


def one_line(error):
    """A refusal is one line that names no folder."""
    assert "\n" not in str(error)
    assert "/tmp" not in str(error)


def frame(rows=1000, fs_hz=250.0, **more):
    k = np.arange(rows)
    return pd.DataFrame({"time": 1000 * k / fs_hz, "pulse": np.sin(k / 9), "ecg": 100.0 * np.cos(k / 5), **more})


def read_all(path, mapping, skipped=None):
    return list(read_table(path, path.name, "s", [] if skipped is None else skipped, (mapping,)))


def refusal(path, *mappings):
    with pytest.raises(RecordError) as refused:
        list(read_table(path, path.name, "s", [], mappings))
    assert "\n" not in str(refused.value)
    return refused.value.reason


def write(path, table, kind):
    if kind == "parquet":
        table.to_parquet(path.with_suffix(".parquet"), row_group_size=300)
        return path.with_suffix(".parquet")
    separator = {"csv": ",", "semicolon": ";", "tab": "\t", "gz": ",", "bom": ",", "crlf": ",", "blanks": ","}[kind]
    text = table.to_csv(index=False, sep=separator, lineterminator="\r\n" if kind == "crlf" else "\n")
    if kind == "blanks":
        text = text.replace(",", ", ", len(table.columns) - 1)
    data = text.encode("utf-8-sig" if kind == "bom" else "utf-8")
    path.write_bytes(gzip.compress(data) if kind == "gz" else data)
    return path


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tab", "gz", "bom", "crlf", "blanks", "parquet"])
def test_a_table_comes_back_in_every_dress(tmp_path, mine, kind):
    table = frame(who="person 7", age=">89", sex=1)
    path = write(tmp_path / "t.csv", table, kind)
    (recording,) = read_all(path, mine)
    ppg, ecg = recording.signals
    assert (recording.person, recording.demographics.age_years, recording.demographics.sex) == ("person 7", 90.0, "F")
    assert (ppg.fs_hz, ecg.fs_hz, ecg.unit, ecg.lead, ecg.gain) == (250.0, 250.0, "mV", "II", 2000.0)
    np.testing.assert_allclose(ppg.read(), table["pulse"], atol=1e-6)
    np.testing.assert_allclose(ecg.read(), table["ecg"] / 1000, atol=1e-6)


def test_csv_and_parquet_of_one_table_are_the_same_recording(tmp_path, mine):
    table = frame()
    one, two = (read_all(write(tmp_path / "t.csv", table, kind), mine)[0] for kind in ("csv", "parquet"))
    for a, b in zip(one.signals, two.signals, strict=True):
        np.testing.assert_array_equal(a.read(), b.read())


def test_missing_samples_are_nan_however_they_are_written(tmp_path, mine):
    table = frame().astype(object)
    for k, value in enumerate(["", "nan", "NaN", "-", "missing", -16384.0, "inf"]):
        table.loc[10 * k, "ecg"] = value
    (recording,) = read_all(write(tmp_path / "t.csv", table, "csv"), mine)
    assert np.flatnonzero(np.isnan(recording.signals[1].read())).tolist() == list(range(0, 70, 10))


def test_a_gap_in_time_makes_two_recordings_and_loses_no_row(tmp_path, mine):
    table = frame()
    table.loc[400:, "time"] += 3000.0
    first, second = read_all(write(tmp_path / "t.csv", table, "csv"), mine)
    assert [first.record, second.record] == ["t.csv/part-1", "t.csv/part-2"]
    np.testing.assert_allclose(first.signals[0].read(), table["pulse"][:400], atol=1e-6)
    np.testing.assert_allclose(second.signals[0].read(), table["pulse"][400:], atol=1e-6)
    assert {signal.fs_hz for part in (first, second) for signal in part.signals} == {250.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.assign(time=0.0), "rate"),
        (lambda t: t.assign(time=t["time"][::-1].to_numpy()), "rate"),
        (lambda t: t.assign(time=t["time"].where(t.index != 77)), "rate"),
        (lambda t: t.assign(time=t["time"] * 1e7), "time_gaps"),
        (lambda t: t.head(2), "rate"),
        (lambda t: t.head(0), "rate"),
        (lambda t: t.drop(columns="time"), "layout"),
        (lambda t: t.assign(pulse="", ecg=""), "no_signal"),
        (lambda t: t.assign(pulse="0,5"), "layout"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path, mine, change, reason):
    assert refusal(write(tmp_path / "t.csv", change(frame()), "csv"), mine) == reason


def test_two_columns_of_one_name_are_both_read_and_only_one_is_the_lead(tmp_path, mine):
    table = frame()
    text = table.assign(second=-table["ecg"]).to_csv(index=False).replace("second", "ecg", 1)
    (tmp_path / "t.csv").write_text(text)
    (recording,) = read_all(tmp_path / "t.csv", mine)
    assert [(s.name, s.lead) for s in recording.signals] == [("PPG", None), ("II", "II"), ("II (2)", None)]
    np.testing.assert_allclose(recording.signals[2].read(), -recording.signals[1].read())


def test_a_name_with_a_line_break_in_its_quotes_is_one_name(tmp_path, mine):
    table = frame().assign(**{"a note\nof two lines": "x\ny"})
    table.to_csv(tmp_path / "t.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    (recording,) = read_all(tmp_path / "t.csv", mine)
    np.testing.assert_allclose(recording.signals[0].read(), table["pulse"], atol=1e-6)


def test_a_code_of_sex_that_nobody_declared_stays_unknown_and_is_told(tmp_path, mine):
    skipped = []
    (recording,) = read_all(write(tmp_path / "t.csv", frame(sex=9), "csv"), mine, skipped)
    assert recording.demographics.sex is None
    assert [error.reason for error in skipped] == ["demographics"]


def test_a_declared_rate_that_the_times_contradict_is_refused(tmp_path):
    (tmp_path / "m.toml").write_text(MAPPING + '[rate]\nfs_hz = 200.0\nsource = "a guess"\n')
    assert refusal(write(tmp_path / "t.csv", frame(), "csv"), load_mapping(tmp_path / "m.toml")) == "rate"


def test_uneven_times_are_made_even(tmp_path, mine):
    rng = np.random.default_rng(1)
    steps = 4.0 + np.repeat(rng.uniform(-1.5, 1.5, 50), 20)
    t = np.concatenate([[0.0], np.cumsum(steps)[:-1]])
    pd.DataFrame({"time": t, "pulse": np.sin(t / 100)}).to_csv(tmp_path / "t.csv", index=False)
    (recording,) = read_all(tmp_path / "t.csv", mine)
    (signal,) = recording.signals
    start_ms = recording.provenance["time"] == "interpolated" and np.polyfit(np.arange(1000), t, 1)[1]
    grid = start_ms + 1000 * np.arange(signal.samples.size) / signal.fs_hz
    inside = (grid > t[0]) & (grid < t[-1])
    np.testing.assert_allclose(signal.read()[inside], np.sin(grid[inside] / 100), atol=2e-3)


def test_a_long_table_lies_on_disk_and_reads_the_same(tmp_path, mine, monkeypatch):
    path = write(tmp_path / "t.csv", frame(200_000), "parquet")
    (short,) = read_all(path, mine)
    monkeypatch.setattr(spooled, "IN_MEMORY", 1000)
    (long,) = read_all(path, mine)
    for one, two in zip(short.signals, long.signals, strict=True):
        assert isinstance(one.samples, np.ndarray)
        assert isinstance(two.samples, LazySamples)
        np.testing.assert_array_equal(one.read(), two.read())
        np.testing.assert_array_equal(one.read(70_000, 140_001), two.read(70_000, 140_001))
        np.testing.assert_array_equal(one.between(3.3, 4.4).samples, two.between(3.3, 4.4).samples)


def test_a_hostile_table_is_refused_before_it_fills_memory_or_disk(tmp_path, mine):
    with gzip.open(tmp_path / "t.csv", "wb") as file:
        file.write(b"time,pulse\n")
        for _ in range(200):
            file.write(b"0,0\n" * 250_000)
    assert (tmp_path / "t.csv").stat().st_size < 1 << 20
    assert refusal(tmp_path / "t.csv", mine) == "too_large"
    with gzip.open(tmp_path / "u.csv", "wb") as file:
        file.write(b"time,pulse\n0,1\n1,2\n" + b"7" * (6 << 20))
    assert refusal(tmp_path / "u.csv", mine) == "unreadable"
    import pyarrow as pa
    import pyarrow.parquet as pq

    zeros = pa.array(np.zeros(30_000_000))
    pq.write_table(pa.table({"time": zeros, "pulse": zeros}), tmp_path / "v.parquet")
    assert (tmp_path / "v.parquet").stat().st_size < 1 << 20
    assert refusal(tmp_path / "v.parquet", mine) == "too_large"


def test_an_extension_type_whose_metadata_is_code_is_never_made(tmp_path, mine):
    import pyarrow as pa
    import pyarrow.parquet as pq

    canary = tmp_path / "canary"

    class Hostile(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.float64(), "hostile.tensor")

        def __arrow_ext_serialize__(self):
            return b"code"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage, data):
            canary.touch()
            return cls()

    values = pa.array(np.arange(100.0))
    pq.write_table(
        pa.table({"time": values, "pulse": pa.ExtensionArray.from_storage(Hostile(), values)}), tmp_path / "t.parquet"
    )
    pa.register_extension_type(Hostile())
    try:
        pq.read_schema(tmp_path / "t.parquet")
        assert canary.exists()  # pyarrow itself would have run it
        canary.unlink()
        assert refusal(tmp_path / "t.parquet", mine) == "layout"
    finally:
        pa.unregister_extension_type("hostile.tensor")
    assert not canary.exists()


def test_parquet_of_objects_or_lists_is_refused_with_a_reason(tmp_path, mine):
    table = pd.DataFrame({"time": np.arange(100.0), "pulse": [[1.0, 2.0]] * 100})
    table.to_parquet(tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet", mine) == "layout"


def test_two_files_on_one_clock_are_one_recording(tmp_path):
    t_ecg, t_ppg = np.arange(0, 30_000, 2.0), np.arange(500.0, 30_000, 10.0)
    ecg = pd.DataFrame({"t": t_ecg, "lead_I": t_ecg, "lead_II": t_ecg, "v3": t_ecg, "v4": t_ecg})
    ppg = pd.DataFrame({"t": t_ppg} | {f"{p}_{w}nm": t_ppg for p in ("carotid", "brachial") for w in (880, 660)})
    ecg.to_csv(tmp_path / "3_60_ecg.csv", index=False)
    ppg.to_csv(tmp_path / "3_60_ppg.csv", index=False)
    (reference,) = find_records(str(tmp_path))
    (recording,) = read(reference, "s")
    assert recording.person == "3"
    assert {s.name: round(s.fs_hz) for s in recording.signals if s.kind is SignalKind.PPG} == dict.fromkeys(
        ppg.columns[1:], 100
    )
    # Every value is its own time: cut anywhere, both files must say the same.
    cut = recording.between(7.0, 8.0)
    for signal in cut.signals:
        np.testing.assert_allclose(
            signal.samples, 1000 * (signal.start_s + np.arange(signal.samples.size) / signal.fs_hz)
        )
    (tmp_path / "3_60_ppg.csv").unlink()
    skipped = []
    (alone,) = read(find_records(str(tmp_path))[0], "s", skipped)
    assert len(alone.signals) == 4
    assert [error.reason for error in skipped] == ["missing_file"]


@given(
    fs_hz=st.sampled_from([25.0, 50.0, 62.4725, 125.0, 249.89, 500.0, 1000.0]),
    decimals=st.integers(2, 6),
    cuts=st.lists(st.integers(50, 950), max_size=3, unique=True),
    gap_s=st.floats(0.5, 1e4),
)
@QUICK
def test_rate_and_gaps_are_found_in_rounded_times(fs_hz, decimals, cuts, gap_s):
    k = np.arange(1000)
    t = k / fs_hz + gap_s * sum((k >= cut).astype(float) for cut in cuts)
    found = stretches(np.round(t, decimals), "x")
    edges = [0, *sorted(cuts), 1000]
    long = [(a, b) for a, b in pairwise(edges) if b - a > 2]
    assert [(s.start, s.stop) for s in found] == long
    for stretch in found:
        # The end of a stretch is known to a printed digit at either end, or half a sample.
        assert abs(stretch.fs_hz / fs_hz - 1) * (stretch.stop - stretch.start) < 0.5 + 2 * 10.0**-decimals * fs_hz
        assert not stretch.uneven


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60))
@QUICK
def test_any_column_of_times_ends_in_stretches_or_a_reason(times):
    try:
        for stretch in stretches(np.array(times), "x"):
            assert 0 <= stretch.start < stretch.stop <= len(times)
            assert 1.0 <= stretch.fs_hz <= 100_000.0
    except RecordError as error:
        one_line(error)


@given(data=st.data())
@QUICK
def test_any_damage_to_a_table_ends_in_recordings_or_a_reason(tmp_path, mine, data):
    kind = data.draw(st.sampled_from(["csv", "parquet", "gz"]))
    path = write(tmp_path / "t.csv", frame(300), kind)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    began = time.monotonic()
    try:
        for recording in read_all(path, mine):
            assert sum(signal.read().size for signal in recording.signals) <= 1200
    except RecordError as error:
        one_line(error)
    assert time.monotonic() - began < 2.0


@given(st.text(alphabet='time,pulse;"\n\r\t 0123456789.eE-nax', max_size=300))
@QUICK
def test_any_text_is_a_table_or_a_reason(tmp_path, mine, text):
    (tmp_path / "t.csv").write_text("time,pulse\n" + text, encoding="utf-8")
    try:
        read_all(tmp_path / "t.csv", mine)
    except RecordError as error:
        one_line(error)


def test_six_columns_of_numbers_are_not_taken_for_another_archive(tmp_path):
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "1_x.csv", rng.normal(size=(500, 6)), delimiter=",")
    assert refusal(tmp_path / "1_x.csv") == "layout"


@pytest.mark.parametrize("named", [False, True])
def test_ncku_is_known_by_its_counter_with_and_without_a_header(tmp_path, named):
    k = np.arange(1000)
    rows = np.stack([k + 1714, 11890944 + 160 * k, 1300 + k % 7, 8192 + k % 5, 8192 - k % 5, 8192 + k % 3], axis=1)
    rows[900:, 2:] = 0
    header = "T,,PPG,ECG,,\n" if named else ""
    (tmp_path / "125_s.csv").write_text(header + "\n".join(",".join(f"{v:.1f}" for v in row) for row in rows) + "\n")
    (recording,) = read(find_records(str(tmp_path / "125_s.csv"))[0], "ncku")
    assert (recording.person, recording.leads) == ("125", {})
    assert [(s.kind, s.fs_hz, s.samples.size) for s in recording.signals] == [
        (kind, 50.0, 900) for kind in (SignalKind.PPG, *[SignalKind.ECG] * 3)
    ]
    np.testing.assert_array_equal(recording.signals[3].read(), 8192 + k[:900] % 3)


def mistakes():
    return {
        "no toml": ("= 5", "is no TOML"),
        "kind": (MAPPING.replace('kind = "table"', 'kind = "csv"'), "kind must be table, mat or wfdb"),
        "unknown key": (MAPPING + "\ncolour = 3\n", "colour"),
        "no match": (MAPPING.replace("[match]", "[mtach]"), "match is missing"),
        "a lead that is none": (
            MAPPING.replace('name = "II"', 'name = "II"\nlead = "V7"'),
            "lead is none",
        ),
        "no unit of time": (MAPPING.replace("unit_s = 1e-3", ""), "time.unit_s is missing"),
        "negative unit": (MAPPING.replace("1e-3", "-1.0"), "time.unit_s must be above 0"),
        "infinite": (MAPPING.replace("1e-3", "inf"), "time.unit_s must be a finite number"),
        "no rate": (MAPPING.replace('[time]\nat = "time"\nunit_s = 1e-3', ""), "time is missing"),
        "rate without why": (MAPPING + "[rate]\nfs_hz = 100.0\n", "rate.source is missing"),
        "a bad pattern": (MAPPING.replace('at = "who"', "file = '('"), "person.file is no regular expression"),
        "no group": (MAPPING.replace('at = "who"', "file = 'x'"), "person.file needs a group"),
        "codes of age": (
            MAPPING.replace('at = "age"', 'at = "age"\ncodes = { a = "F" }'),
            "age_years.codes",
        ),
        "a wrong type": (MAPPING.replace("gain = 2.0", "gain = true"), "signals[1].gain must be"),
    }


@pytest.mark.parametrize("case", mistakes())
def test_a_mistake_in_a_mapping_names_file_and_key(tmp_path, case):
    text, said = mistakes()[case]
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_mapping(tmp_path / "my.toml")
    assert str(refused.value).startswith("my.toml")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@given(data=st.data())
@QUICK
def test_any_damage_to_a_mapping_is_a_mapping_or_a_mistake(tmp_path, data):
    damaged = bytearray(MAPPING.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "my.toml").write_bytes(bytes(damaged))
    try:
        load_mapping(tmp_path / "my.toml")
    except ConfigError as error:
        one_line(error)


def test_a_mapping_that_is_not_there_or_not_small_says_so(tmp_path):
    with pytest.raises(ConfigError, match="give the path"):
        load_mapping(tmp_path / "none.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger"):
        load_mapping(tmp_path / "big.toml")


def test_the_users_own_mapping_comes_before_the_shipped_ones(tmp_path):
    t = np.arange(1000) / 125
    pd.DataFrame({"Time [s]": t, "PLETH": np.sin(t), "II": np.cos(t)}).to_csv(tmp_path / "a_Signals.csv", index=False)
    (tmp_path / "m.toml").write_text(
        'name = "own"\nkind = "table"\n[match]\ncolumns = ["PLETH"]\n[time]\nat = "Time [s]"\nunit_s = 2.0\n'
        '[[signals]]\nat = "PLETH"\nkind = "ppg"\n'
    )
    own = load_mapping(tmp_path / "m.toml")
    (reference,) = find_records(str(tmp_path / "a_Signals.csv"))
    (shipped_one,) = read(reference, "s")
    (mine,) = read(reference, "s", options=ReadOptions(mappings=(own,)))
    assert (shipped_one.signals[0].fs_hz, mine.signals[0].fs_hz) == (125.0, pytest.approx(62.5))
    assert (shipped_one.person, mine.person) == ("a", "a_Signals")


def test_every_shipped_mapping_says_why_it_believes_its_rate():
    names = {mapping.name for mapping in shipped()}
    assert {"ncku", "bidmc", "neurokit", "icu", "cpsc2018", "senssmarttech", "wildppg", "pulsedb"} <= names
    for mapping in shipped():
        assert mapping.description
        assert mapping.licence
        # A WFDB header says its rate itself.
        said = mapping.time or (mapping.rate and mapping.rate.source) or all(c.fs_at for c in mapping.signals)
        assert said or mapping.kind == "wfdb"


@pytest.mark.slow
def test_a_day_of_a_table_takes_constant_memory(tmp_path, mine):
    code = """
import resource, sys
import pyarrow as pa, pyarrow.parquet as pq, numpy as np, pandas as pd
from p2es.formats import load_mapping
from p2es.formats.table import read
from pathlib import Path
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
schema = pa.schema([("time", pa.float64()), ("pulse", pa.float32()), ("ecg", pa.float32())])
with pq.ParquetWriter(folder / "t.parquet", schema, compression="none", use_dictionary=False) as writer:
    for start in range(0, rows, 500_000):
        k = np.arange(start, min(start + 500_000, rows))
        columns = [pa.array(4.0 * k), pa.array(np.sin(k / 9).astype("f4")), pa.array(np.cos(k / 9).astype("f4"))]
        writer.write_table(pa.table(columns, schema=schema))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(recording,) = read(folder / "t.parquet", "t", "s", [], (load_mapping(folder / "mine.toml"),))
last = recording.between(recording.duration_s - 10, recording.duration_s)
assert last.signals[0].samples.size == 2500
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = [
        int(subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(rows)],
            check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).stdout) / 1024
        for rows in (5_000_000, 21_600_000)
    ]  # fmt: skip
    # 5.6 h and 24 h at 250 Hz; the longer one's three columns are 345 MB.
    assert grown[1] < grown[0] + 60


def test_the_rate_of_ncku_is_proved_by_its_pulse(recordings):
    from p2es.formats.find import survey

    rates = []
    for reference in survey(str(recordings / "ncku")).records:
        (recording,) = read(reference, "ncku")
        assert {signal.fs_hz for signal in recording.signals} == {50.0}
        if "static" in reference.name:
            ppg = recording.of_kind(SignalKind.PPG)[0].read()
            spectrum = np.abs(np.fft.rfft((ppg - ppg.mean()) * np.hanning(ppg.size))) ** 2
            hertz = np.fft.rfftfreq(ppg.size, 1 / 50.0)
            band = (hertz > 0.6) & (hertz < 3.5)
            rates.append(60 * hertz[band][np.argmax(spectrum[band])])
    assert len(rates) == 9
    assert all(45 < rate < 120 for rate in rates)


def test_real_tables_are_read_as_their_archives_describe(recordings):
    (bidmc,) = read(find_records(str(recordings / "bidmc"))[0], "mimic")
    assert (bidmc.person, bidmc.signals[0].fs_hz, set(bidmc.leads)) == ("bidmc_01", 125.0, {"II", "aVR"})
    (neurokit,) = read(find_records(str(recordings / "neurokit"))[0], "neurokit")
    assert [(s.name, s.fs_hz, s.samples.size) for s in neurokit.signals] == [
        ("PPG", 100.0, 30000),
        ("ECG", 100.0, 30000),
    ]
    sample, rotate = (
        next(read(find_records(str(next((recordings / "ncku").glob(f"125_{name}*"))))[0], "ncku"))
        for name in ("sample", "rotate")
    )
    # Found here: the file with a header is the one of rotation once more.
    for one, two in zip(sample.signals, rotate.signals, strict=True):
        np.testing.assert_array_equal(one.read(), two.read())
