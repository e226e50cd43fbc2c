"""TRL's SFTTrainer on the same rows, tuned: padding-free, its fused loss, torch's variable-length kernel, bf16 states."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel, TrainerCallback

from aligner.training.datasets.supervised import Tokens
from tests.acceptance.common import CUDA, TINY, gemma_2b, random_model, report, synchronise, tokens_in
from tests.acceptance.throughput import BEFORE, updates

NAME = "peer_varlen"
_bounds: list[Any] = [None, None, 0]  # of the batch that is being read: its position ids, starts, the longest


def varlen(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object, *, position_ids: torch.Tensor,
    scaling: float | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The kernel over packed rows; their bounds are read once a batch, not once a layer as transformers' own code does."""
    from torch.nn.attention.varlen import varlen_attn

    if _bounds[0] is not position_ids:
        starts = torch.nonzero(position_ids.flatten() == 0).flatten().to(torch.int32)
        starts = F.pad(starts, (0, 1), value=position_ids.numel())
        _bounds[:] = position_ids, starts, int(starts.diff().max())
    _, starts, longest = _bounds
    if CUDA:
        q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))
        options = {"enable_gqa": True} if torch.__version__ >= "2.12" else {}
        return varlen_attn(q, k, v, starts, starts, longest, longest, scale=scaling, window_size=(-1, 0), **options)[
            None
        ], None
    lengths = starts.diff().tolist()
    parts = zip(*(t.split(lengths, dim=2) for t in (q, k, v)), strict=True)
    made = [
        F.scaled_dot_product_attention(a, b, c, is_causal=True, scale=scaling, enable_gqa=True) for a, b, c in parts
    ]
    return torch.cat(made, dim=2).transpose(1, 2), None


class Clock(TrainerCallback):
    """Seconds of each update."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        synchronise()
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronise()
        self.taken.append(time.perf_counter() - self.began)


def train(build: Callable[[], PreTrainedModel], updates: list[list[Tokens]], before: int, micro: int) -> float:
    """Real tokens a second over the updates behind the first `before`."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    AttentionInterface.register(NAME, varlen)
    rows = [row for update in updates for row in update]
    data = Dataset.from_list([{"input_ids": row.ids.tolist(), "labels": row.labels()} for row in rows])
    model = build()
    model.set_attn_implementation(NAME)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<e>": 0}, "<e>")), eos_token="<e>",
                                        pad_token="<e>", unk_token="<e>")  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch, max_length=None, packing=False, padding_free=True, per_device_train_batch_size=micro,
            gradient_accumulation_steps=len(updates[0]) // micro, num_train_epochs=1, max_steps=len(updates), bf16=CUDA,
            gradient_checkpointing=False, optim="adamw_torch_fused", learning_rate=2e-5, logging_steps=1000, report_to="none",
            save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=not CUDA, remove_unused_columns=False,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[clock]
        )
        trainer.train()
    counted = list(zip(updates, clock.taken, strict=False))[before:]
    return sum(tokens_in(update) for update, _ in counted) / sum(seconds for _, seconds in counted)


def main() -> None:
    report(trl=round(train(lambda: random_model(gemma_2b()), updates(), BEFORE, 4 if TINY else 8)))


if __name__ == "__main__":
    main()
