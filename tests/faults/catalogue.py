"""The catalogue of faults: each with the tests that show that nothing is lost, and a mutant that these tests must reject.

A mutant is a change of the source that removes the guard against the fault. It exists only here, and is applied to a copy.
"""

from dataclasses import dataclass

_RECORD, _DATABASE, _EXECUTION = "record", "record/database", "evaluation/execution"
_RUNNER, _EVALUATOR = "tests/evaluation/test_runner.py", "tests/evaluation/execution/test_evaluator.py"
_STORE, _OWN = "tests/record/test_store.py", "tests/faults/test_record_faults.py"


@dataclass(frozen=True)
class Mutant:
    """A text that occurs once in a file of the package, and what stands there in its place."""

    file: str
    guard: str
    instead: str


@dataclass(frozen=True)
class Fault:
    """A fault, its tests as pytest names them, and its mutant; or the reason why there is none.

    `environment` are variables of the tests' processes. `quick` faults have mutants that `make test` tries, too.
    """

    id: str
    what: str
    tests: tuple[str, ...] = ()
    mutant: Mutant | None = None
    reason: str = ""
    quick: bool = False


FAULTS = (
    Fault(
        "F01",
        "kill -9 at random times",
        (
            f"{_RUNNER}::TestInterruption::test_an_interrupted_run_continues_where_the_record_ends",
            f"{_RUNNER}::test_killed_at_twenty_random_moments_a_run_ends_with_the_same_rows",
        ),
        Mutant("evaluation/assignment.py", "for row in rows) - recorded.keys(),", "for row in rows),"),
    ),
    Fault(
        "F02",
        "death at every statement and commit",
        (f"{_OWN}::test_death_at_any_statement_leaves_the_state_before_or_after_a_change",),
        Mutant(f"{_DATABASE}/sqlite_file.py", "PRAGMA journal_mode = DELETE", "PRAGMA journal_mode = OFF"),
        quick=True,
    ),
    Fault(
        "F03",
        "resume with another batch size",
        (f"{_RUNNER}::TestInvariance::test_rows_are_the_same_at_every_batch_size",),
        Mutant("randomness.py", "np.frombuffer(self._key(name, sample)", "np.frombuffer(self._key(name, str(row))"),
    ),
    Fault(
        "F04",
        "resume by other code",
        (f"{_RUNNER}::TestIdentity::test_a_part_with_another_revision_makes_another_run",),
        Mutant("evaluation/identity.py", '"judge": judge.REVISION,', '"judge": 0,'),
    ),
    Fault(
        "F05",
        "full disk",
        (f"{_STORE}::test_a_full_disk_is_reported_and_loses_no_row",),
        Mutant(
            f"{_RECORD}/store.py",
            "except sa.exc.OperationalError as failure:",
            "except ZeroDivisionError as failure:",
        ),
    ),
    Fault(
        "F06",
        "a write fails half-way",
        (
            f"{_OWN}::test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other",
            "tests/report/test_report.py::test_a_failed_write_leaves_the_old_report",
        ),
        Mutant("files.py", "draft.replace(path)", "path.write_bytes(draft.read_bytes())"),
        quick=True,
    ),
    Fault(
        "F07",
        "power is lost",
        (
            f"{_OWN}::test_what_was_committed_is_on_the_disk_before_anything_else_happens",
            f"{_OWN}::test_a_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one",
        ),
        Mutant(f"{_DATABASE}/sqlite_file.py", "PRAGMA synchronous = FULL", "PRAGMA synchronous = OFF"),
    ),
    Fault(
        "F08",
        "a paused worker returns after another has finished",
        (f"{_STORE}::test_appending_twice_changes_nothing",),
        Mutant(
            f"{_DATABASE}/outcomes.py",
            "recorded.get(sample, _ERROR) == _ERROR for sample",
            "recorded.get(sample, _ERROR) is not None for sample",
        ),
        quick=True,
    ),
    Fault(
        "F09",
        "several writers at once",
        ("tests/record/test_contract.py::TestRecord::test_two_programs_may_create_register_and_append_at_once",),
        Mutant(f"{_DATABASE}/sqlite_file.py", "PRAGMA busy_timeout = 60000", "PRAGMA busy_timeout = 0"),
    ),
    Fault(
        "F10",
        "the same command twice at once; another model under the same name",
        (
            f"{_RUNNER}::TestIdentity::test_another_checkpoint_under_the_same_name_is_another_run",
            f"{_RUNNER}::test_two_processes_at_once_end_with_one_complete_record",
        ),
        Mutant(
            f"{_DATABASE}/statements.py",
            "connection.execute(_insert_into(connection, table).on_conflict_do_nothing(), rows)",
            "connection.execute(_insert_into(connection, table), rows)",
        ),
    ),
    Fault(
        "F11",
        "SIGINT, SIGTERM, SIGHUP",
        (f"{_EVALUATOR}::test_nothing_outlives_the_command",),
        Mutant("__main__.py", 'for name in ("SIGTERM", "SIGHUP"):', "for name in ():"),
    ),
    Fault(
        "F12",
        "a model that kills its process",
        (f"{_EVALUATOR}::TestOwnFilesThatFail::test_a_crash_leaves_on_record_what_was_finished",),
        Mutant(f"{_EXECUTION}/guardian.py", "    _exit_as(status)\n\n\ndef _wait", "    os._exit(0)\n\n\ndef _wait"),
    ),
    Fault(
        "F13",
        "a model that hangs",
        (
            f"{_EVALUATOR}::TestOwnFilesThatFail::test_a_factory_that_hangs_is_stopped_too",
            "tests/evaluation/execution/test_channel.py::test_a_limit_is_one_for_the_whole_message",
        ),
        Mutant(f"{_EXECUTION}/channel.py", "deadline = None if limit is None else time.monotonic() + limit", "deadline = None"),
    ),
    Fault(
        "F14",
        "the command dies, its children live",
        (
            f"{_EVALUATOR}::test_nothing_outlives_the_command",
            f"{_EVALUATOR}::test_a_model_that_forks_and_dies_is_noticed_at_once_and_leaves_nothing",
        ),
        Mutant(f"{_EXECUTION}/guardian.py", "            _end_descendants(worker)\n", "            pass\n"),
    ),
    Fault(
        "F15",
        "a truncated database",
        (f"{_STORE}::test_an_empty_file_is_refused_and_not_changed", f"{_STORE}::test_a_truncated_database_is_refused"),
        Mutant(
            f"{_DATABASE}/sqlite_file.py",
            'if len(header) < 100 or not header.startswith(b"SQLite format 3\\0"):',
            "if False:",
        ),
    ),
    Fault(
        "F16",
        "flipped bits in a database",
        ("tests/record/test_checksums.py::test_whatever_is_changed_or_lost_is_named",),
        Mutant(
            f"{_DATABASE}/tallies.py",
            "if recorded != str(total(shard.checksum for shard in shards.get(run, ()))):",
            "if False:",
        ),
    ),
    Fault(
        "F17",
        "a lost journal",
        (f"{_OWN}::test_a_lost_journal_is_noticed",),
        Mutant(f"{_DATABASE}/evaluations.py", "if listed is not None and listed != [", "if listed is None and listed != ["),
    ),
    Fault(
        "F18",
        "an earlier, a later and no schema version",
        (
            f"{_STORE}::test_another_schema_version_is_refused",
            f"{_STORE}::test_a_database_of_an_earlier_schema_version_is_migrated_and_keeps_its_rows",
            f"{_STORE}::test_damaged_outcomes_of_an_earlier_version_are_named_and_nothing_is_changed",
        ),
        Mutant(f"{_DATABASE}/migrations.py", "if version != schema.SCHEMA_VERSION:", "if False:"),
    ),
    Fault(
        "F19",
        "a database that cannot be written; a server that restarts, a connection that is lost",
        (
            f"{_STORE}::test_a_missing_folder_and_a_folder_as_file_are_refused",
            "tests/record/test_contract.py::TestServer::test_after_a_restart_of_the_server_the_same_store_works_on",
            "tests/record/test_contract.py::TestServer::test_a_connection_lost_within_a_transaction_leaves_nothing_of_it",
        ),
        Mutant(f"{_DATABASE}/sqlite_file.py", "    if not path.parent.is_dir():\n", "    if False:\n"),
    ),
    Fault(
        "F20",
        "another file in place of a checkpoint",
        ("tests/networks/test_weights.py::test_a_file_that_is_not_a_checkpoint_is_refused_with_a_description_of_it",),
        Mutant("networks/weights.py", 'return "an HTML page"', 'return "a checkpoint"'),
    ),
    Fault(
        "F21",
        "a flipped bit in weights",
        ("tests/networks/test_weights.py::test_truncation_and_a_single_flipped_bit_are_detected",),
        Mutant("networks/entries.py", "if digest != entry.checkpoint.sha256:", "if False:"),
    ),
    Fault(
        "F22",
        "weights of the right hash that do not fit",
        ("tests/networks/test_weights.py::test_weights_that_do_not_fit_are_refused_by_name_even_under_the_right_hash",),
        Mutant("networks/weights.py", "not bool(tensor.to(expected[key].dtype).isfinite().all())", "False"),
    ),
    Fault(
        "F23",
        "a checkpoint is replaced between its hash and its loading",
        ("tests/faults/test_checkpoint_faults.py::test_the_bytes_that_are_loaded_are_those_that_were_hashed",),
        Mutant(
            "networks/entries.py",
            "load_weights(module, content, str(path))",
            "load_weights(module, path.read_bytes(), str(path))",
        ),
    ),
    Fault(
        "F24",
        "a download that is cut, redirected or missing",
        ("tests/networks/test_converting.py::test_a_published_file_is_fetched_whole_or_refused_with_the_reason",),
        Mutant("networks/converting.py", "    _require_size(len(content), url)\n    return content\n", "    return content\n"),
    ),
    Fault(
        "F25",
        "YAML with more than one meaning",
        ("tests/config/test_strict_yaml.py::test_ambiguous_yaml_is_refused_with_its_position",),
        Mutant("config/strict_yaml.py", "            if kind is not None:\n", "            if False:\n"),
        quick=True,
    ),
    Fault(
        "F26",
        "wrong data: range, labels, pickles, links, pipes, archives that expand",
        (
            "tests/data/test_npz.py::test_malformed_npz_files_are_refused_with_name_and_reason",
            "tests/data/test_npz.py::test_an_archive_that_expands_without_bound_is_refused_unread",
            "tests/data/test_folders.py::test_a_link_that_leads_to_a_folder_again_is_refused",
        ),
        Mutant("data/arrays.py", "if images.size and (images.min() < 0 or images.max() > 1):", "if False:"),
    ),
    Fault(
        "F27",
        "logits that are not finite",
        (
            "tests/test_judge.py::test_a_model_with_logits_of_not_a_number_on_a_clean_image_is_refused",
            "tests/test_judge.py::test_logits_that_are_not_finite_under_attack_are_broken_and_flagged",
        ),
        Mutant("judge.py", "if not all(score.finite):", "if False:"),
    ),
    Fault(
        "F28",
        "probabilities in place of logits",
        ("tests/checks/test_caveats.py::test_probabilities_are_named",),
        Mutant("checks/caveats.py", "if are_probabilities(logits).float().mean().item() > SHARE:", "if False:"),
    ),
    Fault(
        "F29",
        "outputs of a wrong shape or type",
        ("tests/model/test_model.py::test_output_that_is_no_logits_is_refused_with_the_reason",),
        Mutant(
            "model/forward.py",
            "if (reason := refusal(logits, len(x))) is not None:",
            "if (reason := refusal(logits, len(x))) is NotImplemented:",
        ),
    ),
    Fault(
        "F30",
        "a random model",
        ("tests/model/test_randomness.py::test_randomness_of_any_source_is_detected",),
        Mutant("model/model.py", "random = self._varies_on_any(images, draws)", "random = False"),
    ),
    Fault(
        "F31",
        "answers that depend on the batch or on earlier ones",
        (
            "tests/checks/test_batch_dependence.py::test_answers_that_depend_on_the_batch_are_found",
            "tests/checks/test_checks.py::test_logits_that_depend_on_the_batch_or_on_earlier_calls_are_a_doubt",
        ),
        Mutant("checks/state.py", "                differ[rows[changed]] = True\n", "                pass\n"),
    ),
    Fault(
        "F32",
        "a model that notices that it is attacked, or hides its gradients",
        (
            "tests/checks/test_checks.py::test_logits_that_change_with_gradients_enabled_are_a_doubt",
            "tests/checks/test_checks.py::test_operations_that_hide_gradients_and_unseen_ones_are_named",
        ),
        Mutant("checks/state.py", "return [STATE.finding(share, 0.0,", "return [STATE.finding(0.0, 0.0,"),
    ),
    Fault(
        "F33",
        "an attack that leaves the ball or lies",
        ("tests/test_judge.py::test_proposals_that_are_not_images_inside_the_ball_are_invalid",),
        Mutant(
            "judge.py",
            "valid = measured.finite & measured.in_range & (measured.inside | attack.minimum_norm)",
            "valid = measured.finite",
        ),
    ),
    Fault(
        "F34",
        "no image right, or all; one image",
        ("tests/test_statistics.py::test_the_interval_at_zero_ends_above_zero",),
        Mutant("statistics.py", "centre = (n * mean + 1) / size", "centre = (n * mean) / size"),
    ),
    Fault(
        "F35",
        "memory runs out",
        (f"{_RUNNER}::TestMemory::test_running_out_of_memory_halves_the_batches_and_changes_no_row",),
        Mutant(
            f"{_EXECUTION}/tasks.py",
            "self.to_beat)\n        except (torch.OutOfMemoryError, MemoryError):",
            "self.to_beat)\n        except ZeroDivisionError:",
        ),
    ),
    Fault(
        "F36",
        "a GPU is lost: errors of its context are tried again, and no row of it counts",
        ("tests/evaluation/test_passing_errors.py::test_a_run_whose_errors_have_passed_equals_one_without_any",),
        Mutant(
            "evaluation/runner.py",
            "for sample, outcome in recorded.items() if sample not in failed}",
            "for sample, outcome in recorded.items()}",
        ),
    ),
    Fault("F37", "CPU and GPU, TF32 and bfloat16 differ", reason="unmeasurable here: needs a GPU"),
    Fault(
        "F38",
        "clocks that jump",
        (
            "tests/record/test_newest.py::test_a_model_that_fell_is_a_regression_under_every_clock",
            "tests/record/test_contract.py::TestRecord::test_the_newest_evaluation_is_the_one_asked_for_last",
        ),
        Mutant(
            f"{_RECORD}/evaluation.py",
            'return self.position, self.asked if not self.position else "", self.id',
            "return 0, self.asked, self.id",
        ),
    ),
    Fault(
        "F39",
        "locale, umask, odd paths, no HOME, optimised Python",
        (f"{_OWN}::test_optimised_python_and_strange_surroundings_change_nothing",),
        Mutant(
            "evaluation/runner.py",
            'if request.tile_size < 1:\n        raise UsageError(f"--tile {request.tile_size}: must be at least 1")',
            "assert request.tile_size >= 1",
        ),
    ),
    Fault(
        "F40",
        "hostile text in every field",
        (
            "tests/cli/test_progress.py::test_a_models_name_can_neither_colour_nor_control_the_terminal",
            "tests/cli/test_main.py::test_a_message_cannot_control_the_terminal",
            "tests/report/test_report.py::test_hostile_names_add_no_element_attribute_or_link_to_a_page",
        ),
        Mutant(
            "formatting.py",
            'return "".join(character if character.isprintable() or character in keep else "?" for character in text)',
            "return text",
        ),
    ),
    Fault(
        "F41",
        "a report while an evaluation runs",
        (
            "tests/record/test_contract.py::TestRecord::test_readers_see_whole_transactions_while_another_writes",
            "tests/record/test_summary.py::test_missing_invalid_and_error_rows_leave_an_attack_without_accuracy",
        ),
        Mutant(
            f"{_RECORD}/derivation.py",
            "lack = _find_lack(tally, counts, stage, index, spec, cascaded=label in cascade)",
            'lack = ""',
        ),
    ),
    Fault(
        "F42",
        "a large record",
        ("tests/report/test_report.py::test_forty_models_take_a_moment",),
        Mutant(
            f"{_RECORD}/derivation.py",
            "    spec = evaluation.spec\n    cascade = cascaded_attacks(spec)\n",
            "    spec = evaluation.spec\n    sum(range(50_000_000))\n    cascade = cascaded_attacks(spec)\n",
        ),
    ),
    Fault(
        "F43",
        "a check that cannot tell",
        (
            "tests/regression/test_gate.py::test_a_model_without_evaluation_is_undecided",
            "tests/regression/test_comparability.py::test_an_evaluation_that_is_not_comparable_is_undecided_and_the_difference_named",
        ),
        Mutant("regression/gate.py", "Decision.UNDECIDED: 3}[self]", "Decision.UNDECIDED: 0}[self]"),
    ),
    Fault(
        "F44",
        "false alarms of the check, and its power",
        ("tests/regression/test_simulated_rates.py",),
        Mutant("regression/gate.py", "if test.p < alpha else", "if test.p < 50 * alpha else"),
    ),
)
