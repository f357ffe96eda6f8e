"""Each kind of fault is met in three forms at least: as it was reported, and two siblings."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
_DATA, _SETTINGS, _STORES = (f"faults/test_{name}.py" for name in ("data", "settings", "stores"))
_EDGE, _RAW = "faults/test_edge.py", "data/test_ali_ccp_convert.py"
_LINE, _YAML = f"{_SETTINGS}::test_the_command_line[", f"{_SETTINGS}::test_files["

#: Kinds of faults, and what the identifiers of the tests that hold them begin with.
KINDS: dict[str, tuple[str, ...]] = {
    # data
    "a column in two files": (f"{_DATA}::test_a_column_in_two_files",),
    "rows of one user or item that differ": (f"{_DATA}::test_rows_of_one_key",),
    "a NUL byte in a token": (f"{_DATA}::test_a_nul_character",),
    "one file for several parts": (f"{_DATA}::test_one_file_for_two_parts",),
    "the same file as train and test": (
        f"{_DATA}::test_train_is_test",
        f"{_DATA}::test_parts_overlap",
    ),
    "impressions that stand several times": (f"{_DATA}::test_impressions_that_stand_several",),
    "repeated sample ids": (f"{_DATA}::test_numbers_of_rows", f"{_RAW}::test_rows_with_one_sample"),
    "a last line cut in its middle": (
        f"{_DATA}::test_a_last_line_without_an_end",
        f"{_DATA}::test_a_last_line_that_lacks_cells",
    ),
    "Inf or 1e39 in a number": (f"{_DATA}::test_a_number_",),
    "words taken as missing": (f"{_DATA}::test_words_for_nothing_are_tokens",),
    "numbers that no key names": (f"{_DATA}::test_numbers_that_no_key_names",),
    "a raw timestamp as a number": (f"{_DATA}::test_large_numbers_are_features",),
    "a feature that gives a label away": (f"{_DATA}::test_a_feature_that_gives_a_label_away",),
    "ids that only test has": (f"{_DATA}::test_ids_that_only_test_has",),
    "a log of clicks alone": (f"{_DATA}::test_a_log_of_clicks_alone",),
    "all pairs of a large rating file": (f"{_DATA}::test_more_pairs_than_memory",),
    "raw Ali-CCP: a field renamed": (f"{_DATA}::test_raw_files_of_ali_ccp[field",),
    "raw Ali-CCP: no common features": (f"{_DATA}::test_raw_files_of_ali_ccp[no common",),
    "raw Ali-CCP: labels swapped": (f"{_DATA}::test_raw_files_of_ali_ccp[labels",),
    "a field that a part lacks": (f"{_DATA}::test_a_field_that_a_part_lacks",),
    "labels that are each other's": (f"{_DATA}::test_labels_that_are_each_others",),
    "a cell too many": (f"{_DATA}::test_a_cell_too_many",),
    "a byte order mark, another encoding": (
        f"{_DATA}::test_a_byte_order_mark",
        f"{_DATA}::test_another_encoding",
    ),
    "a store zeroed, cut or swapped": (f"{_STORES}::test_a_damaged_store_",),
    "a source of the same size and time": (f"{_STORES}::test_a_source_of_the_same_size_and_time",),
    # settings
    "clip_grad_norm that ascends": (f"{_LINE}clipping",),
    "trained to nothing": (f"{_SETTINGS}::test_a_run_that_is_worse_than_a_constant_says_so",),
    "any text for booleans": (f"{_LINE}text for booleans",),
    "devices that aren't there": (f"{_LINE}devices",),
    "keys of RecBole's that do nothing": (f"{_LINE}keys of RecBole's",),
    "an unknown key in a file": (f"{_YAML}an unknown key",),
    "a key twice": (f"{_YAML}a key twice",),
    "numbers of YAML 1.1": (f"{_YAML}numbers of YAML 1.1",),
    "alias bombs and large values": (f"{_YAML}more than anybody means",),
    "wrong types": (f"{_YAML}wrong types", f"{_LINE}numbers"),
    # first use, side by side, the edge
    "two processes into one folder": (
        f"{_EDGE}::test_who_has_to_wait_says_so",
        f"{_EDGE}::test_two_first_conversions",
        "test_command_line.py::test_two_simulations_into_one_folder",
        "data/test_ali_ccp.py::test_two_processes_make_a_world_once",
    ),
    "an earlier simulation is kept": (
        f"{_EDGE}::test_no_room_for_another_simulation",
        "data/test_ali_ccp.py::test_a_world_that_was_left_half_made",
        f"{_RAW}::test_an_older_store_stays",
        "test_command_line.py::test_simulate_over_real_files",
    ),
    "a benchmark that goes on": (
        "experiment/test_benchmark.py::test_a_benchmark_goes_on_where_it_was_killed",
        "experiment/test_benchmark.py::test_a_result_whose_checkpoint_is_elsewhere_is_done",
        "experiment/test_benchmark.py::test_a_pair_is_done_when_both_checkpoints_are_there",
    ),
    "workers that outlive their parent": (
        "experiment/test_benchmark.py::test_the_runs_of_a_killed_benchmark_end_with_it",
        "experiment/test_benchmark.py::test_a_start_says_whom_it_waits_for",
        "experiment/test_benchmark.py::test_ctrl_c_stops_the_runs",
        "experiment/test_search.py::test_a_search_survives_a_kill_and_its_config_runs",
    ),
    "leftovers": (
        f"{_EDGE}::test_leftovers_go_once_their_process_is_no_more",
        f"{_EDGE}::test_the_socket_of_a_killed_benchmark",
        f"{_EDGE}::test_a_link_among_leftovers",
        f"{_EDGE}::test_nothing_is_left_of_what_fails",
    ),
    "a store that vanishes": (f"{_EDGE}::test_a_store_that_vanishes",),
    "a full disk": (f"{_EDGE}::test_no_room_for_",),
    "places nobody can write to": (
        f"{_EDGE}::test_a_place_that_cannot_be",
        f"{_EDGE}::test_a_simulation_where_it_cannot_be",
        f"{_EDGE}::test_nowhere_to_keep_what_is_compiled",
    ),
    "a second device": ("model/test_device.py::",),
    "mixed precision with scaler and clipping": ("model/test_precision.py::",),
    "a feature that a model leaves out": (f"{_EDGE}::test_features_that_a_model_leaves_out",),
    "a cut result.json": (f"{_EDGE}::test_a_result_that_is_cut",),
    "a truth that is no probability": (f"{_EDGE}::test_a_truth_", f"{_DATA}::test_truth_of_a_sim"),
    "RecBole's own functions": (f"{_EDGE}::test_recboles_",),
    "data without users": (f"{_EDGE}::test_metrics_per_user_without_users_say_so",),
    "a picture of one value": ("report/test_figures.py::TestLittleToShow::test_of_one_value",),
    "text that looks like Python": (f"{_SETTINGS}::test_a_folder_may_be_called_as_a_number",),
    "many runs in one process": (
        f"{_EDGE}::test_runs_in_one_process_leave_nothing_open",
        f"{_EDGE}::test_a_run_that_fails_closes_what_it_has_opened",
    ),
}


#: Faults by what they are in, and how many there are at least.
CORPUS: dict[str, tuple[int, tuple[str, ...]]] = {
    "published data sets": (
        150,
        ("faults/test_damaged_sources.py::", "data/test_coat.py::test_a_damaged"),
    ),
    "raw Ali-CCP": (50, (f"{_DATA}::test_raw_files", f"{_RAW}::test_malformed_lines")),
    "atomic files and tables": (120, (f"{_DATA}::", "faults/test_fuzzed.py::")),
    "semi-synthetic data": (4, ("data/test_semi_synthetic.py::test_a_rating_that_is_no_number",)),
    "settings": (60, (_LINE, _YAML)),
    "checkpoints": (
        10,
        ("train/test_checkpoint.py::test_an_entry", "serve/test_scorer.py::test_a_forged"),
    ),
    "stores": (8, (f"{_STORES}::test_a_",)),
    "progress of a training": (
        8,
        (
            "train/test_progress.py::test_a_damaged",
            "train/test_progress.py::test_an_entry",
            "train/test_progress.py::test_an_optimizer_that_could",
        ),
    ),
    "artefacts": (60, ("faults/test_artefacts.py::test_an_export",)),
    "requests": (60, ("faults/test_requests.py::", "serve/test_http.py::test_a_wrong")),
    "size and depth": (20, ("test_limits.py::",)),
    "predictions for score": (10, ("scoring/test_read.py::test_wrong_",)),
    "new rows for predict": (
        6,
        (
            "serve/test_predict.py::test_columns_that",
            "serve/test_scorer.py::test_what_cant_be_read",
        ),
    ),
}


class Collector:
    """Takes the identifiers of all tests that pytest collects."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.found.append(item.nodeid.removeprefix("tests/"))


@pytest.fixture(scope="module")
def collected() -> list[str]:
    starts = [*KINDS.values(), *(own for _, own in CORPUS.values())]
    files = {str(TESTS / start.partition("::")[0]) for kind in starts for start in kind}
    collector = Collector()
    with contextlib.redirect_stdout(io.StringIO()):
        options = ["--collect-only", "-q", "-n0", "-p", "no:cacheprovider"]
        assert pytest.main([*options, *sorted(files)], plugins=[collector]) == 0
    return collector.found


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_siblings(collected: list[str], kind: str) -> None:
    held = Counter(start for name in collected for start in KINDS[kind] if name.startswith(start))
    assert not set(KINDS[kind]) - held.keys(), "tests that are no more"
    assert held.total() >= 3, held


def test_the_corpus_has_grown(collected: list[str]) -> None:
    there = {
        what: sum(name.startswith(starts) for name in collected)
        for what, (_, starts) in CORPUS.items()
    }
    assert not {what: count for what, count in there.items() if count < CORPUS[what][0]}, there
    assert sum(there.values()) >= 300, there
