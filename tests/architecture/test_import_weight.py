"""Light modules stay light, and whole packages do without the libraries that they have no business with."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "tokenizers", "scipy", "pandas", "pyarrow", "matplotlib", "jinja2")

SETTINGS = [
    "treespec.data.slices",
    "treespec.decoding.rules",
    "treespec.decoding.plans",
    "treespec.decoding.drafting",
    "treespec.decoding.drafters",
    "treespec.decoding.verifiers",
    "treespec.evaluation.settings",
    "treespec.models.offload",
    "treespec.text.settings",
    "treeopt.profiling.settings",
    "treeopt.training.settings",
    "treeopt.tuning.settings",
]

WITHOUT_HEAVY = [
    *SETTINGS,
    "treespec",
    "treespec.errors",
    "treespec.printable",
    "treespec.tables",
    "treespec.files.fields",
    "treespec.files",
    "treespec.files.joined",
    "treespec.files.processes",
    "treespec.files.reading",
    "treespec.files.spreading",
    "treespec.files.writing",
    "treespec.trees.tree",
    "treespec.trees.drawing",
    "treespec.trees.growmap",
    "treespec.files.provenance",
    "treespec.files.pt",
    "treespec.data.stdlib",
    "treespec.embedded",
    "treespec.evaluation.drawing",
    "treespec.evaluation.report",
    "treespec.text",
    "treespec.text.generated",
    "treeopt",
    "treeopt.growmap_library",
    "treeopt.growmaps",
    "treeopt.profiles.potential",
    "treeopt.profiles",
    "treeopt.profiles.drawing",
    "treeopt.profiles.acceptance",
    "treeopt.profiles.latency",
    "treeopt.profiles.ratio",
    "treeopt.profiles.trace",
    "treeopt.training.record",
    "treeopt.optimizer",
    "treeopt.optimizer.best_first",
    "treeopt.optimizer.dynamic_program",
    "treeopt.optimizer.objective",
    "treeopt.optimizer.replay",
    "treeopt.optimizer.replay_report",
    "treeopt.optimizer.search",
    "treeopt.pictures.canvas",
    "treeopt.pictures.page",
    "treeopt.pictures.writing",
    "treeopt.cli.main",
]
HIDDEN = {
    "matplotlib": ("treeopt.optimizer", "treeopt.pictures", "treeopt.profiles"),
    "torch": ("treeopt.optimizer", "treeopt.pictures", "treeopt.profiles"),
    "transformers": ("treespec.decoding", "treespec.trees"),
    "triton": ("treespec.decoding", "treespec.data", "treespec.evaluation", "treeopt.profiling"),
}
LOADED = """
import importlib, sys
before = set()
for module in sys.argv[1:]:
    importlib.import_module(module)
    found = {name.partition('.')[0] for name in sys.modules}
    print(module, *sorted(found - before))
    before = found
"""
WITHOUT = """
import importlib, sys
sys.modules[sys.argv[1]] = None  # an import of it raises ImportError
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


def python(code, *arguments):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_of(package):
    """The package and every module below it."""
    folder = ROOT / package.replace(".", "/")
    return [package, *(found.name for found in pkgutil.walk_packages([str(folder)], f"{package}."))]


def loaded_by(modules):
    """Module -> top-level names that it brings into a fresh interpreter, beyond what those before it have brought."""
    return {module: set(names) for module, *names in map(str.split, python(LOADED, *modules).splitlines())}


def test_light_modules_load_nothing_heavy():
    found = loaded_by(WITHOUT_HEAVY)
    assert set(found) == set(WITHOUT_HEAVY)
    assert {module: names & set(HEAVY) for module, names in found.items() if names & set(HEAVY)} == {}


def test_settings_and_errors_load_without_numpy_and_trees_do_not():
    found = loaded_by(["treespec.errors", "treespec.tables", *SETTINGS, "treespec.trees.drawing", "treespec.trees.growmap"])
    assert [module for module, names in found.items() if "numpy" in names] == ["treespec.trees.growmap"], "what is loaded does not show"


@pytest.mark.parametrize(("library", "packages"), HIDDEN.items(), ids=HIDDEN)
def test_packages_load_with_a_library_hidden(library, packages):
    modules = [module for package in packages for module in modules_of(package)]
    assert len(modules) > 10
    python(WITHOUT, library, *modules)


def test_a_hidden_library_cannot_be_imported():
    with pytest.raises(AssertionError, match="import of torch halted"):
        python(WITHOUT, "torch", "treespec.decoding.sampling")


def test_public_names_of_treespec_are_all_there():
    import treespec

    for name in treespec.__all__:
        assert getattr(treespec, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Tree'"):
        _ = treespec.Tree
