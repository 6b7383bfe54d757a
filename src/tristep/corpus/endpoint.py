"""An endpoint that speaks OpenAI's chat completions, asked for a JSON object."""

from __future__ import annotations

import json
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
