"""The files of Label Studio and Argilla: rows for people in the form that each tool imports, and what people said in the form that
it exports. Written and read directly: no package of theirs is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aligner.building.stage import Row
from aligner.files import write_json, write_text
from aligner.readers.rows import read_rows
from aligner.records import DataError, Origin, UserError
from aligner.texts import text_fault

VERDICTS = {
    "draft": "the draft is right as it is",
    "edited": "the correction is what I wrote below",
    "answer": "the answer is good and needs no correction",
    "neither": "no answer here can be used",
}
FIELDS = ("question", "answer", "draft", "remarks")  # what a reader sees
FIRST, SECOND = 1, 2  # the passes: two readers, and where they differ another
GUIDE = """Read the question and the answer. If there is a draft of a correction, say whether it is right, or write a better one.
Change what goes against the principles of the build and keep the rest in the answer's own words.
"""
LABELS = f"""<View>
  <Header value="Question"/><Text name="question" value="$question"/>
  <Header value="Answer"/><Text name="answer" value="$answer"/>
  <Header value="Draft of a correction"/><Text name="draft" value="$draft"/>
  <Header value="Remarks"/><Text name="remarks" value="$remarks"/>
  <Choices name="verdict" toName="answer" choice="single" required="true">
{"".join(f'    <Choice value="{name}" hint="{hint}"/>{chr(10)}' for name, hint in VERDICTS.items())}  </Choices>
  <TextArea name="correction" toName="answer" value="$draft" rows="12" maxSubmissions="1" editable="true"/>
