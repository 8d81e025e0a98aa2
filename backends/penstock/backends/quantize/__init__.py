"""INT8 calibration: from a float ONNX model and sample data to the range of every tensor.

``data`` reads samples; ``calibrator`` runs the model over them and fills one ``histogram`` for each
tensor; ``thresholds`` turns a histogram into a range, ``ranges`` keeps and writes them; ``affine``
is the arithmetic of scales and zero points; ``smooth`` moves outliers from activations to weights.

Nothing here is imported by serving. ONNX Runtime and ``onnx`` are needed by ``calibrator`` and
``smooth`` alone: ``pip install 'penstock[quantize]'``.
"""
