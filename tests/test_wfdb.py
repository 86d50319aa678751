import os
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wfdb_files import FS_HZ, LEAST, encode, ramp, write_header, write_record, write_segments

from p2es.demographics import Sex
from p2es.errors import RecordError
from p2es.formats import find_records, wfdb, wfdb_samples
from p2es.formats.wfdb_annotations import read_beats
from p2es.formats.wfdb_header import MAX_HEADER_BYTES, parse_header, read_header
from p2es.formats.wfdb_samples import Cache
from p2es.leads import LEADS
from p2es.recording import LazySamples, SignalKind
from p2es.simulator import simulate_person
from p2es.simulator.archive import write_wfdb

II, III, V = "16 200/mV 16 0 0 0 0 II", "16 100/mV 16 0 0 0 0 III", "16 50/mV 16 0 0 0 0 V"
PLETH = "16 1000/NU 16 0 0 0 0 PLETH"


def read_all(header, skipped=None):
    return list(wfdb.read(header, header.stem, "s", [] if skipped is None else skipped))


def read_one(header):
    skipped = []
    (recording,) = read_all(header, skipped)
    assert skipped == []
    return recording


def refusal(header):
    with pytest.raises(RecordError) as refused:
        read_all(header)
    assert "\n" not in str(refused.value)
    assert str(header.parent) not in str(refused.value)
    return refused.value.reason


def reasons(skipped):
    return [error.reason for error in skipped]


def steps_of(signal):
    return np.round(signal.read().astype(np.float64) * signal.gain)


# What the samples are


def test_a_simulated_person_comes_back(tmp_path):
    before = simulate_person(3, 7, 20.0)
    after = read_one(write_wfdb(before, tmp_path))
    assert (after.person, after.simulated, after.source) == (before.person, True, "s")
    assert set(after.leads) == set(LEADS)
    for lead, signal in before.leads.items():
        found = after.leads[lead]
        assert (found.unit, found.fs_hz) == ("mV", signal.fs_hz)
        np.testing.assert_allclose(found.samples, signal.samples, atol=0.6e-3)
    (ppg,), (truth,) = after.of_kind(SignalKind.PPG), before.of_kind(SignalKind.PPG)
    assert ppg.fs_hz == truth.fs_hz
    assert np.corrcoef(ppg.samples, truth.samples)[0, 1] > 0.99999
    np.testing.assert_allclose(after.r_peaks_s, before.r_peaks_s, atol=0.5 / ppg.fs_hz)
    known, stated = after.demographics.to_array(), before.demographics.to_array()
    np.testing.assert_allclose(known, stated, rtol=1e-4)


def in_files(header):
    """Give the signals of a record as they are before short ones are read into memory."""
    opened = read_header(header, header.parent)
    return wfdb._opened(header, opened, header.parent, Cache(), []).signals


def draw_steps(code, frames, width, seed):
    rng = np.random.default_rng(seed)
    if code == 8:
        return np.cumsum(rng.integers(-128, 128, (frames, width)), axis=0)
    low = LEAST[code]
    steps = rng.integers(low, -low, (frames, width))
    steps[rng.random((frames, width)) < 0.1] = low
    steps[rng.random((frames, width)) < 0.1] = -low - 1
    return steps


@settings(max_examples=150, deadline=None)
@given(
    code=st.sampled_from(sorted(LEAST)),
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    frames=st.integers(2, 60),
    offset=st.integers(0, 30),
    seed=st.integers(0, 2**31),
    chunk=st.sampled_from([5, 64, 2**18]),
    data=st.data(),
)
def test_any_stretch_of_any_format_is_what_was_written(
    tmp_path_factory, code, widths, frames, offset, seed, chunk, data
):
    folder = tmp_path_factory.mktemp("r")
    # Differences are taken signal by signal, so steps of format 8 must run so too.
    per_signal = [
        draw_steps(code, frames * width, 1, seed + k).reshape(frames, width) for k, width in enumerate(widths)
    ]
    lines = [f"{code}x{width}+{offset} 10(3)/mV 12 0 0 0 0 ECG {k}" for k, width in enumerate(widths)]
    header = write_record(folder, signals=lines, steps=np.hstack(per_signal), samples=frames, junk=bytes(offset))
    start = data.draw(st.integers(0, frames - 1))
    stop = data.draw(st.integers(start, frames))
    with pytest.MonkeyPatch.context() as patch:
        # Chunks and a cache of so few samples that most stretches cross their borders.
        patch.setattr(wfdb_samples, "_CHUNK_SAMPLES", chunk)
        patch.setattr(wfdb_samples, "_CACHE_SAMPLES", 3 * chunk)
        signals = in_files(header)
        for signal, steps, width in zip(signals, per_signal, widths, strict=True):
            truth = np.where(steps == LEAST[code], np.nan, (steps - 3.0) / 10).reshape(-1)
            assert signal.fs_hz == FS_HZ * width
            for first, last in ((0, frames * width), (start * width, stop * width), (start, stop), (stop, frames)):
                np.testing.assert_allclose(signal.read(first, last), truth[first:last], rtol=3e-7)


@pytest.mark.parametrize("code", sorted(set(LEAST) - {8}))
def test_formats_agree_with_wfdb(tmp_path, code):
    library = pytest.importorskip("wfdb")
    lines = [f"{code}{extra} 20(7)/mV 12 0 0 0 0 {name}" for extra, name in (("", "II"), ("x2", "V5"), (":3", "PPG"))]
    header = write_record(tmp_path, signals=lines, steps=draw_steps(code, 301, 4, code), samples=301)
    ours = read_one(header).signals
    theirs = library.rdrecord(str(header)[:-4], smooth_frames=False)
    for signal, samples in zip(ours, theirs.e_p_signal, strict=True):
        np.testing.assert_allclose(signal.read(), samples, rtol=3e-7)


def test_format_8_is_right_from_any_place_when_long(tmp_path):
    steps = np.cumsum(np.random.default_rng(0).integers(-100, 101, (300_000, 2)), axis=0)
    lines = [f"8 1/mV 12 0 {first} 0 0 {name}" for first, name in ((5, "II"), (-70, "V1"))]
    two, one = read_one(write_record(tmp_path, signals=lines, steps=steps, samples=300_000)).signals
    for start, stop in ((290_000, 290_100), (5, 90), (131_000, 263_000), (0, 3)):
        np.testing.assert_array_equal(two.read(start, stop), steps[start:stop, 0])
        np.testing.assert_array_equal(one.read(start, stop), steps[start:stop, 1])


