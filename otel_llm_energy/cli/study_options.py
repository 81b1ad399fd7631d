"""The command line of ``study``; the commands themselves are imported when they are asked for."""

from __future__ import annotations

import argparse

from otel_llm_energy.cli.meter_options import add_meter_options
from otel_llm_energy.study.plan import APIS, ORDERS

Commands = argparse._SubParsersAction  # the type that add_subparsers returns has no public name


def add_study(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``study`` and its own commands."""
    parser = commands.add_parser(
        "study",
        help="collect prompts, answers and joules as a dataset; compare models; forecast energy",
        description="From prompts to a forecast of energy. Needs: pip install 'otel-llm-energy[study]'.",
    )
    below = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_collect(below)
    _add_import(below)
    _add_report(below)
    _add_forecast(below)


def _add_collect(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "collect",
        help="ask prompts and keep each call's row",
        description="Asks each prompt and keeps one row a call, joules included. Broken off or killed, the "
        "same command goes on where it was. Without --base-url a small model of our own is asked.",
    )
    parser.add_argument(
        "prompts",
        nargs="?",
        metavar="PROMPTS",
        help="csv (column prompt, perhaps type, id, conversation, expected, check), jsonl, txt, Parquet; or starter",
    )
    parser.add_argument("--plan", metavar="FILE", help="several servers and models: a plan in TOML, or a manifest.json")
    parser.add_argument(
        "--base-url", metavar="URL", help="an OpenAI-compatible server, such as http://localhost:8000/v1, or Ollama"
    )
    parser.add_argument("--model", metavar="M", nargs="+", help="models of that server")
    parser.add_argument("--api", choices=APIS, help="what that server speaks (auto)")
    parser.add_argument("--out", metavar="DIR", help="folder of the rows; study-PROMPTS if left out")
    parser.add_argument("--repeats", type=int, metavar="N", help="ask each prompt so often (1)")
    parser.add_argument("--max-tokens", type=int, nargs="+", metavar="N", help="limits of an answer's length (256)")
    parser.add_argument("--warm-up", type=int, metavar="N", help="calls to each model before, which make no rows (1)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the order and of the answers (0)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 for the same answer each time (0)")
    parser.add_argument("--concurrency", type=int, metavar="N", help="calls at a time (1)")
    parser.add_argument("--rest", type=float, dest="rest_seconds", metavar="S", help="pause after each call, s (0.5)")
    parser.add_argument("--timeout", type=float, dest="timeout_seconds", metavar="S", help="of a call, s (300)")
    parser.add_argument("--order", choices=ORDERS, help="by-model where loading a model takes long")
    parser.add_argument("--no-stream", dest="stream", action="store_const", const=False, help="take answers as a whole")
    parser.add_argument(
        "--no-tokenize", dest="tokenize", action="store_const", const=False, help="do not ask the server's tokenizer"
    )
    parser.add_argument("--score", metavar="FILE.py:FUNCTION", help="score(prompt, answer, expected) -> 0 to 1")
    parser.add_argument("--no-content", action="store_true", help="keep hashes of prompts and answers, not their texts")
    parser.add_argument("--retry-failed", action="store_true", help="ask again what failed in an earlier run")
    add_meter_options(parser)
    parser.set_defaults(command=_collect, own_signals=False)


def _add_import(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "import",
        help="import MELODI's csv files as a study",
        description="Imports csv files of MELODI, so that published data stand beside one's own. Their joules hold "
        "idle power, and have no part above idle.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="csv files of one machine")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the rows")
    parser.add_argument("--machine", default="melodi", metavar="NAME", help="what they were measured on (melodi)")
    parser.set_defaults(command=_import, own_signals=False)


def _add_report(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="show what was collected on one HTML page",
        description="Writes one HTML page that needs no network: what drives energy, models and deployments side by "
        "side, score against joules, and what is odd.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folders of studies, collected or imported")
    parser.add_argument("--out", metavar="FILE", help="the page; report.html in the first folder if left out")
    parser.set_defaults(command=_report, own_signals=False)


def _add_forecast(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "forecast",
        help="learn energy from what was collected, and forecast a dataset's",
        description="Learns what a call takes from its prompt, deployment and limit, and from its tokens where "
        "they are known; with intervals, and its error beside that of simple baselines.",
    )
    below = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    fit = below.add_parser("fit", help="learn, and write a model file")
    fit.add_argument("folders", nargs="+", metavar="DIR", help="folders of studies")
    fit.add_argument("--out", default="forecast.json", metavar="FILE", help="the model file (forecast.json)")
    _add_target(fit)
    fit.set_defaults(command=_fit, own_signals=False)
    evaluate = below.add_parser("evaluate", help="print the error on calls that were not learned from")
    evaluate.add_argument("folders", nargs="+", metavar="DIR", help="folders of studies")
    evaluate.add_argument("--json", action="store_true", help="print a JSON list")
    _add_target(evaluate)
    evaluate.set_defaults(command=_evaluate, own_signals=False)
    predict = below.add_parser("predict", help="print what prompts would take")
    predict.add_argument("model_file", metavar="FILE", help="a model file that fit wrote")
    predict.add_argument("prompts", metavar="PROMPTS", help="as for collect")
    predict.add_argument("--model", metavar="M", help="only this model; all that were collected if left out")
    predict.add_argument("--server", metavar="NAME", help="only this server")
    predict.add_argument("--max-tokens", type=_from_1, default=256, metavar="N", help="limit of the answers (256)")
    predict.add_argument("--output-tokens", type=_from_0, metavar="N", help="length of the answers, where it is known")
    predict.add_argument("--level", type=_part, default=0.9, metavar="P", help="of the intervals (0.9)")
    predict.add_argument("--json", action="store_true", help="print one JSON object")
    predict.set_defaults(command=_predict, own_signals=False)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--above-idle",
        dest="target",
        action="store_const",
        const="above_idle_joules",
        default="joules",
        help="the part above idle, instead of a call's joules with its part of the idle power",
    )


def _from_1(text: str) -> int:
    return _whole(text, 1)


def _from_0(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"a whole number from {least}")
    return int(text)


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("a number between 0 and 1")
    return value


def _collect(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.study import run_collect

    return run_collect(asked)


def _import(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.study import run_import

    return run_import(asked)


def _report(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.study import run_report

    return run_report(asked)


def _fit(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.study_forecast import run_fit

    return run_fit(asked)


def _evaluate(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.study_forecast import run_evaluate

    return run_evaluate(asked)


def _predict(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.study_forecast import run_predict

    return run_predict(asked)
