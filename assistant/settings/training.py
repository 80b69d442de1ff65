"""Settings of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class TrainSettings(BaseModel):
    """Settings of a training run; defaults are for a 135M model on two CPU cores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, description="seed of everything random in a run")
    min_votes: int = Field(
        100,
        ge=1,
        description="fewest votes that say which reply is better; with fewer, a run ends with too little data",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="number format of the frozen weights; auto: bfloat16 where the processor is fast in it "
        "(adapters are always float32)",
    )
    max_prompt_tokens: int = Field(
        512,
        ge=16,
        description="longest prompt; longer conversations start no rollout, and longer corrections are not "
        "demonstrations",
    )
    max_reply_tokens: int = Field(
        512,
        ge=1,
        description="rollouts are as long as the replies that people "
        "judged, up to this length; longer replies are cut here",
    )
    begin: Literal["base", "stable"] = Field(
        "base",
        description="what a round's policy starts from, and what its KL is measured from: the base, or the "
        "stable version "
        "(then gates.max_base_kl limits how far it may be from the base)",
    )
    prompts_file: str = Field(
        "",
        description='file of prompts that rollouts may start from, one JSON object per line: {"prompt": "...", '
        '"group": '
        '"..."}; group may be left out',
    )
    packaged_prompts: bool = Field(True, description="also start rollouts from the prompts that ship with Thumbwise")
    rollouts: str = Field("in_process", description="rollout backend that samples replies for training")

    rm_layers: int = Field(5, ge=1, description="layers that the reward model reads, spread evenly")
    rm_depth: float = Field(
        0.54, gt=0, le=1, description="share of the model's depth up to which the reward model reads"
    )
    rm_last_depth: float = Field(
        0.8, gt=0, le=1, description="share of the depth at which it reads a reply's last token, if that helps"
    )
    rm_shrink: float = Field(
        16.0,
        ge=0,
        description="tokens of neutral evidence mixed into the running mean, so that short prefixes say little",
    )
    rm_label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="assumed share of votes that are wrong clicks")
    rm_folds: int = Field(5, ge=2, description="folds of the reward model's cross-validation, by prompt")
    rm_heads: int = Field(8, ge=2, description="bootstrapped heads, whose spread is the reward's standard deviation")
    rm_rater_weights: bool = Field(
        True,
        description="weight each person's votes by how well they agree with the others' (needs 5 people with 10 votes)",
    )
    rm_rater_cap: float = Field(
        0.25,
        gt=0,
        le=1,
        description="largest share of all votes that one person may have, or 50 votes if that is more (needs 5 people "
        "with 10 votes; with fewer people, programs without a key may not outvote the others); 1 counts all votes",
    )
    thumb_weight: float = Field(0.5, ge=0, le=1, description="weight of a thumb; a comparison has weight 1")
    std_penalty: float = Field(
        0.5,
        ge=0,
        description="reward that is subtracted per standard deviation of the heads (caution if they disagree)",
    )

    sft_demonstrations: int = Field(
        50,
        ge=5,
        description="number of corrected replies from which on a round begins with SFT; they must come from several "
        "people if the home has several",
    )
    sft_epochs: int = Field(
        4, ge=1, description="largest number of passes over them; the pass with the lowest held-out loss is kept"
    )
    sft_learning_rate: float = Field(2e-4, gt=0, description="learning rate of SFT; falls to a tenth along a cosine")
    sft_general: float = Field(0.1, ge=0, le=1, description="general chat mixed into them, as a share of their number")

    iterations: int = Field(20, ge=1, description="batches of rollouts")
    episodes: int = Field(32, ge=1, description="replies in a batch of rollouts")
    best_of: int = Field(
        8,
        ge=2,
        description="replies to a prompt, of which best_of_n keeps one (a batch has episodes / best_of prompts)",
    )
    replies: int = Field(
        4,
        ge=2,
        description="replies to a prompt, for dpo's pairs and rloo's baselines (a batch has episodes / replies "
        "prompts)",
    )
    dpo_beta: float = Field(0.1, gt=0, description="DPO's beta; smaller values allow more distance from the reference")
    kto_beta: float = Field(0.1, gt=0, description="KTO's beta; smaller values allow more distance from the reference")
    epochs: int = Field(1, ge=1, description="passes over a batch of rollouts")
    minibatches: int = Field(4, ge=1, description="optimizer steps in a pass")
    micro_batch: int = Field(
        16, ge=1, description="replies in one forward and backward pass; changes memory use, not results"
    )
    lora_rank: Annotated[Literal[8, 16, 32, 64, 128], BeforeValidator(int)] = Field(
        16, description="rank of the policy's adapter"
    )
    lora_alpha: int = Field(32, ge=1, description="scale of the policy's adapter: alpha / rank")
    learning_rate: float = Field(
        1.5e-4, gt=0, description="learning rate of the policy's adapter; falls to a tenth over the run"
    )
    value_learning_rate: float = Field(1e-4, gt=0, description="learning rate of the value function")
    warmup: int = Field(
        2, ge=0, description="iterations in which the learning rates rise from a tenth to their full values"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    clip: float = Field(0.2, gt=0, description="PPO's clip range of the probability ratio")
    value_clip: float = Field(0.2, gt=0, description="clip range of the value function's change")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
    gae_lambda: float = Field(
        0.8,
        ge=0,
        le=1,
        description="lambda of generalised advantage estimation (1 if the reward model offers no values)",
    )
    whiten_rewards: bool = Field(
        False, description="scale the tokens' rewards to standard deviation 1 (this changes the weight of the KL)"
    )
    reward_clip: float = Field(4.0, gt=0, description="scores are clipped to this many standard deviations")
    missing_eos_penalty: float = Field(
        0.75,
        ge=0,
        description="subtracted from the score of a reply that did not end by itself; grows while fewer replies "
        "end than "
        "should, and shrinks while more do, so that as many end in chat as before; 0 turns it off",
    )
    pace: float = Field(
        1.2,
        ge=1,
        description="largest factor by which an iteration may raise the policy's learning rate to reach kl_target; 1 "
        "keeps the rate",
    )
    kl_coefficient: float = Field(
        2.2,
        ge=0,
        description="reward that is subtracted per nat of KL per token, so that long replies pay no more than "
        "short ones "
        "for the same distance (ppo, rloo)",
    )
    kl_target: float = Field(0.16, gt=0, description="KL that the learning rate is steered to, in nats per token")
    kl_budget: float = Field(
        0.19,
        gt=0,
        description="KL, in nats per token, at which training stops and goes back to the last policy below it",
    )
    ptx: float = Field(
        0.0, ge=0, description="norm of the pretraining gradient (PPO-ptx) as a share of PPO's own; 0 turns it off"
    )
    ptx_batch: int = Field(8, ge=2, description="texts in a pretraining gradient, one for each optimizer step")
    ptx_file: str = Field("", description="text file; its parts are half of these texts (`train --ptx FILE`)")
    own_prompts: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of rollouts that start from people's prompts; the others start from seed prompts",
    )
