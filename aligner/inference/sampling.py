"""Generation by transformers itself: for sampling, and for models that `greedy.py` cannot decode with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from transformers import GenerationConfig, PreTrainedModel

from aligner.inference.trials import takes_padding


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults are the paper's (table 9) without its frequency penalty of 1.2, which is vLLM's: it
    counts how often a token was generated, and transformers has no equivalent."""

    temperature: float = 0.3
    top_k: int = 10
    top_p: float = 0.95
    seed: int = 42


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    most: int,
    sampling: Sampling | None,
    given_up: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """The continuation of each prompt, up to the first of the tokens that end a text; greedy without `sampling`. Once it is
    `given_up`, no further token is generated.

    Prompts are padded in front with the first of `ends`, and masked by their lengths; one after another where the model does
    not take that.
    """
    eos = ends[0]
    if len(set(map(len, prompts))) > 1 and not takes_padding(model, eos):
        seeds = [sampling and replace(sampling, seed=sampling.seed + place) for place in range(len(prompts))]
        return [generate(model, [p], ends, most, drawn, given_up)[0] for p, drawn in zip(prompts, seeds, strict=True)]
    longest = max(map(len, prompts))
    ids_BL = torch.tensor([[eos] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask_BL = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    drawn = {name: value for name, value in asdict(sampling).items() if name != "seed"} if sampling else {}
    if sampling:
        torch.manual_seed(sampling.seed)
    config = GenerationConfig(
        do_sample=sampling is not None, max_new_tokens=most, eos_token_id=list(ends), pad_token_id=eos, **drawn
    )
    output_BM: list[list[int]] = model.generate(  # type: ignore[operator]
        input_ids=ids_BL,
        attention_mask=mask_BL,
        generation_config=config,
        stopping_criteria=[lambda ids_BL, *_, **__: torch.full((len(ids_BL),), given_up(), device=ids_BL.device)],
    )[:, longest:].tolist()
    stops = [next((place + 1 for place, token in enumerate(tokens) if token in ends), None) for tokens in output_BM]
    return [tokens[:stop] for tokens, stop in zip(output_BM, stops, strict=True)]
