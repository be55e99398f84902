"""How much work a run is and how large its model, from its settings alone: without torch, before anything is opened."""

from typing import Any

PIXELS = 4096
NETWORKS = ("vit", "cnn")


def tokens(model: dict[str, Any]) -> int:
    """Return the tokens of a spectrum, with the CLS token if there is one."""
    return (PIXELS - model["patch_size"]) // model["stride_size"] + 1 + (model["pool"] == "cls")


def parameters(model: dict[str, Any]) -> int:
    """Return about how many numbers a model has."""
    kind = model.get("kind", "vit")
    if kind == "ridge":
        return PIXELS
    if kind == "template":
        return 0
    if kind == "lightgbm":
        return 10 * model["num_trees"] * model["num_leaves"]
    if kind == "cnn":
        return sum(weights for _, weights in _layers(model))
    width, feed_forward, patch = model["hidden_size"], model["intermediate_size"], model["patch_size"]
    block = 4 * width * width + 2 * width * feed_forward + (9 if model["qkv_bias"] else 6) * width + feed_forward
    positions = tokens(model) * width if model["pos_encoding_type"] == "learned" else 0
    return patch * width + positions + model["num_hidden_layers"] * block + 5 * width


def work(config: dict[str, Any]) -> float:
    """Return the operations of a run's training, comparable among runs of one kind of model (see `models.cost`).

    0 where its settings do not tell: with `data.num_samples=-1`, all rows of a file.
    """
    model, data = config["model"], config["data"]
    rows, kind = float(max(data["num_samples"], 0)), model.get("kind", "vit")
    if kind == "ridge":
        return rows * PIXELS**2
    if kind == "template":
        return rows * PIXELS * sum(max(data[name], 0) for name in ("val_samples", "test_samples"))
    if kind == "lightgbm":
        return rows * PIXELS * model["pixel_fraction"] * model["num_trees"]
    spectrum = 6.0 * sum(pixels * weights for pixels, weights in _layers(model)) if kind == "cnn" else _of_vit(model)
    return spectrum * rows * config["train"]["epochs"]


def _of_vit(model: dict[str, Any]) -> float:
    count, width, layers = tokens(model), model["hidden_size"], model["num_hidden_layers"]
    queries = count * (layers - 1) + (1 if model["pool"] == "cls" else count)  # the last block works for CLS alone
    blocks = 4 * width * (layers * count * width + queries * (width + model["intermediate_size"] + count))
    return float(3 * blocks + 2 * 2 * count * model["patch_size"] * width)


def _layers(model: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the pixels and the weights of each layer of a CNN."""
    pixels, inputs, layers = PIXELS, 1, []
    for outputs in model["channels"]:
        layers.append((pixels, inputs * outputs * model["kernel_size"]))
        pixels, inputs = pixels // model["pool_size"], outputs
    return [*layers, (1, pixels * inputs * model["head_size"])]
