import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2es.errors import InputError
from p2es.leads import LEADS
from serve.codec import read_arrow, read_npy, write_arrow, write_json, write_npy
from serve.models import example_ppg
from serve.schema import (
    FULL_S,
    MalformedBodyError,
    ModelInfo,
    TranslateRequest,
    TranslateResponse,
    parse_fields,
    parse_json,
)

PPG = [float(v) for v in example_ppg(125.0)[0]]
GOOD = {"ppg": PPG, "fs_hz": 125.0}


def body(**changes):
    return json.dumps({name: value for name, value in (GOOD | changes).items() if value is not ...}).encode()


def head():
    return TranslateResponse(
        heart_rate_bpm=61.5,
        rhythm="regular",
        ppg_quality=0.9,
        samples=20,
        evaluations=10,
        seed=7,
        model=ModelInfo(name="p2es", version="3", sha256="ab" * 32),
        request_id="r1",
    )


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"fs_hz": 24.9}, "fs_hz"),
        ({"fs_hz": 1001}, "fs_hz"),
        ({"fs_hz": "125"}, "fs_hz"),
        ({"fs_hz": ...}, "fs_hz is missing"),
        ({"ppg": ...}, "ppg is missing"),
        ({"ppg": []}, "ppg"),
        ({"ppg": PPG[:-5]}, "send 12 s"),
        ({"ppg": PPG * 2}, "24.00 s"),
        ({"ppg": [PPG, PPG[:-1]]}, "equal length"),
        ({"ppg": [PPG] * 5}, "up to 4 channels"),
        ({"ppg": "SECRET"}, "list of numbers"),
        ({"ppg": [*PPG[:-1], "SECRET"]}, "only numbers"),
        ({"ppg": [*PPG[:-1], True]}, "only numbers"),
        ({"ppg": [*PPG[:-1], 1e30]}, "finite"),
        ({"ppg": {"SECRET": 1}}, "list of numbers"),
        ({"age_years": ">89"}, "write 90"),
        ({"age_years": -1}, "age_years"),
        ({"age_years": 121}, "age_years"),
        ({"sex": "SECRET"}, "sex"),
        ({"sex": 1}, "sex"),
        ({"height_cm": 6}, "height_cm"),
        ({"weight_kg": 700}, "weight_kg"),
        ({"samples": 0}, "samples"),
        ({"samples": 33}, "samples"),
        ({"samples": 2.5}, "samples"),
        ({"evaluations": 101}, "evaluations"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"response": []}, "response"),
        ({"response": ["SECRET"]}, "response"),
        ({"known": {}}, "known"),
        ({"known": {"SECRET": [0.0] * 1280}}, "not one of"),
        ({"known": {"I": [0.0] * 1279}}, "1280 samples"),
        ({"known": {"I": [0.0] * 1280, "i": [0.0] * 1280}}, "twice"),
        ({"known": {"I": [21.0] * 1280}}, "within +-20"),
        ({"SECRET": 1}, "unknown field"),
    ],
)
def test_bad_request_is_one_clear_line_that_repeats_none_of_it(changes, hint):
    with pytest.raises(InputError) as caught:
        parse_json(body(**changes))
    message = str(caught.value)
    assert hint in message
    assert "\n" not in message
    assert "SECRET" not in message
    assert len(message) < 250
    assert not isinstance(caught.value, MalformedBodyError)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'{"ppg": [1,}', b"SECRET"])
def test_what_is_not_json_is_told_apart(raw):
    with pytest.raises(MalformedBodyError) as caught:
        parse_json(raw)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b'"x"', b'{"ppg": [NaN], "fs_hz": 125}', b'{"fs_hz": Infinity}'])
def test_json_of_the_wrong_kind_is_refused(raw):
    with pytest.raises(InputError):
        parse_json(raw)


@given(fs_hz=st.floats(25, 1000), full=st.booleans(), slack=st.sampled_from([-0.9, 0.0, 0.9]))
def test_any_rate_gives_exactly_twelve_seconds_with_the_signal_in_its_place(fs_hz, full, slack):
    n = round((FULL_S if full else 10) * fs_hz + slack * 0.5)
    sent = np.arange(n, dtype=np.float32)[None] + 1
    window = TranslateRequest(ppg=sent, fs_hz=fs_hz).window()
    assert window.shape == (1, round(12 * fs_hz))
    there = np.flatnonzero(np.isfinite(window[0]))
    np.testing.assert_array_equal(window[0, there], np.arange(there.size) + 1)
    assert there.size >= n - 1
    # The first sample of ten seconds belongs one second into the twelve, to half a sample.
    assert abs(there[0] - (0 if full else fs_hz)) <= 0.5


def test_ten_seconds_leave_the_margins_missing():
    window = parse_json(body(ppg=PPG[:1250])).window()
    assert np.isnan(window[0, :125]).all()
    assert np.isnan(window[0, 1375:]).all()
    np.testing.assert_array_equal(window[0, 125:1375], np.float32(PPG[:1250]))


