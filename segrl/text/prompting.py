"""The function that renders a problem for a model, and the hash that is stored with what was made from the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

USER_TEXT = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
TEMPLATES = ("chat", "plain")
THINK_END = "</think>"  # the end of a thought; `opens_thought` looks for its beginning


def user_message(problem: str) -> dict[str, str]:
    """The user's message: the problem, and how to answer it."""
    return {"role": "user", "content": USER_TEXT.format(problem=problem)}


def render(problem: str, tokenizer, template: str = "chat") -> str:
    """The prompt for ``problem``: the tokenizer's chat template up to where the assistant's turn begins.

    ``template`` is ``chat``, ``plain`` (the user text alone, for base models without a chat template), or a text of
    yours that holds ``{problem}``. Before the last two stands the token that the tokenizer puts before every text, if
    it puts one.
    """
    if template == "plain":
        return _begun(user_message(problem)["content"] + "\n", tokenizer)
    if template != "chat":
        if "{problem}" not in template:
            raise ValueError(
                f"template {template!r} is not one of {TEMPLATES} and holds no '{{problem}}' to put the problem in"
            )
        return _begun(template.replace("{problem}", problem), tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; pass template=plain, "
            "or a text of your own that holds '{problem}'"
        )
    return tokenizer.apply_chat_template([user_message(problem)], tokenize=False, add_generation_prompt=True)


def _begun(prompt: str, tokenizer) -> str:
    """The prompt behind the tokenizer's begin-of-text token, where its own encoding of a text begins with one."""
    begin = getattr(tokenizer, "bos_token", None)
    if not begin or prompt.startswith(begin) or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return prompt
    return f"{begin}{prompt}"


def opens_thought(prompt: str) -> bool:
    """Whether the prompt itself opens the thought, as R1-Distill's template does."""
    return prompt.rstrip().endswith("<think>")


def prompt_tail(prompt_ids: Sequence[int], tokenizer) -> str:
    """The end of a prompt, which says whether the prompt opens the thought."""
    return tokenizer.decode(prompt_ids[-16:])


def strip_opening(response: str, prompt: str) -> str:
    """The response without a leading ``<think>`` that the prompt has already opened."""
    stripped = response.lstrip()
    if opens_thought(prompt) and stripped.startswith("<think>"):
        return stripped.removeprefix("<think>").removeprefix("\n")
    return response


def with_opening(response: str, prompt: str) -> str:
    """The response with a leading ``<think>`` where neither it nor the prompt opens the thought."""
    if opens_thought(prompt) or response.lstrip().startswith("<think>"):
        return response
    return f"<think>\n{response}"


def prompt_hash(prompt: str) -> str:
    """The first 16 hex digits of the prompt's SHA-256."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