@pytest.mark.parametrize(("code", "subtype"), [(508, "PCM_S8"), (516, "PCM_16"), (524, "PCM_24"), (516, "PCM_S8")])
@pytest.mark.parametrize(("per_frame", "offset"), [(1, 0), (4, 0), (2, 7)])
def test_flac_is_read_from_any_place(tmp_path, code, subtype, per_frame, offset):
    soundfile = pytest.importorskip("soundfile")
    bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}[subtype]
    low, frames = -(2 ** (bits - 1)), 5000
    steps = np.random.default_rng(1).integers(low, -low, (frames * per_frame + offset, 2))
    shift = 0 if bits == 16 else 8
    steps = steps.astype(np.int32 if bits == 24 else np.int16)
    soundfile.write(tmp_path / "r.dat", steps << shift, 125, subtype=subtype, format="FLAC")
    lines = [f"{code}x{per_frame}+{offset} 10/mV 12 0 0 0 0 {name}" for name in ("II", "V1")]
    header = write_header(tmp_path, "r", lines, samples=frames)
    missing = -(2 ** (code - 501))
    for k, signal in enumerate(in_files(header)):
        truth = np.where(steps[offset:, k] == missing, np.nan, steps[offset:, k] / 10)
        for start, stop in ((0, None), (3, 11), (4097, 5001)):
            np.testing.assert_allclose(signal.read(start, stop), truth[start:stop], rtol=3e-7)
    data = (tmp_path / "r.dat").read_bytes()
    for size in (0, 3, 30, 5000, len(data) - 3000, len(data) - 20):
        (tmp_path / "r.dat").write_bytes(data[:size])
        assert refusal(header) in {"truncated", "unreadable"}


def test_a_skewed_signal_is_shifted_back_and_its_end_is_missing(tmp_path):
    lines = ["16x2 1/mV 16 0 0 0 0 II", "16x2:5 1/mV 16 0 0 0 0 V1"]
    two, one = read_one(write_record(tmp_path, signals=lines, samples=400)).signals
    steps = ramp(400, 4)
    np.testing.assert_array_equal(two.read(), steps[:, :2].reshape(-1))
    np.testing.assert_array_equal(one.read()[:-10], steps[5:, 2:].reshape(-1))
    assert np.isnan(one.read()[-10:]).all()


def test_samples_of_several_files_and_rates_stay_apart(tmp_path):
    (tmp_path / "e.dat").write_bytes(encode(212, np.ravel(ramp(800, 1))))
    (tmp_path / "p.dat").write_bytes(b"head" + encode(16, np.ravel(ramp(200, 2))))
    (tmp_path / "r.hea").write_text(
        "r 3 62.5/999.56(15938560) 200\ne.dat 212x4 100/mV 12 0 0 0 0 II\n"
        "p.dat 16+4 1/l 16 0 0 0 0 Resp\np.dat 16 10/NU 16 0 0 0 0 Pleth\n"
    )
    two, pleth = read_one(tmp_path / "r.hea").signals
    assert (two.fs_hz, pleth.fs_hz) == (250.0, 62.5)
    np.testing.assert_array_equal(steps_of(two), np.arange(800))
    np.testing.assert_array_equal(steps_of(pleth), np.arange(200) + 10)


def test_a_record_without_a_length_takes_it_from_its_file(tmp_path):
    for samples in ("", 0):
        header = write_record(tmp_path, samples=1500)
        text = header.read_text().replace("r 2 125 1500", f"r 2 125 {samples}")
        header.write_text(text)
        assert [s.samples.size for s in read_one(header).signals] == [1500, 1500]


# Checksums


def with_sums(folder, code, widths, per_signal, wrong=()):
    """Write a record whose header states the sum of each signal, but for those at `wrong` one more."""
    lines = []
    for k, (width, steps) in enumerate(zip(widths, per_signal, strict=True)):
        stated = int(steps.sum() + (k in wrong) + 2**15) % 2**16 - 2**15
        lines.append(f"{code}x{width} 10(3)/mV 12 0 0 {stated} 0 ECG {k}")
    return write_record(folder, signals=lines, steps=np.hstack(per_signal), samples=len(per_signal[0]))


@settings(max_examples=60, deadline=None)
@given(
    code=st.sampled_from(sorted(LEAST)),
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    frames=st.integers(2, 60),
    seed=st.integers(0, 2**31),
    chunk=st.sampled_from([5, 64, 2**18]),
    data=st.data(),
)
def test_a_checksum_that_is_missed_is_told_and_costs_no_recording(
    tmp_path_factory, code, widths, frames, seed, chunk, data
):
    per_signal = [
        draw_steps(code, frames * width, 1, seed + k).reshape(frames, width) for k, width in enumerate(widths)
    ]
    wrong = data.draw(st.sets(st.integers(0, len(widths) - 1)))
    # A stated sum of 0 states nothing.
    silent = {k for k in wrong if (per_signal[k].sum() + 1) % 2**16 == 0}
    header = with_sums(tmp_path_factory.mktemp("r"), code, widths, per_signal, wrong)
    skipped = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wfdb_samples, "_CHUNK_SAMPLES", chunk)
        patch.setattr(wfdb_samples, "_CACHE_SAMPLES", 3 * chunk)
        (recording,) = read_all(header, skipped)
    assert len(recording.signals) == len(widths)
    told = len(wrong - silent)
    assert reasons(skipped) == ["checksum"] * bool(told)
    assert not told or str(skipped[0]).startswith(f"{told} signals of r.hea")


def test_a_bit_that_fell_over_is_told_by_the_segment_that_has_it(tmp_path):
    steps = ramp(1500, 1)
    names = ("a", "b", "c")
    header = write_segments(tmp_path, [(name, 1500, None) for name in names])
    for name in names:
        write_record(tmp_path, name, [f"16 200/mV 16 0 0 {int(steps.sum()) % 2**16} 0 II"], steps=steps)
    assert read_one(header).duration_s == 4500 / FS_HZ
    data = bytearray((tmp_path / "b.dat").read_bytes())
    data[1001] ^= 4
    (tmp_path / "b.dat").write_bytes(data)
    skipped = []
    (recording,) = read_all(header, skipped)
    assert recording.duration_s == 4500 / FS_HZ
    assert [(error.reason, "b.hea" in str(error)) for error in skipped] == [("checksum", True)]


def test_what_was_not_read_whole_is_not_judged_nor_read_for_it(tmp_path):
    header = write_record(tmp_path, signals=["16 200/mV 16 0 0 7 0 II"], samples=900_000)

    def bytes_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    skipped = []
    before = bytes_read()
    for recording in wfdb.read(header, "r", "s", skipped):
        recording.signals[0].read(0, 1000)
    assert bytes_read() - before < 700_000
    assert skipped == []
    for recording in wfdb.read(header, "r", "s", skipped):
        # From the end to the start, without the tail.
        for start in range(800_000, -1, -50_000):
            recording.signals[0].read(start, start + 50_000)
    assert reasons(skipped) == ["checksum"]


def test_a_day_is_checked_while_it_is_streamed(tmp_path):
    import tracemalloc

    samples = 24 * 3600 * 125
    lines = [f"16 200/mV 16 0 0 {stated} 0 {name}" for name, stated in (("II", 5), ("V", 0), ("PLETH", 1))]
    header = write_header(tmp_path, "r", lines, samples=samples)
    with header.with_suffix(".dat").open("wb") as file:
        file.truncate(samples * 2 * len(lines))
    skipped = []
    tracemalloc.start()
    for recording in wfdb.read(header, "r", "s", skipped):
        for start_s in range(0, 24 * 3600, 600):
            recording.between(start_s, start_s + 600)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
    assert [str(error).split(" miss")[0] for error in skipped] == ["2 signals of r.hea"]


