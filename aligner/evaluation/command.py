"""`aligner evaluate`: from its settings to a job: the judge, the dimensions, and what else is measured."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from aligner.console import setup_logging
from aligner.evaluation.alpaca_eval import AlpacaEval
from aligner.evaluation.checkpoint_sweep import CheckpointSweep, in_order
from aligner.evaluation.config import EvaluationConfig
from aligner.evaluation.evaluate import EvaluationJob, run_job
from aligner.evaluation.judges.judge import Judge
from aligner.evaluation.systems import parse_system
from aligner.routing.config import read_routes
from aligner.training.datasets.options import QAC, parse_columns


def run_evaluation(config: EvaluationConfig) -> int:
    """Evaluate as the settings say; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is handled as Ctrl-C
    setup_logging()
    systems = tuple(map(parse_system, config.systems))
    return run_job(
        EvaluationJob(
            after=config.after,
            before=config.before,
            systems=systems,
            output=Path(config.output),
            dimensions=config.dimension_names,
            judge=judge_of(config),
            labels=config.labels,
            price=config.price,
            max_tokens=config.reply_tokens,
            limit=config.limit,
            run_folder=config.run_folder,
            alpaca=_alpaca_eval_of(config),
            sweep=_sweep_of(config),
            columns=parse_columns(config.columns, "") or QAC,
        )
    )


def _sweep_of(config: EvaluationConfig) -> CheckpointSweep | None:
    """The Aligners to measure, if there are any; a wrong address is reported before anything is paid for."""
    if not config.models and not config.route:
        return None
    from aligner.models import check_place, quiet_libraries

    quiet_libraries()
    for _, model in in_order(config.models):
        check_place(model)
    flags = {name: getattr(config, name) for name in ("max_new_tokens", "prompt_template", "trust_remote_code")}
    if config.route:
        read_routes(config.route).check_local()
    given = {name: value for name, value in flags.items() if value}
    return CheckpointSweep(config.models, given, config.steering, config.route)


def _alpaca_eval_of(config: EvaluationConfig) -> AlpacaEval | None:
    """How AlpacaEval is to be run, if it is."""
    if not config.alpaca_eval:
        return None
    key = os.environ.get(config.judge_key)
    return AlpacaEval(config.alpaca_eval, config.alpaca_eval_judge, config.judge_model, config.judge_url, key)


def judge_of(config: EvaluationConfig) -> Judge | None:
    """The judge that the settings name, opened; None where nothing is judged."""
    if config.judge == "none":
        return None
    if config.judge == "served":
        from aligner.evaluation.judges.served import ServedJudge
        from aligner.inference.servers import Server

        url, model = config.judge_url or "", config.judge_model or ""
        return ServedJudge(Server(url, model, config.judge_key, config.concurrency, config.timeout), config.max_tokens)
    if config.judge == "human":
        from aligner.evaluation.judges.human import HumanJudge

        return HumanJudge.load(config.labels or "")
    return _model_judge(config)


def _model_judge(config: EvaluationConfig) -> Judge:
    """A judge whose model runs on this machine."""
    from aligner.demo import locate
    from aligner.models import check_place, quiet_libraries

    quiet_libraries()
    model, trusted = config.judge_model or "", config.trust_remote_code
    folder, costs = locate(model), locate(config.cost_model or model)
    check_place(folder)
    check_place(costs)
    if config.judge == "reward-cost":
        from aligner.evaluation.judges.reward_and_cost import RewardAndCost

        return RewardAndCost.load(folder, costs, trusted)
    if config.judge == "local":
        from aligner.evaluation.judges.local import LocalJudge

        return LocalJudge.load(folder, config.max_tokens, config.batch_size, trusted)
    from aligner.evaluation.judges.scores import ScoreJudge

    return ScoreJudge.load(folder, config.judge == "cost", trusted)
