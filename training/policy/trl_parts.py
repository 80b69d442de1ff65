"""TRL's trainers on our backbone: TRL computes the losses, a micro-batch at a time; all else is ours.

A TRL trainer owns its loop. A policy algorithm here is asked for one step at a time, must resume from a checkpoint to
the same bits, and shares one frozen backbone with the reward model. So a trainer is made for its `compute_loss`, and
never trains by itself. Rollouts, optimizer and checkpoints are ours.

Two things are arranged for TRL:
- It expects the adapter of a PEFT model to be called "default", and adds a frozen copy of it as the reference. Our
  reference is the base, or what an SFT stage left.
- It imports vLLM if that is installed, which costs seconds and is not used.

Left out: everything experimental in TRL, its data sets (one row satisfies it) and its logging.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thumbwise.training.backbone.backbone import FROZEN, POLICY
from thumbwise.training.policy.stepping import descend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from thumbwise.contracts import Backbone, RunContext
    from thumbwise.training.policy.state import PolicyState


@contextmanager
def _importing() -> Iterator[None]:
    """Inside the block TRL imports quietly, and as if vLLM were not installed."""
    from trl import import_utils

    asked = import_utils.is_vllm_available
    import_utils.is_vllm_available = lambda *args, **kwargs: False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        import_utils.is_vllm_available = asked


def load(*names: str) -> list[Any]:
    """The classes `names` of TRL."""
    with _importing():
        import trl

        return [getattr(trl, name) for name in names]


def settings(context: RunContext) -> dict[str, Any]:
    """What every trainer's configuration has in common: the run's own dtype, and nothing that TRL does by itself."""
    train = context.train
    return {
        "output_dir": str(context.folder), "seed": train.seed, "per_device_train_batch_size": train.micro_batch,
        "per_device_eval_batch_size": train.micro_batch, "gradient_checkpointing": False, "bf16": False, "fp16": False,
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip


def build(backbone: Backbone, make: Callable[..., Any], row: dict[str, Any], **arguments: Any) -> Any:
    """The trainer `make(model=..., **arguments)` on the adapter "policy". `row` is the data that it asks for."""
    import datasets
    import torch

    datasets.disable_progress_bars()
    for name in ("trl", "accelerate", "transformers.trainer"):
        logging.getLogger(name).setLevel(logging.ERROR)
    frozen = backbone.state(FROZEN) if backbone.reference == FROZEN else None
    if frozen is not None:  # TRL makes its own one, untrained
        backbone.peft.delete_adapter(FROZEN)
    configs, data = backbone.peft.peft_config, datasets.Dataset.from_list([row])
    configs["default"] = configs[POLICY]
    with torch.random.fork_rng():
        trainer = make(
            model=backbone.peft, train_dataset=data, processing_class=backbone.tokenizer, **arguments,
        )  # fmt: skip
    backbone.peft.delete_adapter(FROZEN)
    del configs["default"]
    if frozen is not None:
        backbone.freeze_reference()
        backbone.restore(FROZEN, frozen)
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def update(
    algorithm: PolicyState, trainer: Any, inputs: Callable[[slice], Any], minibatch: Sequence[slice]
) -> tuple[float, float]:
    """One optimizer step on the mean of the trainer's loss over a minibatch. Returns that loss and the gradient's norm.

    `inputs` returns what the trainer's loss takes for one micro-batch. Micro-batches are weighted by their size, so how
    a minibatch is cut changes nothing.
    """
    count = sum(part.stop - part.start for part in minibatch)
    loss_sum = 0.0
    algorithm.optimizer.zero_grad(set_to_none=True)
    for part in minibatch:
        with algorithm.backbone.using(POLICY):
            loss: Tensor = trainer.compute_loss(trainer.model, inputs(part))
        loss = loss * ((part.stop - part.start) / count)
        loss.backward()
        loss_sum += float(loss.detach())
    return loss_sum, descend(algorithm.policy, algorithm.optimizer, algorithm.train.max_grad_norm)


def at_temperature(backbone: Backbone, temperature: float) -> None:
    """Make TRL's losses on `backbone` use log-probabilities at `temperature`. DPO's own knows only temperature 1.

    TRL computes them from hidden states with a head that it adds to the model, with the model's own bias, scale and
    cap.
    """
    with _importing():
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(backbone.base, temperature, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))


def logged(trainer: Any, name: str) -> float:
    """The mean of what the trainer noted as `name` since the last call. Then all its notes are deleted."""
    trainer.log({})
    found = trainer.state.log_history.pop()
    return float(found[f"eval_{name}"])  # it was never told to train
