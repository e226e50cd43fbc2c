"""The stages of a round, in order, and what each follows from.

held_out/answers, held_out/corrected        the upstream's answers to questions that are never trained on, corrected once
round-0/measured                            how likely those corrections are to the upstream as it is
round-T/answers     the upstream of the round before answers
round-T/teacher, round-T/aligner            of an Aligner each round: what the last one corrects, and the next one trained on it
round-T/corrected   the Aligner corrects
round-T/pairs       rows for training
round-T/reward      of rloo: a reward model, trained on them
round-T/upstream    the next upstream
round-T/measured    how likely the held-out corrections are to it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from aligner.card import prompt_of, read_card
from aligner.demo import locate
from aligner.evaluation.measures.controls import shuffled
from aligner.evaluation.pairs import read_pairs
from aligner.files import sha256_of, write_json, write_lines
from aligner.inference.corrector import best_dtype
from aligner.models import fingerprint
from aligner.records import UserError
from aligner.rounds.config import RoundsConfig
from aligner.rounds.pairs import PREFERENCE, SUPERVISED, PairsConfig, write_training_pairs
from aligner.rounds.stage import RoundStage
from aligner.rounds.work import ANSWERS, CORRECTED
from aligner.shipped import shipped
from aligner.training.config import LaunchConfig, RunConfig
from aligner.training.flags import parse, to_flags

ALIGNER_ROWS = "aligner.jsonl"  # of a teacher: question, answer, correction
PROMPT = "prompt.yaml"
REWARD = "of the round"  # a reward model that is not there yet


def place(config: RoundsConfig, number: int, name: str = "") -> Path:
    """The folder of a round, or of a stage of it. Round 0 is the upstream as it is."""
    return Path(config.output) / f"round-{number}" / name


def held_out_place(config: RoundsConfig, name: str) -> Path:
    """The folder of a stage that all rounds are measured by."""
    return Path(config.output) / "held_out" / name


def upstream_after(config: RoundsConfig, number: int) -> str:
    """The upstream that a round leaves."""
    return str(place(config, number, "upstream")) if number else locate(config.upstream)


def aligner_of(config: RoundsConfig, number: int) -> str:
    """The Aligner that corrects in a round."""
    own = config.aligner_each_round and number > 1
    return str(place(config, number, "aligner")) if own else locate(config.aligner)


def first_stages(config: RoundsConfig) -> Iterator[RoundStage]:
    """What comes before the first round. Each stage is described when those before it are complete."""
    answers, corrected = held_out_place(config, "answers"), held_out_place(config, "corrected")
    yield answering(config, 0, Path(config.output) / "questions" / "held_out.jsonl", answers)
    yield correcting(config, locate(config.aligner), answers, corrected)
    yield from measuring_stages(config, 0)


def round_stages(config: RoundsConfig, number: int) -> Iterator[RoundStage]:
    """A round, from the answers of the upstream before it to the next one's measure."""
    at = partial(place, config, number)
    yield answering(config, number - 1, Path(config.output) / "questions" / "train.jsonl", at("answers"))
    if config.aligner_each_round and number > 1:
        yield correcting(config, aligner_of(config, number - 1), at("answers"), at("teacher"))
        yield aligner_training(config, number)
    yield correcting(config, aligner_of(config, number), at("answers"), at("corrected"))
    yield pairing(config, number)
    if config.method == "rloo":
        yield reward_training(config, number)
    yield upstream_training(config, number)
    yield from measuring_stages(config, number)


def measuring_stages(config: RoundsConfig, number: int) -> Iterator[RoundStage]:
    """Measure the upstream that a round leaves: likelihoods, and replies to prompts that are to be declined or not."""
    yield measuring(config, number)
    if config.help_and_harm:
        prompts = Path(config.output) / "questions" / "help_and_harm.jsonl"
        yield answering(config, number, prompts, place(config, number, "replies"))
        yield correcting(
            config,
            aligner_of(config, max(1, number)),
            place(config, number, "replies"),
            place(config, number, "aligned"),
        )


def _decoding(config: RoundsConfig) -> dict[str, Any]:
    """What decides decoded text: where rows are decoded together, their number too."""
    o = config.options
    return {"max_new_tokens": o.max_new_tokens, "batch_size": o.batch_size, "dtype": o.dtype or best_dtype()}


