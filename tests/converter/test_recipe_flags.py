"""Recipe choices as flags: what they make, how they sit on a file, what they refuse."""

from __future__ import annotations

import argparse

import pytest
from edgeferry_converter.errors import RecipeError
from edgeferry_converter.recipe import Distill, Prune, Qat, load_recipe
from edgeferry_converter.recipe_flags import add_recipe_flags, with_flags
from edgeferry_deploy.cli import main


def made(*words: str, recipe: str | None = None):
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser)
    return with_flags(load_recipe(recipe) if recipe else None, parser.parse_args(words))


def test_without_flags_nothing_changes():
    assert made() is None
    assert made(recipe="qat") == load_recipe("qat")


@pytest.mark.parametrize(
    ("words", "prune", "distill", "qat"),
    [
        (["--prune-channels", "0.5"], Prune("channels", target=0.5), None, None),
        (["--prune-magnitude", "0.9"], Prune("magnitude", sparsity=0.9), None, None),
        (["--qat"], None, None, Qat()),
        (["--qat", "4", "--distill"], None, Distill(), Qat(bits=4)),
        (["--prune-channels", "1", "--distill", "big.keras", "--qat", "8"], Prune("channels", target=1.0),
         Distill("big.keras"), Qat()),
    ],
)  # fmt: skip
def test_flags_make_a_recipe(words, prune, distill, qat):
    recipe = made(*words)
    assert (recipe.prune, recipe.distill, recipe.qat) == (prune, distill, qat)
    assert recipe.name == "flags" and recipe.trains
    assert recipe.values()["description"] == recipe.description
    assert all(word in recipe.description for word in words if word.startswith("--"))


def test_flags_lie_on_top_of_a_recipe():
    base = load_recipe("channels-50")
    recipe = made("--prune-channels", "0.7", "--qat", recipe="channels-50")
    assert recipe.prune == Prune(**{**vars(base.prune), "target": 0.7})
    assert recipe.train == base.train
    assert recipe.qat == Qat()
    assert recipe.description.startswith("channels-50 with --prune-channels 0.7")
    four = made("--qat", "4", recipe="qat")
    assert four.qat == Qat(**{**vars(load_recipe("qat").qat), "bits": 4})
    other = made("--prune-magnitude", "0.6", recipe="channels-50")
    assert other.prune == Prune("magnitude", sparsity=0.6)


@pytest.mark.parametrize(
    ("words", "recipe", "said"),
    [
        (["--prune-channels", "0"], None, "prune.target: must lie between 0.01 and 1.0, is 0.0"),
        (["--prune-channels", "nan"], None, "prune.target"),
        (["--prune-magnitude", "1.5"], None, "prune.sparsity: must lie between"),
        (["--distill"], None, "distill: nothing makes the model smaller"),
        (["--prune-magnitude", "0.5", "--qat"], None, "qat: would train the zeros"),
        (["--qat"], "magnitude-80", "qat: would train the zeros"),
    ],
)
def test_contradictions_are_refused_as_a_file_s_are(words, recipe, said):
    with pytest.raises(RecipeError) as caught:
        made(*words, recipe=recipe)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prune-channels", "0.5", "--prune-magnitude", "0.5"], "not allowed with"),
        (["--qat", "6"], "invalid choice"),
        (["--prune-channels", "half"], "invalid float"),
    ],
)
def test_what_no_flag_takes(capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        made(*words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_convert_takes_them(tmp_path, capsys):
    argv = ["convert", str(tmp_path / "none.keras"), "--profile", "host", "--data", str(tmp_path), "--distill"]
    assert main(argv) == 2
    assert "nothing makes the model smaller" in capsys.readouterr().err
    assert main([*argv, "--qat", "--epochs", "0"]) == 2
    assert "--epochs is 0" in capsys.readouterr().err
