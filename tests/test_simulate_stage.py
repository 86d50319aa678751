"""What `p2es simulate`, `ingest simulated:...`, `person` and `gallery` do with the simulator."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from p2es.demographics import Demographics
from p2es.errors import ConfigError, DatasetError, InputError
from p2es.formats import RecordRef, find_records, read, survey
from p2es.formats.simulated import SimulateConfig, parse
from p2es.leads import LEADS
from p2es.recording import Recording, Signal, SignalKind
from p2es.simulator import POPULATIONS, simulate
from p2es.simulator.archive import write_wfdb
from p2es.windows import decode
from p2es_platform.archive import stamp
from p2es_platform.dataset import SPLITS, Dataset
from p2es_platform.settings import Settings
from pipelines import cli, datasets, gallery, ingest
from pipelines import simulate as stage
from pipelines.recipes import demo

pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

# For each rhythm, what WFDB calls it and a kind of beat that must be there.
RHYTHM_MARKS = {
    "sinus": ("(N", "N"),
    "atrial_fibrillation": ("(AFIB", "N"),
    "premature_atrial": ("(N", "A"),
    "premature_ventricular": ("(N", "V"),
    "av_block_3": ("(BIII", None),
}


def digest(folder):
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def recipe_of(**numbers):
    return dataclasses.replace(demo(), simulate=SimulateConfig(**{"duration_s": 12.0, **numbers}))


def annotations(header, name):
    import wfdb

    found = wfdb.rdann(str(header.with_suffix("")), name)
    return found.sample / found.fs, found.symbol, found.aux_note


# --- WFDB


@pytest.mark.parametrize(("population", "index"), [("healthy", 0), ("healthy", 1), ("clinic", 2), ("other", 3)])
def test_a_record_comes_back_from_wfdb_as_it_went(tmp_path, population, index):
    import wfdb

    made = simulate(5, index, 20.0, population)
    recording = made.recording
    header = write_wfdb(recording, tmp_path, made.truth)
    record = wfdb.rdrecord(str(header.with_suffix("")), smooth_frames=False)
    assert record.sig_name == [signal.name for signal in recording.signals]
    assert record.units == ["mV"] * 12 + [signal.unit for signal in recording.signals[12:]]
    for signal, samples in zip(recording.signals, record.e_p_signal, strict=True):
        step = 0.00051 if signal.kind is SignalKind.ECG else 1e-4 * np.ptp(signal.samples[np.isfinite(signal.samples)])
        np.testing.assert_allclose(samples, signal.samples, atol=step)
    assert f"person: {recording.person}" in record.comments
    assert any("SYNTHETIC" in comment for comment in record.comments)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".atr", ".dat", ".hea", ".pulse", ".waves"]


@pytest.mark.parametrize("rhythm", RHYTHM_MARKS)
def test_annotations_say_what_is_true(tmp_path, rhythm):
    made = simulate(5, 1, 40.0, rhythm=rhythm)
    beats = made.truth.beats
    header = write_wfdb(made.recording, tmp_path, made.truth)
    name, kind = RHYTHM_MARKS[rhythm]
    times_s, symbols, aux = annotations(header, "atr")
    assert (symbols[0], aux[0].strip("\0"), times_s[0]) == ("+", name, 0.0)
    np.testing.assert_allclose(times_s[1:], beats.r_s, atol=0.0021)
    assert kind is None or kind in symbols
    feet_s, _, _ = annotations(header, "pulse")
    wanted_s = beats.pulse_foot_s[(beats.pulse_foot_s >= 0) & (beats.pulse_foot_s < 40.0)]
    np.testing.assert_allclose(feet_s, np.sort(wanted_s), atol=0.0021)


def test_waves_are_marked_from_onset_to_end(tmp_path):
    made = simulate(5, 2, 30.0, rhythm="av_block_2_wenckebach")
    beats, alone = made.truth.beats, made.truth.p_alone_s
    header = write_wfdb(made.recording, tmp_path, made.truth)
    times_s, symbols, _ = annotations(header, "waves")
    inner = [k for k, symbol in enumerate(symbols) if symbol in "pNt" and 0 < k < len(symbols) - 1]
    waves = {symbol: np.array([times_s[k - 1 : k + 2] for k in inner if symbols[k] == symbol]) for symbol in "pNt"}
    marks = {symbols[k - 1] + symbols[k + 1] for k in inner}
    assert marks == {"()"}
    whole = beats.t_off_s < 30.0
    for symbol, on_s, off_s in (("N", beats.qrs_on_s, beats.qrs_off_s), ("t", beats.t_on_s, beats.t_off_s)):
        found = waves[symbol][: whole.sum()]
        np.testing.assert_allclose(found[:, [0, 2]], np.stack([on_s, off_s], axis=1)[whole], atol=0.0021)
    assert len(alone) >= 1
    # A P wave that leads to no beat is marked as well as those that do.
    for on_s, off_s in alone:
        assert np.abs(waves["p"][:, [0, 2]] - [on_s, off_s]).max(axis=1).min() < 0.0021


def signal_of(name, samples, fs_hz, kind=SignalKind.ECG):
    return Signal(name, kind, samples, fs_hz, "mV" if kind is SignalKind.ECG else "NU")


def test_two_rates_and_gaps_survive_wfdb(tmp_path):
    import wfdb

    ecg, ppg = np.sin(np.arange(2000) / 9), np.cos(np.arange(1000) / 30)
    ecg[100:200], ppg[50:60] = np.nan, np.nan
    signals_ = (signal_of("II", ecg, 250.0), signal_of("Pleth", ppg, 125.0, SignalKind.PPG))
    header = write_wfdb(Recording("two-rates", "s", "p", signals_, Demographics()), tmp_path)
    record = wfdb.rdrecord(str(header.with_suffix("")), smooth_frames=False)
    np.testing.assert_allclose(record.e_p_signal[0], ecg, atol=0.00051)
    np.testing.assert_allclose(record.e_p_signal[1], ppg, atol=1e-4)
    assert "SYNTHETIC" not in header.read_text()


@pytest.mark.parametrize(
    "signals_",
    [
        (),
        (signal_of("I", np.zeros(100), 100.0), signal_of("II", np.zeros(100), 70.0)),
        (signal_of("I", np.zeros(100), 100.0), signal_of("II", np.zeros(90), 100.0)),
    ],
)
def test_what_does_not_fit_in_a_record_is_refused_and_leaves_nothing(tmp_path, signals_):
    with pytest.raises(InputError):
        write_wfdb(Recording("odd", "s", "p", signals_), tmp_path)
    assert not list(tmp_path.iterdir())


# --- The stage


def test_any_partition_of_the_recordings_gives_the_same_bytes(tmp_path):
    config = SimulateConfig(people=3, duration_s=12.0, seed=4, days=2, population="clinic")
    for name, batches in {"one": [range(6)], "many": [range(3, 6), range(1), range(1, 3)]}.items():
        for batch in batches:
            stage.simulate_batch(config, batch, str(tmp_path / name))
    assert digest(tmp_path / "one") == digest(tmp_path / "many")
    assert len(digest(tmp_path / "one")) == 6 * 5


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DatasetError, match="no space left"):
        stage.simulate_batch(SimulateConfig(people=2, duration_s=12.0), range(2), str(tmp_path))
    assert not list(tmp_path.glob("*.hea"))
    assert not list(tmp_path.glob("truth/*.jsonl"))


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"people": 0}, "people"),
        ({"days": 0}, "days"),
        ({"seed": -1}, "seed"),
        ({"duration_s": 5.0}, "12 to 86400"),
        ({"duration_s": float("nan")}, "12 to 86400"),
        ({"population": "sick"}, "clinic"),
        ({"ecg_fs_hz": 50.0}, "100 to 2000"),
        ({"ecg_fs_hz": 250.5}, "whole number"),
        ({"ecg_fs_hz": 1999.0}, "500"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_in_one_line(numbers, says):
    with pytest.raises(ConfigError, match=says) as told:
        SimulateConfig(**numbers)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("numbers", [{"ecg_fs_hz": 500.0}, {"ecg_fs_hz": 360.0, "duration_s": 33.0}])
def test_what_the_recipe_accepts_can_be_written(tmp_path, population, numbers):
    config = SimulateConfig(people=8, **({"duration_s": 13.37, "population": population} | numbers))
    assert len(stage.simulate_batch(config, range(8), str(tmp_path))) == 8


def test_batches_are_cut_by_work_and_hold_every_recording_once():
    for config in (SimulateConfig(people=50, days=3), SimulateConfig(people=7, duration_s=86_400.0)):
        batches = stage.batches_of(config)
        assert [number for batch in batches for number in batch] == list(range(config.records))
    assert {len(batch) for batch in batches} == {1}
    assert len(stage.batches_of(SimulateConfig(people=50, duration_s=12.0))[0]) > 5


def test_an_archive_is_written_once_and_taken_up_where_it_stopped(tmp_path, local_ray):
    recipe = recipe_of(people=9, days=2, seed=4)
    settings = Settings(P2ES_STORAGE=str(tmp_path))
    first = stage.run(recipe, settings)
    folder = Path(first.folder)
    before = digest(folder)
    names = (folder / "RECORDS").read_text().split()
    assert (first.people, first.records, first.reused) == (9, 18, False)
    assert sorted(f"{name}.hea" for name in names) == sorted(path.name for path in folder.glob("*.hea"))
    lines = [line for path in sorted(folder.glob("truth/*")) for line in path.read_text().splitlines()]
    truth = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["record"] for row in truth] == names
    assert [(row["index"], row["day"]) for row in truth] == [(k // 2, k % 2) for k in range(18)]
    assert all(0.1 < row["delay_s"] < 0.7 for row in truth)
    assert stage.run(recipe, settings).reused

    # What a killed run leaves: no list of records, and a batch half done.
    kept = (folder / f"{names[0]}.dat").stat().st_mtime_ns
    (folder / "RECORDS").unlink()
    max(folder.glob("truth/*")).unlink()
    (folder / f"{names[17]}.hea").unlink()
    again = stage.run(recipe, settings)
    assert not again.reused
    assert digest(folder) == before
    assert (folder / f"{names[0]}.dat").stat().st_mtime_ns == kept


def test_each_configuration_has_a_folder_of_its_own(tmp_path):
    settings = Settings(P2ES_STORAGE=str(tmp_path))
    changes = ({}, {"days": 2}, {"ecg_fs_hz": 500.0}, {"population": "clinic"}, {"seed": 1})
    folders = {stage.archive_url(recipe_of(**change), settings) for change in changes}
    assert len(folders) == len(changes)
    assert stage.archive_url(recipe_of(), settings, "other") == stage.archive_url(
        recipe_of(population="other"), settings
    )


def test_days_are_of_one_person_and_differ(tmp_path):
    config = SimulateConfig(people=2, duration_s=20.0, days=3)
    stage.simulate_batch(config, range(6), str(tmp_path))
    found = [next(read(reference, "simulated")) for reference in find_records(str(tmp_path))]
    assert len({recording.person for recording in found}) == 2
    assert len({recording.record for recording in found}) == 6
    for one, other in ((found[0], found[1]), (found[1], found[2])):
        assert one.person == other.person
        assert one.demographics == other.demographics
        # The first sample of both is in another place of another beat.
        assert np.abs(one.signals[1].read() - other.signals[1].read()).max() > 0.1


# --- Straight into a dataset


def windows_of(url):
    tables = (table for split in SPLITS for table in Dataset.open(url).read_windows(split))
    return {window.window_id: window for table in tables for window in decode(table)}


def accounts(result):
    return (result.windows, result.people, result.records, result.candidates, result.quarantined)


def strayed(one, other):
    """Largest differences of two windows: ECG in mV, PPG in standard deviations."""
    ppg = 0.0 if one.ppg is None else np.abs(one.ppg - other.ppg).max()
    return np.nanmax(np.abs(one.ecg - other.ecg), initial=0.0), ppg


@pytest.mark.parametrize("population", ["clinic", "ward", "stress"])
def test_a_simulated_dataset_is_that_of_the_archive(settings, local_ray, population):
    recipe = recipe_of(people=6, days=2, duration_s=32.0, population=population, seed=3)
    archive = stage.run(recipe, settings).folder
    found = survey(archive)
    assert {reference.format for reference in found.records} == {"wfdb"}
    files = [path for path in Path(archive).rglob("*") if path.is_file()]
    assert len(files) == len(found.records) + len(found.companions) + len(found.documents)
    assert {Path(name).suffix for name in found.companions} == {".atr", ".dat", ".pulse", ".waves"}

    written = ingest.run(recipe, settings, archive=archive)
    straight = ingest.run(recipe, settings, archive=f"simulated:{population}")
    assert accounts(written) == accounts(straight)
    assert datasets.verify(straight.url, quiet=True).ok
    ours, theirs = windows_of(straight.url), windows_of(written.url)
    assert ours.keys() == theirs.keys()
    for name, window in ours.items():
        other = theirs[name]
        for field in ("person", "recording", "split", "demographics", "ppg_channels", "simulated"):
            assert getattr(window, field) == getattr(other, field), field
        np.testing.assert_array_equal(window.lead_mask, other.lead_mask)
        ecg, ppg = strayed(window, other)
        # 16 bits of WFDB: 1 uV of the ECG; of a PPG 1/40,000 of its range, of which the pulse of a
        # raw sensor that was saturated for a while is half a per cent.
        assert ecg < 0.0015
        assert ppg < 0.05
    assert ingest.run(recipe, settings, archive=f"simulated:{population}").reused


def test_a_simulated_dataset_grows_and_feeds_training(settings, local_ray):
    recipe = recipe_of(people=8, duration_s=22.0, population="clinic")
    first = ingest.run(recipe, settings, archive="simulated:clinic,people=4", name="grows")
    second = ingest.run(recipe, settings, archive="simulated:clinic", name="grows")
    assert (first.version, first.people, second.version, second.people) == (1, 4, 2, 8)
    dataset = Dataset.open(second.url)
    channels = {window.ppg_channels for window in windows_of(second.url).values()}
    assert max(len(names) for names in channels) == 2
    # The network takes one channel: the first, whatever else there is.
    store = dataset.store("train", channels=1)
    assert store.batch(np.arange(len(store))).ppg.shape[1] == 1


def test_addresses_can_be_written_in_short_and_in_full():
    short = parse("simulated:clinic,people=9", SimulateConfig(seed=7, days=2))
    assert short == SimulateConfig(people=9, seed=7, days=2, population="clinic")
    assert parse(short.address) == short
    assert parse("simulated:clinic?people=9&seed=7&days=2") == short
    assert parse("simulated:people=9").population == "healthy"


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("simulated:sick", "no population 'sick'"),
        ("simulated:clinic,peple=9", "no 'peple'"),
        ("simulated:clinic,people=many", "no number"),
        ("simulated:clinic,people=1.5", "no number"),
        ("simulated:clinic,people", "no number"),
        ("simulated:clinic,people=0", "1 or more"),
        ("simulated:clinic,duration_s=1e9", "12 to 86400"),
    ],
)
def test_a_bad_address_is_one_line(where, says, settings):
    with pytest.raises((InputError, ConfigError), match=says) as told:
        survey(where)
    assert "\n" not in str(told.value)


def test_records_of_an_address_have_keys_of_their_parameters():
    references = survey("simulated:clinic,people=3,days=2").records
    assert len({stamp(reference) for reference in references}) == 6
    other = survey("simulated:clinic,people=3,days=2,seed=1").records
    assert not {stamp(reference) for reference in references} & {stamp(reference) for reference in other}
    same = survey("simulated:clinic,people=2").records
    assert stamp(same[0]) == stamp(references[0])


def test_ages_above_89_are_kept_as_any_archive_keeps_them():
    old = RecordRef("simulated:ward,seed=0,duration_s=12,ecg_fs_hz=250,index=0,day=0", "simulated", "r")
    ages = []
    for index in range(60):
        found = next(read(dataclasses.replace(old, path=old.path.replace("index=0", f"index={index}")), "s"))
        ages.append(found.demographics.age_years or 0.0)
    assert max(ages) <= 90


# --- Commands


def told(capsys, *argv):
    status = cli.main(list(argv))
    return status, capsys.readouterr()


def test_a_person_is_drawn_described_and_written(tmp_path, capsys):
    import matplotlib.image

    picture, folder = tmp_path / "a" / "person.png", tmp_path / "wfdb"
    argv = ("person", "3", "--rhythm", "av_block_1", "--morphology", "rbbb", "--sex", "F", "--height-cm", "162")
    status, said = told(capsys, *argv, "--out", str(picture), "--wfdb", str(folder))
    assert status == 0
    assert matplotlib.image.imread(picture).shape[0] > 500
    assert (folder / "record-000003.waves").exists()
    truth = simulate(0, 3, 14.0, rhythm="av_block_1", morphologies=["rbbb"]).truth
    assert "av block 1" in said.out
    assert "162.0 cm" in said.out
    assert all(lead in said.out for lead in LEADS)
    assert truth.pr_ms > 200


def test_no_morphology_can_be_asked_for(tmp_path, capsys):
    _, said = told(
        capsys, "person", "0", "--population", "clinic", "--morphology", "none", "--out", str(tmp_path / "p")
    )
    assert "morphologies    none" in said.out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--rhythm", "waltz"], "no rhythm 'waltz'"),
        (["--morphology", "tall"], "no morphology 'tall'"),
        (["--morphology", "rbbb", "--morphology", "lbbb"], "cannot be in one heart"),
        (["--population", "sick"], "no population 'sick'"),
        (["--age", "old"], "not a number"),
        (["--sex", "X"], "write F, M"),
        (["--seconds", "3"], "12 or more"),
        (["--seed", "-1"], "must not be negative"),
    ],
)
def test_a_person_that_cannot_be_is_one_line(argv, says, tmp_path, capsys):
    status, said = told(capsys, "person", "0", *argv, "--out", str(tmp_path / "person.png"))
    assert status == 2
    assert says in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_plate_has_the_same_bytes_each_time(tmp_path, capsys):
    for name in ("one", "two"):
        argv = ("gallery", str(tmp_path / name), "--only", "shape-wpw", "--only", "population-stress")
        assert told(capsys, *argv)[0] == 0
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert sum(path.stat().st_size for path in (tmp_path / "one").iterdir()) < 200_000
    status, said = told(capsys, "gallery", str(tmp_path), "--only", "shape-odd")
    assert status == 2
    assert "no 'shape-odd'" in said.err


def test_the_gallery_has_every_rhythm_morphology_and_population(tmp_path, monkeypatch):
    from p2es.simulator import MORPHOLOGIES, RHYTHMS

    monkeypatch.setattr(gallery, "paper", lambda made: made)
    monkeypatch.setattr("p2es.plot.png", lambda *_, **__: b"picture")
    written = gallery.run(tmp_path / "gallery")
    page = (tmp_path / "gallery.md").read_text()
    assert all(f"(gallery/{path.name})" in page for path in written[:-1])
    for name in (*RHYTHMS, *MORPHOLOGIES, *POPULATIONS):
        assert f"### {name.replace('_', ' ')}\n" in page