</View>
"""


class Opinion(NamedTuple):
    """What a reader says of a row. pass_number: 2 of the second reader. text: the correction, where the verdict is `edited`."""

    row: str
    pass_number: int
    reader: str
    verdict: str
    text: str = ""


def write_for_people(folder: Path, name: str, rows: Sequence[Row], pass_number: int, readers: int) -> list[Path]:
    """Write rows for both tools: NAME.label-studio.json and NAME.argilla.json, with what each needs beside it."""
    visible = [_visible_fields(row) for row in rows]
    tasks = [
        {"data": {**fields, "row": row["id"], "pass": pass_number}} for row, fields in zip(rows, visible, strict=True)
    ]
    records = [
        {
            "id": f"{row['id']}/{pass_number}",
            "fields": fields,
            "metadata": {"row": row["id"], "pass": pass_number},
            "suggestions": {"correction": {"value": fields["draft"], "score": None, "agent": row.get("annotator")}}
            if fields["draft"]
            else {},
            "responses": {},
            "vectors": {},
            "status": "pending",
            "_server_id": None,
        }
        for row, fields in zip(rows, visible, strict=True)
    ]
    files = [folder / f"{name}.label-studio.json", folder / f"{name}.argilla.json"]
    write_json(files[0], tasks)
    write_json(files[1], records)
    write_text(folder / "label-studio.xml", LABELS)
    write_json(folder / f"{name}.argilla-settings.json", _settings(readers))
    return files


def _visible_fields(row: Row) -> dict[str, str]:
    return {
        "question": row["question"],
        "answer": row["answer"],
        "draft": row.get("correction") or "",
        "remarks": row.get("remarks") or row.get("critique") or "",
    }


def _settings(readers: int) -> dict[str, Any]:
    """A data set of Argilla as its own package would save it."""
    blank = {"id": None, "inserted_at": None, "updated_at": None, "description": None, "dataset_id": None}
    options = [{"text": f"{name}: {hint}", "value": name} for name, hint in VERDICTS.items()]
    text = {"type": "text", "use_markdown": False}
    labels: dict[str, Any] = {"type": "label_selection", "options": options, "visible_options": len(VERDICTS)}
    kinds: list[tuple[str, dict[str, Any], bool]] = [("verdict", labels, True), ("correction", text, False)]
    visibility = {"visible_for_annotators": True}
    metadata: list[tuple[str, dict[str, Any]]] = [
        ("row", {**visibility, "type": "terms", "values": None}),
        ("pass", {**visibility, "type": "integer", "min": None, "max": None}),
    ]
    return {
        "guidelines": GUIDE,
        "questions": [
            {**blank, "name": name, "settings": each, "title": name, "required": required, "type": each["type"]}
            for name, each, required in kinds
        ],
        "fields": [
            {**blank, "name": name, "settings": text, "title": name, "required": name in FIELDS[:2], "type": "text"}
            for name in FIELDS
        ],
        "vectors": [],
        "metadata": [
            {
                **blank,
                "name": name,
                "settings": each,
                "title": name,
                "visible_for_annotators": False,
            }
            for name, each in metadata
        ],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": readers},
        "mapping": None,
    }


def read_opinions(file: str) -> Iterator[Opinion]:
    """What people said in an export of either tool. UserError where a row is none of them, or says what cannot be."""
    for row in read_rows(file):
        if isinstance(row, DataError):
            raise row
        value = row.value if isinstance(row.value, Mapping) else {}
        if isinstance(value.get("annotations"), list) and isinstance(value.get("data"), Mapping):
            read = _of_label_studio(value)
        elif isinstance(value.get("responses"), Mapping) and isinstance(value.get("metadata"), Mapping):
            read = _of_argilla(value)
        else:
            raise DataError(
                *row.origin, "is no row of Label Studio's or Argilla's JSON", "Export the whole project as JSON"
            )
        try:
            opinions = list(read)
        except (AttributeError, TypeError, ValueError, LookupError):
            raise DataError(
                *row.origin, "holds an annotation of another form", "Export the project as it was set up"
            ) from None
        for opinion in opinions:
            yield _checked(opinion, row.origin)


def _of_label_studio(task: Mapping[str, Any]) -> Iterator[Opinion]:
    """The annotations of a task; those that were skipped are none."""
    data = task["data"]
    for each in task["annotations"]:
        if each.get("was_cancelled"):
            continue
        texts_by_name: dict[str, str] = {}
        for result in each.get("result") or []:
            value = result.get("value") or {}
            texts = value.get("choices") or value.get("text") or [""]
            texts_by_name[str(result.get("from_name"))] = texts if isinstance(texts, str) else str(texts[0])
        who = each["completed_by"]
        yield Opinion(
            str(data["row"]),
            int(data.get("pass") or 1),
            _reader(who.get("email") or who["id"] if isinstance(who, Mapping) else who),
            texts_by_name.get("verdict", ""),
            texts_by_name.get("correction", ""),
        )


def _of_argilla(record: Mapping[str, Any]) -> Iterator[Opinion]:
    """The responses to a record: of each reader a verdict, and a text."""
    by_reader: dict[str, dict[str, str]] = {}
    for name, responses in record["responses"].items():
        for each in responses or []:
            if each.get("status") in (None, "submitted"):
                by_reader.setdefault(_reader(each.get("user_id")), {})[name] = str(each.get("value") or "")
    metadata = record["metadata"]
    for reader, values in by_reader.items():
        text = values.get("correction", "")
        yield Opinion(str(metadata["row"]), int(metadata.get("pass") or 1), reader, values.get("verdict", ""), text)


def _reader(who: Any) -> str:
    """Whose opinion it is. ValueError where nobody's: two readers could not be told apart."""
    if who is None:
        raise ValueError("nobody's")
    return str(who)


def _checked(opinion: Opinion, origin: Origin) -> Opinion:
    """An opinion that can be one. UserError otherwise."""
    if opinion.pass_number not in (FIRST, SECOND):
        raise DataError(*origin, f"is of pass {opinion.pass_number}", "Export the project as it was set up")
    if opinion.verdict not in VERDICTS:
        word = repr(opinion.verdict) if opinion.verdict else "nothing"
        raise UserError(
            f"{origin}: reader {opinion.reader} says {word}, which is none of {', '.join(VERDICTS)}. Ask the reader."
        )
    if opinion.verdict == "edited" and not opinion.text.strip():
        raise UserError(f"{origin}: reader {opinion.reader} says 'edited' and wrote nothing. Ask the reader.")
    if opinion.verdict == "edited" and (fault := text_fault(origin, "correction", opinion.text)):
        raise fault
    return opinion if opinion.verdict == "edited" else opinion._replace(text="")
