"""Recipes: the shipped ones, the schema, and everything that can be wrong with one."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
from edgeferry_converter.errors import RecipeError
from edgeferry_converter.recipe import (
    Distill,
    Prune,
    Qat,
    Train,
    available_recipes,
    load_recipe,
    recipes_folder,
    reference_recipe,
)


@pytest.fixture
def write(tmp_path):
    def make(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.toml"
        path.write_text(f'name = "{name}"\ndescription = "x"\n{text}')
        return str(path)

    return make


@pytest.mark.parametrize("name", available_recipes())
def test_a_shipped_recipe_loads(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.needs_data
    assert ("train" in recipe.values()) == recipe.trains
    assert f"`{name}`" in (recipes_folder() / "README.md").read_text(encoding="utf-8")


def test_the_reference_names_the_defaults():
    data = tomllib.loads(reference_recipe().read_text(encoding="utf-8"))
    for table, kind in (("train", Train), ("distill", Distill), ("qat", Qat), ("prune", Prune)):
        fields = {field.name: field.default for field in dataclasses.fields(kind)}
        assert set(data[table]) == set(fields)
        for key, value in data[table].items():
            if (table, key) != ("prune", "kind"):
                assert (tuple(value) if isinstance(value, list) else value) == fields[key], f"{table}.{key}"


def test_a_recipe_says_only_what_it_changes(write):
    recipe = load_recipe(write('[prune]\nkind = "channels"\ntarget = 0.3\n[gate]\nmax_drop = 0.1\n'))
    assert recipe.prune == Prune("channels", target=0.3)
    assert recipe.max_drop == 0.1
    assert (recipe.qat, recipe.distill, recipe.schemes) == (None, None, ())
    values = recipe.values()
    assert values["prune"]["target"] == 0.3
    assert "sparsity" not in values["prune"]
    assert "qat" not in values


def test_a_recipe_that_only_quantises_trains_nothing(write):
    recipe = load_recipe(write('[quantize]\nschemes = ["int8", "float16"]\n'))
    assert not recipe.trains
    assert recipe.schemes == ("int8", "float16")
    assert "train" not in recipe.values()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[prune]\n", "prune.kind: missing"),
        ('[prune]\nkind = "chanels"\n', 'did you mean "channels"'),
        (
            '[prune]\nkind = "channels"\nsparsity = 0.5\n',
            'prune.sparsity: means nothing when prune.kind is "channels"',
        ),
        (
            '[prune]\nkind = "magnitude"\ntarget = 0.5\n',
            'prune.target: means nothing when prune.kind is "magnitude"',
        ),
        ('[prune]\nkind = "channels"\ntarget = 0\n', "prune.target: must lie between"),
        ('[prune]\nkind = "magnitude"\npattern = "2:4"\nsparsity = 0.7\n', "2:4 is always 0.5"),
        ('[prune]\nkind = "magnitude"\nsparsity = 0.2\ninitial_sparsity = 0.4\n', "is more than prune.sparsity"),
        ('[prune]\nkind = "magnitude"\nexclude = [1]\n', "prune.exclude: must be a list of names"),
        (
            '[prune]\nkind = "magnitude"\nreconstruct = true\n',
            'prune.reconstruct: means nothing when prune.kind is "magnitude"',
        ),
        ('[prune]\nkind = "channels"\nround_epochs = 0\n', "prune.round_epochs: must lie between"),
        ("[qat]\nfloat_epochs = -1\n", "qat.float_epochs: must lie between"),
        ("[distill]\n", "distill: nothing makes the model smaller"),
        ("[qat]\nbits = 5\n", "qat.bits: must be one of 4, 8"),
        ("[qat]\nbts = 4\n", 'qat.bts: unknown key; did you mean "bits"'),
        ('[train]\nepochs = "many"\n', "train.epochs: must be a whole number"),
        ("[train]\nlearning_rate = nan\n", "train.learning_rate: must lie between"),
        ("[quantize]\nschemes = []\n", "quantize.schemes: is empty"),
        ('[quantize]\nschemes = ["int7"]\n', "quantize.schemes[0]: must be one of"),
        ("[compress]\n", "compress: unknown key"),
        ("[prune\n", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(write, text, problem):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    assert problem in caught.value.message
    assert caught.value.exit_code == 2


def test_every_problem_is_told_at_once(write):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write('[qat]\nbits = 5\nepochs = 0\n[prune]\nkind = "x"\n'))
    assert len(caught.value.problems) == 3


def test_the_name_is_the_file_s(tmp_path):
    path = tmp_path / "other.toml"
    path.write_text('name = "mine"\ndescription = "x"\n')
    with pytest.raises(RecipeError, match='the file is called "other"'):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chanels-50", 'Did you mean "channels-50"'),
        ("nowhere/x.toml", "does not exist"),
        ("\0.toml", "does not exist|cannot be looked up"),
    ],
)
def test_a_recipe_that_is_not_there(name, said):
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(name)
    assert "channels-50" in caught.value.remedy


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="explains the keys"):
        load_recipe(str(reference_recipe()))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file"):
        load_recipe(str(tmp_path / "binary.toml"))
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(RecipeError, match="larger than"):
        load_recipe(str(tmp_path / "large.toml"))


def test_trainings_that_only_prepare_get_no_more_epochs_than_the_command_line_says(write):
    text = '[prune]\nkind = "channels"\nstart_epochs = 6\nround_epochs = 2\n[distill]\n[qat]\nfloat_epochs = 0\n'
    few = load_recipe(write(text)).with_epochs(3)
    assert (few.train.epochs, few.prune.start_epochs, few.prune.round_epochs) == (3, 3, 2)
    assert (few.distill.teacher_epochs, few.qat.float_epochs, few.qat.epochs) == (3, 0, 3)


@pytest.mark.parametrize("name", ["channels-75", "channels-50"])
def test_shipped_channel_recipes_fit_kernels_and_train_their_teacher(name):
    recipe = load_recipe(name)
    assert recipe.prune.reconstruct
    assert recipe.distill.teacher_epochs > 0