# Meaning


@pytest.mark.parametrize(("unit", "millivolt"), [("mV", 1.0), ("mv", 1.0), ("uV", 1e-3), ("µV", 1e-3), ("V", 1e3)])
def test_units_of_voltage_become_millivolt_and_steps_can_be_had_back(tmp_path, unit, millivolt):
    (signal,) = read_one(write_record(tmp_path, signals=(f"16 200/{unit} 16 0 0 0 0 II",))).signals
    assert signal.unit == "mV"
    np.testing.assert_allclose(signal.samples, np.arange(1500) % 1000 / 200 * millivolt, rtol=1e-6)
    np.testing.assert_array_equal(steps_of(signal), np.arange(1500) % 1000)


@pytest.mark.parametrize(
    "line", ["16 200/NU 16 0 0 0 0 II", "16 200/% 16 0 0 0 0 II", "16 0/mV 16 0 0 0 0 II", "16 II"]
)
def test_an_ecg_without_a_known_unit_is_kept_and_not_called_millivolt(tmp_path, line):
    (signal,) = read_one(write_record(tmp_path, signals=(line,))).signals
    assert (signal.lead, signal.unit) == ("II", "unknown")
    assert signal.gain == (200 if "200" in line else None)


def test_the_unit_may_stand_in_the_name_and_must_not_contradict_the_header(tmp_path):
    lines = ["16 200/mV 16 0 0 0 0 II [mV]", "16 200/mV 16 0 0 0 0 V1 [uV]", "16 200/NU 16 0 0 0 0 V2 (mV)"]
    skipped = []
    (recording,) = read_all(write_record(tmp_path, signals=[*lines, "16 9/NU 16 0 0 0 0 ir"]), skipped)
    assert [(s.lead, s.unit) for s in recording.signals] == [("II", "mV"), ("V2", "unknown"), (None, "NU")]
    assert reasons(skipped) == ["header"]
    assert "says uV, its header mV" in str(skipped[0])


NAMES = {
    "V": (SignalKind.ECG, None),
    "MCL1": (SignalKind.ECG, None),
    "MCL": (SignalKind.ECG, None),
    "V7": (SignalKind.ECG, None),
    "V4R": (SignalKind.ECG, None),
    "II+": (SignalKind.ECG, None),
    "ECG": (SignalKind.ECG, None),
    "ecg": (SignalKind.ECG, None),
    "ECG 1": (SignalKind.ECG, None),
    "ECG_1": (SignalKind.ECG, None),
    "chest ECG": (SignalKind.ECG, None),
    "mv2": (SignalKind.ECG, None),
    "CM5": (SignalKind.ECG, None),
    "avr": (SignalKind.ECG, "aVR"),
    "AVF": (SignalKind.ECG, "aVF"),
    "ii": (SignalKind.ECG, "II"),
    "MLII": (SignalKind.ECG, "II"),
    "ECG lead II": (SignalKind.ECG, "II"),
    "lead_I": (SignalKind.ECG, "I"),
    "lead_II": (SignalKind.ECG, "II"),
    "v3": (SignalKind.ECG, "V3"),
    "PLETH": (SignalKind.PPG, None),
    "Pleth": (SignalKind.PPG, None),
    "pleth_6": (SignalKind.PPG, None),
    "pleth red": (SignalKind.PPG, None),
    "PPG_RED": (SignalKind.PPG, None),
    "finger PPG": (SignalKind.PPG, None),
    "carotid_880nm": (SignalKind.PPG, None),
    "brachial_660nm": (SignalKind.PPG, None),
}
OTHERS = [
    "vx",
    "vz",
    "col 1",
    "Resp",
    "RESP pleth",
    "ABP",
    "CVP",
    "lc_1",
    "temp_1",
    "a_x",
    "SpO2",
    "HR",
    "III x",
    "",
    "1",
]


def test_signals_are_known_by_their_names_and_others_are_not_kept(tmp_path):
    names = [*NAMES, *OTHERS]
    found = read_one(write_record(tmp_path, signals=[f"16 200/mV 16 0 0 0 0 {name}" for name in names], samples=10))
    assert {signal.name: (signal.kind, signal.lead) for signal in found.signals} == NAMES
    assert [steps_of(signal)[0] for signal in found.signals] == [10 * names.index(name) for name in NAMES]


def test_a_pulse_in_millivolt_is_a_pulse_and_numerics_of_ecg_are_not_an_ecg(tmp_path):
    lines = ["16 200/mV 16 0 0 0 0 PLETH", "16 1/bpm 16 0 0 0 0 ECG HR", "16 1/a.u. 16 0 0 0 0 carotid_880nm"]
    found = read_one(write_record(tmp_path, signals=lines)).signals
    assert [(s.name, s.kind, s.unit) for s in found] == [
        ("PLETH", SignalKind.PPG, "mV"),
        ("carotid_880nm", SignalKind.PPG, "a.u."),
    ]


def test_two_leads_of_one_name_are_both_kept(tmp_path):
    found = read_one(write_record(tmp_path, signals=["16 1/mV 16 0 0 0 0 ECG", "16 1/mV 16 0 0 0 0 ECG"]))
    assert [s.read(0, 1).tolist() for s in found.signals] == [[0.0], [10.0]]


def test_sentinels_become_missing_and_signals_of_nothing_else_are_left_out(tmp_path):
    steps = ramp(1500, 3)
    steps[10:20] = -32768
    steps[:, 1] = -32768
    header = write_record(tmp_path, signals=[II, III, PLETH], steps=steps)
    recording = read_one(header)
    assert [s.name for s in recording.signals] == ["II", "PLETH"]
    for signal in recording.signals:
        assert np.isnan(signal.samples).nonzero()[0].tolist() == list(range(10, 20))
    write_record(tmp_path, signals=[II, III, PLETH], steps=np.full((1500, 3), -32768))
    assert refusal(header) == "no_signal"


@pytest.mark.parametrize(
    ("comments", "age", "sex", "height", "weight"),
    [
        (["Age: 63 Sex: M"], 63, Sex.MALE, None, None),
        (["<age>: 76 <sex>: F <diagnoses>: (none)"], 76, Sex.FEMALE, None, None),
        (["age: >89", "sex: female"], 90, Sex.FEMALE, None, None),
        (["age: 94"], 90, None, None, None),
        (["Age: ??", "Sex: ?"], None, None, None, None),
        (["<gender>: male <height>: 178 <weight>: 83 <age>: 25 <bp_sys_start>: 113"], 25, Sex.MALE, 178, 83),
        (["69 M 1085 1629 x1", "Aldomet, Inderal"], 69, Sex.MALE, None, None),
        (["age: 5", "sex: 1", "height: 6", "weight: 700"], 5, None, None, None),
        (["Location: micu", "average: 12", "stage: 3"], None, None, None, None),
    ],
)
def test_demographics_are_found_as_archives_write_them(tmp_path, comments, age, sex, height, weight):
    found = read_one(write_record(tmp_path, comments=comments)).demographics
    assert (found.age_years, found.sex, found.height_cm, found.weight_kg) == (age, sex, height, weight)


