"""What other configuration files call our keys, and which of theirs have none here: for hints and `specvit import`.

A name is looked up with its section as specvit calls it (`training.optimizer.name` is `opt.name`); one that is listed
without a section means the same at the top of a file and in the sections of `GENERAL`.
"""

import re
from dataclasses import dataclass

SECTIONS = {
    "model": "model net network backbone encoder transformer vit model_config model_settings architecture",
    "train": "train training trainer fit trainer_settings dl_settings training_args train_config training_config",
    "opt": "opt optim optimizer optimiser optimization optimizer_config",
    "sched": "sched scheduler lr_scheduler lr_sch schedule lr_schedule",
    "data": "data dataset datamodule dataloader loader data_config data_module",
    "noise": "noise",
    "loss": "loss criterion loss_fn",
    "stop": "early_stopping early_stop earlystopping",
    "best": "model_checkpoint modelcheckpoint checkpoint_callback",
    "warmup": "warmup",
    "log": "tracking wandb mlflow logger logging tensorboard log learning_rate_monitor rich_progress_bar "
    "tqdmprogress_bar model_summary rich_model_summary",
    "view": "viz visualization visualisation plotting plot plots figures",
    "search": "search_settings search optuna",
    "manager": "manager_settings manager",
    "method": "method_settings",
    "hydra": "hydra",
}
"""Sections by the names that they have in other files."""
WRAPPERS = "config cfg args params hparams hyperparameters hyper_parameters init_args kwargs settings callbacks"
"""Sections that only hold others."""
GENERAL = ("", "model", "train", "opt", "data")
OWN_SECTIONS = {"sched": "opt", "stop": "train.early_stopping", "log": "tracking"}
TAKEN = {
    "model.kind": "model model.name model.type model.kind model_name model_type model.model_name model.class_path "
    "model._target_ model.architecture architecture arch arch_name",
    "model.task_type": "task_type task problem_type",
    "model.patch_size": "patch_size patch patch_len patch_length patch_width",
    "model.stride_size": "stride_size stride patch_stride stride_length",
    "model.hidden_size": "hidden_size hidden_dim d_model embed_dim embedding_dim emb_dim n_embd model_dim model.dim "
    "model.width model.hidden width hidden",
    "model.num_hidden_layers": "num_hidden_layers num_layers n_layers n_layer nlayers depth layers num_blocks n_blocks "
    "num_encoder_layers",
    "model.num_attention_heads": "num_attention_heads num_heads n_heads n_head nhead nheads heads attention_heads",
    "model.intermediate_size": "intermediate_size mlp_dim ffn_dim dim_feedforward d_ff ff_dim feedforward_dim mlp_size",
    "model.dropout": "dropout dropout_rate drop_rate hidden_dropout_prob hidden_dropout resid_pdrop drop dropout_p",
    "model.proj_fn": "proj_fn projection tokenizer patch_proj patch_embedding embedding_type",
    "model.pos_encoding_type": "pos_encoding_type position_encoding positional_encoding pos_encoding pos_embed "
    "pos_embedding pos_emb pos_emb_type pos_embed_type position_embedding_type positional_encoding_type",
    "model.pool": "pool pooling global_pool pool_type pooling_type",
    "model.qkv_bias": "qkv_bias",
    "data.root": "data.root data.path data.dir data.data_dir data_path data_dir data_root dataset_path dataset_dir "
    "root_dir",
    "data.file_path": "file_path train_path train_file train_files train_dir train_data train_shards shards data.train",
    "data.val_path": "val_path valid_path validation_path val_file val_dir val_data data.val data.valid",
    "data.test_path": "test_path test_file test_dir test_data data.test",
    "data.num_samples": "num_samples train_size train_samples n_train num_train num_train_samples max_train_samples "
    "n_samples sample_size dataset_size data.size data.sizes sizes",
    "data.val_samples": "val_samples val_size valid_size validation_size n_val num_val num_val_samples "
    "max_eval_samples",
    "data.test_samples": "test_samples test_size n_test num_test num_test_samples",
    "data.param": "param target targets label labels target_name label_name target_param data.params data.parameter",
    "data.label_norm": "label_norm target_norm y_norm label_normalization normalize_labels label_scaler target_scaler",
    "noise.noise_level": "noise_level noise_sigma noise_std noise_scale noise.sigma noise.level noise.std noise.scale "
    "noise",
    "noise.noise_type": "noise_type noise_kind noise.type noise.kind",
    "loss.name": "loss loss_fn loss_function loss_type loss_name criterion objective loss.type loss.fn loss._target_ "
    "loss.class_path",
    "loss.huber_delta": "huber_delta loss.delta loss.beta",
    "loss.label_smoothing": "label_smoothing label_smoothing_factor smoothing loss.smoothing",
    "opt.type": "optimizer optim optimiser opt optimizer_name optimizer_type opt_type opt.name opt.optimizer "
    "opt._target_ opt.class_path",
    "opt.lr": "lr learning_rate base_lr init_lr lr_init initial_lr max_lr peak_lr lr0 sched.max_lr",
    "opt.weight_decay": "weight_decay wd opt.decay",
    "opt.betas": "betas adam_betas opt_betas",
    "opt.momentum": "momentum",
    "opt.lr_sch": "lr_sch lr_scheduler scheduler lr_schedule lr_scheduler_type lr_policy schedule sched scheduler_type "
    "scheduler_name opt.scheduler sched.name sched.type sched._target_ sched.class_path",
    "opt.eta_min": "eta_min min_lr lr_min minimum_lr final_lr end_lr sched.eta_min sched.min_lr sched.lr_min",
    "opt.warmup_epochs": "warmup_epochs warmup_epoch num_warmup_epochs n_warmup_epochs warmup.epochs "
    "sched.warmup_epochs",
    "opt.step_epochs": "step_epochs lr_step lr_step_size decay_epochs sched.step_size",
    "opt.factor": "lr_factor lr_gamma gamma decay_rate sched.gamma sched.factor",
    "opt.plateau_patience": "plateau_patience lr_patience sched.patience",
    "train.epochs": "epochs ep epoch num_epochs n_epochs nepochs max_epochs total_epochs num_train_epochs",
    "train.batch_size": "batch_size batch bs batchsize train_batch_size per_device_train_batch_size",
    "train.accumulate": "accumulate accumulate_grad_batches gradient_accumulation_steps gradient_accumulation "
    "grad_accum "
    "grad_accum_steps accumulation_steps",
    "train.precision": "precision mixed_precision dtype torch_dtype",
    "train.gradient_clip": "gradient_clip gradient_clip_val gradient_clipping grad_clip grad_clip_norm clip_grad "
    "clip_grad_norm max_grad_norm clip_norm max_norm clip",
    "train.seed": "seed random_seed seed_everything random_state manual_seed global_seed",
    "train.deterministic": "deterministic",
    "train.compile": "compile torch_compile use_compile",
    "train.early_stopping.patience": "patience early_stopping_patience early_stop_patience es_patience",
    "train.early_stopping.monitor": "monitor early_stopping_monitor metric_for_best_model monitor_metric stop.metric",
    "train.early_stopping.mode": "monitor_mode early_stopping_mode train.mode greater_is_better",
    "tracking.experiment": "project project_name wandb_project experiment_name log.project log.experiment_name",
    "tracking.name": "experiment_id exp_name exp_id run_name name log.run_name log.name",
    "tracking.notes": "notes note description comment",
    "tracking.uri": "tracking_uri mlflow_uri log.tracking_uri",
}
"""Our keys, each with its names in other files."""
FIXED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("num_channels in_channels in_chans n_channels", (1,), "a spectrum has one channel"),
    ("hidden_act activation act act_fn activation_function", ("gelu", "nn.gelu"), "the activation is GELU"),
    (
        "attention_probs_dropout_prob attention_dropout attn_dropout attn_drop attn_drop_rate attn_pdrop",
        (0,),
        "attention weights are not dropped out",
    ),
    ("drop_path drop_path_rate stochastic_depth", (0,), "no block is skipped at random"),
    ("layer_norm_eps norm_eps", (1e-5,), "LayerNorm adds 1e-5"),
    (
        "initializer_range init_std",
        (),
        "weights start by model.init, whose `legacy` is that of the transformers library",
    ),
    ("norm_first pre_norm pre_ln", (True,), "norms precede attention and feed-forward layers (pre-LN)"),
    ("bias use_bias", (True,), "linear layers have biases; model.qkv_bias=false removes those of q, k and v"),
    ("eps adam_eps adam_epsilon opt_eps", (1e-8,), "the optimizer adds 1e-8"),
    ("amsgrad nesterov", (False,), "the optimizer does without"),
    ("gradient_clip_algorithm clip_mode", ("norm",), "gradients are clipped by their norm"),
    ("shuffle", (True,), "training rows are shuffled each epoch"),
    ("drop_last", (True,), "rows of an epoch that fill no step wait for the next shuffle"),
    (
        "apply_noise_to noise.apply_to noise.splits noise.apply_noise_to",
        ("all", "both", ("train", "val", "test")),
        "validation and test spectra have noise, too, one fixed realisation, so scores are those of noisy spectra; "
        "`specvit evaluate RUN --noise 0` scores clean ones",
    ),
    (
        "devices gpus num_gpus n_gpu ngpu n_gpus ngpus world_size num_nodes nodes",
        (1, "auto", (0,), 0),
        "one process trains on one device; if the batch size was that of each device, multiply it",
    ),
    (
        "check_val_every_n_epoch val_check_interval eval_every eval_steps eval_strategy evaluation_strategy val_every",
        (1, "epoch", "steps"),
        "every epoch is validated, and patience counts epochs",
    ),
    ("tf32 allow_tf32", (False,), "float32 is float32"),
    ("load_best_model_at_end save_best", (True,), "the best epoch is tested"),
    ("warmup_lr warmup_start_lr sched.warmup_lr", (0,), "warm-up starts at 0"),
    ("cooldown_epochs sched.cooldown", (0,), "the schedule ends with the last epoch"),
    ("fast_dev_run overfit_batches limit_train_batches limit_val_batches", (False, 1), "every row is used"),
    ("strategy", ("auto", "none"), "one process trains on one device"),
    ("min_delta stop.min_delta early_stopping_min_delta", (0,), "any better epoch counts"),
    ("ema use_ema ema_decay model_ema swa use_swa", (False, 0), "weights are not averaged over steps"),
    (
        "augment augmentation augmentations aa auto_augment mixup mixup_alpha cutmix",
        (False, 0, "none"),
        "noise is the only augmentation",
    ),
    (
        "pretrained pretrained_path load_from",
        (False,),
        "train.init_from=FILE starts from the weights of a run, or from those of transformers' ViTModel",
    ),
    (
        "resume resume_from resume_from_checkpoint ckpt_path checkpoint",
        (False,),
        "a run of specvit resumes by itself; train.init_from=FILE starts from the weights of another",
    ),
)
"""Names of what is not a choice here: values that mean the same, and what holds for every run."""
DROPPED = {
    "image_size img_size input_size input_dim input_length seq_len sequence_length num_pixels n_pixels "
    "spectrum_length": ("a spectrum has the pixels that its file has"),
    "num_labels num_classes num_outputs n_outputs output_dim out_dim": "it follows from data.param",
    "num_workers workers dataloader_num_workers dataloader_pin_memory pin_memory pin_mem persistent_workers "
    "prefetch_factor non_blocking": "batches are made on the device",
    "accelerator device cuda use_gpu use_cuda gpu gpu_id no_cuda": "train.device=auto takes the GPU, if there is one",
    "output_dir save_dir log_dir ckpt_dir checkpoint_dir save_path out_dir exp_dir results_dir default_root_dir": (
        "runs are in outputs/NAME-HASH; tracking.folder=FOLDER puts them elsewhere"
    ),
    "save_every save_freq save_interval save_steps save_strategy save_total_limit save_top_k save_last "
    "enable_checkpointing save_model checkpoint_every overwrite_output_dir": (
        "every epoch is saved, and the best one kept"
    ),
    "log_every log_every_n_steps log_interval logging_steps print_freq report_to enable_progress_bar verbose debug "
    "num_sanity_val_steps log_level logging_dir logging_strategy disable_tqdm do_train do_eval": (
        "every epoch is validated and recorded"
    ),
    "eval_batch_size val_batch_size test_batch_size per_device_eval_batch_size": "scores are computed in batches of "
    "256",
    "benchmark cudnn_benchmark": "runs are deterministic",
    "repo_path repo git_commit version author date user host wandb_version framework transformers_version "
    "architectures train.class_path train._target_ data.class_path data._target_ _partial_ _recursive_ _convert_ "
    "best.class_path best._target_ stop.class_path "
    "stop._target_": ("it says where the file was used"),
    "manager.gpus_per_subtask": "a run uses one GPU; hydra/launcher=local gives each its own",
    "pooler_act pooler_output_size encoder_stride": "model.pool says what the head reads",
    "view.compare_with": "baselines are runs of their own: model=ridge, model=lightgbm",
    "entity tags log.job_type log.mode log.entity log.tags log.group log.enabled use_wandb wandb_entity log_wandb": (
        "records go to MLflow; tags are typed as +tracking.tags.NAME=VALUE"
    ),
}
"""Names without a counterpart whose loss changes no result."""
OTHER_SECTIONS: dict[str, tuple[str, bool]] = {
    "view": ("every run draws its own figures, and `specvit analysis` those of many runs", False),
    "log": ("records go to MLflow, by tracking.*", False),
    "method": ("specvit neither merges nor prunes tokens: the run is that of the whole network", True),
    "best": ("every epoch is saved, and the best one kept", False),
    "hydra": ("Hydra composes and nothing else; see docs/configuration.md", False),
}
"""What becomes of all names of a section, and whether that changes results."""
NAMED = {
    "warmup.preprocessor": (
        "specvit has no preprocessor before the tokenizer; opt.warmup_epochs warms the learning rate up",
        True,
    ),
    "optimizers": ("one optimizer trains the whole network: set opt.lr and the like", True),
    "_wandb": ("it says where the file was used", False),
    "id2label": ("it follows from data.param", False),
    "label2id": ("it follows from data.param", False),
    "preprocessor": ("specvit has no preprocessor before the tokenizer", True),
}
"""The same for names of any depth that begin so, in the sections as they are called here."""
SPECIAL = {
    "head_dim": ("head_dim", "it is model.hidden_size / model.num_attention_heads: set these"),
    "mlp_ratio": ("mlp_ratio", "set model.intermediate_size to so many times model.hidden_size"),
    "overlap": ("overlap", "set model.stride_size to model.patch_size less the overlap"),
    "warmup_steps num_warmup_steps sched.warmup_steps warmup.steps": (
        "warmup_steps",
        "set opt.warmup_epochs to steps / (training rows / rows of a step)",
    ),
    "warmup warmup_ratio sched.warmup sched.warmup_ratio warmup.ratio": (
        "warmup",
        "set opt.warmup_epochs, in epochs",
    ),
    "max_steps num_train_steps num_steps total_steps max_iters": (
        "max_steps",
        "set train.epochs to steps / (training rows / rows of a step)",
    ),
    "t_max sched.t_max sched.epochs sched.total_steps sched.num_training_steps": (
        "length",
        "a schedule is as long as train.epochs",
    ),
    "adam_beta1 adam_beta2 beta1 beta2": ("betas", "set opt.betas=[A,B]"),
    "fp16 bf16 amp use_amp": ("half", "set train.precision"),
    "amp_dtype": ("half_type", "set train.precision"),
    "best.monitor best.mode": ("best", "set train.early_stopping.monitor and .mode"),
    "early_stopping early_stop use_early_stopping stop.enabled stop.enable stop.use": (
        "stopping",
        "set train.early_stopping.patience to the epochs without a better one",
    ),
    "noise.enabled noise.enable add_noise use_noise": ("noise", "set noise.noise_level, or noise.noise_type=none"),
    "data data.source dataset data.dataset data.name": ("source", "choose data=bosz, or data=hdf5 with data.file_path"),
    "manager.available_gpus": ("gpus", "CUDA_VISIBLE_DEVICES and hydra/launcher=local choose the GPUs"),
    "manager.mode search.enable search.n_trials n_trials": (
        "search",
        "this file is one run; a search needs a space, in a file in sweeps/ (docs/sweeps.md)",
    ),
    "defaults": ("defaults", "write it into a file in conf/experiment"),
}
"""Names whose meaning takes other keys to tell: their handler in `importing.special`, and what to set."""