def answering(config: RoundsConfig, number: int, questions: Path, folder: Path) -> RoundStage:
    """The upstream that a round leaves answers questions; behind a server it is called by its name there, and by its folder once
    it is trained."""
    model, trusted = upstream_after(config, number), config.options.trust_remote_code
    name = "upstream" if number == 0 else f"upstream after round {number}"
    decides = {
        "questions": sha256_of(questions),
        "upstream": fingerprint(model, trusted),
        **_decoding(config),
        "name": name,
    }
    job = {"questions": str(questions), "model": model, "trust_remote_code": trusted, **config.server}
    if config.server:
        job["served"] = config.upstream_model if number == 0 else str(Path(model).resolve())
        decides["served"] = config.upstream_model
    return RoundStage(f"{name}, answers", folder, decides, _words("answer", folder), job)


def correcting(config: RoundsConfig, aligner: str, answers: Path, folder: Path) -> RoundStage:
    """An Aligner corrects answers; a correction may have twice the tokens of an answer."""
    o, file = config.options, answers / ANSWERS
    prompt = prompt_of(aligner, _own_prompt(config, aligner))
    decoding = {**_decoding(config), "max_new_tokens": 2 * o.max_new_tokens}
    decides = {
        "answers": sha256_of(file),
        "aligner": fingerprint(aligner, o.trust_remote_code),
        "prompt": prompt.text,
        **decoding,
    }
    job = {"answers": str(file), "model": aligner, "trust_remote_code": o.trust_remote_code}
    job["prompt_template"] = _own_prompt(config, aligner)
    return RoundStage(f"correcting {answers}", folder, decides, _words("correct", folder), job)


def _own_prompt(config: RoundsConfig, aligner: str) -> str | None:
    """`--prompt_template`, which is of the Aligner that was given; one that is trained here has a card."""
    return config.options.prompt_template if aligner == locate(config.aligner) else None


def measuring(config: RoundsConfig, number: int) -> RoundStage:
    """How likely the held-out corrections are to the upstream that a round leaves."""
    pairs, model = held_out_place(config, "corrected") / CORRECTED, upstream_after(config, number)
    trusted, folder = config.options.trust_remote_code, place(config, number, "measured")
    dtype = _decoding(config)["dtype"]
    decides = {"pairs": sha256_of(pairs), "upstream": fingerprint(model, trusted), "dtype": dtype}
    job = {"pairs": str(pairs), "model": model, "trust_remote_code": trusted}
    return RoundStage(f"measuring round {number}", folder, decides, _words("measure", folder), job)


def _words(kind: str, folder: Path) -> tuple[str, ...]:
    return ("aligner.rounds", kind, str(folder))


def pairing(config: RoundsConfig, number: int) -> RoundStage:
    """Corrected answers -> rows for training, as `aligner pairs` makes them."""
    corrected, folder = place(config, number, "corrected") / CORRECTED, place(config, number, "pairs")
    filters = {"least_edit": config.least_edit, "length_ratio": [str(each) for each in config.length_ratio]}
    decides = {"corrected": sha256_of(corrected), **filters, "shuffled": config.shuffled}

    def make(folder: Path) -> None:
        source = corrected
        if config.shuffled:
            source = folder / CORRECTED
            write_lines(source, shuffled_corrections(corrected))
        about = {"aligner": aligner_of(config, number), "round": number}
        wanted = {"least_edit": config.least_edit, "length_ratio": config.length_ratio}
        write_training_pairs(PairsConfig((str(source),), str(folder / "rows"), "aligner", **wanted, **about))  # type: ignore[arg-type]

    return RoundStage(f"pairs of round {number}", folder, decides, make=make)


def shuffled_corrections(file: Path) -> list[dict[str, str]]:
    """The control: the same answers, and corrections that belong to other questions."""
    pairs = [pair for pair in read_pairs(str(file))[0] if not pair.unfinished]
    dealt = shuffled([pair.after for pair in pairs], [pair.question for pair in pairs])
    return [
        {"question": pair.question, "answer": pair.before, "corrected": text}
        for pair, text in zip(pairs, dealt, strict=True)
    ]


def _rows(config: RoundsConfig, number: int, name: str) -> Path:
    return place(config, number, "pairs") / "rows" / name