def test_null_and_only_null_is_missing():
    window = parse_json(body(ppg=[None, *PPG[1:]])).window()
    assert np.isnan(window).sum() == 1
    assert np.isnan(window[0, 0])


def test_ages_above_89_become_one_group():
    ages = {age: parse_json(body(age_years=age)).demographics().age_years for age in (40, 89, 89.5, 94, 120)}
    assert ages == {40: 40, 89: 89, 89.5: 90, 94: 90, 120: 90}
    assert parse_json(body()).demographics().age_years is None


def test_known_leads_land_in_their_rows_and_the_rest_is_to_generate():
    known = parse_json(body(known={"v2": [0.5] * 1280, "Lead II": [None] + [0.1] * 1279})).known
    assert np.isnan(known[[k for k, lead in enumerate(LEADS) if lead not in ("V2", "II")]]).all()
    assert (known[LEADS.index("V2")] == 0.5).all()
    assert np.isnan(known[1]).sum() == 1


def test_text_fields_give_the_request_that_json_gives():
    fields = {"age_years": 40, "sex": "F", "height_cm": 170.5, "samples": 3, "seed": 11, "fs_hz": 125.0}
    by_json = parse_json(body(**fields, response=["ecg_mv"]))
    text = {name: str(value) for name, value in fields.items()} | {"response": "ecg_mv"}
    by_text = parse_fields(np.float32(PPG), text)
    assert by_text.model_dump(exclude={"ppg"}) == by_json.model_dump(exclude={"ppg"})
    np.testing.assert_array_equal(by_text.ppg, by_json.ppg)


@pytest.mark.parametrize(
    "fields", [{"fs_hz": "fast"}, {"seed": "1.5"}, {"age_years": ">89"}, {"fs_hz": "nan"}, {"x": "1"}]
)
def test_bad_text_fields_are_refused(fields):
    with pytest.raises(InputError):
        parse_fields(np.float32(PPG), {"fs_hz": "125"} | fields)


def test_npy_round_trip_keeps_every_bit_and_nan():
    ppg = example_ppg(250.0)
    ppg[0, 5] = np.nan
    np.testing.assert_array_equal(read_npy(write_npy(ppg)), ppg)


def _npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def test_hostile_npy_is_refused_before_anything_is_allocated_or_run():
    class Canary:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran",))

    good = write_npy(example_ppg())
    huge = good.replace(b"(1, 1500)", b"(9, 9**9)")
    bad = [
        b"", b"\x93NUMPY", good[:-1], good + b"x", good[:40], huge,
        good.replace(b"(1, 1500), ", b"(-1, -1500),"[:11]), good.replace(b"(1, 1500)", b"(-1,-1500"),
        _npy(np.array([Canary()], dtype=object), allow_pickle=True),
        _npy(np.zeros((2, 2, 2), np.float32)), _npy(np.float32(1)), _npy(np.zeros(3, complex)),
        _npy(np.zeros(3, "U5")), _npy(np.full(1500, np.inf, np.float32)),
        _npy(np.asfortranarray(np.ones((3, 4)))),
    ]  # fmt: skip
    for raw in bad:
        with pytest.raises(MalformedBodyError) as caught:
            read_npy(raw)
        assert "\n" not in str(caught.value)


@given(st.binary(max_size=200), st.integers(0, 127))
def test_damaged_npy_never_escapes_as_another_error(noise, at):
    good = bytearray(write_npy(np.ones(64)))
    good[at : at + len(noise)] = noise
    with contextlib.suppress(MalformedBodyError):
        assert read_npy(bytes(good)).dtype == np.float32


def test_both_forms_of_an_answer_carry_the_same_and_the_mark():
    rng = np.random.default_rng(0)
    signals = {"ecg_mv": rng.normal(size=(12, 1280)), "band_mv": rng.normal(size=(2, 12, 1280))}
    signals = {name: value.astype(np.float32) for name, value in signals.items()}
    read, rest = read_arrow(write_arrow(head(), signals))
    assert read.keys() == signals.keys()
    for name, value in signals.items():
        np.testing.assert_array_equal(read[name], value)
    told = json.loads(write_json(head(), signals))
    assert told["synthetic"] is rest["synthetic"] is True
    assert told["notice"] == rest["notice"]
    assert "SYNTHETIC" in rest["notice"]
    assert told["median_mv"] is None
    assert {k: v for k, v in told.items() if k in rest} == rest
    np.testing.assert_allclose(told["ecg_mv"], signals["ecg_mv"], atol=5.1e-6)
    TranslateResponse.model_validate_json(write_json(head(), signals))


@pytest.mark.parametrize("raw", [b"", b"not arrow", b"\xff\xff\xff\xff\x10\x00\x00\x00"])
def test_an_answer_that_is_no_arrow_stream_is_told(raw):
    with pytest.raises(MalformedBodyError):
        read_arrow(raw)
