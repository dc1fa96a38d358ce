"""The epochs of a run that are left: `model.fit`, once or twice."""

import keras

from keras_resnet_cifar.data.batches import even_batch_size, one_hot


def fit(trained, data, feed, state, epochs, callbacks):
    """Runs the epochs that are left, the one in progress from its step on.

    Args:
        trained: The compiled `TrainingModel`.
        data: A `Dataset`.
        feed: The `ShuffledBatches` of its train split.
        state: Where the run stands; callbacks move it.
        epochs: Of the whole run.
        callbacks: List of Keras callbacks.
    """
    validation = _validation(data)

    def run(first, last):
        trained.fit(
            feed.source(),
            initial_epoch=first,
            epochs=last,
            shuffle=False,  # the feed shuffles
            verbose=0,
            callbacks=callbacks,
            **validation,
        )

    feed.start = state.step
    if state.step == feed.steps:
        _finish_epoch(trained, state.epoch, callbacks, validation)
    elif state.step:
        run(state.epoch, state.epoch + 1)
    feed.start = 0
    if not trained.stop_training:
        run(state.epoch, epochs)


def _finish_epoch(trained, epoch, callbacks, validation):
    """What `fit` does after an epoch's last step: it was stopped in there."""
    chain = keras.callbacks.CallbackList(
        callbacks, model=trained, epochs=epoch + 1, steps=0
    )
    trained.stop_training = False
    chain.on_train_begin()
    chain.on_epoch_begin(epoch)
    logs = {k: float(v) for k, v in trained.get_metrics_result().items()}
    if validation:
        images, targets = validation["validation_data"]
        found = trained.evaluate(
            images,
            targets,
            batch_size=validation["validation_batch_size"],
            verbose=0,
            callbacks=chain,
            return_dict=True,
        )
        logs |= {f"val_{name}": value for name, value in found.items()}
    chain.on_epoch_end(epoch, logs)
    chain.on_train_end(logs)


def _validation(data):
    """Keyword arguments of `fit` for the validation split, if there is one."""
    if data.validation is None:
        return {}
    split = data.validation
    return {
        "validation_data": (
            split.images,
            one_hot(split.labels, data.num_classes),
        ),
        "validation_batch_size": even_batch_size(len(split)),
    }
