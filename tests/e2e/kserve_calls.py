"""KServe's own client against a service: run with the Python that has it, the service's URL as argument."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=1))
    told = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "tanh"),
        "no_model_ready": await client.is_model_ready(url, "none"),
        "broken_ready": await client.is_model_ready(url, "broken"),
    }
    x = (np.arange(24, dtype=np.float32) / 24).reshape(2, 3, 4)
    for binary in (False, True):
        tensor = InferInput("inputs", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        parameters = {"binary_data_output": binary}
        asked = InferRequest("tanh", [tensor], request_id="mine", parameters=parameters)
        reply = await client.infer(url, asked, model_name="tanh")
        named = {output.name: output.as_numpy().tolist() for output in reply.outputs}
        told["binary" if binary else "json"] = {"id": reply.id, "model": reply.model_name, **named}
    try:
        await client.infer(url, {"inputs": []}, model_name="tanh")
    except Exception as error:
        told["error"] = str(error)
    sys.stdout.write(json.dumps(told))


asyncio.run(main(sys.argv[1]))
