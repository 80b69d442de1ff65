"""A two-layer Llama, its tokenizer and its adapters, made from scratch: nothing is downloaded.

Weights are random, but wide enough that the next-token distribution is far from uniform, so that tests
can tell one adapter's log-probabilities from another's. Run it to get a model folder to play with:
`python tests/support/models/tiny_model.py FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

TEXT = """
A cat sat by the open window and watched the rain come down on the red roofs of the town. The kettle was
on, the bread was warm, and nobody had anywhere to go. "Tell me a story," said the child. So the old man
told one about a boat with a green sail, a clever fox, three stubborn goats and the king who could not
count. It was a good story; it was short, it was kind, and it ended well. Is that all? That is all for
today. Thank you! What is the capital of France? The capital of France is Paris. How do I boil an egg? Put
it into boiling water for seven minutes, then cool it. 1 2 3 4 5 6 7 8 9 10. I think we should be careful,
honest and brief. Yes, no, maybe. He said, she said, they said. user assistant system
"""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

STOP_GAIN = 2.0
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Settings of a round on it, for tests of the loop: the gates are wide open, since a model that babbles at
# random learns little (what gates refuse is tested on its own).
ROUND = """
[train]
dtype = "float32"
min_votes = 40
iterations = 4
lora_rank = 8
learning_rate = 5e-3
kl_budget = 1000.0
[gates]
prompts = 24
samples = 3
chat_prompts = 2
chat_samples = 1
min_accuracy = 0.0
min_win_rate = 0.0
max_kl = 1000.0
max_repetition_gain = 1.0
max_finish_loss = 1.0
max_length = 1000.0
min_length = 0.0
"""


def make_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a model with its tokenizer and return `folder`: hidden 64, 2 heads of 32, float32."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|im_end|>", unk_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.float32)
        # The padding row starts as zeros, and here as in SmolLM2 it is the stop token's too (tied to the
        # head). Longer than the others, it makes a stop common in some contexts and rare in others.
        model.model.embed_tokens.weight[tokenizer.eos_token_id].normal_(std=0.15 * STOP_GAIN)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_adapter(model_folder: Path, folder: Path, seed: int, rank: int = 8, scale: float = 0.5) -> Path:
    """Write a PEFT LoRA adapter over every linear layer but the head, and return `folder`.

    A and B are normal; `scale` is B's standard deviation, and 0 makes an adapter that changes nothing.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LINEAR), task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) / weight.shape[1] ** 0.5)
            elif "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) * scale)
    model.save_pretrained(folder)
    return folder


def make_token_adapter(model_folder: Path, folder: Path, token: int, steps: int = 60) -> Path:
    """Train an adapter (rank 8) until `token` is by far the likeliest in any context; return `folder`.

    Replies of it say who wrote them, and never end by themselves.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=8, target_modules=list(LINEAR), task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(token)
        model = get_peft_model(base, config)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        for _ in range(steps):
            ids = torch.randint(base.config.vocab_size, (8, 32))
            ids[4:, 8:] = token  # what it will see most: itself
            logits = model(ids).logits.flatten(0, 1)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, torch.full((len(logits),), token)).backward()
            optimizer.step()
    model.save_pretrained(folder)
    return folder


def make_tokenizer(special, **named):  # type: ignore[no-untyped-def]
    """A byte-level tokenizer of TEXT with the control tokens `special`, of which `named` says what some are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=list(dict.fromkeys(special)),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        additional_special_tokens=[token for token in special if token != named.get("unk_token")],
        clean_up_tokenization_spaces=False,
        **named,
    )


if __name__ == "__main__":
    print(make_tiny_model(Path(sys.argv[1])))
