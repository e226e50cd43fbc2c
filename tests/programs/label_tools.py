"""Whether Label Studio's and Argilla's own packages accept what `aligner build` wrote for people; what they write back.

Runs under a Python that has both; nothing of this project is imported.

    python label_tools.py FOLDER OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import argilla
from argilla.client import Argilla
from argilla.records._io import JsonIO
from label_studio_sdk.label_interface import LabelInterface

folder, out = Path(sys.argv[1]), Path(sys.argv[2])

# Label Studio: the labelling interface is one, every task fits it, and so does an annotation of each.
interface = LabelInterface((folder / "label-studio.xml").read_text())
interface.validate()
tasks = json.loads((folder / "readers.label-studio.json").read_text())
assert tasks and all(interface.validate_task(task) for task in tasks)
for number, task in enumerate(tasks):
    result = [
        {"id": "v", "from_name": "verdict", "to_name": "answer", "type": "choices", "value": {"choices": ["edited"]}},
        {
            "id": "c",
            "from_name": "correction",
            "to_name": "answer",
            "type": "textarea",
            "value": {"text": ["Words of mine."]},
        },
    ]
    task["id"] = number
    task["annotations"] = [{"id": number, "completed_by": 7, "was_cancelled": False, "result": result}]
    assert interface.validate_annotation(task["annotations"][0]), "an annotation fits the interface"
wrong = [{"from_name": "verdict", "to_name": "answer", "type": "choices", "value": {"choices": ["no such verdict"]}}]
assert not interface.validate_annotation({"result": wrong}), "and what does not fit is refused"
(out / "label-studio.json").write_text(json.dumps(tasks))

# Argilla: its settings and records are read by its own readers, come back as they were, and pass its models.
client = mock.MagicMock()  # there is no server here: only what a file holds is tried
with mock.patch.object(Argilla, "_get_default", classmethod(lambda _: client)):
    settings = argilla.Settings.from_json(folder / "readers.argilla-settings.json")
    settings.validate()
    written = json.loads((folder / "readers.argilla-settings.json").read_text())
    again = json.loads(json.dumps(settings.serialize(), default=str))
    assert {key: again[key] for key in ("guidelines", "distribution")} == {
        key: written[key] for key in ("guidelines", "distribution")
    }
    for kind in ("questions", "fields", "metadata"):
        assert [each["name"] for each in again[kind]] == [each["name"] for each in written[kind]]
        assert [each["settings"] for each in again[kind]] == [each["settings"] for each in written[kind]], kind
    records = JsonIO._records_from_json(folder / "readers.argilla.json")
    names = {field.name for field in settings.fields}
    labels = set(settings.questions["verdict"].labels)
    for record in records:
        assert set(record.fields) == names and record.api_model().model_dump()
        for question, value in (("verdict", "edited"), ("correction", "Words of mine!")):
            record.responses.add(
                argilla.Response(question, value, user_id="11111111-1111-1111-1111-111111111111", status="submitted")
            )
    assert "edited" in labels
    JsonIO.to_json(records, out / "argilla.json")
print(f"{len(tasks)} tasks of Label Studio, {len(records)} records of Argilla accepted")
