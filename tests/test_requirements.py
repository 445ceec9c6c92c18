"""The faults of other trainers that ours must not have, and the tests that show it.

Each entry: what ours does, the tests that cover it, and what is still without a test.
An entry with something open is reported as skipped, with that text, never as passed.
"""

import ast
import functools
import pathlib
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]


class Requirement(NamedTuple):
  what: str
  tests: tuple[str, ...] = ()
  open: str = ""


REQUIREMENTS = {
  1: Requirement(
    "sampler and trainer give a token the same log-prob",
    (
      "sampling/decode_test.py::test_token_for_token_like_a_plain_sampler",
      "training/logprobs_test.py::test_rollout_scores_equal_the_samplers",
    ),
  ),
  2: Requirement(
    "a rollout says which weights drew it; import accepts no misfit",
    (
      "trees_test.py::test_one_ulp_of_any_weight_changes_the_checksum",
      "trees_test.py::test_moved_weights_change_the_checksum",
      "multidevice/meshes_test.py::test_the_checksum_does_not_depend_on_the_sharding",
      "sampling/decode_test.py::test_the_rollout_says_which_weights_drew",
      "weights/gguf_test.py::test_tensors_that_do_not_fit_are_named",
      "weights/hf_test.py::test_tensors_that_do_not_fit_are_named",
    ),
  ),
  3: Requirement(
    "masks come from lengths, never from token values",
    (
      "sampling/decode_test.py::test_padding_may_be_the_stop_token",
      "sampling/decode_test.py::test_first_token_may_stop",
      "sampling/decode_test.py::test_nothing_stops_without_stop_ids",
    ),
  ),
  4: Requirement(
    "positions are explicit",
    (
      "models/transformer_test.py::test_padding_and_batch_mates_change_nothing",
      "models/transformer_test.py::test_segments_isolate_packed_sequences",
      "models/transformer_test.py::test_shared_prompts_and_own_parts_are_one_forward",
      "data/packing_test.py::test_any_groups_see_their_own_sequence_and_nothing_else",
      "training/logprobs_test.py::test_a_shared_prompt_is_a_prompt_before_each_answer",
      "training/logprobs_test.py::test_any_packing_gives_the_same_scores",
    ),
  ),
  5: Requirement(
    "one gradient, however the batch is split",
    (
      "objectives/policy_gradient_test.py::"
      "test_splits_of_the_batch_give_one_loss_and_gradient",
      "objectives/reduce_test.py::test_packing_changes_nothing",
      "objectives/sft_test.py::test_splits_add_up",
      "training/step_test.py::test_any_split_into_microbatches_gives_one_gradient",
      "training/minibatches_test.py::test_denominators_by_hand",
      "multidevice/meshes_test.py::test_loss_and_gradient_are_those_of_one_device",
      "multidevice/processes_test.py::test_two_processes_are_one",
    ),
  ),
  6: Requirement(
    "KL estimators have the documented sign, value and gradient",
    (
      "objectives/kl_test.py::WorkedNumbersTest::test_expected_value",
      "objectives/kl_test.py::test_expected_gradients_against_the_exact_divergences",
      "objectives/kl_test.py::test_gradient_of_one_token_by_finite_differences",
      "objectives/kl_test.py::test_descent_brings_the_policy_to_the_reference",
    ),
  ),
  7: Requirement(
    "ids in, ids out",
    (
      "data/tokenizer_test.py::test_char_round_trip",
      "data/tokenizer_test.py::test_byte_level_round_trip",
      "data/tokenizer_test.py::test_ids_are_kept_where_text_would_drift",
      "parity/smollm2_test.py::test_token_ids",
    ),
  ),
  8: Requirement(
    "a reward function cannot hang or kill the run",
    (
      "rewards/pool_test.py::test_bad_items_cost_only_themselves",
      "rewards/pool_test.py::test_batch_deadline_bounds_many_slow_items",
    ),
  ),
  9: Requirement(
    "a gold that does not parse is dropped and counted, never matched",
    (
      "data/problems_test.py::test_gsm8k_folder",
      "data/problems_test.py::test_math500_folder_drops_golds_without_meaning",
      "rewards/accuracy_test.py::VerifierTest::test_math_with_gold_and_answer_exchanged",
      "rewards/accuracy_test.py::VerifierTest"
      "::test_math_gold_that_does_not_parse_is_never_matched",
    ),
  ),
  10: Requirement(
    "a resumed run equals an unbroken one bit for bit",
    (
      "resume_test.py::test_killed_and_then_stopped",
      "resume_test.py::test_killed_in_every_phase",
      "resume_test.py::test_ctrl_c",
      "resume_test.py::test_damaged_last_checkpoint",
      "resume_test.py::test_full_disk",
      "resume_test.py::test_all_that_a_stage_remembers_is_kept",
      "stages/collect_test.py::test_a_checkpoint_makes_the_next_step_the_same",
      "stages/reference_test.py::test_a_checkpoint_carries_it",
      "checkpoints_test.py::test_kill_in_the_middle_of_a_save",
      "data/stream_test.py::StreamTest::test_a_step_needs_no_history",
      "metrics_test.py::test_truncate_goes_back_to_a_checkpoint",
    ),
  ),
  11: Requirement(
    "no array of tokens times vocabulary",
    (
      "training/logprobs_test.py"
      "::test_memory_does_not_grow_with_tokens_times_vocabulary",
      "training/logprobs_test.py::test_only_masked_tokens_go_through_the_vocabulary",
      "multidevice/meshes_test.py::test_the_work_is_split",
    ),
  ),
  12: Requirement(
    "nothing compiles after step 0, whatever the lengths",
    (
      "train_test.py::test_nothing_compiles_after_the_first_step",
      "training/step_test.py::test_update_compiles_once_and_donates",
      "training/minibatches_test.py::test_any_lengths_fit_one_shape",
    ),
    open="the plan of memory before step 0",
  ),
  13: Requirement(
    "a prompt is prefilled once for its group; idle slot-steps are counted",
    (
      "sampling/decode_test.py::test_token_for_token_like_a_plain_sampler",
      "sampling/decode_test.py::test_refill_needs_fewer_steps_than_waves",
    ),
  ),
  14: Requirement(
    "a group of equal rewards gives advantages of exactly 0",
    (
      "objectives/advantages_test.py::test_equal_rewards_give_exactly_zero",
      "training/step_test.py::test_update_with_nothing_to_train_on_is_no_update",
      "stages/grpo_test.py::test_groups_without_a_signal_are_counted",
      "stages/collect_test.py::test_groups_without_a_signal_are_replaced",
      "stages/collect_test.py::test_the_bound_holds_and_others_fill_the_batch",
      "stages/advantages_test.py::test_points_for_lengths_are_a_part_of_their_own",
      "train_test.py::test_every_line_has_the_names_that_scripts_read",
    ),
  ),
  15: Requirement(
    "truncated answers are kept, masked or penalised as asked, and counted",
    (
      "objectives/reduce_test.py::TestTruncated::test_keep",
      "objectives/reduce_test.py::TestTruncated"
      "::test_mask_drops_tokens_and_keeps_the_baseline",
      "objectives/reduce_test.py::TestTruncated::test_penalise_lowers_the_reward_first",
      "training/minibatches_test.py::test_denominators_by_hand",
      "training/minibatches_test.py::test_a_part_in_which_all_is_masked",
      "report_test.py::test_warnings_stand_at_the_top",
    ),
  ),
  16: Requirement(
    "a score can be made again",
    (
      "train_test.py::test_every_answer_is_kept",
      "train_test.py::test_config_json_is_enough_to_run_it_again",
      "evaluate/evaluation_test.py::test_stopped_or_not_it_gives_the_same_files",
      "evaluate/settings_test.py::test_a_checkpoint_is_asked_as_it_was_in_training",
    ),
  ),
  17: Requirement(
    "the quick start reaches its figure (`.ci/run` runs it)",
    ("quickstart_figure_test.py::test_each_miss_is_said",),
  ),
  18: Requirement(
    "several hosts without a controller",
    (
      "multidevice/processes_test.py::test_two_processes_are_one",
      "multidevice/processes_test.py::test_processes_agree_bit_for_bit",
      "launch/local_processes_test.py::test_each_process_is_told_its_place",
    ),
  ),
  19: Requirement(
    "an install brings no torch, tensorflow or vLLM",
    (
      "dependencies_test.py::test_an_install_brings_no_other_framework",
      "dependencies_test.py::test_importing_every_module_loads_no_other_framework",
    ),
  ),
  20: Requirement(
    "a closed list of shapes; temperature and the like are traced",
    (
      "sampling/decode_test.py::test_changing_controls_and_keys_compiles_nothing",
      "sampling/logits_test.py::test_changing_controls_compiles_nothing",
      "training/logprobs_test.py::test_temperature_is_traced",
      "train_test.py::test_nothing_compiles_after_the_first_step",
      "training/step_test.py::test_update_compiles_once_and_donates",
    ),
  ),
  21: Requirement(
    "a draw is a function of seed, step, problem, sample and position",
    (
      "prng_test.py::test_keys_differ_by_seed_purpose_and_step",
      "stages/grpo_test.py::test_the_order_of_rows_is_a_function_of_seed_stage_and_step",
      "stages/asking_test.py::test_draws_are_a_function_of_seed_stage_and_rollout",
      "train_test.py::test_settings_that_may_differ_change_no_number",
      "sampling/decode_test.py::test_slots_and_queue_order_change_nothing",
      "sampling/decode_test.py::test_a_subset_alone_draws_the_same",
      "sampling/decode_test.py::test_draws_differ_by_step_problem_and_sample",
      "multidevice/meshes_test.py::test_sampling_is_that_of_one_device_token_for_token",
      "multidevice/processes_test.py::test_two_processes_sample_what_one_samples",
    ),
  ),
  22: Requirement(
    "samples can be seen: in JSONL, on the terminal, on the page",
    (
      "train_test.py::test_every_answer_is_kept",
      "metrics_test.py::test_samples_are_written_whole_under_their_name",
      "terminal_test.py::test_sample_dims_thinking_and_escapes_what_a_model_wrote",
      "report_test.py::test_the_same_problems_side_by_side",
    ),
  ),
  23: Requirement(
    "each reward part is logged; weights and normalisation are settings",
    (
      "train_test.py::test_every_line_has_the_names_that_scripts_read",
      "rewards/combine_test.py::test_parts_without_weight_change_nothing",
      "rewards/combine_test.py::test_per_part_normalisation_evens_out_spreads",
    ),
  ),
  24: Requirement(
    "a stuck phase is named, with all stacks",
    ("watchdog_test.py::test_a_stage_that_sleeps_is_named_with_its_stacks_once",),
  ),
  25: Requirement(
    "forced tokens are spliced as ids and not trained on",
    open="the engine forces no tokens yet",
  ),
}


