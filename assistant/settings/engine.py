"""Settings of vLLM."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EngineSettings(BaseModel):
    """How vLLM is started."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kv_cache_gb: int = Field(1, ge=1, description="memory for vLLM's key-value cache on CPU, in GiB")
    max_model_len: int = Field(2048, ge=64, description="longest prompt plus reply, in tokens")
    max_loras: int = Field(4, ge=2, description="policy versions that can be in one batch")
    max_cpu_loras: int = Field(
        16, ge=2, description="policy versions kept loaded; must be above the number of versions in use"
    )
    max_lora_rank: int = Field(32, description="largest adapter rank that is served")
    max_num_seqs: int = Field(64, ge=1, description="replies that vLLM generates at once")
    dtype: str = Field(
        "auto",
        description="number format of the served weights; auto: the model's, or float32 where bfloat16 is slow",
    )
    enforce_eager: bool = Field(False, description="skip compilation: vLLM starts sooner and generates more slowly")
    probe_tolerance: float = Field(
        0.1, gt=0, description="largest mean difference between the engine's and the trainer's log-probabilities"
    )
    start_timeout: float = Field(600.0, gt=0, description="seconds until a start counts as failed")
    silence: float = Field(
        180.0,
        gt=0,
        description="seconds without a token after which a reply fails, and after which vLLM is restarted if its "
        "processes do not compute; raise it for large models and long prompts on few cores",
    )
