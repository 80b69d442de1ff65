"""Turns a trained adapter into the three files of a policy version, named by its weights' SHA-256.

The adapter is plain LoRA in float32 safetensors with PEFT's key names, which vLLM reads. The probes are contexts with
the trainer's next-token log-probabilities (adapter not merged, as vLLM computes, temperature 1). With them serving can
prove that it speaks with these weights and not with the base model's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save

from thumbwise.contracts import Backbone, GateReport, Prompt
from thumbwise.names import CONFIG, MANIFEST, WEIGHTS, version_name
from thumbwise.training.backbone.backbone import NO_ADAPTER, POLICY
from thumbwise.training.policy.rollouts import generate
from thumbwise.training.run.folders import plain

TOP = 20


@dataclass(frozen=True)
class Candidate:
    """A version ready to publish: its name and its files' bytes."""

    version: str
    files: dict[str, bytes]


def adapter_files(backbone: Backbone, model_name: str) -> dict[str, bytes]:
    """The adapter "policy" as vLLM reads it: weights and configuration, the same bytes for the same weights."""
    state = get_peft_model_state_dict(backbone.peft, adapter_name=POLICY, save_embedding_layers=False)
    weights = {key: value.detach().float().contiguous() for key, value in sorted(state.items())}
    config = backbone.peft.peft_config[POLICY].to_dict()
    config |= {
        "base_model_name_or_path": model_name,
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
    }
    text = json.dumps(config, indent=1, sort_keys=True, default=str) + "\n"
    return {WEIGHTS: save(weights, metadata={"format": "pt"}), CONFIG: text.encode()}


def make_probes(backbone: Backbone, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """One probe per prompt: its template's ids, 1 to 8 greedy tokens of the policy, then top-20 log-probabilities.

    Probes are computed in this process, whatever `train.rollouts` says. A probe holds what the trainer computes, and
    serving is compared with that. Also, a backend samples at the run's temperature, and a probe needs the likeliest
    tokens.
    """
    contexts = [backbone.chat.prompt_ids(prompt.messages) for prompt in prompts]
    with backbone.sampling(POLICY) as model:
        greedy = generate(
            model, contexts, max_tokens=8, temperature=0.0, stop_ids=backbone.stop_ids, pad_id=backbone.pad_id, seed=0,
        )  # fmt: skip
    probes = []
    for n, (context, reply) in enumerate(zip(contexts, greedy, strict=True)):
        going_on = [token for token in reply.ids if token not in backbone.stop_ids]
        ids = [*context, *going_on[: n % 8 + 1]]
        top = backbone.next_logprobs(ids, POLICY).topk(TOP)
        base = backbone.next_logprobs(ids, NO_ADAPTER)[top.indices]
        probes.append(
            {
                "context_ids": ids,
                "top_ids": top.indices.tolist(),
                "top_logprobs": [round(x, 5) for x in top.values.tolist()],
                "base_top_logprobs": [round(x, 5) for x in base.tolist()],
            }
        )
    return probes


def make_candidate(
    number: int, adapter: Mapping[str, bytes], facts: Mapping[str, Any], gates: Sequence[GateReport]
) -> Candidate:
    """Name the adapter and write its manifest from `facts` (parent, digests, config, metrics, probes, ...)."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in adapter.items()}
    version = version_name(number, digests[WEIGHTS])
    manifest = {
        "format": 1,
        "version": version,
        "number": number,
        **facts,
        "gates": [asdict(report) for report in gates],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": digests,
    }
    text = json.dumps(plain(manifest), indent=1, sort_keys=True, allow_nan=False) + "\n"
    return Candidate(version, {**adapter, MANIFEST: text.encode()})
