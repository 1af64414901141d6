"""The part `view` of run.json: addresses, and what may not be open to others."""

from __future__ import annotations

import pytest
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.view_config import Address, ViewConfig, is_loopback, parse_listen
from hypothesis import given
from hypothesis import strategies as st


def read(**value):
    fields = Fields(value, "view")
    config = ViewConfig.read(fields)
    return config, fields.finish()


def test_an_empty_part_is_the_page_on_this_device_alone():
    config, problems = read()
    assert problems == []
    assert config == ViewConfig("127.0.0.1:8080", None, True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"listen": "8080"}, "view.listen: is '8080', must be ADDRESS:PORT"),
        ({"listen": "127.0.0.1:65536"}, "must be ADDRESS:PORT"),
        ({"listen": "http://127.0.0.1:80"}, "must be ADDRESS:PORT"),
        ({"listen": "0.0.0.0:8080"}, "name a file with a secret in `token_file`"),
        ({"listen": "[::]:8080"}, "token_file"),
        ({"listen": "camera.local:8080"}, "token_file"),
        ({"listen": 8080}, "must be a string"),
        ({"token_file": 5}, "view.token_file: must be a string"),
        ({"predict": "yes"}, "must be true or false"),
        ({"lisen": "x"}, "did you mean 'listen'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(value, words):
    (problem,) = read(**value)[1]
    assert words in problem


def test_all_that_is_wrong_is_said_at_once():
    assert len(read(listen="nowhere", predict=3, tokn=1)[1]) == 3


def test_with_a_token_it_may_listen_anywhere():
    for listen in ("0.0.0.0:8080", "[::]:80", "camera.local:8080"):
        assert read(listen=listen, token_file="/etc/edgeferry/view")[1] == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.4", False), ("localhost.example.org", False), ("127.0.0.1.example.org", False)],
)  # fmt: skip
def test_which_addresses_are_this_device_alone(host, expected):
    assert is_loopback(host) is expected


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_address_reads_as_it_is_written(host, port):
    address = Address(str(host), port)
    if not getattr(host, "scope_id", None):
        assert parse_listen(str(address)) == address
        assert is_loopback(str(host)) is host.is_loopback


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_none(text):
    address = parse_listen(text)
    assert address is None or 0 <= address.port <= 65535
