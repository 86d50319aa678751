import json
import threading
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import numpy as np
import pytest
import ray
import requests

from p2es.conditioning import Units
from p2es.delay import DelayLaw
from p2es.demographics import Demographics, DemographicScaler
from p2es.diffusion import DiffusionConfig
from p2es.errors import ConfigError, InputError, ModelError, RemoteError
from p2es.leads import LEADS, law_residuals
from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es_platform.registry import folder_sha256
from p2es_platform.settings import Settings
from pipelines import serve as stage
from pipelines.recipes import ServeConfig
from serve.client import Client
from serve.codec import ARROW, JSON, NPY, write_npy
from serve.endpoint import MAX_BODY_BYTES, is_loopback
from serve.models import LoadedModel, ModelChoice, example_ppg, load_model, load_translator
from serve.page import content_security_policy, page_html
from serve.sampler import Draw, Drawn, Refused, draw_batch
from serve.schema import ErrorResponse, ModelInfo, TranslateRequest, TranslateResponse

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning", "ignore:.*:ResourceWarning"
)

TOKEN = "correct horse battery staple"
PPG = example_ppg(125.0, heart_rate_bpm=66, seed=3)
FAST = {"samples": 2, "evaluations": 2}


def write_model(folder, seed):
    """A small untrained P2Es: its ECGs are no good, but they are drawn as a trained one draws."""
    nobody = np.empty((0, 4))
    units = Units(
        lead_scale_mv=(0.3,) * 12,
        scaler=DemographicScaler.fit(nobody),
        delay=DelayLaw.fit(nobody, np.empty(0), np.empty(0)),
        spectrum=tuple(1 / (1 + np.arange(1280) / 20) ** 2),
    )
    network = NetworkConfig(channels=(4, 8), pulse_channels=8, condition=16, prototypes=2)
    P2Es.start(network, DiffusionConfig(), units, seed).save(folder)
    return {"folder": str(folder), "version": str(seed), "sha256": folder_sha256(folder)}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {seed: write_model(root / f"v{seed}", seed) for seed in (1, 2)}


@pytest.fixture(scope="module")
def running(local_ray, models):
    settings = Settings(endpoint="http://127.0.0.1:8000", endpoint_token=TOKEN)
    with stage.start(settings, **models[1], port=0, options=ServeConfig(max_replicas=1)) as running:
        yield running


@pytest.fixture
def client(running):
    with Client(running.url, TOKEN) as client:
        yield client


def post(running, body, content_type=JSON, *, token=TOKEN, **options):
    headers = {"Content-Type": content_type} | options.pop("headers", {})
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return requests.post(f"{running.url}/v1/translate", data=body, headers=headers, timeout=60, **options)


def as_json(**changes):
    return json.dumps({"ppg": PPG[0].tolist(), "fs_hz": 125.0} | FAST | changes).encode()


def window(seed=0, ppg=PPG, **changes):
    values = {"fs_hz": 125.0, "person": Demographics(), "known": None, **FAST, "seed": seed} | changes
    return Draw(ppg=ppg, **values)


# What the replicas compute, without Ray.


def loaded(models, seed=1):
    return load_model(ModelChoice(**models[seed]))


def test_a_window_gives_the_same_alone_and_among_others_of_any_kind(models):
    model = loaded(models)
    draws = [window(seed, example_ppg(125.0, heart_rate_bpm=50 + 9 * seed, seed=seed)) for seed in range(5)]
    draws += [window(9, samples=3), window(9, evaluations=3), window(9, example_ppg(100.0), fs_hz=100.0)]
    together = draw_batch(model, draws)
    for draw, among in zip(draws, together, strict=True):
        (alone,) = draw_batch(model, [draw])
        # One convolution of 5 windows rounds otherwise than five of 1: 2e-7 mV measured.
        np.testing.assert_allclose(among.ecg_mv, alone.ecg_mv, atol=2e-6)
        assert among.heart_rate_bpm == alone.heart_rate_bpm
    assert not np.allclose(together[0].ecg_mv, together[1].ecg_mv, atol=1e-3)


def test_a_poor_window_is_refused_and_its_neighbours_are_not(models):
    flat = window(1, np.zeros_like(PPG))
    first, poor, last = draw_batch(loaded(models), [window(0), flat, window(2)])
    assert isinstance(poor, Refused)
    assert poor.code == "unusable_input"
    assert isinstance(first, Drawn)
    assert isinstance(last, Drawn)