@pytest.mark.parametrize(
    ("place", "comments", "person"),
    [
        ("waves/p100/p10014354/81739927/81739927", [], "p10014354"),
        ("85594648/85594648", ["subject_id 10014354", "hadm_id 24239751"], "p10014354"),
        ("p00/p000020/p000020-2183-04-28-17-47", [], "p000020"),
        ("patient001/s0010_re", [], "patient001"),
        ("85594648/85594648_0003", [], "85594648"),
        ("s10_run", ["<filename>: s10_run <activity>: run"], "s10"),
        ("a/b/r1", ["person: somebody"], "somebody"),
        ("training/A0001", [], "A0001"),
    ],
)
def test_records_of_one_person_share_a_name(tmp_path, place, comments, person):
    header = tmp_path / f"{place}.hea"
    write_record(header.parent, header.stem, comments=comments)
    (recording,) = wfdb.read(header, place, "s", [])
    assert (recording.person, recording.record) == (person, place)


def test_nothing_personal_is_kept_but_the_id(tmp_path):
    header = write_record(tmp_path, comments=["name: Jane Canary", "born: 1931-07-04", "MRN 5550123", "age: 94"])
    recording = read_one(header)
    kept = repr((recording.provenance, recording.demographics, recording.person, recording.signals))
    assert not [word for word in ("Canary", "1931", "5550123", "94") if word in kept]


# Headers


def odd_headers():
    good = ["r 2 125 1500", f"r.dat {II}", f"r.dat {PLETH}"]

    def first(line):
        return [line, *good[1:]]

    def signal(line):
        return [good[0], line, good[2]]

    return {
        "rate not a number": ("rate", first("r 2 nan 1500")),
        "rate infinite": ("rate", first("r 2 inf 1500")),
        "rate huge": ("rate", first("r 2 1e999 1500")),
        "rate zero": ("rate", first("r 2 0 1500")),
        "rate negative": ("rate", first("r 2 -125 1500")),
        "rate a word": ("rate", first("r 2 fast 1500")),
        "rate missing": ("rate", first("r 2")),
        "rate of minutes": ("rate", first("r 2 0.0166666666667/125 1500")),
        "too fast": ("rate", first("r 2 250000 1500")),
        "a billion signals": ("header", first("r 1000000000 125 1500")),
        "a billion segments": ("header", ["r/1000000000 2 125 1500", "r1 100"]),
        "no segments": ("header", ["r/0 2 125 1500"]),
        "too many samples": ("header", first("r 2 125 99999999999999")),
        "samples negative": ("header", first("r 2 125 -1500")),
        "samples not whole": ("header", first("r 2 125 1500.5")),
        "samples not a number": ("header", first("r 2 125 nan")),
        "other digits": ("header", first("r ٢ 125 1500")),
        "an underscore": ("header", first("r 2 125 1_500")),
        "no signals": ("no_signal", ["r 0 125 1500"]),
        "negative signals": ("header", first("r -2 125 1500")),
        "lines missing": ("header", good[:2]),
        "lines too many": ("header", [*good, f"r.dat {III}"]),
        "empty": ("header", [""]),
        "only comments": ("header", ["# age: 5"]),
        "words": ("header", ["this is no header"]),
        "a NUL": ("header", [*good, "# \0"]),
        "folder in the record name": ("header", first("medians/r 2 125 1500")),
        "another folder": ("header", signal(f"../r.dat {II}")),
        "absolute path": ("header", signal("/etc/passwd 16 200/mV 16 0 0 0 0 II")),
        "a home": ("header", signal(f"~root {II}")),
        "a backslash": ("header", signal(f"..\\r.dat {II}")),
        "a drive": ("header", signal(f"C:r.dat {II}")),
        "standard input": ("header", signal(f"- {II}")),
        "the folder": ("header", signal(f". {II}")),
        "a long name": ("header", signal(f"{'r' * 300} {II}")),
        "no format": ("header", [good[0], "r.dat", "r.dat 16"]),
        "format a word": ("header", signal("r.dat sixteen 200/mV 16 0 0 0 0 II")),
        "unknown format": ("unknown_format", [good[0], *(line.replace(" 16 ", " 999 ", 1) for line in good[1:])]),
        "two formats of a file": ("header", signal("r.dat 212 200/mV 16 0 0 0 0 II")),
        "two offsets of a file": (
            "header",
            ["r 2 125 9", f"r.dat {II.replace('16', '16+4', 1)}", f"r.dat 16+6 {II[3:]}"],
        ),
        "a million samples a frame": ("header", signal(f"r.dat {II.replace('16', '16x9999999', 1)}")),
        "skew of a year": ("header", signal(f"r.dat {II.replace('16', '16:9999999', 1)}")),
        "offset behind the end": ("truncated", [good[0], *(line.replace(" 16", " 16+999999", 1) for line in good[1:])]),
        "baseline not a number": ("header", ["r 1 125 1500", "r.dat 16 200(nan)/mV 16 0 0 0 0 II"]),
        "gain not a number": ("header", ["r 1 125 1500", "r.dat 16 nan/mV 16 0 0 0 0 II"]),
        "gain infinite": ("header", ["r 1 125 1500", "r.dat 16 inf/mV 16 0 0 0 0 II"]),
        "gain tiny": ("header", ["r 1 125 1500", "r.dat 16 1e-300/mV 16 0 0 0 0 II"]),
        "gain huge": ("header", ["r 1 125 1500", "r.dat 16 1e300/mV 16 0 0 0 0 II"]),
        "zero not whole": ("header", signal("r.dat 16 200/mV 16 0.5 0 0 0 II")),
        "zero not a number": ("header", signal("r.dat 16 200/mV 16 nan 0 0 0 II")),
        "file missing": ("missing_file", signal("x.dat 16 200/mV 16 0 0 0 0 II")),
        "nothing of use": ("no_signal", [good[0], "r.dat 16 1/mmHg 16 0 0 0 0 ABP", "r.dat 16 1/l 16 0 0 0 0 Resp"]),
        "nothing stored": ("no_signal", ["r 1 125 1500", "~ 0 200/mV 16 0 0 0 0 II"]),
        "names that are missing": ("no_signal", [good[0], "r.dat 16", "r.dat 16"]),
    }


@pytest.mark.parametrize("case", odd_headers())
def test_odd_headers_are_refused_with_a_reason(tmp_path, case):
    reason, lines = odd_headers()[case]
    header = write_record(tmp_path)
    header.write_text("\n".join(lines) + "\n")
    assert refusal(header) == reason


def test_a_lead_with_an_impossible_gain_is_told_and_the_others_are_read(tmp_path):
    header = write_record(tmp_path, signals=[II, "16 inf(3)/mV 16 0 0 0 0 III", PLETH, "16 nan/l 16 0 0 0 0 Resp"])
    skipped = []
    (recording,) = read_all(header, skipped)
    assert [s.name for s in recording.signals] == ["II", "PLETH"]
    assert reasons(skipped) == ["header"]
    np.testing.assert_array_equal(steps_of(recording.signals[1]), np.arange(1500) % 1000 + 20)


