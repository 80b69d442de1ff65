"""One frozen backbone, and everything that reads it: named LoRA adapters, log-probabilities, hidden states.

PPO speaks of four models. Here they share one copy of the weights:
- The reference is the backbone with its adapters off, or a frozen adapter if a round begins from stable or had SFT.
- The policy is an adapter.
- The reward model and the value function are linear heads on the hidden states.

In float32 a second copy of the linear layers' weights samples with an adapter merged in, which is faster. In bfloat16
nothing is merged: a young adapter changes a weight by less than bfloat16 can tell apart, and a float32 copy would not
compute what the trainer and vLLM compute in bfloat16.

Frozen weights compute in the run's format; adapters, log-softmax and losses in float32.

Left out: full fine-tuning, and devices other than the one that holds the weights.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils.logging import disable_progress_bar

from thumbwise.contracts import Batch, Compared, Floats, Sample
from thumbwise.errors import ThumbwiseError
from thumbwise.settings.training import TrainSettings
from thumbwise.system.processor import train_format
from thumbwise.training.backbone.attention import GROUPED
from thumbwise.training.backbone.batches import at_positions, chunks, make_batch
from thumbwise.training.backbone.logprobs import Head, compare, token_logprobs
from thumbwise.training.backbone.templates import ChatTemplate

POLICY = "policy"
NO_ADAPTER = None  # the backbone with every adapter off
FROZEN = "ref"  # TRL looks for its reference under this name
Told = Callable[[str, int, int], None]


class _Enough(Exception):
    """A hook raises this when the deepest wanted hidden state is there: the layers above need not run."""


class Backbone:
    """The frozen model of `folder` with a fresh adapter "policy" (it changes nothing yet).

    `arguments` and `day` are for its chat template: see `ChatTemplate`.
    """

    def __init__(
        self, folder: Path, train: TrainSettings, arguments: Mapping[str, Any] | None = None, day: date | None = None
    ) -> None:
        disable_progress_bar()  # the run has its own
        dtype = getattr(torch, train_format(train.dtype))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, mistral_format=False)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        base.requires_grad_(False).eval()
        self.micro_batch = train.micro_batch
        self.told: Told = lambda what, done, total: None
        """It is called with the progress of slow work: what the work is, how much is done, and how much there is."""
        self._recent: dict[Any, dict[int, Tensor]] = {}
        self._remembered = -(-train.episodes // train.micro_batch)
        self.stop_ids = _stop_ids(base, self.tokenizer)
        self.chat = ChatTemplate(self.tokenizer, self.stop_ids, arguments, day)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.base: Any = base
        self.head = Head.of(base)
        self.generator: Any = _twin(base) if base.dtype == torch.float32 else None
        config = LoraConfig(
            r=train.lora_rank, lora_alpha=train.lora_alpha, lora_dropout=0.0, target_modules="all-linear",
            task_type="CAUSAL_LM",
        )  # fmt: skip
        with _seeded(train.seed):
            self.peft: Any = get_peft_model(base, config, adapter_name=POLICY).eval()
        self.body: Any = base.base_model
        self.layers = _decoder_layers(base)
        self.hidden_size = int(base.get_input_embeddings().weight.shape[1])
        self.reference: str | None = NO_ADAPTER
        """What the KL is measured to: the base, or a frozen copy of the policy as it began (from stable, after SFT)."""
        self._lora = {n: m for n, m in base.named_modules() if isinstance(m, LoraLayer)}
        if self.generator is not None:
            for name, layer in self._lora.items():  # what takes the merge is the twin's own
                weight = layer.get_base_layer().weight.detach().clone()
                self.generator.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
        self._check_head(folder.name)

    def _check_head(self, name: str) -> None:
        """Raise ThumbwiseError if a model does more to its logits than `Head` knows of."""
        ids = torch.arange(8)[None] % self.base.config.vocab_size
        with torch.no_grad(), self.using(NO_ADAPTER):
            whole = self.base(ids).logits.float()
            ours = self.head(self.body(ids).last_hidden_state)
        if not torch.allclose(whole, ours, rtol=1e-2, atol=1e-2 * float(ours.abs().max())):
            raise ThumbwiseError(
                f"{name} changes its logits after the head in a way that training does not know: "
                "choose another base model (`--model`)."
            )

    # --- adapters -----------------------------------------------------------------------------------

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load a PEFT adapter (safetensors) as `name`, frozen."""
        self.peft.load_adapter(folder, adapter_name=name, is_trainable=False, low_cpu_mem_usage=False)

    def parameters(self, name: str) -> dict[str, Tensor]:
        """The float32 weights of adapter `name`, by name, in a fixed order."""
        return {k: p for k, p in self.base.named_parameters() if re.search(rf"\.lora_[AB]\.{name}\.weight$", k)}

    def state(self, name: str) -> dict[str, Tensor]:
        """A copy of adapter `name`."""
        return {key: value.detach().clone() for key, value in self.parameters(name).items()}

    def restore(self, name: str, state: dict[str, Tensor]) -> None:
        """Set adapter `name` to the weights that `state` returned."""
        with torch.no_grad():
            for key, value in self.parameters(name).items():
                value.copy_(state[key])

    def begin_as(self, name: str) -> None:
        """Make the adapter "policy" compute what adapter `name` computes. The rank of `name` is the same or smaller.

        The additional dimensions of a larger rank do nothing yet. Raises ThumbwiseError if `name` changes other layers.
        """
        copied = 0
        with torch.no_grad():
            for layer in self._lora.values():
                if name not in layer.lora_A:
                    continue
                wide, tall = layer.lora_A[name].weight, layer.lora_B[name].weight  # [r, in] and [out, r]
                layer.lora_A[POLICY].weight[: len(wide)] = wide
                layer.lora_B[POLICY].weight.zero_()
                layer.lora_B[POLICY].weight[:, : len(wide)] = tall * (layer.scaling[name] / layer.scaling[POLICY])
                copied += 2
        if copied != len(self.parameters(name)):
            raise ThumbwiseError("Stable's adapter changes layers that training leaves alone: set train.begin to base.")

    def freeze_reference(self) -> None:
        """From now on the reference is a frozen copy of the adapter "policy" in its present state."""
        if FROZEN not in self.peft.peft_config:
            with _seeded(0):
                self.peft.add_adapter(FROZEN, self.peft.peft_config[POLICY])
        with torch.no_grad():
            for frozen, weight in zip(self.parameters(FROZEN).values(), self.parameters(POLICY).values(), strict=True):
                frozen.copy_(weight)
        self.reference = FROZEN

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Compute with `adapter` inside the block, or with no adapter (the base).

        PEFT gives gradients only to the active adapter, so a loss cannot reach the weights of another one.
        """
        if adapter is not None:
            self.peft.base_model.set_adapter(adapter)
            with self._mixed_precision():
                yield
            return
        self.peft.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            self.peft.base_model.enable_adapter_layers()

    @contextmanager
    def _mixed_precision(self) -> Iterator[None]:
        """Multiply by an adapter's float32 weights in bfloat16 if the backbone is: PEFT would cast each input up."""
        weight = self.base.get_output_embeddings().weight
        if weight.dtype != torch.bfloat16:
            yield
            return
        with torch.autocast(weight.device.type, weight.dtype), disable_input_dtype_casting(self.peft):
            yield

    @contextmanager
    def sampling(self, adapter: str | None) -> Iterator[Any]:
        """The model that samples from `adapter` (None: the base) inside the block; the same as the trainer computes.

        In float32 it is a copy with the adapter merged in, else the backbone itself with attention made for sampling.
        """
        if self.generator is not None:
            self._merge(adapter)
            yield self.generator
            return
        self.base.set_attn_implementation(GROUPED)
        try:
            with self.using(adapter):
                yield self.base
        finally:
            self.base.set_attn_implementation("sdpa")

    def _merge(self, adapter: str | None) -> None:
        """Merge `adapter` into the copy's weights. The backbone itself does not change."""
        with torch.no_grad():
            for name, layer in self._lora.items():
                target = self.generator.get_submodule(name).weight
                target.copy_(layer.get_base_layer().weight)
                if adapter is not None and adapter in layer.lora_A:
                    target += layer.get_delta_weight(adapter)

    def base_sha256(self) -> str:
        """SHA-256 over the frozen weights: the same before and after every run."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.base.named_parameters()):
            if ".lora_" not in name:
                digest.update(name.encode() + weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    # --- what a batch of samples computes to -----------------------------------------------------------

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Pad samples into one batch, from their stored ids."""
        return make_batch(samples, self.pad_id)

    def logprobs(self, batch: Batch, adapter: str | None, temperature: float) -> Tensor:
        """Log-probabilities [B, T] of the response tokens at `temperature`, float32, 0 under pads."""
        with self.using(adapter):
            return self._padded(batch, token_logprobs(*self._last(batch), temperature))

    def compared(self, batch: Batch, adapter: str | None, temperature: float) -> Compared:
        """`adapter` compared with the reference on the response tokens, [B, T] each, 0 under pads; no gradients."""
        return self.beside(batch, adapter, self.reference, temperature)

    def beside(self, batch: Batch, adapter: str | None, other: str | None, temperature: float) -> Compared:
        """The same comparison, with `other` instead of the reference."""
        with torch.no_grad():
            with self.using(adapter):
                policy, ids, head = self._last(batch)
            with self.using(other):
                reference, _, _ = self._last(batch)
            found = compare(policy, reference, ids, head, temperature)
        return Compared(*(self._padded(batch, x) for x in (found.logp, found.reference, found.entropy, found.kl)))

    def _last(self, batch: Batch) -> tuple[Tensor, Tensor, Head]:
        """For the real response tokens: the hidden states [N, D] that predict them, their ids [N], and the head."""
        top, real = len(self.layers), batch.mask.bool()
        hidden = at_positions(self._run(batch, (top,))[top], batch.before - batch.shared)
        return hidden[real], batch.tokens[real], self.head

    def _padded(self, batch: Batch, values: Tensor) -> Tensor:
        return torch.zeros_like(batch.mask).masked_scatter(batch.mask.bool(), values)

    def hidden(self, batch: Batch, layers: Sequence[int]) -> list[Tensor]:
        """The base's hidden states [B, T, D] of response tokens at the input of each layer of `layers`, float32."""
        with self.using(NO_ADAPTER):
            found = self._run(batch, layers)
        return [at_positions(found[number], batch.at - batch.shared).float() for number in layers]

    def _run(self, batch: Batch, layers: Sequence[int]) -> dict[int, Tensor]:
        """The inputs of each of `layers` at the tokens after the shared ones, [B, L - shared, D].

        Number len(self.layers) is the head. Layers above the deepest one are not run. The part that all prompts begin
        with is run once, and gets the sum of the rows' gradients.
        """
        cache = DynamicCache(config=self.base.config)
        if batch.shared:
            self._enter(batch.ids[:1, : batch.shared], (max(layers),), cache)
            cache.batch_select_indices(torch.zeros(len(batch.ids), dtype=torch.long))
        return self._enter(batch.ids[:, batch.shared :], layers, cache)

    def _enter(self, ids: Tensor, layers: Sequence[int], cache: DynamicCache) -> dict[int, Tensor]:
        """Run `ids` after what `cache` holds, up to the deepest of `layers`. Returns the input of each of them."""
        found: dict[int, Tensor] = {}
        caught = [number for number in layers if number < len(self.layers)]
        hooks = [self._catch(number, found, last=number == max(layers)) for number in caught]
        try:
            found[len(self.layers)] = self.body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _catch(self, number: int, found: dict[int, Tensor], *, last: bool) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[number] = args[0] if args else kwargs["hidden_states"]
            if last:
                raise _Enough

        return self.layers[number].register_forward_pre_hook(hook, with_kwargs=True)

    def states(
        self, samples: Sequence[Sample], layers: Sequence[int]
    ) -> Iterator[tuple[NDArray[np.intp], Batch, list[Tensor]]]:
        """Yield what `hidden` returns for all of `samples`, a batch of similar lengths at a time, with its rows.

        The last batches are cached, because reward model and value function read the same rollouts. The reward model
        may read more layers.
        """
        order = np.argsort([len(s.prompt_ids) + len(s.response_ids) for s in samples], kind="stable")
        done = 0
        for part in chunks(len(samples), self.micro_batch):
            rows = order[part]
            chosen = [samples[row] for row in rows]
            batch, key = self.batch(chosen), tuple((s.prompt_ids, s.response_ids) for s in chosen)
            if not self._recent.get(key, {}).keys() >= set(layers):
                with torch.no_grad():
                    self._recent[key] = dict(zip(layers, self.hidden(batch, layers), strict=True))
            done += len(rows)
            self.told("replies read", done, len(samples))
            yield rows, batch, [self._recent[key][layer] for layer in layers]
            while len(self._recent) > self._remembered:
                del self._recent[next(iter(self._recent))]

    def pooled(
        self, samples: Sequence[Sample], layers: Sequence[int], last: Sequence[int] = ()
    ) -> tuple[Floats, Floats, Floats]:
        """Three things from the base's hidden states of response tokens:

        - their sums at `layers`, f32[N, layers, D];
        - the last token's at `last`, f32[N, last, D], 0 for an empty response;
        - the number of tokens, f32[N].
        """
        counts = np.array([len(s.response_ids) for s in samples], np.float32)
        sums = np.zeros((len(samples), len(layers), self.hidden_size), np.float32)
        lasts = np.zeros((len(samples), len(last), self.hidden_size), np.float32)
        wanted = sorted({*layers, *last})
        for rows, batch, states in self.states(samples, wanted):
            by_layer = dict(zip(wanted, states, strict=True))
            ends = batch.mask * (batch.mask.cumsum(1) == batch.mask.sum(1, keepdim=True))
            for place, layer in enumerate(layers):
                sums[rows, place] = (by_layer[layer] * batch.mask[..., None]).sum(1).numpy()
            for place, layer in enumerate(last):
                lasts[rows, place] = (by_layer[layer] * ends[..., None]).sum(1).numpy()
        return sums, lasts, counts

    def next_logprobs(self, context: Sequence[int], adapter: str | None) -> Tensor:
        """Next-token log-probabilities [V] after `context` at temperature 1, float32."""
        with torch.no_grad(), self.using(adapter):
            hidden = self.body(input_ids=torch.tensor([list(context)]), use_cache=False).last_hidden_state
            return torch.log_softmax(self.head(hidden[0, -1]), -1)


def _twin(base: Any) -> Any:
    """A copy for sampling that shares all weights."""
    twin = copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})
    twin.set_attn_implementation(GROUPED)
    return twin


def _stop_ids(base: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a reply: the model's own list and the tokenizer's end token, as vLLM uses them.

    Raises ThumbwiseError if there are none.
    """
    named = base.generation_config.eos_token_id
    listed = named if isinstance(named, list) else [named]
    found = frozenset(int(i) for i in [*listed, tokenizer.eos_token_id] if i is not None)
    if not found:
        raise ThumbwiseError(
            "The model names no token that ends a reply: put its id as eos_token_id into its generation_config.json."
        )
    return found


def _decoder_layers(base: Any) -> Any:
    count = base.config.num_hidden_layers
    return next(m for m in base.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global generator at `seed` inside the block. After the block it is as it was before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
