"""Chat templates of real model families, around one small tokenizer that anybody can make."""

import importlib.util
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from itl_agents.nanollama.tokenizer import CHAT_TEMPLATE, MARKS, byte_characters

# As SmolLM and SmolLM2 have it.
SMOLLM = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = ("<|im_start|>", "<|im_end|>")
THINKING = (*CHATML, "<think>", "</think>", "<tool_call>", "</tool_call>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# By family: control tokens, of which the last named is no special one; the token that ends a turn.
FAMILIES = {
    "llama3": ("llama3", HEADERS, "<|eot_id|>"),
    "llama3_2": ("llama3_2", HEADERS, "<|eot_id|>"),
    "qwen2_5": ("qwen2_5", (*CHATML, "<tool_call>", "</tool_call>"), "<|im_end|>"),
    "qwen3": ("qwen3", THINKING, "<|im_end|>"),
    "smollm": (SMOLLM, CHATML, "<|im_end|>"),
    "nanollama": (CHAT_TEMPLATE, MARKS, "<|eod|>"),
    "gemma": ("gemma", ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "phi3": ("phi3", ("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|end|>"),
}
NOT_SPECIAL = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@cache
def chat_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges, the family's control tokens and its chat template."""
    template, control, end = FAMILIES[family]
    if "{" not in template:
        spec = importlib.util.find_spec("trl")
        assert spec is not None
        assert spec.origin is not None
        file = Path(spec.origin).parent / "chat_templates" / f"{template}.jinja"
        template = file.read_text(encoding="utf-8")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = (
        Path(__file__).read_text(encoding="utf-8") + "Ann Lee was born on FIND birth_date FOR" * 9
    )
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=byte_characters())
    bpe.train_from_iterator([text], trainer)
    bpe.add_tokens([token for token in control if token in NOT_SPECIAL])
    bpe.add_special_tokens([token for token in control if token not in NOT_SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=control[0], eos_token=end, pad_token=end
    )
    tokenizer.chat_template = template
    return tokenizer