def training(name: str, folder: Path, flags: list[str], rows: Path) -> RoundStage:
    """A training by the program of `aligner train`, which compares its folder with the run itself."""
    words = ("aligner", "train", *flags, "--output_dir", str(folder))
    return RoundStage(name, folder, {"rows": sha256_of(rows)}, words)


def upstream_flags(config: RoundsConfig) -> list[str]:
    """The flags of an upstream's training: the method's file or the given one, then those behind `aligner rounds`' own."""
    file = config.train_config or str(shipped(f"configs/upstream/{config.method}.yaml"))
    return ["--config", file, "--method", config.method, "--prompt_template", "question", *config.further]


def upstream_training(config: RoundsConfig, number: int) -> RoundStage:
    """The next upstream: on the corrections alone (sft), before the answers (dpo), or by answers of its own that a reward model of
    them scores (rloo)."""
    rows = _rows(config, number, PREFERENCE if config.method == "dpo" else SUPERVISED)
    flags = [*upstream_flags(config), "--model_name_or_path", upstream_after(config, number - 1)]
    flags += ["--train_datasets", f"correction-json::{rows}"]
    if config.method == "rloo":
        flags += ["--reward_model", str(place(config, number, "reward"))]
    return training(f"training the upstream of round {number}", place(config, number, "upstream"), flags, rows)


def reward_training(config: RoundsConfig, number: int) -> RoundStage:
    """A reward model that prefers the corrections, from the upstream of the round before."""
    rows = _rows(config, number, PREFERENCE)
    file = config.reward_config or str(shipped("configs/upstream/reward.yaml"))
    flags = ["--config", file, "--method", "reward", "--prompt_template", "question", *launch_flags(config)]
    flags += [
        "--model_name_or_path",
        upstream_after(config, number - 1),
        "--train_datasets",
        f"correction-json::{rows}",
    ]
    return training(f"training the reward model of round {number}", place(config, number, "reward"), flags, rows)


def aligner_training(config: RoundsConfig, number: int) -> RoundStage:
    """The Aligner of a round, trained anew: what the one before it made of the new upstream's answers is what it learns."""
    teacher, given = place(config, number, "teacher"), locate(config.aligner)
    rows, prompt = teacher / ALIGNER_ROWS, teacher / PROMPT
    pairs = [pair for pair in read_pairs(str(teacher / CORRECTED))[0] if not pair.unfinished and pair.after.strip()]
    write_lines(rows, [{"question": pair.question, "answer": pair.before, "correction": pair.after} for pair in pairs])
    template = prompt_of(given, config.options.prompt_template)
    write_json(prompt, {"name": template.name, "template": template.text})
    yaml = ["--config", config.aligner_config] if config.aligner_config else []
    flags = [*yaml, *launch_flags(config), "--model_name_or_path", aligner_base(config)]
    flags += ["--train_datasets", f"correction-json::{rows}", "--prompt_template", str(prompt)]
    return training(f"training the Aligner of round {number}", place(config, number, "aligner"), flags, rows)


def aligner_base(config: RoundsConfig) -> str:
    """The model that each round's Aligner is trained from: the given one, or the base of the given Aligner."""
    card = read_card(locate(config.aligner)) if Path(locate(config.aligner)).is_dir() else None
    base = config.aligner_base or (card.base_model if card else None)
    if not base:
        raise UserError("--aligner_each_round: the Aligner's card names no base model. Give one with --aligner_base.")
    return base


def further_config(config: RoundsConfig) -> RunConfig:
    """The flags for the upstream's training that stand behind the command's own, of the method that they are for."""
    reward = ["--reward_model", REWARD] if config.method == "rloo" else []
    return parse([*config.further, "--method", config.method, *reward], "aligner rounds [flags] [flags of training]")


def launch_flags(config: RoundsConfig) -> list[str]:
    """Of the flags for the upstream's training those that say where and in which type, for every other training."""
    chosen = further_config(config)
    o = chosen.optimization
    plain = parse([])
    recipe = replace(
        plain.optimization, bf16=o.bf16, fp16=o.fp16, tf32=o.tf32, gradient_checkpointing=o.gradient_checkpointing
    )
    output = replace(plain.output, log_type=chosen.output.log_type)
    where = LaunchConfig(**{**asdict(chosen.launch), "config": None, "stage": None, "dry_run": False})
    return to_flags(RunConfig(plain.model, plain.data, recipe, plain.lora, output, where))
