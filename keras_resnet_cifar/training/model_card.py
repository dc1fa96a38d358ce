"""The README.md of a run: what the model is, and how well it does."""

from typing import Any

_TEMPLATE = """\
# {arch} on {dataset}

| | |
| --- | --- |
| architecture | {arch}, {parameters:,} trainable parameters |
| input | raw images, uint8 or float in 0 to 255, `[N, H, W, 3]` |
| output | logits, float32 `[N, {classes}]` |
| data | {dataset}: {train:,} train, {validation:,} validation, {test:,} test \
images, {verified} |
| recipe | {recipe}, epochs: {epochs}, batch {batch_size}, seed {seed}, \
{precision} |
| recipe's source | {source} |
| recipe's expected result | {expected} |
| backend | {backend}, keras {keras} |

## Results on the test split

| checkpoint | epoch | top-1 | top-5 | loss | calibration error |
| --- | --- | --- | --- | --- | --- |
{results}

`last.keras` is the last epoch; the test split was not used to choose \
anything. {best_note}

## Use

    import keras
    model = keras.saving.load_model("last.keras")
    logits = model.predict(images)

The files hold stock Keras layers only and load on every backend.
"""

_ROW = (
    "| {name}.keras | {epoch} | {top1:.2%} | {top5:.2%} | {loss:.4f} | "
    "{ece:.4f} |"
)


def model_card(
    config: dict[str, Any], epochs: int, metrics: dict[str, Any]
) -> str:
    """Returns the model card of a run as Markdown.

    Args:
        config: The config of the run.
        epochs: Epochs done.
        metrics: Its test metrics, `{"last": ..., "best": ...}`.
    """
    rows = [
        _ROW.format(name=name, epoch=found["epoch"], **found["test"])
        for name, found in metrics.items()
    ]
    recipe, data = config["recipe"], config["dataset"]
    chosen = "best" in metrics
    return _TEMPLATE.format(
        arch=config["arch"],
        parameters=config["parameters"],
        dataset=data["name"],
        classes=len(data["class_names"]),
        train=data["train"],
        validation=data["validation"],
        test=data["test"],
        verified="verified" if data["verified"] else "NOT verified",
        recipe=recipe["name"],
        epochs=epochs,
        batch_size=recipe["batch_size"],
        seed=config["seed"],
        precision=config["precision"],
        source=recipe["source"],
        expected=recipe["expected"],
        backend=config["backend"],
        keras=config["versions"]["keras"],
        results="\n".join(rows),
        best_note=(
            "`best.keras` had the best accuracy on the validation split."
            if chosen
            else "Without a validation split `best.keras` is the same epoch."
        ),
    )
