"""The public face: every name loads, and importing the package stays light."""

import ast
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import kernels_pallas
import mot_jax


@pytest.mark.parametrize("name", mot_jax.__all__)
def test_every_public_name_loads(name):
    assert getattr(mot_jax, name) is not None
    assert name in dir(mot_jax)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Modle'"):
        mot_jax.Modle  # noqa: B018


def test_light_modules_stay_light():
    code = (
        "import sys, mot_jax, mot_jax.config, mot_jax.errors, mot_jax.vocabulary, mot_jax.documents, mot_jax.cli\n"
        "mot_jax.Run(); mot_jax.Span; mot_jax.Codec\n"
        "print(*{'jax', 'flax', 'orbax', 'grain', 'matplotlib', 'rich', 'tensorboardX'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == ""


@pytest.mark.parametrize("package", [mot_jax, kernels_pallas])
def test_every_module_can_be_imported(package):
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    assert len(names) > 20


def test_the_kernels_need_no_more_than_they_say():
    found = set()
    for path in pathlib.Path(*kernels_pallas.__path__).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {name.partition(".")[0] for name in names}
    assert found - set(sys.stdlib_module_names) == {"jax", "jaxtyping", "numpy", "kernels_pallas"}
