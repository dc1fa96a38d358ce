"""The model card of a run, README.md."""

from typing import Any

from keras_resnet_cifar.evaluation.metrics import described

_USE = """\
    import keras
    model = keras.saving.load_model("last.keras")
    logits = model.predict(images)

The files contain stock Keras layers only and load on every backend.
"""

LAST = "`last.keras` is the last epoch."


def model_card(
    config: dict[str, Any],
    epochs: int,
    metrics: dict[str, Any],
    use: str = _USE,
    files: str = "",
) -> str:
    """Returns the model card of a run as Markdown.

    `metrics` has the test metrics of its files by their names without `.keras`,
    usually `{"last": ..., "best": ...}`. `files` describes the files, by
    default those of a run directory.
    """
    recipe, data = config["recipe"], config["dataset"]
    table = [
        {"checkpoint": f"{name}.keras", "epoch": str(row["epoch"])}
        | described(row["test"])
        for name, row in metrics.items()
    ]
    lines = [[*table[0]], ["---"] * len(table[0])] if table else []
    lines += [[*row.values()] for row in table]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    best = "is the same epoch, without a validation split to choose by"
    if data["validation"]:
        best = "had the best accuracy on the validation split"
    files = files or f"`last.keras` is the last epoch, `best.keras` {best}."
    start = config.get("weights")
    start = f", started from the weights {start}" if start else ""
    own = "".join(
        f", {key} {recipe[key]['class_name']}"
        for key in ("optimizer", "loss")
        if isinstance(recipe.get(key), dict)
    )
    device = config.get("accelerator")
    device = f" on {device}" if device else ""
    measured = f"## Files\n\n{files}\n"
    limits = "How well it does on other images was not measured."
    if metrics:
        measured = f"""\
## Results on the test split

{rows}

{files} The test split was not used to choose anything.
{_by_class(*next(iter(metrics.items())))}"""
        limits = f"""\
Its accuracy and calibration were measured on the test split of \
{data["name"]}. Expect less on photos from elsewhere, and on enlarged, \
reduced, blurred or noisy images. Adversarial images were not tested."""
    return f"""\
# {config["arch"]} on {data["name"]}

| | |
| --- | --- |
| architecture | {config["arch"]}, {config["parameters"]:,} trainable \
parameters{start} |
| input | raw images, uint8 or float in 0 to 255, `[N, H, W, channels]` |
| output | logits, float32 `[N, {len(data["class_names"])}]` |
| data | {data["name"]}: {data["train"]:,} train, {data["validation"]:,} \
validation, {data["test"]:,} test images, \
{"verified" if data["verified"] else "NOT verified"} |
| recipe | {recipe["name"]}{own}, epochs: {epochs}, batch \
{recipe["batch_size"]}, seed {config["seed"]}, {config["precision"]} |
| source of the recipe | {recipe["source"]} |
| expected result of the recipe | {recipe["expected"]} |
| backend | {config["backend"]}{device}, keras {config["versions"]["keras"]} |

{measured}
## Limits

- The net knows only the {len(data["class_names"])} classes of {data["name"]}: \
any other image is assigned one of them, sometimes with a high probability.
- {limits}

## Use

{use}"""


def _by_class(name: str, row: dict[str, Any]) -> str:
    """Returns the results of each class, and how well they are calibrated."""
    test = row["test"]
    names = list(test["per_class"])
    rows = []
    for i, top1 in enumerate(test["per_class"].values()):
        counts = test["confusion"][i]
        others = [*counts[:i], -1, *counts[i + 1 :]]
        other = max(range(len(others)), key=others.__getitem__)
        wrong = f"{names[other]} ({others[other]})" if others[other] > 0 else ""
        share = "" if top1 is None else f"{top1:.2%}"
        rows.append(f"| {names[i]} | {sum(counts)} | {share} | {wrong} |")
    return f"""
## Results of each class, {name}.keras

| class | images | top-1 | most often mistaken for |
| --- | --- | --- | --- |
{chr(10).join(rows)}

The expected calibration error is {test["ece"]:.4f}: the mean gap between the \
probability of the predicted class and the accuracy, in 15 bins.
"""
