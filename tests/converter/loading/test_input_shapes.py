"""``--input-shape``: read from any spelling, refused with a reason, and fitted to what the model leaves free."""

from __future__ import annotations

import pytest
from edgeferry_converter.errors import OptionError
from edgeferry_converter.loading.input_shapes import fix_shapes, parse_input_shape
from edgeferry_converter.loading.keras2 import to_keras3
from edgeferry_converter.loading.keras_files import _class_names
from edgeferry_converter.loading.names import signature_names
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20).map(str.strip)
SIZES = st.lists(st.integers(1, 1 << 28), min_size=1, max_size=6)


@given(NAMES.filter(bool), SIZES, st.sampled_from(["", " "]))
def test_what_is_written_is_read(name, sizes, space):
    text = f",{space}".join(map(str, sizes))
    assert parse_input_shape(f"{name}={text}") == (name, tuple(sizes))
    assert parse_input_shape(text) == ("", tuple(sizes))


@given(st.text(max_size=30))
def test_any_text_is_a_shape_or_an_option_error(text):
    try:
        name, sizes = parse_input_shape(text)
    except OptionError as error:
        assert error.remedy
        assert "--input-shape" in error.message
    else:
        assert all(1 <= size <= 1 << 28 for size in sizes)
        assert parse_input_shape(f"{name}={','.join(map(str, sizes))}" if name else text) == (name, sizes)


@pytest.mark.parametrize(
    "text", ["", "=", "=1,2", "a=", "1,,2", "1,2,", "-1,3", "0", "1.5", "a=b", "?,3", "1x2", "\u0661,2"]
)
def test_no_shapes(text):
    with pytest.raises(OptionError, match="--input-shape"):
        parse_input_shape(text)


FREE = {"image": (None, None, None, 3)}


@pytest.mark.parametrize(
    ("inputs", "given", "fixed"),
    [
        (FREE, [("", (32, 48, 3))], {"image": (1, 32, 48, 3)}),
        (FREE, [("image", (1, 32, 48, 3))], {"image": (1, 32, 48, 3)}),
        ({"image": (None, 8, 8, 3)}, [], {"image": (1, 8, 8, 3)}),
        ({"a": (None, 4), "b": (None, None)}, [("b", (7,))], {"a": (1, 4), "b": (1, 7)}),
        ({"a": ()}, [("a", (2, 3))], {"a": (2, 3)}),
        ({"a": (2, None)}, [("a", (5,))], {"a": (2, 5)}),
    ],
)
def test_fixing(inputs, given, fixed):
    assert fix_shapes(inputs, given) == fixed


@pytest.mark.parametrize(
    ("inputs", "given", "words"),
    [
        (FREE, [], r"leaves dimensions free: image \[\?, \?, \?, 3\]"),
        (FREE, [("img", (1, 2, 2, 3))], "'img' is no input of the model, it has image"),
        (FREE, [("", (2, 2, 4))], "contradicts the model"),
        (FREE, [("", (8, 2, 2, 3))], "the batch is 8"),
        (FREE, [("", (2, 3))], "has 2 dimensions"),
        (FREE, [("", (2, 2, 3)), ("image", (2, 2, 3))], "given twice"),
        ({"a": (None, None), "b": (None, None)}, [("", (2,))], "which input"),
        ({"a": (None, None), "b": (None, None)}, [("a", (2,))], r"free: b \[\?, \?\]"),
    ],
)
def test_what_does_not_fit(inputs, given, words):
    with pytest.raises(OptionError, match=words) as caught:
        fix_shapes(inputs, given)
    assert caught.value.remedy


@given(st.lists(st.text(max_size=8), max_size=6))
def test_signature_names_are_names_and_unique(names):
    result = signature_names(names, "input")
    assert len(set(result)) == len(names) == len(result)
    assert all(name.isidentifier() and name.isascii() for name in result)


def test_keras_2_words():
    layer = {
        "class_name": "BatchNormalizationV1",
        "module": "tf_keras.src.layers",
        "config": {"axis": [3], "dtype": {"class_name": "Policy", "config": {"name": "mixed_float16"}}},
    }
    assert to_keras3({"layers": [layer]}) == {
        "layers": [
            {
                "class_name": "BatchNormalization",
                "module": "keras.layers",
                "registered_name": None,
                "config": {"axis": 3, "dtype": "mixed_float16"},
            }
        ]
    }
    first = {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 8, 8, 3], "name": "x"}}
    assert to_keras3(first)["config"] == {"batch_shape": [None, 8, 8, 3], "name": "x"}


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"value": ["4wEAAAA=\n", None, None]}, True),
        ({"value": ["4wEAAAA=\n", [1], None]}, True),
        ({"value": ["bidirectional", 0, 0]}, False),  # the argument `value` of a MultiHeadAttention
        ({"class_name": "__lambda__", "config": {}}, True),
        ({"class_name": "Dense", "config": {"activation": {"class_name": "Lambda"}}}, True),
        ({"class_name": "Dense", "config": {"activation": "relu"}}, False),
    ],
)
def test_byte_code_in_a_configuration(part, code):
    assert bool(_class_names({"layers": [part]}) & {"Lambda", "__lambda__"}) == code