def parsed(*lines):
    return parse_header("\n".join(lines).encode(), "r.hea")


def test_every_field_of_a_signal_is_understood():
    header = parsed(
        "# a comment first",
        "",
        "E07835.mat 5 500/999.56(-204892160) 5000 05-May-2020 09:49:17",
        "E07835.mat 16x1+24 1.052e+04(-12)/uV 12 1024 -268 14726 0 ECG lead II",
        "b.dat 212:4 11.2(-1605)/mmHg 12 7 -943 -23651 0 ABP ",
        "c.dat 16 250/ 11 9 -5 6 2 V 1",
        "d.dat 516x2",
        "e.dat\t16 -200/mV\t12 -3",
        "# after",
    )
    assert (header.frame_hz, header.frames, header.segments) == (500.0, 5000, None)
    ecg, abp, third, bare, last = header.signals
    assert (ecg.format, ecg.per_frame, ecg.offset, ecg.skew) == (16, 1, 24, 0)
    assert (ecg.gain, ecg.baseline, ecg.unit, ecg.name) == (10520.0, -12.0, "uV", "ECG lead II")
    assert (ecg.resolution_bits, ecg.zero, ecg.initial, ecg.checksum, ecg.block) == (12, 1024, -268, 14726, 0)
    assert (abp.skew, abp.gain, abp.baseline, abp.unit, abp.name) == (4, 11.2, -1605.0, "mmHg", "ABP")
    assert (third.gain, third.baseline, third.unit, third.name, third.block) == (250.0, 9.0, "mV", "V 1", 2)
    assert (bare.gain, bare.per_frame, bare.name, bare.initial) == (None, 2, "", 0)
    assert (last.gain, last.zero, last.baseline, last.initial) == (-200.0, -3, -3.0, -3)
    assert header.comments.split("\n") == [" a comment first", " after"]


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n\n", "  \n\t"])
def test_line_ends_and_encodings_do_not_matter(tmp_path, ending):
    header = write_record(tmp_path, signals=["16 200/µV 16 0 0 0 0 II"], comments=["age: 50"])
    text = header.read_text(encoding="utf-8").replace("\n", ending)
    for coding in ("utf-8", "utf-8-sig", "latin-1"):
        header.write_bytes(text.encode(coding))
        recording = read_one(header)
        assert recording.demographics.age_years == 50
        np.testing.assert_allclose(recording.leads["II"].read(3, 4), 3 / 200 / 1000, rtol=1e-6)


def test_a_header_of_the_largest_size_is_read_and_no_larger_one(tmp_path):
    header = write_record(tmp_path)
    text = header.read_bytes()
    filler = b"#\n" * ((MAX_HEADER_BYTES - len(text)) // 2)
    header.write_bytes(text + filler)
    read_one(header)
    header.write_bytes(text + filler + b"##")
    assert refusal(header) == "header"


def test_a_header_that_is_no_readable_file_is_told(tmp_path):
    assert refusal(tmp_path / "absent.hea") == "header"
    (tmp_path / "folder.hea").mkdir()
    os.mkfifo(tmp_path / "pipe.hea")
    assert refusal(tmp_path / "folder.hea") == refusal(tmp_path / "pipe.hea") == "unreadable"
    header = write_record(tmp_path)
    header.with_suffix(".dat").unlink()
    os.mkfifo(header.with_suffix(".dat"))
    assert refusal(header) == "missing_file"


def test_published_headers_that_no_reader_parses_are_refused(tmp_path):
    """Re-typed after MIMIC-III 3029208 (16 segments, 15 lines) and the median beats of PTB-XL+ (wfdb-python 528)."""
    master = tmp_path / "m.hea"
    master.write_text("\n".join(["m/16 2 125 30000", "m_layout 0", *(f"m_{k:04d} 2000" for k in range(1, 15))]) + "\n")
    assert refusal(master) == "header"
    beats = ("6344117.125(-1842966025)", "12413200.271062272(1241320027)")
    lines = [
        f"medians/1.dat 32 {gain}/mV 32 0 -1995 10742 0 {lead}" for gain, lead in zip(beats, ("I", "III"), strict=True)
    ]
    (tmp_path / "1.hea").write_text("\n".join(["medians/1 2 500 600", *lines]) + "\n")
    assert refusal(tmp_path / "1.hea") == "header"
    # With the folder taken out the gains are as good as any.
    (tmp_path / "1.hea").write_text("\n".join(["1 2 500 600", *lines]).replace("medians/", "") + "\n")
    steps = np.stack([np.full(600, -1842966025 + 6344117), np.full(600, 1241320027)], axis=1)
    (tmp_path / "1.dat").write_bytes(encode(32, steps.ravel()))
    skipped = []
    one, three = read_all(tmp_path / "1.hea", skipped)[0].signals
    # The samples are ours, the sums are not.
    assert reasons(skipped) == ["checksum"]
    np.testing.assert_allclose(one.read(), 1.0, atol=1e-6)
    np.testing.assert_array_equal(three.read(), 0.0)


# Files


@pytest.mark.parametrize("code", sorted(LEAST))
def test_a_signal_file_cut_short_by_a_byte_is_refused_at_once(tmp_path, code):
    lines = [f"{code} 200/mV 16 0 0 0 0 {name}" for name in ("II", "V1", "PLETH")]
    header = write_record(tmp_path, signals=lines, samples=7, steps=np.cumsum(ramp(7, 3) % 5, axis=0))
    data = header.with_suffix(".dat").read_bytes()
    read_one(header)
    for size in (0, 1, len(data) - 1):
        header.with_suffix(".dat").write_bytes(data[:size])
        assert refusal(header) == "truncated"


def test_a_long_file_cut_short_is_refused_before_anything_is_read_of_it(tmp_path):
    header = write_record(tmp_path, samples=300_000)
    data = header.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:-1])
    assert refusal(header) == "truncated"


def test_a_file_that_changes_while_it_is_read_is_an_error_of_the_record(tmp_path):
    header = write_record(tmp_path, samples=300_000)
    signal = read_one(header).signals[0]
    assert isinstance(signal.samples, LazySamples)
    data = header.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:800_000])
    assert signal.read(0, 10).size == 10
    for change, reason in ((lambda: None, "truncated"), (data.unlink, "missing_file")):
        change()
        with pytest.raises(RecordError) as failed:
            signal.read(290_000, 290_010)
        assert failed.value.reason == reason


def test_links_are_followed_inside_the_archive_and_never_out_of_it(tmp_path):
    archive, elsewhere = tmp_path / "archive", tmp_path / "elsewhere"
    header = write_record(archive / "a" / "b")
    write_record(elsewhere)
    data = header.with_suffix(".dat")
    data.rename(archive / "stored")
    data.symlink_to(archive / "stored")

    def read_it(name):
        return next(wfdb.read(header, name, "s", []))

    assert read_it("a/b/r").record == "a/b/r"
    assert archive / "a" / "b" / "r.dat" in wfdb.files_of(header, "a/b/r")
    # Read by itself its folder is the archive.
    with pytest.raises(RecordError, match="link that leaves"):
        read_it("r")
    assert wfdb.files_of(header, "r") == [header]
    for path in (data, header):
        path.unlink(missing_ok=True)
        path.symlink_to(elsewhere / path.name)
        with pytest.raises(RecordError, match="link that leaves") as refused:
            read_it("a/b/r")
        assert refused.value.reason == "link"


