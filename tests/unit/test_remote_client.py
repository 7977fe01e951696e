"""The HTTP client against a service that misbehaves; every deadline here is below a second."""

import gc
import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import misbehaving as bad
import pytest
from misbehaving import OK, Service, Trick, client_of

from rlhf_ray.remote import client as client_module
from rlhf_ray.remote.client import Client, Failed


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.02)


def fault_of(*tricks: Trick, **options: Any) -> tuple[Failed, int]:
    """What a request fails with, and how often the service was asked."""
    with Service(*tricks) as service, client_of(service.url, **options) as client:
        with pytest.raises(Failed) as failed:
            client.post("/score", {"a": 1})
        return failed.value, len(service.seen)


# What goes well


def test_json_goes_out_and_comes_back_below_the_url() -> None:
    with Service(OK) as service, client_of(f"{service.url}/below/?key=k") as client:
        assert client.post("/score", {"a": [1, "ü"]}) == {"got": {"a": [1, "ü"]}}
        assert client.post("", None) == {"got": None}
        assert [one.path for one in service.seen] == ["/below/score?key=k", "/below/?key=k"]


def test_the_version_of_an_openai_url_is_not_doubled() -> None:
    with Service(OK) as service:
        for url in (service.url, f"{service.url}/v1", f"{service.url}/v1/"):
            with client_of(url) as client:
                client.post("/v1/chat/completions", {})
        assert {one.path for one in service.seen} == {"/v1/chat/completions"}


