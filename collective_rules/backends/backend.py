"""A backend as a caller names it: its name, and what is known of its version and of the device."""

from __future__ import annotations

from typing import Any

import attrs

from collective_rules.errors import CallError


def _version(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    numbers = isinstance(value, tuple) and value and all(type(number) is int for number in value)
    if value is not None and not numbers:
        raise CallError(f"{attribute.name}={value!r}, but should be a tuple of numbers such as (2, 21), or None")


def _yes_or_no(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise CallError(f"{attribute.name}={value!r}, but should be True, False or None")


@attrs.frozen
class Backend:
    """A backend whose limits `check` asks for. What is left out is not known; limits that depend on it are undecidable.

    - `name`: "gloo", "nccl" …
    - `version`: the backend's own, (2, 27, 3).
    - `compute_capability`: the lowest of the group's devices, (9, 0).
    - `torch`: torch's version, (2, 13).
    - `eager`: whether its groups were made with their connections (`device_id=` in `init_process_group`).

    >>> Backend("nccl", version=(2, 21), compute_capability=(8, 0))
    Backend(name='nccl', version=(2, 21), compute_capability=(8, 0), torch=None, eager=None)
    """

    name: str
    version: tuple[int, ...] | None = attrs.field(default=None, validator=_version)
    compute_capability: tuple[int, ...] | None = attrs.field(default=None, validator=_version)
    torch: tuple[int, ...] | None = attrs.field(default=None, validator=_version)
    eager: bool | None = attrs.field(default=None, validator=_yes_or_no)
