"""Run by the Python of an environment with PyPI's kserve: what a KServe user's program does.

    kserve_client.py http://host:port host:grpc-port heldout.npy  ->  one JSON object on stdout

Uses the stock inference clients only.
"""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import InferInput, InferRequest


def request(images, binary=True):
    tensor = InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return InferRequest(model_name="digits", infer_inputs=[tensor])


async def failure(awaitable):
    try:
        await awaitable
    except httpx.HTTPStatusError as error:
        return {"status": error.response.status_code, "text": str(error)}
    except Exception as error:
        return {"status": error.code().name, "text": error.details()}
    return None


async def v1(url, images):
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        rows = {"instances": images.tolist()}
        told = await client.infer(url, rows, model_name="digits")
        named = {"instances": [{"image": image} for image in images[:3].tolist()]}
        return {
            "predictions": told["predictions"],
            "named": (await client.infer(url, named, model_name="digits"))["predictions"],
            "alive": await client.is_server_live(url),
            "ready": await client.is_model_ready(url, "digits"),
            "unknown": await failure(client.infer(url, rows, model_name="letters")),
            "unknown_ready": await failure(client.is_model_ready(url, "letters")),
            "bad": await failure(client.infer(url, {"instances": [[1]]}, model_name="digits")),
            "explain": await failure(client.explain(url, "digits", rows)),
        }


async def v2(url, images):
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        told = await client.infer(url, request(images), model_name="digits")
        plain = await client.infer(url, request(images[:3], binary=False), model_name="digits")
        return {
            "predictions": told.outputs[0].as_numpy().tolist(),
            "json": plain.outputs[0].as_numpy().tolist(),
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "digits"),
            "unknown_ready": await client.is_model_ready(url, "letters"),
            "unknown": await failure(client.infer(url, request(images), model_name="letters")),
        }


async def v2_grpc(address, images):
    async with InferenceGRPCClient(address) as client:
        told = await client.infer(request(images))
        unknown = request(images[:1])
        unknown.model_name = "letters"
        return {
            "predictions": told.outputs[0].as_numpy().tolist(),
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("digits"),
            "unknown_ready": await client.is_model_ready("letters"),
            "unknown": await failure(client.infer(unknown)),
        }


async def main(url, address, path):
    images = np.load(path)
    report = {
        "v1": await v1(url, images),
        "v2": await v2(url, images),
        "grpc": await v2_grpc(address, images),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