@dataclass(frozen=True)
class Entry:
    """What a name of another file is here: a `key`; or `special`; or nothing, and `why`.

    `same` are the values whose loss changes no result; None: no value's does.
    """

    key: str = ""
    special: str = ""
    why: str = ""
    same: tuple[object, ...] | None = None


def _entries() -> dict[str, Entry]:
    found = {name: Entry(why=why, same=same) for names, same, why in FIXED for name in names.split()}
    found |= {name: Entry(why=why) for names, why in DROPPED.items() for name in names.split()}
    found |= {name: Entry(special=who, why=hint) for names, (who, hint) in SPECIAL.items() for name in names.split()}
    return found | {name: Entry(key=key) for key, names in TAKEN.items() for name in names.split()}


ENTRIES = _entries()
SECTION_OF = {name: section for section, names in SECTIONS.items() for name in names.split()}


def placed(dotted: str) -> tuple[str, str]:
    """Return the section of a name as specvit calls it, and the rest of the name in lower case with underscores.

    The rest has several parts where the name is within something unknown: `model.decoder.depth` is `decoder.depth`.
    """
    dotted = re.sub(r"\[\d+(:\w+)?\]", lambda found: f".{found[1][1:]}" if found[1] else "", dotted)
    parts = [
        re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower().replace("-", "_").replace(" ", "_")
        for part in dotted.replace("/", ".").split(".")
    ]
    section = ""
    for number, part in enumerate(parts[:-1]):
        if part in SECTION_OF:
            section = SECTION_OF[part]
        elif part not in WRAPPERS.split():
            return section, ".".join(parts[number:])
    return section, parts[-1]


def entry_of(dotted: str) -> Entry | None:
    """Return what a name of another file is here; None for one that the tables do not know."""
    section, rest = placed(dotted)
    names = [f"{section}.{rest}".lstrip("."), *([rest] if section in GENERAL else [])]
    for name in names:
        if name in ENTRIES:
            return ENTRIES[name]
    for name in names:
        for start, (why, changes) in NAMED.items():
            if f"{name}.".startswith(f"{start}."):
                return Entry(why=why, same=() if changes else None)
    whole = OTHER_SECTIONS.get(section) or OTHER_SECTIONS.get(SECTION_OF.get(rest, ""))
    return Entry(why=whole[0], same=() if whole[1] else None) if whole else None


def own_spelling(dotted: str) -> str:
    """Return a name in the sections of specvit: `training.early_stopping.mode` is `train.early_stopping.mode`."""
    section, rest = placed(dotted)
    return f"{OWN_SECTIONS.get(section, section)}.{rest}".lstrip(".")
