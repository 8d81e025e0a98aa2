"""The shipped digits network as an artefact of every engine, with the very same weights.

One module for each backend, named as the backend is, with

* ``TOLERANCE``: how far its probabilities may be from ONNX Runtime's, absolute, and why;
* ``write(version)``: writes the artefact into an empty version directory and returns the text of
  ``config.pbtxt`` (without the model's name).

A module may import its engine: ask ``engines.engine_or_skip`` first.

The modules of trees (``lightgbm``, ``xgboost``, ``sklearn``) learn models of their own on the first
half of the same pictures. Their input ``image`` is FP32 [n,64], and what they are compared with is
not ONNX Runtime's but

* ``expected(pictures)``: probabilities [n,10] of FP32 [n,64] by the library that learned the model.

``engines.py`` knows which module is served by a backend of another name, ``digits.py`` has what all
of them begin with.
"""
