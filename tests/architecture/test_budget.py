"""Tests that are not marked slow have a budget of seconds, and the table of slow places names places that are there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parents[1]
CONTRIBUTING = TESTS.parent / "CONTRIBUTING.md"
SLEEPS = """
import time
import pytest

def test_quick():
    pass

def test_sleeps():
    time.sleep(0.3)

@pytest.mark.slow
def test_sleeps_and_says_so():
    time.sleep(0.3)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Runs the three tests above under a copy of the project's conftest.py."""
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n    slow: takes its time\n")
    pytester.makepyfile(SLEEPS)

    def with_budget(seconds):
        monkeypatch.setenv("TREEOPT_TEST_BUDGET_SECONDS", seconds)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider")

    return with_budget


@pytest.fixture
def conftest(pytestconfig):
    """The project's conftest.py, as pytest has loaded it."""
    return pytestconfig.pluginmanager.get_plugin(str(TESTS / "conftest.py"))


def test_a_test_over_the_budget_fails_and_is_named(run):
    result = run("0.1")
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.re_match_lines([r".*::test_sleeps took 0\.\d s, more than the 0\.1 s of a test that is not slow.*"])


@pytest.mark.parametrize("seconds", ["60", ""])
def test_within_the_budget_or_without_one_all_pass(run, seconds):
    run(seconds).assert_outcomes(passed=3)


def test_make_quick_sets_the_budget_that_contributing_tells(conftest):
    """As make would run it, whatever variables the Makefile is written with."""
    made = subprocess.run(["make", "--dry-run", "quick"], cwd=TESTS.parent, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (words,) = [words for words in map(shlex.split, made.stdout.splitlines()) if "pytest" in words]
    (told,) = re.findall(r"fails when a test that is not marked `slow` takes more than (\d+) seconds", CONTRIBUTING.read_text())
    assert f"{conftest.BUDGET}={told}" in words
    assert words[words.index("pytest") :].count("not slow") == 1
    assert any(word.startswith("--durations=") for word in words)


def test_every_slow_place_is_there(conftest):
    for place in [*conftest.SLOW, *conftest.SMOKE]:
        path, _, function = place.partition("::")
        assert (TESTS / path).exists(), place
        assert not function or f"def {function}(" in (TESTS / path).read_text(), place


def test_slow_places_are_marked_with_the_reason(request):
    for item in request.session.items:
        if "tests/treespec/kernels/" in item.path.as_posix():
            assert item.get_closest_marker("interpreted"), item.nodeid
            assert item.get_closest_marker("slow"), item.nodeid
