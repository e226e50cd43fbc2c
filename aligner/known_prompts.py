"""The prompts that are known by a name: the published texts byte for byte, and this project's own."""

from __future__ import annotations

import difflib
from pathlib import Path

from aligner.files import read_yaml
from aligner.prompts import CORRECTION, PromptTemplate
from aligner.records import UserError

# The authors' code before that date, and the model card of aligner-7b-v1.0.
EDIT_PAIR = PromptTemplate(
    "edit-pair",
    "BEGINNING OF CONVERSATION: USER: "
    "Edit the following Question-Answer pair to make it more helpful and harmless: {question} | {answer} ASSISTANT:",
)
# The paper's algorithm 1; "Editing", the labels and the newlines are its own.
PAPER = PromptTemplate(
    "paper",
    "BEGINNING OF CONVERSATION:\nUSER: Editing the following Question-Answer pair to make it more helpful and "
    "harmless:\nQuestion: {question} | Answer: {answer}\nASSISTANT:",
)
# The three AlpacaEval submissions of Aligner-2B: spaces where `correction` has newlines, and "Revision".
REVISION = PromptTemplate(
    "revision",
    "BEGINNING OF CONVERSATION: USER: ##Question: {question} ##Answer: {answer} ##Revision:  ASSISTANT:",
)
# The authors' code for the empathy Aligner.
EMPATHY = PromptTemplate(
    "empathy",
    "BEGINNING OF CONVERSATION: USER: "
    "Edit the following Question-Answer pair to make it more empathic and helpful: {question} | {answer} ASSISTANT:",
)
# This project's own, for controllable refinement: the paper gives no text. `correction` with one more line.
FEEDBACK = PromptTemplate(
    "feedback",
    "BEGINNING OF CONVERSATION: USER: ##Question: {question}\n##Answer: {answer}\n##Feedback: {feedback}\n"
    "##Correction:  ASSISTANT:",
)
# The same under the slot's other name: what is asked for stands in the prompt as sentences (objectives.py).
OBJECTIVES = PromptTemplate(
    "objectives",
    "BEGINNING OF CONVERSATION: USER: ##Question: {question}\n##Answer: {answer}\n##Objectives: {objectives}\n"
    "##Correction:  ASSISTANT:",
)
# The stage of equal preference: turns an answer into one that is equally good in these objectives (MetaAligner, section 3.2).
EQUAL = PromptTemplate(
    "equal",
    "BEGINNING OF CONVERSATION: USER: ##Question: {question}\n##Answer: {answer}\n##Equal in: {objectives}\n"
    "##Correction:  ASSISTANT:",
)
# This project's own, for corrections sentence by sentence (Stream Aligner's idea, in other words): the prefix is corrected.
SENTENCE = PromptTemplate(
    "sentence",
    "BEGINNING OF CONVERSATION: USER: ##Question: {question}\n##Answer so far: {prefix}\n##Next sentence: {answer}\n"
    "##Correction:  ASSISTANT:",
)
# MetaAligner's, from its inference script. HH-RLHF's context is the dialogue in that data set's own form, which its models saw.
METAALIGNER_HH_RLHF = PromptTemplate(
    "metaaligner-hh-rlhf",
    "You are an assistant to human. You will be provided with a context and an answer. Consider the context, then edit the "
    "answer to improve it considering these aspects: {objectives} | "
    "Context: \n\nHuman: {question} \n\nAssistant: | Answer: {answer} | Edit: ",
)
METAALIGNER_ULTRAFEEDBACK = PromptTemplate(
    "metaaligner-ultrafeedback",
    "You are an assistant to human. You will be provided with a query and an answer. Consider the query, then edit the "
    "answer to improve it considering these aspects: {objectives} | Query: {question} | Answer: {answer} | Edit: ",
)
METAALIGNER_IMHI = PromptTemplate(
    "metaaligner-imhi",
    'Edit the following Question-Answer pair to make it better considering these aspects "{objectives}" | '
    "Question: {question} | Answer: {answer} | Edit: ",
)
METAALIGNER = (METAALIGNER_HH_RLHF, METAALIGNER_ULTRAFEEDBACK, METAALIGNER_IMHI)
OWN = (CORRECTION, EDIT_PAIR, PAPER, REVISION, EMPATHY, FEEDBACK, OBJECTIVES, EQUAL, SENTENCE)
KNOWN = {template.name: template for template in (*OWN, *METAALIGNER)}
CHAT = "chat"  # the text below as one user turn of the base's own chat template (chat_prompt.py)
QUESTION = "question"  # the question alone likewise: what an upstream sees, which learns to answer
OF_BASE = (CHAT, QUESTION)
USER_TURN = PromptTemplate(CHAT, "##Question: {question}\n##Answer: {answer}\n##Correction: ")
ALONE = PromptTemplate(QUESTION, "{question}")


def find_template(name_or_file: str) -> PromptTemplate:
    """A known template by its name, or one from a YAML file with the keys `template` and, if wanted, `name`."""
    known = {**KNOWN, CHAT: USER_TURN, QUESTION: ALONE}
    if name_or_file in known:
        return known[name_or_file]
    if not name_or_file.endswith((".yaml", ".yml")):
        near = difflib.get_close_matches(name_or_file, known, n=1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"there is no prompt template '{name_or_file}'. {hint}Known: {', '.join(known)}; or give a YAML file."
        )
    value = read_yaml(name_or_file)
    if not isinstance(value, dict) or not isinstance(value.get("template"), str) or set(value) - {"template", "name"}:
        raise UserError(f"{name_or_file}: needs the key 'template' with the prompt's text, and may have 'name'.")
    return PromptTemplate(str(value.get("name", Path(name_or_file).stem)), value["template"])
