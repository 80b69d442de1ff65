"""Settings of the gates, which accept or refuse a candidate."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class GateSettings(BaseModel):
    """Limits that a candidate must keep before it takes traffic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: int = Field(48, ge=2, description="held-out prompts that the candidate and the stable version answer")
    samples: int = Field(
        4, ge=1, description="replies to each of these prompts; rates over few replies are mostly chance"
    )
    held_out: float = Field(
        0.3, gt=0, lt=1, description="share of prompt groups that are held out for the gates and start no rollouts"
    )
    chat_prompts: int = Field(
        48,
        ge=0,
        description="how many of the held-out prompts are also answered at chat length; 0 turns these gates off",
    )
    chat_samples: int = Field(4, ge=1, description="replies at chat length to each of these prompts")
    level: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="probability that a gate accepts a policy which is just beyond its limit; for min_accuracy "
        "over the "
        "whole life of a home",
    )
    min_accuracy: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="the share of votes that the reward model predicts must be above this, with confidence; 0 "
        "turns it off",
    )
    min_win_rate: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="the win rate over stable, by the reward model, must be above this, with confidence; 0 "
        "turns it off",
    )
    max_kl: float = Field(0.35, gt=0, description="largest KL to the reference, in nats per token")
    max_base_kl: float = Field(
        0.7, gt=0, description="largest KL to the base, in nats per token, if a round begins from stable or with SFT"
    )
    min_length: float = Field(
        0.15, ge=0, description="smallest mean length, as a share of stable's, of drafts and of chat replies"
    )
    max_length: float = Field(1.5, gt=0, description="largest mean length, in the same way")
    max_finish_loss: float = Field(
        0.15, ge=0, le=1, description="how far the share of replies that end by themselves may be below stable's"
    )
    max_repetition_gain: float = Field(
        0.15, ge=0, le=1, description="how far the share of recurring 4-grams may be above stable's"
    )