def test_a_segment_behind_a_link_that_leaves_the_archive_is_told_as_that(tmp_path):
    header = write_segments(tmp_path / "archive", [("a", 700, [II]), ("b", 700, [II])])
    (tmp_path / "archive" / "b.hea").rename(tmp_path / "b.hea")
    (tmp_path / "archive" / "b.hea").symlink_to(tmp_path / "b.hea")
    skipped = []
    assert [recording.record for recording in read_all(header, skipped)] == ["m/a"]
    assert reasons(skipped) == ["link"]


def test_a_long_record_is_read_in_constant_memory_and_each_stretch_decoded_once(tmp_path):
    hours, fs_hz, names = 24, 125, ("II", "V", "III", "aVR", "V1", "PLETH")
    samples = hours * 3600 * fs_hz
    header = write_header(tmp_path, "r", [f"16 200/mV 16 0 0 0 0 {name}" for name in names], samples=samples, fs=fs_hz)
    size = samples * 2 * len(names)
    with header.with_suffix(".dat").open("wb") as file:
        file.truncate(size)  # a file with a hole: nothing is written

    def bytes_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    import tracemalloc

    recording = read_one(header)
    before = bytes_read()
    tracemalloc.start()
    length = 0
    for start_s in range(0, hours * 3600, 600):
        length += sum(signal.samples.size for signal in recording.between(start_s, start_s + 600).signals)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert length == samples * len(names)
    assert peak < 40e6
    assert bytes_read() - before < 1.3 * size


# Segments


def test_segments_may_change_leads_order_and_gain(tmp_path):
    header = write_segments(tmp_path, [("a", 1500, [II, PLETH]), (None, 500, None), ("b", 1600, [PLETH, III])])
    first, second = read_all(header)
    assert [list(r.leads) for r in (first, second)] == [["II"], ["III"]]
    assert (first.record, second.record) == ("m/a", "m/b")
    assert first.person == second.person == "m"
    assert second.demographics.age_years == 44
    np.testing.assert_allclose(second.leads["III"].samples * 100, np.arange(1600) % 1000 + 10, atol=1e-2)


ABP = "16 20/mmHg 16 0 0 0 0 ABP"


@pytest.mark.parametrize(
    ("between", "second", "runs"),
    [
        ([], [II, PLETH], 1),
        ([], [II, PLETH, ABP], 1),
        ([(None, 1, None)], [II, PLETH], 2),
        ([("x", 1, None)], [II, PLETH], 2),
        ([("x", 100, None)], [II, PLETH], 2),
        ([("x", 100, [ABP])], [II, PLETH], 2),
        ([], [PLETH, II], 2),
        ([], [II], 2),
        ([], [II, PLETH, III], 2),
        ([], [II.replace("200", "201"), PLETH], 2),
        ([], [II.replace("200", "200(7)"), PLETH], 2),
        ([], [II.replace("mV", "uV"), PLETH], 2),
        ([], [II.replace("16", "16x2", 1), PLETH], 2),
    ],
)
def test_segments_that_go_on_are_one_recording_and_no_others(tmp_path, between, second, runs):
    header = write_segments(tmp_path, [("a", 700, [II, PLETH]), *between, ("b", 900, second)])
    skipped = []
    found = read_all(header, skipped)
    assert len(found) == runs
    told = {1: "shorter_than_a_window", 100: "no_signal" if between and between[0][2] else "missing_segment"}
    assert reasons(skipped) == [told[samples] for name, samples, _ in between if name]
    sizes = [recording.of_kind(SignalKind.ECG)[0].samples.size for recording in found]
    assert sum(sizes) == 1600 + (900 if "x2" in second[0] else 0)
    assert all(signal.start_s == 0 for recording in found for signal in recording.signals)


@pytest.mark.parametrize("lengths", [(700, 900, 400), (200_000, 130_000, 1000)])
def test_a_joined_recording_reads_across_its_cuts(tmp_path, lengths):
    header = write_segments(tmp_path, [(name, n, [II, PLETH]) for name, n in zip("abc", lengths, strict=True)])
    recording = read_one(header)
    truth = np.concatenate([np.arange(n) % 1000 for n in lengths])
    two, pleth = recording.signals
    for start, stop in ((0, None), (lengths[0] - 3, lengths[0] + 5), (lengths[0] - 1, sum(lengths) - 1), (5, 5)):
        np.testing.assert_array_equal(np.round(two.read(start, stop) * 200), truth[start:stop])
        np.testing.assert_array_equal(np.round(pleth.read(start, stop) * 1000), truth[start:stop] + 10)
    assert recording.duration_s == sum(lengths) / FS_HZ


def test_many_joined_segments_do_not_pile_up_in_memory(tmp_path):
    import tracemalloc

    count, samples = 60, 100_000
    (tmp_path / "m.hea").write_text(f"m/{count} 2 125 0\n" + "".join(f"s{k} {samples}\n" for k in range(count)))
    for k in range(count):
        write_header(tmp_path, f"s{k}", [II, V, PLETH], samples=samples)
        with (tmp_path / f"s{k}.dat").open("wb") as file:
            file.truncate(samples * 6)
    recording = read_one(tmp_path / "m.hea")
    tracemalloc.start()
    for start_s in range(0, int(recording.duration_s), 600):
        recording.between(start_s, start_s + 600)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6 < count * samples * 3 * 4


def test_a_lead_that_is_missing_in_one_segment_does_not_cut_the_recording(tmp_path):
    header = write_segments(tmp_path, [("a", 700, [II, PLETH]), ("b", 900, [II, PLETH])])
    steps = ramp(900, 2)
    steps[:, 1] = -32768
    write_record(tmp_path, "b", [II, PLETH], samples=900, steps=steps)
    two, pleth = read_one(header).signals
    assert np.isfinite(two.read()).all()
    assert np.isfinite(pleth.read()).nonzero()[0].tolist() == list(range(700))


def test_segments_that_are_not_there_are_told_and_the_others_read(tmp_path):
    layout = [("l", 0, None), ("a", 1500, [II, PLETH]), ("b", 1500, [II, PLETH]), ("c", 1500, None), ("d", 1, None)]
    header = write_segments(tmp_path, layout)
    (tmp_path / "b.dat").unlink()
    skipped = []
    (recording,) = read_all(header, skipped)
    assert recording.record == "m/a"
    assert reasons(skipped) == ["missing_file", "missing_segment", "shorter_than_a_window"]


