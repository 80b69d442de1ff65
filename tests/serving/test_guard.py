"""Who may ask from a browser, what every answer forbids others, and what is not told to everybody."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from live_server import Live

READABLE = ["/", "/compare", "/config", "/gradio_api/info", "/v1/models", "/health/ready", "/metrics"]
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.fixture
def browser(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url) as client:
        yield client


@pytest.mark.parametrize("path", READABLE)
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
        LINK | {"sec-fetch-dest": "iframe"}, {"origin": "http://evil.example"}, {"origin": "http://localhost:3000"},
        {"origin": "null"},
    ],
)  # fmt: skip
def test_another_site_reads_nothing_of_ours(browser, path, headers) -> None:
    for method in ("GET", "HEAD"):
        answer = browser.request(method, path, headers=headers)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", READABLE)
@pytest.mark.parametrize("headers", [LINK, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}, {}])
def test_our_pages_programs_and_people_who_follow_a_link_do(browser, path, headers) -> None:
    assert browser.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "[::1]"])
@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:3000", "http://127.0.0.1:3000"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/gradio_api/queue/join", "/config"])
def test_gradio_answers_no_other_origin_whatever_we_are_called(browser, host, origin, path) -> None:
    asked = {"host": host, "origin": origin, "access-control-request-method": "POST"}
    answer = browser.options(path, headers=asked)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_gradio_allows_our_own_origin_nothing_that_it_has_not_anyway(live, browser) -> None:
    answer = browser.get("/config", headers={"origin": live.url})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_file_is_taken_and_no_schema_told(live, browser) -> None:
    for path in ("/gradio_api/upload", "/gradio_api/upload/", "/gradio_api/upload?upload_id=x"):
        answer = browser.post(path, files={"files": ("a.txt", b"x")})
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "The pages do not use this address.")
    assert browser.post("/upload", files={"files": ("a.txt", b"x")}).status_code in (404, 405)
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert browser.get(path).status_code == 404


def test_of_gradios_doors_only_those_are_open_that_our_pages_use(browser) -> None:
    for path in ("run/predict", "api/predict", "call/predict", "process_recording", "component_server", "vibe-edit/"):
        assert browser.post(f"/gradio_api/{path}", json={"data": []}).json()["error"]["code"] == "not_found"
    body = {"data": [], "fn_index": 0, "session_hash": "x"}
    assert browser.post("/gradio_api/queue/join", json=body).status_code != 404


@pytest.mark.parametrize("path", [*READABLE, "/v1/nothing", "/ops/api/policies", "/nothing", "/theme.css"])
def test_every_answer_is_for_our_own_pages_and_of_the_kind_that_it_says(browser, path) -> None:
    for headers in ({}, {"origin": "null"}):
        answer = browser.get(path, headers=headers)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"


def test_no_script_comes_out_of_an_address(browser) -> None:
    rules = dict(rule.split(" ", 1) for rule in browser.get("/").headers["content-security-policy"].split("; "))
    assert "data:" not in rules["script-src"]


def test_what_vllm_wrote_to_its_log_is_not_told_to_everybody(live, browser, monkeypatch) -> None:
    monkeypatch.setattr(live.assistant.engine, "state", "failed")
    monkeypatch.setattr(live.assistant.engine, "detail", "vLLM has ended.\nIts log: what ann asked\nand more")
    monkeypatch.setattr(live.assistant.engine, "warning", "One server is out.\nIts log: what ann asked")
    answer = browser.get("/health/ready")
    assert (answer.status_code, answer.json()["detail"]) == (503, "vLLM has ended.")
    assert answer.json()["warning"] == "One server is out."