class _Breaks:
    name = "breaks"

    def __init__(self, good, how):
        self._good, self._how = good, how

    def sample(self, ppg, demographics, **options):
        drawn = self._good.sample(ppg, demographics, **options)
        for seed, translation in zip(options["seeds"], drawn, strict=True):
            if seed == 13:
                self._how(translation)
        return drawn


def _raise(translation):
    raise ZeroDivisionError("SECRET")


def _nan(translation):
    translation.ecg_mv[0, 3, 7] = np.nan


def _unlawful(translation):
    translation.ecg_mv[0, 2] += 0.1


@pytest.mark.parametrize(("how", "code"), [(_raise, "internal"), (_nan, "model_refused"), (_unlawful, "model_refused")])
def test_what_a_broken_model_draws_is_never_sent(models, how, code):
    good = loaded(models)
    broken = LoadedModel(_Breaks(good.translator, how), good.info)
    fine, bad = draw_batch(broken, [window(1), window(13)])
    assert isinstance(fine, Drawn)
    assert isinstance(bad, Refused)
    assert bad.code == code
    assert "SECRET" not in bad.message


def test_one_changed_byte_in_a_model_is_refused(models, tmp_path):
    choice = write_model(tmp_path / "m", 1)
    assert choice["sha256"] == models[1]["sha256"]
    weights = tmp_path / "m" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ModelError, match="refused"):
        load_model(ModelChoice(**choice))
    # Without a promise the same folder loads: it was the promise that refused it.
    assert load_model(ModelChoice(folder=choice["folder"])).info.sha256 != choice["sha256"]


@pytest.mark.parametrize("config", [None, "{", "[]", '{"name": "os"}', '{"name": "p2es"}', '{"name": ["p2es"]}'])
def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError) as caught:
        load_translator(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path.parent) not in str(caught.value)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"folder": "x", "model_uri": "models:/p2es/1"},
        {"model_uri": "models:/p2es@champion"},
        {"fodler": "x"},
    ],
)
def test_a_model_choice_names_one_version(choice):
    with pytest.raises(ValueError, match=r"folder|version|fodler"):
        ModelChoice(**choice)


# The endpoint, over HTTP.


def test_an_answer_is_a_marked_ecg_that_names_its_model(running, models):
    answer = post(running, as_json(samples=20, sex="F", age_years=50, seed=5))
    assert answer.status_code == 200
    assert answer.headers["X-Synthetic"] == "true"
    assert answer.headers["Cache-Control"] == "no-store"
    told = TranslateResponse.model_validate_json(answer.content)
    assert told.synthetic
    assert told.model.model_dump() == {"name": "p2es"} | {k: models[1][k] for k in ("version", "sha256")}
    assert told.heart_rate_bpm == pytest.approx(66, abs=2)
    assert told.leads == LEADS
    ecg, band = np.array(told.ecg_mv), np.array(told.band_mv)
    assert ecg.shape == (12, 1280)
    assert band.shape == (2, 12, 1280)
    # Rounding to 0.01 microvolt may move each of three leads by half of that.
    assert np.abs(law_residuals(ecg)).max() <= 2e-5
    assert (band[0] <= band[1]).all()
    assert told.request_id == answer.headers["X-Request-ID"]


def test_the_three_forms_give_the_same_ecg_alone_and_in_a_crowd(running, client):
    alone = np.array(post(running, as_json(seed=4)).json()["ecg_mv"])
    query = {"fs_hz": "125", "seed": "4", "samples": "2", "evaluations": "2"}
    by_npy = np.array(post(running, write_npy(PPG), NPY, params=query).json()["ecg_mv"])
    np.testing.assert_array_equal(by_npy, alone)

    def call(seed):
        ppg = PPG if seed == 4 else example_ppg(125.0, heart_rate_bpm=50 + 5 * seed, seed=seed)
        return client.translate(ppg, fs_hz=125.0, seed=seed, **FAST).ecg_mv

    with ThreadPoolExecutor(12) as pool:
        crowd = list(pool.map(call, range(12)))
    np.testing.assert_allclose(crowd[4], alone, atol=1.1e-5)
    assert not np.allclose(crowd[4], crowd[5], atol=1e-3)


def test_another_seed_gives_another_ecg(client):
    first, again, other = (client.translate(PPG, fs_hz=125.0, seed=s, **FAST).ecg_mv for s in (1, 1, 2))
    np.testing.assert_allclose(first, again, atol=2e-6)
    assert np.abs(first - other).max() > 1e-2


def test_recorded_leads_come_back_as_they_were(client):
    lead_one = 0.1 * np.sin(np.arange(1280) / 9)
    answer = client.translate(PPG, fs_hz=125.0, known={"I": lead_one}, **FAST)
    np.testing.assert_allclose(answer.ecg_mv[0], lead_one, atol=1e-6)


