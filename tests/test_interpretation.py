"""A direction inside an Aligner: found where it was planted, added exactly, decoded exactly, and refused where it is foreign."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import requests
import torch
from conftest import save_llama
from families import KINDS, LARGEST, tiny_config
from families import _parameters as parameters_of
from layered import ask, correction, exchange, serving
from test_decoding import EOS as END
from test_decoding import FALLING_BACK, FAMILIES, FREE, decoded, model_of, plain, prompts_of
from transformers import AutoModelForCausalLM

from aligner import cli
from aligner.files import COMPLETED, read_json
from aligner.inference.config import AlignerOptions
from aligner.inference.corrector import Corrector
from aligner.inference.greedy import Decoder
from aligner.interpretation.directions import WAYS, States, Tokens, accuracies, fit, mean_states
from aligner.interpretation.effect import ratio
from aligner.interpretation.scan import projections
from aligner.interpretation.statistics import line, share
from aligner.models import fingerprint
from aligner.records import UserError
from aligner.serving.command import load_aligner
from aligner.steering.direction_file import read_steering, write_directions
from aligner.steering.hooks import decoder_layers, read, steer, width_of
from aligner.steering.options import SteerOptions

# Families whose layers do not return one stream of states (rows, tokens, width) in one list.
UNREAD = {
    "cpmant": "its own prompt stands before the tokens",
    "xlnet": "tokens come before rows",
    "prophetnet": "streams of several future tokens",
    **dict.fromkeys(
        ("deepseek_v4", "hy_v4", "gemma3n_text", "qwen4_exp", "qwen4_exp_text"), "several streams of states"
    ),
}


def planted(rows: int = 200, layers: int = 3, width: int = 16) -> tuple[torch.Tensor, States]:
    """Differences that are noise but for a direction in the last layer, along which most rows move forward, some back."""
    draw = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(width, generator=draw), dim=0)
    differences = 0.3 * torch.randn(rows, layers, width, generator=draw)
    signs = torch.where(torch.arange(rows) % 10 == 0, -1.0, 1.0)
    differences[:, -1] += 3 * signs[:, None] * direction
    return direction, States(differences, torch.ones(layers))


@pytest.mark.parametrize("way", WAYS)
def test_a_planted_direction_is_recovered_with_the_sign_of_most_rows(way):
    direction, states = planted()
    fitted = fit(way, States(states.differences_NLH[:100], states.norms_L))
    assert float(fitted[-1] @ direction) > 0.95 and fitted.norm(dim=-1).tolist() == pytest.approx([1] * 3)
    right = accuracies(fitted, States(states.differences_NLH[100:], states.norms_L))
    assert right[-1].value == pytest.approx(0.9) and right[-1].low > 0.5, "the rows that move back are wrong"
    assert all(abs(each.value - 0.5) < 0.15 for each in right[:-1]), "where nothing was planted it is chance"


def test_the_component_sees_differences_of_one_sign_which_centring_would_take_away():
    _, states = planted()
    one_sign = states.differences_NLH.abs()
    centred = one_sign[:, -1] - one_sign[:, -1].mean(0)
    kept = fit("pca", States(one_sign, states.norms_L))[-1]
    lost = torch.linalg.svd(centred).Vh[0]
    mean = torch.nn.functional.normalize(one_sign[:, -1].mean(0), dim=0)
    assert float(kept @ mean) > 0.95 and abs(float(lost @ mean)) < 0.8


@pytest.mark.parametrize("family", [*FAMILIES, *FALLING_BACK])
def test_a_vector_is_added_to_the_named_layer_alone_and_is_gone_afterwards(family):
    model = model_of(family)
    layers, ids = decoder_layers(model), torch.tensor(prompts_of((9,)))
    assert len(layers) == 2

    def seen(*steered: tuple[int, torch.Tensor]) -> list[torch.Tensor]:
        states: dict[int, torch.Tensor] = {}
        handles = [
            steer(layers[layer], vector) for layer, vector in steered
        ]  # before reading: what the next layer is given
        with torch.inference_mode(), read(layers, lambda layer, state: states.__setitem__(layer, state.clone())):
            model(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()
        return [states[layer] for layer in range(2)]

    before, vector = seen(), torch.linspace(-1, 1, 32)
    alpha, norm = 0.3, before[1].norm(dim=-1).mean()
    after = seen((1, alpha * norm * vector))
    assert torch.equal(after[0], before[0])
    assert torch.allclose(after[1] - before[1], (alpha * norm * vector).expand_as(before[1]), atol=1e-4)
    assert not torch.equal(seen((0, vector))[1], before[1]), "a layer is given what was added before it"
    assert all(torch.equal(now, then) for now, then in zip(seen(), before, strict=True)), "nothing is left"


class Named(NamedTuple):
    """What some layers return."""

    states: torch.Tensor
    cache: str


@pytest.mark.parametrize("returned", ["tensor", "tuple", "named tuple"])
def test_a_layer_that_returns_a_tuple_is_read_and_steered_as_one_that_returns_a_tensor(returned):
    class Layer(torch.nn.Module):
        def forward(self, states):
            both = (states + 1, "cache")
            return {"tensor": states + 1, "tuple": both, "named tuple": Named(*both)}[returned]

    layer, states = Layer(), []
    handle = steer(layer, torch.tensor([1.0, 2.0]))
    with read([layer], lambda _, state: states.append(state)):
        output = layer(torch.zeros(1, 3, 2))
    handle.remove()
    assert states[0].tolist() == [[[2, 3]] * 3]
    assert returned == "tensor" or output[1] == "cache"
    assert returned != "named tuple" or isinstance(output, Named)


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gemma2", "gpt2"))])
def test_steered_decoding_with_drafts_in_batches_is_plain_decoding_of_the_steered_model(family):
    model, prompts = model_of(family), prompts_of((9, 20, 14, 5, 11))
    free = [plain(model, prompt) for prompt in prompts]
    handle = steer(decoder_layers(model)[0], 2 * torch.linspace(-1, 1, 32))
    expected = [plain(model, prompt) for prompt in prompts]
    assert expected != free
    wrong_in_places = [[((t + 1) % 64 if i % 5 == 4 else t) for i, t in enumerate(e)] for e in expected]
    for drafts in (wrong_in_places, free):  # those of the model as it was, too
        assert decoded(Decoder(model, END, FREE), prompts, drafts, 3) == expected
    handle.remove()
    assert decoded(Decoder(model, END, FREE), prompts, expected, 3) == free


def test_states_are_read_from_where_answer_and_correction_part():
    row = Tokens([1, 2], [3, 4, 5, 9], [3, 4, 6, 7, 9]).parted()
    assert (row.prompt, row.copy, row.correction) == ([1, 2, 3, 4], [5, 9], [6, 7, 9])
    assert Tokens([1], [3, 9], [3, 4, 9]).parted().copy == [9], "the end of the text is what parts them"
    assert Tokens([1], [3], [3]).parted().copy == [3], "and something is left of equal ones"


def test_the_mean_that_is_read_and_the_scan_are_those_of_all_hidden_states():
    model, prompt, ids = model_of("llama"), prompts_of((9,))[0], [5, 6, 7]
    layers = decoder_layers(model)
    with torch.inference_mode():
        mean_LH, norm_L = mean_states(model, layers, prompt, ids, 32)
        direction_LH = torch.nn.functional.normalize(torch.randn(2, 32), dim=-1)
        along_LK = projections(model, layers, direction_LH, prompt, ids)
        [first] = model(input_ids=torch.tensor([prompt + ids]), output_hidden_states=True).hidden_states[1:2]
    assert torch.allclose(mean_LH[0], first[0, -3:].mean(0), atol=1e-5)
    assert norm_L[0] == pytest.approx(float(first[0, -3:].norm(dim=-1).mean()), rel=1e-5)
    assert torch.allclose(along_LK[0], first[0, -3:] @ direction_LH[0], atol=1e-5)


def test_figures_that_can_be_checked_by_eye():
    assert ratio(lambda text: text.split(), "a b c d", "a x c d e") == 0.5  # type: ignore[arg-type,return-value]
    straight = line([-1, 0, 1], np.array([[0, 1, 2], [1, 2, 3]]))
    assert (straight.slope, straight.r2.value, straight.monotone) == (pytest.approx(1), pytest.approx(1), True)
    bent = line([-1, 0, 1], np.array([[1.0, 0, 1]]))
    assert bent.r2.value == pytest.approx(0) and not bent.monotone
    assert line([-1, 0, 1], np.zeros((2, 3))).r2.value == 0, "what does not move follows nothing"
    assert (share([True] * 20).value, round(share([True] * 20).low, 2)) == (1, 0.84)


@pytest.fixture(scope="module")
def directions(tiny_model, tmp_path_factory) -> Path:
    """A folder as `aligner interpret` leaves it, of the tiny model, whose vector changes what it writes."""
    folder = tmp_path_factory.mktemp("directions")
    way = torch.nn.functional.normalize(torch.linspace(-1, 1, 32).expand(2, 32), dim=-1)
    card = {
        "model": "tiny",
        "model_sha256": fingerprint(str(tiny_model)),
        "layers": 2,
        "width": 32,
        "layer": 1,
        "way": "pca",
    }
    write_directions(folder, {"pca": way, "mean": -way}, torch.tensor([2.0, 3.0]), card)
    (folder / COMPLETED).touch()
    return folder


def test_the_flags_become_alpha_times_the_layers_norm_times_its_direction(directions, tiny_model):
    steering = read_steering(SteerOptions(str(directions), -0.5, 2), str(tiny_model))
    assert steering and steering.layer == 1 and float(steering.vector_H.norm()) == pytest.approx(0.5 * 3)
    assert float(steering.vector_H[-1]) < 0 and steering.about["alpha"] == -0.5 and steering.about["layer"] == 2
    assert read_steering(SteerOptions(), str(tiny_model)) is None


def test_a_direction_of_another_model_is_refused_in_one_line(directions, tiny_model, bpe_folder, tmp_path):
    wide = save_llama(bpe_folder, tmp_path / "wide", hidden=64)
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(other)
    options = SteerOptions(str(directions), 0.1)
    for folder in (wide, other):
        with pytest.raises(UserError, match=r"belongs to tiny .*Run 'aligner interpret' on this model\.$"):
            Corrector.load(str(folder), "correction", steer=options)
    card = json.loads((directions / "card.json").read_text())
    claimed = Path(shutil.copytree(directions, tmp_path / "claimed"))
    (claimed / "card.json").write_text(json.dumps({**card, "model_sha256": fingerprint(str(wide))}))
    with pytest.raises(UserError, match="are for 2 layers of width 32, and the model has 2 of width 64"):
        Corrector.load(str(wide), "correction", steer=SteerOptions(str(claimed), 0.1))


def test_a_folder_that_is_not_whole_or_was_changed_is_refused(directions, tiny_model, tmp_path):
    broken = Path(shutil.copytree(directions, tmp_path / "broken"))
    with (broken / "directions.safetensors").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(UserError, match="not as it was written"):
        read_steering(SteerOptions(str(broken), 0.1), str(tiny_model))
    (broken / COMPLETED).unlink()
    with pytest.raises(UserError, match="no finished folder"):
        read_steering(SteerOptions(str(broken), 0.1), str(tiny_model))
    with pytest.raises(UserError, match="layers 1 to 2"):
        read_steering(SteerOptions(str(directions), 0.1, 3), str(tiny_model))


@pytest.mark.parametrize("flags", [["--steer", "x"], ["--alpha", "0.1"], ["--steer_layer", "1"],
                                   ["--steer", "x", "--alpha", "nan"], ["--steer", "x", "--alpha", "11"]])  # fmt: skip
def test_flags_of_steering_that_do_not_go_together_are_an_error(flags, rows, capsys):
    words = ["correct", "--model", "m", "--input", str(rows), "--output", "o.jsonl", *flags]
    assert cli.main(words) == 2 and flags[-2] in capsys.readouterr().err


@pytest.mark.slow
def test_corrected_rows_say_what_was_steered_and_differ_from_those_that_were_not(
    directions, tiny_model, rows, tmp_path
):
    def corrected(name: str, *flags: str) -> list[dict[str, Any]]:
        words = [
            "--model",
            str(tiny_model),
            "--prompt_template",
            "correction",
            "--max_new_tokens",
            "8",
            "--keep_unfinished",
        ]
        assert cli.main(["correct", *words, "--input", str(rows), "--output", str(tmp_path / name), *flags]) == 0
        return [json.loads(row) for row in (tmp_path / name).read_text().splitlines()]

    plain_rows = corrected("plain.jsonl")
    same = corrected("same.jsonl", "--steer", str(directions), "--alpha", "0")
    other = corrected("other.jsonl", "--steer", str(directions), "--alpha", "1.5")
    assert [row["corrected"] for row in same] == [row["corrected"] for row in plain_rows]
    assert [row["corrected"] for row in other] != [row["corrected"] for row in plain_rows]
    assert all("steered" not in row for row in plain_rows)
    steered = other[0]["steered"]
    assert (steered["alpha"], steered["layer"], steered["direction"]) == (1.5, 1, directions.name)
    assert steered["model_sha256"] == fingerprint(str(tiny_model))


@pytest.mark.slow
def test_a_steered_server_answers_with_the_steered_correction_and_says_so(directions, tiny_model, told):
    options = AlignerOptions(batch_size=4, max_new_tokens=12, prompt_template="correction")
    _, plain_aligner = load_aligner(str(tiny_model), options)
    _, steered = load_aligner(str(tiny_model), options, steering=SteerOptions(str(directions), 1.5))
    with serving(exchange(steered, told.url)) as address:
        choice = ask(address).choices[0]
        health = requests.get(f"{address}/health", timeout=10).json()
    assert choice.message.content == correction(steered) != correction(plain_aligner)
    note = choice.model_extra["aligner"]["steered"]
    assert (note["alpha"], note["layer"], note["direction"]) == (1.5, 1, directions.name)
    assert note["directions_sha256"] in json.dumps(health)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_commands")
def test_an_evaluation_measures_the_steered_aligner_and_its_report_says_so(directions, tiny_model, rows, tmp_path):
    def course(name: str, *flags: str) -> dict[str, Any]:
        words = ["--after", str(rows), "--limit", "6", "--models", str(tiny_model), "--prompt_template", "correction"]
        words += ["--max_new_tokens", "8", "--output", str(tmp_path / name)]
        assert cli.main(["evaluate", *words, *flags]) == 0
        [result] = read_json(tmp_path / name / "report.json")["course"]
        return result

    plain_result = course("plain")
    result = course("steered", "--steer", str(directions), "--alpha", "1.5")
    assert result["steered"] == {"steer": str(directions), "alpha": 1.5} and "steered" not in plain_result
    assert result["loss"] != plain_result["loss"]
    [wrong] = [
        cli.main(["evaluate", "--after", str(rows), "--output", str(tmp_path / "x"), "--steer", "d", "--alpha", "1"])
    ]
    assert wrong == 2, "there is no Aligner to steer"


@pytest.mark.slow
def test_a_model_spread_over_devices_is_read_and_steered_like_one_on_a_single_device(tiny_model, tmp_path):
    ids, vector = torch.tensor(prompts_of((9,))), torch.linspace(-1, 1, 32)
    places = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu",
              "model.norm": "cpu", "model.rotary_emb": "cpu"}  # fmt: skip
    whole = AutoModelForCausalLM.from_pretrained(tiny_model)
    spread = AutoModelForCausalLM.from_pretrained(tiny_model, device_map=places, offload_folder=tmp_path)
    results = []
    for model in (whole, spread):
        layers = decoder_layers(model)
        with torch.inference_mode():
            means, _ = mean_states(model, layers, [5, 6, 7], [8, 9], 32)
            handle = steer(layers[0], vector)
            logits = model(input_ids=ids).logits
            handle.remove()
        results.append((len(layers), means, logits))
    (count, means, logits), (count_spread, means_spread, logits_spread) = results
    assert count == count_spread == 2
    assert torch.allclose(means, means_spread, atol=1e-5) and torch.allclose(logits, logits_spread, atol=1e-5)


@pytest.mark.slow
def test_every_family_with_a_list_of_layers_is_read_and_steered():
    """A tiny model of every causal family that transformers has; those without such a list say so in one line."""
    ids, refused, wrong = torch.tensor([list(range(3, 12))]), set(), []
    for kind in KINDS:
        model = tiny_model_of(kind)
        if model is None:
            continue
        try:
            layers = decoder_layers(model)
        except UserError as error:
            refused.add(kind)
            assert "cannot be read or steered" in str(error) and "\n" not in str(error)
            continue
        width = width_of(model)
        with torch.inference_mode():
            before = model(input_ids=ids, use_cache=False).logits
        handle = steer(layers[0], 3 * torch.linspace(-1, 1, width))
        with torch.inference_mode():
            during = model(input_ids=ids, use_cache=False).logits
            handle.remove()
            after = model(input_ids=ids, use_cache=False).logits
            means, _ = mean_states(model, layers, list(range(3, 9)), [9, 10, 11], width)
        if not torch.equal(before, after) or torch.allclose(before, during) or not (means.abs().sum(1) > 0).all():
            wrong.append(kind)
    assert not wrong and refused == set(UNREAD)


def tiny_model_of(kind: str) -> Any:
    """A random model of the family; None where there is no tiny one."""
    try:
        config = tiny_config(kind)
        if parameters_of(AutoModelForCausalLM, config) > LARGEST:
            return None
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except Exception:  # what a family raises without its packages
        return None


def test_what_cannot_show_anything_is_one_line_before_anything_is_read(tiny_model, rows, tmp_path, capsys):
    words = ["interpret", "--model", str(tiny_model), "--input", str(rows), "--output", str(tmp_path / "inside")]
    few = ["--fit_rows", "4", "--held_out_rows", "4", "--effect_rows", "4", "--control_rows", "4"]
    assert cli.main([*words, *few]) == 2 and "has no aligner.json" in capsys.readouterr().err
    short = [*few, "--prompt_template", "correction", "--max_new_tokens", "1"]
    assert cli.main([*words, *short]) == 2
    said = capsys.readouterr()
    assert "0 of 4 held-out answers are short enough" in said.err and "Give --max_new_tokens" in said.err
    assert "reading" not in said.err + said.out


@pytest.mark.slow
def test_the_command_writes_a_whole_folder_whose_page_opens_and_whose_directions_steer(
    tiny_model, rows, tmp_path, browser, capsys
):
    out = tmp_path / "inside"
    words = [
        "interpret",
        "--model",
        str(tiny_model),
        "--input",
        str(rows),
        "--output",
        str(out),
        "--prompt_template",
        "correction",
    ]
    words += [
        "--fit_rows",
        "5",
        "--held_out_rows",
        "5",
        "--max_new_tokens",
        "600",
        "--effect_rows",
        "4",
        "--control_rows",
        "4",
    ]
    words += [
        "--random_directions",
        "2",
        "--alphas",
        "-1",
        "0",
        "1",
        "--compare",
        f"again={tiny_model}",
        "--base",
        "none",
    ]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "held-out rows" in printed and "chosen by that" in printed
    pictures = ("accuracy.png", "effect.png", "scan.png")
    data = (
        "directions.safetensors",
        "card.json",
        "figures.json",
        "interpretation.html",
        "interpretation.md",
        COMPLETED,
    )
    assert {file.name for file in out.iterdir()} == {*pictures, *data}
    figures = read_json(out / "figures.json")
    assert [len(each["accuracy"]["pca"]) for each in figures["readings"]] == [2, 2]
    assert [effect["kind"] for effect in figures["effects"]].count("random") == 2
    assert all(len(effect["points"]) == 3 for effect in figures["effects"])
    browser.get((out / "interpretation.html").as_uri())
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 3 and min(widths) > 500
    assert browser.find_elements("css selector", "td.text"), "one answer at several alphas"
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not re.search(r"(src|href)='?\"?https?://", (out / "interpretation.html").read_text())
    assert cli.main(words) == 2 and "is already there" in capsys.readouterr().err
    steering = read_steering(SteerOptions(str(out), 0.1), str(tiny_model))
    assert steering and steering.layer + 1 == read_json(out / "card.json")["layer"]
