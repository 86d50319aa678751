import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from p2es.errors import DatasetError
from p2es.fingerprint import BYTES, fingerprint
from p2es.formats import find_records, read
from p2es.likeness import likeness
from p2es.recording import SignalKind
from p2es.segmenting import segment
from p2es.signals import bandpass_ecg, bandpass_ppg, resample
from p2es.simulator import simulate_person
from p2es_platform import twins
from p2es_platform.dataset import rewrite_part
from p2es_platform.parts import PartWriter

PEOPLE = 10


def ids(*parts):
    return "-".join(parts)


def cut(recording, split="train", step_s=10.0):
    return list(segment(recording, step_s=step_s, ids=ids, split=split).windows)


def shown(windows):
    """The columns that the search reads."""
    columns = {name: [getattr(w, name) for w in windows] for name in twins.COLUMNS}
    return pa.table(columns)


def found(*groups, known=0):
    windows = [window for group in groups for window in group]
    return twins.find_twins(
        [shown(group) for group in groups if group], lambda rows: {row: windows[row] for row in rows}, known=known
    )


def people_of(pairs):
    return {frozenset((twin.person, twin.other_person)) for twin in pairs}


def copy_of(recording, seed, *, start_s=0.0, gain=1.0, fs_hz=None, snr_db=None, kinds=tuple(SignalKind)):
    """What a re-export does: later start, other gain, another rate and back, noise; under another name."""
    rng, signals = np.random.default_rng(seed), []
    for s in recording.signals:
        if s.kind not in kinds:
            continue
        x, fs = np.asarray(s.read(round(start_s * s.fs_hz)), np.float64), s.fs_hz
        if fs_hz is not None:
            x, fs = resample(resample(x, fs, 128.0), 128.0, fs_hz), fs_hz
        if snr_db is not None:
            clean = bandpass_ecg(x, fs) if s.kind is SignalKind.ECG else bandpass_ppg(x, fs)
            x = x + np.nanstd(clean) * 10 ** (-snr_db / 20) * rng.standard_normal(x.size)
        signals.append(replace(s, samples=x * gain, fs_hz=fs))
    name = f"copy-{recording.person}"
    return replace(recording, person=name, record=name, signals=tuple(signals))


@pytest.fixture(scope="module")
def originals():
    return [simulate_person(21, index, 36.0) for index in range(PEOPLE)]


@pytest.fixture(scope="module")
def kept(originals):
    return [window for recording in originals for window in cut(recording)]