def test_only_the_parts_asked_for_are_sent(client):
    answer = client.translate(PPG, fs_hz=125.0, response=["median_mv"], **FAST)
    assert answer.ecg_mv is None
    assert answer.median_mv.shape == (12, 1280)


def test_too_few_samples_give_no_band(client):
    assert client.translate(PPG, fs_hz=125.0, samples=19, evaluations=1).band_mv is None
    assert client.translate(PPG, fs_hz=125.0, samples=20, evaluations=1).band_mv.shape == (2, 12, 1280)


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "ünïcode".encode().decode("latin-1")])
def test_a_wrong_token_is_refused_before_the_body_is_read(running, token):
    for answer in (
        post(running, b"x" * (MAX_BODY_BYTES + 1), token=token),
        requests.get(f"{running.url}/v1/model", headers={"Authorization": f"Bearer {token}"}, timeout=10),
    ):
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in answer.text


@pytest.mark.parametrize("header", [TOKEN, f"Basic {TOKEN}", f"Bearer{TOKEN}"])
def test_a_token_in_another_scheme_is_refused(running, header):
    answer = requests.get(f"{running.url}/v1/model", headers={"Authorization": header}, timeout=10)
    assert answer.status_code == 401


def test_probes_and_the_page_need_no_token(running):
    assert requests.get(f"{running.url}/healthz", timeout=10).json() == {"status": "ok"}
    assert requests.get(running.url, timeout=10).status_code == 200


FLAT = json.dumps({"ppg": [1.0] * 1500, "fs_hz": 125, "samples": 1}).encode()


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{", JSON, 400, "malformed_body"),
        (b"SECRET", NPY, 400, "malformed_body"),
        (b"x" * (MAX_BODY_BYTES + 1), JSON, 413, "too_large"),
        (as_json(), "text/plain", 415, "unsupported_media_type"),
        (as_json(), "application/octet-stream", 415, "unsupported_media_type"),
        (as_json(SECRET=1), JSON, 422, "invalid_input"),
        (as_json(age_years=">89"), JSON, 422, "invalid_input"),
        (as_json(ppg=["SECRET"]), JSON, 422, "invalid_input"),
        (write_npy(PPG), NPY, 422, "invalid_input"),
        (FLAT, JSON, 422, "unusable_input"),
    ],
)
def test_each_bad_input_has_its_status_and_one_line(running, body, content_type, status, code):
    answer = post(running, body, content_type)
    assert answer.status_code == status
    told = ErrorResponse.model_validate_json(answer.content)
    assert told.error == code
    assert told.message
    assert "\n" not in told.message
    assert "Traceback" not in answer.text
    assert "SECRET" not in answer.text
    assert told.request_id == answer.headers["X-Request-ID"]


