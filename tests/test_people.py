import gzip
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2es.demographics import Demographics, Sex
from p2es.errors import ConfigError, InputError
from p2es.formats import ReadOptions, find_records, load_people, load_people_layout, read, survey
from p2es.formats.people import shipped_people
from p2es.recording import Recording, Signal, SignalKind

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PTBXL = "ecg_id,patient_id,age,sex,height,weight,report\n"


def recording(record, person="x", **known):
    signal = Signal("PPG", SignalKind.PPG, np.zeros(1250), 125.0, "NU")
    return Recording(record, "s", person, (signal,), Demographics(**known), provenance={"format": "test"})


@pytest.fixture
def ptbxl(tmp_path):
    (tmp_path / "ptbxl_database.csv").write_text(
        PTBXL
        + '1,17.0,56.0,0,,63.0,"sinus\nrhythm, normal"\n'
        + "2,17.0,300.0,1,6.0,700,a\n"
        + "3,18.0,>89,1,171,,\n"
        + "4,19.0,,2,,,\n"
        + ",20,50,0,,,\n"
    )
    return load_people(tmp_path / "ptbxl_database.csv")


def test_rows_are_joined_by_the_record_and_name_the_patient(ptbxl):
    joined = [ptbxl.join(recording(f"records500/00000/0000{k}_hr")) for k in (1, 2, 3, 4)]
    assert [r.person for r in joined] == ["17", "17", "18", "19"]
    assert [r.demographics for r in joined] == [
        Demographics(56.0, Sex.MALE, None, 63.0),
        Demographics(90.0, Sex.FEMALE, None, None),
        Demographics(90.0, Sex.FEMALE, 171.0, None),
        Demographics(None, None, None, None),
    ]
    assert ptbxl.notes == {"no_key": 1, "unexplained_sex": 1}
    assert {r.provenance["people"] for r in joined} == {"filled"}
    assert ptbxl.join(recording("g1/HR00001")).person == "17"


def test_what_the_recording_says_stays_and_a_contradiction_is_marked(ptbxl):
    same = ptbxl.join(recording("00001_lr", age_years=57.0, weight_kg=62.0))
    assert same.demographics == Demographics(57.0, Sex.MALE, None, 62.0)
    assert same.provenance["people"] == "filled"
    other = ptbxl.join(recording("00001_lr", age_years=40.0, sex=Sex.FEMALE))
    assert other.demographics == Demographics(40.0, Sex.FEMALE, None, 63.0)
    assert other.provenance["people"] == "differs: age_years, sex"
    assert "40" not in other.provenance["people"]


@pytest.mark.parametrize("record", ["00099_lr", "note", "", "000011_lr", "x00001y"])
def test_a_recording_that_the_table_does_not_have_is_left_as_it_is(ptbxl, record):
    before = recording(record, age_years=33.0)
    after = ptbxl.join(before)
    assert (after.person, after.demographics) == (before.person, before.demographics)
    assert after.provenance == {"format": "test", "people": "not_found"}


def test_a_key_that_says_two_things_says_nothing(tmp_path):
    rows = "1,17,56,0,,,\n1,17,56,0,,,\n2,17,56,0,,,\n2,17,57,0,,,\n3,1,1,1,,,\n2,17,56,0,,,\n"
    (tmp_path / "t.csv").write_text(PTBXL + rows)
    people = load_people(tmp_path / "t.csv")
    assert set(people.rows) == {"1", "3"}
    assert people.notes == {"twice": 2}


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet", "bom"])
def test_a_table_of_people_comes_in_every_dress(tmp_path, kind):
    table = pd.DataFrame({
        "subject_id": [10014354, 10014355], "gender": ["M", "F"], "anchor_age": [91, 40], "anchor_year": [2150, 2160],
    })  # fmt: skip
    path = tmp_path / f"patients.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        text = table.to_csv(index=False, sep="\t" if kind == "tsv" else ",")
        data = text.encode("utf-8-sig" if kind == "bom" else "utf-8")
        path.write_bytes(gzip.compress(data) if kind == "csv.gz" else data)
    people = load_people(path)
    found = people.join(recording("waves/p100/p10014354/81739927/81739927", person="p10014354"))
    assert found.demographics == Demographics(90.0, Sex.MALE)
    assert found.person == "p10014354"


