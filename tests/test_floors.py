"""The import statements keep to the floors of the plan, without circles, and packages keep to their budgets of lines."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "vae"
# `errors`, `schema` and `files` are the ground that floor 0 itself stands on.
FLOORS = {
    "errors": -3,
    "schema": -2,
    "files": -1,
    **dict.fromkeys(("config", "randomness", "precision", "ranks", "text"), 0),
    **dict.fromkeys(("distributions", "hmc"), 1),
    **dict.fromkeys(("data", "networks", "posteriors", "priors", "likelihoods"), 2),
    "models": 3,
    "objectives": 4,
    **dict.fromkeys(("algorithms", "evaluation"), 5),
    "training": 6,
    **dict.fromkeys(("figures", "regression", "sklearn_api", "export", "explorer"), 7),
    "sweep": 8,
    "reproduce": 9,
    "commands": 10,
}
FILES = sorted(SOURCE.rglob("*.py"))
# Lines (wc -l) of each package, which may only fall; the single modules of vae are one. A new capability brings its own.
BUDGETS = {
    "vae": 2_558,
    "distributions": 1_561,
    "likelihoods": 578,
    "data": 1_507,
    "models": 1_029,
    "objectives": 631,
    "algorithms": 425,
    "evaluation": 1_996,
    "training": 2_449,
    "figures": 747,
    "explorer": 240,
    "sweep": 550,
    "reproduce": 4_095,
    "commands": 1_299,
}


def is_module(name):
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(path):
    """The modules of vae that a file imports: anywhere in it, within functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vae":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if node.module == "vae" or is_module(name) else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "vae")


def module_of(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_module_has_a_floor():
    assert {package_of(path) for path in FILES} - {"__init__"} == FLOORS.keys()


@pytest.mark.parametrize(
    "path", [p for p in FILES if package_of(p) != "__init__"], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_imports_go_down(path):
    own = package_of(path)
    for module in imports(path):
        other = module.split(".")[1]
        if other in (own, "__version__"):
            continue
        assert FLOORS[other] < FLOORS[own], f"{own} (floor {FLOORS[own]}) imports {module} (floor {FLOORS[other]})"


def test_no_module_imports_itself_by_way_of_others():
    graph = {module_of(path): {name for name in imports(path) if is_module(name)} for path in FILES}
    del graph["vae"]  # its public names are imported when they are first used
    assert graph["vae.training.run"] > {"vae.training.checks", "vae.training.gradients"}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_packages_keep_to_their_budgets():
    lines = dict.fromkeys(BUDGETS, 0)
    for path in FILES:
        package, *within = path.relative_to(SOURCE).parts
        count = len(path.read_text().splitlines())
        assert count <= 400, f"{path}: {count} lines"
        lines[package if within else "vae"] += count
    assert {package: count for package, count in lines.items() if count > BUDGETS[package]} == {}


def test_config_and_errors_import_no_torch_and_vae_imports_nothing():
    code = "import sys, vae, vae.config, vae.errors, vae.schema, vae.commands.train; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_every_public_name_resolves():
    import vae

    for name in vae.__all__:
        assert getattr(vae, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vae.nothing  # noqa: B018


def test_torchvision_is_imported_only_for_a_data_set_of_its():
    code = "import sys, vae; vae.load_data('digits'); vae.build('configs/mnist_d2.yaml'); "
    code += "print('torchvision' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE.parent.parent)
    assert result.stdout.strip() == "False", result.stderr
