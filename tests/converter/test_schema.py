"""The validator against a small reference of its own, then against anything hypothesis can think of."""

from __future__ import annotations

import copy
import datetime
import tomllib
from typing import Any

import pytest
from edgeferry_converter.schema import Problem, did_you_mean, dotted, lookup, parse, validate
from hypothesis import given
from hypothesis import strategies as st

REFERENCE = tomllib.loads("""
title = "pizza"
[oven]
heat = 220
door = true
draught = 0.5
kind = "stone"
since = 2020-01-01
[notes]
any = "text"
[[steps]]
verb = "bake"
minutes = 4
toppings = ["basil"]
[extra]
sauce = "none"
[reference]
optional = ["oven.draught", "steps[].toppings", "extra"]
open = ["notes"]
[reference.choices]
"oven.kind" = ["stone", "steel"]
"steps[].verb" = ["bake", "rest"]
"steps[].toppings" = ["basil", "olive"]
[reference.ranges]
"oven.heat" = [0, 400]
"oven.draught" = [0.0, 1.0]
"steps[].minutes" = [1, 9]
[reference.patterns]
"title" = '[a-z]+'
""")


def valid() -> dict[str, Any]:
    return copy.deepcopy({key: value for key, value in REFERENCE.items() if key != "reference"})


def faults(data: dict[str, Any]) -> dict[str, str]:
    problems = validate(data, REFERENCE, "mine.toml")
    assert all(problem.file == "mine.toml" for problem in problems)
    by_path = {problem.path: problem.message for problem in problems}
    assert len(by_path) == len(problems), "one fault was told twice"
    return by_path


def test_the_reference_itself_is_valid() -> None:
    assert faults(valid()) == {}


def test_optional_keys_and_tables_may_be_absent() -> None:
    data = valid()
    del data["oven"]["draught"], data["extra"], data["steps"][0]["toppings"]
    assert faults(data) == {}


def test_an_optional_table_that_is_there_must_be_complete() -> None:
    data = valid()
    data["extra"] = {}
    assert list(faults(data)) == ["extra.sauce"]


def test_a_table_whose_keys_are_all_optional_may_be_absent() -> None:
    reference = {"limits": {"cpu": 1}, "reference": {"optional": ["limits.cpu"]}}
    assert validate({}, reference, "f") == []


def test_all_problems_of_a_file_come_at_once() -> None:
    data = {
        "title": "Pizza!",
        "oven": {"haet": 220, "door": 1, "draught": 2, "kind": "stoen", "since": "2020"},
        "notes": {"a": "fine", "b.c": 4},
        "steps": [{"verb": "bake", "minutes": 4}, {"verb": "bkae", "minutes": True, "toppings": ["olives", 3]}],
        "ovens": {},
    }
    assert faults(data) == {
        "title": 'must look like "pizza", is "Pizza!"',
        "oven.heat": "missing; it is a whole number, for example 220",
        "oven.door": "must be true or false, is a whole number (1)",
        "oven.draught": "must lie between 0.0 and 1.0, is 2",
        "oven.kind": 'must be one of stone, steel, is "stoen"; did you mean "stone"?',
        "oven.since": 'must be a date, is text ("2020")',
        "oven.haet": 'unknown key; did you mean "heat"?',
        'notes."b.c"': "must be text, is a whole number",
        "steps[1].verb": 'must be one of bake, rest, is "bkae"; did you mean "bake"?',
        "steps[1].minutes": "must be a whole number, is true or false (true)",
        "steps[1].toppings[0]": 'must be one of basil, olive, is "olives"; did you mean "olive"?',
        "steps[1].toppings[1]": "must be text, is a whole number (3)",
        "ovens": 'unknown key; did you mean "oven"?',
    }


@pytest.mark.parametrize("value", [True, False, 1.0, "220", [220], {"c": 220}, datetime.date(2020, 1, 1)])
def test_only_a_whole_number_is_a_whole_number(value: Any) -> None:
    data = valid()
    data["oven"]["heat"] = value
    assert faults(data)["oven.heat"].startswith("must be a whole number, is ")