COPIES = {
    "as it is": {},
    "shifted": {"start_s": 3.3},
    "halved": {"gain": 0.5, "start_s": 1.7},
    "trebled": {"gain": 2.0, "start_s": 4.9},
    "resampled": {"fs_hz": 125.0, "start_s": 2.2},
    "30 dB": {"snr_db": 30, "fs_hz": 125.0, "start_s": 4.1},
    "20 dB": {"snr_db": 20, "start_s": 2.9},
    "ECG only": {"kinds": (SignalKind.ECG,), "start_s": 3.3, "snr_db": 30},
    "PPG only": {"kinds": (SignalKind.PPG,), "start_s": 3.3, "snr_db": 30},
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_found_whatever_was_done_to_it(originals, kept, how):
    copies = [cut(copy_of(recording, k, **COPIES[how])) for k, recording in enumerate(originals)]
    planted = {
        frozenset((f"simulated-person-{r.person}", windows[0].person))
        for r, windows in zip(originals, copies, strict=True)
        if windows
    }
    assert len(planted) >= PEOPLE // 2
    pairs = people_of(found(kept, *copies, known=len(kept)))
    assert pairs <= planted
    # The pulse alone says less: one of ten may pass.
    assert len(planted - pairs) <= (how == "PPG only")


def test_a_lead_that_was_turned_over_does_not_hide_a_copy(originals, kept):
    copies = []
    for recording in originals[:5]:
        for window in cut(copy_of(recording, 0, start_s=2.0)):
            ecg = window.ecg.copy()
            ecg[7] *= -1
            turned = replace(window, ecg=ecg)
            copies.append(replace(turned, fingerprint=fingerprint(turned)))
    assert len(people_of(found(kept, copies, known=len(kept)))) == 5


def test_a_copy_of_one_window_is_found_in_a_long_recording():
    long = simulate_person(22, 0, 300.0)
    short = replace(long.between(153.2, 167.0), person="copy", record="copy", r_peaks_s=None)
    short = replace(short, signals=tuple(replace(s, start_s=0.0) for s in short.signals))
    (twin,) = found(cut(long), cut(short))
    assert twin.other_person == "simulated-person-copy"
    assert twin.likeness > 0.98
    # Both ways round: the long one may come later.
    assert len(found(cut(short), cut(long))) == 1


def test_other_people_are_no_twins(kept):
    assert found(kept) == []


def paced(person, seed, shape, phase_s):
    """A heart paced at exactly 75 a minute, with its own shape and a little noise of its own."""
    recording = simulate_person(23, 0, 36.0)
    rng, signals = np.random.default_rng(seed), []
    time_s = np.arange(round(36.0 * 250)) / 250 + phase_s
    phase_s = (time_s % 0.8)[None] - 0.4
    width, place = shape
    beat = np.exp(-0.5 * (phase_s / 0.012) ** 2) + 0.3 * np.exp(-0.5 * ((phase_s - place) / width) ** 2)
    pulse = np.exp(-0.5 * ((phase_s - 0.1) / 0.07) ** 2) + 0.4 * np.exp(-0.5 * ((phase_s - 0.3) / 0.06) ** 2)
    for s in recording.signals:
        wave = (pulse if s.kind is SignalKind.PPG else beat)[0]
        noise = rng.standard_normal(wave.size)
        signals.append(replace(s, samples=wave + 0.01 * noise))
    lead = next(s for s in signals if s.lead == "II")
    pair = (lead, next(s for s in signals if s.kind is SignalKind.PPG))
    return replace(recording, person=person, record=person, signals=pair, r_peaks_s=None)


@pytest.mark.parametrize("kinds", [("ecg", "ppg"), ("ecg",), ("ppg",)])
def test_two_paced_hearts_of_the_same_rate_and_shape_are_no_twins(kinds):
    one, other = cut(paced("one", 1, (0.04, 0.25), 0.0)), cut(paced("other", 2, (0.04, 0.25), 0.3))
    assert one
    assert other

    def strip(windows):
        if "ecg" not in kinds:
            windows = [replace(w, ecg=None, lead_mask=np.zeros(12, bool)) for w in windows]
        if "ppg" not in kinds:
            windows = [replace(w, ppg=None, ppg_mask=None, ppg_channels=()) for w in windows]
        return [replace(w, fingerprint=fingerprint(w)) for w in windows]

    one, other = strip(one), strip(other)
    best = likeness(one[0], other[0], kind=kinds[0])
    # They fit well enough for a threshold alone, at any beat.
    assert best.correlation > 0.98
    assert found(one, other) == []


def test_likeness_agrees_with_pearson_at_the_lag(kept):
    one, other = kept[0], kept[1]
    for kind in ("ecg", "ppg"):
        measured = likeness(one, other, kind=kind)
        lag = round(measured.lag_s * 128)
        if kind == "ecg":
            x, y = one.ecg, other.ecg
        else:
            x, y = one.ppg[:1], other.ppg[:1]
        n = x.shape[1]
        a, b = x[:, max(lag, 0) : n + min(lag, 0)], y[:, max(-lag, 0) : n + min(-lag, 0)]
        r = np.array([np.corrcoef(p, q)[0, 1] for p, q in zip(a, b, strict=True)])
        weight = x.std(axis=1) * y.std(axis=1)
        expected = float((np.abs(r) if kind == "ecg" else r) @ weight / weight.sum())
        # The parabola between samples only adds.
        assert expected - 1e-6 <= measured.correlation <= expected + 0.02


def test_likeness_needs_a_signal_in_common(kept):
    silent = replace(kept[0], ecg=None, lead_mask=np.zeros(12, bool))
    assert likeness(silent, kept[1], kind="ecg") is None
    flat = replace(kept[0], ppg=np.zeros_like(kept[0].ppg))
    assert likeness(flat, kept[1], kind="ppg") is None


def test_windows_without_a_fingerprint_are_passed_over(kept):
    rng = np.random.default_rng(0)
    blank = [replace(kept[0], fingerprint=None, person="x", recording="x"), replace(kept[0], fingerprint=b"short")]
    random = [
        replace(kept[0], fingerprint=rng.integers(0, 256, BYTES, np.uint8).tobytes(), person=name, recording=name)
        for name in map(str, range(20))
    ]
    assert found(blank, random) == []
    assert found() == []


def test_pairs_that_were_there_before_are_not_looked_for_again(originals):
    one, copy = cut(originals[0]), cut(copy_of(originals[0], 0))
    stranger = cut(originals[1])
    assert len(found(one, copy, stranger)) == 1
    assert found(one, copy, stranger, known=len(one) + len(copy)) == []
    assert len(found(one, stranger, copy, known=len(one))) == 1


def test_the_order_of_tables_and_partitions_change_nothing(originals, kept, monkeypatch):
    copies = [cut(copy_of(r, k, start_s=3.0, snr_db=30)) for k, r in enumerate(originals[:5])]
    expected = people_of(found(kept, *copies))
    assert len(expected) == 5
    assert people_of(found(*copies[::-1], kept)) == expected
    monkeypatch.setattr(twins, "ROWS_A_PARTITION", 10)
    assert people_of(found(kept, *copies)) == expected


def write(url, key, windows):
    with PartWriter(url, key, "simulated", rows=4) as writer:
        writer.add(windows)
        return writer.finish({key: key * 2}, candidates=len(windows))


@pytest.fixture
def dataset(tmp_path, originals):
    """An old part in `train`; a new one in `test` with a copy, another recording of its person, and a stranger."""
    url = str(tmp_path)
    old = [window for recording in originals[:4] for window in cut(recording)]
    copy = cut(copy_of(originals[1], 0, start_s=2.0, gain=1.5, snr_db=30), "test")
    same = [replace(w, person=copy[0].person) for w in cut(originals[5], "test")]
    new = copy + same + cut(originals[6], "test")
    return url, write(url, "aa", old), write(url, "bb", new), copy, same


def test_twins_are_found_in_the_parts_of_a_dataset_and_can_be_left_out(dataset):
    url, old, new, copy, same = dataset
    (twin,) = twins.find(url, [new], [old])
    assert twin.leaks
    assert (twin.split, twin.other_split) == ("train", "test")
    assert twin.other_recording == copy[0].recording
    dropped = twins.to_leave_out(url, [new], [twin])
    # A person's other windows show the same heart.
    assert dropped == {"bb": {w.window_id: "near_duplicate" for w in copy + same}}
    rewritten = rewrite_part(url, new, dropped["bb"])
    assert rewritten.rows == new.rows - len(copy) - len(same)
    assert twins.find(url, [rewritten], [old]) == []


def test_of_two_new_twins_one_stays(dataset):
    url, old, new, *_ = dataset
    (twin,) = twins.find(url, [old, new])
    dropped = twins.to_leave_out(url, [old, new], [twin])
    assert set(dropped) == {"bb"}


def test_it_says_the_same_on_ray(dataset, local_ray, monkeypatch):
    url, old, new, *_ = dataset
    monkeypatch.setattr(twins, "ROWS_A_PARTITION", 10)
    on_ray = twins.find(url, [new], [old])
    monkeypatch.undo()
    assert on_ray == twins.find(url, [new], [old])
    assert len(on_ray) == 1


def test_a_shard_that_is_gone_is_one_line(dataset):
    url, old, new, *_ = dataset
    reader = twins._ShardWindows(url, new.shards)
    assert len(pickle.loads(pickle.dumps(reader))([0, 5])) == 2
    Path(url, new.shards[0].path).unlink()
    with pytest.raises(DatasetError, match="is missing"):
        twins.find(url, [new], [old])


def real_windows(folder, names):
    result = []
    for reference in find_records(str(folder)):
        if reference.name in names:
            for recording in read(reference, "real"):
                result += cut(recording)
    return result


def test_real_copies_are_found_and_real_people_are_kept_apart(recordings):
    names = {"a103l", "a103l-no-len", "mixedsignals"}
    windows = real_windows(recordings / "wfdb", names) + real_windows(recordings / "bidmc", {"bidmc_01_Signals.csv"})
    assert len({w.person for w in windows}) >= 3
    pairs = found(windows)
    names = {name.rsplit("-person-")[-1] for twin in pairs for name in (twin.person, twin.other_person)}
    assert names == {"a103l", "a103l-no-len"}
    assert len(pairs) == 1
    assert pairs[0].likeness == pytest.approx(1.0, abs=1e-6)
