"""Search spaces: what is read, everything that can be wrong with one, and that what is suggested is a recipe."""

from __future__ import annotations

import tomllib

import pytest
from edgeferry_converter.recipe import load_recipe, reference_recipe
from edgeferry_converter.sweep_space import (
    SpaceError,
    default_space,
    impossible,
    load_space,
    recipe_toml,
    suggest,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WIDE = """
parts = [["prune"], ["distill", "prune"], ["qat"], ["prune", "qat"], ["prune", "distill", "qat"]]
"prune.target" = [0.35, 0.5, 0.75]
"train.epochs" = { low = 1, high = 9, step = 2 }
[train]
learning_rate = { low = 1e-5, high = 1e-1, log = true }
augment = [true, false]
[prune]
kind = ["channels", "magnitude"]
sparsity = { low = 0.5, high = 0.9 }
pattern = ["unstructured", "1x4", "2:4"]
rounds = [1, 2]
initial_sparsity = [0.0, 0.7]
include = [["*"], ["conv*", "dense"]]
exclude = ["last"]
[distill]
alpha = [0.3]
[qat]
weights = ["per-channel", "per-tensor"]
bits = [4, 8]
"""


class Drawn:
    """Chooses as hypothesis says."""

    def __init__(self, draw):
        self.draw = draw

    def suggest_categorical(self, name, choices):
        return self.draw(st.sampled_from(choices))

    def suggest_int(self, name, low, high, *, step=1, log=False):
        return low + step * self.draw(st.integers(0, (high - low) // step))

    def suggest_float(self, name, low, high, *, step=None, log=False):
        return self.draw(st.floats(low, high))


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        path = tmp_path / "space.toml"
        path.write_text(text)
        return path

    return make


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_suggested_is_a_recipe_unless_it_says_why_not(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    (folder / "space.toml").write_text(WIDE)
    space = load_space(folder / "space.toml")
    recipe = suggest(space, Drawn(data.draw))
    if impossible(recipe):
        return
    (folder / "recipe.toml").write_text(recipe_toml(recipe))
    loaded = load_recipe(str(folder / "recipe.toml"))
    assert loaded.trains
    values = loaded.values()
    for part, keys in recipe.items():
        for key, value in keys.items():
            assert values[part][key] == value, f"{part}.{key} was lost"


def test_only_keys_that_mean_something_are_suggested(write):
    space = load_space(write(WIDE))

    class Prunes(Drawn):
        def __init__(self, kind):
            self.kind, self.seen = kind, []

        def suggest_categorical(self, name, choices):
            self.seen.append(name)
            return self.kind if name == "prune.kind" else choices[0]

        def suggest_int(self, name, low, high, *, step=1, log=False):
            return low

        def suggest_float(self, name, low, high, *, step=None, log=False):
            return low

    for kind, wanted, idle in (
        ("channels", "prune.target", "prune.pattern"),
        ("magnitude", "prune.pattern", "prune.target"),
    ):
        trial = Prunes(kind)
        suggest(space, trial)
        assert wanted in trial.seen and idle not in trial.seen
        assert "qat.bits" not in trial.seen


def test_the_shipped_space_is_one_and_explains_each_key():
    space = load_space(default_space())
    lines = default_space().read_text().splitlines()
    known = tomllib.loads(reference_recipe().read_text())
    for path in space.keys:
        part, key = path.split(".")
        assert key in known[part]
        place = next(n for n, line in enumerate(lines) if line.startswith(f"{key} ="))
        assert lines[place - 1].startswith("#"), f"{path} is not explained"
    assert len(space.parts) > 1


def test_tables_and_dotted_keys_are_one(write):
    one = load_space(write('parts = [["qat"]]\n[qat]\nbits = [4, 8]\n'))
    other = load_space(write('"qat.bits" = [4, 8]\nparts = [["qat"]]\n'))
    assert one.values() == other.values() == {"parts": [["qat"]], "qat.bits": [4, 8]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[qat]\nbits = 8\n", ["parts: missing"]),
        ('parts = ["prune"]\n', ["parts: must be a list of lists"]),
        ('parts = [["prun"]]\n', ["parts[0]: must be one of prune", 'did you mean "prune"?']),
        ('parts = [["prune"]]\n', ["prune.kind: missing"]),
        ('parts = [["qat"]]\n[qat]\nbts = [4]\n', ["qat.bts: unknown key", 'did you mean "bits"?']),
        ('parts = [["qat"]]\n[qat]\nbits = [4, 5]\n', ["qat.bits: must be one of 4, 8, is 5"]),
        ('parts = [["qat"]]\n[qat]\nbits = []\n', ["qat.bits: has no choice"]),
        ('parts = [["qat"]]\n[qta]\nbits = 8\n', ["qta: unknown key", 'did you mean "qat"?']),
        ('parts = [["qat"]]\n[gate]\nmax_drop = 0.1\n', ["gate: is not searched"]),
        ('parts = [["qat"]]\n[distill]\nalpha = 0.1\n', ["distill.alpha: no entry of parts uses [distill]"]),
        ('parts = [["qat"]]\nqat = [true, false]\n', ["qat: must be a table"]),
        ('parts = [["qat"]]\n[qat.epochs]\nlow = 5\nhgh = 9\n', ["did you mean \"high\"?", "a range needs high"]),
        ('parts = [["qat"]]\n[qat.epochs]\nlow = 9\nhigh = 5\n', ["low (9) must be less than high (5)"]),
        ('parts = [["qat"]]\n[qat.epochs]\nlow = 0\nhigh = 5\n', ["qat.epochs: must lie between 1"]),
        ('parts = [["qat"]]\n[qat.epochs]\nlow = 1.5\nhigh = 5\n', ["whole low, high"]),
        ('parts = [["qat"]]\n[qat.weights]\nlow = 1\nhigh = 5\n', ["qat.weights: is no number"]),
        ('parts = [["qat"]]\n[qat.learning_rate]\nlow = 0\nhigh = 1\nlog = true\n', ["log needs a low above 0"]),
        ('parts = [["qat"]]\n[qat]\nlearning_rate = { low = 1, high = 2, log = true, step = 1 }\n', ["none goes"]),
        ('parts = [["qat"]]\n[qat]\nbits = "x"\n[train]\nepochs = 0\n', ["qat.bits: must be", "train.epochs"]),
        ("not toml", ["not valid TOML"]),
        ("", ["holds no keys"]),
    ],
)  # fmt: skip
def test_everything_that_is_wrong_is_said_at_once(write, text, said):
    with pytest.raises(SpaceError) as caught:
        load_space(write(text))
    message = str(caught.value)
    assert all(words in message for words in said), message
    assert caught.value.exit_code == 2


def test_a_space_that_is_not_there(tmp_path):
    with pytest.raises(SpaceError, match=r"none\.toml cannot be read"):
        load_space(tmp_path / "none.toml")


def test_contradictions_have_words():
    assert "magnitude" in impossible({"prune": {"kind": "magnitude"}, "qat": {}})
    assert "2:4 is always 0.5" in impossible({"prune": {"kind": "magnitude", "pattern": "2:4", "sparsity": 0.8}})
    assert impossible({"prune": {"kind": "channels"}, "qat": {}}) == ""
