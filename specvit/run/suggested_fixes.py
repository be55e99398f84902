"""What to do about a run that failed: overrides to paste, from the cause and the settings it had."""

from specvit.config.schema import Config, NetworkConfig, OptConfig, ViTConfig

FITTED = {
    "diverged": "look at the spectra with `specvit data inspect FILE`; trees may want a smaller model.min_leaf_rows",
    "oom": "use a machine with more memory, or fewer rows (data.num_samples)",
    "plateau": "more rows (data.num_samples) or less noise (noise.noise_level) would help",
}
"""Remedies of models that are fitted in one go."""


def remedy_for(state: str, config: Config) -> str:
    """Return the remedy of a failed state as overrides, most likely help first; empty where there is none."""
    if not isinstance(config.model, NetworkConfig):
        return FITTED.get(state, "")
    train, opt = config.train, config.opt
    if state == "diverged":
        advice = _rate(opt, opt.lr / 4)
        advice += ["train.gradient_clip=0.5"] if train.gradient_clip is None or train.gradient_clip > 0.5 else []
        advice += ["train.precision=32"] if train.precision != "32" else []
        advice += ["opt.warmup_epochs=1"] if opt.warmup_epochs == 0 and train.epochs > 1 else []
        inspect = "" if config.data.makes else ", and check the data with `specvit data inspect FILE`"
        return f"try {' '.join(advice)}{inspect}"
    if state == "oom":
        advice = []
        if train.batch_size > 1:
            advice += [f"train.batch_size={train.batch_size // 2} train.accumulate={train.accumulate * 2}"]
        if not train.checkpoint_blocks:
            advice += ["train.checkpoint_blocks=true" + (" train.compile=false" if train.compile else "")]
        advice += ["train.precision=bf16-mixed"] if train.precision == "32" else []
        advice += ["data.resident=never"] if config.data.resident == "auto" and config.data.kind != "synth" else []
        return f"try {', then '.join(advice)}"
    if state == "plateau":
        other = 3e-4 if opt.lr < 1e-4 else opt.lr / 3
        advice = _rate(opt, other)
        advice += ["opt.warmup_epochs=1"] if opt.warmup_epochs < 1 < train.epochs else []
        advice += ["data.flux_norm=standard"] if config.data.flux_norm == "none" else []
        legacy = isinstance(config.model, ViTConfig) and config.model.init != "specvit"
        advice += ["model.init=specvit"] if legacy else []
        return f"try {' '.join(advice)}, or more epochs"
    return ""


def _rate(opt: OptConfig, lr: float) -> list[str]:
    """Return the override of the rate, and of its floor where that would be above it."""
    lowers_floor = opt.lr_sch in ("cosine", "onecycle") and opt.eta_min > lr
    return [f"opt.lr={lr:.2g}"] + ([f"opt.eta_min={lr / 100:.2g}"] if lowers_floor else [])
