"""`specvit doctor [overrides]`: a configuration checked before it is run."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specvit.checks.rules import FAULT, RULES, Measure, findings
from specvit.commands.answer import Answer, add_json
from specvit.commands.entry import Parser
from specvit.tracking.console import Console
from specvit.utils.errors import ConfigError
from specvit.utils.text import counted, text_table

if TYPE_CHECKING:
    from specvit.checks.checkup import Checkup
    from specvit.checks.network import NetworkFacts
    from specvit.checks.training import TrainingFacts


def check(words: list[str]) -> int | Answer:
    """Print or return what is found; the exit code is 1 if there is a fault."""
    own = Parser(prog="specvit doctor", add_help=False)
    own.add_argument("overrides", nargs="*")
    own.add_argument("--quick", action="store_true")
    own.add_argument("--out")
    add_json(own)
    options = own.parse_intermixed_args(words)
    if options.out and options.quick:
        remedy = "leave one of them out"
        raise ConfigError("does not go with --quick, which has no learning-rate test", where="--out", remedy=remedy)
    from specvit.config.build import build_config  # Hydra, which help does without
    from specvit.config.compose import compose
    from specvit.config.overrides import bracket_lists

    if studies := [word for word in options.overrides if word.startswith("sweeps=")]:
        raise ConfigError("is a study", where=studies[0], remedy="give the overrides of one run")
    config = build_config(compose(bracket_lists(options.overrides)))
    from specvit.checks.checkup import check_up  # torch, which a refusal does without

    console = Console("lines")
    found = check_up(config, console.show_generation, console.say, trains=not options.quick)
    if options.out:
        _draw(Path(options.out), found.training, console)
    broken = findings(found.measures)
    code = int(any(RULES[one.rule].severity == FAULT for one in broken))
    if options.json:
        return Answer("doctor", _facts(options.overrides, found), code)
    _print(found)
    _print_findings(broken)
    return code


def _print(found: "Checkup") -> None:
    rows = ", ".join(f"{rows:,} {name}" for name, rows in found.spectra.items())
    print(f"spectra: {rows}; {found.pixels:,} pixels")
    if found.network:
        _print_network(found.network)
    if found.training:
        _print_training(found.training, {one.rule for one in found.measures})
    cells = [["rule", "measured", "sound", "value", ""]]
    for one in found.measures:
        rule = RULES[one.rule]
        cells.append([rule.id, one.name, rule.range, f"{one.value:.4g}", "" if one.kept else rule.severity])
    print()
    for line in text_table(cells):
        print(line)


def _print_network(network: "NetworkFacts") -> None:
    print(f"\nstages, on {network.rows} rows of the first batch, float32, no dropout:")
    cells = [["stage", "shape", "RMS", "std over spectra"]]
    for name, stage in network.stages.items():
        shape = " x ".join(map(str, stage.shape))
        cells.append([name, shape, f"{stage.rms:.4g}", f"{stage.std:.4g}"])
    for line in text_table(cells):
        print(line)
    print("\nparameters: " + ", ".join(f"{name} {count:,}" for name, count in network.components.items()))
    for line in network.cost.lines():
        print(line)
    if network.checklist_size:
        print(f"the tuning checklist calls this size {network.checklist_size}; the count above is the true one")
    print("gradient norms: " + ", ".join(f"{name} {norm:.4g}" for name, norm in network.norms.items()))
    print(f"memory of a step: about {network.step_bytes / 1e9:.2g} GB in float32")


def _print_training(training: "TrainingFacts", judged: set[str]) -> None:
    """Print the tests by training; `judged` are the rules that have a measure."""
    score, steps = training.overfit_score, training.overfit_steps
    stopped = "" if {"overfit", "overfit_classes"} & judged else "; too slow here to be judged"
    print(f"\noverfit test: score {score:.4g} after {steps} steps on the same few rows{stopped}")
    if math.isfinite(training.hours):
        print(f"a step takes {training.step_seconds:.3g} s: {training.hours:.2g} hours without validations")
    if not training.curves:
        print("learning-rate test: none, for lack of steps or of time")
        return
    losses = ", ".join(f"{rate:g}: {loss:.4g}" for rate, loss in training.losses.items())
    unclear = "" if "lr_test" in judged else "; none falls enough to be judged"
    print(f"learning-rate test, loss after {training.rate_steps} steps: {losses}{unclear}")


def _draw(path: Path, training: "TrainingFacts | None", console: Console) -> None:
    """Draw the learning-rate test, if there was one."""
    if training is None or not training.curves:
        console.say("note: no figure is drawn, for there was no learning-rate test")
        return
    from specvit.tracking.figures import attempt, draw_rates  # numpy, which help does without

    attempt(path, lambda place: draw_rates(place, training.curves), console.say)


def _print_findings(broken: list[Measure]) -> None:
    print()
    for one in broken:
        rule = RULES[one.rule]
        print(f"{rule.severity} {rule.id}: {one.name} is {one.value:.4g}, {rule.range} is sound; remedy: {one.remedy}")
    counts = [sum(RULES[one.rule].severity == severity for one in broken) for severity in ("fault", "warning", "note")]
    kinds = zip(counts, ("fault", "warning", "note"), strict=True)
    print(", ".join(counted(count, kind) for count, kind in kinds))


def _facts(overrides: list[str], found: "Checkup") -> dict[str, Any]:
    """Return what the document says, besides its schema."""
    facts = {"overrides": overrides, "spectra": found.spectra, "pixels": found.pixels}
    facts |= {"network": _network_facts(found.network), "training": _training_facts(found.training)}
    return {**facts, "measures": [one.facts() for one in found.measures]}


def _training_facts(training: "TrainingFacts | None") -> dict[str, Any] | None:
    if training is None:
        return None
    rates = [{"lr": rate, "loss": loss} for rate, loss in training.losses.items()]
    tests = {"overfit_steps": training.overfit_steps, "overfit_score": training.overfit_score}
    return {
        **tests,
        "step_seconds": training.step_seconds,
        "hours": training.hours,
        "rate_steps": training.rate_steps,
        "rates": rates,
    }


def _network_facts(network: "NetworkFacts | None") -> dict[str, Any] | None:
    if network is None:
        return None
    stages = [{"stage": name, **vars(stage), "shape": list(stage.shape)} for name, stage in network.stages.items()]
    cost = network.cost
    flops = {"tokens": cost.num_tokens, "forward_flops": cost.forward_flops, "training_flops": cost.training_flops}
    sizes = {"parameters": sum(cost.parameters.values()), "components": network.components}
    norms = {"rows": network.rows, "gradient_norms": network.norms, "step_bytes": network.step_bytes}
    return {"stages": stages, **sizes, **flops, **norms}