def test_noise_is_refused_with_the_reason(running):
    noise = np.random.default_rng(0).normal(size=1500).tolist()
    answer = post(running, as_json(ppg=noise))
    assert answer.status_code == 422
    assert "PPG" in answer.json()["message"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(running):
    sent = []

    def endless():
        for _ in range(3 * MAX_BODY_BYTES // 65536):
            sent.append(65536)
            yield b" " * 65536

    assert post(running, endless()).status_code == 413


@pytest.mark.parametrize(("method", "route", "status"), [("GET", "/nothing", 404), ("GET", "/v1/translate", 405)])
def test_unknown_pages_answer_in_the_same_form(running, method, route, status):
    answer = requests.request(method, running.url + route, timeout=10)
    assert answer.status_code == status
    ErrorResponse.model_validate_json(answer.content)


def test_an_odd_request_id_is_not_repeated(running):
    answer = requests.get(f"{running.url}/nothing", headers={"X-Request-ID": "<b>SECRET</b>"}, timeout=10)
    assert "SECRET" not in answer.json()["request_id"]


def test_openapi_describes_what_is_taken_and_given(running):
    described = requests.get(f"{running.url}/openapi.json", timeout=10).json()
    route = described["paths"]["/v1/translate"]["post"]
    assert set(route["requestBody"]["content"]) == {JSON, NPY}
    fields = route["requestBody"]["content"][JSON]["schema"]["properties"]
    assert set(fields) == set(TranslateRequest.model_fields)
    assert {"200", "400", "401", "413", "415", "422", "429", "500", "503"} <= set(route["responses"])
    assert set(route["responses"]["200"]["content"]) == {JSON, ARROW}
    assert route["security"] == [{"bearer": []}]
    assert "bearer" in described["components"]["securitySchemes"]
    for page in ("/docs", "/redoc"):
        assert requests.get(running.url + page, timeout=10).status_code == 404


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.outside = []

    def handle_starttag(self, tag, attrs):
        self.outside += [v for k, v in attrs if k in ("src", "href", "action", "onclick", "style")]


def test_the_page_loads_nothing_and_allows_only_its_own_script(running):
    answer = requests.get(running.url, timeout=10)
    links = _Links()
    links.feed(answer.text)
    assert links.outside == []
    assert "SYNTHETIC" in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert policy == content_security_policy()
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy
    assert answer.text == page_html()


def ask_until(stop, running, seen):
    with Client(running.url, TOKEN, retries=0) as client:
        while not stop.is_set():
            try:
                answer = client.translate(PPG, fs_hz=125.0, samples=1, evaluations=1)
                seen.append((answer.model["version"], answer.ecg_mv))
            except (InputError, RemoteError) as error:
                seen.append(("failed", str(error)))


def test_a_swap_drops_no_request_and_a_wrong_model_is_not_taken(running, client, models):
    seen, stop = [], threading.Event()
    asking = [threading.Thread(target=ask_until, args=(stop, running, seen)) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        running.swap(**models[2])
        assert client.model()["version"] == "2"
        for wrong in ({"sha256": "0" * 64}, {"folder": models[1]["folder"] + "-gone"}):
            with pytest.raises(ModelError, match="goes on serving"):
                running.swap(**models[1] | wrong)
            told = client.model()
            assert (told["version"], told["sha256"]) == ("2", models[2]["sha256"])
            assert told["refused"]
        running.swap(**models[1])
        assert client.model() == {"name": "p2es", "refused": None} | {k: models[1][k] for k in ("version", "sha256")}
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert {version for version, _ in seen} == {"1", "2"}
    # The version that an answer names is the one that drew it.
    by_version = {version: [ecg for v, ecg in seen if v == version] for version in ("1", "2")}
    for drawn in by_version.values():
        np.testing.assert_allclose(drawn, np.broadcast_to(drawn[0], np.shape(drawn)), atol=2e-6)
    assert np.abs(by_version["1"][0] - by_version["2"][0]).max() > 1e-2


def sampler_actors():
    named = ray.util.list_named_actors(all_namespaces=True)
    return [actor for actor in named if "p2es#Sampler" in actor["name"]]


def test_a_killed_replica_costs_no_caller_an_answer(running, client):
    before = client.translate(PPG, fs_hz=125.0, **FAST).ecg_mv
    (replica,) = sampler_actors()
    ray.kill(ray.get_actor(replica["name"], replica["namespace"]))
    with Client(running.url, TOKEN, retries=8) as patient:
        after = patient.translate(PPG, fs_hz=125.0, **FAST).ecg_mv
    np.testing.assert_allclose(after, before, atol=2e-6)
    assert [actor["name"] for actor in sampler_actors()] != [replica["name"]]


# What is refused before anything starts.


def test_an_open_endpoint_on_a_network_address_is_refused(local_ray, models):
    settings = Settings(endpoint="http://0.0.0.0:8000", endpoint_token=None)
    with pytest.raises(ConfigError, match="P2ES_ENDPOINT_TOKEN"), stage.start(settings, **models[1], port=0):
        pass


def test_a_gpu_that_is_not_there_is_refused_at_once(local_ray, models):
    options = ServeConfig(gpus_per_replica=1)
    with (
        pytest.raises(ConfigError, match="GPU"),
        stage.start(Settings(), **models[1], port=0, options=options),
    ):
        pass


def test_a_wrong_model_is_refused_at_once(local_ray, models):
    wrong = models[1] | {"sha256": "0" * 64}
    with pytest.raises(ModelError, match="sha256"), stage.start(Settings(), **wrong, port=0):
        pass


def test_a_port_that_is_taken_is_refused_at_once(running, models):
    port = int(running.url.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"port {port}"), stage.start(Settings(), **models[1], port=port):
        pass


@pytest.mark.parametrize(
    ("host", "is_this_machine"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
        ("::", False), ("10.0.0.1", False), ("example.org", False), ("localhost.example.org", False),
        (None, False),
    ],
)  # fmt: skip
def test_which_hosts_are_this_machine(host, is_this_machine):
    assert is_loopback(host) is is_this_machine


def test_model_info_of_a_folder_without_registry(models):
    info = load_model(ModelChoice(folder=models[1]["folder"])).info
    assert info == ModelInfo(name="p2es", version="unregistered", sha256=models[1]["sha256"])
