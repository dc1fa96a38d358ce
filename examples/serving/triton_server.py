"""Serves an exported model with Triton, through PyTriton: V2 `infer`.

pip install nvidia-pytriton onnxruntime pillow
python examples/serving/triton_server.py saved_models/first/onnx
"""

import argparse

import numpy as np
from classifier import Classifier
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def serve(folder, name, http_port):
    classifier = Classifier(folder)

    @batch
    def infer(image):
        return {"probabilities": classifier(image)}

    image = Tensor(name="image", dtype=np.uint8, shape=(*classifier.size, 3))
    classes = len(classifier.labels)
    answer = Tensor(name="probabilities", dtype=np.float32, shape=(classes,))
    config = TritonConfig(
        http_port=http_port, grpc_port=http_port + 1, metrics_port=http_port + 2
    )
    with Triton(config=config) as triton:
        triton.bind(
            name,
            infer,
            [image],
            [answer],
            config=ModelConfig(max_batch_size=128),
        )
        triton.serve()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--name", default="first")
    parser.add_argument("--http-port", type=int, default=8000)
    args = parser.parse_args()
    serve(args.folder, args.name, args.http_port)
