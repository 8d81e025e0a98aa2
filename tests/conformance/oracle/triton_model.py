"""What Triton's Python backend runs in place of the ONNX files that Penstock is given.

Copied beside each model's configuration as ``model.py``; runs in Triton's own interpreter, which
has NumPy and nothing of ours. What a model does is the first word of the file ``kind`` in its
version folder, ``identity`` where there is none.
"""

import os
import time

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "kind")
        kind = "identity"
        if os.path.exists(path):
            with open(path) as file:
                kind = file.read().split()[0]
        if kind == "broken":
            raise triton.TritonModelException("this model cannot be loaded")
        self.answer = getattr(self, kind)
        self.is_bf16 = '"TYPE_BF16"' in args["model_config"]
        self.decoupled = kind == "repeat"

    def execute(self, requests):
        if self.decoupled:
            for request in requests:
                self.repeat(request)
            return None
        return [self.answer(request) for request in requests]

    def identity(self, request):
        """Each OUTPUT is the INPUT at its place, whatever their types."""
        outputs = []
        for tensor, name in zip(request.inputs(), _outputs(request), strict=True):
            if name in request.requested_output_names():
                outputs.append(self.copy(name, tensor))
        return triton.InferenceResponse(outputs)

    def copy(self, name, tensor):
        if self.is_bf16:  # which NumPy does not have
            return triton.Tensor.from_dlpack(name, tensor.to_dlpack())
        return triton.Tensor(name, tensor.as_numpy())

    def add_sub(self, request):
        a = triton.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        b = triton.get_input_tensor_by_name(request, "INPUT1").as_numpy()
        both = {"OUTPUT0": a + b, "OUTPUT1": a - b}
        return triton.InferenceResponse(
            [triton.Tensor(n, v) for n, v in both.items() if n in request.requested_output_names()]
        )

    def three(self, request):
        a, b, c = (triton.get_input_tensor_by_name(request, n).as_numpy() for n in "ABC")
        return triton.InferenceResponse([triton.Tensor("SUM", a + b + c)])

    def gather(self, request):
        """OUTPUT0 = (0, 1, 2, 3)[INPUT0]; an index outside fails while it runs."""
        indices = triton.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        try:
            found = np.arange(4, dtype=np.float32)[indices]
        except IndexError as error:
            raise triton.TritonModelException(str(error)) from None
        return triton.InferenceResponse([triton.Tensor("OUTPUT0", found)])

    def generate(self, request):
        text = triton.get_input_tensor_by_name(request, "text_input").as_numpy()
        return triton.InferenceResponse([triton.Tensor("text_output", text)])

    def slow(self, request):
        time.sleep(0.5)
        return self.identity(request)

    def repeat(self, request):
        """INPUT0 again and again, as often as its first element says; an error if that is 99."""
        values = triton.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        sender = request.get_response_sender()
        if values.size and values.ravel()[0] == 99:
            error = triton.TritonError("99 is poison")
            sender.send(triton.InferenceResponse(error=error))
        else:
            for _ in range(values.ravel()[0] if values.size else 0):
                sender.send(triton.InferenceResponse([triton.Tensor("OUTPUT0", values)]))
        sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _outputs(request):
    return [t.name().replace("INPUT", "OUTPUT") for t in request.inputs()]
