"""What to do about a run that failed: overrides to paste, from the cause and the settings it had."""

from specvit.config.schema import Config


def remedy_for(state: str, config: Config) -> str:
    """Return the remedy of a failed state as overrides, most likely help first; empty where there is none."""
    train, opt = config.train, config.opt
    if state == "diverged":
        advice = [f"opt.lr={opt.lr / 4:.2g}"]
        advice += ["train.gradient_clip=0.5"] if train.gradient_clip is None or train.gradient_clip > 0.5 else []
        advice += ["train.precision=32"] if train.precision != "32" else []
        advice += ["opt.warmup_epochs=1"] if opt.warmup_epochs == 0 and train.epochs > 1 else []
        return f"try {' '.join(advice)}, and check the data with `specvit data inspect FILE`"
    if state == "oom":
        smaller = max(1, train.batch_size // 2)
        advice = [f"train.batch_size={smaller} train.accumulate={train.accumulate * 2}"]
        advice += [] if train.checkpoint_blocks else ["train.checkpoint_blocks=true"]
        advice += ["train.precision=bf16-mixed"] if train.precision == "32" else []
        advice += ["data.resident=never"] if config.data.resident == "auto" else []
        return f"try {', then '.join(advice)}"
    if state == "plateau":
        other = 3e-4 if opt.lr < 1e-4 else opt.lr / 3
        advice = [f"opt.lr={other:.2g}", "opt.warmup_epochs=1"]
        advice += ["data.flux_norm=standard"] if config.data.flux_norm == "none" else []
        advice += ["model.init=specvit"] if config.model.init != "specvit" else []
        return f"it learnt nothing; try {' '.join(advice)}, or more epochs"
    return ""