def test_many_threads_use_one_client_and_each_gets_its_own_answer() -> None:
    with (
        Service(OK) as service,
        client_of(service.url) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        found = list(pool.map(lambda i: client.post("/score", i), range(64)))
    assert found == [{"got": i} for i in range(64)]


def test_a_gzipped_answer_is_read() -> None:
    squeezed = bad.gzip.compress(b'{"x": 1}')
    with Service(bad.says(squeezed, content_encoding="gzip")) as service:
        with client_of(service.url) as client:
            assert client.post("/score", {}) == {"x": 1}
        assert service.seen[0].headers["accept-encoding"] == "gzip"


def test_numbers_that_are_not_finite_are_read_as_python_writes_them() -> None:
    told = bad.says(b"[NaN, 1, Infinity, -Infinity]")
    with Service(told) as service, client_of(service.url) as client:
        assert repr(client.post("/score", {})) == "[nan, 1, inf, -inf]"


def test_a_half_pair_of_a_surrogate_is_sent_as_it_is() -> None:
    with Service(OK) as service, client_of(service.url) as client:
        assert client.post("/score", "\ud83d") == {"got": "\ud83d"}


def test_a_nan_is_not_sent() -> None:
    with Service(OK) as service, client_of(service.url) as client:
        with pytest.raises(ValueError, match="not JSON compliant"):
            client.post("/score", float("nan"))
        assert not service.seen


# What goes wrong, once


@pytest.mark.parametrize(
    ("trick", "reason"),
    [
        (bad.hangs, "timeout"),
        (bad.closes, "closed"),
        (bad.closes_midway, "closed"),
        (lambda exchange: exchange.raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "closed"),
        (bad.says(b"oh", 404), "http_404"),
        (bad.says(b"who are you", 401), "http_401"),
        (bad.says(b"oh", 500), "http_500"),
        (bad.says(b"oh", 503), "http_503"),
        (bad.says(b"oh", 429), "rate_limited"),
        (bad.says(b"", 307, location="http://elsewhere/"), "redirected"),
        (bad.says(b"", 302, location="/score"), "redirected"),
        (bad.says(b"<html>"), "not_json"),
        (bad.says(b""), "not_json"),
        (bad.says(b'{"x": 1'), "not_json"),
        (bad.says(b'{"x": nan}'), "not_json"),
        (bad.says(b"\xff\xfe\xff"), "not_json"),
        (bad.says(b"[" * 50_000), "not_json"),
        (bad.says(b"9" * 5000), "not_json"),
        (bad.says(b"x", content_encoding="gzip"), "not_json"),
        (bad.says(b"{}", content_encoding="br"), "not_json"),
        (bad.says(b" " * (2**16 + 1)), "too_large"),
        (bad.bomb(mib=64), "too_large"),
    ],
)  # fmt: skip
def test_each_fault_has_its_name(trick: Trick, reason: str) -> None:
    fault, _ = fault_of(trick, read_s=0.2, max_body_mib=2**-4)
    assert fault.reason == reason, fault.detail
    assert "127.0.0.1" in fault.detail
    assert "/score" in fault.detail
    assert str(fault) == f"{reason}: {fault.detail}"


def test_an_answer_of_exactly_the_limit_is_read() -> None:
    text = b'"' + b"a" * (2**16 - 2) + b'"'
    with Service(bad.says(text)) as service, client_of(service.url, max_body_mib=2**-4) as client:
        assert client.post("/score", {}) == "a" * (2**16 - 2)


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{bad.closed_port()}"
    with client_of(url) as client, pytest.raises(Failed) as failed:
        client.post("/score", {})
    assert failed.value.reason == "refused"


def test_what_the_service_says_about_a_refusal_is_told() -> None:
    fault, _ = fault_of(bad.says(b"the model `x`\n does not exist" + b"." * 9000, 404))
    assert "answered 404: the model `x` does not exist..." in fault.detail
    assert len(fault.detail) < 500


def test_a_refusal_that_breaks_off_keeps_its_status() -> None:
    def trick(exchange: bad.Exchange) -> None:
        exchange.raw(bad.head(404, 100) + b"no")
        exchange.handler.close_connection = True

    fault, _ = fault_of(trick)
    assert fault.reason == "http_404"


def test_a_redirect_is_named_and_not_followed() -> None:
    with Service(OK) as other:
        fault, _ = fault_of(bad.says(b"", 308, location=f"{other.url}/new?key=k"))
        assert f"points to {other.url}/new; give the final url" in fault.detail
        assert not other.seen


# Deadlines


@pytest.mark.parametrize("trick", [bad.drips(b"[1, 2, 3]"), bad.drips_its_body(b"[1, 2, 3]" * 9)])
def test_a_service_that_drips_ends_at_the_deadline_over_all(trick: Trick) -> None:
    began = time.monotonic()
    fault, _ = fault_of(trick, read_s=0.5, total_s=0.4, retries=3)
    assert fault.reason == "timeout"
    assert "total_s = 0.4" in fault.detail
    assert time.monotonic() - began < 1.5


def test_a_service_that_hangs_ends_at_the_reading_deadline() -> None:
    fault, asked = fault_of(bad.hangs, read_s=0.1, retries=1)
    assert "read_s = 0.1" in fault.detail
    assert asked == 2


def test_all_tries_share_one_deadline() -> None:
    began = time.monotonic()
    fault, asked = fault_of(bad.hangs, read_s=0.2, total_s=0.5, retries=50)
    assert fault.reason == "timeout"
    assert asked <= 3
    assert time.monotonic() - began < 1.5


# Trying again


@pytest.mark.parametrize(
    "trick",
    [bad.says(b"", 500), bad.says(b"", 503), bad.says(b"", 429), bad.closes, bad.closes_midway],
)
def test_a_fault_that_passes_is_not_seen(trick: Trick) -> None:
    with Service(trick, trick, OK) as service, client_of(service.url, retries=2) as client:
        assert client.post("/score", 5) == {"got": 5}
        assert len(service.seen) == 3


@pytest.mark.parametrize(
    "trick",
    [bad.says(b"", 404), bad.says(b"", 401), bad.says(b"x"), bad.says(b"", 302, location="/")],
)
def test_a_fault_that_stays_is_not_tried_again(trick: Trick) -> None:
    _, asked = fault_of(trick, OK, retries=3)
    assert asked == 1


def test_tries_are_counted() -> None:
    fault, asked = fault_of(bad.says(b"", 500), retries=3)
    assert (fault.reason, asked) == ("http_500", 4)


def test_the_wait_a_service_asks_for_is_kept() -> None:
    began = time.monotonic()
    busy = bad.says(b"", 429, retry_after="1")
    with Service(busy, OK) as service, client_of(service.url, retries=1) as client:
        client.post("/score", {})
    assert 1.0 <= time.monotonic() - began < 1.9


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    began = time.monotonic()
    fault, asked = fault_of(bad.says(b"slowly", 429, retry_after="3600"), OK, retries=3)
    assert (fault.reason, asked) == ("rate_limited", 1)
    assert "asks to wait 3600 s" in fault.detail
    assert time.monotonic() - began < 1.0


def test_a_service_may_name_the_hour() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    fault, asked = fault_of(bad.says(b"", 503, retry_after=soon), OK, retries=3)
    assert 3500 < fault.retry_after_s <= 3600
    assert asked == 1
    fault, asked = fault_of(bad.says(b"", 503, retry_after="soon"), retries=1)
    assert (fault.retry_after_s, asked) == (0.0, 2)


def test_waits_double_and_their_spread_follows_the_key() -> None:
    fault = Failed("closed", "")
    with client_of("http://127.0.0.1:1", seed=3) as one, client_of("http://[::1]", seed=3) as two:
        waits = [one._wait(fault, 7, turn) for turn in range(40)]
        assert waits == [two._wait(fault, 7, turn) for turn in range(40)]
        assert one._wait(fault, 8, 0) != waits[0]
    for turn, wait in enumerate(waits[:8]):
        assert 0.5 <= wait / (0.02 * 2**turn) < 1.5
    assert max(waits) < 1.5 * client_module.LONGEST_WAIT_S


# The end


def test_a_failure_crosses_a_process_by_its_arguments() -> None:
    fault = Failed("timeout", "http://x: late", 2.0)
    again = Failed(*json.loads(json.dumps(fault.args)))
    assert (again.reason, again.detail, again.retry_after_s) == ("timeout", "http://x: late", 2.0)


def test_an_answer_that_is_not_read_to_its_end_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(5):
        fault_of(bad.bomb(mib=64), max_body_mib=0.5)
    gc.collect()
    assert not [one for one in caplog.records if one.name == "asyncio" and one.levelname == "ERROR"]


def test_a_bomb_does_not_go_off() -> None:
    trick = bad.bomb(mib=256)
    tracemalloc.start()
    try:
        fault, _ = fault_of(trick, max_body_mib=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fault.reason == "too_large"
    assert peak < 32 * 2**20


def test_closing_twice_is_closing_once() -> None:
    client = Client("http://localhost")
    client.close()
    client.close()
    assert isinstance(client._http, httpx.AsyncClient)
    assert client._http.is_closed
