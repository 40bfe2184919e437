"""What every test shares: one thread per process, no hub, no word of other programs, GPU tests skipped visibly, reproducible random cases.

Also says which tests are slow, and why, and gives those that are not a budget of seconds.
"""

import gc
import importlib.util
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

from tests.reference.interpreter import quicken
from treespec.files import load

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # has to be chosen before kernels are imported
    if importlib.util.find_spec("triton"):
        quicken()

gc.set_threshold(50_000, 20, 100)  # as in `treeopt.cli.process`: what is imported and collected stays

TESTS = Path(__file__).parent

# Folder, file or function below tests/, and why it is slow. What stands here is marked with the reason and with `slow`.
SLOW = {
    "architecture/test_budget.py": "packaging",
    "architecture/test_circles.py": "packaging",
    "architecture/test_contracts.py": "packaging",
    "architecture/test_import_weight.py::test_packages_load_with_a_library_hidden": "packaging",
    "architecture/test_packaging.py": "packaging",
    "architecture/test_seams.py": "packaging",
    "architecture/test_sources.py": "packaging",
    "architecture/test_troubleshooting.py::test_every_quoted_message_is_said": "packaging",
    "architecture/test_troubleshooting.py::test_no_error_class_stands_elsewhere": "packaging",
    "architecture/test_wheel.py": "packaging",
    "benchmarks/test_audit.py": "benchmarks",
    "benchmarks/test_budgets.py": "benchmarks",
    "benchmarks/test_drafts.py": "benchmarks",
    "benchmarks/test_inflate.py": "benchmarks",
    "benchmarks/test_multi_gpu.py::test_all_stages_run_on_tiny_shapes_and_are_shown": "benchmarks",
    "benchmarks/test_multi_gpu.py::test_parts_are_slices_of_the_very_weights_of_the_whole": "benchmarks",
    "benchmarks/test_offload.py": "benchmarks",
    "benchmarks/test_predictions.py": "benchmarks",
    "cli/test_against.py": "loop",
    "cli/test_budgets.py": "loop",
    "cli/test_demo.py": "loop",
    "cli/test_door.py::test_tables_show_the_first_rows_and_say_how_many_there_are": "loop",
    "cli/test_gguf.py": "loop",
    "cli/test_heads.py": "loop",
    "cli/test_library.py": "loop",
    "cli/test_loop.py": "loop",
    "cli/test_main.py::test_an_unreachable_hub_is_found_out_before_the_slow_imports": "loop",
    "cli/test_modes.py": "loop",
    "cli/test_ngram.py": "loop",
    "cli/test_odd_pairs.py": "loop",
    "cli/test_offload.py": "loop",
    "cli/test_outputs.py::test_an_earlier_output_is_replaced": "loop",
    "cli/test_pictures.py::test_an_evaluation_writes_a_page": "loop",
    "cli/test_pictures.py::test_inspect_writes_the_pictures_of_each_kind_of_file": "drawing",
    "cli/test_platforms.py": "packaging",
    "cli/test_potential.py": "loop",
    "cli/test_process.py": "loop",
    "cli/test_processes.py": "loop",
    "cli/test_prompts.py": "loop",
    "cli/test_replay.py": "loop",
    "cli/test_require_lossless.py": "loop",
    "cli/test_rows.py": "loop",
    "cli/test_rules.py": "loop",
    "cli/test_run.py": "loop",
    "cli/test_tensor_parallel.py": "loop",
    "cli/test_train_draft.py": "training",
    "cli/test_tune.py": "loop",
    "cli/test_vision.py": "pictures",
    "test_docs.py": "loop",
    "test_examples.py": "loop",
    "test_extending.py": "loop",
    "test_from_the_study.py::test_the_command_runs_as_it_stands_there": "loop",
    "test_python_page.py": "loop",
    "test_scaling_page.py": "loop",
    "treeopt/exports/test_budgets.py::test_the_tree_of_a_budget_is_the_one_that_is_grown_by_hand": "loop",
    "treeopt/optimizer/test_objective.py::test_a_rest_that_depends_on_the_tree_is_priced_exactly_and_certified_against_every_tree": "statistical",
    "treeopt/optimizer/test_objective.py::test_choice_against_every_tree": "statistical",
    "treeopt/optimizer/test_replay.py": "parity",
    "treeopt/optimizer/test_replay.py::test_the_steps_are_those_of_decoding": "statistical",
    "treeopt/optimizer/test_selection.py": "statistical",
    "treeopt/optimizer/test_visits.py::test_known_chances_by_depth_are_recovered": "statistical",
    "treeopt/pictures/test_page.py": "drawing",
    "treeopt/pictures/test_page.py::test_a_browser_opens_the_page_and_nothing_sticks_out": "browser",
    "treeopt/pictures/test_pictures.py::test_a_picture_is_a_file_that_stands_alone_and_the_same_each_time": "drawing",
    "treeopt/profiles/test_categories.py": "loop",
    "treeopt/profiling/test_dynamic.py": "parity",
    "treeopt/profiling/test_forest.py": "parity",
    "treeopt/profiling/test_head_steps.py": "parity",
    "treeopt/profiling/test_journals.py": "loop",
    "treeopt/profiling/test_potential.py::test_sums_are_those_counted_one_by_one": "parity",
    "treeopt/profiling/test_profile_heads.py": "parity",
    "treeopt/profiling/test_profile_latency.py": "loop",
    "treeopt/profiling/test_profile_sampled.py": "statistical",
    "treeopt/profiling/test_shared.py": "parity",
    "treeopt/profiling/test_trace.py": "parity",
    "treeopt/test_api.py": "loop",
    "treeopt/test_demo.py": "loop",
    "treeopt/test_growmap_library.py": "library",
    "treeopt/training": "training",
    "treeopt/tuning/test_run.py": "loop",
    "treespec/data/test_limits.py::test_a_row_of_a_table_has_a_limit_too": "limits",
    "treespec/data/test_limits.py::test_a_table_that_unfolds_to_more_than_it_can_hold_is_refused": "limits",
    "treespec/data/test_prompts.py::test_stdlib_rows_are_held_out_modules": "limits",
    "treespec/data/test_prompts.py::test_stdlib_train_has_none_of_the_modules_of_stdlib": "limits",
    "treespec/data/test_stdlib.py": "limits",
    "treespec/data/test_templates.py::test_a_template_without_end_is_ended": "limits",
    "treespec/decoding/test_drafting.py": "statistical",
    "treespec/decoding/test_dynamic_tree.py::test_a_parent_wins_a_tie_with_its_child": "statistical",
    "treespec/decoding/test_dynamic_tree.py::test_two_hundred_thousand_steps_follow_the_target": "statistical",
    "treespec/decoding/test_engine.py::test_reading_one_step_late_changes_nothing": "parity",
    "treespec/decoding/test_engine.py::test_steps_that_are_read_late_end_where_the_draft_can_read_no_further": "limits",
    "treespec/decoding/test_heads.py::test_a_head_takes_the_steps_of_a_model_that_says_the_same": "parity",
    "treespec/decoding/test_loop.py::test_a_draft_is_never_asked_behind_its_last_position": "limits",
    "treespec/decoding/test_loop.py::test_sampled_output_is_reproducible_and_follows_the_targets_distribution": "statistical",
    "treespec/decoding/test_losslessness.py": "statistical",
    "treespec/decoding/test_residual.py": "statistical",
    "treespec/decoding/test_sampled_decoding.py": "statistical",
    "treespec/evaluation/test_chains.py": "loop",
    "treespec/evaluation/test_doubt.py": "statistical",
    "treespec/evaluation/test_processed_runs.py": "parity",
    "treespec/evaluation/test_report.py::test_intervals_hold_the_truth_about_as_often_as_they_say": "statistical",
    "treespec/evaluation/test_runner.py": "loop",
    "treespec/files/test_files.py::test_json_text_is_json": "limits",
    "treespec/files/test_journal.py::test_a_flipped_byte_is_never_another_value": "limits",
    "treespec/files/test_journal.py::test_a_resumed_journal_knows_what_was_put": "limits",
    "treespec/files/test_kinds.py::test_vast_pickles_are_refused": "limits",
    "treespec/integrations": "parity",
    "treespec/integrations/test_tree_generate.py::test_every_family_writes_what_generate_writes": "parity",
    "treespec/integrations/test_tree_generate.py::test_samples_have_the_distribution_of_generate": "statistical",
    "treespec/integrations/test_tree_generate.py::test_text_is_written_by_the_text_model_inside_a_wrapper": "parity",
    "treespec/kernels": "interpreted",
    "treespec/models/heads/test_decoding.py": "parity",
    "treespec/models/heads/test_embedded.py::test_outputs_with_the_embedded_head_are_those_of_the_target": "parity",
    "treespec/models/heads/test_embedded.py::test_the_embedded_head_is_right_more_often_than_the_embedded_draft": "parity",
    "treespec/models/ngram": "parity",
    "treespec/models/offload/test_streaming.py": "parity",
    "treespec/models/parallel/test_kernel_parts.py": "interpreted",
    "treespec/models/parallel/test_parity.py": "parity",
    "treespec/models/parallel/test_team.py": "loop",
    "treespec/models/test_calling.py": "parity",
    "treespec/models/test_generation.py::test_decoding_stops_where_generate_stops": "parity",
    "treespec/models/test_given.py": "parity",
    "treespec/models/test_greedy_identity.py": "parity",
    "treespec/models/test_kernel_passes.py": "interpreted",
    "treespec/models/test_loading.py::test_an_unreachable_hub_in_a_fresh_process": "loop",
    "treespec/models/test_processed.py": "parity",
    "treespec/models/test_processed.py::test_whole_runs_follow_the_processed_distribution": "statistical",
    "treespec/models/test_states.py::test_passes_by_kernels": "interpreted",
    "treespec/models/test_support.py": "parity",
    "treespec/models/test_tree_model.py::test_every_node_equals_its_path_run_alone": "parity",
    "treespec/models/test_vision.py": "pictures",
    "treespec/models/test_vision.py::test_kernels_read_pictures_as_the_module_does": "interpreted",
    "treespec/models/test_vision.py::test_sampled_output_follows_the_targets_distribution": "statistical",
    "treespec/models/test_vocabularies.py::test_outputs_are_generates_with_every_draft_and_without": "parity",
    "treespec/models/test_wrappers.py": "parity",
    "treespec/models/test_wrappers.py::test_kernels_run_the_text_inside": "interpreted",
    "treespec/text/test_generation.py": "parity",
    "treespec/trees/test_conversion.py::test_choices_of_too_many_ranks_are_refused": "limits",
    "treespec/trees/test_growmap.py::test_round_trip": "library",
    "treespec/trees/test_growmap.py::test_the_largest_tree_goes_both_ways": "limits",
}
# One test of each kind that `make quick` runs although it stands in a slow place.
SMOKE = {
    "cli/test_loop.py::test_the_whole_loop",
    "treeopt/pictures/test_page.py::test_a_page_of_one_result_alone_is_whole",
    "treespec/evaluation/test_chains.py::test_sampled_chains_take_their_own_steps",
    "treespec/decoding/test_losslessness.py::test_matching_emits_the_targets_distribution",
    "treespec/evaluation/test_runner.py::test_outputs_are_the_targets_own",
    "cli/test_process.py::test_an_ignored_signal_stays_ignored",
    "cli/test_train_draft.py::test_a_distilled_draft_is_one_that_evaluate_takes",
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


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave unsaid what else the machine of the tests does: notes on it would come and go."""
    monkeypatch.setattr(load, "others_running", lambda: None)


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


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of looks for garbage, also of the last one, at the end."""
    gc.freeze()


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
