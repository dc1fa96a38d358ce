"""The README.md of a run: what the model is, and how well it does."""

from typing import Any


def model_card(
    config: dict[str, Any], epochs: int, metrics: dict[str, Any]
) -> str:
    """Returns the model card of a run as Markdown.

    Args:
        config: The config of the run.
        epochs: Epochs done.
        metrics: Its test metrics, `{"last": ..., "best": ...}`.
    """
    recipe, data = config["recipe"], config["dataset"]
    rows = "\n".join(
        f"| {name}.keras | {row['epoch']} | {row['test']['top1']:.2%} | "
        f"{row['test']['top5']:.2%} | {row['test']['loss']:.4f} | "
        f"{row['test']['ece']:.4f} |"
        for name, row in metrics.items()
    )
    best = "had the best accuracy on the validation split."
    if "best" not in metrics:
        best = "is the same epoch, without a validation split to choose by."
    return f"""\
# {config["arch"]} on {data["name"]}

| | |
| --- | --- |
| architecture | {config["arch"]}, {config["parameters"]:,} trainable \
parameters |
| input | raw images, uint8 or float in 0 to 255, `[N, H, W, 3]` |
| output | logits, float32 `[N, {len(data["class_names"])}]` |
| data | {data["name"]}: {data["train"]:,} train, {data["validation"]:,} \
validation, {data["test"]:,} test images, \
{"verified" if data["verified"] else "NOT verified"} |
| recipe | {recipe["name"]}, epochs: {epochs}, batch {recipe["batch_size"]}, \
seed {config["seed"]}, {config["precision"]} |
| source of the recipe | {recipe["source"]} |
| expected result of the recipe | {recipe["expected"]} |
| backend | {config["backend"]}, keras {config["versions"]["keras"]} |

## Results on the test split

| checkpoint | epoch | top-1 | top-5 | loss | calibration error |
| --- | --- | --- | --- | --- | --- |
{rows}

`last.keras` is the last epoch; the test split was not used to choose \
anything. `best.keras` {best}

## Use

    import keras
    model = keras.saving.load_model("last.keras")
    logits = model.predict(images)

The files hold stock Keras layers only and load on every backend.
"""
