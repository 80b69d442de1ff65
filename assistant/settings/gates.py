"""Settings of the gates, which let a candidate in or refuse it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class GateSettings(BaseModel):
    """Limits that a candidate must hold before it takes traffic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: int = Field(48, ge=2, description="held-out prompts that candidate and stable version answer")
    samples: int = Field(4, ge=1, description="replies to each of them: rates over few replies are mostly luck")
    held_out: float = Field(0.3, gt=0, lt=1, description="share of prompt groups kept out of rollouts for them")
    chat_prompts: int = Field(
        48, ge=0, description="how many of those prompts are answered at chat length too; 0 leaves those gates out"
    )
    chat_samples: int = Field(4, ge=1, description="replies at chat length to each of them")
    level: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="chance that luck lets through a policy just beyond a gate's limit; for min_accuracy ever in a "
        "home's life",
    )
    min_accuracy: float = Field(
        0.5, ge=0, lt=1, description="the share of votes that are foretold must surely be above it; 0 lets any pass"
    )
    min_win_rate: float = Field(
        0.5, ge=0, lt=1, description="win rate over stable, by the reward model, must surely be above it; 0 as there"
    )
    max_kl: float = Field(0.35, gt=0, description="largest KL to the reference, in nats a token")
    max_base_kl: float = Field(
        0.7, gt=0, description="largest KL to the base, in nats a token, where a round begins from stable or with SFT"
    )
    min_length: float = Field(
        0.15, ge=0, description="smallest mean length, as a share of stable's, of drafts and of chat replies"
    )
    max_length: float = Field(1.5, gt=0, description="largest mean length, likewise")
    max_finish_loss: float = Field(
        0.15, ge=0, le=1, description="how far the share of replies that end by themselves may be below stable's"
    )
    max_repetition_gain: float = Field(
        0.15, ge=0, le=1, description="how far the share of recurring 4-grams may be above stable's"
    )
