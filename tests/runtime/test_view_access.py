"""Who may do what on the live page, decided without a server."""

from __future__ import annotations

import pytest
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.view.access import COOKIE, Gate, address_of, read_token
from edgeferry_runtime.view.http import Refused, Request
from edgeferry_runtime.view_config import Address
from hypothesis import given
from hypothesis import strategies as st

TOKEN = "a-token+of/16=characters"
HERE, ANYWHERE = Address("127.0.0.1", 8080), Address("0.0.0.0", 8080)


def request(method="GET", path="/", query="", **headers):
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": method, "path": path, "query_string": query.encode(), "headers": pairs}
    return Request(scope, None)


def status_of(check, *arguments, **options):
    try:
        check(*arguments, **options)
    except Refused as error:
        return error.status
    return 200


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "127.0.0.1"])
def test_reading_is_free_on_this_device(host):
    assert status_of(Gate(HERE, "").check, request(host=host)) == 200


@pytest.mark.parametrize(
    "host", ["evil.example:8080", "localhost.evil.example", "", "127.0.0.1@evil.example", "a:b:c"]
)
def test_a_name_that_was_pointed_here_is_refused(host):
    assert status_of(Gate(HERE, TOKEN).check, request(host=host)) == 403


def test_elsewhere_reading_needs_the_token():
    gate = Gate(ANYWHERE, TOKEN)
    assert status_of(gate.check, request(host="pi.local")) == 401
    assert status_of(gate.check, request(host="pi.local", authorization="Bearer " + TOKEN)) == 200
    assert status_of(gate.check, request(host="pi.local", authorization="bearer " + TOKEN)) == 200
    assert status_of(gate.check, request(host="pi.local", authorization="Basic " + TOKEN)) == 401
    assert status_of(gate.check, request(host="pi.local", authorization="Bearer " + TOKEN[:-1])) == 401
    assert status_of(gate.check, request(host="pi.local", cookie=f"{COOKIE}={TOKEN}")) == 401  # it is no cookie


def test_writing_needs_the_token_everywhere_and_is_off_without_one():
    for address in (HERE, ANYWHERE):
        gate = Gate(address, TOKEN)
        assert status_of(gate.check_write, request("POST", host="localhost:8080")) == 401
        assert status_of(gate.check_write, request("POST", host="x", authorization="Bearer " + TOKEN)) == 200
    assert status_of(Gate(HERE, "").check_write, request("POST", host="localhost:8080")) == 403
    assert status_of(Gate(HERE, "").check_write, request("POST", host="localhost"), free_without_token=True) == 200
    assert status_of(Gate(HERE, TOKEN).check_write, request("POST"), free_without_token=True) == 401


def test_another_page_may_not_write_even_with_the_cookie():
    gate = Gate(HERE, TOKEN)
    cookie = cookie_of(gate.exchange(request(query="token=" + TOKEN)))
    own = {"host": "localhost:8080", "cookie": cookie}
    assert status_of(gate.check_write, request("POST", origin="http://localhost:8080", **own)) == 200
    for origin in ("http://evil.example", "http://localhost:9090", "null", "http://localhost:8080.evil.example"):
        assert status_of(gate.check_write, request("POST", origin=origin, **own)) == 403


def cookie_of(response):
    assert response.status == 303
    headers = dict(response.headers)
    assert headers["location"] == "./"
    cookie, *flags = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags)
    return cookie


def test_the_token_in_the_address_becomes_a_cookie_that_does_not_hold_it():
    gate = Gate(ANYWHERE, TOKEN)
    cookie = cookie_of(gate.exchange(request(query="lane=x&token=a-token%2Bof%2F16%3Dcharacters")))
    assert TOKEN not in cookie
    assert gate.knows(request(cookie="other=1; " + cookie))
    assert not Gate(ANYWHERE, TOKEN + "x").knows(request(cookie=cookie))
    assert gate.exchange(request()) is None
    assert status_of(gate.exchange, request(query="token=")) == 401
    assert status_of(Gate(HERE, "").exchange, request(query="token=")) == 401


@given(st.text(max_size=60))
def test_nothing_but_the_token_opens(text):
    gate = Gate(ANYWHERE, TOKEN)
    headers = [(b"authorization", ("Bearer " + text).encode("utf-8")), (b"cookie", f"{COOKIE}={text}".encode())]
    scope = {"method": "GET", "path": "/", "query_string": b"", "headers": headers}
    assert gate.knows(Request(scope, None)) is (text.strip() == TOKEN)


def test_a_token_is_long_enough_and_read_from_one_line(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert read_token(str(path)) == TOKEN
    for wrong in ("", "short", TOKEN + "\n" + TOKEN, "has spaces in between", "ü" * 20):
        path.write_text(wrong, "utf-8")
        with pytest.raises(UsageError) as caught:
            read_token(str(path))
        assert not wrong or wrong not in str(caught.value)
    path.write_bytes(b"\xff\xfe" * 10)
    with pytest.raises(UsageError, match="is no text"):
        read_token(str(path))
    with pytest.raises(UsageError, match="No such file"):
        read_token(str(tmp_path / "absent"))


def test_the_address_people_open():
    assert address_of(Address("0.0.0.0", 80)) == "http://localhost:80/"
    assert address_of(Address("::1", 8080)) == "http://[::1]:8080/"
    assert address_of(Address("127.0.0.1", 8080)) == "http://127.0.0.1:8080/"
