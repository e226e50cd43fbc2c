"""Corrections on request: what one request asks its correction to mind, by the model's name or by a header.

`aligner:harmless+concise` is the upstream's first model with corrections that mind these objectives, `NAME:harmless` its model
NAME; the header `x-aligner-objectives` says the same for any name. Where nothing is asked for, `--feedback` holds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aligner.files import json_line
from aligner.objectives import sentences, split_objectives
from aligner.records import UserError
from aligner.serving.exchange import Exchange
from aligner.serving.protocol import Refused, parse_object

HEADER = "x-aligner-objectives"
ANY = "aligner"  # in place of a model's name: the upstream's first one


async def requested(
    exchange: Exchange, body: dict[str, Any], caller: Mapping[str, str]
) -> tuple[Exchange, dict[str, Any]]:
    """The exchange that corrects as the request asks, and the request as the upstream takes it.

    Refused (400) for an objective that is not known, or that the Aligner's prompt has no slot for.
    """
    corrector, wanted = exchange.worker, split_objectives(caller.get(HEADER))
    if wanted and not corrector.template.takes_feedback:
        raise Refused(400, f"Objectives: the prompt '{corrector.template.name}' of this Aligner has no slot for them.")
    if corrector.template.takes_feedback:
        model, names = _split(body.get("model"), corrector.objectives)
        if names:
            body = {**body, "model": await _first_model(exchange, caller) if model == ANY else model}
            wanted += names
    if not wanted:
        return exchange, body
    try:
        text = sentences(wanted, corrector.objectives)
    except UserError as error:
        raise Refused(400, str(error)[0].upper() + str(error)[1:]) from None
    own = copy.copy(exchange)
    own.policy = replace(exchange.policy, feedback=text)
    return own, body


def listed(exchange: Exchange, content: bytes) -> bytes:
    """The upstream's list of models with one more for each objective, where the Aligner's prompt has a slot for them."""
    corrector = exchange.worker
    if not corrector.template.takes_feedback:
        return content
    try:
        models = parse_object(content)
        ours = [{"id": f"{ANY}:{name}", "object": "model", "owned_by": ANY} for name in corrector.objectives]
        return json_line({**models, "data": [*models["data"], *ours]}).encode()
    except (Refused, TypeError, KeyError):  # no list of models: the upstream's own affair
        return content


def _split(model: Any, known: Mapping[str, str]) -> tuple[Any, tuple[str, ...]]:
    """A model's name and the objectives behind its last colon; a colon of another kind ('qwen:7b') stays."""
    if not isinstance(model, str):
        return model, ()
    name, colon, behind = model.rpartition(":")
    names = tuple(each for each in behind.split("+") if each)
    if colon and names and (name == ANY or all(each in known for each in names)):
        return name, names
    return model, ()


async def _first_model(exchange: Exchange, caller: Mapping[str, str]) -> str:
    """The name of the upstream's first model. Refused (502) where it lists none."""
    reply = await exchange.upstream.ask("/models", caller)
    try:
        return str(parse_object(reply.content)["data"][0]["id"])
    except (Refused, LookupError, TypeError):
        raise Refused(502, f"The upstream lists no model for '{ANY}' to stand for: name one.") from None