@functools.cache
def names_of(path):
  """Names of a file's tests, `Class::name` inside a class, without importing it."""
  tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
  names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
  for node in tree.body:
    if isinstance(node, ast.ClassDef):
      names |= {
        f"{node.name}::{inner.name}"
        for inner in node.body
        if isinstance(inner, ast.FunctionDef)
      }
  return {name for name in names if name.split("::")[-1].startswith("test")}


def missing(tests):
  """Those of the node ids that name no test."""
  return [
    test
    for test in tests
    if not (ROOT / "tests" / test.split("::")[0]).is_file()
    or test.partition("::")[2] not in names_of(test.split("::")[0])
  ]


def test_all_are_listed():
  assert list(REQUIREMENTS) == list(range(1, 26))


@pytest.mark.parametrize("number", REQUIREMENTS, ids="R{}".format)
def test_covered(number):
  requirement = REQUIREMENTS[number]
  assert requirement.tests or requirement.open
  assert not missing(requirement.tests)
  if requirement.open:
    pytest.skip(f"R{number}, {requirement.what}: without a test: {requirement.open}")


def test_a_name_that_is_gone_is_seen():
  gone = [
    "prng_test.py::test_no_such_thing",
    "no_such_file_test.py::test_a",
    "objectives/kl_test.py::test_expected_value",
    "prng_test.py",
  ]
  assert missing([*gone, *REQUIREMENTS[21].tests]) == gone
