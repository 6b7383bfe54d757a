"""An endpoint that speaks OpenAI's chat completions, asked for a JSON object or for the next turn of a conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def ask(client: Any, model: str, prompt: str, question: dict[str, Any]) -> str:
    """Put a question to a chat model and return what it writes, which should be a JSON object.

    Args:
        client: An `openai.OpenAI` client.
        model: The model's name at that endpoint.
        prompt: What it is to do, and what to answer with.
        question: What it is to do that with.
    """
    completion = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": prompt},
            {"role": "user", "content": json.dumps(question, ensure_ascii=False)},
        ],
        response_format={"type": "json_object"},
    )
    return completion.choices[0].message.content or ""


def next_turn(client: Any, model: str, messages: Sequence[tuple[str, str]], max_tokens: int) -> str:
    """Let a chat model take the next turn of a conversation.

    Args:
        client: An `openai.OpenAI` client.
        model: The model's name at that endpoint.
        messages: Roles and texts, the system turn first.
        max_tokens: The most tokens that it may take.
    """
    completion = client.chat.completions.create(
        model=model, messages=[{"role": role, "content": text} for role, text in messages], max_tokens=max_tokens
    )
    return completion.choices[0].message.content or ""