def test_the_same_samples_are_read_once(tmp_path):
    header = write_segments(
        tmp_path, [("a", 700, [II, PLETH]), (None, 9, None), ("a", 700, None), ("b", 700, [II, PLETH])]
    )
    shutil.copy(tmp_path / "a.hea", tmp_path / "b.hea")
    skipped = []
    assert [recording.record for recording in read_all(header, skipped)] == ["m/a"]
    assert reasons(skipped) == ["duplicate", "duplicate"]


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ([(None, 500, None), ("a", 1500, None)], "missing_segment"),
        ([(None, 500, None)], "no_segments"),
        ([("m_layout", 0, None), (None, 500, None)], "no_segments"),
        ([("m", 500, None)], "header"),
    ],
)
def test_a_record_without_any_segment_is_refused(tmp_path, layout, reason):
    assert refusal(write_segments(tmp_path, layout)) == reason


def test_masters_that_name_each_other_end(tmp_path):
    one = write_segments(tmp_path, [("two", 500, None)], name="one")
    write_segments(tmp_path, [("one", 500, None)], name="two")
    assert refusal(one) == "header"
    assert set(wfdb.files_of(one)) == {one, tmp_path / "two.hea"}


def test_a_segment_that_contradicts_its_master(tmp_path):
    names = "abcde"
    header = write_segments(tmp_path, [(name, 700, [II]) for name in names])
    write_record(tmp_path, "b", [II], samples=750)
    write_record(tmp_path, "d", [II], samples=700, fs=250)
    skipped = []
    found = read_all(header, skipped)
    # How long it is is what it holds; but then it is in doubt where it ends, and the next does not go on from it.
    assert [(r.record, r.signals[0].samples.size) for r in found] == [("m/a", 1450), ("m/c", 700), ("m/e", 700)]
    assert reasons(skipped) == ["rate"]


def test_files_of_a_record_are_those_that_it_is_made_of(tmp_path):
    header = write_segments(tmp_path, [("a", 1500, [II, PLETH]), ("b", 1500, [II, PLETH]), ("c", 5, None)])
    (tmp_path / "b.ii").write_bytes(b"\0\0")
    assert [p.name for p in wfdb.files_of(header)] == ["m.hea", "a.hea", "a.dat", "b.hea", "b.ii", "b.dat"]
    person = write_wfdb(simulate_person(0, 0, 12.0), tmp_path / "p")
    assert {path.suffix for path in wfdb.files_of(person)} == {".hea", ".dat", ".atr"}


# Annotations


def annotation(code, ticks):
    return struct.pack("<H", code << 10 | ticks)


def skip(ticks):
    return annotation(59, 0) + struct.pack("<HH", ticks >> 16 & 0xFFFF, ticks & 0xFFFF)


def test_beats_agree_with_wfdb(tmp_path):
    library = pytest.importorskip("wfdb")
    header = write_record(tmp_path, samples=1500)
    rng = np.random.default_rng(0)
    symbols = list("NLRBAaJSVrFejnE/fQ?+~|x()ptu`'^sT*D\"=[]!@")
    at = np.cumsum(rng.choice([3, 50, 1022, 1023, 1024, 70_000, 2**20], 300))
    chosen = rng.choice(symbols, 300).tolist()
    notes = [str(k) * (k % 4) for k in range(300)]
    library.wrann("r", "atr", at, symbol=chosen, aux_note=notes, chan=np.arange(300) % 3, write_dir=str(tmp_path))
    theirs = library.rdann(str(header)[:-4], "atr")
    beats = [t for t, s in zip(theirs.sample, theirs.symbol, strict=True) if s in set("NLRBAaJSVrFejnE/fQ?")]
    ticks, rate_hz = read_beats(header.with_suffix(".atr"))
    assert rate_hz is None
    assert ticks.tolist() == beats
    library.wrann("r", "atr", at, symbol=chosen, fs=360, write_dir=str(tmp_path))
    ticks, rate_hz = read_beats(header.with_suffix(".atr"))
    assert (rate_hz, ticks.tolist()) == (360.0, beats)
    np.testing.assert_allclose(read_one(header).r_peaks_s, np.array(beats) / 360)


def test_beats_count_frames_and_may_be_set_back(tmp_path):
    header = write_record(tmp_path, signals=["16x4 200/mV 16 0 0 0 0 II"])
    header.with_suffix(".atr").write_bytes(annotation(1, 100) + skip(-40) + annotation(5, 0) + annotation(0, 0))
    np.testing.assert_allclose(read_one(header).r_peaks_s, [60 / 125, 100 / 125])


@pytest.mark.parametrize("data", [b"", b"\0", skip(9)[:4], bytes(5 * 2**20)])
def test_a_broken_annotation_file_is_told_and_costs_no_recording(tmp_path, data):
    header = write_record(tmp_path)
    header.with_suffix(".atr").write_bytes(data)
    skipped = []
    (recording,) = read_all(header, skipped)
    assert recording.r_peaks_s is None
    assert reasons(skipped) == ["annotations"]


def test_beats_of_lead_two_are_taken_where_leads_are_annotated_apart(tmp_path):
    header = write_record(tmp_path)
    # LUDB: onset, peak and offset of P (24), QRS (N, 1) and T (27).
    waves = [(39, 10), (24, 5), (40, 5), (39, 20), (1, 5), (40, 5), (39, 30), (27, 5), (40, 5)]
    marks = b"".join(annotation(code, ticks) for code, ticks in waves) + bytes(2)
    header.with_suffix(".ii").write_bytes(marks)
    np.testing.assert_allclose(read_one(header).r_peaks_s, [45 / 125])
    header.with_suffix(".atr").write_bytes(annotation(1, 7) + bytes(2))
    np.testing.assert_allclose(read_one(header).r_peaks_s, [7 / 125])
    assert {path.suffix for path in wfdb.files_of(header)} == {".hea", ".dat", ".ii", ".atr"}


def test_beats_of_a_whole_record_or_of_its_segments_find_their_places(tmp_path):
    layout = [("a", 500, [II]), ("b", 500, [II]), (None, 250, None), ("c", 500, [II])]
    header = write_segments(tmp_path, layout)
    (tmp_path / "b.atr").write_bytes(annotation(1, 10) + bytes(2))
    assert [r.r_peaks_s if r.r_peaks_s is None else r.r_peaks_s.tolist() for r in read_all(header)] == [
        [510 / 125],
        None,
    ]
    ticks = [100, 499, 500, 1000, 1249, 1250, 1300, 1750]
    steps = np.diff([0, *ticks])
    header.with_suffix(".atr").write_bytes(b"".join(annotation(1, int(step)) for step in steps) + bytes(2))
    first, second = read_all(header)
    np.testing.assert_allclose(first.r_peaks_s, np.array([100, 499, 500]) / 125)
    np.testing.assert_allclose(second.r_peaks_s, np.array([0, 50]) / 125)


# Real recordings


