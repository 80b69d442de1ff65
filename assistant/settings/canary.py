"""Settings of the canary: how a candidate answers some people before it answers all."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from thumbwise.settings.values import interval


class CanarySettings(BaseModel):
    """How a candidate that passed its gates answers some people before it answers all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(
        0.0, ge=0, le=0.5, description="share of people that a candidate answers first; 0: it becomes stable at once"
    )
    turns: int = Field(100, ge=1, description="turns that a canary must answer before it becomes stable")
    people: int = Field(
        5,
        ge=1,
        description="people who must meet it before it becomes stable; 1: the opinion of one person alone may end it",
    )
    judgements: int = Field(
        30, ge=0, description="thumbs on it and blind comparisons with stable that it needs before it becomes stable"
    )
    each: int = Field(
        20, ge=1, description="turns, thumbs and comparisons of one person that count, each kind by itself"
    )
    max_age: Annotated[str, AfterValidator(interval)] = Field(
        "3d",
        description="age at which it becomes stable with less than that, if no test is against it; empty: no such age",
    )
    rollback: bool = Field(
        True,
        description="roll back a stable version automatically if blind comparisons show that the one before it "
        "is better",
    )
    level: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="largest probability of taking back a version that is no worse than the one beside or before it",
    )
