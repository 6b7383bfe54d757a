"""What clients bring: forms as the SDKs write them, and the files in them."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import wave
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tristep.audio import LISTEN_HZ
from tristep.server.errors import ApiError, from_pydantic

Form = TypeVar("Form", bound=BaseModel)

RAW_TYPES = ("audio/pcm", "audio/raw", "audio/l16")
"""Media types of headerless samples: 16 bit, 16 kHz, one channel."""
MAX_FIELDS, MAX_FIELD_BYTES = 64, 64 * 1024
MAX_DEPTH = 64
"""How deep lists and objects of JSON may lie in each other."""
NESTED = re.compile(r"(\w+)\[(\w*)\]")
"""`name[]` is an entry of a list, `name[key]` one of an object."""


async def read_form(request: Request, kind: type[Form], stack: AsyncExitStack) -> tuple[Form, dict[str, UploadFile]]:
    """Read a multipart form: its fields, checked, and its files by their names.

    Raises:
        ApiError: If it is no such form, or a field is not what it should be.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(415, "the body is no form: send it as multipart/form-data, with the file in it")
    try:
        form = await stack.enter_async_context(
            request.form(max_files=2, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        )
    except HTTPException as error:
        if isinstance(error, ApiError):
            raise
        raise ApiError(400, f"the form can't be read: {error.detail}") from error
    files = {name: value for name, value in form.multi_items() if isinstance(value, UploadFile)}
    try:
        return kind.model_validate(fields(form)), files
    except ValidationError as error:
        raise from_pydantic(error) from error


def fields(form: FormData) -> dict[str, Any]:
    """Gather the fields of a form, lists and objects as the SDKs flatten them."""
    gathered: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            continue
        nested = NESTED.fullmatch(name)
        if nested and nested[2]:
            branch = gathered.setdefault(nested[1], {})
            if isinstance(branch, dict):
                branch[nested[2]] = value
        elif nested:
            branch = gathered.setdefault(nested[1], [])
            if isinstance(branch, list):
                branch.append(value)
        else:
            gathered[name] = value
    return gathered


def unpacked(value: Any) -> Any:
    """Read a field that may hold JSON."""
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
    except (ValueError, RecursionError):
        return value


def as_list(value: Any) -> Any:
    """Take a list, a list written as JSON, or one entry."""
    value = unpacked(value)
    return [value] if isinstance(value, str) else value


async def save(files: dict[str, UploadFile], name: str, folder: Path, max_bytes: int) -> Path:
    """Write a file of a form into a folder of ours, under a name of ours.

    Raises:
        ApiError: If there is none, or it is too large.
    """
    if name not in files:
        raise ApiError(400, f"{name} is missing: give a sound file", code="missing_required_parameter", param=name)
    upload, path = files[name], folder / name
    if (upload.size or 0) > max_bytes:
        message = f"{name} has {upload.size} bytes: expected at most {max_bytes}; send a shorter or compressed file"
        raise ApiError(413, message, code="file_too_large", param=name)
    await asyncio.to_thread(copy, upload, path)
    return path


def copy(upload: UploadFile, path: Path) -> None:
    """Write a file, with a header where it has none."""
    if (upload.content_type or "").split(";")[0].strip().lower() in RAW_TYPES:
        write_pcm(path, upload.file.read())
        return
    with path.open("wb") as target:
        shutil.copyfileobj(upload.file, target)


def write_pcm(path: Path, data: bytes, sample_rate: int = LISTEN_HZ, num_channels: int = 1) -> None:
    """Write headerless 16-bit samples as WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(num_channels)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(data[: len(data) // (2 * num_channels) * 2 * num_channels])


async def only_json(request: Request) -> None:
    """Refuse a body that says it isn't JSON, and JSON that can't be written again."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body is {kind or 'of no kind'}: send application/json")
    if await request.body():
        try:
            check_json(await request.json())
        except ValueError as error:
            raise ApiError(400, f"the body can't be read ({error}): expected JSON", code="invalid_value") from error


def check_json(value: Any) -> None:
    """Refuse what was read as JSON and can't be written again, or only by who has a deep stack.

    Raises:
        ValueError: If lists and objects are nested too deeply, a number is none, or a text holds half a character.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        for inner in level:
            check_leaf(inner)
        level = [inner for outer in level for inner in within(outer)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def check_leaf(value: Any) -> None:
    """Refuse one value that JSON doesn't have."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number in JSON")
    if isinstance(value, str) and not value.isascii():
        value.encode()


def within(value: Any) -> Iterable[Any]:
    """Return what lies directly in a list or an object."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else ()


def described(kind: type[BaseModel], *files: str) -> dict[str, Any]:
    """Describe a form with files for the OpenAPI document."""
    schema = kind.model_json_schema()
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    schema["required"] = [*schema.get("required", []), *files]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
