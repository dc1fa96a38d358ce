"""A Keras optimizer and a loss in the place of the recipe's."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from helpers import refusal
from keras import losses, optimizers
from keras.optimizers.schedules import CosineDecay

from keras_resnet_cifar.errors import Stopped
from keras_resnet_cifar.finetuning.features import train_head
from keras_resnet_cifar.training.recipes import Recipe, get_recipe
from keras_resnet_cifar.training.train import train

PLAIN = Recipe("plain", epochs=2, batch_size=64)
FOCAL = losses.CategoricalFocalCrossentropy(from_logits=True)


def adamw(rate=1e-3):
    return optimizers.AdamW(rate, weight_decay=0.01)


@keras.saving.register_keras_serializable("tests")
def squares(targets, logits):
    return keras.ops.sum(keras.ops.square(targets - logits), axis=-1)


def not_registered(targets, logits):
    return squares(targets, logits)


@pytest.fixture
def run_of(tiny_model, tiny_data):
    def run(folder=None, **options):
        options = {"recipe": PLAIN, "verbose": False} | options
        return train(tiny_model(), tiny_data, output_dir=folder, **options)

    return run


@pytest.mark.slow
def test_adamw_with_its_rate_trains_as_in_plain_keras(tiny_model, tiny_data):
    """One batch in an epoch, so that there is no order to differ in."""
    data = {"padding": 0, "flip": False, "batch_size": 256, "epochs": 3}
    optimizer = adamw(0.01)
    ours = tiny_model()
    run = train(
        ours, tiny_data, PLAIN, optimizer=optimizer, verbose=False, **data
    )
    assert not optimizer.built  # a copy of it trained
    assert run.history[0]["learning_rate"] == pytest.approx(0.01)

    plain = tiny_model()
    plain.compile(
        optimizer, losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = tiny_data.train.images, tiny_data.train.labels
    history = plain.fit(x, y, 256, 3, verbose=0).history
    # Adam's step is the sign of a gradient at first: rounding shows.
    assert [row["loss"] for row in run.history] == pytest.approx(
        history["loss"], rel=1e-3
    )


def test_a_schedule_of_the_optimizer_is_followed_by_the_step(run_of):
    schedule = CosineDecay(0.02, 8, warmup_target=0.04, warmup_steps=2)
    run = run_of(optimizer=optimizers.SGD(schedule, momentum=0.9))
    # The last of an epoch's four steps.
    assert [row["learning_rate"] for row in run.history] == pytest.approx(
        [float(schedule(3)), float(schedule(7))]
    )


@pytest.mark.slow
def test_a_run_with_both_resumes_to_the_same_bits(run_of, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise Stopped(15)

    own = {"optimizer": adamw(CosineDecay(0.01, 8)), "loss": FOCAL}
    own["steps_per_execution"] = 1
    whole = run_of(tmp_path / "whole", **own)
    with pytest.raises(Stopped):
        run_of(tmp_path / "parts", callbacks=[Stop()], **own)
    resumed = run_of(tmp_path / "parts", resume=True, **own)
    for one, other in zip(
        whole.model.get_weights(), resumed.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    optimizer = config["recipe"]["optimizer"]
    assert optimizer["class_name"] == "AdamW"
    assert optimizer["config"]["learning_rate"]["class_name"] == "CosineDecay"
    assert config["recipe"]["loss"]["config"]["gamma"] == 2.0
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "optimizer AdamW, loss CategoricalFocalCrossentropy" in card

    def resume(**others):
        return refusal(
            lambda: run_of(tmp_path / "whole", resume=True, **(own | others))
        )

    assert "optimizer='sgd', which was 'AdamW'" in resume(optimizer="sgd")
    assert "decay_steps=9, which was 8" in resume(
        optimizer=adamw(CosineDecay(0.01, 9))
    )
    assert "gamma=3.0, which was 2.0" in resume(
        loss=losses.CategoricalFocalCrossentropy(from_logits=True, gamma=3.0)
    )
    own.pop("loss")
    assert "loss=None, which was 'CategoricalFocal" in resume()
    own["loss"] = FOCAL
    # A schedule that does not depend on the epochs permits more of them.
    longer = run_of(tmp_path / "whole", resume=True, epochs=3, **own)
    assert len(longer.history) == 3


@pytest.mark.slow
def test_a_loss_replaces_cross_entropy(run_of, tiny_data):
    """In training and validation, smoothed and mixed as the recipe says."""
    run = run_of(loss=squares, epochs=1, label_smoothing=0.1, mixup=0.2)
    logits = run.model.predict(tiny_data.validation.images, verbose=0)
    targets = np.eye(10)[tiny_data.validation.labels]
    expected = np.square(targets - logits).sum(axis=1).mean()
    assert run.history[0]["val_loss"] == pytest.approx(expected, rel=1e-3)


@keras.saving.register_keras_serializable("tests")
def of_one_image(targets, logits):
    return targets[0] * keras.ops.sum(logits, axis=1)


def without_bias(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


WRONG = {
    "a class": ({"optimizer": optimizers.AdamW}, "give an instance"),
    "a name": ({"optimizer": "adamw"}, "did you mean adam?"),
    "a rate beside": (
        {"optimizer": adamw(), "learning_rate": 0.1},
        "learning_rate=0.1 has no effect on the optimizer AdamW",
    ),
    "averages": (
        {"optimizer": optimizers.SGD(0.1, use_ema=True)},
        "optimizer=SGD wraps another or averages weights",
    ),
    "parts without decay": (
        {"optimizer": without_bias(adamw())},
        "uses exclude_from_weight_decay, which its config does not record",
    ),
    "a wrapper": (
        {"optimizer": optimizers.LossScaleOptimizer(optimizers.SGD(0.1))},
        "optimizer=LossScaleOptimizer wraps another",
    ),
    "a loss by name": ({"loss": "mse"}, "give an instance"),
    "an empty config": ({"loss": {}}, "fails on one-hot targets"),
    "probabilities": (
        {"loss": losses.CategoricalCrossentropy()},
        "from_logits=True",
    ),
    "a function of probabilities": (
        {"loss": losses.categorical_crossentropy},
        "loss=categorical_crossentropy would treat logits as probabilities",
    ),
    "divergence": ({"loss": losses.KLDivergence()}, "as probabilities"),
    "overlap": ({"loss": losses.Dice()}, "as probabilities"),
    "shares": ({"loss": losses.poisson}, "as probabilities"),
    "one image only": ({"loss": of_one_image}, "fails on one-hot targets"),
    "sparse": (
        {"loss": losses.SparseCategoricalCrossentropy(from_logits=True)},
        "give one that takes these, not a sparse one",
    ),
    "smoothed twice": (
        {
            "loss": losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=0.1
            ),
            "label_smoothing": 0.1,
        },
        "train with label_smoothing=0",
    ),
    "a lambda": ({"loss": lambda targets, logits: 0}, "use no lambda"),
    "not registered": (
        {"loss": not_registered},
        "keras.saving.register_keras_serializable()",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_train_is_refused(name, run_of, tmp_path):
    options, words = WRONG[name]
    assert words in refusal(lambda: run_of(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_recipe_needs_an_optimizer():
    without = dataclasses.replace(get_recipe("fast"), optimizer=None)
    assert "give an instance" in refusal(get_recipe, without)


def test_cached_features_know_no_other_loss(tiny_model, tiny_data):
    recipe = get_recipe(PLAIN, loss=FOCAL)
    assert "cache_features=True" in refusal(
        lambda: train_head(tiny_model(), tiny_data, recipe)
    )
