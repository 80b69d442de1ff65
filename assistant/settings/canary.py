"""Settings of the canary: how a candidate meets some people before all."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from thumbwise.settings.values import interval


class CanarySettings(BaseModel):
    """How a candidate that passed its gates meets some people before all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(
        0.0, ge=0, le=0.5, description="share of people whom a candidate answers first; 0: it is stable at once"
    )
    turns: int = Field(100, ge=1, description="turns that it answers before it becomes stable")
    people: int = Field(
        5,
        ge=1,
        description="people who meet it before it becomes stable; 1: what one person alone thinks may also end it",
    )
    judgements: int = Field(
        30, ge=0, description="thumbs on it, and blind comparisons with stable, before it becomes stable"
    )
    each: int = Field(20, ge=1, description="turns, thumbs and comparisons of one person that count, of each kind")
    max_age: Annotated[str, AfterValidator(interval)] = Field(
        "3d", description="age at which it becomes stable with less than that, if nothing is against it; empty: none"
    )
    rollback: bool = Field(
        True, description="whether blind comparisons take a stable version back that is worse than the one before it"
    )
    level: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="probability of taking a version back that is no worse than the one beside or before it",
    )