def test_a_whole_number_serves_as_a_number_but_a_bool_does_not() -> None:
    data = valid()
    data["oven"]["draught"] = 1
    assert faults(data) == {}
    data["oven"]["draught"] = True
    assert list(faults(data)) == ["oven.draught"]


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), float("-inf")])
def test_outside_the_range(value: float) -> None:
    data = valid()
    data["oven"]["draught"] = value
    assert list(faults(data)) == ["oven.draught"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_a_range_belong_to_it(value: float) -> None:
    data = valid()
    data["oven"]["draught"] = value
    assert faults(data) == {}


def test_a_missing_table_names_what_it_needs() -> None:
    data = valid()
    del data["oven"], data["notes"]
    assert faults(data) == {
        "oven": "missing table [oven]; it needs heat, door, kind, since",
        "notes": "missing table [notes]",
    }


def test_a_value_where_a_table_belongs_and_the_other_way_round() -> None:
    data = valid()
    data["oven"], data["title"] = 4, {"a": 1}
    assert faults(data) == {"title": "must be text, is a table", "oven": "must be a table, is a whole number (4)"}


def test_a_key_in_the_wrong_table_is_sent_home() -> None:
    data = valid()
    data["zzz"] = 1
    data["draught"] = 0.1
    assert faults(data) == {"zzz": "unknown key", "draught": 'unknown key; did you mean "oven.draught"?'}


def test_the_rules_table_belongs_to_the_reference_only() -> None:
    assert faults({**valid(), "reference": {}}) == {
        "reference": "only the reference file itself has this table; delete it"
    }


def test_long_and_hostile_values_are_shown_short_and_escaped() -> None:
    data = valid()
    data["title"] = "\x1b[31m\x9b" + "x" * 1000
    message = faults(data)["title"]
    assert len(message) < 120
    assert message.isascii() and message.isprintable()
    data = valid()
    data["oven"]["heat"] = 16**9000
    assert faults(data) == {"oven.heat": "must lie between 0 and 400, is a number of thousands of digits"}


def test_unknown_keys_are_quoted_as_toml_would() -> None:
    assert list(faults({**valid(), "a b\x1b": 1})) == ['"a b\\u001b"']


def test_helpers_of_paths() -> None:
    assert dotted("a", "b-c", "d.e") == 'a.b-c."d.e"'
    assert lookup({"a": {"b": 0}}, "a.b") == 0
    assert lookup({"a": {"b": 0}}, "a.b.c") is None
    assert did_you_mean("OVEN", ["oven", "pan"]) == '; did you mean "oven"?'
    assert did_you_mean("xyz", ["oven"]) == ""
    assert str(Problem("f", "a.b", "wrong")) == "a.b: wrong"
    assert str(Problem("f", "", "wrong")) == "wrong"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the file holds no keys"),
        (b"# only a comment\n", "the file holds no keys"),
        (b"\x7fELF\xff\xfe\x00", "not a text file: byte 4 is not UTF-8"),
        (b"[board]\narch = ", "not valid TOML"),
        (b"a = 1\na = 2", "not valid TOML"),
        (b"a = " + b"9" * 5000, "not readable as TOML"),
        (b"a = " + b"[" * 5000, "TOML"),
    ],
)
def test_what_is_not_toml_is_one_problem(raw: bytes, message: str) -> None:
    data, problems = parse(raw, "mine.toml")
    assert data == {}
    (problem,) = problems
    assert message in problem.message
    assert problem.path == ""


def test_a_byte_order_mark_is_forgiven() -> None:
    assert parse(b"\xef\xbb\xbfa = 1", "f") == ({"a": 1}, [])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
KEYS = st.sampled_from(["title", "oven", "heat", "kind", "steps", "verb", "notes", "reference"]) | st.text(
    max_size=5
)
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_no_data_crashes_the_validator(data: dict[str, Any]) -> None:
    for problem in validate(data, REFERENCE, "mine.toml"):
        assert problem.path and problem.message
        assert str(problem).isascii()


@given(st.sampled_from(["title", "oven", "steps", "notes", "extra"]), TREES)
def test_no_value_crashes_the_validator(key: str, tree: Any) -> None:
    for problem in validate({**valid(), key: tree}, REFERENCE, "mine.toml"):
        assert problem.path.startswith(key)


@given(st.binary(max_size=64))
def test_no_bytes_crash_the_reader(raw: bytes) -> None:
    data, problems = parse(raw, "mine.toml")
    assert bool(data) != bool(problems)
