"""Light modules stay light: they load without torch, transformers and the other slow libraries."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "tokenizers", "scipy", "pandas", "pyarrow")

SETTINGS = [
    "treespec.data.slices",
    "treespec.decoding.rules",
    "treespec.decoding.plans",
    "treespec.decoding.drafting",
    "treespec.decoding.drafters",
    "treespec.decoding.verifiers",
    "treespec.evaluation.settings",
    "treespec.models.offload",
    "treeopt.profiling.settings",
    "treeopt.training.settings",
]

WITHOUT_HEAVY = [
    *SETTINGS,
    "treespec",
    "treespec.errors",
    "treespec.files.fields",
    "treespec.files",
    "treespec.files.reading",
    "treespec.files.writing",
    "treespec.trees.tree",
    "treespec.trees.growmap",
    "treespec.files.provenance",
    "treespec.files.pt",
    "treespec.data.stdlib",
    "treespec.embedded",
    "treespec.evaluation.report",
    "treeopt",
    "treeopt.growmap_library",
    "treeopt.growmaps",
    "treeopt.profiles.potential",
    "treeopt.profiles",
    "treeopt.profiles.acceptance",
    "treeopt.profiles.latency",
    "treeopt.profiles.ratio",
    "treeopt.training.record",
    "treeopt.optimizer",
    "treeopt.optimizer.best_first",
    "treeopt.optimizer.dynamic_program",
    "treeopt.optimizer.estimation",
    "treeopt.optimizer.objective",
    "treeopt.optimizer.search",
    "treeopt.cli.main",
]


def loaded_by(module):
    """Top-level names in sys.modules after importing a module in a fresh interpreter."""
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", WITHOUT_HEAVY)
def test_loads_nothing_heavy(module):
    assert not loaded_by(module) & set(HEAVY)


@pytest.mark.parametrize("module", ["treespec.errors", *SETTINGS])
def test_settings_and_errors_load_without_numpy(module):
    assert "numpy" not in loaded_by(module)


def test_public_names_of_treespec_are_all_there():
    import treespec

    for name in treespec.__all__:
        assert getattr(treespec, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Tree'"):
        _ = treespec.Tree
