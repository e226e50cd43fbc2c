"""`aligner serve` as it is started by a user: before a real server, under load, in a real browser, for 2,000 requests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from conftest import TEMPLATE, environment, read_rows, sft
from scripted import writing_model
from test_correct_file import lines
from test_real_servers import chatting, serving

from aligner import cli
from aligner.inference.corrector import Corrector, Settings
from aligner.training.distributed.launcher_variables import free_port

pytestmark = pytest.mark.slow
__all__ = ["chatting"]  # a fixture


@contextmanager
def layer(model: Path, upstream: str, *more: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`aligner serve`, ready; its address and process."""
    port = free_port()
    command = [sys.executable, "-m", "aligner", "serve", "--model", str(model), "--prompt_template", "correction",
               "--upstream_url", upstream, "--port", str(port), "--max_new_tokens", "16", "--keep_unfinished",
               *map(str, more)]  # fmt: skip  # a random model does not end by itself
    process = subprocess.Popen(command, env=environment(1), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"{address}/health"):
                    break
            except OSError:
                time.sleep(0.2)
        yield address, process
    finally:
        process.kill()
        process.communicate()


def chat(address: str, model: object, question: str, **more: Any) -> Any:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0, timeout=60)
    return client.chat.completions.create(
        model=str(model), messages=[{"role": "user", "content": question}], max_tokens=8, **more
    )


def test_in_front_of_transformers_serve(chatting):
    corrector = Corrector.load(str(chatting), "correction", Settings(8, 16))
    port = free_port()
    with layer(chatting, f"http://127.0.0.1:{port}/v1", "--max_requests", 60) as (address, process):
        with serving(chatting, port):
            choice = chat(address, chatting, "who is there?").choices[0]
            original = choice.model_extra["aligner"]["original"]
            assert choice.message.content == corrector.correct([("who is there?", original)])[0].text
            streamed = list(chat(address, chatting, "who is there?", stream=True, temperature=0))
            assert sum(bool(c.choices and c.choices[0].delta.content) for c in streamed) > 1
            with ThreadPoolExecutor(50) as pool:
                answers = list(pool.map(lambda n: chat(address, chatting, f"question {n}"), range(50)))
            assert all(answer.choices[0].model_extra["aligner"]["action"] == "corrected" for answer in answers)
        with pytest.raises(openai.APIStatusError, match="cannot be reached"):
            chat(address, chatting, "is it down?")
        with serving(chatting, port):
            assert chat(address, chatting, "is it back?").choices
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)


def test_a_shutdown_under_load_answers_what_is_under_way(chatting, told):
    told.delay = 0.5
    ended: list[str] = []

    def one(number: int) -> None:
        try:
            chat(address, "m", f"slow {number}")
            ended.append("answered")
        except openai.APIConnectionError:
            ended.append("not taken")
        except openai.APIStatusError as error:
            ended.append(str(error.status_code))

    with layer(chatting, told.url, "--max_requests", 20) as (address, process):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        while len(told.asked) < 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        process.wait(60)
    counts = Counter(ended)
    assert counts["answered"] >= 10 and set(counts) <= {"answered", "429", "not taken"}, counts


def test_2000_requests_leave_nothing_behind(chatting, told):
    def state(process: subprocess.Popen[str]) -> tuple[int, int, int]:
        status = Path(f"/proc/{process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        return files, int(fields["Threads"]), int(fields["VmRSS"].split()[0]) // 1024

    def one(number: int) -> int:
        body = {
            "model": "m",
            "stream": number % 3 == 0,
            "messages": [{"role": "user", "content": f"question {number}"}],
        }
        timeout = 0.03 if number % 10 == 9 else 60  # every tenth leaves at once
        try:
            return requests.post(f"{address}/v1/chat/completions", json=body, timeout=timeout).status_code
        except requests.RequestException:  # also where it is late in the middle
            return 0

    with layer(chatting, told.url, "--batch_size", 16) as (address, process):
        with ThreadPoolExecutor(16) as pool:
            Counter(pool.map(one, range(400)))
            time.sleep(1)
            before = state(process)
            counts = Counter(pool.map(one, range(400, 2000)))
        time.sleep(6)  # idle connections are closed after five seconds
        after, health = state(process), requests.get(f"{address}/health").json()
    assert counts[200] + counts[0] == 1600 and counts[200] >= 1440, counts
    assert health["under_way"] == health["waiting"] == 0
    assert after[0] <= before[0] and after[1] <= before[1] and after[2] <= before[2] + 20, (before, after)


def test_the_rows_of_a_shadow_pass_the_doctor_and_train(chatting, bpe_folder, tmp_path, capsys):
    """Only whole answers become rows: the upstream is a model that ends."""
    file, port = tmp_path / "shadow.jsonl", free_port()
    upstream = writing_model(bpe_folder, tmp_path / "upstream", "Ask.")
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}\n##Correction:  ASSISTANT:"
    (upstream / "chat_template.jinja").write_text(template)
    with (
        serving(upstream, port),
        layer(chatting, f"http://127.0.0.1:{port}/v1", "--mode", "shadow", "--shadow_file", file) as (address, process),
    ):
        for number, row in enumerate(read_rows(TEMPLATE, 12)):
            made = chat(address, upstream, row["question"], stream=bool(number % 2))
            assert number % 2 == 0 or "".join(c.choices[0].delta.content or "" for c in made if c.choices)
        process.send_signal(signal.SIGTERM)  # what is behind is still written
        process.wait(120)
    assert len(lines(file)) == 12
    assert cli.main(["check", str(file)]) == 0, capsys.readouterr().out
    run = sft(
        "--train_datasets", file, "--model_name_or_path", chatting, "--output_dir", tmp_path / "out", "--epochs", 1
    )
    assert run.returncode == 0 and (tmp_path / "out" / "COMPLETED").exists(), run.stderr


def test_the_page_asks_waits_and_shows_the_diff_as_text(chatting, told, browser, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    attack = '<script>document.title="owned"</script><img src=x onerror="document.title=1">'
    told.rule, told.delay = str, 0.5
    with layer(chatting, told.url) as (address, _):
        browser.get(address)
        find = lambda name: browser.find_element("id", name)  # noqa: E731
        find("question").send_keys(f"slow {attack}")
        find("model").send_keys("m")
        find("ask").click()
        WebDriverWait(browser, 30).until(lambda _: find("result").is_displayed())
        assert find("before").text == f"slow {attack}", "shown as text"
        assert find("after").text and "corrected" in find("state").text
        kinds = {element.tag_name for element in browser.find_elements("css selector", "#diff > *")}
        assert "ins" in kinds and "del" in kinds
        assert browser.title == "Aligner" and not browser.find_elements("css selector", "#result script, #result img")
        assert not [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
        if picture := os.environ.get("ALIGNER_PAGE_PICTURE"):
            browser.save_screenshot(picture)
        told.failures = [(500, {})]
        find("ask").click()
        WebDriverWait(browser, 30).until(lambda _: "as told" in find("state").text)
    assert json.dumps(told.asked[0]["messages"]).count("script") == 2
