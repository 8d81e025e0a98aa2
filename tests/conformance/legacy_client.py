"""Run by the Python of an environment with PyPI's graphpipe 1.0.4: what an old user's program does.

    legacy_client.py http://host:port heldout.npy  ->  one JSON object on stdout

Uses nothing but the client's public functions.
"""

import json
import sys

import numpy as np

if sys.version_info >= (3, 12):
    # flatbuffers 1.9 asks a module that Python 3.12 dropped whether NumPy is there.
    import types

    sys.modules["imp"] = types.SimpleNamespace(find_module=__import__)

import requests
from graphpipe import remote


def failure(call, *arguments):
    try:
        call(*arguments)
    except requests.HTTPError as error:
        return {"status": error.response.status_code, "text": str(error)}
    except Exception as error:
        return {"raised": str(error)}
    return None


def main(base, path):
    images = np.load(path)
    model = f"{base}/graphpipe/digits"
    named = remote.execute_multi(model, [images], ["image"], ["probabilities"])
    configured = remote.execute_multi(
        f"{base}/", [images[:2]], ["image"], ["probabilities"], config='{"id": "7"}'
    )
    opaque = remote.execute_multi(f"{base}/", [images[:2]], None, None, config="not json")
    report = {
        "root": remote.execute(f"{base}/", images).tolist(),
        "model": remote.execute(model, images, "image", "probabilities").tolist(),
        "one": remote.execute(model, images[:1]).tolist(),
        "multi": [output.tolist() for output in named],
        "configured": [output.tolist() for output in configured],
        "opaque": [output.tolist() for output in opaque],
        "input_names": remote.get_input_names(model),
        "output_names": remote.get_output_names(model),
        "input_types": [str(t) for t in remote.get_input_types(model)],
        "output_types": [str(t) for t in remote.get_output_types(model)],
        "input_shapes": remote.get_input_shapes(model),
        "output_shapes": remote.get_output_shapes(model),
        "server": remote.metadata(f"{base}/").Server().decode(),
        "unknown_model": failure(remote.execute, f"{base}/graphpipe/letters", images[:1]),
        "unknown_input": failure(remote.execute, model, images[:1], "picture"),
        "wrong_shape": failure(remote.execute, model, images[:1].reshape(1, 64)),
        "wrong_type": failure(remote.execute, model, images[:1].astype(np.float64)),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
