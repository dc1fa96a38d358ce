"""Serves an exported model with KServe: V1 `:predict` and V2 `infer`.

pip install kserve onnxruntime pillow
python examples/serving/kserve_server.py saved_models/first/onnx
"""

import argparse

import numpy as np
from classifier import Classifier
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput


class Server(Model):
    """A classifier; an instance is an image, or `{"b64": a picture file}`."""

    def __init__(self, name, folder):
        super().__init__(name)
        self.classifier = Classifier(folder)
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        try:
            if isinstance(payload, InferRequest):
                images = payload.inputs[0].as_numpy()
                return self._answer(payload, self.classifier(images))
            instances = [
                self.classifier.decode(i["b64"]) if isinstance(i, dict) else i
                for i in payload["instances"]
            ]
            return {"predictions": self._rows(self.classifier(instances))}
        except (ValueError, TypeError, LookupError) as error:
            raise InvalidInput(str(error)) from error

    def _rows(self, probabilities):
        labels = self.classifier.labels
        return [
            {"class_id": k, "label": labels[k], "probabilities": row.tolist()}
            for k, row in zip(
                probabilities.argmax(1).tolist(), probabilities, strict=True
            )
        ]

    def _answer(self, request, probabilities):
        shape = list(probabilities.shape)
        output = InferOutput("probabilities", shape, "FP32")
        output.set_data_from_numpy(
            np.ascontiguousarray(probabilities), binary_data=False
        )
        return InferResponse(
            response_id=request.id or "",
            model_name=self.name,
            infer_outputs=[output],
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--name", default="first")
    parser.add_argument("--http-port", type=int, default=8080)
    args, _ = parser.parse_known_args()
    server = ModelServer(http_port=args.http_port, enable_grpc=False)
    server.start([Server(args.name, args.folder)])
