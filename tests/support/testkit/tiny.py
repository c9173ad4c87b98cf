"""Small real parts for tests: tokenizers trained on the spot and random models, no downloads."""

from __future__ import annotations

from functools import lru_cache

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CORPUS = [
    "Wait, let me check. 3 + 4 = 7, so the answer is \\boxed{7}.\n\nAlternatively, think of it as 7 = 4 + 3.\n\n",
    "Okay, so I need to find x. First, 12 * 2 = 24.\n\nWait, that is not right: -3 and \\pi and x^{2}. \n\nHowever, ",
    "naïve café, 東京, Привет, 👩‍🚀 and 𝔘𝔫𝔦. So, the final answer is \\boxed{}.\n</think>\n",
] * 20
SPLIT = r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THINK = CHAT.replace("assistant\n", "assistant\n<think>\n")
STRIPS_THOUGHTS = CHAT.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")


@lru_cache
def byte_level_tokenizer(vocab: int = 420, chat_template: str | None = CHAT) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's way of splitting, so that ``.\\n\\n`` can be one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_tokens(["<think>", "</think>"])
    fast.chat_template = chat_template
    return fast


@lru_cache
def metaspace_tokenizer(vocab: int = 400) -> PreTrainedTokenizerFast:
    """SentencePiece's manner (Llama 2, Gemma): spaces are ``▁`` and rare characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<unk>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(CORPUS[:2], trainer)
    # The byte pieces must be ordinary tokens: special ones would be left out of the decoded text.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 1}
CONFIGS = {
    "qwen2": lambda v: Qwen2Config(vocab_size=v, tie_word_embeddings=False, **_GROUPED),
    "qwen2_tied": lambda v: Qwen2Config(vocab_size=v, tie_word_embeddings=True, **_GROUPED),
    "qwen3": lambda v: Qwen3Config(vocab_size=v, head_dim=32, **_GROUPED),
    "llama": lambda v: LlamaConfig(vocab_size=v, **_GROUPED),
    "mistral": lambda v: MistralConfig(vocab_size=v, sliding_window=None, **_GROUPED),
    "gemma": lambda v: GemmaConfig(vocab_size=v, head_dim=32, **_GROUPED),
    "phi3": lambda v: Phi3Config(vocab_size=v, pad_token_id=0, **_GROUPED),
    "gpt_neox": lambda v: GPTNeoXConfig(vocab_size=v, **_SHAPE),
}


def tiny_model(architecture: str = "qwen2", vocab: int | None = None, seed: int = 0):
    """A random causal language model whose logits are not flat, in eval mode."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture](vocab or len(byte_level_tokenizer())))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()
