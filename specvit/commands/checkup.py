"""`specvit doctor [overrides]`: a configuration checked before it is run."""

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


def check(words: list[str]) -> int | Answer:
    """Print or return what is found; the exit code is 1 if there is a fault."""
    own = Parser(prog="specvit doctor", add_help=False)
    own.add_argument("overrides", nargs="*")
    add_json(own)
    options = own.parse_intermixed_args(words)
    from specvit.config.build import build_config  # Hydra, which help does without
    from specvit.config.compose import compose
    from specvit.config.overrides import bracket_lists

    if studies := [word for word in options.overrides if word.startswith("sweeps=")]:
        raise ConfigError("is a study", where=studies[0], remedy="give the overrides of one run")
    config = build_config(compose(bracket_lists(options.overrides)))
    from specvit.checks.checkup import check_up  # torch, which a refusal does without

    console = Console("lines")
    found = check_up(config, console.show_generation, console.say)
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


def _print_findings(broken: list[Measure]) -> None:
    print()
    for one in broken:
        rule = RULES[one.rule]
        print(f"{rule.severity} {rule.id}: {one.name} is {one.value:.4g}, {rule.range} is sound; try {rule.remedy}")
    counts = [sum(RULES[one.rule].severity == severity for one in broken) for severity in ("fault", "warning", "note")]
    kinds = zip(counts, ("fault", "warning", "note"), strict=True)
    print(", ".join(counted(count, kind) for count, kind in kinds))


def _facts(overrides: list[str], found: "Checkup") -> dict[str, Any]:
    """Return what the document says, besides its schema."""
    facts = {"overrides": overrides, "spectra": found.spectra, "pixels": found.pixels}
    return {**facts, "network": _network_facts(found.network), "measures": [one.facts() for one in found.measures]}


def _network_facts(network: "NetworkFacts | None") -> dict[str, Any] | None:
    if network is None:
        return None
    stages = [{"stage": name, **vars(stage), "shape": list(stage.shape)} for name, stage in network.stages.items()]
    cost = network.cost
    flops = {"tokens": cost.num_tokens, "forward_flops": cost.forward_flops, "training_flops": cost.training_flops}
    sizes = {"parameters": sum(cost.parameters.values()), "components": network.components}
    norms = {"rows": network.rows, "gradient_norms": network.norms, "step_bytes": network.step_bytes}
    return {"stages": stages, **sizes, **flops, **norms}
