"""The objective and the recipe in plain torch, without anything of the project: what every layout must equal.

Records are tokenised as the original does it, one row at a time and never padded.
"""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

PROMPT = "BEGINNING OF CONVERSATION: USER: ##Question: {}\n##Answer: {}\n##Correction:  ASSISTANT:"


def original_tokens(tokenizer, row, max_length=2048, template=PROMPT):
    """Ids and the prompt's length as the original computes them: both strings whole, the prompt cut off by length."""
    prompt = template.format(row["question"], row["answer"])
    ids = tokenizer(prompt + row["correction"] + tokenizer.eos_token, truncation=True, max_length=max_length)[
        "input_ids"
    ]
    return ids, len(tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"])


def plain_trajectory(
    folder, rows, *, per_update, micro_batch, reduction, epochs, lr, seed=42, warmup=0.03, template=PROMPT, adapt=None
):
    """(loss, gradient norm, learning rate) of every update, and the model in the end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    model = adapt(model) if adapt else model
    tokens = [original_tokens(tokenizer, row, template=template) for row in rows]
    updates = epochs * -(-len(rows) // per_update)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, int(np.ceil(updates * warmup)), updates)
    found = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows), per_update):
            chosen = [tokens[index] for index in order[start : start + per_update]]
            groups = [chosen[i : i + micro_batch] for i in range(0, len(chosen), micro_batch)]
            if reduction == "token":
                groups = [chosen]
            total = 0.0
            for group in groups:
                targets = sum(len(ids) - length for ids, length in group)
                for ids, length in group:
                    logits = model(torch.tensor([ids])).logits[0, length - 1 : -1].float()
                    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[length:]), reduction="sum")
                    loss = nll / targets / len(groups)
                    loss.backward()
                    total += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            found.append((total, norm, schedule.get_last_lr()[0]))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return found, model
