"""The 52 known traps of training with rewards: the test that holds each one, or why there is none.

They come from the recipe's papers and from the bug reports of other trainers. Each test is named by its file and
function, and must exist.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thumbwise.contracts import Sample, Scores
from thumbwise.errors import ThumbwiseError
from thumbwise.training.reward.shaping import ShapedReward

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Without:
    """A point that has no test of its own, and why."""

    reason: str


POINTS: dict[str, str | Without] = {
    "A pad id equal to the stop id": "reward_model a_pad_id_that_is_the_stop_id_stays_real_where_it_was_sampled",
    "Replies tokenised again": "reward_model stored_ids_are_taken_as_they_are",
    "Scores that depend on the batch": "reward_model the_score_does_not_depend_on_padding_or_on_the_batch",
    "Batch or single sequence": "layouts rollouts_and_trainer_say_what_the_model_says_of_each_sequence_alone",
    "Rankings that weigh all pairs": "reward_losses ranking_loss_is_the_mean_over_all_pairs",
    "Pair loss of differences only": "reward_losses pair_loss_sees_differences_only_and_is_log_two_without_an_opinion",
    "Ties": "reward_losses davidsons_ties",
    "Position bias": "heads the_position_bias_adds_to_the_difference",
    "The start of the reward head": Without(
        "The head is fitted from zero by a convex solver: there is no random start whose size could be wrong."
    ),
    "Rewards not centred on zero": "reward_model normalised_replies_have_mean_zero_and_deviation_one",
    "Rewards of any scale": "reward_model normalised_replies_have_mean_zero_and_deviation_one",
    "Overfitting the reward model": Without(
        "The head is fitted to its optimum and held-out loss chooses its L2: there are no epochs to stop after."
    ),
    "A prompt in two folds": "data folds_and_held_out_prompts_never_split_a_prompt",
    "Noisy labels": "reward_losses label_smoothing_has_its_optimum_at_log_odds_of_the_noise",
    "What thumbs fix": "reward_losses thumbs_fix_the_level_only_up_to_their_threshold",
    "A reward that is length": "gates a_reward_that_is_length_is_caught",
    "Dropout in training": "ppo there_is_no_dropout_anywhere",
    "Temperature of rollouts and trainer": "ppo rollouts_log_probabilities_are_the_trainers_at_the_same_temperature",
    "Replies mixed across a swap": "swap_monitor a_swap_by_name_drops_and_mixes_nothing",
    "Sampling from the right distribution": "rollouts drawing_follows_the_distribution_and_repeats_with_its_seed",
    "Off-policy tokens": "ppo a_tokens_loss_weighs_what_the_policy_has_for_it_beside_what_sampled_it_and_at_most_two",
    "Stale rollouts": Without("Rollouts are drawn anew for each iteration and never kept: none can be stale."),
    "Replies after their stop id": "rollouts a_reply_ends_with_its_first_stop_id_and_leaves_the_batch",
    "Replies cut off by the limit": "gates only_replies_cut_off_by_their_limit_pay_the_penalty",
    "Empty responses": "losses an_empty_response_contributes_nothing_and_stays_finite",
    "Where the score lands": "losses the_score_lands_on_the_last_response_token_only",
    "Estimates of KL": "losses k1_and_k3_average_to_the_exact_kl_of_a_categorical",
    "Gradients of KL": "losses as_a_loss_k2_has_the_gradient_of_kl_and_k1_has_none",
    "Metrics that count padding": "ppo padding_changes_no_metric",
    "A new policy is the reference": "ppo a_fresh_policy_is_exactly_the_reference",
    "GAE over the prompt": "losses gae_on_response_tokens_only",
    "GAE with lambda one": "losses gae_with_lambda_one_is_return_to_go_less_the_value",
    "Whitening counts padding": "losses whitening_is_over_the_mask_with_biased_variance",
    "Whitening's variance": "losses whitening_is_over_the_mask_with_biased_variance",
    "Clipping the policy": "losses policy_clip",
    "Dual clipping": Without(
        "Dual clipping is for the far ratios of a replay buffer; here the metric ratio_max has a limit instead."
    ),
    "Huge log ratios": "losses a_huge_log_ratio_stays_finite",
    "Clipping the value": "losses value_clip",
    "The start of the value function": "value the_value_starts_as_the_reward_models_score_of_the_tokens_so_far",
    "Micro-batches that change the gradient": "ppo the_gradient_does_not_depend_on_the_micro_batches",
    "Adam's epsilon": "losses adamw_takes_small_first_steps_on_small_gradients",
    "Warm-up": "losses warm_up_from_a_tenth",
    "A learning rate that follows KL": "losses the_pace_brings_kl_to_its_target_whatever_moves_the_policy_how_fast",
    "Early stop by KL": "resume a_run_that_the_kl_budget_ended_ends_alike_when_resumed",
    "PPO-ptx": "ptx the_gradient_is_ppos_plus_gamma_times_the_pretraining_one",
    "A mean over weights": Without(
        "At 0.992 a mean over weights reaches back 125 steps, more than a whole run here has."
    ),
    "Precision": "ppo bfloat16_weights_compute_in_bfloat16_and_losses_in_float32",
    "Resuming a killed run": "resume a_run_killed_at_every_stage_in_turn_ends_with_the_adapter_of_one_that_was_not",
    "KTO's unequal classes": "trl desirable_replies_and_others_count_half_each_however_few_one_kind_is",
    "Adapters that cannot be served": "policies an_adapter_that_cannot_be_served_is_refused",
    "Weights swapped in place": "swap_monitor a_swap_in_place_is_caught",
    "A reward model that fails": "points a_reward_model_that_fails_is_named_and_never_a_missing_score",
}


@cache
def functions_of(file: str) -> set[str]:
    """The names of a test file's functions."""
    (path,) = TESTS.rglob(f"test_{file}.py")
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_point_has_a_test_or_a_reason() -> None:
    assert len(POINTS) == 52


@pytest.mark.parametrize("title", POINTS)
def test_the_test_that_holds_a_point_exists(title: str) -> None:
    point = POINTS[title]
    if isinstance(point, Without):
        assert len(point.reason) > 40
        return
    file, _, name = point.partition(" ")
    assert f"test_{name}" in functions_of(file)


class Failing:
    """A reward model whose score fails, or is of the wrong length."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def score(self, samples: Sequence[Sample]) -> Scores:
        if isinstance(self.result, Exception):
            raise self.result
        return Scores(self.result)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (ZeroDivisionError("division by zero"), r"Reward model mine failed \(ZeroDivisionError: division by zero\)"),
        (np.zeros(3, np.float32), r"Reward model mine returned values of shape \(3,\) for 2 samples"),
    ],
)
def test_a_reward_model_that_fails_is_named_and_never_a_missing_score(result: Any, says: str) -> None:
    samples = [Sample((), "", (1,), (2,), "length", "policy-0000")] * 2
    with pytest.raises(ThumbwiseError, match=says):
        ShapedReward("mine", Failing(result), None, None).plain(samples)  # type: ignore[arg-type]