def test_every_real_record_is_read_or_refused_for_a_true_reason(recordings):
    read, refused, skipped = Counter(), {}, {}
    for reference in find_records(str(recordings)):
        if reference.format != "wfdb":
            continue
        header, folder = Path(reference.path), reference.name.split("/")[0]
        left_out = []
        try:
            for recording in wfdb.read(header, header.stem, folder, left_out):
                read[folder] += 1
                assert recording.duration_s > 0
                assert all(s.unit == "mV" for s in recording.leads.values())
        except RecordError as error:
            refused[folder, header.stem] = error.reason
        if left_out:
            skipped[header.stem] = Counter(reasons(left_out))
    assert read == {"cinc2021": 21, "ludb": 80, "mimic3": 3, "mimic4": 6, "wfdb": 40}
    assert Counter(reason for (folder, _), reason in refused.items() if folder == "ptt_ppg_headers") == {
        "missing_file": 66
    }
    assert {name: reason for (folder, name), reason in refused.items() if folder != "ptt_ppg_headers"} == {
        "100skew": "missing_file",
        "TestICU": "no_signal",
        "s00001-2896-10-09-01-56": "no_segments",
        "s00001-2896-10-09-01-56n": "no_signal",
        "s00001-2896-10-10-00-31n": "no_signal",
        "s25047-2704-05-04-10-44n": "no_signal",
    }
    assert skipped == {
        "85594648": {"missing_file": 1},
        "3000221": {"no_signal": 1},
        "v102s": {"duplicate": 2},
        "p000878-2137-10-26-16-57": {"missing_segment": 30},
        "s00001-2896-10-10-00-31": {"missing_file": 3},
    }


def test_every_real_record_adds_up_to_its_checksums(recordings):
    """All 1,425 signals whose files are here do, whatever else is odd about them (`v102s`, skew, FLAC, no length)."""
    for reference in find_records(str(recordings)):
        if reference.format != "wfdb":
            continue
        skipped = []
        try:
            for recording in wfdb.read(Path(reference.path), reference.name, "s", skipped):
                for signal in recording.signals:
                    signal.read()
        except RecordError:
            continue
        assert "checksum" not in reasons(skipped)


def test_a_real_record_whose_header_was_edited_is_told(recordings, tmp_path):
    for path in (recordings / "wfdb").glob("100_3chan.*"):
        shutil.copyfile(path, tmp_path / path.name)
    header = tmp_path / "100_3chan.hea"
    fields = header.read_text().splitlines()[1].split()
    header.write_text(header.read_text().replace(f" {fields[6]} ", f" {int(fields[6]) + 1} ", 1))
    skipped = []
    read_all(header, skipped)
    assert reasons(skipped) == ["checksum"]


def test_real_samples_agree_with_wfdb(recordings):
    library = pytest.importorskip("wfdb")
    names = [
        "100_3chan",
        "3000003_0003",
        "a103l",
        "a103l-no-len",
        "mixedsignals",
        "s0010_re",
        "test01_00s_skew",
        "03700181",
    ]
    for name in [*names, "multi-segment/041s/041s", "../cinc2021/JS20004", "../ludb/data/1"]:
        header = recordings / "wfdb" / f"{name}.hea"
        record = library.rdrecord(str(header)[:-4], smooth_frames=False)
        for signal in read_one(header).signals:
            truth = record.e_p_signal[record.sig_name.index(signal.name)]
            np.testing.assert_allclose(signal.read(), truth, rtol=1e-6)


def test_real_multi_rate_flac_is_read_stretch_by_stretch(recordings):
    header = recordings / "mimic4" / "85594648" / "85594648_0007.hea"
    recording = read_one(header)
    assert {s.name: round(s.fs_hz, 3) for s in recording.signals} == {
        "II": 249.89, "V": 249.89, "aVR": 249.89, "Pleth": 124.945,
    }  # fmt: skip
    for signal in recording.signals:
        whole = signal.read()
        for start in (0, 87_381, 600_000, signal.samples.size - 50):
            np.testing.assert_array_equal(signal.read(start, start + 40), whole[start : start + 40])


def test_real_masters_join_what_goes_on(recordings):
    (joined,) = read_all(recordings / "wfdb" / "multi-segment" / "041s" / "041s.hea")
    assert (joined.record, joined.duration_s) == ("041s/041s01", 16.0)
    master = recordings / "wfdb" / "multi-segment" / "s25047" / "s25047-2704-05-04-10-44.hea"
    *_, last = read_all(master)
    # Three segments: an arterial pressure comes in and changes its gain while the ECG goes on.
    assert last.duration_s == (322111 + 3525 + 93975) / 125
    people = {r.person for r in read_all(recordings / "mimic4" / "85594648" / "85594648.hea")}
    assert people == {"p10079700"}


def test_real_annotations_of_lead_two_are_its_r_peaks(recordings):
    library = pytest.importorskip("wfdb")
    for number in (1, 8, 80):
        header = recordings / "ludb" / "data" / f"{number}.hea"
        theirs = library.rdann(str(header)[:-4], "ii")
        peaks = [t / 500 for t, symbol in zip(theirs.sample, theirs.symbol, strict=True) if symbol == "N"]
        np.testing.assert_allclose(read_one(header).r_peaks_s, peaks)


def test_real_gains_of_ludb_give_the_steps_back_which_keep_the_lead_laws(recordings):
    leads = read_one(recordings / "ludb" / "data" / "1.hea").leads
    raw = np.fromfile(recordings / "ludb" / "data" / "1.dat", "<i2").reshape(-1, 12)
    offsets = {"I": 6, "II": 2, "III": -5}
    steps = {name: np.round(leads[name].read().astype(float) * leads[name].gain) + offsets[name] for name in offsets}
    for k, name in enumerate(offsets):
        np.testing.assert_array_equal(steps[name], raw[:, k])


def test_a_real_record_that_loses_a_file_is_refused(recordings, tmp_path):
    for path in (recordings / "wfdb").glob("mixedsignals*"):
        shutil.copy(path, tmp_path)
    pulse = tmp_path / "mixedsignals_p.dat"
    data = pulse.read_bytes()
    for size in (500, len(data) - 100):
        pulse.chmod(0o644)
        pulse.write_bytes(data[:size])
        assert refusal(tmp_path / "mixedsignals.hea") == "truncated"
    pulse.unlink()
    assert refusal(tmp_path / "mixedsignals.hea") == "missing_file"


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("bidmc/bidmc07", "bidmc07"),
        ("E/E00001", "E00001"),
        ("data/data_10_1", "data_10_1"),
        ("Person_01/rec_1", "Person_01"),
        ("S2/rest", "S2"),
        ("p10/p10014354/81739927/81739927", "p10014354"),
        ("3000221/3000221", "3000221"),
        ("30/3000221/3000221_0004", "3000221"),
        ("monday/rest", "monday/rest"),
        ("41", "41"),
    ],
)
def test_people_are_told_by_folders_of_the_archive_as_archives_name_them(name, person):
    from pathlib import Path

    assert wfdb._person(Path("/mnt/bidmc") / f"{name}.hea", name, "") == person


def test_ages_in_months_and_weights_in_pounds_are_unknown():
    found = wfdb._demographics(" age: 6 months\n Weight (lbs): 160\n sex: F")
    assert (found.age_years, found.weight_kg, found.sex) == (None, None, Sex.FEMALE)
    assert wfdb._demographics(" age: 61\n weight: 70").age_years == 61.0
