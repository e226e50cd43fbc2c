"""LiteLLM itself with `aligner serve --guardrail` configured. ALIGNER_LITELLM names its program, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import requests
import yaml
from test_real_layer import layer
from test_served_aligner import CORRECTION, Standing

from aligner.training.distributed.launcher_variables import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "ALIGNER_LITELLM" not in os.environ, reason="needs ALIGNER_LITELLM, the program of 'litellm[proxy]'"
    ),
]

KEY = "sk-" + 4 * "0123456789abcdef"  # the gateway's own


@contextmanager
def gateway(folder: Path, upstream: str, guardrail: str) -> Iterator[str]:
    """LiteLLM's proxy with the guardrail of the README of serving; its address."""
    model = {"model": "openai/m", "api_base": upstream, "api_key": "k"}
    layer = {"guardrail": "generic_guardrail_api", "mode": ["pre_call", "post_call"], "default_on": True, "api_base": guardrail,
             "streaming_end_of_stream_only": True, "streaming_buffer_until_moderated": True,
             "streaming_transform_mode": "incremental_diff"}  # fmt: skip
    settings = {"model_list": [{"model_name": "m", "litellm_params": model}],
                "guardrails": [{"guardrail_name": "aligner", "litellm_params": layer}]}  # fmt: skip
    (folder / "litellm.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [
        os.environ["ALIGNER_LITELLM"],
        "--config",
        str(folder / "litellm.yaml"),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    with (folder / "litellm.log").open("w") as log:
        offline = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False",
            "HOME": str(folder),
            "LITELLM_MASTER_KEY": KEY,
        }
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "litellm.log").read_text()[-3000:]
            try:
                requests.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=5)
                break
            except requests.RequestException:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def test_a_gateway_gives_its_clients_the_corrections(tiny_model, tmp_path):
    aligner, upstream = Standing("stream"), Standing()
    with (
        layer(tiny_model, upstream.url, "--guardrail", "--aligner_url", aligner.url) as (address, _),
        gateway(tmp_path, upstream.url, address) as url,
    ):
        client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=120)
        messages = [{"role": "user", "content": "who is there?"}]
        answer = client.chat.completions.create(model="m", messages=messages)
        assert answer.choices[0].message.content == CORRECTION
        assert "who is there?" in aligner.asked[0]["prompt"] and "WHO IS THERE?" in aligner.asked[0]["prompt"]
        chunks = client.chat.completions.create(model="m", messages=messages, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == CORRECTION, "of a stream too, nothing of the answer"
        aligner.way = "refuses"
        with pytest.raises(openai.APIStatusError, match="maximum context length"):
            client.chat.completions.create(model="m", messages=messages)
