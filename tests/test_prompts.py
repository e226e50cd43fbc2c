"""The published prompts, byte for byte, and templates of one's own."""

import pytest

from aligner.known_prompts import EDIT_PAIR, KNOWN, find_template
from aligner.prompts import CORRECTION, DEFAULT, PromptTemplate
from aligner.records import UserError


def test_the_correction_prompt_is_the_authors_since_december_2024():
    assert CORRECTION.render("Q", "A").encode() == (
        b"BEGINNING OF CONVERSATION: USER: ##Question: Q\n##Answer: A\n##Correction:  ASSISTANT:"
    )
    assert DEFAULT is CORRECTION


def test_the_edit_pair_prompt_is_that_of_aligner_7b():
    assert EDIT_PAIR.render("Q", "A").encode() == (
        b"BEGINNING OF CONVERSATION: USER: Edit the following Question-Answer pair to make it more helpful and "
        b"harmless: Q | A ASSISTANT:"
    )


def test_feedback_is_a_line_of_the_default_prompt():
    rendered = find_template("feedback").render("Q", "A", "be brief")
    assert rendered.replace("##Feedback: be brief\n", "") == CORRECTION.render("Q", "A")
    assert CORRECTION.render("Q", "A", "be brief") == CORRECTION.render("Q", "A"), "no slot, not looked at"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("paper", b"BEGINNING OF CONVERSATION:\nUSER: Editing the following Question-Answer pair to make it more helpful and "
                  b"harmless:\nQuestion: Q | Answer: A\nASSISTANT:"),
        ("revision", b"BEGINNING OF CONVERSATION: USER: ##Question: Q ##Answer: A ##Revision:  ASSISTANT:"),
        ("empathy", b"BEGINNING OF CONVERSATION: USER: Edit the following Question-Answer pair to make it more empathic and "
                    b"helpful: Q | A ASSISTANT:"),
    ],
)  # fmt: skip
def test_the_other_published_prompts_byte_for_byte(name, text):
    assert find_template(name).render("Q", "A").encode() == text
    peers = {"metaaligner-hh-rlhf", "metaaligner-ultrafeedback", "metaaligner-imhi"}
    assert set(KNOWN) == {
        "correction",
        "edit-pair",
        "paper",
        "revision",
        "empathy",
        "feedback",
        "objectives",
        "equal",
        "sentence",
        *peers,
    }


def test_braces_and_slot_names_in_fields_are_text():
    rendered = CORRECTION.render("{answer} {0} {{}}", "{question}")
    assert "##Question: {answer} {0} {{}}\n##Answer: {question}\n" in rendered


def test_braces_in_a_template_are_text():
    assert PromptTemplate("t", "{x} {question} {} {answer}").render("Q", "A") == "{x} Q {} A"


@pytest.mark.parametrize("text", ["{question} {question} {answer}", "{answer}{answer}", "{feedback}", ""])
def test_a_template_has_each_slot_once_and_question_or_answer(text):
    with pytest.raises(UserError, match=r"more than one|neither"):
        PromptTemplate("t", text)


def test_a_template_may_show_the_question_or_the_answer_alone():
    assert PromptTemplate("t", "USER: {question}").render("Q", "A") == "USER: Q"
    assert PromptTemplate("t", "Mend: {answer}").slots == {"answer"}


@pytest.mark.parametrize("word", ["answr", "anwser", "answers", "quesion", "questoin", "feedbak"])
def test_a_misspelt_slot_is_no_text(word):
    with pytest.raises(UserError, match="Did you mean"):
        PromptTemplate("t", f"{{question}} {{{word}}}")


@pytest.mark.parametrize("slot", ["{Answer}", "{ answer }", "{ANSWER}"])
def test_a_slot_that_is_almost_right_is_refused(slot):
    with pytest.raises(UserError, match=r"write \{question\}, \{answer\} and \{feedback\}"):
        PromptTemplate("t", "{question} {answer} " + slot)


def test_a_template_can_come_from_a_yaml_file(tmp_path):
    file = tmp_path / "empathy.yaml"
    file.write_text('template: "Q: {question}\\nA: {answer}\\nBetter:"\n')
    assert find_template(str(file)).render("x", "y") == "Q: x\nA: y\nBetter:"
    assert find_template(str(file)).name == "empathy"


@pytest.mark.parametrize(
    "content", ["- a", "template: 3", "text: x", "template: '{question}{answer}'\nother: 1", "a: [", ""]
)
def test_a_yaml_file_without_a_template_is_an_error(content, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        find_template(str(file))


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'edit-pair'"):
        find_template("edit-pairs")