def test_vitaldb_cases_of_one_subject_are_one_person(tmp_path):
    (tmp_path / "clinical_data.csv").write_text(
        "caseid,subjectid,age,sex,height,weight,optype\n1,5955,77,M,160.2,67.5,x\n20,5955,78,M,160,67,y\n"
    )
    people = load_people(tmp_path / "clinical_data.csv")
    assert [people.join(recording(name)).person for name in ("1.vital", "0020.vital", "cases/20.vital")] == ["5955"] * 3
    assert people.join(recording("1.vital")).demographics == Demographics(77.0, Sex.MALE, 160.2, 67.5)


def test_the_users_own_table_is_declared_as_a_layout_is(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\ncolumns = ["code", "years"]\nkey = "code"\nnumeric = false\n'
        "record = '^([^/]+)/'\n[demographics.age_years]\nat = \"years\"\n"
    )
    (tmp_path / "t.csv").write_text("code;years\nA-1;44\nB-2;55\n")
    layout = load_people_layout(tmp_path / "mine.toml")
    people = load_people(tmp_path / "t.csv", [layout])
    assert people.join(recording("B-2/r")).demographics.age_years == 55.0
    with pytest.raises(InputError, match="no table of people"):
        load_people(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "m"\ncolumns = ["a"]\nkey = "b"\n', "columns"),
        ('name = "m"\ncolumns = ["a"]\nkey = "a"\nrecord = "x"\n', "record"),
        ('name = "m"\ncolumns = ["a"]\nkey = "a"\nages = 3\n', "ages"),
        ('name = "m"\ncolumns = ["a"]\nkey = "a"\n[demographics.age_years]\nat = 3\n', "demographics"),
    ],
)
def test_a_mistake_in_a_declaration_names_the_key(tmp_path, text, said):
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(ConfigError, match=f"m.toml: {said}"):
        load_people_layout(tmp_path / "m.toml")


def test_no_value_of_a_table_stands_in_a_message(tmp_path):
    (tmp_path / "t.csv").write_text(PTBXL + "Jane Roe,Jane Roe,x,Jane Roe,,,Jane Roe\n")
    with pytest.raises(InputError) as refused:
        load_people(tmp_path / "t.csv")
    assert "Jane" not in str(refused.value)
    (tmp_path / "u.csv").write_text("Name,Age\nJane Roe,5\n")
    with pytest.raises(InputError) as refused:
        load_people(tmp_path / "u.csv")
    assert "Jane" not in str(refused.value)


@given(data=st.data())
@QUICK
def test_any_damage_to_a_table_ends_in_people_or_a_reason(tmp_path, data):
    raw = bytearray((PTBXL + "".join(f'{k},{k},50,{k % 2},170,70,"a\nb"\n' for k in range(20))).encode())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "t.csv").write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        load_people(tmp_path / "t.csv")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - people are a good end too


def test_shipped_tables_say_who_they_join_and_which_were_tried():
    tried = {layout.name: layout.tried for layout in shipped_people()}
    assert tried == {"ptbxl": True, "ludb": True, "mimic4": False, "vitaldb": False, "senssmarttech": False}


def test_the_table_of_ptbxl_is_read_as_its_archive_describes(recordings):
    people = load_people(recordings / "ptbxl" / "ptbxl_database_subset3028.csv")
    known = np.array([row.demographics.to_array() for row in people.rows.values()])
    assert (len(people.rows), people.notes) == (3028, {})
    assert len({row.id for row in people.rows.values()}) == 2725
    # Sex is always there, height and weight in a third; a height of 6 cm is none.
    assert np.isfinite(known).sum(axis=0).tolist() == [3003, 3028, 972, 1143]
    assert np.nanmax(known[:, 0]) == 90.0
    # Men are taller than women: the codes are the right way round.
    female = known[:, 1] == 1.0
    assert np.nanmean(known[~female, 2]) - np.nanmean(known[female, 2]) > 8.0
    assert len(pickle.dumps(people)) < 300_000


def test_the_table_of_ludb_agrees_with_the_headers(recordings):
    people = load_people(recordings / "ludb" / "ludb.csv")
    assert len(people.rows) == 200
    words = []
    for reference in find_records(str(recordings / "ludb"))[:20]:
        (found,) = read(reference, "ludb", options=ReadOptions(people=(people,)))
        words.append(found.provenance["people"])
    assert words == ["filled"] * 20


def test_tables_of_people_are_documents_and_not_recordings(recordings):
    assert {"ptbxl/ptbxl_database_subset3028.csv", "ludb/ludb.csv"} <= set(survey(recordings).documents)
