"""What the runtime may load: numpy, and nothing heavy before it is needed."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import edgeferry_runtime
import pytest

MODULES = [m.name for m in pkgutil.walk_packages(edgeferry_runtime.__path__, "edgeferry_runtime.")]
FORBIDDEN = ("tensorflow", "keras", "paramiko", "cv2", "ai_edge_litert", "tflite_runtime", "ai_edge_quantizer")


def loaded_after(imports: list[str], names: tuple[str, ...]) -> list[str]:
    code = "import sys\n" + "".join(f"import {name}\n" for name in imports)
    code += f"print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return eval(done.stdout)


def test_every_module_is_seen():
    assert len(MODULES) > 20
    assert "edgeferry_runtime.sources.camera" in MODULES


def test_no_module_imports_anything_heavy():
    assert loaded_after([m for m in MODULES if not m.endswith("__main__")], FORBIDDEN) == []


@pytest.mark.parametrize("module", ["", ".bundle", ".cli", ".run_config", ".supervising"])
def test_the_contract_is_read_without_numpy(module):
    """The deployer opens bundles, too, and has no use for numpy."""
    assert loaded_after(["edgeferry_runtime" + module], ("numpy", *FORBIDDEN)) == []


def test_the_test_can_fail():
    assert loaded_after(["cv2"], FORBIDDEN) == ["cv2"]


def test_python_37_syntax(repository):
    """Every file compiles as Python 3.7; that it also runs there is tested with a real 3.7."""
    import ast

    for path in sorted((repository / "runtime" / "edgeferry_runtime").rglob("*.py")):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 7))
