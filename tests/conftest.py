"""What every test shares: one thread per process, no hub, GPU tests skipped visibly, reproducible random cases.

Also says which tests are slow, and why, and gives those that are not a budget of seconds.
"""

import os
import signal
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # has to be chosen before kernels are imported

TESTS = Path(__file__).parent

# Folder, file or function below tests/, and why it is slow. What stands here is marked with the reason and with `slow`.
SLOW = {
    "architecture/test_contracts.py": "packaging",
    "architecture/test_packaging.py": "packaging",
    "architecture/test_wheel.py": "packaging",
    "architecture/test_import_weight.py::test_packages_load_with_a_library_hidden": "packaging",
    "benchmarks/test_inflate.py": "benchmarks",
    "benchmarks/test_offload.py": "benchmarks",
    "benchmarks/test_predictions.py": "benchmarks",
    "cli/test_platforms.py": "packaging",
    "cli/test_train_draft.py": "training",
    "cli/test_vision.py": "pictures",
    "treeopt/training": "training",
    "treeopt/profiling/test_potential.py::test_sums_are_those_counted_one_by_one": "parity",
    "treeopt/profiling/test_profile_sampled.py": "statistical",
    "treespec/data/test_limits.py::test_a_table_that_unfolds_to_more_than_it_can_hold_is_refused": "limits",
    "treespec/data/test_templates.py::test_a_template_without_end_is_ended": "limits",
    "treespec/decoding/test_drafting.py": "statistical",
    "treespec/decoding/test_dynamic_tree.py::test_two_hundred_thousand_steps_follow_the_target": "statistical",
    "treespec/decoding/test_loop.py::test_sampled_output_is_reproducible_and_follows_the_targets_distribution": "statistical",
    "treespec/decoding/test_losslessness.py::test_sampled_trees_emit_the_targets_distribution": "statistical",
    "treespec/decoding/test_losslessness.py::test_a_tree_that_contains_another_accepts_no_less": "statistical",
    "treespec/decoding/test_losslessness.py::test_float32_agrees_with_float64": "statistical",
    "treespec/decoding/test_residual.py::test_chances_stay_chances_in_every_precision": "statistical",
    "treespec/decoding/test_sampled_decoding.py": "statistical",
    "treespec/evaluation/test_runner.py::test_behind_the_positions_of_the_draft_the_target_goes_on_alone": "parity",
    "treespec/evaluation/test_doubt.py": "statistical",
    "treespec/evaluation/test_processed_runs.py": "parity",
    "treespec/evaluation/test_runner.py::test_a_breakdown_charges_every_part_what_it_took": "loop",
    "treespec/evaluation/test_runner.py::test_children_beyond_the_drafts_support_are_the_most_likely_ones": "statistical",
    "treespec/evaluation/test_runner.py::test_half_precision_reports_the_logit_gap_of_each_divergence": "parity",
    "treespec/evaluation/test_report.py::test_intervals_hold_the_truth_about_as_often_as_they_say": "statistical",
    "treespec/evaluation/test_runner.py::test_sampled_children_leave_greedy_outputs_alone": "parity",
    "treespec/evaluation/test_runner.py::test_where_softmax_leaves_one_token_decoding_is_greedy": "parity",
    "treespec/integrations/test_tree_generate.py::test_text_is_written_by_the_text_model_inside_a_wrapper": "parity",
    "treespec/integrations/test_tree_generate.py::test_every_family_writes_what_generate_writes": "parity",
    "treespec/integrations/test_tree_generate.py::test_samples_have_the_distribution_of_generate": "statistical",
    "treespec/integrations": "parity",
    "treespec/files/test_journal.py::test_a_resumed_journal_knows_what_was_put": "limits",
    "treespec/kernels": "interpreted",
    "treespec/models/test_greedy_identity.py": "parity",
    "treespec/models/test_kernel_passes.py": "interpreted",
    "treespec/models/test_processed.py::test_whole_runs_follow_the_processed_distribution": "statistical",
    "treespec/models/offload/test_streaming.py::test_every_logit_is_that_of_the_module_as_it_was": "parity",
    "treespec/models/test_processed.py": "parity",
    "treespec/models/test_support.py": "parity",
    "treespec/models/test_vision.py": "pictures",
    "treespec/models/test_vision.py::test_kernels_read_pictures_as_the_module_does": "interpreted",
    "treespec/models/test_vision.py::test_sampled_output_follows_the_targets_distribution": "statistical",
    "treespec/models/test_vocabularies.py::test_outputs_are_generates_with_every_draft_and_without": "parity",
    "treespec/models/test_wrappers.py": "parity",
    "treespec/text/test_generation.py::test_texts_end_at_stop_strings_where_those_of_generate_end": "parity",
    "treespec/text/test_generation.py::test_pieces_add_up_to_the_text": "parity",
    "treespec/models/test_wrappers.py::test_kernels_run_the_text_inside": "interpreted",
    "test_docs.py": "loop",
    "test_examples.py": "loop",
    "test_extending.py": "loop",
    "test_python_page.py": "loop",
    "test_from_the_study.py::test_the_command_runs_as_it_stands_there": "loop",
    "cli/test_demo.py": "loop",
    "cli/test_modes.py": "loop",
    "cli/test_prompts.py": "loop",
    "cli/test_gguf.py": "loop",
    "cli/test_odd_pairs.py": "loop",
    "cli/test_process.py": "loop",
    "cli/test_run.py::test_a_text_ends_at_ctrl_c_with_its_figures_and_by_the_signal": "loop",
    "cli/test_run.py::test_an_answer_ends_at_ctrl_c_and_the_conversation_goes_on": "loop",
    "cli/test_rows.py": "loop",
    "treeopt/profiling/test_journals.py": "loop",
    "treeopt/test_demo.py": "loop",
    "treeopt/test_growmap_library.py": "library",
}
# One test of each kind that `make quick` runs although it stands in a slow place.
SMOKE = {
    "cli/test_odd_pairs.py::test_a_draft_of_few_positions_speculates_while_it_can",
    "cli/test_process.py::test_an_ignored_signal_stays_ignored",
    "cli/test_train_draft.py::test_a_distilled_draft_is_one_that_evaluate_takes",
    "treeopt/training/test_train.py::test_distilling_raises_the_first_choice_acceptance_of_a_weak_draft",
}
BUDGET = "TREEOPT_TEST_BUDGET_SECONDS"  # set by `make quick`; without it no test is too slow
BUDGET_SECONDS = float(os.environ.get(BUDGET) or "inf")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what shells start in the background; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("treeopt", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("treeopt")


@pytest.fixture
def device() -> str:
    """Where kernels run: a GPU where there is one, else Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def places(item: pytest.Item) -> list[str]:
    """Where a test stands below tests/: its function, its file and the folders around that."""
    if not item.path.is_relative_to(TESTS):
        return []
    path = item.path.relative_to(TESTS)
    function = getattr(item, "originalname", item.name)
    return [f"{path.as_posix()}::{function}", path.as_posix(), *(folder.as_posix() for folder in path.parents)]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare `make quick` the reading of files and folders that are slow as a whole."""
    if config.option.markexpr != "not slow" or not collection_path.is_relative_to(TESTS):
        return None
    place = collection_path.relative_to(TESTS).as_posix()
    return True if place in SLOW and not any(smoke.startswith((f"{place}/", f"{place}::")) for smoke in SMOKE) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        found = places(item)
        if not SMOKE.intersection(found):
            for reason in {SLOW[place] for place in found if place in SLOW}:
                item.add_marker(reason)
                item.add_marker("slow")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test that passed, is not marked slow, and took longer than the budget."""
    report = yield
    if call.when == "call" and report.passed and call.duration > BUDGET_SECONDS and not item.get_closest_marker("slow"):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {call.duration:.1f} s, more than the {BUDGET_SECONDS:g} s of a test that is not slow: "
            "make it faster, or enter it under SLOW in tests/conftest.py"
        )
    return report
