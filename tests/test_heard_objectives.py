"""Whether an objective is heard: scores of a text, what is asked for against what becomes of it; and rated answers."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from aligner.cli import main
from aligner.evaluation.measures import text_scores
from aligner.evaluation.measures.command import write_measure_report
from aligner.evaluation.measures.controls import IDENTITY, SHUFFLED_OBJECTIVES
from aligner.evaluation.measures.matrix import picture_panels
from aligner.evaluation.measures.measure import CorrectedText
from aligner.evaluation.measures.objectives import HEADS, NOTHING, OTHERS, objectives_figures
from aligner.evaluation.measures.own_words import as_list, beginning, own_words_rows, with_more
from aligner.evaluation.measures.own_words import main as make_own_words
from aligner.evaluation.measures.plain_words import in_plain_words
from aligner.evaluation.measures.ratings import rated_rows
from aligner.evaluation.measures.table import ALIGNER
from aligner.evaluation.measures.text_scores import (
    TextScore,
    content_kept,
    distinct_trigrams,
    doublings,
    listed,
    script,
)
from aligner.objectives import read_objectives
from aligner.training.datasets.mixture import mix

LENGTH = TextScore("length", "doublings", doublings, more="detailed", less="concise")
LIST = TextScore("list", "share of lines", listed, more="list")
SCORES = (LENGTH, LIST)
ASKED = {"concise": "Be brief", "list": "Write a list"}
ROWS = [
    {"question": f"How does machine {n} work?", "answer": f"Machine {n} turns wheels with steam."} for n in range(24)
]


def test_scores_of_a_text_can_be_checked_by_eye():
    assert doublings("one two three four") == 2 and doublings("") == 0
    assert distinct_trigrams("a b c a b c") == 3 / 4 and distinct_trigrams("a b") == 1
    assert listed("Three things:\n- rice\n- salt\n\n3. water") == 3 / 4 and listed("- one item alone") == 0
    assert content_kept("The wheel turns with steam in 1830.", "Steam came in 1830!") == 2 / 4
    assert script("Привет, Bob") == "CYRILLIC" and script("12 + 3") == ""


def test_the_mark_of_an_item_is_no_short_word_that_makes_a_list_easy_to_read(monkeypatch):
    words_a_sentence = SimpleNamespace(automated_readability_index=lambda text: len(text.split()) / text.count("."))
    monkeypatch.setitem(sys.modules, "textstat", words_a_sentence)
    assert text_scores.reading()("- Rice is hot.\n\n2. Salt - sea salt - is dry.") == -10 / 2  # words over sentences


@pytest.mark.parametrize(
    ("package", "score", "lost"), [("textstat", "reading", "readable"), ("profanity_check", "decency", "polite")]
)
def test_a_score_whose_package_is_not_there_is_left_out_and_said(package, score, lost, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    scores, notes = text_scores.text_scores.__wrapped__()
    assert score not in {each.name for each in scores} and any(f"{score} ({lost}): left out" in note for note in notes)
    assert {"length", "distinct", "list"} <= {each.name for each in scores}


def test_scores_of_optional_packages_know_hard_words_and_offence():
    pytest.importorskip("textstat")
    pytest.importorskip("profanity_check")
    easy, hard = "The cat sat. It was glad.", "Notwithstanding heterogeneity, investigators demonstrate improvements."
    assert text_scores.reading()(easy) > text_scores.reading()(hard)
    assert text_scores.decency()("Thank you for asking.") > 0.9 > 0.1 > text_scores.decency()("You fucking idiot.")


def obedient(rows):
    """Half of the words when asked to be brief, two items when asked for a list, the answer when nothing is asked."""
    return [CorrectedText(_obeyed(row["answer"], row.get("objectives")), True) for row in rows]


def _obeyed(answer, objectives):
    if objectives == ["Be brief"]:
        return " ".join(answer.split()[:3])
    return "- " + "\n- ".join(answer.split()) if objectives else answer


def deaf(rows):
    """Half of the words whatever is asked for."""
    return [CorrectedText(_obeyed(row["answer"], ["Be brief"]), True) for row in rows]


def brief_for_anything(rows):
    """Half of the words as soon as anything is asked for."""
    return [CorrectedText(_obeyed(row["answer"], ["Be brief"] if row.get("objectives") else []), True) for row in rows]


def figures(aligner, shuffled=deaf, limit=20):
    return objectives_figures(ROWS, ASKED, {ALIGNER: aligner, SHUFFLED_OBJECTIVES: shuffled}, limit, SCORES)


def test_the_matrix_has_what_becomes_of_answers_by_what_is_asked_for():
    matrix = figures(obedient)["matrix"]
    own, copied = matrix[ALIGNER]["rows"], matrix[IDENTITY]["rows"]
    assert own["concise"]["length"]["mean"]["value"] == 0.5 and own[NOTHING]["length"]["mean"]["value"] == 1
    assert own["concise"]["length"]["against_nothing"]["value"] == -0.5
    assert own["concise"]["length"]["against_others"]["value"] == -0.5, "the list is as long as the answer"
    assert own["list"]["list"]["mean"]["value"] == 1 and own["concise"]["list"]["mean"]["value"] == 0
    assert own["list"]["content kept"]["mean"]["value"] == 1 > own["concise"]["content kept"]["mean"]["value"]
    assert own[NOTHING]["left alone"]["mean"]["value"] == 1 and "against_nothing" not in own[NOTHING]["length"]
    assert copied["concise"]["length"]["mean"] == {"value": 1, "low": 1, "high": 1}
    assert matrix[SHUFFLED_OBJECTIVES]["answers"] == 20, "a control corrects the first answers alone"


def test_a_refusal_that_was_none_before_stands_in_the_matrix():
    refusing = figures(lambda rows: [CorrectedText("I'm sorry, but no.", True) for _ in rows])
    assert refusing["matrix"][ALIGNER]["rows"]["concise"]["new refusals"]["mean"]["value"] == 1


def test_an_objective_is_heard_against_nothing_another_objective_and_the_shuffled_aligner():
    part = figures(obedient)["parts"]["concise"]
    assert part["verdict"] == "helps" and part["measure"] == "length"
    gains = {row["system"]: row["gain"]["value"] for row in part["systems"]}
    assert gains == {ALIGNER: 0.5, OTHERS: 0, SHUFFLED_OBJECTIVES: 0, IDENTITY: 0}


@pytest.mark.parametrize(
    ("aligner", "shuffled", "verdict"),
    [(deaf, deaf, "null"), (brief_for_anything, deaf, "fooled"), (obedient, obedient, "fooled")],
)
def test_what_is_not_heard_is_said(aligner, shuffled, verdict):
    assert figures(aligner, shuffled)["parts"]["concise"]["verdict"] == verdict


def test_without_an_aligner_trained_on_shuffled_objectives_nothing_is_claimed():
    part = objectives_figures(ROWS, ASKED, {ALIGNER: obedient}, 20, SCORES)["parts"]["concise"]
    assert part["verdict"] == "unclear" and "only an Aligner trained on shuffled ones shows" in part["says"]


def test_corrections_that_did_not_end_are_counted():
    notes = figures(lambda rows: [CorrectedText(row["answer"], False) for row in rows])["notes"]
    assert f"{ALIGNER}: 72 of 72 corrections did not end; the answer was kept" in notes


def test_the_picture_colours_what_is_apart_from_asking_for_nothing_and_frames_an_objectives_own_measure():
    [(title, rows, cells), (_, _, others)] = picture_panels(figures(obedient))
    assert title == f"{ALIGNER} (24 answers)" and rows == [NOTHING, "concise", "list"]
    assert cells[1][0] == (-1.0, "0.50\n0.50 to 0.50", True) and cells[0][0][0] == 0
    assert {colour for row in others for colour, _, _ in row} == {0}, "whoever hears nothing has no colour"
    assert [framed for _, _, framed in cells[2]] == [False, True, False, False, False, False]


def test_the_matrix_is_written_as_json_page_picture_and_table(tmp_path):
    report = {
        **figures(obedient),
        "measure": "objectives",
        "unit": "its own measure",
        "heads": list(HEADS),
        "about": "A",
    }
    write_measure_report(tmp_path, report)
    assert (tmp_path / "measure.png").read_bytes().startswith(b"\x89PNG")
    page, table = (tmp_path / "measure.html").read_text(), (tmp_path / "measure.md").read_text()
    assert "data:image/png;base64," in page and "<td class='own'>0.50 (0.50 to 0.50)</td>" in page
    assert "| concise | 0.50 (0.50 to 0.50) |" in table and "| asked for | nothing asked |" in table
    assert json.loads((tmp_path / "measure.json").read_text())["matrix"][ALIGNER]["rows"]["concise"]


def test_answers_are_rated_by_what_they_show_and_each_row_asks_for_one_objective(tmp_path):
    short, long = "Steam turns the wheels of it, and so the whole machine moves.", "Steam turns the wheels of it. " * 5
    rows = [{"question": f"How does machine {n} work?", "answer": short, "correction": f"{long}{n}."} for n in range(4)]
    rated = rated_rows(rows, {"concise": 3, "detailed": 1})
    file = tmp_path / "rated.json"
    file.write_text(json.dumps(rated))
    records = mix([f"rated-json::{file}"], 1, objectives=read_objectives()).records
    assert [record.objectives for record in records] == [("detailed",)] + [("concise",)] * 3
    assert records[0].answer == short and all(record.correction == short for record in records[1:])


def test_a_pair_of_length_has_one_text_of_less_than_two_thirds_of_the_others_words():
    texts = [f"Steam {'turns the wheels of it and ' * times}so on." for times in (2, 3, 5)]  # 15, 21 and 33 words
    rated = rated_rows([{"question": "How?", "answer": text} for text in texts], {"concise": 9})
    assert [[answer["text"] for answer in row["answers"]] for row in rated] == [[texts[2], texts[0]]]


def test_a_pair_that_hardly_differs_in_an_objective_makes_no_row_of_it():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    hardly = words.replace("thirteen fourteen fifteen", "one two three")
    repeated = " ".join(["one two three four five"] * 3)
    rows = [
        {"question": question, "answer": words, "correction": other}
        for question, other in (("Hardly?", hardly), ("Clearly?", repeated))
    ]
    assert [row["question"] for row in rated_rows(rows, {"no-repetition": 9})] == ["Clearly?"]


def test_pairs_of_other_objectives_are_about_as_long(tmp_path):
    words, items = (
        "You need rice, salt and some cold water, and then boil them all.",
        "You need:\n- rice\n- salt\n- some cold water\nAnd then boil them all.",
    )
    rows = [{"question": "What do I need?", "answer": text} for text in (words, items, items + "\n- pots\n- pans" * 30)]
    [row] = rated_rows(rows, {"list": 9})
    assert [answer["text"] for answer in row["answers"]] == [words, items]


def test_a_refusal_is_rated_in_nothing():
    texts = ("I'm sorry, but I can't help with that, nor can anyone else here.", "Steam turns the wheels of it. " * 5)
    assert not rated_rows([{"question": "How?", "answer": text} for text in texts])


TEXT = (
    "Wash the rice until the water is clear. Cook it in twice as much water, for ten minutes. Let it stand for ten more, and never "
    "lift the lid on the way! Then loosen it with a fork, of wood if there is one."
)


def test_an_answer_begins_with_whole_sentences_of_less_than_half_its_words():
    # 18 of 44 words: 0.41; with the third sentence 32, which is 0.73.
    assert beginning(TEXT) == "Wash the rice until the water is clear. Cook it in twice as much water, for ten minutes."
    assert beginning("One sentence alone, of however many words it may have, begins with nothing but itself.") is None
    assert (
        beginning("Yes! Wash it until the water is clear, cook it in twice as much, and let it stand.") is None
    )  # one word


def test_sentences_become_the_items_of_a_list():
    assert as_list(TEXT).splitlines()[2:] == [
        "- Let it stand for ten more, and never lift the lid on the way!",
        "- Then loosen it with a fork, of wood if there is one.",
    ]
    assert as_list("- Wash it.\n- Cook it.\n- Loosen it.") is None and as_list("Wash it. Cook it.") is None


def test_another_answer_adds_its_sentences_that_are_new_up_to_six_tenths_of_the_words():
    other = (
        "Wash the rice in clear water. Ovens of steam cook rice evenly without anyone watching over them. Never mind. "
        "Cooked grains keep for three days inside a fridge. Freeze whatever else you have left over, within an hour, in portions."
    )
    # Known words, eleven new ones, too few, nine new ones; with the last twelve it would be 32, of the text's 44 words.
    added = "Ovens of steam cook rice evenly without anyone watching over them. Cooked grains keep for three days inside a fridge."
    assert with_more(TEXT, [TEXT, other]) == f"{TEXT}\n\n{added}"
    assert with_more(TEXT, ["Wash the rice in clear water."]) is None and with_more(TEXT, []) is None


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (
            "Provide an opportunity, and it will help; the lid stays on.",
            "Give a chance. It will help; the lid stays on.",
        ),
        ("It is hot, but most people may obtain a glove.", "It is hot. But most people may get a glove."),
        ("A professional will purchase an additional pot.", "An expert will buy another pot."),
        ("It takes approximately an hour because it is hot.", "It takes about an hour. This is because it is hot."),
        ("Utilize a fire, which can spread. Individuals stay.", "Use a fire. This can spread. People stay."),
    ],
)
def test_joined_sentences_are_parted_and_long_words_become_common_ones(text, plain):
    assert in_plain_words(text) == plain


def test_a_text_with_one_place_to_change_is_near_plain_already():
    assert in_plain_words("The soup is hot, and it is salty.") is None


def test_lists_and_clauses_within_a_sentence_stay_in_one_piece():
    text = "Numerous people obtain bread, rice, and the soup that is hot; the pot, which is clean, and you and I, are there."
    assert in_plain_words(text) == text.replace("Numerous", "Many").replace("obtain", "get")


def test_one_text_makes_a_row_for_every_objective_so_that_what_is_asked_for_tells_them_apart():
    other = (
        "Steam ovens manage this alone, and whoever owns one of them needs neither pots nor lids nor watches for any meal. "
        * 2
    )
    rows = [{"question": "How is rice cooked?", "answer": TEXT, "correction": "I'm sorry, but I can't help with that."}]
    rows.append({"question": "How is rice cooked?", "answer": other})
    made = own_words_rows(rows, {"concise": 2, "detailed": 2, "list": 2, "nothing": 2})
    assert [(row["objectives"], row["correction"]) for row in made if row["answer"] == TEXT] == [
        (["concise"], beginning(TEXT)),
        (["detailed"], with_more(TEXT, [other])),
        (["list"], as_list(TEXT)),
        ([], TEXT),
    ]
    assert [row["objectives"] for row in own_words_rows(rows, {"nothing": 1, "list": 1})] == [[], ["list"]]


def test_rows_in_own_words_are_records_under_their_objective(tmp_path):
    source, output = tmp_path / "answers.json", tmp_path / "own_words.jsonl"
    source.write_text(json.dumps([{"question": "How is rice cooked?", "answer": TEXT}]))
    assert make_own_words(["--rows", str(source), "--output", str(output)]) == 0
    records = mix([f"correction-json::{output}"], 1, objectives=read_objectives()).records
    assert sorted(record.objectives for record in records) == [
        (),
        ("concise",),
        ("list",),
    ]  # no other answer to add from
    assert make_own_words(["--rows", str(tmp_path / "nowhere.json"), "--output", str(output)]) == 2
    source.write_text(json.dumps([{"question": "How is rice cooked?", "answer": "In water."}]))
    assert make_own_words(["--rows", str(source), "--output", str(tmp_path / "none.jsonl")]) == 2
    assert make_own_words(["--rows", str(source), "--output", str(tmp_path / "none.jsonl"), "--most", "0"]) == 2
    assert not (tmp_path / "none.jsonl").exists()


def test_own_answers_become_rated_rows_by_one_command(tmp_path):
    from aligner.evaluation.measures.ratings import main as rate

    source, output = tmp_path / "answers.json", tmp_path / "rated.jsonl"
    texts = ("Steam turns the wheels of it, and so the whole machine moves.", "Steam turns the wheels. " * 8)
    source.write_text(json.dumps([{"question": "How?", "answer": text} for text in texts]))
    assert rate(["--rows", str(source), "--output", str(output), "--most", "1"]) == 0
    rated = [json.loads(line) for line in output.read_text().splitlines()]
    assert {"concise", "detailed"} <= {name for row in rated for name in row["answers"][0]["ratings"]}


@pytest.mark.slow
def test_objectives_are_asked_for_by_the_command(tiny_model, tmp_path, capsys):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS[:2]))
    command = [
        "evaluate",
        "--measure",
        "objectives",
        "--rows",
        str(rows),
        "--models",
        str(tiny_model),
        "--base",
        "none",
    ]
    command += ["--output", str(tmp_path / "out"), "--max_new_tokens", "4", "--objectives", "concise,list"]
    assert main([*command, "--prompt_template", "correction"]) == 2
    assert "has no slot for objectives" in capsys.readouterr().err
    assert main([*command[:-1], "helpful", "--prompt_template", "objectives"]) == 2
    assert "a text shows detailed, concise" in capsys.readouterr().err
    assert main([*command, "--prompt_template", "objectives"]) == 0
    report = json.loads((tmp_path / "out" / "measure.json").read_text())
    assert list(report["matrix"][ALIGNER]["rows"]) == [NOTHING, "concise", "list"]
    asked = [json.loads(line) for line in (tmp_path / "out" / "asked" / "concise.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in asked] == [row["answer"] for row in ROWS[:2]] and "corrected" in asked[0]
    assert list(report["parts"]) == ["concise", "list"] and "asked for" in capsys.readouterr().out


def test_objectives_are_of_one_measure_alone(capsys):
    command = [
        "evaluate",
        "--measure",
        "truth",
        "--rows",
        "r",
        "--models",
        "a",
        "--output",
        "x",
        "--objectives",
        "concise",
    ]
    assert main(command) == 2 and "--objectives is for --measure objectives" in capsys.readouterr().err
