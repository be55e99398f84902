"""Configurations as users of other programs have them, with the answer that each key must get."""

import re
from typing import Any

import yaml

from specvit.importing.translation import ASKED, CHANGES, DROPPED

CAUTIOUS = """
model: {proj_fn: SW}
opt: {lr: 0.00015}
train: {precision: 32, gradient_clip: 0.5}
"""
MILLION = """
project: 'vit-1m-scaling'
model:
  task_type: reg
  image_size: 4096
  patch_size: 16
  hidden_size: 256
  num_hidden_layers: 6
  num_attention_heads: 8
  proj_fn: 'C1D'
  pos_encoding_type: 'learned'
train: {batch_size: 256, ep: 200, precision: '16-mixed'}
loss: {name: 'mse'}
opt: {type: 'AdamW', lr: 0.0003, weight_decay: 0.01, lr_sch: 'cosine', eta_min: 0.00001}
data:
  file_path: "train_200k_0/dataset.h5"
  val_path: "val_1k/dataset.h5"
  test_path: "test_10k/dataset.h5"
  param: log_g
  label_norm: 'standard'
noise: {noise_level: 1.0}
"""
SCALING = """
experiment_id: "EXP-20251227-vit-scaling-curve-01-50k"
data:
  source: "BOSZ"
  path: "/data/bosz50000/z0/mag205_225_lowT_1M/"
  train_shards: ["train_200k_0"]
  train_size: 50000
  val_size: 1000
  test_size: 10000
  noise_level: 1.0
  noise_type: "heteroscedastic"
  apply_noise_to: "train"
model:
  type: "ViT"
  image_size: 4096
  patch_size: 16
  hidden_size: 256
  num_hidden_layers: 6
  num_attention_heads: 8
  intermediate_size: 1024
  proj_fn: "C1D"
  position_encoding: "learned"
  head_dim: 32
  dropout: 0.1
training:
  loss: "MSE"
  label_norm: "standard"
  optimizer: "AdamW"
  lr: 0.0003
  weight_decay: 0.0001
  lr_scheduler: "cosine"
  eta_min: 1e-5
  epochs: 200
  batch_size: 256
  gradient_clip: 0.5
  precision: "16-mixed"
  seed: 42
  early_stopping: {monitor: "val_r2", mode: "max", patience: 20}
"""
CURVE = """
experiment_id: "EXP-20251227-vit-scaling-curve-01"
repo_path: "~/repo"
data:
  source: "BOSZ 50000, mag205_225_lowT_1M"
  path: "/data/bosz50000/z0/mag205_225_lowT_1M/"
  sizes: [50k, 100k, 200k, 500k]
  val_size: 1000
  test_size: 10000
noise: {sigma: 1.0, type: "heteroscedastic", apply_to: "train"}
model:
  type: "ViT"
  architecture: "p16_h256_L6_a8"
  patch_size: 16
  hidden_size: 256
  num_layers: 6
  num_heads: 8
  proj_fn: "C1D"
training:
  epochs: 200
  batch_size: 256
  lr: 3e-4
  optimizer: "AdamW"
  lr_scheduler: "cosine"
  loss: "MSE"
  label_norm: "standard"
  seed: 42
plots:
  - type: scaling_curve
    save: "logg/vit/exp/img/vit_scaling_curve.png"
    compare_with: ["Ridge", "LightGBM"]
"""
PRUNING = """
trainer_settings:
  dl_settings:
    epochs: 1
    batch_size: 12
    optimizers:
      token_merger: {lr: "2e-05"}
      layer_pruners: {lr: "2e-05"}
      discriminator: {lr: "5e-04"}
method_settings:
  merger_type: "simple"
  merge_ratio: 0.5
  target_merge_tokens: 288
  merge_sparsity_weight: 1e-4
  pruning_layers: [10, 20, 31]
  pruner_d_internal: 512
  pruner_num_heads: 4
  pruner_type: "cross_attention"
  temperature: 1.0
  temperature_min: 0.1
  temperature_anneal_rate: 0.5
  adv_loss_weight: 1.0
  task_loss_weight: 25.0
  disc_reinit_prob: 0.1
manager_settings: {mode: "optuna", available_gpus: [0, 1, 2, 3], gpus_per_subtask: 2}
search_settings: {enable: true, n_trials: 50}
"""
FILES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "cautious": (
        CAUTIOUS,
        {},
        {"model.proj_fn": "SW", "opt.lr": 1.5e-4, "train.precision": "32", "train.gradient_clip": 0.5},
    ),
    "million": (
        MILLION,
        {
            "project": "tracking.experiment=vit-1m-scaling",
            "model.image_size": f"{DROPPED}: a spectrum has the pixels",
            "train.ep": "train.epochs=200",
        },
        {
            **{"model.hidden_size": 256, "model.intermediate_size": 1024, "model.stride_size": 16, "train.epochs": 200},
            **{"opt.eta_min": 1e-5, "data.kind": "hdf5", "data.val_path": ("val_1k/dataset.h5",)},
        },
    ),
    "scaling": (
        SCALING,
        {
            "experiment_id": "tracking.name=EXP-20251227-vit-scaling-curve-01-50k",
            "data.source": "data=bosz",
            "data.path": "data.root=/data/bosz50000/z0/mag205_225_lowT_1M/",
            "data.train_shards": "data.file_path=['train_200k_0/dataset.h5']",
            "data.train_size": "data.num_samples=50000",
            "data.val_size": "data.val_samples=1000",
            "data.test_size": "data.test_samples=10000",
            "data.noise_level": "noise.noise_level=1.0",
            "data.noise_type": "noise.noise_type=heteroscedastic",
            "data.apply_noise_to": f"{CHANGES}: validation and test spectra have noise, too",
            "model.type": "model.kind=vit",
            "model.image_size": f"{DROPPED}: a spectrum has the pixels",
            "model.position_encoding": "model.pos_encoding_type=learned",
            "model.head_dim": f"{DROPPED}: it is model.hidden_size / model.num_attention_heads",
            "training.loss": "loss.name=mse",
            "training.label_norm": "data.label_norm=standard",
            "training.optimizer": "opt.type=AdamW",
            "training.lr": "opt.lr=0.0003",
            "training.weight_decay": "opt.weight_decay=0.0001",
            "training.lr_scheduler": "opt.lr_sch=cosine",
            "training.eta_min": "opt.eta_min=1e-05",
            "training.epochs": "train.epochs=200",
            "training.batch_size": "train.batch_size=256",
            "training.gradient_clip": "train.gradient_clip=0.5",
            "training.precision": "train.precision=16-mixed",
            "training.seed": "train.seed=42",
            "training.early_stopping.monitor": "train.early_stopping.monitor=val_r2",
            "training.early_stopping.mode": "train.early_stopping.mode=max",
            "training.early_stopping.patience": "train.early_stopping.patience=20",
        },
        {"data.num_samples": 50000, "data.test_path": ("test_10k/dataset.h5",), "train.early_stopping.patience": 20},
    ),
    "curve": (
        CURVE,
        {
            "experiment_id": "tracking.name=EXP-20251227-vit-scaling-curve-01",
            "repo_path": f"{DROPPED}: it says where the file was used",
            "data.source": "data=bosz",
            "data.path": "data.root=",
            "data.sizes": f"{ASKED}: 4 values make 4 runs",
            "data.val_size": "data.val_samples=1000",
            "data.test_size": "data.test_samples=10000",
            "noise.sigma": "noise.noise_level=1.0",
            "noise.type": "noise.noise_type=heteroscedastic",
            "noise.apply_to": f"{CHANGES}: validation and test",
            "model.type": "model.kind=vit",
            "model.architecture": "model.num_attention_heads=8",
            "model.num_layers": "model.num_hidden_layers=6",
            "model.num_heads": "model.num_attention_heads=8",
            "training.epochs": "train.epochs=200",
            "training.batch_size": "train.batch_size=256",
            "training.lr": "opt.lr=0.0003",
            "training.optimizer": "opt.type=AdamW",
            "training.lr_scheduler": "opt.lr_sch=cosine",
            "training.loss": "loss.name=mse",
            "training.label_norm": "data.label_norm=standard",
            "training.seed": "train.seed=42",
            "plots[0].type": f"{DROPPED}: every run draws",
            "plots[0].save": f"{DROPPED}: every run draws",
            "plots[0].compare_with": f"{DROPPED}: baselines are runs",
        },
        {"data.num_samples": 50000, "model.patch_size": 16, "opt.lr": 3e-4},
    ),
    "pruning": (
        PRUNING,
        {
            "trainer_settings.dl_settings.epochs": "train.epochs=1",
            "trainer_settings.dl_settings.batch_size": "train.batch_size=12",
            **{
                f"trainer_settings.dl_settings.optimizers.{part}.lr": f"{CHANGES}: one optimizer"
                for part in ("token_merger", "layer_pruners", "discriminator")
            },
            **{
                f"method_settings.{name}": f"{CHANGES}: specvit has no token merger"
                for name in yaml.safe_load(PRUNING)["method_settings"]
            },
            "manager_settings.mode": f"{ASKED}: this file is one run",
            "manager_settings.available_gpus": f"{DROPPED}: type CUDA_VISIBLE_DEVICES=0,1,2,3",
            "manager_settings.gpus_per_subtask": f"{DROPPED}: a run uses one GPU",
            "search_settings.enable": f"{ASKED}: this file is one run",
            "search_settings.n_trials": f"{ASKED}: this file is one run",
        },
        {"train.epochs": 1, "train.batch_size": 12},
    ),
}


def answers(message: str, name: str, wanted: str) -> bool:
    """Return whether a message answers a name with "VERDICT: words", or with words alone."""
    verdict, _, words = wanted.partition(": ")
    current, found = "", False
    for line in message.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            current = line.rstrip(":")
        elif line.startswith("  ") and re.search(rf"(^  |, ){re.escape(name)}=", line):
            found |= (current == verdict and words in line) or (not words and verdict in line)
    return found
