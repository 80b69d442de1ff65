"""Settings of the training job and its gates. Imported by `thumbwise.settings`, so no torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TrainSettings(BaseModel):
    """Settings of a training run; defaults are for a 135M model on two CPU cores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, description="seed of everything random in a run")
    min_votes: int = Field(100, ge=1, description="untied comparisons below which a run ends with too little data")


class GateSettings(BaseModel):
    """Limits that a candidate must hold before it takes traffic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_kl: float = Field(15.0, gt=0, description="largest KL to the reference, in nats a reply")
